//! Sources instead of paths: discovery services, portals, controllers and targets are asked again and again what there is, every path that
//! is found is opened once, and one device appears for each disk that proves who it is, whatever the transport.
//!
//! Arrivals join, twins do not show, and what proves nothing is a device of its own (the rules are in `sort.rs`). Devices are named after who
//! they are (`uuid.…`, `eui.…`, `naa.…`), so that they have the same name tomorrow; those that prove nothing are named after their path.
//!
//! A path goes when its source, or its controller or target, has not listed it for some rounds *and* it is down. A source that
//! does not answer takes nothing away. What a source answers is not trusted: lists are cut, names stay in their place in the URI, and a
//! disk that comes back as another one leaves its device and is looked at anew.
//!
//! **Threading**: one thread that sorts (`engine.rs` has its turns, without thread or clock), and one for each source that is to be asked.

mod engine;
mod keeper;
mod name;
mod report;
mod sort;
mod threads;
mod uri;
mod world;

pub use keeper::{DevicePolicy, Keeper, NewDevice};
pub use report::{DeviceReport, LooseReport, PathReport, Report, SourceReport};
pub use threads::Sources;
pub use uri::{SourceKind, SourceUri};
pub(crate) use world::Units;

use crate::error::Error;
use polypath_block::DiskUri;
use std::fmt;
use std::time::Duration;

/// Most sources at a time.
pub const MOST_SOURCES: usize = 64;

/// How sources are looked after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourcesConfig {
    /// How often a source is asked; 10 s. At least 100 ms.
    pub refresh: Duration,
    /// After so many answers that leave it out a path that is down goes; 3. At least 1.
    pub rounds: u32,
    /// How the devices are made, unless a [`Keeper`] does.
    pub policy: DevicePolicy,
}

impl Default for SourcesConfig {
    fn default() -> Self {
        SourcesConfig { refresh: Duration::from_secs(10), rounds: 3, policy: DevicePolicy::default() }
    }
}

/// A source among those that were added; no number is given twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SourceId(pub u64);

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What `source` lists now, asked once: for each controller or target the URI that names it, without namespace or as LUN 0. **Blocks** for a
/// bounded time: never call it on a reactor.
///
/// # Errors
/// The source does not answer as it should.
pub fn ask(source: &SourceUri) -> Result<Vec<DiskUri>, Error> {
    Ok(world::list(source)?.into_iter().map(|service| service.uri).collect())
}
