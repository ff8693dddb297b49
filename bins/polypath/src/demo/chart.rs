//! Throughput over time, one line a path, as SVG.

use super::report::{Mark, Sample};
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use polypath_bench::chart::{draw_line, draw_names};
use std::path::Path;

/// Draws `samples` (MiB/s per path) with `marks` for what was done to which path.
pub(super) fn draw(file: &Path, names: &[String], samples: &[Sample], marks: &[Mark]) -> Result<()> {
    let end = samples.last().map_or(1.0, |s| s.at_s).max(1.0);
    let top = samples.iter().flat_map(|s| s.mib_s.iter().copied()).fold(1.0f64, f64::max) * 1.45;
    let area = SVGBackend::new(file, (960, 480)).into_drawing_area();
    let fail = |e: &dyn std::fmt::Display| anyhow!("chart {}: {e}", file.display());
    area.fill(&WHITE).map_err(|e| fail(&e))?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Throughput per path under verified mixed I/O", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..top)
        .map_err(|e| fail(&e))?;
    chart.configure_mesh().x_desc("seconds").y_desc("MiB/s").light_line_style(WHITE).draw().map_err(|e| fail(&e))?;
    for (i, name) in names.iter().enumerate() {
        let line = samples.iter().map(|s| (s.at_s, s.mib_s.get(i).copied().unwrap_or(0.0)));
        draw_line(&mut chart, i, name, line).map_err(|e| fail(&e))?;
    }
    for (i, mark) in marks.iter().enumerate() {
        // Neighbours in time would write over each other: go down a row with each.
        let row = top * (0.985 - 0.045 * (i % 6) as f64);
        let line = [(mark.at_s, 0.0), (mark.at_s, top)];
        chart.draw_series([PathElement::new(line, BLACK.mix(0.4))]).map_err(|e| fail(&e))?;
        // The second half of a long line would leave the picture.
        let short: String = mark.text.split(':').next().unwrap_or("").to_owned();
        let text = Text::new(short, (mark.at_s + end * 0.004, row), ("sans-serif", 11));
        chart.draw_series([text]).map_err(|e| fail(&e))?;
    }
    draw_names(&mut chart, SeriesLabelPosition::LowerRight).map_err(|e| fail(&e))?;
    area.present().map_err(|e| fail(&e))
}
