//! The connection: properties of the disk, and queues to hand out.

use crate::queue::ClientQueue;
use blkio::{Blkio, Blkioq};
use polypath_block::{
    Access, Device, DeviceInfo, DeviceState, DiskUri, Endpoint, Geometry, Identity, IoQueue, Limits, OpenError,
    QueueConfig,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// How to connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientConfig {
    /// Socket of the back-end.
    pub path: String,
    /// Queues to set up; each can be opened once.
    pub queues: u16,
    /// Entries a ring: a power of two. A request takes three.
    pub queue_size: u16,
    /// Do not ask for write access.
    pub read_only: bool,
}

/// A back-end that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("vhost-user-blk back-end {path}: {step}: {problem}")]
pub struct ClientError {
    /// Socket of the back-end.
    pub path: String,
    /// What was being done.
    pub step: &'static str,
    /// What went wrong.
    pub problem: String,
}

impl ClientConfig {
    /// Reads `vhost-user-blk:///path?queues=1&queue_size=256&readonly=off`.
    ///
    /// # Errors
    /// Names the part of the URI that is wrong.
    pub fn from_uri(uri: &DiskUri) -> Result<Self, polypath_block::UriError> {
        uri.check_options(&["queues", "queue_size", "readonly"])?;
        let Endpoint::Path { path, .. } = &uri.endpoint else {
            return Err(uri.error("path", "missing; expected vhost-user-blk:///path/to.sock"));
        };
        Ok(ClientConfig {
            path: path.clone(),
            queues: uri.option_number("queues", 1)?,
            queue_size: uri.option_number("queue_size", 256)?,
            read_only: uri.option_bool("readonly", false)?,
        })
    }
}

/// A disk behind a vhost-user-blk socket.
pub struct VhostUserDisk {
    name: String,
    pub(crate) shared: Arc<Shared>,
    info: Arc<DeviceInfo>,
    queues: Mutex<Vec<Blkioq>>,
}

/// What queues share: the connection, for telling it of memory regions.
pub(crate) struct Shared {
    // blkio's driver objects are `Send` by their own promise; the lock makes every use exclusive.
    blkio: Mutex<Blkio>,
    closed: AtomicBool,
    version: AtomicU64,
}

impl Shared {
    pub(crate) fn blkio(&self) -> MutexGuard<'_, Blkio> {
        self.blkio.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl VhostUserDisk {
    /// Connects. Blocks for as long as the back-end takes to answer.
    ///
    /// # Errors
    /// [`ClientError`] says at which step.
    pub fn connect(config: &ClientConfig) -> Result<Arc<VhostUserDisk>, ClientError> {
        let fail = |step: &'static str| {
            let path = config.path.clone();
            move |e: blkio::Error| ClientError { path, step, problem: e.message().to_owned() }
        };
        let mut blkio = Blkio::new("virtio-blk-vhost-user").map_err(fail("making the driver"))?;
        blkio.set_str("path", &config.path).map_err(fail("setting its path"))?;
        blkio.set_bool("read-only", config.read_only).map_err(fail("setting read-only"))?;
        blkio.connect().map_err(fail("connecting"))?;
        blkio.set_i32("num-queues", config.queues.into()).map_err(fail("setting the number of queues"))?;
        blkio.set_i32("queue-size", config.queue_size.into()).map_err(fail("setting the queue size"))?;
        let info = describe(&blkio, config).map_err(fail("reading its properties"))?;
        let queues = blkio.start().map_err(fail("starting its queues"))?.queues;
        Ok(Arc::new(VhostUserDisk {
            name: format!("vhost-user-blk://{}", config.path),
            shared: Arc::new(Shared {
                blkio: Mutex::new(blkio),
                closed: AtomicBool::new(false),
                version: AtomicU64::new(1),
            }),
            info: Arc::new(info),
            queues: Mutex::new(queues),
        }))
    }
}

fn describe(blkio: &Blkio, config: &ClientConfig) -> blkio::Result<DeviceInfo> {
    let block_size = u32::try_from(blkio.get_i32("request-alignment")?).unwrap_or(512).max(512);
    let blocks_of = |bytes: u64| u32::try_from(bytes / u64::from(block_size)).unwrap_or(u32::MAX);
    let capacity = blkio.get_u64("capacity")?;
    let limits = Limits {
        max_transfer_bytes: u32::try_from(blkio.get_i32("max-transfer")?).unwrap_or(0) / block_size * block_size,
        max_segments: u32::try_from(blkio.get_i32("max-segments")?).unwrap_or(0),
        max_write_zeroes_blocks: blocks_of(blkio.get_u64("max-write-zeroes-len")?),
        max_discard_blocks: blocks_of(blkio.get_u64("max-discard-len")?),
        write_cache: blkio.get_bool("flush-needed")?,
        fua: false,
        compare: false,
        read_only: config.read_only,
        ..Limits::UNLIMITED
    };
    Ok(DeviceInfo {
        geometry: Geometry { block_size, blocks: capacity / u64::from(block_size) },
        limits,
        identity: Identity::default(),
        access: Access::Optimized,
        max_queues: config.queues,
        max_depth: (config.queue_size / 3).max(1),
    })
}

impl Device for VhostUserDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> DeviceState {
        if self.shared.closed.load(Ordering::Acquire) {
            return DeviceState::Gone { reason: "closed".into() };
        }
        DeviceState::Live(self.info.clone())
    }

    fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Relaxed)
    }

    fn open_queue(&self, _config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let queue = self.queues.lock().unwrap_or_else(|p| p.into_inner()).pop();
        let queue =
            queue.ok_or_else(|| OpenError::NoQueue { name: self.name.clone(), granted: self.info.max_queues })?;
        Ok(Box::new(ClientQueue::new(queue, self.shared.clone(), self.info.clone())))
    }

    fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.version.fetch_add(1, Ordering::Release);
    }
}
