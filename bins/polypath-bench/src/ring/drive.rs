//! `drive`: the front-end against whoever listens on a vhost-user socket.

use super::control::Control;
use super::front_end::FrontEnd;
use super::measure::{Driver, Plan, RingReport};
use super::memory::RingMemory;
use super::{Kick, Rings, Style};
use crate::cpu;
use anyhow::Context as _;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::AsFd as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// What to measure.
#[derive(Clone, Debug)]
pub struct DriveConfig {
    /// Where the back-end listens. It should poll, on another core.
    pub socket: PathBuf,
    /// Requests outstanding, 1 ..= [`super::MAX_QD`].
    pub qd: u16,
    /// How long to measure.
    pub time: Duration,
    /// How long to run before that.
    pub ramp: Duration,
    /// The front-end's core; the first that is allowed if not given.
    pub cpu: Option<usize>,
    /// How requests are put into the ring.
    pub style: Style,
    /// When the back-end is kicked: one that sleeps must be.
    pub kick: Kick,
    /// Rings to set up.
    pub rings: Rings,
    /// Let others have the core whenever nothing has come: for a core that the back-end's own disk needs, too.
    pub yields: bool,
}

impl DriveConfig {
    /// One request at a time for two seconds, against a back-end that polls at `socket`.
    pub fn new(socket: PathBuf) -> DriveConfig {
        DriveConfig {
            socket,
            qd: 1,
            time: Duration::from_secs(2),
            ramp: Duration::from_millis(300),
            cpu: None,
            style: Style::default(),
            kick: Kick::default(),
            rings: Rings::default(),
            yields: false,
        }
    }
}

/// Sets up one ring, reads blocks of 4 KiB anywhere on the disk, and measures.
///
/// # Errors
/// When there is nothing to measure, no back-end, or one that breaks the rules or falls silent. Requests that fail are in the report.
pub fn drive(config: &DriveConfig) -> anyhow::Result<RingReport> {
    anyhow::ensure!(
        !config.time.is_zero(),
        "--time 0 leaves nothing to measure; expected some time, such as 5 or 500ms"
    );
    let memory = RingMemory::new(config.qd, config.style, config.rings)?;
    let mut control = Control::connect(&config.socket, config.style)?;
    let cpu = config.cpu.unwrap_or_else(|| cpu::two(None).0);
    let plan = Plan { cpu, time: config.time, ramp: config.ramp, kick: config.kick, yields: config.yields };
    let driver = Driver::new(FrontEnd::new(memory, control.bytes), plan)?;
    let driver = driver.with_event_idx(control.event_idx);
    // Nobody listens: this side is not to be called.
    let call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?;
    let memory = driver.front_end().memory();
    control
        .share(memory)
        .and_then(|()| control.start(0, memory, driver.kick_fd(), call.as_fd()))
        .and_then(|()| (1..=config.rings.idle).try_for_each(|index| control.start_idle(index, memory, call.as_fd())))
        .with_context(|| format!("{}: setting up a ring", config.socket.display()))?;
    // A thread of its own, so that the caller keeps its affinity.
    let driven = thread::Builder::new().name("drive".into()).spawn(move || driver.run())?;
    let driven = driven.join().map_err(|_| anyhow::anyhow!("the thread of the front-end panicked"))?;
    let mut report = driven.with_context(|| config.socket.display().to_string())?;
    // Whoever hangs, or does what it likes, is left without a word: it would not answer.
    let stopped = if report.unanswered == 0 { control.stop(1 + config.rings.idle) } else { Ok(()) };
    stopped.with_context(|| format!("{}: taking the ring back", config.socket.display()))?;
    report.mode = "ring-drive".into();
    report.back_end = config.socket.display().to_string();
    report.event_idx = control.event_idx;
    Ok(report)
}
