//! Memory that a device, a guest or the kernel may touch: regions, the way from a [`polypath_block::Segment`] to bytes, and copies that are counted.
//!
//! **Knows:** mappings in reserved and in transparent huge pages with a fall back to ordinary ones, regions mapped from somebody else's file descriptor,
//! the process-wide registry of regions, a thread's own table for reaching them, volatile views, an arena for buffers.
//!
//! **Refuses to know:** what the bytes mean; IOVAs (they come with the PCIe drivers).
//!
//! **Threading:** registering and dropping regions takes a lock and may happen on any thread. Reaching bytes goes through a
//! thread-local table that follows the registry by one atomic load: no lock on the data path. A region that is dropped stays
//! mapped until every thread that has seen it has called [`refresh`] (reactors do, each turn).
//!
//! **Unsafe:** yes: `mmap`, and raw access behind bounds checks. No `&[u8]` to shared memory is ever made: a guest may write it
//! at any time. Bytes are copied in and out with `vm-memory`'s volatile slices.
//!
//! Read `region.rs` first, then `table.rs`.

mod arena;
mod error;
mod region;
mod sigbus;
mod table;
mod transparent;
mod view;

pub use arena::{Arena, Chunk};
pub use error::MemoryError;
pub use region::{FOREIGN_LIMIT, Pages, Region};
pub use sigbus::losses;
pub use table::{Backing, BadSegment, RegionWatcher, Table, refresh, watch, with};
pub use view::{CopyCount, Number, OutOfWindow, View, Window, copy_count, count_copy, prefetch};
