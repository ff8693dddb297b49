//! A guest outlives its daemon, however that ends.
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use polypath_tests::guest::{Guest, GuestSpec};
use polypath_tests::products::{Daemon, Target, program_of};
use polypath_tests::{Lab, Need};
use serde_json::json;

const NEEDS: [Need; 6] = Need::FILE_SYSTEM_GUEST;
const MINUTE: Duration = Duration::from_secs(60);
/// How soon after each end all of the guest's readers and writers must have got something done.
const BACK_WITHIN: Duration = Duration::from_secs(15);
/// How long answers take, so that much is in flight whenever the daemon ends.
const LATENCY_US: u64 = 20_000;

/// How a daemon ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Terminated,
    Killed,
    /// Killed, with both paths silent; they return later.
    KilledWithoutPaths,
    /// Asked to end, with both paths silent.
    TerminatedWithoutPaths,
}

#[test]
fn a_guest_on_split_rings_outlives_its_daemon() -> Result<()> {
    outlives("a_guest_on_split_rings_outlives_its_daemon", false)
}

#[test]
fn a_guest_on_packed_rings_outlives_its_daemon() -> Result<()> {
    outlives("a_guest_on_packed_rings_outlives_its_daemon", true)
}

fn outlives(test: &str, packed: bool) -> Result<()> {
    let Some(lab) = Lab::enter("qemu-vhost-user-blk", test, &NEEDS) else { return Ok(()) };
    let target = Target::start(&lab, 2, 64)?;
    for listener in 0..2 {
        target.control(&json!({"cmd": "latency", "listener": listener, "us": LATENCY_US}))?;
    }
    let mut daemon = Daemon::start(&lab, &target.uris(), 2)?;
    let load: PathBuf = program_of("polypath-tests", "guest-load")?;
    let spec = GuestSpec::new("restart")
        .vhost_user_blk_with(&daemon.socket, ",reconnect=1", 2, if packed { ",packed=on" } else { "" })
        .program(&load.display().to_string());
    let mut guest = Guest::boot(&lab, &spec)?;
    let running = guest.begin("/sbin/guest-load /dev/vda 8 4 100000")?;
    guest.wait_load_alive(&running, Instant::now(), MINUTE)?;
    let ends = [
        End::Terminated,
        End::Killed,
        End::Terminated,
        End::KilledWithoutPaths,
        End::TerminatedWithoutPaths,
        End::Killed,
    ];
    for (round, end) in ends.into_iter().enumerate() {
        daemon = restart(&lab, &target, daemon, end).with_context(|| format!("round {round}: {end:?}"))?;
        let back = Instant::now();
        guest.wait_load_alive(&running, back, BACK_WITHIN).with_context(|| format!("round {round}: {end:?}"))?;
        eprintln!("round {round}: {end:?}: alive after {:?}", back.elapsed());
    }
    drop(guest);
    daemon.stop()
}

/// Ends the daemon and starts another one. Returns once all that the guest waits for can be there.
fn restart(lab: &Lab, target: &Target, mut daemon: Daemon, end: End) -> Result<Daemon> {
    let silent = matches!(end, End::KilledWithoutPaths | End::TerminatedWithoutPaths);
    for listener in 0..2 {
        if silent {
            target.drop_silently(listener)?;
        }
    }
    match end {
        End::Terminated => daemon.stop()?,
        End::Killed | End::KilledWithoutPaths => daemon.process().kill()?,
        // What is in flight does not come back: it says so, and leaves it to the next.
        End::TerminatedWithoutPaths => drop(daemon.process().terminate(MINUTE)?),
    }
    let daemon = Daemon::start(lab, &target.uris(), 2)?;
    if silent {
        std::thread::sleep(Duration::from_secs(3));
        target.restore(0)?;
        target.restore(1)?;
    }
    Ok(daemon)
}

/// One reader that has one request under way, over paths that answer at once: nothing but that one request can wake its guest, and what waited
/// in its ring is done before QEMU has said which descriptor the guest listens on.
#[test]
fn a_guest_with_one_request_at_a_time_outlives_its_daemon() -> Result<()> {
    let Some(lab) = Lab::enter("qemu-vhost-user-blk", "a_guest_with_one_request_at_a_time_outlives", &NEEDS) else {
        return Ok(());
    };
    let target = Target::start(&lab, 2, 64)?;
    let mut daemon = Daemon::start(&lab, &target.uris(), 1)?;
    let load: PathBuf = program_of("polypath-tests", "guest-load")?;
    let spec = GuestSpec::new("alone")
        .vhost_user_blk_with(&daemon.socket, ",reconnect=1", 1, "")
        .program(&load.display().to_string());
    let mut guest = Guest::boot(&lab, &spec)?;
    let running = guest.begin("/sbin/guest-load /dev/vda 1 0 100000")?;
    guest.wait_load_alive(&running, Instant::now(), MINUTE)?;
    for round in 0..20 {
        let end = if round % 2 == 0 { End::Terminated } else { End::Killed };
        daemon = restart(&lab, &target, daemon, end).with_context(|| format!("round {round}: {end:?}"))?;
        let back = Instant::now();
        guest.wait_load_alive(&running, back, BACK_WITHIN).with_context(|| format!("round {round}: {end:?}"))?;
        eprintln!("round {round}: {end:?}: alive after {:?}", back.elapsed());
    }
    drop(guest);
    daemon.stop()
}
