//! What the demo is played on: target, stack, group, vhost socket, guest.

use super::Args;
use super::guest::{Guest, GuestCounters, Load};
use anyhow::{Context, Result, anyhow};
use polypath::block::{Armed, Cx, Device, Host, Poller, QueueConfig, Turn, Waits};
use polypath::multipath::{Events, Group, PathState};
use polypath::reactor::{Reactor, ReactorConfig, ReactorHandle};
use polypath::vhost_user_blk::{Server, ServerConfig};
use polypath::vhost_user_client::{ClientConfig, VhostUserDisk};
use polypath::{Arena, GroupSpec, PathSpec, Stack, StackConfig, wait_live};
use polypath_bench::verify::{Verifier, VerifierConfig};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2026-01.org.polypath:demo";

/// Everything, in the order in which it is taken down.
pub(super) struct World {
    pub(super) seen: Arc<GuestCounters>,
    guest: Option<(ReactorHandle, JoinHandle<()>)>,
    disk: Arc<VhostUserDisk>,
    server: Server,
    pub(super) group: Arc<Group>,
    pub(super) events: Events,
    stack: Stack,
    target: TargetHandle,
    _dir: tempfile::TempDir,
}

impl World {
    /// Builds all of it and waits until every path carries I/O.
    pub(super) fn build(args: &Args) -> Result<World> {
        let target = start_target(args)?;
        let stack = Stack::start(StackConfig::default()).context("starting the stack")?;
        let mut spec = GroupSpec::new("demo", []);
        spec.selector = args.selector;
        for (i, address) in target.addresses().iter().enumerate() {
            let uri = format!("nvme-tcp://{address}/{NQN}?ns=1&keep_alive_ms={}", args.keep_alive_ms);
            spec.paths.push(PathSpec { name: Some(format!("path{}", i + 1)), ..PathSpec::new(uri.parse()?) });
        }
        let group = stack.open_group(spec).context("opening the group")?;
        let events = group.events();
        wait_live(&*group, Duration::from_secs(10)).context("the group")?;
        let dir = tempfile::tempdir().context("a folder for the socket")?;
        let socket = dir.path().join("demo.sock");
        let config =
            ServerConfig { queue_size: 1024, ..ServerConfig::new("demo", &socket, group.clone(), stack.hosts()) };
        let server = Server::start(config).context("serving the disk")?;
        let path = socket.to_str().context("the temporary folder's name is not UTF-8")?.to_owned();
        // The group keeps I/O back for as long as its own limits say; a guest has none.
        let client = ClientConfig { queue_size: 1024, io_timeout: Duration::from_secs(600), ..ClientConfig::new(path) };
        let disk = VhostUserDisk::connect(&client).context("connecting as a guest")?;
        let mut world =
            World { seen: Arc::default(), guest: None, disk, server, group, events, stack, target, _dir: dir };
        world.wait_usable(args.paths.into(), Duration::from_secs(10))?;
        world.seen = Arc::default();
        Ok(world)
    }

    /// Puts the guest to work on a thread of its own.
    pub(super) fn start_guest(&mut self, args: &Args, read_percent: u32, seed: u64) -> Result<()> {
        let (handle, thread) = Reactor::start(ReactorConfig { id: 1000, ..ReactorConfig::default() })?;
        let (disk, seen, args) = (self.disk.clone(), self.seen.clone(), args.clone());
        let (tell, told) = std::sync::mpsc::channel();
        handle.spawn(Box::new(move |cx| {
            let made = make_guest(cx, &disk, &args, read_percent, seed, seen);
            let (guest, result): (Box<dyn Poller>, _) = match made {
                Ok(guest) => (Box::new(guest), Ok(())),
                Err(error) => (Box::new(NoGuest), Err(error)),
            };
            // Whoever started the guest waits for this.
            let _ = tell.send(result);
            guest
        }));
        self.guest = Some((handle, thread));
        told.recv().context("the guest's thread ended")?
    }

    /// Does something to a path's listener; a refusal is an error.
    pub(super) fn fault(&self, act: PathAction, listener: usize) -> Result<()> {
        let result = match act {
            PathAction::Drop => self.target.drop_silently(listener),
            PathAction::Restore => self.target.restore(listener),
            // The listener goes first, so that nobody comes back before it is opened again.
            PathAction::Reset => self.target.close_listener(listener).and_then(|()| self.target.reset(listener)),
            PathAction::Reopen => self.target.open_listener(listener),
        };
        result.map_err(|e| anyhow!("the target refused to {act:?} listener {listener}: {e}"))
    }

    /// Waits until `paths` paths carry I/O.
    pub(super) fn wait_usable(&self, paths: usize, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let all = self.group.statistics();
            if all.iter().filter(|p| p.state == PathState::Usable).count() >= paths {
                return Ok(());
            }
            if start.elapsed() > limit {
                let list: Vec<_> = all.iter().map(|p| format!("{}: {} {}", p.name, p.state, p.why)).collect();
                return Err(anyhow!("paths did not come up within {limit:?}: {}", list.join("; ")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the guest and waits until all of its I/O has ended.
    pub(super) fn stop_guest(&mut self, limit: Duration) -> Result<()> {
        let Some((handle, thread)) = self.guest.take() else { return Ok(()) };
        self.seen.stop.store(true, Ordering::Release);
        let start = Instant::now();
        while !self.seen.ended.load(Ordering::Acquire) {
            if start.elapsed() > limit {
                return Err(anyhow!("I/O of the guest did not end within {limit:?}"));
            }
            handle.wake();
            std::thread::sleep(Duration::from_millis(2));
        }
        handle.stop();
        thread.join().map_err(|_| anyhow!("the guest's thread panicked"))
    }

    /// Takes everything down.
    pub(super) fn end(mut self) -> Result<()> {
        self.disk.close();
        drop(self.disk);
        self.server.stop().context("ending the vhost socket")?;
        self.group.close();
        drop(self.stack);
        self.target.stop();
        Ok(())
    }
}

/// What can be done to a path.
#[derive(Clone, Copy, Debug)]
pub(super) enum PathAction {
    /// As if the network ate everything.
    Drop,
    /// The end of that.
    Restore,
    /// TCP resets for all connections, and no new ones.
    Reset,
    /// New connections again.
    Reopen,
}

/// Stands in for a guest that could not be made.
struct NoGuest;

impl Poller for NoGuest {
    fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
        Turn::Finished
    }
    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Busy
    }
    fn name(&self) -> &str {
        "nobody"
    }
}

fn start_target(args: &Args) -> Result<TargetHandle> {
    let mut config = TargetConfig::default();
    for _ in 0..args.paths {
        config.listeners.push(ListenerConfig::new("127.0.0.1:0"));
    }
    let namespace = NamespaceConfig::new(format!("ram://{}MiB?bs=4096", args.size_mib));
    config.subsystems.push(SubsystemConfig::new(NQN, vec![namespace]));
    Target::start(config).context("starting the target")
}

fn make_guest(
    cx: &mut Cx<'_>,
    disk: &VhostUserDisk,
    args: &Args,
    read_percent: u32,
    seed: u64,
    seen: Arc<GuestCounters>,
) -> Result<Guest> {
    let info = disk.state().info().cloned().context("the disk is gone")?;
    let (block_size, blocks) = (info.geometry.block_size, info.geometry.blocks);
    let queue = disk.open_queue(QueueConfig { depth: args.qd as u16 }).context("opening a queue")?;
    let arena = Arena::new(u64::from(args.qd) * u64::from(args.bs.next_multiple_of(4096)), false).context("buffers")?;
    let chunks: Option<Vec<_>> = (0..args.qd).map(|_| arena.chunk(args.bs)).collect();
    let config =
        VerifierConfig { max_in_flight: args.qd, initially_zero: true, ..VerifierConfig::new(blocks, block_size) };
    let verifier = Verifier::open(config).map_err(|e| anyhow!("verifier: {e}"))?;
    let load = Load { qd: args.qd, read_percent, blocks_per_io: args.bs / block_size, blocks, block_size, seed };
    Guest::new(cx, queue, chunks.context("buffers")?, verifier, load, seen)
}
