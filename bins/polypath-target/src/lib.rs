//! A small NVMe/TCP and iSCSI target in software, for demonstrations, tests and measurements; and a small gateway.
//!
//! **Knows:** NVMe/TCP as a controller speaks it (digests, R2T, in-capsule data, SUCCESS, reservations) and iSCSI as a target speaks it (digests, R2T,
//! immediate and unsolicited data, CHAP, task management, persistent reservations), disks over memory, nothing or any disk of
//! `polypath` (files, groups of paths) that both export at once under identifiers that prove them the same, several listeners, ANA and ALUA
//! per listener, discovery, bounds and proofs after which nothing of an association or a session is executed, and faults on command.
//!
//! **Refuses to know:** TLS, in-band authentication of NVMe, persistence of its configuration.
//!
//! **Gateway:** memory and nothing are used directly. A disk of `polypath` answers later: commands become jobs (`media/beneath`), and what a
//! host has given up, or left behind, is called quiet only when the disk has given it back.
//!
//! **House:** `media` and `faults` know no protocol, `store`, `mail` and `shared` hold what all connections share, the rooms `nvme` and
//! `iscsi` use them, `rooms` and `conn` put both together for the shells. No import runs back.
//!
//! **Threading:** `threads` epoll loops, which are pollers of reactors where there are disks beneath; a connection belongs to one of them.
//! Changes reach them by message or by a version number. A hostile host costs its own connection only.
//!
//! **Unsafe:** forbidden.
//!
//! A program starts one with [`Target::start`] and changes it with [`TargetHandle::control`]; the binary `polypath-target` does
//! the same from a command line. Read `nvme/mod.rs` and `iscsi/mod.rs` for the state machines, `shell.rs` for the loop around them.
#![forbid(unsafe_code)]

pub mod cli;
mod config;
mod conn;
mod control;
mod faults;
mod iscsi;
mod mail;
mod media;
mod nvme;
mod out;
mod pool;
mod rooms;
mod shared;
mod shell;
#[doc(hidden)]
pub mod sim_shell;
mod sock;
mod status;
mod store;
mod target;

pub use config::{
    AnaState, ChapConfig, ConfigError, DEFAULT_IQN, DEFAULT_NQN, IscsiConfig, ListenerConfig, NamespaceConfig,
    Protocol, SecretText, SubsystemConfig, TargetConfig,
};
pub use control::{Command, ListenerName, call};
pub use faults::HeldRecord;
pub use target::{StartError, Target, TargetHandle};
