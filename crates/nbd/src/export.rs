//! An export: a disk under a name, for as many clients as there are.

use crate::handshake::Offer;
use crate::limits::LARGEST_REQUEST;
use crate::losses::Losses;
use crate::session::Terms;
use crate::wire::TransmissionFlags;
use polypath::vhost_user_blk::{Hold, Owed};
use polypath::{Device, Disk, Error, Stack};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OnceCell, watch};

/// How long a client that asks for a disk waits until it answers. Shorter than a handshake.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// Request that costs a disk nothing extra, in bytes, unless its blocks are larger.
const PREFERRED: u32 = 4096;

/// The disk of an export.
#[derive(Debug, Clone)]
pub enum DiskSource {
    /// One that is open. It is not closed with the export.
    Open(Disk),
    /// A device, of which a disk is made when the first client asks for it: it may not answer yet. It is not closed with the export.
    Device {
        /// The device.
        device: Arc<dyn Device>,
        /// The stack whose reactors serve it.
        stack: Stack,
    },
}

/// What is to be exported, and how.
#[derive(Debug, Clone)]
pub struct ExportConfig {
    /// What clients call it, at most 4096 octets without NUL. The one whose name is empty is the default; without one, the only one is.
    pub name: String,
    /// A line for people who list exports.
    pub description: String,
    /// The disk.
    pub disk: DiskSource,
    /// It takes no changes, whatever the disk does.
    pub read_only: bool,
    /// Changes wait as long as that says: what somebody who has gone had in flight may still land.
    pub hold_changes: Hold,
    /// Whether something that was written earlier may be lost, of which clients have not heard: the next flush of each says so then.
    /// It says so again at the end, if there is something that they have not heard.
    pub owed: Owed,
}

impl ExportConfig {
    /// `disk` under `name`, to read and to write.
    pub fn new(name: impl Into<String>, disk: Disk) -> ExportConfig {
        ExportConfig::of(name.into(), disk.name().to_owned(), DiskSource::Open(disk))
    }

    /// `device` under `name`, to read and to write. It need not answer yet.
    pub fn of_device(name: impl Into<String>, device: Arc<dyn Device>, stack: &Stack) -> ExportConfig {
        let description = device.name().to_owned();
        ExportConfig::of(name.into(), description, DiskSource::Device { device, stack: stack.clone() })
    }

    fn of(name: String, description: String, disk: DiskSource) -> ExportConfig {
        let (hold_changes, owed) = (Hold::default(), Owed::default());
        ExportConfig { name, description, disk, read_only: false, hold_changes, owed }
    }
}

/// What an export has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportStatistics {
    /// Clients that use it now, those included that have gone and whose last requests are with the disk.
    pub clients: usize,
    /// Clients that have used it.
    pub connections: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Bytes that were written, zeroes without data not included.
    pub bytes_written: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
}

/// One export. Its sessions hold it.
#[derive(Debug)]
pub(crate) struct Export {
    pub(crate) config: ExportConfig,
    disk: OnceCell<Disk>,
    ending: watch::Sender<bool>,
    sessions: watch::Sender<usize>,
    pub(crate) counters: Counters,
    pub(crate) losses: Losses,
}

impl Export {
    pub(crate) fn new(config: ExportConfig) -> Arc<Export> {
        let disk = match &config.disk {
            DiskSource::Open(disk) => OnceCell::new_with(Some(disk.clone())),
            DiskSource::Device { .. } => OnceCell::new(),
        };
        let losses = Losses::new(config.owed.clone());
        let (ending, sessions) = (watch::Sender::new(false), watch::Sender::new(0));
        Arc::new(Export { config, disk, ending, sessions, counters: Counters::default(), losses })
    }

    /// Its disk, opened if nobody has before.
    pub(crate) async fn disk(&self) -> Result<&Disk, Error> {
        let DiskSource::Device { device, stack } = &self.config.disk else {
            return self.disk.get().ok_or_else(|| Error::Closed { name: self.config.name.clone() });
        };
        let open = || Disk::builder().device(device.clone()).stack(stack).timeout(OPEN_LIMIT).open();
        let disk = self.disk.get_or_try_init(open).await?;
        Ok(disk)
    }

    /// What a client that asks now is told of `disk`. On replies and contexts nobody has agreed yet.
    pub(crate) fn terms(&self, disk: &Disk) -> Terms {
        let (geometry, limits) = (disk.geometry(), disk.limits());
        Terms {
            size: geometry.bytes(),
            block: geometry.block_size,
            read_only: self.config.read_only || limits.read_only,
            trim: limits.max_discard_blocks > 0,
            zeroes: limits.max_write_zeroes_blocks > 0,
            fua: limits.fua,
            structured: false,
            allocation: false,
        }
    }

    pub(crate) fn offer(&self, terms: &Terms) -> Offer {
        let mut flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::CAN_MULTI_CONN;
        if terms.read_only {
            flags |= TransmissionFlags::READ_ONLY;
        } else {
            flags |= TransmissionFlags::SEND_WRITE_ZEROES | TransmissionFlags::SEND_FAST_ZERO;
            flags.set(TransmissionFlags::SEND_TRIM, terms.trim);
        }
        Offer {
            name: self.config.name.clone(),
            description: self.config.description.clone(),
            size: terms.size,
            flags,
            smallest: terms.block,
            preferred: PREFERRED.max(terms.block),
            largest: LARGEST_REQUEST,
        }
    }

    /// One more client uses it, until the answer is dropped.
    pub(crate) fn enter(self: &Arc<Export>) -> Entered {
        self.sessions.send_modify(|n| *n += 1);
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        Entered(self.clone())
    }

    /// It ends: clients are told so, and hung up on when their requests are answered.
    pub(crate) fn end(&self) {
        self.ending.send_replace(true);
    }

    pub(crate) fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    /// Does no client use it, and is nothing of it with the disk?
    pub(crate) fn is_quiet(&self) -> bool {
        *self.sessions.borrow() == 0
    }

    /// Waits until that is so.
    pub(crate) async fn quiet(&self) {
        // It is an error only if the sender has gone, which is ours.
        let _ = self.sessions.subscribe().wait_for(|n| *n == 0).await;
    }

    pub(crate) fn statistics(&self) -> ExportStatistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExportStatistics {
            clients: *self.sessions.borrow(),
            connections: read(&self.counters.connections),
            requests: read(&self.counters.requests),
            errors: read(&self.counters.errors),
            bytes_read: read(&self.counters.bytes_read),
            bytes_written: read(&self.counters.bytes_written),
        }
    }
}

/// A client that uses an export.
#[derive(Debug)]
pub(crate) struct Entered(Arc<Export>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.sessions.send_modify(|n| *n -= 1);
    }
}
