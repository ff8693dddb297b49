//! What has come, from octets to commands that are over and data where they belong.

use super::{Broken, Command, Finished};
use crate::pdu::digest;
use crate::proto::{Event, HostConnection, ProtocolError, Want};
use polypath_block::SegTable;
use polypath_memory::Table;
use polypath_nvme::Cqe;

/// Received bytes on their way to the protocol and to memory.
pub(super) struct Inbound<'a> {
    pub(super) connection: &'a mut HostConnection,
    pub(super) holdings: &'a mut [Command],
    pub(super) segs: &'a SegTable,
    pub(super) table: &'a Table,
    pub(super) crc: &'a mut u32,
    /// Data digests are in use. Before the first data this is settled.
    pub(super) checked: bool,
}

impl Inbound<'_> {
    /// Takes all of `input`; `done` gets every command that is over.
    #[inline]
    pub(super) fn take(&mut self, mut input: &[u8], done: &mut impl FnMut(Finished)) -> Result<(), Broken> {
        loop {
            if self.connection.takes_whole() {
                while let Some(whole) = self.connection.next_whole(input) {
                    let (pdu, rest) = input.split_at(whole.len);
                    input = rest;
                    let data = &pdu[whole.head..];
                    if !data.is_empty() {
                        let held = &self.holdings[usize::from(whole.slot)].data;
                        if !held.place_in_one(self.segs, self.table, 0, data) {
                            self.place(whole.slot, 0, data);
                        }
                    }
                    self.tell(whole.slot, whole.cqe, done);
                }
            }
            match self.connection.poll_event() {
                Some(Event::Completed { slot, cqe, .. }) => self.tell(slot, cqe, done),
                Some(Event::Ready(_)) => {}
                None if input.is_empty() => return Ok(()),
                None => input = &input[self.step(input)?..],
            }
        }
    }

    #[inline(always)]
    fn tell(&self, slot: u16, cqe: Cqe, done: &mut impl FnMut(Finished)) {
        let h = &self.holdings[usize::from(slot)].data;
        done(Finished { user: h.user, cqe, bad_memory: h.bad });
    }

    /// The long way of whatever is not common; returns how much of `input` it took.
    #[inline(never)]
    fn step(&mut self, input: &[u8]) -> Result<usize, Broken> {
        Ok(match self.connection.wants() {
            Want::Header(_) => self.connection.handle_bytes(input)?,
            Want::Data { slot, offset, len } => {
                let n = input.len().min(len as usize);
                self.place(slot, offset, &input[..n]);
                self.connection.data_moved(n as u32);
                n
            }
            Want::Digest(_) => {
                let used = self.connection.handle_digest(input, *self.crc)?;
                if !matches!(self.connection.wants(), Want::Digest(_)) {
                    *self.crc = 0;
                }
                used
            }
            Want::Nothing => return Err(ProtocolError::NotWanted.into()),
        })
    }

    #[inline(never)]
    fn place(&mut self, slot: u16, offset: u32, data: &[u8]) {
        if self.checked {
            *self.crc = digest(*self.crc, data);
        }
        self.holdings[usize::from(slot)].data.place(self.segs, self.table, offset, data);
    }
}
