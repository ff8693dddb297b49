//! Threads that have disks beneath are reactors of a stack.

use super::StartError;
use crate::config::{Backing, ConfigError, TargetConfig};
use crate::media::Beneath;
use crate::media::beneath::Engine;
use crate::shell::{Reactive, Seat, Shell};
use polypath::{CpuList, IdlePolicy, Stack, StackConfig};
use polypath_block::{Armed, Cx, Poller, Turn, Waits};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

/// How long what is under way beneath may take when the target ends.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);
/// How long disks beneath may take to say goodbye.
const GOODBYE_LIMIT: Duration = Duration::from_secs(5);
/// How long a reactor may take to begin.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A stack with as many reactors as the target has threads, if it has disks beneath at all.
pub(super) fn stack(config: &TargetConfig) -> Result<Option<Stack>, StartError> {
    let mut disks = 0;
    for sub in &config.subsystems {
        disks += sub.plan()?.iter().filter(|plan| matches!(plan.backing, Backing::Beneath(_))).count() as u64;
    }
    if disks == 0 {
        return Ok(None);
    }
    let config = StackConfig {
        cpus: cpus(config)?,
        idle: IdlePolicy::Adaptive { max_spin_us: u32::try_from(config.spin_us).unwrap_or(u32::MAX) },
        buffer_bytes: disks * config.threads as u64 * Engine::BYTES,
        huge_pages: false,
    };
    Stack::start(config).map(Some).map_err(|e| system("reactors", &e))
}

/// A reactor of several is pinned: to what is configured, or to the first CPUs there are.
fn cpus(config: &TargetConfig) -> Result<Option<CpuList>, StartError> {
    let threads = config.threads;
    if threads == 1 && config.cpus.is_empty() {
        return Ok(None);
    }
    let cpus = match &config.cpus[..] {
        [] => {
            let allowed = rustix::thread::sched_getaffinity(None).map_err(|e| system("CPUs", &e))?;
            (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).take(threads).collect()
        }
        given => given.iter().copied().take(threads).collect::<Vec<_>>(),
    };
    if cpus.len() < threads {
        let problem = format!("{threads} threads with a disk beneath need a CPU each, and there are {}", cpus.len());
        return Err(ConfigError::new("threads", problem).into());
    }
    Ok(Some(CpuList(cpus)))
}

fn system(what: &str, error: &dyn std::fmt::Display) -> StartError {
    StartError::System { what: what.into(), source: io::Error::other(error.to_string()) }
}

/// The threads of a target with disks beneath.
pub(super) struct Reactors {
    stack: Stack,
    /// Says that all shells have ended.
    alive: Receiver<()>,
}

impl Reactors {
    /// Puts each shell on a reactor of its own, with queues of all disks.
    pub(super) fn start(stack: Stack, seats: Vec<Seat>, media: &[Arc<Beneath>]) -> Result<Reactors, StartError> {
        let (keep, alive) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let arena = stack.arena().map_err(|e| system("memory", &e))?;
        let count = seats.len();
        for (seat, host) in seats.into_iter().zip(stack.hosts()) {
            let (keep, tell, arena, media) = (keep.clone(), tell.clone(), arena.clone(), media.to_vec());
            host.spawn(Box::new(move |cx| {
                let made = Engine::open(cx, &media, &arena)
                    .and_then(|engine| Reactive::new(Shell::new(seat), engine, keep).map_err(|e| e.to_string()));
                let (answer, poller): (_, Box<dyn Poller>) = match made {
                    Ok(reactive) => (Ok(()), Box::new(reactive)),
                    Err(error) => (Err(error), Box::new(Ended)),
                };
                // Whoever starts waits for it.
                let _ = tell.send(answer);
                poller
            }));
        }
        drop((keep, tell));
        let reactors = Reactors { stack, alive };
        for _ in 0..count {
            let failed = match told.recv_timeout(START_LIMIT) {
                Ok(Ok(())) => continue,
                Ok(Err(problem)) => problem,
                Err(_) => "a reactor does not begin".into(),
            };
            return Err(system("a queue of a disk beneath", &failed));
        }
        Ok(reactors)
    }

    /// After the shells were told to stop: waits for what is under way, and closes the disks.
    pub(super) fn end(self, media: &[Arc<Beneath>]) {
        let drained = self.alive.recv_timeout(DRAIN_LIMIT) == Err(RecvTimeoutError::Disconnected);
        media.iter().for_each(|disk| disk.close());
        if !drained || !self.stack.stop(GOODBYE_LIMIT) {
            tracing::warn!("the target ends while a disk beneath has not ended");
        }
        if !drained {
            // What is in flight may still touch its memory: that stays, and so do those who know of it.
            std::mem::forget(self.stack);
        }
    }
}

/// A poller in place of one that could not be made.
struct Ended;

impl Poller for Ended {
    fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
        Turn::Finished
    }

    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Busy
    }

    fn name(&self) -> &str {
        "target (no queue)"
    }
}
