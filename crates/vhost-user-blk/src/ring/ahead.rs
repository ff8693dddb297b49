//! What waits in a split ring, looked at before its turn comes.
//!
//! The guest wrote all of it on another core, and each line of it is a wait of its own: the descriptors, the header that they name, the
//! status byte that is to be written. So a batch goes through in stages: each asks for the lines that the next will read, of all chains,
//! before it reads the first. By the time a chain is taken, its lines are here.
//!
//! The shape that nearly all requests have (header, one piece of data, status; in the ring or in a table) is taken down here whole, and
//! its descriptors are not read again. Whatever is not exactly that is left to [`super::chain::Walk`], which judges it.

use super::chain::{DESC, HEADER, Hints, INDIRECT, NEXT, StatusByte, WRITE};
use crate::guest::{Entry, GuestMemory};
use polypath_block::{RegionId, Segment};
use polypath_memory::prefetch;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most chains looked at in one go.
pub(super) const MOST: u16 = 64;
/// Bytes of a cache line, as far as prefetching goes.
pub(super) const LINE: usize = 64;
/// Descriptors of the shape that is taken down.
const PLAIN: usize = 3;

/// A request of the usual shape: a header, one piece of data, a status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain {
    /// What names its chain, see [`super::Vring::take`].
    pub head: u16,
    /// The device writes the data; else it reads them.
    pub into: bool,
    /// Request type (`VIRTIO_BLK_T_*`).
    pub kind: u32,
    /// First sector of 512 bytes.
    pub sector: u64,
    /// The data, of one byte or more.
    pub data: Segment,
    /// Where the status goes.
    pub status: StatusByte,
}

/// What is known of a chain that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// That of nearly all.
    Usual,
    /// Whatever else it is.
    Unusual,
}

/// One chain that waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    shape: Shape,
    /// Where the header lies in the region of the status, if it has the usual shape.
    header: u64,
    /// What else is known of it: the head, and if it has the usual shape all but what the header says.
    plain: Plain,
}

/// The chains that wait, in their order.
#[derive(Debug)]
pub(super) struct Ahead {
    waiting: [Waiting; MOST as usize],
    /// The next to be taken, and how many there are.
    at: usize,
    count: usize,
    /// Tables were met lately: they are asked for in a stage of their own.
    tables: bool,
}

/// Where chains are looked for.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The table of descriptors; no more than there are.
    pub(super) desc: &'a [[AtomicU64; 2]],
    /// Tables were negotiated.
    pub(super) indirect: bool,
    pub(super) memory: &'a GuestMemory,
    /// How many mappings had lost their file when the look began.
    pub(super) losses: u64,
}

impl Ahead {
    pub(super) fn new() -> Box<Ahead> {
        let data = Segment { offset: 0, region: RegionId::NONE, len: 0 };
        let plain = Plain { head: 0, into: false, kind: 0, sector: 0, data, status: StatusByte::NONE };
        let waiting = Waiting { shape: Shape::Unusual, header: 0, plain };
        Box::new(Ahead { waiting: [waiting; MOST as usize], at: 0, count: 0, tables: false })
    }

    /// Forgets all: what was looked at and not taken is looked at again when it is.
    #[inline]
    pub(super) fn clear(&mut self) {
        (self.at, self.count) = (0, 0);
    }

    /// Looks at the chains of `heads`, [`MOST`] at most.
    #[inline]
    pub(super) fn look(&mut self, heads: impl Iterator<Item = u16>, place: Place<'_>, hints: &mut Hints) {
        self.ask_as_last(place.desc, place.memory);
        let mut count = 0;
        for (waiting, head) in self.waiting.iter_mut().zip(heads) {
            waiting.plain.head = head;
            ask_for(place.desc, head);
            count += 1;
        }
        (self.at, self.count) = (0, count);
        let waiting = &mut self.waiting[..count];
        let near = |hint| Near::new(place.memory, hint);
        let (Some(mut meta), Some(mut data)) = (near(hints.meta), near(hints.data)) else {
            waiting.iter_mut().for_each(|waiting| waiting.shape = Shape::Unusual);
            return;
        };
        if std::mem::take(&mut self.tables) {
            for waiting in waiting.iter() {
                place.ask_for_table(waiting.plain.head, &mut meta);
            }
        }
        for waiting in waiting {
            waiting.shape = place.read(waiting, &mut meta, &mut data, &mut self.tables).unwrap_or(Shape::Unusual);
        }
        *hints = Hints { meta: meta.hint, data: data.hint };
    }

    /// Asks for what the first chain of the last look lay in. Guests give the descriptors that came back last away first: with one request
    /// at a time it is the same chain again, and none of its lines has to be found before the next is asked for.
    #[inline]
    pub(super) fn ask_as_last(&self, desc: &[[AtomicU64; 2]], memory: &GuestMemory) {
        let last = &self.waiting[0];
        ask_for(desc, last.plain.head);
        if last.shape == Shape::Usual
            && let Some(entry) = memory.entry(last.plain.status.hint)
        {
            entry.window.prefetch(last.header as usize);
            entry.window.prefetch_write(last.plain.status.offset as usize);
        }
    }

    /// The next chain, if it was looked at.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        let waiting = self.waiting[..self.count].get(self.at)?;
        self.at += 1;
        Some(waiting.plain.head)
    }

    /// Offers the next chains to `take`, as long as they are of the usual shape and it takes them. Returns how many it took.
    #[inline(always)]
    pub(super) fn take_plain(&mut self, memory: &GuestMemory, mut take: impl FnMut(&Plain) -> bool) -> u16 {
        let mut taken = 0;
        for Waiting { shape, header, plain } in &mut self.waiting[self.at..self.count] {
            if *shape != Shape::Usual {
                break;
            }
            let Some(entry) = memory.entry(plain.status.hint) else { break };
            let Ok((first, second)) = entry.window.load_pair(*header as usize) else { break };
            (plain.kind, plain.sector) = (first as u32, second);
            if !take(plain) {
                break;
            }
            taken += 1;
        }
        self.at += taken;
        taken as u16
    }
}

impl<'a> Place<'a> {
    #[inline(always)]
    fn desc(&self, index: u16) -> Option<Raw> {
        self.desc.get(usize::from(index)).map(Raw::load)
    }

    fn ask_for_table(&self, head: u16, meta: &mut Near<'_>) {
        if let Some(desc) = self.desc(head).filter(|desc| !desc.is(of(INDIRECT, 0), 0))
            && let Some((entry, at)) = meta.find(desc.addr)
        {
            entry.window.prefetch(at);
            entry.window.prefetch(at + DESC * (PLAIN - 1));
        }
    }

    /// Takes the chain down in `waiting`, if it has the usual shape; else that means nothing. Asks for its header and for the line of its
    /// status. `tables` learns of a table.
    #[inline(always)]
    fn read(
        &self,
        waiting: &mut Waiting,
        meta: &mut Near<'a>,
        data: &mut Near<'a>,
        tables: &mut bool,
    ) -> Option<Shape> {
        let first = self.desc(waiting.plain.head)?;
        if first.is(of(INDIRECT, 0), 0) {
            // No loop: the three descriptors of the shape differ in what they are.
            return plain(self.desc, first, waiting, meta, data);
        }
        *tables = true;
        // Of memory that is being lost, a look costs no more than the pages of one chain.
        if !self.indirect || polypath_memory::losses() != self.losses {
            return None;
        }
        if !first.is(of(NEXT, u32::MAX), of(0, (PLAIN * DESC) as u32)) {
            return None;
        }
        let (entry, at) = meta.find(first.addr)?;
        let table = entry.window.atomics::<AtomicU64>(at, 2 * PLAIN).ok()?.as_chunks().0;
        plain(table, table.first().map(Raw::load)?, waiting, meta, data)
    }
}

/// Asks for the descriptors of a chain that was allotted in one piece, which may end in the line after.
#[inline(always)]
fn ask_for(desc: &[[AtomicU64; 2]], head: u16) {
    let rest = desc.get(usize::from(head)..).unwrap_or_default();
    if let Some(first) = rest.first() {
        prefetch(first);
    }
    if let Some(last) = rest.get(PLAIN - 1) {
        prefetch(last);
    }
}

/// Takes the chain that begins with `header` in the table `desc` down in `waiting`, as [`Place::read`].
#[inline(always)]
fn plain(
    desc: &[[AtomicU64; 2]],
    header: Raw,
    waiting: &mut Waiting,
    meta: &mut Near<'_>,
    near: &mut Near<'_>,
) -> Option<Shape> {
    const KIND: u64 = of(NEXT | WRITE | INDIRECT, u32::MAX);
    if !header.is(KIND, of(NEXT, HEADER as u32)) {
        return None;
    }
    let (room, at) = meta.find(header.addr)?;
    room.window.prefetch(at);
    waiting.header = at as u64;
    let data = desc.get(header.next()).map(Raw::load)?;
    let status = desc.get(data.next()).map(Raw::load)?;
    if !data.is(of(NEXT | INDIRECT, 0), of(NEXT, 0)) || data.len() == 0 || !status.is(KIND, of(WRITE, 1)) {
        return None;
    }
    // In the region of the header, or else it is not so usual.
    let status_at = room.offset(status.addr)?;
    room.window.prefetch_write(status_at);
    let known = &mut waiting.plain;
    known.status = StatusByte { region: room.id, hint: meta.hint as u32, offset: status_at as u64 };
    let (entry, data_at) = near.find(data.addr)?;
    if entry.window.len() - data_at < data.len() as usize {
        return None;
    }
    known.data = Segment { offset: data_at as u64, region: entry.id, len: data.len() };
    known.into = !data.is(of(WRITE, 0), 0);
    Some(Shape::Usual)
}

/// Translation of guest addresses that lie near each other.
struct Near<'a> {
    memory: &'a GuestMemory,
    /// The region where the last one was found, and its number.
    entry: &'a Entry,
    hint: usize,
}

impl<'a> Near<'a> {
    /// `None` if there is no memory at all.
    fn new(memory: &'a GuestMemory, hint: usize) -> Option<Near<'a>> {
        let hint = if memory.entry(hint as u32).is_some() { hint } else { 0 };
        memory.entry(hint as u32).map(|entry| Near { memory, entry, hint })
    }

    /// The region with the byte at `addr`, and where it is in that.
    #[inline(always)]
    fn find(&mut self, addr: u64) -> Option<(&'a Entry, usize)> {
        match self.entry.offset(addr) {
            Some(at) => Some((self.entry, at)),
            None => self.find_elsewhere(addr),
        }
    }

    #[inline(never)]
    fn find_elsewhere(&mut self, addr: u64) -> Option<(&'a Entry, usize)> {
        self.entry = self.memory.find(addr, &mut self.hint)?;
        Some((self.entry, self.entry.offset(addr)?))
    }
}

/// A descriptor as it lies in the ring: its second half is compared as a whole with what is expected of length and flags.
#[derive(Clone, Copy)]
struct Raw {
    addr: u64,
    rest: u64,
}

/// Where flags and a length lie in [`Raw::rest`].
const fn of(flags: u16, len: u32) -> u64 {
    (flags as u64) << 32 | len as u64
}

impl Raw {
    #[inline(always)]
    fn load(desc: &[AtomicU64; 2]) -> Raw {
        let [addr, rest] = desc;
        Raw { addr: u64::from_le(addr.load(Ordering::Relaxed)), rest: u64::from_le(rest.load(Ordering::Relaxed)) }
    }

    /// Are those of its bits that `mask` names as in `expected`?
    fn is(self, mask: u64, expected: u64) -> bool {
        self.rest & mask == expected
    }

    fn len(self) -> u32 {
        self.rest as u32
    }

    fn next(self) -> usize {
        (self.rest >> 48) as usize
    }
}
