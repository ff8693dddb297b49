//! Mutants: small wrong changes of the code that the tests must notice. cargo-mutants makes and tries them; this file gives it what it
//! needs, and holds those that nobody noticed against the table of those that are known to be harmless ([`crate::survivors`]).

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::survivors::{Mutant, Row, parse_table, stale, unexcused};
use crate::{packages, repository, target_folder};

/// The versions that are installed where there is none.
const CARGO_MUTANTS: &str = "27.1.0";
const CARGO_NEXTEST: &str = "0.9.143";
/// Where every survivor has its reason.
const TABLE: &str = "docs/TESTING-mutants.md";
/// What `--sample` tries: every so-many-th mutant, the same ones as long as the code is the same.
const SAMPLE: [&str; 4] = ["--shard", "5/144", "--sharding", "round-robin"];
/// Limits for what hangs where no test's own limit holds, in seconds. The first build of each copy builds everything.
const TEST_LIMIT_S: &str = "180";
const BUILD_LIMIT_S: &str = "900";

/// Tries all mutants, or a fixed sample of them, or those that `arguments` of cargo-mutants select. Fails when one survives without a
/// reason in the table; names the rows that no survivor needs any more.
///
/// What decides that a run fails is tried twice, as nextest does with tests: a machine that stands still for a second fails the tests
/// where nothing is changed, and lets a mutant live that only a race shows.
pub(crate) fn run(sample: bool, arguments: &[&str]) -> Result<()> {
    let text = fs::read_to_string(repository().join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
    let rows = parse_table(&text).with_context(|| format!("{TABLE} is not as expected"))?;
    let tools = Tools::install()?;
    let every = tools.list(&["--workspace"])?;
    let packages_named = arguments.iter().any(|argument| *argument == "-p" || argument.starts_with("--package"));
    let mut select = if packages_named { arguments.to_vec() } else { [&["--workspace"], arguments].concat() };
    if sample {
        select.extend(SAMPLE);
    }
    let chosen = tools.list(&select)?;
    ensure!(!chosen.is_empty(), "there is no mutant to try: .cargo/mutants.toml and the arguments exclude every one");
    println!("xtask: trying {} of {} mutants, two at a time", chosen.len(), every.len());
    let started = Instant::now();
    let outcomes = match tools.try_mutants(&select)? {
        Some(outcomes) => outcomes,
        None => {
            println!("xtask: the tests failed without any mutant; once more");
            tools.try_mutants(&select)?.with_context(|| {
                format!(
                    "the tests fail without any mutant, twice; see {}",
                    tools.output.join("log/baseline.log").display()
                )
            })?
        }
    };
    ensure!(
        outcomes.total() == chosen.len(),
        "{} mutants were to be tried, but {} have an outcome: the run was cut short",
        chosen.len(),
        outcomes.total()
    );
    println!("xtask: {outcomes}; {} s in all", started.elapsed().as_secs());
    let mut survived = [outcomes.missed, outcomes.undecided].concat();
    let suspects = unexcused(&survived, &rows);
    if !suspects.is_empty() {
        println!("xtask: {} survived without a reason; once more", suspects.len());
        // Mutants that leave a field out come along whatever the names are: patterns do not apply to them.
        let names: Vec<_> = suspects.iter().map(|mutant| format!("--re=^{}$", literal(&mutant.listed()))).collect();
        let names = ["--workspace"].into_iter().chain(names.iter().map(String::as_str)).collect::<Vec<_>>();
        let again = tools.try_mutants(&names)?.context("the tests fail without any mutant")?;
        let still = [again.missed, again.undecided].concat();
        for mutant in suspects.iter().filter(|mutant| !still.iter().any(|other| other.is_at(mutant))) {
            println!("xtask: FLAKY, caught at the second try only: {}", mutant.listed());
            survived.retain(|other| !other.is_at(mutant));
        }
    }
    judge(&survived, &rows, &every, &chosen, &tools.output.join("log"))
}

/// Prints what is wrong with the table; an error that names the `logs` when a survivor has no reason.
fn judge(survived: &[Mutant], rows: &[Row], every: &[Mutant], chosen: &[Mutant], logs: &Path) -> Result<()> {
    for row in rows.iter().filter(|row| !row.has_reason()) {
        println!("xtask: {TABLE}:{}: no reason is given, so this row excuses nothing: {}", row.line, row.mutant);
    }
    for row in stale(rows, survived, every, chosen) {
        println!("xtask: {TABLE}:{}: does not survive any more, take the row out: {}", row.line, row.mutant);
    }
    let unexcused = unexcused(survived, rows);
    if !unexcused.is_empty() {
        println!("xtask: SURVIVED, and no row of {TABLE} says why that is harmless:");
        unexcused.iter().for_each(|mutant| println!("{}\n    at {}", mutant.as_row(), mutant.listed()));
        bail!(
            "{} mutants survived without a reason; expected a test that fails for each or, where the change cannot matter, a row with \
             the reason (docs/TESTING-mutants.md). Their logs: {}",
            unexcused.len(),
            logs.display()
        );
    }
    println!("xtask: every survivor has its reason");
    Ok(())
}

/// How the mutants of a run ended.
struct Outcomes {
    caught: usize,
    missed: Vec<Mutant>,
    /// Stopped by [`TEST_LIMIT_S`] or [`BUILD_LIMIT_S`] before any test had failed: nobody knows, and they are judged as survivors.
    undecided: Vec<Mutant>,
    unviable: usize,
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcomes { caught, missed, undecided, unviable } = self;
        write!(f, "{caught} mutants caught, {} survived, ", missed.len())?;
        write!(f, "{} undecided because they took too long, {unviable} do not build", undecided.len())
    }
}

impl Outcomes {
    /// Reads the lists that cargo-mutants leaves: one mutant a line, as `--list` prints it.
    fn read(folder: &Path) -> Result<Outcomes> {
        let list = |name: &str| -> Result<Vec<Mutant>> {
            let path = folder.join(name);
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            text.lines().map(Mutant::parse).collect()
        };
        Ok(Outcomes {
            caught: list("caught.txt")?.len(),
            missed: list("missed.txt")?,
            undecided: list("timeout.txt")?,
            unviable: list("unviable.txt")?.len(),
        })
    }

    fn total(&self) -> usize {
        self.caught + self.missed.len() + self.undecided.len() + self.unviable
    }
}

/// cargo-mutants, and where it finds nextest.
struct Tools {
    folder: PathBuf,
    /// Where cargo-mutants leaves the lists and logs of the last run.
    output: PathBuf,
}

impl Tools {
    /// Installs from crates.io what is missing or of another version.
    fn install() -> Result<Tools> {
        let target = target_folder()?;
        let tools = Tools { folder: target.join("tools"), output: target.join("mutants/mutants.out") };
        let version = format!("cargo-mutants {CARGO_MUTANTS}");
        let found = tools.command().args(["mutants", "--version"]).stderr(Stdio::null()).output();
        if !found.is_ok_and(|found| String::from_utf8_lossy(&found.stdout).trim() == version) {
            tools.cargo_install("cargo-mutants", CARGO_MUTANTS)?;
        }
        if !packages::installed("cargo-nextest") && !tools.folder.join("bin/cargo-nextest").is_file() {
            tools.cargo_install("cargo-nextest", CARGO_NEXTEST)?;
        }
        Ok(tools)
    }

    fn cargo_install(&self, package: &str, version: &str) -> Result<()> {
        eprintln!("xtask: installing {package} {version} into {}", self.folder.display());
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["install", "--locked", "--force", "--version", &format!("={version}"), package, "--root"])
            .arg(&self.folder)
            // Its build is of no use later; without this it would stay in our target folder.
            .env_remove("CARGO_TARGET_DIR")
            .status()
            .context("cannot run cargo")?;
        ensure!(status.success(), "`cargo install {package}` failed ({status}); is the network there?");
        Ok(())
    }

    /// The mutants that `select` leaves, in the order of the sources.
    fn list(&self, select: &[&str]) -> Result<Vec<Mutant>> {
        let output =
            self.command().args(["mutants", "--list"]).args(select).output().context("cannot run cargo-mutants")?;
        ensure!(
            output.status.success(),
            "cargo-mutants cannot list the mutants ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).lines().map(Mutant::parse).collect()
    }

    /// Tries those that `select` leaves, after a run without any that must succeed; `None` when that one failed.
    fn try_mutants(&self, select: &[&str]) -> Result<Option<Outcomes>> {
        let parent = self.output.parent().context("the output folder lies in another one")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let limits = ["--timeout", TEST_LIMIT_S, "--build-timeout", BUILD_LIMIT_S];
        let mut command = self.command();
        command.args(["mutants", "--jobs", "2", "--no-shuffle"]).args(limits);
        command.arg("--output").arg(parent).args(select);
        let status = command.status().context("cannot run cargo-mutants")?;
        // 2: some survived, 3: some took too long. Both are judged by their lists.
        match status.code() {
            Some(0 | 2 | 3) => {}
            Some(4) => return Ok(None),
            _ => bail!("cargo-mutants failed ({status})"),
        }
        Outcomes::read(&self.output).map(Some)
    }

    fn command(&self) -> Command {
        let bin = self.folder.join("bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::env::split_paths(&path).chain([bin.clone()])).unwrap_or(path);
        let mut command = Command::new(bin.join("cargo-mutants"));
        // Each of the two copies of the sources has its own target folder; a common one would be rebuilt at every turn.
        command
            .current_dir(repository())
            .env("PATH", path)
            .env("NEXTEST_PROFILE", "mutants")
            .env_remove("CARGO_TARGET_DIR");
        command.stdin(Stdio::null());
        command
    }
}

/// A regular expression that matches `text` and nothing else.
fn literal(text: &str) -> String {
    let mut escaped = String::with_capacity(2 * text.len());
    for c in text.chars() {
        // Not `<` and `>`: with a backslash these are the edges of a word.
        if r"\.+*?()|[]{}^$".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
