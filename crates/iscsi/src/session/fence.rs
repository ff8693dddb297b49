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
