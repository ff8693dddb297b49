//! Command descriptor blocks that we send: constructors for every command we know.
//!
//! A [`Cdb`] is plain `Copy` data of 16 octets. CONTROL is zero (no NACA), and so is GROUP NUMBER. What a target does with one is in
//! [`crate::command`].

mod block;
mod primary;

pub use block::{ByteCheck, Form, PowerCondition, RwFlags, StartStop, WriteSame};
pub use primary::{PageControl, Reporting};

use crate::opcode;
use crate::wire::{put, put16, put32, put64};
use std::fmt;

/// Largest command descriptor block we know: variable-length ones of up to 260 octets carry protection information, which we do not.
pub const MAX_LEN: usize = 16;

/// One command descriptor block of 6, 10, 12 or 16 octets (SPC-4 4.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cdb {
    /// What is beyond the length is zero.
    octets: [u8; MAX_LEN],
    len: u8,
}

impl Cdb {
    /// A block with this operation code and nothing else set. The code is one that `opcode` lists, so that its group has a length.
    #[inline]
    const fn new<const LEN: usize>(opcode: u8) -> Self {
        const { assert!(LEN <= MAX_LEN) };
        let mut octets = [0; MAX_LEN];
        octets[0] = opcode;
        Cdb { octets, len: LEN as u8 }
    }

    /// The block that these octets are, as a log or another program has it; what is beyond the length of the code's group is cut off.
    ///
    /// `None` if there are too few, or the group has no fixed length (variable length, vendor specific).
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let len = opcode::cdb_len(*bytes.first()?)?;
        let mut octets = [0; MAX_LEN];
        octets.get_mut(..len)?.copy_from_slice(bytes.get(..len)?);
        Some(Cdb { octets, len: len as u8 })
    }

    /// The octets of the command: 6, 10, 12 or 16.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.octets.get(..usize::from(self.len)).unwrap_or(&self.octets)
    }

    /// The same, padded with zeroes to 16, as iSCSI and most host adapters carry them.
    #[inline]
    pub const fn octets(&self) -> &[u8; MAX_LEN] {
        &self.octets
    }

    /// Operation code.
    #[inline]
    pub const fn opcode(&self) -> u8 {
        self.octets[0]
    }

    /// The same block with `value` at octet `at`.
    #[inline]
    const fn with(mut self, at: usize, value: u8) -> Self {
        self.octets[at] = value;
        self
    }

    #[inline]
    fn with16(mut self, at: usize, value: u16) -> Self {
        put16(&mut self.octets, at, value);
        self
    }

    #[inline]
    fn with24(mut self, at: usize, value: u32) -> Self {
        let [_, octets @ ..] = value.to_be_bytes();
        put(&mut self.octets, at, &octets);
        self
    }

    #[inline]
    fn with32(mut self, at: usize, value: u32) -> Self {
        put32(&mut self.octets, at, value);
        self
    }

    #[inline]
    fn with64(mut self, at: usize, value: u64) -> Self {
        put64(&mut self.octets, at, value);
        self
    }
}

/// The name, where we know it, and the octets.
impl fmt::Display for Cdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(opcode::name(self.opcode()).unwrap_or("unknown operation"))?;
        self.bytes().iter().try_for_each(|b| write!(f, " {b:02x}"))
    }
}

impl fmt::Debug for Cdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cdb({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opcode::{pr_in, pr_out};

    fn hex(cdb: Cdb) -> String {
        cdb.bytes().iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn octets_of_primary_commands() {
        let cases = [
            (Cdb::test_unit_ready(), "000000000000"),
            (Cdb::request_sense(true, 252), "03010000fc00"),
            (Cdb::inquiry(255), "12000000ff00"),
            (Cdb::inquiry_vpd(0x83, 0x1234), "120183123400"),
            (Cdb::mode_sense_6(PageControl::Current, 8, 0, 192), "1a080800c000"),
            (Cdb::mode_sense_6(PageControl::Changeable, 0x3f, 0xff, 4), "1a087fff0400"),
            (Cdb::mode_sense_10(PageControl::Default, 0x0a, 1, 0x102), "5a088a01000000010200"),
            (Cdb::report_luns(0, 0x10000), "a00000000000000100000000"),
            (Cdb::persistent_reserve_in(pr_in::READ_FULL_STATUS, 0x2000), "5e030000000000200000"),
            (Cdb::persistent_reserve_out(pr_out::PREEMPT, 5, 24), "5f040500000000001800"),
            (Cdb::report_target_port_groups(false, 4), "a30a00000000000000040000"),
            (Cdb::report_target_port_groups(true, 0x0102_0304), "a32a00000000010203040000"),
            (Cdb::set_target_port_groups(12), "a40a000000000000000c0000"),
            (Cdb::report_supported_operation_codes(Reporting::All, true, 1024), "a30c80000000000004000000"),
            (Cdb::report_supported_operation_codes(Reporting::One(0x42), false, 64), "a30c01420000000000400000"),
            (
                Cdb::report_supported_operation_codes(Reporting::OneAction(0x9e, 0x12), false, 64),
                "a30c029e0012000000400000",
            ),
        ];
        for (cdb, want) in cases {
            assert_eq!(hex(cdb), want, "{cdb}");
            assert_eq!(Cdb::from_bytes(cdb.octets()), Some(cdb), "{cdb}");
        }
    }

    #[test]
    fn octets_of_block_commands() {
        const LBA: u64 = 0x0102_0304_0506_0708;
        let same = WriteSame { unmap: true, ..WriteSame::default() };
        let cases = [
            (Cdb::read_capacity_10(), "25000000000000000000"),
            (Cdb::read_capacity_16(32), "9e10000000000000000000000020 0000"),
            (Cdb::get_lba_status(LBA, 24), "9e12 0102030405060708 00000018 0000"),
            (Cdb::read_10(0x0102_0304, 0x506, RwFlags::FUA), "28 08 01020304 00 0506 00"),
            (Cdb::write_10(1, 2, RwFlags::DPO), "2a 10 00000001 00 0002 00"),
            (Cdb::read_12(0x0102_0304, 0x0506_0708, RwFlags::empty()), "a8 00 01020304 05060708 00 00"),
            (Cdb::write_12(1, 2, RwFlags::all()), "aa 18 00000001 00000002 00 00"),
            (Cdb::read_16(LBA, 9, RwFlags::empty()), "88 00 0102030405060708 00000009 00 00"),
            (Cdb::write_16(LBA, 9, RwFlags::FUA), "8a 08 0102030405060708 00000009 00 00"),
            (Cdb::verify_10(1, 2, ByteCheck::None, false), "2f 00 00000001 00 0002 00"),
            (Cdb::verify_12(1, 2, ByteCheck::Data, true), "af 12 00000001 00000002 00 00"),
            (Cdb::verify_16(LBA, 2, ByteCheck::OneBlock, false), "8f 06 0102030405060708 00000002 00 00"),
            (Cdb::synchronize_cache_10(1, 2, true), "35 02 00000001 00 0002 00"),
            (Cdb::synchronize_cache_16(LBA, 0, false), "91 00 0102030405060708 00000000 00 00"),
            (Cdb::unmap(24, true), "42 01 00000000 00 0018 00"),
            (Cdb::write_same_10(1, 2, false, true), "41 08 00000001 00 0002 00"),
            (Cdb::write_same_16(LBA, 2, same), "93 08 0102030405060708 00000002 00 00"),
            (
                Cdb::write_same_16(LBA, 2, WriteSame { anchor: true, no_data: true, ..same }),
                "93 19 0102030405060708 00000002 00 00",
            ),
            (Cdb::compare_and_write(LBA, 1, RwFlags::FUA), "89 08 0102030405060708 000000 01 00 00"),
            (Cdb::start_stop_unit(StartStop { start: true, ..StartStop::default() }), "1b0000000100"),
            (
                Cdb::start_stop_unit(StartStop {
                    immed: true,
                    load_eject: true,
                    no_flush: true,
                    condition: PowerCondition(2),
                    start: false,
                }),
                "1b0100002600",
            ),
        ];
        for (cdb, want) in cases {
            assert_eq!(hex(cdb), want.replace(' ', ""), "{cdb}");
            assert_eq!(Cdb::from_bytes(cdb.octets()), Some(cdb), "{cdb}");
        }
    }

    #[test]
    fn the_fast_pair_takes_the_long_form_where_the_short_one_ends() {
        let cases = [
            (Form::Ten, 0, 8, 10),
            (Form::Ten, u64::from(u32::MAX), 1, 10),
            (Form::Ten, u64::from(u32::MAX), 2, 16),
            (Form::Ten, u64::from(u32::MAX) + 1, 1, 16),
            (Form::Ten, u64::MAX, u32::MAX, 16),
            (Form::Ten, 0, 0xffff, 10),
            (Form::Ten, 0, 0x1_0000, 16),
            (Form::Ten, 0, 0, 10),
            (Form::Sixteen, 0, 8, 16),
        ];
        for (form, lba, blocks, len) in cases {
            for fua in [false, true] {
                let flags = if fua { RwFlags::FUA } else { RwFlags::empty() };
                let (read, write) = (Cdb::read(form, lba, blocks, fua), Cdb::write(form, lba, blocks, fua));
                assert_eq!((read.bytes().len(), write.bytes().len()), (len, len), "{form:?} {lba} {blocks}");
                let want = match len {
                    10 => (
                        Cdb::read_10(lba as u32, blocks as u16, flags),
                        Cdb::write_10(lba as u32, blocks as u16, flags),
                    ),
                    _ => (Cdb::read_16(lba, blocks, flags), Cdb::write_16(lba, blocks, flags)),
                };
                assert_eq!((read, write), want);
            }
        }
    }

    #[test]
    fn a_block_is_as_long_as_its_group() {
        for len in 0..16 {
            let whole = Cdb::read_16(1, 1, RwFlags::empty());
            assert_eq!(Cdb::from_bytes(&whole.bytes()[..len]), None, "{len}");
        }
        assert_eq!(Cdb::from_bytes(&[0x7f; 16]), None);
        let ready = Cdb::from_bytes(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
        assert_eq!((ready.bytes(), ready.octets()[6]), (&[0, 1, 2, 3, 4, 5][..], 0));
        assert_eq!(Cdb::test_unit_ready().to_string(), "TEST UNIT READY 00 00 00 00 00 00");
    }
}
