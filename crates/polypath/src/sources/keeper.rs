//! Who makes the devices that sources lead to, and says when one may go.

use crate::stack::Stack;
use polypath_block::{Device, DeviceInfo};
use polypath_multipath::{Fencing, Group, GroupConfig, SelectorKind};
use std::sync::Arc;

/// A disk that was found and is no device yet.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// What it is to be called, unless the keeper has reasons of its own.
    pub name: String,
    /// What it proves to be, the best name first; `name` is among them if anything is proven.
    pub proven: Vec<String>,
    /// What its first path shows.
    pub info: Arc<DeviceInfo>,
}

/// Makes and ends the devices of [`Sources`](super::Sources). Called on the thread that looks after them: it may take a while, and holds up
/// what arrives meanwhile. It must not call back into the sources.
pub trait Keeper: Send + Sync {
    /// A device for `new`, and its name: a group without paths. A path joins when this returns.
    ///
    /// # Errors
    /// For people: why there is none now. It is asked for again.
    fn make(&self, new: &NewDevice) -> Result<(String, Arc<Group>), String>;

    /// Does anybody use the device? It keeps its name and waits for its paths then.
    fn is_in_use(&self, name: &str, group: &Arc<Group>) -> bool;

    /// The device has no paths any more: ends it, unless somebody uses it. Says whether it has ended.
    fn retire(&self, name: &str, group: &Arc<Group>) -> bool;

    /// The sources end: what becomes of the device.
    fn end(&self, name: &str, group: &Arc<Group>);
}

/// How devices are made unless told otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DevicePolicy {
    /// Rule for choosing a path.
    pub selector: SelectorKind,
    /// How long an I/O waits while no path is usable, in milliseconds; [`GroupConfig::FOR_EVER_MS`] for ever.
    pub no_path_timeout_ms: u64,
    /// Are changes held back until proven quiet?
    pub fencing: Fencing,
}

impl Default for DevicePolicy {
    fn default() -> Self {
        let GroupConfig { selector, no_path_timeout_ms, fencing, .. } = GroupConfig::new("");
        DevicePolicy { selector, no_path_timeout_ms, fencing }
    }
}

/// Groups on a stack; a device is in use while somebody else holds its group.
pub(crate) struct OnStack {
    pub(crate) stack: Stack,
    pub(crate) policy: DevicePolicy,
}

impl Keeper for OnStack {
    fn make(&self, new: &NewDevice) -> Result<(String, Arc<Group>), String> {
        let DevicePolicy { selector, no_path_timeout_ms, fencing } = self.policy;
        let config = GroupConfig { selector, no_path_timeout_ms, fencing, ..GroupConfig::new(&new.name) };
        let group = Group::new(config);
        self.stack.hosts().into_iter().for_each(|host| group.attach_host(host));
        Ok((new.name.clone(), group))
    }

    fn is_in_use(&self, _: &str, group: &Arc<Group>) -> bool {
        // The engine's own.
        Arc::strong_count(group) > 1
    }

    fn retire(&self, name: &str, group: &Arc<Group>) -> bool {
        let unused = !self.is_in_use(name, group);
        if unused {
            group.close();
        }
        unused
    }

    fn end(&self, _: &str, group: &Arc<Group>) {
        group.close();
    }
}
