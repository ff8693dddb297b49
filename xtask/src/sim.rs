//! Simulated worlds: running them, and showing that they find a defect that is put back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::repository;

/// Seeds among which a defect must show itself.
const DEFECT_SEEDS: u64 = 10_000;
/// Folder of the patches, from the root of the repository.
const DEFECTS: &str = "tests/world/defects";

/// `cargo xtask sim ...`: with `--defect NAME` as [`defect`], otherwise passes everything on to `polypath-sim`.
pub(crate) fn sim(words: &[&str]) -> Result<()> {
    match words {
        ["--defect", name] => defect(name),
        ["--defect"] | ["--defect", ..] => bail!("expected --defect NAME; there are: {}", defects()?.join(", ")),
        _ => {
            let status = polypath_sim(&repository(), None)?.args(words).status().context("cannot run cargo")?;
            ensure!(status.success(), "a world broke a rule, or the command was wrong");
            Ok(())
        }
    }
}

/// Puts a committed defect into a copy of the tree and runs worlds until one finds it.
fn defect(name: &str) -> Result<()> {
    let patch = repository().join(DEFECTS).join(format!("{name}.patch"));
    ensure!(patch.is_file(), "there is no defect `{name}`; there are: {}", defects()?.join(", "));
    let folder = target_folder().join("defects");
    let tree = folder.join("tree");
    copy_tree(&tree)?;
    let applied = Command::new("git")
        .args(["apply", "--whitespace=nowarn"])
        .arg(&patch)
        .current_dir(&tree)
        // The copy is no repository of its own: without this, git would look for one above it and skip every file.
        .env("GIT_CEILING_DIRECTORIES", &folder)
        .status()
        .context("cannot run git")?;
    ensure!(applied.success(), "{} does not apply any more: make it anew", patch.display());
    let mut from = 0;
    while from < DEFECT_SEEDS {
        let Some(seed) = first_failure(&tree, &folder.join("build"), from)? else { break };
        // A seed that fails without the defect says nothing about it.
        if passes(&seed)? {
            println!("defect {name} found by seed {seed}");
            return Ok(());
        }
        println!("seed {seed} breaks a rule without the defect, too; looking on");
        from = seed.parse::<u64>().context("a seed is a number")? + 1;
    }
    bail!("defect {name} was not found by {DEFECT_SEEDS} seeds")
}

/// The first seed from `from` on that fails in `tree`.
fn first_failure(tree: &Path, build: &Path, from: u64) -> Result<Option<String>> {
    // One folder for all defects: what they do not touch is built once.
    let count = DEFECT_SEEDS - from;
    let output = polypath_sim(tree, Some(build))?
        .args(["--seeds", &count.to_string(), "--from", &from.to_string(), "--first"])
        .output()
        .context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    if output.status.success() {
        return Ok(None);
    }
    let seed = text.lines().find_map(|line| line.strip_prefix("seed ")?.split(':').next());
    let said = || format!("the worlds did not run: {}", String::from_utf8_lossy(&output.stderr));
    seed.map(|seed| Some(seed.to_owned())).with_context(said)
}

/// Does `seed` pass in the tree as it is?
fn passes(seed: &str) -> Result<bool> {
    let output = polypath_sim(&repository(), None)?.args(["--seed", seed, "--no-shrink"]).output();
    Ok(output.context("cannot run cargo")?.status.success())
}

fn polypath_sim(tree: &Path, build: Option<&Path>) -> Result<Command> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["run", "--quiet", "--profile", "sim", "--package", "polypath-world", "--bin", "polypath-sim", "--"]);
    command.current_dir(tree);
    if let Some(build) = build {
        command.env("CARGO_TARGET_DIR", build);
    }
    Ok(command)
}

/// Brings `tree` in line with the tracked files as they are now. Files that did not change keep their times, so that little is built
/// anew.
fn copy_tree(tree: &Path) -> Result<()> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(repository())
        .output()
        .context("cannot run git")?;
    ensure!(listed.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).context("a file name is not UTF-8")?;
    let mut wanted: Vec<&str> = listed.split('\0').filter(|name| !name.is_empty()).collect();
    wanted.sort_unstable();
    for name in &wanted {
        let (from, to) = (repository().join(name), tree.join(name));
        // A file that is listed and gone was deleted and not committed yet.
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|old| old == bytes) {
            continue;
        }
        let parent = to.parent().context("a file lies in a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    }
    remove_others(tree, tree, &wanted)
}

/// Removes what an earlier patch, or an earlier state of the repository, has left in the copy.
fn remove_others(root: &Path, folder: &Path, wanted: &[&str]) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(root, &path, wanted)?;
            continue;
        }
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        if wanted.binary_search(&name.as_str()).is_err() {
            fs::remove_file(&path).with_context(|| format!("cannot remove {name}"))?;
        }
    }
    Ok(())
}

fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

fn defects() -> Result<Vec<String>> {
    let folder = repository().join(DEFECTS);
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "patch") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
