//! Queues that answer in the same turn: of the null disk, and of groups over it.

use crate::counted::counted;
use crate::guest::{DEPTH, Guest, get_ready};
use anyhow::{Result, ensure};
use polypath_block::{Device, DiskUri, Op, QueueConfig};
use polypath_multipath::{Group, GroupConfig, PathConfig, SelectorKind};
use std::sync::Arc;

/// A null disk; all of them say that they are the same.
pub(crate) fn null_disk() -> Result<Arc<dyn Device>> {
    let uri: DiskUri = "null://1TiB?uuid=7d5f51a4-2f0c-4e0e-9d3a-3c1b7f6a9e10".parse()?;
    Ok(polypath_local::open(&uri)?)
}

pub(crate) fn null(rounds: u64) -> Result<()> {
    measure(&*null_disk()?, rounds)
}

pub(crate) fn group(paths: usize, selector: SelectorKind, rounds: u64) -> Result<()> {
    let mut config = GroupConfig::new("disk");
    config.selector = selector;
    let group = Group::new(config);
    for path in 0..paths {
        group.add_path(PathConfig { name: path.to_string(), ..PathConfig::new(null_disk()?) })?;
    }
    measure(&*group, rounds)
}

/// A round: 32 reads in, a kick, a poll, all of them out.
fn measure(device: &dyn Device, rounds: u64) -> Result<()> {
    let mut guest = Guest::new(Op::Read)?;
    let mut queue = device.open_queue(QueueConfig { depth: DEPTH })?;
    // Paths open their queues in turns of the group's.
    get_ready(&mut guest, &mut *queue, |_| ())?;
    for _ in 0..rounds {
        guest.move_on();
        guest.pass();
        counted(|| {
            let submitted = guest.submit(&mut *queue);
            guest.kick(&mut *queue);
            guest.poll(&mut *queue);
            submitted
        })?;
        let completed = guest.take_completions()?;
        ensure!(completed == u64::from(DEPTH), "{completed} of {DEPTH} requests completed in their turn");
    }
    Ok(())
}
