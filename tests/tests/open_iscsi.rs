//! Linux's own iSCSI initiator against `polypath-target`: it finds it, proves who it is and lets it do the same, keeps a file system on it
//! whatever becomes of its sessions, and has its dm-multipath follow the access (ALUA) that two portals give.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath_target::{
    ChapConfig, Command as Control, ListenerConfig, NamespaceConfig, SecretText, SubsystemConfig, Target, TargetConfig,
    TargetHandle,
};
use polypath_tests::peers::open_iscsi_guest;
use polypath_tests::{Guest, Lab, Need};

const NEEDS: [Need; 9] = [
    Need::Program("iscsid"),
    Need::Program("iscsiadm"),
    Need::Program("dmsetup"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::Program("modprobe"),
    Need::Program("mke2fs"),
    Need::Program("e2fsck"),
    Need::GuestKernel,
];
const NQN: &str = "nqn.2026-01.org.polypath.lab:disk";
const IQN: &str = "iqn.2026-01.org.polypath.lab:disk";
const SECRET: &str = "passw0rd1234";
const THEIRS: &str = "tpassw0rd5678";
const MINUTE: Duration = Duration::from_secs(60);

/// A target with two portals, each a portal group and a target port group of its own, over one disk of 128 MiB.
fn start(chap: Option<ChapConfig>) -> Result<TargetHandle> {
    let iscsi = || ListenerConfig::iscsi("127.0.0.1:0");
    let disk = vec![NamespaceConfig::new("ram://128MiB")];
    let mut config = TargetConfig {
        listeners: vec![iscsi(), iscsi()],
        subsystems: vec![SubsystemConfig { iqn: Some(IQN.into()), ..SubsystemConfig::new(NQN, disk) }],
        ..TargetConfig::default()
    };
    config.iscsi.chap = chap;
    Ok(Target::start(config)?)
}

/// Has the target do `what` to the sessions of a listener, of which there is one at least.
fn control(target: &TargetHandle, what: &str, listener: usize) -> Result<()> {
    let told = target.control(&Control::new(what).listener(listener)).map_err(anyhow::Error::msg)?;
    ensure!(told["connections"].as_u64() > Some(0), "{what}: {told}");
    Ok(())
}

fn sessions(target: &TargetHandle) -> usize {
    target.status()["sessions"].as_array().map_or(0, Vec::len)
}

/// What Linux says of a disk that fails.
fn no_errors(guest: &mut Guest) -> Result<()> {
    let errors = guest.run("io_errors", MINUTE)?;
    ensure!(errors.is_empty(), "the guest's kernel saw I/O errors:\n{errors}");
    Ok(())
}

#[test]
fn linux_keeps_a_file_system_over_a_session_that_is_reset_and_dropped() -> Result<()> {
    let Some(lab) = Lab::enter("open-iscsi", "open_iscsi_sessions", &NEEDS) else { return Ok(()) };
    let chap = ChapConfig {
        user: "user".into(),
        secret: Some(SecretText::new(SECRET)),
        own_user: Some("tuser".into()),
        own_secret: Some(SecretText::new(THEIRS)),
        ..ChapConfig::default()
    };
    let target = start(Some(chap))?;
    let (first, second) = (target.port(0), target.port(1));
    let mut guest = open_iscsi_guest(&lab)?;
    let stranger = guest.run(&format!("discover {first}"), MINUTE);
    ensure!(stranger.as_ref().is_err_and(|e| format!("{e:#}").contains("authorization failure")), "{stranger:?}");
    guest.run(&format!("demands user {SECRET} tuser {THEIRS}"), MINUTE)?;
    let found = guest.run(&format!("discover {first}"), MINUTE)?;
    for (port, tag) in [(first, 1), (second, 2)] {
        ensure!(found.contains(&format!("127.0.0.1:{port},{tag} {IQN}")), "{found}");
    }
    // The second is refused by Linux, to which the target has not proved what it should.
    for (name, right, says) in [
        ("node.session.auth.password", SECRET, "authorization failure"),
        ("node.session.auth.password_in", THEIRS, "non-retryable iSCSI login failure"),
    ] {
        guest.run(&format!("setting {second} {name} another-secret"), MINUTE)?;
        let login = guest.run(&format!("login {second} 1"), MINUTE);
        ensure!(login.as_ref().is_err_and(|e| format!("{e:#}").contains(says)), "{name}: {login:?}");
        guest.run(&format!("setting {second} {name} {right}"), MINUTE)?;
    }
    ensure!(sessions(&target) == 0, "{:#}", target.status());

    guest.run(&format!("login {first} 1"), MINUTE)?;
    let digests = guest.run("digests", MINUTE)?;
    ensure!(digests.contains("HeaderDigest: CRC32C") && digests.contains("DataDigest: CRC32C"), "{digests}");
    guest.run("raw_rounds 1 2 8", 2 * MINUTE)?;
    guest.run("fs_make", MINUTE)?;
    let rounds = guest.begin("fs_rounds 1 5 8")?;
    for (round, what) in [("ROUND 2", "reset"), ("ROUND 3", "drop_connection"), ("ROUND 4", "logout_request")] {
        guest.wait_for_line(&rounds, round, 2 * MINUTE)?;
        wait_until("a session", || sessions(&target) == 1)?;
        control(&target, what, 0)?;
    }
    guest.finish(rounds, 3 * MINUTE)?;
    guest.run("fs_fsck", MINUTE)?;
    no_errors(&mut guest)?;
    guest.run("logout", MINUTE)?;
    wait_until("the end of all sessions", || sessions(&target) == 0)
}

#[test]
fn dm_multipath_follows_access_asks_for_it_and_outlives_a_path() -> Result<()> {
    let Some(lab) = Lab::enter("open-iscsi", "open_iscsi_multipath", &NEEDS) else { return Ok(()) };
    let target = start(None)?;
    let set = |listener: usize, state: &str| target.set_ana(listener, state).map_err(anyhow::Error::msg);
    set(1, "non_optimized")?;
    let mut guest = open_iscsi_guest(&lab)?;
    guest.run(&format!("discover {}", target.port(0)), MINUTE)?;
    for (port, disks) in [(target.port(0), 1), (target.port(1), 2)] {
        // How long Linux keeps what is in flight for a session that may come back, before another path has it.
        guest.run(&format!("setting {port} node.session.timeo.replacement_timeout 3"), MINUTE)?;
        guest.run(&format!("login {port} {disks}"), MINUTE)?;
    }
    guest.run("shows sda active/optimized && shows sdb active/non-optimized", MINUTE)?;
    guest.run("multipath && fs_make && fs_rounds 1 1 8", 2 * MINUTE)?;
    ensure!(writes(&target, 0) > 0 && writes(&target, 1) == 0, "{:#}", target.status());

    // The path of the first group loses its access. Linux takes the other one, and asks for its access to be optimized.
    let rounds = guest.begin("fs_rounds 2 4 8")?;
    guest.wait_for_line(&rounds, "ROUND 3", 2 * MINUTE)?;
    set(0, "inaccessible")?;
    guest.finish(rounds, 3 * MINUTE)?;
    guest.run("shows sda unavailable && shows sdb active/optimized", MINUTE)?;
    let status = target.status();
    let ours = status["subsystems"].as_array().into_iter().flatten().find(|subsystem| subsystem["iqn"] == IQN);
    let access = &ours.context("no subsystem of ours")?["namespaces"][0]["ana"];
    ensure!(access[0] == "Inaccessible" && access[1] == "Optimized", "{access}");
    ensure!(writes(&target, 1) > 0, "{:#}", target.status());

    // It gets it back, is used again, and is lost.
    set(0, "optimized")?;
    guest.run("reinstate sda 1", MINUTE)?;
    let before = writes(&target, 0);
    let rounds = guest.begin("fs_rounds 5 7 8")?;
    guest.wait_for_line(&rounds, "ROUND 6", 2 * MINUTE)?;
    ensure!(writes(&target, 0) > before, "{:#}", target.status());
    target.drop_silently(0).map_err(anyhow::Error::msg)?;
    guest.finish(rounds, 3 * MINUTE)?;
    target.restore(0).map_err(anyhow::Error::msg)?;
    guest.run("fs_fsck && forget && logout", 2 * MINUTE)?;
    wait_until("the end of all sessions", || sessions(&target) == 0)
}

/// Writes that the connections of a listener have carried.
fn writes(target: &TargetHandle, listener: usize) -> u64 {
    let status = target.status();
    let connections = status["connections"].as_array().into_iter().flatten();
    connections.filter(|c| c["listener"] == listener).filter_map(|c| c["writes"].as_u64()).sum()
}

fn wait_until(what: &str, done: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        ensure!(start.elapsed() < MINUTE, "{what} was waited for");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
