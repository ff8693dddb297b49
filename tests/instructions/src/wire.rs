//! A wire without a network: what one side sends is there for the other at once, whole and in order.

use crate::counted::uncounted;
use anyhow::Result;
use polypath_block::{Time, Waits};
use polypath_net::{Counters, Dialer, Gather, Received, Scatter, Transport};
use polypath_target::TargetConfig;
use polypath_target::sim_shell::{SimTarget, Wish};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that a target may give at a time: those of all requests of a round.
const MOST: usize = 1 << 20;

/// A target and all connections to it.
#[derive(Clone)]
pub(crate) struct Wire(Arc<Mutex<Ends>>);

struct Ends {
    target: SimTarget,
    /// By number of the stream.
    pipes: Vec<Pipe>,
}

#[derive(Default)]
struct Pipe {
    /// The target's name of the connection, once it has been accepted.
    accepted: Option<u64>,
    to_target: Vec<u8>,
    to_host: Vec<u8>,
    /// Of `to_host`, what was received.
    received: usize,
    /// Either side has ended it.
    over: bool,
}

impl Wire {
    pub(crate) fn new(config: TargetConfig) -> Result<Wire> {
        Ok(Wire(Arc::new(Mutex::new(Ends { target: SimTarget::new(config)?, pipes: Vec::new() }))))
    }

    /// Has the target accept, read, do and answer everything.
    pub(crate) fn serve(&self, now: Time) {
        let now_us = now.as_nanos() / 1000;
        let Ends { target, pipes } = &mut *self.lock();
        for pipe in pipes.iter_mut().filter(|pipe| !pipe.over) {
            let id = *pipe.accepted.get_or_insert_with(|| target.accept(now_us, 0));
            if !pipe.to_target.is_empty() {
                target.input(now_us, id, &pipe.to_target);
                pipe.to_target.clear();
            }
        }
        target.poll(now_us);
        for pipe in pipes.iter_mut() {
            let Some(id) = pipe.accepted else { continue };
            if pipe.received == pipe.to_host.len() {
                pipe.to_host.clear();
                pipe.received = 0;
            }
            target.output(id, MOST, &mut pipe.to_host);
            if pipe.over || target.wish(id) != Wish::Stay {
                (pipe.over, pipe.accepted) = (true, None);
                target.closed(now_us, id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dialer for Wire {
    fn dial(&self, _: SocketAddr) -> io::Result<Box<dyn Transport>> {
        let mut ends = self.lock();
        ends.pipes.push(Pipe::default());
        Ok(Box::new(Stream { wire: self.clone(), number: ends.pipes.len() - 1, counters: Counters::default() }))
    }
}

/// The initiator's end. What it does is the kernel's work elsewhere.
struct Stream {
    wire: Wire,
    number: usize,
    counters: Counters,
}

impl Stream {
    fn with<T>(&mut self, work: impl FnOnce(&mut Pipe, &mut Counters) -> T) -> T {
        let Stream { wire, number, counters } = self;
        work(&mut wire.lock().pipes[*number], counters)
    }
}

impl Transport for Stream {
    fn poll_connected(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn receive(&mut self, into: &mut Scatter<'_>) -> io::Result<Received> {
        uncounted(|| {
            self.with(|pipe, counters| {
                let placed = into.place(&pipe.to_host[pipe.received..]);
                pipe.received += placed;
                counters.bytes_in += placed as u64;
                match placed {
                    0 if pipe.over => Ok(Received::End),
                    0 => Ok(Received::Nothing),
                    n => Ok(Received::Bytes(n)),
                }
            })
        })
    }

    fn send(&mut self, from: &Gather<'_>) -> io::Result<usize> {
        uncounted(|| {
            self.with(|pipe, counters| {
                if pipe.over {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                let sent = from.copy_to(&mut pipe.to_target, usize::MAX);
                counters.sends += 1;
                counters.bytes_out += sent as u64;
                Ok(sent)
            })
        })
    }

    fn arm(&self, _: &mut Waits, _: bool) {}

    fn counters(&self) -> Counters {
        self.counters
    }

    fn abort(&mut self) {
        self.with(|pipe, _| pipe.over = true);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.abort();
    }
}
