//! Our own iSCSI target, judged: by libiscsi's conformance tool, by its other clients, and by our own initiator.
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath::block::Access;
use polypath::{DeviceInfo, Disk, Stack, StackConfig};
use polypath_target::{
    ChapConfig, Command as Control, DEFAULT_IQN, ListenerConfig, NamespaceConfig, SecretText, SubsystemConfig, Target,
    TargetConfig, TargetHandle,
};
use polypath_tests::Lab;
use polypath_tests::lab::{Need, find_program};
use polypath_tests::process::Process;
use polypath_tests::products::{bench, program, verifies};

const LIBISCSI: [Need; 3] = [Need::Program("iscsi-test-cu"), Need::Program("iscsi-ls"), Need::Program("iscsi-inq")];
const NQN: &str = "nqn.2026-01.org.polypath.lab:disk";
const IQN: &str = "iqn.2026-01.org.polypath.lab:disk";
const SECRET: &str = "passw0rd1234";
const THEIRS: &str = "tpassw0rd5678";

/// A target with two portals for iSCSI and one for NVMe/TCP over one disk of 64 MiB with 512-byte blocks, and one with 4 KiB.
fn config() -> TargetConfig {
    let disks =
        vec![NamespaceConfig::new("ram://64MiB?eui64=0011223344556677"), NamespaceConfig::new("ram://64MiB?bs=4096")];
    let iscsi = || ListenerConfig::iscsi("127.0.0.1:0");
    TargetConfig {
        listeners: vec![iscsi(), iscsi(), ListenerConfig::new("127.0.0.1:0")],
        subsystems: vec![SubsystemConfig { iqn: Some(IQN.into()), ..SubsystemConfig::new(NQN, disks) }],
        ..TargetConfig::default()
    }
}

fn start(change: impl FnOnce(&mut TargetConfig)) -> Result<TargetHandle> {
    let mut config = config();
    change(&mut config);
    Ok(Target::start(config)?)
}

/// The URI of logical unit `lun` through portal 0 or 1; `user` is what stands before the host, with its `@`.
fn uri(target: &TargetHandle, user: &str, portal: usize, lun: u32, options: &str) -> String {
    format!("iscsi://{user}127.0.0.1:{}/{IQN}/{lun}{options}", target.port(portal))
}

/// What `program` says, and whether it was content.
fn run(program: &str, arguments: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    let said = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat();
    Ok((output.status.success(), said))
}

/// What the target makes of a family of the tool's tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Claim {
    /// It does it all.
    Done,
    /// It does it; so many tests are about something that it does not have, with these words of the tool.
    But(&'static str),
    /// It refuses the command, with these words of the tool.
    Refused(&'static str),
}

use Claim::{But, Done, Refused};

/// A unit without physical blocks of several logical ones.
const NO_PHYSICAL: &str = "LBPPB < 2";

/// Families that write 512 bytes, or as much at a time as no limit of ours allows, to a unit with blocks of 4 KiB.
const OF_SMALL_BLOCKS: [&str; 3] = ["ExtendedCopy", "GetLBAStatus", "ProutReserve"];

/// Every family there is, and what is claimed of it.
const FAMILIES: [(&str, Claim); 51] = [
    ("CompareAndWrite", But(NO_PHYSICAL)),
    ("ExtendedCopy", Refused("is not implemented")),
    ("GetLBAStatus", Refused("is not implemented")),
    ("Inquiry", Done),
    ("Mandatory", Done),
    ("ModeSense6", Done),
    ("NoMedia", Done),
    ("OrWrite", Refused("is not implemented")),
    ("Prefetch10", Refused("is not implemented")),
    ("Prefetch16", Refused("is not implemented")),
    ("PreventAllow", Refused("is not removable")),
    ("PrinReadKeys", Done),
    ("PrinServiceactionRange", Done),
    ("PrinReportCapabilities", Done),
    ("ProutRegister", Done),
    ("ProutReserve", Done),
    ("ProutClear", Done),
    ("ProutPreempt", Done),
    ("Read6", Done),
    ("Read10", Done),
    ("Read12", Done),
    ("Read16", Done),
    ("ReadCapacity10", Done),
    ("ReadCapacity16", Done),
    ("ReadDefectData10", Refused("is not implemented")),
    ("ReadDefectData12", Refused("is not implemented")),
    ("ReadOnly", Refused("is not write-protected")),
    ("ReceiveCopyResults", Refused("is not implemented")),
    // The tool takes INVALID FIELD IN CDB, which is the answer to a service action of a command that has none, for a refusal.
    ("ReportSupportedOpcodes", But("REPORT_SUPPORTED_OPCODES is not implemented")),
    ("Reserve6", Refused("is not implemented")),
    ("Sanitize", Refused("--allow-sanitize flag is not set")),
    ("StartStopUnit", But("is not removable")),
    ("TestUnitReady", Done),
    ("Unmap", Done),
    ("Verify10", Done),
    ("Verify12", Done),
    ("Verify16", Done),
    ("Write10", Done),
    ("Write12", Done),
    ("Write16", Done),
    ("WriteAtomic16", Refused("is not implemented")),
    ("WriteSame10", But("does not support 0-blocks|LBPPB < 2")),
    ("WriteSame16", But("does not support 0-blocks|LBPPB < 2")),
    ("WriteVerify10", Done),
    ("WriteVerify12", Done),
    ("WriteVerify16", Done),
    ("iSCSIcmdsn", Done),
    ("iSCSIdatasn", Done),
    ("iSCSIResiduals", Done),
    ("iSCSITMF", Done),
    ("MultipathIO", Done),
];

#[test]
fn libiscsi_finds_that_every_command_does_what_the_standards_say() -> Result<()> {
    let Some(_lab) = Lab::enter("libiscsi", "iscsi_conformance", &LIBISCSI) else { return Ok(()) };
    let (_, list) = run("iscsi-test-cu", &["-l"])?;
    let families: Vec<&str> =
        list.lines().filter_map(|line| line.strip_prefix("ALL.")).filter(|name| !name.contains('.')).collect();
    let known: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
    ensure!(families == known, "the tool has other families than those of the table: {families:?}");
    for (threads, unit) in [(1, 0), (2, 0), (2, 1)] {
        let target = start(|config| config.threads = threads)?;
        let (first, second) = (uri(&target, "", 0, unit, ""), uri(&target, "", 1, unit, ""));
        for (family, claim) in FAMILIES.into_iter().filter(|(family, _)| unit == 0 || !OF_SMALL_BLOCKS.contains(family))
        {
            let test = format!("ALL.{family}");
            let (content, said) = run("iscsi-test-cu", &["--dataloss", "--fail", "-t", &test, &first, &second])?;
            // "tests total ran passed failed inactive"
            let row = said.lines().find(|line| line.trim_start().starts_with("tests ")).unwrap_or_default();
            let counts: Vec<&str> = row.split_whitespace().skip(1).take(4).collect();
            let all_passed = matches!(counts[..], [total, ran, passed, "0"] if total == ran && ran == passed);
            ensure!(content && all_passed, "{family} with {threads} threads, LUN {unit}: {said}");
            let skipped: Vec<&str> = said.lines().filter(|line| line.contains("[SKIPPED]")).collect();
            let fits = |words: &str| skipped.iter().all(|line| words.split('|').any(|word| line.contains(word)));
            let as_claimed = match claim {
                Done => skipped.is_empty(),
                But(words) => fits(words),
                Refused(words) => !skipped.is_empty() && fits(words),
            };
            ensure!(as_claimed, "{family} is {claim:?}, but {skipped:?}");
        }
    }
    Ok(())
}

#[test]
fn everything_that_is_written_is_read_back() -> Result<()> {
    for threads in [1, 2] {
        let target = start(|config| config.threads = threads)?;
        let digests = ["", "?hdgst=on", "?ddgst=on", "?hdgst=on&ddgst=on"];
        let bursts = [
            "?initial_r2t=on",
            "?immediate_data=off",
            "?initial_r2t=on&immediate_data=off&max_burst=8192&first_burst=4096",
        ];
        for options in digests.into_iter().chain(bursts) {
            verifies(&[&uri(&target, "", 0, 0, options)])?;
        }
        verifies(&[&uri(&target, "", 0, 1, ""), &uri(&target, "", 1, 1, "")])?;
    }
    let target = start(|config| {
        config.r2t_bytes = 4096;
        config.iscsi.max_recv_data = 4096;
    })?;
    verifies(&[&uri(&target, "", 0, 0, "?immediate_data=off")])
}

#[test]
fn a_disk_is_the_same_over_both_protocols() -> Result<()> {
    let target = start(|_| ())?;
    let nvme = format!("nvme-tcp://127.0.0.1:{}/{NQN}?ns=1", target.port(2));
    verifies(&[&uri(&target, "", 0, 0, ""), &nvme, &uri(&target, "", 1, 0, "")])?;
    let other = format!("nvme-tcp://127.0.0.1:{}/{NQN}?ns=2", target.port(2));
    let (content, said) = bench(&[&uri(&target, "", 0, 0, ""), &other], "1", &[])?;
    ensure!(!content || said.contains("quarantine") || said.contains("another"), "two disks as one: {said}");
    Ok(())
}

#[test]
fn each_side_proves_who_it_is_and_what_is_wrong_is_said_in_a_line() -> Result<()> {
    let Some(lab) = Lab::enter("libiscsi", "iscsi_target_chap", &LIBISCSI) else { return Ok(()) };
    let secret = |name: &str, text: &str| -> Result<String> {
        let path = lab.path(name);
        fs::write(&path, format!("{text}\n"))?;
        Ok(path.display().to_string())
    };
    let (ours, theirs) = (secret("ours", SECRET)?, secret("theirs", THEIRS)?);
    let wrong = secret("wrong", "another-secret")?;
    let one_way = ChapConfig { user: "user".into(), secret_file: Some((&ours).into()), ..ChapConfig::default() };
    let both =
        ChapConfig { own_user: Some("tuser".into()), own_secret: Some(SecretText::new(THEIRS)), ..one_way.clone() };
    let target = start(|config| config.iscsi.chap = Some(one_way))?;
    verifies(&[&uri(&target, "user@", 0, 0, &format!("?secret_file={ours}"))])?;
    let theirs_too = |target: &TargetHandle, ours: &str, theirs: &str| {
        uri(target, "user@", 0, 0, &format!("?secret_file={ours}&target_user=tuser&target_secret_file={theirs}"))
    };
    let no_proof = theirs_too(&target, &ours, &theirs);
    let mutual = start(|config| config.iscsi.chap = Some(both))?;
    verifies(&[&theirs_too(&mutual, &ours, &theirs)])?;
    let (content, said) = run("iscsi-ls", &[&format!("iscsi://user%{SECRET}@127.0.0.1:{}", target.port(0))])?;
    ensure!(content && said.contains(IQN), "{said}");
    let elsewhere =
        uri(&mutual, "user@", 0, 0, &format!("?secret_file={ours}")).replace(IQN, "iqn.2026-01.org.example:no");
    for (uri, says) in [
        (uri(&target, "", 0, 0, ""), "authentication failed"),
        (uri(&target, "user@", 0, 0, &format!("?secret_file={wrong}")), "authentication failed"),
        (uri(&target, "nobody@", 0, 0, &format!("?secret_file={ours}")), "authentication failed"),
        (no_proof, "authentication failed"),
        (theirs_too(&mutual, &ours, &wrong), "the target gave a wrong response"),
        (elsewhere, "no target of this name"),
        (
            uri(&mutual, "user@", 0, 9, &format!("?secret_file={ours}")),
            "LUN 9: the target has no logical unit at this LUN",
        ),
    ] {
        let (content, said) = bench(&[&uri], "1", &[])?;
        let last = said.lines().last().unwrap_or_default();
        ensure!(!content && last.contains(says), "{uri}: {said}");
    }
    Ok(())
}

#[test]
fn sessions_that_end_any_way_cost_no_request() -> Result<()> {
    let target = start(|_| ())?;
    let path = uri(&target, "", 0, 0, "");
    let (selector, program) = ("queue-length", program("polypath-bench")?.display().to_string());
    let running = std::thread::spawn(move || {
        let arguments = ["run", "--rw", "verify", "--qd", "16", "--time", "5", "--selector", selector, "--path", &path];
        run(&program, &arguments)
    });
    let count = |name: &str| target.status()["counters"][name].as_u64().unwrap_or(0);
    let up = || target.status()["sessions"].as_array().map_or(0, Vec::len) >= 2;
    for command in ["logout_request", "drop_connection", "nop_in", "reset", "fin", "nop_in"] {
        let start = Instant::now();
        while !up() {
            ensure!(start.elapsed() < Duration::from_secs(30), "no sessions before {command}");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300));
        let told = target.control(&Control::new(command)).map_err(anyhow::Error::msg)?;
        ensure!(told["connections"].as_u64() > Some(0), "{command}: {told}");
    }
    let (content, said) = running.join().map_err(|_| anyhow::anyhow!("the bench has panicked"))??;
    ensure!(content && said.contains("verified: 0 errors") && !said.contains("requests failed"), "{said}");
    ensure!(count("sessions") >= 10, "only {} sessions were begun", count("sessions"));
    Ok(())
}

#[test]
fn what_changes_is_noticed() -> Result<()> {
    let target = start(|_| ())?;
    let stack = Stack::start(StackConfig::default())?;
    let device = stack.open_device(&uri(&target, "", 0, 0, "").parse()?)?;
    polypath::wait_live(&*device, Duration::from_secs(10))?;
    let disk = Disk::builder().device(device.clone()).stack(&stack).open_blocking()?;
    let info = || device.state().info().cloned();
    let before = info().map_or(0, |info| info.geometry.blocks);
    let depth = info().map_or(0, |info| info.max_depth);
    ensure!(depth == 128, "a session takes 128 tasks, and a group is told {depth}");
    let set = |command: Control| target.control(&command).map_err(anyhow::Error::msg).map(drop);
    // What has changed is told to the next command, whatever becomes of it.
    let until = |what: &str, is: &dyn Fn(Option<&DeviceInfo>) -> bool| -> Result<()> {
        let start = Instant::now();
        while !is(info().as_deref()) {
            ensure!(start.elapsed() < Duration::from_secs(20), "{what} is not noticed");
            let _ = polypath::block_on(disk.read(0, disk.buffer(4096)?)).0;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    set(Control { nsid: Some(1), bytes: Some(96 << 20), ..Control::new("resize") })?;
    until("the size", &|info| info.is_some_and(|info| info.geometry.blocks > before))?;
    // A unit on standby does not even tell its size: nobody uses it, but it is not given up.
    set(Control { state: Some("standby".into()), ..Control::new("set_ana").listener(0) })?;
    until("standby", &|info| info.is_none_or(|info| !info.access.usable()))?;
    set(Control { state: Some("non_optimized".into()), ..Control::new("set_ana").listener(0) })?;
    until("the way back", &|info| info.is_some_and(|info| info.access == Access::NonOptimized))
}

#[test]
fn the_program_serves_what_its_command_line_says() -> Result<()> {
    let Some(lab) = Lab::enter("libiscsi", "iscsi_target_program", &LIBISCSI) else { return Ok(()) };
    let (variable, target) =
        (format!("POLYPATH_TARGET_CHAP_SECRET={SECRET}"), program("polypath-target")?.display().to_string());
    let serve = ["--listen", "iscsi://127.0.0.1:0,7", "--namespace", "ram://16MiB?eui64=0011223344556677"];
    let arguments = [&[&*variable, &target, "--chap-user", "user"][..], &serve].concat();
    let env = find_program("env").context("env (package coreutils) is not installed")?;
    let (_process, mut console) = Process::start_with_console(&env, &arguments, lab.log("polypath-target"))?;
    let mut port = 0;
    console.wait_for(Duration::from_secs(60), |line| {
        port = line.strip_prefix("listening on 127.0.0.1:").and_then(|p| p.parse().ok()).unwrap_or(port);
        (line == "ready").then_some(())
    })?;
    let (content, said) = run("iscsi-ls", &[&format!("iscsi://127.0.0.1:{port}")])?;
    ensure!(!content && !said.contains(DEFAULT_IQN), "everybody is let in: {said}");
    let portal = format!("iscsi://user%{SECRET}@127.0.0.1:{port}");
    let (content, said) = run("iscsi-ls", &["--show-luns", &portal])?;
    ensure!(content && said.contains(&format!("Target:{DEFAULT_IQN} Portal:127.0.0.1:{port},7")), "{said}");
    ensure!(said.contains("Lun:0") && said.contains("DIRECT_ACCESS"), "{said}");
    let unit = format!("{portal}/{DEFAULT_IQN}/0");
    let (content, said) = run("iscsi-inq", &[&unit])?;
    ensure!(content && said.contains("Vendor:POLYPATH"), "{said}");
    let (content, said) = run("iscsi-inq", &["-e", "1", "-c", "131", &unit])?;
    ensure!(content && said.contains("Designator Type:(2) EUI_64"), "{said}");
    Ok(())
}
