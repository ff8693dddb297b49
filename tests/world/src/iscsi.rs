//! iSCSI in the world: the real targets with their sessions behind [`Initiator`].

use crate::peer::{Initiator, address};
use crate::plan::Plan;
use crate::target::IQN;
use polypath_block::{Device, Host};
use polypath_iscsi::login::Name;
use polypath_iscsi::{Portal, Target, TargetConfig};
use polypath_scsi::midlayer::{DiskConfig, DiskSource};
use polypath_sharing::SharedController;
use polypath_sim::wire::{Net, SimDialer};
use std::sync::Arc;
use std::time::Duration;

/// Who we are.
const INITIATOR: &str = "iqn.2024-01.org.polypath:world-host";

/// Starts the target of path `path`.
///
/// # Errors
/// No descriptor is to be had.
pub(crate) fn initiator(
    plan: &Plan,
    path: usize,
    net: &Net,
    hosts: &[Arc<dyn Host>],
) -> Result<Box<dyn Initiator>, String> {
    let (s, p) = (&plan.settings, &plan.paths[path]);
    let ms = Duration::from_millis;
    let name = |text| Name::new(text).expect("a name that is right");
    let portal = |path| Portal { host: address(path).ip().to_string(), port: address(path).port() };
    let own = portal(path);
    let config = TargetConfig {
        name: format!("path{path}"),
        alternates: p.iscsi.alternates.iter().map(|&other| portal(other)).collect(),
        // The world has one target with many portals, of which some are of other groups.
        portals_prove: true,
        // The same in each run, whoever else runs worlds on this machine.
        identity: Some(path as u32 + 1),
        initiator: name(INITIATOR),
        header_digest: p.digests,
        data_digest: p.digests,
        keep_alive: ms(s.keep_alive_ms.into()),
        // As over NVMe/TCP: connecting takes a slow reactor several turns, which count.
        connect_timeout: ms((s.silence_ms * 3).max(s.slow_turns_ms * 8)),
        silence_timeout: ms(s.silence_ms),
        disks: DiskConfig {
            io_timeout: ms(s.io_timeout_ms),
            grace: ms(s.iscsi.grace_ms.max(s.slow_turns_ms * 2)),
            busy_limit: ms(300),
            unit_reset: s.iscsi.unit_reset,
            target_reset: false,
            explicit_alua: None,
            reset_fence: s.iscsi.reset_fence_ms.map(ms),
        },
        reconnect_delay: ms(20),
        loss_timeout: None,
        queue_depth: s.depth,
        queues: s.queues,
        fence: ms(s.iscsi.fence_ms),
        initial_r2t: s.iscsi.initial_r2t,
        immediate_data: s.iscsi.immediate_data,
        first_burst: s.iscsi.first_burst,
        max_burst: s.iscsi.max_burst,
        max_recv: s.iscsi.max_recv,
        max_r2t: s.iscsi.max_r2t,
        dialer: Arc::new(SimDialer(net.clone())),
        ..TargetConfig::new(&own.host, own.port, name(IQN))
    };
    let target = Target::start(config, hosts[usize::from(p.admin)].clone()).map_err(|e| e.to_string())?;
    let shared = SharedController::new(Arc::new(DiskSource(target.clone())), hosts.to_vec());
    Ok(Box::new(IscsiInitiator { target, shared }))
}

struct IscsiInitiator {
    target: Arc<Target>,
    shared: Arc<SharedController>,
}

impl Initiator for IscsiInitiator {
    fn device(&self, disk: u32) -> Arc<dyn Device> {
        let disk = self.target.disk(disk, false).expect("a number that a logical unit can have");
        let unit = disk.unit();
        self.shared.device(disk, unit)
    }

    fn close(&self) {
        self.target.close();
    }
}
