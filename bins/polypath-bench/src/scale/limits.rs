//! What the operating system grants a process.

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of descriptors as far as this process may; what it is then.
///
/// # Errors
/// What the operating system says.
pub(super) fn raise_descriptors() -> anyhow::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("raising the limit of descriptors")?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
