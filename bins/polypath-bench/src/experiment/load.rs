//! What all parts share: the target with its links, and a run over some of them.

use super::SumpConfig;
use super::network;
use super::serve::TargetProcess;
use crate::protocol::Protocol;
use crate::run::{Mix, Progress, RunConfig, RunReport, run};
use polypath_block::DiskUri;
use polypath_multipath::SelectorKind;
use std::time::Duration;

/// Bytes a request.
pub(super) const BS: u32 = 4096;
/// Links between the namespaces.
pub(super) const LINKS: usize = 4;
/// A million bytes.
pub(super) const MB: u64 = 1_000_000;
/// Four paths alike, in bytes a second.
pub(super) const ALIKE: [u64; LINKS] = [10 * MB; LINKS];
/// Paths that are not.
pub(super) const UNLIKE: [u64; LINKS] = [MB, MB, 100 * MB, 100 * MB];

/// The arrangement for one protocol.
pub(super) struct Bench {
    pub(super) protocol: Protocol,
    pub(super) time: Duration,
    pub(super) qd: u16,
    target: TargetProcess,
    paths: Vec<DiskUri>,
}

/// How a path is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cut {
    /// The target resets the connections and closes the port.
    Closed,
    /// The network carries nothing any more, and nobody says so.
    Silent,
}

impl Bench {
    pub(super) fn start(config: &SumpConfig, protocol: Protocol) -> anyhow::Result<Bench> {
        let target = TargetProcess::start(protocol, LINKS)?;
        let paths: Result<Vec<DiskUri>, _> = target.uris.iter().map(|uri| uri.parse()).collect();
        Ok(Bench { protocol, time: config.time, qd: config.qd, target, paths: paths? })
    }

    /// Limits each link to so many bytes of data a second; 0 for no limit.
    pub(super) fn limit(&mut self, bytes_per_s: [u64; LINKS]) -> anyhow::Result<()> {
        for (link, limit) in bytes_per_s.iter().enumerate() {
            self.target.ask(&format!("limit {link} {limit}"))?;
        }
        Ok(())
    }

    pub(super) fn cut(&mut self, link: usize, how: Cut) -> anyhow::Result<()> {
        match how {
            Cut::Closed => self.target.ask(&format!("close {link}")),
            Cut::Silent => network::cut(link, false).and_then(|()| self.target.ask(&format!("cut {link}"))),
        }
    }

    pub(super) fn restore(&mut self, link: usize, how: Cut) -> anyhow::Result<()> {
        match how {
            Cut::Closed => self.target.ask(&format!("open {link}")),
            Cut::Silent => network::restore(link, false).and_then(|()| self.target.ask(&format!("restore {link}"))),
        }
    }

    /// Random reads over the first `paths` paths with `selector`, for the usual time.
    pub(super) fn reads(&self, paths: usize, selector: SelectorKind) -> RunConfig {
        RunConfig {
            // A group, also with one path: it is what is compared.
            selector: Some(selector),
            mix: Mix::RandRead,
            bs: BS,
            qd: self.qd,
            time: self.time,
            // Queues of a slow path fill in this time.
            ramp: self.time / 4,
            ..RunConfig::new(self.paths[..paths].to_vec())
        }
    }

    /// Runs `config`; `progress` gets this arrangement, too.
    pub(super) fn run(
        &mut self,
        config: &RunConfig,
        mut progress: impl FnMut(&mut Bench, &Progress),
    ) -> anyhow::Result<RunReport> {
        run(config, |now| progress(self, now))
    }
}

/// A million bytes a second: what links are limited in.
pub(super) fn mb_s(ios: f64, seconds: f64) -> f64 {
    ios * f64::from(BS) / seconds / MB as f64
}
