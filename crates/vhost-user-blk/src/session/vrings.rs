//! The vrings of one front-end: what it says of each, and how they start and come to a stand still.

use super::{Refusal, Reply, Session};
use crate::config::{F_PROTOCOL_FEATURES, bit};
use crate::mailbox::{Answer, Command, CommandError, MailboxSender, Start, mailbox};
use crate::notify::{Kick, Notifier};
use crate::poller::VringPoller;
use crate::ring::{RingSpec, Vring};
use crate::stranger::Stranger;
use crate::wire::VringAddr;
use polypath_block::Poller;
use polypath_net::Theirs;
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// One vring as the front-end has described it so far.
#[derive(Default)]
pub(super) struct VringState {
    num: u16,
    addr: Option<VringAddr>,
    base: u32,
    kick: Option<Arc<Kick>>,
    call: Option<Arc<Notifier>>,
    err: Option<Arc<Notifier>>,
    enabled: bool,
    /// A kick descriptor (or word that there is none) has come since the last GET_VRING_BASE.
    started: bool,
    running: bool,
    poller: Option<RunningPoller>,
}

struct RunningPoller {
    mailbox: MailboxSender,
    depth: u16,
}

impl Session<'_> {
    fn vring(&mut self, index: u32) -> Result<&mut VringState, Refusal> {
        let count = self.vrings.len();
        self.vrings.get_mut(index as usize).ok_or(Refusal::NoVring { index, count })
    }

    pub(super) fn set_num(&mut self, index: u32, num: u32) -> Result<(), Refusal> {
        self.unstart(index)?;
        let most = self.server.config.queue_size;
        let vring = self.vring(index)?;
        match u16::try_from(num) {
            Ok(num) if num.is_power_of_two() && num <= most => {
                vring.num = num;
                Ok(())
            }
            _ => {
                let expected = format!("a power of two up to {most}");
                Err(Refusal::Value { index, what: "size", value: num, expected })
            }
        }
    }

    pub(super) fn set_addr(&mut self, index: u32, addr: VringAddr) -> Result<(), Refusal> {
        // Logging is turned on and off by the same addresses with another flag, while the ring runs.
        if self.vring(index)?.addr != Some(addr) {
            self.unstart(index)?;
            self.vring(index)?.addr = Some(addr);
        }
        Ok(())
    }

    pub(super) fn set_base(&mut self, index: u32, base: u32) -> Result<(), Refusal> {
        self.unstart(index)?;
        self.vring(index)?.base = base;
        Ok(())
    }

    pub(super) fn get_base(&mut self, index: u32) -> Result<Reply, Refusal> {
        self.vring(index)?;
        // The guest may be on its way to another host, which knows of no cache that is dirty, whatever stopped its ring here.
        self.stop_rings(index..index + 1, true)?;
        let vring = self.vring(index)?;
        vring.started = false;
        Ok(Reply::Payload([index.to_ne_bytes(), vring.base.to_ne_bytes()].concat()))
    }

    pub(super) fn set_kick(&mut self, index: u32, fd: Option<Stranger>) -> Result<(), Refusal> {
        let kick = bell(index, fd)?.map(|fd| Arc::new(Kick::new(fd, self.server.peer.clone())));
        self.stop(index)?;
        // A ring that starts is looked at, kick or no kick. If it takes long, this thread waits for it, and no reactor.
        if let Some(kick) = &kick {
            kick.try_out();
        }
        let vring = self.vring(index)?;
        vring.kick = kick;
        vring.started = true;
        self.try_start(index)
    }

    pub(super) fn set_call(&mut self, index: u32, fd: Option<Stranger>) -> Result<(), Refusal> {
        let notifier = self.notifier(index, fd)?;
        // The guest may always be called. If that takes long, this thread waits for it, and no reactor.
        if let Some(notifier) = &notifier {
            notifier.try_out();
        }
        // Until the reactor has let go of it: it would have to close it otherwise.
        let _last = std::mem::replace(&mut self.vring(index)?.call, notifier.clone());
        self.tell(index, Command::SetCall(notifier))
    }

    pub(super) fn set_err(&mut self, index: u32, fd: Option<Stranger>) -> Result<(), Refusal> {
        let notifier = self.notifier(index, fd)?;
        // Until the reactor has let go of it: it would have to close it otherwise.
        let _last = std::mem::replace(&mut self.vring(index)?.err, notifier.clone());
        self.tell(index, Command::SetErr(notifier))
    }

    fn notifier(&self, index: u32, fd: Option<Stranger>) -> Result<Option<Arc<Notifier>>, Refusal> {
        Ok(bell(index, fd)?.map(|fd| Arc::new(Notifier::new(fd, self.server.peer.clone()))))
    }

    pub(super) fn set_enable(&mut self, index: u32, enable: bool) -> Result<(), Refusal> {
        self.vring(index)?.enabled = enable;
        if enable { self.try_start(index) } else { self.stop(index) }
    }

    /// Starts every ring that has all it needs. One that cannot be started does not keep the others from it.
    pub(super) fn start_all(&mut self) -> Result<(), Refusal> {
        let mut result = Ok(());
        for index in 0..self.vrings.len() as u32 {
            match self.try_start(index) {
                Ok(()) => {}
                // Its memory was removed: it stays stopped.
                Err(refusal @ Refusal::Address { .. }) => self.server.left_stopped(&refusal),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Starts the ring if all it needs has come.
    pub(super) fn try_start(&mut self, index: u32) -> Result<(), Refusal> {
        let always = self.features & F_PROTOCOL_FEATURES == 0;
        let has = |feature| self.features & bit(feature) != 0;
        let (packed, event_idx) = (self.is_packed(), has(VIRTIO_RING_F_EVENT_IDX));
        let indirect = has(VIRTIO_RING_F_INDIRECT_DESC);
        let memory = self.memory.clone();
        let vring = self.vring(index)?;
        let (size, base) = (vring.num, vring.base);
        let Some(addr) = vring.addr.filter(|_| vring.started && size > 0 && (vring.enabled || always)) else {
            return Ok(());
        };
        if vring.running {
            return Ok(());
        }
        let (d, a, u) = RingSpec::areas(size, packed, event_idx);
        let area = |at, len| memory.user_window(at, len).ok_or(Refusal::Address { index });
        let (desc, avail, used) = (area(addr.desc, d)?, area(addr.avail, a)?, area(addr.used, u)?);
        let record = self.record(index, size, packed)?;
        let recorded = record.is_some();
        let at = |user_addr| memory.user_to_guest(user_addr).ok_or(Refusal::Address { index });
        let written = match packed {
            false => [(at(addr.used)?, u), (0, 0)],
            true => [(at(addr.desc)?, d), (at(addr.used)?, u)],
        };
        let spec = RingSpec { size, packed, desc, avail, used, base, event_idx, indirect, written, record };
        let mut ring = Vring::new(spec, memory).map_err(|source| Refusal::Ring { index, source })?;
        ring.set_log(self.log());
        let killed = &self.server.killed[index as usize];
        let orphaned = killed.is_set() && ring.may_be_orphaned();
        let vring = self.vring(index)?;
        let (kick, call, err) = (vring.kick.clone(), vring.call.clone(), vring.err.clone());
        let start = Start { ring, kick, call, err, write_through: self.write_through.clone(), orphaned };
        self.ensure_poller(index, size)?;
        self.tell(index, Command::Start(Box::new(start)))?;
        killed.set(orphaned);
        self.vring(index)?.running = true;
        tracing::debug!(disk = %self.server.config.name, index, size, base, packed, event_idx, recorded, "vring started");
        Ok(())
    }

    /// Spawns the vring's poller, or replaces one whose device queue is too shallow for the ring.
    fn ensure_poller(&mut self, index: u32, depth: u16) -> Result<(), Refusal> {
        let server = self.server;
        let vring = self.vring(index)?;
        if vring.poller.as_ref().is_some_and(|p| p.depth >= depth) {
            return Ok(());
        }
        if let Some(old) = vring.poller.take() {
            self.command(index, &old, Command::End)?;
        }
        let config = &server.config;
        let host = config.hosts[index as usize % config.hosts.len()].clone();
        let (sender, receiver) = mailbox(host.clone());
        let device = config.device.clone();
        let counters = server.counters[index as usize].clone();
        let settings = server.vring_config(index, depth, &self.config_space);
        host.spawn(Box::new(move |_cx| -> Box<dyn Poller> {
            Box::new(VringPoller::new(settings, device, receiver, counters))
        }));
        self.vring(index)?.poller = Some(RunningPoller { mailbox: sender, depth });
        Ok(())
    }

    /// Stops the ring if it runs, once all that it took has completed; its position is kept.
    pub(super) fn stop(&mut self, index: u32) -> Result<(), Refusal> {
        self.vring(index)?;
        self.stop_rings(index..index + 1, false)
    }

    pub(super) fn stop_all(&mut self) -> Result<(), Refusal> {
        self.stop_rings(0..self.vrings.len() as u32, false)
    }

    /// All of them drain at the same time. It takes as long as it takes: a front-end that was answered before might give the
    /// memory of a request that still runs to something else.
    fn stop_rings(&mut self, indices: std::ops::Range<u32>, flush: bool) -> Result<(), Refusal> {
        let asked = self.ask(indices, |vring| vring.running || flush, || Command::Stop { flush });
        let mut result = Ok(());
        // One that cannot be asked does not keep us from hearing of the others: they stop.
        for (index, answer) in asked {
            match answer.and_then(|answer| self.server.wait(&answer)) {
                Ok(base) => {
                    let vring = self.vring(index)?;
                    if std::mem::take(&mut vring.running) {
                        vring.base = base;
                        tracing::debug!(disk = %self.server.config.name, index, base, "vring stopped");
                    }
                }
                Err(source) => result = result.and(Err(Refusal::Command { index, source })),
            }
        }
        result
    }

    /// Sends a command to those vrings that have a poller and `which` names.
    fn ask(
        &self,
        indices: std::ops::Range<u32>,
        which: impl Fn(&VringState) -> bool,
        command: impl Fn() -> Command,
    ) -> Vec<(u32, Result<Receiver<Answer>, CommandError>)> {
        let asked = indices.filter_map(|index| {
            let vring = self.vrings.get(index as usize).filter(|vring| which(vring))?;
            Some((index, vring.poller.as_ref()?.mailbox.send(command())))
        });
        asked.collect()
    }

    /// Before its parameters change: a running ring stops until another kick descriptor comes.
    fn unstart(&mut self, index: u32) -> Result<(), Refusal> {
        if self.vring(index)?.running {
            self.stop(index)?;
            self.vring(index)?.started = false;
        }
        Ok(())
    }

    /// Deprecated; some front-ends send it to have all rings stopped until they set them up again.
    pub(super) fn disown(&mut self) -> Result<(), Refusal> {
        self.stop_all()?;
        self.vrings.iter_mut().for_each(|vring| vring.started = false);
        Ok(())
    }

    pub(super) fn reset_vrings(&mut self) -> Result<(), Refusal> {
        self.stop_all()?;
        for vring in &mut self.vrings {
            let poller = vring.poller.take();
            *vring = VringState { poller, ..VringState::default() };
        }
        Ok(())
    }

    /// Tells every running ring, and waits until all have heard.
    pub(super) fn tell_running(&self, command: impl Fn() -> Command) -> Result<(), Refusal> {
        for (index, answer) in self.ask(0..self.vrings.len() as u32, |vring| vring.running, command) {
            let answer = answer.and_then(|answer| self.server.wait(&answer));
            answer.map_err(|source| Refusal::Command { index, source })?;
        }
        Ok(())
    }

    /// Sends a command to the vring's poller, if it has one.
    fn tell(&self, index: u32, command: Command) -> Result<(), Refusal> {
        match self.vrings.get(index as usize).and_then(|v| v.poller.as_ref()) {
            Some(poller) => self.command(index, poller, command),
            None => Ok(()),
        }
    }

    fn command(&self, index: u32, poller: &RunningPoller, command: Command) -> Result<(), Refusal> {
        let answer = poller.mailbox.send(command).and_then(|answer| self.server.wait(&answer));
        answer.map(drop).map_err(|source| Refusal::Command { index, source })
    }

    /// Nothing is begun any more, on any ring. The answers tell when what the device has is quiet.
    pub(crate) fn leave(&mut self) -> Vec<Receiver<Answer>> {
        self.tell_all(|| Command::Leave)
    }

    /// The rings go, with their queues. The answers tell when it is known what the guest is owed.
    pub(crate) fn end(&mut self) -> Vec<Receiver<Answer>> {
        self.tell_all(|| Command::End)
    }

    fn tell_all(&self, command: impl Fn() -> Command) -> Vec<Receiver<Answer>> {
        let pollers = self.vrings.iter().filter_map(|vring| vring.poller.as_ref());
        pollers.filter_map(|poller| poller.mailbox.send(command()).ok()).collect()
    }
}

fn bell(index: u32, fd: Option<Stranger>) -> Result<Option<Theirs<OwnedFd>>, Refusal> {
    fd.map(Stranger::into_bell).transpose().map_err(|source| Refusal::Notifier { index, source })
}
