//! The thread that owns the control connection: it does what queues may not wait for, and sees when the back-end goes.

use crate::connection::{Connection, ControlError, Trouble};
use crate::regions::{Known, Mapped};
use crate::ring::{Layout, Ring, bell, silence};
use crate::shared::{Death, Order, Seat, Shared, lock};
use crate::wire::{self, request};
use polypath_block::{Code, RegionId};
use polypath_memory::Backing;
use polypath_net::{EventNotifier, Theirs};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A ring whose queue was dropped under its requests.
struct Draining {
    seat: Arc<Seat>,
    ring: Ring,
    until: Instant,
}

pub(crate) struct Keeper {
    shared: Arc<Shared>,
    connection: Connection,
    draining: Vec<Draining>,
    /// Queues that were opened on a vring that still drains.
    waiting: Vec<Arc<Seat>>,
    /// Regions that the back-end has, the one of the rings not counted.
    mapped: u64,
}

impl Keeper {
    /// Starts the thread.
    pub(crate) fn start(shared: Arc<Shared>, connection: Connection) -> std::io::Result<()> {
        let keeper = Keeper { shared, connection, draining: Vec::new(), waiting: Vec::new(), mapped: 0 };
        std::thread::Builder::new().name("vhost-user".into()).spawn(move || keeper.run()).map(drop)
    }

    fn run(mut self) {
        while self.shared.death().is_none() {
            if let Err(error) = self.turn() {
                self.die(&error);
            }
            if self.is_over() {
                break;
            }
        }
        self.connection.shut();
        // Nobody starts or stops a ring after this. Those that are left are on their way to nobody.
        for order in self.shared.take_orders(true) {
            if let Order::Stop(seat, ring) = order
                && let Some(ring) = ring.or_else(|| lock(&seat.ring).take())
            {
                ring.erase();
            }
        }
        self.draining.into_iter().for_each(|d| d.ring.erase());
    }

    /// Was the device closed, and is nothing of it left? New queues are then refused for good.
    fn is_over(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire) && self.shared.is_empty() && self.draining.is_empty()
    }

    fn die(&self, error: &ControlError) {
        let trouble = &error.trouble;
        let path = &self.shared.config.path;
        self.shared.die(Death {
            code: trouble.code(),
            reason: format!("vhost-user-blk back-end {path}: {error}; restart it and open the disk again"),
            closed_by_peer: matches!(trouble, Trouble::Closed),
        });
    }

    fn turn(&mut self) -> Result<(), ControlError> {
        self.wait()?;
        silence(self.shared.keeper_bell());
        for order in self.shared.take_orders(false) {
            match order {
                Order::Map(id, backing) => self.map(id, &backing)?,
                Order::Unmap(mapped) => self.unmap(mapped)?,
                Order::Start(seat) => self.start_ring(seat)?,
                Order::Stop(seat, ring) => self.stop_ring(seat, ring)?,
            }
        }
        self.drain()
    }

    /// Sleeps until there is an order, a ring drains, or the connection says something, which it must not unasked.
    fn wait(&self) -> Result<(), ControlError> {
        let watching = |trouble| ControlError { step: "watching the connection", trouble };
        let until = self.draining.iter().map(|d| d.until).min();
        let limit = until
            .map(|u| u.saturating_duration_since(Instant::now()))
            .and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        let watched = [self.connection.as_fd(), self.shared.keeper_bell().as_fd()];
        let rings = self.draining.iter().map(|d| d.ring.call_fd());
        let mut fds: Vec<_> =
            watched.into_iter().chain(rings).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) if fds[0].revents().is_empty() => Ok(()),
            Ok(_) => self.connection.overheard().map_err(watching),
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(source) => Err(watching(Trouble::System { call: "poll", source })),
        }
    }

    fn map(&mut self, id: RegionId, backing: &Backing) -> Result<(), ControlError> {
        // Dropped meanwhile: then the back-end need not know.
        if self.shared.regions().find(id) != Some(Known::Asked) {
            self.shared.tell_queues();
            return Ok(());
        }
        let outcome = self.add_region(backing)?;
        let wanted = self.shared.regions().settle(id, outcome);
        if !wanted && let Known::Mapped(mapped) = outcome {
            self.unmap(mapped)?;
        }
        self.shared.tell_queues();
        Ok(())
    }

    fn add_region(&mut self, backing: &Backing) -> Result<Known, ControlError> {
        let refused = |why: String| {
            let path = &self.shared.config.path;
            tracing::warn!(path, len = backing.len, why, "the back-end cannot be given a memory region");
            Ok(Known::Refused(Code::PathLost))
        };
        if self.mapped >= self.shared.slots {
            return refused(format!("it takes {} regions at a time, and has as many", self.shared.slots));
        }
        let Some(base) = self.shared.regions().allot(backing.len) else {
            return refused("all addresses were given".into());
        };
        let mapped = Mapped { base, len: backing.len, file_offset: backing.file_offset };
        let payload = wire::region(base, mapped.len, mapped.file_offset);
        match self.connection.tell(request::ADD_MEM_REG, &payload, Some(backing.fd.as_fd())) {
            Ok(()) => {
                self.mapped += 1;
                Ok(Known::Mapped(mapped))
            }
            Err(error) if matches!(error.trouble, Trouble::Refused(_)) => refused(error.to_string()),
            Err(error) => Err(error),
        }
    }

    fn unmap(&mut self, mapped: Mapped) -> Result<(), ControlError> {
        let payload = wire::region(mapped.base, mapped.len, mapped.file_offset);
        match self.connection.tell(request::REM_MEM_REG, &payload, None) {
            Ok(()) => self.mapped -= 1,
            // Its place stays taken; nothing else of ours is ever at its addresses.
            Err(error) if matches!(error.trouble, Trouble::Refused(_)) => {
                tracing::warn!(path = self.shared.config.path, %error, "the back-end does not let go of a memory region");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn start_ring(&mut self, seat: Arc<Seat>) -> Result<(), ControlError> {
        if self.draining.iter().any(|d| d.seat.index == seat.index) {
            self.waiting.push(seat);
            return Ok(());
        }
        let (index, tell) = (seat.index, |request, payload: &[u8], fd| self.connection.tell(request, payload, fd));
        let ring = self.make_ring(&seat)?;
        tell(request::SET_VRING_NUM, &wire::vring_state(index, ring.size().into()), None)?;
        tell(request::SET_VRING_BASE, &wire::vring_state(index, 0), None)?;
        let (desc, avail, used) = ring.addresses();
        tell(request::SET_VRING_ADDR, &wire::vring_addr(index, desc, used, avail), None)?;
        // Bits 0 to 7 are the vring's number; bit 8 would say that no descriptor comes along.
        let number = u64::from(index).to_ne_bytes();
        tell(request::SET_VRING_CALL, &number, Some(ring.call_fd()))?;
        tell(request::SET_VRING_KICK, &number, Some(ring.kick_fd()))?;
        tell(request::SET_VRING_ENABLE, &wire::vring_state(index, 1), None)?;
        *lock(&seat.ring) = Some(ring);
        self.shared.tell_queues();
        Ok(())
    }

    fn make_ring(&self, seat: &Seat) -> Result<Ring, ControlError> {
        let failed = |what: String| ControlError { step: "making a ring", trouble: Trouble::Unfit(what) };
        let (shared, size) = (&self.shared, self.shared.config.queue_size);
        let len = Layout::new(size).len as u64;
        let offset = len * u64::from(seat.index);
        let window = shared.rings.window(offset, len).ok_or_else(|| failed("it has no memory".into()))?;
        let kick = bell().map_err(|source| failed(format!("eventfd: {source}")))?;
        let kick = EventNotifier::new(kick, shared.peer.clone());
        let kick = Theirs::new(kick, shared.closer.clone());
        let event_idx = shared.abilities.event_idx;
        Ring::new(window, shared.rings_base + offset, size, event_idx, kick, seat.call.clone())
            .map_err(|e| failed(e.to_string()))
    }

    fn stop_ring(&mut self, seat: Arc<Seat>, ring: Option<Ring>) -> Result<(), ControlError> {
        // A queue may be dropped before its ring was up, or before it saw it.
        self.waiting.retain(|waiting| !Arc::ptr_eq(waiting, &seat));
        let held = lock(&seat.ring).take();
        let Some(mut ring) = ring.or(held) else { return Ok(()) };
        if ring.open() == 0 {
            return self.end_ring(&seat);
        }
        // GET_VRING_BASE alone does not wait for requests in flight everywhere (libvhost-user).
        ring.listen(true);
        self.draining.push(Draining { seat, ring, until: Instant::now() + self.shared.config.io_timeout });
        Ok(())
    }

    /// Stops a ring with nothing in it, and starts the one that waits for its place.
    fn end_ring(&mut self, seat: &Seat) -> Result<(), ControlError> {
        let answer = self.connection.ask(request::GET_VRING_BASE, &wire::vring_state(seat.index, 0))?;
        if answer.len() != 8 {
            let trouble = Trouble::Unfit(format!("its answer is {} bytes long; expected 8", answer.len()));
            return Err(ControlError { step: request::GET_VRING_BASE.name, trouble });
        }
        let next = self.waiting.iter().position(|waiting| waiting.index == seat.index);
        match next.map(|at| self.waiting.remove(at)) {
            Some(next) => self.start_ring(next),
            None => Ok(()),
        }
    }

    /// Takes what dropped queues had in flight. Nobody is told of it any more.
    fn drain(&mut self) -> Result<(), ControlError> {
        let (mut ended, now) = (Vec::new(), Instant::now());
        for (at, draining) in self.draining.iter_mut().enumerate() {
            silence(draining.ring.call_fd());
            loop {
                match draining.ring.take() {
                    Ok(Some(_)) => {}
                    // With event indices, each one that ends is asked for anew; then look once more.
                    Ok(None) => {
                        draining.ring.listen(true);
                        if !draining.ring.has_ended() {
                            break;
                        }
                    }
                    Err(fault) => {
                        let trouble = Trouble::Unfit(fault.to_string());
                        return Err(ControlError { step: "draining a dropped queue", trouble });
                    }
                }
            }
            if draining.ring.open() == 0 {
                ended.push(at);
            } else if draining.until <= now {
                let trouble = Trouble::Silent(self.shared.config.io_timeout);
                return Err(ControlError { step: "draining a dropped queue", trouble });
            }
        }
        for at in ended.into_iter().rev() {
            let draining = self.draining.remove(at);
            self.end_ring(&draining.seat)?;
        }
        Ok(())
    }
}
