//! PERSISTENT RESERVE IN and OUT (SPC-4 6.15 and 6.16) over the reservations that belong to the disk.

use super::{ANSWERED, Outcome, Verdict, sense};
use crate::iscsi::conn::Conn;
use crate::iscsi::order::State;
use crate::iscsi::{Env, attention};
use crate::media::{Hold, News, Party, Refusal, Told};
use crate::store::Disk;
use polypath_iscsi::pdu::ScsiCommand;
use polypath_scsi::cdb::ByteCheck;
use polypath_scsi::command::Command;
use polypath_scsi::opcode::{pr_in, pr_out};
use polypath_scsi::reservation::{
    Capabilities, FullStatus, FullStatusList, Keys, PrOutData, Reservation, ReservationType, TransportId,
    parse_scope_type,
};

/// What reservations of others forbid about a command: reading (`false`), writing (`true`), nothing (SPC-4 table 66, SBC-3 table 12).
#[inline]
pub(super) fn touches(command: &Command) -> Option<bool> {
    match command {
        Command::Read(_)
        | Command::Verify { check: ByteCheck::None, .. }
        | Command::Verify { .. }
        | Command::ModeSense { .. }
        | Command::GetLbaStatus { .. } => Some(false),
        Command::Write(_)
        | Command::CompareAndWrite(_)
        | Command::Unmap { .. }
        | Command::WriteSame { .. }
        | Command::SynchronizeCache { .. }
        | Command::SetTargetPortGroups { .. } => Some(true),
        Command::StartStopUnit(what) if !what.start => Some(true),
        _ => None,
    }
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Verdict {
        match refusal {
            Refusal::Conflict => Verdict::CONFLICT,
            Refusal::InvalidRelease => Verdict::check(sense::INVALID_RELEASE),
            // Of a device server that cannot keep them, SPC-4 5.13.5 wants just this for APTPL.
            Refusal::NoKey | Refusal::CannotPersist => Verdict::check(sense::INVALID_FIELD_IN_PARAMETERS),
            Refusal::NotKept => Verdict::check(sense::INTERNAL_FAILURE),
            Refusal::Full => Verdict::check(sense::INSUFFICIENT_REGISTRATIONS),
        }
    }
}

/// Has initiators hear what has become of their registrations and reservations.
pub(super) fn tell(env: &Env<'_>, store: usize, unit: u32, told: &Told) {
    if told.is_empty() {
        return;
    }
    for session in env.iscsi.sessions_of(store) {
        for (_, news) in told.iter().filter(|(party, _)| *party == *session.party) {
            let code = match news {
                News::ReservationsPreempted => attention::RESERVATIONS_PREEMPTED,
                News::ReservationsReleased => attention::RESERVATIONS_RELEASED,
                News::RegistrationsPreempted => attention::REGISTRATIONS_PREEMPTED,
            };
            session.attend(unit, code);
        }
    }
}

/// The TransportID of an initiator port, made of its name.
fn transport_id(party: &Party) -> TransportId {
    let (name, isid) = party.initiator.split_once(",i,0x").unwrap_or((&party.initiator, ""));
    let octet = |at: usize| isid.get(2 * at..2 * at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let isid = (isid.len() == 12).then(|| std::array::from_fn(|at| octet(at).unwrap_or(0)));
    TransportId::iscsi(name, isid)
}

impl Conn {
    pub(super) fn reserve_in(&self, disk: &Disk, action: u8) -> Result<Vec<u8>, Verdict> {
        let picture = disk.reservations.picture();
        let generation = picture.generation;
        Ok(match action {
            pr_in::READ_KEYS => {
                Keys { generation, keys: picture.registered.iter().map(|(_, key)| *key).collect() }.to_bytes()
            }
            pr_in::READ_RESERVATION => {
                let held = picture.held.as_ref().map(|(held, holder)| {
                    let key = picture.registered.iter().find(|(party, _)| party == holder).map_or(0, |(_, key)| *key);
                    let all = matches!(held, Hold::All { .. });
                    (if all { 0 } else { key }, (*held).into())
                });
                Reservation { generation, held }.to_bytes()
            }
            pr_in::REPORT_CAPABILITIES => Capabilities {
                // As many as the types, all of them.
                types: Some(ReservationType::ALL.to_vec()),
                persist_capable: disk.reservations.can_persist(),
                persist_active: picture.persists,
                ..Capabilities::default()
            }
            .to_bytes()
            .to_vec(),
            pr_in::READ_FULL_STATUS => {
                let one = |(party, key): &(Party, u64)| FullStatus {
                    key: *key,
                    all_target_ports: false,
                    holds: picture.held.as_ref().filter(|_| picture.holds(party)).map(|(held, _)| (*held).into()),
                    relative_target_port: party.port,
                    initiator: transport_id(party),
                };
                FullStatusList { generation, registrations: picture.registered.iter().map(one).collect() }.to_bytes()
            }
            _ => return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB)),
        })
    }

    pub(super) fn reserve_out(
        &mut self,
        env: &Env<'_>,
        cmd: &ScsiCommand,
        disk: &Disk,
        action: u8,
        scope_type: u8,
        data: &[u8],
    ) -> Outcome {
        let invalid = Verdict::check(sense::INVALID_FIELD_IN_CDB);
        let Some(session) = self.session.clone() else { return Err(invalid) };
        if !(pr_out::REGISTER..=pr_out::REGISTER_AND_IGNORE_EXISTING_KEY).contains(&action) {
            return Err(invalid);
        }
        let list = PrOutData::parse(data).map_err(|_| Verdict::check(sense::PARAMETER_LENGTH))?;
        if list.initiators.is_some() || list.all_target_ports {
            return Err(Verdict::check(sense::INVALID_FIELD_IN_PARAMETERS));
        }
        let wanted = parse_scope_type(scope_type).map(Hold::from).map_err(|_| invalid);
        let (party, all) = (&*session.party, &disk.reservations);
        let persist = Some(list.persist);
        let told = match action {
            pr_out::REGISTER => all.register_and(party, Some(list.key), list.action_key, persist)?,
            pr_out::REGISTER_AND_IGNORE_EXISTING_KEY => all.register_and(party, None, list.action_key, persist)?,
            pr_out::RESERVE => {
                all.reserve(party, list.key, wanted?)?;
                Told::new()
            }
            pr_out::RELEASE => all.release(party, list.key, wanted?)?,
            pr_out::CLEAR => all.clear(party, list.key)?,
            _ => all.preempt(party, list.key, list.action_key, wanted?)?,
        };
        tell(env, session.store, disk.lun, &told);
        disk.reservations.leave_news(told.iter().filter(|(party, _)| party.is_everywhere()).cloned().collect());
        env.iscsi.shared.wake_all();
        if action != pr_out::PREEMPT_AND_ABORT {
            return Ok(());
        }
        let gone = told.into_iter().filter(|(_, news)| *news == News::RegistrationsPreempted);
        let gone: Vec<Party> = gone.map(|(party, _)| party).collect();
        if gone.is_empty() || self.keep(env, cmd, State::Lost).is_none() {
            return Ok(());
        }
        self.abort_theirs(env, cmd, disk.lun, gone);
        Err(Verdict { status: ANSWERED, sense: None })
    }
}
