//! What charts of this project have in common: the colours and names of their lines.

use plotters::coord::CoordTranslate;
use plotters::prelude::*;

const PALETTE: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 96, 20),
    RGBColor(44, 140, 44),
    RGBColor(170, 40, 120),
    RGBColor(120, 90, 60),
    RGBColor(0, 150, 160),
    RGBColor(150, 150, 30),
    RGBColor(90, 90, 90),
];

/// Why something could not be drawn on `DB`.
pub type Failure<DB> = DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>;

/// The colour of line `n`.
pub fn colour(n: usize) -> RGBColor {
    PALETTE[n % PALETTE.len()]
}

/// Draws line `n`, which is called `name`, through `points`.
///
/// # Errors
/// As the back-end of the chart.
pub fn draw_line<'a, DB: DrawingBackend + 'a, CT: CoordTranslate<From = (f64, f64)>>(
    chart: &mut ChartContext<'a, DB, CT>,
    n: usize,
    name: &str,
    points: impl IntoIterator<Item = (f64, f64)>,
) -> Result<(), Failure<DB>> {
    let colour = colour(n);
    chart
        .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
        .label(name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    Ok(())
}

/// Draws the names of the lines at `position`.
///
/// # Errors
/// As the back-end of the chart.
pub fn draw_names<'a, DB: DrawingBackend + 'a, CT: CoordTranslate>(
    chart: &mut ChartContext<'a, DB, CT>,
    position: SeriesLabelPosition,
) -> Result<(), Failure<DB>> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
}
