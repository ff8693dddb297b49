//! Vital product data pages: what INQUIRY with EVPD returns (SPC-4 7.8, SBC-3 6.6).
//!
//! Every page begins with the same four octets, [`Page`] takes it apart; the pages that we know have types of their own, each with
//! `parse` (of a [`Page`]) and `to_page`.

mod block;
mod designator;

pub use block::{BlockCharacteristics, BlockLimits, Provisioning, ProvisioningType};
pub use designator::{Association, CodeSet, Designator, DesignatorValue, DeviceIdentification};

use crate::ParseError;
use crate::inquiry::{Qualifier, peripheral};
use crate::wire::{ascii, front, get8, get16, len16};

/// Page codes.
pub mod code {
    /// Supported VPD Pages.
    pub const SUPPORTED_PAGES: u8 = 0x00;
    /// Unit Serial Number.
    pub const UNIT_SERIAL_NUMBER: u8 = 0x80;
    /// Device Identification.
    pub const DEVICE_IDENTIFICATION: u8 = 0x83;
    /// Block Limits.
    pub const BLOCK_LIMITS: u8 = 0xb0;
    /// Block Device Characteristics.
    pub const BLOCK_DEVICE_CHARACTERISTICS: u8 = 0xb1;
    /// Logical Block Provisioning.
    pub const LOGICAL_BLOCK_PROVISIONING: u8 = 0xb2;
}

/// A page taken apart: whose it is, which, and what it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page<'a> {
    /// Is there a device?
    pub qualifier: Qualifier,
    /// Its type, see [`crate::inquiry::device_type`].
    pub device_type: u8,
    /// PAGE CODE.
    pub code: u8,
    /// What follows the header, PAGE LENGTH octets.
    pub body: &'a [u8],
}

impl<'a> Page<'a> {
    /// Octets before the body.
    pub const HEADER: usize = 4;

    /// Takes a page apart. What is behind it does not count.
    ///
    /// # Errors
    /// [`ParseError::Short`] if the page is longer than what is there: it tells the allocation length that would do.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "vital product data page";
        let head = front(bytes, Self::HEADER, WHAT)?;
        let whole = front(bytes, Self::HEADER + usize::from(get16(head, 2)), WHAT)?;
        let (qualifier, device_type) = peripheral(head);
        Ok(Page { qualifier, device_type, code: get8(head, 1), body: whole.get(Self::HEADER..).unwrap_or(&[]) })
    }

    /// The same, of a page that must be this one. Some devices answer a page that they do not have with another, or with standard data.
    ///
    /// # Errors
    /// As [`Page::parse`], and [`ParseError::Value`] if it is another page.
    pub fn expect(bytes: &'a [u8], code: u8) -> Result<Self, ParseError> {
        let page = Self::parse(bytes)?;
        if page.code != code {
            let (what, expected) = ("page code of a vital product data page", "the one that was asked for");
            return Err(ParseError::Value { what, value: page.code.into(), expected });
        }
        Ok(page)
    }

    /// The octets of a disk's page with this body.
    pub fn build(code: u8, body: &[u8]) -> Vec<u8> {
        let body = body.get(..usize::from(u16::MAX)).unwrap_or(body);
        let [high, low] = len16(body.len()).to_be_bytes();
        let mut page = vec![crate::inquiry::device_type::DISK, code, high, low];
        page.extend_from_slice(body);
        page
    }
}

/// The page codes that a Supported VPD Pages page (00h) lists, in its order.
///
/// # Errors
/// As [`Page::expect`].
pub fn supported_pages(bytes: &[u8]) -> Result<&[u8], ParseError> {
    Page::expect(bytes, code::SUPPORTED_PAGES).map(|page| page.body)
}

/// The octets of a Supported VPD Pages page; the list is in ascending order and begins with 00h.
pub fn build_supported_pages(codes: &[u8]) -> Vec<u8> {
    Page::build(code::SUPPORTED_PAGES, codes)
}

/// The serial number of a Unit Serial Number page (80h), without spaces around it. Empty if the device has none (it says spaces then).
///
/// # Errors
/// As [`Page::expect`].
pub fn unit_serial_number(bytes: &[u8]) -> Result<String, ParseError> {
    Page::expect(bytes, code::UNIT_SERIAL_NUMBER).map(|page| ascii(page.body))
}

/// The octets of a Unit Serial Number page.
pub fn build_unit_serial_number(serial: &str) -> Vec<u8> {
    let printable = |c: char| if matches!(c, ' '..='~') { c as u8 } else { b'?' };
    Page::build(code::UNIT_SERIAL_NUMBER, &serial.chars().map(printable).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_serial_numbers() {
        let list = build_supported_pages(&[0, 0x80, 0x83]);
        assert_eq!(list, [0, 0, 0, 3, 0, 0x80, 0x83]);
        assert_eq!(supported_pages(&list), Ok(&[0, 0x80, 0x83][..]));
        let serial = build_unit_serial_number(" PP-42 ");
        assert_eq!(serial, b"\0\x80\0\x07 PP-42 ");
        assert_eq!(unit_serial_number(&serial).as_deref(), Ok("PP-42"));
        assert!(matches!(supported_pages(&serial), Err(ParseError::Value { value: 0x80, .. })));
        for len in 0..serial.len() {
            let need = if len < 4 { 4 } else { serial.len() };
            let what = "vital product data page";
            assert_eq!(unit_serial_number(&serial[..len]), Err(ParseError::Short { what, need, have: len }));
        }
    }

    #[test]
    fn a_page_says_whose_it_is() {
        let page = Page::parse(&[0x7f, 0x83, 0, 1, 9, 9]).unwrap();
        let want = Page { qualifier: Qualifier::Impossible, device_type: 0x1f, code: 0x83, body: &[9] };
        assert_eq!(page, want);
        let long = Page::build(0x83, &vec![1; 0x1_0005]);
        assert_eq!((long.len(), Page::parse(&long).unwrap().body.len()), (0x1_0003, 0xffff));
    }
}
