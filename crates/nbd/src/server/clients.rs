//! Who is connected: as many as may be, and who goes when one more comes. As long as there are places nobody has to.

use crate::limits::Limits;
use polypath::block::{LogLimit, Time};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// At most one line in the log in this time: what clients do is not to fill it.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// In place of a number of requests: the client has lost its place.
const GONE: usize = usize::MAX;

#[derive(Debug, Clone)]
pub(crate) struct Clients(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    /// Do those go that have asked for something, and for nothing any more?
    idle_go: bool,
    state: Mutex<State>,
    log: LogLimit,
    /// When its time began.
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By their number, which grows: the first is the oldest.
    all: BTreeMap<u64, Arc<Activity>>,
}

/// What one of them does.
#[derive(Debug)]
struct Activity {
    since: Instant,
    /// Is its handshake over?
    begun: AtomicBool,
    /// Requests whose replies it has not taken, or [`GONE`].
    requests: AtomicUsize,
    /// When it took the last reply, in milliseconds from `since`; zero: it has asked for nothing.
    idle_ms: AtomicU64,
    unwanted: Notify,
}

impl Clients {
    /// `idle_go`: whether somebody who has asked for nothing for [`Limits::idle`] goes for somebody else.
    pub(crate) fn new(limits: Limits, idle_go: bool) -> Clients {
        let (state, log, since) = (Mutex::default(), LogLimit::new(1, LOG_PAUSE), Instant::now());
        Clients(Arc::new(Inner { limits, idle_go, state, log, since }))
    }

    /// One more, in its handshake. If there are too many somebody else has to go; `None`: nobody does.
    pub(crate) fn enter(&self) -> Option<Client> {
        let mut state = self.0.lock();
        if state.all.len() >= self.0.limits.clients {
            let number = self.0.let_one_go(&state)?;
            state.all.remove(&number);
        }
        let number = state.next;
        state.next += 1;
        let activity = Arc::new(Activity {
            since: Instant::now(),
            begun: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            idle_ms: AtomicU64::new(0),
            unwanted: Notify::new(),
        });
        state.all.insert(number, activity.clone());
        Some(Client { clients: self.clone(), number, activity })
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().all.len()
    }

    /// All that are in their handshake have to go.
    pub(super) fn end_handshakes(&self) {
        let state = self.0.lock();
        for one in state.all.values().filter(|one| !one.has_begun()) {
            one.let_go();
        }
    }

    /// May something be logged about a client? Answers with how much was not since the last time.
    pub(super) fn may_log(&self) -> Option<u64> {
        self.0.log.may_log(Time::ZERO.after(self.0.since.elapsed()))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Tells one that it has to go: the oldest of those that have asked for nothing in the time of a handshake, else the oldest that is in its
    /// handshake, else, if idle ones go at all, the one that has been idle for the longest.
    fn let_one_go(&self, state: &State) -> Option<u64> {
        let oldest = |goes: &dyn Fn(&Activity) -> bool| {
            state.all.iter().find(|(_, one)| goes(one) && one.let_go()).map(|(number, _)| *number)
        };
        oldest(&|one| one.has_begun() && !one.has_asked() && one.since.elapsed() >= self.limits.handshake)
            .or_else(|| oldest(&|one| !one.has_begun()))
            .or_else(|| self.let_idle_go(state))
    }

    fn let_idle_go(&self, state: &State) -> Option<u64> {
        let asked = state.all.iter().filter(|(_, one)| self.idle_go && one.has_asked());
        let mut idle: Vec<_> = asked.map(|(number, one)| (one.idle(), *number, one)).collect();
        idle.retain(|(time, _, _)| *time >= self.limits.idle);
        idle.sort_by_key(|(time, number, _)| (std::cmp::Reverse(*time), *number));
        idle.into_iter().find(|(_, _, one)| one.let_go()).map(|(_, number, _)| number)
    }
}

impl Activity {
    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    fn has_asked(&self) -> bool {
        self.requests.load(Ordering::Acquire) != 0 || self.idle_ms.load(Ordering::Acquire) != 0
    }

    /// How long it has been since it took a reply.
    fn idle(&self) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_millis(self.idle_ms.load(Ordering::Acquire)))
    }

    /// It has to go, unless it has requests in flight, or has been told before.
    fn let_go(&self) -> bool {
        let idle = self.requests.compare_exchange(0, GONE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if idle {
            self.unwanted.notify_one();
        }
        idle
    }

    fn is_gone(&self) -> bool {
        self.requests.load(Ordering::Acquire) == GONE
    }
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    clients: Clients,
    number: u64,
    activity: Arc<Activity>,
}

impl Client {
    /// Its handshake is over: from now on it goes in order. Says whether it may stay: somebody else may have its place by now.
    pub(crate) fn begun(&self) -> bool {
        self.activity.begun.store(true, Ordering::Release);
        !self.activity.is_gone()
    }

    /// It has asked for something, which is in flight until the answer is dropped. `None`: it has to go.
    pub(crate) fn busy(&self) -> Option<Busy> {
        let more = |requests| (requests != GONE).then(|| requests + 1);
        self.activity.requests.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).ok()?;
        Some(Busy(self.activity.clone()))
    }

    /// Completes when it has to go: it has nothing in flight then. For one who waits at a time.
    pub(crate) async fn unwanted(&self) {
        while !self.activity.is_gone() {
            self.activity.unwanted.notified().await;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.clients.0.lock().all.remove(&self.number);
    }
}

/// One request of a client, in flight.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let now_ms = u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_ms.store(now_ms.max(1), Ordering::Release);
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many at a time, of whom nobody has to wait for anything.
    fn clients(most: usize, idle_go: bool) -> Clients {
        let none = Duration::ZERO;
        Clients::new(Limits { clients: most, handshake: none, idle: none, ..Limits::default() }, idle_go)
    }

    #[tokio::test]
    async fn the_oldest_in_a_handshake_makes_room() {
        let clients = clients(2, true);
        let (one, two) = (clients.enter().unwrap(), clients.enter().unwrap());
        assert!(one.begun());
        let busy = one.busy().unwrap();
        let three = clients.enter().unwrap();
        two.unwanted().await;
        assert_eq!(clients.count(), 2);
        assert!(three.begun() && !two.begun());
        let also = three.busy().unwrap();
        assert!(clients.enter().is_none(), "all of them are at work");
        drop((two, busy, one, also));
        assert_eq!(clients.count(), 1);
        let four = clients.enter().unwrap();
        clients.end_handshakes();
        four.unwanted().await;
        assert!(!four.begun() && three.busy().is_some());
    }

    /// Until it asks for something it is as one in its handshake, when that has taken long enough. With places left it stays for ever.
    #[tokio::test]
    async fn who_asks_for_nothing_makes_room_when_the_time_of_a_handshake_is_over() {
        for (handshake, goes) in [(Duration::ZERO, true), (Duration::from_secs(3600), false)] {
            let limits = Limits { clients: 2, handshake, ..Limits::default() };
            let clients = Clients::new(limits, false);
            let (one, two) = (clients.enter().unwrap(), clients.enter().unwrap());
            assert!(one.begun() && two.begun());
            drop(one.busy().unwrap());
            let three = clients.enter();
            assert_eq!(three.is_some(), goes);
            assert_eq!((one.busy().is_some(), two.busy().is_some()), (true, !goes));
            if goes {
                two.unwanted().await;
            }
        }
    }

    #[tokio::test]
    async fn who_has_been_idle_for_the_longest_goes_and_who_has_a_request_in_flight_stays() {
        let limits = Limits { clients: 3, idle: Duration::ZERO, ..Limits::default() };
        let patient = Limits { idle: Duration::from_secs(3600), ..limits };
        for (clients, go) in [
            (Clients::new(limits, true), true),
            (Clients::new(limits, false), false),
            (Clients::new(patient, true), false),
        ] {
            let three = [(); 3].map(|()| clients.enter().unwrap());
            let [first, second, third] = &three;
            assert!(three.iter().all(Client::begun));
            let busy = first.busy().unwrap();
            for one in [third, second] {
                drop(one.busy().unwrap());
                let since = Instant::now();
                while since.elapsed() < Duration::from_millis(3) {
                    std::hint::spin_loop();
                }
            }
            assert_eq!(clients.enter().is_some(), go);
            assert_eq!((first.busy().is_some(), second.busy().is_some(), third.busy().is_some()), (true, true, !go));
            if go {
                third.unwanted().await;
            }
            drop(busy);
        }
    }

    #[test]
    fn the_log_is_not_filled() {
        let clients = clients(1, true);
        assert_eq!(clients.may_log(), Some(0));
        assert_eq!((clients.may_log(), clients.may_log()), (None, None));
    }
}
