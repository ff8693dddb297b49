//! Who is served, and who goes when somebody else waits.

use crate::resources::lock;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often somebody who waits looks whether a connection has been idle for long enough by now.
const LOOK: Duration = Duration::from_millis(100);

/// A number of places for connections.
pub(super) struct Places {
    most: usize,
    all: Arc<Mutex<Vec<Arc<Connection>>>>,
    free: Arc<Notify>,
}

struct Connection {
    /// `None` while it has a call under way, or is on its way out.
    idle_since: Mutex<Option<Instant>>,
    unwanted: Notify,
}

/// A place that a connection has. Free again when dropped.
pub(super) struct Place {
    connection: Arc<Connection>,
    all: Arc<Mutex<Vec<Arc<Connection>>>>,
    free: Arc<Notify>,
}

impl Places {
    pub(super) fn new(most: usize) -> Places {
        Places { most, all: Arc::default(), free: Arc::default() }
    }

    /// A place. When there is none, the connection that has been idle for the longest is asked to go, if it has been for `least`. For one
    /// who waits at a time.
    pub(super) async fn take(&self, least: Duration) -> Place {
        loop {
            if let Some(connection) = self.add() {
                return Place { connection, all: self.all.clone(), free: self.free.clone() };
            }
            self.ask_one_to_go(least);
            // He may have seen none that is idle.
            let _ = tokio::time::timeout(LOOK, self.free.notified()).await;
        }
    }

    fn add(&self) -> Option<Arc<Connection>> {
        let mut all = lock(&self.all);
        let idle_since = Mutex::new(Some(Instant::now()));
        let connection =
            (all.len() < self.most).then(|| Arc::new(Connection { idle_since, unwanted: Notify::new() }))?;
        all.push(connection.clone());
        Some(connection)
    }

    fn ask_one_to_go(&self, least: Duration) {
        let all = lock(&self.all);
        let idle = all.iter().filter_map(|one| lock(&one.idle_since).map(|since| (since, one)));
        let Some((since, longest)) = idle.min_by_key(|(since, _)| *since) else { return };
        if since.elapsed() >= least {
            *lock(&longest.idle_since) = None;
            longest.unwanted.notify_one();
        }
    }
}

impl Place {
    /// Its connection has a call under way until the answer is dropped.
    pub(super) fn busy(&self) -> impl Drop + use<'_> {
        *lock(&self.connection.idle_since) = None;
        Busy(&self.connection)
    }

    /// Waits until somebody else needs the place.
    pub(super) async fn unwanted(&self) {
        self.connection.unwanted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.all).retain(|one| !Arc::ptr_eq(one, &self.connection));
        self.free.notify_one();
    }
}

struct Busy<'a>(&'a Connection);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    #[test]
    fn who_has_been_idle_for_the_longest_goes_and_who_has_a_call_under_way_stays() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let places = Places::new(3);
            let first = places.take(Duration::ZERO).await;
            let second = places.take(Duration::ZERO).await;
            let third = places.take(Duration::ZERO).await;
            // The first one is back from a call, the second one is not.
            drop(first.busy());
            let busy = second.busy();
            let none = timeout(3 * LOOK, places.take(Duration::from_secs(600))).await;
            assert!(none.is_err(), "nobody has been idle for that long");
            let go = async {
                third.unwanted().await;
                drop(third);
            };
            let (fourth, ()) = tokio::join!(places.take(Duration::ZERO), go);
            let also = timeout(LOOK, first.unwanted()).await;
            assert!(also.is_err(), "one place was wanted");
            drop((busy, fourth));
        });
    }
}
