//! What an experiment found: rows for a file, rows for people, a picture, and what was to be reached.

use super::Part;
use crate::protocol::Protocol;
use serde::Serialize;

/// All that was found. The names of the fields are the keys of the JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct SumpReport {
    /// Always `experiment sump`.
    pub mode: &'static str,
    /// Measured seconds of each figure.
    pub seconds: f64,
    /// Requests outstanding.
    pub qd: u16,
    /// Bytes a request.
    pub bs: u32,
    /// One for each part and protocol.
    pub outcomes: Vec<Outcome>,
    /// What was not measured, why, and how to get what is missing.
    pub skipped: Vec<String>,
}

impl SumpReport {
    /// Did every request come back and succeed, and was every block right?
    pub fn is_good(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.failed == 0)
    }
}

/// What one part found over one protocol.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its letter.
    pub part: &'static str,
    /// What was spoken.
    pub protocol: &'static str,
    /// In what guest; empty for none.
    pub guest: &'static str,
    /// What was asked.
    pub title: String,
    /// Every figure: the CSV file.
    pub figures: Grid,
    /// The table for people.
    pub table: Grid,
    /// Remarks below the table.
    pub remarks: Vec<String>,
    /// What was to be reached.
    pub goals: Vec<Goal>,
    /// Requests that failed or never came back, and blocks that were wrong.
    pub failed: u64,
    #[serde(skip)]
    pub(super) picture: Picture,
}

impl Outcome {
    pub(super) fn new(part: Part, protocol: Protocol, title: impl Into<String>, picture: Picture) -> Outcome {
        Outcome {
            part: part.as_str(),
            protocol: protocol.as_str(),
            guest: "",
            title: title.into(),
            figures: Grid::default(),
            table: Grid::default(),
            remarks: Vec::new(),
            goals: Vec::new(),
            failed: 0,
            picture,
        }
    }

    /// The name of its files.
    pub(super) fn stem(&self) -> String {
        let within = if self.guest.is_empty() { "" } else { "-" };
        format!("{}-{}{within}{}", self.part, self.protocol, self.guest)
    }
}

/// Columns with names, and rows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Grid {
    /// Names.
    pub columns: Vec<String>,
    /// A cell for each column.
    pub rows: Vec<Vec<String>>,
}

impl Grid {
    pub(super) fn new(columns: &[&str]) -> Grid {
        Grid { columns: columns.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }
}

/// What was to be reached, and what was.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// Of what.
    pub what: String,
    /// At least this.
    pub goal: f64,
    /// This was reached.
    pub reached: f64,
}

impl Goal {
    /// Was it?
    pub fn is_reached(&self) -> bool {
        self.reached >= self.goal
    }
}

/// What is drawn.
#[derive(Clone, Debug)]
pub(super) enum Picture {
    /// Bars of several kinds, above one another.
    Panels(Vec<Panel>),
    /// A bar for each figure, and the limit of all.
    Bars { unit: &'static str, bars: Vec<(String, f64)>, limit: f64 },
    /// Lines over something, with marks where something was done.
    Lines { axes: [&'static str; 2], logarithmic: bool, lines: Vec<Line>, marks: Vec<(f64, String)> },
}

/// Bars of one kind.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    pub(super) unit: &'static str,
    pub(super) bars: Vec<(String, f64)>,
}

/// A line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}
