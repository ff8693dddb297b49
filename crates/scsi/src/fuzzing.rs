//! Bodies of the fuzz targets, here so that `cargo test` replays the committed corpus. Not an interface.

use crate::alua::{TargetPortGroups, parse_set_target_port_groups, set_target_port_groups};
use crate::capacity::{Capacity10, Capacity16};
use crate::inquiry::Inquiry;
use crate::lun::{Lun, LunList};
use crate::mode::{Header, ModeData};
use crate::reservation::{Capabilities, FullStatusList, Keys, PrOutData, RegisterAndMove, Reservation};
use crate::unmap::LbaStatus;
use crate::vpd::{BlockCharacteristics, BlockLimits, DeviceIdentification, Provisioning};
use crate::{Cdb, Command, ScsiStatus, Sense};

/// Command descriptor blocks, as a target gets them and as a log has them.
pub fn scsi_command(data: &[u8]) {
    if let Some(cdb) = Cdb::from_bytes(data) {
        assert_eq!(Cdb::from_bytes(cdb.octets()), Some(cdb));
        let _ = cdb.to_string();
    }
    if let Some(octets) = data.first_chunk::<16>() {
        match Command::parse(octets) {
            Ok(command) => drop(command.data(512)),
            Err(error) => assert!(error.sense().field().is_some(), "{error}"),
        }
    }
}

/// What a logical unit answers, and parameter lists; the first octet of an input says of what kind.
pub fn scsi_data(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    match kind % 8 {
        0 => sense(data),
        1 => inquiry(data),
        2 => vpd(data),
        3 => capacity_and_luns(data),
        4 => mode(data),
        5 => alua(data),
        6 => reservation(data),
        _ => unmap(data),
    }
}

/// Sense data, and what they mean.
pub fn sense(data: &[u8]) {
    if let Ok(sense) = Sense::parse(data) {
        assert_eq!(Sense::parse(&sense.to_descriptors()), Ok(sense));
        let fixed = Sense::parse(&sense.to_fixed()).expect("what we build, we read");
        assert_eq!((fixed.detail(), fixed.deferred, fixed.field()), (sense.detail(), sense.deferred, sense.field()));
        let _ = (sense.to_string(), sense.progress());
        let meaning = crate::meaning(ScsiStatus::CHECK_CONDITION, Some(&sense));
        assert_eq!(meaning.give_up(Some(&sense)).is_ok(), meaning == crate::Meaning::Done);
    }
}

/// Standard INQUIRY data.
pub fn inquiry(data: &[u8]) {
    if let Ok(inquiry) = Inquiry::parse(data) {
        assert_eq!(Inquiry::parse(&inquiry.to_bytes()), Ok(inquiry));
    }
}

/// Vital product data pages.
pub fn vpd(data: &[u8]) {
    if let Ok(page) = DeviceIdentification::parse(data) {
        let _ = (page.relative_target_port(), page.target_port_group());
        let identifiers = page.identifiers();
        assert_eq!(DeviceIdentification::parse(&page.to_bytes()), Ok(page));
        for identifier in identifiers {
            let designator = crate::vpd::Designator::of(&identifier).expect("it was one");
            assert_eq!(designator.identifier(), Some(identifier));
        }
    }
    if let Ok(page) = BlockLimits::parse(data) {
        assert_eq!(BlockLimits::parse(&page.to_bytes()), Ok(page));
    }
    if let Ok(page) = BlockCharacteristics::parse(data) {
        assert_eq!(BlockCharacteristics::parse(&page.to_bytes()), Ok(page));
    }
    if let Ok(page) = Provisioning::parse(data) {
        assert_eq!(Provisioning::parse(&page.to_bytes()), Ok(page));
    }
    let _ = (crate::vpd::supported_pages(data), crate::vpd::unit_serial_number(data));
}

/// READ CAPACITY and REPORT LUNS data.
pub fn capacity_and_luns(data: &[u8]) {
    if let Ok(capacity) = Capacity16::parse(data) {
        assert_eq!(Capacity16::parse(&capacity.to_bytes()), Ok(capacity));
        let _ = (capacity.geometry().check(), capacity.physical_block_bytes());
    }
    if let Ok(capacity) = Capacity10::parse(data) {
        assert_eq!(Capacity10::parse(&capacity.to_bytes()), Ok(capacity));
        let _ = capacity.geometry();
    }
    if let Ok(list) = LunList::parse(data) {
        let again = LunList::parse(&LunList::build(&list.luns)).expect("what we build, we read");
        assert_eq!(again.luns, list.luns);
        for number in list.luns.iter().filter_map(|lun| lun.number()) {
            assert_eq!(Lun::new(number).and_then(Lun::number), Some(number));
        }
    }
}

/// MODE SENSE data.
pub fn mode(data: &[u8]) {
    for header in [Header::Six, Header::Ten] {
        if let Ok(mode) = ModeData::parse(data, header) {
            let _ = (mode.caching(), mode.control(), mode.informational_exceptions());
            let again = ModeData::parse(&mode.to_bytes(Header::Ten), Header::Ten).expect("what we build, we read");
            assert_eq!((again.write_protected, again.dpo_fua), (mode.write_protected, mode.dpo_fua));
            // what is longer than the header can say is cut
            if mode.total_bytes < 0x8000 {
                assert_eq!(again.caching(), mode.caching());
            }
        }
    }
}

/// Target port groups.
pub fn alua(data: &[u8]) {
    if let Ok(groups) = TargetPortGroups::parse(data) {
        assert_eq!(TargetPortGroups::parse(&groups.to_bytes(true)), Ok(groups));
    }
    if let Ok(states) = parse_set_target_port_groups(data) {
        assert_eq!(parse_set_target_port_groups(&set_target_port_groups(&states)), Ok(states));
    }
}

/// Persistent reservations, both ways.
pub fn reservation(data: &[u8]) {
    if let Ok(keys) = Keys::parse(data) {
        assert_eq!(Keys::parse(&keys.to_bytes()), Ok(keys));
    }
    if let Ok(reservation) = Reservation::parse(data) {
        assert_eq!(Reservation::parse(&reservation.to_bytes()), Ok(reservation));
    }
    if let Ok(capabilities) = Capabilities::parse(data) {
        assert_eq!(Capabilities::parse(&capabilities.to_bytes()), Ok(capabilities));
    }
    if let Ok(list) = FullStatusList::parse(data) {
        for registration in &list.registrations {
            let _ = (registration.initiator.iscsi_name(), registration.initiator.sas_address());
        }
        assert_eq!(FullStatusList::parse(&list.to_bytes()), Ok(list));
    }
    if let Ok(out) = PrOutData::parse(data) {
        assert_eq!(PrOutData::parse(&out.to_bytes()), Ok(out));
    }
    if let Ok(out) = RegisterAndMove::parse(data) {
        assert_eq!(RegisterAndMove::parse(&out.to_bytes()), Ok(out));
    }
}

/// UNMAP parameter lists and GET LBA STATUS data.
pub fn unmap(data: &[u8]) {
    if let Ok(ranges) = crate::unmap::parse(data) {
        let ranges: Vec<_> = ranges.collect();
        let again: Vec<_> =
            crate::unmap::parse(&crate::unmap::build(&ranges)).expect("what we build, we read").collect();
        assert_eq!(again, ranges);
    }
    if let Ok(status) = LbaStatus::parse(data) {
        assert_eq!(LbaStatus::parse(&status.to_bytes()), Ok(status));
    }
}
