//! Standard INQUIRY data (SPC-4 6.6.2): what a logical unit is.

use crate::ParseError;
use crate::wire::{ascii, bit, fixed, flag, get8, get16, padded, put, put16};

/// PERIPHERAL QUALIFIER: is there a device at this logical unit number?
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Qualifier {
    /// 000b: there is, or the target cannot tell.
    #[default]
    Connected,
    /// 001b: there is not, but there could be.
    NotConnected,
    /// 011b: there cannot be.
    Impossible,
    /// Reserved (010b) and vendor specific (1xxb): not one that we use.
    Other(u8),
}

impl Qualifier {
    const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Qualifier::Connected,
            1 => Qualifier::NotConnected,
            3 => Qualifier::Impossible,
            other => Qualifier::Other(other),
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Qualifier::Connected => 0,
            Qualifier::NotConnected => 1,
            Qualifier::Impossible => 3,
            Qualifier::Other(bits) => bits & 7,
        }
    }
}

/// Peripheral device types that one meets (SPC-4 6.6.2, PERIPHERAL DEVICE TYPE).
pub mod device_type {
    /// Direct access block device: a disk.
    pub const DISK: u8 = 0x00;
    /// CD or DVD.
    pub const CD_DVD: u8 = 0x05;
    /// Storage array controller (tgt's and others' LUN 0).
    pub const ARRAY_CONTROLLER: u8 = 0x0c;
    /// Enclosure services.
    pub const ENCLOSURE: u8 = 0x0d;
    /// Simplified direct access device (RBC).
    pub const REDUCED_BLOCK: u8 = 0x0e;
    /// Host managed zoned block device: it does not take writes anywhere, so it is no disk for us.
    pub const ZONED: u8 = 0x14;
    /// Well known logical unit.
    pub const WELL_KNOWN: u8 = 0x1e;
    /// Unknown, or no device.
    pub const NONE: u8 = 0x1f;
}

/// TPGS: whether and how asymmetric access states change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Tpgs {
    /// 00b: no asymmetric access, or in a vendor's own way.
    #[default]
    None,
    /// 01b: the target changes them. REPORT TARGET PORT GROUPS works.
    Implicit,
    /// 10b: SET TARGET PORT GROUPS changes them.
    Explicit,
    /// 11b: both.
    Both,
}

impl Tpgs {
    /// Does REPORT TARGET PORT GROUPS work?
    pub const fn reports(self) -> bool {
        !matches!(self, Tpgs::None)
    }

    /// Does SET TARGET PORT GROUPS work?
    pub const fn is_explicit(self) -> bool {
        matches!(self, Tpgs::Explicit | Tpgs::Both)
    }
}

/// Standard INQUIRY data.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Inquiry {
    /// Is there a device?
    pub qualifier: Qualifier,
    /// What it is, five bits; see [`device_type`].
    pub device_type: u8,
    /// RMB: its medium can be removed.
    pub removable: bool,
    /// Version of SPC it claims: 3 SPC, 4 SPC-2, 5 SPC-3, 6 SPC-4, 7 SPC-5; 0 none.
    pub version: u8,
    /// NORMACA: it knows auto contingent allegiance.
    pub normal_aca: bool,
    /// HISUP: LUNs are structured as SAM-5 says.
    pub hierarchical: bool,
    /// Asymmetric logical unit access.
    pub tpgs: Tpgs,
    /// 3PC: it knows third-party copy commands.
    pub third_party_copy: bool,
    /// PROTECT: it knows protection information.
    pub protect: bool,
    /// ENCSERV: it has enclosure services inside.
    pub enclosure_services: bool,
    /// MULTIP: it has several target ports.
    pub multi_port: bool,
    /// CMDQUE: it queues commands.
    pub command_queuing: bool,
    /// T10 VENDOR IDENTIFICATION, at most 8 characters.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION, at most 16.
    pub product: String,
    /// PRODUCT REVISION LEVEL, at most 4.
    pub revision: String,
    /// VERSION DESCRIPTORS: which standards it claims (SPC-4 6.6.2.2), at most eight.
    pub version_descriptors: Vec<u16>,
}

impl Inquiry {
    /// Octets that are always there.
    pub const MIN_LEN: usize = 36;
    /// Octets that [`Inquiry::to_bytes`] makes; an allocation length that does.
    pub const LEN: usize = 96;

    const DESCRIPTORS: usize = 58;

    /// Reads INQUIRY data. Fields beyond its own length are not there.
    ///
    /// # Errors
    /// [`ParseError::Short`] with fewer than 36 octets; [`ParseError::Value`] for a response data format other than 2 (SCSI-1 devices).
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let head = fixed::<{ Self::MIN_LEN }>(bytes, "INQUIRY data")?;
        let format = head[3] & 0x0f;
        if format != 2 {
            let what = "response data format of INQUIRY data";
            return Err(ParseError::Value { what, value: format.into(), expected: "2" });
        }
        let end = 5 + usize::from(head[4]);
        let b = bytes.get(..end.max(Self::MIN_LEN)).unwrap_or(bytes);
        let descriptors = b.get(Self::DESCRIPTORS..).unwrap_or(&[]);
        Ok(Inquiry {
            qualifier: Qualifier::from_bits(head[0] >> 5),
            device_type: head[0] & 0x1f,
            removable: bit(b, 1, 7),
            version: head[2],
            normal_aca: bit(b, 3, 5),
            hierarchical: bit(b, 3, 4),
            tpgs: match head[5] >> 4 & 3 {
                0 => Tpgs::None,
                1 => Tpgs::Implicit,
                2 => Tpgs::Explicit,
                _ => Tpgs::Both,
            },
            third_party_copy: bit(b, 5, 3),
            protect: bit(b, 5, 0),
            enclosure_services: bit(b, 6, 6),
            multi_port: bit(b, 6, 4),
            command_queuing: bit(b, 7, 1),
            vendor: ascii(&head[8..16]),
            product: ascii(&head[16..32]),
            revision: ascii(&head[32..36]),
            version_descriptors: descriptors
                .chunks_exact(2)
                .take(8)
                .map(|pair| get16(pair, 0))
                .filter(|&d| d != 0)
                .collect(),
        })
    }

    /// The octets, 96 of them.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[0] = self.qualifier.bits() << 5 | self.device_type & 0x1f;
        b[1] = flag(self.removable, 7);
        b[2] = self.version;
        b[3] = flag(self.normal_aca, 5) | flag(self.hierarchical, 4) | 2;
        b[4] = (Self::LEN - 5) as u8;
        b[5] = (self.tpgs as u8) << 4 | flag(self.third_party_copy, 3) | flag(self.protect, 0);
        b[6] = flag(self.enclosure_services, 6) | flag(self.multi_port, 4);
        b[7] = flag(self.command_queuing, 1);
        put(&mut b, 8, &padded::<8>(&self.vendor));
        put(&mut b, 16, &padded::<16>(&self.product));
        put(&mut b, 32, &padded::<4>(&self.revision));
        for (i, &descriptor) in self.version_descriptors.iter().take(8).enumerate() {
            put16(&mut b, Self::DESCRIPTORS + 2 * i, descriptor);
        }
        b
    }

    /// Is there a disk at this logical unit number, one that takes reads and writes anywhere?
    pub const fn is_disk(&self) -> bool {
        matches!(self.qualifier, Qualifier::Connected)
            && matches!(self.device_type, device_type::DISK | device_type::REDUCED_BLOCK)
    }
}

/// What a target answers for a logical unit number that it does not have (SPC-4 6.6.2: qualifier 011b, type 1Fh).
pub fn absent() -> Inquiry {
    Inquiry { qualifier: Qualifier::Impossible, device_type: device_type::NONE, version: 6, ..Inquiry::default() }
}

/// Octets of a vital product data page or of standard data that begin with qualifier and type: the first one.
pub(crate) fn peripheral(bytes: &[u8]) -> (Qualifier, u8) {
    let first = get8(bytes, 0);
    (Qualifier::from_bits(first >> 5), first & 0x1f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Inquiry {
        Inquiry {
            qualifier: Qualifier::Connected,
            device_type: device_type::DISK,
            removable: true,
            version: 6,
            normal_aca: false,
            hierarchical: true,
            tpgs: Tpgs::Both,
            third_party_copy: true,
            protect: true,
            enclosure_services: true,
            multi_port: true,
            command_queuing: true,
            vendor: "POLYPATH".into(),
            product: "disk".into(),
            revision: "0001".into(),
            version_descriptors: vec![0x0960, 0x0460],
        }
    }

    #[test]
    fn octets() {
        let b = sample().to_bytes();
        assert_eq!(b[..8], [0x00, 0x80, 6, 0x12, 91, 0x39, 0x50, 0x02]);
        assert_eq!(&b[8..36], b"POLYPATHdisk            0001");
        assert_eq!(b[56..64], [0, 0, 0x09, 0x60, 0x04, 0x60, 0, 0]);
        assert_eq!(Inquiry::parse(&b), Ok(sample()));
        for tpgs in [Tpgs::None, Tpgs::Implicit, Tpgs::Explicit, Tpgs::Both] {
            let inquiry = Inquiry { tpgs, ..sample() };
            assert_eq!(Inquiry::parse(&inquiry.to_bytes()), Ok(inquiry));
            assert_eq!(tpgs.reports(), tpgs != Tpgs::None);
        }
        assert!(sample().is_disk());
    }

    #[test]
    fn what_is_cut_off_is_not_there() {
        let b = sample().to_bytes();
        for len in 0..b.len() {
            let got = Inquiry::parse(&b[..len]);
            if len < 36 {
                assert_eq!(got, Err(ParseError::Short { what: "INQUIRY data", need: 36, have: len }));
                continue;
            }
            let descriptors = sample().version_descriptors.into_iter().take(len.saturating_sub(58) / 2).collect();
            assert_eq!(got, Ok(Inquiry { version_descriptors: descriptors, ..sample() }), "{len}");
        }
        let mut short = b;
        short[4] = 31;
        assert!(Inquiry::parse(&short).unwrap().version_descriptors.is_empty());
        short[4] = 0;
        assert_eq!(Inquiry::parse(&short).unwrap().product, "disk", "some say nothing and send all");
    }

    #[test]
    fn no_disk() {
        let absent = absent();
        assert_eq!(absent.to_bytes()[0], 0x7f);
        assert_eq!(Inquiry::parse(&absent.to_bytes()), Ok(absent.clone()));
        assert!(!absent.is_disk());
        let controller = Inquiry { device_type: device_type::ARRAY_CONTROLLER, ..sample() };
        assert!(!controller.is_disk() && !Inquiry { qualifier: Qualifier::NotConnected, ..sample() }.is_disk());
        let mut old = sample().to_bytes();
        old[3] = 1;
        assert!(matches!(Inquiry::parse(&old), Err(ParseError::Value { value: 1, .. })));
        for bits in 0..8 {
            assert_eq!(Qualifier::from_bits(bits).bits(), bits);
        }
    }
}
