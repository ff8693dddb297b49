//! Simulated worlds: running them, and building what runs them. Putting defects back is in `defects`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{defects, repository, target_folder};

/// `cargo xtask sim ...`: with `--defect` or `--defects` as [`defects::show`], otherwise passes everything on to `polypath-sim`.
pub(crate) fn sim(words: &[&str]) -> Result<()> {
    match words {
        ["--defect" | "--defects", names @ ..] => defects::show(names),
        _ => {
            let status = Command::new(build(&repository())?).args(words).status().context("cannot run polypath-sim")?;
            ensure!(status.success(), "a world broke a rule, or the command was wrong");
            Ok(())
        }
    }
}

/// Builds `polypath-sim` from `tree`; returns the program. All trees share the folder that cargo builds in, and with it every
/// dependency that is not of this workspace. The program is not shared: the tree that was built last has it.
pub(crate) fn build(tree: &Path) -> Result<PathBuf> {
    let words = ["build", "--quiet", "--profile", "sim", "--package", "polypath-world", "--bin", "polypath-sim"];
    let built = cargo(tree)?.args(words).stdin(Stdio::null()).output().context("cannot run cargo")?;
    // Warnings are for `cargo clippy`: a defect leaves things unused.
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "polypath-sim cannot be built from {}:\n{said}", tree.display());
    Ok(target_folder()?.join("sim").join(format!("polypath-sim{}", std::env::consts::EXE_SUFFIX)))
}

/// Cargo, in `tree`.
pub(crate) fn cargo(tree: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tree).env("CARGO_TARGET_DIR", target_folder()?);
    Ok(command)
}
