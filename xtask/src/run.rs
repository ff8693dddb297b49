//! Running all tests, and the last lines that say what was skipped.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::test_counts::TestCounts;
use crate::{packages, prepare, repository, target_folder};

/// One test run of a runner: its name for the reader, and cargo's arguments.
struct Step {
    name: &'static str,
    arguments: Vec<String>,
    tests: bool,
}

impl Step {
    fn new(name: &'static str, arguments: &[&str], tests: bool) -> Step {
        Step { name, arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(), tests }
    }

    /// The step that tries once more what failed in this one, where each that failed was named.
    fn second_try(&self, counts: &TestCounts) -> Option<Step> {
        let end = self.arguments.iter().position(|argument| argument == "--")? + 1;
        let known = counts.failed > 0 && counts.failed == counts.failed_names.len() as u64;
        known.then(|| {
            let names = ["--exact".to_owned()].into_iter().chain(counts.failed_names.iter().cloned());
            let mut arguments = self.arguments.clone();
            arguments.splice(end..end, names);
            Step { name: self.name, arguments, tests: self.tests }
        })
    }
}

/// Prepares the lab, runs everything, and fails when anything failed or, with `CI=true`, when a mandatory peer was skipped.
///
/// The real-peer tests run last and one at a time: each of them fills both cores of a small machine. Those that fail are tried a second
/// time, as nextest does with the others, and are named FLAKY at the end when they pass then.
pub(crate) fn test(with_lab: bool) -> Result<()> {
    let started = Instant::now();
    let unprepared = if with_lab { prepare().err() } else { None };
    if let Some(why) = &unprepared {
        eprintln!("xtask: the lab is not whole, some tests will be skipped: {why:#}");
    }
    let records = record_file()?;
    if records.exists() {
        fs::remove_file(&records).with_context(|| format!("cannot remove {}", records.display()))?;
    }
    let mut counts = TestCounts::default();
    let mut failures = Vec::new();
    let mut flaky = Vec::new();
    for step in steps(with_lab) {
        println!("xtask: {} (cargo {})", step.name, step.arguments.join(" "));
        let (mut succeeded, mut counted) = cargo(&step)?;
        if let Some(again) = step.second_try(&counted) {
            println!("xtask: once more: {}", counted.failed_names.join(" "));
            let second = cargo(&again)?;
            succeeded = second.0;
            flaky.extend(counted.merge_second_try(second.1));
        }
        counts.merge(counted);
        if !succeeded {
            failures.push(step.name);
            if !step.tests {
                break; // what does not build cannot be tested
            }
        }
    }
    let met = if with_lab { report_peers()? } else { Peers::default() };
    let skipped = met.skipped + counts.ignored;
    for name in flaky {
        println!("xtask: FLAKY, passed at the second try only: {name}");
    }
    println!("xtask: {} s in all", started.elapsed().as_secs());
    if !failures.is_empty() {
        println!("xtask: FAILED in: {}", failures.join(", "));
    }
    let strict = std::env::var("CI").is_ok_and(|value| value == "true");
    let unmet = if strict { met.unmet_mandatory.len() } else { 0 };
    // a skipped real-peer test returns early, so its runner has counted it as passed
    println!("{} passed, {} failed, {skipped} skipped", counts.passed.saturating_sub(met.skipped), counts.failed);
    if unmet > 0 {
        bail!("CI=true and mandatory peers were not met: {}", met.unmet_mandatory.join(", "));
    }
    if !failures.is_empty() || counts.failed > 0 {
        bail!("some tests failed");
    }
    Ok(())
}

fn steps(with_lab: bool) -> Vec<Step> {
    let nextest = packages::installed("cargo-nextest");
    // the real-peer tests run them by their command lines
    let programs = Step::new("our programs", &["build", "--workspace", "--bins"], false);
    let units: &[&str] = if nextest {
        &["nextest", "run", "--workspace", "--exclude", "polypath-tests", "--no-fail-fast"]
    } else {
        &[
            "test",
            "--workspace",
            "--exclude",
            "polypath-tests",
            "--no-fail-fast",
            "--lib",
            "--bins",
            "--tests",
            "--examples",
        ]
    };
    let docs = &["test", "--workspace", "--exclude", "polypath-tests", "--exclude", "xtask", "--no-fail-fast", "--doc"];
    let last = if with_lab {
        let arguments = &["test", "--package", "polypath-tests", "--no-fail-fast", "--", "--test-threads=1"];
        Step::new("real peers", arguments, true)
    } else {
        let arguments = &["test", "--package", "polypath-tests", "--test", "structure"];
        Step::new("the structure of the house", arguments, true)
    };
    vec![programs, Step::new("unit and integration tests", units, true), Step::new("doc tests", docs, true), last]
}

/// Runs cargo, passes its output on and counts the closing lines.
fn cargo(step: &Step) -> Result<(bool, TestCounts)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(cargo)
        .args(&step.arguments)
        .current_dir(repository())
        // a failed test's error is a sentence; forty lines of frames under it hide the next one
        .env("RUST_LIB_BACKTRACE", std::env::var_os("RUST_LIB_BACKTRACE").unwrap_or_else(|| "0".into()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let output = pass_on(child.stdout.take().context("cargo has an output")?, std::io::stdout());
    let errors = pass_on(child.stderr.take().context("cargo has an error output")?, std::io::stderr());
    let status = child.wait()?;
    let mut counts = TestCounts::default();
    for thread in [output, errors] {
        counts.merge(thread.join().map_err(|_| anyhow::anyhow!("the thread that passes output on panicked"))??);
    }
    Ok((status.success(), counts))
}

fn pass_on(from: impl Read + Send + 'static, mut to: impl Write + Send + 'static) -> JoinHandle<Result<TestCounts>> {
    std::thread::spawn(move || {
        let mut counts = TestCounts::default();
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line)? > 0 {
            to.write_all(&line)?;
            to.flush()?;
            counts.read(&String::from_utf8_lossy(&line));
            line.clear();
        }
        Ok(counts)
    })
}

#[derive(Debug, Default)]
struct Peers {
    skipped: u64,
    unmet_mandatory: Vec<String>,
}

/// Says which peers were met and what was skipped, from what the tests recorded.
fn report_peers() -> Result<Peers> {
    let list = repository().join("tests/peers.toml");
    let list: toml::Table =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?.parse()?;
    let records = fs::read_to_string(record_file()?).unwrap_or_default();
    let mut met: BTreeMap<&str, u64> = BTreeMap::new();
    let mut skipped_peers = BTreeSet::new();
    let mut result = Peers::default();
    println!("xtask: real peers");
    for record in records.lines() {
        let mut fields = record.split('\t');
        let (outcome, peer) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (test, why) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        if outcome == "skipped" {
            println!("  SKIPPED {test} ({peer}): {why}");
            result.skipped += 1;
            skipped_peers.insert(peer);
        } else {
            *met.entry(peer).or_default() += 1;
        }
    }
    for (peer, entry) in &list {
        let mandatory = entry
            .get("mandatory")
            .and_then(toml::Value::as_bool)
            .with_context(|| format!("tests/peers.toml: [{peer}] lacks `mandatory = true` or `false`"))?;
        let tests = met.get(peer.as_str()).copied().unwrap_or(0);
        let kind = if mandatory { "mandatory" } else { "optional" };
        println!("  {peer} ({kind}): met by {tests} test(s)");
        if mandatory && (tests == 0 || skipped_peers.contains(peer.as_str())) {
            result.unmet_mandatory.push(peer.clone());
        }
    }
    println!("xtask: {} real-peer test(s) skipped", result.skipped);
    Ok(result)
}

fn record_file() -> Result<std::path::PathBuf> {
    // the tests find the same folder from where their own programs lie
    Ok(target_folder()?.join("lab/peers.tsv"))
}

/// Records golden octets anew: two guests of the lab talk through a proxy of `tests/`. It does the preparation that the tests do.
pub(crate) fn capture(names: &[&str]) -> Result<()> {
    prepare()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--package", "polypath-tests", "--example", "capture", "--"])
        .args(names)
        .current_dir(repository())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the recording did not succeed");
    }
    Ok(())
}
