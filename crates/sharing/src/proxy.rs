//! The poller on the owner's reactor that stands for the users on others: one for each owner that has any.

use crate::link::{Message, NARROW, Reply, Served, WIDE, WIDE_ROWS};
use crate::mailbox::OwnerMailbox;
use crate::owner::{Share, ShareOwner};
use polypath_block::{
    Armed, Code, Completion, Cx, Done, Host, Io, Poller, Proof, RefusedWhy, SegRow, SegSpan, SlotKey, Turn, Waits,
};
use std::rc::Rc;
use std::sync::Arc;

/// See the module.
struct Proxy {
    name: String,
    owner: Rc<ShareOwner>,
    lines: Vec<Line>,
}

/// One user on another reactor.
struct Line {
    link: Served,
    share: Share,
    /// One row for each request it may have open, and a few wide ones.
    narrow: SegRow,
    wide: SegRow,
    done: Done,
}

/// Asks the reactor that owns the queue for a proxy.
pub(crate) fn spawn(mailbox: Arc<OwnerMailbox>, host: &dyn Host) {
    host.spawn(Box::new(move |_| match ShareOwner::of_mailbox(mailbox.id) {
        Some(owner) => Box::new(Proxy { name: format!("crossing to {}", mailbox.name), owner, lines: Vec::new() }),
        None => {
            // It has gone meanwhile, or that reactor only has its number in common.
            mailbox.refuse_links();
            Box::new(Nobody)
        }
    }));
}

impl Proxy {
    #[cold]
    fn take_in(&mut self, cx: &mut Cx<'_>) {
        for link in self.owner.mailbox.take_links() {
            if link.is_gone() || self.owner.mailbox.is_closed() {
                continue;
            }
            let open = u32::from(link.open);
            let narrow = cx.segs.reserve(open, NARROW);
            let wide = cx.segs.reserve(WIDE_ROWS, WIDE);
            let (narrow, wide) = match (narrow, wide) {
                (Ok(narrow), Ok(wide)) => (narrow, wide),
                (one, other) => {
                    if let Err(error) = one.as_ref().and(other.as_ref()) {
                        tracing::error!(controller = %self.owner.mailbox.name, %error, "a queue cannot be shared with another reactor");
                    }
                    one.into_iter().chain(other).for_each(|row| cx.segs.release(row));
                    continue;
                }
            };
            let share = match self.owner.join(link.unit, link.depth) {
                Ok(share) => share,
                Err(error) => {
                    tracing::error!(%error, "a queue cannot be shared with another reactor");
                    cx.segs.release(narrow);
                    cx.segs.release(wide);
                    continue;
                }
            };
            link.join();
            let done = Done::with_capacity(usize::from(link.open));
            self.lines.push(Line { link, share, narrow, wide, done });
        }
    }
}

impl Line {
    /// Submits what has come.
    #[inline]
    fn receive(&mut self, cx: &mut Cx<'_>) -> bool {
        let mut any = false;
        // What it had not sent yet when it went is nobody's: its memory may be somebody else's by now.
        if self.link.is_gone() {
            return false;
        }
        for _ in 0..self.link.open {
            let Ok(Message { io, wide }) = self.link.requests.pop() else { break };
            any = true;
            let row = match wide {
                Some(row) => self.wide.span(row.into(), io.segs.count),
                None => self.narrow.span(SlotKey::from_u32(io.tag as u32).index().into(), io.segs.count),
            };
            let segs = if self.copy_segments(cx, row) { row } else { SegSpan::EMPTY };
            if let Err(refused) = self.share.submit(cx, Io { segs, ..io }) {
                let code = if refused.why == RefusedWhy::Full { Code::PathBusy } else { Code::PathLost };
                self.done.completions.push(Completion { tag: io.tag, status: code.into(), proof: Proof::NeverSent });
            }
        }
        any
    }

    /// The segments were sent before their request.
    fn copy_segments(&mut self, cx: &mut Cx<'_>, row: SegSpan) -> bool {
        let Ok(chunk) = self.link.segments.read_chunk(row.count as usize) else { return false };
        let (head, tail) = chunk.as_slices();
        let (first, second) = cx.segs.get_mut(row).split_at_mut(head.len());
        first.copy_from_slice(head);
        second.copy_from_slice(tail);
        chunk.commit_all();
        true
    }

    #[inline]
    fn send_back(&mut self) -> bool {
        if self.done.is_empty() {
            return false;
        }
        if self.link.is_gone() {
            self.done.clear();
            return true;
        }
        let link = &mut self.link;
        let sent = self.done.suspects.iter().take_while(|s| link.reply(Reply::Suspect(**s))).count();
        self.done.suspects.drain(..sent);
        if self.done.suspects.is_empty() {
            let sent = self.done.completions.iter().take_while(|c| link.reply(Reply::Completion(**c))).count();
            self.done.completions.drain(..sent);
        }
        true
    }

    /// The asking side has gone. What waits is given up, what runs is drained: is nothing of it open any more?
    fn has_ended(&mut self, cx: &mut Cx<'_>) -> bool {
        if !self.link.is_gone() {
            return false;
        }
        while self.link.requests.pop().is_ok() {}
        self.done.clear();
        self.share.forget_line();
        self.share.close(cx);
        self.share.is_drained()
    }
}

impl Poller for Proxy {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        let bell = &self.owner.mailbox.bell;
        bell.rise();
        let mut busy = false;
        if bell.answer() {
            busy = true;
            if self.owner.mailbox.has_links() {
                self.take_in(cx);
            }
        }
        let mut received = false;
        for line in &mut self.lines {
            received |= line.receive(cx);
        }
        if received {
            busy = true;
            self.owner.kick(cx);
        }
        let mut ended = false;
        for line in &mut self.lines {
            line.share.poll(cx, &mut line.done);
            let sent = line.send_back();
            busy |= sent;
            if line.link.show(line.share.health(), line.share.is_surplus()) || sent {
                line.link.ring();
            }
            ended |= line.link.is_gone();
        }
        if ended {
            self.forget_ended(cx);
        }
        if self.lines.is_empty() && self.owner.mailbox.dismiss_proxy() {
            return Turn::Finished;
        }
        if busy { Turn::Busy } else { Turn::Idle }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.lines.is_empty() || self.owner.mailbox.bell.arm(waits) == Armed::Busy {
            return Armed::Busy;
        }
        for line in &mut self.lines {
            // A share that others have brought news to keeps us awake: then its asking side is told in the next turn.
            if !line.done.is_empty() || line.share.arm(cx, waits) == Armed::Busy {
                return Armed::Busy;
            }
        }
        Armed::Sleep
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Proxy {
    #[cold]
    fn forget_ended(&mut self, cx: &mut Cx<'_>) {
        let mut at = 0;
        while let Some(line) = self.lines.get_mut(at) {
            if !line.has_ended(cx) {
                at += 1;
                continue;
            }
            let Line { narrow, wide, .. } = self.lines.swap_remove(at);
            cx.segs.release(narrow);
            cx.segs.release(wide);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Lines are left only when the reactor ends under us.
        for Line { link, share, .. } in self.lines.drain(..) {
            self.owner.keep(link);
            drop(share);
        }
    }
}

/// A poller in place of one that nobody needs.
struct Nobody;

impl Poller for Nobody {
    fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
        Turn::Finished
    }

    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Busy
    }

    fn name(&self) -> &str {
        "crossing (its queue has gone)"
    }
}
