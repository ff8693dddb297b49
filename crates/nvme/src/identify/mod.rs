//! Identify data (Base 2.1 section 5.1.13; NVM Command Set 1.1 section 4.1.5), both to parse (host) and to
//! build (target). Offsets were checked against Linux `include/linux/nvme.h` (`nvme_id_ctrl`, `nvme_id_ns`).

mod controller;
mod descriptors;
mod lists;
mod namespace;

pub use controller::{ControllerType, IdentifyController, anacap, cmic, ctratt, oaes, oncs};
pub use descriptors::NamespaceIds;
pub use lists::{active_namespaces, build_namespace_list};
pub use namespace::{IdentifyNamespace, LbaFormat, nmic};

/// Octets of every Identify answer.
pub const LEN: usize = 4096;

/// What Identify is asked for (CNS).
pub mod cns {
    /// Namespace, of the NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespaces with identifiers above the one given.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Identification descriptors of a namespace.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// Namespace, I/O command set specific.
    pub const NAMESPACE_COMMAND_SET: u8 = 0x05;
    /// Controller, I/O command set specific.
    pub const CONTROLLER_COMMAND_SET: u8 = 0x06;
    /// Namespace, I/O command set independent.
    pub const NAMESPACE_INDEPENDENT: u8 = 0x08;
}
