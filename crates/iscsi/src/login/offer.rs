//! What one side would agree to, and what both agreed to.

use super::keys::{Key, Rule};
use super::name::Name;
use crate::pdu::{Framing, Isid, MAX_DATA_LEN};
use crate::serial::{CmdSn, StatSn};

/// Which digests a side would agree to, and which it would rather have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DigestOffer {
    /// None only.
    #[default]
    Never,
    /// None, or CRC-32C if the other side must have it.
    IfNeeded,
    /// CRC-32C, or none if the other side does not have it.
    Preferred,
    /// CRC-32C only.
    Always,
}

impl DigestOffer {
    /// Every one.
    pub const ALL: [DigestOffer; 4] =
        [DigestOffer::Never, DigestOffer::IfNeeded, DigestOffer::Preferred, DigestOffer::Always];

    fn places(self) -> &'static [u32] {
        match self {
            DigestOffer::Never => &[0],
            DigestOffer::IfNeeded => &[0, 1],
            DigestOffer::Preferred => &[1, 0],
            DigestOffer::Always => &[1],
        }
    }
}

/// What one side would agree to. For the initiator it is what is offered, for the target what it holds against an offer.
///
/// One connection per session, error recovery level 0, data in order: these are not for choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// HeaderDigest.
    pub header_digest: DigestOffer,
    /// DataDigest.
    pub data_digest: DigestOffer,
    /// MaxRecvDataSegmentLength: most octets that we take in one data segment, 512 to 2^24-1.
    pub max_recv_data_len: u32,
    /// InitialR2T: whether unsolicited Data-Out is ruled out. Yes wins.
    pub initial_r2t: bool,
    /// ImmediateData: whether data may come with a command. No wins.
    pub immediate_data: bool,
    /// MaxBurstLength: most octets of a sequence of Data-In, or of the answer to an R2T, 512 to 2^24-1.
    pub max_burst_len: u32,
    /// FirstBurstLength: most octets of unsolicited data, immediate ones among them, 512 to 2^24-1.
    pub first_burst_len: u32,
    /// MaxOutstandingR2T: R2T of one task that may be open at once, at least 1.
    pub max_outstanding_r2t: u16,
    /// DefaultTime2Wait in seconds, up to 3600.
    pub time2wait_s: u16,
    /// DefaultTime2Retain in seconds, up to 3600.
    pub time2retain_s: u16,
}

impl Default for Offer {
    /// No digests, segments and bursts of 256 KiB, data with commands and unsolicited data of 64 KiB, no tasks kept.
    fn default() -> Self {
        Offer {
            header_digest: DigestOffer::Never,
            data_digest: DigestOffer::Never,
            max_recv_data_len: 262_144,
            initial_r2t: false,
            immediate_data: true,
            max_burst_len: 262_144,
            first_burst_len: 65_536,
            max_outstanding_r2t: 1,
            time2wait_s: 2,
            time2retain_s: 0,
        }
    }
}

/// The value of one key in an offer.
pub(crate) enum Wanted {
    /// A number, or 1 for Yes.
    One(u32),
    /// Places in the list of known values, best first.
    Any(&'static [u32]),
    /// The initiator says nothing of it, the target takes the default.
    Default,
}

impl Offer {
    /// Numbers brought into the ranges of section 13, and FirstBurstLength to at most MaxBurstLength.
    pub fn clamped(mut self) -> Self {
        let length = |n: u32| n.clamp(512, MAX_DATA_LEN);
        self.max_recv_data_len = length(self.max_recv_data_len);
        self.max_burst_len = length(self.max_burst_len);
        self.first_burst_len = length(self.first_burst_len).min(self.max_burst_len);
        self.max_outstanding_r2t = self.max_outstanding_r2t.max(1);
        self.time2wait_s = self.time2wait_s.min(3600);
        self.time2retain_s = self.time2retain_s.min(3600);
        self
    }

    pub(crate) fn wanted(&self, key: Key) -> Wanted {
        Wanted::One(match key {
            Key::HeaderDigest => return Wanted::Any(self.header_digest.places()),
            Key::DataDigest => return Wanted::Any(self.data_digest.places()),
            Key::TaskReporting | Key::IScsiProtocolLevel => return Wanted::Default,
            Key::MaxConnections => 1,
            Key::InitialR2T => self.initial_r2t.into(),
            Key::ImmediateData => self.immediate_data.into(),
            Key::MaxRecvDataSegmentLength => self.max_recv_data_len,
            Key::MaxBurstLength => self.max_burst_len,
            Key::FirstBurstLength => self.first_burst_len,
            Key::DefaultTime2Wait => self.time2wait_s.into(),
            Key::DefaultTime2Retain => self.time2retain_s.into(),
            Key::MaxOutstandingR2T => self.max_outstanding_r2t.into(),
            Key::DataPDUInOrder | Key::DataSequenceInOrder => 1,
            Key::ErrorRecoveryLevel => 0,
        })
    }

    /// How the offer of this key is written; `None` where nothing is said.
    pub(crate) fn text(&self, key: Key) -> Option<String> {
        match self.wanted(key) {
            Wanted::One(value) => Some(key.write(value)),
            Wanted::Any(places) => Some(places.iter().map(|at| key.write(*at)).collect::<Vec<_>>().join(",")),
            Wanted::Default => None,
        }
    }

    /// Whether `value` can come out when we offered this.
    pub(crate) fn permits(&self, key: Key, value: u32) -> bool {
        match (key.rule(), self.wanted(key)) {
            (_, Wanted::Default) => value == key.default_value(),
            (_, Wanted::Any(places)) => places.contains(&value),
            (Rule::And, Wanted::One(ours)) => value <= ours,
            (Rule::Or, Wanted::One(ours)) => value >= ours,
            (Rule::Minimum(_), Wanted::One(ours)) => value <= ours,
            (Rule::Maximum(_), Wanted::One(ours)) => value >= ours,
            (Rule::List(_) | Rule::Declared(_), Wanted::One(_)) => true,
        }
    }

    /// The only value that can come out when we offered this, if there is only one: then an answer may be missing (section 6.2.2).
    pub(crate) fn settled_alone(&self, key: Key) -> Option<u32> {
        match (key.rule(), self.wanted(key)) {
            (_, Wanted::Default) => Some(key.default_value()),
            (_, Wanted::Any(&[only])) if only == key.default_value() => Some(only),
            (Rule::And, Wanted::One(0)) => Some(0),
            (Rule::Or, Wanted::One(1)) => Some(1),
            (Rule::Minimum(range), Wanted::One(ours)) if ours == *range.start() => Some(ours),
            (Rule::Maximum(range), Wanted::One(ours)) if ours == *range.end() => Some(ours),
            _ => None,
        }
    }
}

/// Type of a session (section 13.21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionType {
    /// Asks which targets there are, and nothing else.
    Discovery,
    /// Uses a target.
    Normal,
}

impl SessionType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            SessionType::Discovery => "Discovery",
            SessionType::Normal => "Normal",
        }
    }
}

/// Who proved to be who he says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Authenticated {
    /// Nobody.
    None,
    /// The initiator.
    Initiator,
    /// Both.
    Both,
}

/// What both sides agreed to, and where the full feature phase begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// Type of the session.
    pub session: SessionType,
    /// The initiator.
    pub initiator_name: Name,
    /// InitiatorAlias, for people.
    pub initiator_alias: Option<String>,
    /// The target; `None` in a discovery session.
    pub target_name: Option<Name>,
    /// TargetAlias, for people.
    pub target_alias: Option<String>,
    /// TargetPortalGroupTag; a target always tells it in a normal session.
    pub portal_group_tag: Option<u16>,
    /// The initiator's part of the session's identity.
    pub isid: Isid,
    /// The target's part, not 0 in a normal session.
    pub tsih: u16,
    /// Connection within the session.
    pub cid: u16,
    /// Who proved to be who he says.
    pub authenticated: Authenticated,
    /// Header digests in both directions.
    pub header_digest: bool,
    /// Data digests in both directions.
    pub data_digest: bool,
    /// Most octets of a data segment that we declared to take.
    pub max_recv_data_len: u32,
    /// Most octets of a data segment that the peer declared to take.
    pub max_send_data_len: u32,
    /// MaxConnections, always 1.
    pub max_connections: u16,
    /// InitialR2T: no unsolicited Data-Out.
    pub initial_r2t: bool,
    /// ImmediateData: data may come with a command.
    pub immediate_data: bool,
    /// MaxBurstLength in octets.
    pub max_burst_len: u32,
    /// FirstBurstLength in octets, at most `max_burst_len`.
    pub first_burst_len: u32,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u16,
    /// DefaultTime2Wait in seconds.
    pub time2wait_s: u16,
    /// DefaultTime2Retain in seconds.
    pub time2retain_s: u16,
    /// DataPDUInOrder, always true.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder, always true.
    pub data_sequence_in_order: bool,
    /// ErrorRecoveryLevel, always 0.
    pub error_recovery_level: u8,
    /// CmdSN of the first command, which is also the ExpCmdSN that the target said last.
    pub cmd_sn: CmdSn,
    /// MaxCmdSN that the target said last.
    pub max_cmd_sn: CmdSn,
    /// StatSN of the target's first PDU of the full feature phase.
    pub stat_sn: StatSn,
}

impl Negotiated {
    /// What holds for PDUs that we send.
    pub fn transmit(&self) -> Framing {
        Framing {
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            max_data_len: self.max_send_data_len,
        }
    }

    /// What holds for PDUs that we receive.
    pub fn receive(&self) -> Framing {
        Framing { max_data_len: self.max_recv_data_len, ..self.transmit() }
    }
}

impl Negotiated {
    /// Everything at its default, before anything was negotiated.
    pub(super) fn before(session: SessionType, initiator_name: Name, isid: Isid, cmd_sn: CmdSn) -> Self {
        Negotiated {
            session,
            initiator_name,
            initiator_alias: None,
            target_name: None,
            target_alias: None,
            portal_group_tag: None,
            isid,
            tsih: 0,
            cid: 0,
            authenticated: Authenticated::None,
            header_digest: false,
            data_digest: false,
            max_recv_data_len: Key::MaxRecvDataSegmentLength.default_value(),
            max_send_data_len: Key::MaxRecvDataSegmentLength.default_value(),
            max_connections: 1,
            initial_r2t: true,
            immediate_data: true,
            max_burst_len: Key::MaxBurstLength.default_value(),
            first_burst_len: Key::FirstBurstLength.default_value(),
            max_outstanding_r2t: 1,
            time2wait_s: 2,
            time2retain_s: 20,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            error_recovery_level: 0,
            cmd_sn,
            max_cmd_sn: cmd_sn,
            stat_sn: StatSn::new(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row<'a> = (Key, Option<&'a str>, &'a [u32], &'a [u32], Option<u32>);

    #[test]
    fn an_offer_permits_what_the_rule_can_make_of_it() {
        let offer = Offer { header_digest: DigestOffer::Preferred, ..Offer::default() };
        // key, text of the offer, values that may come out, values that may not, what comes out without an answer
        #[rustfmt::skip]
        let table: [Row<'_>; 16] = [
            (Key::HeaderDigest, Some("CRC32C,None"), &[0, 1], &[2], None),
            (Key::DataDigest, Some("None"), &[0], &[1], Some(0)),
            (Key::MaxConnections, Some("1"), &[1], &[2], Some(1)),
            (Key::InitialR2T, Some("No"), &[0, 1], &[], None),
            (Key::ImmediateData, Some("Yes"), &[0, 1], &[], None),
            (Key::MaxRecvDataSegmentLength, Some("262144"), &[512, 1 << 20], &[], None),
            (Key::MaxBurstLength, Some("262144"), &[512, 262_144], &[262_145], None),
            (Key::FirstBurstLength, Some("65536"), &[512, 65_536], &[65_537], None),
            (Key::DefaultTime2Wait, Some("2"), &[2, 3600], &[1], None),
            (Key::DefaultTime2Retain, Some("0"), &[0], &[1], Some(0)),
            (Key::MaxOutstandingR2T, Some("1"), &[1], &[2], Some(1)),
            (Key::DataPDUInOrder, Some("Yes"), &[1], &[0], Some(1)),
            (Key::DataSequenceInOrder, Some("Yes"), &[1], &[0], Some(1)),
            (Key::ErrorRecoveryLevel, Some("0"), &[0], &[1], Some(0)),
            (Key::TaskReporting, None, &[0], &[1], Some(0)),
            (Key::IScsiProtocolLevel, None, &[1], &[0, 2], Some(1)),
        ];
        for (key, text, good, bad, alone) in table {
            assert_eq!(offer.text(key).as_deref(), text, "{key}");
            assert!(good.iter().all(|v| offer.permits(key, *v)), "{key}");
            assert!(!bad.iter().any(|v| offer.permits(key, *v)), "{key}");
            assert_eq!(offer.settled_alone(key), alone, "{key}");
        }
        // a digest that is a must has to be answered
        let must = Offer { header_digest: DigestOffer::Always, initial_r2t: true, immediate_data: false, ..offer };
        assert_eq!(must.settled_alone(Key::HeaderDigest), None);
        assert_eq!((must.settled_alone(Key::InitialR2T), must.settled_alone(Key::ImmediateData)), (Some(1), Some(0)));
        let odd =
            Offer { max_recv_data_len: u32::MAX, max_burst_len: 0, max_outstanding_r2t: 0, time2wait_s: 9999, ..must };
        let odd = odd.clamped();
        assert_eq!((odd.max_recv_data_len, odd.max_burst_len, odd.first_burst_len), (MAX_DATA_LEN, 512, 512));
        assert_eq!((odd.max_outstanding_r2t, odd.time2wait_s), (1, 3600));
    }
}
