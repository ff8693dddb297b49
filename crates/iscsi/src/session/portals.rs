//! Where a session may connect: its portal first, others of the same portal group when that is not to be had, and wherever the target has
//! sent us for now (RFC 7143 section 13.8, TargetAddress).

use crate::config::{Portal, TargetConfig};
use polypath_net::Bell;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

type Resolved = Arc<Mutex<Option<io::Result<Vec<SocketAddr>>>>>;

/// See the module.
pub(super) struct Portals {
    all: Vec<Portal>,
    /// Which is tried next.
    at: usize,
    /// Where the target has sent us.
    moved: Option<Portal>,
    /// Addresses of the portal at hand that were not tried yet.
    addresses: Vec<SocketAddr>,
    resolving: Option<(Portal, Resolved)>,
}

impl Portals {
    pub(super) fn new(config: &TargetConfig) -> Self {
        let mut all = vec![config.portal.clone()];
        all.extend(config.alternates.iter().filter(|p| **p != config.portal).cloned());
        Portals { all, at: 0, moved: None, addresses: Vec::new(), resolving: None }
    }

    /// The first is tried first again.
    pub(super) fn again(&mut self) {
        (self.at, self.moved) = (0, None);
        self.addresses.clear();
    }

    /// The target is to be found there for now.
    pub(super) fn moved_to(&mut self, portal: Portal) {
        self.moved = Some(portal);
        self.addresses.clear();
    }

    /// Is a name being asked for, whose answer rings the bell?
    pub(super) fn is_resolving(&self) -> bool {
        self.resolving.is_some()
    }

    /// The next address to be tried; `None` while a name is being asked for.
    pub(super) fn next(&mut self, config: &TargetConfig, bell: &Arc<Bell>) -> Option<Result<SocketAddr, String>> {
        if let Some(address) = self.addresses.pop() {
            return Some(Ok(address));
        }
        if let Some((portal, resolved)) = &self.resolving {
            let answer = resolved.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            let portal = portal.to_string();
            self.resolving = None;
            return Some(match answer {
                Ok(mut addresses) => {
                    addresses.reverse();
                    self.addresses = addresses;
                    self.addresses.pop().ok_or_else(|| format!("the name in {portal} has no address"))
                }
                Err(error) => Err(format!("the name in {portal} cannot be resolved: {error}")),
            });
        }
        let portal = self.moved.take().unwrap_or_else(|| {
            let portal = self.all[self.at % self.all.len()].clone();
            self.at += 1;
            portal
        });
        if let Ok(address) = portal.host.parse() {
            return Some(Ok(SocketAddr::new(address, portal.port)));
        }
        self.resolve(config, portal, bell)
    }

    /// Asks the system's resolver on a thread of its own.
    fn resolve(
        &mut self,
        config: &TargetConfig,
        portal: Portal,
        bell: &Arc<Bell>,
    ) -> Option<Result<SocketAddr, String>> {
        let resolved = Resolved::default();
        let (tell, bell, asked) = (resolved.clone(), bell.clone(), portal.clone());
        let spawned = std::thread::Builder::new().name("resolve".into()).spawn(move || {
            let addresses = polypath_net::resolve(&asked.host, asked.port);
            *tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(addresses);
            bell.ring();
        });
        match spawned {
            Ok(_) => {
                self.resolving = Some((portal, resolved));
                None
            }
            Err(error) => {
                tracing::error!(path = %config.name, %error, "no thread to resolve a name");
                Some(Err(format!("no thread to resolve {portal}: {error}")))
            }
        }
    }
}
