//! A path to the simulated disk: a [`Device`], with faults on command.

use crate::queue::SimQueue;
use crate::world::World;
use core::time::Duration;
use polypath_block::{
    Access, CacheDomain, Code, Device, DeviceInfo, DeviceState, FenceTerms, Geometry, Identifier, Identity, IoQueue,
    Limits, OpenError, Proof, QueueConfig,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the target does with changes it holds when their connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Late {
    /// Forgets them.
    Never,
    /// Carries this many of a hundred out, at any time inside its bound.
    Sometimes(u32),
    /// Carries all of them out, a millisecond before its bound ends.
    JustInside,
    /// Breaks its promise: carries all of them out this long after its bound.
    Beyond(Duration),
}

/// How a path and its target behave.
#[derive(Clone, Debug)]
pub struct PathOptions {
    /// Name of the path.
    pub name: String,
    /// Identifiers the target shows.
    pub identifiers: Vec<Identifier>,
    /// Blocks it shows (of 512 bytes).
    pub blocks: u64,
    /// Its limits. [`PathOptions::write_cache`] says whether it has a cache.
    pub limits: Limits,
    /// Its cache is volatile.
    pub write_cache: bool,
    /// Paths that name the same domain share the cache.
    pub cache_domain: String,
    /// Access it gives.
    pub access: Access,
    /// Least and greatest time a command takes, in microseconds.
    pub latency_us: (u64, u64),
    /// Keep-alive timeout as the controller rounds it, in milliseconds.
    pub kato_ms: u32,
    /// Two, or three with traffic-based keep alive.
    pub multiple: u8,
    /// Command quiesce time, in milliseconds.
    pub cqt_ms: u32,
    /// What becomes of changes it holds when their connection is closed.
    pub late: Late,
    /// The initiator gives a connection up that is silent this long with commands outstanding, in milliseconds.
    pub silence_timeout_ms: u64,
    /// The initiator gives a connection up when one command takes this long, in milliseconds.
    pub io_timeout_ms: u64,
    /// The initiator connects again after this long, in milliseconds.
    pub reconnect_delay_ms: u64,
    /// Most commands a queue holds.
    pub depth: u16,
    /// Does not answer at first.
    pub starts_down: bool,
    /// Another disk answers there.
    pub other_disk: bool,
}

impl PathOptions {
    /// A path like the others: same disk, one cache domain without cache, 300 to 1000 µs, fence of two times one second.
    pub fn new(name: impl Into<String>, blocks: u64) -> Self {
        PathOptions {
            name: name.into(),
            identifiers: vec![Identifier::Nguid([0xD1; 16])],
            blocks,
            limits: Limits::UNLIMITED,
            write_cache: false,
            cache_domain: "subsystem".into(),
            access: Access::Optimized,
            latency_us: (300, 1000),
            kato_ms: 1000,
            multiple: 2,
            cqt_ms: 50,
            late: Late::Sometimes(60),
            silence_timeout_ms: 500,
            io_timeout_ms: 3000,
            reconnect_delay_ms: 200,
            depth: 128,
            starts_down: false,
            other_disk: false,
        }
    }

    /// The time after the close of a connection by which the target promises to have forgotten it.
    pub fn bound(&self) -> Duration {
        Duration::from_millis(u64::from(self.kato_ms) * u64::from(self.multiple) + u64::from(self.cqt_ms))
    }

    /// The fence that the initiator offers.
    pub fn terms(&self) -> FenceTerms {
        let proof = Proof::KeepAliveBound { kato_ms: self.kato_ms, multiple: self.multiple, cqt_ms: self.cqt_ms };
        FenceTerms { proof, within: self.bound() }
    }

    pub(crate) fn info(&self) -> DeviceInfo {
        DeviceInfo {
            geometry: Geometry { block_size: 512, blocks: self.blocks },
            limits: Limits { write_cache: self.write_cache, ..self.limits },
            identity: Identity {
                identifiers: self.identifiers.clone(),
                cache_domain: CacheDomain(self.cache_domain.clone()),
            },
            access: self.access,
            max_queues: 16,
            max_depth: self.depth,
        }
    }
}

/// A path. All faults may be set at any time and stay until unset.
pub struct SimPath {
    world: World,
    at: usize,
    name: String,
    version: Arc<AtomicU64>,
}

impl SimPath {
    pub(crate) fn new(world: World, at: usize, name: String, version: Arc<AtomicU64>) -> Self {
        SimPath { world, at, name, version }
    }

    /// The target accepts everything and answers nothing, until `false`.
    pub fn set_silent(&self, silent: bool) {
        let mut s = self.world.lock();
        s.paths[self.at].silent = silent;
        if !silent {
            s.release_held(self.at);
        }
    }

    /// The connection is reset now; the initiator notices at its next turn.
    pub fn reset(&self) {
        self.world.lock().paths[self.at].reset = true;
    }

    /// The target refuses new connections, until `false`.
    pub fn set_refusing(&self, refusing: bool) {
        self.world.lock().paths[self.at].refusing = refusing;
    }

    /// The next `count` commands get no answer; others go on.
    pub fn lose(&self, count: u32) {
        self.world.lock().paths[self.at].lose = count;
    }

    /// The next `count` commands are answered with [`Code::PathBusy`].
    pub fn busy(&self, count: u32) {
        self.world.lock().paths[self.at].busy = count;
    }

    /// Every command fails at once with `code`, while the queue says that it is ready; `None` ends it.
    pub fn set_fail_at_once(&self, code: Option<Code>) {
        self.world.lock().paths[self.at].fail_at_once = code;
    }

    /// Every command takes this much longer.
    pub fn set_delay(&self, delay: Duration) {
        self.world.lock().paths[self.at].extra_delay = delay;
    }

    /// The access changes, and the initiator is told.
    pub fn set_access(&self, access: Access) {
        let mut s = self.world.lock();
        s.paths[self.at].options.access = access;
        s.publish(self.at);
    }

    /// The capacity shown changes, and the initiator is told.
    pub fn set_blocks(&self, blocks: u64) {
        let mut s = self.world.lock();
        s.paths[self.at].options.blocks = blocks;
        s.publish(self.at);
    }

    /// Another disk answers from the next connection on (or the first one again). Resets the connection.
    pub fn swap_identity(&self, identifiers: Vec<Identifier>, other_disk: bool) {
        let mut s = self.world.lock();
        s.lose_path(self.at, Code::PathLost, "connection reset");
        let options = &mut s.paths[self.at].options;
        (options.identifiers, options.other_disk) = (identifiers, other_disk);
    }

    /// Changes the options for what comes; the shown info is not published again.
    pub fn edit(&self, edit: impl FnOnce(&mut PathOptions)) {
        edit(&mut self.world.lock().paths[self.at].options);
    }

    /// The device gives up for good.
    pub fn give_up(&self, reason: &str) {
        let mut s = self.world.lock();
        s.lose_path(self.at, Code::PathLost, reason);
        s.paths[self.at].device = DeviceState::Gone { reason: reason.to_owned() };
        s.paths[self.at].version.fetch_add(1, Ordering::Release);
    }

    /// No further queue can be opened, with this reason; `None` ends it.
    pub fn set_no_queues(&self, reason: Option<&str>) {
        self.world.lock().paths[self.at].unavailable = reason.map(str::to_owned);
    }

    /// Number of the volatile cache behind it, for [`crate::Disk::lose_cache`].
    pub fn cache(&self) -> u16 {
        self.world.lock().paths[self.at].cache
    }
}

impl Device for SimPath {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> DeviceState {
        self.world.lock().paths[self.at].device.clone()
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let s = self.world.lock();
        let target = &s.paths[self.at];
        let name = self.name.clone();
        if let DeviceState::Gone { reason } = &target.device {
            return Err(OpenError::Gone { name, reason: reason.clone() });
        }
        if let Some(reason) = &target.unavailable {
            return Err(OpenError::System { name, reason: reason.clone() });
        }
        let depth = target.options.depth.max(config.depth);
        drop(s);
        Ok(Box::new(SimQueue::new(self.world.clone(), self.at, depth)))
    }

    fn close(&self) {
        let mut s = self.world.lock();
        let target = &mut s.paths[self.at];
        if !target.closed {
            target.closed = true;
            target.device = DeviceState::Gone { reason: "closed".into() };
            target.version.fetch_add(1, Ordering::Release);
        }
    }
}
