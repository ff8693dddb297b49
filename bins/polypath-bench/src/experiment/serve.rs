//! The target, in a process and a network namespace of its own.

use super::load;
use super::network::{self, address};
use crate::output;
use crate::process::{Process, answer_all};
use crate::protocol::Protocol;
use anyhow::Context as _;
use polypath_target::{NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};

const NQN: &str = "nqn.2024-01.org.polypath:experiment";
const IQN: &str = "iqn.2024-01.org.polypath:experiment";
/// Memory of the disk.
const MEDIUM: &str = "ram://64MiB";

/// Serves one disk over `links` links with `protocol` until standard input ends. It says `true` when it is in its namespace, waits to be
/// told that the links are there, and then says the URIs of its portals.
///
/// # Errors
/// When the target cannot be started, or is asked for what it cannot do.
pub fn serve(protocol: Protocol, links: usize) -> anyhow::Result<()> {
    output::line("true")?;
    let mut serving = None;
    answer_all(|question| answer(&mut serving, protocol, links, question))
}

fn answer(
    serving: &mut Option<TargetHandle>,
    protocol: Protocol,
    links: usize,
    question: &str,
) -> anyhow::Result<String> {
    if question == "up" {
        let (target, uris) = start(protocol, links)?;
        *serving = Some(target);
        return Ok(serde_json::to_string(&uris)?);
    }
    let target = serving.as_ref().context("the target is not up yet")?;
    let mut words = question.split(' ');
    let verb = words.next().unwrap_or_default();
    let mut number = || -> anyhow::Result<u64> {
        words.next().and_then(|word| word.parse().ok()).with_context(|| format!("{question:?} lacks a number"))
    };
    let link = number()? as usize;
    match verb {
        "limit" => network::limit(link, true, number()?, load::BS.into(), protocol.read_header() as u64)?,
        "cut" => network::cut(link, true)?,
        "restore" => network::restore(link, true)?,
        "close" => target.close_listener(link).map_err(anyhow::Error::msg)?,
        "open" => target.open_listener(link).map_err(anyhow::Error::msg)?,
        _ => anyhow::bail!("{question:?} is no question to a target"),
    }
    Ok("true".into())
}

fn start(protocol: Protocol, links: usize) -> anyhow::Result<(TargetHandle, Vec<String>)> {
    for link in 0..links {
        network::up(link, true)?;
    }
    let port = match protocol {
        Protocol::NvmeTcp => 4420,
        Protocol::Iscsi => 3260,
    };
    let target = Target::start(TargetConfig {
        listeners: (0..links).map(|link| protocol.listener(format!("{}:{port}", address(link, true)))).collect(),
        subsystems: vec![SubsystemConfig {
            iqn: Some(IQN.into()),
            ..SubsystemConfig::new(NQN, vec![NamespaceConfig::new(MEDIUM)])
        }],
        // Its core is wanted by others.
        spin_us: 0,
        ..TargetConfig::default()
    })?;
    let uris = target.addresses().into_iter().map(|at| protocol.uri(at, NQN, IQN)).collect();
    Ok((target, uris))
}

/// The same, as its parent sees it.
pub(super) struct TargetProcess {
    process: Process,
    /// Of its portals, one on each link.
    pub(super) uris: Vec<String>,
}

impl TargetProcess {
    pub(super) fn start(protocol: Protocol, links: usize) -> anyhow::Result<TargetProcess> {
        let arguments =
            ["serve-experiment".to_owned(), format!("--protocol={}", protocol.as_str()), format!("--links={links}")];
        let mut process = Process::start_as("the target", &mut network::beside(&arguments)?)?;
        let _: bool = process.answer().context("starting the target in a namespace of its own")?;
        for link in 0..links {
            network::link(link, process.id())?;
        }
        let uris = process.ask("up").context("starting the target")?;
        Ok(TargetProcess { process, uris })
    }

    /// Asks for something that is done at its end.
    pub(super) fn ask(&mut self, question: &str) -> anyhow::Result<()> {
        self.process.ask::<bool>(question).map(|_| ())
    }
}
