//! The chart of a part.

use super::outcome::{Line, Outcome, Panel, Picture};
use crate::chart::{colour, draw_line, draw_names};
use anyhow::anyhow;
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 440);
/// Of one of several above one another.
const PANEL_HEIGHT: u32 = 240;
/// Room above the greatest value, for names.
const HEADROOM: f64 = 1.3;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = Result<(), crate::chart::Failure<SVGBackend<'a>>>;

/// `outcome` as SVG.
pub(super) fn draw(outcome: &Outcome) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let size = match &outcome.picture {
            Picture::Panels(panels) => (SIZE.0, PANEL_HEIGHT * panels.len() as u32),
            _ => SIZE,
        };
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let title = format!("({}) {}, {}", outcome.part, outcome.title, outcome.protocol);
        let drawn = match &outcome.picture {
            Picture::Panels(panels) => draw_panels(&area, &title, panels),
            Picture::Bars { unit, bars, limit } => draw_bars(&area, &title, unit, bars, *limit),
            Picture::Lines { axes, logarithmic, lines, marks } => {
                draw_lines(&area, &title, *axes, *logarithmic, lines, marks)
            }
        };
        drawn.and_then(|()| area.present()).map_err(|e| anyhow!("chart \"{title}\": {e}"))?;
    }
    Ok(svg)
}

fn draw_panels<'a>(area: &Area<'a>, title: &str, panels: &[Panel]) -> Drawn<'a> {
    for (part, panel) in area.split_evenly((panels.len(), 1)).iter().zip(panels) {
        draw_bars(part, title, panel.unit, &panel.bars, 0.0)?;
    }
    Ok(())
}

/// `limit` is 0 where there is none.
fn draw_bars<'a>(area: &Area<'a>, title: &str, unit: &str, bars: &[(String, f64)], limit: f64) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let top = bars.iter().map(|bar| bar.1).fold(limit, f64::max) * HEADROOM;
    let right = bars.len().max(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(10)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().disable_x_mesh().disable_x_axis().y_desc(unit).light_line_style(WHITE).draw()?;
    if limit > 0.0 {
        chart.draw_series([PathElement::new([(0.0, limit), (right, limit)], BLACK.mix(0.5))])?;
        chart.draw_series([Text::new("sum of the paths", (0.02 * right, limit * 1.05), ("sans-serif", 12))])?;
    }
    for (n, (name, value)) in bars.iter().enumerate() {
        let left = n as f64;
        chart
            .draw_series([Rectangle::new([(left + 0.15, 0.0), (left + 0.85, *value)], colour(n).mix(0.8).filled())])?;
        let above = |up: f64| (left + 0.15, value + top * up);
        chart.draw_series([
            Text::new(name.clone(), above(0.07), ("sans-serif", 11)),
            Text::new(format!("{value:.1}"), above(0.035), ("sans-serif", 11)),
        ])?;
    }
    Ok(())
}

fn draw_lines<'a>(
    area: &Area<'a>,
    title: &str,
    [across, up]: [&str; 2],
    logarithmic: bool,
    lines: &[Line],
    marks: &[(f64, String)],
) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let points = || lines.iter().flat_map(|line| &line.points);
    let right = points().map(|p| p.0).fold(2.0, f64::max);
    let top = points().map(|p| p.1).fold(1.0, f64::max) * HEADROOM;
    let mut builder = ChartBuilder::on(area);
    builder.caption(title, ("sans-serif", 18)).margin(12).x_label_area_size(36).y_label_area_size(60);
    // Two kinds of axes are two types.
    if logarithmic {
        let mut chart = builder.build_cartesian_2d((1.0..right * 1.05).log_scale(), 0.0..top)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(across).y_desc(up).x_label_formatter(&|x| format!("{x:.0}")).light_line_style(WHITE).draw()?;
        for (n, line) in lines.iter().enumerate() {
            draw_line(&mut chart, n, &line.name, line.points.iter().copied())?;
        }
        return draw_names(&mut chart, SeriesLabelPosition::UpperRight);
    }
    let mut chart = builder.build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc(across).y_desc(up).light_line_style(WHITE).draw()?;
    for (n, line) in lines.iter().enumerate() {
        draw_line(&mut chart, n, &line.name, line.points.iter().copied())?;
    }
    for (at, text) in marks {
        chart.draw_series([PathElement::new([(*at, 0.0), (*at, top)], BLACK.mix(0.4))])?;
        chart.draw_series([Text::new(text.clone(), (at + right * 0.004, top * 0.98), ("sans-serif", 12))])?;
    }
    draw_names(&mut chart, SeriesLabelPosition::UpperRight)
}
