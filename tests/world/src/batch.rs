//! Running many seeds, and surviving those that panic.

use crate::judge::{Rule, Violation};
use crate::peer::Family;
use crate::plan::Plan;
use crate::world::{Outcome, run};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A seed that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// How it failed.
    pub violation: Violation,
}

thread_local! {
    /// What the last panic of this thread said.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// As [`run`]; a panic, wherever it comes from, is a violation like others.
pub fn run_caught(plan: &Plan, family: &dyn Family, room: usize) -> Outcome {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if SAID.with_borrow_mut(|said| said.replace(info.to_string())).is_none() {
                return;
            }
            // Not one of ours to catch.
            before(info);
        }));
    });
    SAID.set(None);
    match catch_unwind(AssertUnwindSafe(|| run(plan, family, room))) {
        Ok(outcome) => outcome,
        Err(_) => {
            let what = SAID.take().unwrap_or_else(|| "a panic without words".to_owned());
            Outcome { result: Err(Violation { rule: Rule::Panic, what }), trace: Vec::new(), hash: 0 }
        }
    }
}

/// Runs `count` seeds from `from` on over `jobs` threads; `told` hears how many are done, from time to time. With `first`, it
/// ends at the first failure.
pub fn batch(
    family: &(dyn Family + Sync),
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
            if let Err(violation) = run_caught(&Plan::from_seed(seed), family, 0).result {
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
