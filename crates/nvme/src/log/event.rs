//! Asynchronous events and the changed namespace list, 04h.

use crate::ParseError;
use crate::wire::{Field, fixed};

/// What dword 0 of a completed Asynchronous Event Request says (Base 2.1 section 5.1.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsyncEvent {
    /// What happened.
    pub kind: EventKind,
    /// The log page to read, which also clears the event.
    pub log_page: u8,
}

/// Type and information of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Type 0h: error status, with the information code.
    Error(u8),
    /// Type 1h: SMART / health, with the information code.
    Health(u8),
    /// Notice 00h: attached namespaces have changed.
    NamespacesChanged,
    /// Notice 01h: firmware activation starts.
    FirmwareActivation,
    /// Notice 03h: ANA states have changed.
    AnaChanged,
    /// Notice F0h: the discovery log page has changed.
    DiscoveryChanged,
    /// Type 6h, information 00h: there is something in the reservation notification log.
    ReservationLog,
    /// Any other.
    Other {
        /// Type, 0 to 7.
        kind: u8,
        /// Information.
        info: u8,
    },
}

impl AsyncEvent {
    /// Reads dword 0; any is one.
    pub fn from_dw0(dw0: u32) -> Self {
        let (kind, info) = (dw0 as u8 & 7, (dw0 >> 8) as u8);
        let kind = match (kind, info) {
            (0, info) => EventKind::Error(info),
            (1, info) => EventKind::Health(info),
            (2, 0x00) => EventKind::NamespacesChanged,
            (2, 0x01) => EventKind::FirmwareActivation,
            (2, 0x03) => EventKind::AnaChanged,
            (2, 0xf0) => EventKind::DiscoveryChanged,
            (6, 0x00) => EventKind::ReservationLog,
            (kind, info) => EventKind::Other { kind, info },
        };
        AsyncEvent { kind, log_page: (dw0 >> 16) as u8 }
    }

    /// Dword 0 (the target's side).
    pub fn to_dw0(self) -> u32 {
        let (kind, info) = match self.kind {
            EventKind::Error(info) => (0, info),
            EventKind::Health(info) => (1, info),
            EventKind::NamespacesChanged => (2, 0x00),
            EventKind::FirmwareActivation => (2, 0x01),
            EventKind::AnaChanged => (2, 0x03),
            EventKind::DiscoveryChanged => (2, 0xf0),
            EventKind::ReservationLog => (6, 0x00),
            EventKind::Other { kind, info } => (kind & 7, info),
        };
        u32::from(kind) | u32::from(info) << 8 | u32::from(self.log_page) << 16
    }
}

/// The changed namespace list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangedNamespaces {
    /// These.
    Some(Vec<u32>),
    /// More than 1024: look at all of them.
    TooMany,
}

impl ChangedNamespaces {
    /// Octets on the wire.
    pub const LEN: usize = 4096;

    /// Reads the list.
    ///
    /// # Errors
    /// [`ParseError::Short`] when there are fewer than 4096 octets.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = fixed::<4096>(bytes, "changed namespace list")?;
        if u32::get(b, 0) == u32::MAX {
            return Ok(ChangedNamespaces::TooMany);
        }
        let nsids = b.chunks_exact(4).map(|c| u32::get(c, 0)).take_while(|&n| n != 0).collect();
        Ok(ChangedNamespaces::Some(nsids))
    }

    /// The octets (the target's side).
    pub fn to_bytes(&self) -> [u8; 4096] {
        match self {
            ChangedNamespaces::Some(list) if list.len() <= 1024 => {
                crate::identify::build_namespace_list(list.iter().copied(), 0)
            }
            _ => {
                let mut b = [0; 4096];
                u32::MAX.put(&mut b, 0);
                b
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_round_trip() {
        // Linux: NVME_AEN_*: ANA change is type 2, information 3, log page 0Ch.
        let ana = AsyncEvent::from_dw0(0x000c_0302);
        assert_eq!(ana, AsyncEvent { kind: EventKind::AnaChanged, log_page: 0x0c });
        assert_eq!(AsyncEvent::from_dw0(0x0070_f002).kind, EventKind::DiscoveryChanged);
        // drivers/nvme/target/pr.c: type 6, information 0, log page 80h.
        let reservation = AsyncEvent { kind: EventKind::ReservationLog, log_page: crate::log::lid::RESERVATION };
        assert_eq!(reservation.to_dw0(), 0x0080_0006);
        for dw0 in (0..=0xff_ffffu32).step_by(97) {
            let kept = dw0 & 0x00ff_ff07;
            assert_eq!(AsyncEvent::from_dw0(dw0).to_dw0(), kept);
        }
    }

    #[test]
    fn changed_lists() {
        for list in [
            ChangedNamespaces::Some(vec![]),
            ChangedNamespaces::Some(vec![1, 5]),
            ChangedNamespaces::Some((1..=1024).collect()),
            ChangedNamespaces::TooMany,
        ] {
            assert_eq!(ChangedNamespaces::parse(&list.to_bytes()), Ok(list));
        }
        let many = ChangedNamespaces::Some((1..=1025).collect());
        assert_eq!(ChangedNamespaces::parse(&many.to_bytes()), Ok(ChangedNamespaces::TooMany));
        assert!(ChangedNamespaces::parse(&[0; 4095]).is_err());
    }
}
