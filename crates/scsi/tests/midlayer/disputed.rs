//! Answers that the disk which is known would not give: who is there is found out before they are believed, and they are believed then.

use crate::script::{BLOCK, Driven, Reply, Rig, ms, rig};
use crate::{READS, WRITES, attention, codes, rule};
use polypath_block::{Code, Completion, Device, DeviceState, Health, Io, Op, Proof, RefusedWhy, Scope};
use polypath_scsi::Sense;
use polypath_scsi::opcode;
use polypath_scsi::sense::key;

const OUT_OF_RANGE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x21, 0);
const WRITE_PROTECTED: Sense = Sense::new(key::DATA_PROTECT, 0x27, 0);
const NO_SUCH_COMMAND: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x20, 0);
const NO_UNIT: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x25, 0);

/// How often who is there was asked since the last time.
fn looks(rig: &Rig) -> usize {
    rig.script(|s| std::mem::take(&mut s.pages)) / 5
}

fn fill(rig: &Rig) {
    rig.script(|s| s.medium.fill(0xa5));
}

fn content(d: &Driven, index: usize) -> [u8; BLOCK as usize] {
    let mut octets = [0; BLOCK as usize];
    d.memory.window().copy_out(index * 65_536, &mut octets).unwrap();
    octets
}

#[test]
fn an_answer_that_is_not_the_disks_is_not_believed_at_once_and_believed_the_second_time() {
    for (opcodes, op, sense, code) in [
        (READS, Op::Read, OUT_OF_RANGE, Code::OutOfRange),
        (WRITES, Op::Write, OUT_OF_RANGE, Code::OutOfRange),
        (WRITES, Op::Write, WRITE_PROTECTED, Code::WriteProtected),
        (READS, Op::Read, NO_SUCH_COMMAND, Code::Unsupported),
        (WRITES, Op::Write, NO_SUCH_COMMAND, Code::Unsupported),
    ] {
        for (times, want, looked) in [(1, Code::Ok, 1), (usize::MAX, code, 1)] {
            let mut rig = rig(100);
            let mut d = Driven::open(&mut rig);
            rig.script(|s| s.rules = vec![rule(opcodes, times, Reply::Sense(sense))]);
            looks(&rig);
            let span = d.span(0, BLOCK);
            d.submit(&rig, Io { op, ..Io::read(1, 5, 1, span) }).unwrap();
            assert!(d.until(&mut rig, 200, |done| done.completions.len() == 1), "{op:?} {sense}");
            assert_eq!(codes(&d.done.completions), [want], "{op:?} {sense}, {times} times");
            assert_eq!(looks(&rig), looked, "{op:?} {sense}, {times} times");
        }
    }
}

/// A disk that answers so all the time is not looked at all the time.
#[test]
fn what_a_look_has_borne_out_is_believed_for_a_while() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    rig.script(|s| s.rules = vec![rule(READS, usize::MAX, Reply::Sense(OUT_OF_RANGE))]);
    looks(&rig);
    let span = d.span(0, BLOCK);
    for tag in 0..100 {
        d.submit(&rig, Io::read(tag, 5, 1, span)).unwrap();
        assert!(d.until(&mut rig, 200, |done| done.completions.len() == 1));
        assert_eq!(codes(&d.done.completions), [Code::OutOfRange]);
        d.done.clear();
        d.turn(&mut rig, 30);
    }
    let looks = looks(&rig);
    assert!((2..=4).contains(&looks), "{looks} in three seconds");
}

#[test]
fn what_a_target_puts_in_the_place_of_a_unit_answers_nobody() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    fill(&rig);
    rig.script(|s| s.taken_away = Some(8));
    let spans: Vec<_> = (0..4).map(|n| d.span(n, BLOCK)).collect();
    // In one breath: what it has data for is answered good.
    d.submit(&rig, Io::read(1, 3, 1, spans[0])).unwrap();
    d.submit(&rig, Io::read(2, 50, 1, spans[1])).unwrap();
    d.submit(&rig, Io::write(3, 3, 1, spans[2])).unwrap();
    d.submit(&rig, Io::flush(4)).unwrap();
    d.submit(&rig, Io::read(5, 4, 1, spans[3])).unwrap();
    assert!(d.until(&mut rig, 200, |done| done.completions.len() == 5));
    for Completion { tag, status, proof } in &d.done.completions {
        let answered = (status.scope(), *proof) == (Scope::Path, Proof::Answered);
        assert!(answered, "{tag}: {status}, {proof:?}; another path may do, and nothing of it comes any more");
    }
    d.done.clear();
    assert_eq!(d.submit(&rig, Io::read(6, 3, 1, spans[0])), Err(RefusedWhy::Gone));
    assert_eq!(d.queue.health(), Health::Down);
    rig.scan();
    let DeviceState::Down { cause, reason } = rig.disk.state() else { panic!("{:?}", rig.disk.state()) };
    assert!(cause == Code::PathNoAccess && reason.contains("no logical unit"), "{reason}");

    rig.script(|s| s.taken_away = None);
    assert!((0..3000).any(|_| {
        d.turn(&mut rig, 1);
        d.queue.health() == Health::Ready
    }));
    rig.scan();
    assert!(rig.disk.state().info().is_some(), "it is who it was");
    d.submit(&rig, Io::read(7, 3, 1, spans[0])).unwrap();
    assert!(d.until(&mut rig, 100, |done| done.completions.len() == 1));
    assert_eq!((codes(&d.done.completions), content(&d, 0)), (vec![Code::Ok], [0xa5; BLOCK as usize]));
}

/// Also where the disk is back when it is looked at: data that came in between are of nobody knows whom.
#[test]
fn what_is_read_while_it_is_in_doubt_from_whom_is_read_again() {
    for doubt in [Reply::Sense(WRITE_PROTECTED), attention(0x3f, 0x0e)] {
        let mut rig = rig(100);
        let mut d = Driven::open(&mut rig);
        fill(&rig);
        rig.script(|s| (s.rules, s.taken_away) = (vec![rule(WRITES, 1, doubt)], Some(8)));
        let (read, write) = (d.span(0, BLOCK), d.span(1, BLOCK));
        d.memory.window().copy_in(65_536, &[0xb6; BLOCK as usize]).unwrap();
        d.submit(&rig, Io::read(1, 3, 1, read)).unwrap();
        d.submit(&rig, Io::write(2, 4, 1, write)).unwrap();
        d.turn(&mut rig, 0);
        assert!(d.done.is_empty(), "{:?}", d.done);
        rig.script(|s| s.taken_away = None);
        assert!(d.until(&mut rig, 200, |done| done.completions.len() == 2));
        assert_eq!(codes(&d.done.completions), [Code::Ok, Code::Ok]);
        assert_eq!(content(&d, 0), [0xa5; BLOCK as usize], "not what the other one had there");
        rig.script(|s| assert_eq!(s.medium[4 * 512..5 * 512], [0xb6; 512]));
    }
}

#[test]
fn a_disk_that_has_shrunk_or_takes_no_writes_any_more_is_told_as_that() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    let span = d.span(0, BLOCK);
    rig.script(|s| s.blocks = 50);
    looks(&rig);
    d.submit(&rig, Io::read(1, 80, 1, span)).unwrap();
    assert!(d.until(&mut rig, 200, |done| done.completions.len() == 1));
    d.submit(&rig, Io::read(2, 80, 1, span)).unwrap();
    d.submit(&rig, Io::read(3, 49, 1, span)).unwrap();
    assert!(d.until(&mut rig, 200, |done| done.completions.len() == 3));
    let mut told: Vec<_> = d.done.completions.iter().map(|c| (c.tag, c.status.code, c.proof)).collect();
    told.sort_unstable_by_key(|(tag, ..)| *tag);
    let small = |tag, proof| (tag, Code::OutOfRange, proof);
    let want = [small(1, Proof::Answered), small(2, Proof::NeverSent), (3, Code::Ok, Proof::Answered)];
    assert_eq!((&told[..], looks(&rig)), (&want[..], 1));
    rig.scan();
    assert_eq!(rig.disk.state().info().unwrap().geometry.blocks, 50);

    d.done.clear();
    rig.script(|s| s.write_protected = true);
    looks(&rig);
    d.submit(&rig, Io::write(1, 3, 1, span)).unwrap();
    assert!(d.until(&mut rig, 200, |done| done.completions.len() == 1));
    d.submit(&rig, Io::write(2, 3, 1, span)).unwrap();
    d.submit(&rig, Io::read(3, 3, 1, span)).unwrap();
    assert!(d.until(&mut rig, 200, |done| done.completions.len() == 3));
    let mut told: Vec<_> = d.done.completions.iter().map(|c| (c.tag, c.status.code)).collect();
    told.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(told, [(1, Code::WriteProtected), (2, Code::WriteProtected), (3, Code::Ok)]);
    assert_eq!(looks(&rig), 1);
    rig.scan();
    assert!(rig.disk.state().info().unwrap().limits.read_only);
}

#[test]
fn a_unit_that_is_denied_is_looked_at_before_anything_else_is_sent_there() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    let span = d.span(0, BLOCK);
    rig.script(|s| (s.rules, s.commands) = (vec![rule(READS, 1, Reply::Sense(NO_UNIT))], Vec::new()));
    looks(&rig);
    d.submit(&rig, Io::read(1, 3, 1, span)).unwrap();
    d.turn(&mut rig, 0);
    assert_eq!(codes(&d.done.completions), [Code::PathNoAccess], "another path is asked at once");
    d.submit(&rig, Io::read(2, 3, 1, span)).unwrap();
    d.submit(&rig, Io::write(3, 3, 1, span)).unwrap();
    assert!(d.until(&mut rig, 200, |done| done.completions.len() == 3));
    assert_eq!(codes(&d.done.completions[1..]), [Code::Ok, Code::Ok]);
    let commands = rig.script(|s| std::mem::take(&mut s.commands));
    let first = |opcodes: &[u8]| commands.iter().position(|c| opcodes.contains(c));
    assert!(first(READS) > first(&[opcode::SERVICE_ACTION_IN_16]), "{commands:02x?}");
    assert_eq!(looks(&rig), 1);

    // One that says so of a command which it does not know is none the less there.
    rig.script(|s| s.rules = vec![rule(&[opcode::UNMAP], usize::MAX, Reply::Sense(NO_UNIT))]);
    d.done.clear();
    d.submit(&rig, Io::range(4, Op::Discard, 3, 1)).unwrap();
    assert!(d.until(&mut rig, 200, |done| done.completions.len() == 1));
    assert_eq!(codes(&d.done.completions), [Code::Unsupported]);
}

/// Who reads only what the other one has data for hears of nothing: the watch finds out.
#[test]
fn a_disk_that_is_taken_away_without_a_word_is_missed_by_the_watch() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    rig.script(|s| s.taken_away = Some(8));
    let before = rig.now;
    assert!((0..100).any(|_| {
        rig.now = rig.now.after(ms(20));
        rig.scanner.poll(rig.now, 0);
        rig.disk.state().info().is_none()
    }));
    assert!(rig.now.since(before) < ms(500), "a watch is 100 ms");
    let span = d.span(0, BLOCK);
    for _ in 0..10 {
        d.turn(&mut rig, 0);
    }
    assert_eq!(d.submit(&rig, Io::read(1, 3, 1, span)), Err(RefusedWhy::Gone), "this session has looked, too");

    rig.script(|s| s.taken_away = None);
    rig.scan();
    assert!((0..3000).any(|_| {
        d.turn(&mut rig, 1);
        d.queue.health() == Health::Ready
    }));
    d.submit(&rig, Io::read(2, 3, 1, span)).unwrap();
    assert!(d.until(&mut rig, 100, |done| done.completions.len() == 1));
    assert_eq!(codes(&d.done.completions), [Code::Ok]);
}
