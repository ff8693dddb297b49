//! Opening disks beneath.

use super::Beneath;
use polypath::{GroupSpec, Stack, wait_group_live, wait_live};
use polypath_block::{Device, DiskUri, Identifier, Scheme};
use std::sync::Arc;
use std::time::Duration;

/// How long a disk has to answer when the target starts.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// Which disk, and how it is to be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    /// One URI, or several paths to one disk.
    pub(crate) paths: Vec<DiskUri>,
    /// How long a request waits there while no path is usable, in milliseconds.
    pub(crate) no_path_timeout_ms: u64,
}

/// Opens a disk and waits for it. Blocks: not for a reactor.
///
/// # Errors
/// For people: what does not do, or what kept it from answering.
pub(crate) fn open(stack: &Stack, index: usize, source: &Source) -> Result<Arc<Beneath>, String> {
    let (device, info, patience): (Arc<dyn Device>, _, _) = match &source.paths[..] {
        // What may be lost and come back is a group, which waits and sends again.
        [uri] if !matches!(uri.scheme, Scheme::NvmeTcp | Scheme::Iscsi) => {
            let device = stack.open_device(uri).map_err(|e| e.to_string())?;
            let live = wait_live(&*device, ANSWER_LIMIT);
            (device.clone(), closed_unless(live, &*device)?, Duration::ZERO)
        }
        paths => {
            let spec =
                GroupSpec { no_path_timeout_ms: source.no_path_timeout_ms, ..GroupSpec::new("", paths.to_vec()) };
            let group = stack.open_group(spec).map_err(|e| e.to_string())?;
            let live = wait_group_live(&group, ANSWER_LIMIT);
            (group.clone(), closed_unless(live, &*group)?, Duration::from_millis(source.no_path_timeout_ms))
        }
    };
    let (blocks, block, limits) = (info.geometry.blocks, info.geometry.block_size, info.limits);
    tracing::info!(disk = device.name(), blocks, block, ?limits, identity = ?info.identity.identifiers, "disk opened");
    Ok(Arc::new(Beneath::new(index, device, info, patience)))
}

fn closed_unless<T>(live: Result<T, polypath::Error>, device: &dyn Device) -> Result<T, String> {
    live.map_err(|error| {
        device.close();
        error.to_string()
    })
}

/// Who a disk is, in the words that NVMe has; what is not there is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Identities {
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) eui64: [u8; 8],
}

impl Identities {
    /// What `list` shows worldwide. A disk that shows an NAA designator only, which NVMe has no word for, gets a UUID that `derive` makes of
    /// that: the same through every target. `None`: it shows nothing.
    pub(crate) fn of(list: &[Identifier], derive: impl Fn(&str) -> [u8; 16]) -> Option<Identities> {
        let mut ids = Identities::default();
        let mut naa = None;
        for identifier in list.iter().filter(|i| i.is_worldwide()) {
            match identifier {
                Identifier::Uuid(uuid) => ids.uuid = *uuid,
                Identifier::Nguid(nguid) => ids.nguid = *nguid,
                Identifier::Eui64(eui64) => ids.eui64 = *eui64,
                Identifier::Naa(_) => naa = Some(identifier.to_string()),
                _ => {}
            }
        }
        if ids == Identities::default() {
            ids.uuid = derive(&naa?);
        }
        Some(ids)
    }
}
