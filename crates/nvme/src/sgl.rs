//! The 16-byte SGL descriptor in a command's data pointer (Base 2.1 section 4.3.2), as far as
//! message-based transports use it.

use crate::wire::Field;

/// Where a command's data is.
///
/// On a message transport the command either carries its data inside the capsule ([`Self::InCapsule`])
/// or leaves the transport to move it ([`Self::Transport`]). [`Self::Other`] keeps what a host sent and
/// we do not take, so that a target can refuse it by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SglDescriptor {
    /// SGL Data Block (type 0h) with an address (subtype 0h): memory transports only.
    Address {
        /// Address of the first octet.
        address: u64,
        /// Octets.
        length: u32,
    },
    /// SGL Data Block (type 0h) with an offset (subtype 1h): the data follows in the capsule.
    InCapsule {
        /// Octets from the start of the in-capsule data area (which starts at ICDOFF).
        offset: u64,
        /// Octets.
        length: u32,
    },
    /// Transport SGL Data Block (type 5h, subtype Ah): the transport moves the data. Length 0 says that
    /// the command has none.
    Transport {
        /// Octets.
        length: u32,
    },
    /// Any other descriptor.
    Other {
        /// Octet 15: type in bits 7:4, subtype in bits 3:0.
        identifier: u8,
    },
}

impl SglDescriptor {
    /// Octets on the wire.
    pub const LEN: usize = 16;
    /// What a command without data carries on a message transport.
    pub const NO_DATA: SglDescriptor = SglDescriptor::Transport { length: 0 };

    /// Reads a descriptor. Any sixteen octets are one.
    #[inline]
    pub fn parse(b: &[u8; 16]) -> Self {
        let length = u32::get(b, 8);
        match b[15] {
            0x00 => SglDescriptor::Address { address: u64::get(b, 0), length },
            0x01 => SglDescriptor::InCapsule { offset: u64::get(b, 0), length },
            0x5a => SglDescriptor::Transport { length },
            identifier => SglDescriptor::Other { identifier },
        }
    }

    /// The octets.
    #[inline]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut b = [0; 16];
        let (first, length, identifier) = match self {
            SglDescriptor::Address { address, length } => (address, length, 0x00),
            SglDescriptor::InCapsule { offset, length } => (offset, length, 0x01),
            SglDescriptor::Transport { length } => (0, length, 0x5a),
            SglDescriptor::Other { identifier } => (0, 0, identifier),
        };
        first.put(&mut b, 0);
        length.put(&mut b, 8);
        b[15] = identifier;
        b
    }

    /// Octets it describes; 0 for [`Self::Other`].
    #[inline]
    pub fn length(self) -> u32 {
        match self {
            SglDescriptor::Address { length, .. }
            | SglDescriptor::InCapsule { length, .. }
            | SglDescriptor::Transport { length } => length,
            SglDescriptor::Other { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_those_linux_writes() {
        // drivers/nvme/host/tcp.c: nvme_tcp_set_sg_inline, nvme_tcp_set_sg_host_data:
        // (NVME_SGL_FMT_DATA_DESC << 4) | NVME_SGL_FMT_OFFSET = 01h,
        // (NVME_TRANSPORT_SGL_DATA_DESC << 4) | NVME_SGL_FMT_TRANSPORT_A = 5Ah.
        let inline = SglDescriptor::InCapsule { offset: 0, length: 0x1000 }.to_bytes();
        assert_eq!(inline, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x01]);
        let host = SglDescriptor::Transport { length: 0x2000 }.to_bytes();
        assert_eq!(host, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0x5a]);
        for d in [
            SglDescriptor::Address { address: 7, length: 9 },
            SglDescriptor::InCapsule { offset: 5, length: 3 },
            SglDescriptor::Transport { length: 1 },
            SglDescriptor::Other { identifier: 0x40 },
        ] {
            assert_eq!(SglDescriptor::parse(&d.to_bytes()), d);
        }
    }
}
