//! Who is to blame when old data comes back after a failover.
//!
//! A change is sent again only after a named proof that the old copy can no longer land. If old data comes back all the same, the
//! proof was worth nothing: either fencing was off (then it is ours), or the target broke the bound it advertises.

use crate::verify::{ErrorKind, VerifyError};
use polypath::block::Proof;
use polypath::multipath::{EventKind, Events};
use std::fmt;

/// Changes of one path that were sent again on others.
#[derive(Clone, Debug)]
pub struct Redriven {
    /// The path they were lost on.
    pub path: String,
    /// How many.
    pub changes: u64,
    /// Why it was taken to be safe.
    pub proof: Proof,
}

/// What errors mean together with what was sent again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No error.
    Clean,
    /// Old data came back on top of a change that was sent again without a fence.
    Unfenced {
        /// The path it was lost on.
        path: String,
    },
    /// Old data came back after a fence whose bound the controller itself advertised.
    NonConforming {
        /// The path it was lost on.
        path: String,
        /// The proof that the target made worthless, in words.
        proof: String,
    },
    /// Data is wrong for another reason.
    Wrong,
}

/// What a group has sent again so far, from its events.
pub fn redriven(events: &Events) -> Vec<Redriven> {
    let next = || events.try_next();
    std::iter::from_fn(next)
        .filter_map(|event| match (event.kind, event.path) {
            (EventKind::Redriven { changes, proof, .. }, Some((_, path))) => {
                Some(Redriven { path: path.to_string(), changes, proof })
            }
            _ => None,
        })
        .collect()
}

/// Judges `errors` in the light of `redriven`.
pub fn judge(errors: &[VerifyError], redriven: &[Redriven]) -> Verdict {
    if errors.is_empty() {
        return Verdict::Clean;
    }
    let old = errors.iter().any(|e| matches!(e.kind, ErrorKind::Stale | ErrorKind::LostWrite));
    let changed = |r: &&Redriven| old && r.changes > 0;
    if let Some(r) = redriven.iter().filter(changed).find(|r| r.proof == Proof::None) {
        return Verdict::Unfenced { path: r.path.clone() };
    }
    let bound = |p: &Proof| matches!(p, Proof::KeepAliveBound { .. } | Proof::ConfiguredBound { .. });
    match redriven.iter().filter(changed).find(|r| bound(&r.proof)) {
        Some(r) => Verdict::NonConforming { path: r.path.clone(), proof: r.proof.to_string() },
        None => Verdict::Wrong,
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Clean => f.write_str("data is right"),
            Verdict::Unfenced { path } => {
                write!(f, "old data came back over a write that {path} had lost: fencing is off, switch it on")
            }
            Verdict::NonConforming { path, proof } => write!(
                f,
                "old data came back after {proof} had passed: the target behind {path} is non-conforming, it applies commands of a lost \
                 association later than the bound it advertises; raise that bound at the target, or keep_alive_ms, fence_ms or quiesce_ms of the path"
            ),
            Verdict::Wrong => f.write_str("data is wrong, and no failover explains it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Found;

    fn error(kind: ErrorKind) -> VerifyError {
        VerifyError { lba: 7, kind, found: Found::Write { sequence: 1 }, expected: 2, choices: 1 }
    }

    fn redriven(proof: Proof) -> Vec<Redriven> {
        vec![Redriven { path: "left".into(), changes: 1, proof }]
    }

    #[test]
    fn blame_follows_the_proof() {
        let bound = Proof::KeepAliveBound { kato_ms: 500, multiple: 2, cqt_ms: 500 };
        assert_eq!(judge(&[], &redriven(Proof::None)), Verdict::Clean);
        assert_eq!(
            judge(&[error(ErrorKind::Stale)], &redriven(Proof::None)),
            Verdict::Unfenced { path: "left".into() }
        );
        let verdict = judge(&[error(ErrorKind::Stale)], &redriven(bound));
        assert!(verdict.to_string().contains("left is non-conforming"), "{verdict}");
        assert_eq!(judge(&[error(ErrorKind::Stale)], &redriven(Proof::NeverSent)), Verdict::Wrong);
        assert_eq!(judge(&[error(ErrorKind::Corrupted)], &redriven(bound)), Verdict::Wrong);
    }
}
