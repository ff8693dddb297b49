//! `cargo xtask`: the chores of the project, in Rust, so that a fresh clone needs nothing but cargo.
//!
//! It knows how to prepare a machine for the tests (Debian packages, a guest kernel) and how to run all of them in an order that a
//! two-core machine can bear. It refuses to know what any test is about: that is `tests/`. Single-threaded but for the two threads
//! that pass a child's output on. No `unsafe`. Read [`run::test`] first.
#![forbid(unsafe_code)]

mod defects;
mod instructions;
mod kernel;
mod mutants;
mod packages;
mod run;
mod sim;
mod survivors;
mod test_counts;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [--no-lab]   prepare the lab, then run every test; --no-lab leaves out the preparation and the real peers
  lab               prepare the lab only: Debian packages (when root), a guest kernel
  capture [NAME...] record golden octets anew between Linux's initiator and targets (docs/TESTING-captures.md)
  mutants [--sample] [ARGUMENT...]
                    change the code in small wrong ways and fail where no test notices (docs/TESTING-mutants.md); --sample tries
                    a fixed part of them; other arguments are those of cargo-mutants, such as -p PACKAGE or -F PATTERN
  instructions [--renew] [--only NAME]...
                    count the instructions of a request and fail where one takes more than 5 % more than docs/instructions.tsv says;
                    --renew writes the numbers there instead
  sim --seeds N ... run N simulated worlds; further words are polypath-sim's own (docs/TESTING-sim.md)
  sim --defects [NAME...]
                    put known defects, all or these, back into a copy of the tree and show the seed or the test that finds each

environment:
  CI=true               a mandatory peer (tests/peers.toml) that was skipped fails the run
  POLYPATH_LAB          folder for downloads kept between runs (default: .lab in the repository)
  POLYPATH_LAB_KERNEL   a bzImage with everything built in, instead of Debian's kernel
  POLYPATH_LAB_UML      a User-Mode Linux program, for the optional tests that want one";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match command(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["test"] => run::test(true),
        ["test", "--no-lab"] => run::test(false),
        ["lab"] => prepare(),
        ["capture", ..] => run::capture(&words[1..]),
        ["mutants", "--sample", ..] => mutants::run(true, &words[2..]),
        ["mutants", ..] => mutants::run(false, &words[1..]),
        ["instructions", ..] => instructions::run(&words[1..]),
        ["sim", ..] => sim::sim(&words[1..]),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [] => bail!("no command given\n{USAGE}"),
        _ => bail!("`{}` is not understood\n{USAGE}", words.join(" ")),
    }
}

/// Prepares the machine. What cannot be had is an error that names the remedy.
fn prepare() -> Result<()> {
    packages::install_missing()?;
    kernel::prepare()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Where cargo builds: as told, or where this program lies.
fn target_folder() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => Ok(repository().join(folder)),
        None => {
            let exe = std::env::current_exe().context("a process knows its own program")?;
            Ok(exe.parent().and_then(Path::parent).map_or_else(|| repository().join("target"), Path::to_owned))
        }
    }
}

fn cache_folder() -> PathBuf {
    std::env::var_os("POLYPATH_LAB").map_or_else(|| repository().join(".lab"), PathBuf::from)
}
