//! A site that grows, against one that does not, in turns.

use super::memory::Memory;
use super::report::{Busy, BusyTurn, GrowthCase, Slopes};
use super::site::Site;
use super::target::TargetProcess;
use super::{Arrangement, PATHS, RINGS, ScaleConfig, ScaleMedium, ms};
use crate::latency::round3;

/// Where and against what it is measured.
pub(super) struct Bench<'a> {
    pub(super) config: &'a ScaleConfig,
    pub(super) medium: ScaleMedium,
    pub(super) target: Option<&'a TargetProcess>,
    /// Of the guests (and the target), of the busy disk.
    pub(super) cpus: [usize; 2],
}

impl Bench<'_> {
    /// One busy disk among `disks`, against one alone.
    pub(super) fn disks(&self, disks: u32, tell: &mut impl FnMut(&str)) -> anyhow::Result<GrowthCase> {
        let alone = Arrangement { disks: 1, paths: PATHS, rings: RINGS };
        self.grow(alone, Arrangement { disks, ..alone }, tell)
    }

    /// One disk of `paths` paths, against one of a single path.
    pub(super) fn paths(&self, paths: u16, tell: &mut impl FnMut(&str)) -> anyhow::Result<GrowthCase> {
        let single = Arrangement { disks: 1, paths: 1, rings: RINGS };
        self.grow(single, Arrangement { paths, ..single }, tell)
    }

    /// What many disks take with one more path, or one more ring, each.
    pub(super) fn memory(&self, tell: &mut impl FnMut(&str)) -> anyhow::Result<Slopes> {
        let plain = Arrangement { disks: self.config.memory_disks, paths: PATHS, rings: RINGS };
        let mut of = |arrangement: Arrangement| -> anyhow::Result<(Memory, Memory)> {
            let mut site = self.site(arrangement)?;
            let found = (site.ready.empty, site.memory()?);
            site.end()?;
            tell(&format!("memory of {arrangement:?}: {} KiB", found.1.anon_kib));
            Ok(found)
        };
        let (empty, few) = of(plain)?;
        let (_, paths) = of(Arrangement { paths: 2 * PATHS, ..plain })?;
        let (_, rings) = of(Arrangement { rings: 2 * RINGS, ..plain })?;
        let disks = u64::from(plain.disks);
        Ok(Slopes {
            disks: plain.disks,
            disk_kib: Some(few.each_kib(&empty, disks)),
            path_kib: Some(paths.each_kib(&few, disks * u64::from(PATHS))),
            ring_kib: Some(rings.each_kib(&few, disks * u64::from(RINGS))),
            ..Slopes::default()
        })
    }

    fn site(&self, arrangement: Arrangement) -> anyhow::Result<Site> {
        let portals = self.target.map(|target| target.uris.as_slice()).unwrap_or_default();
        Site::start(self.medium, arrangement, portals, self.cpus)
    }

    fn grow(&self, base: Arrangement, grown: Arrangement, tell: &mut impl FnMut(&str)) -> anyhow::Result<GrowthCase> {
        let (mut few, mut many) = (self.site(base)?, self.site(grown)?);
        let memory = many.memory()?;
        // As long as all turns of a depth together: what happens once a second is to be seen.
        let (idle_cpu_pct, [resting, pollers]) = many.idle_load(self.config.time * self.config.turns as u32)?;
        let ready = many.ready;
        tell(&format!(
            "{} {grown:?}: live after {:.0} ms, guests connected within {:.0} ms, {} KiB",
            self.medium.as_str(),
            ready.live_ms,
            ms(many.connected),
            memory.anon_kib
        ));
        let sites = [&mut few, &mut many];
        sites.into_iter().for_each(Site::make_room);
        let mut busy = Vec::new();
        for &qd in &self.config.depths {
            let case = self.busy(qd, &few, &many)?;
            tell(&format!(
                "  QD {qd}: {:.0} of {:.0} IOPS undisturbed, {:.3}",
                case.iops_quiet, case.base_iops_quiet, case.iops_quiet_ratio
            ));
            busy.push(case);
        }
        let after = many.memory()?;
        let (connected, end) = (many.connected, many.end()?);
        few.end()?;
        Ok(GrowthCase {
            medium: self.medium,
            arrangement: grown,
            base,
            live_ms: ready.live_ms,
            served_ms: ready.served_ms,
            connected_ms: ms(connected),
            end_ms: ms(end),
            empty: ready.empty,
            memory,
            memory_after: after,
            idle_cpu_pct: round3(idle_cpu_pct),
            pollers,
            resting,
            busy,
        })
    }

    fn busy(&self, qd: u16, few: &Site, many: &Site) -> anyhow::Result<Busy> {
        let (mut turns, mut errors) = (Vec::new(), 0);
        for number in 0..self.config.turns {
            let base = || few.drive(self.config, qd, self.cpus[0], many);
            let grown = || many.drive(self.config, qd, self.cpus[0], few);
            let (base, grown) = if number % 2 == 1 {
                let grown = grown()?;
                (base()?, grown)
            } else {
                (base()?, grown()?)
            };
            errors += [&base, &grown].map(|r| r.errors + r.unanswered).iter().sum::<u64>();
            turns.push(BusyTurn {
                base_iops: base.iops,
                iops: grown.iops,
                base_iops_quiet: base.iops_quiet,
                iops_quiet: grown.iops_quiet,
                base_p50_us: base.lat_us.p50,
                p50_us: grown.lat_us.p50,
            });
        }
        Ok(Busy::new(qd, turns, errors))
    }
}
