//! Logical unit numbers (SAM-5 4.7) and the data of REPORT LUNS (SPC-4 6.33.2).

use crate::ParseError;
use crate::wire::{front, get16, get24, get32, len32, put16, put32};
use std::fmt;

/// A logical unit number as it is on the wire: eight octets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Lun(pub [u8; 8]);

/// What the eight octets say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Address {
    /// Peripheral device addressing (SAM-5 4.7.7.2) with bus identifier zero: 0 to 255.
    Peripheral(u8),
    /// Flat space addressing (SAM-5 4.7.7.3): 0 to 16 383.
    Flat(u16),
    /// Extended flat space addressing (SAM-5 4.7.7.5.2): 0 to 16 777 215.
    ExtendedFlat(u32),
    /// A well known logical unit (SAM-5 4.7.7.5.1): 1 REPORT LUNS, 2 ACCESS CONTROLS, 3 TARGET LOG PAGES.
    WellKnown(u8),
    /// Several levels, another bus, logical unit addressing: none that we make, but they are numbers all the same.
    Other,
}

const FLAT: u16 = 0b01 << 14;
/// Extended addressing, method 2h, three octets of address.
const EXTENDED_FLAT: u8 = 0xd2;
/// Extended addressing, method 1h, one octet of address.
const WELL_KNOWN: u8 = 0xc1;

impl Lun {
    /// LUN 0.
    pub const ZERO: Lun = Lun([0; 8]);

    /// The shortest form of a simple number: peripheral below 256, flat below 16 384, extended flat below 16 777 216; `None` beyond.
    pub fn new(number: u32) -> Option<Self> {
        let mut b = [0; 8];
        match number {
            0..=0xff => b[1] = number as u8,
            0x100..=0x3fff => put16(&mut b, 0, FLAT | number as u16),
            0x4000..=0xff_ffff => put32(&mut b, 0, u32::from(EXTENDED_FLAT) << 24 | number),
            _ => return None,
        }
        Some(Lun(b))
    }

    /// What the octets say.
    pub fn address(self) -> Address {
        let b = &self.0;
        let rest = |from: usize| b.iter().skip(from).all(|&octet| octet == 0);
        match b[0] {
            0 if rest(2) => Address::Peripheral(b[1]),
            0x40..=0x7f if rest(2) => Address::Flat(get16(b, 0) & 0x3fff),
            EXTENDED_FLAT if rest(4) => Address::ExtendedFlat(get24(b, 1)),
            WELL_KNOWN if rest(2) => Address::WellKnown(b[1]),
            _ => Address::Other,
        }
    }

    /// The simple number, whichever form it is in.
    pub fn number(self) -> Option<u32> {
        match self.address() {
            Address::Peripheral(n) => Some(n.into()),
            Address::Flat(n) => Some(n.into()),
            Address::ExtendedFlat(n) => Some(n),
            Address::WellKnown(_) | Address::Other => None,
        }
    }

    /// The octets as a number, for logs and as a key.
    pub const fn raw(self) -> u64 {
        u64::from_be_bytes(self.0)
    }

    /// The LUN of this [`Lun::raw`] number.
    pub const fn from_raw(raw: u64) -> Self {
        Lun(raw.to_be_bytes())
    }
}

/// The simple number; where there is none, all octets.
impl fmt::Display for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number() {
            Some(number) => write!(f, "{number}"),
            None => write!(f, "{:#018x}", self.raw()),
        }
    }
}

impl fmt::Debug for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lun({self})")
    }
}

/// Data of REPORT LUNS.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct LunList {
    /// The logical units, in the target's order. Those that the allocation length cut off are not there.
    pub luns: Vec<Lun>,
    /// Octets that the whole list takes with its header: if [`LunList::is_cut`], ask again with as many.
    pub total_bytes: usize,
}

impl LunList {
    const HEADER: usize = 8;

    /// Reads the data.
    ///
    /// # Errors
    /// [`ParseError::Short`] with fewer than the 8 octets of the header, [`ParseError::Value`] for a length that is no multiple of 8.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let length = get32(front(bytes, Self::HEADER, "REPORT LUNS data")?, 0);
        if !length.is_multiple_of(8) {
            let what = "LUN LIST LENGTH of REPORT LUNS data";
            return Err(ParseError::Value { what, value: length.into(), expected: "a multiple of 8" });
        }
        let total_bytes = Self::HEADER + length as usize;
        let list = bytes.get(..total_bytes).unwrap_or(bytes).get(Self::HEADER..).unwrap_or(&[]);
        let luns = list.chunks_exact(8).filter_map(|octets| octets.first_chunk().copied()).map(Lun).collect();
        Ok(LunList { luns, total_bytes })
    }

    /// Was something cut off?
    pub fn is_cut(&self) -> bool {
        self.total_bytes > Self::HEADER + 8 * self.luns.len()
    }

    /// The octets that report `luns`; cut them to the allocation length.
    pub fn build(luns: &[Lun]) -> Vec<u8> {
        let mut b = vec![0; Self::HEADER];
        put32(&mut b, 0, len32(8 * luns.len()));
        b.extend(luns.iter().flat_map(|lun| lun.0));
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let cases = [
            (0, 0x0000_0000_0000_0000, Address::Peripheral(0)),
            (1, 0x0001_0000_0000_0000, Address::Peripheral(1)),
            (255, 0x00ff_0000_0000_0000, Address::Peripheral(255)),
            (256, 0x4100_0000_0000_0000, Address::Flat(256)),
            (16_383, 0x7fff_0000_0000_0000, Address::Flat(16_383)),
            (16_384, 0xd200_4000_0000_0000, Address::ExtendedFlat(16_384)),
            (16_777_215, 0xd2ff_ffff_0000_0000, Address::ExtendedFlat(16_777_215)),
        ];
        for (number, raw, address) in cases {
            let lun = Lun::new(number).unwrap();
            assert_eq!((lun.raw(), lun.address(), lun.number()), (raw, address, Some(number)), "{number}");
            assert_eq!((Lun::from_raw(raw), lun.to_string()), (lun, number.to_string()));
        }
        assert_eq!(Lun::new(1 << 24), None);
        // LUN 5 in the flat form is LUN 5.
        assert_eq!(Lun::from_raw(0x4005_0000_0000_0000).number(), Some(5));
        let others = [0x0105_u64 << 48, 0x0001_0002_0000_0000, 0xe201_0000_0000_0000, 0x8001 << 48, u64::MAX, 1];
        for raw in others {
            assert_eq!((Lun::from_raw(raw).address(), Lun::from_raw(raw).number()), (Address::Other, None), "{raw:x}");
        }
        assert_eq!(Lun::from_raw(0xc101 << 48).address(), Address::WellKnown(1));
        assert_eq!(Lun::from_raw(0xc101 << 48).to_string(), "0xc101000000000000");
    }

    #[test]
    fn lists() {
        let luns: Vec<Lun> = [0, 1, 300].into_iter().filter_map(Lun::new).collect();
        let b = LunList::build(&luns);
        assert_eq!(b[..16], [0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for len in 0..=b.len() {
            let got = LunList::parse(&b[..len]);
            if len < 8 {
                assert!(matches!(got, Err(ParseError::Short { need: 8, .. })), "{len}");
                continue;
            }
            let got = got.unwrap();
            assert_eq!((&got.luns[..], got.total_bytes), (&luns[..(len - 8) / 8], 32), "{len}");
            assert_eq!(got.is_cut(), len < 32);
        }
        let mut more = b.clone();
        more.extend([0; 8]);
        assert_eq!(LunList::parse(&more).unwrap().luns, luns, "what is beyond the list does not count");
        more[3] = 23;
        assert!(matches!(LunList::parse(&more), Err(ParseError::Value { value: 23, .. })));
        more[0] = 0xff;
        more[3] = 0;
        assert!(LunList::parse(&more).unwrap().is_cut());
    }
}
