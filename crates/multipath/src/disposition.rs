//! What becomes of a request that did not simply succeed: the one table of decisions.

use crate::config::Fencing;
use polypath_block::{Code, Fate, Op, Proof, Scope, Status};

/// What to do with a request that its path has completed. It is quiet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Disposition {
    /// It succeeded, or every path would answer the same: tell whoever asked.
    Report,
    /// Another path may do.
    Retry(Grudge),
    /// The path refuses what the group has promised and checked: another one may know better. If none does, report it.
    Doubt,
    /// It is not proven quiet and may not be sent again: its outcome is unknown.
    Unprovable,
}

/// How the path is thought of after a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Grudge {
    /// It is changing state: look elsewhere for a moment.
    Busy,
    /// It gives no access, and will say when that changes.
    NoAccess,
    /// It failed: look elsewhere, the longer the more often it does.
    Failure,
}

/// Decides about a completion with `status`, quiet because of `proof`.
pub(crate) fn on_completion(status: Status, op: Op, proof: Proof, fencing: Fencing) -> Disposition {
    // The group compares ranges with what all its paths had: a path that says otherwise has shrunk, or was swapped.
    if status.code == Code::OutOfRange {
        return Disposition::Doubt;
    }
    if status.scope() == Scope::Io {
        return Disposition::Report;
    }
    if op.changes_medium() && proof == Proof::None && fencing == Fencing::On {
        return Disposition::Unprovable;
    }
    Disposition::Retry(match status.code {
        Code::PathBusy => Grudge::Busy,
        Code::PathNoAccess => Grudge::NoAccess,
        _ => Grudge::Failure,
    })
}

/// Decides about a request that became suspect: the proof by which it may be sent again now, or `None` to wait for its completion.
pub(crate) fn on_suspect(fate: Fate, op: Op, fencing: Fencing) -> Option<Proof> {
    match (fate, fencing) {
        (Fate::NotSent, _) => Some(Proof::NeverSent),
        (Fate::Finished, _) => Some(Proof::Answered),
        // What changes nothing waits for its buffers, with or without fencing.
        (Fate::Unknown, Fencing::Off) if op.changes_medium() => Some(Proof::None),
        (Fate::Unknown, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_place() {
        let retried = [
            (Code::PathLost, Grudge::Failure),
            (Code::PathNoAccess, Grudge::NoAccess),
            (Code::PathBusy, Grudge::Busy),
            (Code::PathTimeout, Grudge::Failure),
            (Code::PathProtocol, Grudge::Failure),
            (Code::PathIdentity, Grudge::Failure),
            (Code::NoPath, Grudge::Failure),
            (Code::Gone, Grudge::Failure),
        ];
        for code in Code::ALL {
            for op in Op::ALL {
                let got = on_completion(code.into(), op, Proof::Answered, Fencing::On);
                match retried.iter().find(|(c, _)| *c == code) {
                    Some(&(_, grudge)) => assert_eq!(got, Disposition::Retry(grudge), "{code:?} {op:?}"),
                    None if code == Code::OutOfRange => assert_eq!(got, Disposition::Doubt),
                    None => assert_eq!(got, Disposition::Report, "{code:?} {op:?}"),
                }
            }
        }
    }

    #[test]
    fn changes_need_a_proof() {
        for op in Op::ALL {
            let lost = Status::new(Code::PathLost);
            let unproven = on_completion(lost, op, Proof::None, Fencing::On) == Disposition::Unprovable;
            assert_eq!(unproven, op.changes_medium());
            assert_ne!(on_completion(lost, op, Proof::None, Fencing::Off), Disposition::Unprovable);
            assert_eq!(on_suspect(Fate::Unknown, op, Fencing::On), None);
            assert_eq!(on_suspect(Fate::Unknown, op, Fencing::Off), op.changes_medium().then_some(Proof::None));
            assert_eq!(on_suspect(Fate::NotSent, op, Fencing::On), Some(Proof::NeverSent));
            assert_eq!(on_suspect(Fate::Finished, op, Fencing::On), Some(Proof::Answered));
        }
    }
}
