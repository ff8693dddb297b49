//! The Polypath daemon: disks with many paths, handed to virtual machines over vhost-user-blk, steered over JSON-RPC.
//!
//! `polypathd -c FILE.toml`, or quickly: `polypathd -S DIR -m MASK -r SOCKET` and the rest by RPC. SIGTERM and SIGINT drain:
//! rings stop taking requests, what is in flight completes, sockets and sessions close, then the process ends.
//!
//! Threads: one per reactor for the data; this one (a single-threaded tokio runtime) for RPC and signals. Read `daemon.rs` first.
#![forbid(unsafe_code)]

mod config;
mod daemon;
mod rpc;

use anyhow::{Context, Result};
use clap::Parser;
use config::{Config, Overrides};
use daemon::Daemon;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

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
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
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
    runtime.block_on(serve(config))
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
    drop(rpc);
    let drained = tokio::task::spawn_blocking(move || daemon.stop()).await.context("draining")?;
    tracing::info!(drained, "ended");
    Ok(())
}
