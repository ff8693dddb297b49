//! Which requests of a ring are in flight, in memory that outlives us: the front-end keeps it and gives it to the next back-end
//! (vhost-user, "Inflight I/O tracking").
//!
//! Each step is written such that a process killed between any two stores leaves a record from which the next one finds what was
//! taken and not given back: stores stay in the order of the program (nobody reads while we write, so that the compiler is the only
//! one to be told). The front-end could write here at any time. So all of it is read once, when the ring starts, checked, and only
//! written afterwards.

use super::chain::Desc;
use super::packed::Cursor;
use super::{RingError, step};
use polypath_memory::{OutOfWindow, Window};
use std::sync::atomic::{Ordering, compiler_fence};

/// Records of rings begin at multiples of this, as in libvhost-user and DPDK.
const ALIGN: u64 = 64;
/// The version that we read and write. Zero: nothing was written yet.
const VERSION: u16 = 1;

// `QueueRegionSplit` and `QueueRegionPacked`: what both begin with.
const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;

/// Bytes of the record of a ring of `size` descriptors; the next ring's follows.
pub(crate) const fn record_len(size: u16, packed: bool) -> u64 {
    let (head, entry) = if packed { (packed::ENTRIES, packed::ENTRY) } else { (split::ENTRIES, split::ENTRY) };
    (head as u64 + entry as u64 * size as u64).next_multiple_of(ALIGN)
}

/// What a record says when a ring starts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<T> {
    /// Nothing that concerns the ring: it has not run with it yet.
    Nothing,
    /// What was in flight.
    Requests(T),
}

fn bad<T>(problem: &'static str) -> Result<T, RingError> {
    Err(RingError::Record { problem })
}

/// The window has the size that [`record_len`] says, and every index is checked when it is read.
fn sure<T>(access: Result<T, OutOfWindow>) -> T {
    access.expect("a record was checked when its ring was made")
}

fn load(window: &Window, at: usize) -> u16 {
    sure(window.load_u16(at, Ordering::Relaxed))
}

fn load_byte(window: &Window, at: usize) -> u8 {
    let mut byte = [0];
    sure(window.copy_out(at, &mut byte));
    byte[0]
}

fn store(window: &Window, at: usize, value: u16) {
    step();
    sure(window.store_u16(at, value, Ordering::Relaxed));
}

fn store_byte(window: &Window, at: usize, value: u8) {
    step();
    sure(window.store_u8(at, value));
}

fn store_word(window: &Window, at: usize, value: u32) {
    step();
    sure(window.store_u32(at, value, Ordering::Relaxed));
}

fn store_long(window: &Window, at: usize, value: u64) {
    step();
    sure(window.store_u64(at, value, Ordering::Relaxed));
}

/// What was stored before is there before what is stored afterwards.
#[inline]
fn then() {
    compiler_fence(Ordering::SeqCst);
}

/// Reads version and size. `false`: there is nothing in it, or nothing that concerns this ring.
fn is_written(window: &Window, size: u16, packed: bool) -> Result<bool, RingError> {
    if (window.len() as u64) < record_len(size, packed) || window.load_u64(0, Ordering::Relaxed).is_err() {
        return bad("it is cut short, or not aligned to 8 bytes");
    }
    match load(window, VERSION_AT) {
        0 => Ok(false),
        VERSION if load(window, SIZE_AT) == size => Ok(true),
        VERSION if has_in_flight(window, load(window, SIZE_AT), packed) => {
            bad("it was written for a ring of another size, with requests in flight")
        }
        VERSION => Ok(false),
        _ => bad("its version is not 1"),
    }
}

/// Is anything in flight in a record of `size` descriptors, as far as there is room for them?
fn has_in_flight(window: &Window, size: u16, packed: bool) -> bool {
    let (first, entry) = if packed { (packed::ENTRIES, packed::ENTRY) } else { (split::ENTRIES, split::ENTRY) };
    let mut byte = [0];
    (0..usize::from(size)).any(|n| window.copy_out(first + entry * n, &mut byte).is_ok() && byte[0] != 0)
}

/// Ends with the version, so that a record half made is none.
fn initialize(window: &Window, size: u16, write: impl FnOnce()) {
    store(window, VERSION_AT, 0);
    then();
    store_long(window, 0, 0);
    store(window, SIZE_AT, size);
    write();
    then();
    store(window, VERSION_AT, VERSION);
}

pub(super) mod split {
    use super::*;

    // `QueueRegionSplit` and `DescStateSplit`.
    const LAST_BATCH_HEAD: usize = 12;
    const USED_INDEX: usize = 14;
    pub(super) const ENTRIES: usize = 16;
    pub(super) const ENTRY: usize = 16;
    const NEXT: usize = 6;
    const COUNTER: usize = 8;

    /// The record of a split ring.
    #[derive(Debug)]
    pub(in crate::ring) struct SplitRecord {
        window: Window,
        counter: u64,
        last: u16,
        /// Given back, and not shown to the guest yet.
        batch: Vec<u16>,
    }

    impl SplitRecord {
        /// The record at `window` of a ring of `size` descriptors whose used index is `used`; and what was in flight, in the order in
        /// which it was taken.
        pub(in crate::ring) fn open(
            window: Window,
            size: u16,
            used: u16,
        ) -> Result<(SplitRecord, Found<Vec<u16>>), RingError> {
            let written = is_written(&window, size, false)?;
            let mut record = SplitRecord { window, counter: 0, last: 0, batch: Vec::with_capacity(size.into()) };
            if !written {
                record.initialize(size, used);
                return Ok((record, Found::Nothing));
            }
            record.end_batch(size, used)?;
            let mut open: Vec<(u64, u16)> = (0..size)
                .filter(|&head| load_byte(&record.window, in_flight(head)) != 0)
                .map(|head| (sure(record.window.load_u64(entry(head) + COUNTER, Ordering::Relaxed)), head))
                .collect();
            open.sort_unstable();
            record.counter = open.last().map_or(0, |last| last.0.wrapping_add(1));
            Ok((record, Found::Requests(open.into_iter().map(|(_, head)| head).collect())))
        }

        fn initialize(&self, size: u16, used: u16) {
            initialize(&self.window, size, || {
                store(&self.window, LAST_BATCH_HEAD, 0);
                store(&self.window, USED_INDEX, used);
                for head in 0..size {
                    sure(self.window.copy_in(entry(head), &[0; ENTRY]));
                }
            });
        }

        /// What the guest was shown is not in flight, though its back-end was killed before it could say so.
        fn end_batch(&self, size: u16, used: u16) -> Result<(), RingError> {
            let shown = used.wrapping_sub(load(&self.window, USED_INDEX));
            if shown > size {
                // The guest has made its ring anew since. What was in flight then is nobody's.
                if has_in_flight(&self.window, size, false) {
                    return bad("its used index is not near the ring's, with requests in flight");
                }
                store(&self.window, USED_INDEX, used);
                return Ok(());
            }
            let mut head = load(&self.window, LAST_BATCH_HEAD);
            for _ in 0..shown {
                if head >= size {
                    return bad("its list of what was given back names a descriptor that is not there");
                }
                store_byte(&self.window, in_flight(head), 0);
                head = load(&self.window, entry(head) + NEXT);
            }
            then();
            store(&self.window, USED_INDEX, used);
            Ok(())
        }

        #[inline]
        pub(in crate::ring) fn taken(&mut self, head: u16) {
            store_long(&self.window, entry(head) + COUNTER, self.counter);
            self.counter = self.counter.wrapping_add(1);
            then();
            store_byte(&self.window, in_flight(head), 1);
        }

        pub(in crate::ring) fn put_back(&mut self, head: u16) {
            store_byte(&self.window, in_flight(head), 0);
        }

        #[inline]
        pub(in crate::ring) fn completed(&mut self, head: u16) {
            store(&self.window, entry(head) + NEXT, self.last);
            then();
            store(&self.window, LAST_BATCH_HEAD, head);
            self.last = head;
            self.batch.push(head);
        }

        /// The guest's used index is `used` now.
        #[inline]
        pub(in crate::ring) fn shown(&mut self, used: u16) {
            then();
            for head in self.batch.drain(..) {
                store_byte(&self.window, in_flight(head), 0);
            }
            then();
            store(&self.window, USED_INDEX, used);
        }
    }

    #[inline]
    fn entry(head: u16) -> usize {
        ENTRIES + ENTRY * usize::from(head)
    }

    /// Where an entry says whether it is in flight: its first octet.
    #[inline]
    fn in_flight(head: u16) -> usize {
        entry(head)
    }
}

pub(super) mod packed {
    use super::*;

    // `QueueRegionPacked` and `DescStatePacked`.
    const FREE_HEAD: usize = 12;
    const OLD_FREE_HEAD: usize = 14;
    /// The next used place and the one before it as 16 bits each, and a byte each for their laps: written in one store, for a place
    /// with the lap of another one is somewhere else.
    const USED: usize = 16;
    pub(super) const ENTRIES: usize = 32;
    pub(super) const ENTRY: usize = 32;
    const NEXT: usize = 2;
    const LAST: usize = 4;
    const NUM: usize = 6;
    const COUNTER: usize = 8;
    const ID: usize = 16;
    const FLAGS: usize = 18;
    const LEN: usize = 20;
    const ADDR: usize = 24;

    /// A request that was in flight: its buffer id and its descriptors.
    #[derive(Clone, PartialEq, Eq, Debug)]
    pub(in crate::ring) struct Open {
        pub(in crate::ring) id: u16,
        pub(in crate::ring) descs: Vec<Desc>,
    }

    /// The record of a packed ring. Its list of free entries is kept here as well: what the front-end makes of its own does not
    /// lead us astray.
    #[derive(Debug)]
    pub(in crate::ring) struct PackedRecord {
        window: Window,
        counter: u64,
        /// What follows each entry, in a chain or in the list of the free; as many as there are entries ends it.
        next: Box<[u16]>,
        free: u16,
        free_count: u16,
        /// First and last entry of each buffer id that is in flight.
        ends: Box<[(u16, u16)]>,
        /// Given back, and not shown to the guest yet: ids.
        batch: Vec<u16>,
    }

    /// Where the ring stands, and what is in flight.
    #[derive(PartialEq, Eq, Debug)]
    pub(in crate::ring) struct State {
        pub(in crate::ring) used: Cursor,
        pub(in crate::ring) open: Vec<Open>,
    }

    impl PackedRecord {
        /// The record at `window` of a ring of `size` descriptors. `was_shown` tells whether the descriptor at a place is no longer
        /// what was taken there; `used` is where the ring begins if the record is new, or of a ring that was there before this one: the
        /// guest `made_anew` this one at `used`.
        pub(in crate::ring) fn open(
            window: Window,
            size: u16,
            used: Cursor,
            made_anew: bool,
            was_shown: impl FnOnce(Cursor) -> bool,
        ) -> Result<(PackedRecord, Found<State>), RingError> {
            if !is_written(&window, size, true)? {
                return Ok((PackedRecord::begin(window, size, used), Found::Nothing));
            }
            let mut record = PackedRecord::empty(window, size);
            let recorded = record.end_batch(size, was_shown)?;
            let open = record.read(size)?;
            if made_anew && recorded != used {
                if !open.is_empty() {
                    return bad("it has requests in flight of a ring that the guest has made anew since");
                }
                return Ok((PackedRecord::begin(record.window, size, used), Found::Nothing));
            }
            Ok((record, Found::Requests(State { used: recorded, open })))
        }

        /// Nothing is in flight, and the next used place is `used`.
        fn begin(window: Window, size: u16, used: Cursor) -> PackedRecord {
            let record = PackedRecord::empty(window, size);
            initialize(&record.window, size, || {
                record.store_used(used, used);
                store(&record.window, FREE_HEAD, 0);
                store(&record.window, OLD_FREE_HEAD, 0);
                for index in 0..size {
                    sure(record.window.copy_in(entry(index), &[0; ENTRY]));
                    store(&record.window, entry(index) + NEXT, index + 1);
                }
            });
            record
        }

        fn empty(window: Window, size: u16) -> PackedRecord {
            PackedRecord {
                window,
                counter: 0,
                next: (1..=size).collect(),
                free: 0,
                free_count: size,
                ends: vec![(0, 0); size.into()].into_boxed_slice(),
                batch: Vec::with_capacity(size.into()),
            }
        }

        fn store_used(&self, new: Cursor, old: Cursor) {
            let [n, o] = [new, old].map(|used| used.at.to_ne_bytes());
            let laps = [new, old].map(|used| u8::from(used.wrap));
            let bytes = [n[0], n[1], o[0], o[1], laps[0], laps[1], 0, 0];
            store_long(&self.window, USED, u64::from_ne_bytes(bytes));
        }

        /// The next used place, and the one before it.
        fn load_used(&self, size: u16) -> Result<(Cursor, Cursor), RingError> {
            let bytes = sure(self.window.load_u64(USED, Ordering::Relaxed)).to_ne_bytes();
            let used = |n: usize| Cursor {
                at: u16::from_ne_bytes([bytes[2 * n], bytes[2 * n + 1]]),
                wrap: bytes[4 + n] & 1 != 0,
            };
            let (new, old) = (used(0), used(1));
            if new.at < size && old.at < size { Ok((new, old)) } else { bad("its used index is not in the ring") }
        }

        /// A batch whose back-end was killed half-way was given back if the guest can see it, and otherwise was not.
        fn end_batch(&self, size: u16, was_shown: impl FnOnce(Cursor) -> bool) -> Result<Cursor, RingError> {
            let (new, old) = self.load_used(size)?;
            let shown = new != old && was_shown(old);
            let used = if shown { new } else { old };
            let free = load(&self.window, if shown { FREE_HEAD } else { OLD_FREE_HEAD });
            store(&self.window, FREE_HEAD, free);
            then();
            store(&self.window, OLD_FREE_HEAD, free);
            then();
            self.store_used(used, used);
            Ok(used)
        }

        /// Reads the lists: what is free, and what is not.
        fn read(&mut self, size: u16) -> Result<Vec<Open>, RingError> {
            let mut seen = vec![false; size.into()];
            self.next = (0..size).map(|index| load(&self.window, entry(index) + NEXT)).collect();
            self.free = load(&self.window, OLD_FREE_HEAD);
            self.free_count = 0;
            let mut at = self.free;
            while at < size && !std::mem::replace(&mut seen[usize::from(at)], true) {
                store_byte(&self.window, in_flight(at), 0);
                self.free_count += 1;
                at = self.next[usize::from(at)];
            }
            let mut open: Vec<(u64, Open)> = Vec::new();
            for first in 0..size {
                if load_byte(&self.window, in_flight(first)) != 0 {
                    open.push(self.read_chain(first, &mut seen)?);
                }
            }
            open.sort_unstable_by_key(|(counter, _)| *counter);
            self.counter = open.last().map_or(0, |last| last.0.wrapping_add(1));
            let mut ids: Vec<_> = open.iter().map(|(_, open)| open.id).collect();
            ids.sort_unstable();
            if ids.windows(2).any(|two| two[0] == two[1]) {
                return bad("two of its requests have one buffer id");
            }
            Ok(open.into_iter().map(|(_, open)| open).collect())
        }

        fn read_chain(&mut self, first: u16, seen: &mut [bool]) -> Result<(u64, Open), RingError> {
            let count = load(&self.window, entry(first) + NUM);
            if count == 0 {
                return bad("one of its requests has no descriptor");
            }
            let (mut at, mut last, mut descs) = (first, first, Vec::with_capacity(seen.len().min(count.into())));
            for _ in 0..count {
                match seen.get_mut(usize::from(at)) {
                    Some(seen) if !*seen => *seen = true,
                    _ => return bad("its lists cross, or leave its table"),
                }
                descs.push(self.load_desc(at));
                (last, at) = (at, self.next[usize::from(at)]);
            }
            let id = descs.last().map_or(u16::MAX, |desc| desc.next);
            let Some(ends) = self.ends.get_mut(usize::from(id)) else {
                return bad("the buffer id of one of its requests is not in the ring");
            };
            *ends = (first, last);
            let counter = sure(self.window.load_u64(entry(first) + COUNTER, Ordering::Relaxed));
            Ok((counter, Open { id, descs }))
        }

        fn load_desc(&self, index: u16) -> Desc {
            let at = entry(index);
            Desc {
                addr: sure(self.window.load_u64(at + ADDR, Ordering::Relaxed)),
                len: sure(self.window.load_u32(at + LEN, Ordering::Relaxed)),
                flags: load(&self.window, at + FLAGS),
                next: load(&self.window, at + ID),
            }
        }

        /// The chain of `descs` was taken; its buffer id is that of the last. `false`: more is in flight than the ring holds.
        pub(in crate::ring) fn taken(&mut self, id: u16, descs: &[Desc]) -> bool {
            let first = self.free;
            let Some(left) = self.free_count.checked_sub(descs.len() as u16) else { return false };
            let mut last = first;
            for desc in descs {
                last = self.free;
                let at = entry(last);
                store_long(&self.window, at + ADDR, desc.addr);
                store_word(&self.window, at + LEN, desc.len);
                store(&self.window, at + FLAGS, desc.flags);
                store(&self.window, at + ID, desc.next);
                self.free = self.next[usize::from(last)];
            }
            let at = entry(first);
            store(&self.window, at + LAST, last);
            store(&self.window, at + NUM, descs.len() as u16);
            store_long(&self.window, at + COUNTER, self.counter);
            self.counter = self.counter.wrapping_add(1);
            store_byte(&self.window, in_flight(first), 1);
            self.ends[usize::from(id)] = (first, last);
            self.free_count = left;
            self.store_free();
            true
        }

        /// While the old head is the first of the free, an entry that is in the list behind it is not in flight, whatever it says.
        fn store_free(&self) {
            store(&self.window, FREE_HEAD, self.free);
            then();
            store(&self.window, OLD_FREE_HEAD, self.free);
        }

        /// The chain taken last, of `count` descriptors, was not begun.
        pub(in crate::ring) fn put_back(&mut self, id: u16, count: u16) {
            self.release(id, count);
            then();
            self.store_free();
            then();
            let (first, _) = self.ends[usize::from(id)];
            store_byte(&self.window, in_flight(first), 0);
        }

        fn release(&mut self, id: u16, count: u16) {
            let (first, last) = self.ends[usize::from(id)];
            self.next[usize::from(last)] = self.free;
            store(&self.window, entry(last) + NEXT, self.free);
            self.free = first;
            self.free_count += count;
        }

        /// The entries of `id` are not used for others before the guest can see that it has been given back.
        #[inline]
        pub(in crate::ring) fn completed(&mut self, id: u16) {
            self.batch.push(id);
        }

        /// The guest is about to see all that was given back from `old` to `used`. `count` tells of each id how many descriptors it had.
        pub(in crate::ring) fn showing(&mut self, old: Cursor, used: Cursor, count: impl Fn(u16) -> u16) {
            for at in 0..self.batch.len() {
                let id = self.batch[at];
                self.release(id, count(id));
            }
            store(&self.window, FREE_HEAD, self.free);
            then();
            self.store_used(used, old);
            then();
        }

        /// It has been shown; `forget` learns each id.
        pub(in crate::ring) fn shown(&mut self, used: Cursor, mut forget: impl FnMut(u16)) {
            then();
            for id in self.batch.drain(..) {
                forget(id);
                let (first, _) = self.ends[usize::from(id)];
                store_byte(&self.window, in_flight(first), 0);
            }
            then();
            store(&self.window, OLD_FREE_HEAD, self.free);
            then();
            self.store_used(used, used);
        }
    }

    #[inline]
    fn entry(index: u16) -> usize {
        ENTRIES + ENTRY * usize::from(index)
    }

    /// Where an entry says whether it is in flight: its first octet.
    #[inline]
    fn in_flight(index: u16) -> usize {
        entry(index)
    }
}
