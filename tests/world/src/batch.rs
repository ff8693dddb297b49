//! Running many seeds.

use crate::checker::Violation;
use crate::peer::Family;
use crate::plan::Plan;
use crate::world::run;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A seed that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// How it failed.
    pub violation: Violation,
}

/// Runs the plans of `count` seeds from `from` on over `jobs` threads; `told` hears how many are done, from time to time. With `first`, it
/// ends at the first failure.
pub fn batch(
    family: &(dyn Family + Sync),
    plan: &(dyn Fn(u64) -> Plan + Sync),
    (from, count): (u64, u64),
    jobs: usize,
    first: bool,
    told: impl Fn(u64) + Sync,
) -> (u64, Vec<Failure>) {
    let (next, done, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        let mut failures = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count || stop.load(Ordering::Relaxed) {
                return failures;
            }
            let seed = from + at;
            if let Err(violation) = run(&plan(seed), family, 0).result {
                stop.fetch_or(first, Ordering::Relaxed);
                failures.push(Failure { seed, violation });
            }
            told(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    let mut failures = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("a job catches what panics in it")).collect::<Vec<_>>()
    });
    failures.sort_by_key(|f| f.seed);
    (done.load(Ordering::Relaxed), failures)
}
