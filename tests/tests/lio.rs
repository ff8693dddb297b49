//! Our iSCSI initiator on LIO, the target of Linux's kernel: digests and CHAP, clear words for what is wrong, and access (ALUA) that changes,
//! by the target's will and by ours, under verified I/O through both of its portals.
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath_tests::blk::{BlkioLoad, BlkioOptions};
use polypath_tests::peers::LioGuest;
use polypath_tests::products::{Daemon, bench, verifies};
use polypath_tests::{Lab, Need};
use serde_json::Value;

const NEEDS: [Need; 4] =
    [Need::Program("qemu-system-x86_64"), Need::Program("busybox"), Need::Program("modprobe"), Need::GuestKernel];
const SECRET: &str = "passw0rd1234";
const THEIRS: &str = "tpassw0rd5678";
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn digests_and_chap_are_agreed_upon_and_what_is_wrong_is_said_in_a_line() -> Result<()> {
    let Some(lab) = Lab::enter("lio", "lio_login", &NEEDS) else { return Ok(()) };
    let mut lio = LioGuest::start(&lab)?;
    for options in ["", "?hdgst=on", "?ddgst=on", "?hdgst=on&ddgst=on", "?initial_r2t=on&immediate_data=off"] {
        verifies(&[&lio.uri("", 1, 0, options)])?;
    }
    // A target that demands them.
    lio.command("digests 1 CRC32C")?;
    verifies(&[&lio.uri("", 1, 0, "")])?;

    let secret = |name: &str, text: &str| -> Result<String> {
        let path = lab.path(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let (ours, theirs, wrong) =
        (secret("ours", SECRET)?, secret("theirs", THEIRS)?, secret("wrong", "another-secret")?);
    lio.command(&format!("chap 1 user {SECRET}"))?;
    lio.command(&format!("chap 2 user {SECRET} tuser {THEIRS}"))?;
    let one_way = |user: &str, secret: &str| lio.uri(&format!("{user}@"), 1, 0, &format!("?secret_file={secret}"));
    let mutual = |ours: &str, theirs: &str| {
        lio.uri("user@", 2, 0, &format!("?secret_file={ours}&target_user=tuser&target_secret_file={theirs}"))
    };
    verifies(&[&one_way("user", &ours)])?;
    verifies(&[&mutual(&ours, &theirs)])?;
    for (uri, says) in [
        (lio.uri("", 1, 0, ""), "authentication failed"),
        (one_way("user", &wrong), "authentication failed"),
        (one_way("nobody", &ours), "authentication failed"),
        (mutual(&ours, &wrong), "the target gave a wrong response"),
        // What LIO says of a name that it does not know, or does not know yet.
        (
            one_way("user", &ours).replace(LioGuest::IQN, "iqn.2026-01.org.example:no"),
            "the target or its service is not operational now",
        ),
        (lio.uri("user@", 1, 9, &format!("?secret_file={ours}")), "LUN 9: the target has no logical unit at this LUN"),
    ] {
        let (content, said) = bench(&[&uri], "1", &[])?;
        let last = said.lines().last().unwrap_or_default();
        ensure!(!content && last.contains(says), "{uri}: {said}");
        ensure!(!said.contains(SECRET) && !said.contains("another-secret"), "a secret is shown: {said}");
    }
    Ok(())
}

/// States of a target port group as LIO's configfs numbers them.
const OPTIMIZED: u32 = 0;
const NON_OPTIMIZED: u32 = 1;
const STANDBY: u32 = 2;
const UNAVAILABLE: u32 = 3;
const TRANSITIONING: u32 = 15;

#[test]
fn access_that_linux_changes_is_followed_under_verified_io() -> Result<()> {
    let Some(lab) = Lab::enter("lio", "lio_alua", &NEEDS) else { return Ok(()) };
    let mut lio = LioGuest::start(&lab)?;
    let mut rig = Rig::start(&lab, &lio)?;
    rig.wait_for(&["optimized", "nonoptimized"])?;
    let load = rig.load(0x0011_0a11);
    load.wait_for_more(500, LIMIT)?;
    // The group and its new state, what the paths show then, and which of them carries what follows.
    for (group, state, shown, carries) in [
        (2, OPTIMIZED, ["optimized", "optimized"], None),
        (1, NON_OPTIMIZED, ["nonoptimized", "optimized"], Some(1)),
        (1, STANDBY, ["inaccessible", "optimized"], Some(1)),
        (1, UNAVAILABLE, ["inaccessible", "optimized"], Some(1)),
        (1, OPTIMIZED, ["optimized", "optimized"], None),
        (2, TRANSITIONING, ["optimized", "change"], Some(0)),
        (2, UNAVAILABLE, ["optimized", "inaccessible"], Some(0)),
        (2, NON_OPTIMIZED, ["optimized", "nonoptimized"], Some(0)),
        (1, TRANSITIONING, ["change", "nonoptimized"], Some(1)),
        (1, OPTIMIZED, ["optimized", "nonoptimized"], Some(0)),
    ] {
        lio.command(&format!("alua {group} {state}"))?;
        rig.wait_for(&shown)?;
        let before = rig.ios()?;
        load.wait_for_more(300, LIMIT)?;
        let moved: Vec<bool> = rig.ios()?.iter().zip(&before).map(|(now, then)| *now > then + 100).collect();
        let expected = carries.map(|path| vec![path == 0, path == 1]);
        ensure!(expected.is_none_or(|expected| moved == expected), "group {group} in {state}: {moved:?} carry I/O");
    }
    // None is left for a while: what comes waits and does not fail.
    lio.command(&format!("alua 1 {STANDBY} && alua 2 {UNAVAILABLE}"))?;
    rig.wait_for(&["inaccessible", "inaccessible"])?;
    lio.command(&format!("alua 2 {OPTIMIZED}"))?;
    rig.wait_for(&["inaccessible", "optimized"])?;
    load.wait_for_more(300, LIMIT)?;
    let report = load.stop()?;
    println!("{report:?}");
    report.check()?;
    rig.end()
}

/// Where the target leaves it to its initiators who has access, it is asked for: at the start, and when the path that had it is lost.
#[test]
fn access_is_asked_for_where_linux_leaves_it_to_its_initiators() -> Result<()> {
    let Some(lab) = Lab::enter("lio", "lio_explicit_alua", &NEEDS) else { return Ok(()) };
    let mut lio = LioGuest::start(&lab)?;
    lio.command(&format!("alua 1 {STANDBY} && alua 2 {STANDBY} && alua_by 2"))?;
    let rig = Rig::start(&lab, &lio)?;
    let load = rig.load(0x0011_0e11);
    load.wait_for_more(300, LIMIT)?;
    let has = |rig: &Rig| -> Result<Vec<bool>> {
        Ok(rig.say("access")?.iter().map(|access| access == "optimized").collect())
    };
    let used = has(&rig)?.iter().position(|has| *has).context("no path has access")?;
    ensure!(lio.command(&format!("alua_is {}", used + 1))? == OPTIMIZED.to_string(), "Linux says otherwise");
    lio.command(&format!("link_down {}", used + 1))?;
    load.wait_for_more(300, LIMIT)?;
    let other = 1 - used;
    ensure!(has(&rig)?[other], "{:?}", rig.say("access")?);
    ensure!(lio.command(&format!("alua_is {}", other + 1))? == OPTIMIZED.to_string(), "Linux says otherwise");
    lio.command(&format!("link_up {}", used + 1))?;
    let report = load.stop()?;
    println!("{report:?}");
    report.check()?;
    rig.end()
}

/// What Linux's administrator takes away and gives back, beside a silent network.
#[test]
fn what_linux_takes_away_costs_no_request_and_comes_back() -> Result<()> {
    let Some(lab) = Lab::enter("lio", "lio_taken_away", &NEEDS) else { return Ok(()) };
    let mut lio = LioGuest::start(&lab)?;
    lio.command(&format!("alua 2 {OPTIMIZED}"))?;
    let mut rig = Rig::start(&lab, &lio)?;
    rig.wait_for_states(|states| states == ["usable", "usable"])?;
    let load = rig.load(0x0011_0b0f);
    load.wait_for_more(300, LIMIT)?;
    for (group, away, back) in
        [(1, "portal_down", "portal_up"), (2, "unit_gone", "unit_back"), (1, "link_down", "link_up")]
    {
        lio.command(&format!("{away} {group}"))?;
        rig.wait_for_states(|states| states[group - 1] != "usable")?;
        load.wait_for_more(300, LIMIT)?;
        lio.command(&format!("{back} {group}"))?;
        rig.wait_for_states(|states| states == ["usable", "usable"])?;
        let before = rig.ios()?;
        load.wait_for_more(300, LIMIT)?;
        ensure!(rig.ios()?[group - 1] > before[group - 1], "after {away} and {back} group {group} carries nothing");
    }
    let report = load.stop()?;
    println!("{report:?}");
    report.check()?;
    rig.end()
}

/// A daemon with a disk of both paths.
struct Rig {
    daemon: Daemon,
}

impl Rig {
    fn start(lab: &Lab, lio: &LioGuest) -> Result<Rig> {
        Ok(Rig { daemon: Daemon::start(lab, &[1, 2].map(|group| lio.uri("", group, 0, "")), 1)? })
    }

    /// Reads and writes that check what they read, over 8 MiB.
    fn load(&self, seed: u64) -> BlkioLoad {
        BlkioLoad::start(BlkioOptions { blocks: 2048, ..BlkioOptions::new(&self.daemon.socket, seed) })
    }

    /// What each path says under `key`.
    fn say(&self, key: &str) -> Result<Vec<String>> {
        Ok(self.daemon.paths()?.iter().map(|path| path[key].as_str().unwrap_or("none").to_owned()).collect())
    }

    /// The I/Os of each path.
    fn ios(&self) -> Result<Vec<u64>> {
        Ok(self.daemon.paths()?.iter().filter_map(|path| path["ios"].as_u64()).collect())
    }

    fn wait_for(&mut self, shown: &[&str]) -> Result<()> {
        self.until("access", |access| access == shown)
    }

    fn wait_for_states(&mut self, are: impl Fn(&[String]) -> bool) -> Result<()> {
        self.until("state", are)
    }

    /// Waits until what the paths say under `key` is as it should be.
    fn until(&mut self, key: &str, good: impl Fn(&[String]) -> bool) -> Result<()> {
        let start = Instant::now();
        while !good(&self.say(key)?) {
            ensure!(start.elapsed() < LIMIT, "{:?}\n{}", self.say(key)?, self.daemon.process().log_tail());
            thread::sleep(Duration::from_millis(20));
        }
        println!("{:?} after {:?}", self.say(key)?, start.elapsed());
        Ok(())
    }

    /// What a path has refused went by another.
    fn end(self) -> Result<()> {
        let paths = self.daemon.paths()?;
        let is_good = |path: &Value| path["errors"] == path["redriven"] && path["in_flight"] == 0;
        ensure!(paths.iter().all(is_good), "{paths:#?}");
        self.daemon.stop()
    }
}
