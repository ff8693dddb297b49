//! A disk in memory, shared by all its queues.

use crate::base::{self, Base, Completions, OpenQueue};
use crate::error::LocalError;
use polypath_block::{
    Access, Armed, Code, Cx, Device, DeviceInfo, DeviceState, DiskUri, Done, Endpoint, Health, Identity, Io, IoQueue,
    Limits, Op, OpenError, QueueConfig, Refused, RefusedWhy, SegTable, Segment, Status, Waits,
};
use polypath_memory::{BadSegment, Region, Table};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

/// Data bytes after which a poll leaves the rest to the next one.
const BYTES_A_POLL: u64 = 1 << 20;
/// Bytes that one request sets to zero before a poll leaves the rest of it to the next one: a huge page.
const ZEROES_A_POLL: u64 = 2 << 20;
/// Ranges at least this long are given back to the kernel instead of being overwritten with zeroes.
const PUNCH_FROM: u64 = 64 * 1024;
const PAGE: u64 = 4096;

/// `ram://SIZE`: keeps its blocks in memory of this process for as long as the device lives. It lies in huge pages where the machine has
/// them ([`Region::private`]; the log says which): in reserved ones if there are enough, else in transparent ones. Those are taken as
/// they are first written, or all at once when it opens with `populate`.
///
/// Options: `bs` (512), `huge` (on), `populate` (off), `uuid`, `nguid`, `readonly`. URIs with the same `uuid` or `nguid` in one process are paths to one medium (they
/// must agree on size); URIs without are disks of their own.
pub struct RamDevice {
    base: Arc<Base>,
    medium: Arc<Medium>,
}

struct Medium {
    region: Region,
    identity: Identity,
    bytes: u64,
}

/// Media with a stated identity, so that the second URI finds the first one's.
static SHARED: Mutex<Vec<Weak<Medium>>> = Mutex::new(Vec::new());

impl RamDevice {
    /// Opens the disk that `uri` describes.
    ///
    /// # Errors
    /// Names the part of the URI that does not do, or says why there is no memory.
    pub fn open(uri: &DiskUri) -> Result<Arc<RamDevice>, LocalError> {
        uri.check_options(&["bs", "huge", "populate", "uuid", "nguid", "readonly"])?;
        let Endpoint::Size { bytes } = uri.endpoint else {
            return Err(uri.error("scheme", "expected ram://SIZE").into());
        };
        let name = uri.to_string();
        let geometry = base::geometry(&name, bytes, base::block_size(uri, 512)?)?;
        let medium = Medium::find_or_make(uri, &name, bytes)?;
        let info = DeviceInfo {
            geometry,
            limits: Limits { read_only: uri.option_bool("readonly", false)?, ..Limits::UNLIMITED },
            identity: medium.identity.clone(),
            access: Access::Optimized,
            max_queues: u16::MAX,
            max_depth: base::MAX_DEPTH,
        };
        Ok(Arc::new(RamDevice { base: Arc::new(Base::new(name, info)), medium }))
    }
}

impl Medium {
    fn find_or_make(uri: &DiskUri, name: &str, bytes: u64) -> Result<Arc<Medium>, LocalError> {
        let identifiers = base::identity(uri, String::new())?.identifiers;
        let mut shared = SHARED.lock().unwrap_or_else(|p| p.into_inner());
        shared.retain(|w| w.strong_count() > 0);
        for medium in shared.iter().filter_map(Weak::upgrade) {
            if !medium.identity.identifiers.iter().any(|i| identifiers.contains(i)) {
                continue;
            }
            if medium.bytes != bytes {
                let problem = format!("another ram:// disk of this identity is open and has {} bytes", medium.bytes);
                return Err(uri.error("size", problem).into());
            }
            return Ok(medium);
        }
        let region = Region::private(bytes, uri.option_bool("huge", true)?)
            .map_err(|source| LocalError::Memory { name: name.into(), source })?;
        if uri.option_bool("populate", false)? {
            region.populate();
        }
        tracing::info!(device = name, pages = region.pages().as_str(), reason = region.fallback(), "made its memory");
        let cache_domain = polypath_block::CacheDomain(format!("ram.{:x}", region.id().0));
        let stated = !identifiers.is_empty();
        let medium = Arc::new(Medium { region, identity: Identity { identifiers, cache_domain }, bytes });
        if stated {
            shared.push(Arc::downgrade(&medium));
        }
        Ok(medium)
    }

    fn segment(&self, offset: u64, len: u32) -> Segment {
        Segment { offset, region: self.region.id(), len }
    }

    fn zero(&self, table: &Table, offset: u64, len: u64) -> Result<(), BadSegment> {
        let end = offset + len;
        let (inner, inner_end) = (offset.next_multiple_of(PAGE), end / PAGE * PAGE);
        if len < PUNCH_FROM || !self.region.give_back(inner, inner_end - inner) {
            return self.overwrite(table, offset, end);
        }
        self.overwrite(table, offset, inner)?;
        self.overwrite(table, inner_end, end)
    }

    fn overwrite(&self, table: &Table, mut offset: u64, end: u64) -> Result<(), BadSegment> {
        while offset < end {
            let len = (end - offset).min(1 << 30) as u32;
            table.view(self.segment(offset, len))?.zero();
            offset += u64::from(len);
        }
        Ok(())
    }

    fn carry_out(&self, io: &Io, block_size: u32, segs: &SegTable, table: &Table) -> Status {
        let (at, len) = (io.lba * u64::from(block_size), u64::from(io.blocks) * u64::from(block_size));
        let result = match io.op {
            Op::Flush => Ok(true),
            Op::WriteZeroes | Op::Discard => self.zero(table, at, len).map(|()| true),
            Op::Read | Op::Write | Op::Compare => self.transfer(io, at, len, segs, table),
            // Other queues may come between.
            Op::CompareAndWrite => return Code::Unsupported.into(),
        };
        match result {
            Ok(true) => Status::OK,
            Ok(false) => Code::Miscompare.into(),
            Err(BadSegment(_)) => Code::BadMemory.into(),
        }
    }

    fn transfer(&self, io: &Io, at: u64, len: u64, segs: &SegTable, table: &Table) -> Result<bool, BadSegment> {
        let mut offset = at;
        let mut equal = true;
        for piece in segs.pieces(io.segs, io.skip.into(), len) {
            let theirs = table.view(piece)?;
            let ours = self.segment(offset, piece.len);
            match io.op {
                Op::Read => {
                    table.view(ours)?.copy_to(&theirs);
                }
                Op::Write => {
                    theirs.copy_to(&table.view(ours)?);
                }
                _ => equal = equal && same(table, ours, piece)?,
            }
            offset += u64::from(piece.len);
        }
        Ok(equal)
    }
}

/// Takes off the front of `io` what one poll carries out: all of it, but for long ranges that are set to zero. Their parts end where huge
/// pages do.
fn next_part(io: &mut Io, block_size: u32) -> Io {
    let mut part = *io;
    if matches!(io.op, Op::WriteZeroes | Op::Discard) {
        let at = io.lba * u64::from(block_size);
        let most = ((at + 1).next_multiple_of(ZEROES_A_POLL) - at) / u64::from(block_size);
        part.blocks = io.blocks.min(most as u32);
    }
    (io.lba, io.blocks) = (io.lba + u64::from(part.blocks), io.blocks - part.blocks);
    part
}

/// Do the bytes of two segments of one length agree? Compared in small private copies: both may change at any time.
fn same(table: &Table, ours: Segment, theirs: Segment) -> Result<bool, BadSegment> {
    const STEP: u32 = 2048;
    let (mut a, mut b) = ([0u8; STEP as usize], [0u8; STEP as usize]);
    let mut at = 0;
    while at < theirs.len {
        let len = (theirs.len - at).min(STEP);
        let part = |s: Segment| Segment { offset: s.offset + u64::from(at), len, ..s };
        table.view(part(ours))?.copy_out(&mut a[..len as usize]);
        table.view(part(theirs))?.copy_out(&mut b[..len as usize]);
        if a[..len as usize] != b[..len as usize] {
            return Ok(false);
        }
        at += len;
    }
    Ok(true)
}

impl Device for RamDevice {
    fn name(&self) -> &str {
        self.base.name()
    }

    fn state(&self) -> DeviceState {
        self.base.state()
    }

    fn version(&self) -> u64 {
        self.base.version()
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let (open, depth) = self.base.open(config)?;
        Ok(Box::new(RamQueue {
            open,
            medium: self.medium.clone(),
            waiting: VecDeque::with_capacity(depth.into()),
            completions: Completions::new(depth),
            depth: depth.into(),
            closed: false,
        }))
    }

    fn close(&self) {
        self.base.close();
    }
}

struct RamQueue {
    open: OpenQueue,
    medium: Arc<Medium>,
    waiting: VecDeque<Io>,
    completions: Completions,
    depth: usize,
    closed: bool,
}

impl IoQueue for RamQueue {
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        if self.closed || self.waiting.len() + self.completions.len() >= self.depth {
            let why = if self.closed { RefusedWhy::Gone } else { RefusedWhy::Full };
            return Err(Refused { io, why });
        }
        let DeviceInfo { geometry, limits, .. } = self.open.info();
        match limits.check(&io, geometry.blocks, geometry.block_size, cx.segs) {
            Ok(()) => self.waiting.push_back(io),
            Err(status) => self.completions.push(io.tag, status),
        }
        Ok(())
    }

    fn kick(&mut self, _: &mut Cx<'_>) {}

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.completions.move_to(done);
        if self.waiting.is_empty() {
            return;
        }
        let block_size = self.open.info().geometry.block_size;
        polypath_memory::with(|table| {
            let mut moved = 0;
            while moved < BYTES_A_POLL
                && let Some(io) = self.waiting.front_mut()
            {
                let part = next_part(io, block_size);
                moved += u64::from(part.blocks) * u64::from(block_size);
                let status = self.medium.carry_out(&part, block_size, cx.segs, table);
                if !status.is_ok() || io.blocks == 0 {
                    done.complete(part.tag, status);
                    self.waiting.pop_front();
                }
            }
        });
    }

    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        if self.waiting.is_empty() && self.completions.is_empty() { Armed::Sleep } else { Armed::Busy }
    }

    fn health(&self) -> Health {
        if self.closed { Health::Down } else { Health::Ready }
    }

    fn close(&mut self, _: &mut Cx<'_>) {
        self.closed = true;
    }

    fn is_drained(&self) -> bool {
        self.closed && self.waiting.is_empty() && self.completions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::RealRig;
    use polypath_block::{Time, contract::Rig};

    const MIB: u64 = 1 << 20;

    /// Zeroes for the whole disk are some work, and the other disks of the reactor wait meanwhile: a turn does a part of it. It is one
    /// request all the same, and whatever comes behind it finds all of it done.
    #[test]
    fn a_turn_sets_no_more_to_zero_than_others_can_wait_for() {
        for op in [Op::WriteZeroes, Op::Discard] {
            let device: Arc<dyn Device> = RamDevice::open(&"ram://16MiB?huge=off".parse().unwrap()).unwrap();
            let mut rig = RealRig::new(device.clone(), true);
            let mut segs = SegTable::new(64);
            let span = rig.memory(&mut segs, MIB as u32, 1);
            let mut queue = device.open_queue(QueueConfig { depth: 32 }).unwrap();
            let mut done = Done::with_capacity(32);
            let mut cx = Cx { now: Time::from_millis(1), segs: &mut segs, reactor: 0 };
            rig.fill(cx.segs, span, &[0xee; MIB as usize]);
            for at in 0..16 {
                queue.submit(&mut cx, Io::write(at, at * MIB / 512, (MIB / 512) as u32, span)).unwrap();
            }
            while done.completions.len() < 16 {
                queue.poll(&mut cx, &mut done);
            }
            done.clear();
            // All but the first and the last block, and a read of the end.
            let blocks = (16 * MIB / 512) as u32;
            queue.submit(&mut cx, Io::range(100, op, 1, blocks - 2)).unwrap();
            queue.submit(&mut cx, Io::read(101, u64::from(blocks) - 16, 16, span)).unwrap();
            let mut polls = 0;
            while done.completions.len() < 2 {
                assert_eq!(queue.arm(&mut cx, &mut Waits::default()), Armed::Busy);
                queue.poll(&mut cx, &mut done);
                polls += 1;
            }
            assert!(polls >= 16 * MIB / ZEROES_A_POLL, "{op:?}: all of it in {polls} turns");
            assert!(done.completions.iter().map(|c| (c.tag, c.status)).eq([(100, Status::OK), (101, Status::OK)]));
            let end = &rig.bytes(cx.segs, span, MIB as usize)[..8192];
            assert!(
                end[..8192 - 512].iter().all(|&b| b == 0) && end[8192 - 512..].iter().all(|&b| b == 0xee),
                "{op:?}"
            );
            done.clear();
            for (tag, lba) in (0..16).map(|at| (at, at * MIB / 512)) {
                queue.submit(&mut cx, Io::read(tag, lba, (MIB / 512) as u32, span)).unwrap();
                while done.is_empty() {
                    queue.poll(&mut cx, &mut done);
                }
                done.clear();
                let bytes = rig.bytes(cx.segs, span, MIB as usize);
                let kept = bytes.iter().filter(|&&b| b == 0xee).count();
                let want = if tag == 0 || tag == 15 { 512 } else { 0 };
                assert_eq!(
                    (kept, bytes.iter().filter(|&&b| b == 0).count()),
                    (want, MIB as usize - want),
                    "{op:?}: MiB {tag}"
                );
            }
            queue.close(&mut cx);
            assert!(queue.is_drained());
        }
    }
}
