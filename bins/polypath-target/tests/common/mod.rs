//! A host over a bare socket: as small as can be, blocking, strict about what it receives.
#![allow(dead_code, missing_docs, unreachable_pub)]

use polypath_nvme::fabrics::{CNTLID_DYNAMIC, ConnectData, ConnectResponse, cattr};
use polypath_nvme::nqn::{HostId, Nqn};
use polypath_nvme::properties::Register;
use polypath_nvme::{Cqe, SglDescriptor, Sqe, StatusField};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub const NQN: &str = "nqn.2024-01.org.example:disk";
pub const HOSTNQN: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";

pub fn config(uris: &[&str]) -> TargetConfig {
    TargetConfig {
        listeners: vec![ListenerConfig::new("127.0.0.1:0"), ListenerConfig::new("127.0.0.1:0")],
        subsystems: vec![SubsystemConfig::new(NQN, uris.iter().map(|u| NamespaceConfig::new(*u)).collect())],
        ..TargetConfig::default()
    }
}

pub fn start(uris: &[&str]) -> TargetHandle {
    Target::start(config(uris)).unwrap()
}

/// One PDU as it came.
#[derive(Debug)]
pub struct Pdu {
    pub kind: u8,
    pub flags: u8,
    pub header: Vec<u8>,
    pub data: Vec<u8>,
}

impl Pdu {
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.header[at], self.header[at + 1]])
    }
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.header[at..at + 4].try_into().unwrap())
    }
    pub fn cqe(&self) -> Cqe {
        assert_eq!(self.kind, 5, "a response capsule, not {self:?}");
        Cqe::parse(&self.header[8..24]).unwrap()
    }
}

pub fn crc(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

pub struct Host {
    pub stream: TcpStream,
    pub hdgst: bool,
    pub ddgst: bool,
    pub max_h2c: usize,
    pub next_cid: u16,
    pub cntlid: u16,
    pub hpda: u8,
    pub flow_control: bool,
}

impl Host {
    /// TCP and ICReq.
    pub fn dial(address: SocketAddr, hdgst: bool, ddgst: bool, hpda: u8) -> io::Result<Host> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut host =
            Host { stream, hdgst: false, ddgst: false, max_h2c: 0, next_cid: 1, cntlid: 0, hpda, flow_control: true };
        let mut ic = [0; 128];
        ic[2] = 128;
        ic[4] = 128;
        ic[10] = hpda;
        ic[11] = u8::from(hdgst) | u8::from(ddgst) << 1;
        host.stream.write_all(&ic)?;
        let response = host.receive()?;
        assert_eq!((response.kind, response.header.len()), (1, 128));
        host.hdgst = response.header[11] & 1 != 0;
        host.ddgst = response.header[11] & 2 != 0;
        host.max_h2c = response.u32(12) as usize;
        Ok(host)
    }

    /// An admin queue of an enabled controller.
    pub fn admin(address: SocketAddr, hdgst: bool, ddgst: bool, kato_ms: u32) -> Host {
        let mut host = Host::dial(address, hdgst, ddgst, 0).unwrap();
        host.cntlid = host.connect(NQN, 0, 31, CNTLID_DYNAMIC, 0, kato_ms).unwrap();
        host.enable();
        host
    }

    /// An I/O queue of the controller of `admin`.
    pub fn io(address: SocketAddr, admin: &Host, qid: u16, no_flow_control: bool) -> Host {
        let mut host = Host::dial(address, admin.hdgst, admin.ddgst, admin.hpda).unwrap();
        let attributes = if no_flow_control { cattr::DISABLE_SQ_FLOW_CONTROL } else { 0 };
        host.cntlid = host.connect(NQN, qid, 127, admin.cntlid, attributes, 0).unwrap();
        host.flow_control = !no_flow_control;
        host
    }

    pub fn connect(
        &mut self,
        nqn: &str,
        qid: u16,
        sqsize: u16,
        cntlid: u16,
        attributes: u8,
        kato_ms: u32,
    ) -> Result<u16, ConnectResponse> {
        let data = ConnectData {
            host_id: HostId::from_bytes([7; 16]),
            cntlid,
            subnqn: Nqn::new(nqn).unwrap(),
            hostnqn: Nqn::new(HOSTNQN).unwrap(),
        }
        .to_bytes();
        let cid = self.cid();
        let sqe = Sqe::connect(cid, qid, sqsize, attributes, kato_ms)
            .with_sgl(SglDescriptor::InCapsule { offset: 0, length: 1024 });
        self.command(&sqe, &data).unwrap();
        let cqe = self.receive().unwrap().cqe();
        assert_eq!(cqe.cid, cid);
        match ConnectResponse::from_cqe(&cqe) {
            ConnectResponse::Connected { cntlid, .. } => Ok(cntlid),
            refused => Err(refused),
        }
    }

    pub fn enable(&mut self) {
        let cid = self.cid();
        let cqe = self.run(Sqe::property_set(cid, Register::Cc, 0x0046_0001).with_sgl(SglDescriptor::NO_DATA), &[]).0;
        assert!(cqe.status.is_success(), "{cqe:?}");
        assert_eq!(self.property(Register::Csts) & 1, 1);
    }

    pub fn property(&mut self, register: Register) -> u64 {
        let cid = self.cid();
        let cqe = self.run(Sqe::property_get(cid, register).with_sgl(SglDescriptor::NO_DATA), &[]).0;
        assert!(cqe.status.is_success(), "{cqe:?}");
        cqe.result
    }

    pub fn cid(&mut self) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(1);
        self.next_cid
    }

    /// Sends a command capsule with `data` inside.
    pub fn command(&mut self, sqe: &Sqe, data: &[u8]) -> io::Result<()> {
        let mut pdu = vec![4, 0, 72, 0, 0, 0, 0, 0];
        pdu.extend_from_slice(sqe.as_bytes());
        self.pdu(pdu, data)
    }

    /// Sends a PDU: completes its common header, digests and data.
    pub fn pdu(&mut self, mut pdu: Vec<u8>, data: &[u8]) -> io::Result<()> {
        let head = pdu.len() + if self.hdgst { 4 } else { 0 };
        let mut len = head;
        if self.hdgst {
            pdu[1] |= 1;
        }
        if !data.is_empty() {
            pdu[3] = head as u8;
            len += data.len();
            if self.ddgst {
                pdu[1] |= 2;
                len += 4;
            }
        }
        pdu[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        if self.hdgst {
            let digest = crc(&pdu);
            pdu.extend_from_slice(&digest.to_le_bytes());
        }
        pdu.extend_from_slice(data);
        if self.ddgst && !data.is_empty() {
            pdu.extend_from_slice(&crc(data).to_le_bytes());
        }
        self.stream.write_all(&pdu)
    }

    /// The next PDU; digests are checked.
    pub fn receive(&mut self) -> io::Result<Pdu> {
        let mut header = vec![0; 8];
        self.stream.read_exact(&mut header)?;
        let (kind, flags, hlen, pdo) = (header[0], header[1], usize::from(header[2]), usize::from(header[3]));
        let len = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
        header.resize(hlen, 0);
        self.stream.read_exact(&mut header[8..])?;
        let mut rest = vec![0; len - hlen];
        self.stream.read_exact(&mut rest)?;
        let digests = kind != 1 && kind != 3;
        assert_eq!(flags & 1 != 0, self.hdgst && digests, "HDGSTF of type {kind}");
        if flags & 1 != 0 && crc(&header).to_le_bytes() != rest[..4] {
            return Err(io::Error::other("header digest"));
        }
        let mut data = Vec::new();
        if kind == 3 {
            data = rest;
        } else if pdo != 0 {
            assert!(pdo >= hlen + if flags & 1 != 0 { 4 } else { 0 });
            assert_eq!(pdo % ((usize::from(self.hpda) + 1) * 4), 0, "alignment that we asked for");
            let tail = if flags & 2 != 0 { 4 } else { 0 };
            data = rest[pdo - hlen..rest.len() - tail].to_vec();
            assert_eq!(flags & 2 != 0, self.ddgst);
            if tail > 0 && crc(&data).to_le_bytes() != rest[rest.len() - 4..] {
                return Err(io::Error::other("data digest"));
            }
        }
        Ok(Pdu { kind, flags, header, data })
    }

    /// Runs one command to its end: in-capsule data or R2T as the descriptor says, and all data that comes back.
    pub fn run(&mut self, sqe: Sqe, data: &[u8]) -> (Cqe, Vec<u8>) {
        let in_capsule = matches!(sqe.sgl(), SglDescriptor::InCapsule { .. });
        self.command(&sqe, if in_capsule { data } else { &[] }).unwrap();
        let mut back = Vec::new();
        loop {
            let pdu = self.receive().unwrap();
            match pdu.kind {
                5 => {
                    let cqe = pdu.cqe();
                    assert_eq!(cqe.cid, sqe.cid());
                    return (cqe, back);
                }
                7 => {
                    assert_eq!(
                        (pdu.u16(8), pdu.u32(12) as usize, pdu.u32(16) as usize),
                        (sqe.cid(), back.len(), pdu.data.len())
                    );
                    back.extend_from_slice(&pdu.data);
                    if pdu.flags & 8 != 0 {
                        assert!(!self.flow_control, "SUCCESS only without flow control");
                        return (Cqe::new(sqe.cid(), StatusField::SUCCESS), back);
                    }
                }
                9 => self.answer_r2t(&pdu, data),
                other => panic!("PDU type {other}: {pdu:?}"),
            }
        }
    }

    /// Sends what an R2T asks for, in PDUs of MAXH2CDATA.
    pub fn answer_r2t(&mut self, r2t: &Pdu, data: &[u8]) {
        let (from, len) = (r2t.u32(12) as usize, r2t.u32(16) as usize);
        let (mut at, end) = (from, from + len);
        while at < end {
            let n = (end - at).min(self.max_h2c);
            let mut pdu = vec![0; 24];
            pdu[0] = 6;
            pdu[1] = if at + n == end { 4 } else { 0 };
            pdu[2] = 24;
            pdu[8..12].copy_from_slice(&r2t.header[8..12]);
            pdu[12..16].copy_from_slice(&(at as u32).to_le_bytes());
            pdu[16..20].copy_from_slice(&(n as u32).to_le_bytes());
            self.pdu(pdu, &data[at..at + n]).unwrap();
            at += n;
        }
    }

    pub fn read(&mut self, nsid: u32, lba: u64, blocks: u16, bytes: usize) -> Result<Vec<u8>, StatusField> {
        let cid = self.cid();
        let sqe =
            Sqe::read(cid, nsid, lba, blocks - 1, false).with_sgl(SglDescriptor::Transport { length: bytes as u32 });
        let (cqe, data) = self.run(sqe, &[]);
        if cqe.status.is_success() { Ok(data) } else { Err(cqe.status) }
    }

    pub fn write_sqe(&mut self, nsid: u32, lba: u64, blocks: u16, bytes: usize, in_capsule: bool) -> Sqe {
        let length = bytes as u32;
        let sgl = if in_capsule {
            SglDescriptor::InCapsule { offset: 0, length }
        } else {
            SglDescriptor::Transport { length }
        };
        Sqe::write(self.cid(), nsid, lba, blocks - 1, false).with_sgl(sgl)
    }

    pub fn write(&mut self, nsid: u32, lba: u64, blocks: u16, data: &[u8], in_capsule: bool) -> StatusField {
        let sqe = self.write_sqe(nsid, lba, blocks, data.len(), in_capsule);
        self.run(sqe, data).0.status
    }

    pub fn identify(&mut self, cns: u8, nsid: u32) -> Result<Vec<u8>, StatusField> {
        let cid = self.cid();
        let sqe = Sqe::identify(cid, cns, nsid, 0).with_sgl(SglDescriptor::Transport { length: 4096 });
        let (cqe, data) = self.run(sqe, &[]);
        if cqe.status.is_success() { Ok(data) } else { Err(cqe.status) }
    }

    pub fn log(&mut self, lid: u8, rae: bool, offset: u64, length: u32) -> Result<Vec<u8>, StatusField> {
        let cid = self.cid();
        let sqe = Sqe::get_log_page(cid, 0xffff_ffff, lid, 0, rae, offset, length)
            .with_sgl(SglDescriptor::Transport { length });
        let (cqe, data) = self.run(sqe, &[]);
        if cqe.status.is_success() { Ok(data) } else { Err(cqe.status) }
    }

    /// `true` when the target ends the connection within the read timeout, and not with a response.
    pub fn is_closed(&mut self) -> bool {
        let mut sink = [0; 4096];
        loop {
            match self.stream.read(&mut sink) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
            }
        }
    }

    /// Nothing comes for `ms`, and the connection stays.
    pub fn is_silent(&mut self, ms: u64) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(ms))).unwrap();
        let result = self.stream.read(&mut [0; 1]);
        self.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        matches!(result, Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}

/// Waits until `what` is so, at most 5 seconds.
pub fn wait_for(what: &str, mut check: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while !check() {
        assert!(std::time::Instant::now() < end, "timed out waiting: {what}");
        std::thread::yield_now();
    }
}
