//! A guest kernel: Debian's stock one, downloaded and unpacked beside the sources but never installed.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{cache_folder, packages};

/// Folders of the modules that no guest of ours needs; they are most of the package.
const UNNEEDED: [&str; 8] = [
    "sound",
    "drivers/gpu",
    "drivers/media",
    "drivers/net/wireless",
    "drivers/net/ethernet",
    "drivers/iio",
    "drivers/input",
    "drivers/staging",
];

/// Makes sure that a kernel is there. `kernel/current` in the cache folder names its version when it is whole.
pub(crate) fn prepare() -> Result<()> {
    if let Some(image) = std::env::var_os("POLYPATH_LAB_KERNEL") {
        if !Path::new(&image).is_file() {
            bail!("POLYPATH_LAB_KERNEL names {}, which is not a file", Path::new(&image).display());
        }
        return Ok(());
    }
    let folder = cache_folder().join("kernel");
    if whole(&folder) {
        return Ok(());
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let package = match choose()? {
        Some(package) => package,
        None => {
            packages::update_lists()?;
            choose()?.context("apt knows no linux-image-*-amd64 package")?
        }
    };
    let deb = download(&package)?;
    unpack(&deb, &folder)
}

fn whole(folder: &Path) -> bool {
    let Ok(version) = fs::read_to_string(folder.join("current")) else { return false };
    folder.join(version.trim()).join("vmlinuz").is_file()
}

/// The package that Debian's `linux-image-amd64` stands for, or `None` while apt has no lists.
fn choose() -> Result<Option<String>> {
    let output =
        Command::new("apt-cache").args(["depends", "linux-image-amd64"]).output().context("cannot run apt-cache")?;
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let package = listing.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::trim);
    Ok(package.filter(|name| name.starts_with("linux-image-")).map(str::to_owned))
}

/// Downloads the package into the cache; apt goes on where an interrupted download stopped.
fn download(package: &str) -> Result<PathBuf> {
    let folder = cache_folder().join("debs");
    fs::create_dir_all(&folder)?;
    if let Some(deb) = find_deb(&folder, package)? {
        return Ok(deb);
    }
    eprintln!("xtask: downloading {package} (70 MB) to {}", folder.display());
    let fetch =
        || packages::apt_get().args(["download", package]).current_dir(&folder).status().context("cannot run apt-get");
    if !fetch()?.success() {
        // lists that are too old name a file that the mirror has thrown away
        if packages::is_root()? {
            packages::update_lists()?;
        }
        let status = fetch()?;
        if !status.success() {
            bail!(
                "`apt-get download {package}` failed ({status}); are the package lists fresh (`apt-get update`) and the network there?"
            );
        }
    }
    find_deb(&folder, package)?
        .with_context(|| format!("apt-get download left no {package}_*.deb in {}", folder.display()))
}

fn find_deb(folder: &Path, package: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&format!("{package}_")) && name.ends_with(".deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn unpack(deb: &Path, folder: &Path) -> Result<()> {
    let aside = folder.join("unpacking");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::create_dir_all(&aside)?;
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let members = archive.stdout.take().context("dpkg-deb has an output")?;
    let mut tar = Command::new("tar");
    tar.arg("-x").arg("-C").arg(&aside).args(UNNEEDED.map(|unneeded| format!("--exclude=*/kernel/{unneeded}/*")));
    let unpacked = tar.stdin(members).status().context("cannot run tar")?;
    let read = archive.wait()?;
    if !read.success() || !unpacked.success() {
        // a broken download would be found again for ever
        fs::remove_file(deb)?;
        bail!("{} cannot be unpacked and was removed; run again", deb.display());
    }
    let modules =
        if aside.join("lib/modules").is_dir() { aside.join("lib/modules") } else { aside.join("usr/lib/modules") };
    let version = fs::read_dir(&modules)?
        .next()
        .context("the package has no modules")??
        .file_name()
        .to_string_lossy()
        .into_owned();
    fs::rename(aside.join(format!("boot/vmlinuz-{version}")), aside.join("vmlinuz"))
        .context("the package has no boot/vmlinuz")?;
    if !aside.join("lib/modules").is_dir() {
        fs::create_dir_all(aside.join("lib"))?;
        fs::rename(&modules, aside.join("lib/modules"))?;
    }
    let indexed = depmod().arg("-b").arg(&aside).arg(&version).status().context("cannot run depmod")?;
    if !indexed.success() {
        bail!("depmod failed on the modules of {version}");
    }
    let place = folder.join(&version);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::rename(&aside, &place)?;
    // last, so that an interrupted run is seen as not done
    fs::write(folder.join("current"), format!("{version}\n"))?;
    eprintln!("xtask: the guest kernel is Debian's {version}");
    Ok(())
}

fn depmod() -> Command {
    let sbin = ["/usr/sbin/depmod", "/sbin/depmod"].into_iter().find(|path| Path::new(path).is_file());
    Command::new(sbin.unwrap_or("depmod"))
}
