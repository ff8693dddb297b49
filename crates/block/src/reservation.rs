//! Reservations: which hosts may use a disk that several of them reach. An optional power of a [`Device`](crate::Device).
//!
//! What SCSI (SPC-4 5.9, persistent reservations) and NVMe (Base 2.1 8.1.22) have in common: hosts register with a key; one of them
//! reserves; another registered host may preempt it. SCSI registers each I_T nexus by itself, NVMe each host; a device registers all
//! ways of its own, so that whoever is above it need not know; only a reservation for one alone ([`Reservations::host`]) is another matter.

use crate::fence::Proof;
use crate::status::{Code, Scope, Status};
use core::fmt;
use core::str::FromStr;
use core::time::Duration;

/// How a reservation forbids others what (SPC-4 6.15.3.4, TYPE, whose numbers these are; NVMe Base 2.1 figure 588 has the same six).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum ReservationType {
    /// Others may not write.
    WriteExclusive = 1,
    /// Others may neither read nor write.
    ExclusiveAccess = 3,
    /// Who is not registered may not write.
    WriteExclusiveRegistrantsOnly = 5,
    /// Who is not registered may neither read nor write.
    ExclusiveAccessRegistrantsOnly = 6,
    /// Who is not registered may not write; every registrant holds it.
    WriteExclusiveAllRegistrants = 7,
    /// Who is not registered may neither read nor write; every registrant holds it.
    ExclusiveAccessAllRegistrants = 8,
}

impl ReservationType {
    /// Every type, in the order of NVMe's numbers, which begin with one.
    pub const ALL: [ReservationType; 6] = [
        ReservationType::WriteExclusive,
        ReservationType::ExclusiveAccess,
        ReservationType::WriteExclusiveRegistrantsOnly,
        ReservationType::ExclusiveAccessRegistrantsOnly,
        ReservationType::WriteExclusiveAllRegistrants,
        ReservationType::ExclusiveAccessAllRegistrants,
    ];

    /// The type of SCSI's four bits; `None` for reserved and obsolete ones.
    pub fn from_bits(bits: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == bits)
    }

    /// The type of NVMe's number; `None` for zero, which is no reservation, and for reserved ones.
    pub fn from_nvme_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.nvme_number() == number)
    }

    /// Its number in NVMe, from 1 to 6.
    pub const fn nvme_number(self) -> u8 {
        match self {
            ReservationType::WriteExclusive => 1,
            ReservationType::ExclusiveAccess => 2,
            ReservationType::WriteExclusiveRegistrantsOnly => 3,
            ReservationType::ExclusiveAccessRegistrantsOnly => 4,
            ReservationType::WriteExclusiveAllRegistrants => 5,
            ReservationType::ExclusiveAccessAllRegistrants => 6,
        }
    }

    /// Does it leave it to all registrants what it forbids others? Of the others only the holder has it.
    pub const fn is_for_registrants(self) -> bool {
        !matches!(self, ReservationType::WriteExclusive | ReservationType::ExclusiveAccess)
    }

    /// Its name in configuration and RPC.
    pub const fn as_str(self) -> &'static str {
        match self {
            ReservationType::WriteExclusive => "write-exclusive",
            ReservationType::ExclusiveAccess => "exclusive-access",
            ReservationType::WriteExclusiveRegistrantsOnly => "write-exclusive-registrants-only",
            ReservationType::ExclusiveAccessRegistrantsOnly => "exclusive-access-registrants-only",
            ReservationType::WriteExclusiveAllRegistrants => "write-exclusive-all-registrants",
            ReservationType::ExclusiveAccessAllRegistrants => "exclusive-access-all-registrants",
        }
    }
}

impl fmt::Display for ReservationType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No type has that name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("\"{given}\" is no type of reservation; expected one of: {}", ReservationType::ALL.map(ReservationType::as_str).join(", "))]
pub struct UnknownReservationType {
    /// As given.
    pub given: String,
}

impl FromStr for ReservationType {
    type Err = UnknownReservationType;

    fn from_str(text: &str) -> Result<Self, UnknownReservationType> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| UnknownReservationType { given: text.to_owned() })
    }
}

/// What is asked of a device. Keys are not zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReservationOp {
    /// Registers this host with `key`, whatever it was registered with, on every way of the device that is there or will be.
    Register {
        /// The key.
        key: u64,
    },
    /// The same for a device of a disk that this host has registered with already: a conflict if nobody is registered with `key`
    /// any more, for somebody has ended that.
    Join {
        /// The key.
        key: u64,
        /// The identifier of this host ([`Reservations::host`]), where another way of it is registered: then the registration is there
        /// already, and nobody else's with the same key stands for it. `None`: anybody's with `key` does.
        host: Option<[u8; 16]>,
    },
    /// Ends the registration on every way of the device, and the reservation if this host holds it.
    Unregister {
        /// The key that it is registered with.
        key: u64,
    },
    /// Reserves.
    Reserve {
        /// The key that this host is registered with.
        key: u64,
        /// How.
        kind: ReservationType,
    },
    /// Releases what this host holds.
    Release {
        /// The key that this host is registered with.
        key: u64,
        /// How it was reserved.
        kind: ReservationType,
    },
    /// Ends the registrations with `victim`, and takes the reservation if that held it.
    Preempt {
        /// The key that this host is registered with.
        key: u64,
        /// The key whose registrations end.
        victim: u64,
        /// How it is reserved from then on.
        kind: ReservationType,
        /// Commands of those that are preempted are aborted, too.
        abort: bool,
    },
    /// Ends all registrations and the reservation.
    Clear {
        /// The key that this host is registered with.
        key: u64,
    },
    /// Reads who is registered, and who holds what.
    Report,
}

impl ReservationOp {
    /// The key that this host is, or is to be, registered with.
    pub const fn key(&self) -> Option<u64> {
        use ReservationOp as Op;
        match *self {
            Op::Register { key } | Op::Join { key, .. } | Op::Unregister { key } | Op::Clear { key } => Some(key),
            Op::Reserve { key, .. } | Op::Release { key, .. } | Op::Preempt { key, .. } => Some(key),
            Op::Report => None,
        }
    }

    /// How it is to be reserved, if it is.
    pub const fn kind(&self) -> Option<ReservationType> {
        match *self {
            ReservationOp::Reserve { kind, .. } | ReservationOp::Preempt { kind, .. } => Some(kind),
            _ => None,
        }
    }

    /// # Errors
    /// [`Code::Invalid`] for a key of zero, which is none.
    pub fn check_key(&self) -> Result<(), ReservationError> {
        match self.key() {
            Some(0) => Err(ReservationError::new(Code::Invalid, "key 0 is none; expected another number")),
            _ => Ok(()),
        }
    }

    /// Does it change nothing at the device?
    pub const fn is_read(self) -> bool {
        matches!(self, ReservationOp::Report)
    }
}

/// One registration.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Registrant {
    /// Its key.
    pub key: u64,
    /// The host identifier, where the device tells (NVMe).
    pub host: Option<[u8; 16]>,
    /// It holds the reservation, as far as the device tells.
    pub holder: bool,
}

/// Who is registered, and who holds what.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct ReservationReport {
    /// Counts changes of registrations. Begins anew when the device loses its power.
    pub generation: u32,
    /// Every registration: of SCSI one for each nexus, of NVMe one for each controller or host.
    pub registrants: Vec<Registrant>,
    /// How it is reserved; `None`: it is not.
    pub held: Option<ReservationType>,
}

impl ReservationReport {
    /// Is somebody registered with `key`?
    pub fn has(&self, key: u64) -> bool {
        self.registrants.iter().any(|r| r.key == key)
    }

    /// Is it reserved by somebody with `key`? All registrants hold what is for all registrants.
    pub fn is_held_by(&self, key: u64) -> bool {
        let all = matches!(
            self.held,
            Some(ReservationType::WriteExclusiveAllRegistrants | ReservationType::ExclusiveAccessAllRegistrants)
        );
        self.held.is_some() && self.registrants.iter().any(|r| r.key == key && (r.holder || all))
    }
}

/// Why something was not done, or is not known to have been.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct ReservationError {
    /// [`Code::ReservationConflict`]: another host has what was asked for, or has ended ours. [`Code::OutcomeUnknown`]: the way was lost in the
    /// middle; a report tells. What has scope `Path`: it was not carried out there.
    pub code: Code,
    /// For people.
    pub reason: String,
    /// With [`Code::OutcomeUnknown`]: why nothing of it can be carried out any more, if that is known. Without that a report tells what was
    /// done, and not what is still to come.
    pub quiet: Option<Proof>,
}

impl ReservationError {
    /// With a sentence for people.
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        ReservationError { code, reason: reason.into(), quiet: None }
    }

    /// The same, and `proof` says that nothing of it can be carried out any more. [`Proof::None`] says nothing.
    #[must_use]
    pub fn quiet_by(self, proof: Proof) -> Self {
        ReservationError { quiet: Some(proof).filter(|proof| *proof != Proof::None), ..self }
    }

    /// May another path do? It was not carried out on this one.
    pub fn is_of_path(&self) -> bool {
        Status::new(self.code).scope() != Scope::Io
    }
}

/// `None` for whatever reads nothing.
pub type ReservationResult = Result<Option<ReservationReport>, ReservationError>;

/// Takes one answer. Dropped without one, it says that whoever was asked has ended.
pub struct ReservationReply(Option<Box<dyn FnOnce(ReservationResult) + Send>>);

impl ReservationReply {
    /// `take` is called once, on any thread, perhaps before [`Reservations::start`] is back. It must not wait.
    pub fn new(take: impl FnOnce(ReservationResult) + Send + 'static) -> Self {
        ReservationReply(Some(Box::new(take)))
    }

    /// Answers.
    pub fn answer(mut self, result: ReservationResult) {
        if let Some(take) = self.0.take() {
            take(result);
        }
    }
}

impl Drop for ReservationReply {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            let reason = "the device has ended before it answered";
            take(Err(ReservationError::new(Code::OutcomeUnknown, reason)));
        }
    }
}

impl fmt::Debug for ReservationReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReservationReply")
    }
}

/// The power of a device to register, reserve and preempt. Control plane: nothing of it is on the data path.
///
/// A device that was asked to [`ReservationOp::Register`] or [`ReservationOp::Join`] sees to it that every way of its own is registered
/// before it carries I/O, those included that come up later, until it is told otherwise by [`ReservationOp::Unregister`],
/// [`ReservationOp::Clear`] or [`Reservations::forget`], or finds that somebody else has ended the registration. Nothing is ever
/// sent twice whose outcome is not known.
pub trait Reservations: Send + Sync {
    /// Begins `op`. Never waits; `reply` is given an answer within about `limit`.
    fn start(&self, op: ReservationOp, limit: Duration, reply: ReservationReply);

    /// The registration is not ours any more: nothing is registered again. Idempotent, asks nobody.
    fn forget(&self);

    /// Grows, with the version of the device, whenever something was heard that may mean that another host has ended the registration or
    /// the reservation: a unit attention, a notification, a conflict. A report tells.
    fn alarms(&self) -> u64;

    /// The identifier of this host, where one registration covers every way from it to the disk (NVMe). `None`: each way is registered by
    /// itself (SCSI), so that a reservation for one alone is no use to the others.
    fn host(&self) -> Option<[u8; 16]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn types_are_read_as_they_are_written() {
        for kind in ReservationType::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(ReservationType::from_bits(kind as u8), Some(kind));
        }
        let error = "shared".parse::<ReservationType>().unwrap_err().to_string();
        assert!(error.contains("\"shared\"") && error.contains("write-exclusive-registrants-only"), "{error}");
        for (kind, number) in ReservationType::ALL.into_iter().zip(1..) {
            assert_eq!((kind.nvme_number(), ReservationType::from_nvme_number(number)), (number, Some(kind)));
        }
        assert!([0, 7].iter().all(|&number| ReservationType::from_nvme_number(number).is_none()));
        assert!([0, 2, 4, 9, 15].iter().all(|&bits| ReservationType::from_bits(bits).is_none()));
    }

    #[test]
    fn who_holds_it_depends_on_the_type() {
        let registrant = |key, holder| Registrant { key, host: None, holder };
        let registrants = vec![registrant(1, true), registrant(2, false)];
        let report = |held| ReservationReport { generation: 1, registrants: registrants.clone(), held };
        let only = report(Some(ReservationType::WriteExclusiveRegistrantsOnly));
        let all = report(Some(ReservationType::WriteExclusiveAllRegistrants));
        assert_eq!([1, 2, 3].map(|key| only.is_held_by(key)), [true, false, false]);
        assert_eq!([1, 2, 3].map(|key| all.is_held_by(key)), [true, true, false]);
        assert!(!report(None).is_held_by(1) && all.has(2) && !all.has(3));
    }

    #[test]
    fn a_reply_that_is_dropped_says_so_and_one_that_was_given_is_not_given_again() {
        let (tell, told) = channel();
        let reply = |tell: &std::sync::mpsc::Sender<_>| {
            let tell = tell.clone();
            ReservationReply::new(move |result: ReservationResult| tell.send(result.map_err(|e| e.code)).unwrap())
        };
        drop(reply(&tell));
        reply(&tell).answer(Ok(None));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [Err(Code::OutcomeUnknown), Ok(None)]);
    }
}
