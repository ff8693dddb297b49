//! The Polypath command line: the demo, what to tell QEMU, a disk served over NBD, and a JSON-RPC client for `polypathd`.
#![forbid(unsafe_code)]

mod demo;
mod discover;
mod nbd;
mod qemu;
mod rpc;

use clap::{Parser, Subcommand};
use polypath_bench::output;
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
    /// Serve a disk to whoever speaks NBD: image tools, the kernel's client, other hosts.
    Nbd(nbd::Args),
    /// List the subsystems that a discovery service knows, as URIs.
    Discover(discover::Args),
    /// Call a method of polypathd.
    Rpc(rpc::Args),
}

fn main() -> ExitCode {
    let args = output::arguments::<Args>();
    output::log("error");
    let result = match args.command {
        Command::Demo(args) => demo::run(&args),
        Command::Qemu(args) => qemu::run(&args),
        Command::Nbd(args) => nbd::run(&args),
        Command::Discover(args) => discover::run(&args),
        Command::Rpc(args) => rpc::run(&args),
    };
    result.unwrap_or_else(|error| output::fail("polypath", &error, 1))
}
