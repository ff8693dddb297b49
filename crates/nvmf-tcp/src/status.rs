//! From NVMe's words to the contract's meanings, in one function.

use polypath_block::{Code, Status};
use polypath_nvme::StatusField;

/// What an NVMe status means to whoever asked.
///
/// The rule: what another path would answer the same concerns the request; what is about this controller, this connection or the
/// way to the namespace concerns the path, so that another path is tried. Do Not Retry turns a doubtful one into an error of the
/// request, since the controller says that a retry will fail the same.
pub fn map(status: StatusField) -> Status {
    use StatusField as S;
    let code = match status {
        s if s.is_success() => return Status::OK,
        s if s.is(S::LBA_OUT_OF_RANGE) => Code::OutOfRange,
        s if s.is(S::CAPACITY_EXCEEDED) => Code::NoSpace,
        s if s.is(S::RESERVATION_CONFLICT) => Code::ReservationConflict,
        s if s.is(S::COMPARE_FAILURE) => Code::Miscompare,
        s if s.is(S::NAMESPACE_WRITE_PROTECTED) => Code::WriteProtected,
        s if s.is(S::INVALID_OPCODE) => Code::Unsupported,
        s if s.is(S::ANA_INACCESSIBLE) || s.is(S::ANA_PERSISTENT_LOSS) => Code::PathNoAccess,
        s if s.is(S::ANA_TRANSITION) => Code::PathBusy,
        s if s.is_path() => Code::PathLost,
        // The queue or the controller went away under the command, or lost its power: it is over, and another way may do.
        s if s.is(S::ABORTED_SQ_DELETION) || s.is(S::POWER_LOSS) => Code::PathLost,
        // A controller that is not enabled (any more), or that gave us up: what nvmet answers after a fatal status.
        s if s.is(S::COMMAND_SEQUENCE_ERROR) || s.is(S::KEEP_ALIVE_EXPIRED) => Code::PathLost,
        s if s.is(S::TRANSIENT_TRANSPORT_ERROR) || s.is(S::DATA_TRANSFER_ERROR) => Code::PathLost,
        // Who asked? Not whoever waits for the answer: at best we did, because it did not come.
        s if s.is(S::ABORT_REQUESTED) => Code::PathLost,
        s if s.is(S::ABORTED_PREEMPT) => Code::Aborted,
        // "Try again later": on this way, or better at once on another.
        s if is_transient(s) && !s.dnr() => Code::PathBusy,
        // The namespace is not (or no longer) behind this controller. Another one may still have it.
        s if s.is(S::INVALID_NAMESPACE) || s.is(S::NAMESPACE_NOT_ATTACHED) => Code::PathNoAccess,
        s if is_our_fault(s) => Code::Invalid,
        s if s.is(S::INTERNAL_ERROR) && !s.dnr() => Code::PathLost,
        _ => Code::Medium,
    };
    Status::with_detail(code, u32::from(status.code()))
}

fn is_transient(s: StatusField) -> bool {
    use StatusField as S;
    [
        S::NAMESPACE_NOT_READY,
        S::COMMAND_INTERRUPTED,
        S::FORMAT_IN_PROGRESS,
        S::SANITIZE_IN_PROGRESS,
        S::ADMIN_COMMAND_MEDIA_NOT_READY,
    ]
    .iter()
    .any(|&t| s.is(t))
        || s.crd() != 0
}

fn is_our_fault(s: StatusField) -> bool {
    s.sct() == polypath_nvme::status::sct::GENERIC && matches!(s.sc(), 0x02..=0x03 | 0x0d..=0x18)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::Scope;

    #[test]
    fn table() {
        use StatusField as S;
        let cases = [
            (S::SUCCESS, Code::Ok),
            (S::LBA_OUT_OF_RANGE.with_dnr(), Code::OutOfRange),
            (S::CAPACITY_EXCEEDED, Code::NoSpace),
            (S::RESERVATION_CONFLICT.with_dnr(), Code::ReservationConflict),
            (S::COMPARE_FAILURE, Code::Miscompare),
            (S::UNRECOVERED_READ_ERROR, Code::Medium),
            (S::WRITE_FAULT.with_dnr(), Code::Medium),
            (S::GUARD_CHECK_ERROR, Code::Medium),
            (S::NAMESPACE_WRITE_PROTECTED, Code::WriteProtected),
            (S::INVALID_OPCODE.with_dnr(), Code::Unsupported),
            (S::INVALID_FIELD.with_dnr(), Code::Invalid),
            (S::INVALID_SGL_DATA_LENGTH, Code::Invalid),
            (S::ANA_INACCESSIBLE, Code::PathNoAccess),
            (S::ANA_PERSISTENT_LOSS.with_dnr(), Code::PathNoAccess),
            (S::ANA_TRANSITION, Code::PathBusy),
            (S::PATH_INTERNAL_ERROR, Code::PathLost),
            (S::HOST_PATHING_ERROR, Code::PathLost),
            (S::ABORTED_BY_HOST, Code::PathLost),
            (S::new(3, 0x55), Code::PathLost),
            (S::ABORTED_SQ_DELETION, Code::PathLost),
            (S::POWER_LOSS, Code::PathLost),
            (S::COMMAND_SEQUENCE_ERROR.with_dnr(), Code::PathLost),
            (S::KEEP_ALIVE_EXPIRED, Code::PathLost),
            (S::HOST_ID_INCONSISTENT, Code::Invalid),
            (S::DATA_TRANSFER_ERROR, Code::PathLost),
            (S::TRANSIENT_TRANSPORT_ERROR, Code::PathLost),
            (S::ABORT_REQUESTED, Code::PathLost),
            (S::ABORTED_PREEMPT, Code::Aborted),
            (S::NAMESPACE_NOT_READY, Code::PathBusy),
            (S::NAMESPACE_NOT_READY.with_dnr(), Code::Medium),
            (S::COMMAND_INTERRUPTED, Code::PathBusy),
            (S::INVALID_NAMESPACE.with_dnr(), Code::PathNoAccess),
            (S::NAMESPACE_NOT_ATTACHED, Code::PathNoAccess),
            (S::INTERNAL_ERROR, Code::PathLost),
            (S::INTERNAL_ERROR.with_dnr(), Code::Medium),
            (S::new(7, 1), Code::Medium),
            (S::from_raw(1 << 11 | 0x83), Code::ReservationConflict),
            (S::from_raw(1 << 11 | 0x7f), Code::PathBusy),
        ];
        for (status, want) in cases {
            let got = map(status);
            assert_eq!(got.code, want, "{status}");
            assert_eq!(got.detail, if want == Code::Ok { 0 } else { u32::from(status.code()) });
        }
        assert_eq!(map(S::ANA_INACCESSIBLE).scope(), Scope::Path);
        assert_eq!(map(S::RESERVATION_CONFLICT).scope(), Scope::Io, "a conflict is the same on every path");
    }
}
