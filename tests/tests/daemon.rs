//! `polypathd` at work: paths and policies that change under verified I/O, statistics that tell the truth, an end in the middle of
//! writing, growth, and a log that says why a path was left and why it came back.
use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath::{Disk, Stack, StackConfig, block_on};
use polypath_tests::Lab;
use polypath_tests::blk::{BlkioLoad, BlkioOptions};
use polypath_tests::products::{Daemon, Target};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const SELECTORS: [&str; 9] = [
    "round-robin",
    "random",
    "hash",
    "weight",
    "service-time",
    "average-rate",
    "historical-service-time",
    "preferred",
    "queue-length",
];

#[test]
fn paths_weights_and_selectors_change_under_verified_io() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "daemon_changes", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 3, 64)?;
    let mut daemon = Daemon::start(&lab, &[target.uri(0), target.uri(1)], 1)?;
    let load = BlkioLoad::start(BlkioOptions { blocks: 4096, ..BlkioOptions::new(&daemon.socket, 0xdae3_0001) });
    load.wait_for_more(2_000, LIMIT)?;

    // A path that comes carries I/O.
    let added =
        daemon.rpc("path_add", &json!({ "disk": "disk", "uri": target.uri(2), "name": "third", "weight": 7 }))?;
    ensure!(added["path"] == "third", "{added}");
    wait_for(&mut daemon, "the new path to carry I/O", |d| Ok(ios(d, "third")? > 100))?;
    // The same way again, or another disk, does not become a path that is used.
    let again = daemon.rpc("path_add", &json!({ "disk": "disk", "uri": target.uri(2), "name": "fourth" }));
    ensure!(again.as_ref().is_err_and(|e| e.to_string().contains("third")), "{again:?}");
    daemon.rpc("path_add", &json!({ "disk": "disk", "uri": "ram://64MiB", "name": "stranger" }))?;
    wait_for(&mut daemon, "a stranger to be quarantined", |d| Ok(path(d, "stranger")?["state"] == "quarantined"))?;
    let stranger = path(&daemon, "stranger")?;
    ensure!(stranger["ios"] == 0 && stranger["why"].as_str().is_some_and(|w| !w.is_empty()), "{stranger:#}");
    daemon.rpc("path_remove", &json!({ "disk": "disk", "path": "stranger" }))?;

    for selector in SELECTORS {
        daemon.rpc("selector_set", &json!({ "disk": "disk", "selector": selector }))?;
        load.wait_for_more(500, LIMIT)?;
        let disks = daemon.rpc("disk_list", &json!({}))?;
        ensure!(disks[0]["selector"] == selector, "{disks:#}");
    }
    daemon.rpc("selector_set", &json!({ "disk": "disk", "selector": "round-robin", "min_io": 64 }))?;
    ensure!(daemon.rpc("disk_list", &json!({}))?[0]["min_io"] == 64);
    let refused = daemon.rpc("selector_set", &json!({ "disk": "disk", "selector": "hash", "min_io": 64 }));
    ensure!(refused.as_ref().is_err_and(|e| e.to_string().contains("round-robin")), "{refused:?}");
    daemon.rpc("path_set_preferred", &json!({ "disk": "disk", "path": "third", "preferred": true }))?;
    ensure!(path(&daemon, "third")?["preferred"] == true);
    daemon.rpc("selector_set", &json!({ "disk": "disk", "selector": "queue-length" }))?;
    let first = target.uri(0);
    daemon.rpc("path_set_weight", &json!({ "disk": "disk", "path": first, "weight": 300 }))?;
    ensure!(path(&daemon, &first)?["weight"] == 300);
    let refused = daemon.rpc("path_set_weight", &json!({ "disk": "disk", "path": "nobody", "weight": 3 }));
    ensure!(
        refused.as_ref().is_err_and(|e| e.to_string().contains("third")),
        "the paths there are are named: {refused:?}"
    );

    // A path that goes drains first, and its numbers go with it; back again it starts from nothing.
    daemon.rpc("path_remove", &json!({ "disk": "disk", "path": first }))?;
    wait_for(&mut daemon, "a path to be gone", |d| Ok(names(d)?.iter().all(|n| *n != first)))?;
    load.wait_for_more(1_000, LIMIT)?;
    daemon.rpc("path_add", &json!({ "disk": "disk", "uri": first }))?;
    wait_for(&mut daemon, "the path to carry I/O again", |d| Ok(ios(d, &first)? > 100))?;

    // Another disk beside it comes, is used and goes.
    let second = lab.path("second.sock");
    daemon.rpc("disk_create", &json!({ "name": "second", "paths": ["ram://32MiB"] }))?;
    daemon.rpc("vhost_create", &json!({ "disk": "second", "socket": second }))?;
    let beside = BlkioLoad::start(BlkioOptions { blocks: 4096, ..BlkioOptions::new(&second, 0xdae3_0002) });
    beside.wait_for_more(2_000, LIMIT)?;
    beside.stop()?.check()?;
    daemon.rpc("vhost_delete", &json!({ "socket": second }))?;
    daemon.rpc("disk_delete", &json!({ "name": "second" }))?;
    load.wait_for_more(1_000, LIMIT)?;

    let report = load.stop()?;
    println!("{report:?}");
    report.check()?;
    let statistics = daemon.rpc("statistics", &json!({ "disk": "disk" }))?;
    let paths = statistics["disk"].as_array().context("paths")?;
    ensure!(paths.len() == 3, "{statistics:#}");
    let sum = |key: &str| paths.iter().filter_map(|p| p[key].as_u64()).sum::<u64>();
    ensure!(
        sum("errors") == 0 && sum("in_flight") == 0 && sum("suspects") == 0 && sum("failures") == 0,
        "{statistics:#}"
    );
    let vhosts = daemon.rpc("vhost_list", &json!({}))?;
    let ring = &vhosts[0]["rings"][0];
    ensure!(ring["errors"] == 0 && ring["bad_requests"] == 0 && ring["ring_errors"] == 0, "{vhosts:#}");
    let requests = ring["requests"].as_u64().unwrap_or(0);
    ensure!(requests >= report.ios && ring["completions"] == requests, "{} I/Os of the guest: {vhosts:#}", report.ios);
    daemon.stop()
}

#[test]
fn weights_are_kept_and_statistics_show_the_paths_that_were_used() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "daemon_weights", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 3, 64)?;
    // The third listener is reachable and gives no access: nothing may go there.
    target.set_ana(2, "inaccessible")?;
    let mut daemon = start(
        &lab,
        "polypathd",
        &format!(
            "selector = \"weight\"\n[[disk.path]]\nname = \"light\"\nuri = \"{}\"\nweight = 100\n[[disk.path]]\nname = \"heavy\"\nuri = \"{}\"\nweight = 300\n[[disk.path]]\nname = \"closed\"\nuri = \"{}\"\nweight = 900",
            target.uri(0),
            target.uri(1),
            target.uri(2)
        ),
    )?;
    wait_for(&mut daemon, "all paths", |d| {
        Ok(d.paths()?.iter().all(|p| p["state"] == "usable" && p["access"].is_string()))
    })?;
    let load = BlkioLoad::start(BlkioOptions { blocks: 4096, ..BlkioOptions::new(&daemon.socket, 0xdae3_0003) });
    load.wait_for_more(500, LIMIT)?;
    let share = |daemon: &Daemon| -> Result<f64> {
        let before = (ios(daemon, "light")?, ios(daemon, "heavy")?);
        load.wait_for_more(8_000, LIMIT)?;
        let (light, heavy) = (ios(daemon, "light")? - before.0, ios(daemon, "heavy")? - before.1);
        ensure!(light + heavy >= 7_000, "{light} and {heavy} I/Os of 8000");
        Ok(heavy as f64 / light as f64)
    };
    let three_to_one = share(&daemon)?;
    ensure!((2.5..3.6).contains(&three_to_one), "weights 300 and 100 gave {three_to_one:.2} to 1");
    daemon.rpc("path_set_weight", &json!({ "disk": "disk", "path": "light", "weight": 300 }))?;
    let even = share(&daemon)?;
    ensure!((0.85..1.18).contains(&even), "equal weights gave {even:.2} to 1");
    println!("300:100 gave {three_to_one:.2}, 300:300 gave {even:.2}");
    let closed = path(&daemon, "closed")?;
    ensure!(closed["ios"] == 0 && closed["access"] == "inaccessible" && closed["uri"] == target.uri(2), "{closed:#}");
    let heavy = path(&daemon, "heavy")?;
    ensure!(
        heavy["mean_latency_us"].as_f64().is_some_and(|us| us > 0.0) && heavy["state_for_ms"].is_u64(),
        "{heavy:#}"
    );
    ensure!(heavy["bytes"].as_u64() > heavy["ios"].as_u64().map(|n| n * 2048), "{heavy:#}");
    load.stop()?.check()?;
    daemon.stop()
}

#[test]
fn single_queue_sockets_are_spread_over_the_reactors() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "daemon_reactors", &[]) else { return Ok(()) };
    if thread::available_parallelism()?.get() < 2 {
        // Both reactors could not be pinned; nothing is left to test on one core.
        return Ok(());
    }
    let rpc = lab.path("rpc.sock");
    let dir = lab.path("").display().to_string();
    let arguments = ["-S", &dir, "-m", "0x3", "-r", &rpc.display().to_string()].map(str::to_owned);
    let daemon = Daemon::start_with(&arguments, lab.log("polypathd"), rpc, lab.path("vm0.sock"))?;
    let busy = |daemon: &Daemon| -> Result<Vec<u64>> {
        let all = daemon.rpc("reactor_statistics", &json!({}))?;
        let all = all.as_array().context("a list of reactors")?;
        Ok(all.iter().filter_map(|r| r["busy_turns"].as_u64()).collect())
    };
    for i in 0..2 {
        let (name, socket) = (format!("vm{i}"), lab.path(&format!("vm{i}.sock")));
        daemon.rpc("disk_create", &json!({ "name": name, "paths": ["ram://16MiB"] }))?;
        daemon.rpc("vhost_create", &json!({ "disk": name, "socket": format!("vm{i}.sock") }))?;
        let before = busy(&daemon)?;
        ensure!(before.len() == 2, "two reactors were asked for: {before:?}");
        let load = BlkioLoad::start(BlkioOptions { blocks: 1024, ..BlkioOptions::new(&socket, 0xdae3_0010 + i) });
        load.wait_for_more(2_000, LIMIT)?;
        load.stop()?.check()?;
        let after = busy(&daemon)?;
        let grown: Vec<u64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        let (own, other) = (grown[i as usize], grown[1 - i as usize]);
        ensure!(own > 20 && own > 4 * other, "disk {i} kept the reactors busy for {grown:?} turns");
    }
    daemon.stop()
}

#[test]
fn the_log_tells_why_a_path_was_left_and_why_it_came_back() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "daemon_log", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 2, 64)?;
    let config = format!(
        "[[disk.path]]\nname = \"left\"\nuri = \"{}\"\n[[disk.path]]\nname = \"right\"\nuri = \"{}\"",
        target.uri(0),
        target.uri(1)
    );
    let mut daemon = start(&lab, "polypathd", &config)?;
    let load = BlkioLoad::start(BlkioOptions { blocks: 4096, ..BlkioOptions::new(&daemon.socket, 0xdae3_0004) });
    load.wait_for_more(1_000, LIMIT)?;
    target.reset(0)?;
    wait_for(&mut daemon, "the path that was reset to come back", |d| Ok(path(d, "left")?["recoveries"] == 1))?;
    target.drop_silently(1)?;
    wait_for(&mut daemon, "the silent path to be left", |d| Ok(path(d, "right")?["state"] == "down"))?;
    let down = path(&daemon, "right")?;
    ensure!(down["cause"] == "PathTimeout" && down["why"].as_str().is_some_and(|w| !w.is_empty()), "{down:#}");
    target.restore(1)?;
    wait_for(&mut daemon, "the silent path to come back", |d| Ok(path(d, "right")?["recoveries"] == 1))?;
    load.wait_for_more(500, LIMIT)?;
    load.stop()?.check()?;
    let log = fs::read_to_string(daemon.process().log())?;
    let said = |path: &str, words: &[&str]| {
        let line = log.lines().find(|l| l.contains(&format!("path=\"{path}\"")) && words.iter().all(|w| l.contains(w)));
        line.map(str::to_owned).with_context(|| format!("no line on {path} with {words:?} in:\n{log}"))
    };
    println!("{}", said("left", &["WARN", "path left: ", "reset"])?);
    println!("{}", said("left", &["path taken into use", "recovered=true"])?);
    println!("{}", said("right", &["WARN", "path left: ", "cause=PathTimeout"])?);
    println!("{}", said("right", &["path taken into use", "recovered=true"])?);
    ensure!(!log.contains('\u{1b}'), "a log that is no terminal has colours");
    daemon.stop()
}

#[test]
fn growth_reaches_rpc_and_the_next_front_end() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "daemon_growth", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 2, 16)?;
    let mut daemon = Daemon::start(&lab, &target.uris(), 1)?;
    let load = BlkioLoad::start(BlkioOptions { blocks: 1024, ..BlkioOptions::new(&daemon.socket, 0xdae3_0005) });
    load.wait_for_more(500, LIMIT)?;
    let blocks = |d: &Daemon| Ok::<_, anyhow::Error>(d.rpc("disk_list", &json!({}))?[0]["blocks"].as_u64());
    ensure!(blocks(&daemon)? == Some(32_768));
    target.control(&json!({ "cmd": "resize", "nsid": 1, "bytes": 48 << 20 }))?;
    wait_for(&mut daemon, "the disk to grow", |d| Ok(blocks(d)? == Some(98_304)))?;
    load.wait_for_more(500, LIMIT)?;
    load.stop()?.check()?;
    // Beyond the old end there is room to write and read now.
    let load = BlkioLoad::start(BlkioOptions { blocks: 12_288, ..BlkioOptions::new(&daemon.socket, 0xdae3_0006) });
    load.wait_for_more(2_000, LIMIT)?;
    load.stop()?.check()?;
    // And again while nobody is connected.
    target.control(&json!({ "cmd": "resize", "nsid": 1, "bytes": 64 << 20 }))?;
    wait_for(&mut daemon, "the disk to grow again", |d| Ok(blocks(d)? == Some(131_072)))?;
    let load = BlkioLoad::start(BlkioOptions { blocks: 16_384, ..BlkioOptions::new(&daemon.socket, 0xdae3_0007) });
    load.wait_for_more(2_000, LIMIT)?;
    load.stop()?.check()?;
    daemon.stop()
}

#[test]
fn sigterm_in_the_middle_of_writing_drains_and_loses_nothing() -> Result<()> {
    end_and_verify("daemon_sigterm", |_| Ok(()))
}

/// What is in flight on the lost path waits for its fence first and is written elsewhere then; only after that the process ends.
#[test]
fn sigterm_just_after_a_path_was_lost_drains_what_waits_for_its_fence() -> Result<()> {
    end_and_verify("daemon_sigterm_lost", |target| target.drop_silently(0))
}

const WRITERS: u64 = 16;
const BLOCKS: u64 = 32;
const BLOCK: u32 = 4096;

/// Writers with one block in flight each; `trouble`; SIGTERM; a new daemon. Each block holds what was acknowledged last, or what was
/// on its way then.
fn end_and_verify(test: &str, trouble: impl Fn(&Target) -> Result<()>) -> Result<()> {
    let Some(lab) = Lab::enter("blkio", test, &[]) else { return Ok(()) };
    let target = Target::start(&lab, 2, 16)?;
    let mut daemon = Daemon::start(&lab, &target.uris(), 1)?;
    let acknowledged = Arc::new(Mutex::new(vec![0_u64; (WRITERS * BLOCKS) as usize]));
    write_for_ever(&daemon, &acknowledged)?;
    let total = || acknowledged.lock().map_or(0, |a| a.iter().sum::<u64>());
    wait_for(&mut daemon, "some writing", |_| Ok(total() > 4 * WRITERS * BLOCKS))?;
    trouble(&target)?;
    let told = Instant::now();
    let status = daemon.process().terminate(LIMIT)?;
    println!("{test}: ended {:?} after SIGTERM, {} writes acknowledged", told.elapsed(), total());
    ensure!(status.success(), "it ended with {status}\n{}", daemon.process().log_tail());
    let log = fs::read_to_string(daemon.process().log())?;
    ensure!(log.contains("SIGTERM") && log.contains("drained and ended"), "{log}");
    ensure!(!daemon.socket.exists() && !daemon.rpc_socket().exists(), "sockets stay after the end");
    drop(daemon);

    // From now on nothing is acknowledged, for nobody is there.
    let acknowledged = acknowledged.lock().map_or_else(|p| p.into_inner().clone(), |a| a.clone());
    target.control(&json!({ "cmd": "restore", "listener": 0 }))?;
    let config = format!("paths = [\"{}\", \"{}\"]", target.uri(0), target.uri(1));
    let daemon = start(&lab, "polypathd-again", &config)?;
    let stack = Stack::start(StackConfig::default())?;
    let uri = format!("vhost-user-blk://{}", daemon.socket.display());
    let disk = Disk::builder().uris([uri]).stack(&stack).open_blocking()?;
    let mut in_doubt = 0;
    for (block, &sequence) in (0..).zip(&acknowledged) {
        let (result, buffer) = block_on(disk.read(block * u64::from(BLOCK), disk.buffer(BLOCK)?));
        result?;
        let bytes = buffer.to_vec();
        let good = [sequence, sequence + 1].into_iter().find(|&s| bytes == content(block, s));
        let good = good.with_context(|| {
            format!("block {block}: sequence {sequence} was acknowledged, the disk has {:?}", &bytes[..16])
        })?;
        in_doubt += u64::from(good != sequence);
    }
    ensure!(in_doubt <= WRITERS, "{in_doubt} blocks are ahead of their acknowledgement, at most one a writer can be");
    block_on(disk.close());
    drop(disk);
    daemon.stop()
}

/// Writers that go on until their disk is gone. They end with the test's process: what a back-end took along is never answered.
fn write_for_ever(daemon: &Daemon, acknowledged: &Arc<Mutex<Vec<u64>>>) -> Result<()> {
    let stack = Stack::start(StackConfig::default())?;
    let uri = format!("vhost-user-blk://{}", daemon.socket.display());
    let disk = Disk::builder().uris([uri]).stack(&stack).open_blocking()?;
    for writer in 0..WRITERS {
        let (disk, acknowledged) = (disk.clone(), acknowledged.clone());
        let mut buffer = disk.buffer(BLOCK)?;
        thread::spawn(move || {
            for sequence in 1.. {
                for block in writer * BLOCKS..(writer + 1) * BLOCKS {
                    buffer.write_at(0, &content(block, sequence)).expect("as long as the buffer");
                    let (result, back) = block_on(disk.write(block * u64::from(BLOCK), buffer));
                    if result.is_err() {
                        return;
                    }
                    buffer = back;
                    acknowledged.lock().expect("no writer panics")[block as usize] = sequence;
                }
            }
        });
    }
    // Neither is dropped, for the writers may be waiting for what never comes.
    std::mem::forget((disk, stack));
    Ok(())
}

/// What `block` holds after its write number `sequence`; zero is the fresh medium.
fn content(block: u64, sequence: u64) -> Vec<u8> {
    if sequence == 0 {
        return vec![0; BLOCK as usize];
    }
    let words = (0..u64::from(BLOCK) / 16).flat_map(|i| [block ^ (i << 48), sequence.wrapping_mul(2 * i + 1)]);
    words.flat_map(u64::to_le_bytes).collect()
}

/// A daemon with a disk named `disk`, `config` being the rest of its table, and its socket.
fn start(lab: &Lab, log: &str, config: &str) -> Result<Daemon> {
    let (rpc, socket, file) = (lab.path("rpc.sock"), lab.path("disk.sock"), lab.path("daemon.toml"));
    let text = format!(
        "[daemon]\nrpc_socket = \"{}\"\n\n[[disk]]\nname = \"disk\"\n{config}\n\n[[vhost]]\ndisk = \"disk\"\nsocket = \"{}\"\n",
        rpc.display(),
        socket.display()
    );
    fs::write(&file, text)?;
    Daemon::start_with(&["-c".to_owned(), file.display().to_string()], lab.log(log), rpc, socket)
}

fn names(daemon: &Daemon) -> Result<Vec<String>> {
    Ok(daemon.paths()?.iter().filter_map(|p| p["name"].as_str().map(str::to_owned)).collect())
}

fn path(daemon: &Daemon, name: &str) -> Result<Value> {
    let all = daemon.paths()?;
    all.iter().find(|p| p["name"] == name).cloned().with_context(|| format!("no path {name}: {all:#?}"))
}

fn ios(daemon: &Daemon, name: &str) -> Result<u64> {
    path(daemon, name)?["ios"].as_u64().context("a number of I/Os")
}

fn wait_for(daemon: &mut Daemon, what: &str, done: impl Fn(&Daemon) -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done(daemon)? {
        ensure!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {what}\n{}", daemon.process().log_tail());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
