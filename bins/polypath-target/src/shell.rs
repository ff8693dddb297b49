//! The shell around the state machines: one epoll loop per thread, with an adaptive spin.
//!
//! A connection belongs to one thread for life. Everything that one pass has to say on a connection leaves in one `sendmsg`;
//! what has come is read into one large buffer. Connections on which something moved lately are polled directly, the others
//! through epoll.

mod listeners;
mod reactive;
#[cfg(test)]
mod tests;

pub(crate) use listeners::bind;
pub(crate) use reactive::Reactive;

use crate::conn::{self, Conn, Ending, Env};
use crate::faults::{Kind, Rules};
use crate::mail::Msg;
use crate::media::beneath::Engine;
use crate::rooms::Rooms;
use crate::shared::lock;
use crate::sock::Sock;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown, sockopt};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const WAKE: u64 = u64::MAX;
const LISTENER: u64 = 1 << 32;
/// Receive buffer of a connection, at least.
const RX: usize = 256 << 10;
/// A connection that had nothing for so many polls goes back to epoll.
const COLD_AFTER: u32 = 512;
/// How long a thread sleeps at most, in microseconds.
const NAP_US: u64 = 50_000;
/// How long a connection that was given up may stay to let the host read why.
const LINGER_US: u64 = 1_000_000;
/// How long a host may take to read what a connection that ends has to say.
const FLUSH_US: u64 = 10_000_000;

/// One thread's loop.
pub(crate) struct Shell {
    index: usize,
    rooms: Arc<Rooms>,
    epoll: OwnedFd,
    listeners: Vec<Option<TcpListener>>,
    /// Listeners that are not listened to until the next look at the time: a host could not be taken.
    paused: Vec<usize>,
    socks: Vec<Option<Box<Sock>>>,
    hot: Vec<usize>,
    rules: Rules,
    rules_version: u64,
    events_version: u64,
    next_timer_us: u64,
    next_thread: usize,
    turns: u32,
    stop: bool,
    /// What is under way on disks beneath, where there are any: the thread is a reactor's then (`beneath.rs`).
    engine: Option<Box<Engine>>,
}

/// What a thread's loop is made of, on whichever thread it will be.
pub(crate) struct Seat {
    index: usize,
    rooms: Arc<Rooms>,
    epoll: OwnedFd,
    listeners: Vec<TcpListener>,
}

impl Seat {
    /// `listeners` are for the first thread; the others have none.
    pub(crate) fn new(index: usize, rooms: Arc<Rooms>, listeners: Vec<TcpListener>) -> std::io::Result<Seat> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (i, listener) in listeners.iter().enumerate() {
            epoll::add(&epoll, listener, epoll::EventData::new_u64(LISTENER + i as u64), epoll::EventFlags::IN)?;
        }
        Ok(Seat { index, rooms, epoll, listeners })
    }
}

impl Shell {
    /// On the thread that it is the loop of.
    pub(crate) fn new(seat: Seat) -> Shell {
        let Seat { index, rooms, epoll, listeners } = seat;
        Shell {
            index,
            rooms,
            epoll,
            listeners: listeners.into_iter().map(Some).collect(),
            paused: Vec::new(),
            socks: Vec::new(),
            hot: Vec::new(),
            rules: Rules::default(),
            rules_version: u64::MAX,
            events_version: 0,
            next_timer_us: 0,
            next_thread: 0,
            turns: 0,
            stop: false,
            engine: None,
        }
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.register_wake() {
            tracing::error!(%error, "thread cannot start");
            return;
        }
        let mut busy_us = self.rooms.now_us();
        while !self.stop {
            let now_us = self.rooms.now_us();
            let moved = self.turn(now_us);
            if moved {
                busy_us = now_us;
            } else if now_us.saturating_sub(busy_us) >= self.rooms.config.spin_us {
                let nap_us = self.next_timer_us.saturating_sub(now_us).min(NAP_US);
                self.calm_down();
                if self.wait(nap_us, now_us) {
                    busy_us = self.rooms.now_us();
                }
            }
        }
        self.close_all();
    }

    /// One pass over everything that is there, without sleeping. `true` when something moved.
    fn turn(&mut self, now_us: u64) -> bool {
        self.look_around(now_us);
        let mut moved = self.poll_hot(now_us);
        self.turns = self.turns.wrapping_add(1);
        if !moved || self.turns.is_multiple_of(32) {
            moved |= self.wait(0, now_us);
        }
        if now_us >= self.next_timer_us {
            // What has come is read before silence is judged: this thread may have been held up.
            moved |= self.wait(0, now_us);
            self.timers(now_us);
        }
        moved
    }

    fn close_all(&mut self) {
        for sock in self.socks.iter_mut().flatten() {
            sock.conn.close(&self.rooms);
            if let Some(engine) = &mut self.engine {
                engine.abandon(sock.conn.info().id);
            }
        }
    }

    fn register_wake(&self) -> std::io::Result<()> {
        let threads = self.rooms.threads.get().ok_or_else(|| std::io::Error::other("threads are not set up"))?;
        epoll::add(&self.epoll, threads[self.index].event(), epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(())
    }

    /// Follows changes that other threads have made.
    #[inline]
    fn look_around(&mut self, now_us: u64) {
        let Some(me) = self.rooms.threads.get().and_then(|t| t.get(self.index)) else { return };
        if me.has_mail() {
            let mail = me.take();
            mail.into_iter().for_each(|msg| self.message(msg, now_us));
        }
        self.follow_rules(now_us);
        let events = self.rooms.events.load(Ordering::Acquire);
        if events != self.events_version {
            self.events_version = events;
            let (rooms, rules) = (self.rooms.clone(), self.rules.clone());
            let env = Env { now_us, rooms: &rooms, rules: &rules };
            for i in 0..self.socks.len() {
                if let Some(sock) = &mut self.socks[i] {
                    sock.conn.look_around(&env);
                    self.settle(i, now_us);
                }
            }
        }
    }

    /// Takes over the faults in force. Also called between receiving and executing, so that a command that was sent after a
    /// fault was made never slips past it.
    #[inline]
    fn follow_rules(&mut self, now_us: u64) {
        let version = self.rooms.faults.version();
        if version != self.rules_version {
            self.rules_version = version;
            self.rules = self.rooms.faults.rules();
            for i in 0..self.socks.len() {
                self.apply_rules(i, now_us);
            }
        }
    }

    fn message(&mut self, msg: Msg, now_us: u64) {
        let (rooms, rules) = (self.rooms.clone(), self.rules.clone());
        let env = Env { now_us, rooms: &rooms, rules: &rules };
        match msg {
            Msg::Adopt { socket, info } => self.adopt(socket, info, now_us),
            Msg::Landed { to, result } => self.on(to.conn, now_us, |conn| conn.landed(&env, to.tag, result)),
            Msg::Aborted { to, aborted } => self.on(to.conn, now_us, |conn| conn.aborted(&env, to.tag, aborted)),
            Msg::Quiet { to } => self.on(to.conn, now_us, |conn| conn.quiet(&env, to.tag)),
            Msg::Abort { conn, victim, reply } => {
                let i = self.find(conn);
                let owner = i.and_then(|i| self.socks[i].as_mut()).map(|sock| &mut sock.conn);
                conn::abort(&env, owner, victim, reply);
                if let Some(i) = i {
                    self.settle(i, now_us);
                }
            }
            Msg::Quiesce { what, reply } => {
                for i in 0..self.socks.len() {
                    if let Some(sock) = &mut self.socks[i] {
                        sock.conn.quiesce(&env, &what);
                        self.settle(i, now_us);
                    }
                }
                let store = self.rooms.stores.get(what.store);
                let meant = |index: usize| store.is_some_and(|store| store.is_on(index, what.unit));
                let waits = self.engine.as_mut().is_some_and(|engine| {
                    // Hosts that come, ask and go are not to gather while a disk does not answer.
                    let there = lock(&rooms.conns);
                    engine.forget(|conn| !there.contains_key(&conn));
                    engine.watch(meant, reply)
                });
                if !waits {
                    self.rooms.send(reply, Msg::Quiet { to: reply });
                }
            }
            Msg::Announce { scope, what, reply } => {
                let mut n = 0;
                for i in 0..self.socks.len() {
                    if let Some(sock) = self.socks[i].as_mut().filter(|s| scope.matches(&s.conn.who())) {
                        n += usize::from(sock.conn.announce(&env, what));
                        self.settle(i, now_us);
                    }
                }
                // Whoever asked may have gone; nobody else needs the number.
                let _ = reply.send(n);
            }
            Msg::Break { scope, reset, reply } => {
                let n = self.break_off(|s| scope.matches(&s.conn.who()), reset, now_us);
                // Whoever asked may have gone; nobody else needs the number.
                let _ = reply.send(n);
            }
            Msg::Listener { index, action, reply } => {
                let result = self.listener(index, action, now_us);
                let _ = reply.send(result);
            }
            Msg::Stop => self.stop = true,
        }
    }

    fn find(&self, conn: u64) -> Option<usize> {
        self.socks.iter().position(|s| s.as_ref().is_some_and(|s| s.conn.info().id == conn))
    }

    /// Has connection `conn`, if it is there still, do something.
    fn on(&mut self, conn: u64, now_us: u64, f: impl FnOnce(&mut Conn)) {
        if let Some(i) = self.find(conn)
            && let Some(sock) = &mut self.socks[i]
        {
            f(&mut sock.conn);
            self.settle(i, now_us);
        }
    }

    /// Resets or closes every connection that `which` says; returns how many.
    fn break_off(&mut self, which: impl Fn(&Sock) -> bool, reset: bool, now_us: u64) -> usize {
        let mut n = 0;
        for i in 0..self.socks.len() {
            let Some(sock) = self.socks[i].as_mut().filter(|s| which(s)) else { continue };
            n += 1;
            if reset {
                // Failure leaves an ordinary close, which ends it as well.
                let _ = sockopt::set_socket_linger(&sock.fd, Some(Duration::ZERO));
                self.drop_sock(i);
            } else {
                let _ = shutdown(&sock.fd, Shutdown::Write);
                sock.conn.end(Ending::AfterFlush);
                sock.linger_until_us = Some(now_us + LINGER_US);
                self.let_go(i);
            }
        }
        n
    }

    fn heat(&mut self, i: usize) {
        if let Some(sock) = &mut self.socks[i] {
            sock.cold = 0;
            if !sock.hot {
                sock.hot = true;
                self.hot.push(i);
            }
        }
    }

    /// Works out which lasting faults a connection is under.
    fn apply_rules(&mut self, i: usize, now_us: u64) {
        let Some(sock) = &mut self.socks[i] else { return };
        let who = sock.conn.who();
        let of_mine = |r: &&Arc<crate::faults::Rule>| r.scope.matches(&who) && r.live(now_us);
        sock.stalled = self.rules.iter().filter(of_mine).any(|r| r.kind == Kind::Stall);
        sock.trickle = self.rules.iter().filter(of_mine).find_map(|r| match r.kind {
            Kind::Trickle { bytes, us } => Some((bytes, us)),
            _ => None,
        });
        if !sock.stalled && sock.discarded {
            // What came meanwhile is lost: the stream cannot go on.
            let _ = sockopt::set_socket_linger(&sock.fd, Some(Duration::ZERO));
            self.drop_sock(i);
        }
    }

    #[inline]
    fn poll_hot(&mut self, now_us: u64) -> bool {
        let mut moved = false;
        let mut at = 0;
        while at < self.hot.len() {
            let i = self.hot[at];
            let did = self.service(i, now_us);
            moved |= did;
            if self.hot.get(at) != Some(&i) {
                // service closed it, and closing took it off this list
                continue;
            }
            let keep = match &mut self.socks[i] {
                None => false,
                Some(sock) => {
                    sock.cold = if did { 0 } else { sock.cold + 1 };
                    let keep = sock.cold < COLD_AFTER && !sock.frozen;
                    sock.hot = keep;
                    keep
                }
            };
            if keep {
                at += 1;
            } else {
                self.hot.swap_remove(at);
            }
        }
        moved
    }

    /// Before a sleep: everything is left to epoll.
    fn calm_down(&mut self) {
        for i in std::mem::take(&mut self.hot) {
            if let Some(sock) = &mut self.socks[i] {
                sock.hot = false;
            }
        }
    }

    fn wait(&mut self, timeout_us: u64, now_us: u64) -> bool {
        let mut list = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
        let timeout = Timespec { tv_sec: (timeout_us / 1_000_000) as _, tv_nsec: (timeout_us % 1_000_000 * 1000) as _ };
        let n = match epoll::wait(&self.epoll, &mut list[..], Some(&timeout)) {
            Ok(n) => n,
            Err(Errno::INTR) => 0,
            Err(error) => {
                tracing::error!(%error, "epoll_wait");
                self.stop = true;
                0
            }
        };
        let now_us = if timeout_us > 0 { self.rooms.now_us() } else { now_us };
        let mut moved = false;
        for event in &list[..n] {
            match event.data.u64() {
                WAKE => {
                    let mut sink = [0; 8];
                    if let Some(me) = self.rooms.threads.get().and_then(|t| t.get(self.index)) {
                        // Empty already: fine.
                        let _ = rustix::io::read(me.event(), &mut sink[..]);
                    }
                    moved = true;
                }
                token if token >= LISTENER => {
                    self.accept((token - LISTENER) as usize, now_us);
                    moved = true;
                }
                token => {
                    let i = token as usize;
                    let (flags, over) = (event.flags, epoll::EventFlags::ERR | epoll::EventFlags::HUP);
                    if let Some(Some(sock)) = self.socks.get_mut(i)
                        && flags.intersects(over)
                        && sock.is_full()
                    {
                        // Reading would tell, and there is no room to read.
                        sock.dead = true;
                        self.settle(i, now_us);
                    }
                    if self.socks.get(i).is_some_and(|s| s.as_ref().is_some_and(|s| !s.hot)) {
                        self.heat(i);
                        moved |= self.service(i, now_us);
                    }
                }
            }
        }
        moved
    }

    /// One pass over one connection. `true` when something moved.
    #[inline]
    fn service(&mut self, i: usize, now_us: u64) -> bool {
        let Some(sock) = &mut self.socks[i] else { return false };
        if sock.frozen || now_us < sock.quiet_until_us {
            return false;
        }
        let moved;
        if sock.linger_until_us.is_some() || sock.stalled {
            moved = sock.discard();
        } else {
            let came = sock.fill(&self.rooms, now_us);
            self.follow_rules(now_us);
            let Some(sock) = &mut self.socks[i] else { return true };
            if sock.stalled {
                sock.discarded |= sock.end > 0;
                (sock.start, sock.end) = (0, 0);
                return came;
            }
            moved = self.take_in(i, now_us) || came;
        }
        self.settle(i, now_us);
        moved
    }

    /// Lets a connection have what was received. `true` when it took something.
    #[inline]
    fn take_in(&mut self, i: usize, now_us: u64) -> bool {
        let Some(sock) = &mut self.socks[i] else { return false };
        let env = Env { now_us, rooms: &self.rooms, rules: &self.rules };
        let before = sock.conn.is_joined();
        let took = sock.take_in(&env);
        if before != sock.conn.is_joined() {
            // A controller was found: faults may name it, and its keep alive has a deadline.
            self.next_timer_us = 0;
            self.apply_rules(i, now_us);
        }
        took
    }

    /// Sends what waits, goes on with what was left until there was room, and ends what is over.
    #[inline]
    fn settle(&mut self, i: usize, now_us: u64) {
        loop {
            self.send(i, now_us);
            // Nothing more may come that would wake us for it.
            let goes_on = self.socks[i].as_ref().is_some_and(|sock| sock.may_go_on());
            if !goes_on || !self.take_in(i, now_us) {
                break;
            }
        }
        let Some(sock) = &mut self.socks[i] else { return };
        if sock.frozen {
            if sock.conn.ending().is_some() {
                // Its controller is gone, but the network has eaten the connection: nobody is told.
                self.let_go(i);
            }
            return;
        }
        self.end_flushed(i, now_us);
        let Some(sock) = &mut self.socks[i] else { return };
        let deadline_us =
            sock.conn.deadline_us().min(if sock.quiet_until_us > now_us { sock.quiet_until_us } else { u64::MAX });
        self.next_timer_us = self.next_timer_us.min(deadline_us);
        let over = sock.dead || sock.conn.ending() == Some(Ending::Now);
        if over {
            self.drop_sock(i);
            return;
        }
        let mut interest = epoll::EventFlags::empty();
        interest.set(epoll::EventFlags::IN, now_us >= sock.quiet_until_us && !sock.is_full());
        interest.set(epoll::EventFlags::OUT, sock.blocked);
        if interest != sock.interest {
            sock.interest = interest;
            if let Err(error) = epoll::modify(&self.epoll, &sock.fd, epoll::EventData::new_u64(i as u64), interest) {
                tracing::warn!(%error, "epoll");
            }
        }
    }

    /// Takes what a connection wants of disks beneath there, and sends what waits.
    #[inline]
    fn send(&mut self, i: usize, now_us: u64) {
        let Some(sock) = &mut self.socks[i] else { return };
        if let Some(engine) = &mut self.engine {
            sock.give_orders(engine);
        }
        if sock.conn.out().len() == 0 {
            sock.blocked = false;
        } else if !sock.stalled && !sock.frozen {
            let listener = &self.rooms.listeners[sock.conn.info().listener];
            sock.flush(listener, now_us);
        }
    }

    /// A connection that is to end after its output has a limit for that; then the host may read why.
    fn end_flushed(&mut self, i: usize, now_us: u64) {
        let Some(sock) = &mut self.socks[i] else { return };
        if sock.conn.ending() != Some(Ending::AfterFlush) || sock.linger_until_us.is_some() {
            return;
        }
        if sock.conn.out().len() > 0 {
            // What a fault of ours holds back is not the host's doing.
            if sock.blocked && !sock.stalled {
                let until_us = *sock.flush_until_us.get_or_insert(now_us + FLUSH_US);
                sock.dead |= now_us >= until_us;
                self.next_timer_us = self.next_timer_us.min(until_us);
            }
            return;
        }
        let _ = shutdown(&sock.fd, Shutdown::Write);
        sock.linger_until_us = Some(now_us + LINGER_US);
        self.next_timer_us = self.next_timer_us.min(now_us + LINGER_US);
        self.let_go(i);
    }

    /// Nothing more becomes of what a connection wanted; what is with a disk beneath is a ghost.
    fn let_go(&mut self, i: usize) {
        let Some(sock) = &mut self.socks[i] else { return };
        if let Some(engine) = &mut self.engine {
            engine.abandon(sock.conn.info().id);
        }
        sock.conn.close(&self.rooms);
    }

    fn drop_sock(&mut self, i: usize) {
        self.let_go(i);
        if let Some(sock) = self.socks[i].take() {
            lock(&self.rooms.conns).remove(&sock.conn.info().id);
            self.rooms.counters.closed.fetch_add(1, Ordering::Relaxed);
            self.hot.retain(|&h| h != i);
        }
    }

    /// Does everything that is due and finds out when the next thing is.
    fn timers(&mut self, now_us: u64) {
        self.next_timer_us = now_us + NAP_US;
        let (rooms, rules) = (self.rooms.clone(), self.rules.clone());
        let env = Env { now_us, rooms: &rooms, rules: &rules };
        self.listen_again();
        if self.index == 0 {
            rooms.apply_held(now_us);
            self.next_timer_us = self.next_timer_us.min(rooms.held.next_us());
        }
        for i in 0..self.socks.len() {
            let Some(sock) = &mut self.socks[i] else { continue };
            sock.conn.tick(&env);
            if let Some(next_us) = sock.conn.keep_alive(&rooms, now_us) {
                self.next_timer_us = self.next_timer_us.min(next_us);
            }
            if sock.linger_until_us.is_some_and(|t| now_us >= t) {
                sock.dead = true;
            }
            if sock.quiet_until_us != 0 && now_us >= sock.quiet_until_us {
                sock.quiet_until_us = 0;
                self.heat(i);
                self.service(i, now_us);
            } else {
                self.settle(i, now_us);
            }
        }
    }
}
