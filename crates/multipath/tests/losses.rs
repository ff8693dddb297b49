//! What a write cache lost is told once to whoever must hear it, whatever else goes on in that moment: removals, numbers of caches that are
//! given again, acknowledgements read late, doubts.

use crate::common::scripted::{Bench, info, limited, stranger};
use polypath_block::{Code, DeviceInfo, Health, Identifier, Io, Op, Proof, SegSpan};
use polypath_multipath::GroupConfig;

/// Flushes that path `at` has been sent.
fn flushes(b: &Bench, at: usize) -> usize {
    b.devices[at].taken().iter().filter(|io| io.op == Op::Flush).count()
}

/// The flush before a removal is under way when another path shows that the cache lost its power: its OK is no report.
#[test]
fn the_flush_before_a_removal_leaves_a_loss_of_power_to_be_reported() {
    let mut b = Bench::with_caches(&["c#1", "c#1"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    b.group.remove_path(b.ids[0]).expect("there");
    b.turns(2);
    assert_eq!(b.devices[0].only().op, Op::Flush);
    b.devices[1].set_live(info("c#2"));
    b.turns(2);
    assert_eq!(b.caches_lost(), 1, "an acknowledged write is lost, and the next flush is to say so");
    b.devices[0].succeed_all();
    b.turns(3);
    assert_eq!(b.flush_now(), Some(Code::CacheLost));
}

/// A dirty cache is lost with its last path. A path to (what has the name of) that cache comes, and is removed before anybody flushes.
#[test]
fn the_flush_before_a_removal_lifts_no_loss_that_nobody_was_told_of() {
    let mut b = Bench::with_caches(&["c", "d"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    b.devices[0].set_gone();
    b.turns(3);
    assert_eq!(b.caches_lost(), 1, "\"the next flush fails once\"");
    b.group.remove_path(b.ids[0]).expect("there");
    b.turns(2);
    // The controller is back after its power failed; it gives no count.
    b.add(info("c"));
    b.turns(2);
    b.group.remove_path(b.ids[2]).expect("there");
    b.turns(2);
    b.devices[2].succeed_all();
    b.turns(3);
    assert_eq!(b.group.paths(), [b.ids[1]]);
    assert_eq!(b.flush_now(), Some(Code::CacheLost));
}

/// The number of a cache is given again while an acknowledgement of its former owner is on the way.
#[test]
fn a_late_acknowledgement_is_not_about_the_next_owner_of_the_number() {
    for cycles in [3, 70] {
        let mut b = Bench::with_caches(&["c#0"]);
        for n in 1..=cycles {
            b.devices[0].set_live(info(&format!("c#{n}")));
            b.turns(2);
            assert_eq!(b.flush_now(), Some(Code::Ok));
        }
        let tag = b.write(1);
        let io = b.devices[0].only();
        b.devices[0].set_live(info("c#1000"));
        b.turns(2);
        b.devices[0].succeed(io);
        b.turns(2);
        assert_eq!(b.outcome(tag), Some(Code::Ok));
        assert_eq!(b.flush_now(), Some(Code::CacheLost), "after {cycles} losses of power");
    }
}

/// The same for the flush before a removal of the next owner.
#[test]
fn a_removal_does_not_lift_the_loss_of_the_former_owner_of_its_number() {
    let mut b = Bench::with_caches(&["d", "c#0"]);
    for n in 1..=70 {
        b.devices[1].set_live(info(&format!("c#{n}")));
        b.turns(2);
        assert_eq!(b.flush_now(), Some(Code::Ok));
    }
    b.dirty(1, 1);
    b.devices[1].set_gone();
    b.turns(3);
    assert_eq!(b.caches_lost(), 1);
    b.add(info("e"));
    b.turns(2);
    b.group.remove_path(b.ids[2]).expect("there");
    b.turns(2);
    b.devices[2].succeed_all();
    b.turns(3);
    assert_eq!(b.flush_now(), Some(Code::CacheLost), "of c#70, which has nothing to do with e");
}

/// A write is acknowledged by a cache that has lost its power, while another path that led there is away.
#[test]
fn no_flush_waits_for_what_a_lost_cache_has_acknowledged() {
    late_acknowledgement(false);
}

/// As before, where a loss was reported already.
#[test]
fn the_same_loss_is_not_reported_twice() {
    late_acknowledgement(true);
}

fn late_acknowledgement(dirty: bool) {
    let mut b = Bench::with_caches(&["c#1", "c#1"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.devices[1].set_health(Health::Down);
    b.turns(2);
    if dirty {
        b.dirty(0, 5);
    }
    let tag = b.write(1);
    let io = b.devices[0].only();
    b.devices[1].set_down(Code::PathLost, "reset");
    b.devices[0].set_live(info("c#2"));
    b.turns(2);
    b.devices[0].succeed(io);
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    let mut told = Vec::new();
    for _ in 0..4 {
        let began = b.now;
        let flush = b.flush();
        while b.outcome(flush).is_none() {
            b.pass(10);
            b.devices[0].succeed_all();
        }
        told.push((b.outcome(flush), b.now.since(began).as_millis()));
    }
    b.devices[1].set_health(Health::Ready);
    b.devices[1].set_live(info("c#2"));
    b.turns(3);
    told.push((b.flush_now(), 0));
    let reports = told.iter().filter(|t| t.0 == Some(Code::CacheLost)).count();
    let slow = told.iter().filter(|t| t.1 > 1000).count();
    assert_eq!((reports, slow), (1, 0), "dirty before: {dirty}: {told:?}");
}

/// The last path of a dirty cache goes between two looks of one flush at it (another thread reviews the group in that moment).
#[test]
fn a_flush_whose_cache_is_lost_between_two_looks_says_so() {
    let mut b = Bench::with_caches(&["c", "d"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    // The control thread hears that its path is gone for good just as the flush looks for it.
    let (device, group) = (b.devices[0].clone(), b.group.clone());
    b.devices[0].on_next_version(move || {
        // (that was the look of `is_behind`; the next one is that of `dispatch`)
        let (again, group) = (device.clone(), group.clone());
        device.on_next_version(move || {
            again.set_gone();
            group.refresh();
        });
    });
    let flush = b.flush();
    b.turns(4);
    assert_eq!(b.caches_lost(), 1);
    assert_eq!(b.outcome(flush), Some(Code::CacheLost), "it began before the loss and was to reach that cache");
}

/// A cache that is clean but for a doubt, behind a path that fails what it is given.
#[test]
fn a_flush_that_is_owed_for_a_doubt_only_is_not_tried_for_a_minute() {
    let mut b = Bench::with_caches(&["c", "c", "d"]);
    b.dirty(0, 1);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.devices[1].set_live(stranger("c"));
    b.turns(2);
    let began = b.now;
    let flush = b.flush();
    for _ in 0..7000 {
        b.devices[0].in_flight().into_iter().for_each(|io| b.devices[0].complete(io, Code::PathBusy, Proof::Answered));
        b.devices[2].succeed_all();
        b.pass(10);
        if b.outcome(flush).is_some() {
            break;
        }
    }
    assert_eq!(b.outcome(flush), Some(Code::Ok), "nothing is dirty; after {:?}", b.now.since(began));
    assert!(b.now.since(began).as_millis() < 1000, "{:?}", b.now.since(began));
}

/// A controller comes back from a loss of power: one path shows the disk, the other one shows another disk. The cache
/// that it led to is no more; the doubt is about the one in its place.
#[test]
fn a_path_that_shows_another_disk_after_a_loss_of_power_raises_a_doubt_about_the_new_cache() {
    for way in 0..2 {
        let mut b = Bench::with_caches(&["c#1", "c#1"]);
        b.dirty(0, 1);
        assert_eq!(b.flush_now(), Some(Code::Ok));
        b.devices.iter().for_each(|d| d.set_down(Code::PathLost, "reset"));
        b.turns(2);
        match way {
            0 => b.devices[0].set_live(stranger("c#2")),
            _ => b.devices[0].set_down(Code::PathIdentity, "its namespace is another one"),
        }
        b.devices[1].set_live(info("c#2"));
        b.turns(3);
        let tag = b.write(2);
        b.devices[1].succeed_all();
        b.turn();
        assert_eq!(b.outcome(tag), Some(Code::Ok));
        let before = flushes(&b, 1);
        for n in 1..=3 {
            assert_eq!(b.flush_now(), Some(Code::Ok));
            assert_eq!(flushes(&b, 1), before + n, "way {way}: a path to that controller shows another disk");
        }
    }
}

/// Two paths agree with the first one in what it shows, and differ from each other: that is another disk, too.
#[test]
fn paths_that_differ_only_from_each_other_raise_a_doubt() {
    let shows = |more: &[Identifier]| {
        let mut i = info("c");
        i.identity.identifiers.extend_from_slice(more);
        i
    };
    let eui = |n| Identifier::Eui64([n; 8]);
    let mut b = Bench::new(GroupConfig::new("disk"), vec![shows(&[]), shows(&[eui(1)]), shows(&[])]);
    b.dirty(0, 1);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    let all = |b: &Bench| (0..3).map(|at| flushes(b, at)).sum::<usize>();
    let before = all(&b);
    assert_eq!((b.flush_now(), all(&b)), (Some(Code::Ok), before), "it is clean");
    b.devices[2].set_live(shows(&[eui(2)]));
    b.turns(2);
    for n in 1..=2 {
        assert_eq!((b.flush_now(), all(&b)), (Some(Code::Ok), before + n), "nobody knows who answers");
    }
    b.finish();
}

/// A path on its way out that shows the right disk again speaks against nobody any more.
#[test]
fn a_doubt_ends_when_a_path_that_is_being_removed_shows_the_disk_again() {
    let mut b = Bench::with_caches(&["c", "c"]);
    while b.devices[1].in_flight().is_empty() {
        b.submit(Io::read(0, 1, 1, SegSpan::EMPTY));
        b.turn();
    }
    b.devices[0].succeed_all();
    b.turn();
    b.dirty(0, 1);
    b.devices[1].set_live(stranger("c"));
    b.turns(2);
    b.group.remove_path(b.ids[1]).expect("there");
    b.turns(2);
    let before = flushes(&b, 0);
    for n in 1..=2 {
        assert_eq!((b.flush_now(), flushes(&b, 0)), (Some(Code::Ok), before + n), "in doubt");
    }
    b.devices[1].set_live(info("c"));
    b.turns(2);
    assert_eq!((b.flush_now(), flushes(&b, 0)), (Some(Code::Ok), before + 3), "the first that can be believed");
    assert_eq!((b.flush_now(), flushes(&b, 0)), (Some(Code::Ok), before + 3), "it has cleaned the cache");
    b.finish();
}

/// The disk behind the only usable path was another one for a moment, or not: when there is no path at all, there is time to find out.
#[test]
fn without_any_path_a_flush_in_doubt_waits() {
    let mut b = Bench::with_caches(&["c", "c"]);
    b.dirty(0, 1);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.devices[1].set_live(stranger("c"));
    b.devices[0].set_health(Health::Down);
    b.turns(2);
    let flush = b.flush();
    b.pass(1_000);
    assert_eq!(b.outcome(flush), None, "who has answered the last one?");
    b.devices[0].set_health(Health::Ready);
    b.turns(2);
    assert_eq!(b.devices[0].only().op, Op::Flush);
    b.devices[0].succeed_all();
    b.turn();
    assert_eq!(b.outcome(flush), Some(Code::Ok));
    b.finish();
}

/// Two reactors: until the one has given its report out, the other one does not say OK.
#[test]
fn a_loss_is_told_to_every_flush_that_begins_before_the_report_is_there() {
    let mut b = Bench::with_caches(&["c#1", "c#1"]);
    let mut second = b.second_queue();
    b.turn_of(&mut *second);
    b.dirty(0, 1);
    b.devices[1].set_live(info("c#2"));
    b.turns(2);
    let slow = b.submit_to(&mut *second, Io::flush(0));
    assert_eq!(b.flush_now(), Some(Code::CacheLost), "the other report has not been given out");
    let late = b.turn_of(&mut *second);
    assert_eq!(late.iter().map(|c| (c.tag, c.status.code)).collect::<Vec<_>>(), [(slow, Code::CacheLost)]);
    assert_eq!(b.flush_now(), Some(Code::Ok), "both have it");
    drop(second);
    b.finish();
}

/// A write in two parts: the cache of the one is lost before that part is acknowledged, the other cache is well.
#[test]
fn a_write_of_which_one_part_is_lost_is_lost() {
    for first in 0..2 {
        let one_block = |domain| DeviceInfo { limits: limited(1).limits, ..info(domain) };
        let mut b = Bench::new(GroupConfig::new("disk"), vec![one_block("c#1"), one_block("d#1")]);
        assert_eq!(b.flush_now(), Some(Code::Ok));
        let tag = b.submit(Io::write(0, 1, 2, SegSpan::EMPTY));
        b.turn();
        let parts = [b.devices[0].only(), b.devices[1].only()];
        let lost = usize::from(parts[0].lba != 1 + first);
        b.devices[lost].set_live(one_block(["c#2", "d#2"][lost]));
        b.turns(2);
        assert_eq!(b.caches_lost(), 0, "nothing was acknowledged");
        for at in [lost, 1 - lost] {
            b.devices[at].succeed(parts[at]);
            b.turn();
        }
        assert_eq!(b.outcome(tag), Some(Code::Ok));
        assert_eq!((b.flush_now(), b.flush_now()), (Some(Code::CacheLost), Some(Code::Ok)), "part {first}");
        b.finish();
    }
}

/// A request in parts fails, for whatever reason and however many of its parts report a loss: later reports are given all the same.
#[test]
fn a_request_that_failed_in_parts_holds_no_report_back() {
    let mut b = Bench::with_caches(&["a", "b", "c"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    let lose = |b: &mut Bench, at: usize, domain: &str| {
        b.devices[at].set_live(info(domain));
        b.turns(2);
    };
    // A flush of three caches: two of them are lost meanwhile.
    (0..3).for_each(|i| b.dirty(i, 1));
    let tag = b.flush();
    b.turn();
    lose(&mut b, 0, "a#1");
    lose(&mut b, 1, "b#1");
    b.devices.iter().for_each(|device| device.succeed_all());
    b.turns(3);
    assert_eq!(b.outcome(tag), Some(Code::CacheLost));
    assert_eq!(b.flush_now(), Some(Code::Ok));
    // Another one, of which a part fails.
    (0..2).for_each(|i| b.dirty(i, 1));
    let tag = b.flush();
    b.turn();
    b.devices[0].complete(b.devices[0].only(), Code::Medium, Proof::Answered);
    b.devices[1].succeed_all();
    b.turns(3);
    assert_eq!(b.outcome(tag), Some(Code::Medium));
    b.dirty(2, 1);
    lose(&mut b, 2, "c#1");
    assert_eq!((b.flush_now(), b.flush_now()), (Some(Code::CacheLost), Some(Code::Ok)));
    b.finish();
}
