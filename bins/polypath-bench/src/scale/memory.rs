//! Memory of a process, as the kernel tells it.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// Memory of a serving process, in KiB, and what else it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Its own: anonymous memory that is resident (`RssAnon`). Guests' memory is no part of it.
    pub anon_kib: u64,
    /// All that is resident (`VmRSS`): its own, the program, and guests' memory as far as it was touched.
    pub rss_kib: u64,
    /// Memory that is shared with guests, as far as it was touched (`RssShmem`).
    pub shared_kib: u64,
    /// Page tables (`VmPTE`), which the kernel has on top.
    pub page_tables_kib: u64,
    /// The most that was ever resident (`VmHWM`).
    pub peak_kib: u64,
    /// Threads.
    pub threads: u64,
    /// Descriptors.
    pub descriptors: u64,
}

impl Memory {
    /// Of this process.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn now() -> anyhow::Result<Memory> {
        let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
        let descriptors = std::fs::read_dir("/proc/self/fd").context("/proc/self/fd")?.count() as u64;
        Memory::parse(&status, descriptors).context("/proc/self/status says nothing of memory")
    }

    pub(super) fn parse(status: &str, descriptors: u64) -> Option<Memory> {
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Memory {
            anon_kib: number("RssAnon")?,
            rss_kib: number("VmRSS")?,
            shared_kib: number("RssShmem")?,
            page_tables_kib: number("VmPTE")?,
            peak_kib: number("VmHWM")?,
            threads: number("Threads")?,
            descriptors,
        })
    }

    /// What one more costs: this memory against that of fewer, over the difference in number, in KiB with page tables.
    pub(super) fn each_kib(&self, fewer: &Memory, difference: u64) -> f64 {
        let own = |memory: &Memory| (memory.anon_kib + memory.page_tables_kib) as f64;
        crate::latency::round3((own(self) - own(fewer)) / difference.max(1) as f64)
    }
}

/// What a serving process says of its load.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Load {
    /// Time that it had a core, in nanoseconds.
    pub(super) cpu_ns: u64,
    /// Of its reactors: pollers, and those of them that rest.
    pub(super) pollers: u64,
    pub(super) resting: u64,
}

impl Load {
    pub(super) fn now(stack: &polypath::Stack) -> Load {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let statistics = stack.statistics();
        Load {
            cpu_ns: time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
            pollers: statistics.iter().map(|s| s.pollers).sum(),
            resting: statistics.iter().map(|s| s.resting).sum(),
        }
    }
}
