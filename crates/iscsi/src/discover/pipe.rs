//! Whole PDUs, one at a time, over a byte stream that is polled until a deadline.

use crate::login::{InitiatorConfig, InitiatorLogin, InitiatorStep, Negotiated};
use crate::pdu::{BHS_LEN, Framing, Header, Pdu, Role};
use polypath_net::{Dialer, IoList, Received, Transport};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Fault;

/// Octets received at a time.
const PIECE: usize = 16 << 10;
/// Pause between two looks at the socket.
const PAUSE: Duration = Duration::from_micros(200);

/// A connection to a portal and what has come that was not read yet.
pub(super) struct Pipe {
    stream: Box<dyn Transport>,
    inbox: Vec<u8>,
    list: IoList,
    piece: Box<[u8]>,
    until: Instant,
}

impl Pipe {
    /// Connects; all that follows must be over at `until`, too.
    pub(super) fn dial(dialer: &dyn Dialer, address: SocketAddr, until: Instant) -> Result<Pipe, String> {
        let stream = dialer.dial(address).map_err(|e| format!("connecting: {e}"))?;
        let piece = vec![0; PIECE].into_boxed_slice();
        let mut pipe = Pipe { stream, inbox: Vec::new(), list: IoList::new(), piece, until };
        while !pipe.stream.poll_connected().map_err(|e| format!("connecting: {e}"))? {
            pipe.pause("connecting")?;
        }
        Ok(pipe)
    }

    /// The login phase.
    pub(super) fn log_in(&mut self, config: InitiatorConfig) -> Result<Negotiated, Fault> {
        let mut login = InitiatorLogin::new(config);
        let mut next = login.start();
        loop {
            self.send(Pdu::LoginRequest(next.pdu), &next.text, &Framing::LOGIN)?;
            let (Pdu::LoginResponse(response), data) = self.receive(&Framing::LOGIN)? else {
                return Err("it sent something else in answer to a login request".to_owned().into());
            };
            match login.handle(&response, &data)? {
                InitiatorStep::Send(message) => next = message,
                InitiatorStep::Done(agreed) => return Ok(*agreed),
            }
        }
    }

    /// Sends one PDU, all of it.
    pub(super) fn send(&mut self, pdu: Pdu, data: &[u8], framing: &Framing) -> Result<(), String> {
        let mut octets = Vec::new();
        pdu.append(data, framing, &mut octets).map_err(|e| e.to_string())?;
        let mut rest = &octets[..];
        while !rest.is_empty() {
            let mut list = self.list.gather();
            list.bytes(rest);
            let sent = self.stream.send(&list).map_err(|e| format!("sending: {e}"))?;
            rest = rest.get(sent..).unwrap_or(&[]);
            if !rest.is_empty() {
                self.pause("sending")?;
            }
        }
        Ok(())
    }

    /// Receives one PDU and its data.
    pub(super) fn receive(&mut self, framing: &Framing) -> Result<(Pdu, Vec<u8>), String> {
        self.fill(BHS_LEN)?;
        let basic = *self.inbox.first_chunk::<BHS_LEN>().ok_or("no header")?;
        let header = Header::parse(&basic, Role::Target, framing).map_err(|e| e.to_string())?;
        let (head, all) = (header.head_len(), header.head_len() + header.tail_len());
        self.fill(all)?;
        let octets: Vec<u8> = self.inbox.drain(..all).collect();
        let (head, tail) = octets.split_at_checked(head).ok_or("no header")?;
        header.verify_header_digest(head).map_err(|e| e.to_string())?;
        let data = header.verified_data(tail).map_err(|e| e.to_string())?.to_vec();
        Ok((Pdu::parse(&header, &basic).map_err(|e| e.to_string())?, data))
    }

    /// Waits until `len` octets are there.
    fn fill(&mut self, len: usize) -> Result<(), String> {
        loop {
            // Also where something is there already: one that speaks all the time has no more of it than one that is silent.
            self.in_time("waiting for an answer")?;
            if self.inbox.len() >= len {
                return Ok(());
            }
            let mut into = self.list.scatter();
            into.bytes(&mut self.piece);
            match self.stream.receive(&mut into).map_err(|e| format!("receiving: {e}"))? {
                Received::Bytes(n) => self.inbox.extend_from_slice(self.piece.get(..n).unwrap_or(&[])),
                Received::Nothing => self.pause("waiting for an answer")?,
                Received::End => return Err("it has closed the connection".into()),
            }
        }
    }

    fn pause(&self, what: &str) -> Result<(), String> {
        self.in_time(what)?;
        std::thread::sleep(PAUSE);
        Ok(())
    }

    fn in_time(&self, what: &str) -> Result<(), String> {
        match Instant::now() < self.until {
            true => Ok(()),
            false => Err(format!("the time was up while {what}")),
        }
    }
}
