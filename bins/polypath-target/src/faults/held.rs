//! Writes that are taken from their commands and applied late, whatever has become of their connections.

use crate::mail::Address;
use crate::media::{Medium, MediumError, Party};
use serde::Serialize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Records of held writes that are kept for `status`.
const RECORDS: usize = 1024;
/// Held writes at a time.
const HELD: usize = 4096;

/// A write taken from its command and applied later, whatever becomes of the connection.
#[derive(Debug)]
pub(crate) struct HeldWrite {
    pub(crate) id: u64,
    pub(crate) medium: Arc<Medium>,
    pub(crate) offset: u64,
    /// The data; `None` for `len` bytes of zeroes.
    pub(crate) data: Option<Vec<u8>>,
    pub(crate) len: u64,
    /// It is not answered before it is durable.
    pub(crate) fua: bool,
    pub(crate) apply_us: u64,
    /// Whom to tell afterwards.
    pub(crate) answer: Option<Address>,
    /// The controller or session that it came through; set once that is gone.
    pub(crate) gone: Arc<AtomicBool>,
    /// Whose it is, where that can be told later: disks and user.
    pub(crate) owner: Option<(usize, Arc<Party>)>,
    /// Logical unit, for those with an owner.
    pub(crate) unit: u32,
    /// Command identifier or task tag.
    pub(crate) tag: u32,
    /// Deliberately later than anything that is promised: no abort and no end of a session brings it forward.
    pub(crate) beyond: bool,
}

impl HeldWrite {
    fn land(&self) -> Result<(), MediumError> {
        let before = self.medium.changes();
        match &self.data {
            Some(data) => self.medium.write(self.offset, data)?,
            None => self.medium.zero(self.offset, self.len)?,
        }
        if let Medium::Cached(cached) = &*self.medium {
            cached.tell_landed(cached.changes() - before);
        }
        if self.fua { self.medium.persist(self.offset, self.len) } else { Ok(()) }
    }
}

/// What became of a held write, for tests to hold against their own log.
#[derive(Clone, Debug, Serialize)]
pub struct HeldRecord {
    /// Number of the held write, from 1.
    pub id: u64,
    /// Controller, or session (TSIH), it came through.
    pub cntlid: u16,
    /// Queue it came through; 0 for a session's only connection.
    pub qid: u16,
    /// Its command identifier or initiator task tag.
    pub cid: u32,
    /// Namespace; for a logical unit that of the same disk.
    pub nsid: u32,
    /// First logical block.
    pub lba: u64,
    /// Logical blocks.
    pub blocks: u64,
    /// When it was taken, microseconds since 1970.
    pub held_unix_us: u64,
    /// When it is to be applied, milliseconds after it was taken.
    pub apply_after_ms: u64,
    /// What the controller's advertised times allow, in milliseconds after it was taken; none without keep alive.
    pub bound_ms: Option<u64>,
    /// Deliberately later than that?
    pub beyond: bool,
    /// When it was applied, microseconds since 1970; none while it is held.
    pub applied_unix_us: Option<u64>,
    /// Was its controller already gone when it was applied?
    pub after_teardown: Option<bool>,
}

/// All held writes and their records.
#[derive(Debug)]
pub(crate) struct HeldStore {
    inner: Mutex<HeldInner>,
    next_us: AtomicU64,
    next_id: AtomicU64,
}

#[derive(Debug, Default)]
struct HeldInner {
    waiting: Vec<HeldWrite>,
    records: Vec<HeldRecord>,
}

impl HeldStore {
    pub(crate) fn new() -> HeldStore {
        HeldStore { inner: Mutex::default(), next_us: AtomicU64::new(u64::MAX), next_id: AtomicU64::new(0) }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// When the next one is due, in target time.
    pub(crate) fn next_us(&self) -> u64 {
        self.next_us.load(Ordering::Acquire)
    }

    /// Takes a write. `false` when too many are held.
    pub(crate) fn hold(&self, write: HeldWrite, record: HeldRecord) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(|p| p.into_inner());
        if inner.waiting.len() >= HELD {
            return false;
        }
        self.next_us.fetch_min(write.apply_us, Ordering::AcqRel);
        inner.waiting.push(write);
        if inner.records.len() >= RECORDS {
            inner.records.remove(0);
        }
        inner.records.push(record);
        true
    }

    /// Applies those that are due, and tells of each with its result.
    pub(crate) fn apply_due(&self, now_us: u64, unix_us: u64, tell: impl FnMut(&HeldWrite, Result<(), MediumError>)) {
        if now_us >= self.next_us() {
            self.apply(unix_us, |w| w.apply_us <= now_us, tell);
        }
    }

    /// Applies at once, in their order, those of which `which` says so: when this returns they have landed. Nobody else applies any
    /// meanwhile, so that one that is just being applied has landed as well.
    pub(crate) fn apply(
        &self,
        unix_us: u64,
        which: impl Fn(&HeldWrite) -> bool,
        mut tell: impl FnMut(&HeldWrite, Result<(), MediumError>),
    ) {
        let mut inner = self.inner.lock().unwrap_or_else(|p| p.into_inner());
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut inner.waiting).into_iter().partition(which);
        inner.waiting = rest;
        let next = inner.waiting.iter().map(|w| w.apply_us).min().unwrap_or(u64::MAX);
        self.next_us.store(next, Ordering::Release);
        for write in &due {
            let result = write.land();
            tracing::info!(id = write.id, ok = result.is_ok(), "held write applied");
            if let Some(record) = inner.records.iter_mut().rev().find(|r| r.id == write.id) {
                record.applied_unix_us = Some(unix_us);
                record.after_teardown = Some(write.gone.load(Ordering::Acquire));
            }
            tell(write, result);
        }
    }

    /// Is there one that still waits of which `which` says so?
    pub(crate) fn holds(&self, which: impl Fn(&HeldWrite) -> bool) -> bool {
        self.inner.lock().unwrap_or_else(|p| p.into_inner()).waiting.iter().any(which)
    }

    /// Forgets what waits: the controller has lost its power.
    pub(crate) fn forget(&self) {
        self.inner.lock().unwrap_or_else(|p| p.into_inner()).waiting.clear();
        self.next_us.store(u64::MAX, Ordering::Release);
    }

    pub(crate) fn records(&self) -> Vec<HeldRecord> {
        self.inner.lock().unwrap_or_else(|p| p.into_inner()).records.clone()
    }
}
