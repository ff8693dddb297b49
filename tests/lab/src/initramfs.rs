//! Builds a guest's first file system: busybox, kernel modules in load order, programs with their libraries, scripts.
//!
//! The image is an uncompressed cpio archive ("newc", `Documentation/driver-api/early-userspace/buffer-format.rst` in Linux): under
//! emulation, unpacking costs more than loading a few more MiB. Images are cached under the hash of their content.
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::lab::{Kernel, cache_folder, find_program, repository};

/// What goes into an image.
#[derive(Debug, Default, Clone)]
pub struct Contents {
    /// Kernel modules by name, each with its options (`""` for none); what they depend on comes by itself and first.
    pub modules: Vec<(String, String)>,
    /// Programs of this machine, by name or by path, which lie in `/sbin` of the guest and bring their libraries.
    pub programs: Vec<String>,
    /// Files of the repository's `lab/` folder and where they go.
    pub scripts: Vec<(String, String)>,
    /// Where the image goes; into the cache when it is `None`.
    pub folder: Option<PathBuf>,
}

impl Contents {
    /// Builds the image for `kernel`, or finds it in the cache. Without a kernel it has no modules.
    ///
    /// # Errors
    /// A module, a program or a script is missing, or a tool (busybox, modprobe, ldd) is.
    pub fn build(&self, kernel: Option<&Kernel>) -> Result<PathBuf> {
        let mut archive = Archive::default();
        for folder in ["proc", "sys", "dev", "mnt", "tmp", "run", "root"] {
            archive.folder(folder);
        }
        let busybox = find_program("busybox").context("busybox is not installed")?;
        archive.file("bin/busybox", 0o755, std::fs::read(&busybox)?);
        self.add_libraries(&mut archive, &busybox)?;
        let init = repository().join("lab/init");
        archive.file("init", 0o755, std::fs::read(&init).with_context(|| format!("cannot read {}", init.display()))?);
        for (script, place) in &self.scripts {
            let path = repository().join("lab").join(script);
            archive.file(
                place,
                0o644,
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
            );
        }
        for program in &self.programs {
            let path = match Path::new(program) {
                path if path.is_absolute() => path.to_owned(),
                _ => find_program(program).with_context(|| format!("the program `{program}` is not installed"))?,
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // one fixed place, because busybox must not shadow it and scripts call it by its path
            archive.file(&format!("sbin/{name}"), 0o755, std::fs::read(&path)?);
            self.add_libraries(&mut archive, &path)?;
        }
        if let Some((root, version)) = kernel.and_then(|kernel| kernel.modules.as_ref()) {
            self.add_modules(&mut archive, root, version)?;
        }
        archive.store(&self.folder.clone().unwrap_or_else(|| cache_folder().join("initramfs")))
    }

    fn add_libraries(&self, archive: &mut Archive, program: &Path) -> Result<()> {
        let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
        // a static program has none, and ldd then says so with a failure
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
            let bytes = std::fs::read(word).with_context(|| format!("cannot read the library {word}"))?;
            archive.file(word.trim_start_matches('/'), 0o755, bytes);
        }
        Ok(())
    }

    fn add_modules(&self, archive: &mut Archive, root: &Path, version: &str) -> Result<()> {
        let mut order = String::new();
        let mut seen = BTreeSet::new();
        let modprobe = find_program("modprobe").context("modprobe (package kmod) is not installed")?;
        for (name, options) in &self.modules {
            let output = Command::new(&modprobe)
                .arg("-d")
                .arg(root)
                .args(["-S", version, "--show-depends", name])
                .output()
                .context("cannot run modprobe")?;
            if !output.status.success() {
                bail!(
                    "the guest kernel {version} has no module `{name}`: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            let listing = String::from_utf8_lossy(&output.stdout).into_owned();
            let files: Vec<&str> = listing.lines().filter_map(|l| l.strip_prefix("insmod ")).map(str::trim).collect();
            for (position, file) in files.iter().enumerate() {
                let file = Path::new(file.split_whitespace().next().unwrap_or_default());
                let (plain, bytes) = module_bytes(file)?;
                if seen.insert(plain.clone()) {
                    let options = if position + 1 == files.len() { options.as_str() } else { "" };
                    order.push_str(&format!("{plain} {options}\n"));
                    archive.file(&format!("lib/mods/{plain}"), 0o644, bytes);
                }
            }
        }
        archive.file("lib/mods/order", 0o644, order.into_bytes());
        Ok(())
    }
}

/// A module's name without compression suffix, and its uncompressed octets.
fn module_bytes(file: &Path) -> Result<(String, Vec<u8>)> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for (suffix, tool) in [(".xz", "xz"), (".zst", "zstd"), (".gz", "gzip")] {
        if let Some(plain) = name.strip_suffix(suffix) {
            let output =
                Command::new(tool).arg("-dc").arg(file).output().with_context(|| format!("cannot run {tool}"))?;
            if !output.status.success() {
                bail!("{tool} cannot unpack {}", file.display());
            }
            return Ok((plain.to_owned(), output.stdout));
        }
    }
    Ok((name, std::fs::read(file).with_context(|| format!("cannot read the module {}", file.display()))?))
}

/// A cpio archive in the making. Entries are sorted by path, so the same content makes the same octets.
#[derive(Debug, Default)]
struct Archive {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Archive {
    fn folder(&mut self, path: &str) {
        self.entries.entry(path.to_owned()).or_insert((0o040_755, Vec::new()));
    }

    fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        for (slash, _) in path.match_indices('/') {
            self.folder(&path[..slash]);
        }
        self.entries.insert(path.to_owned(), (0o100_000 | mode, bytes));
    }

    /// Writes the archive to `folder` under the name of its content's hash, unless it is there.
    fn store(&self, folder: &Path) -> Result<PathBuf> {
        let image = self.octets();
        let mut hasher = DefaultHasher::new();
        hasher.write(&image);
        let path = folder.join(format!("{:016x}.cpio", hasher.finish()));
        if !path.is_file() {
            std::fs::create_dir_all(folder)?;
            // written aside and renamed, so that a test next door never sees half of it
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            std::io::Write::write_all(&mut file, &image)?;
            file.persist(&path)?;
        }
        Ok(path)
    }

    fn octets(&self) -> Vec<u8> {
        // sorted order puts a folder before what is in it, which is what the kernel's unpacker needs
        let mut out = Vec::new();
        for (number, (path, (mode, bytes))) in self.entries.iter().enumerate() {
            entry(&mut out, number + 1, path, *mode, bytes);
        }
        entry(&mut out, 0, "TRAILER!!!", 0, &[]);
        out
    }
}

fn entry(out: &mut Vec<u8>, inode: usize, path: &str, mode: u32, bytes: &[u8]) {
    let links = if mode & 0o040_000 != 0 { 2 } else { 1 };
    let name_len = path.len() + 1;
    let header = format!(
        "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{name_len:08x}{:08x}",
        0,
        0,
        0,
        bytes.len(),
        0,
        0,
        0,
        0,
        0
    );
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_aligned_ordered_and_ends_with_the_trailer() {
        let mut archive = Archive::default();
        archive.file("a/b/c", 0o644, b"hello".to_vec());
        let octets = archive.octets();
        assert_eq!(octets.len() % 4, 0);
        assert!(octets.starts_with(b"070701"));
        let find =
            |needle: &[u8]| octets.windows(needle.len()).position(|w| w == needle).expect("the name is in the archive");
        assert!(find(b"a\0") < find(b"a/b\0") && find(b"a/b\0") < find(b"a/b/c\0"));
        // header 110 octets, name "a/b/c\0" 6: the data begins at a multiple of four
        assert_eq!(find(b"hello") % 4, 0);
        assert!(find(b"TRAILER!!!") > find(b"hello"));
    }
}
