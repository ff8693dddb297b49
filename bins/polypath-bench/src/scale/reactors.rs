//! One reactor against two: a job on each, all on one disk, a group as `polypathd` makes of every disk.
//!
//! There are no guests: they would want the same two cores. The target of TCP does, and so has a thread on each in both cases.

use super::report::{ReactorCase, ReactorTurn};
use super::target::TargetProcess;
use super::{PATHS, ScaleConfig, ScaleMedium};
use crate::run::{self, RunConfig, RunReport};
use polypath_multipath::SelectorKind;
use polypath_reactor::CpuList;

/// Requests outstanding of each job.
const QD: u16 = 32;

pub(super) fn measure(
    config: &ScaleConfig,
    medium: ScaleMedium,
    cpus: [usize; 2],
    tell: &mut impl FnMut(&str),
) -> anyhow::Result<ReactorCase> {
    let target = match medium {
        ScaleMedium::Tcp => Some(TargetProcess::start(1, PATHS, &cpus)?),
        ScaleMedium::Null | ScaleMedium::Ram => None,
    };
    let uris = match (medium.local(), &target) {
        // The bench watches each of several paths, which is its own cost.
        (Some(uri), _) => vec![uri],
        (None, Some(target)) => target.uris.iter().take(1).map(|uri| format!("{uri}?ns=1")).collect(),
        (None, None) => Vec::new(),
    };
    let uris = uris.iter().map(|uri| uri.parse()).collect::<Result<Vec<_>, _>>()?;
    let on = |cpus: &[usize]| -> anyhow::Result<RunReport> {
        let run = RunConfig {
            selector: Some(SelectorKind::default()),
            qd: QD,
            jobs: cpus.len() as u16,
            cpus: Some(CpuList(cpus.to_vec())),
            time: config.time,
            ramp: config.ramp,
            ..RunConfig::new(uris.clone())
        };
        run::run(&run, |_| ())
    };
    let (mut turns, mut errors) = (Vec::new(), 0);
    for number in 0..config.turns {
        // Either core is the one of the single reactor in turn: they may not be alike.
        let alone = [cpus[number % 2]];
        let (one, two) = if number % 4 >= 2 {
            let two = on(&cpus)?;
            (on(&alone)?, two)
        } else {
            (on(&alone)?, on(&cpus)?)
        };
        errors += [&one, &two].map(|r| r.errors + r.unanswered).iter().sum::<u64>();
        turns.push(ReactorTurn {
            one_iops: one.iops,
            two_iops: two.iops,
            one_iops_quiet: one.iops_quiet,
            two_iops_quiet: two.iops_quiet,
            core_taken_pct: [one.core_taken_pct, two.core_taken_pct],
        });
    }
    let case = ReactorCase::new(medium, QD, turns, errors);
    tell(&format!("{}: two reactors do {:.2} times what one does", medium.as_str(), case.iops_quiet_ratio));
    Ok(case)
}
