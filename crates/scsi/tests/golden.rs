//! Golden octets: what libiscsi asked tgt and what tgt answered (`golden/README.md`). Our parsers read both, our constructors make the
//! same commands, our builders the same data where they have the same fields.
#![forbid(unsafe_code)]

use polypath_block::{Code, Geometry, Identifier, Status};
use polypath_scsi::alua::TargetPortGroups;
use polypath_scsi::capacity::{Capacity10, Capacity16};
use polypath_scsi::cdb::{ByteCheck, PageControl, Reporting, RwFlags, WriteSame};
use polypath_scsi::inquiry::{Inquiry, Tpgs, device_type};
use polypath_scsi::lun::LunList;
use polypath_scsi::mode::{Header, ModeData};
use polypath_scsi::opcode::{self, pr_in, pr_out};
use polypath_scsi::reservation::{Capabilities, Keys, PrOutData, Reservation, ReservationType, parse_scope_type};
use polypath_scsi::unmap::{self, LbaStatus, ProvisioningStatus, Range};
use polypath_scsi::vpd::{
    self, BlockCharacteristics, BlockLimits, DesignatorValue, DeviceIdentification, Provisioning, ProvisioningType,
};
use polypath_scsi::{
    Again, Attention, Cdb, CdbError, Command, Lun, Meaning, ParseError, ScsiStatus, Sense, fuzzing, meaning,
};

/// One exchange.
#[derive(Default)]
struct Entry {
    name: &'static str,
    cdb: Vec<u8>,
    status: u8,
    out: Vec<u8>,
    data: Vec<u8>,
    sense: Vec<u8>,
}

fn octets(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn read(text: &'static str) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix('[') {
            all.push(Entry { name: name.trim_end_matches(']'), ..Entry::default() });
            continue;
        }
        let entry = all.last_mut().expect("an entry begins with its name");
        let (what, hex) = line.split_once(' ').expect("a word and its octets");
        match what {
            "cdb" => entry.cdb = octets(hex),
            "status" => entry.status = octets(hex)[0],
            "out" => entry.out = octets(hex),
            "in" => entry.data = octets(hex),
            "sense" => entry.sense = octets(hex),
            _ => panic!("{}: {what}", entry.name),
        }
    }
    assert!(all.len() > 50, "something is missing");
    all
}

fn good() -> Vec<Entry> {
    read(include_str!("golden/commands.txt"))
}

fn errors() -> Vec<Entry> {
    read(include_str!("golden/errors.txt"))
}

/// The answer to the command of this name.
fn data(name: &str) -> Vec<u8> {
    good().into_iter().find(|entry| entry.name == name).unwrap_or_else(|| panic!("no {name}")).data
}

fn parse(entry: &Entry) -> Result<Command, CdbError> {
    let mut padded = [0; 16];
    padded[..entry.cdb.len()].copy_from_slice(&entry.cdb);
    Command::parse(&padded)
}

#[test]
fn every_command_that_was_carried_out_is_understood() {
    for entry in good() {
        assert_eq!(entry.status, 0);
        let cdb = Cdb::from_bytes(&entry.cdb).unwrap();
        assert_eq!(cdb.bytes(), entry.cdb, "{}", entry.name);
        let command = parse(&entry).unwrap_or_else(|error| panic!("{}: {error}", entry.name));
        let moved = [&entry.out, &entry.data].into_iter().map(Vec::len).max().unwrap_or(0) as u64;
        match command.data(512) {
            polypath_scsi::command::Data::In(most) => assert!(moved <= most, "{}", entry.name),
            polypath_scsi::command::Data::Out(bytes) if !entry.out.is_empty() => {
                assert_eq!(moved, bytes, "{}", entry.name)
            }
            _ => assert_eq!(moved, 0, "{}", entry.name),
        }
    }
}

/// What tgt refuses because of a field, and what we refuse because of it, with the place of the field.
#[test]
fn commands_that_are_refused() {
    let mut refused = 0;
    for entry in errors() {
        let sense = Sense::parse(&entry.sense).ok();
        match (parse(&entry), entry.name) {
            // WRITE AND VERIFY and ORWRITE, and WRITE ATOMIC: tgt knows them, or calls the disk write protected before it looks
            (Err(CdbError::Opcode { opcode }), name) => assert!(name.starts_with(&format!("opcode-{opcode:02x}"))),
            (Err(error), name) => {
                let sense = sense.unwrap_or_else(|| panic!("{name}: {error}"));
                assert!(sense.is(5, 0x24, 0), "{name}: tgt says {sense}, we {error}");
                assert!(error.sense().is(5, 0x24, 0) && error.sense().field().is_some());
                refused += 1;
            }
            (Ok(_), _) => {}
        }
    }
    assert_eq!(
        refused, 10,
        "protection information with every form of READ, WRITE and VERIFY, and a page code without EVPD"
    );
}

/// Our constructors, by the name of libiscsi's command.
fn ours() -> Vec<(&'static str, Cdb)> {
    let (none, fua, dpo) = (RwFlags::empty(), RwFlags::FUA, RwFlags::DPO);
    let same = WriteSame { unmap: true, ..WriteSame::default() };
    let out = |action, kind| Cdb::persistent_reserve_out(action, kind, PrOutData::LEN as u32);
    let codes = |which, timeouts| Cdb::report_supported_operation_codes(which, timeouts, 0xffff);
    vec![
        ("inquiry.00.00", Cdb::inquiry(66)),
        ("inquiry.01.00", Cdb::inquiry_vpd(vpd::code::SUPPORTED_PAGES, 64)),
        ("inquiry.01.83", Cdb::inquiry_vpd(vpd::code::DEVICE_IDENTIFICATION, 76)),
        ("inquiry.01.b1.lun-2", Cdb::inquiry_vpd(vpd::code::BLOCK_DEVICE_CHARACTERISTICS, 255)),
        ("maintenance-in.0c.00.00", Cdb::report_supported_operation_codes(Reporting::All, false, 1024)),
        ("maintenance-in.0c.01.8f", codes(Reporting::One(opcode::VERIFY_16), false)),
        ("maintenance-in.0c.80.00.lun-2", codes(Reporting::All, true)),
        ("mode-sense-6.4a.00", Cdb::mode_sense_6(PageControl::Changeable, 0x0a, 0, 255)),
        ("persistent-reserve-in.00", Cdb::persistent_reserve_in(pr_in::READ_KEYS, 0x4000)),
        ("persistent-reserve-in.01", Cdb::persistent_reserve_in(pr_in::READ_RESERVATION, 0x4000)),
        ("persistent-reserve-in.02", Cdb::persistent_reserve_in(pr_in::REPORT_CAPABILITIES, 0x4000)),
        ("persistent-reserve-out.00.00", out(pr_out::REGISTER, 0)),
        ("persistent-reserve-out.01.05", out(pr_out::RESERVE, 5)),
        ("persistent-reserve-out.02.08", out(pr_out::RELEASE, 8)),
        ("persistent-reserve-out.03.00", out(pr_out::CLEAR, 0)),
        ("persistent-reserve-out.04.03", out(pr_out::PREEMPT, 3)),
        ("persistent-reserve-out.06.00", out(pr_out::REGISTER_AND_IGNORE_EXISTING_KEY, 0)),
        ("read-6", Cdb::read_6(0, 1)),
        ("read-10.00", Cdb::read_10(0, 1, none)),
        ("read-10.08", Cdb::read_10(0, 1, fua)),
        ("read-12.10", Cdb::read_12(0, 1, dpo)),
        ("read-16.18", Cdb::read_16(0, 1, fua | dpo)),
        ("read-capacity-10", Cdb::read_capacity_10()),
        ("report-luns.lun-0", Cdb::report_luns(0, 40)),
        ("service-action-in-16.10", Cdb::read_capacity_16(32)),
        ("service-action-in-16.12", Cdb::get_lba_status(1, 24)),
        ("test-unit-ready.lun-0", Cdb::test_unit_ready()),
        ("unmap.5-2500", Cdb::unmap(unmap::ONE_RANGE_LEN as u16, false)),
        ("verify-10.02", Cdb::verify_10(0, 1, ByteCheck::Data, false)),
        ("verify-12.10", Cdb::verify_12(0, 1, ByteCheck::None, true)),
        ("verify-16.02", Cdb::verify_16(0, 1, ByteCheck::Data, false)),
        ("write-10.18", Cdb::write_10(0, 1, fua | dpo)),
        ("write-12.08", Cdb::write_12(0, 1, fua)),
        ("write-16.08", Cdb::write_16(0, 1, fua)),
        ("write-same-10.08", Cdb::write_same_10(0, 1, false, true)),
        ("write-same-16.08", Cdb::write_same_16(0, 1, same)),
        ("write-same-16.09", Cdb::write_same_16(1, 7, WriteSame { no_data: true, ..same })),
        ("compare-and-write.00.status-02.5-2000.lun-2", Cdb::compare_and_write(0, 1, none)),
        ("read-10.00.status-02.5-2100", Cdb::read_10(0x4000, 1, none)),
        ("write-16.00.status-02.5-2100", Cdb::write_16(0x4000, 1, none)),
    ]
}

#[test]
fn our_constructors_make_the_same_octets() {
    let theirs: Vec<Entry> = good().into_iter().chain(errors()).collect();
    for (name, cdb) in ours() {
        let entry = theirs.iter().find(|entry| entry.name == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(cdb.bytes(), entry.cdb, "{name}: {cdb}");
    }
}

#[test]
fn sense_data_and_what_they_mean() {
    let failed = |code, detail| Meaning::Failed(Status::with_detail(code, detail));
    let mut seen = Vec::new();
    for entry in errors() {
        if entry.sense.is_empty() {
            let status = ScsiStatus(entry.status);
            assert_eq!(meaning(status, None), failed(Code::ReservationConflict, 0), "{}", entry.name);
            continue;
        }
        let sense = Sense::parse(&entry.sense).unwrap();
        assert_eq!(sense.to_fixed()[..], entry.sense, "{}", entry.name);
        let want = match sense.detail() {
            0x02_3a00 => failed(Code::PathNoAccess, 0x02_3a00),
            0x05_1a00 => failed(Code::Invalid, 0x05_1a00),
            0x05_2000 => failed(Code::Unsupported, 0x05_2000),
            0x05_2100 => failed(Code::OutOfRange, 0x05_2100),
            0x05_2400 => failed(Code::Invalid, 0x05_2400),
            0x05_2500 => failed(Code::PathNoAccess, 0x05_2500),
            0x06_2900 => Meaning::UnitAttention(Attention::PowerOnOrReset),
            0x06_2a03 => Meaning::UnitAttention(Attention::ReservationsPreempted),
            0x06_2a04 => Meaning::UnitAttention(Attention::ReservationsReleased),
            0x07_2700 => failed(Code::WriteProtected, 0x07_2700),
            0x0e_1d00 => failed(Code::Miscompare, 0x0e_1d00),
            other => panic!("{}: {other:#x}", entry.name),
        };
        assert_eq!(meaning(ScsiStatus(entry.status), Some(&sense)), want, "{}: {sense}", entry.name);
        seen.push(sense.detail());
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 11, "{seen:x?}");
    // tgt leaves the sense data of before beside GOOD
    let stale = good().into_iter().find(|entry| !entry.sense.is_empty()).expect("tgt left some");
    let sense = Sense::parse(&stale.sense).unwrap();
    assert_eq!(meaning(ScsiStatus(stale.status), Some(&sense)), Meaning::Done);
    assert_eq!(meaning(ScsiStatus::BUSY, Some(&sense)), Meaning::Again(Again::Busy));
}

#[test]
fn inquiry_data() {
    let cases = [
        ("inquiry.00.00", device_type::DISK, "golden", false, 0x0300),
        ("inquiry.00.00.lun-0", device_type::ARRAY_CONTROLLER, "Controller", false, 0x01fb),
        ("inquiry.00.00.lun-2", device_type::DISK, "VIRTUAL-DISK", false, 0x0300),
        ("inquiry.00.00.lun-3", device_type::DISK, "VIRTUAL-DISK", true, 0x0300),
    ];
    for (name, device_type, product, removable, last_standard) in cases {
        let octets = data(name);
        let got = Inquiry::parse(&octets).unwrap();
        let want = Inquiry {
            device_type,
            removable,
            version: 5,
            hierarchical: true,
            command_queuing: true,
            vendor: "IET".into(),
            product: product.into(),
            revision: "0001".into(),
            // SAM-3, iSCSI, and SPC-3, SBC-2 or SCC-2
            version_descriptors: got.version_descriptors.clone(),
            ..Inquiry::default()
        };
        assert_eq!(got, want, "{name}");
        assert_eq!(got.version_descriptors.get(..2), Some(&[0x04c0, 0x0960][..]), "{name}");
        assert_eq!(got.version_descriptors.get(2), Some(&last_standard), "{name}");
        assert_eq!((got.is_disk(), got.tpgs), (device_type == device_type::DISK, Tpgs::None));
        // ours are longer, and say so
        let ours = got.to_bytes();
        assert_eq!((&ours[..4], &ours[5..octets.len()]), (&octets[..4], &octets[5..]), "{name}");
    }
}

#[test]
fn vital_product_data() {
    let list = data("inquiry.01.00");
    let pages = [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2];
    assert_eq!(vpd::supported_pages(&list), Ok(&pages[..]));
    assert_eq!(vpd::build_supported_pages(&pages), list);

    let serial = data("inquiry.01.80");
    assert_eq!(vpd::unit_serial_number(&serial).as_deref(), Ok("polypath0001"));
    assert_eq!(vpd::build_unit_serial_number(&format!("{:>36}", "polypath0001")), serial);

    let page = data("inquiry.01.83");
    let identification = DeviceIdentification::parse(&page).unwrap();
    assert_eq!(identification.to_bytes(), page);
    let naa: Vec<DesignatorValue<'_>> = identification.designators.iter().skip(1).map(|d| d.value()).collect();
    let (local, six) = ([0x30, 0, 0, 1, 0, 0, 0, 1], [0x60, 0, 0, 0, 0, 0, 0, 0, 0x0e, 0, 0, 0, 0, 1, 0, 1]);
    assert_eq!(naa, [DesignatorValue::Naa(&local), DesignatorValue::Naa(&six)]);
    let mut t10 = b"IET     00010001".to_vec();
    t10.resize(36, 0);
    assert_eq!(identification.identifiers(), [Identifier::T10Vendor(t10)], "none that would make two hosts' disks one");
    let short = DeviceIdentification::parse(&page[..64]);
    assert!(matches!(short, Err(ParseError::Short { need: 76, have: 64, .. })), "as libiscsi asks first, and then");

    let limits = BlockLimits {
        max_compare_and_write_blocks: 128,
        max_unmap_blocks: u32::MAX,
        max_unmap_descriptors: u32::MAX,
        ..BlockLimits::default()
    };
    assert_eq!(BlockLimits::parse(&data("inquiry.01.b0")), Ok(limits));
    assert_eq!(limits.to_bytes(), data("inquiry.01.b0"));
    let read_only = BlockLimits { max_unmap_blocks: 0, max_unmap_descriptors: 0, ..limits };
    assert_eq!(BlockLimits::parse(&data("inquiry.01.b0.lun-2")), Ok(read_only));

    for name in ["inquiry.01.b1", "inquiry.01.b1.lun-2"] {
        assert_eq!(BlockCharacteristics::parse(&data(name)), Ok(BlockCharacteristics::default()));
        assert_eq!(data(name).len(), 68, "four more than the standard's");
    }
    let thin = Provisioning {
        unmap: true,
        write_same_16: true,
        write_same_10: true,
        reads_zeroes: true,
        kind: ProvisioningType::Thin,
        ..Provisioning::default()
    };
    assert_eq!(Provisioning::parse(&data("inquiry.01.b2")), Ok(thin));
    assert_eq!(thin.to_bytes(), data("inquiry.01.b2"));
}

#[test]
fn sizes_and_units() {
    let disk = Geometry { block_size: 512, blocks: 16384 };
    let ten = data("read-capacity-10");
    assert_eq!(Capacity10::parse(&ten).unwrap().geometry(), Some(disk));
    assert_eq!(Capacity10::of(disk).to_bytes()[..], ten);
    let sixteen = data("service-action-in-16.10");
    let want = Capacity16 {
        blocks_per_physical_exponent: 3,
        provisioning: true,
        unmapped_read_zeroes: true,
        ..Capacity16::of(disk)
    };
    assert_eq!(Capacity16::parse(&sixteen), Ok(want));
    assert_eq!(want.to_bytes()[..], sixteen);
    assert_eq!(want.physical_block_bytes(), Some(4096));

    let luns: Vec<Lun> = (0..4).filter_map(Lun::new).collect();
    let list = data("report-luns.lun-0");
    assert_eq!(LunList::parse(&list), Ok(LunList { luns: luns.clone(), total_bytes: 40 }));
    assert_eq!(LunList::build(&luns), list);

    let one = (Range { lba: 1, blocks: 0x3fff }, ProvisioningStatus::Mapped);
    let status = data("service-action-in-16.12");
    assert_eq!(LbaStatus::parse(&status).unwrap().ranges, [one]);
    assert_eq!(LbaStatus { ranges: vec![one] }.to_bytes(), status);
}

#[test]
fn mode_pages() {
    let all = data("mode-sense-6.3f.00.lun-2");
    let got = ModeData::parse(&all, Header::Six).unwrap();
    assert_eq!((got.total_bytes, got.write_protected, got.dpo_fua), (all.len(), true, true));
    assert_eq!(got.descriptor.map(|d| d.block_bytes), Some(512));
    let codes: Vec<(u8, u8)> = got.pages.iter().map(|page| (page.code, page.subpage)).collect();
    assert_eq!(codes, [(0x00, 0), (0x02, 0), (0x08, 0), (0x0a, 0), (0x0a, 1), (0x1c, 0)]);
    let caching = got.caching().unwrap();
    assert!(caching.write_cache && !caching.read_cache_disabled && !caching.non_volatile_disabled);
    let exceptions = got.informational_exceptions().unwrap();
    assert_eq!((exceptions.disabled, exceptions.method), (true, 0));

    let control = ModeData::parse(&data("mode-sense-6.0a.00"), Header::Six).unwrap();
    assert!(!control.write_protected && control.dpo_fua);
    let control = control.control().unwrap();
    assert_eq!((control.task_sets, control.descriptor_sense, control.queue_algorithm), (0, false, 1));
    assert_eq!((control.software_write_protect, control.self_test_seconds), (false, 512));
    let changeable = ModeData::parse(&data("mode-sense-6.4a.00"), Header::Six).unwrap();
    assert!(changeable.control().unwrap().software_write_protect && changeable.descriptor.is_none());

    let select = good().into_iter().find(|entry| entry.name == "mode-select-6").unwrap();
    let list = ModeData::parse_list(&select.out, Header::Six).unwrap();
    assert!(list.control().unwrap().software_write_protect);
}

#[test]
fn reservations() {
    let keys = data("persistent-reserve-in.00");
    let got = Keys::parse(&keys).unwrap();
    assert_eq!((got.keys.len(), got.to_bytes()), (2, keys));

    let held = data("persistent-reserve-in.01");
    let got = Reservation::parse(&held).unwrap();
    assert_eq!(
        got.held,
        Some((0, ReservationType::WriteExclusiveAllRegistrants)),
        "all hold it, so that there is no key"
    );
    assert_eq!(got.to_bytes(), held);

    let can = data("persistent-reserve-in.02");
    let want = Capabilities { types: Some(ReservationType::ALL.to_vec()), ..Capabilities::default() };
    assert_eq!((Capabilities::parse(&can), &want.to_bytes()[..]), (Ok(want.clone()), &can[..]));

    let mut types = Vec::new();
    for entry in good().into_iter().filter(|entry| entry.name.starts_with("persistent-reserve-out")) {
        let list = PrOutData::parse(&entry.out).unwrap_or_else(|error| panic!("{}: {error}", entry.name));
        assert_eq!(list.to_bytes(), entry.out, "{}", entry.name);
        assert_eq!(
            list.action_key != 0,
            matches!(entry.cdb[1], pr_out::PREEMPT | pr_out::REGISTER_AND_IGNORE_EXISTING_KEY)
        );
        types.extend(parse_scope_type(entry.cdb[2]));
    }
    types.sort_by_key(|kind| *kind as u8);
    types.dedup();
    assert_eq!(types, ReservationType::ALL);
}

#[test]
fn ranges_to_unmap() {
    let entry = good().into_iter().find(|entry| entry.name.starts_with("unmap")).unwrap();
    let ranges: Vec<Range> = unmap::parse(&entry.out).unwrap().collect();
    assert_eq!(ranges, [Range { lba: 0, blocks: 1 }]);
    assert_eq!(unmap::one_range(ranges[0])[..], entry.out);
}

/// Every decoder over all of it and over every prefix: none panics, and what one reads it writes and reads again.
#[test]
fn decoders_take_anything() {
    let bodies: [fn(&[u8]); 9] = [
        fuzzing::scsi_command,
        fuzzing::sense,
        fuzzing::inquiry,
        fuzzing::vpd,
        fuzzing::capacity_and_luns,
        fuzzing::mode,
        fuzzing::alua,
        fuzzing::reservation,
        fuzzing::unmap,
    ];
    for entry in good().into_iter().chain(errors()) {
        for octets in [&entry.cdb, &entry.out, &entry.data, &entry.sense] {
            for end in 0..=octets.len() {
                bodies.iter().for_each(|body| body(&octets[..end]));
            }
        }
    }
    assert!(TargetPortGroups::parse(&[]).is_err());
}
