//! What concerns iSCSI only.

use super::ConfigError;
use serde::Deserialize;
use std::path::PathBuf;

/// What concerns iSCSI only: what is negotiated at login, and who may log in.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IscsiConfig {
    /// Who may log in, and how the target proves itself; everybody may when not given.
    pub chap: Option<ChapConfig>,
    /// Most bytes of a data segment that we take (MaxRecvDataSegmentLength), 512 to 1 MiB (default 262144).
    pub max_recv_data: u32,
    /// InitialR2T: is unsolicited data in PDUs of its own ruled out? (default no)
    pub initial_r2t: bool,
    /// ImmediateData: may data come with a command? (default yes)
    pub immediate_data: bool,
    /// FirstBurstLength in bytes (default 65536).
    pub first_burst: u32,
    /// MaxBurstLength in bytes (default 262144).
    pub max_burst: u32,
    /// MaxOutstandingR2T (1 to 16; default 4).
    pub max_outstanding_r2t: u16,
    /// Commands that a session may have under way (1 to 512; default 128).
    pub command_window: u16,
    /// Largest transfer of one command in bytes (MAXIMUM TRANSFER LENGTH), 8192 to 16 MiB (default 1 MiB).
    pub max_transfer: u32,
    /// How long an initiator may be silent before it is asked with a NOP-In whether it is there, and again as long before its connection is
    /// given up, in milliseconds; 0 for ever (default 0).
    pub nop_interval_ms: u32,
}

impl Default for IscsiConfig {
    fn default() -> Self {
        IscsiConfig {
            chap: None,
            max_recv_data: 262_144,
            initial_r2t: false,
            immediate_data: true,
            first_burst: 65_536,
            max_burst: 262_144,
            max_outstanding_r2t: 4,
            command_window: 128,
            max_transfer: 1 << 20,
            nop_interval_ms: 0,
        }
    }
}

impl IscsiConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (name, value, low, high) in [
            ("iscsi.max_recv_data", self.max_recv_data, 512, 1 << 20),
            ("iscsi.max_burst", self.max_burst, 512, (1 << 24) - 1),
            ("iscsi.first_burst", self.first_burst, 512, self.max_burst),
            ("iscsi.max_outstanding_r2t", self.max_outstanding_r2t.into(), 1, 16),
            ("iscsi.command_window", self.command_window.into(), 1, 512),
            ("iscsi.max_transfer", self.max_transfer, 8192, 16 << 20),
        ] {
            if !(low..=high).contains(&value) {
                return Err(ConfigError::new(name, format!("{value} is not from {low} to {high}")));
            }
        }
        Ok(())
    }
}

/// CHAP: whom the target lets in, and how it proves itself where an initiator wants that.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChapConfig {
    /// Name of the initiator's user.
    pub user: String,
    /// Its secret.
    pub secret: Option<SecretText>,
    /// A file with its secret; line ends at its end do not count.
    pub secret_file: Option<PathBuf>,
    /// The target's own name; it cannot prove itself without one.
    pub own_user: Option<String>,
    /// The target's own secret.
    pub own_secret: Option<SecretText>,
    /// A file with it.
    pub own_secret_file: Option<PathBuf>,
}

/// A secret in a configuration. It does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

/// As it is written. What else is there is not shown either.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a secret in quotes")]
enum Written {
    Text(String),
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written::Text(text) = Written::deserialize(deserializer)?;
        Ok(SecretText(text))
    }
}

impl SecretText {
    /// This secret.
    pub fn new(text: impl Into<String>) -> Self {
        SecretText(text.into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText")
    }
}
