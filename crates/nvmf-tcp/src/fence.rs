//! When nothing of a lost association can land any more.
//!
//! The controller tears an association down when it has not been shown any life for a keep-alive timeout, as it rounds it, and
//! has then stopped everything within its command quiesce time (Base 2.1 section 9.6, TP4129). It counts from the last sign of
//! life it saw, which is no later than the moment the last of *our* sockets was closed: until then a queue on another thread,
//! perhaps a stalled one, may still have sent something. So the clock starts there and nowhere else.

use crate::config::ControllerConfig;
use polypath_block::{Fence, FenceState, FenceTerms, Proof, Time};
use polypath_nvme::keepalive::{Assumed, Basis, Reported, rounded_kato_ms};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The bound of one association, and which of its sockets are still open on our side.
#[derive(Debug)]
pub(crate) struct AssociationFence {
    terms: FenceTerms,
    sockets: AtomicU32,
    closed_at: AtomicU64,
}

impl AssociationFence {
    pub(crate) fn new(reported: Reported, assumed: Assumed) -> Self {
        AssociationFence { terms: terms(reported, assumed), sockets: AtomicU32::new(0), closed_at: AtomicU64::new(0) }
    }

    pub(crate) fn terms(&self) -> FenceTerms {
        self.terms
    }

    /// A socket of the association is about to be opened.
    pub(crate) fn opened(&self) {
        self.sockets.fetch_add(1, Ordering::SeqCst);
    }

    /// One of them has been closed, abortively unless nothing was sent over it.
    pub(crate) fn closed(&self, now: Time) {
        self.closed_at.fetch_max(now.as_nanos(), Ordering::SeqCst);
        self.sockets.fetch_sub(1, Ordering::SeqCst);
    }

    /// When it will be quiet, if all sockets are closed. Asked only once the association is lost, so that no socket opens any more.
    pub(crate) fn quiet_at(&self) -> Option<Time> {
        if self.sockets.load(Ordering::SeqCst) > 0 {
            return None;
        }
        Some(Time::from_nanos(self.closed_at.load(Ordering::SeqCst)).after(self.terms.within))
    }
}

/// What is to be expected of a controller that has not told anything yet: keep alive with commands counted as signs of life, in the finest
/// grain there is.
pub(crate) fn expected_bound(config: &ControllerConfig) -> Duration {
    let reported = Reported { kato_ms: config.kato_ms(), kas: 1, traffic_based: true, cqt_ms: 0 };
    let assumed = Assumed {
        without_keep_alive_ms: config.fence.as_millis() as u64,
        quiesce_ms: config.quiesce.as_millis() as u64,
    };
    terms(reported, assumed).within
}

/// What a controller's own words, or the configuration where it has none, promise.
pub(crate) fn terms(reported: Reported, assumed: Assumed) -> FenceTerms {
    let bound = reported.fence_bound(assumed);
    let within = Duration::from_millis(bound.ms);
    let clamp = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
    let proof = match (bound.basis, rounded_kato_ms(reported.kato_ms, reported.kas)) {
        (Basis::Reported, Some(kato_ms)) => Proof::KeepAliveBound {
            kato_ms: clamp(kato_ms),
            multiple: if reported.traffic_based { 3 } else { 2 },
            cqt_ms: u32::from(reported.cqt_ms),
        },
        _ => Proof::ConfiguredBound { bound_ms: clamp(bound.ms) },
    };
    FenceTerms { proof, within }
}

/// The fence of one lost connection as [`Fence`] has it: for whoever holds no association (tests, tools, another family's driver).
///
/// [`Fence::begin`] must be called when the last socket of the association has been closed abortively.
#[derive(Clone, Copy, Debug)]
pub struct KeepAliveFence {
    terms: FenceTerms,
    begun: Option<Time>,
}

impl KeepAliveFence {
    /// A fence for a controller that reported `reported`, with `assumed` where it reports nothing.
    pub fn new(reported: Reported, assumed: Assumed) -> Self {
        KeepAliveFence { terms: terms(reported, assumed), begun: None }
    }
}

impl Fence for KeepAliveFence {
    fn terms(&self) -> FenceTerms {
        self.terms
    }

    fn begin(&mut self, now: Time) {
        self.begun.get_or_insert(now);
    }

    fn state(&self, now: Time) -> FenceState {
        match self.begun {
            None => FenceState::Idle,
            Some(begun) => {
                let by = begun.after(self.terms.within);
                if now >= by { FenceState::Quiet(self.terms.proof) } else { FenceState::Pending { by } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSUMED: Assumed = Assumed { without_keep_alive_ms: 30_000, quiesce_ms: 5000 };

    #[test]
    fn terms_table() {
        let reported =
            |kato_ms, kas, traffic_based, cqt_ms| terms(Reported { kato_ms, kas, traffic_based, cqt_ms }, ASSUMED);
        let cases = [
            (reported(4500, 10, false, 70), Proof::KeepAliveBound { kato_ms: 5000, multiple: 2, cqt_ms: 70 }, 10_070),
            (reported(5000, 10, true, 70), Proof::KeepAliveBound { kato_ms: 5000, multiple: 3, cqt_ms: 70 }, 15_070),
            (reported(5000, 10, false, 0), Proof::ConfiguredBound { bound_ms: 15_000 }, 15_000),
            (reported(0, 10, false, 70), Proof::ConfiguredBound { bound_ms: 30_000 }, 30_000),
            (reported(5000, 0, false, 70), Proof::ConfiguredBound { bound_ms: 30_000 }, 30_000),
        ];
        for (got, proof, ms) in cases {
            assert_eq!(got, FenceTerms { proof, within: Duration::from_millis(ms) });
        }
    }

    #[test]
    fn the_clock_starts_at_the_last_socket() {
        let reported = Reported { kato_ms: 1000, kas: 1, traffic_based: false, cqt_ms: 100 };
        let fence = AssociationFence::new(reported, ASSUMED);
        fence.opened();
        fence.opened();
        fence.closed(Time::from_millis(500));
        assert_eq!(fence.quiet_at(), None, "a stalled thread still has its socket open");
        fence.closed(Time::from_millis(400));
        assert_eq!(fence.quiet_at(), Some(Time::from_millis(500 + 2100)));
    }

    #[test]
    fn the_public_fence_is_idle_pending_quiet() {
        let reported = Reported { kato_ms: 1000, kas: 1, traffic_based: false, cqt_ms: 100 };
        let mut fence = KeepAliveFence::new(reported, ASSUMED);
        assert_eq!(fence.state(Time::NEVER), FenceState::Idle);
        fence.begin(Time::from_millis(10));
        fence.begin(Time::from_millis(99));
        assert_eq!(fence.state(Time::from_millis(2109)), FenceState::Pending { by: Time::from_millis(2110) });
        assert_eq!(fence.state(Time::from_millis(2110)), FenceState::Quiet(fence.terms().proof));
    }
}
