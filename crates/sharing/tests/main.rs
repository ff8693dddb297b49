//! All tests of shared queues but the one that counts allocations.

mod common;
#[allow(unreachable_pub, reason = "written for a module of its own")]
#[path = "../../multipath/tests/common/log.rs"]
mod log;
mod world;

mod batches;
mod endings;
mod links;
mod logs;
mod rests;
mod sharing;
mod units;
