//! A guest, as far as a disk sees one: memory in regions, and the driver's side of a ring, split (virtio 1.2 section 2.7) or packed
//! (section 2.8).
//!
//! Written from the standard and sharing no code with the device side. Used by unit tests, integration tests and the bench.

use polypath_memory::{Region, Window};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// One region of guest memory.
pub struct Ram {
    pub gpa: u64,
    pub uaddr: u64,
    pub region: Arc<Region>,
    pub window: Window,
}

/// All memory of a guest.
pub struct GuestRam {
    pub regions: Vec<Ram>,
}

impl GuestRam {
    /// Regions of the given guest addresses and lengths (whole pages).
    pub fn new(layout: &[(u64, u64)]) -> GuestRam {
        let regions = layout
            .iter()
            .map(|&(gpa, len)| {
                let region = Arc::new(Region::allocate(len, false).unwrap());
                let window = region.window(0, len).unwrap();
                Ram { gpa, uaddr: 0x7f00_0000_0000 + gpa, region, window }
            })
            .collect();
        GuestRam { regions }
    }

    fn each(&self, gpa: u64, len: usize, mut f: impl FnMut(&Window, usize, usize, usize)) {
        let mut done = 0;
        while done < len {
            let at = gpa + done as u64;
            let ram = self
                .regions
                .iter()
                .find(|r| at >= r.gpa && at - r.gpa < r.window.len() as u64)
                .expect("the test's own address is inside");
            let offset = (at - ram.gpa) as usize;
            let n = (ram.window.len() - offset).min(len - done);
            f(&ram.window, offset, done, n);
            done += n;
        }
    }

    pub fn write(&self, gpa: u64, data: &[u8]) {
        self.each(gpa, data.len(), |w, offset, done, n| w.copy_in(offset, &data[done..done + n]).unwrap());
    }

    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.each(gpa, len, |w, offset, done, n| w.copy_out(offset, &mut data[done..done + n]).unwrap());
        data
    }

    pub fn window(&self, gpa: u64, len: u64) -> Window {
        let ram = self.regions.iter().find(|r| gpa >= r.gpa && gpa - r.gpa < r.window.len() as u64).unwrap();
        ram.region.window(gpa - ram.gpa, len).unwrap()
    }

    /// Address of the front-end's process for a guest address.
    pub fn user_addr(&self, gpa: u64) -> u64 {
        let ram = self.regions.iter().find(|r| gpa >= r.gpa && gpa - r.gpa < r.window.len() as u64).unwrap();
        ram.uaddr + (gpa - ram.gpa)
    }
}

/// Some bytes of guest memory, as one descriptor will name them.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub addr: u64,
    pub len: u32,
    pub write: bool,
}

/// The driver's side of one ring.
pub struct Driver {
    pub size: u16,
    pub event_idx: bool,
    pub desc_gpa: u64,
    pub avail_gpa: u64,
    pub used_gpa: u64,
    pub desc: Window,
    pub avail: Window,
    pub used: Window,
    free: Vec<u16>,
    /// Descriptors of the chain at each head.
    chains: Vec<Vec<u16>>,
    pub avail_idx: u16,
    kicked_idx: u16,
    pub used_idx: u16,
    packed: Option<Packed>,
}

/// What the driver of a packed ring knows. `chains` has the descriptors of each buffer id as their number only.
struct Packed {
    /// Where the next chain goes, and where the next used one is looked for; with lap counters.
    next: (u16, bool),
    used: (u16, bool),
    /// Offered and not shown: where they begin, and the flags of their first descriptor.
    unshown: Vec<(u16, u16)>,
    free_ids: Vec<u16>,
    /// Descriptors shown since the device was last considered for a kick.
    moved: u16,
}

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

impl Driver {
    /// A ring of `size` descriptors at `gpa` (aligned to 16).
    pub fn new(ram: &GuestRam, gpa: u64, size: u16, event_idx: bool) -> Driver {
        let n = u64::from(size);
        let avail_gpa = gpa + 16 * n;
        let used_gpa = (avail_gpa + 6 + 2 * n).next_multiple_of(4);
        Driver {
            size,
            event_idx,
            desc_gpa: gpa,
            avail_gpa,
            used_gpa,
            desc: ram.window(gpa, 16 * n),
            avail: ram.window(avail_gpa, 6 + 2 * n),
            used: ram.window(used_gpa, 6 + 8 * n),
            free: (0..size).rev().collect(),
            chains: vec![Vec::with_capacity(16); usize::from(size)],
            avail_idx: 0,
            kicked_idx: 0,
            used_idx: 0,
            packed: None,
        }
    }

    /// As [`Driver::new`], of a packed ring.
    pub fn packed(ram: &GuestRam, gpa: u64, size: u16, event_idx: bool) -> Driver {
        let mut driver = Driver::new(ram, gpa, size, event_idx);
        let free_ids = (0..size).rev().collect();
        driver.packed = Some(Packed { next: (0, true), used: (0, true), unshown: Vec::new(), free_ids, moved: 0 });
        driver
    }

    pub fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// Where the ring stands as SET_VRING_BASE has it, if nothing is in flight.
    pub fn base(&self) -> u32 {
        let bits = |(at, wrap): (u16, bool)| u32::from(at) | u32::from(wrap) << 15;
        match &self.packed {
            None => self.avail_idx.into(),
            Some(packed) => bits(packed.next) | bits(packed.used) << 16,
        }
    }

    /// Guest addresses and lengths of what the device writes of the ring.
    pub fn written(&self) -> [(u64, u64); 2] {
        let n = u64::from(self.size);
        match self.packed {
            None => [(self.used_gpa, 6 + 8 * n), (0, 0)],
            Some(_) => [(self.desc_gpa, 16 * n), (self.used_gpa, 4)],
        }
    }

    /// Bytes a ring takes.
    pub fn bytes(size: u16) -> u64 {
        (16 + 2 + 8) * u64::from(size) + 16
    }

    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    pub fn set_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        put_desc(&self.desc, 16 * usize::from(index), addr, len, flags, next);
    }

    /// Makes a chain of `pieces` available (seen by the device after [`Driver::publish`]). None: no room.
    pub fn add(&mut self, pieces: &[Piece]) -> Option<u16> {
        if pieces.is_empty() || pieces.len() > self.free.len() {
            return None;
        }
        if self.is_packed() {
            return self.add_packed(pieces.iter().map(|p| (p.addr, p.len, if p.write { WRITE } else { 0 })).collect());
        }
        let at = self.free.len() - pieces.len();
        let head = self.free[self.free.len() - 1];
        for (i, p) in pieces.iter().enumerate() {
            let index = self.free[self.free.len() - 1 - i];
            let last = i + 1 == pieces.len();
            let next = if last { 0 } else { self.free[self.free.len() - 2 - i] };
            let flags = if p.write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.set_desc(index, p.addr, p.len, flags, next);
            self.chains[usize::from(head)].push(index);
        }
        self.free.truncate(at);
        self.offer(head);
        Some(head)
    }

    /// As [`Driver::add`], the first `direct` pieces in the ring, the others in a table at `table` of guest memory.
    pub fn add_indirect(&mut self, ram: &GuestRam, pieces: &[Piece], direct: usize, table: u64) -> Option<u16> {
        if direct + 1 > self.free.len() || direct >= pieces.len() {
            return None;
        }
        let inner = &pieces[direct..];
        for (i, p) in inner.iter().enumerate() {
            let last = i + 1 == inner.len();
            let write = if p.write { WRITE } else { 0 };
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&p.addr.to_le_bytes());
            bytes[8..12].copy_from_slice(&p.len.to_le_bytes());
            let (third, fourth) = match self.is_packed() {
                // Entries follow each other; the id means nothing.
                true => (0xdead, write),
                false => (write | if last { 0 } else { NEXT }, (i + 1) as u16),
            };
            bytes[12..14].copy_from_slice(&third.to_le_bytes());
            bytes[14..].copy_from_slice(&fourth.to_le_bytes());
            ram.write(table + 16 * i as u64, &bytes);
        }
        if self.is_packed() {
            let mut descs: Vec<_> =
                pieces[..direct].iter().map(|p| (p.addr, p.len, if p.write { WRITE } else { 0 })).collect();
            descs.push((table, 16 * inner.len() as u32, INDIRECT));
            return self.add_packed(descs);
        }
        let head = self.free[self.free.len() - 1];
        for (i, p) in pieces[..direct].iter().enumerate() {
            let index = self.free[self.free.len() - 1 - i];
            let flags = if p.write { WRITE } else { 0 } | NEXT;
            self.set_desc(index, p.addr, p.len, flags, self.free[self.free.len() - 2 - i]);
            self.chains[usize::from(head)].push(index);
        }
        let index = self.free[self.free.len() - 1 - direct];
        self.set_desc(index, table, 16 * inner.len() as u32, INDIRECT, 0);
        self.chains[usize::from(head)].push(index);
        self.free.truncate(self.free.len() - direct - 1);
        self.offer(head);
        Some(head)
    }

    /// Writes a chain of (address, length, flags) where the next one goes, all but the flags of its first descriptor.
    fn add_packed(&mut self, descs: Vec<(u64, u32, u16)>) -> Option<u16> {
        let size = self.size;
        let id = self.packed.as_mut()?.free_ids.pop()?;
        let count = descs.len();
        for (n, (addr, len, flags)) in descs.into_iter().enumerate() {
            let packed = self.packed.as_mut()?;
            let (at, wrap) = packed.next;
            let lap = if wrap { AVAIL } else { USED };
            let flags = flags | lap | if n + 1 == count { 0 } else { NEXT };
            // What lies there is of the lap before, and so not available, until the flags are.
            let offset = 16 * usize::from(at);
            self.desc.store_u64(offset, addr, Ordering::Relaxed).unwrap();
            self.desc.store_u32(offset + 8, len, Ordering::Relaxed).unwrap();
            self.desc.store_u16(offset + 12, id, Ordering::Relaxed).unwrap();
            if n == 0 {
                packed.unshown.push((at, flags));
            } else {
                self.desc.store_u16(offset + 14, flags, Ordering::Release).unwrap();
            }
            packed.next = if at + 1 == size { (0, !wrap) } else { (at + 1, wrap) };
            packed.moved += 1;
            let index = self.free.pop()?;
            self.chains[usize::from(id)].push(index);
        }
        self.avail_idx = self.avail_idx.wrapping_add(1);
        Some(id)
    }

    fn publish_packed(&mut self) -> bool {
        let (size, event_idx) = (self.size, self.event_idx);
        let Some(packed) = &mut self.packed else { return false };
        // The last first: the device stops at one that it does not see.
        for (at, flags) in packed.unshown.drain(..).rev() {
            self.desc.store_u16(16 * usize::from(at) + 14, flags, Ordering::Release).unwrap();
        }
        fence(Ordering::SeqCst);
        let event = self.used.load_u32(0, Ordering::Relaxed).unwrap();
        let moved = i32::from(std::mem::take(&mut packed.moved));
        match event >> 16 & 3 {
            0 => true,
            2 if event_idx => {
                let (at, wrap) = ((event & 0x7fff) as i32, event & 0x8000 != 0);
                let lap = if wrap == packed.next.1 { 0 } else { i32::from(size) };
                (1..=moved).contains(&(i32::from(packed.next.0) - at + lap))
            }
            _ => false,
        }
    }

    fn pop_packed(&mut self) -> Option<(u16, u32)> {
        let size = self.size;
        let packed = self.packed.as_mut()?;
        let (at, wrap) = packed.used;
        let offset = 16 * usize::from(at);
        let flags = self.desc.load_u16(offset + 14, Ordering::Acquire).unwrap();
        if (flags & AVAIL != 0) != wrap || (flags & USED != 0) != wrap {
            return None;
        }
        let id = self.desc.load_u16(offset + 12, Ordering::Relaxed).unwrap();
        let len = self.desc.load_u32(offset + 8, Ordering::Relaxed).unwrap();
        let chain = &mut self.chains[usize::from(id)];
        assert!(!chain.is_empty(), "id {id} was given back but is not in flight");
        let count = chain.len() as u16;
        self.free.append(chain);
        packed.free_ids.push(id);
        packed.used = if at + count >= size { (at + count - size, !wrap) } else { (at + count, wrap) };
        self.used_idx = self.used_idx.wrapping_add(1);
        Some((id, len))
    }

    /// Puts `head` in the next available entry.
    pub fn offer(&mut self, head: u16) {
        let at = 4 + 2 * usize::from(self.avail_idx % self.size);
        self.avail.store_u16(at, head, Ordering::Relaxed).unwrap();
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Shows the device all chains added. True if it wants to be kicked.
    pub fn publish(&mut self) -> bool {
        if self.is_packed() {
            return self.publish_packed();
        }
        self.avail.store_u16(2, self.avail_idx, Ordering::Release).unwrap();
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.kicked_idx, self.avail_idx);
        if !self.event_idx {
            return self.used.load_u16(0, Ordering::Relaxed).unwrap() & 1 == 0;
        }
        let event = self.used.load_u16(4 + 8 * usize::from(self.size), Ordering::Relaxed).unwrap();
        self.avail_idx.wrapping_sub(event).wrapping_sub(1) < self.avail_idx.wrapping_sub(old)
    }

    /// The next used element: head and bytes written.
    pub fn pop(&mut self) -> Option<(u16, u32)> {
        if self.is_packed() {
            return self.pop_packed();
        }
        if self.used.load_u16(2, Ordering::Acquire).unwrap() == self.used_idx {
            return None;
        }
        let at = 4 + 8 * usize::from(self.used_idx % self.size);
        let id = self.used.load_u32(at, Ordering::Relaxed).unwrap();
        let len = self.used.load_u32(at + 4, Ordering::Relaxed).unwrap();
        self.used_idx = self.used_idx.wrapping_add(1);
        let head = u16::try_from(id).expect("a used id is a head");
        let chain = &mut self.chains[usize::from(head)];
        assert!(!chain.is_empty(), "head {head} was given back but is not in flight");
        while let Some(index) = chain.pop() {
            self.free.push(index);
        }
        Some((head, len))
    }

    /// Asks for a call at the next used element. True if there is one already.
    pub fn want_call(&self) -> bool {
        if let Some(packed) = &self.packed {
            let (at, wrap) = packed.used;
            let flags = if self.event_idx { 2u32 } else { 0 };
            let event = u32::from(at) | u32::from(wrap) << 15 | flags << 16;
            self.avail.store_u32(0, event, Ordering::Relaxed).unwrap();
            fence(Ordering::SeqCst);
            let seen = self.desc.load_u16(16 * usize::from(at) + 14, Ordering::Acquire).unwrap();
            return (seen & AVAIL != 0) == wrap && (seen & USED != 0) == wrap;
        }
        if self.event_idx {
            self.avail.store_u16(4 + 2 * usize::from(self.size), self.used_idx, Ordering::Relaxed).unwrap();
        } else {
            self.avail.store_u16(0, 0, Ordering::Relaxed).unwrap();
        }
        fence(Ordering::SeqCst);
        self.used.load_u16(2, Ordering::Acquire).unwrap() != self.used_idx
    }

    /// Asks for no calls (without event index; with it, simply does not move used_event on).
    pub fn no_calls(&self) {
        if self.is_packed() {
            self.avail.store_u32(0, 1 << 16, Ordering::Relaxed).unwrap();
            return;
        }
        if !self.event_idx {
            self.avail.store_u16(0, 1, Ordering::Relaxed).unwrap();
        }
    }
}

pub fn put_desc(window: &Window, at: usize, addr: u64, len: u32, flags: u16, next: u16) {
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    window.store_u64(at, addr, Ordering::Relaxed).unwrap();
    window.store_u64(at + 8, rest, Ordering::Relaxed).unwrap();
}

/// A virtio-blk request header.
pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut h = [0; 16];
    h[..4].copy_from_slice(&kind.to_le_bytes());
    h[8..].copy_from_slice(&sector.to_le_bytes());
    h
}
