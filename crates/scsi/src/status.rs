//! Status codes: the one octet with which every command ends (SAM-5 5.3.1).

use std::fmt;

/// A status code. Any octet is one; those that have a meaning are constants.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScsiStatus(pub u8);

impl ScsiStatus {
    /// The command was carried out.
    pub const GOOD: ScsiStatus = ScsiStatus(0x00);
    /// Sense data tells what happened.
    pub const CHECK_CONDITION: ScsiStatus = ScsiStatus(0x02);
    /// The requested operation was satisfied (PRE-FETCH).
    pub const CONDITION_MET: ScsiStatus = ScsiStatus(0x04);
    /// The logical unit is busy. The command was not carried out.
    pub const BUSY: ScsiStatus = ScsiStatus(0x08);
    /// Another initiator port holds a reservation that forbids the command, or, for PERSISTENT RESERVE OUT, the key is not the
    /// registered one.
    pub const RESERVATION_CONFLICT: ScsiStatus = ScsiStatus(0x18);
    /// No room in the task set. The command was not carried out.
    pub const TASK_SET_FULL: ScsiStatus = ScsiStatus(0x28);
    /// An auto contingent allegiance condition is in force. The command was not carried out.
    pub const ACA_ACTIVE: ScsiStatus = ScsiStatus(0x30);
    /// Another initiator port had the command aborted (only with TAS set in the Control mode page).
    pub const TASK_ABORTED: ScsiStatus = ScsiStatus(0x40);

    /// Does sense data come with it?
    pub const fn is_check_condition(self) -> bool {
        self.0 == Self::CHECK_CONDITION.0
    }

    /// The name as the standard gives it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::GOOD => "GOOD",
            Self::CHECK_CONDITION => "CHECK CONDITION",
            Self::CONDITION_MET => "CONDITION MET",
            Self::BUSY => "BUSY",
            Self::RESERVATION_CONFLICT => "RESERVATION CONFLICT",
            Self::TASK_SET_FULL => "TASK SET FULL",
            Self::ACA_ACTIVE => "ACA ACTIVE",
            Self::TASK_ABORTED => "TASK ABORTED",
            _ => "obsolete or reserved status",
        }
    }
}

impl fmt::Display for ScsiStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:02X}h)", self.text(), self.0)
    }
}

impl fmt::Debug for ScsiStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_the_code() {
        assert_eq!(ScsiStatus::TASK_SET_FULL.to_string(), "TASK SET FULL (28h)");
        assert_eq!(ScsiStatus(0x22).to_string(), "obsolete or reserved status (22h)");
        assert!(ScsiStatus(2).is_check_condition() && !ScsiStatus::GOOD.is_check_condition());
        assert_eq!((0..=255).filter(|&s| !ScsiStatus(s).text().starts_with("obsolete")).count(), 8);
    }
}
