//! Queues for everybody where a controller grants few: a device that never runs out of them.
//!
//! **Knows:** [`SharedDevice`] wraps a device. `open_queue` gives the device's own queue as long as there is one. After that it gives
//! a queue that *shares* one which is open already: on the same reactor without any crossing (tags are translated, nothing else), on
//! another reactor over one bounded single-producer single-consumer ring each way. The same happens later to a queue that finds, after
//! a reconnect, that the controller grants fewer queues than before ([`polypath_block::IoQueue::is_surplus`]).
//!
//! **Refuses to know:** what the device is, and multipath. A crossing does not reorder, retry or change a status.
//!
//! **Threading:** a [`SharedDevice`] is shared; its queues belong to one reactor each. What crosses is values: requests with their
//! segments, completions and suspects. Rows of the owner's segment table are reserved for each crossing queue when it opens.
//!
//! **Unsafe:** none, forbidden.
//!
//! # The way of a request that crosses
//! `Client::submit` (asking reactor) takes a slot, copies the segments and the request into the rings → `kick` rings the owner's bell →
//! `Proxy::poll` (owning reactor) writes the segments to the row of that slot and submits to the hub as one of its ports → the
//! completion, with its proof, crosses back and rings the asker's bell. Nothing on the way locks or allocates.
//!
//! Both bells are [`polypath_net::Bell`]s: a flag looked at each turn, a system call only when the other side sleeps, and no
//! wake-up lost between its last look and its sleep.
//!
//! Read `hub.rs` first, then `link.rs`.
#![forbid(unsafe_code)]

mod device;
mod hub;
mod link;
mod office;
mod proxy;
mod queue;

pub use device::SharedDevice;
