//! Who is connected: as many as may be, and who goes when one more comes.

use polypath::block::{LogLimit, Time};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// At most one line in the log in this time: what clients do is not to fill it.
const LOG_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub(super) struct Clients(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    state: Mutex<State>,
    log: LogLimit,
    /// When its time began.
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By their number, which grows: the first is the oldest. In a handshake are those with something to be told by.
    all: BTreeMap<u64, Option<Arc<Notify>>>,
}

impl Clients {
    pub(super) fn new(most: usize) -> Clients {
        let (state, log, since) = (Mutex::default(), LogLimit::new(1, LOG_PAUSE), Instant::now());
        Clients(Arc::new(Inner { most, state, log, since }))
    }

    /// One more, in its handshake. If there are too many the oldest one in a handshake has to go; `None`: there is none.
    pub(super) fn enter(&self) -> Option<Client> {
        let mut state = self.0.lock();
        if state.all.len() >= self.0.most {
            let oldest = state.all.iter().find_map(|(number, told)| Some((*number, told.clone()?)))?;
            state.all.remove(&oldest.0);
            oldest.1.notify_one();
        }
        let (number, told) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        state.all.insert(number, Some(told.clone()));
        Some(Client { clients: self.clone(), number, told })
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().all.len()
    }

    /// All that are in their handshake have to go.
    pub(super) fn end_handshakes(&self) {
        self.0.lock().all.values().flatten().for_each(|told| told.notify_one());
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
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Client {
    clients: Clients,
    number: u64,
    told: Arc<Notify>,
}

impl Client {
    /// Its handshake is over: from now on it goes in order. Says whether it may stay: somebody else may have its place by now.
    pub(super) fn begun(&self) -> bool {
        match self.clients.0.lock().all.get_mut(&self.number) {
            Some(told) => {
                *told = None;
                true
            }
            None => false,
        }
    }

    /// Completes when it has to go, in the middle of its handshake.
    pub(super) async fn unwanted(&self) {
        self.told.notified().await;
        // Told at the very moment at which its handshake was over: it is one that goes in order.
        let stays = matches!(self.clients.0.lock().all.get(&self.number), Some(None));
        if stays {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.clients.0.lock().all.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_in_a_handshake_makes_room() {
        let clients = Clients::new(2);
        let (one, two) = (clients.enter().unwrap(), clients.enter().unwrap());
        assert!(one.begun());
        let three = clients.enter().unwrap();
        two.unwanted().await;
        assert_eq!(clients.count(), 2);
        assert!(three.begun() && !two.begun());
        assert!(clients.enter().is_none(), "all of them are at work");
        drop((two, one));
        assert_eq!(clients.count(), 1);
        let four = clients.enter().unwrap();
        clients.end_handshakes();
        four.unwanted().await;
    }

    #[test]
    fn the_log_is_not_filled() {
        let clients = Clients::new(1);
        assert_eq!(clients.may_log(), Some(0));
        assert_eq!((clients.may_log(), clients.may_log()), (None, None));
    }
}
