//! `serve-scale`: disks as `polypathd` has them, in a process of its own that says what they cost it.

use super::limits;
use super::memory::{Load, Memory};
use super::{RING, ms};
use crate::output;
use crate::process::answer_all;
use anyhow::Context as _;
use polypath::vhost_user_blk::{Server, ServerConfig};
use polypath::{GroupSpec, PathSpec, Stack, StackConfig, wait_group_live};
use polypath_block::{Device as _, DiskUri, Scheme};
use polypath_multipath::Group;
use polypath_reactor::CpuList;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the disks may take to come up, all together.
const LIVE_LIMIT: Duration = Duration::from_secs(120);
/// How long they may take to end.
const END_LIMIT: Duration = Duration::from_secs(30);

/// What to serve.
#[derive(Clone, Debug)]
pub struct SiteConfig {
    /// Where the sockets are made.
    pub folder: PathBuf,
    /// How many disks.
    pub disks: u32,
    /// Rings of each.
    pub rings: u16,
    /// The paths of each; to those over NVMe/TCP the number of the disk is added as that of the namespace.
    pub paths: Vec<DiskUri>,
    /// Cores of the reactors; the first ring of the first disk is on the last of them.
    pub cpus: CpuList,
}

/// What it says when it is ready.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    /// Before the first disk.
    pub(super) empty: Memory,
    /// Until all disks were there, each with all of its paths.
    pub(super) live_ms: f64,
    /// Until all were served.
    pub(super) served_ms: f64,
}

/// The socket of disk `n`.
pub(super) fn socket(folder: &Path, n: u32) -> PathBuf {
    folder.join(format!("d{n}"))
}

/// Serves until standard input ends. Says `Ready`; answers `memory` and `load`.
///
/// # Errors
/// When the reactors, a disk or a server cannot be had.
pub fn serve(config: &SiteConfig) -> anyhow::Result<()> {
    limits::raise_descriptors()?;
    let stack = Stack::start(StackConfig { cpus: Some(config.cpus.clone()), ..StackConfig::default() })?;
    let empty = Memory::now()?;
    let begin = Instant::now();
    let groups = open(&stack, config)?;
    let live_ms = ms(begin.elapsed());
    let servers = groups.iter().enumerate().map(|(n, group)| start(&stack, config, n as u32, group));
    let mut servers = servers.collect::<anyhow::Result<Vec<Server>>>()?;
    let served_ms = ms(begin.elapsed());
    output::line(serde_json::to_string(&Ready { empty, live_ms, served_ms })?)?;
    answer_all(|question| {
        Ok(match question {
            "memory" => serde_json::to_string(&Memory::now()?)?,
            "load" => serde_json::to_string(&Load::now(&stack))?,
            _ => anyhow::bail!("{question:?} is no question to a site"),
        })
    })?;
    for server in &mut servers {
        server.stop()?;
    }
    groups.iter().for_each(|group| group.close());
    anyhow::ensure!(stack.stop(END_LIMIT), "the reactors did not come to their end within {END_LIMIT:?}");
    Ok(())
}

/// All disks at once, then waits for all.
fn open(stack: &Stack, config: &SiteConfig) -> anyhow::Result<Vec<Arc<Group>>> {
    let until = Instant::now() + LIVE_LIMIT;
    let mut groups = Vec::new();
    for n in 0..config.disks {
        let mut spec = GroupSpec::new(format!("d{n}"), []);
        for (number, uri) in config.paths.iter().enumerate() {
            let uri = match uri.scheme {
                Scheme::NvmeTcp => format!("{uri}?ns={}", n + 1).parse()?,
                _ => uri.clone(),
            };
            // Those of this process differ in nothing but their names.
            spec.paths.push(PathSpec { name: Some(format!("path{number}")), ..PathSpec::new(uri) });
        }
        groups.push(stack.open_group(spec)?);
    }
    for group in &groups {
        wait_group_live(group, until.saturating_duration_since(Instant::now()))?;
        wait_paths(group, until)?;
    }
    Ok(groups)
}

/// Waits until all paths of `group` take I/O.
fn wait_paths(group: &Group, until: Instant) -> anyhow::Result<()> {
    loop {
        group.refresh();
        let missing = group.statistics().into_iter().find(|p| !p.access.is_some_and(polypath_block::Access::usable));
        let Some(path) = missing else { return Ok(()) };
        let name = group.name();
        anyhow::ensure!(Instant::now() < until, "{name}: {} is {:?} ({})", path.name, path.state, path.why);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn start(stack: &Stack, config: &SiteConfig, n: u32, group: &Arc<Group>) -> anyhow::Result<Server> {
    let mut hosts = stack.hosts();
    // Disks take turns, as those of `polypathd` do. The last core begins: the guests of the first disk, the busy one, have the first.
    let turn = (hosts.len() - 1 + n as usize * usize::from(config.rings)) % hosts.len();
    hosts.rotate_left(turn);
    let server = ServerConfig {
        num_queues: config.rings,
        queue_size: RING,
        ..ServerConfig::new(format!("d{n}"), socket(&config.folder, n), group.clone(), hosts)
    };
    Server::start(server).with_context(|| format!("serving disk {n}"))
}
