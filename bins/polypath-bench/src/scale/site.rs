//! The serving process as its parent sees it, with all of its guests.

use super::memory::{Load, Memory};
use super::serve::{self, Ready};
use super::{Arrangement, RING, ScaleConfig, ScaleMedium};
use crate::process::Process;
use crate::ring::{DriveConfig, IdleGuest, IdleMemory, Kick, RingReport, Rings, drive};
use anyhow::Context as _;
use polypath_reactor::CpuList;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at a site whose guests have just come: when as many of its pollers rest in both, it has found its rest.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is looked at.
const LOOKS: u32 = 30;

pub(super) struct Site {
    pub(super) arrangement: Arrangement,
    pub(super) ready: Ready,
    /// Until all guests had their rings.
    pub(super) connected: Duration,
    /// Before the process, so that it finds them.
    guests: Vec<IdleGuest>,
    process: Process,
    medium: ScaleMedium,
    folder: Folder,
}

impl Site {
    /// Starts it with its guests, all idle. `portals` are those of a target, `cpus` the cores of the guests and of the busy disk.
    pub(super) fn start(
        medium: ScaleMedium,
        arrangement: Arrangement,
        portals: &[String],
        [near, far]: [usize; 2],
    ) -> anyhow::Result<Site> {
        let folder = Folder::new()?;
        let paths = match medium.local() {
            Some(uri) => vec![uri; arrangement.paths.into()],
            None => portals.iter().take(arrangement.paths.into()).cloned().collect(),
        };
        let mut args = vec!["serve-scale".to_owned(), folder.0.display().to_string()];
        args.push(format!("--disks={}", arrangement.disks));
        args.push(format!("--rings={}", arrangement.rings));
        args.push(format!("--cpus={}", CpuList(if near == far { vec![near] } else { vec![near, far] })));
        args.extend(paths.iter().map(|uri| format!("--path={uri}")));
        let mut process = Process::start("the serving process", &args)?;
        let ready = process.answer().context("starting the disks")?;
        let begin = Instant::now();
        let memory = IdleMemory::new(arrangement.rings, RING)?;
        let guest = |n| IdleGuest::connect(&serve::socket(&folder.0, n), &memory);
        let guests = (0..arrangement.disks).map(guest).collect::<anyhow::Result<Vec<_>>>()?;
        let connected = begin.elapsed();
        let mut site = Site { arrangement, ready, connected, guests, process, medium, folder };
        site.settle()?;
        Ok(site)
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        let mut before: Load = self.process.ask("load")?;
        for _ in 0..LOOKS {
            thread::sleep(LOOK);
            let now: Load = self.process.ask("load")?;
            if now.resting > 0 && now.resting == before.resting {
                break;
            }
            before = now;
        }
        Ok(())
    }

    pub(super) fn memory(&mut self) -> anyhow::Result<Memory> {
        self.process.ask("memory")
    }

    /// Part of a core that it takes while nobody wants anything, in percent over `time`; and its pollers that rest, of all.
    pub(super) fn idle_load(&mut self, time: Duration) -> anyhow::Result<(f64, [u64; 2])> {
        let (begin, before): (_, Load) = (Instant::now(), self.process.ask("load")?);
        thread::sleep(time);
        let after: Load = self.process.ask("load")?;
        let taken = after.cpu_ns.saturating_sub(before.cpu_ns) as f64 / begin.elapsed().as_nanos().max(1) as f64;
        Ok((taken * 100.0, [after.resting, after.pollers]))
    }

    /// The guest of the first disk goes; a busy one may come.
    pub(super) fn make_room(&mut self) {
        self.guests.drain(..1.min(self.guests.len()));
    }

    /// Drives the first disk while `other` is stopped.
    pub(super) fn drive(&self, config: &ScaleConfig, qd: u16, cpu: usize, other: &Site) -> anyhow::Result<RingReport> {
        let drive = || {
            drive(&DriveConfig {
                qd,
                time: config.time,
                ramp: config.ramp,
                cpu: Some(cpu),
                kick: Kick::Asked,
                rings: Rings { size: Some(RING), idle: self.arrangement.rings - 1 },
                // The target needs that core, too.
                yields: self.medium == ScaleMedium::Tcp,
                ..DriveConfig::new(serve::socket(&self.folder.0, 0))
            })
        };
        other.process.stopped(drive)
    }

    /// Ends it: the guests go, then the disks.
    pub(super) fn end(mut self) -> anyhow::Result<Duration> {
        self.guests.clear();
        let begin = Instant::now();
        self.process.end()?;
        Ok(begin.elapsed())
    }
}

/// Of the sockets, gone with this value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Folder> {
        let name = format!("polypath-bench-scale-{}-{:x}", std::process::id(), rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "cannot be removed");
        }
    }
}
