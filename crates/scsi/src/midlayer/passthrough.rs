//! Commands that are to be passed through: from the devices of a bus to its control side.

use super::bus::{Address, Bus, BusState, lock};
use crate::Cdb;
use crate::passthrough::admit;
use polypath_block::{
    Code, CommandSet, LONGEST_PASSTHROUGH, PassthroughCommand, PassthroughData, PassthroughError, PassthroughReply,
    PassthroughRequest,
};
use std::time::Duration;

/// Commands that wait at a time.
const MOST_ORDERS: usize = 64;

/// Somebody wants this to be sent to the logical unit at `address`.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) address: Address,
    pub(super) cdb: Cdb,
    pub(super) data: PassthroughData,
    pub(super) changes: bool,
    pub(super) limit: Duration,
    pub(super) reply: PassthroughReply,
}

/// Is it a command for a logical unit, and may it be sent?
///
/// # Errors
/// Why not.
pub(super) fn check(request: &PassthroughRequest) -> Result<Cdb, PassthroughError> {
    request.check_length()?;
    let PassthroughCommand::Scsi(octets) = &request.command else {
        let reason = format!("it takes {} commands; expected one of these", CommandSet::Scsi);
        return Err(PassthroughError::new(Code::Unsupported, reason));
    };
    let out: &[u8] = if let PassthroughData::Out(octets) = &request.data { octets } else { &[] };
    admit(octets, out, request.changes)
}

impl Bus {
    /// Somebody wants a command to be sent to `address`; the control poller is called.
    pub(super) fn order_passthrough(
        &self,
        address: Address,
        request: PassthroughRequest,
        limit: Duration,
        reply: PassthroughReply,
    ) {
        let cdb = match check(&request) {
            Ok(cdb) => cdb,
            Err(error) => return reply.answer(Err(error)),
        };
        let (limit, PassthroughRequest { data, changes, .. }) = (limit.min(LONGEST_PASSTHROUGH), request);
        let mut orders = lock(&self.passthroughs);
        if orders.len() >= MOST_ORDERS {
            drop(orders);
            return reply.refuse(Code::PathBusy, format!("{}: too many commands wait", self.name()));
        }
        orders.push(Order { address, cdb, data, changes, limit, reply });
        drop(orders);
        // Whoever sets that takes what is there afterwards.
        if let BusState::Gone { reason } = self.state() {
            self.take_passthroughs().into_iter().for_each(|order| order.reply.refuse(Code::Gone, reason.clone()));
        }
        self.call();
    }

    /// What was asked for since the last time.
    pub(super) fn take_passthroughs(&self) -> Vec<Order> {
        std::mem::take(&mut *lock(&self.passthroughs))
    }
}
