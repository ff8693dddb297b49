//! `limit --ring`: the front-end on one core, the bare back-end on another.

use super::back_end::BareBackEnd;
use super::front_end::FrontEnd;
use super::measure::{Driver, Plan, RingReport};
use super::memory::RingMemory;
use super::{Kick, Medium, RAM_BYTES, Rings, Style};
use crate::cpu::{self, CoreWait};
use anyhow::Context as _;
use polypath_reactor::CpuList;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// What to measure.
#[derive(Clone, Debug)]
pub struct RingLimitConfig {
    /// Requests outstanding, 1 ..= [`super::MAX_QD`].
    pub qd: u16,
    /// How long to measure.
    pub time: Duration,
    /// How long to run before that.
    pub ramp: Duration,
    /// Front-end's and back-end's core; the first two that are allowed if not given.
    pub cpus: Option<CpuList>,
    /// What the bare back-end has behind it.
    pub medium: Medium,
    /// How requests are put into the ring.
    pub style: Style,
}

/// Measures. Both threads poll.
///
/// # Errors
/// When there is nothing to measure, or no memory or core to be had.
pub fn limit(config: &RingLimitConfig) -> anyhow::Result<RingReport> {
    anyhow::ensure!(
        !config.time.is_zero(),
        "--time 0 leaves nothing to measure; expected some time, such as 5 or 500ms"
    );
    let (near, far) = cpu::two(config.cpus.as_ref());
    let memory = RingMemory::new(config.qd, config.style, Rings::default())?;
    let mut back_end = BareBackEnd::new(memory.window.clone(), memory.layout, config.qd, config.medium)?;
    let plan = Plan { cpu: near, time: config.time, ramp: config.ramp, kick: Kick::Seldom, yields: false };
    let driver = Driver::new(FrontEnd::new(memory, RAM_BYTES), plan)?;
    let stop = AtomicBool::new(false);
    let (tell, told) = mpsc::channel();
    let (front, back) = thread::scope(|scope| -> anyhow::Result<_> {
        let stop = &stop;
        let back = thread::Builder::new().name("limit-back".into()).spawn_scoped(scope, move || {
            cpu::pin(far)?;
            // If whoever waits has gone, the end is near.
            let _ = tell.send(());
            let core_wait = CoreWait::start();
            back_end.run(stop);
            anyhow::Ok((core_wait.taken_pct(), back_end.ios))
        })?;
        // A thread of its own, so that the caller keeps its affinity. Without a core for the other side there is nothing to wait for.
        let front = told.recv().ok().map(|()| {
            let front = thread::Builder::new().name("limit-front".into()).spawn_scoped(scope, move || driver.run())?;
            front.join().map_err(|_| anyhow::anyhow!("the thread of the front-end panicked"))?
        });
        stop.store(true, Ordering::Release);
        let back = back.join().map_err(|_| anyhow::anyhow!("the thread of the bare back-end panicked"))?;
        Ok((front, back))
    })?;
    let (taken_pct, answered) = back?;
    let mut report = front.context("the bare back-end ended before it began")??;
    anyhow::ensure!(
        answered == report.total_ios,
        "the bare back-end answered {answered} requests, the front-end found {}",
        report.total_ios
    );
    report.mode = "ring-limit".into();
    report.back_end = "bare back-end".into();
    report.medium = Some(config.medium);
    report.cpus.push(far);
    report.core_taken_pct.push(taken_pct);
    Ok(report)
}
