use super::*;
use polypath_block::Scope;

fn check(key: u8, code: u16) -> Meaning {
    let sense = Sense::new(key, (code >> 8) as u8, code as u8);
    meaning(ScsiStatus::CHECK_CONDITION, Some(&sense))
}

fn failed(code: Code, detail: u32) -> Meaning {
    Meaning::Failed(Status::with_detail(code, detail))
}

#[test]
fn statuses() {
    let cases = [
        (ScsiStatus::GOOD, Meaning::Done),
        (ScsiStatus::CONDITION_MET, Meaning::Done),
        (ScsiStatus::CHECK_CONDITION, failed(Code::PathProtocol, 0)),
        (ScsiStatus::BUSY, Meaning::Again(Again::Busy)),
        (ScsiStatus::TASK_SET_FULL, Meaning::Again(Again::TaskSetFull)),
        (ScsiStatus::ACA_ACTIVE, Meaning::Again(Again::Busy)),
        (ScsiStatus::RESERVATION_CONFLICT, failed(Code::ReservationConflict, 0)),
        (ScsiStatus::TASK_ABORTED, Meaning::Again(Again::TaskAborted)),
        (ScsiStatus(0x22), failed(Code::PathProtocol, 0)),
    ];
    for (status, want) in cases {
        assert_eq!(meaning(status, None), want, "{status}");
    }
    let threshold = Sense::new(key::UNIT_ATTENTION, 0x38, 7);
    assert_eq!(meaning(ScsiStatus::GOOD, Some(&threshold)), Meaning::Done, "GOOD is GOOD");
    let medium = Sense::new(key::MEDIUM_ERROR, 0x11, 0);
    assert_eq!(meaning(ScsiStatus::BUSY, Some(&medium)), Meaning::Again(Again::Busy));
    assert_eq!(Status::from(Code::ReservationConflict).scope(), Scope::Io, "a conflict is the same on every path");
}

#[test]
fn failures() {
    let cases = [
        (0x3, 0x1100, Code::Medium),
        (0x3, 0x0c02, Code::Medium),
        (0x3, 0x3100, Code::Medium),
        (0x8, 0x0000, Code::Medium),
        (0x9, 0x8001, Code::Medium),
        (0xc, 0x0000, Code::Medium),
        (0x4, 0x0300, Code::Medium),
        (0x4, 0x3e01, Code::Medium),
        (0x4, 0x3200, Code::Medium),
        (0x4, 0x0800, Code::PathLost),
        (0x4, 0x4400, Code::PathLost),
        (0x4, 0x4b00, Code::PathLost),
        (0x5, 0x2000, Code::Unsupported),
        (0x5, 0x2200, Code::Unsupported),
        (0x5, 0x2002, Code::PathNoAccess),
        (0x5, 0x2100, Code::OutOfRange),
        (0x5, 0x2104, Code::Invalid),
        (0x5, 0x2400, Code::Invalid),
        (0x5, 0x2600, Code::Invalid),
        (0x5, 0x1a00, Code::Invalid),
        (0x5, 0x2c00, Code::Invalid),
        (0x5, 0x2500, Code::PathNoAccess),
        (0x5, 0x5503, Code::PathBusy),
        (0x5, 0x5504, Code::Invalid),
        (0x5, 0x9401, Code::PathNoAccess),
        (0x7, 0x2700, Code::WriteProtected),
        (0x7, 0x2702, Code::WriteProtected),
        (0x7, 0x2707, Code::NoSpace),
        (0x5, 0x2700, Code::WriteProtected),
        (0x7, 0x7471, Code::Medium),
        (0xd, 0x0002, Code::NoSpace),
        (0xe, 0x1d00, Code::Miscompare),
        (0xa, 0x0d00, Code::Aborted),
        (0x2, 0x0400, Code::PathNoAccess),
        (0x2, 0x0402, Code::PathNoAccess),
        (0x2, 0x0403, Code::PathNoAccess),
        (0x2, 0x040b, Code::PathNoAccess),
        (0x2, 0x040c, Code::PathNoAccess),
        (0x2, 0x3a00, Code::PathNoAccess),
        (0xb, 0x1001, Code::Medium),
        (0xb, 0x0c0d, Code::PathProtocol),
        (0xb, 0x4e00, Code::PathProtocol),
    ];
    for (key, code, want) in cases {
        let detail = u32::from(key) << 16 | u32::from(code);
        assert_eq!(check(key, code), failed(want, detail), "{key:x}/{code:04x}");
    }
}

#[test]
fn what_may_be_sent_again() {
    let cases = [
        (0x0, 0x0000, Again::NothingWrong, Code::PathLost),
        (0x2, 0x0401, Again::BecomingReady, Code::PathBusy),
        (0x2, 0x0404, Again::BecomingReady, Code::PathBusy),
        (0x2, 0x0411, Again::BecomingReady, Code::PathBusy),
        (0x2, 0x041b, Again::BecomingReady, Code::PathBusy),
        (0x2, 0x040a, Again::Transition, Code::PathBusy),
        (0x6, 0x040a, Again::Transition, Code::PathBusy),
        (0xb, 0x0000, Again::Aborted, Code::PathLost),
        (0xb, 0x2903, Again::Aborted, Code::PathLost),
        (0xb, 0x4400, Again::Aborted, Code::PathLost),
        (0xb, 0x0800, Again::Damaged, Code::PathLost),
        (0xb, 0x1113, Again::Damaged, Code::PathLost),
        (0xb, 0x4705, Again::Damaged, Code::PathLost),
        (0xb, 0x4b03, Again::Damaged, Code::PathLost),
        (0xb, 0x5503, Again::Busy, Code::PathBusy),
    ];
    for (key, code, why, in_the_end) in cases {
        let sense = Sense::new(key, (code >> 8) as u8, code as u8);
        let got = meaning(ScsiStatus::CHECK_CONDITION, Some(&sense));
        assert_eq!(got, Meaning::Again(why), "{key:x}/{code:04x}");
        assert_eq!(got.give_up(Some(&sense)), Status::with_detail(in_the_end, sense.detail()), "{key:x}/{code:04x}");
    }
    assert_eq!(meaning(ScsiStatus::TASK_ABORTED, None).give_up(None), Code::Aborted.into());
    assert_eq!(meaning(ScsiStatus::TASK_SET_FULL, None).give_up(None), Code::PathBusy.into());
}

#[test]
fn what_counts_as_done() {
    for (key, code) in [(0x1, 0x1701), (0x1, 0x5d00), (0xf, 0x0000)] {
        assert_eq!(check(key, code), Meaning::Done);
        assert_eq!(check(key, code).give_up(None), Status::OK);
    }
}

#[test]
fn attentions() {
    use Attention as A;
    let cases = [
        (0x2800, A::MediumChanged, false, false),
        (0x2900, A::PowerOnOrReset, true, true),
        (0x2901, A::PowerOn, true, true),
        (0x2902, A::Reset, false, true),
        (0x2903, A::Reset, false, true),
        (0x2904, A::PowerOn, true, true),
        (0x2905, A::Reset, false, true),
        (0x2907, A::NexusLoss, false, true),
        (0x2a00, A::ParametersChanged, false, false),
        (0x2a01, A::ModeParametersChanged, false, false),
        (0x2a02, A::Other, false, false),
        (0x2a03, A::ReservationsPreempted, false, false),
        (0x2a04, A::ReservationsReleased, false, false),
        (0x2a05, A::RegistrationsPreempted, false, false),
        (0x2a06, A::AccessStateChanged, false, false),
        (0x2a07, A::AccessStateChanged, false, false),
        (0x2a09, A::CapacityChanged, false, false),
        (0x2c08, A::Other, false, false),
        (0x2f00, A::CommandsCleared, false, true),
        (0x2f02, A::CommandsCleared, false, true),
        (0x477f, A::CommandsCleared, false, true),
        (0x3807, A::SpaceRunsOut, false, false),
        (0x3f01, A::ConditionsChanged, false, false),
        (0x3f03, A::InquiryChanged, false, false),
        (0x3f05, A::InquiryChanged, false, false),
        (0x3f0e, A::LunsChanged, false, false),
        (0x5d10, A::FailurePredicted, false, false),
        (0xffff, A::Other, false, false),
    ];
    for (code, want, cache, commands) in cases {
        assert_eq!(check(key::UNIT_ATTENTION, code), Meaning::UnitAttention(want), "{code:04x}");
        assert_eq!((want.may_have_lost_cache(), want.commands_are_gone()), (cache, commands), "{want:?}");
    }
    let sense = Sense::new(key::UNIT_ATTENTION, 0x29, 0);
    let status = meaning(ScsiStatus::CHECK_CONDITION, Some(&sense)).give_up(Some(&sense));
    assert_eq!((status.code, status.scope()), (Code::PathBusy, Scope::Path), "nothing was tried");
}

#[test]
fn deferred_errors_are_of_another_command() {
    let cases = [
        (0x3, 0x0c00, Code::Medium),
        (0x7, 0x2707, Code::NoSpace),
        (0x7, 0x2700, Code::WriteProtected),
        (0x4, 0x0300, Code::Medium),
        (0x4, 0x4400, Code::CacheLost),
        (0x2, 0x0400, Code::CacheLost),
        (0xb, 0x0000, Code::CacheLost),
        (0x5, 0x2100, Code::CacheLost),
        (0x6, 0x2900, Code::CacheLost),
    ];
    for (key, code, want) in cases {
        let sense = Sense::new(key, (code >> 8) as u8, code as u8).deferred();
        let got = meaning(ScsiStatus::CHECK_CONDITION, Some(&sense));
        assert_eq!(got, Meaning::Deferred(Status::with_detail(want, sense.detail())), "{sense}");
        assert!(got.give_up(None).may_have_dropped(), "{sense}");
    }
    for key in [key::NO_SENSE, key::RECOVERED_ERROR, key::COMPLETED] {
        let sense = Sense::new(key, 0, 0).deferred();
        assert_eq!(meaning(ScsiStatus::CHECK_CONDITION, Some(&sense)), Meaning::Again(Again::NothingWrong));
    }
}

/// No answer is left without a meaning, and only those of a deferred error speak of a write that was acknowledged.
#[test]
fn every_answer_has_a_meaning() {
    for status in 0..=255 {
        for key in 0..16 {
            for asc in 0..=255 {
                let sense = Sense::new(key, asc, 0);
                let got = meaning(ScsiStatus(status), Some(&sense));
                assert!(!matches!(got, Meaning::Deferred(_)));
                assert_eq!(got == Meaning::Done, got.give_up(Some(&sense)).is_ok());
            }
        }
    }
}
