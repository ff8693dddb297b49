//! iSCSI targets, shared among the URIs that differ in nothing but the logical unit: one session per reactor for all of them.

use polypath_block::{Device, DeviceState, DiskUri, Endpoint, Host, IoQueue, OpenError, QueueConfig, UriError};
use polypath_iscsi::{ScsiDisk, Target, TargetConfig};
use polypath_scsi::midlayer::DiskSource;
use polypath_sharing::{SharedController, SharedDevice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

/// All of a URI but the logical unit. It holds what proves who we are, and is shown to nobody.
type Key = (Endpoint, Vec<(String, String)>);

/// The targets in use.
#[derive(Default)]
pub(crate) struct Targets {
    shared: Mutex<Vec<(Key, Weak<InUse>)>>,
}

/// A target for as long as one of its logical units is in use.
struct InUse {
    target: Arc<Target>,
    queues: Arc<SharedController>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.target.close();
    }
}

impl Targets {
    /// The logical unit that `uri` names, behind a target that is there already or a new one whose control session is on `host`. Its
    /// sessions are opened on `hosts`.
    pub(crate) fn open(
        &self,
        uri: &DiskUri,
        host: Arc<dyn Host>,
        hosts: Vec<Arc<dyn Host>>,
    ) -> Result<Arc<SharedDevice>, UriError> {
        let (mut config, lun) = TargetConfig::from_uri(uri)?;
        // The target looks after all logical units, and is named after none.
        config.name = format!("iscsi://{}/{}", config.portal, config.target);
        let key = key(uri);
        let mut shared = self.lock();
        shared.retain(|(_, t)| t.strong_count() > 0);
        let found = shared.iter().find(|(k, _)| *k == key).and_then(|(_, t)| t.upgrade());
        let in_use = match found {
            Some(in_use) => in_use,
            None => {
                let no_bell = |e: std::io::Error| uri.error("host", format!("no eventfd for its sessions: {e}"));
                let target = Target::start(config, host).map_err(no_bell)?;
                let queues = SharedController::new(Arc::new(DiskSource(target.clone())), hosts);
                let in_use = Arc::new(InUse { target, queues });
                shared.push((key, Arc::downgrade(&in_use)));
                in_use
            }
        };
        drop(shared);
        let disk = in_use.target.disk(lun, false).map_err(|e| uri.error("LUN", e.to_string()))?;
        let (unit, queues) = (disk.unit(), in_use.queues.clone());
        let unit_of = LogicalUnit {
            name: uri.to_string(),
            disk,
            in_use: Mutex::new(Some(in_use)),
            closed: AtomicBool::new(false),
        };
        Ok(queues.device(Arc::new(unit_of), unit))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Key, Weak<InUse>)>> {
        self.shared.lock().unwrap_or_else(|p| p.into_inner())
    }
}

fn key(uri: &DiskUri) -> Key {
    let mut endpoint = uri.endpoint.clone();
    if let Endpoint::Iscsi { lun, .. } = &mut endpoint {
        *lun = 0;
    }
    let mut options = uri.options.clone();
    options.sort_unstable();
    (endpoint, options)
}

/// A logical unit that lets go of its target when it is closed.
struct LogicalUnit {
    name: String,
    disk: Arc<ScsiDisk<Target>>,
    in_use: Mutex<Option<Arc<InUse>>>,
    closed: AtomicBool,
}

impl Device for LogicalUnit {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> DeviceState {
        self.disk.state()
    }

    fn version(&self) -> u64 {
        self.disk.version() + u64::from(self.closed.load(Ordering::Relaxed))
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        self.disk.open_queue(config)
    }

    fn landing_bound(&self) -> Duration {
        self.disk.landing_bound()
    }

    fn close(&self) {
        self.disk.close();
        self.closed.store(true, Ordering::Relaxed);
        let in_use = self.in_use.lock().unwrap_or_else(|p| p.into_inner()).take();
        // Outside the lock: the last one closes the target.
        drop(in_use);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_that_differ_in_the_logical_unit_share_a_key() {
        let k = |text: &str| key(&text.parse().unwrap());
        let base = "iscsi://10.0.0.1/iqn.2026-01.org.example:a";
        assert_eq!(k(&format!("{base}/1")), k(&format!("{base}/2")));
        assert_eq!(k(&format!("{base}/1?hdgst=on&ddgst=on")), k(&format!("{base}/1?ddgst=on&hdgst=on")));
        assert_ne!(k(&format!("{base}/1")), k(&format!("{base}/1?hdgst=on")));
        assert_ne!(k(&format!("{base}/1")), k("iscsi://10.0.0.2/iqn.2026-01.org.example:a/1"));
        assert_ne!(
            k("iscsi://joe%one@10.0.0.1/iqn.2026-01.org.example:a/1"),
            k("iscsi://joe%two@10.0.0.1/iqn.2026-01.org.example:a/1")
        );
    }
}
