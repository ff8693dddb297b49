//! From Identify data to what the contract calls a device.

use crate::association::Namespace;
use polypath_block::{Access, CacheDomain, Code, DeviceInfo, Geometry, Identifier, Identity, Limits};
use polypath_nvme::identify::{IdentifyController, IdentifyNamespace, NamespaceIds, oncs};
use polypath_nvme::log::{AnaLog, AnaState};
use std::sync::Arc;

/// Most bytes in one command whatever the controller would take: larger requests are split, and no command holds the wire for long.
const MOST_BYTES: u64 = 1 << 20;
/// NLB has 16 bits and is zero-based.
const MOST_BLOCKS: u64 = 1 << 16;

/// What is known of the controller when namespaces are looked at.
#[derive(Clone, Debug)]
pub(crate) struct ControllerView {
    pub(crate) identify: IdentifyController,
    /// 12 + CAP.MPSMIN.
    pub(crate) page_shift_min: u8,
    pub(crate) subnqn: String,
    pub(crate) queues: u16,
    pub(crate) depth: u16,
    /// How often it lost its power so far, if it has a volatile cache and tells.
    pub(crate) power: Option<PowerHistory>,
}

/// What is known of a controller's losses of power (SMART log, Base 2.1 section 5.1.12.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PowerHistory {
    /// What it counts.
    Counted { cycles: u128, unsafe_shutdowns: u128 },
    /// It told once, and refused to at the beginning of this association: its power may have been lost since.
    Untold { association: u64 },
}

impl std::fmt::Display for PowerHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PowerHistory::Counted { cycles, unsafe_shutdowns } => write!(f, "{cycles}.{unsafe_shutdowns}"),
            PowerHistory::Untold { association } => write!(f, "untold.{association}"),
        }
    }
}

/// Access that an ANA state means.
pub(crate) fn access(state: AnaState) -> Access {
    match state {
        AnaState::Optimized => Access::Optimized,
        AnaState::NonOptimized => Access::NonOptimized,
        AnaState::Inaccessible => Access::Inaccessible,
        AnaState::PersistentLoss => Access::PersistentLoss,
        AnaState::Change => Access::Change,
    }
}

/// Access to a namespace by the ANA log: by the group that lists it, or by the group it named itself where no group does. The list wins
/// because it is of now: a namespace may have moved to another group since it was identified, and not every controller tells.
/// A namespace that the log does not know cannot be used for now.
pub(crate) fn access_of(log: Option<&AnaLog>, group: u32, nsid: u32) -> Access {
    match log {
        None => Access::Optimized,
        Some(log) => match log.namespace_state(nsid).or_else(|| log.group_state(group)) {
            Some(state) => access(state),
            None => Access::Inaccessible,
        },
    }
}

/// The same namespace with the access that `log` gives now.
pub(crate) fn with_access(mut namespace: Namespace, log: Option<&AnaLog>, nsid: u32) -> Namespace {
    let access = access_of(log, namespace.ana_group, nsid);
    if access != namespace.info.access {
        let mut info = (*namespace.info).clone();
        info.access = access;
        namespace.info = Arc::new(info);
    }
    namespace
}

/// The namespace as a device. What it cannot be used for is said in `trouble`, not hidden.
pub(crate) fn describe(
    view: &ControllerView,
    nsid: u32,
    ns: &IdentifyNamespace,
    ids: &NamespaceIds,
    ana: Option<&AnaLog>,
) -> Namespace {
    let mut trouble = None;
    let mut refuse = |why: String| trouble = Some((Code::Unsupported, format!("namespace {nsid}: {why}")));
    let format = match ns.lba_format() {
        Ok(format) => format,
        Err(error) => {
            refuse(error.to_string());
            Default::default()
        }
    };
    let geometry = Geometry { block_size: u32::try_from(format.block_bytes()).unwrap_or(u32::MAX), blocks: ns.nsze };
    if let Err(error) = geometry.check() {
        refuse(error.to_string());
    } else if format.metadata_bytes != 0 || ns.dps & 7 != 0 {
        let bytes = format.metadata_bytes;
        refuse(format!(
            "it is formatted with {bytes} bytes of metadata a block or with protection; reformat it without"
        ));
    } else if ids.csi.is_some_and(|csi| csi != 0) {
        refuse("its command set is not the NVM command set".into());
    }
    let info = DeviceInfo {
        geometry,
        limits: limits(view, ns, geometry.block_size.max(512)),
        identity: identity(view, nsid, ns, ids),
        access: access_of(ana, ns.anagrpid, nsid),
        max_queues: view.queues,
        max_depth: view.depth,
    };
    Namespace { info: Arc::new(info), ana_group: ns.anagrpid, rescap: ns.rescap, trouble }
}

fn limits(view: &ControllerView, ns: &IdentifyNamespace, block_size: u32) -> Limits {
    let block = u64::from(block_size);
    let mdts = view.identify.max_transfer_bytes(view.page_shift_min).unwrap_or(u64::MAX);
    let bytes = mdts.min(MOST_BYTES).min(MOST_BLOCKS * block).max(block) / block * block;
    let can = |bit: u16| view.identify.oncs & bit != 0;
    let zeroes = (mdts / block).clamp(1, MOST_BLOCKS) as u32;
    let (granularity, optimal) = if ns.has_preferences() {
        (u32::from(ns.npdg_z) + 1, u32::from(ns.nows_z) + 1)
    } else {
        (1, u32::from(ns.noiob))
    };
    Limits {
        max_transfer_bytes: bytes as u32,
        max_segments: 0,
        max_write_zeroes_blocks: if can(oncs::WRITE_ZEROES) { zeroes } else { 0 },
        max_discard_blocks: if can(oncs::DATASET_MANAGEMENT) { u32::MAX } else { 0 },
        discard_granularity_blocks: granularity,
        optimal_blocks: if optimal > 1 { optimal } else { 0 },
        write_cache: view.identify.has_volatile_write_cache(),
        fua: true,
        compare: can(oncs::COMPARE),
        // Fused commands are not sent.
        max_compare_and_write_blocks: 0,
        read_only: ns.nsattr & 1 != 0,
    }
}

fn identity(view: &ControllerView, nsid: u32, ns: &IdentifyNamespace, ids: &NamespaceIds) -> Identity {
    let some16 = |id: [u8; 16]| id.iter().any(|&b| b != 0).then_some(id);
    let some8 = |id: [u8; 8]| id.iter().any(|&b| b != 0).then_some(id);
    let mut identifiers = Vec::new();
    identifiers.extend(ids.nguid.or_else(|| some16(ns.nguid)).map(Identifier::Nguid));
    identifiers.extend(ids.eui64.or_else(|| some8(ns.eui64)).map(Identifier::Eui64));
    identifiers.extend(ids.uuid.map(Identifier::Uuid));
    if identifiers.is_empty() {
        // Nothing that makes two paths one disk; enough to notice that another one answers here.
        identifiers.push(Identifier::Place(format!("{} {} {nsid}", view.subnqn, view.identify.serial())));
    }
    let place = format!("nvme:{}:{}", view.subnqn, view.identify.serial());
    // Always said, so that a serial number is not taken for it.
    let power_cycle = view.power.map_or_else(String::new, |power| power.to_string());
    Identity { identifiers, cache_domain: CacheDomain::since(&place, &power_cycle) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_nvme::identify::LbaFormat;
    use polypath_nvme::log::AnaGroup;

    fn view() -> ControllerView {
        let mut identify = IdentifyController { oncs: 0xd, mdts: 5, vwc: 1, ..Default::default() };
        identify.set_names("SERIAL", "model", "fw");
        ControllerView { identify, page_shift_min: 12, subnqn: "nqn.s".into(), queues: 4, depth: 127, power: None }
    }

    fn namespace() -> IdentifyNamespace {
        let mut ns = IdentifyNamespace { nsze: 1000, anagrpid: 2, nguid: [7; 16], ..Default::default() };
        ns.lbaf[0] = LbaFormat { metadata_bytes: 0, block_shift: 12, performance: 0 };
        ns
    }

    #[test]
    fn a_plain_namespace() {
        let ids = NamespaceIds { uuid: Some([9; 16]), ..Default::default() };
        let n = describe(&view(), 1, &namespace(), &ids, None);
        assert_eq!(n.trouble, None);
        assert_eq!(n.info.geometry, Geometry { block_size: 4096, blocks: 1000 });
        let l = n.info.limits;
        assert_eq!((l.max_transfer_bytes, l.max_write_zeroes_blocks, l.max_discard_blocks), (128 << 10, 32, u32::MAX));
        assert!(l.compare && l.write_cache && l.fua && !l.read_only);
        assert_eq!(n.info.identity.identifiers, [Identifier::Nguid([7; 16]), Identifier::Uuid([9; 16])]);
        assert_eq!(n.info.identity.cache_domain.place(), "nvme:nqn.s:SERIAL");
        assert_eq!((n.info.access, n.info.max_queues, n.info.max_depth), (Access::Optimized, 4, 127));
    }

    #[test]
    fn what_the_controller_can_not_do_is_not_asked_of_it() {
        let can = |oncs| {
            let mut view = view();
            view.identify.oncs = oncs;
            let l = describe(&view, 1, &namespace(), &NamespaceIds::default(), None).info.limits;
            (l.max_write_zeroes_blocks > 0, l.max_discard_blocks > 0, l.compare)
        };
        assert_eq!(can(0), (false, false, false));
        assert_eq!(can(oncs::WRITE_ZEROES), (true, false, false));
        assert_eq!(can(oncs::DATASET_MANAGEMENT), (false, true, false));
        assert_eq!(can(oncs::COMPARE), (false, false, true));
    }

    #[test]
    fn what_the_namespace_prefers_is_passed_on() {
        let limits = |ns: IdentifyNamespace| describe(&view(), 1, &ns, &NamespaceIds::default(), None).info.limits;
        let sizes = |ns| {
            let l = limits(ns);
            (l.discard_granularity_blocks, l.optimal_blocks)
        };
        for (noiob, optimal) in [(0, 0), (1, 0), (2, 2), (64, 64)] {
            assert_eq!(sizes(IdentifyNamespace { noiob, ..namespace() }), (1, optimal), "{noiob}");
        }
        // Its own words count for more, and are zero-based.
        let prefers = |npdg_z, nows_z| IdentifyNamespace { nsfeat: 1 << 4, noiob: 64, npdg_z, nows_z, ..namespace() };
        assert_eq!((sizes(prefers(7, 15)), sizes(prefers(0, 0))), ((8, 16), (1, 0)));
        assert!(limits(IdentifyNamespace { nsattr: 1, ..namespace() }).read_only);
        assert!(!limits(IdentifyNamespace { nsattr: 2, ..namespace() }).read_only);
    }

    #[test]
    fn identifiers_come_from_the_descriptors_and_else_from_identify() {
        let ns = IdentifyNamespace { eui64: [0, 0, 0, 0, 0, 0, 0, 3], ..namespace() };
        let of = |ns: &IdentifyNamespace, ids: &NamespaceIds| {
            describe(&view(), 1, ns, ids, None).info.identity.identifiers.clone()
        };
        let none = NamespaceIds::default();
        let (nguid, eui64) = (Identifier::Nguid([7; 16]), Identifier::Eui64([0, 0, 0, 0, 0, 0, 0, 3]));
        assert_eq!(of(&ns, &none), [nguid, eui64.clone()]);
        assert_eq!(of(&IdentifyNamespace { nguid: [0; 16], ..ns.clone() }, &none), vec![eui64.clone()]);
        let ids = NamespaceIds { nguid: Some([8; 16]), ..none };
        assert_eq!(of(&ns, &ids), [Identifier::Nguid([8; 16]), eui64]);
    }

    #[test]
    fn a_cache_that_lost_its_power_is_another_one() {
        let domain = |power| {
            let view = ControllerView { power, ..view() };
            describe(&view, 1, &namespace(), &NamespaceIds::default(), None).info.identity.cache_domain.clone()
        };
        let after = |cycles, unsafe_shutdowns| domain(Some(PowerHistory::Counted { cycles, unsafe_shutdowns }));
        assert_eq!(after(3, 1), after(3, 1));
        assert!(after(3, 1) != after(4, 1) && after(3, 1) != after(3, 2));
        let untold = |association| domain(Some(PowerHistory::Untold { association }));
        assert!(untold(1) != untold(2) && untold(1) != after(3, 1), "nobody knows whether it is the same");
        assert!([domain(None), untold(1)].iter().all(|d| d.place() == after(3, 1).place()), "at the same place");
    }

    #[test]
    fn a_namespace_without_identifiers_is_known_by_its_place() {
        let nameless = IdentifyNamespace { nguid: [0; 16], ..namespace() };
        let of = |view: &ControllerView, nsid| {
            describe(view, nsid, &nameless, &NamespaceIds::default(), None).info.identity.clone()
        };
        let first = of(&view(), 1);
        let trouble = |later: &Identity| crate::association::another(1, &first, later).is_some();
        assert!(!trouble(&of(&view(), 1)), "the same place");
        let mut other = view();
        other.identify.set_names("ANOTHER", "model", "fw");
        assert!(trouble(&of(&other, 1)), "another serial number");
        assert!(trouble(&of(&ControllerView { subnqn: "nqn.t".into(), ..view() }, 1)), "another subsystem");
        assert!(trouble(&of(&view(), 2)), "another number");
        assert_eq!(first.compare(&first), polypath_block::Verdict::Unknown, "a place makes no two paths one disk");
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let none = NamespaceIds::default();
        let trouble =
            |ns: &IdentifyNamespace, ids: &NamespaceIds| describe(&view(), 3, ns, ids, None).trouble.unwrap().1;
        let mut ns = namespace();
        ns.lbaf[0].metadata_bytes = 8;
        assert!(trouble(&ns, &none).contains("metadata"));
        ns = namespace();
        ns.dps = 1;
        assert!(trouble(&ns, &none).contains("protection"));
        ns = namespace();
        ns.lbaf[0].block_shift = 3;
        assert!(trouble(&ns, &none).contains("namespace 3"));
        ns.lbaf[0].block_shift = 31;
        assert!(trouble(&ns, &none).contains("block_size"));
        let zoned = NamespaceIds { csi: Some(2), ..none };
        assert!(trouble(&namespace(), &zoned).contains("command set"));
    }

    #[test]
    fn a_namespace_that_moved_to_another_ana_group_is_judged_by_the_log() {
        let group = |id, state, nsids: &[u32]| AnaGroup { id, change_count: 0, state, nsids: nsids.to_vec() };
        let log = AnaLog {
            change_count: 1,
            groups: vec![group(1, AnaState::Optimized, &[1]), group(2, AnaState::Change, &[5, 6])],
        };
        assert_eq!(access_of(Some(&log), 1, 9), Access::Optimized, "listed nowhere: by the group it named");
        assert_eq!(access_of(Some(&log), 2, 1), Access::Optimized, "group 1 lists it, whatever it named itself once");
        assert_eq!(access_of(Some(&log), 0, 6), Access::Change);
        assert_eq!(access_of(Some(&log), 7, 9), Access::Inaccessible);
        assert_eq!(access_of(None, 7, 9), Access::Optimized);
    }
}
