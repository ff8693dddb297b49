//! The driver's side of a split virtqueue with virtio-blk requests (virtio 1.2, sections 2.7 and 5.2).
//!
//! What the device may write is only read, never trusted: which descriptors belong to a request is kept in private memory.

use polypath_block::SlotKey;
use polypath_memory::{OutOfWindow, Window};
use polypath_net::{EventNotifier, Theirs};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, ReadWriteFlags, preadv2, write};
use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
/// Bytes a request has beside its data: header, range, status.
const EXTRA: usize = 48;
const RANGE_AT: usize = 16;
const STATUS_AT: usize = 32;
/// No descriptor.
const NIL: u16 = u16::MAX;
/// What the device has not written yet.
const UNANSWERED: u8 = 0xff;

/// The device wrote something that no device may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum RingFault {
    #[error("it returned descriptor {0}, which heads no open request")]
    NotOpen(u32),
    #[error("it says that {0} requests ended, more than are open")]
    TooMany(u16),
}

/// Where the parts of a ring lie, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub(crate) avail: usize,
    pub(crate) used: usize,
    extra: usize,
    pub(crate) len: usize,
}

impl Layout {
    /// For a ring of `size` entries. Its length is in whole pages.
    pub(crate) fn new(size: u16) -> Layout {
        let n = usize::from(size);
        let avail = 16 * n;
        let used = (avail + 6 + 2 * n).next_multiple_of(4);
        let extra = (used + 6 + 8 * n).next_multiple_of(16);
        Layout { avail, used, extra, len: (extra + EXTRA * n).next_multiple_of(4096) }
    }
}

/// What a request says beside its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    /// Type of the request (`VIRTIO_BLK_T_*`).
    pub(crate) kind: u32,
    /// First sector of 512 bytes; zero where a range says it.
    pub(crate) sector: u64,
    /// First sector, sectors and flags of a Discard or Write Zeroes.
    pub(crate) range: Option<(u64, u32, u32)>,
    /// Does the device write the data?
    pub(crate) data_in: bool,
}

impl Header {
    /// Descriptors that a request with `pieces` pieces of data takes.
    pub(crate) fn descriptors(&self, pieces: usize) -> usize {
        2 + usize::from(self.range.is_some()) + pieces
    }
}

/// One ring. All offsets into its memory come from [`Layout`] and the ring's own size, so that an access never fails.
pub(crate) struct Ring {
    memory: Window,
    /// Address of the memory for the back-end.
    base: u64,
    size: u16,
    layout: Layout,
    event_idx: bool,
    kick: Theirs<EventNotifier>,
    call: Arc<Theirs<OwnedFd>>,
    /// For each descriptor, the next one that is free or of the same request.
    next: Box<[u16]>,
    free: u16,
    room: u16,
    /// For each descriptor that heads an open request: whose it is.
    owners: Box<[Option<SlotKey>]>,
    open: u16,
    /// Requests added, told to the device, and found used, each modulo 2^16.
    avail: u16,
    told: u16,
    used: u16,
}

impl Ring {
    /// An empty ring of `size` entries in `memory`, which the back-end has at `base`. `kick` tells it of requests, `call` us of their end.
    pub(crate) fn new(
        memory: Window,
        base: u64,
        size: u16,
        event_idx: bool,
        kick: Theirs<EventNotifier>,
        call: Arc<Theirs<OwnedFd>>,
    ) -> Result<Ring, OutOfWindow> {
        let layout = Layout::new(size);
        let memory = memory.sub(0, layout.len)?;
        memory.copy_in(0, &vec![0; layout.len])?;
        let next = (1..size).chain([NIL]).collect();
        let owners = (0..size).map(|_| None).collect();
        let mut ring = Ring {
            memory,
            base,
            size,
            layout,
            event_idx,
            kick,
            call,
            next,
            free: 0,
            room: size,
            owners,
            open: 0,
            avail: 0,
            told: 0,
            used: 0,
        };
        ring.listen(false);
        Ok(ring)
    }

    /// Addresses of descriptors, available ring and used ring, for the back-end.
    pub(crate) fn addresses(&self) -> (u64, u64, u64) {
        (self.base, self.base + self.layout.avail as u64, self.base + self.layout.used as u64)
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    pub(crate) fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Free descriptors.
    pub(crate) fn room(&self) -> usize {
        self.room.into()
    }

    /// Requests that the device has not answered.
    pub(crate) fn open(&self) -> u16 {
        self.open
    }

    /// Puts a request for `key` into the ring, with its data at the device's addresses `data`. There must be room for it. The device is
    /// told by [`Ring::kick`].
    pub(crate) fn add(&mut self, key: SlotKey, header: Header, data: impl Iterator<Item = (u64, u32)>) {
        let head = self.free;
        let extra = self.layout.extra + EXTRA * usize::from(head);
        self.put(extra, u64::from(header.kind));
        self.put(extra + 8, header.sector);
        self.put_u8(extra + STATUS_AT, UNANSWERED);
        let at = self.base + extra as u64;
        self.chain(at, 16, 0);
        if let Some((sector, sectors, flags)) = header.range {
            self.put(extra + RANGE_AT, sector);
            self.put(extra + RANGE_AT + 8, u64::from(sectors) | u64::from(flags) << 32);
            self.chain(at + RANGE_AT as u64, 16, 0);
        }
        let direction = if header.data_in { DESC_WRITE } else { 0 };
        for (addr, len) in data {
            self.chain(addr, len, direction);
        }
        let last = self.free;
        self.chain(at + STATUS_AT as u64, 1, DESC_WRITE);
        let flags = 16 * usize::from(last) + 12;
        self.put_u16(flags, DESC_WRITE, Ordering::Relaxed);
        // The end of a chain is told in private memory as well.
        self.next[usize::from(last)] = NIL;
        self.owners[usize::from(head)] = Some(key);
        self.put_u16(self.layout.avail + 4 + 2 * usize::from(self.avail % self.size), head, Ordering::Relaxed);
        self.avail = self.avail.wrapping_add(1);
        self.open += 1;
    }

    /// Fills the next free descriptor.
    fn chain(&mut self, addr: u64, len: u32, flags: u16) {
        let index = self.free;
        self.free = self.next[usize::from(index)];
        self.room -= 1;
        let at = 16 * usize::from(index);
        self.put(at, addr);
        let word = u64::from(len) | u64::from(flags | DESC_NEXT) << 32 | u64::from(self.free) << 48;
        self.put(at + 8, word);
    }

    /// Shows the device all that was added, and rings its bell if it wants that.
    ///
    /// # Errors
    /// The bell cannot be rung: the device may never look.
    pub(crate) fn kick(&mut self) -> io::Result<()> {
        if self.told == self.avail {
            return Ok(());
        }
        self.put_u16(self.layout.avail + 2, self.avail, Ordering::Release);
        let (old, new) = (std::mem::replace(&mut self.told, self.avail), self.avail);
        // The device stores what it wants to be told, then looks for requests; we the other way round.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.get_u16(self.layout.used + 4 + 8 * usize::from(self.size), Ordering::Relaxed);
            passed(event, new, old)
        } else {
            self.get_u16(self.layout.used, Ordering::Relaxed) & 1 == 0
        };
        // The device has it as well: its counter may be full, and a write might wait until somebody reads it.
        if wanted { self.kick.notify() } else { Ok(()) }
    }

    /// Shall the device ring our bell at the next request that ends? Look for ended ones once more after asking for it.
    pub(crate) fn listen(&mut self, wanted: bool) {
        if self.event_idx {
            // Without: at an index that is as far away as can be.
            let event = if wanted { self.used } else { self.used.wrapping_sub(1) };
            self.put_u16(self.layout.avail + 4 + 2 * usize::from(self.size), event, Ordering::Relaxed);
        } else {
            self.put_u16(self.layout.avail, u16::from(!wanted), Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Has a request ended that was not taken yet?
    pub(crate) fn has_ended(&self) -> bool {
        self.get_u16(self.layout.used + 2, Ordering::Acquire) != self.used
    }

    /// The next request that ended, and its status byte (`VIRTIO_BLK_S_*`).
    pub(crate) fn take(&mut self) -> Result<Option<(SlotKey, u8)>, RingFault> {
        let ended = self.get_u16(self.layout.used + 2, Ordering::Acquire).wrapping_sub(self.used);
        if ended == 0 {
            return Ok(None);
        }
        if ended > self.open {
            return Err(RingFault::TooMany(ended));
        }
        let id = self.get_u32(self.layout.used + 4 + 8 * usize::from(self.used % self.size));
        let owner = self.owners.get_mut(id as usize).and_then(Option::take);
        let Some(key) = owner else { return Err(RingFault::NotOpen(id)) };
        self.used = self.used.wrapping_add(1);
        self.open -= 1;
        let head = id as u16;
        self.give_back(head);
        Ok(Some((key, self.get_u8(self.layout.extra + EXTRA * usize::from(head) + STATUS_AT))))
    }

    /// Puts the descriptors of the request at `head` in front of the free ones.
    fn give_back(&mut self, head: u16) {
        let (mut last, mut count) = (head, 1);
        while self.next[usize::from(last)] != NIL {
            last = self.next[usize::from(last)];
            count += 1;
        }
        self.next[usize::from(last)] = self.free;
        self.free = head;
        self.room += count;
    }

    /// Takes back what the device has not looked at yet: it finds no request and no descriptor any more, whenever it goes on. Says nothing
    /// of what it had taken before.
    pub(crate) fn erase(self) {
        let zeroes = vec![0; self.layout.len];
        self.memory.copy_in(0, &zeroes).expect(INSIDE);
    }

    fn put(&self, at: usize, value: u64) {
        self.memory.store_u64(at, value, Ordering::Relaxed).expect(INSIDE);
    }

    fn put_u16(&self, at: usize, value: u16, order: Ordering) {
        self.memory.store_u16(at, value, order).expect(INSIDE);
    }

    fn put_u8(&self, at: usize, value: u8) {
        self.memory.store_u8(at, value).expect(INSIDE);
    }

    fn get_u16(&self, at: usize, order: Ordering) -> u16 {
        self.memory.load_u16(at, order).expect(INSIDE)
    }

    fn get_u32(&self, at: usize) -> u32 {
        self.memory.load_u32(at, Ordering::Relaxed).expect(INSIDE)
    }

    fn get_u8(&self, at: usize) -> u8 {
        let mut byte = [0];
        self.memory.copy_out(at, &mut byte).expect(INSIDE);
        byte[0]
    }
}

const INSIDE: &str = "every part of a ring lies inside its memory";

/// Has the index passed `event` on its way from `old` to `new`? (`vring_need_event`, virtio 1.2 section 2.7.7.2.)
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Adds one to an eventfd that nobody else has. One that cannot take more has rung already.
pub(crate) fn ring_bell(bell: impl AsFd) {
    match write(bell, &1u64.to_ne_bytes()) {
        Ok(_) | Err(Errno::AGAIN) => {}
        Err(error) => tracing::error!(%error, "an eventfd cannot be written"),
    }
}

/// Empties an eventfd without ever waiting, although a back-end that has it may have made it a blocking one, or read it first.
pub(crate) fn silence(bell: impl AsFd) {
    let mut count = [0; 8];
    // Offset -1 is the current position, as in read(2).
    match preadv2(bell, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
        Err(error) => tracing::error!(%error, "an eventfd cannot be read"),
    }
}

/// An eventfd that does not block.
pub(crate) fn bell() -> rustix::io::Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_memory::Region;
    use polypath_net::{Closer, Peer};

    const SIZE: u16 = 8;
    const BASE: u64 = 0x7000_0000;

    /// The device's side, looked at and written by hand.
    struct Device {
        ring: Ring,
        memory: Window,
        seen: u16,
        done: u16,
        _region: Region,
    }

    impl Device {
        fn new(event_idx: bool) -> Device {
            let region = Region::allocate(Layout::new(SIZE).len as u64, false).unwrap();
            let memory = region.window(0, region.len()).unwrap();
            let closer = Closer::default();
            let kick = Theirs::new(EventNotifier::new(bell().unwrap(), Peer::new(1)), closer.clone());
            let call = Arc::new(Theirs::new(bell().unwrap(), closer));
            let ring = Ring::new(memory.clone(), BASE, SIZE, event_idx, kick, call).unwrap();
            Device { ring, memory, seen: 0, done: 0, _region: region }
        }

        fn u16(&self, at: usize) -> u16 {
            self.memory.load_u16(at, Ordering::Acquire).unwrap()
        }

        fn add(&mut self, key: u32, pieces: u32, header: Header) {
            let data = (0..pieces).map(|n| (0x1000 * u64::from(n + 1), 512));
            self.ring.add(SlotKey::from_u32(key), header, data);
        }

        /// Heads that are new in the available ring.
        fn heads(&mut self) -> Vec<u16> {
            let (avail, until) = (self.ring.layout.avail, self.u16(self.ring.layout.avail + 2));
            let mut heads = Vec::new();
            while self.seen != until {
                heads.push(self.u16(avail + 4 + 2 * usize::from(self.seen % SIZE)));
                self.seen = self.seen.wrapping_add(1);
            }
            heads
        }

        /// Address, length and flags of each descriptor of a chain.
        fn chain(&self, head: u16) -> Vec<(u64, u32, u16)> {
            let (mut at, mut chain) = (head, Vec::new());
            loop {
                let (addr, word) = self.memory.load_pair(16 * usize::from(at)).unwrap();
                let flags = (word >> 32) as u16;
                chain.push((addr, word as u32, flags & !DESC_NEXT));
                if flags & DESC_NEXT == 0 {
                    return chain;
                }
                at = (word >> 48) as u16;
            }
        }

        fn end(&mut self, id: u32, status: u8) {
            let used = self.ring.layout.used;
            self.memory.store_u32(used + 4 + 8 * usize::from(self.done % SIZE), id, Ordering::Relaxed).unwrap();
            if id < SIZE.into() {
                let at = self.ring.layout.extra + EXTRA * id as usize + STATUS_AT;
                self.memory.store_u8(at, status).unwrap();
            }
            self.done = self.done.wrapping_add(1);
            self.memory.store_u16(used + 2, self.done, Ordering::Release).unwrap();
        }

        /// Was the bell rung since the last time?
        fn rung(&self) -> bool {
            let mut count = [0; 8];
            rustix::io::read(self.ring.kick_fd(), &mut count).is_ok()
        }
    }

    fn plain(data_in: bool) -> Header {
        Header { kind: 7, sector: 9, range: None, data_in }
    }

    #[test]
    fn requests_look_as_the_standard_says() {
        let mut d = Device::new(false);
        d.add(5, 2, plain(true));
        assert!(d.heads().is_empty() && !d.rung(), "nothing is shown before the kick");
        d.ring.kick().unwrap();
        assert_eq!((d.heads(), d.rung()), (vec![0], true));
        let extra = d.ring.layout.extra as u64;
        let status = (BASE + extra + STATUS_AT as u64, 1, DESC_WRITE);
        let data = [(0x1000, 512, DESC_WRITE), (0x2000, 512, DESC_WRITE)];
        assert_eq!(d.chain(0), [&[(BASE + extra, 16, 0)], &data[..], &[status]].concat());
        assert_eq!(d.memory.load_pair(extra as usize), Ok((7, 9)));
        d.add(6, 0, Header { range: Some((3, 4, 1)), ..plain(false) });
        d.ring.kick().unwrap();
        let head = d.heads()[0];
        assert!(d.rung());
        let at = extra + EXTRA as u64 * u64::from(head);
        assert_eq!(d.chain(head)[1], (BASE + at + RANGE_AT as u64, 16, 0));
        assert_eq!(d.memory.load_pair(at as usize + RANGE_AT), Ok((3, 4 | 1 << 32)));
        d.ring.kick().unwrap();
        assert!(!d.rung(), "there is nothing new");
    }

    /// For longer than the indices take to wrap, at every fill, ended in another order than begun.
    #[test]
    fn descriptors_come_back_whatever_the_order() {
        let mut d = Device::new(true);
        let (mut key, mut open) = (0u32, std::collections::VecDeque::new());
        for round in 0..70_000u32 {
            let pieces = round % 3;
            while d.ring.room() >= plain(false).descriptors(pieces as usize) {
                d.add(key, pieces, plain(false));
                d.ring.kick().unwrap();
                open.push_back((key, d.heads()[0]));
                key += 1;
            }
            let (key, head) = if round % 2 == 0 { open.pop_front() } else { open.pop_back() }.unwrap();
            d.end(head.into(), (round % 3) as u8);
            assert!(d.ring.has_ended());
            assert_eq!(d.ring.take(), Ok(Some((SlotKey::from_u32(key), (round % 3) as u8))));
            assert_eq!((d.ring.take(), usize::from(d.ring.open())), (Ok(None), open.len()));
        }
        for (_, head) in open {
            d.end(head.into(), 0);
            d.ring.take().unwrap().unwrap();
        }
        assert_eq!((d.ring.room(), d.ring.open()), (SIZE.into(), 0));
    }

    #[test]
    fn what_no_device_may_write_is_told() {
        for id in [1, 8, u32::MAX] {
            let mut d = Device::new(false);
            d.add(5, 0, plain(false));
            d.ring.kick().unwrap();
            d.end(id, 0);
            assert_eq!(d.ring.take(), Err(RingFault::NotOpen(id)));
        }
        let mut d = Device::new(false);
        for key in 0..2 {
            d.add(key, 0, plain(false));
        }
        d.ring.kick().unwrap();
        d.end(0, 0);
        d.end(0, 0);
        assert_eq!(d.ring.take(), Ok(Some((SlotKey::from_u32(0), 0))));
        assert_eq!(d.ring.take(), Err(RingFault::NotOpen(0)), "twice");
        d.done = 40;
        d.end(2, 0);
        assert_eq!(d.ring.take(), Err(RingFault::TooMany(40)));
    }

    #[test]
    fn bells_ring_when_wanted() {
        let mut d = Device::new(false);
        let (avail, used) = (d.ring.layout.avail, d.ring.layout.used);
        assert_eq!(d.u16(avail), 1, "nobody listens at first");
        d.ring.listen(true);
        assert_eq!(d.u16(avail), 0);
        d.memory.store_u16(used, 1, Ordering::Release).unwrap();
        d.add(1, 0, plain(false));
        d.ring.kick().unwrap();
        assert!(!d.rung(), "the device looks by itself");
        let mut d = Device::new(true);
        let event = used + 4 + 8 * usize::from(SIZE);
        d.memory.store_u16(event, 1, Ordering::Release).unwrap();
        d.add(1, 0, plain(false));
        d.ring.kick().unwrap();
        assert!(!d.rung(), "wanted at the second only");
        d.add(2, 0, plain(false));
        d.ring.kick().unwrap();
        assert!(d.rung());
        let wants = avail + 4 + 2 * usize::from(SIZE);
        assert_eq!(d.u16(wants), u16::MAX, "as far away as can be");
        d.end(0, 0);
        d.ring.take().unwrap().unwrap();
        d.ring.listen(true);
        assert_eq!(d.u16(wants), 1, "the next one");
    }

    #[test]
    fn an_erased_ring_has_no_request() {
        let mut d = Device::new(false);
        d.add(5, 2, plain(true));
        d.ring.kick().unwrap();
        let (memory, len) = (d.memory.clone(), d.ring.layout.len);
        d.ring.erase();
        let mut all = vec![1; len];
        memory.copy_out(0, &mut all).unwrap();
        assert!(all.iter().all(|b| *b == 0));
    }
}
