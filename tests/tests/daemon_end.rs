//! How the daemon ends: by which signals, how fast, and what it leaves behind for the next one.
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use polypath_tests::Lab;
use polypath_tests::blk::{BlkioLoad, BlkioOptions};
use polypath_tests::products::{Daemon, Target};
use rustix::process::Signal;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
const UNCLEAN: &str = "did not end in order";

fn log(daemon: &mut Daemon) -> Result<String> {
    Ok(fs::read_to_string(daemon.process().log())?)
}

/// A daemon with requests in flight whose answers take `latency_ms`.
fn loaded(lab: &Lab, latency_ms: u64) -> Result<(Target, Daemon, BlkioLoad)> {
    let target = Target::start(lab, 2, 16)?;
    let daemon = Daemon::start(lab, &target.uris(), 1)?;
    let load = BlkioLoad::start(BlkioOptions { blocks: 4096, ..BlkioOptions::new(&daemon.socket, 0xe4d) });
    // All connections are up before they get slow: a dozen slow commands to set one up take longer than its keep alive.
    wait_for("both paths", || {
        let disk = daemon.rpc("disk_list", &json!({}))?[0].clone();
        Ok((0..2).all(|path| disk["paths"][path]["state"] == "usable"))
    })?;
    load.wait_for_more(100, LIMIT)?;
    for listener in 0..2 {
        target.control(&json!({"cmd": "latency", "listener": listener, "ms": latency_ms}))?;
    }
    load.wait_for_more(8, LIMIT)?;
    Ok((target, daemon, load))
}

fn wait_for(what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !done()? {
        ensure!(begun.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn a_hangup_drains_and_user_signals_do_nothing() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "daemon_hangup", &[]) else { return Ok(()) };
    let (_target, mut daemon, load) = loaded(&lab, 20)?;
    for signal in [Signal::USR1, Signal::USR2] {
        daemon.process().signal(signal)?;
        load.wait_for_more(50, LIMIT)?;
        daemon.rpc("disk_list", &json!({}))?;
    }
    daemon.process().signal(Signal::HUP)?;
    let status = daemon.process().wait(LIMIT)?;
    let log = log(&mut daemon)?;
    ensure!(status.success() && log.contains("SIGHUP") && log.contains("drained and ended"), "{status}\n{log}");
    Ok(())
}

#[test]
fn two_signals_within_a_second_are_one_wish() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "daemon_two_signals", &[]) else { return Ok(()) };
    let (_target, mut daemon, _load) = loaded(&lab, 300)?;
    for signal in [Signal::TERM, Signal::TERM, Signal::INT, Signal::HUP] {
        daemon.process().signal(signal)?;
    }
    let status = daemon.process().wait(LIMIT)?;
    let log = log(&mut daemon)?;
    ensure!(status.success() && log.contains("drained and ended"), "{status}\n{log}");
    Ok(())
}

#[test]
fn a_later_signal_ends_it_at_once_and_the_next_daemon_knows() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "daemon_at_once", &[]) else { return Ok(()) };
    let (target, mut daemon, _load) = loaded(&lab, 20)?;
    target.drop_silently(0)?;
    target.drop_silently(1)?;
    daemon.process().signal(Signal::TERM)?;
    // A later one is one that comes a second after the first was taken, not after it was sent.
    let log_file = daemon.process().log().to_owned();
    wait_for("the first to be taken", || Ok(fs::read_to_string(&log_file)?.contains("draining")))?;
    std::thread::sleep(Duration::from_millis(1300));
    ensure!(daemon.process().ended()?.is_none(), "it waits for what is in flight");
    let told = Instant::now();
    let status = daemon.process().terminate(LIMIT)?;
    // Draining takes half a minute.
    ensure!(!status.success() && told.elapsed() < Duration::from_secs(10), "{status} after {:?}", told.elapsed());
    drop(daemon);
    let mut daemon = Daemon::start(&lab, &target.uris(), 1)?;
    let log = log(&mut daemon)?;
    ensure!(log.contains("ending at once") && log.contains(UNCLEAN), "{log}");
    Ok(())
}

#[test]
fn only_who_did_not_end_in_order_leaves_a_wait_behind() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "daemon_mark", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 2, 16)?;
    Daemon::start(&lab, &target.uris(), 1)?.stop()?;
    let mut daemon = Daemon::start(&lab, &target.uris(), 1)?;
    ensure!(!log(&mut daemon)?.contains(UNCLEAN));
    daemon.process().kill()?;
    drop(daemon);
    // The runtime folder was swept meanwhile: the mark does not lie there.
    let mut daemon = Daemon::start(&lab, &target.uris(), 1)?;
    ensure!(log(&mut daemon)?.contains(UNCLEAN));
    // Reads go on, and changes wait: their first answer takes as long as what the killed daemon may have had in flight.
    let began = Instant::now();
    let load = BlkioLoad::start(BlkioOptions { blocks: 4096, ..BlkioOptions::new(&daemon.socket, 0xe4e) });
    load.wait_for_more(3000, LIMIT)?;
    load.stop()?.check()?;
    let took = began.elapsed();
    ensure!(took > Duration::from_secs(3) && took < Duration::from_secs(20), "the first writes took {took:?}");
    daemon.stop()?;
    let mut daemon = Daemon::start(&lab, &target.uris(), 1)?;
    let count = log(&mut daemon)?.matches(UNCLEAN).count();
    ensure!(count == 1, "said {count} times");
    daemon.stop()
}

/// A daemon that ends in order while changes still wait for what its predecessor, which was killed, may have in flight: the next one waits for
/// the rest of it.
#[test]
fn an_end_in_order_does_not_end_the_wait_for_one_that_was_killed() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "daemon_wait_goes_on", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 2, 16)?;
    let mut daemon = Daemon::start(&lab, &target.uris(), 1)?;
    daemon.process().kill()?;
    drop(daemon);
    let killed = Instant::now();
    Daemon::start(&lab, &target.uris(), 1)?.stop()?;
    let daemon = Daemon::start(&lab, &target.uris(), 1)?;
    let load = BlkioLoad::start(BlkioOptions { blocks: 4096, ..BlkioOptions::new(&daemon.socket, 0xe4f) });
    load.wait_for_more(3000, LIMIT)?;
    load.stop()?.check()?;
    let took = killed.elapsed();
    ensure!(took > Duration::from_secs(5), "changes were made {took:?} after the kill");
    daemon.stop()
}
