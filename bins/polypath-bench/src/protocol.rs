//! The protocols whose bytes are measured, as far as this program must know them.

use clap::ValueEnum;
use polypath_target::ListenerConfig;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

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

    /// A listener of `polypath-target` that speaks it.
    pub(crate) fn listener(self, address: String) -> ListenerConfig {
        match self {
            Protocol::NvmeTcp => ListenerConfig::new(address),
            Protocol::Iscsi => ListenerConfig::iscsi(address),
        }
    }

    /// The URI of the first disk at `address` of a target with these names.
    pub(crate) fn uri(self, address: SocketAddr, nqn: &str, iqn: &str) -> String {
        match self {
            Protocol::NvmeTcp => format!("nvme-tcp://{address}/{nqn}?ns=1"),
            Protocol::Iscsi => format!("iscsi://{address}/{iqn}/0"),
        }
    }
}
