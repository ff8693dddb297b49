//! Mutants by name, and the table of those that may survive: a row each, with the reason.
//!
//! A mutant is known by its file and by what it changes, not by its line, so that a row outlives changes elsewhere in the file. Two
//! mutants may then have one name: two rows excuse two of them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};

/// The heading under which the table stands.
const HEADING: &str = "## Survivors";

/// What a mutant changes, and where. Equal are those of one name, wherever they stand in their file.
#[derive(Debug, Clone)]
pub(crate) struct Mutant {
    file: String,
    change: String,
    /// Line and column; none for a row of the table.
    at: Option<(u32, u32)>,
}

impl PartialEq for Mutant {
    fn eq(&self, other: &Mutant) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Mutant {}

impl PartialOrd for Mutant {
    fn partial_cmp(&self, other: &Mutant) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Mutant {
    fn cmp(&self, other: &Mutant) -> Ordering {
        self.name().cmp(&other.name())
    }
}

impl Mutant {
    /// Reads what cargo-mutants prints: `FILE:LINE:COLUMN: CHANGE`.
    pub(crate) fn parse(line: &str) -> Result<Mutant> {
        let parts: Vec<&str> = line.splitn(4, ':').collect();
        if let [file, line, column, change] = parts[..]
            && let (Ok(line), Ok(column)) = (line.parse(), column.parse())
        {
            return Ok(Mutant { file: file.to_owned(), change: change.trim().to_owned(), at: Some((line, column)) });
        }
        anyhow::bail!("`{line}` is no mutant; expected FILE:LINE:COLUMN: CHANGE")
    }

    fn name(&self) -> (&str, &str) {
        (&self.file, &self.change)
    }

    /// As cargo-mutants lists it.
    pub(crate) fn listed(&self) -> String {
        match self.at {
            Some((line, column)) => format!("{}:{line}:{column}: {}", self.file, self.change),
            None => self.to_string(),
        }
    }

    /// Whether the two are one: the same change at the same place.
    pub(crate) fn is_at(&self, other: &Mutant) -> bool {
        self == other && self.at == other.at
    }

    /// The row that would excuse it, without the reason.
    pub(crate) fn as_row(&self) -> String {
        format!("| `{}` | `{}` | |", self.file, self.change.replace('|', "\\|"))
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.change)
    }
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Where it stands in its file, from 1.
    pub(crate) line: usize,
    pub(crate) mutant: Mutant,
    pub(crate) reason: String,
}

impl Row {
    pub(crate) fn has_reason(&self) -> bool {
        self.reason.chars().filter(|c| c.is_alphabetic()).count() > 3
    }
}

/// The rows under [`HEADING`]: file, change and reason, the first two in backticks, `|` in them written `\|`.
pub(crate) fn parse_table(text: &str) -> Result<Vec<Row>> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let mut section = lines.skip_while(|(_, line)| *line != HEADING);
    section.next().with_context(|| format!("there is no heading \"{HEADING}\""))?;
    let table = section.take_while(|(_, line)| !line.starts_with("## ")).filter(|(_, line)| line.starts_with('|'));
    let mut rows = Vec::new();
    // The first two are the names of the columns and the rule below them.
    for (line, text) in table.skip(2) {
        let cells = cells(text);
        ensure!(cells.len() == 3, "line {line} has {} columns; expected file, change and reason", cells.len());
        let code = |cell: &str| -> Result<String> {
            let inner = cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
            Ok(inner.with_context(|| format!("line {line}: expected `{cell}` in backticks"))?.to_owned())
        };
        let mutant = Mutant { file: code(&cells[0])?, change: code(&cells[1])?, at: None };
        rows.push(Row { line, mutant, reason: cells[2].clone() });
    }
    Ok(rows)
}

/// Survivors that no row with a reason excuses. A row excuses one of a name.
pub(crate) fn unexcused(survived: &[Mutant], rows: &[Row]) -> Vec<Mutant> {
    let mut excuses = count(rows.iter().filter(|row| row.has_reason()).map(|row| &row.mutant));
    let mut left_over = Vec::new();
    for mutant in survived {
        match excuses.get_mut(mutant) {
            Some(left) if *left > 0 => *left -= 1,
            _ => left_over.push(mutant.clone()),
        }
    }
    left_over
}

/// Rows that nothing needs: more of a name than have survived, those of `every` that were not `chosen` counted as survivors.
pub(crate) fn stale<'a>(rows: &'a [Row], survived: &[Mutant], every: &[Mutant], chosen: &[Mutant]) -> Vec<&'a Row> {
    let (survived, every, chosen) = (count(survived), count(every), count(chosen));
    let of = |counts: &BTreeMap<&Mutant, usize>, mutant| counts.get(mutant).copied().unwrap_or(0);
    let mut seen: BTreeMap<&Mutant, usize> = BTreeMap::new();
    let needed = |mutant| of(&survived, mutant) + of(&every, mutant).saturating_sub(of(&chosen, mutant));
    rows.iter()
        .filter(|row| {
            let seen = seen.entry(&row.mutant).or_default();
            *seen += 1;
            *seen > needed(&row.mutant)
        })
        .collect()
}

fn count<'a>(mutants: impl IntoIterator<Item = &'a Mutant>) -> BTreeMap<&'a Mutant, usize> {
    let mut counts = BTreeMap::new();
    for mutant in mutants {
        *counts.entry(mutant).or_default() += 1;
    }
    counts
}

/// The cells of a row, without the marks at its ends; `\|` is a character of a cell.
fn cells(row: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut characters = row.trim().trim_start_matches('|').chars().peekable();
    while let Some(c) = characters.next() {
        let last = cells.len() - 1;
        match c {
            '\\' if characters.peek() == Some(&'|') => {
                characters.next();
                cells[last].push('|');
            }
            '|' => cells.push(String::new()),
            _ => cells[last].push(c),
        }
    }
    // What follows the last mark is nothing.
    if cells.last().is_some_and(|cell| cell.trim().is_empty()) {
        cells.pop();
    }
    cells.iter().map(|cell| cell.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OR: &str = "crates/a/src/b.rs:10:5: replace || with && in C::d";
    const FN: &str = "crates/a/src/b.rs:20:9: replace <impl E for F>::g -> bool with true";

    fn mutant(line: &str) -> Mutant {
        Mutant::parse(line).unwrap()
    }

    #[test]
    fn every_row_of_the_real_table_has_a_reason() {
        let rows = parse_table(include_str!("../../docs/TESTING-mutants.md")).unwrap();
        assert!(!rows.is_empty());
        for row in rows {
            assert!(row.has_reason(), "line {}: {}", row.line, row.mutant);
        }
    }

    fn table(rows: &[String]) -> Vec<Row> {
        let head = "# Title\n\n| not | this | table |\n|---|---|---|\n| a | b | c |\n\n## Survivors\n\nText.\n\n";
        let rows = rows.join("\n");
        parse_table(&format!("{head}| file | change | reason |\n|---|---|---|\n{rows}\n\n## Next\n\n| x |\n")).unwrap()
    }

    fn row(line: &str, reason: &str) -> String {
        mutant(line).as_row().replace("| |", &format!("| {reason} |"))
    }

    #[test]
    fn a_survivor_finds_its_row_again_whatever_its_line_and_characters_are() {
        for line in [OR, FN, "crates/a/src/b.rs:3:22: replace | with ^ in h"] {
            let rows = table(&[row(line, "it is only a hint")]);
            assert_eq!(rows.len(), 1, "{rows:?}");
            assert_eq!((rows[0].line, &rows[0].reason[..]), (13, "it is only a hint"));
            let (file, rest) = line.split_once(':').unwrap();
            let moved = format!("{file}:999:1:{}", rest.splitn(3, ':').last().unwrap());
            assert_eq!(unexcused(&[mutant(&moved)], &rows), []);
        }
    }

    #[test]
    fn a_row_excuses_one_of_a_name_in_its_file_and_only_with_a_reason() {
        let rows = table(&[row(OR, "both sides are the same there")]);
        assert_eq!(unexcused(&[mutant(OR), mutant(OR)], &rows), [mutant(OR)]);
        assert_eq!(unexcused(&[mutant(FN)], &rows), [mutant(FN)]);
        let elsewhere = mutant(&OR.replace("b.rs", "c.rs"));
        assert_eq!(unexcused(std::slice::from_ref(&elsewhere), &rows), [elsewhere]);
        for nothing in ["", "-", "?", "n/a"] {
            let rows = table(&[row(OR, nothing)]);
            assert_eq!(unexcused(&[mutant(OR)], &rows), [mutant(OR)], "{nothing:?}");
        }
    }

    #[test]
    fn two_of_one_name_are_told_apart_by_their_place() {
        let (one, moved) = (mutant("crates/a/src/b.rs:10:5: delete x"), mutant("crates/a/src/b.rs:99:5: delete x"));
        assert!(one == moved && one.is_at(&one) && !one.is_at(&moved));
        assert_eq!(one.listed(), "crates/a/src/b.rs:10:5: delete x");
    }

    #[test]
    fn rows_that_no_survivor_needs_are_named_and_those_not_tried_are_not() {
        let (or, other) = (mutant(OR), mutant(FN));
        let rows = table(&[row(OR, "a reason"), row(OR, "a reason"), row(FN, "a reason")]);
        let lines = |survived: &[Mutant], every: &[Mutant], chosen: &[Mutant]| -> Vec<usize> {
            stale(&rows, survived, every, chosen).iter().map(|row| row.line).collect()
        };
        let every = [or.clone(), or.clone(), other.clone()];
        assert_eq!(lines(&every, &every, &every), []);
        assert_eq!(lines(&every[1..], &every, &every), [14], "one of the two is caught by now");
        assert_eq!(lines(&[], &every, &every), [13, 14, 15]);
        assert_eq!(lines(&[], &every, &every[..1]), [14], "the others were not tried");
        assert_eq!(lines(&[], &every[..2], &[]), [15], "a mutant that is not made any more");
    }

    #[test]
    fn what_is_no_table_is_refused() {
        assert!(parse_table("# Nothing").is_err());
        let head = "## Survivors\n| file | change | reason |\n|---|---|---|\n";
        assert_eq!(parse_table(head).unwrap(), []);
        for bad in ["| `a` | `b` |", "| `a` | `b` | c | d |", "| a | `b` | c |"] {
            assert!(parse_table(&format!("{head}{bad}\n")).is_err(), "{bad}");
        }
        for bad in ["", "a.rs: text", "a.rs:1: text", "a.rs:1:x: text"] {
            assert!(Mutant::parse(bad).is_err(), "{bad}");
        }
    }
}
