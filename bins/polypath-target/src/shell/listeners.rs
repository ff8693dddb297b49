//! Listeners of a thread's loop, and the connections that come of them.

use super::{LISTENER, RX, Shell};
use crate::conn::Conn;
use crate::mail::{ListenerAction, Msg};
use crate::shared::{ConnInfo, HostLog, lock};
use crate::sock::Sock;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Shell {
    /// Does to listener `index` what is wanted, and to the connections of it that are this thread's; returns how many those are.
    pub(super) fn listener(&mut self, index: usize, action: ListenerAction, now_us: u64) -> Result<usize, String> {
        let mine = move |s: &Sock| s.conn.info().listener == index;
        let n = match action {
            ListenerAction::Drop => {
                let mut n = 0;
                for sock in self.socks.iter_mut().flatten().filter(|s| mine(s) && !s.frozen) {
                    // Deleting fails only for one that is not there, which is as good.
                    let _ = epoll::delete(&self.epoll, &sock.fd);
                    sock.frozen = true;
                    sock.conn.info().frozen.store(true, Ordering::Relaxed);
                    n += 1;
                }
                n
            }
            ListenerAction::Restore => self.break_off(|s| mine(s) && s.frozen, true, now_us),
            ListenerAction::Close => self.break_off(mine, true, now_us),
            ListenerAction::Open => 0,
        };
        if self.index != 0 {
            return Ok(n);
        }
        let token = epoll::EventData::new_u64(LISTENER + index as u64);
        let slot = self.listeners.get_mut(index).ok_or("no such listener")?;
        match (action, &slot) {
            (ListenerAction::Drop, Some(l)) => {
                let _ = epoll::delete(&self.epoll, l);
            }
            (ListenerAction::Restore, Some(l)) => {
                let _ = epoll::delete(&self.epoll, l);
                epoll::add(&self.epoll, l, token, epoll::EventFlags::IN).map_err(|e| e.to_string())?;
            }
            (ListenerAction::Close, Some(_)) => *slot = None,
            (ListenerAction::Open, None) => {
                let address = self.rooms.listeners[index].address;
                let l = bind(address).map_err(|e| format!("listen on {address}: {e}"))?;
                epoll::add(&self.epoll, &l, token, epoll::EventFlags::IN).map_err(|e| e.to_string())?;
                *slot = Some(l);
            }
            _ => {}
        }
        Ok(n)
    }

    pub(super) fn accept(&mut self, index: usize, now_us: u64) {
        for _ in 0..64 {
            let Some(Some(listener)) = self.listeners.get(index) else { return };
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    if let Some(others) = HostLog::may(&self.rooms.log.accept, now_us) {
                        tracing::warn!(%error, others, "a host could not be taken");
                    }
                    // What is missing, descriptors mostly, is not there the next moment.
                    let _ = epoll::delete(&self.epoll, listener);
                    self.paused.push(index);
                    return;
                }
            };
            let mut conns = lock(&self.rooms.conns);
            if conns.len() >= self.rooms.config.max_connections {
                if let Some(others) = HostLog::may(&self.rooms.log.accept, now_us) {
                    tracing::warn!(%peer, limit = conns.len(), others, "too many connections; closed");
                }
                continue;
            }
            if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_err() {
                continue;
            }
            let thread = self.next_thread % self.rooms.config.threads;
            self.next_thread += 1;
            let info = Arc::new(ConnInfo {
                id: self.rooms.next_conn.fetch_add(1, Ordering::Relaxed),
                listener: index,
                thread,
                peer: Some(peer),
                local: stream.local_addr().ok(),
                queue: u32::MAX.into(),
                ..ConnInfo::default()
            });
            conns.insert(info.id, info.clone());
            drop(conns);
            self.rooms.counters.accepted.fetch_add(1, Ordering::Relaxed);
            let socket = OwnedFd::from(stream);
            match self.rooms.threads.get().and_then(|t| t.get(thread)) {
                Some(other) if thread != self.index => other.send(Msg::Adopt { socket, info }),
                _ => self.adopt(socket, info, now_us),
            }
        }
    }

    /// Those that were left alone for a while are listened to again.
    pub(super) fn listen_again(&mut self) {
        for index in std::mem::take(&mut self.paused) {
            if let Some(Some(listener)) = self.listeners.get(index)
                && !self.rooms.listeners[index].dropped.load(Ordering::Acquire)
            {
                // One that was opened again is there already.
                let token = epoll::EventData::new_u64(LISTENER + index as u64);
                let _ = epoll::add(&self.epoll, listener, token, epoll::EventFlags::IN);
            }
        }
    }

    pub(super) fn adopt(&mut self, fd: OwnedFd, info: Arc<ConnInfo>, now_us: u64) {
        let i = self.socks.iter().position(Option::is_none).unwrap_or_else(|| {
            self.socks.push(None);
            self.socks.len() - 1
        });
        let interest = epoll::EventFlags::IN;
        if let Err(error) = epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(i as u64), interest) {
            tracing::warn!(%error, "epoll");
            lock(&self.rooms.conns).remove(&info.id);
            return;
        }
        let config = &self.rooms.config;
        let largest = config.max_h2c_data.max(config.in_capsule).max(config.iscsi.max_recv_data);
        let room = RX.max(2 * (largest as usize + 1536));
        let protocol = self.rooms.listeners[info.listener].protocol;
        self.socks[i] = Some(Box::new(Sock {
            fd,
            conn: Conn::new(protocol, info, &self.rooms, now_us),
            rx: vec![0; room],
            start: 0,
            end: 0,
            cold: 0,
            hot: false,
            blocked: false,
            interest,
            frozen: false,
            stalled: false,
            discarded: false,
            trickle: None,
            quiet_until_us: 0,
            linger_until_us: None,
            flush_until_us: None,
            held_back: false,
            dead: false,
        }));
        self.heat(i);
        self.apply_rules(i, now_us);
    }
}

/// A listening socket, non-blocking.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
