//! A guest moves between two hosts: two QEMUs, each with a daemon of its own, and one disk that both reach.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath_tests::Need;
use polypath_tests::guest::{Guest, GuestSpec};
use polypath_tests::lab::Lab;
use polypath_tests::products::{Daemon, Target, program_of};
use polypath_tests::qmp::Qmp;
use serde_json::json;

const NEEDS: [Need; 6] = Need::FILE_SYSTEM_GUEST;
const MINUTE: Duration = Duration::from_secs(60);
/// How often it moves.
const TIMES: u32 = 5;
const LATENCY_US: u64 = 2_000;
/// So much that QEMU stops the guest as soon as it may. An emulated processor of QEMU before 9.1 forgets to note pages that it writes while
/// memory is copied under it, and its guests die of that with any disk, QEMU's own included. What the back-end notes is judged by
/// `polypath-vhost-user-blk`'s own tests; here it is how a disk changes hands.
const DOWNTIME_LIMIT_MS: u64 = 5_000;
/// Bytes a second.
const BANDWIDTH: u64 = 1 << 30;

#[test]
fn a_guest_on_split_rings_moves_back_and_forth_under_load() -> Result<()> {
    moves("a_guest_on_split_rings_moves", "")
}

#[test]
fn a_guest_on_packed_rings_moves_back_and_forth_under_load() -> Result<()> {
    moves("a_guest_on_packed_rings_moves", ",packed=on")
}

fn moves(test: &str, device: &str) -> Result<()> {
    let Some(lab) = Lab::enter("qemu-vhost-user-blk", test, &NEEDS) else { return Ok(()) };
    let target = Target::start(&lab, 2, 64)?;
    for listener in 0..2 {
        target.control(&json!({"cmd": "latency", "listener": listener, "us": LATENCY_US}))?;
    }
    let daemons = [daemon(&lab, &target, "a")?, daemon(&lab, &target, "b")?];
    let load = program_of("polypath-tests", "guest-load")?;
    let spec = |leg: u32| {
        let daemon = &daemons[leg as usize % 2];
        GuestSpec::new(&format!("leg-{leg}"))
            .memory_mib(160)
            .vhost_user_blk_with(&daemon.socket, ",reconnect=1", 2, device)
            .program(&load.display().to_string())
            .monitor(&monitor(&lab, leg))
    };
    let mut guest = Guest::boot(&lab, &spec(0))?;
    let running = guest.begin("/sbin/guest-load /dev/vda 8 4 100000")?;
    guest.wait_load_alive(&running, Instant::now(), 2 * MINUTE)?;
    for leg in 1..=TIMES {
        let at = lab.path(&format!("migration-{leg}"));
        let mut next = Guest::incoming(&lab, &spec(leg), &guest, &at)?;
        let mut qmp = Qmp::connect(&monitor(&lab, leg - 1))?;
        qmp.execute(
            "migrate-set-parameters",
            &json!({ "downtime-limit": DOWNTIME_LIMIT_MS, "max-bandwidth": BANDWIDTH }),
        )?;
        let began = Instant::now();
        let moved = qmp.migrate(&at, 2 * MINUTE).with_context(|| next.process().log_tail())?;
        let there = Instant::now();
        // Its last words on the old side, if there are any, are as good as the first on the new one.
        guest.process().kill()?;
        next.wait_load_alive(&running, there, MINUTE)?;
        println!(
            "{test}: leg {leg}: {} ms in all, {} ms down by QEMU's word, all alive {} ms after it was there",
            moved.total.as_millis(),
            moved.downtime.as_millis(),
            there.elapsed().as_millis()
        );
        ensure!(moved.total <= began.elapsed());
        guest = next;
    }
    drop(guest);
    for daemon in daemons {
        let rings = daemon.rpc("vhost_list", &json!({}))?;
        ensure!(rings[0]["rings"].as_array().is_some_and(|r| r.iter().all(|r| r["ring_errors"] == 0)), "{rings:#}");
        daemon.stop()?;
    }
    Ok(())
}

fn monitor(lab: &Lab, leg: u32) -> PathBuf {
    lab.path(&format!("qmp-{leg}"))
}

/// A daemon of its own host: sockets, state and log are nobody else's.
fn daemon(lab: &Lab, target: &Target, host: &str) -> Result<Daemon> {
    let (rpc, socket) = (lab.path(&format!("rpc-{host}.sock")), lab.path(&format!("disk-{host}.sock")));
    let text = format!(
        "[daemon]\nrpc_socket = \"{}\"\nstate_dir = \"{}\"\n[[disk]]\nname = \"disk\"\npaths = {:?}\n[[vhost]]\ndisk = \"disk\"\nsocket = \"{}\"\nqueues = 2\n",
        rpc.display(),
        lab.path(&format!("state-{host}")).display(),
        target.uris(),
        socket.display()
    );
    let file = lab.path(&format!("polypathd-{host}.toml"));
    std::fs::write(&file, text)?;
    Daemon::start_with(&["-c".to_owned(), text_of(&file)], lab.log(&format!("polypathd-{host}")), rpc, socket)
}

fn text_of(path: &Path) -> String {
    path.display().to_string()
}
