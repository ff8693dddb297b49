//! The disk that is measured: one path as it is, or several as one multipath disk with each of them watched.

use super::config::RunConfig;
use super::counted::{CountedDevice, PathCounters};
use crate::conformance::{self, Verdict};
use crate::verify::VerifyError;
use polypath::{Stack, wait_live};
use polypath_block::{Device, DeviceInfo, DeviceState};
use polypath_multipath::{Events, Fencing, Group, GroupConfig, MatchPolicy, PathConfig};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The disk, and what is counted of its paths.
pub(super) struct Disk {
    pub(super) device: Arc<dyn Device>,
    /// What `device` is a slice of, or `device` itself.
    whole: Arc<dyn Device>,
    pub(super) info: Arc<DeviceInfo>,
    pub(super) path_counters: Vec<Arc<PathCounters>>,
    pub(super) group: Option<Arc<Group>>,
    pub(super) events: Option<Events>,
}

impl Disk {
    /// Ends it, and what it is a slice of.
    pub(super) fn close(&self) {
        self.device.close();
        self.whole.close();
    }

    /// Has it ended?
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.whole.state(), DeviceState::Gone { .. })
    }

    /// The slice of it that is measured, if that is wanted.
    fn sliced(self, stack: &Stack, config: &RunConfig) -> anyhow::Result<Disk> {
        let Some(range) = config.slice else { return Ok(self) };
        let device = stack.open_slice(format!("{}#{range}", self.whole.name()), self.whole.clone(), range)?;
        let info = wait_live(&*device, config.connect_timeout)?;
        Ok(Disk { device, info, ..self })
    }

    /// What wrong blocks mean, given what was sent again meanwhile.
    pub(super) fn verdict(&self, errors: &[VerifyError]) -> Verdict {
        let redriven = self.events.as_ref().map(conformance::redriven).unwrap_or_default();
        conformance::judge(errors, &redriven)
    }
}

/// Opens the disk, or the slice of it that is wanted, and waits for it.
pub(super) fn open(stack: &Stack, config: &RunConfig) -> anyhow::Result<Disk> {
    open_whole(stack, config)?.sliced(stack, config)
}

/// Several paths, or one with a selector, become a multipath disk.
fn open_whole(stack: &Stack, config: &RunConfig) -> anyhow::Result<Disk> {
    anyhow::ensure!(!config.paths.is_empty(), "no disk: give --path URI (several times for several paths to one disk)");
    if let ([uri], None, []) = (&config.paths[..], config.selector, &config.identity[..]) {
        let device = stack.open_device(uri)?;
        let info = wait_live(&*device, config.connect_timeout)?;
        return Ok(Disk { whole: device.clone(), device, info, path_counters: Vec::new(), group: None, events: None });
    }
    let name = config.paths[0].to_string();
    if let Some(preferred) = config.preferred.as_ref().filter(|uri| !config.paths.contains(uri)) {
        anyhow::bail!("--preferred {preferred} is none of the paths; expected one as it is given with --path");
    }
    let matching = match (config.stated, &config.identity[..]) {
        (true, _) => MatchPolicy::Stated,
        (false, []) => MatchPolicy::default(),
        (false, pinned) => MatchPolicy::Pinned(pinned.to_vec()),
    };
    let group = Group::new(GroupConfig {
        selector: config.selector.unwrap_or_default().with_options(config.min_io, config.failback)?,
        matching,
        no_path_timeout_ms: config.no_path_timeout.as_millis() as u64,
        fencing: if config.fencing { Fencing::On } else { Fencing::Off },
        ..GroupConfig::new(name)
    });
    let events = Some(group.events());
    for host in stack.hosts() {
        group.attach_host(host);
    }
    let (mut path_counters, mut devices) = (Vec::new(), Vec::new());
    for (n, uri) in config.paths.iter().enumerate() {
        let device = stack.open_device(uri)?;
        let mut path = device.clone();
        // What can be said of the only path is said of the disk.
        if config.paths.len() > 1 {
            let counters = PathCounters::new(device.name().to_owned());
            path = Arc::new(CountedDevice::new(path, counters.clone()));
            path_counters.push(counters);
        }
        let weight = config.weights.get(n).copied().unwrap_or(PathConfig::WEIGHT);
        let preferred = config.preferred.as_ref() == Some(uri);
        group.add_path(PathConfig { weight, preferred, ..PathConfig::new(path) })?;
        devices.push(device);
    }
    let deadline = Instant::now() + config.connect_timeout;
    for device in &devices {
        // A path that does not answer is no reason not to measure the others; all of them are.
        if let Err(error) = wait_live(&**device, deadline.saturating_duration_since(Instant::now())) {
            tracing::warn!("{error}");
        }
    }
    group.refresh();
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let info = wait_live(&*group, left)?;
    for path in group.statistics().into_iter().filter(|p| !p.access.is_some_and(polypath_block::Access::usable)) {
        tracing::warn!(path = path.name, state = ?path.state, why = path.why, "path is not usable");
    }
    Ok(Disk { device: group.clone(), whole: group.clone(), info, path_counters, group: Some(group), events })
}
