//! The rules of the house: which floor may import which, where `unsafe` may live, and what no source file may contain.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use polypath_tests::lab::repository;
use serde_json::Value;

/// Floors of `docs/ARCHITECTURE.md`. A package imports only lower floors; a package that is not here has no place in the house yet.
const FLOORS: [(&str, u32); 28] = [
    ("polypath-block", 0),
    ("polypath-memory", 0),
    ("polypath-pci", 1),
    ("polypath-net", 1),
    ("polypath-nvme", 2),
    ("polypath-scsi", 2),
    ("polypath-sim", 2),
    ("polypath-nvme-pcie", 3),
    ("polypath-nvmf-tcp", 3),
    ("polypath-iscsi", 3),
    ("polypath-scsi-mpt3sas", 3),
    ("polypath-local", 3),
    ("polypath-multipath", 4),
    ("polypath-sharing", 4),
    ("polypath-reactor", 5),
    ("polypath-vhost-user-blk", 5),
    ("polypath-vhost-user-client", 5),
    ("polypath-nbd", 5),
    ("polypath", 5),
    ("polypathd", 6),
    ("polypath-cli", 6),
    ("polypath-bench", 6),
    ("polypath-target", 6),
    ("polypath-lab", 6),
    ("polypath-tests", 6),
    ("polypath-world", 6),
    ("polypath-instructions", 6),
    ("xtask", 6),
];

/// Imports within one floor that the picture needs: importer, imported.
const SAME_FLOOR: [(&str, &str); 13] = [
    // memory carries the contract's segments
    ("polypath-memory", "polypath-block"),
    // the facade puts the others of its floor together
    ("polypath", "polypath-reactor"),
    ("polypath", "polypath-vhost-user-blk"),
    ("polypath", "polypath-vhost-user-client"),
    // pollers of the reactor
    ("polypath-vhost-user-blk", "polypath-reactor"),
    // clients of its exports share the facade's disk
    ("polypath-nbd", "polypath"),
    // the demo runs a target and measures as the bench does
    ("polypath-cli", "polypath-target"),
    ("polypath-cli", "polypath-bench"),
    // the world drives the target's protocol
    ("polypath-world", "polypath-target"),
    // what an I/O takes is counted with the target's protocol in the same thread
    ("polypath-instructions", "polypath-target"),
    // `ratio` starts a target of its own
    ("polypath-bench", "polypath-target"),
    // an experiment and the tests boot the same guests
    ("polypath-bench", "polypath-lab"),
    ("polypath-tests", "polypath-lab"),
];

/// Packages in which `unsafe` may be written; every other crate forbids it.
/// The last one drives the blkio crate, whose interface is that of C; it denies it but in one module.
const UNSAFE_ALLOWED: [&str; 6] =
    ["polypath-memory", "polypath-pci", "polypath-net", "polypath-local", "polypath-reactor", "polypath-tests"];

#[test]
fn imports_never_climb() -> Result<()> {
    let floors: BTreeMap<&str, u32> = FLOORS.into();
    let mut faults = Vec::new();
    for package in packages()? {
        let name = text(&package, "name")?;
        let Some(floor) = floors.get(name) else {
            faults.push(format!(
                "{name} is on no floor: give it one in tests/tests/structure.rs and docs/ARCHITECTURE.md"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().context("a package lists its dependencies")? {
            let imported = text(dependency, "name")?;
            // dev-dependencies are exempt: tests may stand anywhere; what is not ours has no floor
            if dependency["kind"] == "dev" || dependency["path"].is_null() {
                continue;
            }
            let below = floors.get(imported).is_some_and(|other| other < floor);
            if !below && !SAME_FLOOR.contains(&(name, imported)) {
                faults.push(format!("{name} (floor {floor}) imports {imported} (floor {:?})", floors.get(imported)));
            }
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn multipath_imports_the_contract_and_nothing_else_of_ours() -> Result<()> {
    let packages = packages()?;
    let multipath =
        packages.iter().find(|package| package["name"] == "polypath-multipath").context("there is a multipath")?;
    let ours: Vec<&str> = multipath["dependencies"]
        .as_array()
        .context("a package lists its dependencies")?
        .iter()
        .filter(|dependency| dependency["kind"] != "dev" && !dependency["path"].is_null())
        .filter_map(|dependency| dependency["name"].as_str())
        .collect();
    ensure!(ours == ["polypath-block"], "multipath imports {ours:?}");
    Ok(())
}

#[test]
fn unsafe_code_is_forbidden_where_promised() -> Result<()> {
    let mut faults = Vec::new();
    let mut checked = 0;
    for package in packages()? {
        let name = text(&package, "name")?;
        if UNSAFE_ALLOWED.contains(&name) {
            continue;
        }
        for target in package["targets"].as_array().context("a package lists its targets")? {
            let kinds = target["kind"].as_array().context("a target has kinds")?;
            if !kinds.iter().any(|kind| kind == "lib" || kind == "bin") {
                continue;
            }
            let source = PathBuf::from(text(target, "src_path")?);
            checked += 1;
            if !fs::read_to_string(&source)?.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]") {
                faults.push(format!("{} lacks #![forbid(unsafe_code)]", source.display()));
            }
        }
    }
    ensure!(checked >= 10, "only {checked} crates were looked at: this test has lost its way");
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn no_test_is_put_aside_and_nothing_is_left_to_do() -> Result<()> {
    // written apart, so that this file does not find itself
    let banned = [concat!("#[", "ignore"), concat!("to", "do!("), concat!("unim", "plemented!(")];
    let mut files = Vec::new();
    collect_sources(&repository(), &mut files)?;
    ensure!(files.len() >= 50, "only {} source files were found: this test has lost its way", files.len());
    let mut faults = Vec::new();
    for file in files {
        let source = fs::read_to_string(&file)?;
        for (number, line) in source.lines().enumerate() {
            if let Some(word) = banned.iter().find(|word| line.contains(**word)) {
                faults.push(format!("{}:{}: {word}", file.display(), number + 1));
            }
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn every_mandatory_peer_is_met_by_some_test() -> Result<()> {
    let list: toml::Table = fs::read_to_string(repository().join("tests/peers.toml"))?.parse()?;
    let mut tests = String::new();
    for folder in with_binaries(&repository().join("tests/tests"))? {
        for path in files_in(&folder)? {
            tests.push_str(&fs::read_to_string(path)?);
        }
    }
    let unmet: Vec<&String> = list.keys().filter(|peer| !tests.contains(&format!("Lab::enter(\"{peer}\""))).collect();
    ensure!(unmet.is_empty(), "tests/peers.toml lists peers that no test meets: {unmet:?}");
    Ok(())
}

/// A folder of tests, and those below it that are a binary each.
fn with_binaries(folder: &Path) -> Result<Vec<PathBuf>> {
    let below = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let binaries = below.into_iter().filter(|path| path.join("main.rs").is_file());
    Ok(std::iter::once(folder.to_owned()).chain(binaries).collect())
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let all = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(all.into_iter().filter(|path| path.is_file()).collect())
}

#[test]
fn every_defect_that_can_be_put_back_applies() -> Result<()> {
    let folder = repository().join("tests/world/defects");
    let mut patches: Vec<PathBuf> =
        fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>().context("cannot list defects")?;
    patches.retain(|path| path.extension().is_some_and(|e| e == "patch"));
    ensure!(patches.len() >= 10, "only {} defects were found: this test has lost its way", patches.len());
    let mut faults = Vec::new();
    for patch in patches {
        let check = Command::new("git").args(["apply", "--check"]).arg(&patch).current_dir(repository()).output()?;
        if !check.status.success() {
            let why = String::from_utf8_lossy(&check.stderr);
            faults.push(format!("{} does not apply any more, make it anew: {}", patch.display(), why.trim()));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Where the tests of a package are one binary, cargo does not look for them, and a file that nobody names is never run.
#[test]
fn every_file_of_tests_is_part_of_a_binary() -> Result<()> {
    let (mut faults, mut checked) = (Vec::new(), 0);
    for package in packages()? {
        let folder = Path::new(text(&package, "manifest_path")?).with_file_name("tests");
        if !folder.is_dir() {
            continue;
        }
        let targets = package["targets"].as_array().context("a package lists its targets")?;
        let roots: Vec<&str> = targets.iter().filter_map(|target| target["src_path"].as_str()).collect();
        for folder in with_binaries(&folder)? {
            let main = fs::read_to_string(folder.join("main.rs")).unwrap_or_default();
            for path in files_in(&folder)? {
                let (Some(stem), Some("rs")) = (path.file_stem(), path.extension().and_then(|e| e.to_str())) else {
                    continue;
                };
                checked += 1;
                let module = format!("mod {};", stem.to_string_lossy());
                if !roots.iter().any(|root| Path::new(root) == path) && !main.lines().any(|line| line == module) {
                    faults.push(format!("{} is in no binary: name it in main.rs beside it", path.display()));
                }
            }
        }
    }
    ensure!(checked >= 50, "only {checked} files were looked at: this test has lost its way");
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

fn packages() -> Result<Vec<Value>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(repository())
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    metadata["packages"].as_array().cloned().context("cargo metadata lists packages")
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("cargo metadata has no `{key}`"))
}

fn collect_sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            // hidden folders, build output and generated fuzz corpora are not ours to judge
            if !name.starts_with('.') && name != "target" && name != "corpus" {
                collect_sources(&path, files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(())
}
