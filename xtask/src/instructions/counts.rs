//! The numbers' file, and the comparison with it.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};

/// How much more, or less, than the stored number is a difference worth talking about.
const TOLERANCE: f64 = 0.05;

const HEADER: &str = "\
# Instructions in user space that a request of 4 KiB takes with 32 outstanding, as callgrind counts them.
# `cargo xtask instructions` fails where one takes more than 5 % more. `cargo xtask instructions --renew` writes this file anew; the commit
# says why. What a number means: tests/instructions. Columns, with a tab between them: name, instructions, what it is.
";
const COMPILER: &str = "# Counted with: ";

/// What can be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Measure {
    pub(super) name: String,
    /// The measure whose count is taken off.
    pub(super) less: Option<String>,
    pub(super) what: String,
}

/// Reads what `polypath-instructions --list` says.
pub(super) fn parse_list(text: &str) -> Result<Vec<Measure>> {
    let parse = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [name, less, what] => {
            let less = (less != "-").then(|| less.to_owned());
            Ok(Measure { name: name.into(), less, what: what.into() })
        }
        _ => bail!("the list of measures has a line that is not as expected: {line}"),
    };
    text.lines().map(parse).collect()
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stored {
    /// With what it was counted; empty when it does not say.
    pub(super) with: String,
    pub(super) counts: BTreeMap<String, f64>,
}

impl Stored {
    /// Reads the file.
    pub(super) fn parse(text: &str) -> Result<Stored> {
        let mut stored = Stored::default();
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(with) = line.strip_prefix(COMPILER) {
                stored.with = with.trim().to_owned();
            } else if !line.starts_with('#') && !line.trim().is_empty() {
                stored.read(line).with_context(|| format!("line {number}"))?;
            }
        }
        Ok(stored)
    }

    fn read(&mut self, line: &str) -> Result<()> {
        let [name, count, _] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("expected a name, a number and what it is, with tabs between them: {line}");
        };
        let number: f64 = count.parse().with_context(|| format!("{name}: `{count}` is no number"))?;
        ensure!(number.is_finite() && number > 0.0, "{name}: {count} instructions cannot be");
        ensure!(self.counts.insert(name.to_owned(), number).is_none(), "{name} is there twice");
        Ok(())
    }

    /// The file that says this, in the order of `measures`. What is no measure is left out.
    pub(super) fn render(&self, measures: &[Measure]) -> String {
        let mut text = format!("{HEADER}{COMPILER}{}\n", self.with);
        for Measure { name, what, .. } in measures {
            if let Some(count) = self.counts.get(name) {
                // A String takes everything.
                let _ = writeln!(text, "{name}\t{count:.1}\t{what}");
            }
        }
        text
    }

    /// The names that are no measures.
    pub(super) fn unknown(&self, measures: &[Measure]) -> Vec<&str> {
        let known = |name: &&str| measures.iter().any(|measure| measure.name == **name);
        self.counts.keys().map(String::as_str).filter(|name| !known(name)).collect()
    }
}

/// A measured number beside the stored one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Compared {
    pub(super) stored: Option<f64>,
    pub(super) measured: f64,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it was, or nearly.
    Same,
    /// It has become dearer: this fails.
    More,
    /// It has become cheaper, and the stored number guards nothing any more.
    Less,
    /// There is no stored number: this fails.
    Missing,
}

impl Compared {
    /// How much more was measured than is stored, as a part of what is stored.
    pub(super) fn difference(&self) -> Option<f64> {
        self.stored.map(|stored| self.measured / stored - 1.0)
    }

    pub(super) fn verdict(&self) -> Verdict {
        match self.difference() {
            None => Verdict::Missing,
            Some(more) if more > TOLERANCE => Verdict::More,
            Some(more) if more < -TOLERANCE => Verdict::Less,
            Some(_) => Verdict::Same,
        }
    }

    /// Its line of the table.
    pub(super) fn row(&self, name: &str) -> String {
        let stored = self.stored.map_or_else(|| "none".into(), |stored| format!("{stored:.1}"));
        let difference = self.difference().map_or_else(String::new, percent);
        let remark = match self.verdict() {
            Verdict::Same => "",
            Verdict::More => "  MORE",
            Verdict::Less => "  less: renew",
            Verdict::Missing => "  MISSING",
        };
        format!("{name:<40}{stored:>10}{:>10.1}{difference:>10}{remark}", self.measured)
    }
}

/// With its sign, which nothing has none of.
fn percent(part: f64) -> String {
    let tenths = (part * 1000.0).round();
    if tenths == 0.0 { "0.0 %".into() } else { format!("{:+.1} %", tenths / 10.0) }
}

/// Why the comparison fails, in words; `None` when it does not.
pub(super) fn fault(stored: &Stored, measures: &[Measure], measured: &[(String, f64)]) -> Option<String> {
    let with = |wanted: Verdict| -> Vec<&str> {
        let verdict =
            |name: &String, measured| Compared { stored: stored.counts.get(name).copied(), measured }.verdict();
        measured.iter().filter(|(name, count)| verdict(name, *count) == wanted).map(|(name, _)| name.as_str()).collect()
    };
    let faults: Vec<String> = [
        ("more than 5 % more instructions", with(Verdict::More)),
        ("no stored number", with(Verdict::Missing)),
        ("a stored number, but no measure of this name", stored.unknown(measures)),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| format!("{what}: {}", names.join(", ")))
    .collect();
    (!faults.is_empty()).then(|| faults.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "null\t-\ta null queue\ngroup\tnull\twhat a group adds\n";
    const FILE: &str =
        "# words\n# Counted with: rustc 1.95.0\n\nnull\t160.4\ta null queue\ngroup\t85\twhat a group adds\n";

    fn measures() -> Vec<Measure> {
        parse_list(LIST).unwrap()
    }

    fn fault_of(file: &str, measured: &[(&str, f64)]) -> Option<String> {
        let measured: Vec<(String, f64)> = measured.iter().map(|(name, count)| ((*name).into(), *count)).collect();
        fault(&Stored::parse(file).unwrap(), &measures(), &measured)
    }

    #[test]
    fn the_list_says_what_is_taken_off() {
        let [null, group] = &measures()[..] else { panic!("two measures") };
        assert_eq!((null.name.as_str(), null.less.as_deref(), null.what.as_str()), ("null", None, "a null queue"));
        assert_eq!((group.name.as_str(), group.less.as_deref()), ("group", Some("null")));
        assert!(parse_list("null\t-\n").is_err());
    }

    #[test]
    fn the_file_is_read_and_written() {
        let stored = Stored::parse(FILE).unwrap();
        assert_eq!(
            (stored.with.as_str(), &stored.counts),
            ("rustc 1.95.0", &BTreeMap::from([("null".into(), 160.4), ("group".into(), 85.0)]))
        );
        let text = stored.render(&measures());
        assert_eq!(Stored::parse(&text).unwrap(), stored);
        let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            rows,
            ["null\t160.4\ta null queue", "group\t85.0\twhat a group adds"],
            "the order is that of the list"
        );
        assert!(!Stored::parse(&format!("{FILE}gone\t1\tx\n")).unwrap().render(&measures()).contains("gone"));
    }

    #[test]
    fn a_file_that_cannot_be_relied_on_is_an_error_that_names_the_line() {
        for (line, part) in [
            ("other\t12", "line 6: expected"),
            ("other\tmany\tx", "line 6: other: `many`"),
            ("other\t0\tx", "line 6: other: 0 instructions"),
            ("other\t-3\tx", "line 6: other: -3 instructions"),
            ("other\tNaN\tx", "line 6: other: NaN instructions"),
            ("other\tinf\tx", "line 6: other: inf instructions"),
            ("null\t160.4\tx", "line 6: null is there twice"),
        ] {
            let said = format!("{:#}", Stored::parse(&format!("{FILE}{line}\n")).unwrap_err());
            assert!(said.contains(part), "{line}: {said}");
        }
    }

    #[test]
    fn six_percent_more_fail_and_four_do_not() {
        assert_eq!(fault_of(FILE, &[("null", 160.4), ("group", 85.0)]), None);
        assert_eq!(fault_of(FILE, &[("null", 160.4), ("group", 85.0 * 1.04)]), None);
        let more = fault_of(FILE, &[("null", 160.4), ("group", 85.0 * 1.06)]);
        assert_eq!(more.as_deref(), Some("more than 5 % more instructions: group"));
        assert_eq!(fault_of(FILE, &[("null", 160.4 * 0.94), ("group", 1.0)]), None, "cheaper is no fault");
    }

    #[test]
    fn a_number_that_is_missing_or_unknown_fails() {
        let missing = fault_of("null\t160.4\tx\n", &[("null", 160.4), ("group", 85.0)]);
        assert_eq!(missing.as_deref(), Some("no stored number: group"));
        assert_eq!(fault_of("null\t160.4\tx\n", &[("null", 160.4)]), None, "of what was not asked for none is missed");
        let unknown = fault_of(&format!("{FILE}gone\t1\tx\n"), &[("null", 160.4)]);
        assert_eq!(unknown.as_deref(), Some("a stored number, but no measure of this name: gone"));
    }

    #[test]
    fn the_table_says_what_has_changed() {
        let row =
            |stored, measured| Compared { stored, measured }.row("x").split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(row(Some(100.0), 99.99), "x 100.0 100.0 0.0 %");
        assert_eq!(row(Some(100.0), 104.0), "x 100.0 104.0 +4.0 %");
        assert_eq!(row(Some(100.0), 106.0), "x 100.0 106.0 +6.0 % MORE");
        assert_eq!(row(Some(100.0), 94.0), "x 100.0 94.0 -6.0 % less: renew");
        assert_eq!(row(None, 94.0), "x none 94.0 MISSING");
    }

    #[test]
    fn the_file_of_the_repository_can_be_read() {
        let text = std::fs::read_to_string(crate::repository().join(super::super::FILE)).unwrap();
        let stored = Stored::parse(&text).unwrap();
        assert!(text.starts_with(HEADER) && !stored.with.is_empty() && stored.counts.len() >= 10);
    }
}
