//! A last flush of a disk that nobody uses any more.

use polypath::block::{Armed, Code, Cx, Done, Host, Io, IoQueue, Poller, QueueConfig, Status, Turn, Waits};
use polypath::multipath::Group;
use polypath::{Device, reactor};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// How soon a flush is offered again to a queue that takes none.
const RETRY: Duration = Duration::from_millis(5);

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flushed {
    /// Everything is durable.
    Yes,
    /// Something was lost.
    Lost,
    /// Nobody knows, for this reason.
    No(Code),
}

/// Makes durable what `group` has in volatile caches, on the reactor `host`. Takes at most `limit`.
pub(crate) fn flush(group: &Arc<Group>, host: &dyn Host, limit: Duration) -> Flushed {
    match group.state().info() {
        Some(info) if !info.limits.write_cache => return Flushed::Yes,
        Some(_) if group.availability().usable_paths > 0 => {}
        _ => return Flushed::No(Code::NoPath),
    }
    let (tell, told) = sync_channel(1);
    let flushed = group.clone();
    let until = reactor::now().after(limit);
    host.spawn(Box::new(move |_cx| -> Box<dyn Poller> {
        let queue = flushed.open_queue(QueueConfig { depth: 1 });
        Box::new(LastFlush { queue: queue.ok(), sent: false, until, tell: Some(tell), done: Done::with_capacity(1) })
    }));
    // Whoever flushes keeps the time; he may be late, or gone.
    match told.recv_timeout(limit + RETRY * 10) {
        // Not if somebody else may have answered.
        Ok(status) if status.is_ok() && group.is_flushed() => Flushed::Yes,
        Ok(status) if status.is_ok() => Flushed::No(Code::PathIdentity),
        Ok(status) if status.may_have_dropped() => Flushed::Lost,
        Ok(status) => Flushed::No(status.code),
        Err(_) => Flushed::No(Code::PathTimeout),
    }
}

struct LastFlush {
    queue: Option<Box<dyn IoQueue>>,
    sent: bool,
    until: polypath::block::Time,
    tell: Option<SyncSender<Status>>,
    done: Done,
}

impl LastFlush {
    fn end(&mut self, cx: &mut Cx<'_>, status: Status) {
        if let Some(tell) = self.tell.take() {
            // There is room for one; he may have gone.
            let _ = tell.try_send(status);
        }
        if let Some(queue) = &mut self.queue {
            queue.close(cx);
        }
    }
}

impl Poller for LastFlush {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        let Some(queue) = &mut self.queue else {
            self.end(cx, Code::Gone.into());
            return Turn::Finished;
        };
        if !self.sent && self.tell.is_some() {
            self.sent = queue.submit(cx, Io::flush(0)).is_ok();
        }
        queue.kick(cx);
        queue.poll(cx, &mut self.done);
        self.done.suspects.clear();
        if let Some(completion) = self.done.completions.pop() {
            self.end(cx, completion.status);
        } else if self.tell.is_some() && cx.now >= self.until {
            self.end(cx, Code::PathTimeout.into());
        }
        let over = self.tell.is_none() && self.queue.as_ref().is_none_or(|queue| queue.is_drained());
        if over { Turn::Finished } else { Turn::Idle }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.tell.is_some() {
            waits.until(if self.sent { self.until } else { cx.now.after(RETRY) });
        }
        match &mut self.queue {
            Some(queue) => queue.arm(cx, waits),
            None => Armed::Busy,
        }
    }

    fn name(&self) -> &str {
        "last-flush"
    }
}
