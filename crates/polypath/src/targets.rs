//! iSCSI targets, shared among the URIs that differ in nothing but the logical unit: one session per reactor for all of them.

use crate::in_use::{InUse, Unit};
use polypath_block::{DiskUri, Endpoint, Host, UriError};
use polypath_iscsi::{Target, TargetConfig};
use polypath_scsi::midlayer::DiskSource;
use polypath_sharing::{SharedController, SharedDevice};
use std::sync::Arc;

/// All of a URI but the logical unit. It holds what proves who we are, and is shown to nobody.
type Key = (Endpoint, Vec<(String, String)>);

/// The targets in use.
#[derive(Default)]
pub(crate) struct Targets(InUse<Key, Shared>);

/// A target for as long as one of its logical units is in use.
struct Shared {
    target: Arc<Target>,
    queues: Arc<SharedController>,
}

impl Drop for Shared {
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
        let shared = self.0.find_or_make(key(uri), || {
            let no_bell = |e: std::io::Error| uri.error("host", format!("no eventfd for its sessions: {e}"));
            let target = Target::start(config, host).map_err(no_bell)?;
            let queues = SharedController::new(Arc::new(DiskSource(target.clone())), hosts);
            Ok(Shared { target, queues })
        })?;
        let disk = shared.target.disk(lun, false).map_err(|e| uri.error("LUN", e.to_string()))?;
        let (unit, queues) = (disk.unit(), shared.queues.clone());
        Ok(queues.device(Unit::new(uri.to_string(), disk, shared), unit))
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
