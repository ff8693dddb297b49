//! The contract every floor of Polypath speaks: what an I/O is, what a queue promises, what a device tells about itself.
//!
//! **Knows:** requests ([`Io`]), memory references ([`Segment`], [`SegTable`]), outcomes ([`Status`], [`Scope`], [`Suspect`]),
//! the data-plane traits ([`IoQueue`], and [`ControllerQueue`] for controllers with several units), the control-plane trait
//! ([`Device`]) and its optional powers ([`Reservations`], [`Passthrough`], [`CrossFence`]), proofs of quiet ([`Fence`]), limits and splitting, identities, the URI that names any disk,
//! and how much others may have us log ([`LogLimit`]).
//!
//! **Refuses to know:** sockets, clocks, threads, allocators of DMA memory, any protocol. It imports no other crate of the workspace.
//!
//! **Threading:** an [`IoQueue`] and a [`SegTable`] belong to one thread for life. A [`Device`] is shared and may be asked from any thread.
//!
//! **Unsafe:** none, forbidden.
//!
//! # The five promises of a queue
//! 1. An I/O that [`IoQueue::submit`] accepted completes exactly once; one that it refused is handed back and was not started.
//! 2. *Completion means quiet*: when an I/O completes, nothing of it can reach the medium any more and nobody touches its buffers.
//! 3. Before that a queue may report a [`Suspect`]: the way is broken, the I/O is not yet quiet.
//! 4. `submit`, `kick` and `poll` never block, lock, or allocate once the queue is open.
//! 5. A queue that [`IoQueue::arm`] let sleep is woken by one of the interests it named or at its deadline: no wake-up is lost.
//!
//! [`contract`] checks these for any implementation. Read `queue.rs` first, then `status.rs`.
#![forbid(unsafe_code)]

mod chain;
mod clock;
pub mod contract;
mod controller;
mod cross_fence;
mod device;
mod fence;
mod identity;
mod io;
mod limits;
mod log_limit;
mod parked;
mod passthrough;
mod queue;
mod reservation;
mod segment;
mod slots;
mod status;
mod time;
mod uri;

pub use chain::Chain;
pub use clock::{SLACK, TurnClock};
pub use controller::{ControllerQueue, QueueFence, QueueSource, Unit, UnitId};
pub use cross_fence::{CrossFence, ProofReply, ProofResult};
pub use device::{Access, Device, DeviceInfo, DeviceState, Geometry, OpenError, QueueConfig};
pub use fence::{Fence, FenceState, FenceTerms, Proof};
pub use identity::{CacheDomain, Identifier, IdentifierError, Identity, Verdict};
pub use io::{Flags, Io, Op};
pub use limits::{Limits, LimitsError, Part, Splitter};
pub use log_limit::LogLimit;
pub use parked::Parked;
pub use passthrough::{
    CommandClass, CommandSet, LONGEST_PASSTHROUGH, MOST_PASSTHROUGH_BYTES, NvmeCommand, NvmeScope, Passthrough,
    PassthroughAnswer, PassthroughCommand, PassthroughData, PassthroughError, PassthroughReply, PassthroughRequest,
    PassthroughResult, PassthroughStatus,
};
pub use queue::{
    Armed, Completion, Cx, Done, Health, Host, Interest, IoQueue, MakePoller, Poller, Refused, RefusedWhy, Rest,
    Suspect, Turn, Waits,
};
pub use reservation::{
    Registrant, ReservationError, ReservationOp, ReservationReply, ReservationReport, ReservationResult,
    ReservationType, Reservations, UnknownReservationType,
};
pub use segment::{RegionId, SegRow, SegSpan, SegTable, SegTableFull, Segment};
pub use slots::{SlotKey, Slots, SlotsFull};
pub use status::{Code, Fate, Scope, Status};
pub use time::Time;
pub use uri::{DiskUri, Endpoint, Scheme, UriError, hide_secret, parse_host_port, parse_size};
