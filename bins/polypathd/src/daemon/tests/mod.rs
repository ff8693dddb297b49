//! A daemon in this process, over disks in memory, and front-ends of our own.

use super::*;
use crate::config::{DiskConfig, VhostConfig};
use polypath::{Disk as GuestDisk, block_on};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

mod found;
mod nbd;
mod owed;
mod passthrough;
mod reservations;
mod slices;
mod twins;

/// A configuration with one disk of one path, `vm`, and sockets for it. A request that finds no path waits for ever.
fn config(folder: &Path, sockets: &[&str]) -> Config {
    let path =
        PathConfig { uri: "ram://16M".parse().unwrap(), name: Some("only".into()), weight: 100, preferred: false };
    let disk = DiskConfig {
        name: "vm".into(),
        selector: Default::default(),
        no_path_timeout_ms: u64::MAX,
        fencing: Default::default(),
        matching: Default::default(),
        paths: vec![path],
    };
    Config {
        socket_dir: folder.into(),
        rpc_socket: folder.join("rpc.sock"),
        state_dir: Some(folder.join("state")),
        disks: vec![disk],
        vhosts: sockets.iter().map(|socket| vhost(socket)).collect(),
        ..Config::default()
    }
}

fn vhost(socket: &str) -> VhostConfig {
    VhostConfig {
        disk: "vm".into(),
        socket: socket.into(),
        queues: 1,
        queue_size: 256,
        read_only: false,
        serial: None,
        access: Default::default(),
        cpus: None,
    }
}

/// A guest with one write under way that no path takes: what has become of it comes out of the receiver.
fn waiting_write(daemon: &Daemon, socket: &Path) -> (GuestDisk, Receiver<String>) {
    let uri = format!("vhost-user-blk://{}?io_timeout_ms=3600000", socket.display());
    let stack = Stack::start(StackConfig::default()).unwrap();
    let disk = GuestDisk::builder().uris(uri.as_str()).stack(&stack).open_blocking().unwrap();
    let write = |disk: &GuestDisk| block_on(disk.write(0, disk.buffer(4096).unwrap())).0;
    write(&disk).unwrap();
    daemon.remove_path("vm", "only", true).unwrap();
    let (tell, told) = channel();
    let guest = disk.clone();
    thread::spawn(move || tell.send(format!("{:?}", write(&guest))));
    let waits = || lock(&daemon.state).disks["vm"].group.availability().waiting == 1;
    let until = Instant::now() + Duration::from_secs(20);
    while !waits() {
        assert!(Instant::now() < until, "the write waits for a path");
        daemon.look_after();
        thread::sleep(Duration::from_millis(5));
    }
    (disk, told)
}

/// SIGTERM while a socket is being deleted whose requests wait for a path: they are the next daemon's.
#[test]
fn a_socket_that_is_being_deleted_fails_no_request_when_the_daemon_ends() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), &["a.sock"])).unwrap();
    let (_disk, told) = waiting_write(&daemon, &folder.path().join("a.sock"));
    thread::scope(|scope| {
        scope.spawn(|| daemon.delete_vhost(Path::new("a.sock")));
        let until = Instant::now() + Duration::from_secs(20);
        while !lock(&daemon.state).vhosts.is_empty() {
            assert!(Instant::now() < until, "it is being deleted");
            thread::sleep(Duration::from_millis(1));
        }
        let faults = daemon.stop();
        assert_eq!(told.try_recv(), Err(TryRecvError::Empty), "what the guest heard; {faults:?}");
        assert!(!faults.is_empty());
    });
}

/// The same once the deletion has said that it could not drain.
#[test]
fn a_socket_that_could_not_drain_fails_no_request_when_the_daemon_ends() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), &["a.sock"])).unwrap();
    let (_disk, told) = waiting_write(&daemon, &folder.path().join("a.sock"));
    assert!(daemon.delete_vhost(Path::new("a.sock")).is_err(), "not drained, after as long as that may take");
    assert_eq!(daemon.vhosts()[0]["state"], "ending", "it is not forgotten");
    for socket in ["a.sock", "b.sock"] {
        let error = daemon.create_vhost(&vhost(socket)).unwrap_err();
        assert!(error.contains("in flight"), "its requests may land on top of new ones: {error}");
    }
    let faults = daemon.stop();
    assert_eq!(told.try_recv(), Err(TryRecvError::Empty), "what the guest heard; {faults:?}");
    assert!(!faults.is_empty());
    assert_eq!(word(folder.path())["clean"], false, "{faults:?}");
}

/// The mark of the disk.
/// Waits for it, and looks after the daemon meanwhile.
fn until(daemon: &Daemon, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "{:#}", daemon.disks());
        daemon.look_after();
        thread::sleep(Duration::from_millis(5));
    }
}

fn word(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("state/vm.json")).unwrap()).unwrap()
}

/// Once the rest has completed, nothing speaks against the disk any more, and nobody need wait.
#[test]
fn a_socket_that_drains_late_is_forgotten_then() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), &["a.sock"]);
    config.disks[0].matching = polypath::MatchPolicy::Stated;
    let daemon = Daemon::start(&config).unwrap();
    let (_disk, told) = waiting_write(&daemon, &folder.path().join("a.sock"));
    assert!(daemon.delete_vhost(Path::new("a.sock")).is_err(), "not drained, after as long as that may take");
    daemon.look_after();
    assert_eq!(word(folder.path())["clean"], false);
    let uri = "ram://16M".parse().unwrap();
    let path = PathConfig { uri, name: Some("another".into()), weight: 100, preferred: false };
    daemon.add_path("vm", &path, Duration::from_secs(20)).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while daemon.vhosts() != json!([]) {
        assert!(Instant::now() < until, "it is quiet: {:?} {:#}", told.try_recv(), daemon.vhosts());
        daemon.look_after();
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(word(folder.path())["clean"], true);
    daemon.create_vhost(&vhost("a.sock")).unwrap();
    assert!(daemon.stop().is_empty());
}

/// A disk is served on two sockets. It was left in order when both were.
#[test]
fn a_disk_is_left_in_order_with_its_last_socket() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), &["a.sock", "b.sock"])).unwrap();
    for (socket, clean) in [("a.sock", false), ("b.sock", true)] {
        daemon.delete_vhost(Path::new(socket)).unwrap();
        assert_eq!(word(folder.path())["clean"], clean, "{socket}");
    }
    daemon.create_vhost(&vhost("a.sock")).unwrap();
    assert_eq!(word(folder.path())["clean"], false);
    assert!(daemon.stop().is_empty());
    assert_eq!(word(folder.path())["clean"], true);
    assert!(daemon.create_vhost(&vhost("b.sock")).is_err(), "nothing is made any more");
}

/// A socket is made long after the others, where nobody was killed; and again where somebody was, after an end in order.
#[test]
fn only_a_socket_on_which_somebody_was_killed_is_unclean() {
    let folder = tempfile::tempdir().unwrap();
    let killed = Daemon::start(&config(folder.path(), &["a.sock"])).unwrap();
    // As a kill leaves it.
    let left = std::fs::read(folder.path().join("state/vm.json")).unwrap();
    assert!(killed.stop().is_empty());
    drop(killed);
    std::fs::write(folder.path().join("state/vm.json"), left).unwrap();
    let daemon = Daemon::start(&config(folder.path(), &["a.sock", "b.sock"])).unwrap();
    let unclean = |socket: &str| lock(&daemon.state).vhosts[&folder.path().join(socket)].mark.unclean();
    assert!(unclean("a.sock") && !unclean("b.sock"));
    daemon.delete_vhost(Path::new("a.sock")).unwrap();
    daemon.create_vhost(&vhost("a.sock")).unwrap();
    assert!(!unclean("a.sock"), "what has happened since is known");
}

/// Some sockets were served already when a start failed, or was not wanted any more.
#[test]
fn a_start_that_fails_is_an_end_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &["a.sock", "b.sock"]);
    let other = UnixListener::bind(folder.path().join("b.sock")).unwrap();
    let error = Daemon::start(&config).err().unwrap().to_string();
    assert!(error.contains("another process"), "{error}");
    assert_eq!(word(folder.path())["clean"], true);
    assert!(!folder.path().join("a.sock").exists());
    drop(other);
    std::fs::remove_file(folder.path().join("b.sock")).unwrap();
    assert!(Daemon::start_unless(&config, &AtomicBool::new(true)).is_err());
    let daemon = Daemon::start(&config).unwrap();
    assert!(lock(&daemon.state).vhosts.values().all(|vhost| !vhost.mark.unclean()));
    assert!(daemon.stop().is_empty());
}

/// The disk is another one than that which was served under its name: guests have the old one in mind.
#[test]
fn another_disk_is_refused_until_the_operator_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let with = |uuid: char, sockets: &[&str]| {
        let mut config = config(folder.path(), sockets);
        config.disks[0].paths[0].uri = format!("ram://16M?uuid={}", uuid.to_string().repeat(32)).parse().unwrap();
        config
    };
    let state = |daemon: &Daemon| daemon.disks()[0]["paths"][0]["state"].as_str().unwrap().to_owned();
    let start = |config: &Config, expected: &str| {
        let daemon = Daemon::start(config).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while state(&daemon) != expected {
            assert!(Instant::now() < until, "{expected}: {:#}", daemon.disks());
            thread::sleep(Duration::from_millis(1));
        }
        daemon
    };
    assert!(start(&with('1', &["a.sock"]), "usable").stop().is_empty());
    let daemon = start(&with('2', &["a.sock"]), "quarantined");
    let why = daemon.disks()[0]["paths"][0]["why"].to_string();
    assert!(why.contains("another disk") && why.contains("match"), "{why}");
    assert!(daemon.stop().is_empty());
    assert!(start(&with('1', &["a.sock"]), "usable").stop().is_empty());
    // Two ways to say so.
    let mut stated = with('2', &["a.sock"]);
    stated.disks[0].matching = polypath::MatchPolicy::Pinned(vec![format!("uuid.{}", "2".repeat(32)).parse().unwrap()]);
    assert!(start(&stated, "usable").stop().is_empty());
    let daemon = start(&with('2', &["a.sock"]), "usable");
    daemon.delete_vhost(Path::new("a.sock")).unwrap();
    daemon.delete_disk("vm").unwrap();
    daemon.create_disk(&with('3', &[]).disks[0]).unwrap();
    daemon.create_vhost(&vhost("a.sock")).unwrap();
    assert_eq!(state(&daemon), "usable");
    assert!(daemon.stop().is_empty());
}

/// What paths show cannot be written down: they carry nothing, and the operator sees why, until it can.
#[test]
fn a_path_carries_nothing_while_what_it_shows_cannot_be_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), &["a.sock"]);
    config.disks[0].paths.clear();
    let daemon = Daemon::start(&config).unwrap();
    let away = folder.path().join("state/vm.new");
    std::fs::create_dir(&away).unwrap();
    let path =
        PathConfig { uri: "ram://16M".parse().unwrap(), name: Some("only".into()), weight: 100, preferred: false };
    let error = daemon.add_path("vm", &path, Duration::ZERO).map(|answer| answer["state"].to_string());
    assert_eq!(error.as_deref(), Ok("\"connecting\""));
    let path_is = |state: &str, word: &str| {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let path = &daemon.disks()[0]["paths"][0];
            if path["state"] == state && path["why"].to_string().contains(word) {
                return;
            }
            assert!(Instant::now() < until, "{state}, {word}: {path:#}");
            daemon.look_after();
            thread::sleep(Duration::from_millis(5));
        }
    };
    path_is("connecting", "vm.new");
    std::fs::remove_dir(&away).unwrap();
    path_is("usable", "verified");
    assert!(daemon.stop().is_empty());
}

/// Nothing was served on a socket that could not be made: there is nothing that the next one would have to wait for, and no ring of which
/// nobody knows what was in flight.
#[test]
fn a_socket_that_could_not_be_made_leaves_no_mark() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), &[])).unwrap();
    let other = UnixListener::bind(folder.path().join("a.sock")).unwrap();
    assert!(daemon.create_vhost(&vhost("a.sock")).unwrap_err().contains("another process"));
    drop(other);
    std::fs::remove_file(folder.path().join("a.sock")).unwrap();
    daemon.create_vhost(&vhost("a.sock")).unwrap();
    let unclean = lock(&daemon.state).vhosts.values().next().unwrap().mark.unclean();
    assert!(!unclean, "the last one that served it ended in order");
}

/// A front-end that speaks of its cache and of nothing else.
struct Cache(UnixStream);

impl Cache {
    fn connect(socket: &Path) -> Cache {
        let mut cache = Cache(UnixStream::connect(socket).unwrap());
        // SET_PROTOCOL_FEATURES: REPLY_ACK, CONFIG.
        cache.say(16, 1, &(1u64 << 3 | 1 << 9).to_ne_bytes());
        cache
    }

    fn say(&mut self, id: u32, flags: u32, payload: &[u8]) {
        let words = [id, flags, payload.len() as u32].map(u32::to_ne_bytes).concat();
        self.0.write_all(&[&words, payload].concat()).unwrap();
    }

    fn hear(&mut self) -> Vec<u8> {
        let mut header = [0; 12];
        self.0.read_exact(&mut header).unwrap();
        let mut payload = vec![0; header[8].into()];
        self.0.read_exact(&mut payload).unwrap();
        payload
    }

    fn set_writeback(&mut self, on: bool) {
        let fields = [32u32, 1, 0].map(u32::to_ne_bytes).concat();
        self.say(25, 1 | 1 << 3, &[&fields[..], &[on.into()]].concat());
        assert_eq!(self.hear(), [0; 8]);
    }

    fn writeback(&mut self) -> bool {
        let fields = [32u32, 1, 0].map(u32::to_ne_bytes).concat();
        self.say(24, 1, &[&fields[..], &[0]].concat());
        self.hear()[12] == 1
    }
}

/// What one guest says of its cache is no word of another one's, though both have the same disk.
#[test]
fn each_socket_of_a_disk_keeps_its_own_guests_word() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &["a.sock", "b.sock"]);
    let daemon = Daemon::start(&config).unwrap();
    let connect = |socket: &str| Cache::connect(&folder.path().join(socket));
    let (mut a, mut b) = (connect("a.sock"), connect("b.sock"));
    a.set_writeback(false);
    b.set_writeback(false);
    b.set_writeback(true);
    assert!(!a.writeback() && b.writeback());
    drop((a, b));
    assert!(daemon.stop().is_empty());
    drop(daemon);
    let daemon = Daemon::start(&config).unwrap();
    assert!(!connect("a.sock").writeback(), "its guest counts on each change being durable");
    drop(daemon);
}

/// A path whose controller may still carry out requests two minutes after the daemon's end. That is written down before it can be sent any,
/// and not at some later look: the daemon may be killed before that.
#[test]
fn how_long_requests_of_a_new_path_may_land_is_written_down_before_it_has_any() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), &["a.sock"])).unwrap();
    let uri = "nvme-tcp://127.0.0.1:1/nqn.2026-01.org.example:none?ns=1&keep_alive_ms=60000".parse().unwrap();
    daemon.add_path("vm", &PathConfig { uri, name: None, weight: 100, preferred: false }, Duration::ZERO).unwrap();
    let bound = lock(&daemon.state).disks["vm"].group.landing_bound();
    assert!(bound >= Duration::from_secs(120), "{bound:?}");
    let word = std::fs::read_to_string(folder.path().join("state/vm.json")).unwrap();
    let word: Value = serde_json::from_str(&word).unwrap();
    assert!(word["bound_ms"].as_u64() >= Some(bound.as_millis() as u64), "{word}");
}

/// A disk that is deleted fails what is under way there. Somebody was told that there is still something.
#[test]
fn a_disk_with_requests_of_a_deleted_socket_is_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), &["a.sock"])).unwrap();
    let (_disk, told) = waiting_write(&daemon, &folder.path().join("a.sock"));
    assert!(daemon.delete_vhost(Path::new("a.sock")).is_err(), "not drained, after as long as that may take");
    let deleted = daemon.delete_disk("vm");
    let heard = told.recv_timeout(Duration::from_secs(1));
    assert!(deleted.is_err() && heard.is_err(), "what the guest heard: {heard:?}");
}

/// No mark is there (the folder is new, or the disk was called something else), but a socket is that nobody removed: who served it was killed.
/// Nobody knows how long what that one had in flight may land; this daemon's own paths are the best guess.
#[test]
fn a_socket_that_was_left_behind_is_as_good_as_a_mark() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), &["a.sock"]);
    let uri = "nvme-tcp://127.0.0.1:1/nqn.2026-01.org.example:none?ns=1&keep_alive_ms=60000".parse().unwrap();
    config.disks[0].paths.push(PathConfig { uri, name: None, weight: 100, preferred: false });
    drop(UnixListener::bind(folder.path().join("a.sock")).unwrap());
    let _daemon = Daemon::start(&config).unwrap();
    let uri = format!("vhost-user-blk://{}?io_timeout_ms=3600000", folder.path().join("a.sock").display());
    let stack = Stack::start(StackConfig::default()).unwrap();
    let disk = GuestDisk::builder().uris(uri.as_str()).stack(&stack).open_blocking().unwrap();
    let (tell, told) = channel();
    thread::spawn(move || tell.send(block_on(disk.write(0, disk.buffer(4096).unwrap())).0.is_ok()));
    let heard = told.recv_timeout(Duration::from_secs(2));
    assert!(heard.is_err(), "a change was made at once, on top of which those of the killed one may land: {heard:?}");
}

/// A guest's write is still in flight when the daemon has ended: of its disk nothing is said that is not so, and nobody else may take it.
#[test]
fn a_disk_with_requests_in_flight_is_neither_flushed_nor_let_go_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), &["a.sock"]);
    config.disks[0].matching = polypath::MatchPolicy::Stated;
    let daemon = Daemon::start(&config).unwrap();
    let (disk, _told) = waiting_write(&daemon, &folder.path().join("a.sock"));
    assert!(!daemon.stop().is_empty(), "not drained");
    assert_eq!(word(folder.path())["clean"], false);
    let other = StateDir::open(&folder.path().join("state")).unwrap();
    assert!(other.claim("vm", Duration::ZERO).is_err(), "its requests may land");
    drop(disk);
    // What is in flight is left to the end of the process.
    std::mem::forget(daemon);
}

/// A socket cannot be made, for its mark cannot be written: the disk is nobody's afterwards.
#[test]
fn a_socket_that_could_not_be_made_lets_go_of_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), &[])).unwrap();
    std::fs::create_dir(folder.path().join("state/vm.new")).unwrap();
    assert!(daemon.create_vhost(&vhost("a.sock")).is_err());
    let other = StateDir::open(&folder.path().join("state")).unwrap();
    assert!(other.claim("vm", Duration::ZERO).is_ok());
    assert!(daemon.stop().is_empty());
}
