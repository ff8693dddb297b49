//! What one thread has under way on all disks beneath.

use super::Beneath;
use super::job::Order;
use super::lane::{DEPTH, Lane, PIECE};
use crate::mail::Address;
use crate::media::MediumError;
use polypath_block::{Armed, Cx, SlotKey, Waits};
use polypath_memory::Arena;
use std::sync::Arc;

/// A job that is over: all of it is quiet.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Whose it was.
    pub(crate) conn: u64,
    pub(crate) tag: u32,
    pub(crate) result: Result<(), MediumError>,
    /// What was read, or the memory of what was written, to be used again.
    pub(crate) data: Vec<u8>,
}

/// Somebody who waits until ghosts are gone.
struct Waiter {
    reply: Address,
    left: Vec<(usize, SlotKey)>,
}

/// The queues of one thread, one for each disk beneath.
pub(crate) struct Engine {
    lanes: Vec<Lane>,
    waiters: Vec<Waiter>,
    over: Vec<SlotKey>,
}

impl Engine {
    /// Bytes of memory for requests that one thread takes for each disk.
    pub(crate) const BYTES: u64 = DEPTH as u64 * PIECE as u64;

    /// Opens a queue of each disk, on the thread that will own them.
    ///
    /// # Errors
    /// For people: which disk, and why not.
    pub(crate) fn open(cx: &mut Cx<'_>, media: &[Arc<Beneath>], arena: &Arena) -> Result<Engine, String> {
        let lane = |medium: &Arc<Beneath>| Lane::open(cx, medium, arena).map_err(|e| format!("{}: {e}", medium.name()));
        let lanes: Result<Vec<Lane>, String> = media.iter().map(lane).collect();
        Ok(Engine { lanes: lanes?, waiters: Vec::new(), over: Vec::new() })
    }

    /// What connection `conn` wants.
    pub(crate) fn order(&mut self, conn: u64, order: Order) {
        match order {
            Order::Start(job) => {
                if let Some(lane) = self.lanes.get_mut(job.medium.index) {
                    lane.take(conn, job);
                }
            }
            Order::Cancel(tag) => self.cancel(conn, Some(tag)),
        }
    }

    /// Connection `conn` has ended, or nothing of it is wanted any more.
    pub(crate) fn abandon(&mut self, conn: u64) {
        self.cancel(conn, None);
        self.forget(|waiting| waiting == conn);
    }

    /// Connections of which `gone` says so wait for nothing any more. Those of other threads are not abandoned here.
    pub(crate) fn forget(&mut self, gone: impl Fn(u64) -> bool) {
        self.waiters.retain(|waiter| !gone(waiter.reply.conn));
    }

    /// How many wait until ghosts are gone.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    fn cancel(&mut self, conn: u64, tag: Option<u32>) {
        for lane in &mut self.lanes {
            lane.cancel(conn, tag);
        }
    }

    /// Whether there are ghosts now on disks of which `which` says so; `reply` is told by [`Engine::pump`] when they are gone.
    pub(crate) fn watch(&mut self, which: impl Fn(usize) -> bool, reply: Address) -> bool {
        let lanes = self.lanes.iter().enumerate().filter(|(index, _)| which(*index));
        let left: Vec<_> = lanes.flat_map(|(index, lane)| lane.ghosts().map(move |key| (index, key))).collect();
        let any = !left.is_empty();
        if any {
            tracing::info!(requests = left.len(), "waits until what was given up is quiet beneath");
            self.waiters.push(Waiter { reply, left });
        }
        any
    }

    /// Asks for what there is room for and sees what came back: jobs that are over go to `ended`, those who have waited for ghosts to
    /// `quiet`. `true` when something moved.
    pub(crate) fn pump(&mut self, cx: &mut Cx<'_>, ended: &mut Vec<Ended>, quiet: &mut Vec<Address>) -> Pumped {
        let (mut moved, mut laid) = (false, false);
        for index in 0..self.lanes.len() {
            moved |= self.lanes[index].pump(cx, ended, &mut self.over);
            if self.over.is_empty() {
                continue;
            }
            laid = true;
            let over = &self.over;
            self.waiters.iter_mut().for_each(|w| w.left.retain(|(at, key)| *at != index || !over.contains(key)));
            self.over.clear();
        }
        if laid {
            self.waiters.retain(|waiter| {
                let done = waiter.left.is_empty();
                if done {
                    quiet.push(waiter.reply);
                }
                !done
            });
        }
        Pumped { moved, laid }
    }

    /// May the thread sleep, as far as its queues know?
    pub(crate) fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let mut armed = Armed::Sleep;
        for lane in &mut self.lanes {
            if lane.arm(cx, waits) == Armed::Busy {
                armed = Armed::Busy;
            }
        }
        armed
    }

    /// No requests any more; all connections have been abandoned.
    pub(crate) fn close(&mut self, cx: &mut Cx<'_>) {
        self.lanes.iter_mut().for_each(|lane| lane.close(cx));
    }

    /// After [`Engine::close`]: has everything come back?
    pub(crate) fn is_drained(&mut self, cx: &mut Cx<'_>) -> bool {
        self.lanes.iter_mut().all(|lane| lane.is_drained(cx))
    }
}

/// What a turn of an [`Engine`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pumped {
    pub(crate) moved: bool,
    /// Ghosts are gone: other threads may have waited for that.
    pub(crate) laid: bool,
}
