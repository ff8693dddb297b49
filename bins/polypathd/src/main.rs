//! The Polypath daemon: disks with many paths, handed to virtual machines over vhost-user-blk, steered over JSON-RPC.
//!
//! `polypathd -c FILE.toml`, or quickly: `polypathd -S DIR -m MASK -r SOCKET` and the rest by RPC. SIGTERM and SIGINT drain:
//! rings stop taking requests, what is in flight completes, sockets and sessions close, then the process ends. A second signal
//! ends it at once.
//!
//! Threads: one per reactor for the data; this one (a single-threaded tokio runtime) for RPC and signals. Read `daemon.rs` first.
#![forbid(unsafe_code)]

mod config;
mod daemon;
mod resources;
mod rpc;
mod show;

use anyhow::{Context, Result, bail};
use clap::Parser;
use config::{Config, Overrides};
use daemon::Daemon;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long what is left on the control thread's runtime may take at the end.
const RUNTIME_LIMIT: Duration = Duration::from_secs(1);

/// Multipath storage daemon in user space.
#[derive(Parser, Debug)]
#[command(name = "polypathd", version, about)]
struct Args {
    /// Configuration file (TOML).
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory for vhost-user sockets that are named without a path.
    #[arg(short = 'S', long = "socket-dir", value_name = "DIR")]
    socket_dir: Option<PathBuf>,
    /// Cores to run reactors on: a mask such as 0x3 or a list such as 0,2-4.
    #[arg(short = 'm', long = "cpumask", value_name = "MASK")]
    cpus: Option<String>,
    /// JSON-RPC 2.0 socket.
    #[arg(short = 'r', long = "rpc-socket", value_name = "SOCKET")]
    rpc_socket: Option<PathBuf>,
    /// Check the configuration and end.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("POLYPATH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polypathd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let mut config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    config.overrule(Overrides { cpus: args.cpus, socket_dir: args.socket_dir, rpc_socket: args.rpc_socket })?;
    if args.check {
        println!("configuration is good: {} disk(s), {} vhost socket(s)", config.disks.len(), config.vhosts.len());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("control thread")?;
    let result = runtime.block_on(serve(config));
    // A change by RPC that hangs must not keep the process.
    runtime.shutdown_timeout(RUNTIME_LIMIT);
    result
}

async fn serve(config: Config) -> Result<()> {
    let mut term = signal(SignalKind::terminate()).context("SIGTERM handler")?;
    let mut int = signal(SignalKind::interrupt()).context("SIGINT handler")?;
    let daemon = Arc::new(Daemon::start(&config)?);
    let rpc = rpc::Server::bind(&config.rpc_socket, daemon.clone())?;
    tracing::info!(rpc = %config.rpc_socket.display(), "ready");
    let why = tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
        () = daemon.shutdown_requested() => "shutdown by RPC",
        result = rpc.serve() => {
            result.context("RPC socket")?;
            "RPC socket closed"
        }
    };
    tracing::info!(why, "draining");
    let calls = rpc.calls();
    drop(rpc);
    let draining = tokio::task::spawn_blocking(move || daemon.stop());
    let faults = tokio::select! {
        ended = draining => ended.context("draining")?,
        _ = term.recv() => end_at_once("SIGTERM"),
        _ = int.recv() => end_at_once("SIGINT"),
    };
    calls.answered(RUNTIME_LIMIT).await;
    if faults.is_empty() {
        tracing::info!("drained and ended");
        return Ok(());
    }
    bail!("not drained: {}", faults.join("; "))
}

/// Somebody does not want to wait for what is in flight.
fn end_at_once(signal: &str) -> ! {
    tracing::warn!(signal, "signalled again while draining: ending at once");
    std::process::exit(1)
}
