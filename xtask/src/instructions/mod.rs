//! Instruction counts as a guard: what a request takes in each part of the middle, held against the numbers of one file.
//!
//! Instructions do not care what else the machine does, and the programs of `tests/instructions` take the same number at each run: a
//! difference is one of the code, or of the compiler.

mod callgrind;
mod counts;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::sim::cargo;
use crate::{packages, repository, target_folder};
use counts::{Compared, Measure, Stored, Verdict};

/// Where the numbers are.
pub(crate) const FILE: &str = "docs/instructions.tsv";
/// Rounds of the two runs between which the slope is taken.
const ROUNDS: [u64; 2] = [100, 200];

/// `cargo xtask instructions [--renew] [--only NAME]...`: counts, compares, and fails when something takes more than 5 % more
/// instructions than the file says; with `--renew` writes what was counted to the file instead.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let started = Instant::now();
    let options = Options::parse(words)?;
    packages::install_missing_of("valgrind")?;
    let counter = Counter::build()?;
    let measures = counter.list()?;
    let chosen = options.choose(&measures)?;
    let text = fs::read_to_string(repository().join(FILE));
    let mut stored = match text {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Stored::default(),
        text => Stored::parse(&text.with_context(|| format!("cannot read {FILE}"))?)
            .with_context(|| format!("{FILE} is not as expected"))?,
    };
    let measured = counter.measure(&measures, &chosen, &stored)?;
    println!(
        "xtask: {} s in all; where the instructions are: callgrind_annotate {}/NAME.out",
        started.elapsed().as_secs(),
        counter.output.display()
    );
    if options.renew {
        stored.with = counted_with()?;
        stored.counts.extend(measured);
        fs::write(repository().join(FILE), stored.render(&measures)).with_context(|| format!("cannot write {FILE}"))?;
        println!("xtask: {FILE} is renewed");
        return Ok(());
    }
    judge(&stored, &measures, &measured)
}

/// An error when something has become dearer, or the file does not fit what is measured.
fn judge(stored: &Stored, measures: &[Measure], measured: &[(String, f64)]) -> Result<()> {
    let now = counted_with()?;
    if stored.with != now {
        println!("xtask: the numbers of {FILE} were counted with {}; these with {now}", stored.with);
    }
    let compared =
        |(name, count): &(String, f64)| Compared { stored: stored.counts.get(name).copied(), measured: *count };
    let cheaper = measured.iter().filter(|one| compared(one).verdict() == Verdict::Less).count();
    if cheaper > 0 {
        println!(
            "xtask: {cheaper} take fewer instructions than {FILE} says: `cargo xtask instructions --renew` guards that"
        );
    }
    match counts::fault(stored, measures, measured) {
        None => Ok(()),
        Some(fault) => bail!(
            "{fault}. Find out why; if it is worth it, renew {FILE} with `cargo xtask instructions --renew` and say why in the commit"
        ),
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options<'a> {
    renew: bool,
    /// All, when empty.
    only: Vec<&'a str>,
}

impl<'a> Options<'a> {
    fn parse(mut words: &[&'a str]) -> Result<Options<'a>> {
        let mut options = Options::default();
        loop {
            words = match words {
                [] => return Ok(options),
                ["--renew", rest @ ..] => {
                    options.renew = true;
                    rest
                }
                ["--only", name, rest @ ..] => {
                    options.only.push(name);
                    rest
                }
                [word, ..] => bail!("`{word}` is not understood; expected [--renew] [--only NAME]..."),
            };
        }
    }

    /// The measures that are asked for, in the order of the list.
    fn choose<'m>(&self, measures: &'m [Measure]) -> Result<Vec<&'m Measure>> {
        for name in &self.only {
            let names = || measures.iter().map(|measure| measure.name.as_str()).collect::<Vec<_>>().join(", ");
            ensure!(
                measures.iter().any(|measure| measure.name == *name),
                "there is no measure `{name}`; there are {}",
                names()
            );
        }
        let asked = |measure: &&Measure| self.only.is_empty() || self.only.contains(&measure.name.as_str());
        Ok(measures.iter().filter(asked).collect())
    }
}

/// The program that is counted, and where callgrind's files go.
struct Counter {
    program: PathBuf,
    output: PathBuf,
}

impl Counter {
    /// Builds it as releases are built.
    fn build() -> Result<Counter> {
        let words = ["build", "--release", "--package", "polypath-instructions", "--features", "callgrind"];
        let status = cargo(&repository())?.args(words).status().context("cannot run cargo")?;
        ensure!(status.success(), "polypath-instructions cannot be built");
        let output = target_folder()?.join("instructions");
        fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
        let name = format!("polypath-instructions{}", std::env::consts::EXE_SUFFIX);
        Ok(Counter { program: target_folder()?.join("release").join(name), output })
    }

    fn list(&self) -> Result<Vec<Measure>> {
        let listed = Command::new(&self.program).arg("--list").stdin(Stdio::null()).output();
        let listed = listed.with_context(|| format!("cannot run {}", self.program.display()))?;
        ensure!(listed.status.success(), "polypath-instructions cannot say what it measures ({})", listed.status);
        counts::parse_list(&String::from_utf8_lossy(&listed.stdout))
    }

    /// Counts what is `chosen`, each with a line of the table.
    fn measure(&self, measures: &[Measure], chosen: &[&Measure], stored: &Stored) -> Result<Vec<(String, f64)>> {
        println!("{:<40}{:>10}{:>10}{:>10}", "instructions a request", "stored", "measured", "");
        let mut raw = BTreeMap::new();
        let mut measured = Vec::new();
        for measure in chosen {
            let name = &measure.name;
            let mut count = self.count(name, &mut raw)?;
            if let Some(less) = &measure.less {
                ensure!(
                    measures.iter().any(|other| other.name == *less),
                    "{name} is without {less}, which is no measure"
                );
                count -= self.count(less, &mut raw)?;
            }
            ensure!(count > 0.0, "{name} takes {count:.1} instructions, which cannot be");
            println!("{}", Compared { stored: stored.counts.get(name).copied(), measured: count }.row(name));
            measured.push((name.clone(), count));
        }
        Ok(measured)
    }

    /// Instructions a request of `name`, nothing taken off; counted once.
    fn count(&self, name: &str, raw: &mut BTreeMap<String, f64>) -> Result<f64> {
        if let Some(known) = raw.get(name) {
            return Ok(*known);
        }
        let output = self.output.join(format!("{name}.out"));
        let run = |rounds: u64| callgrind::count(&self.program, name, rounds, Path::new(&output));
        let [few, many] = ROUNDS;
        let slope = callgrind::slope(run(few)?, run(many)?).with_context(|| name.to_owned())?;
        raw.insert(name.to_owned(), slope);
        Ok(slope)
    }
}

/// What the numbers depend on beside the code: the compiler, and how libc copies on this processor.
fn counted_with() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("--version").current_dir(repository()).output().context("cannot run rustc")?;
    ensure!(said.status.success(), "rustc cannot say its version ({})", said.status);
    #[cfg(target_arch = "x86_64")]
    let copies = if std::is_x86_feature_detected!("avx2") { " with AVX2" } else { " without AVX2" };
    #[cfg(not(target_arch = "x86_64"))]
    let copies = "";
    Ok(format!("{} on {}{copies}", String::from_utf8_lossy(&said.stdout).trim(), std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measures() -> Vec<Measure> {
        counts::parse_list("a\t-\tx\nb\ta\tx\nc\t-\tx\n").unwrap()
    }

    #[test]
    fn words_are_understood_or_refused() {
        assert_eq!(Options::parse(&[]).unwrap(), Options::default());
        let options = Options::parse(&["--only", "c", "--renew", "--only", "a"]).unwrap();
        assert_eq!(options, Options { renew: true, only: vec!["c", "a"] });
        let chosen: Vec<_> = options.choose(&measures()).unwrap().iter().map(|m| m.name.clone()).collect();
        assert_eq!(chosen, ["a", "c"]);
        assert_eq!(Options::default().choose(&measures()).unwrap().len(), 3);
        for words in [&["--only"][..], &["--onyl", "a"], &["a"]] {
            assert!(Options::parse(words).is_err(), "{words:?}");
        }
        let unknown = format!("{:#}", Options { renew: false, only: vec!["d"] }.choose(&measures()).unwrap_err());
        assert_eq!(unknown, "there is no measure `d`; there are a, b, c");
    }

    #[test]
    fn what_has_become_dearer_is_an_error_that_says_what_to_do() {
        let stored = Stored::parse("a\t100\tx\n").unwrap();
        judge(&stored, &measures(), &[("a".into(), 104.0)]).unwrap();
        judge(&stored, &measures(), &[("a".into(), 50.0)]).unwrap();
        let said = format!("{:#}", judge(&stored, &measures(), &[("a".into(), 106.0)]).unwrap_err());
        assert!(said.contains("instructions: a.") && said.contains("--renew"), "{said}");
    }
}
