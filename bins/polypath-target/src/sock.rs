//! One connection with its socket: receiving once a pass, sending everything at once.

use crate::conn::{Conn, Env};
use crate::media::beneath::Engine;
use crate::out::Chunk;
use crate::shared::Shared;
use polypath_net::{IoList, send_on};
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::cell::RefCell;
use std::sync::atomic::Ordering;

thread_local! {
    /// Room for what one send names; it belongs to the thread because it cannot be moved to another.
    static LIST: RefCell<IoList> = RefCell::new(IoList::new());
}

/// One connection and its socket.
pub(crate) struct Sock {
    pub(crate) fd: OwnedFd,
    pub(crate) conn: Conn,
    pub(crate) rx: Vec<u8>,
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) cold: u32,
    pub(crate) hot: bool,
    pub(crate) blocked: bool,
    pub(crate) interest: epoll::EventFlags,
    /// Reads nothing, says nothing, not even that it is gone.
    pub(crate) frozen: bool,
    /// Reads and says nothing.
    pub(crate) stalled: bool,
    pub(crate) discarded: bool,
    pub(crate) trickle: Option<(usize, u64)>,
    pub(crate) quiet_until_us: u64,
    pub(crate) linger_until_us: Option<u64>,
    /// It ends once everything has been sent, and is given no longer than this for it.
    pub(crate) flush_until_us: Option<u64>,
    /// The connection has left what it was given, until something has left or is over.
    pub(crate) held_back: bool,
    pub(crate) dead: bool,
}

impl Sock {
    /// Takes what the connection wants of disks beneath to where it is done.
    #[inline]
    pub(crate) fn give_orders(&mut self, engine: &mut Engine) {
        if !self.conn.orders().is_empty() {
            let conn = self.conn.info().id;
            self.conn.orders().drain(..).for_each(|order| engine.order(conn, order));
        }
    }

    /// Receives once. `true` when something came.
    #[inline]
    pub(crate) fn fill(&mut self, shared: &Shared, now_us: u64) -> bool {
        let bandwidth = &shared.listeners[self.conn.info().listener].bandwidth;
        let allowed = bandwidth.allowed(now_us);
        if allowed == 0 {
            self.quiet_until_us = now_us + 1000;
            return false;
        }
        if self.end == self.rx.len() {
            return false;
        }
        let to = self.end + (self.rx.len() - self.end).min(allowed);
        match recv(&self.fd, &mut self.rx[self.end..to], RecvFlags::empty()) {
            Ok((_, 0)) => self.dead = true,
            Ok((_, n)) => {
                self.end += n;
                bandwidth.spend(n);
                self.conn.info().bytes_in.fetch_add(n as u64, Ordering::Relaxed);
                return true;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.dead = true,
        }
        false
    }

    /// Lets the connection have what was received. `true` when it took something.
    #[inline]
    pub(crate) fn take_in(&mut self, env: &Env<'_>) -> bool {
        if self.start == self.end {
            return false;
        }
        let taken = self.conn.receive(env, &self.rx[self.start..self.end]);
        self.start += taken;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.end > self.rx.len() / 2 {
            self.rx.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.held_back = self.end > 0 && !self.conn.is_taking();
        taken > 0
    }

    /// There is no room for what comes, and none is made by throwing it away.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.end == self.rx.len() && !self.stalled && self.linger_until_us.is_none()
    }

    /// The connection may have what it has left before.
    #[inline]
    pub(crate) fn may_go_on(&self) -> bool {
        self.held_back && !self.frozen && !self.stalled && self.linger_until_us.is_none() && self.conn.is_taking()
    }

    /// Reads and throws away.
    pub(crate) fn discard(&mut self) -> bool {
        match recv(&self.fd, &mut self.rx[..], RecvFlags::empty()) {
            Ok((_, 0)) => self.dead = true,
            Ok(_) => {
                self.discarded = self.stalled;
                return true;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.dead = true,
        }
        false
    }

    /// Sends what waits, as much as the socket takes and the faults allow.
    #[inline]
    pub(crate) fn flush(&mut self, listener: &crate::shared::Listener, now_us: u64) {
        self.blocked = false;
        while self.conn.out().len() > 0 && now_us >= self.quiet_until_us {
            let mut limit = listener.bandwidth.allowed(now_us);
            if limit == 0 {
                self.quiet_until_us = now_us + 1000;
                return;
            }
            if let Some((bytes, us)) = self.trickle {
                limit = limit.min(bytes);
                self.quiet_until_us = now_us.saturating_add(us);
            }
            let (out, fd) = (self.conn.out(), self.fd.as_fd());
            let (result, bytes) = LIST.with_borrow_mut(|list| {
                polypath_memory::with(|table| {
                    let mut gather = list.gather();
                    out.visit(limit, |chunk| match chunk {
                        Chunk::Bytes(bytes) => gather.bytes(bytes),
                        // A medium that is gone ends the list; an empty one ends the connection below.
                        Chunk::Medium(segment) => table.view(segment).is_ok_and(|view| gather.view(view)),
                    });
                    (send_on(fd, &gather), gather.len())
                })
            });
            match result {
                Ok(Some(sent)) if bytes > 0 => {
                    listener.bandwidth.spend(sent);
                    self.conn.info().bytes_out.fetch_add(sent as u64, Ordering::Relaxed);
                    let saved = self.conn.out_mut().advance(sent, |segment, to| {
                        polypath_memory::with(|table| table.view(segment).map(|view| view.copy_out(to)).map(|_| ()))
                    });
                    if saved.is_err() {
                        self.dead = true;
                        return;
                    }
                    if sent < bytes {
                        self.blocked = true;
                        return;
                    }
                }
                Ok(None) => {
                    self.blocked = true;
                    return;
                }
                Ok(Some(_)) | Err(_) => {
                    self.dead = true;
                    return;
                }
            }
        }
    }
}
