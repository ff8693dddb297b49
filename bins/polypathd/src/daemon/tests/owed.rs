//! What guests are owed: losses that no queue of theirs has told them.

use super::*;
use polypath_block::{
    Access, Armed, CacheDomain, Code, Cx, DeviceInfo, DeviceState, Done, Geometry, Health, Identifier, Identity, Io,
    IoQueue, Limits, Op, OpenError, QueueConfig, Refused, Status, Waits,
};
use std::sync::atomic::AtomicU64;

/// A disk that keeps nothing, behind a volatile cache: what it shows and how it flushes can be changed.
pub(super) struct Scripted {
    /// How often its cache has lost its power, and how flushes fail.
    says: Mutex<(u32, Option<Code>)>,
    version: AtomicU64,
}

struct ScriptedQueue(Arc<Scripted>, Vec<Io>, bool);

impl Scripted {
    pub(super) fn new() -> Arc<Scripted> {
        Arc::new(Scripted { says: Mutex::new((7, None)), version: AtomicU64::new(1) })
    }

    fn change(&self, change: impl FnOnce(&mut (u32, Option<Code>))) {
        change(&mut lock(&self.says));
        self.version.fetch_add(1, Ordering::Relaxed);
    }
}

/// A path to it, by its name; it shows another disk once it is told to.
pub(super) struct ScriptedPath(pub(super) Arc<Scripted>, pub(super) &'static str, pub(super) Arc<AtomicBool>);

impl Device for ScriptedPath {
    fn name(&self) -> &str {
        self.1
    }
    fn state(&self) -> DeviceState {
        let power = lock(&self.0.says).0;
        let place = if power < 100 { "nvme:nqn:serial" } else { "nvme:nqn:another" };
        let cache_domain = CacheDomain::since(place, &power.to_string());
        DeviceState::Live(Arc::new(DeviceInfo {
            geometry: Geometry { block_size: 512, blocks: 1 << 15 },
            limits: Limits { write_cache: true, ..Limits::UNLIMITED },
            identity: Identity {
                identifiers: vec![Identifier::Uuid([if self.2.load(Ordering::Relaxed) { 2 } else { 1 }; 16])],
                cache_domain,
            },
            access: Access::Optimized,
            max_queues: 64,
            max_depth: 64,
        }))
    }
    fn version(&self) -> u64 {
        self.0.version.load(Ordering::Relaxed)
    }
    fn open_queue(&self, _config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        Ok(Box::new(ScriptedQueue(self.0.clone(), Vec::new(), false)))
    }
    fn close(&self) {}
}

impl IoQueue for ScriptedQueue {
    fn submit(&mut self, _cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.1.push(io);
        Ok(())
    }
    fn kick(&mut self, _cx: &mut Cx<'_>) {}
    fn poll(&mut self, _cx: &mut Cx<'_>, done: &mut Done) {
        let fail = lock(&self.0.says).1;
        for io in self.1.drain(..) {
            let status = fail.filter(|_| io.op == Op::Flush).map_or(Status::OK, Status::from);
            done.complete(io.tag, status);
        }
    }
    fn arm(&mut self, _cx: &mut Cx<'_>, _waits: &mut Waits) -> Armed {
        if self.1.is_empty() { Armed::Sleep } else { Armed::Busy }
    }
    fn health(&self) -> Health {
        Health::Ready
    }
    fn close(&mut self, _cx: &mut Cx<'_>) {
        self.2 = true;
    }
    fn is_drained(&self) -> bool {
        self.2 && self.1.is_empty()
    }
}

/// A daemon that serves `device` as `vm` on `sockets`, with its marks in `state`.
pub(super) fn over(device: &Arc<Scripted>, folder: &Path, state: &str, sockets: &[&str]) -> Daemon {
    let mut config = config(folder, sockets);
    config.state_dir = Some(folder.join(state));
    config.disks[0].paths.clear();
    let daemon = Daemon::start(&config).unwrap();
    let group = lock(&daemon.state).disks["vm"].group.clone();
    let path = polypath::multipath::PathConfig::new(Arc::new(ScriptedPath(device.clone(), "scripted", Arc::default())));
    group.add_path(path).unwrap();
    usable(&daemon);
    daemon
}

fn usable(daemon: &Daemon) {
    until(daemon, || lock(&daemon.state).disks["vm"].group.availability().usable_paths == 1);
}

/// A guest at a socket of it.
fn guest(folder: &Path, socket: &str) -> GuestDisk {
    let stack = Stack::start(StackConfig::default()).unwrap();
    let uri = format!("vhost-user-blk://{}", folder.join(socket).display());
    GuestDisk::builder().uris(uri.as_str()).stack(&stack).open_blocking().unwrap()
}

/// What the mark says of whether the guest of the only socket is owed a flush that fails.
fn is_owed(folder: &Path, state: &str) -> Value {
    let word: Value = serde_json::from_slice(&std::fs::read(folder.join(state).join("vm.json")).unwrap()).unwrap();
    word["sockets"].as_object().unwrap().values().next().unwrap()["owed"].clone()
}

/// The guest writes, does not flush, its daemon is killed. The next one finds the cache as it was; then it loses its power, before anybody has
/// flushed. The disk of the new daemon has acknowledged nothing that could be lost; what the guest wrote through the one before it is gone.
#[test]
fn a_loss_of_power_of_what_a_killed_daemon_left_in_a_cache_is_told() {
    let (folder, device) = (tempfile::tempdir().unwrap(), Scripted::new());
    let first = over(&device, folder.path(), "state", &["a.sock"]);
    let disk = guest(folder.path(), "a.sock");
    block_on(disk.write(0, disk.buffer(4096).unwrap())).0.unwrap();
    // As it is at a kill.
    std::fs::create_dir(folder.path().join("killed")).unwrap();
    std::fs::set_permissions(folder.path().join("killed"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .unwrap();
    std::fs::copy(folder.path().join("state/vm.json"), folder.path().join("killed/vm.json")).unwrap();
    drop(disk);
    assert!(first.stop().is_empty());
    let second = over(&device, folder.path(), "killed", &["a.sock"]);
    let group = lock(&second.state).disks["vm"].group.clone();
    device.change(|says| says.0 = 8);
    let until = Instant::now() + Duration::from_secs(20);
    while is_owed(folder.path(), "killed") != true {
        assert!(Instant::now() < until, "{:#}", second.disks());
        group.refresh_at(polypath::reactor::now());
        thread::sleep(Duration::from_millis(5));
    }
    usable(&second);
    let disk = guest(folder.path(), "a.sock");
    let flushed = block_on(disk.flush());
    drop(disk);
    second.stop();
    assert!(flushed.is_err(), "what was written before the kill is lost, and is acknowledged as durable");
}

/// The last flush of a daemon that ends in order fails for the medium: it may have dropped what it could not write, and the next flush, of the
/// next daemon, finds nothing wrong. So the guest is owed one that fails (as after the last flush of a migration).
#[test]
fn a_last_flush_that_the_medium_failed_is_owed_to_the_guests() {
    let (folder, device) = (tempfile::tempdir().unwrap(), Scripted::new());
    let daemon = over(&device, folder.path(), "state", &["a.sock"]);
    let disk = guest(folder.path(), "a.sock");
    block_on(disk.write(0, disk.buffer(4096).unwrap())).0.unwrap();
    device.change(|says| says.1 = Some(Code::Medium));
    daemon.stop();
    drop(disk);
    assert_eq!(is_owed(folder.path(), "state"), true, "{:#}", word(folder.path()));
}

/// A ring stops, its last flush fails for the medium: the guest is owed a flush that fails. Then its daemon is killed. (That nobody flushes
/// twice what was dropped is known to the one that was killed alone, so it is written down when it happens, and not when it ends.)
#[test]
fn what_a_guest_is_owed_outlives_a_kill() {
    let (folder, device) = (tempfile::tempdir().unwrap(), Scripted::new());
    let daemon = over(&device, folder.path(), "state", &["a.sock"]);
    let disk = guest(folder.path(), "a.sock");
    block_on(disk.write(0, disk.buffer(4096).unwrap())).0.unwrap();
    device.change(|says| says.1 = Some(Code::Medium));
    drop(disk);
    let vhost = lock(&daemon.state).vhosts.values().next().unwrap().clone();
    let until = Instant::now() + Duration::from_secs(20);
    while !vhost.mark.owed().is_owed() {
        assert!(Instant::now() < until, "its last flush has failed");
        thread::sleep(Duration::from_millis(5));
    }
    let until = Instant::now() + Duration::from_secs(2);
    while is_owed(folder.path(), "state") != true && Instant::now() < until {
        daemon.look_after();
        thread::sleep(Duration::from_millis(5));
    }
    let written = is_owed(folder.path(), "state");
    device.change(|says| says.1 = None);
    daemon.stop();
    assert_eq!(written, true, "a kill now, and the next daemon's first flush succeeds");
}

/// A path shows another disk: who answers on the others is in doubt, and a flush that succeeds there makes nothing clean. So it does with the
/// last flush of a daemon: whether the cache lost its power in between is asked all the same.
#[test]
fn a_last_flush_in_doubt_leaves_the_cache_dirty_in_the_mark() {
    let (folder, device) = (tempfile::tempdir().unwrap(), Scripted::new());
    let daemon = over(&device, folder.path(), "state", &["a.sock"]);
    let group = lock(&daemon.state).disks["vm"].group.clone();
    let other = Arc::new(AtomicBool::new(false));
    let path = ScriptedPath(device.clone(), "second", other.clone());
    group.add_path(polypath::multipath::PathConfig::new(Arc::new(path))).unwrap();
    let wait_for = |paths| until(&daemon, || group.availability().usable_paths == paths);
    wait_for(2);
    let disk = guest(folder.path(), "a.sock");
    block_on(disk.write(0, disk.buffer(4096).unwrap())).0.unwrap();
    other.store(true, Ordering::Relaxed);
    device.change(|_| ());
    wait_for(1);
    assert!(daemon.stop().is_empty());
    drop(disk);
    assert_eq!(word(folder.path())["caches"]["nvme:nqn:serial"]["dirty"], true, "it cleaned nothing");
}

/// A socket is deleted under its guest, which has written and not flushed, and made again. In between the only path to the cache leads to
/// another one, and the guest of another socket is told: the first guest's next flush fails as well.
#[test]
fn a_loss_between_two_servers_of_one_guest_is_told_to_it() {
    let (folder, device) = (tempfile::tempdir().unwrap(), Scripted::new());
    let daemon = over(&device, folder.path(), "state", &["a.sock", "b.sock"]);
    let (one, other) = (guest(folder.path(), "a.sock"), guest(folder.path(), "b.sock"));
    block_on(one.write(0, one.buffer(4096).unwrap())).0.unwrap();
    daemon.delete_vhost(Path::new("a.sock")).unwrap();
    drop(one);
    let group = lock(&daemon.state).disks["vm"].group.clone();
    device.change(|says| says.0 = 100);
    until(&daemon, || group.losses() > 0 && group.availability().usable_paths == 1);
    assert!(block_on(other.flush()).is_err(), "the other guest is told");
    daemon.create_vhost(&vhost("a.sock")).unwrap();
    let one = guest(folder.path(), "a.sock");
    let flushed = block_on(one.flush());
    drop((one, other));
    daemon.stop();
    assert!(flushed.is_err(), "its write is lost, and is acknowledged as durable");
}

/// Two guests of one disk have written. The last flush of one of them fails for the medium, which says so once and has dropped what both wrote:
/// the other one's next flush finds nothing wrong with the disk, and must fail all the same.
#[test]
fn a_last_flush_that_the_medium_failed_is_owed_to_every_guest_of_the_disk() {
    let (folder, device) = (tempfile::tempdir().unwrap(), Scripted::new());
    let daemon = over(&device, folder.path(), "state", &["a.sock", "b.sock"]);
    let (one, other) = (guest(folder.path(), "a.sock"), guest(folder.path(), "b.sock"));
    for disk in [&one, &other] {
        block_on(disk.write(0, disk.buffer(4096).unwrap())).0.unwrap();
    }
    device.change(|says| says.1 = Some(Code::Medium));
    drop(one);
    let vhosts = lock(&daemon.state).vhosts.clone();
    let until = Instant::now() + Duration::from_secs(20);
    while !vhosts.values().any(|vhost| vhost.mark.owed().is_owed()) {
        assert!(Instant::now() < until, "its last flush has failed");
        thread::sleep(Duration::from_millis(5));
    }
    device.change(|says| says.1 = None);
    let flushed = block_on(other.flush());
    drop(other);
    daemon.stop();
    assert!(flushed.is_err(), "its write is lost, and is acknowledged as durable");
}

/// The daemon ends in order, and flushes: the mark says that nothing is in a cache, so that a loss of power afterwards loses nothing.
#[test]
fn a_last_flush_is_written_down() {
    let (folder, device) = (tempfile::tempdir().unwrap(), Scripted::new());
    let daemon = over(&device, folder.path(), "state", &["a.sock"]);
    let disk = guest(folder.path(), "a.sock");
    block_on(disk.write(0, disk.buffer(4096).unwrap())).0.unwrap();
    drop(disk);
    assert_eq!(word(folder.path())["caches"]["nvme:nqn:serial"]["dirty"], true);
    assert!(daemon.stop().is_empty());
    assert_eq!(word(folder.path())["caches"]["nvme:nqn:serial"]["dirty"], false);
    device.change(|says| says.0 = 8);
    let daemon = over(&device, folder.path(), "state", &["a.sock"]);
    let disk = guest(folder.path(), "a.sock");
    let flushed = block_on(disk.flush());
    drop(disk);
    daemon.stop();
    assert!(flushed.is_ok(), "{flushed:?}");
}
