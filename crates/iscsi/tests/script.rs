//! A scripted target in memory, behind the traits of `polypath-net`: octets without sockets, and no clock at all.
//!
//! It takes logins by itself and keeps every other PDU for the test, which answers in its own order and with its own words, drops
//! connections, silences them, and changes who it is.

use polypath_block::{Host, MakePoller, Time, Waits};
use polypath_iscsi::login::{Admission, Offer, TargetConfig, TargetLogin, TargetStep};
use polypath_iscsi::pdu::{
    BHS_LEN, CommandResponse, DataIn, DataInStatus, Framing, Header, Isid, Itt, LoginRequest, Lun, MAX_HEAD, Opcode,
    Pdu, Residual, Role, ScsiCommand, ScsiResponse, TargetSn, pad_len,
};
use polypath_iscsi::serial::{CmdSn, StatSn};
use polypath_net::{Counters, Dialer, Gather, Received, Scatter, Transport};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// One PDU of the initiator.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) header: Header,
    pub(crate) basic: [u8; BHS_LEN],
}

impl Heard {
    pub(crate) fn command(&self) -> ScsiCommand {
        ScsiCommand::parse(&self.header, &self.basic).expect("a command")
    }

    pub(crate) fn itt(&self) -> Itt {
        let [a, b, c, d] = [16, 17, 18, 19].map(|at| self.basic[at]);
        Itt::new(u32::from_be_bytes([a, b, c, d])).expect("a tag")
    }
}

struct Connection {
    login: Option<TargetLogin>,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    stat_sn: StatSn,
    cmd_sn: CmdSn,
    /// The other end has closed it, in order or not.
    closed: bool,
    /// We have: reset, or in order.
    ended: Option<io::ErrorKind>,
}

pub(crate) struct Script {
    connections: Vec<Connection>,
    /// PDUs that the test has not taken yet.
    pub(crate) heard: Vec<Heard>,
    pub(crate) logins: Vec<Isid>,
    pub(crate) dials: Vec<SocketAddr>,
    pub(crate) portal_group: u16,
    /// Connections are refused.
    pub(crate) away: bool,
    /// Connections to this address are.
    pub(crate) away_at: Option<SocketAddr>,
    /// Connections are made, and nothing is read.
    pub(crate) deaf: bool,
    /// It takes no more commands than it has promised to take by now (MaxCmdSN).
    pub(crate) shut: bool,
    /// Logins are answered with this, once.
    pub(crate) redirect: Option<String>,
    pub(crate) now: Time,
}

#[derive(Clone)]
pub(crate) struct Target(Arc<Mutex<Script>>);

impl Target {
    pub(crate) fn new() -> Target {
        Target(Arc::new(Mutex::new(Script {
            connections: Vec::new(),
            heard: Vec::new(),
            logins: Vec::new(),
            dials: Vec::new(),
            portal_group: 1,
            away: false,
            away_at: None,
            deaf: false,
            shut: false,
            redirect: None,
            now: Time::from_millis(1_000_000),
        })))
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().expect("no test panics while it holds it")
    }

    /// The PDUs that have come since the last time.
    pub(crate) fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut self.script().heard)
    }

    /// It is not deaf any more, and takes what has come meanwhile.
    pub(crate) fn hear_again(&self) {
        let mut script = self.script();
        script.deaf = false;
        let newest = script.connections.len() - 1;
        script.take_pdus(newest);
    }

    /// Ends the newest connection.
    pub(crate) fn reset(&self) {
        if let Some(connection) = self.script().connections.last_mut() {
            connection.ended = Some(io::ErrorKind::ConnectionReset);
        }
    }

    /// Is the newest connection in the full feature phase, and open at both ends?
    pub(crate) fn is_connected(&self) -> bool {
        let script = self.script();
        script.connections.last().is_some_and(|c| !c.closed && c.ended.is_none() && c.login.is_none())
    }

    /// Says something over the newest connection. `counts`: it carries a status, and uses up a StatSN.
    pub(crate) fn say(&self, counts: bool, data: &[u8], encode: impl FnOnce(TargetSn, &mut [u8]) -> usize) {
        let mut script = self.script();
        let window = if script.shut { 0 } else { 32 };
        let connection = script.connections.last_mut().expect("a connection");
        let (stat_sn, exp_cmd_sn) = (connection.stat_sn, connection.cmd_sn);
        if counts {
            connection.stat_sn = stat_sn.next();
        }
        let mut octets = vec![0; MAX_HEAD];
        let len = encode(TargetSn { stat_sn, exp_cmd_sn, max_cmd_sn: exp_cmd_sn.plus(window).previous() }, &mut octets);
        octets.truncate(len);
        octets.extend_from_slice(data);
        octets.extend(std::iter::repeat_n(0, pad_len(data.len() as u32)));
        connection.outbox.extend_from_slice(&octets);
    }

    /// Answers a command: GOOD, with zeroes for what it reads.
    pub(crate) fn answer(&self, heard: &Heard) {
        let command = heard.command();
        let (itt, data) = (command.itt, vec![0; command.expected_len as usize]);
        if command.read {
            let status = Some(DataInStatus { status: 0, residual: Residual::None });
            let data_len = command.expected_len;
            self.say(true, &data, |sn, out| {
                let pdu = DataIn {
                    is_final: true,
                    acknowledge: false,
                    status,
                    lun: Lun::ZERO,
                    itt,
                    ttt: None,
                    sn,
                    data_sn: 0,
                    buffer_offset: 0,
                    data_len,
                };
                pdu.encode(&any(), out).expect("room")
            });
            return;
        }
        self.say(true, &[], |sn, out| {
            let pdu = ScsiResponse {
                itt,
                response: CommandResponse::Completed { status: 0 },
                residual: Residual::None,
                read_residual: Residual::None,
                snack_tag: 0,
                exp_data_sn: 0,
                sn,
                data_len: 0,
            };
            pdu.encode(&any(), out).expect("room")
        });
    }
}

pub(crate) fn any() -> Framing {
    Framing { max_data_len: 1 << 20, ..Framing::LOGIN }
}

impl Script {
    fn take_pdus(&mut self, at: usize) {
        loop {
            let framing = any();
            let Some(basic) = self.connections[at].inbox.first_chunk::<BHS_LEN>().copied() else { return };
            let header = Header::parse(&basic, Role::Initiator, &framing).expect("our own PDUs are right");
            let all = header.head_len() + header.tail_len();
            if self.connections[at].inbox.len() < all {
                return;
            }
            let pdu: Vec<u8> = self.connections[at].inbox.drain(..all).collect();
            let data = header.verified_data(&pdu[header.head_len()..]).expect("no digests").to_vec();
            if header.opcode == Opcode::LoginRequest {
                let request = LoginRequest::parse(&header, &basic).expect("a login request");
                self.log_in(at, &request, &data);
                continue;
            }
            if header.opcode == Opcode::ScsiCommand && !header.immediate {
                let connection = &mut self.connections[at];
                connection.cmd_sn = connection.cmd_sn.next();
            }
            self.heard.push(Heard { header, basic });
        }
    }

    fn log_in(&mut self, at: usize, request: &LoginRequest, data: &[u8]) {
        let (portal_group, redirect) = (self.portal_group, self.redirect.take());
        let Some(mut login) = self.connections[at].login.take() else { panic!("a login in the full-feature phase") };
        if let Some(address) = redirect {
            let to = vec![polypath_iscsi::login::PortalAddress::parse(&address).expect("an address")];
            let moved = polypath_iscsi::login::LoginError::Moved { to, permanent: false };
            let TargetStep::Refuse(message, _) = login.refuse(request, moved) else { panic!("it refuses") };
            self.put(at, &message.pdu, &message.text);
            return;
        }
        let mut gate = |_: &polypath_iscsi::login::Identity<'_>| {
            Ok(Admission {
                tsih: 7,
                portal_group_tag: portal_group,
                target_alias: None,
                chap: None,
                offer: Offer::default(),
            })
        };
        match login.handle(request, data, &mut gate) {
            TargetStep::Send(message) => {
                self.put(at, &message.pdu, &message.text);
                self.connections[at].login = Some(login);
            }
            TargetStep::Done(message, negotiated) => {
                self.put(at, &message.pdu, &message.text);
                self.logins.push(negotiated.isid);
                let connection = &mut self.connections[at];
                (connection.stat_sn, connection.cmd_sn) = (negotiated.stat_sn, negotiated.cmd_sn);
            }
            TargetStep::Refuse(_, error) => panic!("{error}"),
        }
    }

    fn put(&mut self, at: usize, pdu: &polypath_iscsi::pdu::LoginResponse, text: &[u8]) {
        let mut head = [0; BHS_LEN];
        pdu.encode(&Framing::LOGIN, &mut head).expect("room");
        let outbox = &mut self.connections[at].outbox;
        outbox.extend_from_slice(&head);
        outbox.extend_from_slice(text);
        outbox.extend(std::iter::repeat_n(0, pad_len(text.len() as u32)));
    }
}

impl Dialer for Target {
    fn dial(&self, address: SocketAddr) -> io::Result<Box<dyn Transport>> {
        let mut script = self.script();
        script.dials.push(address);
        if script.away || script.away_at == Some(address) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        script.connections.push(Connection {
            login: Some(TargetLogin::new(TargetConfig { stat_sn: StatSn::new(9), command_window: 32 })),
            inbox: Vec::new(),
            outbox: Vec::new(),
            stat_sn: StatSn::new(0),
            cmd_sn: CmdSn::new(0),
            closed: false,
            ended: None,
        });
        Ok(Box::new(Stream { target: self.clone(), at: script.connections.len() - 1 }))
    }
}

struct Stream {
    target: Target,
    at: usize,
}

impl Transport for Stream {
    fn poll_connected(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn receive(&mut self, into: &mut Scatter<'_>) -> io::Result<Received> {
        let mut script = self.target.script();
        let connection = &mut script.connections[self.at];
        if let Some(kind) = connection.ended {
            return Err(kind.into());
        }
        let n = into.place(&connection.outbox);
        connection.outbox.drain(..n);
        Ok(if n == 0 { Received::Nothing } else { Received::Bytes(n) })
    }

    fn send(&mut self, from: &Gather<'_>) -> io::Result<usize> {
        let mut script = self.target.script();
        if let Some(kind) = script.connections[self.at].ended {
            return Err(kind.into());
        }
        let n = from.copy_to(&mut script.connections[self.at].inbox, usize::MAX);
        if !script.deaf {
            script.take_pdus(self.at);
        }
        Ok(n)
    }

    fn arm(&self, _: &mut Waits, _: bool) {}

    fn unacknowledged(&self) -> Option<Duration> {
        None
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn abort(&mut self) {
        self.target.script().connections[self.at].closed = true;
    }
}

impl Host for Target {
    fn spawn(&self, _: MakePoller) {
        // The control side is not what these tests are about.
    }
    fn wake(&self) {}
    fn reactor(&self) -> u16 {
        0
    }
    fn now(&self) -> Time {
        self.script().now
    }
}

/// Any PDU of the initiator, for assertions.
pub(crate) fn read(heard: &Heard) -> Pdu {
    Pdu::parse(&heard.header, &heard.basic).expect("our own PDUs are right")
}
