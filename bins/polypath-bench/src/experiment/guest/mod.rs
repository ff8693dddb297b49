//! (d) Linux's own initiator against ours: in the same guest, over the same four links, to the same target (tgtd), with the same rule.
//!
//! The kernel's side is open-iscsi's sessions under dm-multipath with its queue-length rule, loaded by fio; ours is this program. A guest
//! has one processor, so that what it is busy with is what an initiator and its load take. They are measured in turns: kernel, ours, ours,
//! kernel. Read `arrangement.rs` next.

mod arrangement;
mod figures;

use super::load::{ALIKE, LINKS, UNLIKE};
use super::outcome::{Grid, Outcome, Panel, Picture};
use super::{Part, SumpConfig};
use crate::protocol::Protocol;
use arrangement::Arrangement;
pub(super) use arrangement::Kind;
use figures::Figures;

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Initiator {
    Kernel,
    Ours,
}

impl Initiator {
    fn as_str(self) -> &'static str {
        match self {
            Initiator::Kernel => "kernel",
            Initiator::Ours => "ours",
        }
    }
}

/// Whose turn it is: a machine that changes meanwhile does so to both.
const TURNS: [Initiator; 4] = [Initiator::Kernel, Initiator::Ours, Initiator::Ours, Initiator::Kernel];

/// Limits of the links, with a name; no limit is 0.
const CASES: [(&str, [u64; LINKS]); 3] =
    [("4 x 10 MB/s", ALIKE), ("1 1 100 100 MB/s", UNLIKE), ("no limit", [0; LINKS])];

/// One line for each turn.
struct Turn {
    case: &'static str,
    initiator: Initiator,
    figures: Figures,
}

/// What became of one kind of guest.
pub(super) enum Found {
    Measured(Box<Outcome>),
    /// Why not, and how to get what is missing.
    Skipped(String),
}

/// Measures in one kind of guest, where this machine has what that takes.
///
/// # Errors
/// It does and the guest does not come up, or what runs in it does not.
pub(super) fn measure(kind: Kind, config: &SumpConfig, tell: &mut impl FnMut(&str)) -> anyhow::Result<Found> {
    let why = match kind.missing() {
        Some(why) => why,
        None => {
            let mut arrangement = Arrangement::start(kind, config)?;
            match arrangement.unfit() {
                Some(why) => why,
                None => return turns(&mut arrangement, tell).map(|outcome| Found::Measured(Box::new(outcome))),
            }
        }
    };
    let said = format!("(d) in {} was skipped: {why}", kind.words());
    tell(&said);
    Ok(Found::Skipped(said))
}

fn turns(arrangement: &mut Arrangement, tell: &mut impl FnMut(&str)) -> anyhow::Result<Outcome> {
    let kind = arrangement.kind;
    let mut turns = Vec::new();
    for (case, limits) in CASES {
        arrangement.limit(limits)?;
        for initiator in TURNS {
            let figures = arrangement.turn(initiator)?;
            tell(&format!(
                "{}, {case}, {}: {:.2} MB/s, p99 {:.0} us, {:.0} us of processor for each",
                kind.words(),
                initiator.as_str(),
                figures.mb_s(),
                figures.p99_us,
                figures.cpu_us()
            ));
            turns.push(Turn { case, initiator, figures });
        }
    }
    Ok(outcome(kind, &turns, arrangement))
}

fn outcome(kind: Kind, turns: &[Turn], arrangement: &Arrangement) -> Outcome {
    let title = format!("The kernel's initiator against ours in {}", kind.words());
    let (table, picture) = compared(turns);
    let mut outcome = Outcome::new(Part::D, Protocol::Iscsi, title, picture);
    outcome.guest = kind.as_str();
    outcome.figures = Grid::new(&[
        "limits",
        "initiator",
        "mb_s",
        "iops",
        "p50_us",
        "p99_us",
        "p99_9_us",
        "busy_pct",
        "cpu_us_per_io",
    ]);
    for Turn { case, initiator, figures } in turns {
        let mut row = vec![(*case).to_owned(), initiator.as_str().to_owned()];
        row.extend(figures.cells());
        outcome.figures.rows.push(row);
        outcome.failed += figures.failed;
    }
    outcome.table = table;
    outcome.remarks.push(format!(
        "Means of two turns each. The guest has one processor and runs Linux {}; its clock is {}",
        arrangement.release, arrangement.clock
    ));
    outcome
}

/// The table for people and the picture: the mean of both turns of each initiator, and one against the other.
fn compared(turns: &[Turn]) -> (Grid, Picture) {
    let mut table = Grid::new(&[
        "limits",
        "initiator",
        "MB/s",
        "IOPS",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "busy %",
        "processor µs per I/O",
    ]);
    let mut panels = ["MB/s", "p99, ms", "processor, µs per I/O"].map(|unit| Panel { unit, bars: Vec::new() });
    for (case, _) in CASES {
        let mean = |initiator| {
            Figures::mean(turns.iter().filter(|t| t.case == case && t.initiator == initiator).map(|t| &t.figures))
        };
        let (kernel, ours) = (mean(Initiator::Kernel), mean(Initiator::Ours));
        for (name, figures) in [("kernel", &kernel), ("ours", &ours)] {
            table.rows.push([vec![case.to_owned(), name.to_owned()], figures.cells()].concat());
            for (panel, value) in panels.iter_mut().zip([figures.mb_s(), figures.p99_us / 1000.0, figures.cpu_us()]) {
                panel.bars.push((format!("{name}, {case}"), value));
            }
        }
        table.rows.push([vec![case.to_owned(), "ours / kernel".to_owned()], ours.against(&kernel)].concat());
    }
    (table, Picture::Panels(panels.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_has_a_line_for_each_side_and_their_ratio() {
        let figures = |iops| Figures { iops, p50_us: 100.0, p99_us: 200.0, p99_9_us: 300.0, busy: 0.5, failed: 0 };
        let turns: Vec<Turn> = CASES
            .iter()
            .flat_map(|&(case, _)| TURNS.iter().zip([900.0, 2000.0, 2200.0, 1100.0]).map(move |turn| (case, turn)))
            .map(|(case, (&initiator, iops))| Turn { case, initiator, figures: figures(iops) })
            .collect();
        let (table, picture) = compared(&turns);
        assert_eq!(table.rows.len(), 3 * CASES.len());
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{table:?}");
        assert_eq!(table.rows[0][..4], ["4 x 10 MB/s", "kernel", "4.10", "1000"]);
        assert_eq!(table.rows[2][1..5], ["ours / kernel", "2.10", "2.10", "1.00"]);
        let Picture::Panels(panels) = picture else { panic!("{picture:?}") };
        assert!(panels.iter().all(|panel| panel.bars.len() == 2 * CASES.len()));
    }
}
