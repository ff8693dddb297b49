//! The chart: what a busy disk keeps of its speed beside others, and over more paths; and memory.

use super::report::{GrowthCase, ScaleReport};
use super::{Arrangement, ScaleMedium};
use crate::chart::{colour, draw_line, draw_names};
use anyhow::anyhow;
use plotters::prelude::*;
use std::collections::BTreeSet;

const SIZE: (u32, u32) = (1140, 380);
/// Room above the greatest value, for the names of lines.
const HEADROOM: f64 = 1.35;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Points that belong together, by number of disks or paths.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// What was measured as SVG.
///
/// # Errors
/// When it cannot be drawn.
pub fn draw(report: &ScaleReport) -> anyhow::Result<String> {
    let mut svg = String::new();
    let disks = |arrangement: &Arrangement| f64::from(arrangement.disks);
    let paths = |arrangement: &Arrangement| f64::from(arrangement.paths);
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|e| anyhow!("chart: {e}"))?;
        let panels = area.split_evenly((1, 3));
        let speed = "of its speed alone";
        panel(&panels[0], "A busy disk beside others", ["disks", speed], &kept(&report.disks, disks))?;
        panel(
            &panels[1],
            "A busy disk over many paths",
            ["paths", "of its speed with one"],
            &kept(&report.paths, paths),
        )?;
        panel(&panels[2], "Memory of the serving process", ["disks", "MiB"], &memory(&report.disks, disks))?;
        area.present().map_err(|e| anyhow!("chart: {e}"))?;
    }
    Ok(svg)
}

/// A line for each medium and depth.
pub(super) fn kept(cases: &[GrowthCase], number: fn(&Arrangement) -> f64) -> Vec<Line> {
    let depths: BTreeSet<u16> = cases.iter().flat_map(|case| &case.busy).map(|busy| busy.qd).collect();
    let mut lines = Vec::new();
    for medium in ScaleMedium::ALL {
        for &qd in &depths {
            let of = cases.iter().filter(|case| case.medium == medium).filter_map(|case| {
                let busy = case.busy.iter().find(|busy| busy.qd == qd)?;
                Some((number(&case.arrangement), busy.iops_quiet_ratio))
            });
            lines.push(Line { name: format!("{} QD {qd}", medium.as_str()), points: of.collect() });
        }
    }
    lines.retain(|line| !line.points.is_empty());
    lines
}

/// A line for each medium, of the process's own memory in MiB.
fn memory(cases: &[GrowthCase], number: fn(&Arrangement) -> f64) -> Vec<Line> {
    let line = |medium: ScaleMedium| {
        let of = cases.iter().filter(|case| case.medium == medium);
        let points = of.map(|case| (number(&case.arrangement), case.memory.anon_kib as f64 / 1024.0));
        Line { name: medium.as_str().to_owned(), points: points.collect() }
    };
    ScaleMedium::ALL.into_iter().map(line).filter(|line| !line.points.is_empty()).collect()
}

fn panel(area: &Area<'_>, title: &str, [across, up]: [&str; 2], lines: &[Line]) -> anyhow::Result<()> {
    let fail = |e: &dyn std::fmt::Display| anyhow!("chart \"{title}\": {e}");
    let points = || lines.iter().flat_map(|line| &line.points);
    let right = points().map(|p| p.0).fold(2.0, f64::max);
    let top = points().map(|p| p.1).fold(1.0, f64::max) * HEADROOM;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(50)
        .build_cartesian_2d((1.0..right * 1.1).log_scale(), 0.0..top)
        .map_err(|e| fail(&e))?;
    chart
        .configure_mesh()
        .x_desc(across)
        .y_desc(up)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .light_line_style(WHITE)
        .draw()
        .map_err(|e| fail(&e))?;
    for (n, line) in lines.iter().enumerate() {
        draw_line(&mut chart, n, &line.name, line.points.iter().copied()).map_err(|e| fail(&e))?;
        let dots = line.points.iter().map(|&at| Circle::new(at, 3, colour(n).filled()));
        chart.draw_series(dots).map_err(|e| fail(&e))?;
    }
    if !lines.is_empty() {
        draw_names(&mut chart, SeriesLabelPosition::UpperRight).map_err(|e| fail(&e))?;
    }
    Ok(())
}
