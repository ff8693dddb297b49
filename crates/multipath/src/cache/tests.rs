//! Epochs, losses and doubts, one after the other and at the same time.

use super::*;

/// The user of one queue, who has each answer at once.
trait User {
    fn begin(&self) -> Began;
    /// The flush ends: is it a failure?
    fn fails(&self, began: Began) -> bool;
    /// It was answered: does it succeed?
    fn cleaned(&self, flush: FlushTarget) -> bool;
    /// Does a flush fail that begins now?
    fn take_lost(&self) -> bool;
}

impl User for Caches {
    fn begin(&self) -> Began {
        Began { epoch: self.begin_flush(), told: self.told() }
    }
    fn fails(&self, began: Began) -> bool {
        let fails = self.has_untold_loss(began);
        if fails {
            self.set_told(self.tells(began));
        }
        fails
    }
    fn cleaned(&self, flush: FlushTarget) -> bool {
        self.mark_clean(flush);
        !self.fails(flush.began)
    }
    fn take_lost(&self) -> bool {
        self.fails(self.begin())
    }
}

fn flush(caches: &Caches, cache: u8) -> FlushTarget {
    FlushTarget { cache, began: caches.begin() }
}

#[test]
fn only_a_flush_begun_after_the_write_cleans() {
    let c = Caches::new();
    c.join(3, false);
    assert_eq!(c.dirty_mask(), 0);
    let early = flush(&c, 3);
    c.mark_dirty(c.send_to(3));
    assert!(c.cleaned(early));
    assert_eq!(c.dirty_mask(), 1 << 3, "a write after the flush began is still dirty");
    assert!(c.is_dirty(3) && !c.is_dirty(2) && !c.is_dirty(4));
    let (one, two) = (flush(&c, 3), flush(&c, 3));
    assert_eq!(c.dirty_mask(), 1 << 3, "a flush under way cleans nothing");
    assert!(c.cleaned(two) && c.cleaned(one));
    assert_eq!(c.dirty_mask(), 0);
}

#[test]
fn the_last_path_of_a_dirty_cache_is_reported_once() {
    let c = Caches::new();
    c.join(0, true);
    c.join(0, true);
    assert_eq!(c.dirty_mask(), 1, "a cache of unknown past is flushed once");
    assert!(c.cleaned(flush(&c, 0)));
    c.mark_dirty(c.send_to(0));
    assert!(!c.leave(0) && !c.take_lost());
    assert!(c.leave(0));
    assert!(c.take_lost() && !c.take_lost());
    assert_eq!(c.dirty_mask(), 0);
    c.join(1, true);
    assert!(!c.leave(1), "what was only assumed breaks no promise");
    assert_eq!(c.dirty_mask(), 0, "nothing is left to be flushed");
}

#[test]
fn a_second_path_assumes_nothing_about_a_cache_that_is_in_use() {
    let c = Caches::new();
    c.join(0, true);
    assert!(c.cleaned(flush(&c, 0)));
    c.join(0, true);
    assert_eq!((c.dirty_mask(), c.members(0)), (0, 2));
}

#[test]
fn a_flush_that_outlives_its_cache_knows_whether_it_lost_anything() {
    let c = Caches::new();
    c.join(2, true);
    let waiting = flush(&c, 2);
    assert!(!c.is_unreachable(waiting));
    assert!(!c.leave(2) && c.is_unreachable(waiting) && c.cleaned(waiting), "nothing but an assumption is gone");
    c.join(2, false);
    c.mark_dirty(c.send_to(2));
    let (one, two) = (flush(&c, 2), flush(&c, 2));
    assert!(c.leave(2));
    let later = flush(&c, 2);
    assert!(c.fails(one.began) && c.fails(two.began) && c.fails(later.began), "nobody knew when they began");
    assert!(!c.take_lost(), "they have reported it");
    c.acknowledge(c.mark_dirty(c.send_to(2)));
    assert!(c.take_lost() && !c.take_lost(), "a change that completed as the last path went");
    assert_eq!(c.dirty_mask(), 0, "nobody can flush it");
}

#[test]
fn a_flush_reports_only_what_it_was_to_cover() {
    let c = Caches::new();
    c.join(0, false);
    c.mark_dirty(c.send_to(0));
    let early = flush(&c, 0);
    c.mark_dirty(c.send_to(0));
    assert!(c.leave(0));
    assert!(c.fails(early.began) && c.take_lost(), "the second write is for the next flush to report");
    // Neither does the report of one cache stand for another.
    (0..2).for_each(|i| c.join(i, false));
    c.mark_dirty(c.send_to(0));
    let zero = flush(&c, 0);
    c.mark_dirty(c.send_to(1));
    assert!(c.leave(1) && c.leave(0));
    assert!(c.fails(zero.began) && c.take_lost() && !c.take_lost());
}

#[test]
fn an_answer_from_the_former_owner_of_a_number_says_nothing_about_the_next_one() {
    for i in [0, 5, 63] {
        let c = Caches::new();
        c.join(i, false);
        c.mark_dirty(c.send_to(i));
        let early = flush(&c, i);
        assert!(c.leave(i) && !c.cleaned(early) && !c.take_lost(), "it was to cover everything");
        c.join(i, true);
        c.mark_clean(early);
        assert_eq!(c.dirty_mask(), 1 << i, "unknown past");
        c.mark_clean(flush(&c, i));
        assert_eq!(c.dirty_mask(), 0);
    }
}

#[test]
fn a_loss_is_reported_again_for_a_change_that_was_acknowledged_after_the_report() {
    let c = Caches::new();
    (0..2).for_each(|i| c.join(i, false));
    let unharmed = c.mark_dirty(c.send_to(1));
    let early = Some(c.mark_dirty(c.send_to(0)));
    assert!(c.lose(0) && c.take_lost(), "reported before the change was acknowledged");
    let late = c.mark_dirty(c.send_to(0));
    c.acknowledge(unharmed);
    c.acknowledge(late);
    assert!(!c.take_lost(), "what was written after the loss is there");
    c.acknowledge(c.together(early, Some(late)).unwrap());
    assert!(c.take_lost() && !c.take_lost(), "the first part is gone");
}

#[test]
fn a_change_acknowledged_late_reports_the_loss_of_each_of_its_own_caches_and_of_no_other() {
    for (mine, other) in [(0, 1), (1, 0), (4, 5), (63, 62)] {
        let c = Caches::new();
        [mine, other].iter().for_each(|&i| c.join(i, false));
        let change = c.mark_dirty(c.send_to(mine));
        c.mark_dirty(c.send_to(other));
        assert!(c.lose(other) && c.take_lost());
        c.acknowledge(change);
        assert!(!c.take_lost(), "{mine}: it was never in {other}");
        let parts = c.together(Some(c.mark_dirty(c.send_to(mine))), Some(c.mark_dirty(c.send_to(other))));
        assert!(c.lose(mine) && c.take_lost());
        c.acknowledge(parts.unwrap());
        assert!(c.take_lost() && !c.take_lost(), "{mine}: one of its parts was there");
    }
}

#[test]
fn nothing_makes_up_for_a_loss_of_power() {
    let c = Caches::new();
    (0..2).for_each(|_| c.join(0, false));
    c.join(1, true);
    assert!(!c.lose(0) && !c.lose(1) && c.dirty_mask() == 0, "nothing that this group has promised");
    c.mark_dirty(c.send_to(0));
    let (one, two) = (flush(&c, 0), flush(&c, 0));
    assert!(c.lose(0) && !c.leave(0) && !c.lose(0), "once");
    assert!(c.is_unreachable(one));
    assert!(!c.cleaned(one) && !c.take_lost(), "the answer of the other path is no comfort; this is the report");
    assert!(!c.cleaned(two), "this one was to cover it too");
    let later = flush(&c, 0);
    assert!(!c.is_unreachable(later) && c.cleaned(later));
    c.mark_dirty(c.send_to(0));
    let early = flush(&c, 0);
    c.mark_dirty(c.send_to(0));
    assert!(c.lose(0) && !c.cleaned(early) && c.take_lost() && !c.take_lost());
}

#[test]
fn a_number_that_is_given_again_brings_its_losses_to_light() {
    let c = Caches::new();
    c.join(5, false);
    c.mark_dirty(c.send_to(5));
    let waiting = flush(&c, 5);
    let late = c.mark_dirty(c.send_to(5));
    assert!(c.leave(5) && c.take_lost());
    // A late acknowledgement, and another cache under the same number.
    c.join(5, true);
    c.acknowledge(late);
    assert!(c.take_lost() && !c.take_lost());
    assert!(c.is_unreachable(waiting) && c.fails(waiting.began), "what is there now is not what it was to reach");
    assert_eq!(c.dirty_mask(), 1 << 5, "unknown past");
    assert!(!c.is_unreachable(flush(&c, 5)));
}

/// Two paths, and what was written is flushed.
fn flushed() -> Caches {
    let c = Caches::new();
    (0..2).for_each(|_| c.join(0, false));
    c.mark_dirty(c.send_to(0));
    assert!(c.cleaned(flush(&c, 0)) && c.dirty_mask() == 0);
    c
}

#[test]
fn nothing_cleans_a_cache_in_doubt() {
    let c = flushed();
    let early = flush(&c, 0);
    c.begin_doubt(0);
    assert_eq!(c.dirty_mask(), 1, "who answered the flushes before, too?");
    c.begin_doubt(0);
    c.mark_dirty(c.send_to(0));
    assert!(c.cleaned(early) && c.cleaned(flush(&c, 0)));
    assert!(c.is_awaited(flush(&c, 0)), "nobody knows where that is");
    c.end_doubt(0);
    assert!(c.cleaned(flush(&c, 0)) && c.is_awaited(flush(&c, 0)), "another path shows another disk still");
    let during = flush(&c, 0);
    c.end_doubt(0);
    assert!(c.cleaned(during) && c.is_awaited(flush(&c, 0)), "answered by nobody knows whom");
    assert!(c.cleaned(flush(&c, 0)));
    assert_eq!(c.dirty_mask(), 0);
}

#[test]
fn what_was_clean_before_a_doubt_is_flushed_if_a_path_leads_there_and_awaited_by_nobody() {
    let c = flushed();
    c.begin_doubt(0);
    for _ in 0..2 {
        let owed = flush(&c, 0);
        assert!(c.dirty_mask() == 1 && !c.is_awaited(owed) && c.cleaned(owed));
    }
    c.end_doubt(0);
    assert_eq!(c.dirty_mask(), 1);
    let owed = flush(&c, 0);
    assert!(!c.is_awaited(owed) && c.cleaned(owed) && c.dirty_mask() == 0);
    // It breaks no promise when it goes, and nothing is owed by who comes in its place.
    c.begin_doubt(0);
    assert!(!c.lose(0));
    c.end_doubt(0);
    assert!(!c.leave(0) && !c.leave(0) && c.dirty_mask() == 0);
    c.join(0, false);
    assert_eq!(c.dirty_mask(), 0);
    // What nobody has ever written to is not doubted.
    c.join(1, false);
    c.begin_doubt(1);
    assert_eq!(c.dirty_mask(), 0);
}

#[test]
fn a_flush_waits_no_longer_for_what_another_one_has_cleaned() {
    let c = flushed();
    c.mark_dirty(c.send_to(0));
    let (one, two) = (flush(&c, 0), flush(&c, 0));
    assert!(c.is_awaited(one) && c.cleaned(two));
    c.mark_dirty(c.send_to(0));
    assert!(!c.is_awaited(one), "the second write is not its own");
    assert!(c.is_awaited(flush(&c, 0)));
    c.join(1, true);
    assert!(c.is_awaited(flush(&c, 1)), "unknown past");
}

#[test]
fn what_was_flushed_in_doubt_only_is_lost_with_its_cache() {
    let c = flushed();
    c.mark_dirty(c.send_to(0));
    let early = flush(&c, 0);
    c.begin_doubt(0);
    assert!(c.cleaned(flush(&c, 0)));
    c.end_doubt(0);
    assert!(!c.leave(0) && c.leave(0), "and it held writes");
    assert!(!c.cleaned(early) && !c.take_lost(), "an answer on the way is no comfort either");
}

#[test]
fn whatever_reactors_do_at_a_time_a_flush_is_owed_from_the_beginning_of_a_doubt_until_one_is_believed() {
    for round in 0..300 {
        let c = flushed();
        let early = flush(&c, 0);
        std::thread::scope(|s| {
            let doubt = s.spawn(|| {
                c.begin_doubt(0);
                assert_eq!(c.dirty_mask(), 1, "owed from here on");
                if round % 2 == 0 {
                    c.end_doubt(0);
                }
            });
            s.spawn(|| assert!(c.cleaned(early)));
            let mut owed = false;
            loop {
                let over = doubt.is_finished();
                let now = c.dirty_mask() == 1;
                assert!(now || !owed, "it was owed, and nobody has paid");
                owed = now;
                if over {
                    break assert!(owed);
                }
                std::thread::yield_now();
            }
        });
    }
}

#[test]
fn whatever_reactors_do_at_a_time_no_write_that_is_lost_is_covered_by_a_flush_that_says_ok() {
    // One thread loses the cache; another flushes: one of them, or the flush after, must report it.
    for _ in 0..2000 {
        let c = Caches::new();
        c.join(0, false);
        c.join(1, false);
        c.mark_dirty(c.send_to(0));
        std::thread::scope(|s| {
            s.spawn(|| assert!(c.leave(0)));
            s.spawn(|| {
                let began = c.begin();
                let target = FlushTarget { cache: 0, began };
                if c.dirty_mask() & 1 != 0 {
                    while !c.is_unreachable(target) {
                        std::hint::spin_loop();
                    }
                }
                assert!(c.fails(began), "it was to cover the write, and nothing flushed it");
            });
        });
        assert!(!c.take_lost());
    }
}

#[test]
fn whatever_reactors_do_at_a_time_no_change_is_acknowledged_that_is_lost_and_reported_by_nobody() {
    // One thread loses the cache, another one acknowledges a change and flushes.
    for round in 0..2000 {
        let c = Caches::new();
        c.join(0, false);
        let sent = c.send_to(0);
        std::thread::scope(|s| {
            s.spawn(|| if round % 2 == 0 { c.lose(0) } else { c.leave(0) });
            s.spawn(|| {
                c.acknowledge(c.mark_dirty(sent));
                let began = c.begin();
                let target = FlushTarget { cache: 0, began };
                if c.dirty_mask() == 0 {
                    assert!(c.fails(began), "neither dirty nor lost");
                } else if c.is_unreachable(target) {
                    assert!(c.fails(began), "nobody can flush it, and it is not lost");
                }
            });
        });
    }
}

#[test]
fn a_doubt_does_not_hide_a_loss_of_power() {
    let c = Caches::new();
    (0..2).for_each(|_| c.join(0, false));
    c.mark_dirty(c.send_to(0));
    let under_way = flush(&c, 0);
    c.begin_doubt(0);
    assert!(c.lose(0) && !c.cleaned(under_way), "whoever answered it, what it was to cover is lost");
    assert!(!c.take_lost(), "that was the report");
}

#[test]
fn what_was_sent_to_a_cache_that_is_no_more_is_lost_when_it_is_acknowledged_and_makes_nothing_dirty() {
    let c = Caches::new();
    (0..2).for_each(|_| c.join(0, false));
    let sent = c.send_to(0);
    assert!(!c.lose(0), "nothing was acknowledged");
    let written = c.mark_dirty(sent);
    assert!(!c.is_dirty(0) && !c.take_lost(), "nobody was told of it yet");
    c.acknowledge(written);
    assert!(c.take_lost() && !c.take_lost() && !c.is_dirty(0));
    // The same when the number is another cache's by then.
    let sent = c.send_to(0);
    (0..2).for_each(|_| assert!(!c.leave(0)));
    c.join(0, false);
    c.acknowledge(c.mark_dirty(sent));
    assert!(c.take_lost() && !c.is_dirty(0));
    c.acknowledge(c.mark_dirty(c.send_to(0)));
    assert!(!c.take_lost() && c.is_dirty(0), "what is sent there now is there");
}

#[test]
fn a_flush_that_nobody_waits_for_reports_no_loss_and_hides_none() {
    let c = Caches::new();
    (0..2).for_each(|_| c.join(0, false));
    let removal = || FlushTarget { cache: 0, began: Began { epoch: c.begin_flush(), told: u64::MAX } };
    c.mark_dirty(c.send_to(0));
    let early = removal();
    assert!(c.lose(0) && !c.has_untold_loss(early.began));
    c.mark_clean(early);
    assert!(c.take_lost());
    c.mark_dirty(c.send_to(0));
    assert!(!c.leave(0) && c.leave(0));
    c.join(0, false);
    c.mark_clean(removal());
    assert!(c.take_lost());
}

#[test]
fn the_user_of_each_queue_is_told_of_each_loss() {
    let c = Caches::new();
    (0..2).for_each(|_| c.join(0, false));
    let mut told = [c.told(); 2];
    for losses in 1..3 {
        c.mark_dirty(c.send_to(0));
        assert!(c.lose(0));
        for queue in &mut told {
            let (one, other) =
                (Began { epoch: c.begin_flush(), told: *queue }, Began { epoch: c.begin_flush(), told: *queue });
            assert!(c.has_untold_loss(one) && c.has_untold_loss(other), "his answer is on the way");
            assert_eq!(c.tells(one), losses);
            *queue = c.tells(one);
            c.set_told(*queue);
            assert!(!c.has_untold_loss(Began { epoch: c.begin_flush(), told: *queue }));
        }
        assert_eq!(c.told(), losses, "a queue that is opened now has nothing to tell");
    }
    c.set_told(1);
    assert_eq!(c.told(), 2, "whoever is slower takes nothing back");
}

#[test]
fn a_flush_that_began_before_a_lost_change_was_acknowledged_does_not_tell_of_it() {
    // The change was there before the flush, and is acknowledged afterwards: its cache is lost before that, or after.
    for late in [false, true] {
        let c = Caches::new();
        (0..2).for_each(|_| c.join(0, false));
        let part = c.mark_dirty(c.send_to(0));
        let early = flush(&c, 0);
        if late {
            assert!(c.lose(0));
            c.acknowledge(part);
        } else {
            c.acknowledge(part);
            assert!(c.lose(0));
        }
        assert!(c.fails(early.began) && c.take_lost() && !c.take_lost(), "late: {late}");
    }
}

#[test]
fn what_is_acknowledged_after_it_was_flushed_makes_nothing_dirty() {
    let c = Caches::new();
    c.join(0, false);
    let part = c.mark_dirty(c.send_to(0));
    assert!(c.cleaned(flush(&c, 0)));
    c.acknowledge(part);
    assert_eq!(c.dirty_mask(), 0);
    assert!(!c.leave(0));
}

#[test]
fn what_waits_hears_of_every_cache_that_is_cleaned_and_of_every_loss() {
    let c = Caches::new();
    (0..2).for_each(|_| c.join(0, false));
    c.mark_dirty(c.send_to(0));
    let before = c.news();
    assert!(c.cleaned(flush(&c, 0)) && c.news() > before);
    c.mark_dirty(c.send_to(0));
    let before = c.news();
    assert!(c.lose(0) && c.news() > before);
}

#[test]
fn parts_that_were_sent_to_the_same_cache_are_lost_together() {
    // Before they were answered, or afterwards.
    for early in [false, true] {
        let c = Caches::new();
        (0..2).for_each(|_| c.join(0, false));
        let sent = [c.send_to(0), c.send_to(0)];
        if early {
            c.lose(0);
        }
        let [one, other] = sent.map(|sent| Some(c.mark_dirty(sent)));
        let both = c.together(one, other).unwrap();
        if !early {
            assert!(c.lose(0) && c.take_lost());
        }
        c.acknowledge(both);
        assert!(c.take_lost() && !c.take_lost(), "early: {early}");
    }
}
