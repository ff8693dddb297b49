//! Unit attentions: what happened that this initiator port is to hear of (SAM-5 5.14, SPC-4 annex with the additional sense codes).

/// What a unit attention tells. Each says what to do before the command is sent again; where it says nothing, nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Attention {
    /// 29h/00h: power on, reset or bus device reset, not told which. What every target says first to a new nexus. All settings that were
    /// not saved are gone; identity, capacity and mode pages are to be read again.
    PowerOnOrReset,
    /// 29h/01h and 29h/04h: it lost its power or reset itself. As [`Attention::PowerOnOrReset`].
    PowerOn,
    /// 29h with another qualifier: it was reset by somebody; commands of every initiator port were aborted. As
    /// [`Attention::PowerOnOrReset`].
    Reset,
    /// 29h/07h: the target had lost the nexus with us; our commands of before are gone.
    NexusLoss,
    /// 28h: a medium may have been changed. Identity and capacity are to be read again.
    MediumChanged,
    /// 2Ah/00h: parameters changed. As [`Attention::ModeParametersChanged`].
    ParametersChanged,
    /// 2Ah/01h: mode pages are to be read again (write cache, write protection, D_SENSE).
    ModeParametersChanged,
    /// 2Ah/09h: READ CAPACITY again.
    CapacityChanged,
    /// 2Ah/06h and 2Ah/07h: REPORT TARGET PORT GROUPS again.
    AccessStateChanged,
    /// 3Fh/0Eh: REPORT LUNS again.
    LunsChanged,
    /// 3Fh/03h and 3Fh/05h: INQUIRY and device identification again; it may be another disk.
    InquiryChanged,
    /// 2Ah/03h: our reservation was preempted.
    ReservationsPreempted,
    /// 2Ah/04h: the reservation that we were registered for was released.
    ReservationsReleased,
    /// 2Ah/05h: our registration was preempted. We have none any more.
    RegistrationsPreempted,
    /// 2Fh and 47h/7Fh: our commands were cleared, by another initiator port or by the target; they are not answered.
    CommandsCleared,
    /// 38h/07h: a thin provisioning soft threshold was reached: space runs out. For the operator.
    SpaceRunsOut,
    /// 5Dh: the device predicts its failure. For the operator.
    FailurePredicted,
    /// 3Fh/00h to 3Fh/02h: microcode or operating conditions changed. As [`Attention::InquiryChanged`].
    ConditionsChanged,
    /// Anything else.
    Other,
}

impl Attention {
    /// What this additional sense code, `asc << 8 | ascq`, tells.
    pub const fn of(code: u16) -> Self {
        match code {
            0x2900 => Attention::PowerOnOrReset,
            0x2901 | 0x2904 => Attention::PowerOn,
            0x2907 => Attention::NexusLoss,
            0x2902..=0x29ff => Attention::Reset,
            0x2800..=0x28ff => Attention::MediumChanged,
            0x2a00 => Attention::ParametersChanged,
            0x2a01 => Attention::ModeParametersChanged,
            0x2a03 => Attention::ReservationsPreempted,
            0x2a04 => Attention::ReservationsReleased,
            0x2a05 => Attention::RegistrationsPreempted,
            0x2a06 | 0x2a07 => Attention::AccessStateChanged,
            0x2a09 => Attention::CapacityChanged,
            0x2f00..=0x2fff | 0x477f => Attention::CommandsCleared,
            0x3807 => Attention::SpaceRunsOut,
            0x3f00..=0x3f02 => Attention::ConditionsChanged,
            0x3f03 | 0x3f05 => Attention::InquiryChanged,
            0x3f0e => Attention::LunsChanged,
            0x5d00..=0x5dff => Attention::FailurePredicted,
            _ => Attention::Other,
        }
    }

    /// May a volatile write cache have lost its content? Said of a nexus that was used before; a new one hears
    /// [`Attention::PowerOnOrReset`] in any case.
    pub const fn may_have_lost_cache(self) -> bool {
        matches!(self, Attention::PowerOnOrReset | Attention::PowerOn)
    }

    /// May another disk be there now, or the same of another size? Requests wait until that is known.
    pub const fn may_be_another(self) -> bool {
        use Attention as A;
        matches!(
            self,
            A::PowerOnOrReset
                | A::PowerOn
                | A::Reset
                | A::NexusLoss
                | A::MediumChanged
                | A::ParametersChanged
                | A::ModeParametersChanged
                | A::CapacityChanged
                | A::LunsChanged
                | A::InquiryChanged
                | A::ConditionsChanged
        )
    }

    /// May our commands that were in flight never be answered?
    pub const fn commands_are_gone(self) -> bool {
        matches!(
            self,
            Attention::PowerOnOrReset
                | Attention::PowerOn
                | Attention::Reset
                | Attention::NexusLoss
                | Attention::CommandsCleared
        )
    }
}
