//! The commands that are made by the million.

use super::{PSDT_SGL, io};
use crate::SglDescriptor;
use crate::wire::Field;

/// A Read or Write without FUA as a driver makes them by the million: what differs from one to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCommand {
    /// Write, or else Read.
    pub write: bool,
    /// Namespace.
    pub nsid: u32,
    /// First logical block.
    pub slba: u64,
    /// Logical blocks, zero-based.
    pub nlb_z: u16,
}

impl BlockCommand {
    /// The octets of the entry with this command identifier and this data pointer (PSDT = 01b), written where they are to be.
    #[inline(always)]
    pub fn put(&self, cid: u16, sgl: SglDescriptor, out: &mut [u8; 64]) {
        let opcode = if self.write { io::WRITE } else { io::READ };
        let first = u64::from(opcode) | u64::from(PSDT_SGL) << 8 | u64::from(cid) << 16 | u64::from(self.nsid) << 32;
        first.put(out, 0);
        0u128.put(out, 8);
        sgl.to_bytes().put(out, 24);
        self.slba.put(out, 40);
        u64::from(self.nlb_z).put(out, 48);
        0u64.put(out, 56);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sqe;

    #[test]
    fn the_octets_are_those_of_the_command() {
        let sgl = SglDescriptor::InCapsule { offset: 0, length: 4096 };
        for write in [false, true] {
            let mut octets = [0xff; 64];
            BlockCommand { write, nsid: 0x1234_5678, slba: 0x1122_3344_5566_7788, nlb_z: 0xabcd }.put(
                7,
                sgl,
                &mut octets,
            );
            let make = if write { Sqe::write } else { Sqe::read };
            let sqe = make(0, 0x1234_5678, 0x1122_3344_5566_7788, 0xabcd, false).addressed(7, sgl);
            assert_eq!(&octets, sqe.as_bytes(), "write: {write}");
        }
    }
}
