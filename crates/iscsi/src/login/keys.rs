//! The keys of RFC 7143 section 13 that are negotiated or declared, and the rule of each.

use super::value::{boolean, number, yes_or_no};
use std::ops::RangeInclusive;

/// A key with a number, a boolean or a list as its value, whose outcome both sides need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Key {
    /// Section 13.1.
    HeaderDigest,
    /// Section 13.1.
    DataDigest,
    /// Section 13.2.
    MaxConnections,
    /// Section 13.10.
    InitialR2T,
    /// Section 13.11.
    ImmediateData,
    /// Section 13.12; each side declares its own.
    MaxRecvDataSegmentLength,
    /// Section 13.13.
    MaxBurstLength,
    /// Section 13.14. After [`Key::MaxBurstLength`], which it must not exceed.
    FirstBurstLength,
    /// Section 13.15.
    DefaultTime2Wait,
    /// Section 13.16.
    DefaultTime2Retain,
    /// Section 13.17.
    MaxOutstandingR2T,
    /// Section 13.18.
    DataPDUInOrder,
    /// Section 13.19.
    DataSequenceInOrder,
    /// Section 13.20.
    ErrorRecoveryLevel,
    /// Section 13.23.
    TaskReporting,
    /// Section 13.24.
    IScsiProtocolLevel,
}

/// Octets that lengths of bursts and segments may have.
const LENGTHS: RangeInclusive<u32> = 512..=(1 << 24) - 1;

/// What comes out when both sides have said what they want (section 6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// The responder takes the first of a list that it supports. Values are the places in this list of all that are known.
    List(&'static [&'static str]),
    /// Boolean: Yes if both say so.
    And,
    /// Boolean: Yes if one says so.
    Or,
    /// The lower number.
    Minimum(RangeInclusive<u32>),
    /// The higher number.
    Maximum(RangeInclusive<u32>),
    /// Each side says what holds for it, and nobody answers.
    Declared(RangeInclusive<u32>),
}

impl Key {
    /// Every key, in the order in which they are answered.
    pub const ALL: [Key; 16] = [
        Key::HeaderDigest,
        Key::DataDigest,
        Key::MaxConnections,
        Key::InitialR2T,
        Key::ImmediateData,
        Key::MaxRecvDataSegmentLength,
        Key::MaxBurstLength,
        Key::FirstBurstLength,
        Key::DefaultTime2Wait,
        Key::DefaultTime2Retain,
        Key::MaxOutstandingR2T,
        Key::DataPDUInOrder,
        Key::DataSequenceInOrder,
        Key::ErrorRecoveryLevel,
        Key::TaskReporting,
        Key::IScsiProtocolLevel,
    ];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Key::HeaderDigest => "HeaderDigest",
            Key::DataDigest => "DataDigest",
            Key::MaxConnections => "MaxConnections",
            Key::InitialR2T => "InitialR2T",
            Key::ImmediateData => "ImmediateData",
            Key::MaxRecvDataSegmentLength => "MaxRecvDataSegmentLength",
            Key::MaxBurstLength => "MaxBurstLength",
            Key::FirstBurstLength => "FirstBurstLength",
            Key::DefaultTime2Wait => "DefaultTime2Wait",
            Key::DefaultTime2Retain => "DefaultTime2Retain",
            Key::MaxOutstandingR2T => "MaxOutstandingR2T",
            Key::DataPDUInOrder => "DataPDUInOrder",
            Key::DataSequenceInOrder => "DataSequenceInOrder",
            Key::ErrorRecoveryLevel => "ErrorRecoveryLevel",
            Key::TaskReporting => "TaskReporting",
            Key::IScsiProtocolLevel => "iSCSIProtocolLevel",
        }
    }

    /// The key of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Key::ALL.into_iter().find(|key| key.name() == name)
    }

    /// How its outcome is found.
    pub const fn rule(self) -> Rule {
        match self {
            Key::HeaderDigest | Key::DataDigest => Rule::List(&["None", "CRC32C"]),
            Key::InitialR2T | Key::DataPDUInOrder | Key::DataSequenceInOrder => Rule::Or,
            Key::ImmediateData => Rule::And,
            Key::MaxRecvDataSegmentLength => Rule::Declared(LENGTHS),
            Key::MaxBurstLength | Key::FirstBurstLength => Rule::Minimum(LENGTHS),
            Key::MaxConnections | Key::MaxOutstandingR2T => Rule::Minimum(1..=65535),
            Key::DefaultTime2Wait => Rule::Maximum(0..=3600),
            Key::DefaultTime2Retain => Rule::Minimum(0..=3600),
            Key::ErrorRecoveryLevel => Rule::Minimum(0..=2),
            Key::TaskReporting => Rule::List(&["RFC3720", "ResponseFence", "FastAbort"]),
            Key::IScsiProtocolLevel => Rule::Minimum(0..=31),
        }
    }

    /// What holds when nobody says anything: a number, 1 for Yes, or a place in the list.
    pub const fn default_value(self) -> u32 {
        match self {
            Key::HeaderDigest | Key::DataDigest | Key::TaskReporting | Key::ErrorRecoveryLevel => 0,
            Key::InitialR2T | Key::DataPDUInOrder | Key::DataSequenceInOrder | Key::ImmediateData => 1,
            Key::MaxConnections | Key::MaxOutstandingR2T | Key::IScsiProtocolLevel => 1,
            Key::MaxRecvDataSegmentLength => 8192,
            Key::MaxBurstLength => 262_144,
            Key::FirstBurstLength => 65_536,
            Key::DefaultTime2Wait => 2,
            Key::DefaultTime2Retain => 20,
        }
    }

    /// Whether it means something in a discovery session (the sections of the keys say "Irrelevant when: SessionType=Discovery").
    pub const fn is_relevant_in_discovery(self) -> bool {
        matches!(
            self,
            Key::HeaderDigest
                | Key::DataDigest
                | Key::MaxRecvDataSegmentLength
                | Key::DefaultTime2Wait
                | Key::DefaultTime2Retain
                | Key::ErrorRecoveryLevel
                | Key::IScsiProtocolLevel
        )
    }

    /// A single value of this key, as a number; `None` when it is none that the key can have.
    pub(crate) fn read(self, text: &str) -> Option<u32> {
        match self.rule() {
            Rule::List(known) => known.iter().position(|name| *name == text).map(|at| at as u32),
            Rule::And | Rule::Or => boolean(text).map(u32::from),
            Rule::Minimum(range) | Rule::Maximum(range) | Rule::Declared(range) => {
                number(text).filter(|n| range.contains(n))
            }
        }
    }

    /// How a value is written.
    pub(crate) fn write(self, value: u32) -> String {
        match self.rule() {
            Rule::List(known) => known.get(value as usize).copied().unwrap_or_default().into(),
            Rule::And | Rule::Or => yes_or_no(value != 0).into(),
            Rule::Minimum(_) | Rule::Maximum(_) | Rule::Declared(_) => value.to_string(),
        }
    }

    /// What would have been a legal value, in words.
    pub(crate) fn expected(self) -> String {
        match self.rule() {
            Rule::List(known) => known.join(" or "),
            Rule::And | Rule::Or => "Yes or No".into(),
            Rule::Minimum(range) | Rule::Maximum(range) | Rule::Declared(range) => {
                format!("a number from {} to {}", range.start(), range.end())
            }
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a key that no side of ours negotiates is answered by name alone.
pub(crate) fn fixed_answer(key: &str) -> &'static str {
    match key {
        // Section 13.25 lets a responder say No, which initiators of the old RFC 3720 understand, too
        "IFMarker" | "OFMarker" => "No",
        "IFMarkInt" | "OFMarkInt" => "Reject",
        _ => "NotUnderstood",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_what_it_writes() {
        for key in Key::ALL {
            assert_eq!(Key::from_name(key.name()), Some(key));
            let default = key.default_value();
            assert_eq!(key.read(&key.write(default)), Some(default), "{key}");
            let (good, bad): (&[&str], &[&str]) = match key.rule() {
                Rule::List(known) => (known, &["none", "", "CRC32C,None"]),
                Rule::And | Rule::Or => (&["Yes", "No"], &["yes", "1", "", "Reject"]),
                Rule::Minimum(range) | Rule::Maximum(range) | Rule::Declared(range) => {
                    for n in [*range.start(), *range.end()] {
                        assert_eq!(key.read(&n.to_string()), Some(n), "{key}");
                    }
                    assert_eq!(key.read(&(range.end() + 1).to_string()), None, "{key}");
                    if let Some(n) = range.start().checked_sub(1) {
                        assert_eq!(key.read(&n.to_string()), None, "{key}");
                    }
                    (&[], &["", "x", "Reject", "1,2", "1~2"])
                }
            };
            for text in good {
                assert_eq!(key.read(text).map(|v| key.write(v)).as_deref(), Some(*text), "{key}");
            }
            for text in bad {
                assert_eq!(key.read(text), None, "{key}={text}");
            }
            assert!(!key.expected().is_empty());
        }
        assert_eq!(Key::from_name("headerdigest"), None);
    }
}
