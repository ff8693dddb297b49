//! One thread per core that gives pollers their turns, and sleeps when there is nothing to do.
//!
//! **Knows:** threads and the cores they are pinned to, the clock, epoll, the idle policy, the mailbox by which other threads
//! reach a reactor, how long it was busy and how long idle.
//!
//! **Refuses to know:** what a poller does. Everything that gets turns is a [`polypath_block::Poller`].
//!
//! **Threading:** a [`Reactor`] lives on one thread. [`ReactorHandle`] is its face for all others: it puts closures into the
//! mailbox (a mutex that the reactor touches only when a flag says that there are messages) and ends sleeps.
//!
//! **Unsafe:** allowed by the design, used once: nowhere but for CPU affinity is anything but `rustix` needed.
//!
//! A turn: read the clock once, handle the messages, poll every poller. A poller without work for a while leaves the turns, one by one, until
//! there is something for it (`seats.rs`). When none has work: `arm` all that are left, look once more at the mailbox, sleep on one epoll
//! descriptor. Read `turn.rs` first.
#![deny(unsafe_code)]

mod cpus;
mod idle;
mod lot;
mod mailbox;
mod pool;
mod seats;
mod turn;
mod waiter;

pub use cpus::{CpuList, CpuListError};
pub use idle::{Idle, IdlePolicy};
pub use pool::{Pool, PoolConfig};
pub use turn::{Reactor, ReactorConfig, ReactorError, ReactorHandle, ReactorStatistics, now};
