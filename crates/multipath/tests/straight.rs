//! The straight line: reads and writes that go to a path as they are, and what leaves it.

use crate::common::scripted::{BOUND, Bench, info, limited, read_only, segments};
use polypath_block::{Code, Fate, Flags, Health, Io, Op, Proof, RefusedWhy, Rest, SegSpan};
use polypath_multipath::{Fencing, GroupConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const fn read(tag: u64, lba: u64) -> Io {
    Io::read(tag, lba, 1, SegSpan::EMPTY)
}

const fn write(tag: u64, lba: u64) -> Io {
    Io::write(tag, lba, 1, SegSpan::EMPTY)
}

/// A group with `paths` paths to cache "a", of which nothing is unusual any more: its first request is behind it.
fn calm(paths: usize) -> Bench {
    calm_with(GroupConfig::new("disk"), paths)
}

fn calm_with(config: GroupConfig, paths: usize) -> Bench {
    let mut b = Bench::new(config, (0..paths).map(|_| info("a")).collect());
    b.submit_all(&[read(0, 0)]).unwrap();
    succeed(&mut b);
    assert_eq!(b.take_done(), [(0, Code::Ok)]);
    b.turn();
    b
}

/// Everything in flight succeeds.
fn succeed(b: &mut Bench) {
    b.kick();
    b.devices.iter().for_each(|d| d.succeed_all());
    b.turn();
}

/// What has completed, by tag.
fn done(b: &mut Bench) -> Vec<(u64, Code)> {
    let mut done = b.take_done();
    done.sort_unstable_by_key(|&(tag, _)| tag);
    done
}

/// Tags of what is in flight on a path.
fn tags(b: &Bench, at: usize) -> Vec<u64> {
    b.devices[at].in_flight().iter().map(|io| io.tag).collect()
}

#[test]
fn requests_on_the_line_keep_their_tags_and_go_in_one_piece() {
    let mut b = calm(1);
    let batch: Vec<_> = (0..32).map(|n| if n % 2 == 0 { read(n, n) } else { write(n, n) }).collect();
    b.submit_all(&batch).unwrap();
    assert_eq!(tags(&b, 0), (0..32).collect::<Vec<_>>());
    succeed(&mut b);
    assert_eq!(done(&mut b), (0..32).map(|n| (n, Code::Ok)).collect::<Vec<_>>());
    b.finish();
}

#[test]
fn whatever_tags_a_requester_has_each_request_completes_once_with_its_own() {
    let mut b = calm(2);
    // The same place in the table, the tags of tasks, and the same tag twice: a queue gives it no meaning.
    let odd = [7, 7 + 128, 7 + 256, 1 << 63, 1 << 63 | 7, u64::MAX, 7, 1 << 40 | 7];
    for round in 0..20 {
        let batch: Vec<_> = odd.iter().map(|&tag| if round % 2 == 0 { read(tag, 1) } else { write(tag, 1) }).collect();
        b.submit_all(&batch).unwrap();
        assert_eq!(tags(&b, 0).len() + tags(&b, 1).len(), odd.len());
        b.kick();
        // Those that failed come back from the other path.
        for io in b.devices[0].in_flight() {
            b.devices[0].complete(io, if round % 3 == 0 { Code::PathBusy } else { Code::Ok }, Proof::Answered);
        }
        b.devices[1].succeed_all();
        let mut all = Vec::new();
        for _ in 0..4 {
            b.pass(200);
            all.extend(b.take_done());
            b.devices.iter().for_each(|d| d.succeed_all());
        }
        all.sort_unstable_by_key(|&(tag, _)| tag);
        let mut want: Vec<_> = odd.iter().map(|&tag| (tag, Code::Ok)).collect();
        want.sort_unstable_by_key(|&(tag, _)| tag);
        assert_eq!(all, want, "round {round}");
        b.pass(1000);
    }
    b.finish();
}

#[test]
fn a_batch_is_taken_to_the_depth_of_the_queue_and_no_further() {
    let mut b = calm(2);
    let batch: Vec<_> = (0..70).map(|n| read(n, n)).collect();
    assert_eq!(b.submit_all(&batch), Err(Rest { taken: 64, why: RefusedWhy::Full }));
    assert_eq!((tags(&b, 0).len(), tags(&b, 1).len()), (32, 32), "shared out");
    b.kick();
    b.devices[0].succeed(b.devices[0].in_flight()[0]);
    b.turn();
    assert_eq!(b.submit_all(&batch[64..]), Err(Rest { taken: 1, why: RefusedWhy::Full }));
    succeed(&mut b);
    assert_eq!(done(&mut b).len(), 65);
    b.close_queue();
    assert_eq!(b.submit_all(&batch), Err(Rest { taken: 0, why: RefusedWhy::Gone }));
    b.finish();
}

#[test]
fn what_a_path_does_not_take_of_a_batch_goes_to_another_or_waits_in_its_order() {
    let mut b = calm(2);
    b.devices[0].set_room(3);
    b.submit_all(&(0..20).map(|n| read(n, n)).collect::<Vec<_>>()).unwrap();
    let lbas = |b: &Bench, at: usize| b.devices[at].in_flight().iter().map(|io| io.lba).collect::<Vec<_>>();
    assert_eq!(lbas(&b, 0).len(), 3, "as much as there is room for");
    assert_eq!(lbas(&b, 1).len(), 17, "the rest elsewhere");
    succeed(&mut b);
    assert_eq!(done(&mut b), (0..20).map(|n| (n, Code::Ok)).collect::<Vec<_>>());
    // Nowhere else: in the order in which they were made, and those that come later behind them.
    b.devices[1].set_room(2);
    b.submit_all(&(0..20).map(|n| read(n, n)).collect::<Vec<_>>()).unwrap();
    b.submit_all(&(20..30).map(|n| read(n, n)).collect::<Vec<_>>()).unwrap();
    let mut order = Vec::new();
    for _ in 0..10 {
        order.extend(lbas(&b, 0).into_iter().chain(lbas(&b, 1)));
        succeed(&mut b);
    }
    let later = order.iter().skip(13).copied().collect::<Vec<_>>();
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..30).collect::<Vec<_>>());
    assert!(later.iter().all(|&lba| lba > 9), "{order:?}");
    assert_eq!(done(&mut b).len(), 30);
    b.finish();
}

#[test]
fn nothing_goes_to_a_path_whose_device_has_changed_or_whose_way_is_down() {
    let mut b = calm(2);
    b.devices[0].touch();
    b.submit_all(&(0..8).map(|n| read(n, n)).collect::<Vec<_>>()).unwrap();
    assert_eq!((tags(&b, 0).len(), tags(&b, 1).len()), (0, 8));
    succeed(&mut b);
    b.turns(2);
    b.devices[1].set_health(Health::Down);
    b.submit_all(&(8..16).map(|n| read(n, n)).collect::<Vec<_>>()).unwrap();
    assert_eq!((tags(&b, 0).len(), tags(&b, 1).len()), (8, 0));
    succeed(&mut b);
    assert_eq!(done(&mut b).len(), 16);
    b.finish();
}

#[test]
fn unusual_requests_in_a_batch_cost_only_themselves() {
    let mut b = calm(1);
    let batch = [
        read(1, 0),
        Io { op: Op::Flush, blocks: 0, ..read(2, 0) },
        read(3, 1000),
        Io { blocks: 0, ..read(4, 0) },
        Io { lba: u64::MAX, ..read(5, 0) },
        write(6, 999).with_flags(Flags::FUA),
        Io { op: Op::WriteZeroes, ..read(7, 3) },
        Io { blocks: 1001, ..read(8, 0) },
        write(9, 999),
    ];
    b.submit_all(&batch).unwrap();
    succeed(&mut b);
    b.turn();
    let bad = |code| move |tag| (tag, code);
    let mut want: Vec<_> = [1, 2, 6, 7, 9].map(bad(Code::Ok)).to_vec();
    want.extend([3, 5, 8].map(bad(Code::OutOfRange)));
    want.push((4, Code::Invalid));
    want.sort_unstable_by_key(|&(tag, _)| tag);
    assert_eq!(done(&mut b), want);
    assert_eq!(b.devices[0].taken().iter().filter(|io| io.lba > 999).count(), 0, "nothing beyond the disk was sent");
    b.finish();
}

#[test]
fn a_request_that_is_too_large_for_a_path_is_cut_for_it() {
    let mut b = Bench::new(GroupConfig::new("disk"), vec![info("a"), limited(4)]);
    b.submit_all(&[read(0, 0)]).unwrap();
    succeed(&mut b);
    b.turn();
    b.devices[0].set_health(Health::Down);
    b.turns(2);
    b.submit_all(&[read(1, 0), Io { blocks: 8, ..read(2, 0) }, Io { blocks: 4, ..read(3, 0) }]).unwrap();
    b.kick();
    let mut blocks: Vec<_> = b.devices[1].in_flight().iter().map(|io| io.blocks).collect();
    blocks.sort_unstable();
    assert_eq!(blocks, [1, 4, 4, 4]);
    succeed(&mut b);
    b.turn();
    assert_eq!(done(&mut b), [0, 1, 2, 3].map(|tag| (tag, Code::Ok)));
    b.finish();
}

#[test]
fn a_path_that_turned_out_to_take_nothing_is_not_asked_again_in_that_turn() {
    let mut b = calm(2);
    // Nobody has looked at what it shows now.
    b.devices[0].touch();
    b.submit_all(&[write(5, 5), write(6, 6)]).unwrap();
    let asked = Arc::new(AtomicBool::new(false));
    let tells = asked.clone();
    b.devices[0].on_next_version(move || tells.store(true, Ordering::Relaxed));
    b.submit_all(&[write(7, 7), write(8, 8)]).unwrap();
    assert!(!asked.load(Ordering::Relaxed), "it is asked for its version again");
    assert_eq!((b.devices[0].in_flight().len(), b.devices[1].in_flight().len()), (0, 4));
    succeed(&mut b);
    b.finish();
}

/// Whoever becomes suspect is so before it completes, also when both are said at once.
#[test]
fn a_request_that_becomes_suspect_and_completes_in_one_poll_was_suspect() {
    let mut b = calm(1);
    b.submit_all(&[write(5, 5)]).unwrap();
    b.kick();
    let io = b.devices[0].only();
    b.devices[0].suspect(io, Fate::Unknown);
    b.devices[0].succeed(io);
    b.turns(2);
    assert_eq!((b.take_done(), b.stats(0).suspected), (vec![(5, Code::Ok)], 1));
    b.finish();
}

#[test]
fn a_write_that_becomes_suspect_on_the_line_is_sent_again_when_it_is_quiet_and_told_once() {
    let mut b = calm(2);
    b.submit_all(&[write(5, 5), write(6, 6)]).unwrap();
    b.kick();
    let (first, other) = (b.devices[0].only(), b.devices[1].only());
    b.devices[0].suspect(first, Fate::Unknown);
    b.turn();
    // The requester's tag is taken until all of it is over. Another request may have it all the same.
    b.submit_all(&[write(first.tag, 9)]).unwrap();
    b.kick();
    b.devices[1].succeed(other);
    for io in b.devices.iter().flat_map(|d| d.in_flight()).filter(|io| io.lba == 9).collect::<Vec<_>>() {
        let at = (0..2).find(|&at| b.devices[at].in_flight().contains(&io)).unwrap();
        b.devices[at].succeed(io);
    }
    b.turn();
    assert_eq!(b.take_done().len(), 2, "the other one, and the one with the same tag");
    assert!(b.devices.iter().all(|d| d.in_flight().is_empty()), "it waits for its fence");
    b.devices[0].complete(first, Code::PathLost, BOUND);
    b.turn();
    b.turn();
    let again = (0..2).flat_map(|at| b.devices[at].in_flight()).collect::<Vec<_>>();
    assert_eq!(again.iter().map(|io| io.lba).collect::<Vec<_>>(), [first.lba]);
    succeed(&mut b);
    assert_eq!(b.take_done(), [(first.tag, Code::Ok)]);
    assert_eq!(b.stats(0).suspected, 1);
    b.finish();
}

#[test]
fn without_fencing_a_late_completion_finds_nobody_to_answer() {
    let mut b = calm_with(GroupConfig { fencing: Fencing::Off, ..GroupConfig::new("disk") }, 2);
    b.submit_all(&[write(5, 5)]).unwrap();
    b.kick();
    let at = (0..2).find(|&at| !tags(&b, at).is_empty()).unwrap();
    let late = b.devices[at].only();
    b.devices[at].suspect(late, Fate::Unknown);
    b.turn();
    b.devices[1 - at].succeed(b.devices[1 - at].only());
    b.turn();
    assert_eq!(b.take_done(), [(5, Code::Ok)]);
    // The same tag again, while the first one is still out there: a request of its own.
    b.submit_all(&[write(5, 6)]).unwrap();
    b.kick();
    b.devices[at].complete(late, Code::Ok, BOUND);
    b.turn();
    assert_eq!(b.take_done(), []);
    succeed(&mut b);
    assert_eq!(b.take_done(), [(5, Code::Ok)]);
    b.submit_all(&[write(5, 7)]).unwrap();
    succeed(&mut b);
    assert_eq!(b.take_done(), [(5, Code::Ok)]);
    b.finish();
}

#[test]
fn a_path_that_says_what_it_was_not_asked_changes_nothing() {
    let mut b = calm(2);
    b.submit_all(&[read(3, 3)]).unwrap();
    b.kick();
    let at = (0..2).find(|&at| !tags(&b, at).is_empty()).unwrap();
    let io = b.devices[at].only();
    // A tag that nobody has, one of a request that is over, and one that the other path has.
    b.devices[1 - at].say(io.tag);
    b.devices[at].say(0);
    b.devices[at].say(77);
    b.turn();
    assert_eq!(b.take_done(), []);
    b.devices[at].succeed(io);
    b.turn();
    b.devices[at].say(io.tag);
    b.turn();
    assert_eq!(b.take_done(), [(3, Code::Ok)]);
    assert_eq!((b.stats(0).in_flight, b.stats(1).in_flight), (0, 0));
    b.finish();
}

#[test]
fn writes_on_the_line_are_flushed_and_those_with_fua_and_reads_are_not() {
    for (request, dirty) in [(write(1, 1), true), (write(1, 1).with_flags(Flags::FUA), false), (read(1, 1), false)] {
        let mut b = calm(1);
        assert_eq!(b.flush_now(), Some(Code::Ok), "what may have been there before");
        b.take_done();
        b.submit_all(&[request]).unwrap();
        succeed(&mut b);
        assert_eq!(b.take_done(), [(1, Code::Ok)]);
        let before = b.devices[0].taken().len();
        assert_eq!(b.flush_now(), Some(Code::Ok));
        assert_eq!(b.devices[0].taken().len() - before, usize::from(dirty), "{request:?}");
        b.finish();
    }
}

#[test]
fn the_numbers_of_a_path_are_those_of_all_its_requests() {
    let mut b = calm(1);
    let before = b.stats(0);
    b.submit_all(&(0..8).map(|n| write(n, n)).collect::<Vec<_>>()).unwrap();
    b.kick();
    b.turn();
    assert_eq!(b.stats(0).in_flight, 8);
    b.devices[0].complete(b.devices[0].in_flight()[3], Code::Medium, Proof::Answered);
    succeed(&mut b);
    let now = b.stats(0);
    assert_eq!((now.ios - before.ios, now.bytes - before.bytes, now.errors, now.in_flight), (7, 7 * 512, 1, 0));
    assert!(now.latency > std::time::Duration::ZERO);
    b.finish();
}

/// A request that ends as soon as it comes back from its path is open until then.
#[test]
fn what_comes_back_from_a_path_and_has_no_time_left_is_counted_once() {
    let mut b = calm_with(GroupConfig { no_path_timeout_ms: 0, ..GroupConfig::new("disk") }, 1);
    b.devices[0].touch();
    b.submit_all(&[read(1, 1), write(2, 2)]).unwrap();
    b.turns(2);
    assert_eq!(done(&mut b), [(1, Code::NoPath), (2, Code::NoPath)]);
    b.finish();
}

/// The same, of a group that another thread closes between the look at it and the hand over.
#[test]
fn a_group_that_closes_while_a_batch_is_handed_over_answers_it_once() {
    let mut b = calm(1);
    let group = b.group.clone();
    b.devices[0].on_next_version(move || polypath_block::Device::close(&*group));
    b.submit_all(&[read(1, 1), write(2, 2)]).unwrap();
    b.turns(2);
    assert_eq!(done(&mut b), [(1, Code::Gone), (2, Code::Gone)]);
    b.finish();
}

/// What has left the line belongs to the path that has it: another one that names its tag says nothing of it.
#[test]
fn a_path_says_nothing_of_what_another_one_has_under_a_fence() {
    let mut b = calm(2);
    b.submit_all(&[write(5, 5)]).unwrap();
    b.kick();
    let at = (0..2).find(|&at| !tags(&b, at).is_empty()).unwrap();
    let io = b.devices[at].only();
    b.devices[at].suspect(io, Fate::Unknown);
    b.turn();
    b.devices[1 - at].say(5);
    b.turns(2);
    assert_eq!(b.take_done(), [], "nobody has carried it out");
    b.devices[at].complete(io, Code::PathLost, BOUND);
    b.turns(2);
    assert_eq!(b.stats(at).suspects, 0);
    for _ in 0..3 {
        succeed(&mut b);
    }
    assert_eq!(b.take_done(), [(5, Code::Ok)]);
    b.finish();
}

/// Whatever became of a request, the next one of its tag goes straight to a path again.
#[test]
fn the_place_of_a_request_that_left_the_line_is_free_when_it_is_over() {
    let mut b = calm(1);
    let batch = [write(1, 1), write(2, 2)];
    let go = |b: &mut Bench, leave: &dyn Fn(&mut Bench)| {
        b.submit_all(&batch).unwrap();
        leave(b);
        b.devices[0].set_room(64);
        for _ in 0..4 {
            b.pass(200);
            succeed(b);
        }
        assert_eq!(done(b), [(1, Code::Ok), (2, Code::Ok)]);
        b.pass(1000);
        b.submit_all(&batch).unwrap();
        assert_eq!(tags(b, 0), [1, 2]);
        succeed(b);
        assert_eq!(done(b), [(1, Code::Ok), (2, Code::Ok)]);
    };
    b.devices[0].set_room(1);
    go(&mut b, &|_| {});
    go(&mut b, &|b| {
        b.devices[0].in_flight().into_iter().for_each(|io| b.devices[0].complete(io, Code::PathBusy, Proof::Answered))
    });
    go(&mut b, &|b| {
        let first = b.devices[0].in_flight()[0];
        b.devices[0].suspect(first, Fate::NotSent);
        b.turn();
        b.devices[0].complete(first, Code::PathLost, BOUND);
    });
    b.finish();
}

/// The cache that a write of the same tag went to before, or was to go to, is none of its own.
#[test]
fn a_write_where_there_is_no_cache_any_more_leaves_nothing_to_flush() {
    for full in [false, true] {
        let mut b = calm(1);
        b.devices[0].set_room(usize::from(!full));
        b.submit_all(&[write(1, 1)]).unwrap();
        b.devices[0].set_room(64);
        b.turn();
        succeed(&mut b);
        assert_eq!(done(&mut b), [(1, Code::Ok)]);
        assert_eq!(b.flush_now(), Some(Code::Ok));
        b.take_done();
        let mut shows = info("a");
        shows.limits.write_cache = false;
        b.devices[0].set_live(shows);
        b.turns(3);
        b.submit_all(&[write(1, 1)]).unwrap();
        assert_eq!(tags(&b, 0), [1]);
        succeed(&mut b);
        assert_eq!(done(&mut b), [(1, Code::Ok)]);
        let before = b.devices[0].taken().len();
        assert_eq!(b.flush_now(), Some(Code::Ok));
        assert_eq!(b.devices[0].taken().len(), before, "full {full}");
        b.finish();
    }
}

#[test]
fn the_line_is_not_opened_again_by_news_of_a_queue_that_is_closed() {
    let mut b = calm(1);
    b.submit_all(&[read(1, 1)]).unwrap();
    b.close_queue();
    b.devices[0].touch();
    b.turns(3);
    assert_eq!(b.submit_all(&[read(2, 2)]), Err(Rest { taken: 0, why: RefusedWhy::Gone }));
    succeed(&mut b);
    assert_eq!(b.take_done(), [(1, Code::Ok)]);
    b.finish();
}

#[test]
fn no_write_is_sent_to_a_disk_that_takes_no_changes() {
    let mut b = Bench::new(GroupConfig::new("disk"), vec![read_only("a")]);
    b.submit_all(&[read(0, 0)]).unwrap();
    succeed(&mut b);
    b.turn();
    b.submit_all(&[write(1, 1), read(2, 2), write(3, 3).with_flags(Flags::FUA)]).unwrap();
    assert_eq!(tags(&b, 0), [2]);
    succeed(&mut b);
    assert_eq!(done(&mut b), [(0, Code::Ok), (1, Code::WriteProtected), (2, Code::Ok), (3, Code::WriteProtected)]);
    b.finish();
}

/// What a write went to is known of it also when it has left the line.
#[test]
fn a_suspect_write_that_is_acknowledged_after_a_loss_of_power_is_lost() {
    let mut b = Bench::with_caches(&["c#1"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.take_done();
    b.submit_all(&[write(5, 5)]).unwrap();
    b.kick();
    assert_eq!(tags(&b, 0), [5]);
    let io = b.devices[0].only();
    b.devices[0].suspect(io, Fate::Unknown);
    b.turn();
    b.devices[0].set_live(info("c#2"));
    b.turns(2);
    b.devices[0].complete(io, Code::Ok, Proof::Answered);
    b.turn();
    assert_eq!(b.take_done(), [(5, Code::Ok)]);
    assert_eq!(b.flush_now(), Some(Code::CacheLost), "it was in the cache that is gone");
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.finish();
}

#[test]
fn a_path_that_refused_between_two_turns_is_on_the_line_again_after_the_next() {
    let mut b = calm(1);
    b.devices[0].set_health(Health::Down);
    b.submit_all(&[read(1, 1)]).unwrap();
    b.devices[0].set_health(Health::Ready);
    b.turns(2);
    succeed(&mut b);
    assert_eq!(b.take_done(), [(1, Code::Ok)]);
    b.submit_all(&[read(1, 1)]).unwrap();
    assert_eq!(tags(&b, 0), [1]);
    succeed(&mut b);
    b.finish();
}

#[test]
fn a_group_that_is_closed_refuses_before_its_queues_have_heard_of_it() {
    let mut b = calm(1);
    polypath_block::Device::close(&*b.group.clone());
    assert_eq!(b.submit_all(&[read(1, 1)]), Err(Rest { taken: 0, why: RefusedWhy::Gone }));
    b.finish();
}

/// What was answered and not handed out yet still has its place.
#[test]
fn answers_that_wait_to_be_handed_out_count_to_the_depth() {
    let mut b = calm(2);
    let batch: Vec<_> = (0..80).map(|n| read(n, if n < 40 { 5000 } else { n })).collect();
    assert_eq!(b.submit_all(&batch), Err(Rest { taken: 64, why: RefusedWhy::Full }));
    succeed(&mut b);
    assert_eq!(done(&mut b).len(), 64);
    b.finish();
}

/// Whoever waits for room goes first. Something waits for one path, and behind it something that any path would take: what comes then is
/// behind both, also on the path that has room.
#[test]
fn the_line_is_closed_while_anything_waits_for_room() {
    let mut b = calm(2);
    b.cut_segments(8, 64);
    b.devices[1].set_live(segments(4));
    b.turns(3);
    b.devices[0].set_room(0);
    b.submit_all(&[read(1, 1)]).unwrap();
    b.kick();
    b.turns(2);
    assert_eq!((tags(&b, 0), tags(&b, 1)), (vec![], vec![]), "it can be cut for nobody, and waits for the first path");
    b.cut_segments(1, 512);
    let before = b.devices[1].taken().len();
    // A tag like a task's is not for the line.
    b.submit_all(&[read(1 << 63, 2)]).unwrap();
    b.submit_all(&[read(3, 3), read(4, 4)]).unwrap();
    b.kick();
    b.turns(2);
    let order: Vec<u64> = b.devices[1].taken()[before..].iter().map(|io| io.lba).collect();
    assert_eq!(order, [2, 3, 4]);
    b.devices[0].set_room(usize::MAX);
    b.turn();
    succeed(&mut b);
    b.turn();
    succeed(&mut b);
    assert_eq!(done(&mut b), [(1, Code::Ok), (3, Code::Ok), (4, Code::Ok), (1 << 63, Code::Ok)]);
    b.finish();
}
