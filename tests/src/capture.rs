//! A TCP proxy that keeps what passes through it: how golden octets of two outside peers are recorded.
//!
//! It looks at nothing and changes nothing. One thread accepts, two per connection carry the octets; both directions of every
//! connection are kept whole in memory, in the order in which connections were accepted.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What one connection carried.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// Octets of the side that connected.
    pub host_to_controller: Vec<u8>,
    /// Octets of the side that accepted.
    pub controller_to_host: Vec<u8>,
    open_directions: u8,
}

impl Recording {
    /// Whether both directions have ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.open_directions == 0
    }
}

#[derive(Debug, Default)]
struct Shared {
    recordings: Mutex<Vec<Recording>>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Recording>> {
        self.recordings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, connection: usize, change: impl FnOnce(&mut Recording)) {
        change(&mut self.lock()[connection]);
        self.changed.notify_all();
    }
}

/// The proxy. Dropping it ends the accepting; connections end when their peers do.
#[derive(Debug)]
pub struct CapturingProxy {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    /// Its port of 127.0.0.1.
    pub port: u16,
}

impl CapturingProxy {
    /// Listens on a port of 127.0.0.1 and carries every connection on to `upstream`, another port of 127.0.0.1.
    ///
    /// # Errors
    /// No port to listen on.
    pub fn start(upstream: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the proxy cannot listen")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let for_acceptor = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, upstream, &for_acceptor));
        Ok(CapturingProxy { shared, acceptor: Some(acceptor), port })
    }

    /// Waits until `enough` is true of all recordings so far.
    ///
    /// # Errors
    /// Not within `limit`; `what` names the thing waited for.
    pub fn wait_for(&self, what: &str, limit: Duration, enough: impl Fn(&[Recording]) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut recordings = self.shared.lock();
        while !enough(&recordings) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the proxy did not see {what} within {limit:?}");
            }
            recordings = self.shared.changed.wait_timeout(recordings, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Waits until every connection has ended and returns what they carried.
    ///
    /// # Errors
    /// One is still open after `limit`.
    pub fn finish(self, limit: Duration) -> Result<Vec<Recording>> {
        self.wait_for("the end of every connection", limit, |all| all.iter().all(Recording::is_closed))?;
        let recordings = std::mem::take(&mut *self.shared.lock());
        Ok(recordings)
    }
}

impl Drop for CapturingProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // the acceptor looks at `stop` after every connection, so one is given to it
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, upstream: u16, shared: &Arc<Shared>) {
    for host in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(host) = host else { continue };
        let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, upstream));
        let Ok(controller) = TcpStream::connect_timeout(&upstream, Duration::from_secs(10)) else { continue };
        let _ = (host.set_nodelay(true), controller.set_nodelay(true));
        let (Ok(host_again), Ok(controller_again)) = (host.try_clone(), controller.try_clone()) else { continue };
        let connection = {
            let mut all = shared.lock();
            all.push(Recording { open_directions: 2, ..Recording::default() });
            all.len() - 1
        };
        let (one, other) = (Arc::clone(shared), Arc::clone(shared));
        std::thread::spawn(move || carry(host, controller, &one, connection, |r| &mut r.host_to_controller));
        std::thread::spawn(move || {
            carry(controller_again, host_again, &other, connection, |r| &mut r.controller_to_host);
        });
    }
}

fn carry(
    mut from: TcpStream,
    mut to: TcpStream,
    shared: &Shared,
    connection: usize,
    kept: fn(&mut Recording) -> &mut Vec<u8>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        // kept before it is passed on, so that an answer is never recorded before its question
        shared.update(connection, |r| kept(r).extend_from_slice(&buffer[..n]));
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    shared.update(connection, |r| r.open_directions -= 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_of_every_connection_are_kept() {
        let limit = Duration::from_secs(30);
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let proxy = CapturingProxy::start(server.local_addr().expect("bound").port()).expect("a proxy");
        for turn in [b"one", b"two"] {
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port)).expect("the proxy listens");
            client.write_all(turn).expect("sent");
            let (mut peer, _) = server.accept().expect("the proxy connects");
            let mut got = [0; 3];
            peer.read_exact(&mut got).expect("carried on");
            assert_eq!(&got, turn);
            peer.write_all(b"answer").expect("sent");
            drop(peer);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).expect("carried back");
            assert_eq!(answer, b"answer");
        }
        let recordings = proxy.finish(limit).expect("all closed");
        let kept: Vec<(&[u8], &[u8])> =
            recordings.iter().map(|r| (&r.host_to_controller[..], &r.controller_to_host[..])).collect();
        assert_eq!(kept, [(&b"one"[..], &b"answer"[..]), (b"two", b"answer")]);
    }
}
