//! PDU octets as a target meets them (NVMe/TCP Transport 1.1 section 3.6), and the check of a header at the door.

/// PDU types.
pub(crate) mod kind {
    pub(crate) const ICREQ: u8 = 0x00;
    pub(crate) const ICRESP: u8 = 0x01;
    pub(crate) const H2C_TERM: u8 = 0x02;
    pub(crate) const C2H_TERM: u8 = 0x03;
    pub(crate) const COMMAND: u8 = 0x04;
    pub(crate) const RESPONSE: u8 = 0x05;
    pub(crate) const H2C_DATA: u8 = 0x06;
    pub(crate) const C2H_DATA: u8 = 0x07;
    pub(crate) const R2T: u8 = 0x09;
}

/// Header flags.
pub(crate) const HDGSTF: u8 = 1 << 0;
pub(crate) const DDGSTF: u8 = 1 << 1;
pub(crate) const LAST: u8 = 1 << 2;
pub(crate) const SUCCESS: u8 = 1 << 3;

/// Common header.
pub(crate) const CH: usize = 8;
/// ICReq and ICResp.
pub(crate) const IC: usize = 128;
/// Command capsule header: common header and submission entry.
pub(crate) const COMMAND_HEADER: usize = 72;
/// Header of a response capsule, H2CData, C2HData, R2T and of termination requests.
pub(crate) const SHORT_HEADER: usize = 24;
/// Octets of the offending PDU that a termination request carries at most.
const TERM_DATA: usize = 128;

/// Fatal error status of a termination request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fes {
    InvalidHeaderField = 1,
    SequenceError = 2,
    HeaderDigest = 3,
    OutOfRange = 4,
    Unsupported = 6,
}

/// Why a connection is given up: becomes C2HTermReq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fatal {
    pub(crate) fes: Fes,
    /// Field offset, or the digest that was wrong.
    pub(crate) info: u32,
    pub(crate) why: &'static str,
}

impl Fatal {
    pub(crate) fn field(offset: u32, why: &'static str) -> Fatal {
        Fatal { fes: Fes::InvalidHeaderField, info: offset, why }
    }

    pub(crate) fn new(fes: Fes, info: u32, why: &'static str) -> Fatal {
        Fatal { fes, info, why }
    }

    /// The termination request about a PDU that began with `pdu`.
    pub(crate) fn request(&self, pdu: &[u8]) -> Vec<u8> {
        let data = &pdu[..pdu.len().min(TERM_DATA)];
        let len = SHORT_HEADER + data.len();
        let mut out = vec![0; SHORT_HEADER];
        out[0] = kind::C2H_TERM;
        out[2] = SHORT_HEADER as u8;
        out[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        out[8..10].copy_from_slice(&(self.fes as u16).to_le_bytes());
        out[10..14].copy_from_slice(&self.info.to_le_bytes());
        out.extend_from_slice(data);
        out
    }
}

#[inline]
pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

#[inline]
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// CRC-32C as digests use it.
#[inline]
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// What the two sides agreed on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Agreed {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    /// Octets by which data in PDUs to the host is aligned (4 to 128).
    pub(crate) host_align: usize,
    /// Octets by which data in PDUs to us is aligned.
    pub(crate) our_align: usize,
    /// Most data octets of a command capsule.
    pub(crate) in_capsule: usize,
    /// Most data octets of an H2CData.
    pub(crate) max_h2c: usize,
}

/// A PDU header that fits its type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// Octets of the whole PDU.
    pub(crate) len: usize,
    /// Where its data begins and ends; empty when it has none.
    pub(crate) data: (usize, usize),
}

/// Checks the common header of a PDU that a host may send after the connection was set up.
#[inline]
pub(crate) fn check(b: &[u8; CH], agreed: &Agreed) -> Result<Header, Fatal> {
    let [kind, flags, hlen, pdo, ..] = *b;
    let len = u32_at(b, 4) as usize;
    let (header, limit) = match kind {
        kind::COMMAND => (COMMAND_HEADER, agreed.in_capsule),
        kind::H2C_DATA => (SHORT_HEADER, agreed.max_h2c),
        kind::H2C_TERM => (SHORT_HEADER, TERM_DATA),
        kind::ICREQ => return Err(Fatal::new(Fes::SequenceError, 0, "a second ICReq")),
        _ => return Err(Fatal::field(0, "PDU type is none that a host sends")),
    };
    if usize::from(hlen) != header {
        return Err(Fatal::field(2, "HLEN is not that of its type"));
    }
    if kind == kind::H2C_TERM {
        return if (header..=header + limit).contains(&len) {
            Ok(Header { kind, flags, len, data: (header, len) })
        } else {
            Err(Fatal::field(4, "PLEN of a termination request"))
        };
    }
    if (flags & HDGSTF != 0) != agreed.header_digest {
        return Err(Fatal::field(1, "HDGSTF is not what was agreed"));
    }
    let head_end = header + if agreed.header_digest { 4 } else { 0 };
    if len < head_end {
        return Err(Fatal::field(4, "PLEN is shorter than the header"));
    }
    if len == head_end {
        if kind == kind::H2C_DATA || flags & DDGSTF != 0 {
            return Err(Fatal::field(4, "PLEN leaves no room for data"));
        }
        return Ok(Header { kind, flags, len, data: (head_end, head_end) });
    }
    if (flags & DDGSTF != 0) != agreed.data_digest {
        return Err(Fatal::field(1, "DDGSTF is not what was agreed"));
    }
    let tail = if agreed.data_digest { 4 } else { 0 };
    let pdo = usize::from(pdo);
    if pdo < head_end || pdo % agreed.our_align != 0 || pdo > head_end + 128 {
        return Err(Fatal::field(3, "PDO is inside the header, not aligned or absurd"));
    }
    if len <= pdo + tail || len - pdo - tail > limit {
        return Err(Fatal::field(4, "PLEN is too short or beyond the limit"));
    }
    Ok(Header { kind, flags, len, data: (pdo, len - tail) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(header_digest: bool, data_digest: bool) -> Agreed {
        Agreed { header_digest, data_digest, host_align: 4, our_align: 4, in_capsule: 8192, max_h2c: 131_072 }
    }

    fn ch(kind: u8, flags: u8, hlen: u8, pdo: u8, len: u32) -> [u8; 8] {
        let l = len.to_le_bytes();
        [kind, flags, hlen, pdo, l[0], l[1], l[2], l[3]]
    }

    #[test]
    fn headers_are_held_to_their_type() {
        use Fes::*;
        let plain = agreed(false, false);
        let both = agreed(true, true);
        for (a, b, want) in [
            (&plain, ch(4, 0, 72, 0, 72), Ok((72, (72, 72)))),
            (&plain, ch(4, 0, 72, 72, 72 + 4096), Ok((4168, (72, 4168)))),
            (&both, ch(4, 3, 72, 76, 76 + 512 + 4), Ok((592, (76, 588)))),
            (&both, ch(4, 1, 72, 0, 76), Ok((76, (76, 76)))),
            (&plain, ch(6, 4, 24, 24, 24 + 131_072), Ok((131_096, (24, 131_096)))),
            (&plain, ch(4, 0, 71, 0, 72), Err((InvalidHeaderField, 2))),
            (&plain, ch(4, 1, 72, 0, 76), Err((InvalidHeaderField, 1))),
            (&both, ch(4, 0, 72, 0, 72), Err((InvalidHeaderField, 1))),
            (&both, ch(4, 1, 72, 76, 76 + 512), Err((InvalidHeaderField, 1))),
            (&plain, ch(4, 0, 72, 70, 72 + 512), Err((InvalidHeaderField, 3))),
            (&plain, ch(4, 0, 72, 73, 73 + 512), Err((InvalidHeaderField, 3))),
            (&plain, ch(4, 0, 72, 72, 72 + 8193), Err((InvalidHeaderField, 4))),
            (&plain, ch(4, 0, 72, 72, 8), Err((InvalidHeaderField, 4))),
            (&plain, ch(4, 0, 72, 72, u32::MAX), Err((InvalidHeaderField, 4))),
            (&plain, ch(6, 0, 24, 24, 24), Err((InvalidHeaderField, 4))),
            (&plain, ch(6, 0, 24, 24, 24 + 131_073), Err((InvalidHeaderField, 4))),
            (&plain, ch(5, 0, 24, 0, 24), Err((InvalidHeaderField, 0))),
            (&plain, ch(0xff, 0, 24, 0, 24), Err((InvalidHeaderField, 0))),
            (&plain, ch(0, 0, 128, 0, 128), Err((SequenceError, 0))),
            (&plain, ch(2, 0, 24, 0, 24 + 129), Err((InvalidHeaderField, 4))),
        ] {
            let got = check(&b, a).map(|h| (h.len, h.data)).map_err(|f| (f.fes, f.info));
            assert_eq!(got, want, "{b:?}");
        }
    }

    #[test]
    fn digest_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
