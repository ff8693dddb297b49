//! The queue of a slice: adds the offset, and keeps to the range.

use super::{Carved, Fit};
use polypath_block::{Armed, Code, Cx, Done, Health, Io, IoQueue, Refused, RefusedWhy, Rest, Status, Waits};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Requests that are handed on together at most.
const BATCH: usize = 64;

/// A queue of the device below, seen through a slice. Nothing of it is allocated after it was opened.
pub(super) struct SliceQueue {
    below: Box<dyn IoQueue>,
    carved: Arc<Carved>,
    /// Version of the device that `fit` is of.
    seen: u64,
    /// Where the slice lies, or why it does not; `None`: its device has never been live.
    fit: Option<Result<Fit, Code>>,
    /// Requests that were wrong and are to complete: as many as there is room for.
    wrong: Vec<(u64, Code)>,
    /// Requests with their addresses on the device, while they are handed on.
    moved: Vec<Io>,
    closing: bool,
}

impl SliceQueue {
    pub(super) fn new(below: Box<dyn IoQueue>, carved: Arc<Carved>, depth: u16) -> Self {
        carved.queues.fetch_add(1, Ordering::AcqRel);
        let (seen, fit) = (carved.device.version(), carved.look());
        let wrong = Vec::with_capacity(usize::from(depth.max(1)));
        SliceQueue { below, carved, seen, fit, wrong, moved: Vec::with_capacity(BATCH), closing: false }
    }

    /// Follows the device: one load, unless it has changed.
    #[inline]
    fn follow(&mut self) {
        let version = self.carved.device.version();
        if version != self.seen {
            self.seen = version;
            // While the device does not answer, what was known stays.
            self.fit = self.carved.look().or(self.fit);
        }
    }

    /// The request with its address on the device.
    #[inline]
    fn translate(fit: Result<Fit, Code>, io: &Io) -> Result<Io, Code> {
        if !io.op.has_range() {
            return Ok(*io);
        }
        let fit = fit?;
        let inside = io.lba.checked_add(u64::from(io.blocks)).is_some_and(|end| end <= fit.blocks);
        if !inside { Err(Code::OutOfRange) } else { Ok(Io { lba: fit.first_lba + io.lba, ..*io }) }
    }

    /// Takes a request that is wrong, if there is room for its completion.
    fn complete_wrong(&mut self, tag: u64, code: Code) -> Result<(), RefusedWhy> {
        if self.wrong.len() == self.wrong.capacity() {
            return Err(RefusedWhy::Full);
        }
        self.wrong.push((tag, code));
        Ok(())
    }

    /// What the slice can do for requests at all now.
    fn open(&self) -> Result<Result<Fit, Code>, RefusedWhy> {
        self.fit.filter(|_| !self.closing).ok_or(RefusedWhy::Gone)
    }
}

impl IoQueue for SliceQueue {
    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.follow();
        let fit = self.open().map_err(|why| Refused { io, why })?;
        match Self::translate(fit, &io) {
            Ok(moved) => self.below.submit(cx, moved).map_err(|refused| Refused { io, why: refused.why }),
            Err(code) => self.complete_wrong(io.tag, code).map_err(|why| Refused { io, why }),
        }
    }

    fn submit_all(&mut self, cx: &mut Cx<'_>, ios: &[Io]) -> Result<(), Rest> {
        self.follow();
        let fit = self.open().map_err(|why| Rest { taken: 0, why })?;
        let mut taken = 0;
        while let Some(rest) = ios.get(taken..).filter(|rest| !rest.is_empty()) {
            self.moved.clear();
            let good = rest.iter().take(BATCH).map_while(|io| Self::translate(fit, io).ok());
            self.moved.extend(good);
            if let Some(first) = rest.first().filter(|_| self.moved.is_empty()) {
                let code = Self::translate(fit, first).err().unwrap_or(Code::Invalid);
                self.complete_wrong(first.tag, code).map_err(|why| Rest { taken, why })?;
                taken += 1;
                continue;
            }
            let handed = self.below.submit_all(cx, &self.moved);
            handed.map_err(|rest| Rest { taken: taken + rest.taken, why: rest.why })?;
            taken += self.moved.len();
        }
        Ok(())
    }

    #[inline]
    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.below.kick(cx);
    }

    #[inline]
    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        for (tag, code) in self.wrong.drain(..) {
            done.complete(tag, Status::new(code));
        }
        self.below.poll(cx, done);
        self.follow();
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if !self.wrong.is_empty() {
            return Armed::Busy;
        }
        self.below.arm(cx, waits)
    }

    fn health(&self) -> Health {
        if self.open().is_err() { Health::Down } else { self.below.health() }
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.closing = true;
        self.below.close(cx);
    }

    fn is_drained(&self) -> bool {
        self.wrong.is_empty() && self.below.is_drained()
    }

    fn owes(&self) -> bool {
        self.below.owes()
    }

    fn is_surplus(&self) -> bool {
        self.below.is_surplus()
    }
}

impl Drop for SliceQueue {
    fn drop(&mut self) {
        self.carved.queues.fetch_sub(1, Ordering::AcqRel);
    }
}
