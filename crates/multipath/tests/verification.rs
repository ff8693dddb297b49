//! What a device says of itself, what queues say of it, and what becomes of its path.

use crate::common::scripted::{Bench, info};
use polypath_block::{
    Code, Cx, Device, DeviceInfo, DeviceState, Health, Host, Identifier, Io, Limits, MakePoller, Op, Proof, SegSpan,
    SegTable, Time,
};
use polypath_multipath::{Entry, EventKind, GroupConfig, Ledger, MatchPolicy, PathState, SelectorKind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WRITE: fn(u64) -> Io = |lba| Io::write(0, lba, 1, SegSpan::EMPTY);

#[test]
fn a_device_that_changed_gets_nothing_until_it_was_verified_again() {
    let mut b = Bench::with_caches(&["a"]);
    let mut other = info("a");
    other.identity.identifiers = vec![Identifier::Uuid([2; 16])];
    // Between two turns: nobody has looked yet.
    b.devices[0].set_live(other);
    let tag = b.write(1);
    assert!(b.devices[0].taken().is_empty(), "written to another disk");
    b.turns(3);
    assert_eq!(b.stats(0).state, PathState::Quarantined);
    assert!(b.devices[0].taken().is_empty());
    b.devices[0].set_live(info("a"));
    b.turns(4);
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}

/// A ledger that says what it is told to.
#[derive(Debug)]
struct Notebook(Mutex<Entry>);

impl Ledger for Notebook {
    fn admit(&self, info: &DeviceInfo, bound: Duration) -> Entry {
        assert!(info.geometry.blocks > 0 && bound.is_zero());
        self.0.lock().unwrap().clone()
    }
}

#[test]
fn a_path_carries_nothing_before_it_is_written_down_what_it_shows() {
    let notebook = Arc::new(Notebook(Mutex::new(Entry::Written)));
    let ledger: Option<Arc<dyn Ledger>> = Some(notebook.clone());
    let mut b = Bench::new(GroupConfig { ledger, ..GroupConfig::new("disk") }, vec![info("a")]);
    b.turns(2);
    assert_eq!((b.stats(0).state, b.group.admitted().len()), (PathState::Usable, 1));
    let entry = |entry| *notebook.0.lock().unwrap() = entry;
    entry(Entry::NotYet("the pen is dry".into()));
    b.devices[0].touch();
    let tag = b.write(1);
    b.turns(3);
    assert!(b.devices[0].taken().is_empty(), "it changed, and nobody has noted that");
    assert_eq!((b.stats(0).state, &*b.stats(0).why), (PathState::Down, "the pen is dry"));
    assert!(b.group.admitted().is_empty());
    b.group.look_again();
    b.turns(3);
    assert_eq!(b.stats(0).state, PathState::Down, "still not");
    entry(Entry::Written);
    b.turns(3);
    assert_eq!(b.stats(0).state, PathState::Down, "who waits is told");
    b.group.look_again();
    b.turns(3);
    assert_eq!(b.stats(0).state, PathState::Usable);
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    entry(Entry::Refused("it was another one in the old book".into()));
    b.devices[0].touch();
    b.turns(2);
    assert_eq!(b.stats(0).state, PathState::Quarantined);
    assert!(b.stats(0).why.contains("old book"));
    b.group.look_again();
    entry(Entry::Written);
    b.turns(2);
    assert_eq!(b.stats(0).state, PathState::Quarantined, "the book has no news yet");
    b.group.look_again();
    b.turns(2);
    assert_eq!(b.stats(0).state, PathState::Usable);
    b.finish();
}

#[test]
fn limits_that_changed_are_known_before_anything_is_sent() {
    let mut b = Bench::with_caches(&["a"]);
    let tag = b.write(0);
    b.devices[0].succeed_all();
    b.turn();
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.devices[0].set_live(DeviceInfo { limits: Limits { max_transfer_bytes: 512, ..info("a").limits }, ..info("a") });
    // Somebody else has looked: the group has admitted it, this queue has not followed.
    b.group.refresh();
    b.submit(Io { blocks: 2, ..WRITE(0) });
    assert!(b.devices[0].in_flight().is_empty(), "this queue does not know its limits yet");
    b.turns(2);
    assert!(b.devices[0].in_flight().iter().all(|io| io.blocks == 1) && b.devices[0].in_flight().len() == 2);
    b.finish();
}

#[test]
fn nobody_becomes_another_disk_in_two_reconnects() {
    let shows = |ids: &[Identifier]| {
        let mut i = info("a");
        i.identity.identifiers = ids.to_vec();
        i
    };
    let (uuid, nguid) = (Identifier::Uuid([1; 16]), |n| Identifier::Nguid([n; 16]));
    // The first path shows nothing that could speak against the second one later on.
    let mut b = Bench::new(
        GroupConfig::new("disk"),
        vec![shows(std::slice::from_ref(&uuid)), shows(&[uuid.clone(), nguid(1)])],
    );
    let mut reconnect = |ids: &[Identifier]| {
        b.devices[1].set_down(Code::PathLost, "connection reset");
        b.turn();
        b.devices[1].set_live(shows(ids));
        b.turns(3);
        b.stats(1).state
    };
    assert_eq!(reconnect(&[nguid(1)]), PathState::Usable, "it is who it was, and that was the disk");
    assert_eq!(reconnect(std::slice::from_ref(&uuid)), PathState::Usable);
    assert_eq!(reconnect(&[uuid.clone(), nguid(2)]), PathState::Quarantined, "it showed another one once");
    assert_eq!(reconnect(&[uuid.clone(), nguid(1)]), PathState::Usable);
    b.finish();
    // The same where the operator states the match and the first path shows nothing at all.
    let mut config = GroupConfig::new("disk");
    config.matching = MatchPolicy::Stated;
    let mut b = Bench::new(config, vec![shows(&[]), shows(&[nguid(1)])]);
    b.devices[1].set_live(shows(&[nguid(2)]));
    b.turns(3);
    assert_eq!(b.stats(1).state, PathState::Quarantined);
    b.finish();
}

#[test]
fn a_path_is_back_when_it_is_back_on_every_reactor() {
    let mut b = Bench::with_caches(&["a"]);
    let mut second = b.second_queue();
    b.drain_events();
    for end_by_closing in [false, true] {
        b.devices[0].set_health(Health::Down);
        b.turn();
        assert_eq!(b.stats(0).state, PathState::Down);
        b.turn_of(&mut *second);
        b.devices[0].set_health(Health::Ready);
        b.turn();
        assert_eq!(b.stats(0).state, PathState::Down, "not on the second one");
        if end_by_closing {
            // What a queue has reported ends with it; it has nothing in flight.
            second.close(&mut Cx { now: b.now, segs: &mut SegTable::new(1), reactor: 1 });
            drop(second);
            assert_eq!(b.stats(0).state, PathState::Usable);
            break;
        } else {
            b.turn_of(&mut *second);
        }
        assert_eq!(b.stats(0).state, PathState::Usable);
    }
    let s = b.stats(0);
    assert_eq!((s.failures, s.recoveries), (2, 2));
    let told: Vec<_> = b.drain_events().into_iter().map(|e| e.kind).collect();
    let downs = told.iter().filter(|k| matches!(k, EventKind::PathDown { .. })).count();
    assert_eq!((downs, told.len()), (2, 4), "once for all reactors: {told:?}");
    b.finish();
}

#[test]
fn a_device_that_is_down_is_not_up_because_its_queues_are() {
    let mut b = Bench::with_caches(&["a"]);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.devices[0].set_health(Health::Down);
    b.turn();
    b.devices[0].set_health(Health::Ready);
    b.turns(2);
    assert_eq!(b.stats(0).state, PathState::Down, "it was not verified again");
    let tag = b.write(1);
    assert!(b.devices[0].taken().is_empty());
    b.devices[0].set_health(Health::Down);
    b.turn();
    b.devices[0].set_live(info("a"));
    b.turns(2);
    assert_eq!(b.stats(0).state, PathState::Down, "nor because its device answers while its queue does not");
    b.devices[0].set_health(Health::Ready);
    b.turns(3);
    assert_eq!(b.stats(0).state, PathState::Usable);
    b.devices[0].succeed_all();
    b.turn();
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}

#[test]
fn the_first_reason_for_which_a_path_was_left_stays() {
    let mut b = Bench::with_caches(&["a"]);
    b.devices[0].set_down(Code::PathTimeout, "no answer for 500 ms");
    b.turn();
    b.devices[0].set_health(Health::Down);
    b.turn();
    b.devices[0].set_down(Code::PathLost, "connection refused");
    b.turn();
    let s = b.stats(0);
    assert_eq!((s.state, s.cause, &*s.why), (PathState::Down, Some(Code::PathTimeout), "no answer for 500 ms"));
    b.finish();
}

#[test]
fn a_device_that_changes_in_the_turn_of_its_removal_is_not_flushed() {
    let mut b = Bench::with_caches(&["c#1", "other"]);
    b.dirty(0, 1);
    b.group.remove_path(b.ids[0]).expect("there");
    // After this turn has followed the group, before it flushes: as another thread does.
    b.devices[0].on_next_health(|d| d.set_live(info("c#2")));
    b.turns(4);
    assert!(b.devices[0].taken().iter().all(|io| io.op != Op::Flush), "the new cache knows nothing of the write");
    assert_eq!(b.group.paths().len(), 1);
    assert_eq!(b.flush_now(), Some(Code::CacheLost));
    b.finish();
}

#[test]
fn a_queue_that_closes_takes_a_new_path_for_what_waits() {
    let mut b = Bench::with_caches(&["a"]);
    b.devices[0].set_health(Health::Down);
    b.turn();
    let tag = b.submit(WRITE(1));
    b.close_queue();
    b.turn();
    b.add(info("a"));
    b.turns(3);
    b.devices[1].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}

#[test]
fn a_queue_that_was_never_ready_is_no_loss() {
    let mut b = Bench::with_caches(&[]);
    b.add(info("a"));
    b.devices[0].set_health(Health::Down);
    b.turns(3);
    let s = b.stats(0);
    assert_eq!((s.state, s.failures), (PathState::Usable, 0), "its queue is still connecting");
    assert!(!b.drain_events().iter().any(|e| matches!(e.kind, EventKind::PathDown { .. })));
    b.devices[0].set_health(Health::Ready);
    b.turns(2);
    b.devices[0].set_health(Health::Down);
    b.turn();
    assert_eq!((b.stats(0).state, b.stats(0).failures), (PathState::Down, 1));
    b.finish();
}

#[test]
fn the_cause_of_one_loss_is_not_told_of_the_next() {
    let mut b = Bench::with_caches(&["a", "a"]);
    b.submit(WRITE(1));
    let at = usize::from(b.devices[0].in_flight().is_empty());
    b.devices[at].complete(b.devices[at].only(), Code::PathTimeout, Proof::Answered);
    b.devices[at].set_health(Health::Down);
    b.turn();
    assert_eq!(b.stats(at).cause, Some(Code::PathTimeout));
    b.devices[at].set_health(Health::Ready);
    b.turn();
    b.devices[at].set_health(Health::Down);
    b.turn();
    assert_eq!(b.stats(at).cause, Some(Code::PathLost));
    b.finish();
}

/// A reactor that counts how often it is woken.
struct Counting(AtomicU32);

impl Host for Counting {
    fn spawn(&self, _: MakePoller) {}
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn reactor(&self) -> u16 {
        3
    }
    fn now(&self) -> Time {
        Time::ZERO
    }
}

#[test]
fn reactors_are_woken_by_whatever_their_queues_must_follow() {
    let mut b = Bench::with_caches(&["a", "b"]);
    let host = Arc::new(Counting(AtomicU32::new(0)));
    b.group.attach_host(host.clone());
    b.group.attach_host(host.clone());
    let mut woken = |what: &str, change: &mut dyn FnMut(&mut Bench)| {
        let before = host.0.load(Ordering::SeqCst);
        change(&mut b);
        assert_eq!(host.0.load(Ordering::SeqCst), before + 1, "{what}");
    };
    woken("a new path", &mut |b| b.add(info("c")));
    woken("a weight", &mut |b| b.group.set_weight(b.ids[0], 7).expect("there"));
    woken("a selector", &mut |b| b.group.set_selector(SelectorKind::Random));
    woken("a lost device", &mut |b| {
        b.devices[1].set_down(Code::PathLost, "connection reset");
        b.group.refresh();
    });
    woken("a removal", &mut |b| b.group.remove_path(b.ids[0]).expect("there"));
    b.finish();
}

#[test]
fn a_queue_sleeps_no_longer_than_what_waits_in_it() {
    let mut b = Bench::with_caches(&["a"]);
    // Finished at once, and not handed out yet.
    b.submit(Io::read(0, 5_000, 1, SegSpan::EMPTY));
    assert_eq!(b.arm(), None, "busy");
    b.turn();
    // Failed everywhere: another round in two milliseconds.
    b.submit(WRITE(1));
    b.devices[0].complete(b.devices[0].only(), Code::PathBusy, Proof::Answered);
    b.turn();
    let until = b.arm().flatten().expect("a deadline");
    assert!(until.since(b.now).as_millis() <= 2, "{:?}", until.since(b.now));
    b.finish();
}

#[test]
fn a_queue_without_paths_is_not_drained_while_something_waits() {
    let mut config = GroupConfig::new("disk");
    config.no_path_timeout_ms = 100;
    let mut b = Bench::new(config, vec![info("a")]);
    b.devices[0].set_gone();
    b.turns(2);
    let tag = b.submit(WRITE(1));
    b.close_queue();
    b.turns(3);
    assert!(!b.queue.is_drained() && b.outcome(tag).is_none());
    b.pass(120);
    assert_eq!(b.outcome(tag), Some(Code::NoPath));
    b.turn();
    assert!(b.queue.is_drained());
}

#[test]
fn a_group_is_starting_until_every_path_was_found_to_be_another_disk() {
    let mut config = GroupConfig::new("disk");
    config.matching = MatchPolicy::Pinned(vec![Identifier::Uuid([9; 16])]);
    let mut b = Bench::new(config, vec![]);
    assert!(matches!(b.group.state(), DeviceState::Starting), "without paths there is nothing to say");
    b.add(info("a"));
    b.add_in(DeviceState::Starting);
    assert!(matches!(b.group.state(), DeviceState::Starting), "the second path may be the right one");
    b.devices[1].set_live(info("a"));
    let DeviceState::Down { cause, reason } = b.group.state() else { panic!("{:?}", b.group.state()) };
    assert!(cause == Code::PathIdentity && reason.contains("p0") && reason.contains("expects"), "{cause:?} {reason}");
    b.finish();
}

#[test]
fn a_device_that_starts_again_is_a_loss_and_one_that_has_only_begun_is_none() {
    let mut b = Bench::with_caches(&[]);
    b.add_in(DeviceState::Starting);
    b.turns(2);
    assert_eq!((b.stats(0).state, b.stats(0).cause), (PathState::Connecting, None));
    b.devices[0].set_live(info("a"));
    b.turns(2);
    assert_eq!(b.stats(0).state, PathState::Usable);
    b.devices[0].set_state(DeviceState::Starting);
    b.turn();
    let s = b.stats(0);
    assert_eq!((s.state, s.cause, s.failures), (PathState::Down, Some(Code::PathLost), 1));
    b.finish();
}
