//! Our iSCSI initiator on tgt: verified I/O with and without digests and CHAP, clear words for what is wrong, and a target that dies and
//! comes back.
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use polypath::sources::{Sources, SourcesConfig};
use polypath::{Disk, Stack, StackConfig};
use polypath_tests::Lab;
use polypath_tests::lab::Need;
use polypath_tests::products::{bench, program_of, verifies};
use polypath_tests::tgt::Tgt;

const TGT: [Need; 2] = [Need::Program("tgtd"), Need::Program("tgtadm")];
const SECRET: &str = "passw0rd1234";
const THEIRS: &str = "tpassw0rd5678";

#[test]
fn everything_that_is_written_is_read_back() -> Result<()> {
    let Some(lab) = Lab::enter("tgt", "tgt_verify", &TGT) else { return Ok(()) };
    let tgt = Tgt::start(&lab, 1, 64)?;
    verifies(&[&tgt.uri("", 0, 1, "")])?;
    tgt.take_digests()?;
    for options in ["?hdgst=on", "?ddgst=on", "?hdgst=on&ddgst=on"] {
        verifies(&[&tgt.uri("", 0, 1, options)])?;
    }
    // What may be sent unasked, and how much at a time.
    for options in
        ["?initial_r2t=on", "?immediate_data=off", "?initial_r2t=on&immediate_data=off&max_burst=8192&first_burst=4096"]
    {
        verifies(&[&tgt.uri("", 1, 1, options)])?;
    }
    Ok(())
}

#[test]
fn each_side_proves_who_it_is_and_what_is_wrong_is_said_in_a_line() -> Result<()> {
    let Some(lab) = Lab::enter("tgt", "tgt_chap", &TGT) else { return Ok(()) };
    let tgt = Tgt::start(&lab, 1, 16)?;
    tgt.require_account("user", SECRET)?;
    let secret = |name: &str, text: &str| -> Result<String> {
        let path = lab.path(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let (ours, theirs) = (secret("ours", SECRET)?, secret("theirs", THEIRS)?);
    let wrong = secret("wrong", "another-secret")?;
    verifies(&[&tgt.uri("user@", 0, 1, &format!("?secret_file={ours}"))])?;
    tgt.prove_account("tuser", THEIRS)?;
    let mutual = |ours: &str, theirs: &str| {
        tgt.uri("user@", 0, 1, &format!("?secret_file={ours}&target_user=tuser&target_secret_file={theirs}"))
    };
    verifies(&[&mutual(&ours, &theirs)])?;
    let elsewhere =
        tgt.uri("user@", 0, 1, &format!("?secret_file={ours}")).replace(Tgt::IQN, "iqn.2026-01.org.example:no");
    for (uri, says) in [
        (tgt.uri("", 0, 1, ""), "authentication failed"),
        (tgt.uri("user@", 0, 1, &format!("?secret_file={wrong}")), "authentication failed"),
        (mutual(&ours, &wrong), "the target gave a wrong response"),
        (mutual(&ours, &ours), "the target's secret is ours"),
        (tgt.uri("user@", 0, 1, ""), "has no secret"),
        (elsewhere, "no target of this name"),
        (tgt.uri("user@", 0, 9, &format!("?secret_file={ours}")), "LUN 9: the target has no logical unit at this LUN"),
    ] {
        let (content, said) = bench(&[&uri], "1", &[])?;
        let last = said.lines().last().unwrap_or_default();
        ensure!(!content && last.contains(says), "{uri}: {said}");
        ensure!(!said.contains(SECRET) && !said.contains("another-secret"), "a secret is shown: {said}");
    }
    Ok(())
}

#[test]
fn a_target_that_dies_and_comes_back_costs_no_request() -> Result<()> {
    let Some(lab) = Lab::enter("tgt", "tgt_restart", &TGT) else { return Ok(()) };
    let mut tgt = Tgt::start(&lab, 1, 64)?;
    let uri = tgt.uri("", 0, 1, "");
    let running = std::thread::spawn(move || bench(&[&uri], "6", &["--selector", "queue-length"]));
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(1500));
        tgt.kill()?;
        tgt.start_again()?;
    }
    let (content, said) = running.join().map_err(|_| anyhow::anyhow!("the bench has panicked"))??;
    ensure!(content && said.contains("verified: 0 errors") && !said.contains("requests failed"), "{said}");
    Ok(())
}

#[test]
fn a_second_logical_unit_adds_no_session() -> Result<()> {
    let Some(lab) = Lab::enter("tgt", "tgt_units", &TGT) else { return Ok(()) };
    let tgt = Tgt::start(&lab, 2, 16)?;
    let stack = Stack::start(StackConfig::default())?;
    let open = |lun: u32| -> Result<Disk> {
        let device = stack.open_device(&tgt.uri("", 0, lun, "").parse()?)?;
        polypath::wait_live(&*device, Duration::from_secs(10))?;
        Ok(Disk::builder().device(device).stack(&stack).open_blocking()?)
    };
    let read = |disk: &Disk| -> Result<()> {
        let buffer = disk.buffer(4096)?;
        polypath::block_on(disk.read(0, buffer)).0?;
        Ok(())
    };
    let first = open(1)?;
    read(&first)?;
    let sessions = tgt.sessions()?;
    ensure!(sessions >= 1, "no session");
    let second = open(2)?;
    read(&second)?;
    ensure!(tgt.sessions()? == sessions, "{} sessions, {sessions} before", tgt.sessions()?);
    Ok(())
}

/// tgt shows nothing that is unique in the world, so that nothing of it may be put together; and of several portals at one address it
/// lists one.
#[test]
fn a_portal_is_a_source_of_every_logical_unit() -> Result<()> {
    let Some(lab) = Lab::enter("tgt", "tgt_sources", &TGT) else { return Ok(()) };
    let mut tgt = Tgt::start(&lab, 2, 16)?;
    let portal = format!("iscsi://127.0.0.1:{}", tgt.ports()[0]);
    let discover = |more: &[&str]| -> Result<(bool, String)> {
        let output = Command::new(program_of("polypath-cli", "polypath")?).arg("discover").args(more).output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
    };
    let (content, said) = discover(&[&portal])?;
    let is_listed = |port: &&u16| {
        let target = format!("target       iscsi://127.0.0.1:{port}/{}  portal group 1", Tgt::IQN);
        let disk = |lun: u32| said.contains(&format!("disk         iscsi://127.0.0.1:{port}/{}/{lun}\n", Tgt::IQN));
        said.contains(&target) && disk(1) && disk(2)
    };
    ensure!(content && tgt.ports().iter().filter(is_listed).count() == 1, "{said}");
    verifies(&[&tgt.uri("", 1, 2, "")])?;
    let (content, said) = discover(&["--devices", &portal])?;
    ensure!(content && said.matches("proves nothing").count() == 2 && said.contains("it is no disk"), "{said}");
    // Logical units come and go while it is looked after.
    let stack = Stack::start(StackConfig::default())?;
    let config = SourcesConfig { refresh: Duration::from_millis(300), rounds: 2, ..SourcesConfig::default() };
    let sources = Sources::start(&stack, config)?;
    sources.add(format!("{portal}?reconnect_delay_ms=50").parse()?)?;
    let until = |devices: usize| {
        let report = sources.wait(Duration::from_secs(30), |report| report.devices.len() == devices);
        ensure!(report.devices.len() == devices, "{devices}: {report:#?}");
        Ok(())
    };
    until(2)?;
    tgt.admin("--op delete --mode logicalunit --tid 1 --lun 2")?;
    until(1)?;
    let image = lab.disk_image("more.img", 16 << 20)?;
    tgt.admin(&format!("--op new --mode logicalunit --tid 1 --lun 5 -b {}", image.display()))?;
    until(2)?;
    // It dies, and nobody takes anything away for that; it comes back with what it had at first.
    tgt.kill()?;
    let silent = sources.wait(Duration::from_secs(30), |report| report.sources[0].problem.is_some());
    ensure!(silent.sources[0].problem.is_some() && silent.devices.len() == 2, "{silent:#?}");
    tgt.start_again()?;
    let back = |report: &polypath::sources::Report| {
        let ends = |lun: &str| report.devices.iter().filter(|d| d.name.ends_with(lun)).count();
        (ends("/1"), ends("/2"), ends("/5")) == (1, 1, 0)
    };
    let report = sources.wait(Duration::from_secs(60), back);
    ensure!(back(&report), "{report:#?}");
    sources.close();
    Ok(())
}
