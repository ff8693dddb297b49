//! Asymmetric logical unit access: the data of REPORT TARGET PORT GROUPS (SPC-4 6.37) and SET TARGET PORT GROUPS (SPC-4 6.45).

use crate::sense::key;
use crate::wire::{bit, flag, front, get8, get16, get32, len32, put32};
use crate::{ParseError, Sense};
use polypath_block::Access;

/// ASYMMETRIC ACCESS STATE of a target port group (SPC-4 5.16.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum AluaState {
    /// 0h: active/optimized.
    Optimized,
    /// 1h: active/non-optimized.
    NonOptimized,
    /// 2h: standby: it answers, but to few commands.
    Standby,
    /// 3h: unavailable: to even fewer.
    Unavailable,
    /// 4h: logical block dependent: optimized for some blocks, which REPORT REFERRALS tells.
    LogicalBlockDependent,
    /// Eh: offline. Only of other groups than the one that answers.
    Offline,
    /// Fh: changing.
    Transitioning,
    /// Reserved.
    Other(u8),
}

impl AluaState {
    /// The state of four bits.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0x0f {
            0x0 => AluaState::Optimized,
            0x1 => AluaState::NonOptimized,
            0x2 => AluaState::Standby,
            0x3 => AluaState::Unavailable,
            0x4 => AluaState::LogicalBlockDependent,
            0xe => AluaState::Offline,
            0xf => AluaState::Transitioning,
            other => AluaState::Other(other),
        }
    }

    /// The four bits.
    pub const fn bits(self) -> u8 {
        match self {
            AluaState::Optimized => 0x0,
            AluaState::NonOptimized => 0x1,
            AluaState::Standby => 0x2,
            AluaState::Unavailable => 0x3,
            AluaState::LogicalBlockDependent => 0x4,
            AluaState::Offline => 0xe,
            AluaState::Transitioning => 0xf,
            AluaState::Other(bits) => bits & 0x0f,
        }
    }

    /// The state of the port that answered, if these sense data tell that it is one without access (SPC-4 5.16.2.4 and following): NOT
    /// READY, LOGICAL UNIT NOT ACCESSIBLE, with 0Ah for a transition, 0Bh for standby and 0Ch for unavailable. A transition is told with
    /// UNIT ATTENTION, too.
    pub fn of_sense(sense: &Sense) -> Option<Self> {
        match (sense.deferred, sense.key, sense.code()) {
            (false, key::NOT_READY | key::UNIT_ATTENTION, 0x040a) => Some(AluaState::Transitioning),
            (false, key::NOT_READY, 0x040b) => Some(AluaState::Standby),
            (false, key::NOT_READY, 0x040c) => Some(AluaState::Unavailable),
            _ => None,
        }
    }

    /// What it means for a path. Where blocks differ, every one can be had through either path.
    pub const fn access(self) -> Access {
        match self {
            AluaState::Optimized => Access::Optimized,
            AluaState::NonOptimized | AluaState::LogicalBlockDependent => Access::NonOptimized,
            AluaState::Standby | AluaState::Unavailable | AluaState::Other(_) => Access::Inaccessible,
            AluaState::Offline => Access::PersistentLoss,
            AluaState::Transitioning => Access::Change,
        }
    }

    /// The state that a target reports for this access.
    pub const fn of(access: Access) -> Self {
        match access {
            Access::Optimized => AluaState::Optimized,
            Access::NonOptimized => AluaState::NonOptimized,
            Access::Inaccessible => AluaState::Unavailable,
            Access::Change => AluaState::Transitioning,
            Access::PersistentLoss => AluaState::Offline,
        }
    }
}

bitflags::bitflags! {
    /// Which states a target port group can be in (byte 1 of its descriptor).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
    pub struct SupportedStates: u8 {
        /// AO_SUP: active/optimized.
        const OPTIMIZED = 1;
        /// AN_SUP: active/non-optimized.
        const NON_OPTIMIZED = 1 << 1;
        /// S_SUP: standby.
        const STANDBY = 1 << 2;
        /// U_SUP: unavailable.
        const UNAVAILABLE = 1 << 3;
        /// LBD_SUP: logical block dependent.
        const LOGICAL_BLOCK_DEPENDENT = 1 << 4;
        /// O_SUP: offline.
        const OFFLINE = 1 << 6;
        /// T_SUP: transitioning.
        const TRANSITIONING = 1 << 7;
    }
}

/// STATUS CODE: why the state last changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum StateChange {
    /// 00h: not told.
    #[default]
    Untold,
    /// 01h: by SET TARGET PORT GROUPS.
    Explicit,
    /// 02h: by the target.
    Implicit,
    /// Reserved.
    Other(u8),
}

impl StateChange {
    const fn from_octet(octet: u8) -> Self {
        match octet {
            0 => StateChange::Untold,
            1 => StateChange::Explicit,
            2 => StateChange::Implicit,
            other => StateChange::Other(other),
        }
    }

    const fn octet(self) -> u8 {
        match self {
            StateChange::Untold => 0,
            StateChange::Explicit => 1,
            StateChange::Implicit => 2,
            StateChange::Other(octet) => octet,
        }
    }
}

/// One target port group.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct TargetPortGroup {
    /// TARGET PORT GROUP: its number, which the Device Identification page of each of its ports tells.
    pub group: u16,
    /// Its state.
    pub state: AluaState,
    /// PREF: the target would like it to be used.
    pub preferred: bool,
    /// States it can be in.
    pub supported: SupportedStates,
    /// Why the state last changed.
    pub change: StateChange,
    /// RELATIVE TARGET PORT IDENTIFIER of each of its ports.
    pub ports: Vec<u16>,
}

/// Data of REPORT TARGET PORT GROUPS.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct TargetPortGroups {
    /// IMPLICIT TRANSITION TIME in seconds: how long a transition may take; zero: not told. Only the extended header has it.
    pub transition_seconds: u8,
    /// The groups.
    pub groups: Vec<TargetPortGroup>,
}

/// Length of a descriptor before its ports.
const DESCRIPTOR: usize = 8;
const PORT: usize = 4;
/// FORMAT TYPE, bits 6:4 of byte 4 of the extended header. In the short format a descriptor begins there, and has zeroes in these bits.
const FORMAT: u8 = 0x70;
const EXTENDED: u8 = 0x10;

impl TargetPortGroups {
    /// Reads the data, with whichever header the target chose: one of before SPC-4 ignores that the extended one was asked for.
    ///
    /// Linux's target (LIO) forgets the four octets of the extended header when it counts, and cuts off the last port by that. Ports that
    /// are not there are left out: a group's state is what matters.
    ///
    /// # Errors
    /// [`ParseError::Short`] if the list is longer than what is there: it tells the allocation length that would do.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "REPORT TARGET PORT GROUPS data";
        let length = get32(front(bytes, 4, WHAT)?, 0) as usize;
        let extended = length > 0 && get8(bytes, 4) & FORMAT == EXTENDED;
        let forgotten = if extended { 4 } else { 0 };
        let need = length.saturating_add(4 + forgotten);
        if bytes.len() < need - forgotten {
            return Err(ParseError::Short { what: WHAT, need, have: bytes.len() });
        }
        let body = bytes.get(..need).unwrap_or(bytes).get(4..).unwrap_or(&[]);
        let transition_seconds = if extended { get8(body, 1) } else { 0 };
        let mut rest = body.get(forgotten..).unwrap_or(&[]);
        let mut groups = Vec::new();
        while let Some((d, tail)) = rest.split_at_checked(DESCRIPTOR) {
            let (ports, next) = tail.split_at_checked(PORT * usize::from(get8(d, 7))).unwrap_or((tail, &[]));
            groups.push(TargetPortGroup {
                group: get16(d, 2),
                state: AluaState::from_bits(get8(d, 0)),
                preferred: bit(d, 0, 7),
                supported: SupportedStates::from_bits_truncate(get8(d, 1)),
                change: StateChange::from_octet(get8(d, 5)),
                ports: ports.chunks_exact(PORT).map(|port| get16(port, 2)).collect(),
            });
            rest = next;
        }
        Ok(TargetPortGroups { transition_seconds, groups })
    }

    /// The octets, with the extended header if that was asked for; cut them to the allocation length.
    pub fn to_bytes(&self, extended: bool) -> Vec<u8> {
        let mut b = vec![0; 4];
        if extended {
            b.extend_from_slice(&[EXTENDED, self.transition_seconds, 0, 0]);
        }
        for group in &self.groups {
            let [high, low] = group.group.to_be_bytes();
            let ports = group.ports.get(..255).unwrap_or(&group.ports);
            let first = flag(group.preferred, 7) | group.state.bits();
            let (supported, change) = (group.supported.bits(), group.change.octet());
            b.extend_from_slice(&[first, supported, high, low, 0, change, 0, ports.len() as u8]);
            for port in ports {
                b.extend_from_slice(&u32::from(*port).to_be_bytes());
            }
        }
        let length = len32(b.len() - 4);
        put32(&mut b, 0, length);
        b
    }

    /// The group of this number.
    pub fn group(&self, group: u16) -> Option<&TargetPortGroup> {
        self.groups.iter().find(|g| g.group == group)
    }

    /// The group that has this target port.
    pub fn group_of_port(&self, relative_target_port: u16) -> Option<&TargetPortGroup> {
        self.groups.iter().find(|g| g.ports.contains(&relative_target_port))
    }
}

/// The parameter list of SET TARGET PORT GROUPS: which groups are to be in which states. With [`AluaState::Offline`] the number is that of a
/// target port instead.
pub fn set_target_port_groups(states: &[(u16, AluaState)]) -> Vec<u8> {
    let mut b = vec![0; 4];
    for (group, state) in states {
        let [high, low] = group.to_be_bytes();
        b.extend_from_slice(&[state.bits(), 0, high, low]);
    }
    b
}

/// Reads the parameter list of SET TARGET PORT GROUPS.
///
/// # Errors
/// [`ParseError::Short`] with fewer than the four octets before the first descriptor, [`ParseError::Length`] for a list that does not end
/// with a descriptor.
pub fn parse_set_target_port_groups(bytes: &[u8]) -> Result<Vec<(u16, AluaState)>, ParseError> {
    const WHAT: &str = "SET TARGET PORT GROUPS parameter list";
    front(bytes, 4, WHAT)?;
    let descriptors = bytes.get(4..).unwrap_or(&[]).chunks_exact(4);
    if !descriptors.remainder().is_empty() {
        return Err(ParseError::Length { what: WHAT, have: bytes.len(), expected: "a multiple of 4" });
    }
    Ok(descriptors.map(|d| (get16(d, 2), AluaState::from_bits(get8(d, 0)))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> TargetPortGroups {
        let group = |group, state, preferred, change, ports: &[u16]| TargetPortGroup {
            group,
            state,
            preferred,
            supported: SupportedStates::all(),
            change,
            ports: ports.to_vec(),
        };
        TargetPortGroups {
            transition_seconds: 60,
            groups: vec![
                group(0x102, AluaState::Optimized, true, StateChange::Explicit, &[1, 0x203]),
                group(2, AluaState::Transitioning, false, StateChange::Implicit, &[]),
            ],
        }
    }

    #[test]
    fn octets_with_both_headers() {
        let groups = [0x80, 0xdf, 1, 2, 0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 2, 3, 0x0f, 0xdf, 0, 2, 0, 2, 0, 0];
        let short = [&[0, 0, 0, 24][..], &groups].concat();
        let extended = [&[0, 0, 0, 28, 0x10, 60, 0, 0][..], &groups].concat();
        for (b, is_extended) in [(short, false), (extended, true)] {
            let want = TargetPortGroups { transition_seconds: if is_extended { 60 } else { 0 }, ..sample() };
            assert_eq!(sample().to_bytes(is_extended), b);
            assert_eq!(TargetPortGroups::parse(&b).as_ref(), Ok(&want));
            for len in 0..b.len() {
                let need = match len {
                    0..4 => 4,
                    4 => b.len(),
                    _ => b.len() + if is_extended { 4 } else { 0 },
                };
                let what = "REPORT TARGET PORT GROUPS data";
                let short = ParseError::Short { what, need, have: len };
                assert_eq!(TargetPortGroups::parse(&b[..len]), Err(short), "{len}");
            }
            let more = [&b[..], &[0; 40]].concat();
            assert_eq!(TargetPortGroups::parse(&more).as_ref(), Ok(&want), "what is behind the list does not count");
            let mut many = b.clone();
            let count = many.len() - 1;
            many[count] = 1;
            assert_eq!(TargetPortGroups::parse(&many), Ok(want), "a port that is not there is left out");
        }
        assert_eq!(sample().group(2).map(|g| g.state), Some(AluaState::Transitioning));
        assert_eq!(sample().group_of_port(0x203).map(|g| g.group), Some(0x102));
        assert_eq!((sample().group(7), sample().group_of_port(7)), (None, None));
        assert_eq!(TargetPortGroups::parse(&[0; 4]), Ok(TargetPortGroups::default()));
    }

    /// As Linux's `target_emulate_report_target_port_groups` puts it together (drivers/target/target_core_alua.c): RETURN DATA LENGTH lacks
    /// the extended header, and what is returned ends there (`target_complete_cmd_with_length`).
    #[test]
    fn what_lio_answers() {
        let plain = [0, 0, 0, 12, 0x00, 0xdf, 0, 16, 0, 2, 0, 1, 0, 0, 0, 1];
        let extended = [0, 0, 0, 12, 0x10, 7, 0, 0, 0x81, 0xdf, 0, 16, 0, 2, 0, 1, 0, 0, 0, 1];
        let group = |bytes: &[u8]| TargetPortGroups::parse(bytes).unwrap().groups.remove(0);
        assert_eq!(
            (group(&plain).state, group(&plain).group, group(&plain).ports),
            (AluaState::Optimized, 16, vec![1])
        );
        let cut = group(&extended[..16]);
        assert_eq!((cut.state, cut.preferred, cut.ports.len()), (AluaState::NonOptimized, true, 0));
        assert_eq!(group(&extended).ports, [1], "where the octets are there");
        assert_eq!(TargetPortGroups::parse(&extended).unwrap().transition_seconds, 7);
        let need = |bytes: &[u8]| match TargetPortGroups::parse(bytes) {
            Err(ParseError::Short { need, .. }) => need,
            other => panic!("{other:?}"),
        };
        assert_eq!(need(&extended[..8]), 20, "with less it leaves the group out");
    }

    #[test]
    fn states() {
        for bits in 0..16 {
            assert_eq!(AluaState::from_bits(bits | 0xf0).bits(), bits);
            assert_eq!(StateChange::from_octet(bits).octet(), bits);
        }
        let cases = [
            (AluaState::Optimized, Access::Optimized),
            (AluaState::NonOptimized, Access::NonOptimized),
            (AluaState::Standby, Access::Inaccessible),
            (AluaState::Unavailable, Access::Inaccessible),
            (AluaState::LogicalBlockDependent, Access::NonOptimized),
            (AluaState::Offline, Access::PersistentLoss),
            (AluaState::Transitioning, Access::Change),
            (AluaState::Other(7), Access::Inaccessible),
        ];
        for (state, access) in cases {
            assert_eq!(state.access(), access);
            assert_eq!(AluaState::of(access).access(), access);
        }
    }

    #[test]
    fn setting() {
        let states = [(0x102, AluaState::Optimized), (3, AluaState::Standby)];
        let b = set_target_port_groups(&states);
        assert_eq!(b, [0, 0, 0, 0, 0, 0, 1, 2, 2, 0, 0, 3]);
        assert_eq!(parse_set_target_port_groups(&b).as_deref(), Ok(&states[..]));
        for len in 0..b.len() {
            let got = parse_set_target_port_groups(&b[..len]);
            assert_eq!(got.ok().map(|s| s.len()), (len >= 4 && len % 4 == 0).then(|| (len - 4) / 4), "{len}");
        }
    }
}
