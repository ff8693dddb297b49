//! The area in which requests in flight are recorded: one record for each vring, in a file that the front-end keeps.

use super::{Refusal, Reply, Session};
use crate::ring::record_len;
use crate::stranger::Stranger;
use crate::wire::{InflightDesc, protocol_feature};
use polypath_memory::{Region, Window};
use rustix::fd::BorrowedFd;

/// See the module.
pub(super) struct InflightArea {
    region: Region,
    queues: u16,
    /// Bytes of each vring's record, whichever kind of ring it is.
    stride: u64,
}

impl InflightArea {
    /// The file behind it.
    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.region.fd()
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.region.len()
    }
}

impl Session<'_> {
    /// Makes the area. Features come first: the records of packed rings are larger.
    pub(super) fn get_inflight(&mut self, desc: &InflightDesc) -> Result<Reply, Refusal> {
        self.needs(protocol_feature::INFLIGHT_SHMFD)?;
        let stride = self.check_inflight(desc, u64::MAX)?;
        let len = stride * u64::from(desc.queues);
        let region = Region::allocate(len, false)?;
        self.inflight = Some(InflightArea { region, queues: desc.queues, stride });
        Ok(Reply::Inflight(InflightDesc { len, offset: 0, ..*desc }.encode()))
    }

    pub(super) fn set_inflight(&mut self, desc: &InflightDesc, fd: Stranger) -> Result<(), Refusal> {
        self.needs(protocol_feature::INFLIGHT_SHMFD)?;
        let stride = self.check_inflight(desc, desc.len)?;
        // What it holds, however long the file is.
        let len = stride * u64::from(desc.queues);
        self.check_bytes(self.memory.bytes(), self.log_len, len)?;
        let region = fd.map(desc.offset, len)?;
        self.stop_all()?;
        self.inflight = Some(InflightArea { region, queues: desc.queues, stride });
        self.start_all()
    }

    fn check_inflight(&self, desc: &InflightDesc, most: u64) -> Result<u64, Refusal> {
        let stride = record_len(desc.size, self.is_packed());
        let fits = usize::from(desc.queues) <= self.vrings.len() && desc.size <= self.server.config.queue_size;
        if desc.queues == 0 || desc.size == 0 || !fits || stride * u64::from(desc.queues) > most {
            return Err(Refusal::Inflight { queues: desc.queues, size: desc.size, len: most });
        }
        Ok(stride)
    }

    /// Where vring `index` records what is in flight; `None` if its front-end does not want that.
    pub(super) fn record(&self, index: u32, size: u16, packed: bool) -> Result<Option<Window>, Refusal> {
        let Some(area) = self.inflight.as_ref().filter(|area| index < area.queues.into()) else { return Ok(None) };
        // All of its place: a ring of another size may have been there before.
        let window = area.region.window(u64::from(index) * area.stride, area.stride);
        match window.filter(|_| record_len(size, packed) <= area.stride) {
            Some(window) => Ok(Some(window)),
            None => Err(Refusal::Inflight { queues: area.queues, size, len: area.region.len() }),
        }
    }
}
