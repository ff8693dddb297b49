//! Several paths to one disk, said in plain words.

use polypath_block::{DiskUri, Identifier};

/// One path of a [`GroupSpec`].
#[derive(Clone, Debug)]
pub struct PathSpec {
    /// Where it leads.
    pub uri: DiskUri,
    /// Share of the work for the selectors that know weights; 100 is ordinary, 0 is refused.
    pub weight: u32,
    /// Name for people and statistics, unique in the group; the URI if there is none.
    pub name: Option<String>,
}

impl PathSpec {
    /// A path of ordinary weight, named after its URI.
    pub fn new(uri: DiskUri) -> Self {
        PathSpec { uri, weight: 100, name: None }
    }
}

/// A multipath disk, as configuration files and command lines describe it.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// Name of the disk.
    pub name: String,
    /// Its paths; at least one.
    pub paths: Vec<PathSpec>,
    /// Name of the selector; `None`: the default, `queue-length`.
    pub selector: Option<String>,
    /// How long an I/O waits while no path is usable, in milliseconds.
    pub no_path_timeout_ms: u64,
    /// `false` re-drives changes before they are proven quiet, which can lose data: for tests only.
    pub fencing: bool,
    /// Identifiers that every path must show; empty: those of the first path that answers.
    pub expected: Vec<Identifier>,
}

impl GroupSpec {
    /// A group with the defaults: queue-length, 60 s without a path, fencing on, no stated identifiers.
    pub fn new(name: impl Into<String>, paths: impl IntoIterator<Item = DiskUri>) -> Self {
        GroupSpec {
            name: name.into(),
            paths: paths.into_iter().map(PathSpec::new).collect(),
            selector: None,
            no_path_timeout_ms: 60_000,
            fencing: true,
            expected: Vec::new(),
        }
    }
}
