//! One connection as the admin poller and the I/O queues use it: the sans-IO protocol, a byte stream, and the memory of its commands.
//!
//! All capsules of a turn leave in one call of [`Link::flush`]; [`Link::receive`] takes whatever is there into one large buffer and
//! places data from it, or lets the kernel place them when much of one PDU is still to come. Data are copied at most once on the
//! way in. On the way out they are not copied, unless data digests are on: then the digest must be that of the bytes that leave,
//! whatever their owner does to the memory meanwhile, so a private copy leaves.

use crate::pdu::digest;
use crate::proto::{Chunk, DataPlan, Event, HostConfig, HostConnection, Outcome, ProtocolError, Want};
use polypath_block::{Code, SegSpan, SegTable, Waits};
use polypath_memory::Table;
use polypath_net::{Counters, Dialer, IoList, Received, Transport};
use polypath_nvme::{Cqe, Sqe};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Bytes an I/O queue receives in one call.
pub(crate) const RX_IO: usize = 256 << 10;
/// Bytes an admin queue receives in one call.
pub(crate) const RX_ADMIN: usize = 16 << 10;
/// From so many missing bytes of one PDU on the kernel places them itself.
const DIRECT: u32 = 16 << 10;
/// Receives of one turn.
const RX_ROUNDS: usize = 4;
/// Sends of one turn.
const TX_ROUNDS: usize = 4;
/// Bytes that are copied for their digest before any of them leaves.
const BOUNCE: usize = 1 << 20;

/// A connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) code: Code,
    pub(crate) reason: String,
}

impl From<ProtocolError> for Broken {
    fn from(error: ProtocolError) -> Self {
        let code = if matches!(error, ProtocolError::Terminated { .. }) { Code::PathLost } else { Code::PathProtocol };
        Broken { code, reason: error.to_string() }
    }
}

impl Broken {
    fn io(what: &str, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::TimedOut { Code::PathTimeout } else { Code::PathLost };
        Broken { code, reason: format!("{what}: {error}") }
    }
}

/// The data of a command: a part of its owner's segments.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transfer {
    None,
    In { span: SegSpan, skip: u32, len: u32, exact: bool },
    Out { span: SegSpan, skip: u32, len: u32 },
}

/// Where the data of a slot lie, and whose it is.
#[derive(Clone, Copy, Debug, Default)]
struct Holding {
    user: u64,
    span: SegSpan,
    skip: u32,
    /// Received data could not be placed: the memory is gone.
    bad: bool,
    /// The controller has said that it aborted this very command.
    aborted: bool,
}

/// A finished command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) user: u64,
    pub(crate) cqe: Cqe,
    pub(crate) bad_memory: bool,
}

/// What became of a command when its connection ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) user: u64,
    pub(crate) outcome: Outcome,
    pub(crate) bad_memory: bool,
    /// The controller had said that it aborted the command.
    pub(crate) aborted: bool,
}

/// A private copy of data whose digest was taken.
struct Copied {
    /// Names the PDU. Slot and offset would not do: a PDU that was taken back leaves its slot to another command.
    token: u64,
    offset: u32,
    bytes: Vec<u8>,
}

/// See the module.
pub(crate) struct Link {
    stream: Box<dyn Transport>,
    connection: HostConnection,
    holdings: Box<[Holding]>,
    connected: bool,
    started: bool,
    rx: Box<[u8]>,
    rx_list: IoList,
    tx_list: IoList,
    rx_crc: u32,
    copies: VecDeque<Copied>,
    copied: usize,
    spare: Vec<Vec<u8>>,
}

impl Link {
    /// Begins to connect. [`Link::receive`] does the rest up to the ICResp.
    pub(crate) fn dial(
        dialer: &dyn Dialer,
        address: SocketAddr,
        config: HostConfig,
        rx: usize,
    ) -> Result<Link, Broken> {
        let broken = |reason: String| Broken { code: Code::PathLost, reason };
        let connection = HostConnection::new(config).map_err(|e| broken(e.to_string()))?;
        let stream = dialer.dial(address).map_err(|e| broken(format!("connecting to {address}: {e}")))?;
        let holdings = vec![Holding::default(); usize::from(config.depth)].into();
        Ok(Link {
            stream,
            connection,
            holdings,
            connected: false,
            started: false,
            rx: vec![0; rx].into(),
            rx_list: IoList::new(),
            tx_list: IoList::new(),
            rx_crc: 0,
            copies: VecDeque::new(),
            copied: 0,
            spare: Vec::new(),
        })
    }

    /// May commands be submitted?
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.connection.is_ready()
    }

    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        self.connection.in_flight()
    }

    pub(crate) fn counters(&self) -> Counters {
        self.stream.counters()
    }

    /// As [`Transport::unacknowledged`].
    pub(crate) fn unacknowledged(&self) -> Option<Duration> {
        self.stream.unacknowledged()
    }

    /// The wire's name of the command in `slot`.
    pub(crate) fn cid(&self, slot: u16) -> Option<u16> {
        self.connection.cid(slot)
    }

    /// Takes a command; nothing leaves before [`Link::flush`]. `None` when there is no room.
    #[inline]
    pub(crate) fn submit(&mut self, sqe: &Sqe, transfer: Transfer, user: u64) -> Option<u16> {
        let (plan, span, skip) = match transfer {
            Transfer::None => (DataPlan::None, SegSpan::EMPTY, 0),
            Transfer::In { span, skip, len, exact } => (DataPlan::ToHost { len, exact }, span, skip),
            Transfer::Out { span, skip, len } => (DataPlan::ToController { len, exact: true }, span, skip),
        };
        let slot = self.connection.submit(sqe, plan).ok()?;
        self.holdings[usize::from(slot)] = Holding { user, span, skip, bad: false, aborted: false };
        Some(slot)
    }

    /// The slots of the commands that belong to `user`. Walks all of them: for rare ways.
    pub(crate) fn slots_of(&self, user: u64) -> Vec<u16> {
        let slots = self.holdings.iter().zip(0u16..).filter(|(h, slot)| h.user == user && self.cid(*slot).is_some());
        slots.map(|(_, slot)| slot).collect()
    }

    /// An Abort of the command in `slot` goes out: its identifier stays taken until [`Link::abort_answered`].
    pub(crate) fn abort_sent(&mut self, slot: u16) {
        self.connection.retain(slot);
    }

    /// The Abort of the command that was `cid` in `slot` was answered. If the controller did abort it and it is still there, that
    /// is remembered for as long as the command lives. Returns whose command it was.
    pub(crate) fn abort_answered(&mut self, slot: u16, cid: u16, aborted: bool) -> u64 {
        if self.connection.cid(slot) == Some(cid) {
            self.holdings[usize::from(slot)].aborted |= aborted;
        }
        self.connection.let_go(slot);
        self.holdings[usize::from(slot)].user
    }

    /// Is an Abort under way of a command that is over?
    pub(crate) fn awaits_aborts(&self) -> bool {
        self.connection.retained() > 0
    }

    /// Has everything of the command in `slot` left that ever will?
    pub(crate) fn has_left(&self, slot: u16) -> bool {
        self.connection.has_left(slot)
    }

    /// Takes back a command of which nothing has left.
    pub(crate) fn withdraw(&mut self, slot: u16) -> bool {
        self.connection.withdraw(slot)
    }

    /// Takes what has come and reports what it finished; says whether anything came. Also completes connecting.
    #[inline]
    pub(crate) fn receive(&mut self, segs: &SegTable, mut done: impl FnMut(Finished)) -> Result<bool, Broken> {
        if !self.started && !self.connect()? {
            return Ok(false);
        }
        let mut moved = false;
        for _ in 0..RX_ROUNDS {
            let (room, got) = self.fetch(segs)?;
            if got == 0 {
                break;
            }
            moved = true;
            while let Some(event) = self.connection.poll_event() {
                if let Event::Completed { slot, cqe, .. } = event {
                    let h = self.holdings[usize::from(slot)];
                    done(Finished { user: h.user, cqe, bad_memory: h.bad });
                }
            }
            // A socket that gave less than there was room for is empty now: asking again would be a system call in vain.
            if got < room {
                break;
            }
        }
        Ok(moved)
    }

    fn connect(&mut self) -> Result<bool, Broken> {
        if !self.connected {
            self.connected = self.stream.poll_connected().map_err(|e| Broken::io("connecting", &e))?;
            if !self.connected {
                return Ok(false);
            }
        }
        self.connection.start();
        self.started = true;
        Ok(true)
    }

    /// One receive; returns the room there was and the bytes that came.
    fn fetch(&mut self, segs: &SegTable) -> Result<(usize, usize), Broken> {
        let Link { stream, connection, holdings, rx, rx_list, rx_crc, .. } = self;
        let checked = connection.negotiated().is_some_and(|n| n.rx.data_digest);
        polypath_memory::with(|table| {
            let mut into = rx_list.scatter();
            let mut direct = 0;
            if let Want::Data { slot, offset, len } = connection.wants()
                && len >= DIRECT
                && !checked
                && !holdings[usize::from(slot)].bad
            {
                let h = &holdings[usize::from(slot)];
                // Whatever cannot be reached comes through the buffer, where it is noticed.
                for piece in segs.pieces(h.span, u64::from(h.skip) + u64::from(offset), len.into()) {
                    match table.view(piece) {
                        Ok(view) if into.view(view) => direct += piece.len,
                        _ => break,
                    }
                }
            }
            into.bytes(rx);
            let room = into.len();
            let n = match stream.receive(&mut into).map_err(|e| Broken::io("receiving", &e))? {
                Received::Bytes(n) => n,
                Received::Nothing => return Ok((room, 0)),
                Received::End => {
                    let reason = "the target has closed the connection".into();
                    return Err(Broken { code: Code::PathLost, reason });
                }
            };
            let placed = n.min(direct as usize);
            if placed > 0 {
                connection.data_moved(placed as u32);
            }
            let input = &rx[..n - placed];
            let mut inbound = Inbound { connection, holdings, segs, table, crc: rx_crc, checked };
            inbound.take(input)?;
            Ok((room, n))
        })
    }

    /// Sends what waits; says whether all of it has left.
    #[inline]
    pub(crate) fn flush(&mut self, segs: &SegTable) -> Result<bool, Broken> {
        if !self.connection.has_output() {
            return Ok(true);
        }
        for _ in 0..TX_ROUNDS {
            let (listed, sent) = self.send(segs)?;
            if sent < listed || !self.connection.has_output() {
                break;
            }
        }
        Ok(!self.connection.has_output())
    }

    fn send(&mut self, segs: &SegTable) -> Result<(usize, usize), Broken> {
        self.copy_for_digests(segs)?;
        let Link { stream, connection, holdings, tx_list, copies, .. } = self;
        let (listed, sent) = polypath_memory::with(|table| {
            let mut list = tx_list.gather();
            let mut copied = copies.iter();
            'all: for chunk in connection.transmit() {
                match chunk {
                    Chunk::Bytes(bytes) => {
                        if !list.bytes(bytes) {
                            break;
                        }
                    }
                    Chunk::Data { token, slot, offset, len } => {
                        let held = copied.find(|c| c.token == token);
                        if let Some(copy) = held {
                            let from = (offset - copy.offset) as usize;
                            if !list.bytes(&copy.bytes[from..]) {
                                break;
                            }
                            continue;
                        }
                        let h = &holdings[usize::from(slot)];
                        let mut left = len;
                        for piece in segs.pieces(h.span, u64::from(h.skip) + u64::from(offset), len.into()) {
                            let view = table.view(piece).map_err(|e| unreachable_memory(&e))?;
                            if !list.view(view) {
                                break 'all;
                            }
                            left -= piece.len;
                        }
                        if left > 0 {
                            return Err(unreachable_memory(&"segments are shorter than the data"));
                        }
                    }
                }
            }
            let sent = stream.send(&list).map_err(|e| Broken::io("sending", &e))?;
            Ok((list.len(), sent))
        })?;
        if sent > 0 {
            self.release_copies(sent);
            self.connection.sent(sent);
        }
        Ok((listed, sent))
    }

    /// Takes the digests that are due, over private copies that then leave in place of the memory.
    fn copy_for_digests(&mut self, segs: &SegTable) -> Result<(), Broken> {
        while self.copied < BOUNCE
            && let Some(due) = self.connection.next_digest()
        {
            let h = self.holdings[usize::from(due.slot)];
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.clear();
            bytes.resize(due.len as usize, 0);
            let mut at = 0;
            polypath_memory::with(|table| {
                for piece in segs.pieces(h.span, u64::from(h.skip) + u64::from(due.offset), due.len.into()) {
                    at += table.view(piece).map_err(|e| unreachable_memory(&e))?.copy_out(&mut bytes[at..]);
                }
                Ok::<(), Broken>(())
            })?;
            self.connection.set_digest(due.token, digest(0, &bytes));
            self.copied += bytes.len();
            self.copies.push_back(Copied { token: due.token, offset: due.offset, bytes });
        }
        Ok(())
    }

    /// Lets go of copies that the next `sent` bytes pass.
    fn release_copies(&mut self, sent: usize) {
        if self.copies.is_empty() {
            return;
        }
        let mut left = sent;
        for chunk in self.connection.transmit() {
            let len = match chunk {
                Chunk::Bytes(bytes) => bytes.len(),
                Chunk::Data { len, .. } => len as usize,
            };
            if left < len {
                break;
            }
            left -= len;
            if let Chunk::Data { token, .. } = chunk {
                // Those before it belong to PDUs that were taken back.
                while self.copies.front().is_some_and(|copy| copy.token <= token)
                    && let Some(copy) = self.copies.pop_front()
                {
                    self.copied -= copy.bytes.len();
                    self.spare.push(copy.bytes);
                }
            }
        }
    }

    pub(crate) fn arm(&self, waits: &mut Waits) {
        self.stream.arm(waits, self.connection.has_output());
    }

    /// Closes it abortively, after a terminate request if the peer broke the protocol.
    pub(crate) fn abort(&mut self) {
        if let Some(request) = self.connection.terminate_request() {
            let mut list = self.tx_list.gather();
            list.bytes(request);
            // Best effort: the connection ends either way.
            let _ = self.stream.send(&list);
        }
        self.connection.close();
        self.stream.abort();
    }

    /// After [`Link::abort`]: what became of each command that was not reported finished.
    pub(crate) fn next_outcome(&mut self) -> Option<Ended> {
        let (slot, outcome) = self.connection.poll_outcome()?;
        let Holding { user, bad, aborted, .. } = self.holdings[usize::from(slot)];
        Some(Ended { user, outcome, bad_memory: bad, aborted })
    }
}

fn unreachable_memory(why: &dyn std::fmt::Display) -> Broken {
    Broken { code: Code::BadMemory, reason: format!("memory of a command in flight is gone: {why}") }
}

/// Received bytes on their way to the protocol and to memory.
struct Inbound<'a> {
    connection: &'a mut HostConnection,
    holdings: &'a mut [Holding],
    segs: &'a SegTable,
    table: &'a Table,
    crc: &'a mut u32,
    /// Data digests are in use. Before the first data this is settled.
    checked: bool,
}

impl Inbound<'_> {
    #[inline]
    fn take(&mut self, mut input: &[u8]) -> Result<(), Broken> {
        while !input.is_empty() {
            let used = match self.connection.wants() {
                Want::Header(_) => self.connection.handle_bytes(input)?,
                Want::Data { slot, offset, len } => {
                    let n = input.len().min(len as usize);
                    self.place(slot, offset, &input[..n]);
                    self.connection.data_moved(n as u32);
                    n
                }
                Want::Digest(_) => {
                    let used = self.connection.handle_digest(input, *self.crc)?;
                    if !matches!(self.connection.wants(), Want::Digest(_)) {
                        *self.crc = 0;
                    }
                    used
                }
                Want::Nothing => return Err(ProtocolError::NotWanted.into()),
            };
            input = &input[used..];
        }
        Ok(())
    }

    /// Copies data to where they belong. Memory that is gone costs its command, not the connection.
    #[inline]
    fn place(&mut self, slot: u16, offset: u32, data: &[u8]) {
        if self.checked {
            *self.crc = digest(*self.crc, data);
        }
        let h = &mut self.holdings[usize::from(slot)];
        let mut rest = data;
        for piece in self.segs.pieces(h.span, u64::from(h.skip) + u64::from(offset), data.len() as u64) {
            match self.table.view(piece) {
                Ok(view) => rest = &rest[view.copy_in(rest)..],
                Err(_) => break,
            }
        }
        h.bad |= !rest.is_empty();
    }
}

#[cfg(test)]
mod tests;
