//! One front-end from its first message to its last: features, memory, vrings.
//!
//! Every request is answered in order, on the server's control thread. Whatever touches a running ring goes through its
//! mailbox and is acknowledged by its reactor before the front-end hears of it.

mod inflight;
mod vrings;

use crate::config::{ConfigSpace, F_LOG_ALL, bit};
use crate::guest::{GuestMemory, MAX_BYTES, MAX_REGIONS, MapError};
use crate::log::DirtyLog;
use crate::mailbox::{Command, CommandError};
use crate::notify::UnsupportedFd;
use crate::ring::RingError;
use crate::server::Shared;
use crate::socket::{Event, Socket, SocketError, send_at_once};
use crate::stranger::Stranger;
use crate::wire::{self, RegionDesc, Request, protocol_feature};
use inflight::InflightArea;
use polypath_memory::{MemoryError, Window};
use rustix::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use vrings::VringState;

/// Longest log in bytes: one bit for each page of all addresses that a machine may have (2^52).
const MAX_LOG: u64 = 1 << (52 - 12 - 3);
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
    #[error("it needs a protocol feature ({feature:#x}) that was not negotiated")]
    NotNegotiated { feature: u64 },
    #[error("whether the guest's changes are to be durable at once could not be remembered: {source}")]
    WriteThrough { source: std::io::Error },
    #[error("a log of {len} bytes is longer than one for all addresses of a guest ({MAX_LOG} bytes)")]
    Log { len: u64 },
    #[error("records of requests in flight for {queues} vrings of {size} do not fit {len} bytes")]
    Inflight { queues: u16, size: u16, len: u64 },
}

impl Refusal {
    /// Is there no use in going on? A ring that does not answer is one of which nobody knows where it stands.
    fn is_fatal(&self) -> bool {
        matches!(
            self,
            Refusal::Command { source: CommandError::Gone | CommandError::Full | CommandError::Stopping, .. }
        )
    }
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
    /// This payload, and the file behind the area of requests in flight.
    Inflight(Vec<u8>),
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
    inflight: Option<InflightArea>,
    /// Where the front-end wants written pages to be marked, while logging is on.
    log: Option<Arc<DirtyLog>>,
    /// Its length in bytes.
    log_len: u64,
    channel: Option<Stranger>,
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
            writeback: server.writeback(),
            inflight: None,
            log: None,
            log_len: 0,
            channel: None,
            // No version yet: the disk may have grown since the last front-end's time, so the first look looks.
            version: None,
        }
    }

    /// Serves the front-end until it goes, errs, or the server stops. `Ok` for an orderly end.
    ///
    /// # Errors
    /// Why the connection was closed.
    pub(crate) fn serve(&mut self, socket: &Socket<'_>, mut refuse: impl FnMut()) -> Result<(), SessionError> {
        loop {
            let look = self.channel.as_ref().map(|_| GROWTH_LOOK);
            let idle = [look, self.server.keeps_in()].into_iter().flatten().min();
            match socket.next(idle)? {
                Event::Closed | Event::Stop => return Ok(()),
                Event::Idle => {
                    self.look_for_growth();
                    self.server.keep_later();
                }
                Event::Another => refuse(),
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
            Ok(Reply::Inflight(payload)) => {
                let file = self.inflight.as_ref().and_then(InflightArea::file);
                return Ok(socket.send_with(&wire::reply(id, &payload), file)?);
            }
            Ok(Reply::Ack) if wants_ack => 0u64.to_ne_bytes().to_vec(),
            Ok(Reply::Ack) => return Ok(()),
            Err(refusal) if wants_ack && !has_reply(id) && !refusal.is_fatal() => {
                self.server.refused(id, &refusal);
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
            Request::SetLogBase { len, offset, fd } => self.set_log(len, offset, fd),
            Request::SetLogFd => Ok(Reply::Ack),
            Request::SetVringNum { index, num } => self.set_num(index, num).map(done),
            Request::SetVringAddr { index, addr } => self.set_addr(index, addr).map(done),
            Request::SetVringBase { index, base } => self.set_base(index, base).map(done),
            Request::GetVringBase { index } => self.get_base(index),
            Request::SetVringKick { index, fd } => self.set_kick(index, fd).map(done),
            Request::SetVringCall { index, fd } => self.set_call(index, fd).map(done),
            Request::SetVringErr { index, fd } => self.set_err(index, fd).map(done),
            Request::SetVringEnable { index, enable } => self.set_enable(index, enable).map(done),
            Request::SetBackendReqFd(fd) => self.set_channel(fd).map(done),
            Request::GetConfig { offset, size } => self.get_config(offset, size),
            Request::SetConfig { offset, data } => self.set_config(offset, &data).map(done),
            Request::GetInflightFd(desc) => self.get_inflight(&desc),
            Request::SetInflightFd(desc, fd) => self.set_inflight(&desc, fd).map(done),
        }
    }

    // Features and configuration.

    fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        let offered = self.config_space.features();
        if features & !offered != 0 {
            return Err(Refusal::Features { wanted: features, offered });
        }
        self.features = features;
        if self.has(VIRTIO_BLK_F_CONFIG_WCE) && !self.has(VIRTIO_BLK_F_FLUSH) {
            // A driver that cannot flush begins without a cache (virtio 1.2 section 5.2.5.2).
            self.writeback = false;
        }
        self.update_write_through();
        self.tell_running(|| Command::SetLog(self.log()))?;
        self.start_all()
    }

    /// The log, if it is to be written.
    fn log(&self) -> Option<Arc<DirtyLog>> {
        self.log.clone().filter(|_| self.features & F_LOG_ALL != 0)
    }

    fn set_log(&mut self, len: u64, offset: u64, fd: Stranger) -> Result<Reply, Refusal> {
        self.needs(protocol_feature::LOG_SHMFD)?;
        if len > MAX_LOG {
            return Err(Refusal::Log { len });
        }
        self.check_bytes(self.memory.bytes(), len, self.record_len())?;
        let region = fd.map(offset, len)?;
        self.log = region.window(0, len).map(|window| Arc::new(DirtyLog::new(window)));
        self.log_len = len;
        // Acknowledged once every ring marks its pages there: the front-end lets go of the log before.
        self.tell_running(|| Command::SetLog(self.log()))?;
        // The specification says that there is an answer and not what is in it. QEMU reads none of it, others want the question back.
        Ok(Reply::Payload([len, offset].map(u64::to_ne_bytes).concat()))
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
        let writeback = match self.has(VIRTIO_BLK_F_CONFIG_WCE) {
            true => self.writeback,
            false => self.has(VIRTIO_BLK_F_FLUSH),
        };
        self.write_through.store(!writeback, Ordering::Relaxed);
    }

    fn has(&self, feature: u32) -> bool {
        self.features & bit(feature) != 0
    }

    fn is_packed(&self) -> bool {
        self.has(VIRTIO_F_RING_PACKED)
    }

    fn needs(&self, feature: u64) -> Result<(), Refusal> {
        if self.protocol_features & feature != 0 { Ok(()) } else { Err(Refusal::NotNegotiated { feature }) }
    }

    fn set_channel(&mut self, fd: Stranger) -> Result<(), Refusal> {
        self.needs(protocol_feature::BACKEND_REQ)?;
        self.channel = Some(fd);
        Ok(())
    }

    /// An error is told by a reply without payload.
    fn get_config(&mut self, offset: u32, size: u32) -> Result<Reply, Refusal> {
        self.needs(protocol_feature::CONFIG)?;
        self.follow_growth();
        let Some(bytes) = self.config_space.read(offset, size, self.writeback) else {
            return Ok(Reply::Payload(Vec::new()));
        };
        let mut payload = Vec::with_capacity(12 + bytes.len());
        for word in [offset, size, 0] {
            payload.extend_from_slice(&word.to_ne_bytes());
        }
        payload.extend_from_slice(&bytes);
        Ok(Reply::Payload(payload))
    }

    fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<(), Refusal> {
        self.needs(protocol_feature::CONFIG)?;
        let bad = Refusal::Config { offset, len: data.len() };
        let writeback = self.config_space.write(offset, data, self.writeback).ok_or(bad)?;
        self.server.set_writeback(writeback).map_err(|source| Refusal::WriteThrough { source })?;
        self.writeback = writeback;
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

    /// All that is mapped of one front-end has one bound, whatever it is for.
    fn check_bytes(&self, memory: u64, log: u64, record: u64) -> Result<(), Refusal> {
        match memory.saturating_add(log).saturating_add(record) > MAX_BYTES {
            true => Err(MapError::TooLarge.into()),
            false => Ok(()),
        }
    }

    fn record_len(&self) -> u64 {
        self.inflight.as_ref().map_or(0, InflightArea::len)
    }

    fn map(memory: &GuestMemory, desc: RegionDesc, fd: Stranger) -> Result<GuestMemory, Refusal> {
        let region = fd.map(desc.mmap_offset, desc.len)?;
        Ok(memory.with(desc.guest_addr, desc.user_addr, Arc::new(region))?)
    }

    fn add_memory(&mut self, desc: RegionDesc, fd: Stranger) -> Result<(), Refusal> {
        self.check_bytes(self.memory.bytes().saturating_add(desc.len), self.log_len, self.record_len())?;
        let memory = Arc::new(Self::map(&self.memory, desc, fd)?);
        // Acknowledged only once every ring knows the region: the guest may use it at once.
        self.tell_running(|| Command::SetMemory(memory.clone()))?;
        self.memory = memory;
        Ok(())
    }

    fn remove_memory(&mut self, desc: RegionDesc) -> Result<(), Refusal> {
        let RegionDesc { guest_addr, len, user_addr, .. } = desc;
        let less = self.memory.without(guest_addr, user_addr, len).ok_or(Refusal::NoRegion { guest_addr, len })?;
        self.replace_memory(less)
    }

    fn set_memory(&mut self, regions: Vec<(RegionDesc, Stranger)>) -> Result<(), Refusal> {
        let bytes = regions.iter().fold(0, |sum: u64, (desc, _)| sum.saturating_add(desc.len));
        self.check_bytes(bytes, self.log_len, self.record_len())?;
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
        self.start_all()
    }

    fn reset(&mut self) -> Result<(), Refusal> {
        self.reset_vrings()?;
        self.server.set_writeback(true).map_err(|source| Refusal::WriteThrough { source })?;
        (self.features, self.writeback) = (0, true);
        self.update_write_through();
        Ok(())
    }

    /// Holders of the guest's memory: see [`GuestMemory::mappings`].
    pub(crate) fn mappings(&self) -> Vec<Window> {
        self.memory.mappings()
    }
}

/// Requests with a reply of their own, which cannot carry a refusal.
fn has_reply(id: u32) -> bool {
    use wire::id::{
        GET_CONFIG, GET_FEATURES, GET_INFLIGHT_FD, GET_MAX_MEM_SLOTS, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM,
        GET_VRING_BASE, SET_LOG_BASE,
    };
    let own = [
        GET_CONFIG,
        GET_FEATURES,
        GET_INFLIGHT_FD,
        GET_MAX_MEM_SLOTS,
        GET_PROTOCOL_FEATURES,
        GET_QUEUE_NUM,
        GET_VRING_BASE,
        SET_LOG_BASE,
    ];
    own.contains(&id)
}
