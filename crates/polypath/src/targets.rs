//! iSCSI targets, shared among the URIs that differ in nothing but the logical unit: one session per reactor for all of them.

use crate::in_use::{InUse, Unit};
use crate::sources::Units;
use polypath_block::{DiskUri, Endpoint, Host, UriError};
use polypath_iscsi::{Target, TargetConfig};
use polypath_scsi::midlayer::{BusState, DiskSource, HostBus, ListingUse};
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
        let (config, lun) = TargetConfig::from_uri(uri)?;
        let shared = self.shared(uri, config, host, hosts)?;
        let disk = shared.target.disk(lun, false).map_err(|e| uri.error("LUN", e.to_string()))?;
        let (unit, queues) = (disk.unit(), shared.queues.clone());
        Ok(queues.device(Unit::new(uri.to_string(), disk, shared), unit))
    }

    /// All logical units of the target that `uri` names, behind the same sessions as those that are opened.
    pub(crate) fn units(
        &self,
        uri: &DiskUri,
        host: Arc<dyn Host>,
        hosts: Vec<Arc<dyn Host>>,
    ) -> Result<Arc<dyn Units>, UriError> {
        let (config, _) = TargetConfig::from_uri(uri)?;
        let shared = self.shared(uri, config, host, hosts)?;
        let list = shared.target.bus().list_units();
        Ok(Arc::new(LogicalUnits { shared, list }))
    }

    fn shared(
        &self,
        uri: &DiskUri,
        mut config: TargetConfig,
        host: Arc<dyn Host>,
        hosts: Vec<Arc<dyn Host>>,
    ) -> Result<Arc<Shared>, UriError> {
        // The target looks after all logical units, and is named after none.
        config.name = format!("iscsi://{}/{}", config.portal, config.target);
        self.0.find_or_make(key(uri), || {
            let no_bell = |e: std::io::Error| uri.error("host", format!("no eventfd for its sessions: {e}"));
            let target = Target::start(config, host).map_err(no_bell)?;
            let queues = SharedController::new(Arc::new(DiskSource(target.clone())), hosts);
            Ok(Shared { target, queues })
        })
    }
}

/// What a target reports, for as long as somebody wants to know.
struct LogicalUnits {
    shared: Arc<Shared>,
    list: ListingUse,
}

impl Units for LogicalUnits {
    fn listed(&self) -> Option<Vec<u32>> {
        match self.shared.target.bus().state() {
            BusState::Up => Some(self.list.listed()?.luns.to_vec()),
            _ => None,
        }
    }

    fn gone(&self) -> Option<String> {
        match self.shared.target.bus().state() {
            BusState::Gone { reason } => Some(reason),
            _ => None,
        }
    }

    fn trouble(&self) -> Option<String> {
        match self.shared.target.bus().state() {
            BusState::Down { reason, .. } => Some(reason),
            _ => None,
        }
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
