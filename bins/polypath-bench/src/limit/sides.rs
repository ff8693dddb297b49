//! The two threads of `limit`.

use super::shape::Shape;
use super::{BLOCK, LimitConfig};
use crate::cpu::{self, CoreWait};
use crate::latency::Latencies;
use crate::slices::Slices;
use anyhow::Context as _;
use polypath_block::Time;
use polypath_reactor::{Idle, IdlePolicy, now};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::marker::PhantomData;
use std::net::TcpStream;
use std::time::Duration;

/// Most bytes taken from the socket at a time. More would only push what was just received out of the cache.
const RECV: usize = 256 << 10;
/// No answer for this long means that the other thread is gone.
const SILENCE: Duration = Duration::from_secs(5);

/// A socket, the idle policy on it, and how many system calls that took.
struct Side<'a> {
    socket: &'a TcpStream,
    idle: Idle,
    policy: IdlePolicy,
    syscalls: u64,
    heard: Time,
}

impl<'a> Side<'a> {
    fn new(socket: &'a TcpStream, policy: IdlePolicy) -> anyhow::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(Side { socket, idle: Idle::new(policy), policy, syscalls: 0, heard: now() })
    }

    /// Takes what has arrived, in the manner of the idle policy. Zero: the peer has closed or reset.
    fn receive(&mut self, into: &mut [u8]) -> anyhow::Result<usize> {
        let mut spins = 0u32;
        loop {
            self.syscalls += 1;
            // Without spinning there is nothing to ask first: the call that waits is the call that receives.
            let flags = if self.policy == IdlePolicy::Sleep { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
            match recv(self.socket, &mut *into, flags) {
                Ok((n, _)) => {
                    if spins > 0 {
                        self.idle.busy();
                    }
                    return Ok(n);
                }
                Err(Errno::INTR) => {}
                // A client that has had enough closes with answers unread.
                Err(Errno::CONNRESET) => return Ok(0),
                Err(Errno::AGAIN) if self.policy == IdlePolicy::Sleep => {
                    anyhow::bail!("nothing arrived for {SILENCE:?}")
                }
                Err(Errno::AGAIN) => {
                    spins += 1;
                    if let Some(n) = self.vain(spins, into)? {
                        return Ok(n);
                    }
                }
                Err(error) => return Err(error).context("receiving"),
            }
        }
    }

    /// After a vain look: sleep, if the policy says so.
    fn vain(&mut self, spins: u32, into: &mut [u8]) -> anyhow::Result<Option<usize>> {
        if self.policy == IdlePolicy::Poll {
            // The clock is only read now and then: reading it costs a quarter of a look.
            if spins.is_multiple_of(4096) {
                let time = now();
                self.heard = if spins == 4096 { time } else { self.heard };
                anyhow::ensure!(time.since(self.heard) < SILENCE, "nothing arrived for {SILENCE:?}");
            }
            return Ok(None);
        }
        let start = now();
        if !self.idle.may_sleep(start) {
            return Ok(None);
        }
        self.syscalls += 1;
        match recv(self.socket, &mut *into, RecvFlags::empty()) {
            Ok((n, _)) => {
                self.idle.woke(now().since(start));
                Ok(Some(n))
            }
            Err(Errno::INTR) => Ok(None),
            Err(Errno::CONNRESET) => Ok(Some(0)),
            Err(Errno::AGAIN) => anyhow::bail!("nothing arrived for {SILENCE:?}"),
            Err(error) => Err(error).context("receiving"),
        }
    }

    /// Sends all of `data`.
    fn send(&mut self, mut data: &[u8]) -> rustix::io::Result<()> {
        while !data.is_empty() {
            self.syscalls += 1;
            // A full socket buffer is the one thing worth waiting for in every mode: the peer is behind.
            match send(self.socket, data, SendFlags::NOSIGNAL) {
                Ok(n) => data = &data[n..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What the server did.
pub(super) struct Served {
    pub(super) ios: u64,
    pub(super) syscalls: u64,
    pub(super) taken_pct: f64,
}

/// Answers until the client closes.
pub(super) fn serve<S: Shape>(socket: &TcpStream, qd: usize, idle: IdlePolicy) -> anyhow::Result<Served> {
    let mut side = Side::new(socket, idle)?;
    let core_wait = CoreWait::start();
    let mut requests = vec![0u8; (qd * S::REQUEST).max(4096)];
    let mut responses = vec![0x5a_u8; qd * S::RESPONSE];
    for response in responses.chunks_exact_mut(S::RESPONSE) {
        response[..S::HEADER].fill(0);
        S::response(response);
    }
    let (mut have, mut ios) = (0, 0);
    loop {
        let n = side.receive(&mut requests[have..])?;
        if n == 0 {
            break;
        }
        have += n;
        let whole = have / S::REQUEST;
        for (request, response) in
            requests.chunks_exact(S::REQUEST).zip(responses.chunks_exact_mut(S::RESPONSE)).take(whole)
        {
            response[S::RESPONSE_ID..S::RESPONSE_ID + 2].copy_from_slice(&request[S::REQUEST_ID..S::REQUEST_ID + 2]);
        }
        match side.send(&responses[..whole * S::RESPONSE]) {
            Ok(()) => ios += whole as u64,
            // The client had enough.
            Err(Errno::PIPE | Errno::CONNRESET) => break,
            Err(error) => return Err(error).context("sending"),
        }
        requests.copy_within(whole * S::REQUEST..have, 0);
        have -= whole * S::REQUEST;
    }
    Ok(Served { ios, syscalls: side.syscalls, taken_pct: core_wait.taken_pct() })
}

/// What the client measured.
pub(super) struct Measured {
    pub(super) latencies: Latencies,
    pub(super) elapsed: Duration,
    pub(super) cpu: Duration,
    pub(super) syscalls: u64,
    pub(super) errors: u64,
    pub(super) quiet_rate: f64,
    pub(super) taken_pct: f64,
}

/// Asks, and measures.
pub(super) struct Client<'a, S> {
    side: Side<'a>,
    config: &'a LimitConfig,
    rx: Vec<u8>,
    tx: Vec<u8>,
    /// Where each requester wants its block.
    blocks: Vec<u8>,
    asked: Vec<Time>,
    latencies: Latencies,
    slices: Slices,
    errors: u64,
    shape: PhantomData<S>,
}

impl<'a, S: Shape> Client<'a, S> {
    pub(super) fn new(socket: &'a TcpStream, config: &'a LimitConfig) -> anyhow::Result<Self> {
        let mut tx = vec![0; config.qd * S::REQUEST];
        for request in tx.chunks_exact_mut(S::REQUEST) {
            S::request(request);
        }
        Ok(Client {
            side: Side::new(socket, config.idle)?,
            config,
            rx: vec![0; RECV],
            tx,
            blocks: vec![0; config.qd * BLOCK],
            asked: vec![Time::ZERO; config.qd],
            latencies: Latencies::new(),
            slices: Slices::new(),
            errors: 0,
            shape: PhantomData,
        })
    }

    pub(super) fn run(mut self) -> anyhow::Result<Measured> {
        let mut time = now();
        for id in 0..self.config.qd {
            self.tx[id * S::REQUEST + S::REQUEST_ID..][..2].copy_from_slice(&(id as u16).to_le_bytes());
            self.asked[id] = time;
        }
        self.side.send(&self.tx[..self.config.qd * S::REQUEST])?;
        let mut have = 0;
        let begin = time.after(self.config.ramp);
        while time < begin {
            time = self.pass(&mut have)?;
        }
        // From here on it counts.
        self.latencies.clear();
        self.errors = 0;
        let (start, cpu, syscalls, core_wait) = (now(), cpu::thread_time(), self.side.syscalls, CoreWait::start());
        self.slices.restart(start);
        let end = start.after(self.config.time);
        while time < end {
            time = self.pass(&mut have)?;
        }
        Ok(Measured {
            elapsed: time.since(start),
            cpu: cpu::thread_time().saturating_sub(cpu),
            syscalls: self.side.syscalls - syscalls,
            errors: self.errors,
            quiet_rate: self.slices.quiet_rate(),
            taken_pct: core_wait.taken_pct(),
            latencies: self.latencies,
        })
    }

    /// Takes what has arrived and asks for as much again. Never inlined: `ratio --cost` counts its instructions by name.
    #[inline(never)]
    fn pass(&mut self, have: &mut usize) -> anyhow::Result<Time> {
        let n = self.side.receive(&mut self.rx[*have..])?;
        anyhow::ensure!(n > 0, "the server closed");
        *have += n;
        let time = now();
        let whole = *have / S::RESPONSE;
        let mut asked = 0;
        for response in self.rx[..whole * S::RESPONSE].chunks_exact(S::RESPONSE) {
            let id = u16::from_le_bytes([response[S::RESPONSE_ID], response[S::RESPONSE_ID + 1]]);
            let Some(slot) = self.asked.get_mut(usize::from(id)).filter(|_| response[0] == S::ANSWER) else {
                self.errors += 1;
                continue;
            };
            self.latencies.record(time.nanos_since(*slot));
            *slot = time;
            if self.config.copy {
                self.blocks[usize::from(id) * BLOCK..][..BLOCK].copy_from_slice(&response[S::HEADER..]);
            }
            self.tx[asked * S::REQUEST + S::REQUEST_ID..][..2].copy_from_slice(&id.to_le_bytes());
            asked += 1;
        }
        self.slices.completed(time, asked as u64);
        self.side.send(&self.tx[..asked * S::REQUEST]).context("sending")?;
        self.rx.copy_within(whole * S::RESPONSE..*have, 0);
        *have -= whole * S::RESPONSE;
        Ok(time)
    }
}
