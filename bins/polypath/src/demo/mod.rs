//! `polypath demo`: lose paths under verified I/O and watch nothing happen.
//!
//! A software target with several NVMe/TCP paths to one namespace, our initiator and multipath over them, our vhost-user-blk
//! back-end on top, and a vhost-user front-end driving it as a guest would. All in one process, over real sockets.

mod chart;
mod guest;
mod report;
mod scenario;
mod world;

use anyhow::{Context, Result, bail};
use polypath::multipath::SelectorKind;
use polypath_bench::output;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `polypath demo`.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Args {
    /// Paths to the namespace.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(3..=16))]
    paths: u16,
    /// Requests in flight.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=256))]
    qd: u32,
    /// What the guest does: randrw (70 % reads), read, or write.
    #[arg(long, default_value = "randrw")]
    rw: String,
    /// Bytes of one request, a multiple of 4096.
    #[arg(long, default_value_t = 4096)]
    bs: u32,
    /// How the path is chosen.
    #[arg(long, default_value_t = SelectorKind::default())]
    selector: SelectorKind,
    /// Keep-alive timeout told to the target, in milliseconds. A fence takes twice that.
    #[arg(long, default_value_t = 2000)]
    keep_alive_ms: u32,
    /// Size of the namespace in MiB.
    #[arg(long, default_value_t = 256)]
    size_mib: u64,
    /// Seed of the load; a random one if not given, and printed in any case.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs; the report is of the run whose silent drop took the median gap.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=99))]
    runs: u32,
    /// Print one JSON object instead of the show.
    #[arg(long)]
    json: bool,
    /// Where the chart goes.
    #[arg(long, default_value = "polypath-demo.svg", value_name = "FILE")]
    svg: PathBuf,
    /// No chart.
    #[arg(long)]
    no_svg: bool,
}

/// Runs the demo; its exit code says whether all I/O succeeded and verified.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.bs == 0 || !args.bs.is_multiple_of(4096) || args.bs > 1 << 20 {
        bail!("--bs is {}; expected a multiple of 4096 up to 1 MiB", args.bs);
    }
    let read_percent = match args.rw.as_str() {
        "randrw" => 70,
        "read" | "randread" => 100,
        "write" | "randwrite" => 0,
        other => bail!("--rw is \"{other}\"; expected randrw, read or write"),
    };
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut reports = Vec::new();
    for run in 0..args.runs {
        if !args.json && args.runs > 1 {
            output::line(format_args!("run {} of {}", run + 1, args.runs))?;
        }
        reports.push(scenario::play(args, read_percent, seed.wrapping_add(run.into()))?);
    }
    let good = reports.iter().all(report::Report::is_good);
    reports.sort_by(|a, b| a.silent_drop.longest_gap_ms.total_cmp(&b.silent_drop.longest_gap_ms));
    let gaps: Vec<_> = reports.iter().map(|r| r.silent_drop.longest_gap_ms).collect();
    let mut resets: Vec<_> = reports.iter().map(|r| r.reset.longest_gap_ms).collect();
    resets.sort_by(f64::total_cmp);
    let mut report = reports.swap_remove(reports.len() / 2);
    if !args.no_svg {
        let names: Vec<_> = report.paths.iter().map(|p| p.name.clone()).collect();
        chart::draw(&args.svg, &names, &report.timeline, &report.marks).context("drawing the chart")?;
        report.svg = Some(args.svg.display().to_string());
    }
    if args.json {
        output::line(serde_json::to_string(&report)?)?;
    } else {
        output::print(report.table())?;
        if args.runs > 1 {
            let list = |v: &[f64]| v.iter().map(|g| format!("{g:.1}")).collect::<Vec<_>>().join(", ");
            let (silent, reset) = (list(&gaps), list(&resets));
            output::line(format_args!(
                "longest gaps of {} runs: silent drop {silent} ms; reset {reset} ms",
                args.runs
            ))?;
        }
        if let Some(svg) = &report.svg {
            output::line(format_args!("throughput per path over time: {svg}"))?;
        }
        if let Some(error) = &report.first_verify_error {
            output::line(format_args!("first error: {error}"))?;
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
