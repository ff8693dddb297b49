//! The mid-layer over a host-bus driver that does what a test says.

mod alua;
mod asking;
mod disputed;
mod passthrough;
mod persistent;
mod proofs;
mod reservations;
mod script;

use polypath_block::{
    Armed, Code, Completion, Cx, Device, DeviceState, Fate, Health, Io, Op, Proof, RefusedWhy, Scope, SegSpan, Status,
    Waits,
};
use polypath_scsi::midlayer::{HostBus, Recovered, Recovery};
use polypath_scsi::opcode;
use polypath_scsi::sense::key;
use polypath_scsi::{ScsiStatus, Sense};
use script::{BLOCK, Driven, Reply, Rule, rig};

const READS: &[u8] = &[opcode::READ_10, opcode::READ_16];
const WRITES: &[u8] = &[opcode::WRITE_10, opcode::WRITE_16];

fn rule(opcodes: &'static [u8], times: usize, reply: Reply) -> Rule {
    Rule { opcodes, times, reply }
}

fn attention(asc: u8, ascq: u8) -> Reply {
    Reply::Sense(Sense::new(key::UNIT_ATTENTION, asc, ascq))
}

fn codes(completions: &[Completion]) -> Vec<Code> {
    completions.iter().map(|c| c.status.code).collect()
}

#[test]
fn a_disk_is_found_and_says_what_it_takes() {
    let rig = rig(100);
    let DeviceState::Live(info) = rig.disk.state() else { panic!("{:?}", rig.disk.state()) };
    assert_eq!((info.geometry.block_size, info.geometry.blocks), (BLOCK, 100));
    assert_eq!((info.limits.max_transfer_bytes, info.limits.max_discard_blocks), (64 * BLOCK, 1000));
    assert!(info.limits.write_cache && info.limits.fua && !info.limits.read_only);
    assert_eq!(info.identity.cache_domain.0, "scsi:naa.60070000000000000000000000000001");
}

#[test]
fn what_is_written_is_read_and_what_is_too_large_is_cut() {
    let mut rig = rig(1000);
    let mut d = Driven::open(&mut rig);
    let (out, back) = (d.span(0, 200 * BLOCK), d.span(32, 200 * BLOCK));
    let pattern: Vec<u8> = (0..200 * BLOCK).map(|n| (n / 7) as u8).collect();
    d.memory.window().copy_in(0, &pattern).unwrap();
    d.submit(&rig, Io::write(1, 3, 200, out)).unwrap();
    assert!(d.until(&mut rig, 100, |done| done.completions.len() == 1));
    d.submit(&rig, Io::read(2, 3, 200, back)).unwrap();
    d.submit(&rig, Io::range(3, Op::WriteZeroes, 3, 1)).unwrap();
    d.submit(&rig, Io::range(4, Op::Discard, 4, 1)).unwrap();
    d.submit(&rig, Io::flush(5)).unwrap();
    d.submit(&rig, Io::read(6, 990, 11, back)).unwrap();
    assert!(d.until(&mut rig, 100, |done| done.completions.len() == 6));
    let mut by_tag: Vec<_> = d.done.completions.iter().map(|c| (c.tag, c.status.code)).collect();
    by_tag.sort_unstable_by_key(|(tag, _)| *tag);
    let ok = [1, 2, 3, 4, 5].map(|tag| (tag, Code::Ok));
    assert_eq!((&by_tag[..5], by_tag[5]), (&ok[..], (6, Code::OutOfRange)));
    let mut read = vec![0; pattern.len()];
    d.memory.window().copy_out(32 * 65_536, &mut read).unwrap();
    // The read was cut into four, of which the first may have met the zeroes.
    assert_eq!(read[2 * BLOCK as usize..], pattern[2 * BLOCK as usize..]);
    rig.script(|s| assert_eq!(s.medium[3 * 512..5 * 512], [0; 1024], "zeroed, and unmapped"));
}

/// A way that only asks questions may take fewer tasks at a time than a queue of the disk does.
#[test]
fn a_disk_takes_what_its_own_queues_take() {
    let rig = rig(100);
    assert_eq!(rig.disk.state().info().unwrap().max_depth, 77);
}

/// Whether a disk compares is found out by asking it to compare nothing.
#[test]
fn a_disk_that_compares_says_so() {
    let mut rig = rig(100);
    let compares = |rig: &script::Rig| rig.disk.state().info().unwrap().limits.compare;
    assert!(!compares(&rig), "it does not know the command");
    rig.script(|s| (s.compares, s.rules) = (true, vec![rule(READS, 1, attention(0x3f, 0x0e))]));
    let mut d = Driven::open(&mut rig);
    let span = d.span(0, BLOCK);
    d.submit(&rig, Io::read(1, 0, 1, span)).unwrap();
    assert!(d.until(&mut rig, 100, |done| done.completions.len() == 1));
    rig.scan();
    assert!(compares(&rig));
    d.submit(&rig, Io { op: Op::Compare, ..Io::write(2, 5, 1, span) }).unwrap();
    d.memory.window().copy_in(0, &[0; BLOCK as usize]).unwrap();
    assert!(d.until(&mut rig, 100, |done| done.completions.len() == 2));
    rig.script(|s| s.medium[5 * BLOCK as usize] = 1);
    d.submit(&rig, Io { op: Op::Compare, ..Io::write(3, 5, 1, span) }).unwrap();
    assert!(d.until(&mut rig, 100, |done| done.completions.len() == 3));
    assert_eq!(codes(&d.done.completions), [Code::Ok, Code::Ok, Code::Miscompare]);
}

#[test]
fn an_attention_is_heard_once_and_acted_on() {
    for (asc, ascq, looks) in [(0x29, 0x00, true), (0x2a, 0x09, true), (0x3f, 0x0e, true), (0x2a, 0x06, false)] {
        let mut rig = rig(100);
        let mut d = Driven::open(&mut rig);
        rig.script(|s| {
            s.rules = vec![rule(READS, 2, attention(asc, ascq))];
            s.blocks = 200;
            s.medium.resize(200 * 512, 0);
        });
        let span = d.span(0, BLOCK);
        d.submit(&rig, Io::read(1, 0, 1, span)).unwrap();
        assert!(d.until(&mut rig, 100, |done| done.completions.len() == 1));
        assert_eq!(codes(&d.done.completions), [Code::Ok], "{asc:x}/{ascq:x}: nobody above hears of it");
        d.submit(&rig, Io::read(2, 150, 1, span)).unwrap();
        assert!(d.until(&mut rig, 100, |done| done.completions.len() == 2));
        let grown = if looks { Code::Ok } else { Code::OutOfRange };
        assert_eq!(d.done.completions[1].status.code, grown, "{asc:x}/{ascq:x}: it was looked at again, if need be");
        if (asc, ascq) == (0x2a, 0x09) {
            rig.scan();
            assert_eq!(rig.disk.state().info().unwrap().geometry.blocks, 200, "and the device has grown");
        }
    }
}

#[test]
fn attentions_without_an_end_are_the_paths_trouble() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    rig.script(|s| s.rules = vec![rule(READS, usize::MAX, attention(0x2a, 0x06))]);
    let span = d.span(0, BLOCK);
    d.submit(&rig, Io::read(1, 0, 1, span)).unwrap();
    assert!(d.until(&mut rig, 1000, |done| done.completions.len() == 1));
    assert_eq!(d.done.completions[0].status.scope(), Scope::Path);
}

#[test]
fn a_full_task_set_is_given_less() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    rig.script(|s| s.rules = vec![rule(READS, 1, Reply::Status(ScsiStatus::TASK_SET_FULL))]);
    let spans: Vec<_> = (0..16).map(|n| d.span(n, BLOCK)).collect();
    for (tag, span) in spans.iter().enumerate() {
        d.submit(&rig, Io::read(tag as u64, 0, 1, *span)).unwrap();
    }
    assert!(d.until(&mut rig, 200, |done| done.completions.len() == 16));
    assert!(codes(&d.done.completions).iter().all(|c| *c == Code::Ok));
    rig.script(|s| s.most_in_flight = 0);
    for (tag, span) in spans.iter().enumerate() {
        d.submit(&rig, Io::read(tag as u64, 0, 1, *span)).unwrap();
    }
    assert!(d.until(&mut rig, 200, |done| done.completions.len() == 32));
    let most = rig.script(|s| s.most_in_flight);
    assert!((1..=15).contains(&most), "{most} at a time, of which one was too many before");
}

#[test]
fn busy_is_waited_for_and_not_for_ever() {
    for (times, code) in [(3, Code::Ok), (usize::MAX, Code::PathBusy)] {
        let mut rig = rig(100);
        let mut d = Driven::open(&mut rig);
        rig.script(|s| s.rules = vec![rule(WRITES, times, Reply::Status(ScsiStatus::BUSY))]);
        let span = d.span(0, BLOCK);
        d.submit(&rig, Io::write(1, 0, 1, span)).unwrap();
        assert!(d.until(&mut rig, 700, |done| done.completions.len() == 1), "busy_limit is 500 ms");
        assert_eq!((codes(&d.done.completions), d.done.completions[0].proof), (vec![code], Proof::Answered));
    }
}

#[test]
fn what_another_path_would_answer_the_same_concerns_the_request() {
    for (sense, status) in [
        (Sense::new(key::MEDIUM_ERROR, 0x11, 0), Status::with_detail(Code::Medium, 0x3_11_00)),
        (Sense::new(key::DATA_PROTECT, 0x27, 0), Status::with_detail(Code::WriteProtected, 0x7_27_00)),
        (Sense::new(key::NOT_READY, 0x04, 0x0b), Status::with_detail(Code::PathNoAccess, 0x2_04_0b)),
        (Sense::new(key::NOT_READY, 0x04, 0x0a), Status::with_detail(Code::PathBusy, 0x2_04_0a)),
    ] {
        let mut rig = rig(100);
        let mut d = Driven::open(&mut rig);
        rig.script(|s| s.rules = vec![rule(WRITES, usize::MAX, Reply::Sense(sense))]);
        let span = d.span(0, BLOCK);
        d.submit(&rig, Io::write(1, 0, 1, span)).unwrap();
        assert!(d.until(&mut rig, 100, |done| done.completions.len() == 1));
        assert_eq!(d.done.completions[0].status, status);
    }
}

#[test]
fn the_ladder_is_climbed_rung_by_rung() {
    use Recovered::{Complete, Failed, NoSuchTask};
    let abort = "AbortTask";
    let cases: [(&[Recovered], &[&str]); 4] = [
        (&[Complete], &[abort]),
        (&[NoSuchTask, Complete], &[abort, "ResetLogicalUnit"]),
        (&[Failed, Complete], &[abort, "ResetLogicalUnit"]),
        (&[Failed, Failed, Failed], &[abort, "ResetLogicalUnit", "ResetTarget", "ResetHost"]),
    ];
    for (answers, rungs) in cases {
        let mut rig = rig(100);
        let mut d = Driven::open(&mut rig);
        rig.script(|s| {
            s.rules = vec![rule(READS, 1, Reply::Never)];
            s.recovered = answers.iter().copied().collect();
        });
        let span = d.span(0, BLOCK);
        d.submit(&rig, Io::read(1, 0, 1, span)).unwrap();
        assert!(!d.until(&mut rig, 990, |done| !done.is_empty()), "io_timeout is 1000 ms");
        assert!(d.until(&mut rig, 2000, |done| done.completions.len() == 1), "{rungs:?}");
        assert_eq!(codes(&d.done.completions), [Code::PathTimeout], "{rungs:?}");
        let log = rig.script(|s| s.log.clone());
        assert!(log.len() == rungs.len() && log.iter().zip(rungs).all(|(l, r)| l.starts_with(r)), "{log:?}");
    }
}

#[test]
fn rungs_that_are_not_allowed_are_passed_over() {
    let mut rig = rig(100);
    let config = polypath_scsi::midlayer::DiskConfig { unit_reset: false, target_reset: false, ..rig.host.config };
    let (script, bus) = (rig.script.clone(), rig.host.bus().clone());
    let host = std::sync::Arc::new(script::ScriptBus { script, bus: bus.clone(), config });
    let lun = polypath_scsi::Lun::ZERO;
    let unit = bus.attach(polypath_scsi::midlayer::Address { target: 0, lun }).unwrap();
    rig.disk = polypath_scsi::midlayer::ScsiDisk::new(host, unit, "script:0".into(), true);
    let mut d = Driven::open(&mut rig);
    rig.script(|s| {
        s.rules = vec![rule(WRITES, 1, Reply::Never)];
        s.recovered = [Recovered::Failed].into();
    });
    let span = d.span(0, BLOCK);
    d.submit(&rig, Io::write(1, 0, 1, span)).unwrap();
    assert!(d.until(&mut rig, 3000, |done| done.suspects.len() == 1));
    let log = rig.script(|s| s.log.clone());
    assert!(
        matches!(&log[..], [abort, reset] if abort.starts_with("AbortTask") && reset == &format!("{:?}", Recovery::ResetHost)),
        "{log:?}"
    );
    rig.script(|s| s.proof = Some(Proof::Reinstated));
    assert!(d.until(&mut rig, 100, |done| done.completions.len() == 1));
}

#[test]
fn a_lost_change_ends_with_its_proof_and_a_lost_read_at_once() {
    let mut rig = rig(1000);
    let mut d = Driven::open(&mut rig);
    rig.script(|s| s.rules = vec![rule(READS, 9, Reply::Never), rule(WRITES, 9, Reply::Never)]);
    let (read, write, cut) = (d.span(0, BLOCK), d.span(1, BLOCK), d.span(2, 200 * BLOCK));
    d.submit(&rig, Io::read(1, 0, 1, read)).unwrap();
    d.submit(&rig, Io::write(2, 0, 1, write)).unwrap();
    d.submit(&rig, Io::write(3, 300, 200, cut)).unwrap();
    d.turn(&mut rig, 1);
    rig.script(|s| s.up = false);
    d.turn(&mut rig, 1);
    let read = Completion { tag: 1, status: Code::PathLost.into(), proof: Proof::SocketClosed };
    assert_eq!(d.done.completions, [read]);
    let mut suspects: Vec<_> = d.done.suspects.iter().map(|s| (s.tag, s.fate)).collect();
    suspects.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(suspects, [(2, Fate::Unknown), (3, Fate::Unknown)], "each once, whatever it was cut into");
    let span = d.span(5, BLOCK);
    assert_eq!(d.submit(&rig, Io::read(4, 0, 1, span)), Err(RefusedWhy::Gone));
    // The way is back before there is a proof.
    rig.script(|s| (s.up, s.nexus) = (true, 2));
    for _ in 0..50 {
        d.turn(&mut rig, 1);
    }
    assert_eq!((d.done.completions.len(), d.queue.health()), (1, Health::Ready));
    rig.script(|s| s.proof = Some(Proof::Reinstated));
    d.turn(&mut rig, 1);
    let mut rest: Vec<_> = d.done.completions[1..].iter().map(|c| (c.tag, c.status.code, c.proof)).collect();
    rest.sort_unstable_by_key(|(tag, ..)| *tag);
    assert_eq!(rest, [(2, Code::PathLost, Proof::Reinstated), (3, Code::PathLost, Proof::Reinstated)]);
}

#[test]
fn a_request_of_which_a_part_is_lost_is_sent_again_as_a_whole() {
    let mut rig = rig(1000);
    let mut d = Driven::open(&mut rig);
    let medium = Sense::new(key::MEDIUM_ERROR, 0x0c, 0);
    // The first of four parts fails for good, the others are not answered.
    rig.script(|s| s.rules = vec![rule(WRITES, 1, Reply::Sense(medium)), rule(WRITES, 9, Reply::Never)]);
    let span = d.span(0, 200 * BLOCK);
    d.submit(&rig, Io::write(3, 300, 200, span)).unwrap();
    for _ in 0..5 {
        d.turn(&mut rig, 1);
    }
    assert!(d.done.is_empty(), "parts are outstanding");
    rig.script(|s| (s.up, s.proof) = (false, Some(Proof::Reinstated)));
    assert!(d.until(&mut rig, 10, |done| done.completions.len() == 1));
    assert_eq!(codes(&d.done.completions), [Code::PathLost], "whatever went wrong with a part of it");
}

#[test]
fn nobody_is_served_over_a_way_that_leads_elsewhere_now() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    let span = d.span(0, BLOCK);
    rig.script(|s| s.up = false);
    d.turn(&mut rig, 1);
    rig.script(|s| (s.up, s.nexus, s.naa) = (true, 2, 8));
    for _ in 0..200 {
        d.turn(&mut rig, 1);
        assert_eq!(d.submit(&rig, Io::write(1, 0, 1, span)), Err(RefusedWhy::Gone));
    }
    rig.scan();
    let DeviceState::Down { cause, reason } = rig.disk.state() else { panic!("{:?}", rig.disk.state()) };
    assert!(cause == Code::PathIdentity && reason.contains("another disk"), "{reason}");
    rig.script(|s| (s.nexus, s.naa) = (3, 7));
    assert!((0..3000).any(|_| {
        d.turn(&mut rig, 1);
        d.queue.health() == Health::Ready
    }));
    rig.scan();
    assert!(rig.disk.state().info().is_some(), "it is who it was");
}

#[test]
fn a_swap_under_running_requests_makes_no_success_of_them() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    let (first, second) = (d.span(0, BLOCK), d.span(1, BLOCK));
    rig.script(|s| {
        s.rules = vec![rule(READS, 1, Reply::Never), rule(WRITES, 1, attention(0x3f, 0x0e))];
        s.naa = 9;
    });
    d.submit(&rig, Io::read(1, 0, 1, first)).unwrap();
    d.submit(&rig, Io::write(2, 0, 1, second)).unwrap();
    assert!(d.until(&mut rig, 200, |done| done.completions.len() == 1));
    let write = Completion { tag: 2, status: Code::PathIdentity.into(), proof: Proof::Answered };
    assert_eq!(d.done.completions, [write], "not carried out, and not sent to somebody else");
    assert!(rig.script(|s| s.medium.iter().all(|octet| *octet == 0)));
    assert_eq!(d.queue.health(), Health::Down);
}

#[test]
fn bad_memory_costs_its_request() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    let span = d.span(0, BLOCK);
    d.segs.get_mut(span)[0].region = polypath_block::RegionId(0xffff_fff0);
    d.submit(&rig, Io::write(1, 0, 1, span)).unwrap();
    d.submit(&rig, Io::write(2, 0, 2, SegSpan::EMPTY)).unwrap();
    assert!(d.until(&mut rig, 10, |done| done.completions.len() == 2));
    let bad = [(1, Code::BadMemory, Proof::NeverSent), (2, Code::Invalid, Proof::NeverSent)];
    assert!(d.done.completions.iter().map(|c| (c.tag, c.status.code, c.proof)).eq(bad));
}

#[test]
fn logical_units_are_listed_while_somebody_wants_to_know() {
    const LISTS: &[u8] = &[opcode::REPORT_LUNS];
    let mut rig = rig(100);
    rig.script(|s| s.luns = vec![0, 300]);
    let left = |rig: &script::Rig| rig.script(|s| s.rules.first().map(|rule| rule.times));
    rig.script(|s| s.rules = vec![rule(LISTS, 5, attention(0x29, 0))]);
    rig.scan();
    assert_eq!(left(&rig), Some(5), "nobody wants to know");
    let list = rig.host.bus().list_units();
    // Of a new nexus, and not for ever.
    rig.script(|s| s.rules = vec![rule(LISTS, 2, attention(0x29, 0))]);
    rig.scan();
    assert_eq!(list.listed().map(|l| l.luns.to_vec()), Some(vec![0, 300]));
    rig.script(|s| {
        (s.luns, s.rules) = (vec![0, 1, 300], vec![rule(&[opcode::TEST_UNIT_READY], 1, attention(0x3f, 0x0e))])
    });
    rig.scan();
    assert_eq!(list.listed().map(|l| l.luns.to_vec()), Some(vec![0, 1, 300]));
    rig.script(|s| s.rules = vec![rule(LISTS, 1000, attention(0x29, 0))]);
    let round = list.listed().map(|l| l.round);
    rig.scan();
    assert!(left(&rig).is_some_and(|left| (900..999).contains(&left)), "{:?} left after 20 watches", left(&rig));
    assert_eq!(list.listed().map(|l| l.round), round, "what was known stays");
}

#[test]
fn a_queue_hands_on_what_it_is_told() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    let span = d.span(0, BLOCK);
    rig.script(|s| (s.rules, s.kicks) = (vec![rule(READS, 1, Reply::Never)], 0));
    assert!(!d.queue.is_surplus());
    rig.script(|s| s.surplus = true);
    assert!(d.queue.is_surplus());
    let (ios, now) = ([1, 2, 3].map(|tag| Io::read(tag, 0, 1, span)), rig.now);
    let mut cx = Cx { now, segs: &mut d.segs, reactor: 0 };
    let armed = |d: &mut dyn polypath_block::IoQueue, cx: &mut Cx<'_>| d.arm(cx, &mut Waits::default());
    assert_eq!(armed(&mut *d.queue, &mut cx), Armed::Sleep);
    d.queue.submit_all(&mut cx, &ios).unwrap();
    assert_eq!(armed(&mut *d.queue, &mut cx), Armed::Busy);
    d.queue.kick(&mut cx);
    assert_eq!((rig.script(|s| s.kicks), d.queue.is_drained()), (1, false));
    assert!(d.until(&mut rig, 10, |done| done.completions.len() == 2));
    let mut cx = Cx { now, segs: &mut d.segs, reactor: 0 };
    d.queue.close(&mut cx);
    let rest = d.queue.submit_all(&mut cx, &ios).unwrap_err();
    assert_eq!((rest.taken, rest.why, d.queue.is_drained()), (0, RefusedWhy::Gone, false));
    assert_eq!(d.queue.health(), Health::Down);
    // The one that is not answered is aborted, and then there is nothing.
    assert!(d.until(&mut rig, 2000, |done| done.completions.len() == 3));
    assert!(d.queue.is_drained());
}
