//! NVMe/TCP in the world: `polypath-target`'s protocol room behind [`Peer`], the real controllers behind [`Initiator`].

use crate::peer::{Family, Initiator, Peer, Wish, address};
use crate::plan::{Action, Plan};
use polypath_block::{Device, Host, Time};
use polypath_nvme::nqn::{HostIdentity, Nqn};
use polypath_nvmf_tcp::{Controller, ControllerConfig};
use polypath_sharing::SharedController;
use polypath_sim::wire::{Net, SimDialer};
use polypath_target::sim_shell::SimTarget;
use polypath_target::{Command, ListenerConfig, NamespaceConfig, SubsystemConfig, TargetConfig};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The subsystem of every world.
pub(crate) const NQN: &str = "nqn.2024-01.org.polypath:world";

/// NVMe/TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct NvmeTcp;

impl Family for NvmeTcp {
    fn peer(&self, plan: &Plan, other: bool) -> Result<Box<dyn Peer>, String> {
        let s = &plan.settings;
        let cache = if s.volatile { "volatile" } else { "through" };
        // One more than there are disks: the namespace that nobody asked for.
        let namespaces = (1..=plan.disks + 1).map(|nsid| {
            let uri = format!("ram://{}?nsid={nsid}&cache={cache}", plan.blocks * 512);
            let other = |kind: &str| other.then(|| format!("{kind}{nsid:030x}"));
            NamespaceConfig { nguid: other("ee"), uuid: other("ef"), ..NamespaceConfig::new(uri) }
        });
        let listeners = (0..plan.paths.len()).map(|path| ListenerConfig::new(address(path).to_string()));
        let config = TargetConfig {
            listeners: listeners.collect(),
            subsystems: vec![SubsystemConfig::new(NQN, namespaces.collect())],
            kas_ms: 100,
            cqt_ms: s.cqt_ms,
            tbkas: s.tbkas,
            max_io_queues: s.queues,
            mdts_bytes: s.mdts_bytes,
            in_capsule: s.in_capsule,
            r2t_bytes: s.r2t_bytes,
            volatile_write_cache: Some(s.volatile),
            ..TargetConfig::default()
        };
        let mut target = SimTarget::new(config).map_err(|e| e.to_string())?;
        target.control(0, &Command { nsid: Some(plan.disks + 1), ..Command::new("detach") })?;
        Ok(Box::new(NvmePeer { target, disks: plan.disks, rules: BTreeMap::new(), attached: false }))
    }

    fn initiator(&self, plan: &Plan, path: usize, net: &Net, hosts: &[Arc<dyn Host>]) -> Box<dyn Initiator> {
        let (s, p) = (&plan.settings, &plan.paths[path]);
        let ms = Duration::from_millis;
        let address = address(path);
        let nqn = Nqn::new(NQN).expect("a name that is right");
        let id = "2cd2c43b-a90a-45c1-a8cd-86b33ab273b5";
        let host = "nqn.2014-08.org.nvmexpress:uuid:2cd2c43b-a90a-45c1-a8cd-86b33ab273b5";
        let config = ControllerConfig {
            name: format!("path{path}"),
            identity: HostIdentity::derive(Some(host), Some(id), [0; 16]).expect("an identity that is right"),
            data_digest: p.digests,
            header_digest: p.digests,
            keep_alive: ms(s.keep_alive_ms.into()),
            // Connecting takes a slow reactor several turns, which count.
            connect_timeout: ms((s.silence_ms * 3).max(s.slow_turns_ms * 8)),
            silence_timeout: ms(s.silence_ms),
            io_timeout: ms(s.io_timeout_ms),
            reconnect_delay: ms(20),
            ctrl_loss_timeout: None,
            queue_depth: s.depth,
            queues: 16,
            fence: ms(400),
            quiesce: ms(50),
            dialer: Arc::new(SimDialer(net.clone())),
            ..ControllerConfig::new(&address.ip().to_string(), address.port(), nqn)
        };
        let controller = Controller::start(config, hosts[usize::from(p.admin)].clone());
        let shared = SharedController::new(controller.clone(), hosts.to_vec());
        Box::new(NvmeInitiator { controller, shared, unnamed: s.unnamed })
    }
}

struct NvmeInitiator {
    controller: Arc<Controller>,
    shared: Arc<SharedController>,
    unnamed: bool,
}

impl Initiator for NvmeInitiator {
    fn device(&self, disk: u32) -> Arc<dyn Device> {
        let namespace = if self.unnamed { self.controller.device() } else { self.controller.namespace(disk + 1) };
        let unit = namespace.unit();
        self.shared.device(namespace, unit)
    }

    fn close(&self) {
        self.controller.close();
    }
}

struct NvmePeer {
    target: SimTarget,
    disks: u32,
    /// Faults in force, by what made them.
    rules: BTreeMap<String, u64>,
    attached: bool,
}

impl Peer for NvmePeer {
    fn accept(&mut self, now: Time, path: usize) -> u64 {
        self.target.accept(us(now), path)
    }

    fn input(&mut self, now: Time, connection: u64, bytes: &[u8]) {
        self.target.input(us(now), connection, bytes);
    }

    fn output(&mut self, connection: u64, limit: usize, out: &mut Vec<u8>) -> usize {
        self.target.output(connection, limit, out)
    }

    fn wish(&self, connection: u64) -> Wish {
        self.target.wish(connection)
    }

    fn closed(&mut self, now: Time, connection: u64) {
        self.target.closed(us(now), connection);
    }

    fn poll(&mut self, now: Time) {
        self.target.poll(us(now));
    }

    fn next(&self) -> Time {
        match self.target.next_us() {
            u64::MAX => Time::NEVER,
            us => Time::from_nanos(us.saturating_mul(1000)),
        }
    }

    fn act(&mut self, now: Time, action: &Action, begins: bool) -> Result<(), String> {
        if !begins
            && matches!(
                action,
                Action::Delay { .. } | Action::Lose { .. } | Action::Refuse { .. } | Action::Hold { .. }
            )
        {
            return self.clear(now, action);
        }
        let Some(command) = self.command(action, begins) else { return Ok(()) };
        if let (Action::Swap { disk, .. }, false) = (action, begins) {
            self.target.swap_back(us(now), NQN, disk + 1);
            return Ok(());
        }
        let answer = self.target.control(us(now), &command)?;
        if let Action::MoveGroup { disk, .. } = action {
            let state = if begins { "inaccessible" } else { "optimized" };
            let group = Command { group: Some(disk + 1), nqn: Some(NQN.into()), ..Command::new("set_ana") };
            self.target.control(us(now), &Command { state: Some(state.into()), ..group })?;
        }
        if let Some(id) = answer["id"].as_u64() {
            self.rules.insert(format!("{action:?}"), id);
        }
        Ok(())
    }

    fn look(&self, disk: u32, offset: u64, durable: bool, out: &mut [u8]) {
        if !self.target.look(NQN, disk + 1, offset, durable, out) {
            out.fill(0xbd);
        }
    }

    fn changes_of_swapped(&self) -> u64 {
        self.target.changes_of_strangers()
    }

    fn changes(&self) -> u64 {
        (1..=self.disks).map(|nsid| self.target.changes(NQN, nsid)).sum()
    }
}

impl NvmePeer {
    fn clear(&mut self, now: Time, action: &Action) -> Result<(), String> {
        let Some(id) = self.rules.remove(&format!("{action:?}")) else { return Ok(()) };
        self.target.control(us(now), &Command { id: Some(id), ..Command::new("clear") }).map(|_| ())
    }

    /// The control command that an action is, if there is anything to do.
    fn command(&mut self, action: &Action, begins: bool) -> Option<Command> {
        let at = |cmd: &str, path: usize| Command::new(cmd).listener(path);
        let of = |cmd: &str, disk: u32| Command { nsid: Some(disk + 1), nqn: Some(NQN.into()), ..Command::new(cmd) };
        Some(match *action {
            Action::Delay { path, op, us, count, .. } => {
                Command { op: Some(op.name().into()), us: Some(us), count: Some(count), ..at("delay", path) }
            }
            Action::Lose { path, op, execute, count, .. } => {
                let op = Some(op.name().into());
                Command { op, execute: Some(execute), count: Some(count), ..at("lose", path) }
            }
            Action::Refuse { path, op, count, .. } => {
                Command { op: Some(op.name().into()), count: Some(count), ..at("refuse", path) }
            }
            Action::Hold { path, after_ms, beyond, answer, count, .. } => Command {
                apply_after_ms: Some(after_ms),
                beyond: Some(beyond),
                answer: Some(if answer { "after" } else { "never" }.into()),
                count: Some(count),
                ..at("hold_write", path)
            },
            Action::Ana { path, ref state, .. } => {
                let state = if begins { state.clone() } else { "optimized".into() };
                Command { state: Some(state), ..at("set_ana", path) }
            }
            Action::MoveGroup { disk, .. } => {
                let group = if begins { self.disks + 1 } else { disk + 1 };
                Command { group: Some(group), ..of("move_group", disk) }
            }
            Action::Grow { disk, blocks } => Command { bytes: Some(blocks * 512), ..of("resize", disk) },
            Action::Swap { disk, .. } => Command { new_contents: Some(true), ..of("swap_identity", disk) },
            Action::UnusedNamespace { attach } if attach != self.attached => {
                self.attached = attach;
                of(if attach { "attach" } else { "detach" }, self.disks)
            }
            Action::Queues { count, .. } => Command { count: Some(count), ..Command::new("queues") },
            Action::PowerLoss => Command::new("power_loss"),
            _ => return None,
        })
    }
}

fn us(now: Time) -> u64 {
    now.as_nanos() / 1000
}
