//! Opening a file: what it is, how large, and how it wants to be read.

use super::device_use::DeviceUse;
use super::{Direct, File, FileEngine, FileOptions, ring, sys};
use crate::base::{self, Base};
use crate::error::LocalError;
use polypath_block::{Access, DeviceInfo, DiskUri, Endpoint, Geometry, Limits, UriError};
use rustix::fd::OwnedFd;
use rustix::fs::{self, FileType, Mode, OFlags};
use std::io;
use std::time::{Duration, Instant};

/// How long locks are waited for: those of a process that was killed end with its io_uring, which the kernel ends a moment later.
const LOCK_LIMIT: Duration = Duration::from_millis(500);
const LOCK_LOOK: Duration = Duration::from_millis(10);

const OPTIONS: [&str; 7] = ["bs", "direct", "engine", "lock", "nguid", "readonly", "uuid"];

/// Opens it; with `take`, also locks it if it is to be locked, and finds out what can only be found out by changing it. Without, nothing of
/// it changes.
pub(super) fn open(uri: &DiskUri, take: bool) -> Result<(Base, File), LocalError> {
    uri.check_options(&OPTIONS)?;
    let Endpoint::Path { path, .. } = &uri.endpoint else {
        return Err(uri.error("path", "expected file:///PATH").into());
    };
    let options = options(uri)?;
    let name = uri.to_string();
    let (fd, block_device) = open_file(&name, path, options.read_only)?;
    let used = (take && options.lock).then(|| lock(&name, path, &fd, options.read_only)).transpose()?;
    let bytes = if block_device {
        sys::device_bytes(&fd)
    } else {
        fs::fstat(&fd).map(|s| s.st_size as u64).map_err(Into::into)
    }
    .map_err(|e| system(&name, "asking for its size", e, ""))?;
    let logical = if block_device { sys::logical_block(&fd).unwrap_or(512) } else { 512 };
    let block_size = options.block_size.unwrap_or(logical);
    if block_size < logical {
        let problem = format!("{block_size} is less than the {logical} bytes a block of the device");
        return Err(uri.error("option bs", problem).into());
    }
    let geometry = base::geometry(&name, bytes, block_size)?;
    if geometry.bytes() != bytes {
        tracing::warn!(
            device = name,
            bytes,
            block_size,
            "the size is no multiple of the block size; the rest is left out"
        );
    }
    let direct = choose_direct(&name, path, &fd, options.direct, block_size)?;
    let limits = limits(&fd, block_device, &options, geometry, bytes, take);
    let info = DeviceInfo {
        geometry,
        limits,
        identity: base::identity(uri, format!("file.{path}"))?,
        access: Access::Optimized,
        max_queues: u16::MAX,
        max_depth: base::MAX_DEPTH,
    };
    let (memory_align, offset_align) = direct.unwrap_or((1, 1));
    let direct = direct.is_some();
    let file = File { fd, block_device, direct, memory_align, offset_align, engine: options.engine, _used: used };
    Ok((Base::new(name, info), file))
}

/// Does the kernel let us have io_uring? Said once, when the device is opened.
pub(super) fn probe_ring(name: &str, engine: FileEngine) -> Result<(), LocalError> {
    let Err(source) = ring::probe() else { return Ok(()) };
    let hint = match source.raw_os_error() {
        Some(libc::EPERM) => {
            " (the kernel forbids io_uring: see sysctl kernel.io_uring_disabled, 0 allows it; or use engine=threads)"
        }
        Some(libc::ENOSYS) => " (this kernel, or a seccomp filter around us, has no io_uring; use engine=threads)",
        Some(libc::ENOMEM) => " (raise the locked memory limit, ulimit -l; or use engine=threads)",
        _ => " (use engine=threads)",
    };
    if engine == FileEngine::Uring {
        return Err(system(name, "io_uring_setup", source, hint));
    }
    tracing::warn!(device = name, error = %source, "io_uring cannot be used{hint}; threads are used instead");
    Ok(())
}

fn options(uri: &DiskUri) -> Result<FileOptions, UriError> {
    let direct = match uri.option("direct").unwrap_or("auto") {
        "auto" => Direct::Auto,
        "on" | "1" | "true" | "yes" | "" => Direct::On,
        "off" | "0" | "false" | "no" => Direct::Off,
        other => return Err(uri.error("option direct", format!("\"{other}\"; expected auto, on or off"))),
    };
    let engine = match uri.option("engine").unwrap_or("auto") {
        "auto" => FileEngine::Auto,
        "uring" => FileEngine::Uring,
        "threads" => FileEngine::Threads,
        other => return Err(uri.error("option engine", format!("\"{other}\"; expected auto, uring or threads"))),
    };
    let block_size = uri.option("bs").map(|_| base::block_size(uri, 512)).transpose()?;
    Ok(FileOptions {
        direct,
        engine,
        read_only: uri.option_bool("readonly", false)?,
        block_size,
        lock: uri.option_bool("lock", true)?,
    })
}

fn open_file(name: &str, path: &str, read_only: bool) -> Result<(OwnedFd, bool), LocalError> {
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    // Non-blocking while opening, so that a FIFO or a tape does not hang us; it means nothing for files and disks.
    let fd = fs::open(path, access | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).map_err(|e| {
        let hint = match e {
            rustix::io::Errno::NOENT => " (make it first, for example: truncate -s 1G FILE)",
            rustix::io::Errno::ACCESS | rustix::io::Errno::PERM | rustix::io::Errno::ROFS if !read_only => {
                " (to only read it: ?readonly=on)"
            }
            _ => "",
        };
        system(name, "opening it", e.into(), hint)
    })?;
    let stat = fs::fstat(&fd).map_err(|e| system(name, "fstat", e.into(), ""))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((fd, false)),
        FileType::BlockDevice => Ok((fd, true)),
        kind => {
            let problem = format!("{path} is neither a regular file nor a block device ({kind:?})");
            Err(LocalError::Unfit { name: name.into(), problem })
        }
    }
}

/// An image has one writer, whoever it is: another daemon, QEMU, or another disk of ours.
fn lock(name: &str, path: &str, fd: &OwnedFd, read_only: bool) -> Result<DeviceUse, LocalError> {
    let until = Instant::now() + LOCK_LIMIT;
    loop {
        if let Some(used) = DeviceUse::begin(fd, !read_only) {
            match sys::lock_image(fd, read_only) {
                Ok(true) => return Ok(used),
                Ok(false) => sys::unlock_image(fd),
                // Some network file systems know no locks: as with QEMU's locking=auto, that is said and borne.
                Err(error) => {
                    tracing::warn!(device = name, %error, "the file cannot be locked: nothing keeps others from writing it");
                    return Ok(used);
                }
            }
        }
        if Instant::now() >= until {
            let what = if read_only { "written" } else { "used" };
            let problem = format!(
                "{path} is {what} by another process, or by another disk of this one; end that first (lslocks shows who it is), or say \
                 lock=off if you know that the two do not harm each other"
            );
            return Err(LocalError::Unfit { name: name.into(), problem });
        }
        std::thread::sleep(LOCK_LOOK);
    }
}

/// The alignments in bytes (memory, offset) if the file is to be read past the page cache.
fn choose_direct(
    name: &str,
    path: &str,
    fd: &OwnedFd,
    wanted: Direct,
    block_size: u32,
) -> Result<Option<(usize, usize)>, LocalError> {
    if wanted == Direct::Off {
        return Ok(None);
    }
    let problem = match sys::direct_alignment(fd, path) {
        Ok((memory, offset)) if offset <= block_size as usize => match sys::set_direct(fd) {
            Ok(()) => return Ok(Some((memory, offset))),
            Err(error) => format!("the file system refuses O_DIRECT ({error})"),
        },
        Ok((_, offset)) => {
            format!("O_DIRECT here needs blocks of {offset} bytes and this disk has {block_size}; bs={offset} would do")
        }
        Err(error) => format!("the file system does not do O_DIRECT ({error})"),
    };
    if wanted == Direct::On {
        let problem = format!("direct=on, but {problem}; use direct=auto to go through the page cache");
        return Err(LocalError::Unfit { name: name.into(), problem });
    }
    tracing::info!(device = name, "goes through the page cache: {problem}");
    Ok(None)
}

fn limits(
    fd: &OwnedFd,
    block_device: bool,
    options: &FileOptions,
    geometry: Geometry,
    bytes: u64,
    take: bool,
) -> Limits {
    let discard = match (options.read_only, block_device) {
        (true, _) => true,
        (false, true) => sys::device_discards(fd),
        // What lies behind the end may be somebody's.
        (false, false) => take && sys::makes_holes(fd, bytes),
    };
    let optimal = fs::fstat(fd).map_or(0, |s| (s.st_blksize as u64 / u64::from(geometry.block_size)) as u32);
    Limits {
        max_discard_blocks: if discard { u32::MAX } else { 0 },
        discard_granularity_blocks: optimal.max(1),
        optimal_blocks: optimal,
        write_cache: true,
        read_only: options.read_only,
        ..Limits::UNLIMITED
    }
}

fn system(name: &str, what: &'static str, source: io::Error, hint: &'static str) -> LocalError {
    LocalError::System { name: name.into(), what, source, hint }
}
