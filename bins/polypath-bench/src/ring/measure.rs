//! The front-end's thread, and what it reports.

use super::front_end::FrontEnd;
use super::{Kick, Medium, Style};
use crate::cpu::{self, CoreWait};
use crate::latency::{Latencies, LatencyUs, round3};
use crate::slices::Slices;
use polypath_block::Time;
use polypath_reactor::now;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// No answer for this long means that the back-end is gone. A test waits for it.
const SILENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 5 });
/// Requests between looks at the clock: one look costs as much as a request.
const REQUESTS_A_LOOK: u64 = 256;
/// Vain passes between looks at the clock, at which the back-end is kicked as well: one that sleeps must be woken, one that polls
/// (as it should) never gets there while it works.
const VAIN_A_LOOK: u32 = 4096;

/// How long, and where.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) cpu: usize,
    pub(super) time: Duration,
    pub(super) ramp: Duration,
    pub(super) kick: Kick,
    /// Let others have the core after every vain pass.
    pub(super) yields: bool,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RingReport {
    /// `ring-limit` or `ring-drive`.
    pub mode: String,
    /// What answered: `bare back-end`, or a socket.
    pub back_end: String,
    /// What is behind the bare back-end: `null` or `ram`; nothing is known of others'.
    pub medium: Option<Medium>,
    /// Requests outstanding.
    pub qd: u16,
    /// Entries of the ring.
    pub ring_size: u16,
    /// One descriptor in the ring and a table for each request?
    pub indirect: bool,
    /// Was each request written anew, or only its sector?
    pub renew: bool,
    /// Was the event index agreed upon?
    pub event_idx: bool,
    /// Core of the front-end; core of the bare back-end.
    pub cpus: Vec<usize>,
    /// Measured time in seconds.
    pub seconds: f64,
    /// Blocks of 4 KiB.
    pub ios: u64,
    /// Blocks a second.
    pub iops: f64,
    /// The rate of the best tenth of all milliseconds: what it is when the cores are not wanted by others.
    pub iops_quiet: f64,
    /// Requests that ended at a time, on average.
    pub batch: f64,
    /// Latency of one request of 64.
    pub lat_us: LatencyUs,
    /// Requests with another status than OK, those of the ramp and of the end included.
    pub errors: u64,
    /// Requests that never came back.
    pub unanswered: u64,
    /// Requests from first to last, those of the ramp and of the end included.
    pub total_ios: u64,
    /// Part of the time that the front-end (and the bare back-end) were kept from their core by others, in percent.
    pub core_taken_pct: Vec<f64>,
}

impl RingReport {
    /// Was every request answered, and well?
    pub fn is_good(&self) -> bool {
        self.errors == 0 && self.unanswered == 0
    }
}

/// Drives a ring and measures.
pub(super) struct Driver {
    front_end: FrontEnd,
    plan: Plan,
    kick: OwnedFd,
    event_idx: bool,
    vain: u32,
    /// Ended since the last look at the clock, and in how many passes.
    ended: u64,
    heard: Time,
    total: u64,
    errors: u64,
    passes: u64,
    latencies: Latencies,
    slices: Slices,
}

impl Driver {
    pub(super) fn new(front_end: FrontEnd, plan: Plan) -> anyhow::Result<Driver> {
        Ok(Driver {
            front_end,
            plan,
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            event_idx: false,
            vain: 0,
            ended: 0,
            heard: Time::ZERO,
            total: 0,
            errors: 0,
            passes: 0,
            latencies: Latencies::new(),
            slices: Slices::new(),
        })
    }

    /// Was the event index agreed upon?
    pub(super) fn with_event_idx(self, event_idx: bool) -> Driver {
        Driver { event_idx, ..self }
    }

    /// What wakes the back-end.
    pub(super) fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    pub(super) fn front_end(&self) -> &FrontEnd {
        &self.front_end
    }

    /// Keeps the ring full for as long as planned, then lets it run dry. Pins the calling thread.
    ///
    /// # Errors
    /// When the core cannot be had, or the back-end breaks the rules of the ring or falls silent.
    pub(super) fn run(mut self) -> anyhow::Result<RingReport> {
        cpu::pin(self.plan.cpu)?;
        self.front_end.start();
        self.ring_the_bell();
        self.heard = now();
        self.until(self.heard.after(self.plan.ramp))?;
        // From here on it counts.
        self.latencies.clear();
        self.passes = 0;
        let (start, core_wait, before) = (now(), CoreWait::start(), self.total);
        self.slices.restart(start);
        let time = self.until(start.after(self.plan.time))?;
        let ios = self.total - before;
        let seconds = time.since(start).as_secs_f64();
        let (passes, iops_quiet) = (self.passes, self.slices.quiet_rate());
        let (lat_us, taken_pct) = (self.latencies.summary(), core_wait.taken_pct());
        self.run_dry()?;
        let memory = self.front_end.memory();
        let Style { indirect, renew } = memory.style;
        Ok(RingReport {
            mode: String::new(),
            back_end: String::new(),
            medium: None,
            qd: memory.qd,
            ring_size: memory.layout.size,
            indirect,
            renew,
            event_idx: false,
            cpus: vec![self.plan.cpu],
            seconds: round3(seconds),
            ios,
            iops: round3(ios as f64 / seconds),
            iops_quiet,
            batch: round3(ios as f64 / passes.max(1) as f64),
            lat_us,
            errors: self.errors,
            unanswered: self.front_end.outstanding().into(),
            total_ios: self.total,
            core_taken_pct: vec![taken_pct],
        })
    }

    /// Goes on until `end`; when that was.
    fn until(&mut self, end: Time) -> anyhow::Result<Time> {
        loop {
            let Some(time) = self.step()? else { continue };
            if time >= end {
                return Ok(time);
            }
            anyhow::ensure!(
                time.since(self.heard) < SILENCE,
                "no answer for {SILENCE:?} with {} requests outstanding: the back-end is stopped, or hangs",
                self.front_end.outstanding()
            );
        }
    }

    /// One pass; the time, if it was looked at.
    #[inline]
    fn step(&mut self) -> anyhow::Result<Option<Time>> {
        let pass = self.front_end.pass()?;
        if pass.ended == 0 {
            self.vain += 1;
            if self.plan.yields {
                rustix::thread::sched_yield();
            }
            std::hint::spin_loop();
            if self.vain < VAIN_A_LOOK {
                return Ok(None);
            }
            return Ok(Some(self.look()));
        }
        self.ended += u64::from(pass.ended);
        self.passes += 1;
        self.errors += u64::from(pass.errors);
        self.vain = 0;
        if let Some(latency) = pass.latency {
            self.latencies.record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
        match self.plan.kick {
            Kick::Seldom => {}
            Kick::Always => self.ring_the_bell(),
            Kick::Asked if self.front_end.is_kick_wanted(pass.ended, self.event_idx) => self.ring_the_bell(),
            Kick::Asked => {}
        }
        Ok((self.ended >= REQUESTS_A_LOOK).then(|| self.look()))
    }

    /// Looks at the clock, and whether the back-end has to be woken.
    #[cold]
    fn look(&mut self) -> Time {
        let time = now();
        if self.ended > 0 {
            self.slices.completed(time, self.ended);
            self.total += self.ended;
            (self.ended, self.heard) = (0, time);
        }
        if self.vain >= VAIN_A_LOOK {
            self.vain = 0;
            self.ring_the_bell();
            // Should both sides have to share a core.
            rustix::thread::sched_yield();
        }
        time
    }

    /// Lets what is outstanding end. What does not within the time of [`SILENCE`] is left.
    fn run_dry(&mut self) -> anyhow::Result<()> {
        self.front_end.drain();
        let end = now().after(SILENCE);
        while self.front_end.outstanding() > 0 {
            if self.step()?.is_some_and(|time| time >= end) {
                break;
            }
        }
        self.total += std::mem::take(&mut self.ended);
        Ok(())
    }

    fn ring_the_bell(&self) {
        // Full already is as good as rung.
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }
}
