//! The Polypath command line: the demo, what to tell QEMU, and a JSON-RPC client for `polypathd`.
#![forbid(unsafe_code)]

mod demo;
mod discover;
mod qemu;
mod rpc;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Multipath storage in user space: demo and tools.
#[derive(Parser, Debug)]
#[command(name = "polypath", version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Lose paths under verified I/O and watch nothing happen.
    Demo(demo::Args),
    /// Print the QEMU command line and the libvirt XML for a vhost-user-blk socket.
    Qemu(qemu::Args),
    /// List the subsystems that a discovery service knows, as URIs.
    Discover(discover::Args),
    /// Call a method of polypathd.
    Rpc(rpc::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("POLYPATH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match args.command {
        Command::Demo(args) => demo::run(&args),
        Command::Qemu(args) => qemu::run(&args),
        Command::Discover(args) => discover::run(&args),
        Command::Rpc(args) => rpc::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("polypath: {error:#}");
            ExitCode::FAILURE
        }
    }
}
