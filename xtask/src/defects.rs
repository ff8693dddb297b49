//! Known defects, put back one after the other into a copy of the tree, to show what finds them: worlds by their seeds, or the unit
//! test that a file beside the patch names.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::{repository, sim, target_folder};

/// Seeds among which a defect must show itself.
const SEEDS: u64 = 10_000;
/// Folder of the patches, from the root of the repository.
const FOLDER: &str = "tests/world/defects";

/// Shows what finds each of the defects `names`, or all there are when none is named. Fails when one is not found, or a patch does
/// not apply any more.
pub(crate) fn show(names: &[&str]) -> Result<()> {
    let known = known()?;
    let unknown = names.iter().find(|name| !known.iter().any(|k| k == *name));
    ensure!(unknown.is_none(), "there is no defect `{}`; there are: {}", unknown.unwrap_or(&""), known.join(", "));
    let names: Vec<&str> = if names.is_empty() { known.iter().map(String::as_str).collect() } else { names.to_vec() };
    let bench = Bench::new()?;
    let mut rows = Vec::new();
    for name in &names {
        println!("--- {name}");
        let begun = Instant::now();
        let found = bench.find(name);
        let row = match &found {
            Ok(how) => format!("{name}: found by {how}"),
            Err(why) => format!("{name}: NOT FOUND: {why:#}"),
        };
        println!("{row}");
        rows.push((found.is_ok(), format!("{:>6.1} s  {row}", begun.elapsed().as_secs_f64())));
    }
    println!("\nDefects:");
    rows.iter().for_each(|(_, row)| println!("{row}"));
    let missed = rows.iter().filter(|(found, _)| !found).count();
    ensure!(missed == 0, "{missed} of {} defects were not found", rows.len());
    Ok(())
}

/// Where defects are put back.
struct Bench {
    folder: PathBuf,
    tree: PathBuf,
    /// `polypath-sim` of the tree as it is, once it is needed.
    sound: OnceCell<PathBuf>,
}

impl Bench {
    fn new() -> Result<Bench> {
        let folder = target_folder()?.join("defects");
        let bench = Bench { tree: folder.join("tree"), sound: OnceCell::new(), folder };
        fs::create_dir_all(&bench.tree).with_context(|| format!("cannot make {}", bench.tree.display()))?;
        Ok(bench)
    }

    /// Puts the defect back; says what found it.
    fn find(&self, name: &str) -> Result<String> {
        copy_tree(&self.tree)?;
        let patch = repository().join(FOLDER).join(format!("{name}.patch"));
        let applied = Command::new("git")
            .args(["apply", "--whitespace=nowarn"])
            .arg(&patch)
            .current_dir(&self.tree)
            // The copy is no repository of its own: without this, git would look for one above it and skip every file.
            .env("GIT_CEILING_DIRECTORIES", &self.folder)
            .status()
            .context("cannot run git")?;
        ensure!(applied.success(), "{} does not apply any more: make it anew", patch.display());
        match UnitTest::of(name)? {
            Some(test) => test.must_fail(&self.tree),
            None => self.find_by_seeds(&family(name)?),
        }
    }

    fn find_by_seeds(&self, family: &str) -> Result<String> {
        if self.sound.get().is_none() {
            let sound = self.folder.join("sound");
            fs::copy(sim::build(&repository())?, &sound).context("cannot keep polypath-sim")?;
            self.sound.get_or_init(|| sound);
        }
        let sound = self.sound.get().context("it was built")?;
        let with_defect = sim::build(&self.tree)?;
        let begun = Instant::now();
        let mut from = 0;
        while from < SEEDS {
            let Some(seed) = first_failure(&with_defect, family, from)? else { break };
            // A seed that fails without the defect says nothing about it.
            let words = ["--seed", &seed.to_string(), "--family", family, "--no-shrink"];
            let without = Command::new(sound).args(words).output();
            if without.context("cannot run polypath-sim")?.status.success() {
                return Ok(format!("seed {seed} over {family} in {:.1} s", begun.elapsed().as_secs_f64()));
            }
            println!("seed {seed} breaks a rule without the defect, too; looking on");
            from = seed + 1;
        }
        bail!("no seed below {SEEDS} finds it")
    }
}

/// The family of worlds that defect `name` is looked for in: what `NAME.family` beside the patch says, or NVMe/TCP.
fn family(name: &str) -> Result<String> {
    let path = repository().join(FOLDER).join(format!("{name}.family"));
    if !path.is_file() {
        return Ok("nvme-tcp".into());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// The first seed from `from` on that fails.
fn first_failure(program: &Path, family: &str, from: u64) -> Result<Option<u64>> {
    let (count, from) = ((SEEDS - from).to_string(), from.to_string());
    let words = ["--seeds", &count, "--from", &from, "--family", family, "--first", "--no-shrink"];
    let output = Command::new(program).args(words).output().context("cannot run polypath-sim")?;
    if output.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("seed "));
    let said = || format!("the worlds did not run: {}", String::from_utf8_lossy(&output.stderr));
    let line = line.with_context(said)?;
    println!("{line}");
    let seed = line.split([' ', ':']).nth(1).and_then(|seed| seed.parse().ok());
    Ok(Some(seed.with_context(|| format!("no seed in `{line}`"))?))
}

/// The test that finds a defect which no world can find: `NAME.unit` beside the patch, lines of `word: value`.
struct UnitTest {
    package: String,
    /// The integration test, or none for a test of the library itself.
    target: Option<String>,
    name: String,
    why: String,
}

impl UnitTest {
    /// The test that is named for defect `name`, if one is.
    fn of(name: &str) -> Result<Option<UnitTest>> {
        let path = repository().join(FOLDER).join(format!("{name}.unit"));
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let value = |word: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(": "));
            line.map(str::to_owned)
        };
        let must = |word: &str| value(word).with_context(|| format!("{}: no line `{word}: ...`", path.display()));
        Ok(Some(UnitTest {
            package: must("package")?,
            target: value("target"),
            name: must("test")?,
            why: must("why")?,
        }))
    }

    /// Runs the test in `tree`, where it must fail; that it passes elsewhere is shown with all other tests.
    fn must_fail(&self, tree: &Path) -> Result<String> {
        println!("worlds do not find it: {}", self.why);
        let target = self.target.as_ref().map_or(vec!["--lib"], |target| vec!["--test", target]);
        let cargo = |words: &[&str]| -> Result<std::process::Output> {
            let mut command = sim::cargo(tree)?;
            command.args(["test", "--quiet", "--package", &self.package]).args(&target).args(words);
            command.output().context("cannot run cargo")
        };
        let built = cargo(&["--no-run"])?;
        ensure!(built.status.success(), "it cannot be built: {}", String::from_utf8_lossy(&built.stderr));
        let ran = cargo(&["--", "--exact", &self.name])?;
        let said = String::from_utf8_lossy(&ran.stdout);
        let failed = !ran.status.success() && said.contains(&format!("---- {} stdout ----", self.name));
        ensure!(failed, "{} does not fail with it", self.full_name());
        Ok(format!("{}, which fails; no world: {}", self.full_name(), self.why))
    }

    fn full_name(&self) -> String {
        let target = self.target.as_ref().map_or(String::new(), |target| format!(" {target}"));
        format!("{}{target} {}", self.package, self.name)
    }
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
        let Ok(mut bytes) = fs::read(&from) else { continue };
        if *name == "Cargo.toml" {
            bytes = told_apart(&bytes)?;
        }
        if fs::read(&to).is_ok_and(|old| old == bytes) {
            continue;
        }
        let parent = to.parent().context("a file lies in a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    }
    remove_others(tree, tree, &wanted)
}

/// The workspace's manifest with another version. Cargo tells a package of one workspace from the same package of another by its version
/// only, not by where the workspace lies: in one target folder it would take what was built from one tree for that of another.
fn told_apart(manifest: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(manifest).context("Cargo.toml is not UTF-8")?;
    let line = text.lines().find(|line| line.starts_with("version = \""));
    let line = line.context("Cargo.toml: expected the version of the workspace's packages, `version = \"...\"`")?;
    let other = format!("{}+defect\"", line.trim_end_matches('"'));
    Ok(text.replacen(line, &other, 1).into_bytes())
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

fn known() -> Result<Vec<String>> {
    let folder = repository().join(FOLDER);
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
