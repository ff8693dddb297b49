//! The initiator's end of a path: sends, waits, gives up, fences, connects again, as an NVMe/TCP queue does.

use crate::world::World;
use core::time::Duration;
use polypath_block::{
    Armed, Code, Cx, DeviceState, Done, Fate, FenceTerms, Health, Io, IoQueue, Proof, Refused, RefusedWhy, Status,
    Suspect, Time, Waits,
};

#[derive(Clone, Copy)]
struct Sent {
    wire: u64,
    io: Io,
    at: Time,
}

pub(crate) struct SimQueue {
    world: World,
    path: usize,
    depth: usize,
    conn: Option<usize>,
    unsent: Vec<Io>,
    sent: Vec<Sent>,
    /// Changes of lost connections, with the time from which they are quiet.
    fenced: Vec<(Time, u64, FenceTerms)>,
    /// To be told by the next poll.
    ended: Vec<(u64, Status, Proof)>,
    suspects: Vec<Suspect>,
    next_wire: u64,
    heard: Time,
    stalled: bool,
    closing: bool,
}

impl SimQueue {
    pub(crate) fn new(world: World, path: usize, depth: u16) -> Self {
        SimQueue {
            world,
            path,
            depth: usize::from(depth),
            conn: None,
            unsent: Vec::new(),
            sent: Vec::new(),
            fenced: Vec::new(),
            ended: Vec::new(),
            suspects: Vec::new(),
            next_wire: 0,
            heard: Time::ZERO,
            stalled: false,
            closing: false,
        }
    }

    fn in_flight(&self) -> usize {
        self.unsent.len() + self.sent.len() + self.fenced.len() + self.ended.len()
    }

    /// Is the connection dead, and why? A reset is seen at once, silence after its timeout.
    fn death(&self, now: Time) -> Option<(Code, &'static str)> {
        let s = self.world.lock();
        let target = &s.paths[self.path];
        let conn = &s.conns[self.conn?];
        if conn.epoch != target.epoch {
            return Some((Code::PathLost, "association lost"));
        }
        if target.reset {
            return Some((Code::PathLost, "connection reset"));
        }
        if self.sent.is_empty() {
            return None;
        }
        if now >= self.silent_at(target.options.silence_timeout_ms) {
            return Some((Code::PathTimeout, "silent"));
        }
        let oldest = self.sent.iter().map(|c| c.at).min()?;
        (now.since(oldest) >= Duration::from_millis(target.options.io_timeout_ms))
            .then_some((Code::PathTimeout, "a command got no answer"))
    }

    fn silent_at(&self, timeout_ms: u64) -> Time {
        self.heard.after(Duration::from_millis(timeout_ms))
    }

    fn lost(&mut self, now: Time, cause: Code, why: &str) {
        let Some(conn) = self.conn.take() else { return };
        self.stalled = false;
        let mut s = self.world.lock();
        if s.conns[conn].epoch == s.paths[self.path].epoch {
            s.lose_path(self.path, cause, why);
        }
        s.close_conn(conn);
        let closed_at = s.conns[conn].closed_at.unwrap_or(now);
        let terms = s.paths[self.path].options.terms();
        let status = Status::new(cause);
        for io in self.unsent.drain(..) {
            if s.chance(50) {
                let fate = Fate::NotSent;
                self.suspects.push(Suspect { tag: io.tag, fate, cause, fence: terms });
            }
            self.ended.push((io.tag, status, Proof::NeverSent));
        }
        for Sent { io, .. } in self.sent.drain(..) {
            if io.op.changes_medium() {
                self.suspects.push(Suspect { tag: io.tag, fate: Fate::Unknown, cause, fence: terms });
                self.fenced.push((closed_at.after(terms.within), io.tag, terms));
            } else {
                self.ended.push((io.tag, status, Proof::SocketClosed));
            }
        }
    }

    fn receive(&mut self, now: Time) {
        let Some(conn) = self.conn else { return };
        let mut s = self.world.lock();
        while let Some((wire, status)) = s.conns[conn].inbox.pop_front() {
            self.heard = now;
            if let Some(at) = self.sent.iter().position(|c| c.wire == wire) {
                let sent = self.sent.swap_remove(at);
                self.ended.push((sent.io.tag, status, Proof::Answered));
            }
        }
    }

    fn connect(&mut self, now: Time) {
        if !self.can_connect() {
            return;
        }
        let mut s = self.world.lock();
        self.conn = Some(s.connect(self.path));
        self.heard = now;
    }

    fn can_connect(&self) -> bool {
        let s = self.world.lock();
        let target = &s.paths[self.path];
        self.conn.is_none() && !self.closing && matches!(target.device, DeviceState::Live(_)) && !target.silent
    }
}

impl IoQueue for SimQueue {
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        if self.closing || self.conn.is_none() {
            return Err(Refused { io, why: RefusedWhy::Gone });
        }
        if self.unsent.len() + self.sent.len() + self.ended.len() >= self.depth {
            return Err(Refused { io, why: RefusedWhy::Full });
        }
        let s = self.world.lock();
        let target = &s.paths[self.path];
        let options = &target.options;
        if let Some(code) = target.fail_at_once {
            self.ended.push((io.tag, code.into(), Proof::NeverSent));
        } else if let Err(status) = options.limits.check(&io, options.blocks, 512, cx.segs) {
            self.ended.push((io.tag, status, Proof::NeverSent));
        } else if !options.limits.fits(&io, 512, cx.segs) {
            self.ended.push((io.tag, Code::Invalid.into(), Proof::NeverSent));
        } else {
            self.unsent.push(io);
        }
        Ok(())
    }

    fn kick(&mut self, cx: &mut Cx<'_>) {
        let Some(conn) = self.conn else { return };
        let mut s = self.world.lock();
        // A connection that was reset takes nothing any more: what is left here was never sent.
        let target = &s.paths[self.path];
        if target.reset || s.conns[conn].epoch != target.epoch {
            return;
        }
        if self.sent.is_empty() {
            self.heard = cx.now;
        }
        for io in self.unsent.drain(..) {
            self.next_wire += 1;
            s.send(conn, self.next_wire, io, cx.segs);
            self.sent.push(Sent { wire: self.next_wire, io, at: cx.now });
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.receive(cx.now);
        if let Some((cause, why)) = self.death(cx.now) {
            self.lost(cx.now, cause, why);
        }
        self.connect(cx.now);
        if let Some(conn) = self.conn {
            let s = self.world.lock();
            let timeout = s.paths[s.conns[conn].path].options.silence_timeout_ms;
            self.stalled = !self.sent.is_empty() && cx.now >= self.silent_at(timeout / 4);
        }
        let now = cx.now;
        done.suspects.append(&mut self.suspects);
        let ended = &mut self.ended;
        self.fenced.retain(|&(quiet_at, tag, terms)| {
            if quiet_at <= now {
                ended.push((tag, Code::PathLost.into(), terms.proof));
            }
            quiet_at > now
        });
        for (tag, status, proof) in self.ended.drain(..) {
            done.complete_with(tag, status, proof);
        }
        if self.closing
            && self.in_flight() == 0
            && let Some(conn) = self.conn.take()
        {
            self.world.lock().close_conn(conn);
        }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if !self.ended.is_empty() || !self.suspects.is_empty() || self.can_connect() {
            return Armed::Busy;
        }
        if self.death(cx.now).is_some() {
            return Armed::Busy;
        }
        let s = self.world.lock();
        if let Some(conn) = self.conn {
            if !s.conns[conn].inbox.is_empty() {
                return Armed::Busy;
            }
            waits.readable(conn as i32, conn as u64);
        }
        let options = &s.paths[self.path].options;
        if let Some(oldest) = self.sent.iter().map(|c| c.at).min() {
            if !self.stalled {
                waits.until(self.silent_at(options.silence_timeout_ms / 4));
            }
            waits.until(self.silent_at(options.silence_timeout_ms));
            waits.until(oldest.after(Duration::from_millis(options.io_timeout_ms)));
        }
        self.fenced.iter().for_each(|f| waits.until(f.0));
        Armed::Sleep
    }

    fn health(&self) -> Health {
        match self.conn {
            _ if self.closing => Health::Down,
            None => Health::Down,
            Some(_) if self.stalled => Health::Stalled,
            Some(_) => Health::Ready,
        }
    }

    fn close(&mut self, _cx: &mut Cx<'_>) {
        self.closing = true;
    }

    fn is_drained(&self) -> bool {
        self.closing && self.in_flight() == 0 && self.suspects.is_empty()
    }
}
