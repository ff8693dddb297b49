//! The target: one subsystem, a namespace for each disk, a portal for each path.

use super::limits;
use crate::output;
use crate::process::{Process, answer_all};
use anyhow::Context as _;
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig};

const NQN: &str = "nqn.2024-01.org.polypath:scale";

/// What to serve.
#[derive(Clone, Debug)]
pub struct NamespacesConfig {
    /// Namespaces, numbered from 1.
    pub namespaces: u32,
    /// Portals: each is a controller of its own to a host.
    pub portals: u16,
    /// A thread on each of these cores.
    pub cpus: Vec<usize>,
}

/// Serves null disks until standard input ends; says the URIs of the portals, without a namespace, as JSON when hosts may come.
///
/// # Errors
/// When the target cannot be started.
pub fn serve_namespaces(config: &NamespacesConfig) -> anyhow::Result<()> {
    limits::raise_descriptors()?;
    let namespaces = (0..config.namespaces).map(|_| NamespaceConfig::new("null://64GiB?bs=4096")).collect();
    let target = Target::start(TargetConfig {
        listeners: (0..config.portals).map(|_| ListenerConfig::new("127.0.0.1:0")).collect(),
        subsystems: vec![SubsystemConfig::new(NQN, namespaces)],
        threads: config.cpus.len().max(1),
        cpus: config.cpus.clone(),
        // Its cores are wanted by others.
        spin_us: 0,
        max_connections: 4096,
        ..TargetConfig::default()
    })?;
    let uris: Vec<_> = target.addresses().iter().map(|address| format!("nvme-tcp://{address}/{NQN}")).collect();
    output::line(serde_json::to_string(&uris)?)?;
    answer_all(|question| anyhow::bail!("{question:?} is no question to a target"))?;
    target.stop();
    Ok(())
}

/// The same in a process of its own, as its parent sees it.
pub(super) struct TargetProcess {
    /// Of its portals, without a namespace.
    pub(super) uris: Vec<String>,
    _process: Process,
}

impl TargetProcess {
    pub(super) fn start(namespaces: u32, portals: u16, cpus: &[usize]) -> anyhow::Result<TargetProcess> {
        let numbers: Vec<_> = cpus.iter().map(ToString::to_string).collect();
        let args = [
            "serve-namespaces".to_owned(),
            format!("--namespaces={namespaces}"),
            format!("--portals={portals}"),
            format!("--cpus={}", numbers.join(",")),
        ];
        let mut process = Process::start("the target", &args)?;
        let uris = process.answer().context("starting the target")?;
        Ok(TargetProcess { uris, _process: process })
    }
}
