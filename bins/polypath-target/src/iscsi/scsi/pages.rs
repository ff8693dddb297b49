//! What a logical unit tells of itself: INQUIRY, sizes, mode pages, the list of units.

use super::{Verdict, block, sense};
use crate::iscsi::Env;
use crate::iscsi::beneath::beneath;
use crate::iscsi::conn::Conn;
use crate::store::Disk;
use polypath_block::{Geometry, Identifier};
use polypath_iscsi::pdu::ScsiCommand;
use polypath_scsi::Lun;
use polypath_scsi::capacity::{Capacity10, Capacity16};
use polypath_scsi::cdb::PageControl;
use polypath_scsi::command::Command;
use polypath_scsi::inquiry::{self, Inquiry, Tpgs, device_type};
use polypath_scsi::lun::LunList;
use polypath_scsi::mode::{self, Caching, Control, Header, InformationalExceptions, ModeData, ModePage};
use polypath_scsi::sense::{Sense, key};
use polypath_scsi::vpd::{
    self, Association, BlockCharacteristics, BlockLimits, CodeSet, Designator, DeviceIdentification, Provisioning,
    ProvisioningType, code,
};

/// T10 VENDOR IDENTIFICATION.
const VENDOR: &str = "POLYPATH";
/// Standards that are claimed: SAM-5, iSCSI, SPC-4, SBC-3, none with a version of its own.
const VERSIONS: [u16; 4] = [0x00a0, 0x0960, 0x0460, 0x04c0];
/// The iSCSI protocol identifier (SPC-4 7.6.1).
const ISCSI: u8 = 5;
/// Pages of vital product data.
const PAGES: [u8; 6] = [
    code::SUPPORTED_PAGES,
    code::UNIT_SERIAL_NUMBER,
    code::DEVICE_IDENTIFICATION,
    code::BLOCK_LIMITS,
    code::BLOCK_DEVICE_CHARACTERISTICS,
    code::LOGICAL_BLOCK_PROVISIONING,
];

impl Conn {
    pub(super) fn inquiry(&self, env: &Env<'_>, cmd: &ScsiCommand, page: Option<u8>) -> Result<Vec<u8>, Verdict> {
        let Ok(disk) = self.disk(cmd) else {
            return match page {
                None => Ok(inquiry::absent().to_bytes().to_vec()),
                Some(_) => Err(Verdict::check(sense::NO_UNIT)),
            };
        };
        let config = &env.iscsi.shared.config.iscsi;
        Ok(match page {
            None => standard(),
            Some(code::SUPPORTED_PAGES) => vpd::build_supported_pages(&PAGES),
            Some(code::UNIT_SERIAL_NUMBER) => vpd::build_unit_serial_number(&serial(disk)),
            Some(code::DEVICE_IDENTIFICATION) => self.identification(env, disk),
            Some(code::BLOCK_LIMITS) => limits(config.max_transfer, disk),
            Some(code::BLOCK_DEVICE_CHARACTERISTICS) => {
                BlockCharacteristics { rotation_rate: 1, ..BlockCharacteristics::default() }.to_bytes()
            }
            Some(code::LOGICAL_BLOCK_PROVISIONING) => provisioning(disk),
            Some(_) => return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB)),
        })
    }

    /// Who the unit is. EUI-64 and UUID are those that NVMe hosts see of the same disk.
    fn identification(&self, env: &Env<'_>, disk: &Disk) -> Vec<u8> {
        let mut designators = vec![Designator::t10_vendor(VENDOR, &serial(disk))];
        if disk.identifiers.is_empty() {
            designators.extend(own_designators(disk));
        } else {
            designators.extend(disk.identifiers.iter().filter_map(Designator::of));
            // The one that was made for NVMe of one that it has no word for.
            let made = disk.uuid != [0; 16] && !disk.identifiers.contains(&Identifier::Uuid(disk.uuid));
            designators.extend(made.then(|| Designator::uuid(disk.uuid)));
        }
        let group = env.iscsi.shared.listeners.get(self.info.listener).map_or(1, |l| l.portal_group);
        designators.push(Designator::relative_target_port(group));
        designators.push(Designator::target_port_group(group));
        if let Some(name) = self.target_name(env) {
            designators.push(Designator {
                association: Association::TargetPort,
                code_set: CodeSet::Utf8,
                protocol: Some(ISCSI),
                ..Designator::scsi_name(&format!("{name},t,0x{group:04x}"))
            });
        }
        DeviceIdentification { designators }.to_bytes()
    }

    pub(super) fn target_name<'a>(&self, env: &Env<'a>) -> Option<&'a str> {
        let store = self.session.as_ref()?.store;
        env.iscsi.targets.get(store)?.as_ref().map(|name| name.as_str())
    }

    pub(super) fn report_luns(&self, select: u8) -> Vec<u8> {
        let luns: Vec<Lun> = match select {
            1 => Vec::new(),
            _ => self.disks.iter().filter_map(|d| Lun::new(d.lun)).collect(),
        };
        LunList::build(&luns)
    }

    /// What there is to say: a unit attention that waits, or that there is no such unit.
    pub(super) fn request_sense(&self, cmd: &ScsiCommand, descriptor: bool) -> Vec<u8> {
        let attention = match (&self.session, self.disk(cmd)) {
            (_, Err(_)) => return octets(sense::NO_UNIT, descriptor),
            (Some(session), Ok(disk)) => session.take_attention(disk.lun),
            (None, Ok(_)) => None,
        };
        let sense = match attention {
            Some(code) => Sense::new(key::UNIT_ATTENTION, (code >> 8) as u8, code as u8),
            None => Sense::new(key::NO_SENSE, 0, 0),
        };
        octets(sense, descriptor)
    }
}

fn octets(sense: Sense, descriptor: bool) -> Vec<u8> {
    if descriptor { sense.to_descriptors() } else { sense.to_fixed().to_vec() }
}

fn standard() -> Vec<u8> {
    let inquiry = Inquiry {
        device_type: device_type::DISK,
        version: 6,
        hierarchical: true,
        tpgs: Tpgs::Both,
        multi_port: true,
        command_queuing: true,
        vendor: VENDOR.into(),
        product: "software target".into(),
        revision: env!("CARGO_PKG_VERSION").into(),
        version_descriptors: VERSIONS.to_vec(),
        ..Inquiry::default()
    };
    inquiry.to_bytes().to_vec()
}

/// Who a disk of ours is.
fn own_designators(disk: &Disk) -> Vec<Designator> {
    // NAA 3h is assigned locally: it is for those that cannot do without one, and proves nothing.
    let mut naa = [0; 8];
    naa.copy_from_slice(disk.uuid.first_chunk::<8>().unwrap_or(&[0; 8]));
    naa[0] = 0x30 | naa[0] & 0x0f;
    let mut designators = vec![Designator::naa(&naa)];
    if disk.eui64 != [0; 8] {
        designators.push(Designator::eui_64(disk.eui64));
    }
    if disk.uuid != [0; 16] {
        designators.push(Designator::uuid(disk.uuid));
    }
    designators
}

fn serial(disk: &Disk) -> String {
    let all: [&[u8]; 3] = [&disk.uuid, &disk.nguid, &disk.eui64];
    let shown = all.into_iter().find(|id| id.iter().any(|b| *b != 0)).unwrap_or(&disk.uuid);
    shown.iter().map(|b| format!("{b:02x}")).collect()
}

fn limits(max_transfer: u32, disk: &Disk) -> Vec<u8> {
    let below = beneath(disk).map(|disk| disk.limits());
    let unmaps = unmaps(disk);
    let granularity = below.map_or(1, |l| l.discard_granularity_blocks);
    let limits = BlockLimits {
        write_same_non_zero: true,
        max_compare_and_write_blocks: if below.is_none() { block::COMPARE_AND_WRITE_BLOCKS } else { 0 },
        optimal_granularity_blocks: 1,
        max_transfer_blocks: max_transfer >> disk.shift,
        optimal_transfer_blocks: max_transfer >> disk.shift,
        max_prefetch_blocks: 0,
        max_unmap_blocks: if unmaps { block::UNMAP_BLOCKS } else { 0 },
        max_unmap_descriptors: if unmaps { block::UNMAP_RANGES } else { 0 },
        unmap_granularity_blocks: granularity,
        unmap_alignment: Some(0),
        max_write_same_blocks: block::WRITE_SAME_BLOCKS,
    };
    limits.to_bytes()
}

/// Is there UNMAP?
fn unmaps(disk: &Disk) -> bool {
    beneath(disk).is_none_or(|disk| disk.limits().max_discard_blocks > 0)
}

/// Do unmapped blocks read as zeroes? Disks beneath do not say.
fn reads_zeroes(disk: &Disk) -> bool {
    beneath(disk).is_none()
}

fn provisioning(disk: &Disk) -> Vec<u8> {
    let unmap = unmaps(disk);
    let provisioning = Provisioning {
        unmap,
        write_same_16: unmap,
        write_same_10: unmap,
        reads_zeroes: reads_zeroes(disk),
        kind: if unmap { ProvisioningType::Thin } else { Provisioning::default().kind },
        ..Provisioning::default()
    };
    provisioning.to_bytes()
}

fn geometry(disk: &Disk) -> Geometry {
    Geometry { block_size: 1 << disk.shift, blocks: disk.blocks }
}

pub(super) fn capacity_10(disk: &Disk) -> Vec<u8> {
    Capacity10::of(geometry(disk)).to_bytes().to_vec()
}

pub(super) fn capacity_16(disk: &Disk) -> Vec<u8> {
    let capacity = Capacity16 {
        provisioning: unmaps(disk),
        unmapped_read_zeroes: reads_zeroes(disk),
        ..Capacity16::of(geometry(disk))
    };
    capacity.to_bytes().to_vec()
}

/// MODE SENSE: nothing can be changed, nothing is saved.
pub(super) fn mode_sense(env: &Env<'_>, disk: &Disk, command: &Command) -> Result<Vec<u8>, Verdict> {
    let &Command::ModeSense { header, control, page, subpage, .. } = command else {
        return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB));
    };
    if control == PageControl::Saved {
        return Err(Verdict::check(sense::SAVING_NOT_SUPPORTED));
    }
    if !matches!((page, subpage), (_, 0) | (mode::page::ALL, 0xff)) {
        return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB));
    }
    let cache = env.iscsi.shared.config.volatile_write_cache.unwrap_or_else(|| disk.medium.is_volatile());
    let all = [
        Caching { write_cache: cache, ..Caching::default() }.to_page(),
        Control { queue_algorithm: 1, ..Control::default() }.to_page(),
        InformationalExceptions { disabled: true, ..InformationalExceptions::default() }.to_page(),
    ];
    let mut pages: Vec<ModePage> = all.into_iter().filter(|p| page == mode::page::ALL || p.code == page).collect();
    if pages.is_empty() {
        return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB));
    }
    if control == PageControl::Changeable {
        pages.iter_mut().for_each(|p| p.body.fill(0));
    }
    let write_protected = beneath(disk).is_some_and(|disk| disk.limits().read_only);
    let data = ModeData { write_protected, dpo_fua: true, pages, ..ModeData::default() };
    Ok(data.to_bytes(if header == Header::Six { Header::Six } else { Header::Ten }))
}
