//! What waits in a split ring, looked at before its turn comes.
//!
//! The guest wrote all of it on another core, and each line of it is a wait of its own: the descriptors, the header that they name, the
//! status byte that is to be written. So a batch goes through in stages: each asks for the lines that the next will read, of all chains,
//! before it reads the first. By the time a chain is taken, its lines are here.
//!
//! The shape that nearly all requests have (header, one piece of data, status; in the ring or in a table) is taken down here whole, and
//! its descriptors are not read again. Whatever is not exactly that is left to [`super::chain::Walk`], which judges it.

use super::chain::{Chain, DESC, HEADER, Hints, INDIRECT, NEXT, StatusByte, WRITE};
use crate::guest::{Entry, GuestMemory};
use polypath_block::{RegionId, Segment};
use polypath_memory::Window;

/// Most chains looked at in one go.
pub(super) const MOST: u16 = 64;
/// Bytes of a cache line, as far as prefetching goes.
pub(super) const LINE: usize = 64;
/// Descriptors of the shape that is taken down.
const PLAIN: u32 = 3;

/// A request of the usual shape, but for its header.
#[derive(Clone, Copy, Debug)]
struct Plain {
    /// Which region has the header, and where.
    meta: u32,
    header: u64,
    data: Segment,
    /// The device writes the data.
    into: bool,
    status: StatusByte,
}

/// One chain that waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    head: u16,
    /// Its shape is the usual one; else `plain` means nothing.
    is_plain: bool,
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
    pub(super) desc: &'a Window,
    pub(super) size: u16,
    /// Tables were negotiated.
    pub(super) indirect: bool,
    pub(super) memory: &'a GuestMemory,
    /// How many mappings had lost their file when the look began.
    pub(super) losses: u64,
}

impl Ahead {
    pub(super) fn new() -> Box<Ahead> {
        let data = Segment { offset: 0, region: RegionId::NONE, len: 0 };
        let plain = Plain { meta: 0, header: 0, data, into: false, status: StatusByte::NONE };
        let waiting = [Waiting { head: 0, is_plain: false, plain }; MOST as usize];
        Box::new(Ahead { waiting, at: 0, count: 0, tables: false })
    }

    /// Forgets all: what was looked at and not taken is looked at again when it is.
    #[inline]
    pub(super) fn clear(&mut self) {
        (self.at, self.count) = (0, 0);
    }

    /// Looks at the chains of `heads`, [`MOST`] at most.
    #[inline]
    pub(super) fn look(&mut self, heads: impl Iterator<Item = u16>, place: Place<'_>, hints: &mut Hints) {
        self.ask_as_last(place);
        (self.at, self.count) = (0, 0);
        for (waiting, head) in self.waiting.iter_mut().zip(heads) {
            waiting.head = head;
            let at = DESC * usize::from(head);
            place.desc.prefetch(at);
            // A chain that was allotted in one piece, and ends in the line after.
            place.desc.prefetch(at + DESC * (PLAIN as usize - 1));
            self.count += 1;
        }
        let waiting = &mut self.waiting[..self.count];
        if std::mem::take(&mut self.tables) {
            for waiting in waiting.iter() {
                place.ask_for_table(waiting.head, hints);
            }
        }
        for waiting in waiting {
            waiting.is_plain = place.read(waiting.head, &mut waiting.plain, hints, &mut self.tables).is_some();
        }
    }

    /// Asks for what the first chain of the last look lay in. Guests give the descriptors that came back last away first: with one request
    /// at a time it is the same chain again, and none of its lines has to be found before the next is asked for.
    #[inline]
    fn ask_as_last(&self, place: Place<'_>) {
        let Some(last) = self.waiting.first() else { return };
        let at = DESC * usize::from(last.head);
        place.desc.prefetch(at);
        place.desc.prefetch(at + DESC * (PLAIN as usize - 1));
        if !last.is_plain {
            return;
        }
        if let Some(entry) = place.memory.entry(last.plain.meta) {
            entry.window.prefetch(last.plain.header as usize);
        }
        if let Some(entry) = place.memory.entry(last.plain.status.hint) {
            entry.window.prefetch_write(last.plain.status.offset as usize);
        }
    }

    /// The next chain, if it was looked at.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        let waiting = self.waiting[..self.count].get(self.at)?;
        self.at += 1;
        Some(waiting.head)
    }

    /// The chain taken last, if it is of the usual shape: its data in `row`.
    #[inline(always)]
    pub(super) fn chain(&self, memory: &GuestMemory, row: &mut [Segment]) -> Option<Chain> {
        let waiting = self.waiting.get(self.at.wrapping_sub(1)).filter(|waiting| waiting.is_plain)?;
        let plain = &waiting.plain;
        let (first, second) = memory.entry(plain.meta)?.window.load_pair(plain.header as usize).ok()?;
        *row.first_mut()? = plain.data;
        let (into, len) = (u32::from(plain.into), u64::from(plain.data.len));
        Some(Chain {
            kind: first as u32,
            sector: second,
            out_count: 1 - into,
            in_count: into,
            out_len: if plain.into { 0 } else { len },
            in_len: if plain.into { len } else { 0 },
            status: plain.status,
            fault: None,
        })
    }
}

impl<'a> Place<'a> {
    #[inline(always)]
    fn desc(&self, index: u16) -> Option<Raw> {
        let pair = if index < self.size { self.desc.load_pair(DESC * usize::from(index)).ok() } else { None };
        pair.map(Raw::from)
    }

    fn ask_for_table(&self, head: u16, hints: &mut Hints) {
        if let Some(desc) = self.desc(head).filter(|desc| !desc.is(of(INDIRECT, 0), 0))
            && let Some((entry, at)) = find(self.memory, desc.addr, &mut hints.meta)
        {
            entry.window.prefetch(at);
            entry.window.prefetch(at + DESC * (PLAIN as usize - 1));
        }
    }

    /// Takes the chain down in `plain`, if it has the usual shape; else that means nothing. Asks for its header and for the line of its
    /// status. `tables` learns of a table.
    #[inline(always)]
    fn read(&self, head: u16, plain: &mut Plain, hints: &mut Hints, tables: &mut bool) -> Option<()> {
        let first = self.desc(head)?;
        if first.is(of(INDIRECT, 0), 0) {
            // No loop: the three descriptors of the shape differ in what they are.
            return self.plain(first, |desc| self.desc(desc.next()), plain, hints);
        }
        *tables = true;
        // Of memory that is being lost, a look costs no more than the pages of one chain.
        if polypath_memory::losses() != self.losses {
            return None;
        }
        let (entry, base) = find(self.memory, first.addr, &mut hints.meta)?;
        if !self.indirect || !first.is(of(NEXT, u32::MAX), of(0, PLAIN * DESC as u32)) {
            return None;
        }
        let inner = |index: u16| {
            let sound = u32::from(index) < PLAIN;
            let pair = if sound { entry.window.load_pair(base + DESC * usize::from(index)).ok() } else { None };
            pair.map(Raw::from)
        };
        self.plain(inner(0)?, |desc| inner(desc.next()), plain, hints)
    }

    #[inline(always)]
    fn plain(
        &self,
        header: Raw,
        next: impl Fn(Raw) -> Option<Raw>,
        plain: &mut Plain,
        hints: &mut Hints,
    ) -> Option<()> {
        const KIND: u64 = of(NEXT | WRITE | INDIRECT, u32::MAX);
        if !header.is(KIND, of(NEXT, HEADER as u32)) {
            return None;
        }
        let (entry, at) = find(self.memory, header.addr, &mut hints.meta)?;
        entry.window.prefetch(at);
        (plain.meta, plain.header) = (hints.meta as u32, at as u64);
        let data = next(header)?;
        let status = next(data)?;
        if !data.is(of(NEXT | INDIRECT, 0), of(NEXT, 0)) || data.len() == 0 || !status.is(KIND, of(WRITE, 1)) {
            return None;
        }
        let (entry, at) = find(self.memory, status.addr, &mut hints.meta)?;
        entry.window.prefetch_write(at);
        plain.status = StatusByte { region: entry.id, hint: hints.meta as u32, offset: at as u64 };
        let (entry, at) = find(self.memory, data.addr, &mut hints.data)?;
        plain.data = Segment { offset: at as u64, region: entry.id, len: data.len() };
        plain.into = !data.is(of(WRITE, 0), 0);
        if entry.len - at as u64 >= u64::from(data.len()) { Some(()) } else { None }
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
    fn from((addr, rest): (u64, u64)) -> Raw {
        Raw { addr, rest }
    }

    /// Are those of its bits that `mask` names as in `expected`?
    fn is(self, mask: u64, expected: u64) -> bool {
        self.rest & mask == expected
    }

    fn len(self) -> u32 {
        self.rest as u32
    }

    fn next(self) -> u16 {
        (self.rest >> 48) as u16
    }
}

#[inline(always)]
fn find<'a>(memory: &'a GuestMemory, addr: u64, hint: &mut usize) -> Option<(&'a Entry, usize)> {
    memory.find(addr, hint).map(|entry| (entry, (addr - entry.guest_addr) as usize))
}
