//! What the engine asks of the world: which services a source lists, which units a service has, and a device for each. A trait, so that
//! the engine can be tried on a world of its own.

use super::uri::{ServiceUri, SourceKind, SourceUri};
use crate::error::Error;
use crate::stack::Stack;
use polypath_block::{Device, DiskUri, Endpoint, Scheme};
use polypath_iscsi::discover::discovery_config;
use polypath_iscsi::login::DiscoveredTarget;
use polypath_nvmf_tcp::{AddressFamily, Controller, ControllerConfig, DiscoveryEntry, SubsystemType, TransportType};
use std::net::IpAddr;
use std::sync::Arc;

/// Most services that are taken of one source.
pub(crate) const MOST_SERVICES: usize = 256;

/// What one service has, kept up to date by its driver.
pub(crate) trait Units: Send + Sync {
    /// Its units now, ascending. `None`: it does not answer now, so nobody knows.
    fn listed(&self) -> Option<Vec<u32>>;

    /// Why it will not answer any more, if that is so: it is to be begun anew.
    fn gone(&self) -> Option<String>;

    /// For people: why it does not answer now.
    fn trouble(&self) -> Option<String>;
}

/// Says that a source's list may have changed.
pub(crate) trait Watch: Send {
    /// Has it since the last call?
    fn changed(&mut self) -> bool;
}

/// See the module.
pub(crate) trait World: Send + Sync {
    /// What `source` lists. **Blocks**, for a bounded time.
    fn ask(&self, source: &SourceUri) -> Result<Vec<ServiceUri>, String>;

    /// Somebody who is told when the list changes, where there is such a thing.
    fn watch(&self, source: &SourceUri) -> Option<Box<dyn Watch>>;

    /// Begins to look at a service.
    fn look(&self, service: &ServiceUri) -> Result<Arc<dyn Units>, String>;

    /// Opens one path.
    fn open(&self, path: &DiskUri) -> Result<Arc<dyn Device>, String>;
}

/// The network, through a stack.
pub(crate) struct Network(pub(crate) Stack);

impl World for Network {
    fn ask(&self, source: &SourceUri) -> Result<Vec<ServiceUri>, String> {
        list(source).map_err(|e| e.to_string())
    }

    fn watch(&self, source: &SourceUri) -> Option<Box<dyn Watch>> {
        let config = (source.kind() == SourceKind::NvmeDiscovery).then(|| ControllerConfig::from_uri(&source.uri).ok());
        let config = ControllerConfig { ctrl_loss_timeout: None, ..config.flatten()? };
        let controller = Controller::start(config, self.0.next_host());
        Some(Box::new(DiscoveryWatch { controller, seen: Vec::new() }))
    }

    fn look(&self, service: &ServiceUri) -> Result<Arc<dyn Units>, String> {
        if service.single {
            return Ok(Arc::new(Single));
        }
        self.0.units(&service.for_driver(&service.uri)).map_err(|e| e.to_string())
    }

    fn open(&self, path: &DiskUri) -> Result<Arc<dyn Device>, String> {
        self.0.open_device(path).map_err(|e| e.to_string())
    }
}

/// A path that was given whole.
struct Single;

impl Units for Single {
    fn listed(&self) -> Option<Vec<u32>> {
        Some(vec![0])
    }

    fn gone(&self) -> Option<String> {
        None
    }

    fn trouble(&self) -> Option<String> {
        None
    }
}

/// A discovery controller that is kept for its events (NVMe Base 2.1 section 3.1.3.3, persistent connections).
struct DiscoveryWatch {
    controller: Arc<Controller>,
    seen: Vec<DiscoveryEntry>,
}

impl Watch for DiscoveryWatch {
    fn changed(&mut self) -> bool {
        if !self.controller.is_live() {
            return false;
        }
        let now = self.controller.discovered();
        let changed = now != self.seen;
        self.seen = now;
        changed
    }
}

impl Drop for DiscoveryWatch {
    fn drop(&mut self) {
        self.controller.close();
    }
}

/// Everything that `source` lists now: what [`Sources`](super::Sources) asks again and again, asked once. **Blocks**, for a bounded time.
///
/// # Errors
/// The source does not answer as it should.
pub(crate) fn list(source: &SourceUri) -> Result<Vec<ServiceUri>, Error> {
    let mut services = match source.kind() {
        SourceKind::NvmeDiscovery => {
            let config = ControllerConfig::from_uri(&source.uri)?;
            let entries = polypath_nvmf_tcp::discover(&config).map_err(|e| unanswered(source, e))?;
            entries.iter().filter_map(|entry| subsystem(&source.uri, &config.host, entry)).collect()
        }
        SourceKind::IscsiPortal => {
            let config = discovery_config(&source.uri)?;
            let targets = polypath_iscsi::discover::discover(&config).map_err(|e| unanswered(source, e))?;
            targets.iter().flat_map(|target| portals(&source.uri, target)).collect()
        }
        SourceKind::NvmeSubsystem | SourceKind::IscsiTarget => vec![ServiceUri::new(&source.uri, false)],
        SourceKind::Path => vec![ServiceUri::new(&source.uri, true)],
    };
    let mut keys = std::collections::BTreeSet::new();
    services.retain(|service| keys.insert(service.key.clone()));
    if services.len() > MOST_SERVICES {
        tracing::warn!(%source, listed = services.len(), "only the first {MOST_SERVICES} that are listed are taken");
        services.truncate(MOST_SERVICES);
    }
    Ok(services)
}

fn unanswered(source: &SourceUri, error: impl std::fmt::Display) -> Error {
    Error::Spec { what: source.to_string(), problem: error.to_string() }
}

/// The subsystem that a discovery log names, if we could reach it.
fn subsystem(source: &DiskUri, asked: &str, entry: &DiscoveryEntry) -> Option<ServiceUri> {
    let tcp = entry.transport == TransportType::Tcp && !matches!(entry.family, AddressFamily::Other(_));
    if entry.subsystem_type != SubsystemType::Nvm || !tcp {
        return None;
    }
    let (address, port) = (entry.traddr.trim().parse::<IpAddr>(), entry.trsvcid.trim().parse::<u16>());
    let (Ok(address), Ok(port @ 1..)) = (address, port) else {
        tracing::warn!(%source, traddr = entry.traddr, trsvcid = entry.trsvcid, "a discovery entry without an address is left out");
        return None;
    };
    let host = if address.is_unspecified() {
        tracing::warn!(%source, %address, "a subsystem is listed at no address; the address that was asked is taken in its place");
        asked.to_owned()
    } else {
        address.to_string()
    };
    let endpoint = Endpoint::NvmeTcp { host, port, subnqn: entry.subnqn.as_str().to_owned() };
    Some(ServiceUri::new(&DiskUri::from_parts(Scheme::NvmeTcp, endpoint, source.options.clone()), false))
}

/// Each portal of a target.
fn portals<'a>(source: &'a DiskUri, target: &'a DiscoveredTarget) -> impl Iterator<Item = ServiceUri> + 'a {
    target.portals.iter().filter_map(|portal| {
        let Endpoint::Iscsi { user, secret, .. } = &source.endpoint else { return None };
        let endpoint = Endpoint::Iscsi {
            user: user.clone(),
            secret: secret.clone(),
            host: portal.host.clone(),
            port: portal.port,
            iqn: target.name.as_str().to_owned(),
            lun: 0,
        };
        Some(ServiceUri::new(&DiskUri::from_parts(Scheme::Iscsi, endpoint, source.options.clone()), false))
    })
}
