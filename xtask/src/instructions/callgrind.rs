//! Running a program under callgrind, and reading what it counted.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The doors of `tests/instructions/src/counted.rs`. Collecting is turned over at each entry and each return, so that the second one, when
/// it is inside the first, leaves something out.
const DOORS: [&str; 2] = ["*polypath_counted*", "*polypath_uncounted*"];

/// What one run has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) instructions: u64,
    /// Requests that the program says it has done.
    pub(super) requests: u64,
}

/// Runs `program NAME ROUNDS`; callgrind's own file stays in `output`, for whoever wants to know where the instructions are.
pub(super) fn count(program: &Path, name: &str, rounds: u64, output: &Path) -> Result<Counted> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet", "--collect-atstart=no"]);
    command.args(DOORS.map(|door| format!("--toggle-collect={door}")));
    command.arg(format!("--callgrind-out-file={}", output.display()));
    command.arg(program).args([name, &rounds.to_string()]).stdin(Stdio::null());
    let ran = command.output().context("cannot run valgrind")?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{name} under callgrind ended with {}:\n{said}", ran.status);
    let requests = String::from_utf8_lossy(&ran.stdout);
    let requests =
        requests.trim().parse().with_context(|| format!("{name} says `{requests}`, no number of requests"))?;
    let text = std::fs::read_to_string(output).with_context(|| format!("cannot read {}", output.display()))?;
    let instructions = total(&text).with_context(|| format!("{} is not as expected", output.display()))?;
    Ok(Counted { instructions, requests })
}

/// The instructions in a file of callgrind's.
fn total(text: &str) -> Result<u64> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let events = value("events:").context("it says no events")?;
    ensure!(events == "Ir", "it counts `{events}`; expected instructions alone, `Ir`");
    let total = value("totals:").context("it has no totals: it is cut short")?;
    let total = total.parse().with_context(|| format!("`{total}` is no total"))?;
    ensure!(total > 0, "nothing was counted: the program has no function like {}", DOORS[0]);
    Ok(total)
}

/// Instructions that each further request takes: what happens once, however much is asked for, is in both runs and does not count.
pub(super) fn slope(few: Counted, many: Counted) -> Result<f64> {
    ensure!(many.requests > few.requests, "{} requests are no more than {}", many.requests, few.requests);
    let more = many.instructions.checked_sub(few.instructions).context("more requests took fewer instructions")?;
    Ok(more as f64 / (many.requests - few.requests) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# callgrind format\nversion: 1\ncreator: callgrind-3.19.0\npid: 7\ncmd: x totals: 5\npart: 1\n\n\
        positions: line\nevents: Ir\nsummary: 256600\n\n\nob=(1) x\nfl=(1) y\nfn=(1) z\n62 100\n\ntotals: 256600\n";

    #[test]
    fn the_total_is_read() {
        assert_eq!(total(FILE).unwrap(), 256_600);
    }

    #[test]
    fn a_file_that_cannot_be_relied_on_is_an_error() {
        for (from, to, part) in [
            ("events: Ir\n", "", "no events"),
            ("events: Ir\n", "events: Ir Dr\n", "`Ir Dr`"),
            ("\ntotals: 256600\n", "\n", "cut short"),
            ("\ntotals: 256600\n", "\ntotals: many\n", "`many`"),
            ("\ntotals: 256600\n", "\ntotals: 0\n", "nothing was counted"),
        ] {
            assert!(FILE.contains(from), "{from}");
            let said = format!("{:#}", total(&FILE.replace(from, to)).unwrap_err());
            assert!(said.contains(part), "{to}: {said}");
        }
    }

    #[test]
    fn what_happens_once_does_not_count() {
        let run = |requests| Counted { instructions: 1_000_000 + 250 * requests, requests };
        assert_eq!(slope(run(100), run(200)).unwrap(), 250.0);
        assert!(slope(run(100), run(100)).is_err());
        assert!(slope(run(100), Counted { requests: 200, instructions: 7 }).is_err());
    }
}
