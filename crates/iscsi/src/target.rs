//! A target behind one portal, as its users see it: the host-bus driver of iSCSI.

use crate::config::TargetConfig;
use crate::identity::{SessionNumber, Sessions};
use crate::session::{Session, Shape};
use polypath_block::{Armed, Code, Cx, DiskUri, Host, OpenError, Poller, QueueConfig, Time, Turn, UriError, Waits};
use polypath_net::Bell;
use polypath_scsi::Lun;
use polypath_scsi::midlayer::{Address, Bus, BusState, DiskConfig, HostBus, Scanner, ScsiDisk, TaskQueue, UnitUse};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often a logical unit is asked whether it has something to report.
const WATCH: Duration = Duration::from_secs(2);
/// Tasks that the control session holds.
const CONTROL_DEPTH: u16 = 4;

/// A target: one portal group of one iSCSI node. It connects, keeps alive and comes back by itself.
///
/// When the last handle to it (its disks included) is dropped, it is closed.
pub struct Target {
    config: Arc<TargetConfig>,
    host: Arc<dyn Host>,
    bus: Arc<Bus>,
    sessions: Arc<Sessions>,
    hurried: Arc<AtomicU64>,
    bell: Arc<Bell>,
}

impl Target {
    /// Starts one: its control poller runs on the reactor `host` from now on. What goes wrong later is in the state of its disks, and is
    /// tried again.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub fn start(config: TargetConfig, host: Arc<dyn Host>) -> std::io::Result<Arc<Target>> {
        let bus = Bus::new(&config.name, host.clone(), config.fence);
        let sessions = Arc::new(Sessions::of(&config));
        let bell = Arc::new(Bell::new()?);
        let (config, hurried) = (Arc::new(config), Arc::new(AtomicU64::new(0)));
        let target = Arc::new(Target { config, host, bus, sessions, hurried, bell });
        let shape = target.shape(SessionNumber::control(&target.sessions), target.bell.clone());
        let (bus, config, hurried) = (target.bus.clone(), target.config.clone(), target.hurried.clone());
        target.host.spawn(Box::new(move |cx| Box::new(ControlPoller::new(shape, bus, config, hurried, cx.now))));
        Ok(target)
    }

    /// Its configuration.
    pub fn config(&self) -> &TargetConfig {
        &self.config
    }

    /// The logical unit `lun`, whether it is there yet or not. `whole`: closing the disk closes the target.
    ///
    /// # Errors
    /// A LUN that no target can have, or too many of them.
    pub fn disk(self: &Arc<Self>, lun: u32, whole: bool) -> Result<Arc<ScsiDisk<Target>>, OpenError> {
        let unit = self.unit(lun)?;
        let base = self.config.name.split('?').next().unwrap_or(&self.config.name);
        let name = if whole { self.config.name.clone() } else { format!("{base}#lun{lun}") };
        Ok(ScsiDisk::new(self.clone(), unit, name, whole))
    }

    fn unit(self: &Arc<Self>, lun: u32) -> Result<UnitUse, OpenError> {
        let lun = Lun::new(lun).ok_or_else(|| OpenError::Unsupported {
            name: self.config.name.clone(),
            reason: format!("LUN {lun} cannot be addressed; expected 0 to 16383"),
        })?;
        self.bus.attach(Address { target: 0, lun })
    }

    /// Tries at once what was to be tried after a pause: somebody knows that the target is back.
    pub fn hurry(&self) {
        self.hurried.fetch_add(1, Ordering::SeqCst);
        self.bell.ring();
        self.bus.call();
    }

    /// Ends it once its queues are closed. Does not wait. Idempotent.
    pub fn close(&self) {
        self.bus.close();
        self.bell.ring();
    }

    fn shape(&self, number: SessionNumber, bell: Arc<Bell>) -> Shape {
        Shape { config: self.config.clone(), host: self.host.clone(), number, bell, bus: self.bus.clone() }
    }
}

/// Opens what an `iscsi://` URI names: starts a target on `host` and returns its disk at once, in the state
/// [`polypath_block::DeviceState::Starting`].
///
/// # Errors
/// Names the part of the URI that is wrong.
pub fn open(uri: &DiskUri, host: Arc<dyn Host>) -> Result<Arc<ScsiDisk<Target>>, UriError> {
    let (config, lun) = TargetConfig::from_uri(uri)?;
    let target = Target::start(config, host).map_err(|e| uri.error("host", format!("no eventfd: {e}")))?;
    target.disk(lun, true).map_err(|e| uri.error("LUN", e.to_string()))
}

impl HostBus for Target {
    type Queue = Session;

    fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    fn disk_config(&self) -> DiskConfig {
        self.config.disks
    }

    fn open_tasks(&self, config: QueueConfig) -> Result<Session, OpenError> {
        let name = || self.config.name.clone();
        let number = SessionNumber::take(&self.sessions)
            .ok_or_else(|| OpenError::NoQueue { name: name(), granted: self.config.queues })?;
        let bell = Bell::new().map_err(|e| OpenError::System {
            name: name(),
            reason: format!("no eventfd for a session: {e}; raise the limit of open files"),
        })?;
        let depth = config.depth.max(self.config.queue_depth);
        Ok(Session::new(self.shape(number, Arc::new(bell)), depth))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.bus.close();
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("name", &self.config.name).finish_non_exhaustive()
    }
}

/// The poller of a target's control session: it looks at logical units, and says where the target stands.
struct ControlPoller {
    scanner: Option<Scanner<Session>>,
    bus: Arc<Bus>,
    config: Arc<TargetConfig>,
    hurried: Arc<AtomicU64>,
    /// As far as it was followed.
    hurries: u64,
    down_since: Time,
    was_up: bool,
    told: Option<(Code, String)>,
    ended: bool,
}

impl ControlPoller {
    fn new(shape: Shape, bus: Arc<Bus>, config: Arc<TargetConfig>, hurried: Arc<AtomicU64>, now: Time) -> Self {
        let session = Session::new(shape, CONTROL_DEPTH);
        let scanner = match Scanner::new(session, bus.clone(), config.queues, WATCH) {
            Ok(scanner) => Some(scanner.with_time_limit(config.disks.io_timeout).with_disk_depth(config.queue_depth)),
            Err(error) => {
                bus.set_state(BusState::Gone { reason: format!("no memory to look at logical units: {error}") });
                None
            }
        };
        ControlPoller {
            scanner,
            bus,
            config,
            hurried,
            hurries: 0,
            down_since: now,
            was_up: false,
            told: None,
            ended: false,
        }
    }

    /// Says why the target cannot be reached, and gives up when that is of no use any more.
    fn tell(&mut self, now: Time) {
        let Some(scanner) = &mut self.scanner else { return };
        if scanner.is_up() {
            (self.down_since, self.was_up, self.told) = (now, true, None);
            return;
        }
        let trouble = scanner.tasks().trouble();
        if trouble.is_none() || self.told == trouble {
            return self.give_up_late(now);
        }
        if let Some((cause, reason)) = trouble.clone() {
            // A wrong name or secret does not become right by itself; where it was right before, somebody is changing it.
            if scanner.tasks().is_refused() && !self.was_up {
                tracing::error!(path = %self.config.name, %reason, "path given up");
                return self.end(reason, now);
            }
            self.bus.set_state(BusState::Down { cause, reason });
        }
        self.told = trouble;
    }

    fn give_up_late(&mut self, now: Time) {
        if let (Some(limit), Some((_, reason))) = (self.config.loss_timeout, &self.told)
            && now.since(self.down_since) >= limit
        {
            let ms = now.since(self.down_since).as_millis();
            let reason = format!("given up after {ms} ms without a session (ctrl_loss_timeout_ms): {reason}");
            tracing::error!(path = %self.config.name, %reason, "path given up");
            self.end(reason, now);
        }
    }

    fn end(&mut self, reason: String, now: Time) {
        self.ended = true;
        if let Some(scanner) = &mut self.scanner {
            scanner.close(now, 0);
        }
        self.bus.set_state(BusState::Gone { reason });
    }
}

impl Poller for ControlPoller {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        let Some(scanner) = &mut self.scanner else { return Turn::Finished };
        let called = self.bus.answer_call();
        let hurries = self.hurried.load(Ordering::Relaxed);
        if hurries != self.hurries {
            self.hurries = hurries;
            scanner.tasks().hurry();
        }
        let moved = scanner.poll(cx.now, cx.reactor);
        if scanner.tasks().take_attention() {
            self.bus.all_stale();
        }
        if !self.ended && self.bus.is_closing() && self.bus.queues_open() == 0 {
            self.end("closed".into(), cx.now);
        }
        // What a command that was passed through has changed, or may still change, waits for its proof.
        if self.ended && self.bus.queues_open() == 0 && self.scanner.as_ref().is_some_and(Scanner::is_drained) {
            self.scanner = None;
            return Turn::Finished;
        }
        if !self.ended {
            self.tell(cx.now);
        }
        if moved || called { Turn::Busy } else { Turn::Idle }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let Some(scanner) = &mut self.scanner else { return Armed::Busy };
        if self.bus.is_called() {
            return Armed::Busy;
        }
        waits.on_call();
        if let (Some(limit), Some(_)) = (self.config.loss_timeout, &self.told) {
            waits.until(self.down_since.after(limit));
        }
        scanner.arm(cx.now, cx.reactor, waits)
    }

    fn name(&self) -> &str {
        &self.config.name
    }
}

impl Drop for ControlPoller {
    fn drop(&mut self) {
        if self.scanner.is_some() && !self.ended {
            // The reactor ends under it: nobody looks at the logical units any more.
            self.bus.set_state(BusState::Gone { reason: "the reactor of its control session has ended".into() });
        }
    }
}
