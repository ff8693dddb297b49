//! Commands that change a running target: faults, ANA, namespaces, listeners; and the Unix socket they come over.

#[cfg(test)]
mod tests;

use crate::config::{AnaState, parse_hex};
use crate::faults::{Answer, Kind, Ops, Rule, Scope};
use crate::mail::{Announcement, ListenerAction, Msg};
use crate::media::Medium;
use crate::rooms::Rooms;
use crate::shared::Shared;
use crate::store::{Change, Disk, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Clients of the control socket at a time.
const CLIENTS: usize = 16;
/// Longest command line in bytes.
const LINE: u64 = 64 << 10;
/// How long a thread may take to do what it is told, and a client to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long somebody who commands waits for the answer. Longer than several threads that do not do what they are told.
const ANSWER: Duration = Duration::from_secs(30);

/// Which listener a command means: by index or by `address:port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ListenerName {
    /// Index in the configuration, from 0.
    Index(usize),
    /// Its address as printed at the start, or just its port.
    Address(String),
}

/// One control command: `cmd` says what, the other fields as that command needs them. Unknown fields are refused.
///
/// | `cmd` | fields | effect |
/// |---|---|---|
/// | `ping` | | answers |
/// | `status` | | connections, controllers, listeners, counters, faults, held writes |
/// | `stall` | scope, `count`, `window_ms` | connections read and say nothing; new ones are accepted |
/// | `delay` | scope, `op`, `ms` or `us`, `count` | commands are executed later |
/// | `lose` | scope, `op`, `count`, `execute` | commands are never answered (`execute`: after having been done) |
/// | `corrupt` | scope, `digest` (`header`, `data`), `count` | the next digests sent are wrong |
/// | `hold_write` | scope, `count` (1), `window_ms`, `apply_after_ms`, `beyond`, `answer` (`never`, `after`) | writes are applied late |
/// | `trickle` | scope, `bytes` (1), `us` or `ms` (1 ms) | output leaves in small lots |
/// | `clear` | `id`, or scope, or nothing for all | ends faults made by the commands above |
/// | `reset`, `fin` | scope | RST or FIN on connections |
/// | `drop_silently` | `listener` | the network eats everything on that listener |
/// | `restore` | `listener` | undoes it; connections of before are reset |
/// | `close_listener`, `open_listener` | `listener` | port closed (its connections are reset), port open |
/// | `latency` | `listener`, `ms` or `us` | every command there takes that much longer; 0 ends it |
/// | `bandwidth` | `listener`, `bytes_per_s` | both directions together; 0 for no limit |
/// | `set_ana` | `state`, `listener`, `group` or `nsid`, `nqn` | ANA state, with its event |
/// | `swap_identity` | `nsid`, `nqn`, `nguid`, `uuid`, `new_contents` | another disk under the same NSID, with its event |
/// | `resize` | `nsid`, `nqn`, `bytes` | another size, with its event |
/// | `refuse` | scope, `op`, `count` | commands are answered with Internal Error |
/// | `detach`, `attach` | `nsid`, `nqn` | hides a namespace, shows it again, with its event |
/// | `move_group` | `nsid`, `nqn`, `group` | puts a namespace into another ANA group, with its event |
/// | `queues` | `count` | I/O queues that the next associations are granted at most |
/// | `logout_request` | scope, `ms` (1000) | iSCSI sessions are asked to log out within that time |
/// | `drop_connection` | scope | iSCSI connections are dropped after a message that says so |
/// | `nop_in` | scope | iSCSI initiators are asked whether they are there |
/// | `power_loss` | | connections are reset; media with `cache=volatile` lose what was not flushed |
///
/// Scope is any of `listener`, `cntlid` (or `tsih`: an iSCSI session), `qid` (or `cid`), `conn`; what is given must all match.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "each field is described in the table above")]
pub struct Command {
    pub cmd: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<ListenerName>,
    #[serde(skip_serializing_if = "Option::is_none", alias = "tsih")]
    pub cntlid: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none", alias = "cid")]
    pub qid: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conn: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execute: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beyond: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", alias = "iqn")]
    pub nqn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nsid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nguid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_contents: Option<bool>,
}

impl Command {
    /// The command `cmd` without any field.
    pub fn new(cmd: &str) -> Command {
        Command { cmd: cmd.into(), ..Command::default() }
    }

    /// The same for the listener with this index.
    #[must_use]
    pub fn listener(mut self, index: usize) -> Command {
        self.listener = Some(ListenerName::Index(index));
        self
    }
}

/// Does what `command` says.
pub(crate) fn execute(rooms: &Rooms, command: &Command) -> Result<Value, String> {
    let shared = &*rooms.shared;
    let scope = scope(shared, command)?;
    let now_us = shared.now_us();
    let interval_us = command.us.or(command.ms.map(|ms| ms.saturating_mul(1000)));
    let ops = Ops::parse(command.op.as_deref())?;
    match command.cmd.as_str() {
        "ping" => Ok(json!({})),
        "status" => Ok(crate::status::status(rooms)),
        "stall" => fault(shared, command, Kind::Stall, scope, ops),
        "delay" => {
            let us = interval_us.ok_or("delay needs ms or us")?;
            fault(shared, command, Kind::Delay { us }, scope, ops)
        }
        "lose" => fault(shared, command, Kind::Lose { execute: command.execute.unwrap_or(false) }, scope, ops),
        "refuse" => fault(shared, command, Kind::Refuse, scope, ops),
        "corrupt" => {
            let data = match command.digest.as_deref() {
                None | Some("data") => true,
                Some("header") => false,
                Some(other) => return Err(format!("digest \"{other}\" is neither header nor data")),
            };
            fault(shared, command, Kind::Corrupt { data }, scope, ops)
        }
        "hold_write" => {
            let answer = match command.answer.as_deref() {
                None | Some("never") => Answer::Never,
                Some("after") => Answer::After,
                Some(other) => return Err(format!("answer \"{other}\" is neither never nor after")),
            };
            let disks = shared.stores.iter().flat_map(|store| store.all_disks());
            if !disks.into_iter().any(|disk| disk.medium.can_be_held()) {
                return Err(
                    "hold_write: there is no namespace of memory or nothing; writes to a disk beneath cannot be held"
                        .into(),
                );
            }
            let after_us = command.apply_after_ms.map(|ms| ms.saturating_mul(1000));
            let mut command = command.clone();
            if command.count.is_none() && command.window_ms.is_none() {
                command.count = Some(1);
            }
            let kind = Kind::Hold { after_us, beyond: command.beyond.unwrap_or(false), answer };
            fault(shared, &command, kind, scope, ops)
        }
        "trickle" => {
            let kind =
                Kind::Trickle { bytes: command.bytes.unwrap_or(1).max(1) as usize, us: interval_us.unwrap_or(1000) };
            fault(shared, command, kind, scope, ops)
        }
        "clear" => {
            let all = scope == Scope::default();
            let removed = shared.faults.remove(|r| match command.id {
                Some(id) => r.id == id,
                None => all || r.scope == scope,
            });
            shared.wake_all();
            Ok(json!({ "removed": removed }))
        }
        "reset" => broken(shared, scope, true),
        "fin" => broken(shared, scope, false),
        "drop_silently" => listener_action(rooms, command, ListenerAction::Drop),
        "restore" => listener_action(rooms, command, ListenerAction::Restore),
        "close_listener" => listener_action(rooms, command, ListenerAction::Close),
        "open_listener" => listener_action(rooms, command, ListenerAction::Open),
        "latency" => {
            let index = need_listener(shared, command)?;
            let us = interval_us.ok_or("latency needs ms or us")?;
            let before = &shared.listeners[index].latency_us;
            before.store(us, Ordering::Relaxed);
            let scope = Scope { listener: Some(index), ..Scope::default() };
            shared.faults.remove(|r| r.scope == scope && matches!(r.kind, Kind::Delay { .. }) && r.id >= LATENCY_IDS);
            if us > 0 {
                let id = LATENCY_IDS + index as u64;
                shared.faults.add(Rule::new(id, Kind::Delay { us }, scope, Ops::All, None, u64::MAX), now_us);
            }
            shared.wake_all();
            Ok(json!({}))
        }
        "bandwidth" => {
            let index = need_listener(shared, command)?;
            let rate = command.bytes_per_s.ok_or("bandwidth needs bytes_per_s")?;
            shared.listeners[index].bandwidth.set_rate(rate, now_us);
            shared.wake_all();
            Ok(json!({}))
        }
        "set_ana" => set_ana(rooms, command, scope.listener),
        "swap_identity" => swap_identity(rooms, command),
        "resize" => resize(rooms, command),
        "attach" | "detach" => {
            let ((index, store), nsid) = (store(shared, command)?, need_nsid(command)?);
            store.attach(nsid, command.cmd == "attach")?;
            rooms.changed(index, Change::List(nsid));
            Ok(json!({}))
        }
        "move_group" => move_group(rooms, command),
        "queues" => {
            let count = command.count.ok_or("queues needs a count")?.clamp(1, 128) as u16;
            rooms.nvme.max_io_queues.store(count, Ordering::Relaxed);
            Ok(json!({}))
        }
        "logout_request" | "drop_connection" | "nop_in" => {
            let (scope, what) = announcement(shared, command)?;
            let counts = tell_all(shared, |reply| Msg::Announce { scope, what, reply })?;
            Ok(json!({ "connections": counts.iter().sum::<usize>() }))
        }
        "power_loss" => {
            rooms.lose_power();
            broken(shared, Scope::default(), true)
        }
        other => Err(format!("command \"{other}\" is not known; see polypath-target ctl --help")),
    }
}

/// Rules made by `latency` have identifiers from here on.
const LATENCY_IDS: u64 = 1 << 62;

fn fault(shared: &Shared, command: &Command, kind: Kind, scope: Scope, ops: Ops) -> Result<Value, String> {
    let now_us = shared.now_us();
    let until_us = command.window_ms.map_or(u64::MAX, |ms| now_us.saturating_add(ms.saturating_mul(1000)));
    let rule = Rule::new(shared.faults.next_id(), kind, scope, ops, command.count, until_us);
    let id = shared.faults.add(rule, now_us);
    shared.wake_all();
    tracing::info!(id, ?kind, ?scope, "fault in force");
    Ok(json!({ "id": id }))
}

fn scope(shared: &Shared, command: &Command) -> Result<Scope, String> {
    let listener = match &command.listener {
        None => None,
        Some(ListenerName::Index(i)) if *i < shared.listeners.len() => Some(*i),
        Some(ListenerName::Index(i)) => {
            return Err(format!("listener {i}: there are {}, counted from 0", shared.listeners.len()));
        }
        Some(ListenerName::Address(text)) => {
            let found = shared
                .listeners
                .iter()
                .position(|l| l.address.to_string() == *text || l.address.port().to_string() == *text);
            Some(found.ok_or_else(|| format!("no listener at \"{text}\""))?)
        }
    };
    Ok(Scope { listener, session: command.cntlid, queue: command.qid, conn: command.conn })
}

fn need_listener(shared: &Shared, command: &Command) -> Result<usize, String> {
    scope(shared, command)?.listener.ok_or_else(|| format!("{} needs a listener", command.cmd))
}

/// Sends every thread a message and adds up what they answer.
fn tell_all<T>(shared: &Shared, make: impl Fn(mpsc::Sender<T>) -> Msg) -> Result<Vec<T>, String> {
    let threads = shared.threads.get().ok_or("the target is not running")?;
    let (reply, answers) = mpsc::channel();
    for thread in threads {
        thread.send(make(reply.clone()));
    }
    threads
        .iter()
        .map(|_| answers.recv_timeout(PATIENCE).map_err(|_| "a thread of the target does not answer".to_owned()))
        .collect()
}

fn broken(shared: &Shared, scope: Scope, reset: bool) -> Result<Value, String> {
    let counts = tell_all(shared, |reply| Msg::Break { scope, reset, reply })?;
    Ok(json!({ "connections": counts.iter().sum::<usize>() }))
}

fn listener_action(rooms: &Rooms, command: &Command, action: ListenerAction) -> Result<Value, String> {
    let index = need_listener(rooms, command)?;
    let listener = &rooms.listeners[index];
    match action {
        ListenerAction::Drop => listener.dropped.store(true, Ordering::Release),
        ListenerAction::Restore => listener.dropped.store(false, Ordering::Release),
        ListenerAction::Close => listener.closed.store(true, Ordering::Release),
        ListenerAction::Open => listener.closed.store(false, Ordering::Release),
    }
    let results = tell_all(rooms, |reply| Msg::Listener { index, action, reply })?;
    let mut n = 0;
    for result in results {
        n += result?;
    }
    if matches!(action, ListenerAction::Close | ListenerAction::Open) {
        rooms.ports_changed();
    }
    tracing::info!(listener = %listener.address, ?action, connections = n, "listener changed");
    Ok(json!({ "connections": n }))
}

/// The store a command means, and its index: by the name of its subsystem or target, or the only one.
fn store<'a>(shared: &'a Shared, command: &Command) -> Result<(usize, &'a Store), String> {
    let named = |s: &Store| command.nqn.as_ref().is_none_or(|name| s.is_named(name));
    let mut candidates = shared.stores.iter().enumerate().filter(|(_, s)| named(s));
    match (candidates.next(), candidates.next()) {
        (Some((index, only)), None) => Ok((index, only)),
        (None, _) => Err(format!("no subsystem {}", command.nqn.as_deref().unwrap_or("at all"))),
        (Some(_), Some(_)) => Err("there are several subsystems: say which by nqn".into()),
    }
}

/// To whom a command has the target say what.
pub(crate) fn announcement(shared: &Shared, command: &Command) -> Result<(Scope, Announcement), String> {
    let within_s = command.ms.unwrap_or(1000).div_ceil(1000).min(3600) as u16;
    let what = match command.cmd.as_str() {
        "logout_request" => Announcement::Logout { within_s },
        "drop_connection" => Announcement::Drop,
        _ => Announcement::Ping,
    };
    Ok((scope(shared, command)?, what))
}

fn set_ana(rooms: &Rooms, command: &Command, listener: Option<usize>) -> Result<Value, String> {
    let (index, store) = store(rooms, command)?;
    let state = AnaState::parse(command.state.as_deref().ok_or("set_ana needs a state")?)?;
    let group = match (command.group, command.nsid) {
        (Some(group), _) => Some(group),
        (None, Some(nsid)) => Some(
            store
                .disks()
                .iter()
                .find(|n| n.nsid == nsid)
                .map(|n| n.group)
                .ok_or_else(|| format!("subsystem {} has no namespace {nsid}", store.nqn))?,
        ),
        (None, None) => None,
    };
    if !store.set_access(listener, group, state.code()) {
        return Err(format!("subsystem {} has no ANA group {}", store.nqn, group.unwrap_or(0)));
    }
    rooms.changed(index, Change::Access(listener));
    Ok(json!({}))
}

fn need_nsid(command: &Command) -> Result<u32, String> {
    command.nsid.ok_or_else(|| format!("{} needs an nsid", command.cmd))
}

fn swap_identity(rooms: &Rooms, command: &Command) -> Result<Value, String> {
    let (index, store) = store(rooms, command)?;
    let nsid = need_nsid(command)?;
    let salt = rooms.now_us().to_le_bytes();
    let new = store.replace(nsid, |old| {
        let fresh = crate::config::derived(&store.nqn, nsid, &salt);
        let nguid = command.nguid.as_deref().map_or(Ok(fresh), |t| parse_hex("nguid", t))?;
        let mut uuid = crate::config::derived(&store.nqn, nsid + (1 << 16), &salt);
        if let Some(text) = &command.uuid {
            uuid = parse_hex("uuid", text)?;
        }
        let medium = if command.new_contents.unwrap_or(false) {
            let bytes = old.blocks << old.shift;
            let backing = match &*old.medium {
                Medium::Null => crate::config::Backing::Null(bytes),
                Medium::Cached(cached) => crate::config::Backing::Cached { bytes, through: cached.is_through() },
                _ => crate::config::Backing::Ram(bytes),
            };
            Arc::new(Medium::open(&backing, rooms.config.threads).map_err(|e| e.to_string())?.0)
        } else {
            old.medium.clone()
        };
        let eui64 = if old.eui64 == [0; 8] { [0; 8] } else { fresh[..8].try_into().unwrap_or([1; 8]) };
        Ok(Disk { nguid, uuid, eui64, medium, identifiers: Arc::default(), ..old.copy() })
    })?;
    rooms.changed(index, Change::Identity(nsid));
    let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Ok(json!({ "nguid": hex(&new.nguid), "uuid": hex(&new.uuid) }))
}

fn resize(rooms: &Rooms, command: &Command) -> Result<Value, String> {
    let (index, store) = store(rooms, command)?;
    let nsid = need_nsid(command)?;
    let bytes = command.bytes.ok_or("resize needs bytes")?;
    let new = store.replace(nsid, |old| {
        let blocks = bytes >> old.shift;
        if blocks == 0 {
            return Err("a namespace has at least one block".into());
        }
        let medium = old.medium.resized(bytes)?;
        Ok(Disk { blocks, medium: medium.map_or_else(|| old.medium.clone(), Arc::new), ..old.copy() })
    })?;
    rooms.changed(index, Change::Size(nsid));
    Ok(json!({ "blocks": new.blocks }))
}

fn move_group(rooms: &Rooms, command: &Command) -> Result<Value, String> {
    let (index, store) = store(rooms, command)?;
    let (nsid, group) = (need_nsid(command)?, command.group.ok_or("move_group needs a group")?);
    if !(1..=store.groups()).contains(&group) {
        return Err(format!("subsystem {} has ANA groups 1 to {}; {group} is none", store.nqn, store.groups()));
    }
    store.replace(nsid, |old| Ok(Disk { group, ..old.copy() }))?;
    store.access_changes.fetch_add(1, Ordering::AcqRel);
    rooms.changed(index, Change::Access(None));
    Ok(json!({}))
}

/// Serves the control socket until the target stops.
pub(crate) fn serve(rooms: &Arc<Rooms>, listener: &UnixListener) {
    let mut clients: Vec<std::thread::JoinHandle<()>> = Vec::new();
    while !rooms.stopping.load(Ordering::Acquire) {
        clients.retain(|c| !c.is_finished());
        match listener.accept() {
            Ok((stream, _)) if clients.len() < CLIENTS => {
                let rooms = rooms.clone();
                let spawned =
                    std::thread::Builder::new().name("target-ctl".into()).spawn(move || serve_client(&rooms, stream));
                match spawned {
                    Ok(handle) => clients.push(handle),
                    Err(error) => tracing::warn!(%error, "control client"),
                }
            }
            Ok(_) => tracing::warn!(limit = CLIENTS, "too many control clients; one was sent away"),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                let mut fds = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
                // A failed poll only means that we look again at once.
                let _ =
                    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 }));
            }
            Err(error) => {
                tracing::warn!(%error, "control socket");
                return;
            }
        }
    }
    for client in clients {
        // A panic there was reported by the thread itself.
        let _ = client.join();
    }
}

fn serve_client(rooms: &Arc<Rooms>, stream: UnixStream) {
    let run = || -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        let mut reader = BufReader::new(&stream);
        let mut line = Vec::new();
        while !rooms.stopping.load(Ordering::Acquire) {
            let room = LINE.saturating_sub(line.len() as u64);
            match std::io::Read::take(&mut reader, room).read_until(b'\n', &mut line) {
                Ok(0) => return Ok(()),
                Ok(_) if line.ends_with(b"\n") => {
                    let answer = answer(rooms, &line);
                    line.clear();
                    put(rooms, &stream, format!("{answer}\n").as_bytes())?;
                }
                Ok(_) if line.len() as u64 >= LINE => return Ok(()),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    };
    if let Err(error) = run() {
        tracing::debug!(%error, "control client left");
    }
}

/// Sends `answer` to whoever takes it in time. The target does not wait for somebody who does not when it ends.
fn put(rooms: &Rooms, mut stream: &UnixStream, mut answer: &[u8]) -> std::io::Result<()> {
    let until = Instant::now() + PATIENCE;
    while !answer.is_empty() {
        match stream.write(answer) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => answer = answer.get(n..).unwrap_or(&[]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                if rooms.stopping.load(Ordering::Acquire) {
                    return Err(e);
                }
            }
            Err(e) => return Err(e),
        }
        if Instant::now() >= until {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

fn answer(rooms: &Rooms, line: &[u8]) -> Value {
    let result = serde_json::from_slice::<Command>(line)
        .map_err(|e| format!("not a command: {e}"))
        .and_then(|command| execute(rooms, &command));
    match result {
        Ok(Value::Object(mut fields)) => {
            fields.insert("ok".into(), true.into());
            Value::Object(fields)
        }
        Ok(other) => json!({ "ok": true, "result": other }),
        Err(error) => json!({ "ok": false, "error": error }),
    }
}

/// Sends one command to the control socket at `path` and returns the answer, which is waited for up to 30 s.
///
/// # Errors
/// When the socket cannot be reached, the target refuses the command, or does not answer in time; the text is for people.
pub fn call(path: &Path, command: &Command) -> Result<Value, String> {
    call_within(path, command, ANSWER)
}

fn call_within(path: &Path, command: &Command, limit: Duration) -> Result<Value, String> {
    let text = serde_json::to_string(command).map_err(|e| e.to_string())?;
    let answered = exchange(path, format!("{text}\n").as_bytes(), limit).map_err(|e| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
            "control socket {}: no answer within {} s: the target is stopped or busy, and may do what was commanded later all the same",
            path.display(),
            limit.as_secs_f32()
        ),
        _ => format!("control socket {}: {e}", path.display()),
    });
    let answer: Value = serde_json::from_slice(&answered?).map_err(|e| format!("answer of the target: {e}"))?;
    match answer["ok"].as_bool() {
        Some(true) => Ok(answer),
        _ => Err(answer["error"].as_str().unwrap_or("the target gave no reason").to_owned()),
    }
}

/// Sends a line and returns the one that comes back.
fn exchange(path: &Path, line: &[u8], limit: Duration) -> std::io::Result<Vec<u8>> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
    let until = Instant::now() + limit;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A connection, too, waits for as long as that, where others are waiting for the target to take theirs.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let mut stream = UnixStream::from(socket);
    stream.write_all(line)?;
    let (mut reader, mut answer) = (BufReader::new(&stream), Vec::new());
    while !answer.ends_with(b"\n") {
        let left = until.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let octets = reader.fill_buf()?;
        let len = octets.iter().position(|octet| *octet == b'\n').map_or(octets.len(), |at| at + 1);
        if len == 0 {
            break;
        }
        answer.extend_from_slice(&octets[..len]);
        reader.consume(len);
    }
    Ok(answer)
}
