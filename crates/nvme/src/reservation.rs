//! Reservations of a namespace (Base 2.1 section 8.1.22): the four commands, what they carry, what Reservation Report brings, and the
//! notification log page, 80h.
//!
//! Hosts register with a key, by their host identifier; a registration covers all controllers and queues of the host. Only host
//! identifiers of 128 bits are spoken here, which fabrics demand, and with them the extended data structure of the report.

use crate::sqe::{Sqe, io};
use crate::wire::{Field, fixed, wire_struct};
use crate::{ParseError, StatusField};

/// Bits of RESCAP in Identify Namespace (NVM Command Set 1.1 figure 114).
pub mod rescap {
    /// Reservations persist through a loss of power, if the host wants that.
    pub const PERSIST: u8 = 1 << 0;
    /// Write Exclusive.
    pub const WRITE_EXCLUSIVE: u8 = 1 << 1;
    /// Exclusive Access.
    pub const EXCLUSIVE_ACCESS: u8 = 1 << 2;
    /// Write Exclusive, registrants only.
    pub const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 1 << 3;
    /// Exclusive Access, registrants only.
    pub const EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: u8 = 1 << 4;
    /// Write Exclusive, all registrants.
    pub const WRITE_EXCLUSIVE_ALL_REGISTRANTS: u8 = 1 << 5;
    /// Exclusive Access, all registrants.
    pub const EXCLUSIVE_ACCESS_ALL_REGISTRANTS: u8 = 1 << 6;
    /// Ignore Existing Key is as in revision 1.3 of the specification and later ones.
    pub const IGNORE_KEY_1_3: u8 = 1 << 7;
    /// Every type.
    pub const ALL_TYPES: u8 = 0x7e;
}

/// Bits of feature 82h, Reservation Notification Mask: what is not to be told (Base 2.1 section 5.1.25.1.30).
pub mod mask {
    /// Registration Preempted.
    pub const REGISTRATION_PREEMPTED: u32 = 1 << 1;
    /// Reservation Released.
    pub const RESERVATION_RELEASED: u32 = 1 << 2;
    /// Reservation Preempted.
    pub const RESERVATION_PREEMPTED: u32 = 1 << 3;
    /// All of them.
    pub const ALL: u32 = 0xe;
}

/// Reservation types (Base 2.1 figure 588): 1 to 6, and 0 for none in a report.
pub mod rtype {
    /// Write Exclusive.
    pub const WRITE_EXCLUSIVE: u8 = 1;
    /// Exclusive Access.
    pub const EXCLUSIVE_ACCESS: u8 = 2;
    /// Write Exclusive, registrants only.
    pub const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 3;
    /// Exclusive Access, registrants only.
    pub const EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: u8 = 4;
    /// Write Exclusive, all registrants.
    pub const WRITE_EXCLUSIVE_ALL_REGISTRANTS: u8 = 5;
    /// Exclusive Access, all registrants.
    pub const EXCLUSIVE_ACCESS_ALL_REGISTRANTS: u8 = 6;
    /// The highest.
    pub const LAST: u8 = 6;
}

/// RREGA, what Reservation Register does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RegisterAction {
    /// Registers a host that is not registered.
    Register = 0,
    /// Ends the registration.
    Unregister = 1,
    /// Replaces the key.
    Replace = 2,
}

/// CPTPL, whether reservations are to persist through a loss of power from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ChangePersist {
    /// As it is.
    Keep = 0,
    /// They are not.
    Clear = 2,
    /// They are.
    Set = 3,
}

/// RACQA, what Reservation Acquire does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AcquireAction {
    /// Reserves.
    Acquire = 0,
    /// Ends registrations with another key, and takes the reservation if they held it.
    Preempt = 1,
    /// The same, and aborts commands of those hosts.
    PreemptAndAbort = 2,
}

/// RRELA, what Reservation Release does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ReleaseAction {
    /// Releases what the host holds.
    Release = 0,
    /// Ends all registrations and the reservation.
    Clear = 1,
}

/// What a reservation command asks for, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservationCommand {
    /// Reservation Register, with [`RegisterData`].
    Register {
        /// What it does.
        action: RegisterAction,
        /// The current key is not looked at.
        ignore_key: bool,
        /// Persistence.
        persist: ChangePersist,
    },
    /// Reservation Acquire, with [`AcquireData`].
    Acquire {
        /// What it does.
        action: AcquireAction,
        /// The current key is not looked at; no longer allowed.
        ignore_key: bool,
        /// Of [`rtype`].
        rtype: u8,
    },
    /// Reservation Release, with [`ReleaseData`].
    Release {
        /// What it does.
        action: ReleaseAction,
        /// The current key is not looked at; no longer allowed.
        ignore_key: bool,
        /// Of [`rtype`].
        rtype: u8,
    },
    /// Reservation Report.
    Report {
        /// Octets that are asked for, 4 to 16 GiB.
        len: u64,
        /// The extended data structure.
        extended: bool,
    },
}

impl ReservationCommand {
    /// What the entry asks for.
    ///
    /// # Errors
    /// [`StatusField::INVALID_OPCODE`] for another command, [`StatusField::INVALID_FIELD`] for an action, a type or a way to persist that
    /// there is not.
    pub fn of(sqe: &Sqe) -> Result<Self, StatusField> {
        let (cdw10, invalid) = (sqe.cdw(10), StatusField::INVALID_FIELD);
        let (ignore_key, rtype) = (cdw10 & 1 << 3 != 0, (cdw10 >> 8) as u8);
        let typed = |rtype: u8| (1..=rtype::LAST).contains(&rtype).then_some(rtype).ok_or(invalid);
        Ok(match sqe.opcode() {
            io::RESERVATION_REGISTER => {
                let action = match cdw10 & 7 {
                    0 => RegisterAction::Register,
                    1 => RegisterAction::Unregister,
                    2 => RegisterAction::Replace,
                    _ => return Err(invalid),
                };
                let persist = match cdw10 >> 30 {
                    0 => ChangePersist::Keep,
                    2 => ChangePersist::Clear,
                    3 => ChangePersist::Set,
                    _ => return Err(invalid),
                };
                ReservationCommand::Register { action, ignore_key, persist }
            }
            io::RESERVATION_ACQUIRE => {
                let action = match cdw10 & 7 {
                    0 => AcquireAction::Acquire,
                    1 => AcquireAction::Preempt,
                    2 => AcquireAction::PreemptAndAbort,
                    _ => return Err(invalid),
                };
                ReservationCommand::Acquire { action, ignore_key, rtype: typed(rtype)? }
            }
            io::RESERVATION_RELEASE => match cdw10 & 7 {
                0 => ReservationCommand::Release { action: ReleaseAction::Release, ignore_key, rtype: typed(rtype)? },
                1 => ReservationCommand::Release { action: ReleaseAction::Clear, ignore_key, rtype },
                _ => return Err(invalid),
            },
            io::RESERVATION_REPORT => {
                ReservationCommand::Report { len: (u64::from(cdw10) + 1) * 4, extended: sqe.cdw(11) & 1 != 0 }
            }
            _ => return Err(StatusField::INVALID_OPCODE),
        })
    }

    /// The entry of it for namespace `nsid`; a report asks for its length rounded up to whole dwords.
    pub fn to_sqe(self, cid: u16, nsid: u32) -> Sqe {
        let ignore = |ignore_key: bool| u32::from(ignore_key) << 3;
        match self {
            ReservationCommand::Register { action, ignore_key, persist } => {
                let cdw10 = action as u32 | ignore(ignore_key) | (persist as u32) << 30;
                Sqe::new(io::RESERVATION_REGISTER, cid, nsid).with_cdw(10, cdw10)
            }
            ReservationCommand::Acquire { action, ignore_key, rtype } => {
                let cdw10 = action as u32 | ignore(ignore_key) | u32::from(rtype) << 8;
                Sqe::new(io::RESERVATION_ACQUIRE, cid, nsid).with_cdw(10, cdw10)
            }
            ReservationCommand::Release { action, ignore_key, rtype } => {
                let cdw10 = action as u32 | ignore(ignore_key) | u32::from(rtype) << 8;
                Sqe::new(io::RESERVATION_RELEASE, cid, nsid).with_cdw(10, cdw10)
            }
            ReservationCommand::Report { len, extended } => {
                let numd_z = u32::try_from(len.div_ceil(4).max(1) - 1).unwrap_or(u32::MAX);
                Sqe::new(io::RESERVATION_REPORT, cid, nsid).with_cdw(10, numd_z).with_cdw(11, u32::from(extended))
            }
        }
    }
}

wire_struct! {
    /// What Reservation Register carries (Base 2.1 figure 580).
    RegisterData, 16, "Reservation Register data" {
        /// CRKEY: the key that the host is registered with.
        current_key: u64 = 0,
        /// NRKEY: the key that it is to be registered with.
        new_key: u64 = 8,
    }
}

wire_struct! {
    /// What Reservation Acquire carries (Base 2.1 figure 577).
    AcquireData, 16, "Reservation Acquire data" {
        /// CRKEY: the key that the host is registered with.
        current_key: u64 = 0,
        /// PRKEY: the key whose registrations end.
        victim_key: u64 = 8,
    }
}

wire_struct! {
    /// What Reservation Release carries (Base 2.1 figure 584).
    ReleaseData, 8, "Reservation Release data" {
        /// CRKEY: the key that the host is registered with.
        current_key: u64 = 0,
    }
}

wire_struct! {
    /// One registration in a report: Registered Controller Extended data structure (Base 2.1 figure 587). A host has one for each of its
    /// controllers, or one with the controller FFFFh while it has none.
    RegisteredController, 64, "registered controller" {
        /// The controller through which it was registered; FFFFh where there is none.
        cntlid: u16 = 0,
        /// RCSTS: bit 0, the host holds the reservation.
        status: u8 = 2,
        /// Its key.
        key: u64 = 8,
        /// The host identifier.
        host_id: [u8; 16] = 16,
    }
}

impl RegisteredController {
    /// Does its host hold the reservation?
    pub fn is_holder(&self) -> bool {
        self.status & 1 != 0
    }
}

/// What Reservation Report brings: Reservation Status Extended data structure (Base 2.1 figure 586).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReservationStatus {
    /// Counts changes of registrations.
    pub generation: u32,
    /// Of [`rtype`]; 0: nobody holds a reservation.
    pub rtype: u8,
    /// Registrations that there are, as the header counts them; a report that was cut short has fewer of them.
    pub count: u16,
    /// Reservations persist through a loss of power.
    pub persists: bool,
    /// The registrations.
    pub registered: Vec<RegisteredController>,
}

impl ReservationStatus {
    /// Octets before the first registration.
    pub const HEADER: usize = 64;
    /// Most octets of a report: as many registrations as the header can count.
    pub const MOST: usize = Self::HEADER + RegisteredController::LEN * u16::MAX as usize;

    /// Octets of a report with so many registrations.
    pub fn len_of(count: u16) -> u64 {
        (Self::HEADER + RegisteredController::LEN * usize::from(count)) as u64
    }

    /// Reads a report. Registrations that it counts and that lie beyond `bytes` are not there: [`ReservationStatus::is_whole`].
    ///
    /// # Errors
    /// [`ParseError::Short`] when there is no whole header; [`ParseError::Value`] for a type that there is not.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let head = fixed::<{ Self::HEADER }>(bytes, "reservation report")?;
        let (rtype, count) = (head[4], u16::get(head, 5));
        if rtype > rtype::LAST {
            let expected = "0 for none, or 1 to 6";
            return Err(ParseError::Value { what: "type in the reservation report", value: rtype.into(), expected });
        }
        let rest = bytes.get(Self::HEADER..).unwrap_or_default();
        let entries = rest.chunks_exact(RegisteredController::LEN).take(count.into());
        let registered = entries.map(RegisteredController::parse).collect::<Result<_, _>>()?;
        Ok(ReservationStatus { generation: u32::get(head, 0), rtype, count, persists: head[9] & 1 != 0, registered })
    }

    /// Has it every registration that it counts?
    pub fn is_whole(&self) -> bool {
        self.registered.len() == usize::from(self.count)
    }

    /// The octets.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut b = vec![0; Self::HEADER];
        self.generation.put(&mut b, 0);
        b[4] = self.rtype;
        self.count.put(&mut b, 5);
        b[9] = u8::from(self.persists);
        self.registered.iter().for_each(|entry| b.extend_from_slice(&entry.to_bytes()));
        b
    }
}

wire_struct! {
    /// The reservation notification log page, 80h (Base 2.1 section 5.1.12.1.25): the oldest notification that was not read. Reading it takes it.
    ReservationNotification, 64, "reservation notification log" {
        /// Counts the pages that were put into the log; 0 when it is empty.
        count: u64 = 0,
        /// What happened: 0 nothing, 1 registration preempted, 2 reservation released, 3 reservation preempted.
        kind: u8 = 8,
        /// Pages that are left after this one, 255 for as many or more.
        left: u8 = 9,
        /// Namespace.
        nsid: u32 = 12,
    }
}

impl ReservationNotification {
    /// Nothing happened.
    pub const EMPTY: u8 = 0;
    /// Another host has ended the registration.
    pub const REGISTRATION_PREEMPTED: u8 = 1;
    /// The reservation was released.
    pub const RESERVATION_RELEASED: u8 = 2;
    /// Another host has cleared the reservation and all registrations.
    pub const RESERVATION_PREEMPTED: u8 = 3;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layout: Linux include/linux/nvme.h, struct nvme_reservation_status_ext and nvme_registered_ctrl_ext; the values are what
    /// drivers/nvme/target/pr.c answers to a host that holds Write Exclusive - Registrants Only.
    const REPORT: [u8; 128] = {
        let mut b = [0; 128];
        b[0] = 5; // gen
        b[4] = 3; // rtype
        b[5] = 1; // regctl
        b[64] = 0xff; // cntlid FFFFh
        b[65] = 0xff;
        b[66] = 1; // rcsts
        b[72] = 0xce; // rkey a11ce
        b[73] = 0x11;
        b[74] = 0x0a;
        b[80] = 0x2c; // hostid
        b[95] = 0xb5;
        b
    };

    #[test]
    fn a_report_is_read_as_linux_writes_it() {
        let status = ReservationStatus::parse(&REPORT).unwrap();
        assert_eq!((status.generation, status.rtype, status.persists, status.is_whole()), (5, 3, false, true));
        let [one] = &status.registered[..] else { panic!("{status:?}") };
        assert_eq!((one.cntlid, one.key, one.is_holder()), (0xffff, 0xa11ce, true));
        assert_eq!((one.host_id[0], one.host_id[15]), (0x2c, 0xb5));
        assert_eq!(status.to_bytes(), REPORT);
        for len in 0..REPORT.len() {
            match ReservationStatus::parse(&REPORT[..len]) {
                Err(_) => assert!(len < ReservationStatus::HEADER, "{len}"),
                Ok(status) => assert!(len >= 64 && !status.is_whole() && status.registered.is_empty(), "{len}"),
            }
        }
        let mut wrong = REPORT;
        wrong[4] = 7;
        assert!(ReservationStatus::parse(&wrong).unwrap_err().to_string().contains("1 to 6"));
        assert_eq!(ReservationStatus::len_of(u16::MAX), ReservationStatus::MOST as u64);
    }

    /// Linux drivers/nvme/host/pr.c: `nvme_pr_register` (with CPTPL 11b), `nvme_pr_reserve`, `nvme_pr_preempt`, `nvme_pr_release`, `nvme_pr_clear`,
    /// `nvme_pr_resv_report`.
    #[test]
    fn commands_have_the_dwords_of_linux() {
        use ReservationCommand as Command;
        let (ignore_key, rtype) = (false, rtype::WRITE_EXCLUSIVE_REGISTRANTS_ONLY);
        let set = ChangePersist::Set;
        for (command, opcode, cdw10, cdw11) in [
            (
                Command::Register { action: RegisterAction::Register, ignore_key: true, persist: set },
                0x0d,
                0xc000_0008,
                0,
            ),
            (Command::Register { action: RegisterAction::Replace, ignore_key, persist: set }, 0x0d, 0xc000_0002, 0),
            (
                Command::Register { action: RegisterAction::Unregister, ignore_key, persist: ChangePersist::Keep },
                0x0d,
                1,
                0,
            ),
            (
                Command::Register { action: RegisterAction::Register, ignore_key, persist: ChangePersist::Clear },
                0x0d,
                2 << 30,
                0,
            ),
            (Command::Acquire { action: AcquireAction::Acquire, ignore_key, rtype }, 0x11, 0x300, 0),
            (Command::Acquire { action: AcquireAction::Preempt, ignore_key, rtype }, 0x11, 0x301, 0),
            (Command::Acquire { action: AcquireAction::PreemptAndAbort, ignore_key: true, rtype }, 0x11, 0x30a, 0),
            (Command::Release { action: ReleaseAction::Release, ignore_key, rtype }, 0x15, 0x300, 0),
            (Command::Release { action: ReleaseAction::Clear, ignore_key, rtype: 0 }, 0x15, 1, 0),
            (Command::Report { len: 4096, extended: true }, 0x0e, 1023, 1),
        ] {
            let sqe = command.to_sqe(7, 3);
            assert_eq!((sqe.opcode(), sqe.nsid(), sqe.cdw(10), sqe.cdw(11)), (opcode, 3, cdw10, cdw11), "{command:?}");
            assert_eq!(ReservationCommand::of(&sqe), Ok(command));
        }
    }

    #[test]
    fn what_there_is_not_is_refused() {
        let invalid = Err(StatusField::INVALID_FIELD);
        for (opcode, cdw10) in [
            (io::RESERVATION_REGISTER, 3),
            (io::RESERVATION_REGISTER, 1 << 30),
            (io::RESERVATION_ACQUIRE, 0x303),
            (io::RESERVATION_ACQUIRE, 0x000),
            (io::RESERVATION_ACQUIRE, 0x700),
            (io::RESERVATION_RELEASE, 0x302),
            (io::RESERVATION_RELEASE, 0x000),
        ] {
            let sqe = Sqe::new(opcode, 0, 1).with_cdw(10, cdw10);
            assert_eq!(ReservationCommand::of(&sqe), invalid, "{opcode:#x} {cdw10:#x}");
        }
        assert_eq!(ReservationCommand::of(&Sqe::read(0, 1, 0, 0, false)), Err(StatusField::INVALID_OPCODE));
    }

    #[test]
    fn data_have_their_octets_and_are_short_at_every_length() {
        let keys: Vec<u8> = (1..=16).collect();
        let (low, high) = (0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09);
        let register = RegisterData { current_key: low, new_key: high };
        let acquire = AcquireData { current_key: low, victim_key: high };
        let release = ReleaseData { current_key: low };
        assert_eq!((&register.to_bytes()[..], &acquire.to_bytes()[..]), (&keys[..], &keys[..]));
        assert_eq!(release.to_bytes(), keys[..8]);
        assert_eq!((RegisterData::parse(&keys), AcquireData::parse(&keys)), (Ok(register), Ok(acquire)));
        assert_eq!(ReleaseData::parse(&keys), Ok(release));
        for len in 0..16 {
            assert!(RegisterData::parse(&keys[..len]).is_err() && AcquireData::parse(&keys[..len]).is_err(), "{len}");
            assert_eq!(ReleaseData::parse(&keys[..len]).is_err(), len < 8, "{len}");
        }
    }

    /// Layout: Linux struct nvme_pr_log: count 0, type 8, nr_pages 9, nsid 12.
    #[test]
    fn a_notification_is_read() {
        let mut b = [0; 64];
        (b[0], b[8], b[9], b[12]) = (2, 1, 1, 7);
        let want = ReservationNotification { count: 2, kind: 1, left: 1, nsid: 7 };
        assert_eq!(ReservationNotification::parse(&b), Ok(want.clone()));
        assert_eq!(want.to_bytes(), b);
        for len in 0..64 {
            assert!(ReservationNotification::parse(&b[..len]).is_err(), "{len}");
        }
    }
}
