//! Requests in parts, parts in pieces: what is known of the whole is known of each, and nobody waits without need.

use crate::common::scripted::{BOUND, Bench, info, limited};
use polypath_block::{Code, Fate, Health, Io, Proof, SegSpan, Status};
use polypath_multipath::{Fencing, GroupConfig, SelectorKind};

const WRITE: fn(u64, u32) -> Io = |lba, blocks| Io::write(0, lba, blocks, SegSpan::EMPTY);

/// Two paths, the second down, nothing limited.
fn two(config: GroupConfig) -> Bench {
    let mut b = Bench::new(config, vec![info("a"), info("a")]);
    b.group.freeze();
    b.devices[1].set_health(Health::Down);
    b.turns(2);
    b
}

/// One write in two parts, cut once more, of which the first piece of each is in flight on the first path.
fn write_in_pieces(b: &mut Bench) -> u64 {
    b.devices[0].set_live(limited(32));
    b.turns(2);
    let tag = b.submit(WRITE(0, 64));
    let parts = b.devices[0].in_flight();
    b.devices[0].set_live(limited(8));
    b.turns(2);
    parts.into_iter().for_each(|io| b.devices[0].complete(io, Code::PathBusy, Proof::Answered));
    b.pass(130);
    assert_eq!(b.devices[0].in_flight().len(), 2);
    tag
}

/// The same on two paths, of which the second is down.
fn pieces() -> (Bench, u64) {
    let mut b = two(GroupConfig::new("disk"));
    let tag = write_in_pieces(&mut b);
    (b, tag)
}

/// A write was on its way as a whole and fenced; then another path takes it, in parts or whole, and goes before it got any.
#[test]
fn what_was_fenced_as_a_whole_is_not_told_as_never_sent_because_it_was_split_afterwards() {
    for split in [false, true] {
        let mut b = two(GroupConfig::new("disk"));
        let tag = b.submit(WRITE(0, 64));
        let io = b.devices[0].only();
        b.devices[0].suspect(io, Fate::Unknown);
        b.devices[0].set_health(Health::Down);
        b.turn();
        b.devices[1].set_live(limited(if split { 32 } else { 0 }));
        b.devices[1].set_room(0);
        b.devices[1].set_health(Health::Ready);
        b.turns(2);
        b.devices[0].complete(io, Code::PathLost, BOUND);
        b.turns(2);
        assert!(b.devices[1].taken().is_empty());
        b.devices[1].set_health(Health::Down);
        b.pass(61_000);
        let done = b.completion(tag).expect("an outcome");
        assert_eq!((done.status.code, done.proof), (Code::NoPath, BOUND), "split: {split}");
        b.finish();
    }
}

/// A part was on its way as a whole and fenced, then its first piece is written elsewhere; the rest of it is quiet by the fence.
#[test]
fn the_rest_of_a_part_remembers_that_it_was_sent_and_fenced() {
    let mut b = two(GroupConfig::new("disk"));
    b.devices[0].set_live(limited(32));
    b.turns(2);
    let tag = b.submit(WRITE(0, 64));
    let [first, second] = b.devices[0].in_flight()[..] else { panic!("two parts") };
    b.devices[0].succeed(second);
    b.devices[0].suspect(first, Fate::Unknown);
    b.devices[0].set_health(Health::Down);
    b.turn();
    b.devices[1].set_live(limited(16));
    b.devices[1].set_health(Health::Ready);
    b.turns(2);
    b.devices[0].complete(first, Code::PathLost, BOUND);
    b.turn();
    let io = b.devices[1].only();
    assert_eq!((io.lba, io.blocks), (0, 16));
    b.devices[1].set_room(0);
    b.devices[1].succeed(io);
    b.turn();
    b.devices[1].set_health(Health::Down);
    b.pass(61_000);
    let done = b.completion(tag).expect("an outcome");
    // Blocks 16..32 were sent once, and nothing but the fence proves them quiet.
    assert_eq!((done.status.code, done.proof), (Code::NoPath, BOUND));
    b.finish();
}

/// The same with fencing off: nothing proves the first attempt quiet.
#[test]
fn without_fencing_nothing_is_told_as_proven() {
    for split in [false, true] {
        let config = GroupConfig { fencing: Fencing::Off, ..GroupConfig::new("disk") };
        let mut b = two(config);
        let tag = b.submit(WRITE(0, 64));
        let io = b.devices[0].only();
        b.devices[1].set_live(limited(if split { 32 } else { 0 }));
        b.devices[1].set_room(0);
        b.devices[1].set_health(Health::Ready);
        b.turns(2);
        b.devices[0].suspect(io, Fate::Unknown);
        b.devices[0].set_health(Health::Down);
        b.turns(3);
        b.devices[1].set_health(Health::Down);
        b.pass(61_000);
        let done = b.completion(tag).expect("an outcome");
        assert_eq!((done.status.code, done.proof), (Code::NoPath, Proof::None), "split: {split}");
        b.finish();
    }
}

/// Requests that wait for their fence before they can be cut hold up one for which a path is idle.
#[test]
fn what_waits_for_a_fence_to_be_cut_holds_nobody_up() {
    let mut b = two(GroupConfig::new("disk"));
    for n in 0..12 {
        b.submit(Io::read(0, 64 * n, 64, SegSpan::EMPTY));
    }
    b.devices[1].set_live(limited(32));
    b.devices[1].set_health(Health::Ready);
    b.turns(2);
    for io in b.devices[0].in_flight() {
        b.devices[0].suspect(io, Fate::NotSent);
    }
    b.devices[0].set_health(Health::Down);
    b.turns(3);
    assert!(b.devices[1].in_flight().is_empty());
    let mut late = Vec::new();
    for lba in 0..16 {
        b.submit(Io::read(0, lba, 1, SegSpan::EMPTY));
        b.turn();
        let asleep = b.arm().is_some();
        late.push(b.devices[1].in_flight().is_empty() && asleep);
        b.devices[1].succeed_all();
        b.turns(3);
        b.devices[1].succeed_all();
        b.turn();
    }
    assert!(late.iter().all(|&late| !late), "the reactor sleeps beside an idle path: {late:?}");
    b.finish();
}

/// A piece that was cut for one path may go to another one: all of it is carried out once, whoever chooses.
#[test]
fn pieces_that_were_cut_for_one_path_may_go_to_another() {
    for kind in SelectorKind::ALL {
        let mut b = Bench::new(GroupConfig { selector: kind, ..GroupConfig::new("disk") }, vec![info("a"), info("a")]);
        b.group.freeze();
        b.devices.iter().for_each(|d| d.set_live(limited(32)));
        b.turns(3);
        let tag = b.submit(WRITE(0, 64));
        // Both parts come back; one path takes eight blocks by now.
        b.devices[0].set_live(limited(8));
        b.turns(2);
        for d in &b.devices {
            d.in_flight().into_iter().for_each(|io| d.complete(io, Code::PathBusy, Proof::Answered));
        }
        let before = [0, 1].map(|i| b.devices[i].taken().len());
        for _ in 0..40 {
            b.pass(150);
            b.devices.iter().for_each(|d| d.succeed_all());
        }
        assert_eq!(b.outcome(tag), Some(Code::Ok), "{kind}");
        let mut all: Vec<_> = (0..2).flat_map(|i| b.devices[i].taken().split_off(before[i])).collect();
        all.sort_by_key(|io| io.lba);
        let end = all.iter().fold(0, |end, io| if io.lba == end { end + u64::from(io.blocks) } else { u64::MAX });
        assert_eq!(end, 64, "{kind}: {all:?}");
        b.finish();
    }
}

/// A request has failed; what of its other parts is not sent yet is not sent any more.
#[test]
fn what_follows_an_error_is_not_sent() {
    let (mut b, tag) = pieces();
    let [one, two] = b.devices[0].in_flight()[..] else { panic!("{:?}", b.devices[0].in_flight()) };
    b.devices[0].complete(one, Code::Medium, Proof::Answered);
    b.turn();
    b.devices[0].succeed(two);
    b.turn();
    let more = b.devices[0].in_flight();
    assert!(more.is_empty(), "of a write that has failed: {more:?}");
    assert_eq!(b.outcome(tag), Some(Code::Medium));
    b.finish();
}

/// The same, and its path goes away: how long does the failed request stay open?
#[test]
fn a_failed_request_does_not_wait_for_a_path() {
    let (mut b, tag) = pieces();
    let [one, two] = b.devices[0].in_flight()[..] else { panic!("{:?}", b.devices[0].in_flight()) };
    b.devices[0].complete(one, Code::Medium, Proof::Answered);
    b.devices[0].succeed(two);
    b.devices[0].set_health(Health::Down);
    b.pass(1000);
    assert_eq!(b.outcome(tag), Some(Code::Medium), "nothing of it is in flight");
    b.finish();
}

/// The cache of the first piece is lost, and a flush says so, before the last piece is written elsewhere and the write is acknowledged.
#[test]
fn the_loss_of_the_cache_of_an_early_piece_is_told_once_more_after_the_write_is_acknowledged() {
    let mut b = Bench::with_caches(&["a", "b"]);
    b.group.freeze();
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.devices[1].set_health(Health::Down);
    let tag = write_in_pieces(&mut b);
    b.devices[0].succeed(b.devices[0].in_flight()[0]);
    b.turn();
    b.devices[1].set_health(Health::Ready);
    b.turn();
    b.devices[0].in_flight().into_iter().for_each(|io| b.devices[0].complete(io, Code::PathLost, Proof::NeverSent));
    b.devices[0].set_gone();
    b.turns(2);
    assert_eq!(b.flush_now(), Some(Code::CacheLost));
    assert_eq!(b.outcome(tag), None);
    for _ in 0..20 {
        b.devices[1].succeed_all();
        b.pass(10);
    }
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    assert_eq!(b.flush_now(), Some(Code::CacheLost), "blocks 0..8 are gone, and the write was told as done");
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.finish();
}

/// A write that must not be cut before its fence is over, and a path that takes it whole.
#[test]
fn a_path_that_takes_it_whole_is_not_passed_over_for_one_that_would_need_a_cut() {
    let mut b = Bench::new(GroupConfig::new("disk"), vec![info("a"), info("a"), info("a")]);
    b.group.freeze();
    b.devices[1].set_live(limited(32));
    b.devices[1].set_health(Health::Down);
    b.devices[2].set_health(Health::Down);
    b.turns(3);
    let tag = b.submit(WRITE(0, 64));
    let io = b.devices[0].only();
    b.devices[2].set_health(Health::Ready);
    b.devices[0].set_health(Health::Stalled);
    b.turns(2);
    // The second path has something to do, the other one has not.
    let other = b.submit(Io::read(0, 500, 1, SegSpan::EMPTY));
    assert_eq!(b.devices[2].in_flight().len(), 1);
    b.devices[1].set_health(Health::Ready);
    b.turn();
    b.devices[0].suspect(io, Fate::NotSent);
    b.devices[0].set_health(Health::Down);
    b.pass(500);
    assert_eq!(b.devices[2].in_flight().len(), 2, "it waits for its fence, beside a path that takes it whole");
    b.devices[2].succeed_all();
    b.devices[0].complete(io, Code::PathLost, BOUND);
    b.turns(2);
    assert_eq!((b.outcome(tag), b.outcome(other)), (Some(Code::Ok), Some(Code::Ok)));
    b.finish();
}

#[test]
fn a_queue_that_is_closed_with_pieces_left_ends() {
    for how in 0..4 {
        let (mut b, tag) = pieces();
        match how {
            0 => b.close_queue(),
            1 => {
                b.close_queue();
                b.devices[0].set_health(Health::Down);
            }
            2 => {
                use polypath_block::Device;
                b.group.close();
            }
            _ => b.group.remove_path(b.ids[0]).expect("there"),
        }
        for _ in 0..20 {
            b.devices[0].succeed_all();
            b.turn();
        }
        if how != 0 {
            b.pass(61_000);
        }
        let done = b.completion(tag).unwrap_or_else(|| panic!("{how}: it never ends"));
        let code = [Code::Ok, Code::NoPath, Code::Gone, Code::NoPath][how];
        assert_eq!((done.status.code, done.proof), (code, Proof::Answered), "{how}");
        b.finish();
    }
}

/// Both arrive at the same time: what is told of a suspect piece, and its completion; the next piece is not touched.
#[test]
fn what_is_said_late_of_a_piece_that_is_done_does_not_touch_the_next() {
    let (mut b, tag) = pieces();
    b.devices[1].set_health(Health::Ready);
    b.turns(2);
    let [one, two] = b.devices[0].in_flight()[..] else { panic!("two") };
    b.devices[0].suspect(one, Fate::NotSent);
    b.devices[0].set_health(Health::Down);
    b.turn();
    let again = b.devices[1].only();
    assert_eq!((again.lba, again.blocks), (0, 8));
    b.devices[1].succeed(again);
    b.turns(3);
    assert!(b.devices[1].in_flight().is_empty(), "the first attempt is not quiet");
    b.devices[0].suspect_again(one, Fate::Unknown);
    b.turn();
    b.devices[0].complete(one, Code::PathLost, BOUND);
    b.turn();
    let rest = b.devices[1].only();
    assert_eq!((rest.lba, rest.blocks, rest.skip), (8, 24, 8 * 512));
    b.devices[1].succeed(rest);
    b.devices[0].complete(two, Code::PathLost, BOUND);
    b.turns(2);
    b.devices[1].succeed_all();
    b.turns(2);
    b.devices[1].succeed_all();
    b.turns(2);
    let stats = [b.stats(0), b.stats(1)];
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    assert!(stats.iter().all(|s| s.in_flight == 0 && s.suspects == 0), "{stats:?}");
    b.finish();
}

/// Two pieces in a row become suspect and are sent again: the outcome of the first is not the outcome of the second.
#[test]
fn the_outcome_that_waited_for_a_fence_is_not_told_of_the_next_piece() {
    let (mut b, tag) = pieces();
    let [one, two] = b.devices[0].in_flight()[..] else { panic!("two") };
    b.devices[0].succeed(two);
    b.devices[1].set_health(Health::Ready);
    b.turns(2);
    b.devices[0].suspect(one, Fate::NotSent);
    b.devices[0].set_health(Health::Down);
    b.turn();
    let again = *b.devices[1].in_flight().iter().find(|io| io.lba == 0).expect("again");
    b.devices[1].succeed_all();
    b.turns(2);
    b.devices[0].complete(one, Code::PathLost, BOUND);
    b.turn();
    let rest = b.devices[1].only();
    assert_eq!((again.lba, rest.lba, rest.blocks), (0, 8, 24));
    // The only path breaks as well, and its fence is over before another one is there.
    b.devices[1].suspect(rest, Fate::NotSent);
    b.devices[1].set_health(Health::Down);
    b.turn();
    b.devices[1].complete(rest, Code::PathLost, BOUND);
    b.turns(3);
    assert_eq!(b.outcome(tag), None, "blocks 8 to 32 were never written");
    b.devices[1].set_health(Health::Ready);
    b.turns(3);
    b.devices[1].succeed_all();
    b.pass(300);
    b.devices[1].succeed_all();
    b.turns(3);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}

/// The proof of every piece counts: a weak one is not forgotten for a strong one that comes later.
#[test]
fn what_is_told_of_a_write_is_the_weakest_of_what_is_known_of_its_pieces() {
    let (mut b, tag) = pieces();
    let [one, two] = b.devices[0].in_flight()[..] else { panic!("two") };
    b.devices[0].complete(two, Status::OK, BOUND);
    b.turn();
    b.devices[0].succeed(one);
    b.turn();
    // The second pieces of both: answered, and then the path goes.
    b.devices[0].succeed_all();
    b.turn();
    b.devices[0].in_flight().into_iter().for_each(|io| b.devices[0].complete(io, Code::PathLost, Proof::NeverSent));
    b.devices[0].set_health(Health::Down);
    b.pass(61_000);
    let done = b.completion(tag).expect("an outcome");
    assert_eq!((done.status.code, done.proof), (Code::NoPath, BOUND));
    b.finish();
}

/// Without fencing nothing waits for an attempt that is superseded, to be cut either.
#[test]
fn without_fencing_a_request_is_cut_beside_an_attempt_that_is_open() {
    let mut b = two(GroupConfig { fencing: Fencing::Off, ..GroupConfig::new("disk") });
    let tag = b.submit(WRITE(0, 64));
    let io = b.devices[0].only();
    b.devices[1].set_live(limited(32));
    b.devices[1].set_health(Health::Ready);
    b.turns(2);
    b.devices[0].suspect(io, Fate::Unknown);
    b.devices[0].set_health(Health::Down);
    b.turns(2);
    assert_eq!(b.devices[1].in_flight().len(), 2);
    b.devices[1].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.devices[0].complete(io, Code::PathLost, BOUND);
    b.finish();
}

/// The first error is told, whatever becomes of the parts that it makes needless, and what waits for a path is told as what it is.
#[test]
fn parts_that_an_error_makes_needless_tell_what_is_known_of_them() {
    let mut b = two(GroupConfig::new("disk"));
    b.devices[0].set_live(limited(32));
    b.turns(2);
    let tag = b.submit(WRITE(0, 64));
    let [one, two] = b.devices[0].in_flight()[..] else { panic!("two") };
    b.devices[0].suspect(two, Fate::Unknown);
    b.turn();
    b.devices[0].complete(two, Code::PathLost, BOUND);
    b.devices[0].complete(one, Code::Medium, Proof::Answered);
    b.turns(2);
    let done = b.completion(tag).expect("nothing is in flight");
    assert_eq!((done.status.code, done.proof), (Code::Medium, BOUND));
    assert!(b.devices[0].in_flight().is_empty(), "it is not sent again");
    b.finish();
}

/// A write that fails is told as what is known of all its attempts, not of the last one.
#[test]
fn an_attempt_that_may_have_done_something_is_not_forgotten_for_one_that_did_nothing() {
    for (last, status, want) in
        [(Proof::NeverSent, Code::PathLost, Code::NoPath), (Proof::Answered, Code::Medium, Code::Medium)]
    {
        let mut b = two(GroupConfig::new("disk"));
        let tag = b.write(0);
        let io = b.devices[0].only();
        b.devices[0].complete(io, Code::PathLost, BOUND);
        b.pass(20);
        b.devices[0].complete(b.devices[0].only(), status, last);
        b.devices[0].set_health(Health::Down);
        b.pass(61_000);
        let done = b.completion(tag).expect("an outcome");
        assert_eq!((done.status.code, done.proof), (want, BOUND));
        b.finish();
    }
}

/// The wait for a fence is no lack of paths, however long it is.
#[test]
fn what_waits_for_a_fence_to_be_cut_waits_longer_than_for_a_path() {
    let mut b = two(GroupConfig { no_path_timeout_ms: 50, ..GroupConfig::new("disk") });
    let tag = b.submit(WRITE(0, 64));
    let io = b.devices[0].only();
    b.devices[1].set_live(limited(32));
    b.devices[1].set_health(Health::Ready);
    b.turns(2);
    b.devices[0].suspect(io, Fate::NotSent);
    b.devices[0].set_health(Health::Down);
    b.pass(500);
    assert_eq!(b.outcome(tag), None, "a path is there");
    b.devices[0].complete(io, Code::PathLost, BOUND);
    b.turn();
    assert_eq!(b.devices[1].in_flight().len(), 2, "in the turn in which it may be cut");
    b.devices[1].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}

/// Without fencing a piece begins beside an attempt of the one before: what comes of that is not taken for its own outcome.
#[test]
fn without_fencing_what_is_told_late_of_a_piece_is_not_told_of_the_next() {
    let mut b = two(GroupConfig { fencing: Fencing::Off, ..GroupConfig::new("disk") });
    b.devices[0].set_live(limited(32));
    b.turns(2);
    let tag = b.submit(WRITE(0, 64));
    let [one, two] = b.devices[0].in_flight()[..] else { panic!("two parts") };
    b.devices[0].succeed(two);
    b.devices[0].set_live(limited(8));
    b.devices[1].set_live(limited(8));
    b.devices[1].set_health(Health::Ready);
    b.turns(2);
    b.devices[0].suspect(one, Fate::Unknown);
    b.devices[0].set_health(Health::Down);
    b.turn();
    for lba in [0, 8, 16, 24] {
        let piece = b.devices[1].only();
        assert_eq!((piece.lba, piece.blocks), (lba, 8));
        if lba == 8 {
            b.devices[0].succeed(one);
            b.turns(2);
            assert_eq!(b.devices[1].in_flight(), [piece], "it is not done");
        }
        b.devices[1].succeed(piece);
        b.turn();
    }
    b.turn();
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}
