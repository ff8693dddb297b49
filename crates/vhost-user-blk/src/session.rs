//! One front-end from its first message to its last: features, memory, vrings.
//!
//! Every request is answered in order, on the server's control thread. Whatever touches a running ring goes through its
//! mailbox and is acknowledged by its reactor before the front-end hears of it.

use crate::config::{ConfigSpace, F_PROTOCOL_FEATURES, bit};
use crate::guest::{GuestMemory, MAX_REGIONS, MapError};
use crate::mailbox::{Command, CommandError, MailboxSender, Start, mailbox};
use crate::notify::{Kick, Notifier, UnsupportedFd};
use crate::poller::VringPoller;
use crate::server::Shared;
use crate::socket::{Event, Socket, SocketError, send_at_once};
use crate::vring::{RingError, RingSpec, Vring};
use crate::wire::{self, RegionDesc, Request, VringAddr, protocol_feature};
use polypath_block::Poller;
use polypath_memory::{MemoryError, Region, Window};
use rustix::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// How often a connected front-end's device is looked at for growth.
const GROWTH_LOOK: Duration = Duration::from_millis(200);

/// Why a request was refused. With an acknowledgement asked for, the front-end is told and may go on; otherwise the
/// connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("features {wanted:#x} were asked for, {offered:#x} are offered")]
    Features { wanted: u64, offered: u64 },
    #[error("vring {index} does not exist, there are {count}")]
    NoVring { index: u32, count: usize },
    #[error("vring {index}: {what} {value} is not {expected}")]
    Value { index: u32, what: &'static str, value: u32, expected: String },
    #[error("vring {index}: its addresses are not in shared memory")]
    Address { index: u32 },
    #[error("vring {index}: {source}")]
    Ring { index: u32, source: RingError },
    #[error("vring {index}: {source}")]
    Command { index: u32, source: CommandError },
    #[error("vring {index}: {source}")]
    Notifier { index: u32, source: UnsupportedFd },
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("there is no memory region at {guest_addr:#x} of {len:#x} bytes to remove")]
    NoRegion { guest_addr: u64, len: u64 },
    #[error(
        "a write of {len} bytes at {offset} of the configuration space is not allowed; only writeback (byte 32) can change"
    )]
    Config { offset: u32, len: usize },
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("request {id} was refused: {refusal}")]
    Refused { id: u32, refusal: Refusal },
}

/// What a request is answered with.
enum Reply {
    /// Nothing, or an acknowledgement if one was asked for.
    Ack,
    /// This payload.
    Payload(Vec<u8>),
}

/// One vring as the front-end has described it so far.
#[derive(Default)]
struct VringState {
    num: u16,
    addr: Option<VringAddr>,
    base: u16,
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

/// State of one front-end.
pub(crate) struct Session<'a> {
    server: &'a Shared,
    config_space: ConfigSpace,
    features: u64,
    protocol_features: u64,
    memory: Arc<GuestMemory>,
    vrings: Vec<VringState>,
    write_through: Arc<AtomicBool>,
    writeback: bool,
    channel: Option<OwnedFd>,
    version: Option<u64>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(server: &'a Shared, config_space: ConfigSpace) -> Session<'a> {
        Session {
            server,
            config_space,
            features: 0,
            protocol_features: 0,
            memory: Arc::new(GuestMemory::new()),
            vrings: (0..server.config.num_queues).map(|_| VringState::default()).collect(),
            write_through: Arc::new(AtomicBool::new(true)),
            writeback: true,
            channel: None,
            // No version yet: the disk may have grown since the last front-end's time, so the first look looks.
            version: None,
        }
    }

    /// Serves the front-end until it goes, errs, or the server stops. `Ok` for an orderly end.
    ///
    /// # Errors
    /// Why the connection was closed.
    pub(crate) fn serve(&mut self, socket: &Socket<'_>) -> Result<(), SessionError> {
        loop {
            let idle = self.channel.as_ref().map(|_| GROWTH_LOOK);
            match socket.next(idle)? {
                Event::Closed | Event::Stop => return Ok(()),
                Event::Idle => self.look_for_growth(),
                Event::Message { id, request, need_reply } => self.answer(socket, id, request, need_reply)?,
            }
        }
    }

    fn answer(&mut self, socket: &Socket<'_>, id: u32, request: Request, flag: bool) -> Result<(), SessionError> {
        tracing::trace!(disk = %self.server.config.name, ?request, "request of the front-end");
        let result = self.handle(request);
        let wants_ack = flag && self.protocol_features & protocol_feature::REPLY_ACK != 0;
        let payload = match result {
            Ok(Reply::Payload(payload)) => payload,
            Ok(Reply::Ack) if wants_ack => 0u64.to_ne_bytes().to_vec(),
            Ok(Reply::Ack) => return Ok(()),
            Err(refusal) if wants_ack && !has_reply(id) => {
                tracing::warn!(disk = %self.server.config.name, id, %refusal, "request of the front-end refused");
                1u64.to_ne_bytes().to_vec()
            }
            Err(refusal) => return Err(SessionError::Refused { id, refusal }),
        };
        Ok(socket.send(&wire::reply(id, &payload))?)
    }

    fn handle(&mut self, request: Request) -> Result<Reply, Refusal> {
        let word = |n: u64| Ok(Reply::Payload(n.to_ne_bytes().to_vec()));
        let done = |()| Reply::Ack;
        match request {
            Request::GetFeatures => word(self.config_space.features()),
            Request::SetFeatures(features) => self.set_features(features).map(done),
            Request::GetProtocolFeatures => word(protocol_feature::OFFERED),
            Request::SetProtocolFeatures(features) => self.set_protocol_features(features).map(done),
            Request::GetQueueNum => word(self.vrings.len() as u64),
            Request::GetMaxMemSlots => word(MAX_REGIONS as u64),
            Request::SetOwner => Ok(Reply::Ack),
            Request::ResetOwner => self.disown().map(done),
            Request::ResetDevice => self.reset().map(done),
            Request::SetMemTable(regions) => self.set_memory(regions).map(done),
            Request::AddMemReg(desc, fd) => self.add_memory(desc, fd).map(done),
            Request::RemMemReg(desc) => self.remove_memory(desc).map(done),
            Request::SetVringNum { index, num } => self.set_num(index, num).map(done),
            Request::SetVringAddr { index, addr } => self.set_addr(index, addr).map(done),
            Request::SetVringBase { index, base } => self.set_base(index, base).map(done),
            Request::GetVringBase { index } => self.get_base(index),
            Request::SetVringKick { index, fd } => self.set_kick(index, fd).map(done),
            Request::SetVringCall { index, fd } => self.set_call(index, fd).map(done),
            Request::SetVringErr { index, fd } => self.set_err(index, fd).map(done),
            Request::SetVringEnable { index, enable } => self.set_enable(index, enable).map(done),
            Request::SetBackendReqFd(fd) => {
                self.channel = Some(fd);
                Ok(Reply::Ack)
            }
            Request::GetConfig { offset, size } => Ok(self.get_config(offset, size)),
            Request::SetConfig { offset, data } => self.set_config(offset, &data).map(done),
        }
    }

    // Features and configuration.

    fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        let offered = self.config_space.features();
        if features & !offered != 0 {
            return Err(Refusal::Features { wanted: features, offered });
        }
        self.features = features;
        self.update_write_through();
        for index in 0..self.vrings.len() as u32 {
            self.try_start(index)?;
        }
        Ok(())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<(), Refusal> {
        if features & !protocol_feature::OFFERED != 0 {
            return Err(Refusal::Features { wanted: features, offered: protocol_feature::OFFERED });
        }
        self.protocol_features = features;
        Ok(())
    }

    /// The cache is the guest's to flush only if it said it would (virtio 1.2 section 5.2.5.2 and 5.2.6.2).
    fn update_write_through(&self) {
        let has = |feature| self.features & bit(feature) != 0;
        let writeback = match has(VIRTIO_BLK_F_CONFIG_WCE) {
            true => self.writeback,
            false => has(VIRTIO_BLK_F_FLUSH),
        };
        self.write_through.store(!writeback, Ordering::Relaxed);
    }

    /// An error is told by a reply without payload.
    fn get_config(&mut self, offset: u32, size: u32) -> Reply {
        self.follow_growth();
        let Some(bytes) = self.config_space.read(offset, size, self.writeback) else {
            return Reply::Payload(Vec::new());
        };
        let mut payload = Vec::with_capacity(12 + bytes.len());
        for word in [offset, size, 0] {
            payload.extend_from_slice(&word.to_ne_bytes());
        }
        payload.extend_from_slice(&bytes);
        Reply::Payload(payload)
    }

    fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<(), Refusal> {
        let bad = Refusal::Config { offset, len: data.len() };
        self.writeback = self.config_space.write(offset, data, self.writeback).ok_or(bad)?;
        self.update_write_through();
        Ok(())
    }

    /// True when the capacity is another than was told.
    fn follow_growth(&mut self) -> bool {
        let device = &self.server.config.device;
        let version = device.version();
        if self.version == Some(version) {
            return false;
        }
        self.version = Some(version);
        let Some(now) = device.state().info().map(|info| info.geometry) else { return false };
        let told = self.config_space.geometry;
        if now.blocks == told.blocks || now.block_size != told.block_size {
            return false;
        }
        tracing::info!(disk = %self.server.config.name, from = told.blocks, to = now.blocks, "capacity changed");
        self.config_space.geometry = now;
        self.server.set_config_space(self.config_space.clone());
        true
    }

    fn look_for_growth(&mut self) {
        if !self.follow_growth() {
            return;
        }
        let Some(channel) = &self.channel else { return };
        let message = wire::backend_request(wire::id::BACKEND_CONFIG_CHANGE);
        if let Err(error) = send_at_once(channel.as_fd(), &message) {
            tracing::warn!(disk = %self.server.config.name, %error, "the front-end cannot be told of the new capacity");
            self.channel = None;
        }
    }

    // Memory.

    fn map(memory: &GuestMemory, desc: RegionDesc, fd: OwnedFd) -> Result<GuestMemory, Refusal> {
        let region = Region::from_fd(fd, desc.mmap_offset, desc.len)?;
        Ok(memory.with(desc.guest_addr, desc.user_addr, Arc::new(region))?)
    }

    fn add_memory(&mut self, desc: RegionDesc, fd: OwnedFd) -> Result<(), Refusal> {
        let memory = Arc::new(Self::map(&self.memory, desc, fd)?);
        for (index, vring) in self.vrings.iter().enumerate() {
            if let Some(poller) = vring.poller.as_ref().filter(|_| vring.running) {
                // Acknowledged only once every ring knows the region: the guest may use it at once.
                self.command(index as u32, poller, Command::SetMemory(memory.clone()))?;
            }
        }
        self.memory = memory;
        Ok(())
    }

    fn remove_memory(&mut self, desc: RegionDesc) -> Result<(), Refusal> {
        let RegionDesc { guest_addr, len, user_addr, .. } = desc;
        let less = self.memory.without(guest_addr, user_addr, len).ok_or(Refusal::NoRegion { guest_addr, len })?;
        self.replace_memory(less)
    }

    fn set_memory(&mut self, regions: Vec<(RegionDesc, OwnedFd)>) -> Result<(), Refusal> {
        let mut memory = GuestMemory::new();
        for (desc, fd) in regions {
            memory = Self::map(&memory, desc, fd)?;
        }
        self.replace_memory(memory)
    }

    /// Stops the rings, drains, lets go of the old memory, and starts those rings again that still lie in memory.
    fn replace_memory(&mut self, memory: GuestMemory) -> Result<(), Refusal> {
        self.stop_all()?;
        let mappings = self.memory.mappings();
        self.memory = Arc::new(memory);
        if !mappings.is_empty() {
            // Unmapped before it is acknowledged, and by this thread.
            self.server.settle();
            drop(mappings);
        }
        for index in 0..self.vrings.len() as u32 {
            match self.try_start(index) {
                Err(Refusal::Address { .. }) => {
                    tracing::info!(disk = %self.server.config.name, index, "vring lies in removed memory and stays stopped");
                }
                other => other?,
            }
        }
        Ok(())
    }

    // Vrings.

    fn vring(&mut self, index: u32) -> Result<&mut VringState, Refusal> {
        let count = self.vrings.len();
        self.vrings.get_mut(index as usize).ok_or(Refusal::NoVring { index, count })
    }

    fn set_num(&mut self, index: u32, num: u32) -> Result<(), Refusal> {
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

    fn set_addr(&mut self, index: u32, addr: VringAddr) -> Result<(), Refusal> {
        self.unstart(index)?;
        self.vring(index)?.addr = Some(addr);
        Ok(())
    }

    fn set_base(&mut self, index: u32, base: u32) -> Result<(), Refusal> {
        self.unstart(index)?;
        let vring = self.vring(index)?;
        vring.base = u16::try_from(base).map_err(|_| Refusal::Value {
            index,
            what: "base",
            value: base,
            expected: "below 65536".into(),
        })?;
        Ok(())
    }

    fn get_base(&mut self, index: u32) -> Result<Reply, Refusal> {
        self.stop(index)?;
        let vring = self.vring(index)?;
        vring.started = false;
        let base = u32::from(vring.base);
        Ok(Reply::Payload([index.to_ne_bytes(), base.to_ne_bytes()].concat()))
    }

    fn set_kick(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        let kick = fd.map(|fd| Kick::new(fd).map(Arc::new)).transpose();
        let kick = kick.map_err(|source| Refusal::Notifier { index, source })?;
        self.stop(index)?;
        let vring = self.vring(index)?;
        vring.kick = kick;
        vring.started = true;
        self.try_start(index)
    }

    fn set_call(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        let notifier = notifier(index, fd)?;
        self.vring(index)?.call = notifier.clone();
        self.tell(index, Command::SetCall(notifier))
    }

    fn set_err(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        let notifier = notifier(index, fd)?;
        self.vring(index)?.err = notifier.clone();
        self.tell(index, Command::SetErr(notifier))
    }

    fn set_enable(&mut self, index: u32, enable: bool) -> Result<(), Refusal> {
        self.vring(index)?.enabled = enable;
        if enable { self.try_start(index) } else { self.stop(index) }
    }

    /// Starts the ring if all it needs has come.
    fn try_start(&mut self, index: u32) -> Result<(), Refusal> {
        let always = self.features & F_PROTOCOL_FEATURES == 0;
        let event_idx = self.features & bit(VIRTIO_RING_F_EVENT_IDX) != 0;
        let indirect = self.features & bit(VIRTIO_RING_F_INDIRECT_DESC) != 0;
        let memory = self.memory.clone();
        let write_through = self.write_through.clone();
        let server = self.server;
        let vring = self.vring(index)?;
        let (size, base) = (vring.num, vring.base);
        let Some(addr) = vring.addr.filter(|_| vring.started && size > 0 && (vring.enabled || always)) else {
            return Ok(());
        };
        if vring.running {
            return Ok(());
        }
        let (d, a, u) = RingSpec::areas(size, event_idx);
        let area = |at, len| memory.user_window(at, len).ok_or(Refusal::Address { index });
        let (desc, avail, used) = (area(addr.desc, d)?, area(addr.avail, a)?, area(addr.used, u)?);
        let spec = RingSpec { size, desc, avail, used, base, event_idx, indirect };
        let mut ring = Vring::new(spec, memory).map_err(|source| Refusal::Ring { index, source })?;
        // Front-ends go on at the used index after their back-end died. Requests complete in any order, so what is available from
        // there on need not be what was in flight: to run it might write memory that the guest has given to something else.
        let end_fence = &server.end_fence[index as usize];
        let orphaned = base != 0 && ring.waiting() != Ok(0) && end_fence.load(Ordering::Relaxed);
        let (kick, call, err) = (vring.kick.clone(), vring.call.clone(), vring.err.clone());
        let start = Start { ring, kick, call, err, write_through, orphaned };
        self.ensure_poller(index, size)?;
        self.tell(index, Command::Start(Box::new(start)))?;
        end_fence.store(orphaned, Ordering::Relaxed);
        self.vring(index)?.running = true;
        tracing::debug!(disk = %self.server.config.name, index, size, base, event_idx, "vring started");
        Ok(())
    }

    /// Spawns the vring's poller, or replaces one whose device queue is too shallow for the ring.
    fn ensure_poller(&mut self, index: u32, depth: u16) -> Result<(), Refusal> {
        let server = self.server;
        let vring = self.vring(index)?;
        if vring.poller.as_ref().is_some_and(|p| p.depth >= depth) {
            return Ok(());
        }
        let ended = vring.poller.take().map(|old| server.ask(&old.mailbox, Command::End));
        ended.transpose().map_err(|source| Refusal::Command { index, source })?;
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

    /// Stops the ring if it runs; its position is kept.
    fn stop(&mut self, index: u32) -> Result<(), Refusal> {
        let server = self.server;
        let vring = self.vring(index)?;
        if let Some(poller) = vring.poller.as_ref().filter(|_| vring.running) {
            let base =
                server.ask(&poller.mailbox, Command::Stop).map_err(|source| Refusal::Command { index, source })?;
            (vring.base, vring.running) = (base, false);
            tracing::debug!(disk = %server.config.name, index, base, "vring stopped");
        }
        Ok(())
    }

    /// Before its parameters change: a running ring stops until another kick descriptor comes.
    fn unstart(&mut self, index: u32) -> Result<(), Refusal> {
        if self.vring(index)?.running {
            self.stop(index)?;
            self.vring(index)?.started = false;
        }
        Ok(())
    }

    fn stop_all(&mut self) -> Result<(), Refusal> {
        (0..self.vrings.len() as u32).try_for_each(|index| self.stop(index))
    }

    /// Deprecated; some front-ends send it to have all rings stopped until they set them up again.
    fn disown(&mut self) -> Result<(), Refusal> {
        self.stop_all()?;
        self.vrings.iter_mut().for_each(|vring| vring.started = false);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Refusal> {
        self.stop_all()?;
        for vring in &mut self.vrings {
            let poller = vring.poller.take();
            *vring = VringState { poller, ..VringState::default() };
        }
        (self.features, self.writeback) = (0, true);
        self.update_write_through();
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
        let answer = self.server.ask(&poller.mailbox, command);
        answer.map(drop).map_err(|source| Refusal::Command { index, source })
    }

    /// Holders of the guest's memory: see [`GuestMemory::mappings`].
    pub(crate) fn mappings(&self) -> Vec<Window> {
        self.memory.mappings()
    }

    /// Ends all pollers, without waiting: an answer, or its sender's end, follows at each receiver.
    pub(crate) fn end(self) -> Vec<MailboxSender> {
        self.vrings.into_iter().filter_map(|v| v.poller).map(|p| p.mailbox).collect()
    }
}

fn notifier(index: u32, fd: Option<OwnedFd>) -> Result<Option<Arc<Notifier>>, Refusal> {
    fd.map(|fd| Notifier::new(fd).map(Arc::new)).transpose().map_err(|source| Refusal::Notifier { index, source })
}

/// Requests with a reply of their own, which cannot carry a refusal.
fn has_reply(id: u32) -> bool {
    use wire::id::{GET_CONFIG, GET_FEATURES, GET_MAX_MEM_SLOTS, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_VRING_BASE};
    matches!(id, GET_CONFIG | GET_FEATURES | GET_MAX_MEM_SLOTS | GET_PROTOCOL_FEATURES | GET_QUEUE_NUM | GET_VRING_BASE)
}
