//! Logs in to an iSCSI target, says what was agreed on, and hangs up: the login machine over a blocking socket.
//!
//! ```sh
//! cargo run -p polypath-iscsi --example login -- HOST:PORT [TARGET [USER SECRET [TARGET_USER TARGET_SECRET]]]
//! ```
//!
//! Without TARGET it asks for the list of targets. Its CHAP challenge is always the same: it is for trying things out only.
#![forbid(unsafe_code)]

use polypath_iscsi::chap::{Challenge, ChapInitiator, Credentials, GOOD_CHALLENGE_LEN, Secret};
use polypath_iscsi::login::{
    InitiatorConfig, InitiatorLogin, InitiatorStep, Name, Negotiated, Offer, SendTargets, SendTargetsStep, Which,
};
use polypath_iscsi::pdu::{BHS_LEN, Framing, Header, InitiatorSn, Isid, Itt, Pdu, Role};
use polypath_iscsi::serial::CmdSn;
use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address =
        arguments.first().ok_or("usage: login HOST:PORT [TARGET [USER SECRET [TARGET_USER TARGET_SECRET]]]")?;
    let mut socket = TcpStream::connect(address)?;
    let credentials = |at: usize| match (arguments.get(at), arguments.get(at + 1)) {
        (Some(name), Some(secret)) => Some(Credentials { name: name.clone(), secret: Secret::new(secret.as_bytes()) }),
        _ => None,
    };
    let challenge = || Challenge { identifier: 1, octets: (0..GOOD_CHALLENGE_LEN as u8).collect() };
    let chap = match (credentials(2), credentials(4)) {
        (Some(user), Some(target)) => Some(ChapInitiator::mutual(user, target, challenge())?),
        (Some(user), None) => Some(ChapInitiator::one_way(user)?),
        _ => None,
    };
    chap.iter().flat_map(ChapInitiator::notes).for_each(|note| eprintln!("note: {note}"));
    let config = InitiatorConfig {
        initiator_name: Name::new("iqn.2026-01.org.polypath:example")?,
        initiator_alias: None,
        target_name: arguments.get(1).map(|name| Name::new(name)).transpose()?,
        isid: Isid::random(0x0050_4c59, 0),
        cid: 0,
        itt: Itt::new(1).ok_or("a tag")?,
        cmd_sn: CmdSn::new(1),
        offer: Offer::default(),
        chap,
    };
    let agreed = log_in(&mut socket, config)?;
    println!("{agreed:#?}");
    if agreed.target_name.is_none() {
        list(&mut socket, &agreed)?;
    }
    Ok(())
}

fn log_in(socket: &mut TcpStream, config: InitiatorConfig) -> Result<Negotiated> {
    let mut login = InitiatorLogin::new(config);
    let mut next = login.start();
    loop {
        send(socket, Pdu::LoginRequest(next.pdu), &next.text, &Framing::LOGIN)?;
        let (Pdu::LoginResponse(response), data) = receive(socket, &Framing::LOGIN)? else {
            return Err("something else than a Login Response".into());
        };
        match login.handle(&response, &data)? {
            InitiatorStep::Send(message) => next = message,
            InitiatorStep::Done(agreed) => return Ok(*agreed),
        }
    }
}

fn list(socket: &mut TcpStream, agreed: &Negotiated) -> Result<()> {
    let mut exchange = SendTargets::new(Itt::new(2).ok_or("a tag")?, 1 << 20);
    let mut sn = InitiatorSn { cmd_sn: agreed.cmd_sn, exp_stat_sn: agreed.stat_sn };
    let mut next = exchange.start(&Which::All, sn);
    loop {
        send(socket, Pdu::TextRequest(next.pdu), &next.text, &agreed.transmit())?;
        let (Pdu::TextResponse(response), data) = receive(socket, &agreed.receive())? else {
            return Err("something else than a Text Response".into());
        };
        sn = InitiatorSn { cmd_sn: sn.cmd_sn.next(), exp_stat_sn: response.sn.stat_sn.next() };
        match exchange.handle(&response, &data, sn)? {
            SendTargetsStep::Send(message) => next = message,
            SendTargetsStep::Done(targets) => {
                for target in targets {
                    println!(
                        "{} at {:?}",
                        target.name,
                        target.portals.iter().map(|p| p.to_string()).collect::<Vec<_>>()
                    );
                }
                return Ok(());
            }
        }
    }
}

fn send(socket: &mut TcpStream, pdu: Pdu, data: &[u8], framing: &Framing) -> Result<()> {
    let mut octets = Vec::new();
    pdu.append(data, framing, &mut octets)?;
    Ok(socket.write_all(&octets)?)
}

fn receive(socket: &mut TcpStream, framing: &Framing) -> Result<(Pdu, Vec<u8>)> {
    let mut b = [0; BHS_LEN];
    socket.read_exact(&mut b)?;
    let header = Header::parse(&b, Role::Target, framing)?;
    let mut head = b.to_vec();
    head.resize(header.head_len(), 0);
    socket.read_exact(&mut head[BHS_LEN..])?;
    header.verify_header_digest(&head)?;
    let mut tail = vec![0; header.tail_len()];
    socket.read_exact(&mut tail)?;
    Ok((Pdu::parse(&header, &b)?, header.verified_data(&tail)?.to_vec()))
}
