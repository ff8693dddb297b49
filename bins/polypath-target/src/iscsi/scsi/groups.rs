//! Target port groups (SPC-4 5.15): one for each portal group tag, its state for a disk being the access state that the control commands
//! set as well.

use super::{Outcome, Verdict, sense};
use crate::config::{AnaState, Protocol};
use crate::iscsi::conn::Conn;
use crate::iscsi::{Env, attention};
use crate::shared::Listener;
use crate::store::Disk;
use polypath_scsi::alua::{
    AluaState, StateChange, SupportedStates, TargetPortGroup, TargetPortGroups, parse_set_target_port_groups,
};

impl Conn {
    pub(super) fn report_groups(&self, env: &Env<'_>, disk: &Disk, extended: bool) -> Vec<u8> {
        let store = self.session.as_ref().and_then(|s| env.iscsi.shared.stores.get(s.store));
        let mut groups: Vec<TargetPortGroup> = Vec::new();
        for (i, listener) in portals(env) {
            let group = listener.portal_group;
            if groups.iter().any(|g| g.group == group) {
                continue;
            }
            let code = store.map_or(1, |store| store.access(i, disk.group));
            groups.push(TargetPortGroup {
                group,
                state: state(code),
                preferred: false,
                supported: SupportedStates::OPTIMIZED
                    | SupportedStates::NON_OPTIMIZED
                    | SupportedStates::STANDBY
                    | SupportedStates::UNAVAILABLE
                    | SupportedStates::TRANSITIONING,
                change: StateChange::Untold,
                ports: vec![group],
            });
        }
        TargetPortGroups { transition_seconds: 0, groups }.to_bytes(extended)
    }

    pub(super) fn set_groups(&self, env: &Env<'_>, disk: &Disk, data: &[u8]) -> Outcome {
        if data.is_empty() {
            return Ok(());
        }
        let list = parse_set_target_port_groups(data).map_err(|_| Verdict::check(sense::PARAMETER_LENGTH))?;
        let invalid = Verdict::check(sense::INVALID_FIELD_IN_PARAMETERS);
        let Some(session) = &self.session else { return Err(invalid) };
        let Some(store) = env.iscsi.shared.stores.get(session.store) else { return Err(invalid) };
        let mut changes = Vec::new();
        for (group, wanted) in list {
            let code = match wanted {
                AluaState::Optimized => AnaState::Optimized,
                AluaState::NonOptimized => AnaState::NonOptimized,
                AluaState::Standby => AnaState::Standby,
                AluaState::Unavailable => AnaState::Inaccessible,
                _ => return Err(invalid),
            };
            let before = changes.len();
            let of_group = portals(env).filter(|(_, l)| l.portal_group == group);
            changes.extend(of_group.map(|(i, _)| (i, code.code())));
            if changes.len() == before {
                return Err(invalid);
            }
        }
        for (listener, code) in changes {
            store.set_access(Some(listener), Some(disk.group), code);
        }
        env.iscsi.attend(session.store, Some(disk.lun), Some(session.tsih), attention::ACCESS_STATE);
        Ok(())
    }
}

fn portals<'a>(env: &Env<'a>) -> impl Iterator<Item = (usize, &'a Listener)> {
    env.iscsi.shared.listeners.iter().enumerate().filter(|(_, l)| l.protocol == Protocol::Iscsi)
}

fn state(code: u8) -> AluaState {
    match AnaState::from_code(code) {
        AnaState::Optimized => AluaState::Optimized,
        AnaState::NonOptimized => AluaState::NonOptimized,
        AnaState::Standby => AluaState::Standby,
        AnaState::Inaccessible | AnaState::PersistentLoss => AluaState::Unavailable,
        AnaState::Change => AluaState::Transitioning,
    }
}
