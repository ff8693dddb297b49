//! The protocols whose bytes are measured, as far as this program must know them.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What is spoken on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// NVMe/TCP
    #[default]
    NvmeTcp,
    /// iSCSI
    Iscsi,
}

impl Protocol {
    /// The word on the command line, in reports and in the names of files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::NvmeTcp => "nvme-tcp",
            Protocol::Iscsi => "iscsi",
        }
    }

    /// Bytes before the data of a read that succeeds, when the answer says so in the same PDU: the header of a C2HData PDU (NVMe/TCP 1.0
    /// section 3.6.2.10) or of a Data-In PDU (RFC 7143 section 11.7).
    pub const fn read_header(self) -> usize {
        match self {
            Protocol::NvmeTcp => 24,
            Protocol::Iscsi => 48,
        }
    }

    /// Bytes of a read's request: a command capsule or a SCSI Command PDU.
    pub const fn read_request(self) -> usize {
        match self {
            Protocol::NvmeTcp => 72,
            Protocol::Iscsi => 48,
        }
    }
}
