//! What is known of sources, their paths and devices, for whoever looks.

use super::SourceId;
use super::uri::SourceKind;
use polypath_block::{DiskUri, Geometry};
use polypath_multipath::Group;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// A source and how it does.
#[derive(Clone, Debug)]
pub struct SourceReport {
    /// Its number.
    pub id: SourceId,
    /// As it was given, its secret hidden.
    pub uri: String,
    /// What it gives.
    pub kind: SourceKind,
    /// When it answered last.
    pub answered: Option<Instant>,
    /// Why it did not, the last time that it was asked, if so. What it listed before stays.
    pub problem: Option<String>,
    /// Controllers and targets that it listed last.
    pub services: usize,
    /// Paths that come from it, whether they are of use or not.
    pub paths: usize,
    /// Controllers, targets and paths that it lists and that are left out: there are too many, and it has its share.
    pub left_out: usize,
}

/// A device.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// What it is called.
    pub name: String,
    /// What it proves to be; empty when nothing is proven.
    pub proven: Vec<String>,
    /// Size, as its first path told.
    pub geometry: Geometry,
    /// Its paths, in the order of their names. How each does, its group tells by the same name.
    pub paths: Vec<PathReport>,
    /// For people: it agrees with another device in part, and differs from it in another.
    pub conflict: Option<String>,
    pub(crate) group: Weak<Group>,
}

impl DeviceReport {
    /// The device itself, unless it has ended meanwhile. It is in use for as long as this is held.
    pub fn group(&self) -> Option<Arc<Group>> {
        self.group.upgrade()
    }
}

/// A path of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathReport {
    /// What it is called: where it leads.
    pub name: String,
    /// The disk URI that opens it, with the options of its source; shown without its secret.
    pub uri: DiskUri,
}

/// A path that belongs to no device, now or at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LooseReport {
    /// What it is called: where it leads.
    pub name: String,
    /// Is nothing known of its disk yet? If not, it is held aside.
    pub pending: bool,
    /// For people: why it is in no device.
    pub why: String,
}

/// Everything, as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The sources, in the order in which they were added.
    pub sources: Vec<SourceReport>,
    /// The devices by name.
    pub devices: Vec<DeviceReport>,
    /// Paths and services that are of no use now.
    pub loose: Vec<LooseReport>,
    /// Grows with each change of this.
    pub version: u64,
}

impl Report {
    /// The device that is called `name`, or proves to be that.
    pub fn device(&self, name: &str) -> Option<&DeviceReport> {
        let named = self.devices.iter().find(|device| device.name == name);
        named.or_else(|| self.devices.iter().find(|device| device.proven.iter().any(|proven| proven == name)))
    }

    /// Has every source answered, and is it known of every path what it leads to?
    pub fn is_settled(&self) -> bool {
        self.sources.iter().all(|source| source.answered.is_some() || source.problem.is_some())
            && !self.loose.iter().any(|path| path.pending)
    }
}
