//! All tests of the driver but the one that counts allocations.

mod common;
#[path = "common/script.rs"]
mod script;
#[path = "common/turns.rs"]
mod turns;

mod batches;
mod captures;
mod coming_up;
mod corpus;
mod defects_associations;
mod defects_commands;
mod defects_namespaces;
mod defects_shared_queue;
mod faults;
mod lifecycle;
mod news;
mod queues;
mod reactors;
mod reservations;
mod target;
mod waking;
