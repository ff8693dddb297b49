//! What an idle daemon costs: sixteen disks of two NVMe/TCP paths each, a front-end connected to every one, and nothing to do.
use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use blkio::{Blkio, Blkioq, MemoryRegion, ReqFlags};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use polypath_tests::Lab;
use polypath_tests::products::Daemon;
use serde_json::{Value, json};

const DISKS: usize = 16;
/// How long the daemon is watched.
const WINDOW: Duration = Duration::from_secs(5);
/// Most CPU time in that window: one hundredth of a core.
const MOST: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn an_idle_daemon_with_sixteen_disks_attached_uses_at_most_a_hundredth_of_a_core() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "idle_daemon", &[]) else { return Ok(()) };
    let target = start_target()?;
    let (rpc, file) = (lab.path("rpc.sock"), lab.path("idle.toml"));
    fs::write(&file, config(&lab, &target))?;
    let arguments = ["-c".to_owned(), file.display().to_string()];
    let mut daemon = Daemon::start_with(&arguments, lab.log("polypathd"), rpc, lab.path("vm0.sock"))?;
    wait_for(&mut daemon, "both paths of every disk to be usable", |daemon| {
        let disks = daemon.rpc("disk_list", &json!({}))?;
        let disks = disks.as_array().context("a list of disks")?;
        let up = |disk: &Value| disk["paths"].as_array().is_some_and(|p| p.iter().all(|p| p["state"] == "usable"));
        Ok(disks.len() == DISKS && disks.iter().all(up))
    })?;
    let guests: Vec<FrontEnd> =
        (0..DISKS).map(|i| FrontEnd::connect(&lab, i)).collect::<Result<_>>().context("front-ends")?;
    // Each has been of use: what is measured is an idle disk, not one that never came up.
    wait_for(&mut daemon, "every front-end's read", |daemon| {
        let statistics = daemon.rpc("statistics", &json!({}))?;
        let disks = statistics.as_object().context("statistics by disk")?;
        let ios = |paths: &Value| paths.as_array().map_or(0, |p| p.iter().filter_map(|p| p["ios"].as_u64()).sum());
        Ok(disks.len() == DISKS && disks.values().all(|paths| ios(paths) > 0))
    })?;
    let vhosts = daemon.rpc("vhost_list", &json!({}))?;
    let connected = vhosts.as_array().context("a list")?.iter().filter(|v| v["connected"] == true).count();
    ensure!(connected == DISKS, "{connected} front-ends are connected: {vhosts:#}");

    let pid = daemon.process().pid();
    let before = (reactor(&daemon)?, cpu_time(pid)?, Instant::now());
    // This is no synchronisation: the passing of time is what is measured.
    thread::sleep(WINDOW);
    let (used, window) = (cpu_time(pid)? - before.1, before.2.elapsed());
    let after = reactor(&daemon)?;
    let diff = |key: &str| after[key].as_u64().unwrap_or(0) - before.0[key].as_u64().unwrap_or(0);
    let share = 100.0 * used.as_secs_f64() / window.as_secs_f64();
    let report = format!(
        "idle daemon, {DISKS} disks, {} paths, {connected} front-ends: {used:?} of CPU in {window:?} ({share:.2} % of a core); \
         its reactor took {} turns ({} busy) and slept {} times",
        2 * DISKS,
        diff("turns"),
        diff("busy_turns"),
        diff("sleeps")
    );
    println!("{report}");
    ensure!(used.as_secs_f64() * WINDOW.as_secs_f64() <= MOST.as_secs_f64() * window.as_secs_f64(), "{report}");
    drop(guests);
    daemon.stop()?;
    target.stop();
    Ok(())
}

/// One subsystem a disk: nothing is shared between disks, so every path has a controller, with its keep alive, of its own.
fn start_target() -> Result<TargetHandle> {
    let mut config = TargetConfig::default();
    config.listeners.extend((0..2).map(|_| ListenerConfig::new("127.0.0.1:0")));
    config
        .subsystems
        .extend((0..DISKS).map(|i| SubsystemConfig::new(nqn(i), vec![NamespaceConfig::new("ram://16MiB?bs=4096")])));
    Target::start(config).context("target")
}

fn nqn(disk: usize) -> String {
    format!("nqn.2026-01.org.polypath:idle-{disk}")
}

fn config(lab: &Lab, target: &TargetHandle) -> String {
    let mut text = format!("[daemon]\nrpc_socket = \"{}\"\n", lab.path("rpc.sock").display());
    for i in 0..DISKS {
        let uris: Vec<_> = target.addresses().iter().map(|a| format!("\"nvme-tcp://{a}/{}?ns=1\"", nqn(i))).collect();
        let socket = lab.path(&format!("vm{i}.sock"));
        // Writing to a text cannot fail.
        let _ = write!(
            text,
            "\n[[disk]]\nname = \"vm{i}\"\npaths = [{}]\n\n[[vhost]]\ndisk = \"vm{i}\"\nsocket = \"{}\"\n",
            uris.join(", "),
            socket.display()
        );
    }
    text
}

/// A guest that has read one block and now does nothing.
struct FrontEnd {
    _queue: Blkioq,
    _region: MemoryRegion,
    // after the queue, which uses it
    _device: Blkio,
}

impl FrontEnd {
    fn connect(lab: &Lab, disk: usize) -> Result<Self> {
        let said = |e: blkio::Error| anyhow!("{} ({})", e.message(), e.errno());
        let mut device = Blkio::new("virtio-blk-vhost-user").map_err(said)?;
        let socket = lab.path(&format!("vm{disk}.sock"));
        device.set_str("path", socket.to_str().context("a socket path is UTF-8")?).map_err(said)?;
        device.connect().map_err(said)?;
        let mut queue = device.start().map_err(said)?.queues.into_iter().next().context("blkio gave no queue")?;
        let region = device.alloc_mem_region(4096).map_err(said)?;
        device.map_mem_region(&region).map_err(said)?;
        queue.read(0, region.addr as *mut u8, 4096, 0, ReqFlags::empty());
        let mut done = [const { std::mem::MaybeUninit::uninit() }];
        let mut limit = LIMIT;
        let n = queue.do_io(&mut done, 1, Some(&mut limit), None).map_err(said)?;
        ensure!(n == 1, "{n} completions of one read");
        Ok(FrontEnd { _queue: queue, _region: region, _device: device })
    }
}

fn reactor(daemon: &Daemon) -> Result<Value> {
    let all = daemon.rpc("reactor_statistics", &json!({}))?;
    all.get(0).cloned().context("one reactor")
}

/// User and system time of all its threads.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, field 2, is in parentheses and may contain anything; utime and stime are fields 14 and 15.
    let rest = stat.rsplit_once(')').context("a process name")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

fn wait_for(daemon: &mut Daemon, what: &str, done: impl Fn(&Daemon) -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done(daemon)? {
        ensure!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {what}\n{}", daemon.process().log_tail());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
