//! What is on the wire.

use super::{Shape, Way, broken};
use core::time::Duration;
use polypath_block::{Interest, Time};
use polypath_net::Received;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;

/// For so long nothing is acknowledged before a sender's host calls the way cut.
const RETRANSMITTED: Duration = Duration::from_millis(30);
/// Most of the time after a cut was healed until what is stuck is sent once more, in microseconds.
const RETRANSMIT_US: u64 = 20_000;

pub(crate) struct State {
    pub(crate) now: Time,
    rng: Xoshiro256PlusPlus,
    buffer: usize,
    heap: BinaryHeap<Reverse<(Time, u64, u64, Way)>>,
    seq: u64,
    listeners: BTreeMap<SocketAddr, Listener>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
}

#[derive(Default)]
pub(crate) struct Listener {
    pub(crate) open: bool,
    shapes: [Shape; 2],
    backlog: VecDeque<u64>,
}

struct Connection {
    address: SocketAddr,
    /// Indexed by the way that bytes go.
    lines: [Line; 2],
    /// Indexed by the way that the end sends.
    ends: [End; 2],
    changed: bool,
}

/// One direction.
#[derive(Default)]
struct Line {
    packets: VecDeque<Packet>,
    /// Bytes sent and not read.
    held: usize,
    /// Bytes that have arrived, from `read` on.
    arrived: Vec<u8>,
    read: usize,
    /// An arrival is in the heap.
    scheduled: bool,
    last_at: Time,
    free_at: Time,
    skew_us: u64,
    lag_us: u64,
    /// Its sender has aborted: what a cut swallows is not sent once more.
    aborted: bool,
    /// When the oldest bytes left that nobody acknowledged because of a cut.
    unacknowledged: Option<Time>,
}

#[derive(Default)]
struct End {
    connected: bool,
    refused: bool,
    reset: bool,
    ended: bool,
    gone: bool,
}

struct Packet {
    sent: Time,
    leaves: Time,
    at: Time,
    load: Load,
}

enum Load {
    Bytes(Vec<u8>),
    Dial,
    Accepted,
    Refused,
    End,
    Reset,
}

impl State {
    pub(crate) fn new(seed: u64, now: Time, buffer: usize) -> State {
        State {
            now,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x77_1e),
            buffer,
            heap: BinaryHeap::new(),
            seq: 0,
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 1,
        }
    }

    pub(crate) fn listener(&mut self, address: SocketAddr) -> &mut Listener {
        self.listeners.entry(address).or_default()
    }

    pub(crate) fn shape_of(&self, address: SocketAddr, way: Way) -> Shape {
        self.listeners.get(&address).map_or_else(Shape::default, |l| l.shapes[way as usize])
    }

    pub(crate) fn reshape(&mut self, address: SocketAddr, way: Way, shape: Shape) {
        let healed = self.shape_of(address, way).cut && !shape.cut;
        self.listener(address).shapes[way as usize] = shape;
        if !healed {
            return;
        }
        let stuck: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.address == address).map(|(id, _)| *id).collect();
        for id in stuck {
            let again = self.now.after(Duration::from_micros(self.rng.random_range(1_000..RETRANSMIT_US)));
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.lines.iter_mut().for_each(|line| line.unacknowledged = None);
            let line = &mut connection.lines[way as usize];
            for packet in &mut line.packets {
                packet.at = packet.at.max(again);
            }
            line.last_at = line.last_at.max(again);
            self.schedule(id, way);
        }
    }

    pub(crate) fn lag(&mut self, id: u64, way: Way, us: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.lines[way as usize].lag_us = us;
        }
    }

    pub(crate) fn connections(&self, address: SocketAddr) -> Vec<u64> {
        let held = |c: &Connection| c.address == address && !c.ends.iter().all(|e| e.gone);
        self.connections.iter().filter(|(_, c)| held(c)).map(|(id, _)| *id).collect()
    }

    pub(crate) fn unread(&self, id: u64, way: Way) -> usize {
        self.connections.get(&id).map_or(0, |c| c.lines[way as usize].held)
    }

    pub(crate) fn dialled(&self, address: SocketAddr) -> usize {
        let held = |c: &&Connection| c.address == address && !c.ends[Way::ToTarget as usize].gone;
        self.connections.values().filter(held).count()
    }

    pub(crate) fn dial(&mut self, address: SocketAddr) -> u64 {
        let id = self.next_connection;
        self.next_connection += 1;
        let mut lines: [Line; 2] = Default::default();
        for (line, way) in lines.iter_mut().zip(Way::ALL) {
            let most = self.shape_of(address, way).skew_us;
            line.skew_us = self.rng.random_range(0..=most);
        }
        self.connections.insert(id, Connection { address, lines, ends: Default::default(), changed: false });
        self.post(id, Way::ToTarget, Load::Dial);
        id
    }

    pub(crate) fn accept(&mut self, address: SocketAddr) -> Option<u64> {
        self.listeners.get_mut(&address)?.backlog.pop_front()
    }

    pub(crate) fn next_event(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    pub(crate) fn advance_to(&mut self, to: Time) {
        while let Some(&Reverse((at, _, id, way))) = self.heap.peek() {
            if at > to {
                break;
            }
            self.heap.pop();
            self.now = self.now.max(at);
            self.arrive(id, way);
        }
        self.now = self.now.max(to);
    }

    pub(crate) fn take_changed(&mut self, id: u64) -> bool {
        self.connections.get_mut(&id).is_some_and(|c| std::mem::take(&mut c.changed))
    }

    /// Interests are numbered by connection and the way that their end sends.
    pub(crate) fn is_ready(&self, interest: &Interest) -> bool {
        let side = if interest.id & 1 == 0 { Way::ToTarget } else { Way::ToHost };
        let Some(c) = self.connections.get(&(interest.id >> 1)) else { return true };
        let end = &c.ends[side as usize];
        if end.reset || end.refused {
            return true;
        }
        let incoming = &c.lines[side.other() as usize];
        let readable = incoming.read < incoming.arrived.len() || end.ended;
        let writable = end.connected && c.lines[side as usize].held < self.buffer;
        (interest.read && readable) || (interest.write && writable)
    }

    pub(crate) fn poll_connected(&self, id: u64, side: Way) -> io::Result<bool> {
        let end = self.end(id, side)?;
        if end.refused {
            return Err(broken(io::ErrorKind::ConnectionRefused, "connection refused"));
        }
        self.check(end)?;
        Ok(end.connected)
    }

    /// Gives what has arrived to `take`, which says how much of it was taken.
    pub(crate) fn receive(&mut self, id: u64, side: Way, take: impl FnOnce(&[u8]) -> usize) -> io::Result<Received> {
        let end = self.end(id, side)?;
        self.check(end)?;
        let ended = end.ended;
        let Some(c) = self.connections.get_mut(&id) else { return Ok(Received::End) };
        let line = &mut c.lines[side.other() as usize];
        if line.read == line.arrived.len() {
            return Ok(if ended { Received::End } else { Received::Nothing });
        }
        let n = take(&line.arrived[line.read..]);
        line.read += n;
        line.held -= n;
        if line.read == line.arrived.len() {
            line.arrived.clear();
            line.read = 0;
        }
        c.changed = true;
        Ok(Received::Bytes(n))
    }

    /// Room for more bytes from this end.
    pub(crate) fn room(&self, id: u64, side: Way) -> io::Result<usize> {
        let end = self.end(id, side)?;
        self.check(end)?;
        if !end.connected {
            return Ok(0);
        }
        Ok(self.connections.get(&id).map_or(0, |c| self.buffer.saturating_sub(c.lines[side as usize].held)))
    }

    pub(crate) fn send(&mut self, id: u64, side: Way, bytes: Vec<u8>) {
        let Some(c) = self.connections.get_mut(&id) else { return };
        c.lines[side as usize].held += bytes.len();
        let packet = self.shape_of(self.connections[&id].address, side).packet.max(1);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            // Packets end anywhere: headers are cut, too.
            let most = rest.len().min(packet);
            let n = if self.rng.random_range(0..4) == 0 { self.rng.random_range(1..=most) } else { most };
            let (now, later) = rest.split_at(n);
            self.post(id, side, Load::Bytes(now.to_vec()));
            rest = later;
        }
    }

    pub(crate) fn unacknowledged(&self, id: u64, side: Way) -> Option<Duration> {
        let c = self.connections.get(&id)?;
        let since = c.lines[side as usize].unacknowledged?;
        let span = self.now.since(since);
        (self.is_cut(c.address) && span >= RETRANSMITTED).then_some(span)
    }

    /// An end goes: in order, or abortively.
    pub(crate) fn close(&mut self, id: u64, side: Way, abort: bool) {
        let now = self.now;
        let Some(c) = self.connections.get_mut(&id) else { return };
        let cut = self.listeners.get(&c.address).is_some_and(|l| l.shapes[side as usize].cut);
        let end = &mut c.ends[side as usize];
        if end.gone {
            return;
        }
        end.gone = true;
        let told = end.connected && !end.reset;
        c.changed = true;
        let incoming = &c.lines[side.other() as usize];
        let unread = incoming.read < incoming.arrived.len();
        let line = &mut c.lines[side as usize];
        let dialling = matches!(line.packets.front(), Some(Packet { load: Load::Dial, .. }));
        if dialling {
            // Nobody has heard of it, or will answer to nobody.
            line.packets.clear();
        } else if abort {
            // What has not left the host does not leave any more.
            line.packets.retain(|p| p.leaves <= now && !cut);
            line.aborted = true;
        }
        if told || (side == Way::ToTarget && !dialling) {
            self.post(id, side, if abort || unread { Load::Reset } else { Load::End });
        }
        self.forget(id);
    }

    fn end(&self, id: u64, side: Way) -> io::Result<&End> {
        let found = self.connections.get(&id).map(|c| &c.ends[side as usize]).filter(|end| !end.gone);
        found.ok_or_else(|| broken(io::ErrorKind::NotConnected, "the stream was closed"))
    }

    fn check(&self, end: &End) -> io::Result<()> {
        if end.reset { Err(broken(io::ErrorKind::ConnectionReset, "connection reset by peer")) } else { Ok(()) }
    }

    fn is_cut(&self, address: SocketAddr) -> bool {
        Way::ALL.into_iter().any(|way| self.shape_of(address, way).cut)
    }

    fn post(&mut self, id: u64, way: Way, load: Load) {
        let Some(c) = self.connections.get(&id) else { return };
        let shape = self.shape_of(c.address, way);
        let cut = self.is_cut(c.address);
        if shape.cut && matches!(load, Load::Reset | Load::Refused) {
            return;
        }
        let (least, most) = shape.delay_us;
        let jitter = self.rng.random_range(least..=most.max(least));
        let now = self.now;
        let Some(c) = self.connections.get_mut(&id) else { return };
        let line = &mut c.lines[way as usize];
        let bytes = if let Load::Bytes(bytes) = &load { bytes.len() as u64 } else { 1 };
        let takes = (bytes * 1_000_000_000).checked_div(shape.bytes_per_s).unwrap_or(0);
        let leaves = line.free_at.max(now);
        line.free_at = leaves.after(Duration::from_nanos(takes));
        let delay = Duration::from_micros(jitter + line.skew_us + line.lag_us);
        let at = line.free_at.after(delay).max(line.last_at);
        line.last_at = at;
        if cut && matches!(load, Load::Bytes(_)) {
            line.unacknowledged.get_or_insert(now);
        }
        line.packets.push_back(Packet { sent: now, leaves, at, load });
        self.schedule(id, way);
    }

    fn schedule(&mut self, id: u64, way: Way) {
        let Some(c) = self.connections.get_mut(&id) else { return };
        let line = &mut c.lines[way as usize];
        if line.scheduled {
            return;
        }
        let Some(front) = line.packets.front() else { return };
        line.scheduled = true;
        self.seq += 1;
        self.heap.push(Reverse((front.at.max(self.now), self.seq, id, way)));
    }

    fn arrive(&mut self, id: u64, way: Way) {
        let Some(c) = self.connections.get_mut(&id) else { return };
        c.lines[way as usize].scheduled = false;
        let address = c.address;
        loop {
            let cut = self.shape_of(address, way).cut;
            let now = self.now;
            let Some(c) = self.connections.get_mut(&id) else { return };
            let line = &mut c.lines[way as usize];
            let Some(front) = line.packets.front() else { break };
            if cut {
                // Stuck until it is healed.
                if matches!(front.load, Load::Bytes(_)) {
                    line.unacknowledged.get_or_insert(front.sent);
                }
                if line.aborted {
                    line.packets.clear();
                }
                line.packets.retain(|p| !matches!(p.load, Load::Reset | Load::Refused));
                return self.forget(id);
            }
            if front.at > now {
                break;
            }
            let Some(packet) = line.packets.pop_front() else { break };
            c.changed = true;
            self.deliver(id, way, packet.load);
        }
        self.schedule(id, way);
        self.forget(id);
    }

    fn deliver(&mut self, id: u64, way: Way, load: Load) {
        let Some(c) = self.connections.get_mut(&id) else { return };
        let address = c.address;
        let receiver = &mut c.ends[way.other() as usize];
        match load {
            Load::Dial => {
                if self.listener(address).open {
                    self.listener(address).backlog.push_back(id);
                    if let Some(c) = self.connections.get_mut(&id) {
                        c.ends[Way::ToHost as usize].connected = true;
                    }
                    self.post(id, Way::ToHost, Load::Accepted);
                } else {
                    self.post(id, Way::ToHost, Load::Refused);
                }
            }
            Load::Accepted if receiver.gone => self.post(id, Way::ToTarget, Load::Reset),
            Load::Accepted => receiver.connected = true,
            Load::Refused => receiver.refused = true,
            Load::Bytes(bytes) => {
                let line = &mut c.lines[way as usize];
                if receiver.gone {
                    line.held -= bytes.len();
                    self.post(id, way.other(), Load::Reset);
                } else {
                    line.arrived.extend_from_slice(&bytes);
                }
            }
            Load::End => receiver.ended = true,
            Load::Reset => {
                receiver.reset = true;
                let line = &mut c.lines[way as usize];
                line.held -= line.arrived.len() - line.read;
                line.arrived.clear();
                line.read = 0;
                // The other direction ends with it: nothing that was not sent leaves any more.
                c.lines[way.other() as usize].packets.clear();
            }
        }
    }

    /// Lets go of a connection that nobody holds and on which nothing moves.
    fn forget(&mut self, id: u64) {
        let over = |c: &Connection| c.ends.iter().all(|e| e.gone) && c.lines.iter().all(|l| l.packets.is_empty());
        let never_accepted = |c: &Connection| {
            c.ends[Way::ToTarget as usize].gone
                && !c.ends[Way::ToHost as usize].connected
                && c.lines.iter().all(|l| l.packets.is_empty())
        };
        if self.connections.get(&id).is_some_and(|c| over(c) || never_accepted(c)) {
            self.connections.remove(&id);
        }
    }
}
