//! What a logical unit tells of itself: INQUIRY, sizes, mode pages, the list of units.

use super::{Verdict, block, sense};
use crate::iscsi::Env;
use crate::iscsi::conn::Conn;
use crate::store::Disk;
use polypath_block::Geometry;
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
            Some(code::LOGICAL_BLOCK_PROVISIONING) => provisioning(),
            Some(_) => return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB)),
        })
    }

    /// Who the unit is. EUI-64 and UUID are those that NVMe hosts see of the same disk.
    fn identification(&self, env: &Env<'_>, disk: &Disk) -> Vec<u8> {
        let serial = serial(disk);
        let mut designators = vec![Designator::t10_vendor(VENDOR, &serial)];
        // NAA 3h is assigned locally: it is for those that cannot do without one, and proves nothing.
        let mut naa = [0; 8];
        naa.copy_from_slice(disk.uuid.first_chunk::<8>().unwrap_or(&[0; 8]));
        naa[0] = 0x30 | naa[0] & 0x0f;
        designators.push(Designator::naa(&naa));
        if disk.eui64 != [0; 8] {
            designators.push(Designator::eui_64(disk.eui64));
        }
        if disk.uuid != [0; 16] {
            designators.push(Designator::uuid(disk.uuid));
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

fn serial(disk: &Disk) -> String {
    disk.uuid.iter().map(|b| format!("{b:02x}")).collect()
}

fn limits(max_transfer: u32, disk: &Disk) -> Vec<u8> {
    let limits = BlockLimits {
        write_same_non_zero: true,
        max_compare_and_write_blocks: block::COMPARE_AND_WRITE_BLOCKS,
        optimal_granularity_blocks: 1,
        max_transfer_blocks: max_transfer >> disk.shift,
        optimal_transfer_blocks: max_transfer >> disk.shift,
        max_prefetch_blocks: 0,
        max_unmap_blocks: block::UNMAP_BLOCKS,
        max_unmap_descriptors: block::UNMAP_RANGES,
        unmap_granularity_blocks: 1,
        unmap_alignment: Some(0),
        max_write_same_blocks: block::WRITE_SAME_BLOCKS,
    };
    limits.to_bytes()
}

fn provisioning() -> Vec<u8> {
    let provisioning = Provisioning {
        unmap: true,
        write_same_16: true,
        write_same_10: true,
        reads_zeroes: true,
        kind: ProvisioningType::Thin,
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
    let capacity = Capacity16 { provisioning: true, unmapped_read_zeroes: true, ..Capacity16::of(geometry(disk)) };
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
    let data = ModeData { dpo_fua: true, pages, ..ModeData::default() };
    Ok(data.to_bytes(if header == Header::Six { Header::Six } else { Header::Ten }))
}
