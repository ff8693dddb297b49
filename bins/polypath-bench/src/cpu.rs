//! Cores and time spent on them.

use crate::latency::round3;
use polypath_block::Time;
use polypath_reactor::{CpuList, now};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::time::Duration;

/// The cores this process may use, ascending.
pub fn allowed() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect(),
        Err(_) => vec![0],
    }
}

/// A core for each of two sides: the first two of `list`, or of the cores that are allowed. One core is shared if there is no second.
pub fn two(list: Option<&CpuList>) -> (usize, usize) {
    let cpus = list.map_or_else(allowed, |l| l.0.clone());
    let first = cpus.first().copied().unwrap_or(0);
    (first, cpus.get(1).copied().unwrap_or(first))
}

/// Pins the calling thread to `cpu`.
///
/// # Errors
/// When the operating system refuses: no such core, or not allowed here.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    anyhow::ensure!(cpu < CpuSet::MAX_CPU, "core {cpu}: there is no such core");
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|e| {
        anyhow::anyhow!("core {cpu}: cannot pin a thread to it ({e}); --cpus takes any of {:?}", allowed())
    })
}

/// CPU time of the calling thread.
///
/// From the scheduler's own file where there is one: the thread clock goes through the vDSO, which does not exist under valgrind.
pub fn thread_time() -> Duration {
    // The scheduler adds up at every switch; a yield is the cheapest one.
    rustix::thread::sched_yield();
    schedstat(0).unwrap_or_else(|| {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
    })
}

/// How long the calling thread was runnable but had to wait for its core, if the kernel tells.
pub fn thread_wait() -> Option<Duration> {
    schedstat(1)
}

/// A field of the calling thread's scheduler statistics, in nanoseconds there.
fn schedstat(field: usize) -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().nth(field)?.parse().ok().map(Duration::from_nanos)
}

/// How much of its time the calling thread is kept from its core.
pub(crate) struct CoreWait {
    since: Time,
    wait: Option<Duration>,
}

impl CoreWait {
    /// From now on.
    pub(crate) fn start() -> Self {
        CoreWait { since: now(), wait: thread_wait() }
    }

    /// In percent of the time since then; nought where the kernel does not tell.
    pub(crate) fn taken_pct(&self) -> f64 {
        let elapsed = now().since(self.since).as_secs_f64();
        match (self.wait, thread_wait()) {
            (Some(before), Some(after)) if elapsed > 0.0 => {
                round3(after.saturating_sub(before).as_secs_f64() / elapsed * 100.0)
            }
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spent_is_counted() {
        let (start, before) = (std::time::Instant::now(), thread_time());
        while start.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let spent = thread_time() - before;
        assert!(spent > Duration::ZERO && spent <= start.elapsed() + Duration::from_millis(5), "{spent:?}");
    }
}
