//! The namespaces that a queue carries requests to, as the queue knows them.

use crate::association::Association;
use crate::shared::{NamespacePin, Shared};
use polypath_block::{Code, Limits, OpenError, Unit, UnitId};
use std::sync::Arc;

/// Units of one queue, which a [`Unit`] numbers.
const MOST: usize = u16::MAX as usize;

/// One namespace.
pub(super) struct UnitState {
    id: UnitId,
    /// The namespace asked for; `None`: the only one there is.
    ns: Option<u32>,
    users: u32,
    /// It can be used over the association that is up.
    pub(super) usable: bool,
    pub(super) nsid: u32,
    pub(super) block_size: u32,
    pub(super) blocks: u64,
    pub(super) limits: Limits,
    /// Should another namespace appear under its number, it is noticed.
    _pin: NamespacePin,
}

/// See the module.
#[derive(Default)]
pub(super) struct Units(Vec<Option<UnitState>>);

/// What following the controller has brought for a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Nothing that concerns requests that are open.
    None,
    /// Open requests are not for what it is now, for this reason.
    Revoked(Code),
}

impl Units {
    pub(super) fn open(&mut self, shared: &Arc<Shared>, id: UnitId) -> Result<Unit, OpenError> {
        if let Some((at, unit)) = (0u16..).zip(&mut self.0).find(|(_, u)| u.as_ref().is_some_and(|u| u.id == id))
            && let Some(unit) = unit
        {
            unit.users += 1;
            return Ok(Unit(at));
        }
        let ns = (id != UnitId::ONLY).then(|| u32::try_from(id.0).unwrap_or(u32::MAX));
        let state = UnitState {
            id,
            ns,
            users: 1,
            usable: false,
            nsid: 0,
            block_size: 512,
            blocks: 0,
            limits: Limits::UNLIMITED,
            _pin: shared.pin(ns),
        };
        let at = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        if at >= MOST {
            let reason = format!("{MOST} namespaces are open on one I/O queue, which is the most it takes");
            return Err(OpenError::System { name: shared.config.name.clone(), reason });
        }
        if at == self.0.len() {
            self.0.push(None);
        }
        self.0[at] = Some(state);
        Ok(Unit(at as u16))
    }

    pub(super) fn close(&mut self, unit: Unit) {
        let Some(slot) = self.0.get_mut(usize::from(unit.0)) else { return };
        if let Some(state) = slot {
            state.users -= 1;
            if state.users == 0 {
                *slot = None;
            }
        }
    }

    #[inline]
    pub(super) fn get(&self, unit: Unit) -> Option<&UnitState> {
        self.0.get(usize::from(unit.0))?.as_ref()
    }

    /// Looks at every namespace over `association`, or at none when no association is up; tells what has changed.
    pub(super) fn follow(
        &mut self,
        shared: &Shared,
        association: Option<&Association>,
        mut changed: impl FnMut(Unit, Change),
    ) {
        for (at, unit) in (0u16..).zip(&mut self.0) {
            if let Some(unit) = unit {
                changed(Unit(at), unit.follow(shared, association));
            }
        }
    }
}

impl UnitState {
    fn follow(&mut self, shared: &Shared, association: Option<&Association>) -> Change {
        let Some(association) = association else {
            // What was on the way is lost with the connection.
            self.usable = false;
            return Change::None;
        };
        let was_usable = std::mem::replace(&mut self.usable, false);
        let (nsid, namespace) = match shared.namespace(association, self.ns) {
            Ok(found) => found,
            Err(_) if was_usable => return Change::Revoked(Code::PathNoAccess),
            Err(_) => return Change::None,
        };
        if let Some((code, _)) = namespace.trouble {
            return Change::Revoked(code);
        }
        let info = &namespace.info;
        // Requests are in blocks: of another size, or under another number, they mean something else.
        let same = nsid == self.nsid && info.geometry.block_size == self.block_size;
        self.usable = true;
        self.nsid = nsid;
        self.block_size = info.geometry.block_size;
        self.blocks = info.geometry.blocks;
        self.limits = info.limits;
        if was_usable && !same { Change::Revoked(Code::PathIdentity) } else { Change::None }
    }
}
