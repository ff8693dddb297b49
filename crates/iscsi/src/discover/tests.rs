//! Discovery against portals in a thread of this process, made of the target's side of the login and text machines.

use super::*;
use crate::chap::{Challenge, ChapTarget, Credentials, GOOD_CHALLENGE_LEN, Secret};
use crate::login::{
    Admission, Name, Offer, SessionType, TargetConfig as LoginConfig, TargetLogin, TargetStep, TextServer,
};
use crate::pdu::{BHS_LEN, Framing, Header, Role, TargetSn, Ttt};
use crate::serial::StatSn;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

fn named(name: &str, portals: &[&str]) -> DiscoveredTarget {
    let portals = portals.iter().map(|p| PortalAddress::parse(p).unwrap()).collect();
    DiscoveredTarget { name: Name::new(name).unwrap(), portals }
}

#[test]
fn what_is_listed_can_be_dialled_and_is_bounded() {
    let asked = Portal { host: "192.0.2.7".into(), port: 3261 };
    let many: Vec<String> = (0..100).map(|n| format!("10.0.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let listed = vec![
        named("iqn.2026-01.org.example:none", &[]),
        named("iqn.2026-01.org.example:any", &["0.0.0.0:3260,1", "[::]:3260,1", "10.0.0.1:3260,2"]),
        named("iqn.2026-01.org.example:many", &many),
    ];
    let tidied = tidy(listed, &asked);
    let text = |t: &DiscoveredTarget| t.portals.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(&tidied[0]), ["192.0.2.7:3261"]);
    assert_eq!(text(&tidied[1]), ["192.0.2.7:3260,1", "10.0.0.1:3260,2"], "once");
    assert_eq!(tidied[2].portals.len(), MOST_PORTALS);
    let crowd = (0..2000).map(|n| named(&format!("iqn.2026-01.org.example:{n}"), &[])).collect();
    assert_eq!(tidy(crowd, &asked).len(), MOST_TARGETS);
}

/// What a portal does with whoever asks.
#[derive(Clone)]
enum Portals {
    Lists(Vec<DiscoveredTarget>),
    /// Lists these to whoever proves to be joe with this secret.
    ListsToJoe(&'static str, Vec<DiscoveredTarget>),
    SendsTo(PortalAddress),
    SaysNothing,
    /// Has nothing to list, and says all the time that it is there, for longer than any test of it takes.
    Chatters,
}

/// Starts a portal that takes so many connections, one after the other.
fn serve(kind: Portals, connections: usize) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        for _ in 0..connections {
            let (mut socket, _) = listener.accept().unwrap();
            match &kind {
                // Until the other side has had enough.
                Portals::SaysNothing => drop(socket.read_to_end(&mut Vec::new())),
                kind => talk(kind, &mut socket),
            }
        }
    });
    (port, thread)
}

fn receive(socket: &mut TcpStream, framing: &Framing) -> Option<(Pdu, Vec<u8>)> {
    let mut basic = [0; BHS_LEN];
    socket.read_exact(&mut basic).ok()?;
    let header = Header::parse(&basic, Role::Initiator, framing).unwrap();
    let mut rest = vec![0; header.head_len() - BHS_LEN + header.tail_len()];
    socket.read_exact(&mut rest).unwrap();
    let data = header.verified_data(&rest[header.head_len() - BHS_LEN..]).unwrap().to_vec();
    Some((Pdu::parse(&header, &basic).unwrap(), data))
}

fn send(socket: &mut TcpStream, pdu: Pdu, data: &[u8], framing: &Framing) {
    let mut octets = Vec::new();
    pdu.append(data, framing, &mut octets).unwrap();
    socket.write_all(&octets).unwrap();
}

fn talk(kind: &Portals, socket: &mut TcpStream) {
    let mut login = TargetLogin::new(LoginConfig { stat_sn: StatSn::new(1), command_window: 8 });
    let mut gate = |who: &crate::login::Identity<'_>| {
        assert_eq!((who.session, who.target), (SessionType::Discovery, None));
        if let Portals::SendsTo(to) = kind {
            return Err(LoginError::Moved { to: vec![to.clone()], permanent: false });
        }
        let chap = match kind {
            Portals::ListsToJoe(secret, _) => {
                let challenge = Challenge { identifier: 1, octets: vec![7; GOOD_CHALLENGE_LEN] };
                let joe = Credentials { name: "joe".into(), secret: Secret::new(*secret) };
                Some(ChapTarget::new(vec![joe], None, challenge).unwrap())
            }
            _ => None,
        };
        Ok(Admission { tsih: 1, portal_group_tag: 1, target_alias: None, chap, offer: Offer::default() })
    };
    let agreed = loop {
        let Some((Pdu::LoginRequest(request), data)) = receive(socket, &Framing::LOGIN) else { return };
        let (message, end) = match login.handle(&request, &data, &mut gate) {
            TargetStep::Send(message) => (message, None),
            TargetStep::Done(message, agreed) => (message, Some(Some(agreed))),
            TargetStep::Refuse(message, _) => (message, Some(None)),
        };
        send(socket, Pdu::LoginResponse(message.pdu), &message.text, &Framing::LOGIN);
        match end {
            None => {}
            Some(None) => return,
            Some(Some(agreed)) => break agreed,
        }
    };
    if let Portals::Chatters = kind {
        return chatter(socket, &agreed);
    }
    let (Portals::Lists(list) | Portals::ListsToJoe(_, list)) = kind else { return };
    let mut server = TextServer::new(SessionType::Discovery, None, 512, Ttt::new(9).unwrap());
    let mut stat_sn = agreed.stat_sn;
    while let Some((Pdu::TextRequest(request), data)) = receive(socket, &agreed.receive()) {
        let sn = TargetSn { stat_sn, exp_cmd_sn: request.sn.cmd_sn.next(), max_cmd_sn: request.sn.cmd_sn.next() };
        let answer = server.handle(&request, &data, sn, &mut |_| list.clone()).unwrap();
        stat_sn = stat_sn.next();
        send(socket, Pdu::TextResponse(answer.pdu), &answer.text, &agreed.transmit());
    }
}

/// Pings without end, faster than anybody reads them.
fn chatter(socket: &mut TcpStream, agreed: &crate::login::Negotiated) {
    let sn = TargetSn { stat_sn: agreed.stat_sn, exp_cmd_sn: agreed.cmd_sn, max_cmd_sn: agreed.cmd_sn };
    let nop = crate::pdu::NopIn { lun: crate::pdu::Lun::ZERO, itt: None, ttt: None, sn, data_len: 0 };
    let mut octets = Vec::new();
    for _ in 0..1000 {
        Pdu::NopIn(nop).append(&[], &agreed.transmit(), &mut octets).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until && socket.write_all(&octets).is_ok() {}
}

fn ask_at(port: u16, login: &str, options: &str) -> Result<Vec<DiscoveredTarget>, DiscoverError> {
    let uri = format!("iscsi://{login}127.0.0.1:{port}/iqn.2026-01.org.example:any/0?{options}");
    discover(&discovery_config(&uri.parse().unwrap()).unwrap())
}

#[test]
fn a_portal_lists_its_targets_in_pieces() {
    let list: Vec<_> = (0..30)
        .map(|n| named(&format!("iqn.2026-01.org.example:{n}"), &["[fe80::1]:3260,1", "10.0.0.2:3261,2"]))
        .collect();
    let (port, thread) = serve(Portals::Lists(list.clone()), 1);
    assert_eq!(ask_at(port, "", ""), Ok(list));
    thread.join().unwrap();
}

#[test]
fn a_portal_that_moved_is_followed_and_not_for_ever() {
    let list = vec![named("iqn.2026-01.org.example:a", &[])];
    let (to, end) = serve(Portals::Lists(list), 1);
    let there = PortalAddress { host: "127.0.0.1".into(), port: to, group: None };
    let (port, thread) = serve(Portals::SendsTo(there.clone()), 1);
    assert_eq!(ask_at(port, "", ""), Ok(vec![named("iqn.2026-01.org.example:a", &[&there.to_string()])]));
    thread.join().unwrap();
    end.join().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let to_itself = Portals::SendsTo(PortalAddress { host: "127.0.0.1".into(), port, group: None });
    let circle = std::thread::spawn(move || {
        (0..=MOST_HOPS).for_each(|_| talk(&to_itself, &mut listener.accept().unwrap().0));
    });
    assert!(ask_at(port, "", "").unwrap_err().to_string().contains("more than 4 times"));
    circle.join().unwrap();
}

#[test]
fn discovery_proves_who_asks_and_has_its_time() {
    let list = vec![named("iqn.2026-01.org.example:a", &["10.0.0.2:3260,1"])];
    let (port, thread) = serve(Portals::ListsToJoe("a-secret-of-joe", list.clone()), 3);
    assert_eq!(ask_at(port, "joe%a-secret-of-joe@", ""), Ok(list));
    let wrong = ask_at(port, "joe%another-secret1@", "").unwrap_err().to_string();
    assert!(wrong.contains("authentication failed") && !wrong.contains("secret1"), "{wrong}");
    assert!(ask_at(port, "", "").unwrap_err().to_string().contains("authentication failed"));
    thread.join().unwrap();
    let (port, thread) = serve(Portals::SaysNothing, 1);
    let late = ask_at(port, "", "connect_timeout_ms=20").unwrap_err().to_string();
    assert!(late.contains("the time was up"), "{late}");
    thread.join().unwrap();
}

/// What comes all the time is no reason to wait for ever for what does not come.
#[test]
fn a_portal_that_chatters_has_no_more_time_than_one_that_is_silent() {
    let (port, thread) = serve(Portals::Chatters, 1);
    let late = ask_at(port, "", "connect_timeout_ms=100").unwrap_err().to_string();
    assert!(late.contains("the time was up"), "{late}");
    thread.join().unwrap();
}
