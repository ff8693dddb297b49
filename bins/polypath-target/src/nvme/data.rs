//! Identify data and log pages.

use super::Conn;
use super::admin::EVENT_REQUESTS;
use super::connect::{ADMIN_ENTRIES, VERSION};
use super::state::{Controller, EVENT_ANA, EVENT_DISCOVERY, EVENT_NAMESPACE, Nvme};
use crate::config::Protocol;
use crate::shared::{Listener, Shared, lock};
use crate::store::Disk;
use polypath_nvme::identify::{
    IdentifyController, IdentifyNamespace, LbaFormat, NamespaceIds, anacap, build_namespace_list, cmic, cns, ctratt,
    nmic, oncs,
};
use polypath_nvme::log::{
    AddressFamily, AnaGroup, AnaLog, AnaState, DiscoveryEntry, DiscoveryLog, SmartLog, SubsystemType, TransportType,
    lid,
};
use polypath_nvme::nqn::Nqn;
use polypath_nvme::reservation::rescap;
use polypath_nvme::sqe::{NSID_ALL, admin, io};
use polypath_nvme::{Sqe, StatusField};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Further CNS values (Base 2.1 figure 309) that Linux and nvme-cli ask for.
const CNS_COMMAND_SET_NAMESPACES: u8 = 0x07;
const CNS_NAMESPACE_CONTROLLERS: u8 = 0x12;
const CNS_CONTROLLERS: u8 = 0x13;
const CNS_COMMAND_SETS: u8 = 0x1c;

pub(super) fn has_write_cache(nvme: &Nvme, controller: &Controller) -> bool {
    let namespaces = nvme.subsystems[controller.subsystem].store.disks();
    nvme.shared.config.volatile_write_cache.unwrap_or_else(|| namespaces.iter().any(|n| n.medium.is_volatile()))
}

/// The 4096 octets of an Identify.
pub(super) fn identify(nvme: &Nvme, controller: &Controller, sqe: &Sqe) -> Result<Vec<u8>, StatusField> {
    let subsystem = &nvme.subsystems[controller.subsystem];
    let namespaces = subsystem.store.disks();
    let nsid = sqe.nsid();
    let find = || namespaces.iter().find(|n| n.nsid == nsid);
    let valid = (1..=1024).contains(&nsid) && !subsystem.discovery;
    let csi = sqe.cdw(11) >> 24;
    let list = || {
        if nsid >= NSID_ALL - 1 {
            return Err(StatusField::INVALID_NAMESPACE);
        }
        Ok(build_namespace_list(namespaces.iter().map(|n| n.nsid), nsid).to_vec())
    };
    match sqe.cns() {
        cns::CONTROLLER => Ok(identify_controller(nvme, controller).to_bytes().to_vec()),
        _ if subsystem.discovery => Err(StatusField::INVALID_FIELD),
        cns::NAMESPACE if nsid == NSID_ALL => Ok(common().to_bytes().to_vec()),
        cns::NAMESPACE if valid => Ok(find().map_or([0; 4096], |n| identify_namespace(n).to_bytes()).to_vec()),
        cns::ACTIVE_NAMESPACES => list(),
        cns::NAMESPACE_DESCRIPTORS => {
            let n = find().ok_or(StatusField::INVALID_NAMESPACE)?;
            let some = |id: [u8; 16]| (id != [0; 16]).then_some(id);
            let eui64 = (n.eui64 != [0; 8]).then_some(n.eui64);
            Ok(NamespaceIds { eui64, nguid: some(n.nguid), uuid: some(n.uuid), csi: Some(0) }.to_bytes().to_vec())
        }
        cns::NAMESPACE_COMMAND_SET if csi == 0 && valid => Ok(vec![0; 4096]),
        cns::CONTROLLER_COMMAND_SET if csi == 0 => Ok(vec![0; 4096]),
        CNS_COMMAND_SET_NAMESPACES if csi == 0 => list(),
        cns::NAMESPACE_INDEPENDENT if valid => {
            let mut page = vec![0; 4096];
            if let Some(n) = find() {
                page[1] = nmic::SHARED;
                page[2] = reservation_capabilities(n);
                page[4..8].copy_from_slice(&n.group.to_le_bytes());
                page[14] = 1; // NSTAT: ready
            }
            Ok(page)
        }
        CNS_NAMESPACE_CONTROLLERS if find().is_none() => Err(StatusField::INVALID_NAMESPACE),
        CNS_CONTROLLERS | CNS_NAMESPACE_CONTROLLERS => {
            let mut page = vec![0; 4096];
            let ids: Vec<u16> =
                lock(&subsystem.controllers).keys().copied().filter(|&id| id >= sqe.cntid()).take(2047).collect();
            page[..2].copy_from_slice(&(ids.len() as u16).to_le_bytes());
            for (slot, id) in page[2..].chunks_exact_mut(2).zip(ids) {
                slot.copy_from_slice(&id.to_le_bytes());
            }
            Ok(page)
        }
        CNS_COMMAND_SETS => {
            let mut page = vec![0; 4096];
            page[0] = 1; // combination 0: the NVM command set
            Ok(page)
        }
        cns::NAMESPACE | cns::NAMESPACE_INDEPENDENT => Err(StatusField::INVALID_NAMESPACE),
        _ => Err(StatusField::INVALID_FIELD),
    }
}

fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    let take = text.len().min(N);
    field[..take].copy_from_slice(&text.as_bytes()[..take]);
    field
}

fn identify_controller(nvme: &Nvme, controller: &Controller) -> IdentifyController {
    let config = &nvme.shared.config;
    let subsystem = &nvme.subsystems[controller.subsystem];
    let mut subnqn = [0; 256];
    subnqn[..subsystem.store.nqn.len()].copy_from_slice(subsystem.store.nqn.as_bytes());
    let mut id = IdentifyController {
        sn: text(&subsystem.store.serial),
        mn: text("Polypath software target"),
        fr: text(env!("CARGO_PKG_VERSION")),
        cmic: cmic::MULTI_PORT | cmic::MULTI_CONTROLLER,
        mdts: (config.mdts_bytes / 4096).trailing_zeros() as u8,
        cntlid: controller.id,
        ver: VERSION,
        rtd3e: 10_000_000,
        ctratt: ctratt::HOST_ID_128 | if config.tbkas { ctratt::TRAFFIC_BASED_KEEP_ALIVE } else { 0 },
        cntrltype: if subsystem.discovery { 2 } else { 1 },
        acl_z: 3,
        aerl_z: EVENT_REQUESTS as u8 - 1,
        frmw: 0b11, // one slot, read-only
        lpa: 0b110, // effects log, offsets into log pages
        kas: (config.kas_ms / 100) as u16,
        cqt_ms: quiesce_time_ms(nvme, controller),
        maxcmd: if subsystem.discovery { ADMIN_ENTRIES } else { config.queue_depth },
        // SGLs without alignment, offsets, transport data blocks.
        sgls: 1 | 1 << 20 | 1 << 21,
        subnqn,
        ..IdentifyController::default()
    };
    if subsystem.discovery {
        id.oaes = EVENT_DISCOVERY;
        id.cmic = 0;
        return id;
    }
    id.oaes = EVENT_NAMESPACE | EVENT_ANA;
    id.cmic |= cmic::ANA;
    id.wctemp = 343;
    id.cctemp = 353;
    id.anatt = 10;
    id.anacap = anacap::OPTIMIZED
        | anacap::NON_OPTIMIZED
        | anacap::INACCESSIBLE
        | anacap::PERSISTENT_LOSS
        | anacap::CHANGE
        | anacap::GROUP_ID_FIXED;
    id.anagrpmax = subsystem.store.groups();
    id.nanagrpid = subsystem.store.groups();
    id.sqes = 0x66;
    id.cqes = 0x44;
    id.nn = 1024;
    id.mnan = 1024;
    id.oncs = oncs::COMPARE | oncs::DATASET_MANAGEMENT | oncs::WRITE_ZEROES | oncs::RESERVATIONS;
    // Flush takes NSID FFFFFFFFh.
    id.vwc = u8::from(has_write_cache(nvme, controller)) | 0b110;
    id.ioccsz = (64 + config.in_capsule) / 16;
    id.iorcsz = 1;
    id.msdbd = 1;
    id.ofcs = 1; // Disconnect of I/O queues
    id
}

/// How long after the end of an association its commands may land at most: what is configured, or what the disks beneath may take.
fn quiesce_time_ms(nvme: &Nvme, controller: &Controller) -> u16 {
    let disks = nvme.subsystems[controller.subsystem].store.disks();
    let beneath = disks.iter().filter_map(|disk| Conn::beneath(disk)).map(|disk| disk.quiesce_time());
    let longest_ms = beneath.max().unwrap_or_default().as_millis();
    nvme.shared.config.cqt_ms.max(u16::try_from(longest_ms).unwrap_or(u16::MAX))
}

fn identify_namespace(n: &Disk) -> IdentifyNamespace {
    let limits = Conn::beneath(n).map(|disk| disk.limits());
    let mut id = IdentifyNamespace {
        nsze: n.blocks,
        ncap: n.blocks,
        nuse: n.blocks,
        nmic: nmic::SHARED,
        rescap: reservation_capabilities(n),
        // Deallocated blocks read as zeroes, or as whatever the disk beneath makes of them.
        dlfeat: u8::from(limits.is_none()),
        nsattr: u8::from(limits.is_some_and(|l| l.read_only)),
        anagrpid: n.group,
        nguid: n.nguid,
        eui64: n.eui64,
        ..IdentifyNamespace::default()
    };
    id.lbaf[0] = LbaFormat { metadata_bytes: 0, block_shift: n.shift as u8, performance: 0 };
    id
}

fn reservation_capabilities(n: &Disk) -> u8 {
    let persist = if n.reservations.can_persist() { rescap::PERSIST } else { 0 };
    persist | rescap::ALL_TYPES | rescap::IGNORE_KEY_1_3
}

/// What all namespaces have in common (NSID FFFFFFFFh).
fn common() -> IdentifyNamespace {
    let mut id = IdentifyNamespace { nlbaf_z: 1, nmic: nmic::SHARED, dlfeat: 1, ..IdentifyNamespace::default() };
    id.lbaf[0].block_shift = 9;
    id.lbaf[1].block_shift = 12;
    id
}

/// A whole log page; the caller cuts out what was asked for.
pub(super) fn log_page(
    nvme: &Nvme,
    controller: &Controller,
    local: Option<SocketAddr>,
    sqe: &Sqe,
) -> Result<Vec<u8>, StatusField> {
    let subsystem = &nvme.subsystems[controller.subsystem];
    match sqe.lid() {
        lid::DISCOVERY if subsystem.discovery => Ok(discovery(nvme, local).to_bytes()),
        lid::ERROR => Ok(vec![0; 64]),
        _ if subsystem.discovery => Err(StatusField::INVALID_LOG_PAGE),
        lid::SMART => Ok(smart(&nvme.shared).to_bytes().to_vec()),
        lid::RESERVATION => Ok(controller.notification(!sqe.rae()).to_bytes().to_vec()),
        lid::FIRMWARE_SLOT => {
            let mut page = vec![0; 512];
            page[0] = 1;
            page[8..16].copy_from_slice(&text::<8>(env!("CARGO_PKG_VERSION")));
            Ok(page)
        }
        lid::CHANGED_NAMESPACES => {
            let mut page = vec![0; 4096];
            let mut changed = lock(&controller.inner).changed.clone();
            changed.sort_unstable();
            for (slot, nsid) in page.as_chunks_mut::<4>().0.iter_mut().zip(changed) {
                *slot = nsid.to_le_bytes();
            }
            Ok(page)
        }
        lid::COMMAND_EFFECTS => {
            let mut page = vec![0; 4096];
            let mut set = |at: usize, opcode: u8, effects: u32| {
                page[at + usize::from(opcode) * 4..][..4].copy_from_slice(&effects.to_le_bytes());
            };
            for opcode in [
                admin::GET_LOG_PAGE,
                admin::IDENTIFY,
                admin::ABORT,
                admin::SET_FEATURES,
                admin::GET_FEATURES,
                admin::ASYNC_EVENT_REQUEST,
                admin::KEEP_ALIVE,
            ] {
                set(0, opcode, 1);
            }
            for opcode in [
                io::READ,
                io::FLUSH,
                io::COMPARE,
                io::RESERVATION_REGISTER,
                io::RESERVATION_REPORT,
                io::RESERVATION_ACQUIRE,
                io::RESERVATION_RELEASE,
            ] {
                set(1024, opcode, 1);
            }
            for opcode in [io::WRITE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT] {
                set(1024, opcode, 3); // supported, changes blocks
            }
            Ok(page)
        }
        lid::ANA => {
            Ok(ana(nvme, controller, &subsystem.store.disks()).to_bytes(sqe.lsp() & AnaLog::LSP_GROUPS_ONLY != 0))
        }
        _ => Err(StatusField::INVALID_LOG_PAGE),
    }
}

fn smart(shared: &Shared) -> SmartLog {
    let cycles = shared.power_cycles.load(Ordering::Relaxed);
    SmartLog {
        temperature_k: 310, // 37 degrees Celsius
        available_spare: 100,
        spare_threshold: 10,
        power_cycles: cycles.into(),
        // One came with the target's start; all others without a word.
        unsafe_shutdowns: (cycles - 1).into(),
        ..SmartLog::default()
    }
}

fn ana(nvme: &Nvme, controller: &Controller, namespaces: &[Arc<Disk>]) -> AnaLog {
    let subsystem = &nvme.subsystems[controller.subsystem];
    let change_count = subsystem.store.access_changes.load(Ordering::Acquire);
    let groups = (1..=subsystem.store.groups())
        .map(|id| AnaGroup {
            id,
            change_count,
            state: AnaState::from_code(subsystem.ana_state(controller.listener, id)).unwrap_or(AnaState::Change),
            nsids: namespaces.iter().filter(|n| n.group == id).map(|n| n.nsid).collect(),
        })
        .collect();
    AnaLog { change_count, groups }
}

fn discovery(nvme: &Nvme, local: Option<SocketAddr>) -> DiscoveryLog {
    let entry = |address: SocketAddr, nqn: &str, subsystem_type, portid| {
        // A listener on all addresses is reached by the one the host has found us at.
        let ip = if address.ip().is_unspecified() { local.map_or(address.ip(), |l| l.ip()) } else { address.ip() };
        Nqn::new(nqn).ok().map(|subnqn| DiscoveryEntry {
            transport: TransportType::Tcp,
            family: if ip.is_ipv4() { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 },
            subsystem_type,
            treq: 1 << 2 | 2, // SQ flow control may be off; no secure channel
            portid,
            cntlid: 0xffff,
            asqsz: ADMIN_ENTRIES,
            eflags: 0,
            traddr: ip.to_string(),
            trsvcid: address.port().to_string(),
            subnqn,
            tcp_security: 0,
        })
    };
    let mut entries = Vec::new();
    for subsystem in nvme.subsystems.iter().filter(|s| !s.discovery) {
        let ours = |l: &&Listener| l.protocol == Protocol::NvmeTcp && !l.closed.load(Ordering::Acquire);
        for (i, listener) in nvme.shared.listeners.iter().enumerate().filter(|(_, l)| ours(l)) {
            entries.extend(entry(listener.address, &subsystem.store.nqn, SubsystemType::Nvm, i as u16 + 1));
        }
    }
    for (i, referral) in nvme.shared.config.referrals.iter().enumerate() {
        if let Ok(address) = referral.parse() {
            entries.extend(entry(address, polypath_nvme::nqn::DISCOVERY_NQN, SubsystemType::Referral, 1000 + i as u16));
        }
    }
    DiscoveryLog { genctr: nvme.discovery_generation.load(Ordering::Acquire), entries, skipped: Vec::new() }
}
