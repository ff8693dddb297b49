//! Discovery log page, 70h (Base 2.1 section 5.1.12.3.1): a 1024-octet header and records of 1024.

use crate::ParseError;
use crate::nqn::Nqn;
use crate::wire::{ascii, padded, wire_struct};

/// Octets of the header and of every record.
pub const DISCOVERY_RECORD_LEN: usize = 1024;

/// TRTYPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportType {
    /// 1h.
    Rdma,
    /// 2h.
    FibreChannel,
    /// 3h.
    Tcp,
    /// FEh.
    Loop,
    /// Not one we know.
    Other(u8),
}

impl TransportType {
    /// From the wire.
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => TransportType::Rdma,
            2 => TransportType::FibreChannel,
            3 => TransportType::Tcp,
            0xfe => TransportType::Loop,
            other => TransportType::Other(other),
        }
    }

    /// To the wire.
    pub fn code(self) -> u8 {
        match self {
            TransportType::Rdma => 1,
            TransportType::FibreChannel => 2,
            TransportType::Tcp => 3,
            TransportType::Loop => 0xfe,
            TransportType::Other(other) => other,
        }
    }
}

/// ADRFAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressFamily {
    /// 1h.
    Ipv4,
    /// 2h.
    Ipv6,
    /// Not one that TCP uses.
    Other(u8),
}

impl AddressFamily {
    /// From the wire.
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => AddressFamily::Ipv4,
            2 => AddressFamily::Ipv6,
            other => AddressFamily::Other(other),
        }
    }

    /// To the wire.
    pub fn code(self) -> u8 {
        match self {
            AddressFamily::Ipv4 => 1,
            AddressFamily::Ipv6 => 2,
            AddressFamily::Other(other) => other,
        }
    }
}

/// SUBTYPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubsystemType {
    /// 1h: another discovery service to ask.
    Referral,
    /// 2h: an NVM subsystem.
    Nvm,
    /// 3h: the discovery subsystem that is answering.
    CurrentDiscovery,
    /// Not one we know.
    Other(u8),
}

impl SubsystemType {
    /// From the wire.
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => SubsystemType::Referral,
            2 => SubsystemType::Nvm,
            3 => SubsystemType::CurrentDiscovery,
            other => SubsystemType::Other(other),
        }
    }

    /// To the wire.
    pub fn code(self) -> u8 {
        match self {
            SubsystemType::Referral => 1,
            SubsystemType::Nvm => 2,
            SubsystemType::CurrentDiscovery => 3,
            SubsystemType::Other(other) => other,
        }
    }
}

wire_struct! {
    /// The header of the page.
    DiscoveryHeader, 1024, "discovery log header" {
        /// Generation counter: when it differs between two reads, the page has changed and must be read
        /// again.
        genctr: u64 = 0,
        /// Records that follow.
        numrec: u64 = 8,
        /// Record format; 0 is the only one.
        recfmt: u16 = 16,
    }
}

wire_struct! {
    /// A record as it lies on the wire, unchecked; [`DiscoveryEntry`] is the checked one.
    DiscoveryRecord, 1024, "discovery log entry" {
        /// TRTYPE.
        trtype: u8 = 0,
        /// ADRFAM.
        adrfam: u8 = 1,
        /// SUBTYPE.
        subtype: u8 = 2,
        /// TREQ.
        treq: u8 = 3,
        /// PORTID.
        portid: u16 = 4,
        /// CNTLID.
        cntlid: u16 = 6,
        /// ASQSZ.
        asqsz: u16 = 8,
        /// EFLAGS.
        eflags: u16 = 10,
        /// TRSVCID.
        trsvcid: [u8; 32] = 32,
        /// SUBNQN.
        subnqn: [u8; 256] = 256,
        /// TRADDR.
        traddr: [u8; 256] = 512,
        /// TSAS.
        tsas: [u8; 256] = 768,
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// Transport.
    pub transport: TransportType,
    /// Address family.
    pub family: AddressFamily,
    /// What is there.
    pub subsystem_type: SubsystemType,
    /// Transport requirements: bits 1:0 secure channel (1 required), bit 2 SQ flow control may be disabled.
    pub treq: u8,
    /// Port of the subsystem.
    pub portid: u16,
    /// Controller, FFFFh for the dynamic model.
    pub cntlid: u16,
    /// Largest admin queue, entries.
    pub asqsz: u16,
    /// Flags: bit 0 duplicate returned information, bit 1 explicit persistent connections (EPCSD).
    pub eflags: u16,
    /// Address as text.
    pub traddr: String,
    /// Service (TCP port) as text.
    pub trsvcid: String,
    /// Subsystem NQN.
    pub subnqn: Nqn,
    /// Security of TCP: 0 none, 1 TLS 1.2, 2 TLS 1.3.
    pub tcp_security: u8,
}

impl DiscoveryEntry {
    /// Reads a record of 1024 octets.
    ///
    /// # Errors
    /// [`ParseError`] when there are fewer or the NQN is not one.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let raw = DiscoveryRecord::parse(bytes)?;
        Ok(DiscoveryEntry {
            transport: TransportType::from_code(raw.trtype),
            family: AddressFamily::from_code(raw.adrfam),
            subsystem_type: SubsystemType::from_code(raw.subtype),
            treq: raw.treq,
            portid: raw.portid,
            cntlid: raw.cntlid,
            asqsz: raw.asqsz,
            eflags: raw.eflags,
            traddr: ascii(&raw.traddr),
            trsvcid: ascii(&raw.trsvcid),
            subnqn: Nqn::from_field(&raw.subnqn, "SUBNQN of a discovery log entry")?,
            tcp_security: raw.tsas[0],
        })
    }

    /// The octets (the target's side). Texts that are too long are cut.
    pub fn to_bytes(&self) -> [u8; 1024] {
        let mut tsas = [0; 256];
        tsas[0] = self.tcp_security;
        DiscoveryRecord {
            trtype: self.transport.code(),
            adrfam: self.family.code(),
            subtype: self.subsystem_type.code(),
            treq: self.treq,
            portid: self.portid,
            cntlid: self.cntlid,
            asqsz: self.asqsz,
            eflags: self.eflags,
            trsvcid: padded(&self.trsvcid, b' '),
            subnqn: self.subnqn.to_field(),
            traddr: padded(&self.traddr, b' '),
            tsas,
        }
        .to_bytes()
    }
}

/// A whole page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiscoveryLog {
    /// Generation counter.
    pub genctr: u64,
    /// Records.
    pub entries: Vec<DiscoveryEntry>,
    /// Records that were left out because they could not be read; why.
    pub skipped: Vec<ParseError>,
}

impl DiscoveryLog {
    /// Reads a page. A record that cannot be read is skipped and reported, since one bad record of one
    /// vendor must not hide all others.
    ///
    /// # Errors
    /// [`ParseError`] when the octets end before the records do, or the record format is unknown.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let header = DiscoveryHeader::parse(bytes)?;
        if header.recfmt != 0 {
            return Err(ParseError::Value {
                what: "RECFMT of the discovery log",
                value: u64::from(header.recfmt),
                expected: "0",
            });
        }
        let records = &bytes[DISCOVERY_RECORD_LEN..];
        let have = records.len() / DISCOVERY_RECORD_LEN;
        let count = usize::try_from(header.numrec).unwrap_or(usize::MAX);
        if count > have {
            return Err(ParseError::Short { what: "records of the discovery log", need: count, have });
        }
        let mut log = DiscoveryLog { genctr: header.genctr, ..DiscoveryLog::default() };
        for record in records.chunks_exact(DISCOVERY_RECORD_LEN).take(count) {
            match DiscoveryEntry::parse(record) {
                Ok(entry) => log.entries.push(entry),
                Err(e) => log.skipped.push(e),
            }
        }
        Ok(log)
    }

    /// The octets (the target's side).
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = DiscoveryHeader { genctr: self.genctr, numrec: self.entries.len() as u64, recfmt: 0 };
        let mut b = header.to_bytes().to_vec();
        for entry in &self.entries {
            b.extend_from_slice(&entry.to_bytes());
        }
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(subsystem_type: SubsystemType) -> DiscoveryEntry {
        DiscoveryEntry {
            transport: TransportType::Tcp,
            family: AddressFamily::Ipv4,
            subsystem_type,
            treq: 4,
            portid: 1,
            cntlid: 0xffff,
            asqsz: 32,
            eflags: 2,
            traddr: "192.0.2.1".into(),
            trsvcid: "4420".into(),
            subnqn: Nqn::new("nqn.2024-01.org.example:s").unwrap(),
            tcp_security: 0,
        }
    }

    #[test]
    fn round_trip_and_truncation() {
        let log = DiscoveryLog {
            genctr: 3,
            entries: vec![entry(SubsystemType::Nvm), entry(SubsystemType::Referral)],
            skipped: vec![],
        };
        let b = log.to_bytes();
        // Layout: SPDK include/spdk/nvmf_spec.h, spdk_nvmf_discovery_log_page_entry.
        assert_eq!(&b[1024..1036], &[3, 1, 2, 4, 1, 0, 0xff, 0xff, 32, 0, 2, 0]);
        assert_eq!(&b[1024 + 32..1024 + 36], b"4420");
        assert_eq!(&b[1024 + 512..1024 + 521], b"192.0.2.1");
        assert_eq!(DiscoveryLog::parse(&b), Ok(log));
        for n in (0..b.len()).step_by(101).chain([b.len() - 1]) {
            assert!(DiscoveryLog::parse(&b[..n]).is_err(), "{n}");
        }
    }

    #[test]
    fn bad_records_are_skipped_and_bad_headers_refused() {
        let log = DiscoveryLog { genctr: 1, entries: vec![entry(SubsystemType::Nvm); 2], skipped: vec![] };
        let mut b = log.to_bytes();
        b[1024 + 256] = 0;
        let read = DiscoveryLog::parse(&b).unwrap();
        assert_eq!((read.entries.len(), read.skipped.len()), (1, 1));
        b[16] = 1;
        assert!(DiscoveryLog::parse(&b).is_err());
        b[16] = 0;
        b[15] = 0xff;
        assert!(DiscoveryLog::parse(&b).is_err());
        for code in 0..=255 {
            assert_eq!(TransportType::from_code(code).code(), code);
            assert_eq!(AddressFamily::from_code(code).code(), code);
            assert_eq!(SubsystemType::from_code(code).code(), code);
        }
    }
}
