//! A small NVMe/TCP target in software, for demonstrations, tests and measurements.
//!
//! **Knows:** NVMe/TCP as a controller speaks it (digests, R2T, in-capsule data, SUCCESS), subsystems over memory, nothing or a
//! file, several listeners and controllers, ANA per listener, discovery, keep alive with a bound after which nothing of an
//! association is executed, and faults on command.
//!
//! **Refuses to know:** reservations, authentication, TLS, persistence of its configuration.
//!
//! **Threading:** `threads` epoll loops; a connection belongs to one of them. Changes reach them by message or by a version
//! number. A hostile host costs its own connection only.
//!
//! **Unsafe:** forbidden.
//!
//! A program starts one with [`Target::start`] and changes it with [`TargetHandle::control`]; the binary `polypath-target` does
//! the same from a command line. Read `proto/mod.rs` for the state machine, `shell.rs` for the loop around it.
#![forbid(unsafe_code)]

mod cache;
pub mod cli;
mod config;
mod control;
mod faults;
mod media;
mod proto;
mod service;
mod shared;
mod shell;
#[doc(hidden)]
pub mod sim_shell;
mod sock;
mod status;
mod target;

pub use config::{AnaState, ConfigError, DEFAULT_NQN, ListenerConfig, NamespaceConfig, SubsystemConfig, TargetConfig};
pub use control::{Command, ListenerName, call};
pub use faults::HeldRecord;
pub use target::{StartError, Target, TargetHandle};
