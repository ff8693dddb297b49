//! `polypath-bench`: see the library's documentation and `--help`.
#![forbid(unsafe_code)]

use anyhow::Context as _;
use clap::Parser as _;
use polypath_bench::cli::{Cli, Command, LimitArgs};
use polypath_bench::limit::{self, LimitConfig, LimitReport};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Limit(args) => limit(&args),
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
    emit(args.json.as_deref(), &report, || print_limit(&report))?;
    Ok(if report.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_limit(r: &LimitReport) {
    let l = &r.lat_us;
    println!(
        "loopback TCP, 72 B out, 4120 B back, QD {}, idle mode {}, cores {} and {}",
        r.qd, r.idle, r.cpus[0], r.cpus[1]
    );
    println!("  {:.0} IO/s, {:.0} MiB/s, {:.3} us of CPU per I/O", r.iops, r.mib_s, r.cpu_us_per_io);
    println!("  latency us: mean {} p50 {} p99 {} p99.9 {} max {}", l.mean, l.p50, l.p99, l.p99_9, l.max);
    println!("  system calls per I/O: client {}, server {}", r.syscalls_per_io, r.server_syscalls_per_io);
    if r.core_taken_pct.iter().any(|&p| p > 2.0) {
        println!(
            "  the cores were wanted by others {} % (client) and {} % (server) of the time: expect more on a quiet machine",
            r.core_taken_pct[0], r.core_taken_pct[1]
        );
    }
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
