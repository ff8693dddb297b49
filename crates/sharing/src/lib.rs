//! One I/O queue per controller and reactor, for everybody: devices that never run out of queues.
//!
//! **Knows:** [`SharedController`] shares the queue pairs of a controller among all its units (namespaces, logical units) and all their
//! users. A queue of a [`SharedDevice`] is a *share*: of the controller's queue on the same reactor without any crossing (tags are
//! translated, nothing else, and not even they for one share at a time), or, where the controller grants fewer queues than there are reactors, of one on another reactor over one
//! bounded single-producer single-consumer ring each way. The same happens later to a queue that finds, after a reconnect, that the
//! controller grants fewer than before ([`polypath_block::ControllerQueue::is_surplus`]).
//!
//! **Refuses to know:** what the devices are, and multipath. A crossing does not retry, nor change a status or a proof. Requests keep their
//! order, but for wide ones (more than 32 segments) that wait for a row.
//!
//! **Threading:** a [`SharedDevice`] is shared; its queues belong to one reactor each, which they learn in their first turn. What crosses
//! is values: requests with their segments, completions and suspects. Rows of the owner's segment table are reserved for each crossing
//! queue when it opens.
//!
//! **Unsafe:** none, forbidden.
//!
//! # The way of a request that crosses
//! `Client::submit` (asking reactor) takes a slot, copies the segments and the request into the rings → `kick` rings the owner's bell →
//! `Proxy::poll` (owning reactor) writes the segments to the row of that slot and submits to the owner as one of its shares → the
//! completion, with its proof, crosses back and rings the asker's bell. Nothing on the way locks or allocates.
//!
//! # Ends
//! An asker that goes undrained takes what was not sent yet with it; the owner drains what runs, and keeps its rows and its unit until
//! then. An owner's reactor that ends drops the queue first and the links last: whoever learns of the end by its link may count on the
//! queue being gone, and asks its end fence ([`polypath_block::QueueFence`]) when changes are quiet.
//!
//! Both bells are [`polypath_net::Bell`]s: a flag looked at each turn, a system call only when the other side sleeps, and no
//! wake-up lost between its last look and its sleep.
//!
//! Read `owner.rs` first, then `link.rs`.
#![forbid(unsafe_code)]

mod device;
mod link;
mod mailbox;
mod owner;
mod plain;
mod proxy;
mod queue;
mod single;

pub use device::{SharedController, SharedDevice};
