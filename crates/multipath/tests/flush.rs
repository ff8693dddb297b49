//! A flush reaches every cache that holds something, or says that it could not.

use crate::common::{BLOCKS, Setup, ms};
use polypath_block::{Code, Flags, Io, Op, SegSpan};
use polypath_multipath::{EventKind, GroupConfig};
use polypath_sim::{Guest, Mix, run};

/// Two paths, each with a volatile cache of its own.
fn two_caches(seed: u64) -> Setup {
    Setup::new(seed, 2, GroupConfig::new("disk"), |i, o| {
        o.write_cache = true;
        o.cache_domain = format!("controller {i}");
    })
}

const WRITES: Mix = Mix { read: 0, flush: 0, zero: 10, fua: 0, most_blocks: 4, depth: 32 };

fn quiesce(t: &Setup, guest: &mut Guest) {
    guest.set_submitting(false);
    t.run(guest, ms(10));
    assert_eq!(guest.in_flight(), 0);
}

fn flush(t: &Setup, guest: &mut Guest) -> Option<Code> {
    let failed = guest.failed.len();
    let done = guest.completed;
    assert!(guest.submit(Io::flush(0)));
    t.run(guest, ms(10));
    assert_eq!(guest.completed, done + 1, "the flush completed");
    guest.failed.get(failed).map(|f| f.1.code)
}

fn lose_power(t: &Setup) {
    for path in &t.paths {
        let cache = path.cache();
        t.world.with_disk(|d| d.lose_cache(cache));
    }
}

#[test]
fn what_was_flushed_survives_the_loss_of_every_cache() {
    for seed in 0..20 {
        let t = two_caches(seed);
        let mut guest = t.guest(WRITES, 0);
        t.run(&mut guest, ms(3));
        quiesce(&t, &mut guest);
        assert_eq!(flush(&t, &mut guest), None);
        lose_power(&t);
        t.finish_clean(&mut guest);
    }
}

#[test]
fn what_was_not_flushed_does_not() {
    let t = two_caches(1);
    let mut guest = t.guest(WRITES, 0);
    t.run(&mut guest, ms(3));
    quiesce(&t, &mut guest);
    lose_power(&t);
    t.settle(&mut guest);
    assert!(!guest.violations.is_empty(), "the test above would prove nothing");
}

#[test]
fn a_flush_covers_what_other_reactors_wrote() {
    let t = two_caches(2);
    let (mut a, mut b) = (t.guest(WRITES, 0), t.guest(Mix { depth: 1, ..WRITES }, 1));
    b.set_submitting(false);
    run(&t.world, &mut [&mut a, &mut b], ms(3));
    quiesce(&t, &mut a);
    assert_eq!(flush(&t, &mut b), None);
    lose_power(&t);
    b.finish(ms(100));
    t.finish_clean(&mut a);
}

#[test]
fn writes_with_force_unit_access_need_no_flush() {
    let t = two_caches(2);
    let mut guest = t.guest(WRITES, 0);
    quiesce(&t, &mut guest);
    assert_eq!(flush(&t, &mut guest), None);
    for lba in 0..20 {
        assert!(guest.submit(Io::write(0, lba, 1, SegSpan::EMPTY).with_flags(Flags::FUA)));
    }
    t.run(&mut guest, ms(5));
    t.paths[1].give_up("gone");
    t.run(&mut guest, ms(5));
    assert_eq!(flush(&t, &mut guest), None, "nothing was lost with the cache");
    t.finish_clean(&mut guest);
}

#[test]
fn a_dirty_cache_that_is_gone_for_good_fails_one_flush() {
    let t = two_caches(3);
    let mut guest = t.guest(WRITES, 0);
    t.run(&mut guest, ms(3));
    quiesce(&t, &mut guest);
    t.paths[1].give_up("controller burnt down");
    t.run(&mut guest, ms(5));
    assert!(t.kinds().iter().any(|k| matches!(k, EventKind::CacheLost { domain } if domain == "controller 1")));
    assert_eq!(flush(&t, &mut guest), Some(Code::CacheLost));
    assert_eq!(flush(&t, &mut guest), None, "reported once");
}

#[test]
fn a_flush_waits_for_a_cache_that_may_come_back() {
    let t = two_caches(4);
    let mut guest = t.guest(WRITES, 0);
    t.run(&mut guest, ms(3));
    quiesce(&t, &mut guest);
    t.paths[1].set_refusing(true);
    t.paths[1].reset();
    t.run(&mut guest, ms(10));
    let done = guest.completed;
    assert!(guest.submit(Io::flush(0)));
    t.run(&mut guest, ms(1000));
    assert_eq!(guest.completed, done, "one of its caches cannot be reached");
    t.paths[1].set_refusing(false);
    t.run(&mut guest, ms(500));
    assert_eq!(guest.completed, done + 1);
    lose_power(&t);
    t.finish_clean(&mut guest);
}

#[test]
fn one_cache_behind_many_paths_is_flushed_through_any() {
    let t = Setup::new(5, 3, GroupConfig::new("disk"), |_, o| o.write_cache = true);
    let mut guest = t.guest(WRITES, 0);
    t.run(&mut guest, ms(3));
    quiesce(&t, &mut guest);
    t.paths[0].give_up("gone");
    t.paths[1].give_up("gone");
    t.run(&mut guest, ms(5));
    assert_eq!(flush(&t, &mut guest), None);
    lose_power(&t);
    t.finish_clean(&mut guest);
}

#[test]
fn a_removed_path_leaves_a_clean_cache_behind() {
    let t = two_caches(6);
    let mut guest = t.guest(WRITES, 0);
    t.run(&mut guest, ms(3));
    t.group.remove_path(t.ids[1]).expect("there");
    t.run(&mut guest, ms(20));
    assert_eq!(t.group.paths().len(), 1);
    quiesce(&t, &mut guest);
    assert_eq!(flush(&t, &mut guest), None, "the removal flushed it");
    lose_power(&t);
    t.finish_clean(&mut guest);
}

#[test]
fn flushes_among_writes_keep_their_promise() {
    // Every write that completed before a flush began is on the medium when the flush has completed.
    for seed in 0..10 {
        let t = two_caches(seed);
        let mut guest = t.guest(WRITES, 0);
        for round in 0..10 {
            t.run(&mut guest, ms(1));
            if round == 5 {
                t.paths[0].reset();
            }
            quiesce(&t, guest_or_wait(&t, &mut guest));
            assert_eq!(flush(&t, &mut guest), None);
            let durable = t.world.with_disk(|d| (0..BLOCKS).all(|lba| d.block(lba) == d.durable_block(lba)));
            assert!(durable, "seed {seed} round {round}");
            guest.set_submitting(true);
        }
        t.finish_clean(&mut guest);
    }
}

/// Lets fences pass, so that nothing is in flight.
fn guest_or_wait<'a>(t: &Setup, guest: &'a mut Guest) -> &'a mut Guest {
    guest.set_submitting(false);
    while guest.in_flight() > 0 {
        t.run(guest, ms(50));
    }
    t.run(guest, ms(400));
    guest
}

#[test]
fn a_flush_of_a_device_without_cache_is_free() {
    let t = Setup::plain(1, 2);
    let mut guest = t.guest(WRITES, 0);
    t.run(&mut guest, ms(3));
    quiesce(&t, &mut guest);
    let sent = t.stats(0).ios + t.stats(1).ios;
    assert_eq!(flush(&t, &mut guest), None);
    assert_eq!(t.stats(0).ios + t.stats(1).ios, sent);
    assert!(guest.failed.iter().all(|f| f.0 != Op::Flush));
}

/// The target behind path `i` loses power: its cache is gone, its connection is reset, and it comes back with another count.
fn power_cycle(t: &Setup, i: usize, count: u32) {
    let cache = t.paths[i].cache();
    t.world.with_disk(|d| d.lose_cache(cache));
    t.paths[i].edit(|o| {
        let place = o.cache_domain.split('#').next().unwrap_or_default().to_owned();
        o.cache_domain = format!("{place}#{count}");
    });
    t.paths[i].reset();
}

fn same_cache(seed: u64, paths: usize) -> Setup {
    Setup::new(seed, paths, GroupConfig::new("disk"), |_, o| {
        o.write_cache = true;
        o.cache_domain = "subsystem#1".into();
    })
}

#[test]
fn a_target_that_lost_power_fails_one_flush_whatever_the_order_in_which_its_paths_return() {
    for (paths, first_back, waiting) in
        [(1, 0, false), (1, 0, true), (2, 0, false), (2, 1, false), (2, 0, true), (2, 1, true)]
    {
        let t = same_cache(5, paths);
        let mut guest = t.guest(WRITES, 0);
        t.run(&mut guest, ms(3));
        quiesce(&t, &mut guest);
        t.paths.iter().for_each(|p| p.set_refusing(true));
        (0..paths).for_each(|i| power_cycle(&t, i, 2));
        t.run(&mut guest, ms(20));
        let case = format!("{paths} paths, {first_back} first, flush waiting: {waiting}");
        if waiting {
            assert!(guest.submit(Io::flush(0)));
        }
        t.run(&mut guest, ms(500));
        assert_eq!(guest.failed.len(), 0, "{case}: the cache may come back as it was");
        t.paths[first_back].set_refusing(false);
        t.run(&mut guest, ms(500));
        if !waiting {
            assert!(guest.submit(Io::flush(0)));
            t.run(&mut guest, ms(10));
        }
        assert_eq!(guest.failed.len(), 1, "{case}: one path is enough to know");
        t.paths.iter().for_each(|p| p.set_refusing(false));
        t.run(&mut guest, ms(500));
        let codes: Vec<_> = guest.failed.iter().map(|f| (f.0, f.1.code)).collect();
        assert_eq!(codes, [(Op::Flush, Code::CacheLost)], "{case}");
        let lost = t.kinds().iter().filter(|k| matches!(k, EventKind::CacheLost { .. })).count();
        assert_eq!(lost, 1, "{case}");
        assert_eq!(flush(&t, &mut guest), None, "{case}: reported once");
        guest.failed.clear();
        t.settle(&mut guest);
        assert!(!guest.violations.is_empty(), "{case}: nothing was lost, the test proves nothing");
    }
}

#[test]
fn whatever_is_lost_with_the_power_is_reported_by_a_flush() {
    let mut reported = 0;
    for seed in polypath_sim::seeds(300, 60) {
        let paths = 1 + (seed % 3) as usize;
        let t = if seed % 2 == 0 { same_cache(seed, paths) } else { two_caches(seed) };
        let mix = Mix { read: 10, flush: 3, zero: 10, fua: 5, most_blocks: 4, depth: 24 };
        let (mut a, mut b) = (t.guest(mix, 0), t.guest(mix, 1));
        for round in 2..4 {
            run(&t.world, &mut [&mut a, &mut b], ms(2 + seed % 5));
            // Both reactors are busy when it happens, and go on.
            match seed % 2 {
                0 => (0..paths).for_each(|i| power_cycle(&t, i, round)),
                _ => power_cycle(&t, (seed / 2) as usize % 2, round),
            }
            run(&t.world, &mut [&mut a, &mut b], ms(1));
            a.set_submitting(false);
            b.set_submitting(false);
            run(&t.world, &mut [&mut a, &mut b], ms(3_000));
            a.set_submitting(true);
            b.set_submitting(true);
        }
        a.set_submitting(false);
        b.set_submitting(false);
        run(&t.world, &mut [&mut a, &mut b], ms(5_000));
        assert_eq!(a.in_flight() + b.in_flight(), 0, "seed {seed}");
        flush(&t, &mut a);
        let failed: Vec<_> = a.failed.drain(..).chain(b.failed.drain(..)).collect();
        assert!(failed.iter().all(|f| (f.0, f.1.code) == (Op::Flush, Code::CacheLost)), "seed {seed}: {failed:?}");
        assert_eq!(flush(&t, &mut a), None, "seed {seed}: all was reported");
        b.finish(ms(60_000));
        t.settle(&mut a);
        let lost: Vec<_> = a.violations.iter().chain(&b.violations).collect();
        assert!(lost.is_empty() || !failed.is_empty(), "seed {seed}: {} and no flush said so", lost[0]);
        reported += usize::from(!lost.is_empty());
    }
    assert!(reported > 10, "only {reported} runs lost anything");
}
