//! The virtqueue, device side (virtio 1.2 sections 2.7 and 2.8), split or packed.
//!
//! Its areas are windows made when the ring starts: no address is translated to reach them. Descriptors and the 16-byte request
//! header are read once, into private memory; data is only translated, never touched here.
//!
//! What a guest gets wrong costs either one request ([`Fault`]: there is a status byte to say so) or its ring ([`RingError`]:
//! nothing that follows can be trusted).

mod ahead;
mod chain;
mod inflight;
mod packed;
mod split;

use crate::guest::GuestMemory;
use crate::log::DirtyLog;
use chain::Hints;
use packed::Packed;
use polypath_block::Segment;
use polypath_memory::{OutOfWindow, Window};
use split::Split;
use std::sync::Arc;

pub use ahead::Plain;
pub use chain::{Chain, Fault, StatusByte};
pub(crate) use inflight::record_len;

/// Largest ring this back-end runs.
pub const MAX_RING: u16 = 1024;

/// What a ring is made of.
#[derive(Clone, Debug)]
pub struct RingSpec {
    /// Number of descriptors: a power of two up to [`MAX_RING`].
    pub size: u16,
    /// Was `VIRTIO_F_RING_PACKED` negotiated?
    pub packed: bool,
    /// The descriptors, 16 bytes each.
    pub desc: Window,
    /// The available ring; of a packed ring, what the driver wants to be called for.
    pub avail: Window,
    /// The used ring; of a packed ring, what the driver should notify of.
    pub used: Window,
    /// Where to begin, as SET_VRING_BASE says it: the index of the first available entry to take; of a packed ring, that and the
    /// next used one, 15 bits and a lap counter each. A record knows better, unless the guest has made its ring anew.
    pub base: u32,
    /// Was `VIRTIO_RING_F_EVENT_IDX` negotiated?
    pub event_idx: bool,
    /// Was `VIRTIO_RING_F_INDIRECT_DESC` negotiated?
    pub indirect: bool,
    /// Guest addresses and lengths of the areas that the device writes, for the log: the used ring; of a packed ring, the descriptors and
    /// what the driver should notify of.
    pub written: [(u64, u64); 2],
    /// Where the requests in flight are recorded for whoever runs the ring after us, if its front-end wants that.
    pub record: Option<Window>,
}

impl RingSpec {
    /// Bytes of the three areas of a ring with `size` descriptors.
    pub const fn areas(size: u16, packed: bool, event_idx: bool) -> (u64, u64, u64) {
        if packed {
            return (16 * size as u64, 4, 4);
        }
        let (size, event) = (size as u64, if event_idx { 2 } else { 0 });
        (16 * size, 4 + 2 * size + event, 4 + 8 * size + event)
    }
}

/// The guest broke its ring; nothing more is taken from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingError {
    /// Size or areas make no ring.
    #[error("a ring of {size} descriptors cannot be made: {problem}")]
    Shape {
        /// Number of descriptors asked for.
        size: u16,
        /// What is wrong.
        problem: &'static str,
    },
    /// A back-end was killed with requests in flight, and which of them were done is not known. To carry them out again might write
    /// memory that the guest has given to something else.
    #[error(
        "a back-end was killed with requests of the ring in flight, and nobody knows which of them were done; reset the guest"
    )]
    Orphaned,
    /// What is recorded of its requests in flight cannot be.
    #[error("the record of the ring's requests in flight is of no use: {problem}")]
    Record {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The available index moved by more than the ring holds.
    #[error("available index went from {from} to {to}, more than the {size} entries of the ring")]
    IndexJump {
        /// Entries taken so far (modulo 65,536).
        from: u16,
        /// Index found.
        to: u16,
        /// Size of the ring.
        size: u16,
    },
    /// An available entry names a descriptor that is not there.
    #[error("descriptor {index} of a ring (or table) of {size}")]
    BadIndex {
        /// The index.
        index: u16,
        /// Number of descriptors.
        size: u32,
    },
    /// An available entry names a chain that is in flight.
    #[error("descriptor chain {head} was made available again while in flight")]
    Reused {
        /// Its head.
        head: u16,
    },
    /// A chain is longer than its table: it loops.
    #[error("descriptor chain {head} loops")]
    Loop {
        /// Its head.
        head: u16,
    },
    /// An indirect descriptor that was not negotiated, is nested, has a next, or whose table is cut or not there.
    #[error("bad indirect descriptor in chain {head}: {problem}")]
    Indirect {
        /// Head of the chain.
        head: u16,
        /// What is wrong.
        problem: &'static str,
    },
    /// The front-end cut the file behind the guest's memory: zero pages stand in for data, and must not reach the disk.
    #[error("the file behind the guest's memory was cut short")]
    MemoryLost,
    /// There is no byte of guest memory to put the status in.
    #[error("descriptor chain {head} has no writable status byte in guest memory")]
    NoStatus {
        /// Its head.
        head: u16,
    },
}

/// Before each store that the guest, or a back-end after us, can see: where a process may be killed. Tests do.
#[inline(always)]
fn step() {
    #[cfg(test)]
    killed::step();
}

/// How tests end a ring between any two stores.
#[cfg(test)]
pub(crate) mod killed {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// The thread panics at the store after `stores` more.
    pub(crate) fn after(stores: Option<u32>) {
        LEFT.set(stores);
    }

    pub(super) fn step() {
        match LEFT.get() {
            Some(0) => {
                LEFT.set(None);
                std::panic::resume_unwind(Box::new(Killed));
            }
            Some(n) => LEFT.set(Some(n - 1)),
            None => {}
        }
    }

    /// What it panics with.
    pub(crate) struct Killed;
}

/// A running virtqueue. Belongs to one thread.
#[derive(Debug)]
pub struct Vring {
    kind: Kind,
    memory: Arc<GuestMemory>,
    size: u16,
    hints: Hints,
    written: [(u64, u64); 2],
    log: Option<Arc<DirtyLog>>,
    /// Something was given back and is not logged.
    touched: bool,
    /// What logging has cost since somebody asked, in words of the log.
    log_cost: u64,
}

#[derive(Debug)]
enum Kind {
    Split(Split),
    Packed(Box<Packed>),
}

/// Ring windows have the size and alignment that [`Vring::new`] checked, and offsets are masked.
fn sure<T>(access: Result<T, OutOfWindow>) -> T {
    access.expect("ring areas were checked when the ring was made")
}

impl Vring {
    /// A ring over `spec`, whose descriptors point into `memory`. With a record, chains that a back-end before us took and did not
    /// give back come first.
    ///
    /// # Errors
    /// [`RingError::Shape`] for a size that is no power of two up to [`MAX_RING`], areas too small or misaligned, or a base that is
    /// not in the ring; [`RingError::Record`].
    pub fn new(spec: RingSpec, memory: Arc<GuestMemory>) -> Result<Vring, RingError> {
        let size = spec.size;
        let bad = |problem| RingError::Shape { size, problem };
        if !size.is_power_of_two() || size > MAX_RING {
            return Err(bad("the size must be a power of two up to 1024"));
        }
        let (d, a, u) = RingSpec::areas(size, spec.packed, spec.event_idx);
        if (spec.desc.len() as u64) < d || (spec.avail.len() as u64) < a || (spec.used.len() as u64) < u {
            return Err(bad("an area is cut short"));
        }
        let written = spec.written;
        let kind = match spec.packed {
            false => Kind::Split(Split::new(spec)?),
            true => Kind::Packed(Box::new(Packed::new(spec)?)),
        };
        let mut ring =
            Vring { kind, memory, size, hints: Hints::default(), written, log: None, touched: false, log_cost: 0 };
        ring.quiet();
        Ok(ring)
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the ring stands, as `GET_VRING_BASE` answers it once nothing is in flight.
    pub fn base(&self) -> u32 {
        match &self.kind {
            Kind::Split(ring) => ring.base(),
            Kind::Packed(ring) => ring.base(),
        }
    }

    /// How many chains that a back-end before us had taken are still to be taken again.
    pub fn left_open(&self) -> usize {
        match &self.kind {
            Kind::Split(ring) => ring.left_open(),
            Kind::Packed(ring) => ring.left_open(),
        }
    }

    /// Are requests in flight recorded for a back-end after us?
    pub fn has_record(&self) -> bool {
        match &self.kind {
            Kind::Split(ring) => ring.has_record(),
            Kind::Packed(ring) => ring.has_record(),
        }
    }

    /// A back-end was killed: might requests of the ring have been in flight of which there is no record? A new ring had none, and a record that
    /// nobody has written to says nothing.
    pub(crate) fn may_be_orphaned(&mut self) -> bool {
        match &mut self.kind {
            Kind::Split(ring) => ring.may_be_orphaned(),
            Kind::Packed(ring) => ring.may_be_orphaned(),
        }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Replaces the guest's memory by one that has at least the same regions.
    pub fn set_memory(&mut self, memory: Arc<GuestMemory>) {
        if let Kind::Split(ring) = &mut self.kind {
            ring.forget_ahead();
        }
        self.memory = memory;
    }

    /// What is written to guest memory from now on is marked there.
    pub(crate) fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.log = log;
        self.log_ring();
    }

    /// Is what is written to guest memory marked anywhere?
    #[inline]
    pub(crate) fn has_log(&self) -> bool {
        self.log.is_some()
    }

    /// The first `len` bytes of `segments` have been written, all of it or some.
    #[inline]
    pub(crate) fn landed(&mut self, segments: &[Segment], len: u64) {
        if let Some(log) = &self.log {
            self.log_cost += log.mark_segments(&self.memory, segments, len);
        }
    }

    /// What [`Vring::landed`] has cost since this was asked last, in words of the log.
    #[inline]
    pub(crate) fn take_log_cost(&mut self) -> u64 {
        std::mem::take(&mut self.log_cost)
    }

    /// We have written to the ring.
    #[inline]
    fn log_ring(&self) {
        if let Some(log) = &self.log {
            self.written.iter().for_each(|&(at, len)| _ = log.mark(at, len));
        }
    }

    /// Does a chain wait to be taken?
    ///
    /// # Errors
    /// [`RingError::IndexJump`].
    #[inline]
    pub fn has_chain(&mut self) -> Result<bool, RingError> {
        match &mut self.kind {
            Kind::Split(ring) => ring.has_chain(),
            Kind::Packed(ring) => Ok(ring.has_chain()),
        }
    }

    /// Looks up to `times` times for a chain, as cheaply as can be. True if there may be one, or if there is something wrong.
    #[inline]
    pub(crate) fn look(&mut self, times: u32) -> bool {
        match &mut self.kind {
            Kind::Split(ring) => ring.look(times, &self.memory),
            Kind::Packed(ring) => (0..times).any(|_| ring.has_chain()),
        }
    }

    /// How many chains can be taken one after the other, `most` at most; more may be there. Looks for new ones only if none was known, and
    /// then once. Asks for the memory that taking and reading them will touch, all at once, instead of waiting for each line in its turn:
    /// call it before the first of a batch is taken. What it has learnt holds until it is called again, or the memory is replaced.
    ///
    /// # Errors
    /// [`RingError::IndexJump`].
    #[inline]
    pub fn look_ahead(&mut self, most: u16) -> Result<u16, RingError> {
        match &mut self.kind {
            Kind::Split(ring) => ring.look_ahead(most, &self.memory, &mut self.hints),
            Kind::Packed(ring) => Ok(ring.look_ahead(most, &self.memory, self.hints)),
        }
    }

    /// Takes the next chain, and returns what names it while it is in flight: a number below the ring's size. Call it only while
    /// [`Vring::has_chain`] says there is one, and read the chain before the next is taken.
    ///
    /// # Errors
    /// [`RingError`] for a name that is not below the ring's size or in use already, or a chain without an end.
    #[inline]
    pub fn take(&mut self) -> Result<u16, RingError> {
        match &mut self.kind {
            Kind::Split(ring) => ring.take(),
            Kind::Packed(ring) => ring.take(),
        }
    }

    /// Puts the chain taken last back: it was not begun and is to be taken again by whoever runs the ring next. `false`: the guest
    /// had offered it to a back-end before us, and its place is not the last any more; it stays taken.
    pub fn put_back(&mut self, head: u16) -> bool {
        match &mut self.kind {
            Kind::Split(ring) => ring.put_back(head),
            Kind::Packed(ring) => ring.put_back(head),
        }
    }

    /// Takes the next chains, as long as [`Vring::look_ahead`] found them to be of the shape that nearly all have, and `take` says that
    /// it takes them. Returns how many. The others are for [`Vring::take`]. Of a packed ring, all are.
    #[inline(always)]
    pub fn take_plain(&mut self, take: impl FnMut(&Plain) -> bool) -> u16 {
        match &mut self.kind {
            Kind::Split(ring) => ring.take_plain(&self.memory, take),
            Kind::Packed(_) => 0,
        }
    }

    /// Reads the chain `head`, which was taken last, its data segments into `row`.
    ///
    /// # Errors
    /// [`RingError`] when there is no status byte to report a fault in.
    #[inline]
    pub fn read_chain(&mut self, head: u16, row: &mut [Segment]) -> Result<Chain, RingError> {
        match &mut self.kind {
            Kind::Split(ring) => ring.read_chain(head, &self.memory, row, &mut self.hints),
            Kind::Packed(ring) => ring.read_chain(head, &self.memory, row, &mut self.hints),
        }
    }

    /// Gives the chain `head` back with its status; `written` bytes of it were written. The guest sees it after
    /// [`Vring::publish`].
    #[inline]
    pub fn complete(&mut self, head: u16, status_byte: StatusByte, status: u8, written: u32) {
        if let Some(window) = self.memory.window(status_byte.region, status_byte.hint as usize) {
            // A region may have been removed meanwhile only if its front-end said so: nobody looks at the byte then.
            let _ = window.store_u8(status_byte.offset as usize, status);
            if let Some(log) = &self.log
                && let Some(at) =
                    self.memory.guest_addr(status_byte.region, status_byte.offset, &mut (status_byte.hint as usize))
            {
                log.mark(at, 1);
            }
        }
        self.touched = true;
        match &mut self.kind {
            Kind::Split(ring) => ring.complete(head, written),
            Kind::Packed(ring) => ring.complete(head, written),
        }
    }

    /// Gives back the chains that `next` names, with their places of status and the bytes that were written, as [`Vring::complete`] of one after
    /// the other with a status of zero (`VIRTIO_BLK_S_OK`). Returns how many. Of a packed ring, or where writes are logged, none is
    /// asked for.
    #[inline(always)]
    pub fn complete_plain(&mut self, mut next: impl FnMut() -> Option<(u16, StatusByte, u32)>) -> u16 {
        let Kind::Split(ring) = &mut self.kind else { return 0 };
        if self.log.is_some() {
            return 0;
        }
        self.touched = true;
        let memory = &*self.memory;
        ring.complete_all(|| {
            let (head, status, written) = next()?;
            if let Some(window) = memory.window(status.region, status.hint as usize) {
                // As in `complete`.
                let _ = window.store_u8(status.offset as usize, 0);
            }
            Some((head, written))
        })
    }

    /// Shows the guest everything completed since the last call, with one store. True if it wants to be called.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let wants_call = match &mut self.kind {
            Kind::Split(ring) => ring.publish(),
            Kind::Packed(ring) => ring.publish(),
        };
        if std::mem::take(&mut self.touched) {
            self.log_ring();
        }
        wants_call
    }

    /// Asks the guest not to notify: we are looking anyway.
    pub fn quiet(&mut self) {
        match &mut self.kind {
            Kind::Split(ring) => ring.quiet(),
            Kind::Packed(ring) => ring.quiet(),
        }
        self.log_ring();
    }

    /// Asks the guest to notify, and looks once more. True if something waits already: do not sleep then.
    ///
    /// # Errors
    /// [`RingError::IndexJump`].
    pub fn listen(&mut self) -> Result<bool, RingError> {
        // Not logged: whoever wakes calls `quiet` before anything else.
        match &mut self.kind {
            Kind::Split(ring) => ring.listen(),
            Kind::Packed(ring) => Ok(ring.listen()),
        }
    }
}
