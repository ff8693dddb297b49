//! Entering the lab: what a test needs, where things are, and how a skip is recorded.
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Something of the machine that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A program on `PATH` (or in `/sbin`, `/usr/sbin`) with this name.
    Program(&'static str),
    /// A guest kernel, prepared by `cargo xtask lab` or named by `POLYPATH_LAB_KERNEL`.
    GuestKernel,
    /// A file named by this environment variable.
    FileNamedBy(&'static str),
}

impl Need {
    /// What a QEMU guest that makes and checks a file system cannot do without.
    pub const FILE_SYSTEM_GUEST: [Need; 6] = [
        Need::Program("qemu-system-x86_64"),
        Need::Program("busybox"),
        Need::Program("modprobe"),
        Need::Program("mke2fs"),
        Need::Program("e2fsck"),
        Need::GuestKernel,
    ];

    /// What is missing and how to get it, in words; `None` when it is there.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Need::Program(name) => find_program(name)
                .is_none()
                .then(|| format!("the program `{name}` is not installed (run `cargo xtask lab`)")),
            Need::GuestKernel => {
                Kernel::find().err().map(|e| format!("there is no guest kernel: {e:#} (run `cargo xtask lab`)"))
            }
            Need::FileNamedBy(variable) => match std::env::var_os(variable) {
                Some(path) if Path::new(&path).is_file() => None,
                Some(path) => Some(format!("{variable} names {}, which is not a file", Path::new(&path).display())),
                None => Some(format!("the environment variable {variable} is not set")),
            },
        }
    }
}

/// The kernel that guests boot, and its modules when it has any.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bootable image (a bzImage).
    pub image: PathBuf,
    /// Root folder that holds `lib/modules/VERSION`, and VERSION; `None` when everything is built in.
    pub modules: Option<(PathBuf, String)>,
}

impl Kernel {
    /// The kernel named by `POLYPATH_LAB_KERNEL` (everything built in), else the one that `cargo xtask lab` unpacked.
    ///
    /// # Errors
    /// Neither is there.
    pub fn find() -> Result<Self> {
        if let Some(image) = std::env::var_os("POLYPATH_LAB_KERNEL") {
            let image = PathBuf::from(image);
            if !image.is_file() {
                bail!("POLYPATH_LAB_KERNEL names {}, which is not a file", image.display());
            }
            return Ok(Kernel { image, modules: None });
        }
        let folder = cache_folder().join("kernel");
        let current = folder.join("current");
        let version = fs::read_to_string(&current).with_context(|| format!("cannot read {}", current.display()))?;
        let version = version.trim().to_owned();
        let root = folder.join(&version);
        let image = root.join("vmlinuz");
        if !image.is_file() {
            bail!("{} is missing", image.display());
        }
        Ok(Kernel { image, modules: Some((root, version)) })
    }
}

/// A test's own place in the lab: a scratch folder that goes away and a log folder that stays.
#[derive(Debug)]
pub struct Lab {
    scratch: tempfile::TempDir,
    logs: PathBuf,
}

impl Lab {
    /// Enters the lab for `test`, which meets `peer` (a name in `tests/peers.toml`). Returns `None`, after saying and recording why,
    /// when one of `needs` is missing.
    ///
    /// # Panics
    /// When the peer is not in `tests/peers.toml` or the scratch folders cannot be made: the test cannot be run at all then.
    #[must_use]
    pub fn enter(peer: &str, test: &str, needs: &[Need]) -> Option<Lab> {
        let peers = fs::read_to_string(repository().join("tests/peers.toml")).expect("tests/peers.toml can be read");
        let peers: toml::Table = peers.parse().expect("tests/peers.toml is TOML");
        assert!(peers.contains_key(peer), "{test} names the peer `{peer}`, which tests/peers.toml does not list");
        if let Some(why) = needs.iter().find_map(|need| need.missing()) {
            // not eprintln!: the harness would swallow it
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
            record("skipped", peer, test, &why);
            return None;
        }
        record("met", peer, test, "");
        let logs = output_folder().join("logs").join(test);
        let _ = fs::remove_dir_all(&logs);
        Some(Lab::with_logs(logs).expect("a scratch folder and a log folder can be made"))
    }

    /// A place for what is no test; its logs stay in the folder `logs`.
    ///
    /// # Errors
    /// The scratch folder or that for logs cannot be made.
    pub fn with_logs(logs: PathBuf) -> Result<Lab> {
        let scratch = tempfile::Builder::new().prefix("polypath-").tempdir().context("cannot make a scratch folder")?;
        fs::create_dir_all(&logs).with_context(|| format!("cannot make the log folder {}", logs.display()))?;
        Ok(Lab { scratch, logs })
    }

    /// A path of that name in the scratch folder: short enough for a Unix socket, gone when the lab is left.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The log file of that name; it stays under `target/lab/logs/TEST` after the run.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// A sparse file of `bytes` bytes in the scratch folder.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn disk_image(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.path(name);
        fs::File::create(&path)?.set_len(bytes)?;
        Ok(path)
    }
}

/// The repository's root folder.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/lab/ lies in the repository").to_owned()
}

/// Where downloads are kept between runs: `POLYPATH_LAB`, else `.lab` in the repository.
#[must_use]
pub fn cache_folder() -> PathBuf {
    std::env::var_os("POLYPATH_LAB").map_or_else(|| repository().join(".lab"), PathBuf::from)
}

/// Where results of a run are kept: `lab` in cargo's target folder.
#[must_use]
pub fn output_folder() -> PathBuf {
    target_folder().join("lab")
}

/// Cargo's target folder, told from where this very test program lies (`TARGET/PROFILE/deps/PROGRAM`).
#[must_use]
pub fn target_folder() -> PathBuf {
    profile_folder().parent().map_or_else(|| repository().join("target"), Path::to_owned)
}

/// The profile's folder in the target folder, where cargo puts our programs.
#[must_use]
pub fn profile_folder() -> PathBuf {
    let exe = std::env::current_exe().expect("a process knows its own program");
    let folder = exe.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder.parent().expect("these lie in a folder").to_owned()
    } else {
        folder.to_owned()
    }
}

/// Looks a program up on `PATH` and in the two folders of system programs.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/sbin", "/usr/sbin", "/bin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
///
/// # Errors
/// The kernel has none to give.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn record(outcome: &str, peer: &str, test: &str, why: &str) {
    let folder = output_folder();
    let line = format!("{outcome}\t{peer}\t{test}\t{}\n", why.replace(['\n', '\t'], " "));
    // one short append is atomic on every local file system, so that test processes need no lock
    let written = fs::create_dir_all(&folder)
        .and_then(|()| OpenOptions::new().create(true).append(true).open(folder.join("peers.tsv")))
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(e) = written {
        panic!("cannot record that {test} {outcome} {peer} in {}: {e}", folder.display());
    }
}
