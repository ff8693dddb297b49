//! Debian packages that the lab needs.
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program that some test or the lab itself calls, and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 28] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-storage-daemon", "qemu-utils"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbd-client", "nbd-client"),
    ("fio", "fio"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("depmod", "kmod"),
    ("mke2fs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("setpriv", "util-linux"),
    ("ldd", "libc-bin"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("valgrind", "valgrind"),
    ("tgtd", "tgt"),
    ("tgtadm", "tgt"),
    ("iscsi-test-cu", "libiscsi-bin"),
    ("iscsi-ls", "libiscsi-bin"),
    ("iscsi-inq", "libiscsi-bin"),
    ("iscsistart", "open-iscsi"),
    ("iscsid", "open-iscsi"),
    ("iscsiadm", "open-iscsi"),
    ("dmsetup", "dmsetup"),
];

/// Installs the packages of missing programs when this is root, and otherwise says what to install.
pub(crate) fn install_missing() -> Result<()> {
    install(|_| true)
}

/// The same of one program, which is among those of the lab. It is there afterwards.
pub(crate) fn install_missing_of(program: &str) -> Result<()> {
    install(|other| other == program)?;
    if !installed(program) {
        bail!("`{program}` is not there, and no package is known that brings it");
    }
    Ok(())
}

fn install(wanted: impl Fn(&str) -> bool) -> Result<()> {
    let missing = PROGRAMS.iter().filter(|(program, _)| wanted(program) && !installed(program));
    let mut packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !installed("apt-get") {
        bail!("this is not Debian or a relative of it; install by hand what these packages bring: {list}");
    }
    if !is_root()? {
        bail!("not root; run: sudo apt-get install --no-install-recommends {list}");
    }
    eprintln!("xtask: installing {list}");
    update_lists()?;
    let status = apt_get()
        .args(["install", "-y", "--no-install-recommends"])
        .args(&packages)
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("`apt-get install {list}` failed ({status})");
    }
    Ok(())
}

/// Fetches the package lists, once.
pub(crate) fn update_lists() -> Result<()> {
    static DONE: std::sync::Once = std::sync::Once::new();
    let mut outcome = Ok(());
    DONE.call_once(|| {
        let status = apt_get().arg("update").status();
        outcome = match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(anyhow::anyhow!("`apt-get update` failed ({status}); is the network there?")),
            Err(e) => Err(e).context("cannot run apt-get"),
        };
    });
    outcome
}

/// `apt-get` that asks nothing, is quiet, and waits for another one to finish.
pub(crate) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

/// Whether a program lies on `PATH` or in the folders of system programs.
pub(crate) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
        || ["/sbin", "/usr/sbin"].iter().any(|folder| Path::new(folder).join(program).is_file())
}

/// Whether this process may install packages.
pub(crate) fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let user =
        status.lines().find_map(|line| line.strip_prefix("Uid:")).context("/proc/self/status has no Uid line")?;
    Ok(user.split_whitespace().nth(1) == Some("0"))
}
