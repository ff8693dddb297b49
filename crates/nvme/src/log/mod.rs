//! Log pages and asynchronous events (Base 2.1 sections 5.1.12 and 5.1.2).

mod ana;
mod discovery;
mod event;
mod health;

pub use ana::{AnaGroup, AnaLog, AnaState};
pub use discovery::{
    AddressFamily, DISCOVERY_RECORD_LEN, DiscoveryEntry, DiscoveryHeader, DiscoveryLog, DiscoveryRecord, SubsystemType,
    TransportType,
};
pub use event::{AsyncEvent, ChangedNamespaces, EventKind};
pub use health::{ErrorLogEntry, SmartLog};

/// Log page identifiers.
pub mod lid {
    /// Error information.
    pub const ERROR: u8 = 0x01;
    /// SMART / health information.
    pub const SMART: u8 = 0x02;
    /// Firmware slots.
    pub const FIRMWARE_SLOT: u8 = 0x03;
    /// Changed attached namespaces.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands supported and effects.
    pub const COMMAND_EFFECTS: u8 = 0x05;
    /// Asymmetric namespace access.
    pub const ANA: u8 = 0x0c;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
    /// Reservation notifications; see [`ReservationNotification`](crate::reservation::ReservationNotification).
    pub const RESERVATION: u8 = 0x80;
}
