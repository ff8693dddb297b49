//! Guests that have set up their rings and want nothing.

use super::control::Control;
use super::memory::RingMemory;
use super::{Rings, Style};
use anyhow::Context as _;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd as _, OwnedFd};
use std::path::Path;

/// A guest as its back-end sees it: connected, memory shared, rings set up, enabled and kicked once. It keeps one descriptor; its memory,
/// in which nothing is ever available, may be that of many.
pub struct IdleGuest {
    _control: Control,
}

/// What idle guests share.
pub struct IdleMemory {
    memory: RingMemory,
    call: OwnedFd,
    rings: u16,
}

impl IdleMemory {
    /// Memory with `rings` rings of `size` entries.
    ///
    /// # Errors
    /// No such ring, or no memory.
    pub fn new(rings: u16, size: u16) -> anyhow::Result<IdleMemory> {
        anyhow::ensure!(rings > 0, "a guest without rings");
        let shape = Rings { size: Some(size), idle: rings - 1 };
        let memory = RingMemory::new(1, Style::default(), shape)?;
        let call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?;
        Ok(IdleMemory { memory, call, rings })
    }
}

impl IdleGuest {
    /// Connects to the back-end at `socket`.
    ///
    /// # Errors
    /// Nobody is there, or it refuses a step.
    pub fn connect(socket: &Path, memory: &IdleMemory) -> anyhow::Result<IdleGuest> {
        let mut control = Control::connect(socket, Style::default())?;
        let mut start = || {
            control.share(&memory.memory)?;
            (0..memory.rings).try_for_each(|index| control.start_idle(index, &memory.memory, memory.call.as_fd()))
        };
        start().with_context(|| format!("{}: setting up rings", socket.display()))?;
        Ok(IdleGuest { _control: control })
    }
}
