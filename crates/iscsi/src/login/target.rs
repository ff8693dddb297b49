//! The target's side of a login.

use super::negotiate::Negotiation;
use super::offer::{Authenticated, Negotiated, Offer, SessionType};
use super::text::{Collector, MAX_LOGIN_TEXT_LEN, Pieces, Text, pairs, unique};
use super::{DECLARATIONS, LoginError, MAX_EXCHANGES, MAX_PIECE, Message, Name, nothing_else, settle, take_out};
use crate::chap::ChapTarget;
use crate::pdu::{Isid, LoginRequest, LoginResponse, LoginStatus, Stage, TargetSn};
use crate::serial::StatSn;

/// What a target's side of a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetConfig {
    /// StatSN of the first response.
    pub stat_sn: StatSn,
    /// Commands that the initiator may have under way: MaxCmdSN is so many from ExpCmdSN on. At least 1.
    pub command_window: u32,
}

/// Who wants to log in, and to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// InitiatorName.
    pub initiator: &'a Name,
    /// Discovery or normal.
    pub session: SessionType,
    /// TargetName, always there in a normal session.
    pub target: Option<&'a Name>,
    /// The initiator's part of the session's identity.
    pub isid: Isid,
    /// 0 for a new session, which takes the place of one with the same names and ISID; else the session that this connection would
    /// join.
    pub tsih: u16,
    /// Connection within the session.
    pub cid: u16,
}

/// On what terms somebody may log in.
#[derive(Debug, Clone)]
pub struct Admission {
    /// TSIH of the session, not 0.
    pub tsih: u16,
    /// TargetPortalGroupTag of the portal that was connected to.
    pub portal_group_tag: u16,
    /// TargetAlias, for people.
    pub target_alias: Option<String>,
    /// What he has to prove, if anything.
    pub chap: Option<ChapTarget>,
    /// What we would agree to.
    pub offer: Offer,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetStep {
    /// Send this and hand over the next request.
    Send(Message<LoginResponse>),
    /// Send this; with it the full feature phase begins.
    Done(Message<LoginResponse>, Box<Negotiated>),
    /// Send this and close the connection; the error is for the log.
    Refuse(Message<LoginResponse>, LoginError),
}

/// Who decides whether somebody may log in: [`LoginError::Refused`] and [`LoginError::Moved`] say no in words that the initiator
/// understands.
pub type Gate<'a> = &'a mut dyn FnMut(&Identity<'_>) -> Result<Admission, LoginError>;

/// What the next whole text of the initiator is about, within the security stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Method,
    Algorithm,
    Response,
    Leaving,
}

/// What the first request said.
#[derive(Debug)]
struct Begun {
    request: LoginRequest,
    session: SessionType,
    initiator: Name,
    initiator_alias: Option<String>,
    target: Option<Name>,
    admission: Admission,
    keys: Negotiation,
}

/// A target's login on one connection.
#[derive(Debug)]
pub struct TargetLogin {
    config: TargetConfig,
    stat_sn: StatSn,
    /// The first request, before its text is whole.
    first: Option<LoginRequest>,
    begun: Option<Box<Begun>>,
    stage: Stage,
    phase: Phase,
    authenticated: Authenticated,
    /// Where the login goes with our text, if that fits one answer.
    going: Option<Stage>,
    pieces: Pieces,
    collector: Collector,
    exchanges: u32,
    ended: bool,
}

/// An answer in the making: its text, and whether the initiator's wish to go on is granted.
type Answer = (Text, bool);

impl TargetLogin {
    /// A login that has not begun.
    pub fn new(config: TargetConfig) -> Self {
        TargetLogin {
            config,
            stat_sn: config.stat_sn,
            first: None,
            begun: None,
            stage: Stage::Security,
            phase: Phase::Method,
            authenticated: Authenticated::None,
            going: None,
            pieces: Pieces::default(),
            collector: Collector::new(MAX_LOGIN_TEXT_LEN),
            exchanges: 0,
            ended: false,
        }
    }

    /// Takes a request of the initiator, `data` being its data segment. `gate` is asked once, when it is known who it is.
    pub fn handle(&mut self, request: &LoginRequest, data: &[u8], gate: Gate<'_>) -> TargetStep {
        match self.step(request, data, gate) {
            Ok(step) => {
                self.ended = matches!(step, TargetStep::Done(..));
                step
            }
            Err(error) => {
                self.ended = true;
                self.refuse(request, error)
            }
        }
    }

    /// The answer to something that is no Login Request, or to one that could not be read: for a caller whose peer says something
    /// else during login. `request` is the last that was read.
    pub fn refuse(&mut self, request: &LoginRequest, error: LoginError) -> TargetStep {
        let mut text = Text::new();
        if let LoginError::Moved { to, .. } = &error {
            to.iter().for_each(|address| text.add("TargetAddress", &address.to_string()));
        }
        let mut message = self.response(request, text.into_octets(), None, false);
        message.pdu.status = error.status();
        TargetStep::Refuse(message, error)
    }

    fn step(&mut self, request: &LoginRequest, data: &[u8], gate: Gate<'_>) -> Result<TargetStep, LoginError> {
        self.check(request)?;
        if self.pieces.is_open() {
            if !data.is_empty() || request.transit.is_some() || request.continues {
                return Err(LoginError::Protocol("the initiator went on before our text was complete"));
            }
            return self.next_piece(request);
        }
        let Some(text) = self.collector.add(data, request.continues)? else {
            return Ok(TargetStep::Send(self.response(request, Vec::new(), None, false)));
        };
        let pairs = unique(pairs(&text)?)?;
        let mut answer = Text::new();
        let rest = self.begin(request, pairs, gate, &mut answer)?;
        let (text, may_go_on) = match self.stage {
            Stage::Security => self.security(request, &rest, answer)?,
            _ => self.operational(&rest, answer)?,
        };
        self.going = if may_go_on { request.transit } else { None };
        self.pieces = Pieces::new(text.into_octets());
        self.next_piece(request)
    }

    /// What holds for every request.
    fn check(&mut self, request: &LoginRequest) -> Result<(), LoginError> {
        if self.ended {
            return Err(LoginError::Protocol("a request to a login that has ended"));
        }
        if request.version_min > 0 {
            return Err(LoginError::Version(request.version_min));
        }
        let first = *self.first.get_or_insert(*request);
        if self.exchanges == 0 {
            self.stage = request.current;
        }
        let same = (first.itt, first.isid, first.tsih, first.cid, first.sn.cmd_sn)
            == (request.itt, request.isid, request.tsih, request.cid, request.sn.cmd_sn);
        if !same {
            return Err(LoginError::Protocol("the request has another tag, ISID, TSIH, CID or CmdSN than the first"));
        }
        if request.current != self.stage {
            return Err(LoginError::Protocol("the request belongs to another stage of the login"));
        }
        self.exchanges += 1;
        if self.exchanges > MAX_EXCHANGES { Err(LoginError::Endless(MAX_EXCHANGES)) } else { Ok(()) }
    }

    /// Learns from the first text who it is and asks whether he may; gives back what is to be negotiated.
    fn begin<'a>(
        &mut self,
        request: &LoginRequest,
        pairs: Vec<(&'a str, &'a str)>,
        gate: Gate<'_>,
        answer: &mut Text,
    ) -> Result<Vec<(&'a str, &'a str)>, LoginError> {
        let (mut initiator, mut target, mut session, mut alias) = (None, None, None, None);
        let rest = take_out(pairs, &["InitiatorName", "TargetName", "SessionType", DECLARATIONS[0]], |key, value| {
            match key {
                "InitiatorName" => initiator = Some(Name::new(value)?),
                "TargetName" => target = Some(Name::new(value)?),
                "SessionType" => session = Some(session_type(value)?),
                _ => alias = Some(value.to_owned()),
            }
            Ok(())
        })?;
        if self.begun.is_some() {
            let again = [(initiator.is_some(), "InitiatorName"), (target.is_some(), "TargetName")];
            return match again.iter().find(|(is, _)| *is) {
                Some((_, key)) => Err(LoginError::Again((*key).into())),
                None if session.is_some() => Err(LoginError::Again("SessionType".into())),
                None => Ok(rest),
            };
        }
        let session = session.unwrap_or(SessionType::Normal);
        let initiator = initiator.ok_or(LoginError::Missing("InitiatorName"))?;
        if session == SessionType::Normal && target.is_none() {
            return Err(LoginError::Missing("TargetName"));
        }
        let identity = Identity {
            initiator: &initiator,
            session,
            target: target.as_ref(),
            isid: request.isid,
            tsih: request.tsih,
            cid: request.cid,
        };
        let admission = gate(&identity)?;
        if self.stage == Stage::Operational && admission.chap.is_some() {
            return Err(LoginError::Refused(LoginStatus::AuthenticationFailure));
        }
        if let Some(alias) = &admission.target_alias {
            answer.add("TargetAlias", alias);
        }
        if session == SessionType::Normal {
            answer.add("TargetPortalGroupTag", &admission.portal_group_tag.to_string());
        }
        let mut keys = Negotiation::new(admission.offer.clone());
        keys.set_session(session);
        self.begun = Some(Box::new(Begun {
            request: *request,
            session,
            initiator,
            initiator_alias: alias,
            target,
            admission,
            keys,
        }));
        Ok(rest)
    }

    fn security(
        &mut self,
        request: &LoginRequest,
        pairs: &[(&str, &str)],
        mut text: Text,
    ) -> Result<Answer, LoginError> {
        let stage = self.stage;
        let Some(chap) = self.begun.as_mut().map(|begun| &mut begun.admission.chap) else {
            return Err(LoginError::Missing("InitiatorName"));
        };
        match (self.phase, chap) {
            (Phase::Method, chap) => {
                let methods = pairs.iter().find(|(key, _)| *key == "AuthMethod").map(|(_, value)| *value);
                let other: Vec<_> = pairs.iter().filter(|(key, _)| *key != "AuthMethod").copied().collect();
                nothing_else(&other, stage)?;
                let wanted = if chap.is_some() { "CHAP" } else { "None" };
                match methods {
                    Some(methods) if methods.split(',').any(|method| method == wanted) => {
                        text.add("AuthMethod", wanted);
                        self.phase = if chap.is_some() { Phase::Algorithm } else { Phase::Leaving };
                        Ok((text, chap.is_none()))
                    }
                    // no method is as good as None, and he may yet come to name one
                    None if chap.is_none() => Ok((text, true)),
                    None if request.transit.is_none() => Ok((text, false)),
                    _ => Err(LoginError::Refused(LoginStatus::AuthenticationFailure)),
                }
            }
            (Phase::Algorithm, Some(chap)) => {
                chap.challenge(pairs, &mut text)?;
                self.phase = Phase::Response;
                Ok((text, false))
            }
            (Phase::Response, Some(chap)) => {
                let both = chap.verify(pairs, &mut text)?;
                self.authenticated = if both { Authenticated::Both } else { Authenticated::Initiator };
                self.phase = Phase::Leaving;
                Ok((text, true))
            }
            _ => nothing_else(pairs, stage).map(|()| (text, true)),
        }
    }

    fn operational(&mut self, pairs: &[(&str, &str)], mut text: Text) -> Result<Answer, LoginError> {
        let begun = self.begun.as_mut().ok_or(LoginError::Missing("InitiatorName"))?;
        begun.keys.take(pairs, &mut text)?;
        begun.keys.declare(&mut text);
        Ok((text, true))
    }

    /// Sends the next piece of our text, and goes on to the next stage where that is all.
    fn next_piece(&mut self, request: &LoginRequest) -> Result<TargetStep, LoginError> {
        let (piece, more) = self.pieces.next(MAX_PIECE);
        // what needs several answers does not also go on: the request for the last piece does not ask for it
        let going = self.going.take();
        let transit = if more { None } else { going };
        if transit == Some(Stage::FullFeature) {
            let begun = self.begun.as_ref().ok_or(LoginError::Missing("InitiatorName"))?;
            begun.keys.finish()?;
        }
        let message = self.response(request, piece, transit, more);
        let Some(next) = transit else { return Ok(TargetStep::Send(message)) };
        self.stage = next;
        match &self.begun {
            Some(begun) if next == Stage::FullFeature => {
                let negotiated = Box::new(self.negotiated(begun, &message.pdu));
                Ok(TargetStep::Done(message, negotiated))
            }
            _ => Ok(TargetStep::Send(message)),
        }
    }

    fn negotiated(&self, begun: &Begun, response: &LoginResponse) -> Negotiated {
        let (request, admission) = (&begun.request, &begun.admission);
        let mut negotiated = Negotiated {
            target_name: begun.target.clone(),
            target_alias: admission.target_alias.clone(),
            portal_group_tag: (begun.session == SessionType::Normal).then_some(admission.portal_group_tag),
            initiator_alias: begun.initiator_alias.clone(),
            tsih: admission.tsih,
            cid: request.cid,
            authenticated: self.authenticated,
            max_cmd_sn: response.sn.max_cmd_sn,
            ..Negotiated::before(begun.session, begun.initiator.clone(), request.isid, request.sn.cmd_sn)
        };
        negotiated.stat_sn = self.stat_sn;
        settle(&mut negotiated, &begun.keys);
        negotiated
    }

    fn response(
        &mut self,
        request: &LoginRequest,
        text: Vec<u8>,
        transit: Option<Stage>,
        continues: bool,
    ) -> Message<LoginResponse> {
        let exp_cmd_sn = request.sn.cmd_sn;
        let max_cmd_sn = exp_cmd_sn.plus(self.config.command_window.max(1) - 1);
        let sn = TargetSn { stat_sn: self.stat_sn, exp_cmd_sn, max_cmd_sn };
        self.stat_sn = self.stat_sn.next();
        // the handle of a new session is told with the last response
        let new = self.begun.as_ref().filter(|_| transit == Some(Stage::FullFeature));
        let pdu = LoginResponse {
            current: request.current,
            transit,
            continues,
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            tsih: new.map_or(request.tsih, |begun| begun.admission.tsih),
            itt: request.itt,
            sn,
            status: LoginStatus::Success,
            data_len: text.len() as u32,
        };
        Message { pdu, text }
    }
}

fn session_type(value: &str) -> Result<SessionType, LoginError> {
    match value {
        "Normal" => Ok(SessionType::Normal),
        "Discovery" => Ok(SessionType::Discovery),
        _ => Err(LoginError::Refused(LoginStatus::SessionTypeNotSupported)),
    }
}
