//! One connection as the admin poller and the I/O queues use it: the sans-IO protocol, a byte stream, and the memory of its commands.
//!
//! All capsules of a turn leave in one call of [`Link::flush`]; [`Link::receive`] takes whatever is there into one large buffer and
//! places data from it, or lets the kernel place them when much of one PDU is still to come. Data are copied at most once on the
//! way in. On the way out they are not copied, unless data digests are on: then the digest must be that of the bytes that leave,
//! whatever their owner does to the memory meanwhile, so a private copy leaves.

mod inbound;

use crate::proto::{DataPlan, Event, HostConfig, HostConnection, Outcome, ProtocolError, Want};
use inbound::Inbound;
use polypath_block::{Code, SegSpan, SegTable, Waits};
use polypath_memory::Table;
use polypath_net::plan::{Chunk, Copies, Holding, Unreachable};
use polypath_net::{Counters, Dialer, Gather, IoList, Received, Transport};
use polypath_nvme::sqe::BlockCommand;
use polypath_nvme::{Cqe, Sqe};
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

impl From<Unreachable> for Broken {
    fn from(why: Unreachable) -> Self {
        Broken { code: Code::BadMemory, reason: why.to_string() }
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

/// What belongs to the command of a slot.
#[derive(Clone, Copy, Debug, Default)]
struct Command {
    data: Holding,
    /// The controller has said that it aborted this very command.
    aborted: bool,
}

impl Command {
    fn new(user: u64, span: SegSpan, skip: u32) -> Self {
        Command { data: Holding { user, span, skip, bad: false }, aborted: false }
    }
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

/// See the module.
pub(crate) struct Link {
    stream: Box<dyn Transport>,
    connection: HostConnection,
    holdings: Box<[Command]>,
    connected: bool,
    started: bool,
    rx: Box<[u8]>,
    rx_list: IoList,
    tx_list: IoList,
    rx_crc: u32,
    copies: Copies,
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
        let holdings = vec![Command::default(); usize::from(config.depth)].into();
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
            copies: Copies::default(),
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

    /// Commands that it has room for now.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.connection.room()
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
        self.holdings[usize::from(slot)] = Command::new(user, span, skip);
        Some(slot)
    }

    /// As [`Link::submit`], of a read or a write of `len` octets.
    #[inline(always)]
    pub(crate) fn submit_block(
        &mut self,
        command: &BlockCommand,
        span: SegSpan,
        skip: u32,
        len: u32,
        user: u64,
    ) -> Option<u16> {
        let slot = self.connection.submit_block(command, len).ok()?;
        self.holdings[usize::from(slot)] = Command::new(user, span, skip);
        Some(slot)
    }

    /// The slots of the commands that belong to `user`. Walks all of them: for rare ways.
    pub(crate) fn slots_of(&self, user: u64) -> Vec<u16> {
        let slots =
            self.holdings.iter().zip(0u16..).filter(|(h, slot)| h.data.user == user && self.cid(*slot).is_some());
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
        self.holdings[usize::from(slot)].data.user
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
        if self.has_news() {
            self.tell(&mut done);
        }
        let mut moved = false;
        for _ in 0..RX_ROUNDS {
            let (room, got) = self.fetch(segs, &mut done)?;
            if got == 0 {
                break;
            }
            moved = true;
            // A socket that gave less than there was room for is empty now: asking again would be a system call in vain.
            if got < room {
                break;
            }
        }
        Ok(moved)
    }

    /// Reports what sending has finished.
    #[cold]
    fn tell(&mut self, done: &mut impl FnMut(Finished)) {
        while let Some(event) = self.connection.poll_event() {
            if let Event::Completed { slot, cqe, .. } = event {
                let h = &self.holdings[usize::from(slot)].data;
                done(Finished { user: h.user, cqe, bad_memory: h.bad });
            }
        }
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

    /// One receive, all of whose commands are reported; returns the room there was and the bytes that came.
    #[inline]
    fn fetch(&mut self, segs: &SegTable, done: &mut impl FnMut(Finished)) -> Result<(usize, usize), Broken> {
        let Link { stream, connection, holdings, rx, rx_list, rx_crc, .. } = self;
        let checked = connection.negotiated().is_some_and(|n| n.rx.data_digest);
        polypath_memory::with(|table| {
            let mut into = rx_list.scatter();
            let mut direct = 0;
            if let Want::Data { slot, offset, len } = connection.wants()
                && len >= DIRECT
                && !checked
                && !holdings[usize::from(slot)].data.bad
            {
                direct = holdings[usize::from(slot)].data.scatter(segs, table, (offset, len), &mut into);
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
            inbound.take(input, done)?;
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

    #[inline]
    fn send(&mut self, segs: &SegTable) -> Result<(usize, usize), Broken> {
        self.copy_for_digests(segs)?;
        let Link { stream, connection, holdings, tx_list, copies, .. } = self;
        let (listed, sent) = polypath_memory::with(|table| {
            let mut list = tx_list.gather();
            match connection.bare_capsules() {
                Some(capsules) => {
                    for (head, slot, len) in capsules {
                        let data = || &holdings[usize::from(slot)].data;
                        if !list.bytes(head) || (len > 0 && !data().list(segs, table, (0, len), &mut list)?) {
                            break;
                        }
                    }
                }
                None => list_chunks(connection, holdings, copies, segs, table, &mut list)?,
            }
            let sent = stream.send(&list).map_err(|e| Broken::io("sending", &e))?;
            Ok::<_, Broken>((list.len(), sent))
        })?;
        if sent > 0 {
            copies.release(sent, || connection.transmit());
            connection.sent(sent);
        }
        Ok((listed, sent))
    }

    /// Takes the digests that are due, over private copies that then leave in place of the memory.
    #[inline]
    fn copy_for_digests(&mut self, segs: &SegTable) -> Result<(), Broken> {
        let Link { connection, holdings, copies, .. } = self;
        if copies.is_full() {
            copies.keep_only(connection.digested());
        }
        while !copies.is_full()
            && let Some(due) = connection.next_digest()
        {
            let held = &holdings[usize::from(due.slot)].data;
            let digest = polypath_memory::with(|table| copies.take(&due, held, segs, table))?;
            connection.set_digest(due.token, digest);
        }
        Ok(())
    }

    /// Is there something to be heard by [`Link::receive`] although nothing has come? A command that was answered before its last octets
    /// had left is over when they have.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.connection.has_events()
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
        let Command { data, aborted } = self.holdings[usize::from(slot)];
        Some(Ended { user: data.user, outcome, bad_memory: data.bad, aborted })
    }
}

/// Lists what has to leave, whatever it is.
fn list_chunks<'a>(
    connection: &'a HostConnection,
    holdings: &[Command],
    copies: &'a Copies,
    segs: &SegTable,
    table: &'a Table,
    list: &mut Gather<'a>,
) -> Result<(), Broken> {
    let mut copied = copies.lookup();
    for chunk in connection.transmit() {
        let listed = match chunk {
            Chunk::Bytes(bytes) => list.bytes(bytes),
            Chunk::Data { token, slot, offset, len } => match copied.find(token, offset) {
                Some(copy) => list.bytes(copy),
                None => holdings[usize::from(slot)].data.list(segs, table, (offset, len), list)?,
            },
        };
        if !listed {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
