//! `polypath-bench`: see the library's documentation and `--help`.
#![forbid(unsafe_code)]

mod signals;
mod table;

use anyhow::Context as _;
use polypath_bench::cli::{Cli, Command, DriveArgs, LimitArgs, RatioArgs, RunArgs, ScaleArgs};
use polypath_bench::experiment::{self, ExperimentArgs};
use polypath_bench::limit::{self, LimitConfig};
use polypath_bench::output::{self, JsonOutput};
use polypath_bench::ratio::{self, RatioConfig};
use polypath_bench::ring::{self, DriveConfig, Kick, ServeConfig, Style};
use polypath_bench::run::{self, Stop};
use polypath_bench::scale::{self, NamespacesConfig, SiteConfig};
use signals::Signals;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = polypath_bench::output::arguments::<Cli>().command;
    // In experiments paths are lost on purpose.
    output::log(if matches!(command, Command::Experiment(_)) { "error" } else { "warn" });
    let outcome = match command {
        Command::Limit(args) if args.ring => limit_ring(&args),
        Command::Limit(args) => limit(&args),
        Command::Drive(args) => drive(&args),
        Command::Run(args) => run(&args),
        Command::Ratio(args) if args.ring => ratio_ring(&args),
        Command::Ratio(args) => ratio(&args),
        Command::Scale(args) => scale(&args),
        Command::Experiment(args) => experiment(&args),
        Command::ServeExperiment { protocol, links } => experiment::serve(protocol, links).map(|()| ExitCode::SUCCESS),
        Command::ServeScale { folder, disks, rings, paths, cpus } => {
            scale::serve(&SiteConfig { folder, disks, rings, paths, cpus }).map(|()| ExitCode::SUCCESS)
        }
        Command::ServeNamespaces { namespaces, portals, cpus } => {
            let config = NamespacesConfig { namespaces, portals, cpus: cpus.0 };
            scale::serve_namespaces(&config).map(|()| ExitCode::SUCCESS)
        }
        Command::ServeNull { cpu, idle, protocol } => {
            ratio::serve_null(cpu, idle.policy(), protocol).map(|()| ExitCode::SUCCESS)
        }
        Command::Continue { process } => ring::let_go_on(process).map(|()| ExitCode::SUCCESS),
        Command::ServeRing { socket, medium, no_group, cpu, idle } => {
            let config = ServeConfig { socket, medium, group: !no_group, cpu, idle: idle.policy() };
            ring::serve(&config).map(|()| ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| output::fail("polypath-bench", &error, 2))
}

fn limit(args: &LimitArgs) -> anyhow::Result<ExitCode> {
    let json = JsonOutput::open(args.json.as_deref())?;
    let config = LimitConfig {
        qd: args.qd,
        time: args.time,
        ramp: args.ramp,
        idle: args.idle.policy(),
        cpus: args.cpus.clone(),
        copy: !args.no_copy,
        protocol: args.protocol,
    };
    let report = limit::run(&config)?;
    json.emit(&report, table::limit(&report))?;
    Ok(verdict(report.errors == 0))
}

fn limit_ring(args: &LimitArgs) -> anyhow::Result<ExitCode> {
    let json = JsonOutput::open(args.json.as_deref())?;
    let report = ring::limit(&args.ring_config()?)?;
    json.emit(&report, table::ring(&report))?;
    Ok(verdict(report.is_good()))
}

fn drive(args: &DriveArgs) -> anyhow::Result<ExitCode> {
    let json = JsonOutput::open(args.json.as_deref())?;
    let report = ring::drive(&DriveConfig {
        qd: args.qd,
        time: args.time,
        ramp: args.ramp,
        cpu: args.cpu,
        style: Style { indirect: args.indirect, renew: args.renew },
        kick: if args.kick { Kick::Always } else { Kick::Seldom },
        ..DriveConfig::new(args.socket.clone())
    })?;
    json.emit(&report, table::ring(&report))?;
    Ok(verdict(report.is_good()))
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let json = JsonOutput::open(args.json.as_deref())?;
    let stop = Stop::default();
    let signals = Signals::watch(stop.clone())?;
    let mut line = table::Line::new(args.progress);
    let outcome = run::run_until(&args.config(), &stop, |progress| line.show(progress));
    line.clear();
    let report = outcome?;
    json.emit(&report, table::run(&report))?;
    // What was found out weighs more than that somebody did not want to wait for more.
    Ok(match signals.status() {
        Some(status) if report.is_good() => ExitCode::from(status),
        _ => verdict(report.is_good()),
    })
}

fn ratio(args: &RatioArgs) -> anyhow::Result<ExitCode> {
    let json = JsonOutput::open(args.json.as_deref())?;
    let config = RatioConfig {
        depths: args.qd.clone(),
        pairs: args.pairs,
        time: args.time,
        ramp: args.ramp,
        idle: args.idle.policy(),
        cpus: args.cpus.clone(),
        path: args.path.clone(),
        protocol: args.protocol,
    };
    let mut report = ratio::run(&config, |line| output::remark(line))?;
    if args.cost {
        for &qd in &config.depths {
            report.cost.push(ratio::measure_cost(qd, config.idle, report.cpus, config.protocol, config.path.as_ref())?);
        }
    }
    json.emit(&report, table::ratio(&report))?;
    Ok(verdict(report.cases.iter().all(|case| case.errors == 0)))
}

fn ratio_ring(args: &RatioArgs) -> anyhow::Result<ExitCode> {
    let json = JsonOutput::open(args.json.as_deref())?;
    let config = args.ring_config();
    let mut report = ring::ratio(&config, |line| output::remark(line))?;
    if args.cost {
        let cost = |&qd: &u16| ring::measure_cost(qd, report.cpus, config.medium, config.group, config.style);
        report.cost = config.depths.iter().map(cost).collect();
    }
    json.emit(&report, table::ring_ratio(&report))?;
    Ok(verdict(report.cases.iter().all(|case| case.errors == 0)))
}

fn scale(args: &ScaleArgs) -> anyhow::Result<ExitCode> {
    let json = JsonOutput::open(args.json.as_deref())?;
    if let Some(file) = &args.svg {
        output::try_file("--svg", file)?;
    }
    let report = scale::run(&args.config(), |line| output::remark(line))?;
    json.emit(&report, table::scale(&report))?;
    if let Some(file) = &args.svg {
        std::fs::write(file, scale::draw(&report)?).with_context(|| format!("--svg {}", file.display()))?;
    }
    Ok(verdict(report.errors() == 0))
}

fn experiment(args: &ExperimentArgs) -> anyhow::Result<ExitCode> {
    if !args.inside {
        let arguments: Vec<String> = std::env::args().skip(1).chain(["--inside".to_owned()]).collect();
        return Err(experiment::enter(&arguments));
    }
    let json = JsonOutput::open(args.json.as_deref())?;
    let report = experiment::run(&args.config(), |line| output::remark(line))?;
    json.emit(&report, report.to_string())?;
    Ok(verdict(report.is_good()))
}

fn verdict(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
