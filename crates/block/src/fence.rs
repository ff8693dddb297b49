//! Proofs that nothing of a lost command can land any more.

use crate::time::Time;
use core::fmt;
use core::time::Duration;

/// Why a command is known to be quiet. Named in the log for every re-driven change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// The peer answered the command itself.
    Answered,
    /// The command never left this host.
    NeverSent,
    /// It changes nothing and its buffers are out of reach: our socket is closed (reads over TCP).
    SocketClosed,
    /// The controller reported the command aborted (NVMe Abort with IANP = 0, SCSI ABORT TASK answered).
    Aborted,
    /// Our socket was closed abortively, then the time passed by which the controller has torn the association down:
    /// `multiple` times its keep-alive timeout as it rounds it, plus its command quiesce time.
    KeepAliveBound {
        /// Keep-alive timeout as the controller rounds it, in milliseconds.
        kato_ms: u32,
        /// 2, or 3 with traffic-based keep alive.
        multiple: u8,
        /// Command quiesce time the controller reports, in milliseconds.
        cqt_ms: u32,
    },
    /// The controller reports no bound; the configured one has passed.
    ConfiguredBound {
        /// The bound in milliseconds.
        bound_ms: u32,
    },
    /// The target has taken a new login of the same initiator port at the same portal group, which ends the session before it and all of
    /// its tasks (iSCSI session reinstatement, RFC 7143 section 6.3.5).
    Reinstated,
    /// LOGICAL UNIT RESET was answered FUNCTION COMPLETE through another nexus, which ends the tasks of all of them (SAM-5 section 7.6).
    UnitReset,
    /// The queue was deleted or the controller disabled (PCIe).
    QueueDeleted,
    /// None. Only with fencing switched off, which can lose data.
    None,
}

impl Proof {
    /// What is proven of two commands together. What never left this host says nothing of what did, an answer nothing of what was not
    /// answered; one that is not proven quiet is enough.
    pub const fn and(self, other: Proof) -> Proof {
        match (self, other) {
            (Proof::None, _) | (_, Proof::None) => Proof::None,
            (Proof::NeverSent | Proof::Answered, Proof::NeverSent) => self,
            (Proof::NeverSent | Proof::Answered, _) => other,
            (_, Proof::NeverSent | Proof::Answered) => self,
            _ => other,
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proof::Answered => f.write_str("answered"),
            Proof::NeverSent => f.write_str("never-sent"),
            Proof::SocketClosed => f.write_str("socket-closed"),
            Proof::Aborted => f.write_str("aborted-by-controller"),
            Proof::KeepAliveBound { kato_ms, multiple, cqt_ms } => {
                write!(f, "keep-alive-bound({multiple}*{kato_ms}ms+cqt {cqt_ms}ms)")
            }
            Proof::ConfiguredBound { bound_ms } => write!(f, "configured-bound({bound_ms}ms)"),
            Proof::Reinstated => f.write_str("session-reinstated"),
            Proof::UnitReset => f.write_str("logical-unit-reset(through another path)"),
            Proof::QueueDeleted => f.write_str("queue-deleted"),
            Proof::None => f.write_str("NONE(fencing is off)"),
        }
    }
}

/// What a fence offers: which proof, and by when at the latest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FenceTerms {
    /// The proof that it will give.
    pub proof: Proof,
    /// How long after [`Fence::begin`] at the latest.
    pub within: Duration,
}

/// State of a fence that has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceState {
    /// Not begun.
    Idle,
    /// Under way; quiet by then at the latest.
    Pending {
        /// When.
        by: Time,
    },
    /// Nothing can land any more, for this reason.
    Quiet(Proof),
    /// This fence cannot prove it; ask another one.
    Failed,
}

/// Who can prove that the commands of a lost association are quiet, how, and by when.
///
/// Implemented by drivers (each transport proves only its own paths) and asked by whoever must re-drive changes.
/// A bare sleep is not a fence; an answer is, and so is a bound that the controller advertised.
pub trait Fence {
    /// What it would prove and how fast.
    fn terms(&self) -> FenceTerms;
    /// Starts it: the association is closed on our side as of `now`. Idempotent.
    fn begin(&mut self, now: Time);
    /// Where it stands at `now`.
    fn state(&self, now: Time) -> FenceState;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_of_two_commands_is_the_weaker_one() {
        use Proof::{Aborted, Answered, NeverSent, SocketClosed};
        let bound = Proof::ConfiguredBound { bound_ms: 7 };
        let all = [Answered, NeverSent, SocketClosed, Aborted, bound, Proof::QueueDeleted, Proof::None];
        for proof in all {
            assert_eq!((proof.and(proof), NeverSent.and(proof), proof.and(NeverSent)), (proof, proof, proof));
            assert_eq!((proof.and(Proof::None), Proof::None.and(proof)), (Proof::None, Proof::None));
            if proof != NeverSent {
                assert_eq!((Answered.and(proof), proof.and(Answered)), (proof, proof));
            }
        }
        assert_eq!((Aborted.and(bound), bound.and(SocketClosed)), (bound, SocketClosed));
    }
}
