//! `polypath-sim`: runs worlds by their seeds, replays one, cuts a failing one down.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use polypath_world::{Mix, Plan, Transports, batch, run, shrink};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "\
usage: polypath-sim --seeds N [--from S] [--jobs J] [--first]   run N worlds from seed S (0) on; --first ends at a failure,
       [--no-shrink]                                            --no-shrink only names what fails
       polypath-sim --seed S [--log LEVEL] [--no-shrink]        replay one, with its trace
       polypath-sim --plan FILE [--log LEVEL]                   run a plan that was printed before

--family FAMILY (nvme-tcp, iscsi, mixed) gives every world paths of that kind; each seed has its own otherwise.
--without KIND[,KIND...] leaves actions out of what seeds give, by their names in the plan (PowerLoss, Swap, ...).

LEVEL is error, warn, info, debug or trace: the logs of the code under test, told by virtual time, on the standard error.";

/// Runs of the shrinker at most.
const SHRINK_RUNS: u32 = 300;
/// Lines of a trace that are printed.
const TRACE: usize = 300;
/// Failing seeds of a batch that are cut down and printed.
const SHOWN: usize = 3;

fn main() -> ExitCode {
    match command(std::env::args().skip(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("polypath-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Options {
    seeds: Option<u64>,
    from: u64,
    seed: Option<u64>,
    plan: Option<String>,
    jobs: Option<usize>,
    first: bool,
    no_shrink: bool,
    family: Option<Mix>,
    without: Vec<String>,
}

impl Options {
    fn plan(&self, seed: u64) -> Plan {
        Plan::from_seed(seed, self.family).without(&self.without)
    }
}

fn command(mut words: impl Iterator<Item = String>) -> Result<bool> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--seeds" => options.seeds = Some(value()?.parse().context("--seeds: expected a number")?),
            "--from" => options.from = value()?.parse().context("--from: expected a seed")?,
            "--seed" => options.seed = Some(value()?.parse().context("--seed: expected a seed")?),
            "--jobs" => options.jobs = Some(value()?.parse().context("--jobs: expected a number")?),
            "--plan" => options.plan = Some(value()?),
            "--log" => polypath_world::log::to_stderr(value()?.parse().context("--log: expected a level")?),
            "--family" => options.family = Some(value()?.parse().map_err(anyhow::Error::msg).context("--family")?),
            "--without" => options.without = value()?.split(',').map(str::to_owned).collect(),
            "--first" => options.first = true,
            "--no-shrink" => options.no_shrink = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(true);
            }
            other => bail!("`{other}` is not understood\n{USAGE}"),
        }
    }
    match (options.seeds, options.seed, &options.plan) {
        (Some(count), None, None) => Ok(many(count, &options)),
        (None, Some(seed), None) => replay(&options.plan(seed), !options.no_shrink),
        (None, None, Some(file)) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
            replay(&serde_json::from_str(&text).with_context(|| format!("{file} is no plan"))?, false)
        }
        _ => bail!("expected one of --seeds, --seed and --plan\n{USAGE}"),
    }
}

fn many(count: u64, options: &Options) -> bool {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let started = Instant::now();
    let told = |done: u64| {
        if done.is_multiple_of(1000) && done < count {
            println!("{done} worlds in {:.1} s", started.elapsed().as_secs_f64());
        }
    };
    let jobs = options.jobs.unwrap_or_else(cores);
    let (done, failures) =
        batch(&Transports, &|seed| options.plan(seed), (options.from, count), jobs, options.first, told);
    let seconds = started.elapsed().as_secs_f64();
    for failure in &failures {
        println!("seed {}: {}", failure.seed, failure.violation);
    }
    for failure in failures.iter().take(if options.no_shrink { 0 } else { SHOWN }) {
        let plan = options.plan(failure.seed);
        show(&plan, Some(shrink(&plan, failure.violation.clone(), &Transports, SHRINK_RUNS).plan));
    }
    let each = Mix::ALL.map(|mix| {
        let of = |seed: u64| options.family.unwrap_or_else(|| Mix::of_seed(seed)) == mix;
        let failed = failures.iter().filter(|f| of(f.seed)).count();
        let worlds = (options.from..options.from + done).filter(|seed| of(*seed)).count();
        format!("{}: {worlds} worlds, {failed} failed", mix.name())
    });
    println!("{}", each.join("; "));
    println!("{} passed, {} failed in {seconds:.1} s", done - failures.len() as u64, failures.len());
    failures.is_empty()
}

/// Runs `plan`, prints what happened, and cuts it down when it fails and `smaller`.
fn replay(plan: &Plan, smaller: bool) -> Result<bool> {
    let outcome = run(plan, &Transports, TRACE);
    match outcome.result {
        Ok(report) => {
            outcome.trace.iter().for_each(|line| println!("{line}"));
            println!("passed: {report:?}, fingerprint {:016x}", outcome.hash);
            Ok(true)
        }
        Err(violation) => {
            let smaller = smaller.then(|| shrink(plan, violation, &Transports, SHRINK_RUNS).plan);
            show(plan, smaller);
            Ok(false)
        }
    }
}

/// Prints a failing plan, or the one it was cut down to, with the trace of that.
fn show(plan: &Plan, smaller: Option<Plan>) {
    let plan = smaller.as_ref().unwrap_or(plan);
    let outcome = run(plan, &Transports, TRACE);
    println!("\n--- seed {}: the last events", plan.seed);
    outcome.trace.iter().for_each(|line| println!("{line}"));
    match serde_json::to_string(plan) {
        Ok(text) => println!("--- seed {}: the plan (for --plan)\n{text}", plan.seed),
        Err(error) => println!("--- seed {}: the plan cannot be written: {error}", plan.seed),
    }
    match outcome.result {
        Err(violation) => println!("--- seed {}: {violation}", plan.seed),
        Ok(_) => println!("--- seed {}: it did not fail again: a run is not repeatable", plan.seed),
    }
}
