//! The other end of the wire: what a transport's target must do to live in a world.

use crate::plan::{Action, Plan};
use polypath_block::{Device, Host, Time};
use polypath_sim::wire::Net;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a connection wants of its stream.
pub use polypath_target::sim_shell::Wish;

/// A simulated target: bytes in, bytes out, time an argument. The world carries the bytes and knows the wire's faults; the peer
/// knows its protocol, its media and its own faults.
///
/// A transport that comes into the world brings one of these and a [`Family`].
pub trait Peer {
    /// A new connection on the listener of path `path`; returns its number.
    fn accept(&mut self, now: Time, path: usize) -> u64;
    /// Bytes came.
    fn input(&mut self, now: Time, connection: u64, bytes: &[u8]);
    /// Moves at most `limit` bytes that are to leave to the end of `out`.
    fn output(&mut self, connection: u64, limit: usize, out: &mut Vec<u8>) -> usize;
    /// What the connection wants.
    fn wish(&self, connection: u64) -> Wish;
    /// The connection is over, whoever ended it.
    fn closed(&mut self, now: Time, connection: u64);
    /// Does what is due.
    fn poll(&mut self, now: Time);
    /// When [`Peer::poll`] has something to do next.
    fn next(&self) -> Time;
    /// An action that concerns the target begins (`begins`) or ends. Actions of the wire never come here.
    ///
    /// # Errors
    /// For people: it cannot be done. A mistake of the plan, not of what is tested.
    fn act(&mut self, now: Time, action: &Action, begins: bool) -> Result<(), String>;
    /// Reads `out.len()` bytes at `offset` of disk `disk`: as they are now, or as a loss of power would leave them.
    fn look(&self, disk: u32, offset: u64, durable: bool, out: &mut [u8]);
    /// How often media that were swapped in for disks were changed by commands as they came, not by writes that were held.
    fn changes_of_swapped(&self) -> u64;
    /// How often any disk of the target was changed.
    fn changes(&self) -> u64;
}

/// A transport: how its target is made, and its initiators.
pub trait Family {
    /// The target of a plan; with `other`, one that has the same names and other disks.
    ///
    /// # Errors
    /// For people: what of the plan cannot be served.
    fn peer(&self, plan: &Plan, other: bool) -> Result<Box<dyn Peer>, String>;
    /// Starts the initiator of path `path`, which dials over `net`. `hosts` are the reactors in order.
    ///
    /// # Errors
    /// For people: it cannot be started.
    fn initiator(
        &self,
        plan: &Plan,
        path: usize,
        net: &Net,
        hosts: &[Arc<dyn Host>],
    ) -> Result<Box<dyn Initiator>, String>;
}

/// Where the target of path `path` listens.
pub fn address(path: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, path as u8 + 1], 4420))
}

/// A way of ours to the target.
pub trait Initiator {
    /// The path to disk `disk`, as a group takes it.
    fn device(&self, disk: u32) -> Arc<dyn Device>;
    /// Ends it, once its queues are closed.
    fn close(&self);
}
