//! Requests over NVMe/TCP: the real initiator and the target's protocol in one thread, with a wire in memory between them.

use crate::counted::counted;
use crate::guest::{DEPTH, Guest, Here, get_ready, until};
use crate::wire::Wire;
use anyhow::{Context, Result, ensure};
use polypath_block::{Device, DeviceState, Host, Op, QueueConfig, UnitId};
use polypath_nvme::nqn::{HostIdentity, Nqn};
use polypath_nvmf_tcp::{Controller, ControllerConfig};
use polypath_sharing::SharedController;
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, TargetConfig};
use std::sync::Arc;

const NQN: &str = "nqn.2024-01.org.polypath:instructions";
const HOST_ID: &str = "2cd2c43b-a90a-45c1-a8cd-86b33ab273b5";
const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:2cd2c43b-a90a-45c1-a8cd-86b33ab273b5";

/// A round: a turn of the initiator's that sends 32 commands, the target's answers, a turn that takes them. No digests; the target's limits
/// are those it has by default, so that data to write leave with their commands.
pub(crate) fn requests(op: Op, rounds: u64) -> Result<()> {
    let wire = Wire::new(target())?;
    let identity = HostIdentity::derive(Some(HOST_NQN), Some(HOST_ID), [0; 16])?;
    let config = ControllerConfig {
        identity,
        dialer: Arc::new(wire.clone()),
        ..ControllerConfig::new("127.0.0.1", 4420, Nqn::new(NQN)?)
    };
    let (host, mut pollers) = Here::new();
    let host: Arc<dyn Host> = Arc::new(host);
    let controller = Controller::start(config, host.clone());
    let device = SharedController::new(controller.clone(), vec![host]).device(controller.device(), UnitId::ONLY);
    let mut guest = Guest::new(op)?;
    let mut turn = |guest: &mut Guest| {
        pollers.turn(guest);
        wire.serve(guest.now());
    };
    until("a namespace", || {
        turn(&mut guest);
        guest.pass();
        Ok(matches!(device.state(), DeviceState::Live(_)))
    })
    .with_context(|| format!("the device is {:?}", device.state()))?;
    let mut queue = device.open_queue(QueueConfig { depth: DEPTH })?;
    get_ready(&mut guest, &mut *queue, &mut turn)?;
    for _ in 0..rounds {
        guest.move_on();
        guest.pass();
        counted(|| {
            let submitted = guest.submit(&mut *queue);
            guest.kick(&mut *queue);
            submitted
        })?;
        // What the admin queue does in its turns is not counted, nor what the target does.
        turn(&mut guest);
        guest.pass();
        counted(|| guest.poll(&mut *queue));
        let completed = guest.take_completions()?;
        ensure!(completed == u64::from(DEPTH), "{completed} of {DEPTH} requests were answered in their turn");
    }
    Ok(())
}

fn target() -> TargetConfig {
    TargetConfig {
        listeners: vec![ListenerConfig::new("127.0.0.1:4420")],
        subsystems: vec![SubsystemConfig::new(NQN, vec![NamespaceConfig::new("null://1TiB")])],
        ..TargetConfig::default()
    }
}
