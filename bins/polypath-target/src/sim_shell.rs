//! The target without sockets, threads and clock: for a simulated world that carries the bytes and makes the time.
//!
//! The protocol, the faults and the media are those of the real target; what is missing here is `shell.rs`. One thread, index 0.
//! Faults of the network (`drop_silently`, `bandwidth`, …) belong to the world's wire and are not in force here.

use crate::config::{ConfigError, TargetConfig};
use crate::conn::{self, Conn, Ending, Env};
use crate::control::{self, Command, ListenerName};
use crate::faults::{Rules, Scope};
use crate::mail::{Msg, ThreadHandle};
use crate::media::Medium;
use crate::out::Chunk;
use crate::rooms::Rooms;
use crate::shared::{ConnInfo, lock};
use crate::store::Disk;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a connection wants of whoever carries its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// Go on.
    Stay,
    /// Close it in order; everything has been sent.
    End,
    /// Reset it.
    Reset,
}

/// A target that is driven.
pub struct SimTarget {
    rooms: Arc<Rooms>,
    connections: BTreeMap<u64, Connection>,
    rules: Rules,
    rules_version: u64,
    events_version: u64,
    next_us: u64,
    /// Namespaces before an identity swap, by subsystem and NSID.
    originals: BTreeMap<(String, u32), Arc<Disk>>,
    /// The media that were swapped in.
    strangers: Vec<Arc<Medium>>,
}

struct Connection {
    conn: Conn,
    rx: Vec<u8>,
    reset: bool,
}

impl SimTarget {
    /// Opens every medium. Addresses of listeners are taken as they are written; nobody listens there.
    ///
    /// # Errors
    /// As [`crate::Target::start`].
    pub fn new(config: TargetConfig) -> Result<SimTarget, ConfigError> {
        let config = TargetConfig { threads: 1, ..config };
        let addresses: Result<Vec<SocketAddr>, _> = config.listeners.iter().map(|l| l.address.parse()).collect();
        let addresses =
            addresses.map_err(|e| ConfigError::new("listeners", format!("not an address and a port: {e}")))?;
        let rooms = Rooms::driven(config, &addresses)?;
        let handle = ThreadHandle::new().map_err(|e| ConfigError::new("threads", e.to_string()))?;
        // The cell is fresh, so it takes the value.
        let _ = rooms.threads.set(vec![handle]);
        Ok(SimTarget {
            rooms: Arc::new(rooms),
            connections: BTreeMap::new(),
            rules: Rules::default(),
            rules_version: u64::MAX,
            events_version: 0,
            next_us: 0,
            originals: BTreeMap::new(),
            strangers: Vec::new(),
        })
    }

    /// A new connection on `listener`, whose protocol it speaks; returns its number.
    pub fn accept(&mut self, now_us: u64, listener: usize) -> u64 {
        self.rooms.set_now_us(now_us);
        let id = self.rooms.next_conn.fetch_add(1, Ordering::Relaxed);
        let info = Arc::new(ConnInfo { id, listener, queue: u32::MAX.into(), ..ConnInfo::default() });
        lock(&self.rooms.conns).insert(id, info.clone());
        let protocol = self.rooms.listeners.get(listener).map(|l| l.protocol).unwrap_or_default();
        self.connections.insert(
            id,
            Connection { conn: Conn::new(protocol, info, &self.rooms, now_us), rx: Vec::new(), reset: false },
        );
        id
    }

    /// Bytes came on `connection`.
    pub fn input(&mut self, now_us: u64, connection: u64, bytes: &[u8]) {
        self.rooms.set_now_us(now_us);
        self.follow_rules();
        let env = Env { now_us, rooms: &self.rooms, rules: &self.rules };
        let Some(c) = self.connections.get_mut(&connection) else { return };
        c.rx.extend_from_slice(bytes);
        let taken = c.conn.receive(&env, &c.rx);
        c.rx.drain(..taken);
        self.next_us = now_us;
    }

    /// Moves at most `limit` bytes that are to leave on `connection` to the end of `out`.
    pub fn output(&mut self, connection: u64, limit: usize, out: &mut Vec<u8>) -> usize {
        let Some(c) = self.connections.get_mut(&connection) else { return 0 };
        if limit == 0 || c.conn.out().len() == 0 {
            return 0;
        }
        let start = out.len();
        let copy = |segment, to: &mut [u8]| {
            polypath_memory::with(|table| table.view(segment).map(|view| view.copy_out(to)).map(|_| ()))
        };
        let mut lost = false;
        c.conn.out().visit(limit, |chunk| {
            match chunk {
                Chunk::Bytes(bytes) => out.extend_from_slice(bytes),
                Chunk::Medium(segment) => {
                    let at = out.len();
                    out.resize(at + segment.len as usize, 0);
                    lost |= copy(segment, &mut out[at..]).is_err();
                }
            }
            true
        });
        lost |= c.conn.out_mut().advance(out.len() - start, copy).is_err();
        c.reset |= lost;
        out.len() - start
    }

    /// Bytes that wait to leave on `connection`.
    pub fn waiting(&self, connection: u64) -> usize {
        self.connections.get(&connection).map_or(0, |c| c.conn.out().len())
    }

    /// What `connection` wants.
    pub fn wish(&self, connection: u64) -> Wish {
        match self.connections.get(&connection) {
            Some(c) if c.reset || c.conn.ending() == Some(Ending::Now) => Wish::Reset,
            Some(c) if c.conn.ending() == Some(Ending::AfterFlush) && c.conn.out().len() == 0 => Wish::End,
            Some(_) => Wish::Stay,
            None => Wish::Reset,
        }
    }

    /// `connection` is over, whoever ended it.
    pub fn closed(&mut self, now_us: u64, connection: u64) {
        self.rooms.set_now_us(now_us);
        if let Some(mut c) = self.connections.remove(&connection) {
            c.conn.close(&self.rooms);
            lock(&self.rooms.conns).remove(&connection);
            self.next_us = now_us;
        }
    }

    /// Does everything that is due by `now_us`: messages, events, delayed commands, held writes, keep alive.
    pub fn poll(&mut self, now_us: u64) {
        self.rooms.set_now_us(now_us);
        self.follow_rules();
        self.read_mail(now_us);
        self.follow_events(now_us);
        if now_us < self.next_us.min(self.rooms.held.next_us()) {
            return;
        }
        self.rooms.apply_held(now_us);
        let mut next_us = u64::MAX;
        for c in self.connections.values_mut() {
            let env = Env { now_us, rooms: &self.rooms, rules: &self.rules };
            c.conn.tick(&env);
            // What could not be taken in while too much waited to leave.
            if !c.rx.is_empty() {
                let taken = c.conn.receive(&env, &c.rx);
                c.rx.drain(..taken);
            }
            let alive_us = c.conn.keep_alive(&self.rooms, now_us).unwrap_or(u64::MAX);
            next_us = next_us.min(c.conn.deadline_us()).min(alive_us);
        }
        self.next_us = next_us;
        self.read_mail(now_us);
        self.follow_events(now_us);
    }

    /// When [`SimTarget::poll`] has something to do next.
    pub fn next_us(&self) -> u64 {
        self.next_us.min(self.rooms.held.next_us())
    }

    /// Does what [`crate::TargetHandle::control`] does.
    ///
    /// # Errors
    /// As there; also for commands about listeners, which the world must carry out itself.
    pub fn control(&mut self, now_us: u64, command: &Command) -> Result<Value, String> {
        self.rooms.set_now_us(now_us);
        self.next_us = now_us;
        match command.cmd.as_str() {
            "reset" | "fin" => {
                let listener = match command.listener {
                    Some(ListenerName::Index(index)) => Some(index),
                    _ => None,
                };
                let scope = Scope { listener, session: command.cntlid, queue: command.qid, conn: command.conn };
                Ok(json!({ "connections": self.break_off(scope, command.cmd == "reset") }))
            }
            "logout_request" | "drop_connection" | "nop_in" => {
                let (scope, what) = control::announcement(&self.rooms, command)?;
                let rules = self.rules.clone();
                let env = Env { now_us, rooms: &self.rooms, rules: &rules };
                let meant = self.connections.values_mut().filter(|c| scope.matches(&c.conn.who()));
                let told = meant.filter_map(|c| c.conn.announce(&env, what).then_some(())).count();
                Ok(json!({ "connections": told }))
            }
            "power_loss" => {
                self.rooms.lose_power();
                Ok(json!({ "connections": self.break_off(Scope::default(), true) }))
            }
            "drop_silently" | "restore" | "close_listener" | "open_listener" | "stall" | "trickle" | "bandwidth" => {
                Err(format!("{} is up to the network of the simulated world", command.cmd))
            }
            "swap_identity" => {
                let (nqn, nsid) = (command.nqn.clone().unwrap_or_default(), command.nsid.unwrap_or(0));
                let original = self.namespace(&nqn, nsid);
                let answer = control::execute(&self.rooms, command)?;
                if let (Some(original), Some(new)) = (original, self.namespace(&nqn, nsid)) {
                    if !Arc::ptr_eq(&new.medium, &original.medium) {
                        self.strangers.push(new.medium.clone());
                    }
                    self.originals.entry((nqn, nsid)).or_insert(original);
                }
                Ok(answer)
            }
            _ => control::execute(&self.rooms, command),
        }
    }

    /// Undoes `swap_identity`, with its event. Nothing happens where nothing was swapped.
    pub fn swap_back(&mut self, now_us: u64, nqn: &str, nsid: u32) {
        self.rooms.set_now_us(now_us);
        self.next_us = now_us;
        let Some(original) = self.originals.remove(&(nqn.to_owned(), nsid)) else { return };
        self.rooms.put_back(nqn, &original);
    }

    /// How often the media that came by `swap_identity` with new contents were changed by commands as they came. Writes that were held
    /// do not count: they land with whatever ends their session, and say nothing of when their host sent them.
    pub fn changes_of_strangers(&self) -> u64 {
        let prompt = |medium: &Arc<Medium>| match &**medium {
            Medium::Cached(cached) => cached.prompt_changes(),
            _ => 0,
        };
        self.strangers.iter().map(prompt).sum()
    }

    /// How often namespace `nsid` of `nqn`, or of the target that is named so over iSCSI, was changed. Only media with a simulated cache count.
    pub fn changes(&self, nqn: &str, nsid: u32) -> u64 {
        self.namespace(nqn, nsid).map_or(0, |n| n.medium.changes())
    }

    /// Bytes of namespace `nsid` of `nqn` (or of the target that is named so), attached or not: as they are read, or as a loss of power would leave them. The original,
    /// where another one was swapped in. `false` when there are none.
    pub fn look(&self, nqn: &str, nsid: u32, offset: u64, durable: bool, out: &mut [u8]) -> bool {
        let original = self.originals.get(&(nqn.to_owned(), nsid)).cloned();
        let Some(namespace) = original.or_else(|| self.namespace(nqn, nsid)) else { return false };
        match &*namespace.medium {
            Medium::Cached(cached) if durable => cached.read_durable(offset, out).is_ok(),
            medium => medium.read(offset, out).is_ok(),
        }
    }

    fn namespace(&self, nqn: &str, nsid: u32) -> Option<Arc<Disk>> {
        let store = self.rooms.stores.iter().find(|s| s.is_named(nqn))?;
        store.all_disks().into_iter().find(|n| n.nsid == nsid)
    }

    fn break_off(&mut self, scope: Scope, reset: bool) -> usize {
        let mut n = 0;
        for c in self.connections.values_mut().filter(|c| scope.matches(&c.conn.who())) {
            n += 1;
            c.conn.close(&self.rooms);
            c.conn.end(if reset { Ending::Now } else { Ending::AfterFlush });
        }
        n
    }

    fn on(&mut self, conn: u64, f: impl FnOnce(&mut Conn)) {
        if let Some(c) = self.connections.get_mut(&conn) {
            f(&mut c.conn);
        }
    }

    fn follow_rules(&mut self) {
        let version = self.rooms.faults.version();
        if version != self.rules_version {
            self.rules_version = version;
            self.rules = self.rooms.faults.rules();
        }
    }

    fn follow_events(&mut self, now_us: u64) {
        let version = self.rooms.events.load(Ordering::Acquire);
        if version == self.events_version {
            return;
        }
        self.events_version = version;
        let env = Env { now_us, rooms: &self.rooms, rules: &self.rules };
        self.connections.values_mut().for_each(|c| c.conn.look_around(&env));
    }

    fn read_mail(&mut self, now_us: u64) {
        let rooms = self.rooms.clone();
        loop {
            let mail = rooms.threads.get().and_then(|t| t.first()).map(ThreadHandle::take).unwrap_or_default();
            if mail.is_empty() {
                return;
            }
            let rules = self.rules.clone();
            let env = Env { now_us, rooms: &rooms, rules: &rules };
            for message in mail {
                match message {
                    Msg::Abort { conn, victim, reply } => {
                        let owner = self.connections.get_mut(&conn).map(|c| &mut c.conn);
                        conn::abort(&env, owner, victim, reply);
                    }
                    Msg::Landed { to, result } => self.on(to.conn, |conn| conn.landed(&env, to.tag, result)),
                    Msg::Aborted { to, aborted } => self.on(to.conn, |conn| conn.aborted(&env, to.tag, aborted)),
                    Msg::Quiet { to } => self.on(to.conn, |conn| conn.quiet(&env, to.tag)),
                    Msg::Quiesce { what, reply } => {
                        self.connections.values_mut().for_each(|c| c.conn.quiesce(&env, &what));
                        rooms.send(reply, Msg::Quiet { to: reply });
                    }
                    // These come with sockets and threads, which are not here.
                    Msg::Adopt { .. } | Msg::Announce { .. } | Msg::Break { .. } | Msg::Listener { .. } | Msg::Stop => {
                    }
                }
            }
        }
    }
}

impl Drop for SimTarget {
    fn drop(&mut self) {
        // Connections that nobody has ended: half open ones, or a world that was left.
        self.connections.values_mut().for_each(|c| c.conn.close(&self.rooms));
    }
}
