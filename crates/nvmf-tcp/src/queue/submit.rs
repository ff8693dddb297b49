//! From requests to commands: the common ones of a batch on a short path, the others one by one, checked in full, cut where they must be.

use super::QueuePair;
use crate::command::{self, Terms};
use crate::link::Transfer;
use polypath_block::{Cx, Io, Op, RefusedWhy, Rest, SlotKey, Splitter, Unit};

impl QueuePair {
    /// Takes the first of `ios`, in order, as many as there is room for.
    #[inline]
    pub(super) fn take_all(&mut self, cx: &mut Cx<'_>, unit: Unit, ios: &[Io]) -> Result<(), Rest> {
        let mut taken = self.take_common(cx, unit, ios);
        while let Some(io) = ios.get(taken) {
            self.take_one(cx, unit, *io).map_err(|why| Rest { taken, why })?;
            taken += 1;
            taken += self.take_common(cx, unit, &ios[taken..]);
        }
        Ok(())
    }

    /// As many from the front of `ios` as are common and find room, each as one command. What it leaves says nothing.
    #[inline]
    fn take_common(&mut self, cx: &mut Cx<'_>, unit: Unit, ios: &[Io]) -> usize {
        // What the mailbox holds may concern this very unit: nothing is put on the wire before it was read.
        if !self.is_usable(unit) || self.requests.has_backlog() || self.mailbox.bell.is_rung() {
            return 0;
        }
        let fenced = self.fenced.room().saturating_sub(self.requests.len());
        let (Some(connection), Some(state)) = (&mut self.connection, self.units.get(unit)) else { return 0 };
        let requests = &mut self.requests;
        let room = requests.room().min(fenced).min(connection.room()).min(ios.len());
        if room == 0 {
            return 0;
        }
        let terms = Terms { limits: &state.limits, blocks: state.blocks, block_size: state.block_size };
        let (segs, now, nsid) = (&*cx.segs, cx.now, state.nsid);
        connection.start(now);
        polypath_memory::with(|table| {
            let mut taken = 0;
            for io in &ios[..room] {
                let Some(len) = command::common(io, &terms, segs, table) else { break };
                let Some(key) = requests.insert(unit, io, len.into(), now) else { break };
                taken += 1;
                if !connection.submit_block(io, nsid, len, key) {
                    requests.queue(key, Splitter::new(*io, terms.limits, terms.block_size));
                    break;
                }
            }
            taken
        })
    }

    /// A request that is not common: it is checked in full, and may wait and be cut.
    #[inline(never)]
    fn take_one(&mut self, cx: &mut Cx<'_>, unit: Unit, io: Io) -> Result<(), RefusedWhy> {
        if !self.is_usable(unit) {
            return Err(RefusedWhy::Gone);
        }
        if self.requests.is_full() || self.fenced.room() <= self.requests.len() {
            return Err(RefusedWhy::Full);
        }
        let Some(state) = self.units.get(unit) else { return Err(RefusedWhy::Gone) };
        if let Err(status) = state
            .limits
            .check(&io, state.blocks, state.block_size, cx.segs)
            .and_then(|()| command::check_memory(&io, state.block_size, cx.segs))
        {
            self.requests.refuse(io.tag, status);
            return Ok(());
        }
        // As in `take_common`.
        let news = self.mailbox.bell.is_rung();
        let whole = !news && !self.requests.has_backlog() && state.limits.fits(&io, state.block_size, cx.segs);
        let bytes = io.data_len(state.block_size);
        let Some(key) = self.requests.insert(unit, &io, bytes, cx.now) else {
            return Err(RefusedWhy::Full);
        };
        if whole && self.send_part(cx, key, unit, &io) {
            return Ok(());
        }
        if let Some(state) = self.units.get(unit) {
            self.requests.queue(key, Splitter::new(io, &state.limits, state.block_size));
        }
        if !news {
            self.feed(cx);
        }
        Ok(())
    }

    /// Makes commands of requests that wait, as far as there is room.
    pub(super) fn feed(&mut self, cx: &mut Cx<'_>) {
        while let Some((key, unit, part)) = self.requests.next_part(cx.segs) {
            if !self.send_part(cx, key, unit, &part) {
                return;
            }
            self.requests.part_sent(key, cx.now, cx.segs);
        }
    }

    /// One command; `false` when there is no room for it now.
    #[inline]
    fn send_part(&mut self, cx: &mut Cx<'_>, key: SlotKey, unit: Unit, part: &Io) -> bool {
        let (Some(connection), Some(unit)) = (&mut self.connection, self.units.get(unit)) else { return false };
        if !connection.is_ready() {
            return false;
        }
        let len = part.data_len(unit.block_size) as u32;
        let transfer = match part.op {
            Op::Read => Transfer::In { span: part.segs, skip: part.skip, len, exact: true },
            Op::Write | Op::Compare | Op::CompareAndWrite => Transfer::Out { span: part.segs, skip: part.skip, len },
            Op::Discard => {
                let Some(row) = &self.ranges_row else { return false };
                match command::put_range(&self.ranges, key.index(), part) {
                    Some(segment) => {
                        let span = row.span(key.index().into(), 1);
                        cx.segs.get_mut(span)[0] = segment;
                        Transfer::Out { span, skip: 0, len: command::RANGE_LEN }
                    }
                    None => return false,
                }
            }
            Op::Flush | Op::WriteZeroes => Transfer::None,
        };
        connection.submit(&command::build(part, unit.nsid), transfer, key, cx.now)
    }
}
