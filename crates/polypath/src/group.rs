//! Several paths to one disk, as configuration files and command lines describe them.

use crate::error::Error;
use crate::stack::{Stack, wait_live};
use polypath_block::{DeviceInfo, DiskUri};
use polypath_multipath::{Fencing, Group, GroupConfig, MatchPolicy, PathConfig, PathId, SelectorKind};
use std::sync::Arc;
use std::time::Duration;

/// One path of a [`GroupSpec`].
#[derive(Clone, Debug)]
pub struct PathSpec {
    /// Where it leads.
    pub uri: DiskUri,
    /// Share of the work for the selectors that know weights; 100 is ordinary, 0 is refused.
    pub weight: u32,
    /// The selector that uses one path ([`SelectorKind::Preferred`]) uses it before others of the same access.
    pub preferred: bool,
    /// Name for people and statistics, unique in the group; the URI if there is none.
    pub name: Option<String>,
}

impl PathSpec {
    /// A path of ordinary weight, named after its URI.
    pub fn new(uri: DiskUri) -> Self {
        PathSpec { uri, weight: PathConfig::WEIGHT, preferred: false, name: None }
    }
}

/// A multipath disk.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// Name of the disk; the URI of its first path if it is empty.
    pub name: String,
    /// Its paths. More can be added later.
    pub paths: Vec<PathSpec>,
    /// Rule for choosing a path.
    pub selector: SelectorKind,
    /// How long an I/O waits while no path is usable, in milliseconds.
    pub no_path_timeout_ms: u64,
    /// Are changes held back until proven quiet? `Off` can lose data: for tests only.
    pub fencing: Fencing,
    /// Which paths belong: those that share a worldwide identifier, those that show pinned ones, or those that you state to.
    pub matching: MatchPolicy,
}

impl GroupSpec {
    /// A group of `paths` with the defaults: queue-length, 60 s without a path, fencing on, worldwide identifiers.
    pub fn new(name: impl Into<String>, paths: impl IntoIterator<Item = DiskUri>) -> Self {
        let GroupConfig { name, selector, no_path_timeout_ms, fencing, matching, .. } = GroupConfig::new(name);
        let paths = paths.into_iter().map(PathSpec::new).collect();
        GroupSpec { name, paths, selector, no_path_timeout_ms, fencing, matching }
    }
}

impl Default for GroupSpec {
    fn default() -> Self {
        GroupSpec::new("", [])
    }
}

/// As [`wait_live`] for a group, with the reason of every path in the error.
///
/// # Errors
/// As [`wait_live`].
pub fn wait_group_live(group: &Group, limit: Duration) -> Result<Arc<DeviceInfo>, Error> {
    wait_live(group, limit).map_err(|error| match error {
        Error::NotLive { name, waited_ms, reason } => {
            let paths = group.statistics();
            let each = paths.iter().map(|p| format!("{} is {:?} ({})", p.name, p.state, p.why));
            let reason = if paths.is_empty() { reason } else { each.collect::<Vec<_>>().join("; ") };
            Error::NotLive { name, waited_ms, reason }
        }
        other => other,
    })
}

impl Stack {
    /// Opens a multipath disk. It comes back at once and goes live when the first path answers ([`crate::wait_live`]); a path that is
    /// down now is no error. End it with [`polypath_block::Device::close`], which closes its paths too.
    ///
    /// # Errors
    /// A path whose URI does not do, or that the group refuses; nothing stays open then.
    pub fn open_group(&self, spec: GroupSpec) -> Result<Arc<Group>, Error> {
        let first = spec.paths.first().map(|p| p.uri.to_string());
        let name = if spec.name.is_empty() { first.unwrap_or_else(|| "disk".into()) } else { spec.name };
        let group = Group::new(GroupConfig {
            selector: spec.selector,
            no_path_timeout_ms: spec.no_path_timeout_ms,
            fencing: spec.fencing,
            matching: spec.matching,
            ..GroupConfig::new(name)
        });
        for host in self.hosts() {
            group.attach_host(host);
        }
        for path in spec.paths {
            if let Err(error) = self.add_path(&group, path) {
                polypath_block::Device::close(&*group);
                return Err(error);
            }
        }
        Ok(group)
    }

    /// Opens one more path of a group. It carries I/O once it answers and proves to lead to the same disk. May block as
    /// [`Stack::open_device`].
    ///
    /// # Errors
    /// As [`Stack::open_device`], or [`Error::Group`].
    pub fn add_path(&self, group: &Group, path: PathSpec) -> Result<PathId, Error> {
        let device = self.open_device(&path.uri)?;
        let name = path.name.unwrap_or_else(|| path.uri.to_string());
        let PathSpec { weight, preferred, .. } = path;
        let added = group.add_path(PathConfig { name, weight, preferred, device: device.clone() });
        added.map_err(|error| {
            device.close();
            error.into()
        })
    }
}
