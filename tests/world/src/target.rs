//! The target of every world: `polypath-target`'s protocol rooms behind [`Peer`], which speak NVMe/TCP on some paths and iSCSI on others,
//! over the same media.

use crate::peer::{Family, Initiator, Peer, Wish, address};
use crate::plan::{Action, Plan};
use crate::transport::Transport;
use crate::{iscsi, nvme_tcp};
use polypath_block::{Host, Time};
use polypath_sim::wire::Net;
use polypath_target::sim_shell::SimTarget;
use polypath_target::{Command, IscsiConfig, ListenerConfig, NamespaceConfig, SubsystemConfig, TargetConfig};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The subsystem of every world.
pub(crate) const NQN: &str = "nqn.2024-01.org.polypath:world";
/// The same as an iSCSI target.
pub(crate) const IQN: &str = "iqn.2024-01.org.polypath:world";
/// What portal group tags of the other target begin after: a login there says nothing of this one.
const ELSEWHERE: u16 = 100;

/// NVMe/TCP and iSCSI, as the paths of the plan say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Transports;

impl Family for Transports {
    fn peer(&self, plan: &Plan, other: bool) -> Result<Box<dyn Peer>, String> {
        let s = &plan.settings;
        let cache = if s.volatile { "volatile" } else { "through" };
        // One more than there are disks: the namespace that nobody asked for.
        let namespaces = (1..=plan.disks + 1).map(|nsid| {
            let uri = format!("ram://{}?nsid={nsid}&cache={cache}", plan.blocks * 512);
            let other = |kind: &str| other.then(|| format!("{kind}{nsid:030x}"));
            NamespaceConfig { nguid: other("ee"), uuid: other("ef"), ..NamespaceConfig::new(uri) }
        });
        let listeners = plan.paths.iter().enumerate().map(|(path, p)| match p.transport {
            Transport::NvmeTcp => ListenerConfig::new(address(path).to_string()),
            Transport::Iscsi => {
                let group = p.iscsi.portal_group + if other { ELSEWHERE } else { 0 };
                ListenerConfig { portal_group: Some(group), ..ListenerConfig::iscsi(address(path).to_string()) }
            }
        });
        let config = TargetConfig {
            listeners: listeners.collect(),
            subsystems: vec![SubsystemConfig {
                iqn: Some(IQN.into()),
                ..SubsystemConfig::new(NQN, namespaces.collect())
            }],
            kas_ms: 100,
            cqt_ms: s.cqt_ms,
            tbkas: s.tbkas,
            max_io_queues: s.queues,
            mdts_bytes: s.mdts_bytes,
            in_capsule: s.in_capsule,
            r2t_bytes: s.r2t_bytes,
            volatile_write_cache: Some(s.volatile),
            iscsi: IscsiConfig {
                max_transfer: s.mdts_bytes,
                command_window: s.iscsi.window,
                initial_r2t: s.iscsi.initial_r2t,
                immediate_data: s.iscsi.immediate_data,
                max_outstanding_r2t: s.iscsi.max_r2t,
                ..IscsiConfig::default()
            },
            ..TargetConfig::default()
        };
        let mut target = SimTarget::new(config).map_err(|e| e.to_string())?;
        target.control(0, &Command { nsid: Some(plan.disks + 1), ..Command::new("detach") })?;
        let portal_groups = plan.paths.iter().map(|p| p.iscsi.portal_group).collect();
        let rules = BTreeMap::new();
        Ok(Box::new(TargetPeer { target, disks: plan.disks, portal_groups, rules, attached: false }))
    }

    fn initiator(
        &self,
        plan: &Plan,
        path: usize,
        net: &Net,
        hosts: &[Arc<dyn Host>],
    ) -> Result<Box<dyn Initiator>, String> {
        match plan.paths[path].transport {
            Transport::NvmeTcp => Ok(nvme_tcp::initiator(plan, path, net, hosts)),
            Transport::Iscsi => iscsi::initiator(plan, path, net, hosts),
        }
    }
}

struct TargetPeer {
    target: SimTarget,
    disks: u32,
    /// By path; zero where it has none.
    portal_groups: Vec<u16>,
    /// Faults in force, by what made them.
    rules: BTreeMap<String, u64>,
    attached: bool,
}

impl Peer for TargetPeer {
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
        if let Action::Ana { path, .. } = action {
            return self.set_access(now, *path, &command);
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

impl TargetPeer {
    /// Access is that of a target port: all portals of a group have it together.
    fn set_access(&mut self, now: Time, path: usize, command: &Command) -> Result<(), String> {
        let group = self.portal_groups[path];
        let of_port = |&other: &usize| other == path || group != 0 && self.portal_groups[other] == group;
        for other in (0..self.portal_groups.len()).filter(of_port).collect::<Vec<_>>() {
            self.target.control(us(now), &command.clone().listener(other))?;
        }
        Ok(())
    }

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
