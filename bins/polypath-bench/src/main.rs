//! `polypath-bench`: see the library's documentation and `--help`.
#![forbid(unsafe_code)]

mod table;

use anyhow::Context as _;
use clap::Parser as _;
use polypath_bench::cli::{Cli, Command, LimitArgs, RatioArgs, RunArgs};
use polypath_bench::limit::{self, LimitConfig};
use polypath_bench::ratio::{self, RatioConfig};
use polypath_bench::run;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("POLYPATH_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let outcome = match Cli::parse().command {
        Command::Limit(args) => limit(&args),
        Command::Run(args) => run(&args),
        Command::Ratio(args) => ratio(&args),
        Command::ServeNull { cpu, idle } => ratio::serve_null(cpu, idle.policy()).map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("polypath-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn limit(args: &LimitArgs) -> anyhow::Result<ExitCode> {
    let config = LimitConfig {
        qd: args.qd,
        time: args.time,
        ramp: args.ramp,
        idle: args.idle.policy(),
        cpus: args.cpus.clone(),
        copy: !args.no_copy,
    };
    let report = limit::run(&config)?;
    emit(args.json.as_deref(), &report, || table::limit(&report))?;
    Ok(verdict(report.errors == 0))
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let mut line = table::Line::new(args.progress);
    let outcome = run::run(&args.config(), |progress| line.show(progress));
    line.clear();
    let report = outcome?;
    emit(args.json.as_deref(), &report, || table::run(&report))?;
    Ok(verdict(report.is_good()))
}

fn ratio(args: &RatioArgs) -> anyhow::Result<ExitCode> {
    let config = RatioConfig {
        depths: args.qd.clone(),
        pairs: args.pairs,
        time: args.time,
        ramp: args.ramp,
        idle: args.idle.policy(),
        cpus: args.cpus.clone(),
        path: args.path.clone(),
    };
    let mut report = ratio::run(&config, |line| eprintln!("{line}"))?;
    if args.cost {
        for &qd in &config.depths {
            report.cost.push(ratio::measure_cost(qd, config.idle, report.cpus, config.path.as_ref())?);
        }
    }
    emit(args.json.as_deref(), &report, || table::ratio(&report))?;
    Ok(verdict(report.cases.iter().all(|case| case.errors == 0)))
}

fn verdict(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One JSON object to where it is wanted; the table to standard output unless the JSON goes there.
fn emit<T: Serialize>(json: Option<&Path>, report: &T, table: impl FnOnce()) -> anyhow::Result<()> {
    match json {
        Some(path) if path.as_os_str() == "-" => println!("{}", serde_json::to_string_pretty(report)?),
        Some(path) => {
            let text = serde_json::to_string_pretty(report)? + "\n";
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
            table();
        }
        None => table(),
    }
    Ok(())
}
