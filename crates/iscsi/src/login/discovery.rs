//! Which targets there are: the SendTargets text exchange, both sides (RFC 7143 section 13.3 and appendix C).

use super::keys::{Key, fixed_answer};
use super::text::{Collector, Pieces, Text, pairs};
use super::{LoginError, MAX_EXCHANGES, Message, Name, PortalAddress, SessionType};
use crate::pdu::{InitiatorSn, Itt, Lun, TargetSn, TextRequest, TextResponse, Ttt};

/// Most octets of a request that a target puts together.
const MAX_REQUEST_LEN: usize = 8192;

/// A target, as a discovery session tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// TargetName.
    pub name: Name,
    /// TargetAddress of each portal. None of them: the portal that was asked.
    pub portals: Vec<PortalAddress>,
}

/// Which targets are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All that this initiator may use; in discovery sessions only.
    All,
    /// One, with all its portals.
    Target(Name),
    /// That of this normal session.
    This,
}

impl Which {
    fn value(&self) -> &str {
        match self {
            Which::All => "All",
            Which::Target(name) => name.as_str(),
            Which::This => "",
        }
    }
}

/// Reads a list of targets. A target that is there twice is put together.
///
/// # Errors
/// [`LoginError`]: no text, an address before any name, a name or an address that is none.
pub(crate) fn read_targets(text: &[u8]) -> Result<Vec<DiscoveredTarget>, LoginError> {
    let mut targets: Vec<DiscoveredTarget> = Vec::new();
    let mut current = None;
    for (key, value) in pairs(text)? {
        match key {
            "TargetName" => {
                let name = Name::new(value)?;
                let known = targets.iter().position(|target| target.name == name);
                current = Some(known.unwrap_or(targets.len()));
                if known.is_none() {
                    targets.push(DiscoveredTarget { name, portals: Vec::new() });
                }
            }
            "TargetAddress" => {
                let portal = PortalAddress::parse(value).map_err(|bad| LoginError::BadValue {
                    key: key.into(),
                    value: bad.address,
                    expected: "host:port,portal-group-tag".into(),
                })?;
                let target =
                    current.and_then(|at: usize| targets.get_mut(at)).ok_or(LoginError::Missing("TargetName"))?;
                if !target.portals.contains(&portal) {
                    target.portals.push(portal);
                }
            }
            "SendTargets" => {
                return Err(LoginError::Unacceptable {
                    key: key.into(),
                    offered: "a list of targets".into(),
                    answer: value.into(),
                });
            }
            // aliases, and whatever else a target wants to tell
            _ => {}
        }
    }
    Ok(targets)
}

fn write_targets(targets: &[DiscoveredTarget], text: &mut Text) {
    for target in targets {
        text.add("TargetName", target.name.as_str());
        for portal in &target.portals {
            text.add("TargetAddress", &portal.to_string());
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendTargetsStep {
    /// Send this and hand over the answer.
    Send(Message<TextRequest>),
    /// These are the targets.
    Done(Vec<DiscoveredTarget>),
}

/// The initiator's side: asks for a list of targets.
#[derive(Debug)]
pub struct SendTargets {
    itt: Itt,
    collector: Collector,
    exchanges: u32,
    ended: bool,
}

impl SendTargets {
    /// An exchange with this tag that has not begun. The whole list may have at most `max_len` octets; 1 MiB is about six thousand
    /// targets.
    pub fn new(itt: Itt, max_len: usize) -> Self {
        SendTargets { itt, collector: Collector::new(max_len), exchanges: 0, ended: false }
    }

    /// The first request. It takes a place in the order of commands: `sn` has the next CmdSN.
    pub fn start(&self, which: &Which, sn: InitiatorSn) -> Message<TextRequest> {
        let mut text = Text::new();
        text.add("SendTargets", which.value());
        self.request(text, Lun::ZERO, None, sn)
    }

    /// Takes an answer, `data` being its data segment. `sn` has the CmdSN of the request that may have to follow.
    ///
    /// # Errors
    /// [`LoginError`]: the exchange is over.
    pub fn handle(
        &mut self,
        response: &TextResponse,
        data: &[u8],
        sn: InitiatorSn,
    ) -> Result<SendTargetsStep, LoginError> {
        if response.itt != self.itt || self.ended {
            return Err(LoginError::Protocol("a text that nobody asked for"));
        }
        self.exchanges += 1;
        if self.exchanges > MAX_EXCHANGES * 16 {
            return Err(LoginError::Endless(MAX_EXCHANGES * 16));
        }
        match self.collector.add(data, !response.is_final)? {
            None => Ok(SendTargetsStep::Send(self.request(Text::new(), response.lun, response.ttt, sn))),
            Some(text) => {
                self.ended = true;
                Ok(SendTargetsStep::Done(read_targets(&text)?))
            }
        }
    }

    fn request(&self, text: Text, lun: Lun, ttt: Option<Ttt>, sn: InitiatorSn) -> Message<TextRequest> {
        let text = text.into_octets();
        let data_len = text.len() as u32;
        let pdu =
            TextRequest { immediate: false, is_final: true, continues: false, lun, itt: self.itt, ttt, sn, data_len };
        Message { pdu, text }
    }
}

/// The target's side of text in the full feature phase: SendTargets is answered, everything else is rejected.
#[derive(Debug)]
pub struct TextServer {
    session: SessionType,
    target: Option<Name>,
    max_send_data_len: u32,
    /// Tag of an exchange that has more to say.
    ttt: Ttt,
    current: Option<Itt>,
    collector: Collector,
    pieces: Pieces,
}

impl TextServer {
    /// For a session of this type, that of `target` if it is a normal one, with an initiator that takes `max_send_data_len` octets at a
    /// time. `ttt` is the tag of answers in several pieces.
    pub fn new(session: SessionType, target: Option<Name>, max_send_data_len: u32, ttt: Ttt) -> Self {
        let collector = Collector::new(MAX_REQUEST_LEN);
        TextServer { session, target, max_send_data_len, ttt, current: None, collector, pieces: Pieces::default() }
    }

    /// Answers a request, `data` being its data segment. `list` tells which targets there are that this initiator may use. Another
    /// request with the reserved target transfer tag ends what was going on before (section 11.10.4).
    ///
    /// # Errors
    /// [`LoginError`]: the request is to be rejected as a protocol error.
    pub fn handle(
        &mut self,
        request: &TextRequest,
        data: &[u8],
        sn: TargetSn,
        list: &mut dyn FnMut(&Which) -> Vec<DiscoveredTarget>,
    ) -> Result<Message<TextResponse>, LoginError> {
        if request.ttt.is_none() && self.current != Some(request.itt) {
            self.collector = Collector::new(MAX_REQUEST_LEN);
            self.pieces = Pieces::default();
            self.current = Some(request.itt);
        }
        if self.current != Some(request.itt) || request.ttt.is_some_and(|ttt| ttt != self.ttt) {
            return Err(LoginError::Protocol("a text request about an exchange that does not exist"));
        }
        if request.ttt.is_some() && self.pieces.is_open() {
            if !data.is_empty() {
                return Err(LoginError::Protocol("the initiator went on before our text was complete"));
            }
            return Ok(self.next_piece(request, sn));
        }
        let Some(text) = self.collector.add(data, request.continues)? else {
            return Ok(self.response(request, Vec::new(), sn, false, false));
        };
        let mut answer = Text::new();
        for (key, value) in pairs(&text)? {
            match (key, self.which(value)) {
                ("SendTargets", Some(which)) => write_targets(&list(&which), &mut answer),
                ("SendTargets", None) => answer.add(key, "Reject"),
                _ if Key::from_name(key).is_some() => answer.add(key, "Reject"),
                _ => answer.add(key, fixed_answer(key)),
            }
        }
        self.pieces = Pieces::new(answer.into_octets());
        Ok(self.next_piece(request, sn))
    }

    /// What is asked for, if it may be asked in this session (section 13.3).
    fn which(&self, value: &str) -> Option<Which> {
        let normal = self.session == SessionType::Normal;
        match (value, Name::new(value)) {
            ("All", _) if !normal => Some(Which::All),
            ("", _) if normal => self.target.clone().map(Which::Target),
            (_, Ok(name)) if !normal || self.target.as_ref() == Some(&name) => Some(Which::Target(name)),
            _ => None,
        }
    }

    fn next_piece(&mut self, request: &TextRequest, sn: TargetSn) -> Message<TextResponse> {
        let (piece, more) = self.pieces.next(self.max_send_data_len as usize);
        let is_final = !more && request.is_final;
        self.response(request, piece, sn, is_final, more)
    }

    fn response(
        &mut self,
        request: &TextRequest,
        text: Vec<u8>,
        sn: TargetSn,
        is_final: bool,
        continues: bool,
    ) -> Message<TextResponse> {
        let ttt = (!is_final).then_some(self.ttt);
        if is_final {
            self.current = None;
        }
        let data_len = text.len() as u32;
        let pdu = TextResponse { is_final, continues, lun: Lun::ZERO, itt: request.itt, ttt, sn, data_len };
        Message { pdu, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serial::{CmdSn, StatSn};

    const SN: InitiatorSn = InitiatorSn { cmd_sn: CmdSn::new(1), exp_stat_sn: StatSn::new(1) };
    const TARGET_SN: TargetSn =
        TargetSn { stat_sn: StatSn::new(1), exp_cmd_sn: CmdSn::new(1), max_cmd_sn: CmdSn::new(9) };

    fn target(name: &str, portals: &[&str]) -> DiscoveredTarget {
        let portals = portals.iter().map(|p| PortalAddress::parse(p).unwrap()).collect();
        DiscoveredTarget { name: Name::new(name).unwrap(), portals }
    }

    #[test]
    fn the_example_of_appendix_c() {
        let text = "TargetName=iqn.1993-11.com.example:diskarray.sn.8675309\0TargetAddress=10.1.0.45:5300,1\0\
                    TargetAddress=10.1.1.45:5300,2\0TargetName=iqn.1993-11.com.example:diskarray.sn.1234567\0\
                    TargetAddress=[1080::8:800:200c:417a],1\0TargetName=iqn.1993-11.com.example:nowhere\0\
                    TargetName=iqn.1993-11.com.example:diskarray.sn.8675309\0TargetAddress=10.1.2.45:5300,1\0TargetAlias=x\0";
        let read = read_targets(text.as_bytes()).unwrap();
        let all = [
            target(
                "iqn.1993-11.com.example:diskarray.sn.8675309",
                &["10.1.0.45:5300,1", "10.1.1.45:5300,2", "10.1.2.45:5300,1"],
            ),
            target("iqn.1993-11.com.example:diskarray.sn.1234567", &["[1080::8:800:200c:417a],1"]),
            target("iqn.1993-11.com.example:nowhere", &[]),
        ];
        assert_eq!(read, all);
        let mut again = Text::new();
        write_targets(&all, &mut again);
        assert_eq!(read_targets(&again.into_octets()).unwrap(), all);
        let bad = [
            ("TargetAddress=10.1.0.45:5300,1\0", "TargetName is missing"),
            ("TargetName=disk\0", "no iSCSI name"),
            ("TargetName=iqn.1993-11.com.example\0TargetAddress=:1\0", "expected host:port"),
            ("SendTargets=Reject\0", "answered with Reject"),
        ];
        for (text, words) in bad {
            let error = read_targets(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(read_targets(b""), Ok(vec![]));
    }

    /// Both sides, until the initiator has its list.
    fn exchange(max_len: usize, piece: u32, which: &Which) -> Result<Vec<DiscoveredTarget>, LoginError> {
        let itt = Itt::new(7).unwrap();
        let mut server = TextServer::new(SessionType::Discovery, None, piece, Ttt::new(3).unwrap());
        let mut client = SendTargets::new(itt, max_len);
        let mut next = client.start(which, SN);
        let many: Vec<_> = (0..40).map(|n| target(&format!("iqn.2026-01.lab:t{n}"), &["127.0.0.1:3260,1"])).collect();
        loop {
            let response = server.handle(&next.pdu, &next.text, TARGET_SN, &mut |which| match which {
                Which::All => many.clone(),
                Which::Target(name) => many.iter().filter(|t| t.name == *name).cloned().collect(),
                Which::This => vec![],
            })?;
            assert!(response.text.len() <= piece as usize);
            match client.handle(&response.pdu, &response.text, SN)? {
                SendTargetsStep::Send(message) => next = message,
                SendTargetsStep::Done(targets) => {
                    assert!(client.handle(&response.pdu, &response.text, SN).is_err(), "it is over");
                    return Ok(targets);
                }
            }
        }
    }

    #[test]
    fn lists_travel_in_pieces() {
        for piece in [8192, 512, 100, 1] {
            let found = exchange(1 << 20, piece, &Which::All);
            if piece == 1 {
                assert_eq!(found, Err(LoginError::Endless(1024)));
            } else {
                assert_eq!(found.map(|all| all.len()), Ok(40), "{piece}");
            }
        }
        let one = exchange(1 << 20, 512, &Which::Target(Name::new("iqn.2026-01.lab:t7").unwrap()));
        assert_eq!(one, Ok(vec![target("iqn.2026-01.lab:t7", &["127.0.0.1:3260,1"])]));
        assert_eq!(exchange(1 << 20, 512, &Which::Target(Name::new("iqn.2026-01.lab:x").unwrap())), Ok(vec![]));
        assert!(exchange(1000, 512, &Which::All).unwrap_err().to_string().contains("longer than 1000"));
        assert!(exchange(1 << 20, 512, &Which::This).is_err(), "which target is meant?");
    }

    #[test]
    fn other_texts_are_answered_but_not_served() {
        let own = Name::new("iqn.2026-01.lab:t1").unwrap();
        let mut server = TextServer::new(SessionType::Normal, Some(own.clone()), 8192, Ttt::new(3).unwrap());
        let mut ask = |itt: u32, ttt: Option<u32>, continues: bool, text: &str| {
            let request = TextRequest {
                immediate: false,
                is_final: !continues,
                continues,
                lun: Lun::ZERO,
                itt: Itt::new(itt).unwrap(),
                ttt: ttt.and_then(Ttt::new),
                sn: SN,
                data_len: text.len() as u32,
            };
            let name = own.clone();
            let mut list = |which: &Which| {
                assert_eq!(*which, Which::Target(name.clone()));
                vec![DiscoveredTarget { name: name.clone(), portals: vec![] }]
            };
            let answer = server.handle(&request, text.as_bytes(), TARGET_SN, &mut list)?;
            assert_eq!(answer.pdu.ttt.is_none(), answer.pdu.is_final);
            Ok::<_, LoginError>(String::from_utf8(answer.text).unwrap())
        };
        let table = [
            ("SendTargets=\0", "TargetName=iqn.2026-01.lab:t1\0"),
            ("SendTargets=iqn.2026-01.lab:t1\0", "TargetName=iqn.2026-01.lab:t1\0"),
            ("SendTargets=All\0", "SendTargets=Reject\0"),
            ("SendTargets=iqn.2026-01.lab:t2\0", "SendTargets=Reject\0"),
            ("X-a=1\0MaxRecvDataSegmentLength=512\0", "X-a=NotUnderstood\0MaxRecvDataSegmentLength=Reject\0"),
            ("", ""),
        ];
        for (text, want) in table {
            assert_eq!(ask(1, None, false, text).as_deref(), Ok(want), "{text}");
        }
        // a request in two pieces, and one that comes between
        assert_eq!(ask(1, None, true, "SendTar").as_deref(), Ok(""));
        assert_eq!(ask(1, Some(3), false, "gets=\0").as_deref(), Ok("TargetName=iqn.2026-01.lab:t1\0"));
        assert_eq!(ask(1, None, true, "SendTar").as_deref(), Ok(""));
        assert_eq!(ask(2, None, false, "SendTargets=\0").as_deref(), Ok("TargetName=iqn.2026-01.lab:t1\0"));
        assert!(ask(1, Some(3), false, "gets=\0").is_err(), "that exchange is over");
        assert!(ask(4, Some(9), false, "").is_err(), "nobody knows this tag");
        assert!(ask(5, None, false, "SendTargets\0").is_err());
    }
}
