//! Asymmetric Namespace Access log page, 0Ch (Base 2.1 section 5.1.12.1.13).

use crate::ParseError;
use crate::wire::Field;

/// How a group of namespaces can be reached through this controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AnaState {
    /// 1h: the best way.
    Optimized,
    /// 2h: works, slower.
    NonOptimized,
    /// 3h: not now.
    Inaccessible,
    /// 4h: not until the group changes its identifier.
    PersistentLoss,
    /// Fh: on the move; ask again within ANATT.
    Change,
}

impl AnaState {
    /// The state of this code.
    ///
    /// # Errors
    /// [`ParseError::Value`] for a reserved one.
    pub fn from_code(code: u8) -> Result<Self, ParseError> {
        Ok(match code & 0xf {
            1 => AnaState::Optimized,
            2 => AnaState::NonOptimized,
            3 => AnaState::Inaccessible,
            4 => AnaState::PersistentLoss,
            0xf => AnaState::Change,
            other => {
                return Err(ParseError::Value { what: "ANA state", value: u64::from(other), expected: "1 to 4 or Fh" });
            }
        })
    }

    /// The code.
    pub fn code(self) -> u8 {
        match self {
            AnaState::Optimized => 1,
            AnaState::NonOptimized => 2,
            AnaState::Inaccessible => 3,
            AnaState::PersistentLoss => 4,
            AnaState::Change => 0xf,
        }
    }

    /// Whether I/O may be sent.
    pub fn is_usable(self) -> bool {
        matches!(self, AnaState::Optimized | AnaState::NonOptimized)
    }
}

impl std::fmt::Display for AnaState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            AnaState::Optimized => "optimized",
            AnaState::NonOptimized => "non-optimized",
            AnaState::Inaccessible => "inaccessible",
            AnaState::PersistentLoss => "persistent-loss",
            AnaState::Change => "change",
        })
    }
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnaGroup {
    /// Identifier, not 0.
    pub id: u32,
    /// Change count of the group.
    pub change_count: u64,
    /// State.
    pub state: AnaState,
    /// The namespaces in it, increasing; empty when only groups were asked for (LSP bit 0).
    pub nsids: Vec<u32>,
}

/// The whole log page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnaLog {
    /// Change count of the page.
    pub change_count: u64,
    /// Groups, increasing by identifier.
    pub groups: Vec<AnaGroup>,
}

const HEADER: usize = 16;
const GROUP: usize = 32;

impl AnaLog {
    /// LSP bit 0: return groups only, without their namespaces.
    pub const LSP_GROUPS_ONLY: u8 = 1;

    /// Reads the page; octets after the last group are ignored.
    ///
    /// # Errors
    /// [`ParseError`] when the octets end before the groups do, a state is reserved, a group identifier is
    /// zero or listed twice.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let header = take(bytes, HEADER, "ANA log header")?;
        let count = usize::from(u16::get(header, 8));
        let mut log = AnaLog { change_count: u64::get(header, 0), groups: Vec::new() };
        let mut rest = &bytes[HEADER..];
        for _ in 0..count {
            let g = take(rest, GROUP, "ANA group descriptor")?;
            let nsids = u32::get(g, 4) as usize;
            let id = u32::get(g, 0);
            if id == 0 || log.groups.iter().any(|other| other.id == id) {
                return Err(ParseError::Value {
                    what: "ANA group identifier",
                    value: u64::from(id),
                    expected: "not zero and not listed before",
                });
            }
            let list = take(&rest[GROUP..], nsids.saturating_mul(4), "namespaces of an ANA group")?;
            log.groups.push(AnaGroup {
                id,
                change_count: u64::get(g, 8),
                state: AnaState::from_code(g[16])?,
                nsids: list.chunks_exact(4).map(|c| u32::get(c, 0)).collect(),
            });
            rest = &rest[GROUP + list.len()..];
        }
        Ok(log)
    }

    /// The octets (the target's side). `groups_only` leaves the namespaces out.
    pub fn to_bytes(&self, groups_only: bool) -> Vec<u8> {
        let mut b = vec![0u8; HEADER];
        self.change_count.put(&mut b, 0);
        (self.groups.len() as u16).put(&mut b, 8);
        for g in &self.groups {
            let nsids: &[u32] = if groups_only { &[] } else { &g.nsids };
            let mut head = [0u8; GROUP];
            g.id.put(&mut head, 0);
            (nsids.len() as u32).put(&mut head, 4);
            g.change_count.put(&mut head, 8);
            head[16] = g.state.code();
            b.extend_from_slice(&head);
            b.extend(nsids.iter().flat_map(|n| n.to_le_bytes()));
        }
        b
    }

    /// State of a group.
    pub fn group_state(&self, id: u32) -> Option<AnaState> {
        self.groups.iter().find(|g| g.id == id).map(|g| g.state)
    }

    /// State of a namespace, where the page lists namespaces.
    pub fn namespace_state(&self, nsid: u32) -> Option<AnaState> {
        self.groups.iter().find(|g| g.nsids.contains(&nsid)).map(|g| g.state)
    }
}

fn take<'a>(bytes: &'a [u8], need: usize, what: &'static str) -> Result<&'a [u8], ParseError> {
    bytes.get(..need).ok_or(ParseError::Short { what, need, have: bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> AnaLog {
        let group = |id, state, nsids: &[u32]| AnaGroup { id, change_count: 4, state, nsids: nsids.to_vec() };
        AnaLog {
            change_count: 9,
            groups: vec![
                group(1, AnaState::Optimized, &[1, 2]),
                group(2, AnaState::Inaccessible, &[]),
                group(3, AnaState::Change, &[7]),
            ],
        }
    }

    #[test]
    fn round_trip_and_truncation() {
        let log = sample();
        let b = log.to_bytes(false);
        assert_eq!(b.len(), 16 + 3 * 32 + 3 * 4);
        // Linux struct nvme_ana_group_desc: grpid 0, nnsids 4, chgcnt 8, state 16, nsids 32.
        assert_eq!(&b[16..24], &[1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(b[32], 1);
        assert_eq!(AnaLog::parse(&b), Ok(log.clone()));
        for n in 0..b.len() {
            assert!(AnaLog::parse(&b[..n]).is_err(), "{n}");
        }
        let groups = AnaLog::parse(&log.to_bytes(true)).unwrap();
        assert_eq!(groups.group_state(2), Some(AnaState::Inaccessible));
        assert_eq!(groups.namespace_state(1), None);
        assert_eq!(log.namespace_state(7), Some(AnaState::Change));
    }

    #[test]
    fn hostile_pages_are_refused() {
        let good = sample().to_bytes(false);
        for (at, value) in [(32, 0u8), (32, 5), (16, 0), (16 + 40, 1), (23, 0xff), (8, 4)] {
            let mut b = good.clone();
            b[at] = value;
            assert!(AnaLog::parse(&b).is_err(), "octet {at} = {value}");
        }
        assert!(AnaState::Optimized.is_usable() && !AnaState::Change.is_usable());
    }
}
