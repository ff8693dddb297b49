//! Operational keys: what is offered, what is answered, and whether an answer keeps to the offer (RFC 7143 section 6.2). Both sides
//! use it, as either may offer a key and the other then answers.

use super::LoginError;
use super::keys::{Key, Rule, fixed_answer};
use super::offer::{Offer, SessionType, Wanted};
use super::text::Text;

/// Answers that are no values (section 6.2).
const REJECT: &str = "Reject";
const IRRELEVANT: &str = "Irrelevant";
const NOT_UNDERSTOOD: &str = "NotUnderstood";

/// The operational keys of one login, as one side sees them.
#[derive(Debug)]
pub(crate) struct Negotiation {
    offer: Offer,
    /// Without a session type every key is relevant.
    session: SessionType,
    offered: [bool; Key::ALL.len()],
    settled: [Option<u32>; Key::ALL.len()],
    peer_max_recv_data_len: u32,
    declared: bool,
}

impl Negotiation {
    pub(crate) fn new(offer: Offer) -> Self {
        Negotiation {
            offer: offer.clamped(),
            session: SessionType::Normal,
            offered: [false; Key::ALL.len()],
            settled: [None; Key::ALL.len()],
            peer_max_recv_data_len: Key::MaxRecvDataSegmentLength.default_value(),
            declared: false,
        }
    }

    pub(crate) fn set_session(&mut self, session: SessionType) {
        self.session = session;
    }

    /// Offers every key that matters, and declares what we take.
    pub(crate) fn offer_all(&mut self, text: &mut Text) {
        for key in Key::ALL {
            let relevant = self.session == SessionType::Normal || key.is_relevant_in_discovery();
            if let (Some(value), true) = (self.offer.text(key), relevant) {
                if key != Key::MaxRecvDataSegmentLength {
                    self.offered[key as usize] = true;
                }
                text.add(key.name(), &value);
            }
        }
        self.declared = true;
    }

    /// Declares what we take, unless it was done.
    pub(crate) fn declare(&mut self, text: &mut Text) {
        if !self.declared {
            let key = Key::MaxRecvDataSegmentLength;
            text.add(key.name(), &key.write(self.offer.max_recv_data_len));
            self.declared = true;
        }
    }

    /// Takes the pairs of one text: answers to what we offered are checked, offers of the peer are answered into `answers`. Keys are
    /// answered in the order of [`Key::ALL`], after those that are no operational keys.
    pub(crate) fn take(&mut self, pairs: &[(&str, &str)], answers: &mut Text) -> Result<(), LoginError> {
        for (name, value) in pairs {
            if Key::from_name(name).is_none() {
                // an answer to something that we never said
                if matches!(*value, REJECT | IRRELEVANT | NOT_UNDERSTOOD) {
                    return Err(LoginError::BadValue {
                        key: (*name).into(),
                        value: (*value).into(),
                        expected: "an offer, for nothing was offered".into(),
                    });
                }
                answers.add(name, fixed_answer(name));
            }
        }
        for key in Key::ALL {
            if let Some((_, value)) = pairs.iter().find(|(name, _)| *name == key.name()) {
                self.take_one(key, value, answers)?;
            }
        }
        Ok(())
    }

    fn take_one(&mut self, key: Key, value: &str, answers: &mut Text) -> Result<(), LoginError> {
        if self.settled[key as usize].is_some() {
            return Err(LoginError::Again(key.name().into()));
        }
        let outcome = if key == Key::MaxRecvDataSegmentLength {
            let length = key.read(value).ok_or_else(|| bad_value(key, value))?;
            self.peer_max_recv_data_len = length;
            length
        } else if self.offered[key as usize] {
            self.check_answer(key, value)?
        } else {
            let (outcome, answer) = self.respond(key, value)?;
            answers.add(key.name(), &answer);
            outcome
        };
        self.settled[key as usize] = Some(outcome);
        Ok(())
    }

    /// An answer to what we offered.
    fn check_answer(&self, key: Key, value: &str) -> Result<u32, LoginError> {
        let offered = || self.offer.text(key).unwrap_or_default();
        let unacceptable =
            || LoginError::Unacceptable { key: key.name().into(), offered: offered(), answer: value.into() };
        match value {
            // whatever it is, it does not matter: what we offered, so that nothing is beyond it
            IRRELEVANT => match (self.offer.settled_alone(key), self.offer.wanted(key)) {
                (Some(alone), _) | (None, Wanted::One(alone)) => Ok(alone),
                _ if self.offer.permits(key, key.default_value()) => Ok(key.default_value()),
                _ => Err(unacceptable()),
            },
            REJECT | NOT_UNDERSTOOD => Err(unacceptable()),
            _ => match key.read(value) {
                None => Err(bad_value(key, value)),
                Some(outcome) if self.offer.permits(key, outcome) => Ok(outcome),
                Some(_) => {
                    Err(LoginError::NotOffered { key: key.name().into(), value: value.into(), offered: offered() })
                }
            },
        }
    }

    /// The outcome of what the peer offered, and our answer.
    fn respond(&self, key: Key, value: &str) -> Result<(u32, String), LoginError> {
        if self.session == SessionType::Discovery && !key.is_relevant_in_discovery() {
            return Ok((key.default_value(), IRRELEVANT.into()));
        }
        let outcome = match (key.rule(), self.offer.wanted(key)) {
            (Rule::List(_), wanted) => match self.choose(key, value, &wanted) {
                Some(outcome) => outcome,
                // nothing in common: the default holds where we could live with it
                None if self.offer.permits(key, key.default_value()) => {
                    return Ok((key.default_value(), REJECT.into()));
                }
                None => return Err(not_offered(key, value, &self.offer)),
            },
            (rule, wanted) => {
                let theirs = key.read(value).ok_or_else(|| bad_value(key, value))?;
                let ours = match wanted {
                    Wanted::One(ours) => ours,
                    Wanted::Any(_) | Wanted::Default => key.default_value(),
                };
                match rule {
                    Rule::Or | Rule::Maximum(_) => theirs.max(ours),
                    _ => theirs.min(ours),
                }
            }
        };
        let outcome = match (key, self.settled[Key::MaxBurstLength as usize]) {
            // answered before, as it comes before in the order of keys
            (Key::FirstBurstLength, Some(burst)) => outcome.min(burst),
            _ => outcome,
        };
        Ok((outcome, key.write(outcome)))
    }

    /// The first of the peer's list that we would agree to.
    fn choose(&self, key: Key, list: &str, wanted: &Wanted) -> Option<u32> {
        let agreeable = |value: &u32| match wanted {
            Wanted::Any(places) => places.contains(value),
            Wanted::One(_) | Wanted::Default => *value == key.default_value(),
        };
        list.split(',').filter_map(|name| key.read(name)).find(agreeable)
    }

    /// That every offer was answered or needed no answer, and that what was not spoken of is as we need it.
    pub(crate) fn finish(&self) -> Result<(), LoginError> {
        for key in Key::ALL {
            if self.settled[key as usize].is_some() || key == Key::MaxRecvDataSegmentLength {
                continue;
            }
            if self.offered[key as usize] {
                self.offer.settled_alone(key).ok_or(LoginError::Missing(key.name()))?;
            } else if matches!(self.offer.wanted(key), Wanted::Any(_)) && !self.offer.permits(key, key.default_value())
            {
                return Err(LoginError::Missing(key.name()));
            }
        }
        Ok(())
    }

    /// What came out: settled, or what holds without an answer, or the default.
    pub(crate) fn outcome(&self, key: Key) -> u32 {
        let unanswered = || if self.offered[key as usize] { self.offer.settled_alone(key) } else { None };
        self.settled[key as usize].or_else(unanswered).unwrap_or(key.default_value())
    }

    /// The same for small numbers.
    pub(crate) fn outcome16(&self, key: Key) -> u16 {
        self.outcome(key).try_into().unwrap_or(u16::MAX)
    }

    /// The same for booleans.
    pub(crate) fn is_yes(&self, key: Key) -> bool {
        self.outcome(key) != 0
    }

    /// What we declared to take, or the default if we did not come to it.
    pub(crate) fn max_recv_data_len(&self) -> u32 {
        if self.declared { self.offer.max_recv_data_len } else { Key::MaxRecvDataSegmentLength.default_value() }
    }

    /// What the peer declared to take.
    pub(crate) fn max_send_data_len(&self) -> u32 {
        self.peer_max_recv_data_len
    }
}

fn bad_value(key: Key, value: &str) -> LoginError {
    LoginError::BadValue { key: key.name().into(), value: value.into(), expected: key.expected() }
}

fn not_offered(key: Key, value: &str, offer: &Offer) -> LoginError {
    LoginError::Unacceptable {
        key: key.name().into(),
        offered: value.into(),
        answer: format!("{REJECT}, for only {} is allowed here", offer.text(key).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::offer::DigestOffer;
    use super::super::text::pairs;
    use super::*;

    fn respond(offer: &Offer, session: SessionType, text: &str) -> Result<String, LoginError> {
        let mut n = Negotiation::new(offer.clone());
        n.set_session(session);
        let octets = text.replace(' ', "\0") + "\0";
        let mut answers = Text::new();
        n.take(&pairs(octets.as_bytes()).unwrap(), &mut answers)?;
        n.finish()?;
        Ok(String::from_utf8(answers.into_octets()).unwrap().replace('\0', " ").trim_end().to_owned())
    }

    #[test]
    fn a_responder_answers_by_the_rule_of_the_key() {
        let plain = Offer { initial_r2t: true, max_burst_len: 65_536, ..Offer::default() };
        let wants = Offer {
            header_digest: DigestOffer::Preferred,
            immediate_data: false,
            time2retain_s: 30,
            ..Offer::default()
        };
        // offer of the initiator, answer of `plain`, answer of `wants`
        let table = [
            ("HeaderDigest=CRC32C,None", "HeaderDigest=None", "HeaderDigest=CRC32C"),
            ("HeaderDigest=None,CRC32C", "HeaderDigest=None", "HeaderDigest=None"),
            ("HeaderDigest=CRC32C", "HeaderDigest=Reject", "HeaderDigest=CRC32C"),
            ("HeaderDigest=X-own,CRC32C", "HeaderDigest=Reject", "HeaderDigest=CRC32C"),
            ("InitialR2T=No", "InitialR2T=Yes", "InitialR2T=No"),
            ("ImmediateData=Yes", "ImmediateData=Yes", "ImmediateData=No"),
            (
                "FirstBurstLength=262144 MaxBurstLength=1048576",
                "MaxBurstLength=65536 FirstBurstLength=65536",
                "MaxBurstLength=262144 FirstBurstLength=65536",
            ),
            (
                "MaxBurstLength=512 FirstBurstLength=512",
                "MaxBurstLength=512 FirstBurstLength=512",
                "MaxBurstLength=512 FirstBurstLength=512",
            ),
            (
                "FirstBurstLength=65536 MaxBurstLength=1024",
                "MaxBurstLength=1024 FirstBurstLength=1024",
                "MaxBurstLength=1024 FirstBurstLength=1024",
            ),
            (
                "DefaultTime2Wait=0 DefaultTime2Retain=20",
                "DefaultTime2Wait=2 DefaultTime2Retain=0",
                "DefaultTime2Wait=2 DefaultTime2Retain=20",
            ),
            (
                "MaxConnections=8 MaxOutstandingR2T=16 ErrorRecoveryLevel=2",
                "MaxConnections=1 MaxOutstandingR2T=1 ErrorRecoveryLevel=0",
                "MaxConnections=1 MaxOutstandingR2T=1 ErrorRecoveryLevel=0",
            ),
            (
                "DataPDUInOrder=No DataSequenceInOrder=No",
                "DataPDUInOrder=Yes DataSequenceInOrder=Yes",
                "DataPDUInOrder=Yes DataSequenceInOrder=Yes",
            ),
            ("MaxRecvDataSegmentLength=4096", "", ""),
            (
                "TaskReporting=FastAbort,RFC3720 iSCSIProtocolLevel=2",
                "TaskReporting=RFC3720 iSCSIProtocolLevel=1",
                "TaskReporting=RFC3720 iSCSIProtocolLevel=1",
            ),
            ("TaskReporting=FastAbort", "TaskReporting=Reject", "TaskReporting=Reject"),
            (
                "IFMarker=No OFMarkInt=1~2 X-com.example=1",
                "IFMarker=No OFMarkInt=Reject X-com.example=NotUnderstood",
                "IFMarker=No OFMarkInt=Reject X-com.example=NotUnderstood",
            ),
        ];
        for (offer, by_plain, by_wants) in table {
            assert_eq!(respond(&plain, SessionType::Normal, offer).as_deref(), Ok(by_plain), "{offer}");
            assert_eq!(respond(&wants, SessionType::Normal, offer).as_deref(), Ok(by_wants), "{offer}");
        }
        let discovery = "HeaderDigest=None MaxConnections=1 InitialR2T=No MaxBurstLength=9999 ErrorRecoveryLevel=0";
        let want = "HeaderDigest=None MaxConnections=Irrelevant InitialR2T=Irrelevant MaxBurstLength=Irrelevant ErrorRecoveryLevel=0";
        assert_eq!(respond(&plain, SessionType::Discovery, discovery).as_deref(), Ok(want));
    }

    #[test]
    fn a_responder_refuses_by_name() {
        let must = Offer { data_digest: DigestOffer::Always, ..Offer::default() };
        let table = [
            ("DataDigest=CRC32C InitialR2T=maybe", "InitialR2T=maybe is not legal, expected Yes or No"),
            ("DataDigest=CRC32C MaxBurstLength=511", "expected a number from 512 to 16777215"),
            ("DataDigest=CRC32C MaxRecvDataSegmentLength=0", "MaxRecvDataSegmentLength=0 is not legal"),
            ("DataDigest=None", "only CRC32C is allowed"),
            ("HeaderDigest=None", "DataDigest is missing"),
            ("X-own=NotUnderstood", "nothing was offered"),
        ];
        for (offer, words) in table {
            let error = respond(&must, SessionType::Normal, offer).expect_err(offer).to_string();
            assert!(error.contains(words), "{error}");
        }
        let mut twice = Negotiation::new(Offer::default());
        assert_eq!(twice.take(&[("MaxBurstLength", "512")], &mut Text::new()), Ok(()));
        let again = twice.take(&[("MaxBurstLength", "512")], &mut Text::new());
        assert_eq!(again, Err(LoginError::Again("MaxBurstLength".into())));
    }

    #[test]
    fn an_offerer_checks_what_is_answered() {
        let offer =
            Offer { header_digest: DigestOffer::Preferred, data_digest: DigestOffer::Always, ..Offer::default() };
        let answers = |text: &str| {
            let mut n = Negotiation::new(offer.clone());
            n.offer_all(&mut Text::new());
            let octets = text.replace(' ', "\0") + "\0";
            let mut ours = Text::new();
            n.take(&pairs(octets.as_bytes()).unwrap(), &mut ours)?;
            n.finish()?;
            Ok::<_, LoginError>((n, ours))
        };
        let all = "HeaderDigest=None DataDigest=CRC32C InitialR2T=Yes ImmediateData=Yes MaxBurstLength=1024 FirstBurstLength=512 DefaultTime2Wait=2";
        let (n, ours) = answers(all).unwrap();
        assert!(ours.is_empty());
        assert!(!n.is_yes(Key::HeaderDigest) && n.is_yes(Key::DataDigest) && n.is_yes(Key::InitialR2T));
        assert_eq!((n.outcome(Key::MaxBurstLength), n.outcome(Key::FirstBurstLength)), (1024, 512));
        assert_eq!((n.max_send_data_len(), n.max_recv_data_len()), (8192, 262_144));
        for key in Key::ALL {
            let without: Vec<&str> = all.split(' ').filter(|pair| !pair.starts_with(key.name())).collect();
            let found = answers(&without.join(" ")).map(|_| ());
            let expected = if without.len() == 7 { Ok(()) } else { Err(LoginError::Missing(key.name())) };
            assert_eq!(found, expected, "{key}");
        }
        let table = [
            ("DataDigest=None", "DataDigest=None was answered, but CRC32C was offered"),
            ("HeaderDigest=SHA", "HeaderDigest=SHA is not legal"),
            ("MaxBurstLength=262145", "MaxBurstLength=262145 was answered, but 262144 was offered"),
            ("MaxBurstLength=511", "expected a number"),
            ("FirstBurstLength=65537", "but 65536 was offered"),
            ("DefaultTime2Wait=1", "but 2 was offered"),
            ("DefaultTime2Retain=1", "but 0 was offered"),
            ("MaxConnections=2", "but 1 was offered"),
            ("ErrorRecoveryLevel=1", "but 0 was offered"),
            ("DataPDUInOrder=No", "but Yes was offered"),
            ("MaxOutstandingR2T=0", "expected a number"),
            ("InitialR2T=Reject", "answered with Reject"),
            ("ImmediateData=NotUnderstood", "answered with NotUnderstood"),
            ("DataDigest=Irrelevant", "answered with Irrelevant"),
        ];
        for (answer, words) in table {
            let error = answers(answer).expect_err(answer).to_string();
            assert!(error.contains(words), "{error}");
        }
        let irrelevant = all.replace("FirstBurstLength=512", "FirstBurstLength=Irrelevant HeaderDigest=Irrelevant");
        let (n, _) = answers(&irrelevant.replace("HeaderDigest=None ", "")).unwrap();
        assert_eq!((n.outcome(Key::FirstBurstLength), n.outcome(Key::HeaderDigest)), (65_536, 0));
        // what the other side offers on its own is answered
        let (n, ours) =
            answers(&format!("{all} TaskReporting=RFC3720 X-a.b=1 MaxRecvDataSegmentLength=65536")).unwrap();
        assert_eq!(ours.into_octets(), b"X-a.b=NotUnderstood\0TaskReporting=RFC3720\0");
        assert_eq!(n.max_send_data_len(), 65_536);
    }
}
