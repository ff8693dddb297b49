//! The states of a path, as a table.
//!
//! Access (ANA, ALUA) is no state: a path that answers and gives no access is usable in this table and no candidate for I/O.

use core::fmt;

/// The state of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PathState {
    /// Added, and its device has not answered yet.
    Connecting,
    /// Verified to be this disk; carries I/O if its access allows.
    Usable,
    /// Verified, but silent for longer than it should be: used when nothing better is left.
    Stalled,
    /// Lost; its device is being tried again.
    Down,
    /// Answers, but is not what was promised: another disk, too small, or lacking an ability. Carries nothing.
    Quarantined,
    /// On its way out: takes nothing, what is in flight drains.
    Removing,
    /// Out.
    Removed,
}

impl PathState {
    /// Every state.
    pub const ALL: [PathState; 7] = [
        PathState::Connecting,
        PathState::Usable,
        PathState::Stalled,
        PathState::Down,
        PathState::Quarantined,
        PathState::Removing,
        PathState::Removed,
    ];

    /// Its name, lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            PathState::Connecting => "connecting",
            PathState::Usable => "usable",
            PathState::Stalled => "stalled",
            PathState::Down => "down",
            PathState::Quarantined => "quarantined",
            PathState::Removing => "removing",
            PathState::Removed => "removed",
        }
    }
}

impl fmt::Display for PathState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens to a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PathEvent {
    /// Its device answers, was verified to be the disk, and no queue of it is lost.
    Admitted,
    /// Its device answers and is not what was promised.
    Refused,
    /// Its device, or a queue of it, was lost.
    Lost,
    /// It has been silent for longer than it should.
    Stalled,
    /// It speaks again.
    Resumed,
    /// It is to go.
    Remove,
    /// Every reactor has released it.
    Drained,
}

impl PathEvent {
    /// Every event.
    pub const ALL: [PathEvent; 7] = [
        PathEvent::Admitted,
        PathEvent::Refused,
        PathEvent::Lost,
        PathEvent::Stalled,
        PathEvent::Resumed,
        PathEvent::Remove,
        PathEvent::Drained,
    ];
}

/// An event that cannot happen in a state: a defect of the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a path that is {state} cannot see {event:?}")]
pub struct Illegal {
    /// The state.
    pub state: PathState,
    /// The event.
    pub event: PathEvent,
}

impl PathState {
    /// The state after `event`.
    ///
    /// # Errors
    /// [`Illegal`] when the table has no such transition.
    pub const fn on(self, event: PathEvent) -> Result<PathState, Illegal> {
        use PathEvent as E;
        use PathState as S;
        let next = match (self, event) {
            (S::Connecting | S::Usable | S::Down | S::Quarantined, E::Admitted) => S::Usable,
            (S::Stalled, E::Admitted) => S::Stalled,
            (S::Connecting | S::Usable | S::Stalled | S::Down | S::Quarantined, E::Refused) => S::Quarantined,
            (S::Connecting | S::Usable | S::Stalled | S::Down, E::Lost) => S::Down,
            // The reason for the quarantine stands until the device was verified again.
            (S::Quarantined, E::Lost) => S::Quarantined,
            (S::Usable, E::Stalled) => S::Stalled,
            (S::Stalled, E::Resumed) => S::Usable,
            (S::Connecting | S::Usable | S::Stalled | S::Down | S::Quarantined | S::Removing, E::Remove) => S::Removing,
            (S::Removing, E::Admitted | E::Refused | E::Lost) => S::Removing,
            (S::Removing, E::Drained) => S::Removed,
            (S::Removed, E::Remove) => S::Removed,
            _ => return Err(Illegal { state: self, event }),
        };
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table, written down a second time, by row: Admitted Refused Lost Stalled Resumed Remove Drained.
    const TABLE: [(PathState, &str); 7] = [
        (PathState::Connecting, "usable quarantined down - - removing -"),
        (PathState::Usable, "usable quarantined down stalled - removing -"),
        (PathState::Stalled, "stalled quarantined down - usable removing -"),
        (PathState::Down, "usable quarantined down - - removing -"),
        (PathState::Quarantined, "usable quarantined quarantined - - removing -"),
        (PathState::Removing, "removing removing removing - - removing removed"),
        (PathState::Removed, "- - - - - removed -"),
    ];

    #[test]
    fn every_combination_is_as_written() {
        for (state, row) in TABLE {
            let words: Vec<_> = row.split(' ').collect();
            assert_eq!(words.len(), PathEvent::ALL.len());
            for (event, want) in PathEvent::ALL.into_iter().zip(words) {
                let got = state.on(event);
                match want {
                    "-" => assert_eq!(got, Err(Illegal { state, event })),
                    name => assert_eq!(got.map(PathState::as_str), Ok(name), "{state} {event:?}"),
                }
            }
        }
    }

    #[test]
    fn removal_is_final() {
        for state in PathState::ALL {
            if state != PathState::Removed {
                assert_eq!(state.on(PathEvent::Remove), Ok(PathState::Removing));
            }
        }
        let ways_out = PathEvent::ALL.into_iter().filter_map(|e| PathState::Removing.on(e).ok());
        assert!(ways_out.into_iter().all(|s| matches!(s, PathState::Removing | PathState::Removed)));
    }
}
