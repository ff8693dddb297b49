//! What becomes of a request that did not simply succeed: the one table of decisions.

use crate::config::Fencing;
use polypath_block::{Code, Fate, Op, Proof, Scope, Status};

/// What to do with a request that its path has completed. It is quiet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Disposition {
    /// It succeeded, or every path would answer the same: tell whoever asked.
    Report,
    /// Another path may do.
    Retry(Penalty),
    /// The path refuses what the group has promised and checked: another one may know better. If none does, report it.
    AskAnother,
    /// It is not proven quiet and may not be sent again: its outcome is unknown.
    OutcomeUnknown,
}

/// How a path is avoided after a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Penalty {
    /// It is changing state: look elsewhere for a moment.
    Busy,
    /// It gives no access, and will say when that changes.
    NoAccess,
    /// It failed: look elsewhere, the longer the more often it does.
    Failure,
}

/// Decides about a completion with `status`, quiet because of `proof`.
pub(crate) fn on_completion(status: Status, op: Op, proof: Proof, fencing: Fencing) -> Disposition {
    let unproven = op.changes_medium() && proof == Proof::None && fencing == Fencing::On;
    // The group compares ranges with what all its paths had: a path that says otherwise has shrunk, or was swapped.
    if status.code == Code::OutOfRange && !unproven {
        return Disposition::AskAnother;
    }
    if status.scope() == Scope::Io {
        return Disposition::Report;
    }
    if unproven || (op.is_once() && !was_not_carried_out(status.code, proof)) {
        return Disposition::OutcomeUnknown;
    }
    Disposition::Retry(match status.code {
        Code::PathBusy => Penalty::Busy,
        Code::PathNoAccess => Penalty::NoAccess,
        _ => Penalty::Failure,
    })
}

/// Is it certain that nothing of it was done? That it is quiet does not tell: a fence proves that nothing more comes, not that nothing has.
fn was_not_carried_out(code: Code, proof: Proof) -> bool {
    proof == Proof::NeverSent || (proof == Proof::Answered && matches!(code, Code::PathBusy | Code::PathNoAccess))
}

/// Decides about a request that became suspect: the proof by which it may be sent again now, or `None` to wait for its completion.
pub(crate) fn on_suspect(fate: Fate, op: Op, fencing: Fencing) -> Option<Proof> {
    match (fate, fencing) {
        (Fate::NotSent, _) => Some(Proof::NeverSent),
        // What it was answered tells whether it was done.
        (Fate::Finished | Fate::Unknown, _) if op.is_once() => None,
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
            (Code::PathLost, Penalty::Failure),
            (Code::PathNoAccess, Penalty::NoAccess),
            (Code::PathBusy, Penalty::Busy),
            (Code::PathTimeout, Penalty::Failure),
            (Code::PathProtocol, Penalty::Failure),
            (Code::PathIdentity, Penalty::Failure),
            (Code::NoPath, Penalty::Failure),
            (Code::Gone, Penalty::Failure),
        ];
        for code in Code::ALL {
            for op in Op::ALL {
                let got = on_completion(code.into(), op, Proof::Answered, Fencing::On);
                match retried.iter().find(|(c, _)| *c == code) {
                    Some((_, Penalty::Failure)) if op.is_once() => {
                        assert_eq!(got, Disposition::OutcomeUnknown, "{code:?} {op:?}");
                    }
                    Some(&(_, penalty)) => assert_eq!(got, Disposition::Retry(penalty), "{code:?} {op:?}"),
                    None if code == Code::OutOfRange => assert_eq!(got, Disposition::AskAnother),
                    None => assert_eq!(got, Disposition::Report, "{code:?} {op:?}"),
                }
            }
        }
    }

    #[test]
    fn what_is_sent_once_is_sent_again_only_where_nothing_was_done() {
        for (code, proof, again) in [
            (Code::PathLost, Proof::NeverSent, true),
            (Code::PathNoAccess, Proof::Answered, true),
            (Code::PathBusy, Proof::Answered, true),
            (Code::PathLost, Proof::Answered, false),
            (Code::PathBusy, Proof::SocketClosed, false),
            (Code::PathLost, Proof::SocketClosed, false),
            (Code::PathTimeout, Proof::None, false),
        ] {
            for fencing in [Fencing::On, Fencing::Off] {
                let got = on_completion(code.into(), Op::CompareAndWrite, proof, fencing);
                assert_eq!(got == Disposition::OutcomeUnknown, !again, "{code:?} {proof:?}");
            }
        }
        let differs = on_completion(Code::Miscompare.into(), Op::CompareAndWrite, Proof::Answered, Fencing::On);
        assert_eq!(differs, Disposition::Report);
    }

    #[test]
    fn changes_need_a_proof() {
        for op in Op::ALL {
            let lost = Status::new(Code::PathLost);
            let unproven = on_completion(lost, op, Proof::None, Fencing::On) == Disposition::OutcomeUnknown;
            assert_eq!(unproven, op.changes_medium());
            let unfenced = on_completion(lost, op, Proof::None, Fencing::Off) == Disposition::OutcomeUnknown;
            assert_eq!(unfenced, op.is_once());
            // Asking another path is sending it again.
            let range = on_completion(Code::OutOfRange.into(), op, Proof::None, Fencing::On);
            let want = if op.changes_medium() { Disposition::Report } else { Disposition::AskAnother };
            assert_eq!(range, want, "{op:?}");
            assert_eq!(on_suspect(Fate::Unknown, op, Fencing::On), None);
            let replayed = op.changes_medium() && !op.is_once();
            assert_eq!(on_suspect(Fate::Unknown, op, Fencing::Off), replayed.then_some(Proof::None));
            assert_eq!(on_suspect(Fate::NotSent, op, Fencing::On), Some(Proof::NeverSent));
            assert_eq!(on_suspect(Fate::Finished, op, Fencing::On), (!op.is_once()).then_some(Proof::Answered));
        }
    }
}
