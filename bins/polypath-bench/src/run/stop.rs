//! Ending a run early, from another thread.

use super::counted::PathCounters;
use super::job::Control;
use polypath::reactor::now;
use polypath_block::Host;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Asks the run it was given to for an early end: no more requests are made, those that are outstanding are waited for, what was
/// measured until then is reported. Clones ask the same run.
#[derive(Clone, Default)]
pub struct Stop(Arc<Mutex<Option<Running>>>);

/// What has to hear of it.
pub(super) struct Running {
    pub(super) control: Arc<Control>,
    pub(super) paths: Vec<Arc<PathCounters>>,
    pub(super) hosts: Vec<Arc<dyn Host>>,
}

impl Stop {
    /// Ends the measured time now. True if a run is under way, which will report; false before its first request and after its
    /// report was made, when there is nothing to end.
    pub fn request(&self) -> bool {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Running { control, paths, hosts }) = &*running else { return false };
        let time = now();
        paths.iter().for_each(|path| path.end_at(time));
        control.stop(time);
        hosts.iter().for_each(|host| host.wake());
        true
    }

    /// From now on there is something to end, until the guard is dropped.
    pub(super) fn watch(&self, running: Running) -> Watched<'_> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        Watched(self)
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stop")
    }
}

/// A run that can be asked to end.
pub(super) struct Watched<'a>(&'a Stop);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
