//! The initiator's side of a login.

use super::address::PortalAddress;
use super::negotiate::Negotiation;
use super::offer::{Authenticated, Negotiated, Offer, SessionType};
use super::text::{Collector, MAX_LOGIN_TEXT_LEN, Pieces, Text, pairs, unique};
use super::value::number;
use super::{DECLARATIONS, LoginError, MAX_EXCHANGES, MAX_PIECE, Message, Name, nothing_else, settle, take_out};
use crate::chap::ChapInitiator;
use crate::pdu::{InitiatorSn, Isid, Itt, LoginRequest, LoginResponse, LoginStatus, Stage};
use crate::serial::{CmdSn, StatSn};

/// What an initiator logs in with.
#[derive(Debug, Clone)]
pub struct InitiatorConfig {
    /// Who we are.
    pub initiator_name: Name,
    /// InitiatorAlias, for people.
    pub initiator_alias: Option<String>,
    /// Which target; `None` for a discovery session.
    pub target_name: Option<Name>,
    /// Our part of the session's identity: chosen once for a session and kept, so that the session is reinstated and not doubled when
    /// it logs in again.
    pub isid: Isid,
    /// Connection within the session.
    pub cid: u16,
    /// Tag of the login.
    pub itt: Itt,
    /// CmdSN of the first command of the session.
    pub cmd_sn: CmdSn,
    /// What we would agree to.
    pub offer: Offer,
    /// What we prove ourselves with. With one-way CHAP the target may still choose to do without; with mutual CHAP it may not.
    pub chap: Option<ChapInitiator>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitiatorStep {
    /// Send this and hand over the answer.
    Send(Message<LoginRequest>),
    /// The full feature phase has begun.
    Done(Box<Negotiated>),
}

/// What the next whole text of the target is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Method,
    Challenge,
    Proof,
    /// Authentication is done; the target has yet to go on.
    Leaving,
    Operational,
    Ended,
}

/// An initiator's login on one connection.
#[derive(Debug)]
pub struct InitiatorLogin {
    config: InitiatorConfig,
    keys: Negotiation,
    phase: Phase,
    stage: Stage,
    /// Where we asked to go with the last whole text.
    asked: Option<Stage>,
    pieces: Pieces,
    collector: Collector,
    exp_stat_sn: StatSn,
    exchanges: u32,
    authenticated: Authenticated,
    target_alias: Option<String>,
    portal_group_tag: Option<u16>,
}

impl InitiatorLogin {
    /// A login that has not begun.
    pub fn new(config: InitiatorConfig) -> Self {
        let mut keys = Negotiation::new(config.offer.clone());
        let session = if config.target_name.is_some() { SessionType::Normal } else { SessionType::Discovery };
        keys.set_session(session);
        InitiatorLogin {
            keys,
            phase: Phase::Ended,
            stage: Stage::Operational,
            asked: None,
            pieces: Pieces::default(),
            collector: Collector::new(MAX_LOGIN_TEXT_LEN),
            exp_stat_sn: StatSn::new(0),
            exchanges: 0,
            authenticated: Authenticated::None,
            target_alias: None,
            portal_group_tag: None,
            config,
        }
    }

    fn session(&self) -> SessionType {
        if self.config.target_name.is_some() { SessionType::Normal } else { SessionType::Discovery }
    }

    /// The first request.
    pub fn start(&mut self) -> Message<LoginRequest> {
        let mut text = Text::new();
        text.add("InitiatorName", self.config.initiator_name.as_str());
        if let Some(alias) = &self.config.initiator_alias {
            text.add("InitiatorAlias", alias);
        }
        if let Some(name) = &self.config.target_name {
            text.add("TargetName", name.as_str());
        }
        text.add("SessionType", self.session().as_str());
        if self.config.chap.is_none() {
            return self.operational(text);
        }
        self.stage = Stage::Security;
        text.add("AuthMethod", if self.may_go_without() { "CHAP,None" } else { "CHAP" });
        let next = self.may_go_without().then_some(Stage::Operational);
        self.send(Phase::Method, text, next)
    }

    /// Whether the target may do without authentication: not when it is to prove itself.
    fn may_go_without(&self) -> bool {
        self.config.chap.as_ref().is_some_and(|chap| !chap.is_mutual())
    }

    /// Takes an answer of the target, `data` being its data segment.
    ///
    /// # Errors
    /// [`LoginError`]: the login is over, and the connection is to be closed.
    pub fn handle(&mut self, response: &LoginResponse, data: &[u8]) -> Result<InitiatorStep, LoginError> {
        let step = self.step(response, data);
        if !matches!(step, Ok(InitiatorStep::Send(_))) {
            self.phase = Phase::Ended;
        }
        step
    }

    fn step(&mut self, response: &LoginResponse, data: &[u8]) -> Result<InitiatorStep, LoginError> {
        self.check(response, data)?;
        if self.pieces.is_open() {
            if !data.is_empty() || response.transit.is_some() || response.continues {
                return Err(LoginError::Protocol("the target answered before our text was complete"));
            }
            return Ok(InitiatorStep::Send(self.next_piece()));
        }
        let Some(text) = self.collector.add(data, response.continues)? else {
            // an empty request asks for the rest
            self.asked = None;
            return Ok(InitiatorStep::Send(self.request(Vec::new(), None, false)));
        };
        let pairs = self.declarations(pairs(&text)?)?;
        let pairs = unique(pairs)?;
        if response.transit.is_some() && response.transit != self.asked {
            return Err(LoginError::Protocol("the target went to a stage that we had not asked for"));
        }
        match self.phase {
            Phase::Method => self.method(&pairs, response),
            Phase::Challenge => self.challenge(&pairs),
            Phase::Proof => self.proof(&pairs, response),
            Phase::Leaving => self.leave_security(&pairs, response),
            Phase::Operational => self.answers(&pairs, response),
            Phase::Ended => Err(LoginError::Protocol("the login is over")),
        }
    }

    /// What holds for every response.
    fn check(&mut self, response: &LoginResponse, data: &[u8]) -> Result<(), LoginError> {
        if self.phase == Phase::Ended {
            return Err(LoginError::Protocol("an answer to a login that has ended or not begun"));
        }
        if response.itt != self.config.itt {
            return Err(LoginError::Protocol("the answer has the tag of another login"));
        }
        if response.status != LoginStatus::Success {
            return Err(refusal(response.status, data));
        }
        if response.version_active != 0 {
            return Err(LoginError::Version(response.version_active));
        }
        if response.isid != self.config.isid {
            return Err(LoginError::Protocol("the answer has another ISID than we sent"));
        }
        if response.current != self.stage {
            return Err(LoginError::Protocol("the answer belongs to another stage of the login"));
        }
        self.exp_stat_sn = response.sn.stat_sn.next();
        self.exchanges += 1;
        if self.exchanges > MAX_EXCHANGES { Err(LoginError::Endless(MAX_EXCHANGES)) } else { Ok(()) }
    }

    /// Keeps what the target says of itself, and gives back the rest.
    fn declarations<'a>(&mut self, pairs: Vec<(&'a str, &'a str)>) -> Result<Vec<(&'a str, &'a str)>, LoginError> {
        take_out(pairs, &DECLARATIONS[1..], |key, value| {
            match key {
                "TargetAlias" => self.target_alias = Some(value.into()),
                "TargetPortalGroupTag" => {
                    let tag = number(value).and_then(|n| u16::try_from(n).ok());
                    self.portal_group_tag = Some(tag.ok_or_else(|| LoginError::BadValue {
                        key: key.into(),
                        value: value.into(),
                        expected: "a number from 0 to 65535".into(),
                    })?);
                }
                // only a redirection has a use for it
                _ => {}
            }
            Ok(())
        })
    }

    fn method(&mut self, pairs: &[(&str, &str)], response: &LoginResponse) -> Result<InitiatorStep, LoginError> {
        let offered = if self.may_go_without() { "CHAP,None" } else { "CHAP" };
        let [("AuthMethod", method)] = pairs else {
            let other: Vec<_> = pairs.iter().filter(|(key, _)| *key != "AuthMethod").copied().collect();
            nothing_else(&other, self.stage)?;
            return Err(LoginError::Missing("AuthMethod"));
        };
        match *method {
            "CHAP" if response.transit.is_some() => {
                Err(LoginError::Protocol("the target left security negotiation before it authenticated us"))
            }
            "CHAP" => {
                let mut text = Text::new();
                if let Some(chap) = &self.config.chap {
                    chap.offer(&mut text);
                }
                Ok(InitiatorStep::Send(self.send(Phase::Challenge, text, None)))
            }
            "None" if self.may_go_without() => self.leave_security(&[], response),
            answer @ ("Reject" | "NotUnderstood" | "Irrelevant") => Err(LoginError::Unacceptable {
                key: "AuthMethod".into(),
                offered: offered.into(),
                answer: answer.into(),
            }),
            other => {
                Err(LoginError::NotOffered { key: "AuthMethod".into(), value: other.into(), offered: offered.into() })
            }
        }
    }

    fn challenge(&mut self, pairs: &[(&str, &str)]) -> Result<InitiatorStep, LoginError> {
        let mut text = Text::new();
        if let Some(chap) = &mut self.config.chap {
            chap.respond(pairs, &mut text)?;
        }
        Ok(InitiatorStep::Send(self.send(Phase::Proof, text, Some(Stage::Operational))))
    }

    fn proof(&mut self, pairs: &[(&str, &str)], response: &LoginResponse) -> Result<InitiatorStep, LoginError> {
        if let Some(chap) = &self.config.chap {
            chap.verify(pairs)?;
            self.authenticated = if chap.is_mutual() { Authenticated::Both } else { Authenticated::Initiator };
        }
        self.leave_security(&[], response)
    }

    fn leave_security(
        &mut self,
        pairs: &[(&str, &str)],
        response: &LoginResponse,
    ) -> Result<InitiatorStep, LoginError> {
        nothing_else(pairs, self.stage)?;
        Ok(InitiatorStep::Send(if response.transit.is_some() {
            self.operational(Text::new())
        } else {
            self.send(Phase::Leaving, Text::new(), Some(Stage::Operational))
        }))
    }

    /// The first request of the operational stage.
    fn operational(&mut self, mut text: Text) -> Message<LoginRequest> {
        self.stage = Stage::Operational;
        self.keys.offer_all(&mut text);
        self.send(Phase::Operational, text, Some(Stage::FullFeature))
    }

    fn answers(&mut self, pairs: &[(&str, &str)], response: &LoginResponse) -> Result<InitiatorStep, LoginError> {
        let mut text = Text::new();
        self.keys.take(pairs, &mut text)?;
        if response.transit.is_none() {
            return Ok(InitiatorStep::Send(self.send(Phase::Operational, text, Some(Stage::FullFeature))));
        }
        if !text.is_empty() {
            return Err(LoginError::Protocol(
                "the target ended the negotiation with offers that we have yet to answer",
            ));
        }
        self.keys.finish()?;
        // in a discovery session, which nobody joins or reinstates, some targets do without
        if response.tsih == 0 && self.session() == SessionType::Normal {
            return Err(LoginError::Protocol("the target gave the session no handle (TSIH is 0)"));
        }
        Ok(InitiatorStep::Done(Box::new(self.negotiated(response))))
    }

    fn negotiated(&self, response: &LoginResponse) -> Negotiated {
        let config = &self.config;
        let mut negotiated = Negotiated {
            target_name: config.target_name.clone(),
            target_alias: self.target_alias.clone(),
            portal_group_tag: self.portal_group_tag,
            initiator_alias: config.initiator_alias.clone(),
            tsih: response.tsih,
            cid: config.cid,
            authenticated: self.authenticated,
            max_cmd_sn: response.sn.max_cmd_sn,
            ..Negotiated::before(self.session(), config.initiator_name.clone(), config.isid, config.cmd_sn)
        };
        negotiated.stat_sn = self.exp_stat_sn;
        settle(&mut negotiated, &self.keys);
        negotiated
    }

    /// Sends a whole text, in as many pieces as it needs, and asks for `next` with the last.
    fn send(&mut self, phase: Phase, text: Text, next: Option<Stage>) -> Message<LoginRequest> {
        self.phase = phase;
        self.asked = next;
        self.pieces = Pieces::new(text.into_octets());
        self.next_piece()
    }

    fn next_piece(&mut self) -> Message<LoginRequest> {
        let (piece, more) = self.pieces.next(MAX_PIECE);
        self.request(piece, if more { None } else { self.asked }, more)
    }

    fn request(&self, text: Vec<u8>, transit: Option<Stage>, continues: bool) -> Message<LoginRequest> {
        let pdu = LoginRequest {
            current: self.stage,
            transit,
            continues,
            version_max: 0,
            version_min: 0,
            isid: self.config.isid,
            tsih: 0,
            itt: self.config.itt,
            cid: self.config.cid,
            sn: InitiatorSn { cmd_sn: self.config.cmd_sn, exp_stat_sn: self.exp_stat_sn },
            data_len: text.len() as u32,
        };
        Message { pdu, text }
    }
}

/// What a target means that says no.
fn refusal(status: LoginStatus, data: &[u8]) -> LoginError {
    let permanent = match status.codes() {
        (1, 2) => true,
        // some targets do not fill in the detail
        (1, _) => false,
        _ => return LoginError::Refused(status),
    };
    let pairs = match pairs(data) {
        Ok(pairs) => pairs,
        Err(error) => return error.into(),
    };
    let addresses = pairs.iter().filter(|(key, _)| *key == "TargetAddress");
    let to: Result<Vec<_>, _> = addresses.map(|(_, value)| PortalAddress::parse(value)).collect();
    match to {
        Ok(to) if to.is_empty() => LoginError::Missing("TargetAddress"),
        Ok(to) => LoginError::Moved { to, permanent },
        Err(bad) => LoginError::BadValue {
            key: "TargetAddress".into(),
            value: bad.address,
            expected: "host:port,portal-group-tag".into(),
        },
    }
}
