//! Reservations on a real target, tgt: two hosts that share a disk, each over sessions of its own.
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath::block::{ReservationOp as Op, ReservationReport, ReservationType};
use polypath::{Code, Device, Disk, Group, GroupSpec, MatchPolicy, Stack, StackConfig, block_on};
use polypath_tests::Lab;
use polypath_tests::lab::Need;
use polypath_tests::tgt::Tgt;

const TGT: [Need; 2] = [Need::Program("tgtd"), Need::Program("tgtadm")];
const KIND: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;
const OURS: u64 = 0xa11ce;
const THEIRS: u64 = 0xb0b;

/// One host: a stack, and the disk over some portals of the target.
struct Computer {
    group: Arc<Group>,
    disk: Disk,
}

impl Computer {
    fn new(tgt: &Tgt, name: &str, portals: &[usize]) -> Result<Computer> {
        let stack = Stack::start(StackConfig::default())?;
        let options = format!("?initiator=iqn.2026-01.org.polypath.lab:{name}");
        let uris = portals.iter().map(|portal| tgt.uri("", *portal, 1, &options).parse());
        let uris = uris.collect::<Result<Vec<_>, _>>()?;
        // tgt hands out identifiers that are no worldwide ones.
        let spec = GroupSpec { matching: MatchPolicy::Stated, ..GroupSpec::new(name, uris) };
        let group = stack.open_group(spec)?;
        polypath::wait_group_live(&group, Duration::from_secs(20))?;
        until("all paths are up", || group.availability().usable_paths == portals.len() as u32)?;
        let disk = Disk::builder().device(group.clone()).stack(&stack).open_blocking()?;
        Ok(Computer { group, disk })
    }

    fn ask(&self, op: Op) -> Result<Option<ReservationReport>, Code> {
        block_on(self.disk.reservation(op)).map_err(|error| {
            println!("{op:?}: {error}");
            error.code().unwrap_or(Code::Ok)
        })
    }

    fn report(&self) -> Result<ReservationReport> {
        let report = self.ask(Op::Report).map_err(|code| anyhow::anyhow!("no report: {code:?}"))?;
        report.context("a report")
    }

    fn write(&self) -> Code {
        let buffer = self.disk.buffer(4096).expect("memory");
        block_on(self.disk.write(0, buffer)).0.map_or_else(|error| error.code().unwrap_or(Code::Gone), |()| Code::Ok)
    }

    /// As often as there are paths, and more: each of them is chosen.
    fn writes(&self) -> Vec<Code> {
        let mut all: Vec<_> = (0..8).map(|_| self.write()).collect();
        all.dedup();
        all
    }

    fn reads(&self) -> bool {
        block_on(self.disk.read(0, self.disk.buffer(4096).expect("memory"))).0.is_ok()
    }
}

fn until(what: &str, so: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !so() {
        ensure!(start.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn two_hosts_share_a_disk() -> Result<()> {
    let Some(lab) = Lab::enter("tgt", "tgt_reservations", &TGT) else { return Ok(()) };
    let tgt = Tgt::start(&lab, 1, 16)?;
    let (a, b) = (Computer::new(&tgt, "a", &[0, 1])?, Computer::new(&tgt, "b", &[1])?);
    ensure!((a.writes(), b.writes()) == (vec![Code::Ok], vec![Code::Ok]), "nobody has reserved it");
    ensure!(a.ask(Op::Reserve { key: OURS, kind: KIND }) == Err(Code::ReservationConflict), "not registered");
    ensure!(a.ask(Op::Register { key: OURS }) == Ok(None));
    // A control session and one for I/O, of each path.
    let registered = a.report()?.registrants;
    ensure!(registered.len() == 4 && registered.iter().all(|r| r.key == OURS), "{registered:?}");
    ensure!(a.ask(Op::Reserve { key: OURS, kind: KIND }) == Ok(None));
    ensure!(a.report()?.is_held_by(OURS));
    ensure!(a.writes() == [Code::Ok], "over each path");
    ensure!(b.writes() == [Code::ReservationConflict] && b.reads(), "writes are forbidden, reads are not");
    ensure!(b.group.availability().usable_paths == 1, "a conflict is no fault of the path");
    // A path that comes later.
    let late = tgt.uri("", 0, 1, "?initiator=iqn.2026-01.org.polypath.lab:a&queue_depth=7").parse()?;
    a.disk
        .stack()
        .add_path(&a.group, polypath::PathSpec { name: Some("late".into()), ..polypath::PathSpec::new(late) })?;
    let up = until("the new path is up", || a.group.availability().usable_paths == 3);
    up.with_context(|| format!("{:?}", a.group.statistics().into_iter().map(|p| p.why).collect::<Vec<_>>()))?;
    ensure!(a.writes() == [Code::Ok] && a.report()?.registrants.len() == 6, "{:?}", a.report()?);
    // The other host takes it.
    ensure!(
        b.ask(Op::Preempt { key: THEIRS, victim: OURS, kind: KIND, abort: false }) == Err(Code::ReservationConflict)
    );
    ensure!(b.ask(Op::Register { key: THEIRS }) == Ok(None));
    ensure!(b.ask(Op::Preempt { key: THEIRS, victim: OURS, kind: KIND, abort: false }) == Ok(None));
    ensure!(b.writes() == [Code::Ok], "it is theirs now");
    ensure!(a.writes() == [Code::ReservationConflict] && a.reads());
    until("it is known", || a.group.reservation_state().ended.is_some())?;
    ensure!(a.group.reservation_state().key.is_none());
    std::thread::sleep(Duration::from_secs(3));
    let found = b.report()?;
    ensure!(found.registrants.iter().all(|r| r.key == THEIRS) && found.is_held_by(THEIRS), "stolen back: {found:?}");
    // And back, by somebody's will.
    ensure!(a.ask(Op::Register { key: OURS }) == Ok(None));
    ensure!(a.writes() == [Code::Ok], "registered, which is enough for this type");
    ensure!(a.ask(Op::Preempt { key: OURS, victim: THEIRS, kind: KIND, abort: false }) == Ok(None));
    ensure!((a.writes(), b.writes()) == (vec![Code::Ok], vec![Code::ReservationConflict]));
    ensure!(a.ask(Op::Release { key: OURS, kind: KIND }) == Ok(None) && a.report()?.held.is_none());
    ensure!(b.writes() == [Code::Ok]);
    ensure!(a.ask(Op::Clear { key: OURS }) == Ok(None) && a.report()?.registrants.is_empty());
    ensure!((a.writes(), b.writes()) == (vec![Code::Ok], vec![Code::Ok]));
    [&a, &b].iter().for_each(|computer| computer.group.close());
    Ok(())
}

/// The target drops every session of ours: what comes back is a nexus that it does not know.
#[test]
fn sessions_that_are_made_again_are_registered_before_they_carry_anything() -> Result<()> {
    let Some(lab) = Lab::enter("tgt", "tgt_reservations_again", &TGT) else { return Ok(()) };
    let tgt = Tgt::start(&lab, 1, 16)?;
    let a = Computer::new(&tgt, "a", &[0, 1])?;
    ensure!(a.ask(Op::Register { key: OURS }) == Ok(None) && a.ask(Op::Reserve { key: OURS, kind: KIND }) == Ok(None));
    let sessions = tgt.admin("--op show --mode conn --tid 1")?;
    let numbers: Vec<String> =
        sessions.lines().filter_map(|line| line.strip_prefix("Session: ")).map(|n| n.trim().to_owned()).collect();
    ensure!(numbers.len() == 4, "{sessions}");
    for sid in numbers {
        tgt.admin(&format!("--op delete --mode conn --tid 1 --sid {sid} --cid 0"))?;
        ensure!(a.writes() == [Code::Ok], "after session {sid} was dropped");
        until("all paths are up again", || a.group.availability().usable_paths == 2)?;
        ensure!(a.writes() == [Code::Ok], "over all of them");
    }
    let state = a.group.reservation_state();
    ensure!(state.key == Some(OURS) && state.ended.is_none(), "{state:?}");
    ensure!(a.report()?.is_held_by(OURS));
    a.group.close();
    Ok(())
}
