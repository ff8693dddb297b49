//! As much of vhost-user as it takes to set up rings with any back-end (QEMU `docs/interop/vhost-user.rst`), front-end side.
//!
//! The memory is told with SET_MEM_TABLE, which every back-end knows.

use super::Style;
use super::memory::{BASE, DESC, RingMemory};
use anyhow::Context as _;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg, socket_with,
};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a back-end may take to accept us, and for each answer. Tests wait for it.
const LIMIT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
/// Most bytes of an answer that are taken.
const MAX_ANSWER: u32 = 4096;
/// Bytes of the configuration space asked for: the capacity.
const CAPACITY: usize = 8;

const F_INDIRECT: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;
const F_PROTOCOL: u64 = 1 << 30;
const F_VERSION_1: u64 = 1 << 32;

const PROTOCOL_MQ: u64 = 1 << 0;
const PROTOCOL_REPLY_ACK: u64 = 1 << 3;
const PROTOCOL_CONFIG: u64 = 1 << 9;

/// A request of the protocol: its number, and its name for people.
type Request = (u32, &'static str);

const GET_FEATURES: Request = (1, "GET_FEATURES");
const SET_FEATURES: Request = (2, "SET_FEATURES");
const SET_OWNER: Request = (3, "SET_OWNER");
const SET_MEM_TABLE: Request = (5, "SET_MEM_TABLE");
const SET_VRING_NUM: Request = (8, "SET_VRING_NUM");
const SET_VRING_ADDR: Request = (9, "SET_VRING_ADDR");
const SET_VRING_BASE: Request = (10, "SET_VRING_BASE");
const GET_VRING_BASE: Request = (11, "GET_VRING_BASE");
const SET_VRING_KICK: Request = (12, "SET_VRING_KICK");
const SET_VRING_CALL: Request = (13, "SET_VRING_CALL");
const GET_PROTOCOL_FEATURES: Request = (15, "GET_PROTOCOL_FEATURES");
const SET_PROTOCOL_FEATURES: Request = (16, "SET_PROTOCOL_FEATURES");
const SET_VRING_ENABLE: Request = (18, "SET_VRING_ENABLE");
const GET_CONFIG: Request = (24, "GET_CONFIG");

/// Connects to whoever listens at `path`. Where nobody accepts, there is no room for more at some time: that is waited for no longer than
/// for an answer.
///
/// # Errors
/// Nobody is there, or nobody accepts.
pub(super) fn dial(path: &Path) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(LIMIT))?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::AGAIN) => {
            let said = format!("it accepts nobody within {LIMIT:?}: it is stopped, or hangs");
            Err(io::Error::new(io::ErrorKind::TimedOut, said))
        }
        connected => connected.map(|()| UnixStream::from(socket)).map_err(Into::into),
    }
}

/// A back-end that agreed on features, and has no ring yet.
pub(super) struct Control {
    socket: UnixStream,
    acknowledged: bool,
    /// Was the event index agreed upon?
    pub(super) event_idx: bool,
    /// Bytes of its disk.
    pub(super) bytes: u64,
}

impl Control {
    /// Connects to the back-end at `path`, and agrees on what rings of `style` need.
    ///
    /// # Errors
    /// Nobody is there, or it lacks what is needed, or it does not speak the protocol.
    pub(super) fn connect(path: &Path, style: Style) -> anyhow::Result<Control> {
        let socket = dial(path)
            .with_context(|| format!("{}: cannot be connected to; is a back-end listening there?", path.display()))?;
        let mut control = Control { socket, acknowledged: false, event_idx: false, bytes: 0 };
        control.agree(style).with_context(|| format!("{}: agreeing with the back-end", path.display()))?;
        Ok(control)
    }

    fn agree(&mut self, style: Style) -> anyhow::Result<()> {
        let offered = self.ask_word(GET_FEATURES)?;
        let needed = F_VERSION_1 | F_PROTOCOL | if style.indirect { F_INDIRECT } else { 0 };
        anyhow::ensure!(
            offered & needed == needed,
            "it lacks features {:#x}; expected virtio 1 (bit 32), protocol features (bit 30){}",
            needed & !offered,
            if style.indirect { " and indirect descriptors (bit 28)" } else { "" }
        );
        self.tell(SET_OWNER, &[], None)?;
        let have = self.ask_word(GET_PROTOCOL_FEATURES)?;
        anyhow::ensure!(have & PROTOCOL_CONFIG != 0, "it does not tell its configuration (protocol feature 9)");
        let chosen = have & (PROTOCOL_MQ | PROTOCOL_REPLY_ACK | PROTOCOL_CONFIG);
        self.tell(SET_PROTOCOL_FEATURES, &chosen.to_ne_bytes(), None)?;
        self.acknowledged = chosen & PROTOCOL_REPLY_ACK != 0;
        let features = needed | offered & F_EVENT_IDX;
        self.event_idx = features & F_EVENT_IDX != 0;
        self.tell(SET_FEATURES, &features.to_ne_bytes(), None)?;
        self.bytes = self.capacity()?;
        anyhow::ensure!(self.bytes >= 4096, "its disk has {} bytes; expected one block of 4096 at least", self.bytes);
        Ok(())
    }

    fn capacity(&mut self) -> anyhow::Result<u64> {
        let mut question = [0, CAPACITY as u32, 0].map(u32::to_ne_bytes).concat();
        question.resize(12 + CAPACITY, 0);
        self.send(GET_CONFIG, false, &question, None)?;
        let answer = self.answer(GET_CONFIG)?;
        let sectors = answer.get(12..12 + CAPACITY).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        Ok(sectors.context("GET_CONFIG: its configuration has no capacity")?.saturating_mul(512))
    }

    /// Shows the back-end `memory`.
    ///
    /// # Errors
    /// It refused.
    pub(super) fn share(&mut self, memory: &RingMemory) -> anyhow::Result<()> {
        let fd = memory.region.fd().context("the memory of the ring has no file")?;
        // One region, some padding; then its address for buffers, its length, its address for rings, its offset.
        let table = [1, BASE, memory.region.len(), BASE, 0].map(u64::to_ne_bytes).concat();
        self.tell(SET_MEM_TABLE, &table, Some(fd))
    }

    /// Hands over ring `index` of `memory`, of which nothing is available yet. The back-end may look at it from now on.
    ///
    /// # Errors
    /// The back-end refused a step.
    pub(super) fn start(
        &mut self,
        index: u16,
        memory: &RingMemory,
        kick: BorrowedFd<'_>,
        call: BorrowedFd<'_>,
    ) -> anyhow::Result<()> {
        let layout = memory.layout;
        let number = u64::from(index);
        self.tell(SET_VRING_NUM, &state(index, layout.size.into()), None)?;
        self.tell(SET_VRING_BASE, &state(index, 0), None)?;
        let at = |offset: usize| BASE + (layout.ring(index) + offset) as u64;
        // The ring, no flags; descriptors, used ring, available ring, no log.
        let addresses = [number, at(0), at(layout.used), at(layout.avail), 0].map(u64::to_ne_bytes).concat();
        self.tell(SET_VRING_ADDR, &addresses, None)?;
        self.tell(SET_VRING_CALL, &number.to_ne_bytes(), Some(call))?;
        self.tell(SET_VRING_KICK, &number.to_ne_bytes(), Some(kick))?;
        self.tell(SET_VRING_ENABLE, &state(index, 1), None)
    }

    /// [`Control::start`] of a ring that has no requests: kicked once, as a driver does when it comes up.
    ///
    /// # Errors
    /// Those of [`Control::start`].
    pub(super) fn start_idle(&mut self, index: u16, memory: &RingMemory, call: BorrowedFd<'_>) -> anyhow::Result<()> {
        let kick = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?;
        self.start(index, memory, kick.as_fd(), call)
    }

    /// Takes the first `rings` rings back.
    ///
    /// # Errors
    /// The back-end did not answer.
    pub(super) fn stop(&mut self, rings: u16) -> anyhow::Result<()> {
        (0..rings).try_for_each(|index| {
            self.send(GET_VRING_BASE, false, &state(index, 0), None)?;
            self.answer(GET_VRING_BASE).map(|_| ())
        })
    }

    fn ask_word(&mut self, asked: Request) -> anyhow::Result<u64> {
        self.send(asked, false, &[], None)?;
        word(asked, &self.answer(asked)?)
    }

    /// A request without an answer of its own: acknowledged, if that was agreed.
    fn tell(&mut self, asked: Request, payload: &[u8], fd: Option<BorrowedFd<'_>>) -> anyhow::Result<()> {
        self.send(asked, self.acknowledged, payload, fd)?;
        if !self.acknowledged {
            return Ok(());
        }
        match word(asked, &self.answer(asked)?)? {
            0 => Ok(()),
            refused => anyhow::bail!("{}: the back-end refused it with {refused}", asked.1),
        }
    }

    fn send(
        &mut self,
        (number, name): Request,
        need_reply: bool,
        payload: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<()> {
        let flags = if need_reply { VERSION | FLAG_NEED_REPLY } else { VERSION };
        let header = [number, flags, payload.len() as u32].map(u32::to_ne_bytes).concat();
        let message = [&header, payload].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.as_slice();
        anyhow::ensure!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)), "no room for {name}");
        let sent = sendmsg(&self.socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)
            .with_context(|| format!("{name}: sending"))?;
        // Descriptors go with the first bytes.
        self.socket.write_all(&message[sent..]).with_context(|| format!("{name}: sending"))
    }

    fn answer(&mut self, (number, name): Request) -> anyhow::Result<Vec<u8>> {
        let mut header = [0; 12];
        let until = Instant::now() + LIMIT;
        self.read(&mut header, until).with_context(|| format!("{name}: waiting for the answer"))?;
        let [got, flags, len] = [0, 4, 8].map(|at| u32::from_ne_bytes([0, 1, 2, 3].map(|n| header[at + n])));
        anyhow::ensure!(
            got == number && flags & 3 == VERSION && flags & FLAG_REPLY != 0 && len <= MAX_ANSWER,
            "{name}: the answer has request {got}, flags {flags:#x} and {len} bytes, which is none"
        );
        let mut payload = vec![0; len as usize];
        self.read(&mut payload, until).with_context(|| format!("{name}: reading the answer"))?;
        Ok(payload)
    }

    /// Fills `bytes`, however slowly they come, unless they are not all there at `until`.
    fn read(&mut self, mut bytes: &mut [u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let timed_out = || io::Error::new(io::ErrorKind::TimedOut, format!("it is not there within {LIMIT:?}"));
            if left.is_zero() {
                return Err(timed_out());
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => bytes = &mut bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(timed_out()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The number that is the whole of an answer.
fn word((_, name): Request, payload: &[u8]) -> anyhow::Result<u64> {
    let bytes = payload.try_into().ok().with_context(|| format!("{name}: the answer has {} bytes", payload.len()))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// `struct vhost_vring_state` of ring `index`.
fn state(index: u16, number: u32) -> Vec<u8> {
    [index.into(), number].map(u32::to_ne_bytes).concat()
}

/// Descriptors are aligned as the standard wants it.
const _: () = assert!(BASE.is_multiple_of(DESC as u64));
