//! Files: CSV, a chart for each part, and the tables as one text.

use super::chart;
use super::outcome::{Grid, Outcome, SumpReport};
use anyhow::Context as _;
use std::fmt::Write as _;
use std::path::Path;

/// Makes the folder, if it is not there.
pub(super) fn folder(out: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("--out {}: cannot be made", out.display()))
}

/// The figures and the chart of one part.
pub(super) fn outcome(out: &Path, outcome: &Outcome) -> anyhow::Result<()> {
    put(out, &format!("{}.csv", outcome.stem()), &csv(&outcome.figures))?;
    put(out, &format!("{}.svg", outcome.stem()), &chart::draw(outcome)?)
}

/// All tables.
pub(super) fn report(out: &Path, report: &SumpReport) -> anyhow::Result<()> {
    put(out, "sump.md", &report.to_string())
}

impl std::fmt::Display for SumpReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "Requests of {} bytes, {} outstanding, {} s for each figure.", self.bs, self.qd, self.seconds)?;
        for outcome in &self.outcomes {
            writeln!(f, "\n## ({}) {}, {}\n", outcome.part, outcome.title, outcome.protocol)?;
            f.write_str(&markdown(&outcome.table))?;
            for remark in &outcome.remarks {
                writeln!(f, "\n{remark}.")?;
            }
            for goal in &outcome.goals {
                let said = if goal.is_reached() { "reached" } else { "missed" };
                writeln!(f, "\nGoal, {}: {} ({:.3}): {said}.", goal.what, goal.goal, goal.reached)?;
            }
            if outcome.failed > 0 {
                writeln!(f, "\n{} requests failed, never came back, or were wrong.", outcome.failed)?;
            }
        }
        for skipped in &self.skipped {
            writeln!(f, "\n{skipped}.")?;
        }
        Ok(())
    }
}

fn put(out: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let file = out.join(name);
    std::fs::write(&file, text).with_context(|| format!("--out: {} cannot be written", file.display()))
}

/// RFC 4180, for cells that hold neither quotation marks nor ends of lines; those with a comma are put in quotation marks.
pub(super) fn csv(grid: &Grid) -> String {
    let cell = |cell: &String| if cell.contains(',') { format!("\"{cell}\"") } else { cell.clone() };
    let mut text = String::new();
    for row in std::iter::once(&grid.columns).chain(&grid.rows) {
        let cells: Vec<String> = row.iter().map(cell).collect();
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{}", cells.join(","));
    }
    text
}

pub(super) fn markdown(grid: &Grid) -> String {
    let line = |row: &[String]| format!("| {} |\n", row.join(" | "));
    let rule = vec!["---".to_owned(); grid.columns.len()];
    std::iter::once(line(&grid.columns)).chain([line(&rule)]).chain(grid.rows.iter().map(|row| line(row))).collect()
}
