//! What stays of a session that was dropped undrained, because its reactor ended: when what it had sent is quiet.

use crate::config::TargetConfig;
use polypath_block::{FenceState, FenceTerms, Proof, QueueFence, Time};
use std::sync::{Mutex, PoisonError};

#[derive(Clone, Copy, Debug)]
enum End {
    /// It lives.
    Not,
    /// It left nothing behind.
    Clean,
    /// Its socket was closed at this time, and something may still be carried out.
    Open(Time),
}

/// See the module.
#[derive(Debug)]
pub(super) struct EndFence {
    terms: FenceTerms,
    end: Mutex<End>,
}

impl EndFence {
    pub(super) fn new(config: &TargetConfig) -> Self {
        let bound_ms = u32::try_from(config.fence.as_millis()).unwrap_or(u32::MAX);
        let terms = FenceTerms { proof: Proof::ConfiguredBound { bound_ms }, within: config.fence };
        EndFence { terms, end: Mutex::new(End::Not) }
    }

    /// The session has ended; with something open if its socket was closed at `open`.
    pub(super) fn end(&self, open: Option<Time>) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = open.map_or(End::Clean, End::Open);
    }
}

impl QueueFence for EndFence {
    fn terms(&self) -> FenceTerms {
        self.terms
    }

    fn state(&self, now: Time) -> FenceState {
        match *self.end.lock().unwrap_or_else(PoisonError::into_inner) {
            End::Not => FenceState::Idle,
            End::Clean => FenceState::Quiet(Proof::SocketClosed),
            End::Open(at) => {
                let by = at.after(self.terms.within);
                if now >= by { FenceState::Quiet(self.terms.proof) } else { FenceState::Pending { by } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::login::Name;
    use std::time::Duration;

    #[test]
    fn what_was_left_open_is_quiet_when_the_bound_has_passed_since_the_socket_was_closed() {
        let (at, bound) = (Time::from_millis, Proof::ConfiguredBound { bound_ms: 100 });
        let mut config = TargetConfig::new("192.0.2.1", 3260, Name::new("iqn.2026-01.org.example:end").unwrap());
        config.fence = Duration::from_millis(100);
        let fence = EndFence::new(&config);
        assert_eq!(fence.terms(), FenceTerms { proof: bound, within: config.fence });
        assert_eq!(fence.state(at(9000)), FenceState::Idle, "it lives");
        fence.end(Some(at(1000)));
        let pending = FenceState::Pending { by: at(1100) };
        let states = [1000, 1099, 1100, 1101].map(|now| fence.state(at(now)));
        assert_eq!(states, [pending, pending, FenceState::Quiet(bound), FenceState::Quiet(bound)]);
        fence.end(None);
        assert_eq!(fence.state(at(0)), FenceState::Quiet(Proof::SocketClosed));
    }
}
