//! Access that changes under running requests, and none at all.

use crate::common::scripted::{Bench, info};
use polypath_block::{Access, Code, DeviceInfo, Io, Op, Proof, SegSpan};
use polypath_multipath::{EventKind, Failback, GroupConfig, SelectorKind};

fn with_access(access: Access) -> DeviceInfo {
    DeviceInfo { access, ..info("a") }
}

/// A group whose paths give this access.
fn bench(config: GroupConfig, access: &[Access]) -> Bench {
    Bench::new(config, access.iter().map(|&access| with_access(access)).collect())
}

const KINDS: [Op; 4] = [Op::Read, Op::Write, Op::Discard, Op::WriteZeroes];

/// Requests of every kind, in flight: their tags.
fn submit(b: &mut Bench, from: u64) -> Vec<u64> {
    let io = |n: u64| match KINDS[n as usize % 4] {
        Op::Read => Io::read(0, from + n, 1, SegSpan::EMPTY),
        Op::Write => Io::write(0, from + n, 1, SegSpan::EMPTY),
        op => Io::range(0, op, from + n, 1),
    };
    (0..16).map(|n| b.submit(io(n))).collect()
}

/// The target answers what it has in flight on path `at` with `code`.
fn refuse(b: &Bench, at: usize, code: Code) {
    for io in b.devices[at].in_flight() {
        b.devices[at].complete(io, code, Proof::Answered);
    }
}

#[test]
fn a_change_of_access_moves_what_is_in_flight_and_fails_nothing() {
    let rules = SelectorKind::ALL.into_iter().chain([SelectorKind::Preferred { failback: Failback::Never }]);
    for selector in rules {
        for (access, code) in [
            (Access::Inaccessible, Code::PathNoAccess),
            (Access::Change, Code::PathBusy),
            (Access::NonOptimized, Code::Ok),
        ] {
            let config = GroupConfig { selector, ..GroupConfig::new("disk") };
            let mut b = bench(config, &[Access::Optimized, Access::NonOptimized]);
            let tags = submit(&mut b, 0);
            b.turn();
            let what = format!("{selector}, {access:?}");
            assert_eq!((b.devices[0].in_flight().len(), b.devices[1].in_flight().len()), (16, 0), "{what}");
            // The other port becomes the good one; the requests hear of it before their device does.
            refuse(&b, 0, code);
            b.turns(2);
            b.devices[0].set_live(with_access(access));
            b.devices[1].set_live(with_access(Access::Optimized));
            let more = submit(&mut b, 100);
            for _ in 0..40 {
                b.turn();
                b.devices[1].succeed_all();
            }
            b.pass(200);
            b.devices[1].succeed_all();
            b.turn();
            for tag in tags.iter().chain(&more) {
                assert_eq!(b.outcome(*tag), Some(Code::Ok), "{what}");
            }
            let late = b.devices[0].taken().iter().filter(|io| io.lba >= 100).count();
            assert_eq!(late, 0, "{what}: nothing went to the worse port any more");
            assert!(b.told().contains(&EventKind::AccessChanged { access }), "{what}");
            b.finish();
        }
    }
}

#[test]
fn while_all_change_requests_wait_within_the_limit() {
    for (back, ms, outcome) in [(true, 1500, Code::Ok), (false, 2100, Code::NoPath)] {
        let config = GroupConfig { no_path_timeout_ms: 2000, ..GroupConfig::new("disk") };
        let mut b = bench(config, &[Access::Optimized, Access::Optimized]);
        let tags = submit(&mut b, 0);
        b.turn();
        for at in 0..2 {
            refuse(&b, at, Code::PathBusy);
            b.devices[at].set_live(with_access(Access::Change));
        }
        b.pass(ms);
        let sent = b.devices.iter().map(|d| d.in_flight().len()).sum::<usize>();
        assert_eq!(sent, 0, "nobody is sent to a port that is changing");
        if back {
            assert!(tags.iter().all(|tag| b.outcome(*tag).is_none()), "they wait");
            b.devices[1].set_live(with_access(Access::NonOptimized));
            for _ in 0..30 {
                b.pass(10);
                b.devices[1].succeed_all();
            }
            b.turn();
        }
        assert!(tags.iter().all(|tag| b.outcome(*tag) == Some(outcome)), "{outcome:?}");
        b.finish();
    }
}

#[test]
fn access_is_asked_for_when_nobody_gives_any() {
    let asked = |b: &Bench| b.devices.iter().map(|d| d.asked_for_access()).collect::<Vec<_>>();
    let mut b = bench(GroupConfig::new("disk"), &[Access::Optimized, Access::Inaccessible, Access::Inaccessible]);
    b.pass(100);
    assert_eq!(asked(&b), [0, 0, 0], "there is one");
    b.devices[0].set_live(with_access(Access::Change));
    b.turns(2);
    assert_eq!(asked(&b), [0, 0, 0], "there may be one soon");
    b.devices[0].set_down(Code::PathLost, "unplugged");
    b.turns(2);
    let first = asked(&b);
    assert!(first[1] > 0 && first[0] == 0 && first[2] == 0, "the first one that answers: {first:?}");
    b.group.set_preferred(b.ids[2], true).unwrap();
    b.devices[1].touch();
    b.turns(2);
    let second = asked(&b);
    assert!(second[2] > 0 && second[1] == first[1], "the preferred one, and again as there is news: {second:?}");
    b.devices[2].set_live(with_access(Access::Change));
    b.turns(2);
    b.devices[2].set_live(with_access(Access::Optimized));
    b.devices[1].touch();
    b.pass(100);
    assert_eq!(asked(&b), second, "it is given");
    b.finish();
}

#[test]
fn a_path_that_has_still_to_answer_is_waited_for() {
    let mut b = bench(GroupConfig::new("disk"), &[Access::Inaccessible]);
    let before = b.devices[0].asked_for_access();
    b.add_in(polypath_block::DeviceState::Starting);
    b.devices[0].touch();
    b.turns(2);
    assert_eq!(b.devices[0].asked_for_access(), before, "it may be the good one");
    b.devices[1].set_down(Code::PathLost, "nobody there");
    b.turns(2);
    assert!(b.devices[0].asked_for_access() > before);
    // Whoever gives no access for good is not asked.
    b.devices[0].set_live(with_access(Access::PersistentLoss));
    b.turns(2);
    let after = b.devices[0].asked_for_access();
    b.devices[1].touch();
    b.turns(2);
    assert_eq!(b.devices[0].asked_for_access(), after);
    b.finish();
}
