//! Rules that choose among paths of equal rank. One file each; one instance per queue, so that nothing is shared.

mod average_rate;
#[cfg(test)]
mod batches;
mod hash;
mod historical_service_time;
mod preferred;
mod queue_length;
mod random;
mod round_robin;
mod service_time;
mod weight;

use crate::config::{MAX_PATHS, SelectorKind};
use polypath_block::Time;

/// What a queue knows of the load it has put on one path.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PathLoad {
    /// Number of the path, the same on every reactor and for life.
    pub(crate) uid: u32,
    /// Requests in flight, suspects not counted.
    pub(crate) in_flight: u32,
    /// Bytes of these.
    pub(crate) bytes_in_flight: u64,
    /// Configured weight, at least one.
    pub(crate) weight: u32,
    /// The more, the rather it is used by the rule that prefers one: see [`preference`].
    pub(crate) preference: u8,
}

/// How much a path is preferred: what the operator says comes before what the target says.
pub(crate) const fn preference(by_operator: bool, by_target: bool) -> u8 {
    (by_operator as u8) << 1 | by_target as u8
}

/// One choice to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    /// Candidates, as bits; never zero.
    pub(crate) mask: u64,
    /// Load by slot.
    pub(crate) loads: &'a [PathLoad],
    /// Bytes of the request.
    pub(crate) bytes: u64,
    /// Where it begins on the disk, in bytes.
    pub(crate) offset: u64,
    /// Now.
    pub(crate) now: Time,
}

impl Choice<'_> {
    /// The candidates' slots, ascending.
    pub(crate) fn slots(&self) -> Slots {
        Slots(self.mask)
    }

    /// The candidates' slots, beginning behind `last` and going round.
    pub(crate) fn slots_after(&self, last: usize) -> impl Iterator<Item = usize> + use<> {
        slots_after(self.mask, last)
    }

    /// The candidate with the least score; equals take turns, as `last` goes round.
    pub(crate) fn least<K: PartialOrd>(&self, last: &mut usize, score: impl Fn(usize, &PathLoad) -> K) -> usize {
        let mut best: Option<(usize, K)> = None;
        for slot in self.slots_after(*last) {
            let key = score(slot, &self.loads[slot]);
            if best.as_ref().is_none_or(|(_, least)| key < *least) {
                best = Some((slot, key));
            }
        }
        // The mask is never zero; slot 0 would be refused further on if it were.
        let slot = best.map_or(0, |(slot, _)| slot);
        *last = slot;
        slot
    }
}

/// Set bits, ascending.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slots(pub(crate) u64);

impl Iterator for Slots {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let slot = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(slot)
    }
}

/// The slots in `mask`, beginning behind `last` and going round.
pub(crate) fn slots_after(mask: u64, last: usize) -> impl Iterator<Item = usize> + use<> {
    let first = (last + 1) % MAX_PATHS;
    Slots(mask.rotate_right(first as u32)).map(move |slot| (slot + first) % MAX_PATHS)
}

/// A rule.
pub(crate) trait Selector {
    /// Chooses one of the candidates.
    fn pick(&mut self, choice: &Choice<'_>) -> usize;
    /// A request succeeded on `slot`.
    fn finished(&mut self, _slot: usize, _bytes: u64, _took_ns: u64) {}
    /// `slot` leads to another path from now on.
    fn forget(&mut self, _slot: usize) {}
}

impl<S: Selector> Selector for Box<S> {
    #[inline(always)]
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        (**self).pick(choice)
    }

    #[inline(always)]
    fn finished(&mut self, slot: usize, bytes: u64, took_ns: u64) {
        (**self).finished(slot, bytes, took_ns);
    }

    fn forget(&mut self, slot: usize) {
        (**self).forget(slot);
    }
}

/// The rules, dispatched without a virtual call.
pub(crate) enum AnySelector {
    RoundRobin(round_robin::RoundRobin),
    Turns(Box<round_robin::Turns>),
    Random(random::Random),
    Hash(hash::Hash),
    Weight(Box<weight::Weight>),
    ServiceTime(Box<service_time::ServiceTime>),
    AverageRate(Box<average_rate::AverageRate>),
    QueueLength(queue_length::QueueLength),
    Historical(Box<historical_service_time::Historical>),
    Preferred(Box<preferred::Preferred>),
}

macro_rules! each {
    ($self:expr, $rule:ident => $call:expr) => {
        match $self {
            AnySelector::RoundRobin($rule) => $call,
            AnySelector::Turns($rule) => $call,
            AnySelector::Random($rule) => $call,
            AnySelector::Hash($rule) => $call,
            AnySelector::Weight($rule) => $call,
            AnySelector::ServiceTime($rule) => $call,
            AnySelector::AverageRate($rule) => $call,
            AnySelector::QueueLength($rule) => $call,
            AnySelector::Historical($rule) => $call,
            AnySelector::Preferred($rule) => $call,
        }
    };
}

impl AnySelector {
    pub(crate) fn new(kind: SelectorKind, seed: u64) -> Self {
        match kind {
            SelectorKind::RoundRobin { min_io: 0 | 1 } => AnySelector::RoundRobin(Default::default()),
            SelectorKind::RoundRobin { min_io } => AnySelector::Turns(Box::new(round_robin::Turns::new(min_io))),
            SelectorKind::Random => AnySelector::Random(random::Random::new(seed)),
            SelectorKind::Hash { range_bytes } => AnySelector::Hash(hash::Hash::new(range_bytes)),
            SelectorKind::Weight => AnySelector::Weight(Default::default()),
            SelectorKind::ServiceTime => AnySelector::ServiceTime(Default::default()),
            SelectorKind::AverageRate => AnySelector::AverageRate(Default::default()),
            SelectorKind::QueueLength => AnySelector::QueueLength(Default::default()),
            SelectorKind::HistoricalServiceTime => AnySelector::Historical(Default::default()),
            SelectorKind::Preferred { failback } => {
                AnySelector::Preferred(Box::new(preferred::Preferred::new(failback)))
            }
        }
    }

    /// The candidates are those of `mask` from now on, however few.
    #[inline]
    pub(crate) fn settle(&mut self, mask: u64, loads: &[PathLoad]) {
        if let AnySelector::Preferred(rule) = self {
            rule.settle(mask, loads);
        }
    }

    /// Those of `mask` that are to be used even if others have more room.
    #[inline]
    pub(crate) fn narrow(&self, mask: u64, loads: &[PathLoad]) -> u64 {
        match self {
            AnySelector::Preferred(rule) => rule.narrow(mask, loads),
            _ => mask,
        }
    }
}

impl AnySelector {
    /// Does it want to hear of what has finished?
    #[inline]
    pub(crate) fn learns(&self) -> bool {
        matches!(self, AnySelector::AverageRate(_) | AnySelector::Historical(_))
    }
}

/// Requests that are to be shared out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    /// Candidates, as bits; never zero.
    pub(crate) mask: u64,
    /// How many requests.
    pub(crate) count: usize,
    /// Now.
    pub(crate) now: Time,
}

impl AnySelector {
    /// How many of a batch go to each of the candidates, in `shares`: as many as by one choice after the other. Returns behind which slot
    /// they take their turns. `None` if the rule must look at each request. `bytes`: those of each, if all have the same.
    #[inline]
    pub(crate) fn share(
        &mut self,
        batch: &Batch,
        bytes: impl FnOnce() -> Option<u64>,
        loads: &mut [PathLoad],
        shares: &mut [u32; MAX_PATHS],
    ) -> Option<usize> {
        if let AnySelector::QueueLength(rule) = self {
            return Some(rule.share(batch.mask, loads, batch.count, shares));
        }
        if matches!(self, AnySelector::Hash(_)) {
            return None;
        }
        let bytes = bytes()?;
        let is_shared = match self {
            AnySelector::Historical(rule) => rule.share(batch, bytes, loads, shares),
            AnySelector::ServiceTime(rule) => {
                rule.share(batch, bytes, loads, shares);
                true
            }
            _ => false,
        };
        if !is_shared {
            each!(self, rule => share_by_choices(rule, batch, bytes, loads, shares));
        }
        Some(MAX_PATHS - 1)
    }

    /// Requests succeeded on `slot`: bytes and nanoseconds of each.
    pub(crate) fn finished_all(&mut self, slot: usize, finished: impl Iterator<Item = (u64, u64)>) {
        each!(self, rule => finished.for_each(|(bytes, took_ns)| rule.finished(slot, bytes, took_ns)));
    }
}

/// Makes one choice after the other, each of which sees those before it as load.
#[inline(always)]
fn share_by_choices(
    rule: &mut impl Selector,
    batch: &Batch,
    bytes: u64,
    loads: &mut [PathLoad],
    shares: &mut [u32; MAX_PATHS],
) {
    for _ in 0..batch.count {
        let slot = rule.pick(&Choice { mask: batch.mask, loads, bytes, offset: 0, now: batch.now }) % MAX_PATHS;
        shares[slot] += 1;
        loads[slot].in_flight += 1;
        loads[slot].bytes_in_flight += bytes;
    }
    for slot in Slots(batch.mask) {
        loads[slot].in_flight -= shares[slot];
        loads[slot].bytes_in_flight -= u64::from(shares[slot]) * bytes;
    }
}

impl Selector for AnySelector {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        if choice.mask.is_power_of_two() {
            return choice.mask.trailing_zeros() as usize;
        }
        each!(self, rule => rule.pick(choice))
    }

    fn finished(&mut self, slot: usize, bytes: u64, took_ns: u64) {
        each!(self, rule => rule.finished(slot, bytes, took_ns));
    }

    fn forget(&mut self, slot: usize) {
        each!(self, rule => rule.forget(slot));
    }
}

/// Chooses in proportion to shares, evenly spread in time: each choice adds to everyone its share and takes the sum from the winner.
#[derive(Clone, Debug)]
pub(crate) struct Smooth {
    credit: [i64; MAX_PATHS],
}

impl Default for Smooth {
    fn default() -> Self {
        Smooth { credit: [0; MAX_PATHS] }
    }
}

impl Smooth {
    pub(crate) fn pick(&mut self, candidates: Slots, share: impl Fn(usize) -> u32) -> usize {
        let (mut best, mut sum) = (None, 0i64);
        for slot in candidates {
            let s = i64::from(share(slot).max(1));
            sum += s;
            self.credit[slot] += s;
            if best.is_none_or(|b: usize| self.credit[slot] > self.credit[b]) {
                best = Some(slot);
            }
        }
        let slot = best.unwrap_or(0);
        // Credit earned among other candidates must not turn into a burst.
        self.credit[slot] = (self.credit[slot] - sum).clamp(-4 * sum, 4 * sum);
        slot
    }

    pub(crate) fn forget(&mut self, slot: usize) {
        self.credit[slot] = 0;
    }
}

#[cfg(test)]
pub(crate) mod model {
    //! A small queueing model: paths that serve requests at a given speed, and a closed loop of requesters.

    use super::*;
    use std::collections::VecDeque;

    /// How a path of the model serves.
    #[derive(Clone, Copy)]
    pub(crate) struct Server {
        /// Time each request takes whatever else there is, in microseconds.
        pub(crate) latency_us: u64,
        /// Time it occupies the path alone, in microseconds: more requests wait.
        pub(crate) service_us: u64,
        /// Configured weight.
        pub(crate) weight: u32,
    }

    pub(crate) struct Run {
        pub(crate) counts: Vec<u64>,
        /// Longest run of choices that went to the same path.
        pub(crate) longest_run: u64,
    }

    /// Keeps `depth` requests of `bytes` in flight for `total` completions among the paths of `mask(n)`, `n` requests having begun.
    pub(crate) fn run(
        kind: SelectorKind,
        servers: &[Server],
        depth: u32,
        bytes: u64,
        total: u64,
        mask: impl Fn(u64) -> u64,
    ) -> Run {
        let mut selector = AnySelector::new(kind, 7);
        let load = |(i, s): (usize, &Server)| PathLoad { uid: i as u32, weight: s.weight, ..PathLoad::default() };
        let mut loads: Vec<PathLoad> = servers.iter().enumerate().map(load).collect();
        let mut free_at = vec![0u64; servers.len()];
        let mut queues: Vec<VecDeque<(u64, u64)>> = vec![VecDeque::new(); servers.len()];
        let mut out = Run { counts: vec![0; servers.len()], longest_run: 0 };
        let (mut now, mut begun, mut open, mut run, mut last) = (0u64, 0u64, 0u32, 0u64, usize::MAX);
        while out.counts.iter().sum::<u64>() < total {
            while open < depth {
                let offset = begun.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
                let at = Time::from_nanos(now * 1000);
                let choice = Choice { mask: mask(begun), loads: &loads, bytes, offset, now: at };
                let slot = selector.pick(&choice);
                assert!(choice.mask & (1 << slot) != 0, "{kind} chose a path that is no candidate");
                run = if slot == last { run + 1 } else { 1 };
                last = slot;
                out.longest_run = out.longest_run.max(run);
                free_at[slot] = free_at[slot].max(now) + servers[slot].service_us;
                queues[slot].push_back((free_at[slot] + servers[slot].latency_us, now));
                loads[slot].in_flight += 1;
                loads[slot].bytes_in_flight += bytes;
                begun += 1;
                open += 1;
            }
            now = queues.iter().filter_map(|q| q.front()).map(|f| f.0).min().expect("something is in flight");
            for slot in 0..servers.len() {
                while queues[slot].front().is_some_and(|f| f.0 <= now) {
                    let (_, began) = queues[slot].pop_front().expect("looked");
                    selector.finished(slot, bytes, 1000 * (now - began));
                    loads[slot].in_flight -= 1;
                    loads[slot].bytes_in_flight -= bytes;
                    out.counts[slot] += 1;
                    open -= 1;
                }
            }
        }
        out
    }

    pub(crate) const EQUAL: Server = Server { latency_us: 100, service_us: 2, weight: 100 };

    /// Fraction of all that slot `i` got.
    pub(crate) fn share(run: &Run, i: usize) -> f64 {
        run.counts[i] as f64 / run.counts.iter().sum::<u64>() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::model::{EQUAL, run, share};
    use super::*;

    #[test]
    fn every_rule_spreads_equals_and_survives_the_loss_of_a_path() {
        let spreads = |kind: &SelectorKind| !matches!(kind, SelectorKind::Preferred { .. });
        for kind in SelectorKind::ALL.into_iter().chain([SelectorKind::RoundRobin { min_io: 100 }]).filter(spreads) {
            let even = run(kind, &[EQUAL; 4], 32, 4096, 40_000, |_| 0b1111);
            for i in 0..4 {
                let s = share(&even, i);
                assert!((0.17..0.33).contains(&s), "{kind}: path {i} of 4 equals got {s}");
            }
            // Path 1 goes away after a quarter, comes back for the last quarter.
            let lossy = |n: u64| if (10_000..30_000).contains(&n) { 0b1101 } else { 0b1111 };
            let r = run(kind, &[EQUAL; 4], 32, 4096, 40_000, lossy);
            assert!((0.07..0.20).contains(&share(&r, 1)), "{kind}: the lost path got {}", share(&r, 1));
            for i in [0, 2, 3] {
                assert!(share(&r, i) > 0.2, "{kind}: survivor {i} got {}", share(&r, i));
            }
        }
    }

    #[test]
    fn no_rule_herds() {
        for kind in [SelectorKind::AverageRate, SelectorKind::QueueLength, SelectorKind::HistoricalServiceTime] {
            let r = run(kind, &[EQUAL; 4], 64, 4096, 40_000, |_| 0b1111);
            assert!(r.longest_run < 40, "{kind} sent {} in a row down one path", r.longest_run);
        }
    }

    #[test]
    fn going_round_begins_behind_the_last() {
        let loads = [PathLoad::default(); 64];
        let c = Choice { mask: 1 | 1 << 5 | 1 << 63, loads: &loads, bytes: 0, offset: 0, now: Time::ZERO };
        assert_eq!(c.slots_after(0).collect::<Vec<_>>(), [5, 63, 0]);
        assert_eq!(c.slots_after(5).collect::<Vec<_>>(), [63, 0, 5]);
        assert_eq!(c.slots_after(63).collect::<Vec<_>>(), [0, 5, 63]);
    }

    /// What follows, among equals, once path 0 has earned among heavy ones what it was not given.
    fn after_a_lean_time(then: impl FnOnce(&mut AnySelector)) -> Vec<usize> {
        let mut weight = AnySelector::new(SelectorKind::Weight, 7);
        let mut pick = |mask: u64, weights: [u32; 3]| {
            let loads = weights.map(|weight| PathLoad { weight, ..PathLoad::default() });
            weight.pick(&Choice { mask, loads: &loads, bytes: 0, offset: 0, now: Time::ZERO })
        };
        for _ in 0..400 {
            pick(0b011, [100, 100_000, 100]);
        }
        then(&mut weight);
        let mut pick = |mask: u64| {
            let loads = [PathLoad { weight: 100, ..PathLoad::default() }; 3];
            weight.pick(&Choice { mask, loads: &loads, bytes: 0, offset: 0, now: Time::ZERO })
        };
        (0..20).map(|_| pick(0b101)).collect()
    }

    #[test]
    fn a_path_that_was_passed_over_catches_up_a_little_and_not_all_at_once() {
        let turns = after_a_lean_time(|_| {});
        let burst = turns.iter().take_while(|&&slot| slot == 0).count();
        assert!((4..=6).contains(&burst), "{burst} in a row");
        assert!(turns[burst..].windows(2).all(|w| w[0] != w[1]), "{turns:?}");
        // That credit is not inherited by another path.
        let turns = after_a_lean_time(|weight| weight.forget(0));
        assert!(turns.windows(2).all(|w| w[0] != w[1]), "{turns:?}");
    }

    #[test]
    fn a_path_in_the_place_of_another_one_begins_without_its_past() {
        let loads = [PathLoad { weight: 1, ..PathLoad::default() }; 2];
        let choice = |n: u64| Choice { mask: 0b11, loads: &loads, bytes: 4096, offset: 0, now: Time::from_nanos(n) };
        for kind in [SelectorKind::AverageRate, SelectorKind::HistoricalServiceTime] {
            let used = || {
                let mut s = AnySelector::new(kind, 7);
                for n in 0..21 {
                    let slot = s.pick(&choice(n));
                    s.finished(slot, 4096, if slot == 0 { 10_000 } else { 10_000_000 });
                }
                s
            };
            let picks = |mut s: AnySelector| -> Vec<usize> { (100..140).map(|n| s.pick(&choice(n))).collect() };
            let (mut forgetful, mut fresh) = (used(), AnySelector::new(kind, 7));
            (0..2).for_each(|slot| forgetful.forget(slot));
            // Which of equals comes first is all that may be left.
            let first = fresh.pick(&choice(99));
            if forgetful.pick(&choice(99)) != first {
                fresh.pick(&choice(99));
            }
            assert_eq!(picks(forgetful), picks(fresh), "{kind}");
        }
    }
}
