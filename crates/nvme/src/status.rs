//! The status field of a completion: type, code and what may be done about it (Base 2.1 section
//! 4.2.3).

/// Status: SC in bits 7:0, SCT in 10:8, CRD in 12:11, M in 13, DNR in 14.
///
/// The constants carry type and code only; compare with [`StatusField::is`], which ignores the
/// other bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StatusField(u16);

/// Status code types.
pub mod sct {
    /// Generic command status.
    pub const GENERIC: u8 = 0;
    /// Command specific status.
    pub const COMMAND_SPECIFIC: u8 = 1;
    /// Media and data integrity errors.
    pub const MEDIA: u8 = 2;
    /// Path related status.
    pub const PATH: u8 = 3;
    /// Vendor specific.
    pub const VENDOR: u8 = 7;
}

impl StatusField {
    /// A status of this type and code.
    pub const fn new(sct: u8, sc: u8) -> Self {
        StatusField(((sct as u16) & 7) << 8 | sc as u16)
    }

    /// The field as bits 15:1 of the completion's last word, shifted down; bit 15 is dropped.
    pub const fn from_raw(raw: u16) -> Self {
        StatusField(raw & 0x7fff)
    }

    /// The 15 bits.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The same status with Do Not Retry set.
    #[must_use]
    pub const fn with_dnr(self) -> Self {
        StatusField(self.0 | 1 << 14)
    }

    /// The same status with More set: the error log has more to tell.
    #[must_use]
    pub const fn with_more(self) -> Self {
        StatusField(self.0 | 1 << 13)
    }

    /// Status code.
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// Status code type.
    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Command Retry Delay: 0 for none, else the index of CRDT1 to CRDT3 in Identify Controller.
    pub const fn crd(self) -> u8 {
        (self.0 >> 11) as u8 & 3
    }

    /// More.
    pub const fn more(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// Do Not Retry.
    pub const fn dnr(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// Type and code, without CRD, M and DNR.
    pub const fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// Whether type and code are those of `other`.
    pub const fn is(self, other: StatusField) -> bool {
        self.code() == other.code()
    }

    /// Whether the command succeeded.
    pub const fn is_success(self) -> bool {
        self.code() == 0
    }

    /// Whether the path, not the command, is to blame (type 3h).
    pub const fn is_path(self) -> bool {
        self.sct() == sct::PATH
    }

    /// Whether an asymmetric access state is to blame: persistent loss, inaccessible, transition.
    pub const fn is_ana(self) -> bool {
        matches!(self.code(), 0x301..=0x303)
    }
}

macro_rules! status_codes {
    ($( $name:ident = $sct:literal, $sc:literal, $text:literal; )*) => {
        impl StatusField {
            $( #[doc = $text] pub const $name: StatusField = StatusField::new($sct, $sc); )*

            /// The name of the status as the specification gives it.
            ///
            /// Fabrics give some command specific codes a second meaning; where the code is shared,
            /// the fabrics name stands.
            pub const fn text(self) -> &'static str {
                match self.code() {
                    $( code if code == ($sct << 8 | $sc) => $text, )*
                    _ => match self.sct() {
                        0 => "unknown generic status",
                        1 => "unknown command specific status",
                        2 => "unknown media or data integrity error",
                        3 => "unknown path related status",
                        7 => "vendor specific status",
                        _ => "reserved status type",
                    },
                }
            }
        }
    };
}

status_codes! {
    SUCCESS = 0, 0x00, "Successful Completion";
    INVALID_OPCODE = 0, 0x01, "Invalid Command Opcode";
    INVALID_FIELD = 0, 0x02, "Invalid Field in Command";
    CID_CONFLICT = 0, 0x03, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0, 0x04, "Data Transfer Error";
    POWER_LOSS = 0, 0x05, "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = 0, 0x06, "Internal Error";
    ABORT_REQUESTED = 0, 0x07, "Command Abort Requested";
    ABORTED_SQ_DELETION = 0, 0x08, "Command Aborted due to SQ Deletion";
    ABORTED_FUSED_FAIL = 0, 0x09, "Command Aborted due to Failed Fused Command";
    ABORTED_FUSED_MISSING = 0, 0x0a, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE = 0, 0x0b, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0, 0x0c, "Command Sequence Error";
    INVALID_SGL_SEGMENT = 0, 0x0d, "Invalid SGL Segment Descriptor";
    INVALID_SGL_COUNT = 0, 0x0e, "Invalid Number of SGL Descriptors";
    INVALID_SGL_DATA_LENGTH = 0, 0x0f, "Data SGL Length Invalid";
    INVALID_SGL_METADATA_LENGTH = 0, 0x10, "Metadata SGL Length Invalid";
    INVALID_SGL_TYPE = 0, 0x11, "SGL Descriptor Type Invalid";
    INVALID_PRP_OFFSET = 0, 0x13, "PRP Offset Invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0, 0x14, "Atomic Write Unit Exceeded";
    OPERATION_DENIED = 0, 0x15, "Operation Denied";
    INVALID_SGL_OFFSET = 0, 0x16, "SGL Offset Invalid";
    HOST_ID_INCONSISTENT = 0, 0x18, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_EXPIRED = 0, 0x19, "Keep Alive Timer Expired";
    KEEP_ALIVE_INVALID = 0, 0x1a, "Keep Alive Timeout Invalid";
    ABORTED_PREEMPT = 0, 0x1b, "Command Aborted due to Preempt and Abort";
    SANITIZE_FAILED = 0, 0x1c, "Sanitize Failed";
    SANITIZE_IN_PROGRESS = 0, 0x1d, "Sanitize In Progress";
    NAMESPACE_WRITE_PROTECTED = 0, 0x20, "Namespace is Write Protected";
    COMMAND_INTERRUPTED = 0, 0x21, "Command Interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0, 0x22, "Transient Transport Error";
    ADMIN_COMMAND_MEDIA_NOT_READY = 0, 0x24, "Admin Command Media Not Ready";
    LBA_OUT_OF_RANGE = 0, 0x80, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0, 0x81, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0, 0x82, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0, 0x83, "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0, 0x84, "Format In Progress";
    INVALID_QUEUE_ID = 1, 0x01, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 1, 0x02, "Invalid Queue Size";
    ABORT_LIMIT_EXCEEDED = 1, 0x03, "Abort Command Limit Exceeded";
    ASYNC_EVENT_LIMIT_EXCEEDED = 1, 0x05, "Asynchronous Event Request Limit Exceeded";
    INVALID_LOG_PAGE = 1, 0x09, "Invalid Log Page";
    INVALID_FORMAT = 1, 0x0a, "Invalid Format";
    FEATURE_NOT_SAVEABLE = 1, 0x0d, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 1, 0x0e, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 1, 0x0f, "Feature Not Namespace Specific";
    NAMESPACE_NOT_ATTACHED = 1, 0x1a, "Namespace Not Attached";
    CONNECT_INCOMPATIBLE_FORMAT = 1, 0x80, "Connect Incompatible Format";
    CONNECT_CONTROLLER_BUSY = 1, 0x81, "Connect Controller Busy";
    CONNECT_INVALID_PARAMETERS = 1, 0x82, "Connect Invalid Parameters";
    CONNECT_RESTART_DISCOVERY = 1, 0x83, "Connect Restart Discovery";
    CONNECT_INVALID_HOST = 1, 0x84, "Connect Invalid Host";
    INVALID_QUEUE_TYPE = 1, 0x85, "Invalid Queue Type";
    DISCOVER_RESTART = 1, 0x90, "Discover Restart";
    AUTHENTICATION_REQUIRED = 1, 0x91, "Authentication Required";
    WRITE_FAULT = 2, 0x80, "Write Fault";
    UNRECOVERED_READ_ERROR = 2, 0x81, "Unrecovered Read Error";
    GUARD_CHECK_ERROR = 2, 0x82, "End-to-end Guard Check Error";
    APPLICATION_TAG_CHECK_ERROR = 2, 0x83, "End-to-end Application Tag Check Error";
    REFERENCE_TAG_CHECK_ERROR = 2, 0x84, "End-to-end Reference Tag Check Error";
    COMPARE_FAILURE = 2, 0x85, "Compare Failure";
    ACCESS_DENIED = 2, 0x86, "Access Denied";
    UNWRITTEN_BLOCK = 2, 0x87, "Deallocated or Unwritten Logical Block";
    PATH_INTERNAL_ERROR = 3, 0x00, "Internal Path Error";
    ANA_PERSISTENT_LOSS = 3, 0x01, "Asymmetric Access Persistent Loss";
    ANA_INACCESSIBLE = 3, 0x02, "Asymmetric Access Inaccessible";
    ANA_TRANSITION = 3, 0x03, "Asymmetric Access Transition";
    CONTROLLER_PATHING_ERROR = 3, 0x60, "Controller Pathing Error";
    HOST_PATHING_ERROR = 3, 0x70, "Host Pathing Error";
    ABORTED_BY_HOST = 3, 0x71, "Command Aborted By Host";
}

impl std::fmt::Display for StatusField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:X}h/{:02X}h", self.text(), self.sct(), self.sc())?;
        if self.crd() != 0 {
            write!(f, ", CRD {}", self.crd())?;
        }
        if self.more() {
            f.write_str(", M")?;
        }
        if self.dnr() {
            f.write_str(", DNR")?;
        }
        f.write_str(")")
    }
}

impl std::fmt::Debug for StatusField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StatusField({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_text() {
        let s = StatusField::ANA_INACCESSIBLE.with_dnr().with_more();
        assert_eq!(s.raw(), 0x6302);
        assert!(s.is_path() && s.is_ana() && s.dnr() && s.more());
        assert!(s.is(StatusField::ANA_INACCESSIBLE));
        assert_eq!(s.to_string(), "Asymmetric Access Inaccessible (3h/02h, M, DNR)");
        assert_eq!(StatusField::from_raw(0x1802).crd(), 3);
        assert_eq!(StatusField::new(1, 0x82), StatusField::CONNECT_INVALID_PARAMETERS);
        assert_eq!(StatusField::new(6, 1).text(), "reserved status type");
    }

    #[test]
    fn codes_are_those_linux_prints() {
        // Linux include/linux/nvme.h: NVME_SC_*.
        for (s, code) in [
            (StatusField::SUCCESS, 0x0),
            (StatusField::INVALID_NAMESPACE, 0xb),
            (StatusField::LBA_OUT_OF_RANGE, 0x80),
            (StatusField::CONNECT_INVALID_HOST, 0x184),
            (StatusField::COMPARE_FAILURE, 0x285),
            (StatusField::ANA_PERSISTENT_LOSS, 0x301),
            (StatusField::ANA_TRANSITION, 0x303),
            (StatusField::HOST_PATHING_ERROR, 0x370),
            (StatusField::ABORTED_BY_HOST, 0x371),
        ] {
            assert_eq!(s.code(), code, "{s}");
        }
    }
}
