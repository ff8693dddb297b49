//! Carrying bytes between the wire and the targets.

use crate::peer::{Peer, Wish, address};
use polypath_block::Time;
use polypath_net::{Received, Transport};
use polypath_sim::wire::{Net, SimStream, Way};

/// The targets' ends of all connections.
#[derive(Debug)]
pub(crate) struct Sockets {
    list: Vec<Socket>,
    /// Which target each path leads to.
    routes: Vec<usize>,
    /// By path: its devices have said that every disk which is swapped is another one now.
    known_swapped: Vec<bool>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Socket {
    path: usize,
    peer: usize,
    number: u64,
    stream: SimStream,
    over: bool,
    /// Of what comes next, so many bytes left the host before the disks were known to be other ones.
    innocent: usize,
}

impl Sockets {
    /// No connection; every path leads to the first target.
    pub(crate) fn new(paths: usize) -> Sockets {
        Sockets { list: Vec::new(), routes: vec![0; paths], known_swapped: vec![false; paths], buffer: Vec::new() }
    }

    /// Connections that are made from now on over `path` reach target `peer`.
    pub(crate) fn route(&mut self, path: usize, peer: usize) {
        self.routes[path] = peer;
    }

    /// The devices of `path` say that every disk which is swapped is another one now, or do not say so any more. What leaves for such
    /// a disk from now on is a violation.
    pub(crate) fn set_known_swapped(&mut self, path: usize, known: bool, net: &Net) {
        if std::mem::replace(&mut self.known_swapped[path], known) || !known {
            return;
        }
        for socket in self.list.iter_mut().filter(|s| s.path == path) {
            socket.innocent = net.unread(socket.stream.connection(), Way::ToTarget);
        }
    }

    /// Moves everything that can be moved now. Returns the path over which a disk was changed that was known to be another one when
    /// the last of the command left.
    pub(crate) fn pump(&mut self, now: Time, net: &Net, peers: &mut [Box<dyn Peer>]) -> Option<usize> {
        let mut violated = None;
        for (path, &peer) in self.routes.iter().enumerate() {
            while let Some(stream) = net.accept(address(path)) {
                let number = peers[peer].accept(now, path);
                self.list.push(Socket { path, peer, number, stream, over: false, innocent: 0 });
            }
        }
        let Sockets { list, buffer, known_swapped, .. } = self;
        for socket in list.iter_mut().filter(|s| net.take_changed(s.stream.connection())) {
            let peer = &mut *peers[socket.peer];
            if socket.take_in(now, peer, buffer, known_swapped[socket.path]) {
                violated = Some(socket.path);
            }
        }
        peers.iter_mut().for_each(|peer| peer.poll(now));
        for socket in list.iter_mut().filter(|s| !s.over) {
            socket.give_out(now, &mut *peers[socket.peer], buffer);
        }
        list.retain(|s| !s.over);
        violated
    }

    /// The target resets the connections of `path`, or ends them in order.
    pub(crate) fn end_path(&mut self, now: Time, path: usize, reset: bool, peers: &mut [Box<dyn Peer>]) {
        for socket in self.list.iter_mut().filter(|s| s.path == path) {
            socket.end(now, reset, &mut *peers[socket.peer]);
        }
        self.list.retain(|s| !s.over);
    }

    /// The target resets one connection of `path`.
    pub(crate) fn reset_one(&mut self, now: Time, path: usize, nth: usize, peers: &mut [Box<dyn Peer>]) {
        let of_path: Vec<usize> = (0..self.list.len()).filter(|&i| self.list[i].path == path).collect();
        if let Some(&i) = of_path.get(nth % of_path.len().max(1)) {
            let socket = &mut self.list[i];
            socket.end(now, true, &mut *peers[socket.peer]);
            self.list.remove(i);
        }
    }
}

impl Socket {
    /// Takes what has come. With `known_swapped`: whether bytes that left since then changed a disk that was swapped in. A change that the
    /// target puts off is not seen, and one that it makes at once is that of the command whose last byte it was given.
    fn take_in(&mut self, now: Time, peer: &mut dyn Peer, buffer: &mut Vec<u8>, known_swapped: bool) -> bool {
        let mut violated = false;
        loop {
            buffer.clear();
            match self.stream.read(buffer) {
                Ok(Received::Bytes(_)) if known_swapped => {
                    let (before, since) = buffer.split_at(self.innocent.min(buffer.len()));
                    self.innocent -= before.len();
                    peer.input(now, self.number, before);
                    let changes = peer.changes_of_swapped();
                    peer.input(now, self.number, since);
                    violated |= peer.changes_of_swapped() > changes;
                }
                Ok(Received::Bytes(_)) => peer.input(now, self.number, buffer),
                Ok(Received::Nothing) => return violated,
                Ok(Received::End) | Err(_) => {
                    self.over = true;
                    peer.closed(now, self.number);
                    return violated;
                }
            }
        }
    }

    fn give_out(&mut self, now: Time, peer: &mut dyn Peer, buffer: &mut Vec<u8>) {
        loop {
            buffer.clear();
            let room = self.stream.room();
            if room == 0 || peer.output(self.number, room, buffer) == 0 {
                break;
            }
            if self.stream.write(buffer).is_err() {
                break;
            }
        }
        match peer.wish(self.number) {
            Wish::Stay => {}
            Wish::End => self.end(now, false, peer),
            Wish::Reset => self.end(now, true, peer),
        }
    }

    fn end(&mut self, now: Time, reset: bool, peer: &mut dyn Peer) {
        self.over = true;
        peer.closed(now, self.number);
        if reset {
            self.stream.abort();
        }
    }
}
