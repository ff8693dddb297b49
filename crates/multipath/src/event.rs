//! What a group publishes to whoever listens.

use crate::config::PathId;
use polypath_block::{Access, Code, FenceTerms, Proof, Time};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Events a subscription holds before it misses some.
const ROOM: usize = 1024;

/// Something happened to a group or to one of its paths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// When, on the reactors' clock (as of the last turn of any queue of the group).
    pub at: Time,
    /// The path it concerns and its name; `None` when it concerns the group.
    pub path: Option<(PathId, Arc<str>)>,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// A path was added.
    PathAdded,
    /// A path was verified and carries I/O from now on.
    PathUp {
        /// Was it there before?
        recovered: bool,
    },
    /// A path was left.
    PathDown {
        /// What broke.
        cause: Code,
        /// For people: what happened.
        why: String,
    },
    /// A path is silent for longer than it should; it is used only when nothing better is left.
    PathStalled,
    /// A path that was silent speaks again.
    PathResumed,
    /// Requests of a path are not known to be quiet; changes among them wait for the fence. Once an incident and reactor.
    PathSuspect {
        /// What broke.
        cause: Code,
        /// Which proof is coming, and by when.
        fence: FenceTerms,
    },
    /// A path answers and is not what was promised.
    Quarantined {
        /// For people: what it is and what was expected.
        why: String,
    },
    /// A path gives another access than before.
    AccessChanged {
        /// What it gives now.
        access: Access,
    },
    /// The group shows more blocks than before.
    Grown {
        /// Blocks it shows now.
        blocks: u64,
    },
    /// Requests of a path were sent again on others. One event an incident, reactor and proof, published when the incident has been quiet
    /// for a moment; its time is that of the last request.
    Redriven {
        /// Requests.
        count: u64,
        /// Those among them that change the medium.
        changes: u64,
        /// Why it was safe.
        proof: Proof,
    },
    /// A dirty write cache lost its power, or its last path is gone for good: the next flush of each queue fails.
    CacheLost {
        /// Name of the cache domain.
        domain: String,
    },
    /// Another host has ended the registration of this disk: nothing is claimed any more.
    RegistrationEnded {
        /// For people: how it became known.
        why: String,
    },
    /// A path was removed and every reactor has released it.
    PathRemoved,
}

/// The receiving end of a group's events. Bounded: what finds no room is counted, not waited for.
#[derive(Debug)]
pub struct Events {
    receiver: Receiver<Event>,
    missed: Arc<AtomicU64>,
}

impl Events {
    /// The next event, if there is one now.
    pub fn try_next(&self) -> Option<Event> {
        self.receiver.try_recv().ok()
    }

    /// The next event, waiting for it at most `limit`. For control threads, never for a reactor.
    pub fn next_within(&self, limit: core::time::Duration) -> Option<Event> {
        self.receiver.recv_timeout(limit).ok()
    }

    /// Events that found no room so far.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Subscribers(Vec<(SyncSender<Event>, Arc<AtomicU64>)>);

impl Subscribers {
    pub(crate) fn subscribe(&mut self) -> Events {
        let (sender, receiver) = sync_channel(ROOM);
        let missed = Arc::new(AtomicU64::new(0));
        self.0.push((sender, missed.clone()));
        Events { receiver, missed }
    }

    pub(crate) fn publish(&mut self, event: &Event) {
        self.0.retain(|(sender, missed)| match sender.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                missed.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted_and_the_dead_are_forgotten() {
        let mut subscribers = Subscribers::default();
        let events = subscribers.subscribe();
        let event = Event { at: Time::ZERO, path: None, kind: EventKind::Grown { blocks: 1 } };
        for _ in 0..ROOM + 3 {
            subscribers.publish(&event);
        }
        assert_eq!(events.missed(), 3);
        let longest = core::time::Duration::from_secs(60);
        assert_eq!(events.next_within(longest), Some(event.clone()), "at once: there are some");
        subscribers.publish(&event);
        assert_eq!((events.missed(), events.next_within(longest).is_some()), (3, true), "there was room again");
        subscribers.publish(&event);
        assert_eq!(core::iter::from_fn(|| events.try_next()).count(), ROOM);
        drop(events);
        subscribers.publish(&event);
        assert!(subscribers.0.is_empty());
    }
}
