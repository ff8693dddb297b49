//! The loop of a thread that has disks beneath: it gets its turns from a reactor, whose queues these disks have.

use super::Shell;
use crate::conn::Env;
use crate::mail::{Address, Msg};
use crate::media::beneath::{Ended, Engine};
use polypath_block::{Armed, Cx, Poller, Turn, Waits};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// A shell on a reactor.
pub(crate) struct Reactive {
    shell: Shell,
    /// Its epoll descriptor, as reactors know it.
    interest: u64,
    ended: Vec<Ended>,
    quiet: Vec<Address>,
    closing: bool,
    /// Dropped when nothing is under way any more.
    _alive: Sender<()>,
}

impl Reactive {
    /// `shell` with `engine`; `alive` is dropped with it.
    ///
    /// # Errors
    /// When it cannot be woken.
    pub(crate) fn new(mut shell: Shell, engine: Engine, alive: Sender<()>) -> std::io::Result<Reactive> {
        shell.register_wake()?;
        shell.engine = Some(Box::new(engine));
        let interest = Waits::unique();
        Ok(Reactive { shell, interest, ended: Vec::new(), quiet: Vec::new(), closing: false, _alive: alive })
    }

    /// Gives the disks beneath what is wanted of them, and the connections what has become of it.
    fn pump(&mut self, cx: &mut Cx<'_>, now_us: u64) -> bool {
        let Some(engine) = &mut self.shell.engine else { return false };
        let pumped = engine.pump(cx, &mut self.ended, &mut self.quiet);
        for ended in self.ended.drain(..) {
            self.shell.deliver(ended, now_us);
        }
        for reply in self.quiet.drain(..) {
            self.shell.rooms.send(reply, Msg::Quiet { to: reply });
        }
        if pumped.laid {
            // Changes on other threads may have waited for these ghosts.
            self.shell.rooms.threads.get().into_iter().flatten().for_each(|thread| thread.wake());
        }
        pumped.moved
    }

    /// `true` when all that was under way has come back.
    fn end(&mut self, cx: &mut Cx<'_>) -> bool {
        let begins = !std::mem::replace(&mut self.closing, true);
        if begins {
            self.shell.close_all();
        }
        let Some(engine) = &mut self.shell.engine else { return true };
        if begins {
            engine.close(cx);
        }
        engine.is_drained(cx)
    }
}

impl Poller for Reactive {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        let now_us = self.shell.rooms.now_us();
        if self.closing {
            let moved = self.pump(cx, now_us);
            return match self.end(cx) {
                true => Turn::Finished,
                false if moved => Turn::Busy,
                false => Turn::Idle,
            };
        }
        if self.shell.index == 0 {
            self.shell.rooms.follow_beneath();
        }
        let mut moved = self.shell.turn(now_us);
        moved |= self.pump(cx, now_us);
        if self.shell.stop {
            return if self.end(cx) { Turn::Finished } else { Turn::Busy };
        }
        if moved { Turn::Busy } else { Turn::Idle }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let now_us = self.shell.rooms.now_us();
        if !self.closing {
            // What came since is found by epoll, of which the reactor's waits.
            self.shell.calm_down();
            if self.shell.wait(0, now_us) {
                return Armed::Busy;
            }
            waits.readable(self.shell.epoll.as_raw_fd(), self.interest);
            let nap_us = self.shell.next_timer_us.saturating_sub(now_us).min(super::NAP_US);
            waits.until(cx.now.after(Duration::from_micros(nap_us)));
        }
        match &mut self.shell.engine {
            Some(engine) => engine.arm(cx, waits),
            None => Armed::Sleep,
        }
    }

    fn name(&self) -> &str {
        "target"
    }
}

impl Shell {
    /// Tells a connection, if it is there still, that a job of it is over.
    fn deliver(&mut self, ended: Ended, now_us: u64) {
        let (rooms, rules) = (self.rooms.clone(), self.rules.clone());
        let env = Env { now_us, rooms: &rooms, rules: &rules };
        let Some(i) = self.find(ended.conn) else { return };
        if let Some(sock) = &mut self.socks[i] {
            sock.conn.finished(&env, ended);
        }
        self.settle(i, now_us);
        // It may have left what came to lie until there was room.
        self.heat(i);
    }
}
