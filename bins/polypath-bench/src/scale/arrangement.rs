//! What is served.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Any identity: all paths of a disk show it.
const UUID: &str = "uuid=3dd3f6c2-3a64-4b3e-a3a6-000000000001";

/// What is at the end of the paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleMedium {
    /// Nothing: no data is moved
    Null,
    /// Memory of the process: each block is copied once
    Ram,
    /// NVMe/TCP to a target on this machine that has nothing behind it
    Tcp,
}

impl ScaleMedium {
    /// All of them.
    pub const ALL: [ScaleMedium; 3] = [ScaleMedium::Null, ScaleMedium::Ram, ScaleMedium::Tcp];

    /// The word for it on command lines and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            ScaleMedium::Null => "null",
            ScaleMedium::Ram => "ram",
            ScaleMedium::Tcp => "tcp",
        }
    }

    /// A path to a disk of this process; `None` for one that a target has.
    pub(super) fn local(self) -> Option<String> {
        match self {
            ScaleMedium::Null => Some(format!("null://64GiB?{UUID}")),
            ScaleMedium::Ram => Some(format!("ram://64MiB?{UUID}")),
            ScaleMedium::Tcp => None,
        }
    }
}

/// So many disks, with so many paths each, served on so many rings each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Arrangement {
    /// Disks.
    pub disks: u32,
    /// Paths of each; over TCP the first path of all leads through one controller, the second through another, and so on.
    pub paths: u16,
    /// Rings of 1,024 entries of each.
    pub rings: u16,
}
