//! `file://`: a regular file or a block device of this machine.

mod bounce;
mod device_use;
mod engine;
mod open;
mod queue;
mod ring;
mod sys;
mod threads;

use crate::base::{self, Base};
use crate::error::LocalError;
use device_use::DeviceUse;
use engine::Engine;
use polypath_block::{Device, DeviceState, DiskUri, IoQueue, OpenError, QueueConfig};
use queue::FileQueue;
use ring::{Ring, SETUPS};
use rustix::fd::OwnedFd;
use std::sync::Arc;
use threads::Threads;

/// Whether a file is read and written past the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Direct {
    /// Past it where the file system allows and the block size fits, through it otherwise (and the log says why).
    #[default]
    Auto,
    /// Past it, or not at all.
    On,
    /// Through it.
    Off,
}

/// Who carries out the system calls of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FileEngine {
    /// io_uring where the kernel allows it, threads otherwise (and the log says why).
    #[default]
    Auto,
    /// io_uring, or not at all.
    Uring,
    /// A few threads a queue with `preadv` and `pwritev`: slower, works everywhere.
    Threads,
}

/// How a file is to be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileOptions {
    /// Past the page cache?
    pub direct: Direct,
    /// Who carries out the system calls?
    pub engine: FileEngine,
    /// Take no changes.
    pub read_only: bool,
    /// Bytes a block; `None`: 512 for a file, the logical block size for a block device.
    pub block_size: Option<u32>,
    /// Refuse it while somebody else writes it (or, if we write it, reads it and bears no writer), and keep others from writing it. The
    /// locks are QEMU's, so that both sides heed each other.
    pub lock: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        FileOptions { direct: Direct::Auto, engine: FileEngine::Auto, read_only: false, block_size: None, lock: true }
    }
}

/// `file:///path`: a regular file (its size when opened, whole blocks) or a block device.
///
/// Options: `readonly`, `bs`, `direct=auto|on|off`, `engine=auto|uring|threads`, `lock=on|off`, `uuid`, `nguid`. Without `uuid` or `nguid` it has no
/// identity and never joins others by itself.
pub struct FileDevice {
    base: Arc<Base>,
    file: Arc<File>,
}

/// What is known of the open file; shared by its queues.
pub(crate) struct File {
    pub(crate) fd: OwnedFd,
    pub(crate) block_device: bool,
    pub(crate) direct: bool,
    /// With `direct`: what addresses of memory must be a multiple of, in bytes.
    pub(crate) memory_align: usize,
    /// With `direct`: what offsets and lengths must be a multiple of, in bytes.
    pub(crate) offset_align: usize,
    pub(crate) engine: FileEngine,
    /// Keeps other disks of this process from it, where a lock does not.
    pub(crate) _used: Option<DeviceUse>,
}

impl Drop for File {
    fn drop(&mut self) {
        sys::unlock_image(&self.fd);
    }
}

impl FileDevice {
    /// Opens the disk that `uri` describes. It may block.
    ///
    /// # Errors
    /// Names the part of the URI that does not do, or what the operating system refused.
    pub fn open(uri: &DiskUri) -> Result<Arc<FileDevice>, LocalError> {
        let (base, file) = open::open(uri, true)?;
        if file.engine != FileEngine::Threads {
            open::probe_ring(base.name(), file.engine)?;
        }
        Ok(Arc::new(FileDevice { base: Arc::new(base), file: Arc::new(file) }))
    }

    /// Whether it could be opened, but for others that use it now: nothing is locked, and nothing of it changes.
    ///
    /// # Errors
    /// As [`FileDevice::open`].
    pub fn check(uri: &DiskUri) -> Result<(), LocalError> {
        open::open(uri, false).map(drop)
    }

    /// Is it read and written past the page cache?
    pub fn is_direct(&self) -> bool {
        self.file.direct
    }
}

impl Device for FileDevice {
    fn name(&self) -> &str {
        self.base.name()
    }

    fn state(&self) -> DeviceState {
        self.base.state()
    }

    fn version(&self) -> u64 {
        self.base.version()
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let (open, depth) = self.base.open(QueueConfig { depth: config.depth.min(base::MAX_DEPTH) })?;
        let system = |what: &str, e: std::io::Error| OpenError::System {
            name: self.name().into(),
            reason: format!("{what}: {e}"),
        };
        let threads = || Threads::start(&self.file, depth).map_err(|e| system("starting threads for it", e));
        let engine = match self.file.engine {
            FileEngine::Threads => Engine::Threads(threads()?),
            wanted => match Ring::new(&self.file, depth, &SETUPS) {
                Ok(ring) => Engine::Ring(Box::new(ring)),
                Err(error) if wanted == FileEngine::Uring => return Err(system("io_uring_setup", error)),
                Err(error) => {
                    tracing::warn!(device = self.name(), %error, "io_uring is refused; a few threads serve this queue instead");
                    Engine::Threads(threads()?)
                }
            },
        };
        // Discarding on a block device is a call that io_uring does not have everywhere.
        let aside = match (&engine, self.file.block_device) {
            (Engine::Ring(_), true) => Some(threads()?),
            _ => None,
        };
        Ok(Box::new(FileQueue::new(open, self.file.clone(), engine, aside, depth)))
    }

    fn close(&self) {
        self.base.close();
    }
}
