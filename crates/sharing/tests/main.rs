//! All tests of shared queues but the one that counts allocations.

mod common;
#[allow(unreachable_pub, reason = "written for a module of its own")]
#[path = "../../multipath/tests/common/log.rs"]
mod log;
mod world;

mod endings;
mod links;
mod logs;
mod sharing;
mod units;
