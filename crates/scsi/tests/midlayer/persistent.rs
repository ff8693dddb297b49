//! What a device server keeps of persistent reservations, by nexus.

use polypath_scsi::ScsiStatus;
use polypath_scsi::opcode::pr_out;
use polypath_scsi::reservation::{Keys, PrOutData, Reservation, ReservationType, parse_scope_type};

#[derive(Default)]
pub(crate) struct Persistent {
    pub(crate) generation: u32,
    /// Nexus and key.
    pub(crate) registered: Vec<(u64, u64)>,
    /// Nexus and type.
    pub(crate) held: Option<(u64, ReservationType)>,
    /// Every PERSISTENT RESERVE OUT with its nexus.
    pub(crate) log: Vec<(u64, u8)>,
    /// Nexuses that are to hear that they were preempted.
    pub(crate) to_hear: Vec<u64>,
}

impl Persistent {
    pub(crate) fn key_of(&self, nexus: u64) -> Option<u64> {
        self.registered.iter().find(|(n, _)| *n == nexus).map(|(_, key)| *key)
    }

    pub(crate) fn keys(&self) -> Vec<u8> {
        Keys { generation: self.generation, keys: self.registered.iter().map(|(_, key)| *key).collect() }.to_bytes()
    }

    pub(crate) fn reservation(&self) -> Vec<u8> {
        let held = self.held.map(|(nexus, kind)| (self.key_of(nexus).unwrap_or(0), kind));
        Reservation { generation: self.generation, held }.to_bytes()
    }

    /// May this nexus write?
    pub(crate) fn may_write(&self, nexus: u64) -> bool {
        self.held.is_none_or(
            |(holder, kind)| {
                if kind.is_for_registrants() { self.key_of(nexus).is_some() } else { holder == nexus }
            },
        )
    }

    pub(crate) fn out(&mut self, nexus: u64, action: u8, scope_type: u8, data: &[u8]) -> ScsiStatus {
        const GOOD: ScsiStatus = ScsiStatus::GOOD;
        let data = PrOutData::parse(data).unwrap();
        self.log.push((nexus, action));
        let ours = self.key_of(nexus);
        let ignores = action == pr_out::REGISTER_AND_IGNORE_EXISTING_KEY;
        if !ignores && ours.unwrap_or(0) != data.key {
            return ScsiStatus::RESERVATION_CONFLICT;
        }
        match action {
            pr_out::REGISTER | pr_out::REGISTER_AND_IGNORE_EXISTING_KEY => {
                self.generation += 1;
                self.registered.retain(|(n, _)| *n != nexus);
                if data.action_key != 0 {
                    self.registered.push((nexus, data.action_key));
                } else if self.held.is_some_and(|(holder, _)| holder == nexus) {
                    self.held = None;
                }
                return GOOD;
            }
            _ if ours.is_none() => return ScsiStatus::RESERVATION_CONFLICT,
            _ => {}
        }
        match action {
            pr_out::RESERVE => match self.held {
                Some((holder, _)) if holder != nexus => return ScsiStatus::RESERVATION_CONFLICT,
                _ => self.held = Some((nexus, parse_scope_type(scope_type).unwrap())),
            },
            pr_out::RELEASE => drop(self.held.take_if(|(holder, _)| *holder == nexus)),
            pr_out::CLEAR => {
                self.generation += 1;
                (self.registered, self.held) = (Vec::new(), None);
            }
            _ => self.preempt(nexus, data.action_key, parse_scope_type(scope_type).unwrap()),
        }
        GOOD
    }

    pub(crate) fn preempt(&mut self, nexus: u64, victim: u64, kind: ReservationType) {
        self.generation += 1;
        let held = self.held.and_then(|(holder, _)| self.key_of(holder));
        let ended = self.registered.iter().filter(|(n, key)| *key == victim && *n != nexus);
        self.to_hear.extend(ended.map(|(n, _)| *n));
        self.registered.retain(|(n, key)| *key != victim || *n == nexus);
        if held == Some(victim) {
            self.held = Some((nexus, kind));
        }
    }
}
