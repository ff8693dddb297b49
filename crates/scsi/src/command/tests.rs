use super::*;
use crate::Cdb;
use crate::cdb::{Form, PowerCondition};
use crate::opcode::{pr_in, pr_out};
use proptest::prelude::*;

const LBA: u64 = 0x0102_0304_0506_0708;

fn parsed(cdb: Cdb) -> Result<Command, CdbError> {
    Command::parse(cdb.octets())
}

fn transfer(lba: u64, blocks: u32, flags: RwFlags) -> Transfer {
    Transfer { lba, blocks, flags }
}

#[test]
fn what_we_send_is_understood() {
    let start = StartStop { immed: true, start: true, load_eject: true, no_flush: true, condition: PowerCondition(3) };
    let same = WriteSame { unmap: true, anchor: true, no_data: true };
    let (fua, both, none) = (RwFlags::FUA, RwFlags::all(), RwFlags::empty());
    let cases = [
        (Cdb::test_unit_ready(), Command::TestUnitReady, Data::None),
        (
            Cdb::request_sense(true, 252),
            Command::RequestSense { descriptor: true, allocation_length: 252 },
            Data::In(252),
        ),
        (Cdb::inquiry(0x102), Command::Inquiry { page: None, allocation_length: 0x102 }, Data::In(0x102)),
        (Cdb::inquiry_vpd(0, 9), Command::Inquiry { page: Some(0), allocation_length: 9 }, Data::In(9)),
        (Cdb::read_capacity_10(), Command::ReadCapacity10, Data::In(8)),
        (Cdb::read_capacity_16(32), Command::ReadCapacity16 { allocation_length: 32 }, Data::In(32)),
        (Cdb::get_lba_status(LBA, 24), Command::GetLbaStatus { lba: LBA, allocation_length: 24 }, Data::In(24)),
        (Cdb::report_luns(2, 16), Command::ReportLuns { select: 2, allocation_length: 16 }, Data::In(16)),
        (Cdb::read_6(0xff_ffff, 0), Command::Read(transfer(0x1f_ffff, 256, none)), Data::In(256 * 512)),
        (Cdb::write_6(5, 3), Command::Write(transfer(5, 3, none)), Data::Out(3 * 512)),
        (Cdb::read_10(7, 8, fua), Command::Read(transfer(7, 8, fua)), Data::In(8 * 512)),
        (Cdb::write_10(7, 8, both), Command::Write(transfer(7, 8, both)), Data::Out(8 * 512)),
        (Cdb::read_12(7, u32::MAX, none), Command::Read(transfer(7, u32::MAX, none)), Data::In(0x1ff_ffff_fe00)),
        (Cdb::write_12(7, 8, RwFlags::DPO), Command::Write(transfer(7, 8, RwFlags::DPO)), Data::Out(8 * 512)),
        (Cdb::read(Form::Sixteen, LBA, 8, true), Command::Read(transfer(LBA, 8, fua)), Data::In(8 * 512)),
        (Cdb::write_16(LBA, 0, none), Command::Write(transfer(LBA, 0, none)), Data::Out(0)),
        (Cdb::compare_and_write(LBA, 2, fua), Command::CompareAndWrite(transfer(LBA, 2, fua)), Data::Out(4 * 512)),
        (
            Cdb::verify_10(7, 8, ByteCheck::None, true),
            Command::Verify { lba: 7, blocks: 8, check: ByteCheck::None, dpo: true },
            Data::None,
        ),
        (
            Cdb::verify_12(7, 8, ByteCheck::Data, false),
            Command::Verify { lba: 7, blocks: 8, check: ByteCheck::Data, dpo: false },
            Data::Out(8 * 512),
        ),
        (
            Cdb::verify_16(LBA, 8, ByteCheck::OneBlock, false),
            Command::Verify { lba: LBA, blocks: 8, check: ByteCheck::OneBlock, dpo: false },
            Data::Out(512),
        ),
        (
            Cdb::synchronize_cache_10(7, 8, true),
            Command::SynchronizeCache { lba: 7, blocks: 8, immed: true },
            Data::None,
        ),
        (
            Cdb::synchronize_cache_16(LBA, 8, false),
            Command::SynchronizeCache { lba: LBA, blocks: 8, immed: false },
            Data::None,
        ),
        (Cdb::unmap(24, true), Command::Unmap { anchor: true, parameter_length: 24 }, Data::Out(24)),
        (
            Cdb::write_same_10(7, 8, false, true),
            Command::WriteSame { lba: 7, blocks: 8, how: WriteSame { unmap: true, ..WriteSame::default() } },
            Data::Out(512),
        ),
        (Cdb::write_same_16(LBA, 8, same), Command::WriteSame { lba: LBA, blocks: 8, how: same }, Data::None),
        (
            Cdb::mode_sense_6(PageControl::Saved, 0x3f, 0xff, 4),
            Command::ModeSense {
                header: Header::Six,
                no_descriptors: true,
                control: PageControl::Saved,
                page: 0x3f,
                subpage: 0xff,
                allocation_length: 4,
            },
            Data::In(4),
        ),
        (
            Cdb::mode_sense_10(PageControl::Changeable, 8, 0, 0x102),
            Command::ModeSense {
                header: Header::Ten,
                no_descriptors: true,
                control: PageControl::Changeable,
                page: 8,
                subpage: 0,
                allocation_length: 0x102,
            },
            Data::In(0x102),
        ),
        (Cdb::start_stop_unit(start), Command::StartStopUnit(start), Data::None),
        (Cdb::prevent_allow_medium_removal(true), Command::PreventAllowMediumRemoval { prevent: true }, Data::None),
        (
            Cdb::persistent_reserve_in(pr_in::REPORT_CAPABILITIES, 8),
            Command::PersistentReserveIn { action: 2, allocation_length: 8 },
            Data::In(8),
        ),
        (
            Cdb::persistent_reserve_out(pr_out::PREEMPT_AND_ABORT, 5, 24),
            Command::PersistentReserveOut { action: 5, scope_type: 5, parameter_length: 24 },
            Data::Out(24),
        ),
        (
            Cdb::report_target_port_groups(true, 64),
            Command::ReportTargetPortGroups { extended: true, allocation_length: 64 },
            Data::In(64),
        ),
        (
            Cdb::report_target_port_groups(false, 64),
            Command::ReportTargetPortGroups { extended: false, allocation_length: 64 },
            Data::In(64),
        ),
        (Cdb::set_target_port_groups(12), Command::SetTargetPortGroups { parameter_length: 12 }, Data::Out(12)),
    ];
    for (cdb, want, data) in cases {
        assert_eq!(parsed(cdb), Ok(want), "{cdb}");
        assert_eq!(want.data(512), data, "{cdb}");
    }
    let all =
        [Reporting::All, Reporting::One(0x42), Reporting::OneAction(0x9e, 0x12), Reporting::OneOrAction(0x9e, 0x12)];
    for (which, timeouts) in all.into_iter().zip([true, false, true, false]) {
        let want = Command::ReportSupportedOperationCodes { which, timeouts, allocation_length: 99 };
        assert_eq!(parsed(Cdb::report_supported_operation_codes(which, timeouts, 99)), Ok(want));
        assert_eq!(want.data(512), Data::In(99));
    }
}

#[test]
fn what_we_do_not_send() {
    let cases = [
        ("16", Command::Reserve, Data::None),
        ("56", Command::Reserve, Data::None),
        ("17", Command::Release, Data::None),
        ("57", Command::Release, Data::None),
        (
            "15 11 00 00 18 00",
            Command::ModeSelect { header: Header::Six, save: true, parameter_length: 0x18 },
            Data::Out(0x18),
        ),
        (
            "55 10 00 00 00 00 00 01 02 00",
            Command::ModeSelect { header: Header::Ten, save: false, parameter_length: 0x102 },
            Data::Out(0x102),
        ),
        (
            "37 00 1d 00 00 00 00 01 02 00",
            Command::ReadDefectData { twelve: false, primary: true, grown: true, format: 5, allocation_length: 0x102 },
            Data::In(0x102),
        ),
        (
            "b7 08 00 00 00 00 00 01 02 03 00 00",
            Command::ReadDefectData {
                twelve: true,
                primary: false,
                grown: true,
                format: 0,
                allocation_length: 0x10203,
            },
            Data::In(0x10203),
        ),
    ];
    for (text, want, data) in cases {
        let mut octets = [0; 16];
        for (slot, word) in octets.iter_mut().zip(text.split(' ')) {
            *slot = u8::from_str_radix(word, 16).unwrap();
        }
        assert_eq!(Command::parse(&octets), Ok(want), "{text}");
        assert_eq!(want.data(512), data);
    }
}

/// The block with one octet changed.
fn with(cdb: Cdb, at: usize, value: u8) -> [u8; 16] {
    let mut octets = *cdb.octets();
    octets[at] = value;
    octets
}

#[test]
fn fields_that_are_refused() {
    let read = Cdb::read_16(0, 1, RwFlags::empty());
    let same = Cdb::write_same_16(0, 1, WriteSame::default());
    let report = Cdb::report_supported_operation_codes(Reporting::All, false, 64);
    let cases = [
        (with(read, 1, 0x20), "protection information", 1, Some(7)),
        (with(read, 15, 4), "NACA", 15, Some(2)),
        (with(Cdb::read_10(0, 1, RwFlags::empty()), 9, 4), "NACA", 9, Some(2)),
        (with(Cdb::test_unit_ready(), 5, 4), "NACA", 5, Some(2)),
        (with(Cdb::write_12(0, 1, RwFlags::empty()), 1, 0xe0), "protection information", 1, Some(7)),
        (with(Cdb::compare_and_write(0, 1, RwFlags::empty()), 1, 0x40), "protection information", 1, Some(7)),
        (with(Cdb::verify_10(0, 1, ByteCheck::None, false), 1, 0x04), "BYTCHK", 1, Some(2)),
        (with(Cdb::verify_16(0, 1, ByteCheck::None, false), 1, 0x20), "protection information", 1, Some(7)),
        (with(same, 1, 0x20), "protection information", 1, Some(7)),
        (with(same, 1, 0x02), "PBDATA and LBDATA", 1, Some(2)),
        (with(same, 1, 0x10), "ANCHOR", 1, Some(4)),
        (with(Cdb::inquiry(96), 2, 0x80), "PAGE CODE", 2, None),
        (with(Cdb::inquiry(96), 1, 2), "CMDDT", 1, Some(1)),
        (with(Cdb::report_luns(0, 16), 2, 3), "SELECT REPORT", 2, None),
        (*Cdb::report_luns(0, 15).octets(), "ALLOCATION LENGTH", 6, None),
        (with(report, 2, 4), "REPORTING OPTIONS", 2, Some(2)),
        (with(Cdb::report_target_port_groups(false, 4), 1, 0x4a), "PARAMETER DATA FORMAT", 1, Some(7)),
    ];
    for (octets, name, byte, bit) in cases {
        let error = Command::parse(&octets).unwrap_err();
        let want = FieldPointer { in_cdb: true, byte, bit };
        assert!(matches!(error, CdbError::Field { field, pointer, .. } if field == name && pointer == want), "{error}");
        assert!(error.to_string().contains("expected"), "{error}");
        let sense = error.sense();
        assert!(sense.is(key::ILLEGAL_REQUEST, 0x24, 0) && sense.field() == Some(want), "{sense}");
        assert_eq!(Sense::parse(&sense.to_fixed()), Ok(sense));
    }
    // What is behind a short command is not its CONTROL.
    assert_eq!(Command::parse(&with(Cdb::test_unit_ready(), 15, 4)), Ok(Command::TestUnitReady));
}

#[test]
fn commands_that_are_unknown() {
    let known = (0..=255u8).filter(|&opcode| crate::opcode::name(opcode).is_some());
    for opcode in 0..=255u8 {
        let got = Command::parse(&with(Cdb::test_unit_ready(), 0, opcode));
        let is_known = !matches!(got, Err(CdbError::Opcode { .. }));
        assert_eq!(is_known, known.clone().any(|op| op == opcode), "{opcode:02x}: {got:?}");
    }
    let error = CdbError::Opcode { opcode: 0xff };
    assert_eq!(error.to_string(), "operation code FFh is not supported");
    assert!(error.sense().is(key::ILLEGAL_REQUEST, 0x20, 0));
    assert_eq!(error.sense().field(), Some(FieldPointer { in_cdb: true, byte: 0, bit: None }));
    for (cdb, known) in [
        (Cdb::read_capacity_16(32), &[0x10, 0x12][..]),
        (Cdb::persistent_reserve_in(0, 8), &[0, 1, 2, 3]),
        (Cdb::persistent_reserve_out(0, 0, 24), &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (Cdb::report_target_port_groups(false, 8), &[0x0a, 0x0c]),
        (Cdb::set_target_port_groups(8), &[0x0a]),
    ] {
        for action in 0..0x20 {
            let got = Command::parse(&with(cdb, 1, action));
            match got {
                Ok(_) => assert!(known.contains(&action), "{cdb}: {action:02x}"),
                Err(error) => {
                    assert_eq!(error, CdbError::ServiceAction { opcode: cdb.opcode(), action });
                    assert!(!known.contains(&action), "{error}");
                    assert!(error.sense().is(key::ILLEGAL_REQUEST, 0x24, 0) && error.to_string().contains("action"));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_octets_are_read_or_refused(octets in any::<[u8; 16]>()) {
        match Command::parse(&octets) {
            Ok(command) => prop_assert!(command.data(512) != Data::In(u64::MAX)),
            Err(error) => prop_assert_eq!(error.sense().key, key::ILLEGAL_REQUEST),
        }
    }

    #[test]
    fn reads_and_writes_come_through(lba in any::<u64>(), blocks in any::<u32>(), fua in any::<bool>(), ten in any::<bool>()) {
        let form = if ten { Form::Ten } else { Form::Sixteen };
        let flags = if fua { RwFlags::FUA } else { RwFlags::empty() };
        let want = transfer(lba, blocks, flags);
        prop_assert_eq!(parsed(Cdb::read(form, lba, blocks, fua)), Ok(Command::Read(want)));
        prop_assert_eq!(parsed(Cdb::write(form, lba, blocks, fua)), Ok(Command::Write(want)));
    }
}
