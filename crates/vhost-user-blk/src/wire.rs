//! Octets of the vhost-user protocol: headers, the requests we serve, the replies we give.
//!
//! vhost-user speaks the host's byte order (QEMU `docs/interop/vhost-user.rst`, "Message format"). Everything that arrives is
//! checked here once: size, number of descriptors, reserved bits; the rest of the crate sees only [`Request`].

use crate::stranger::Stranger;

/// Bytes of a message header.
pub(crate) const HEADER_LEN: usize = 12;
/// Largest payload we take, in bytes; the largest legal one (a memory table of 32 regions) has 1,032.
pub(crate) const MAX_PAYLOAD: usize = 4096;
/// Most descriptors in one message.
pub(crate) const MAX_FDS: usize = 32;
/// Most bytes of configuration space.
pub(crate) const MAX_CONFIG: u32 = 256;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0b11;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Protocol feature bits (`VHOST_USER_PROTOCOL_F_*`).
pub(crate) mod protocol_feature {
    /// Several queues; GET_QUEUE_NUM.
    pub(crate) const MQ: u64 = 1 << 0;
    /// Acknowledgements on demand.
    pub(crate) const REPLY_ACK: u64 = 1 << 3;
    /// SET_LOG_BASE with a file.
    pub(crate) const LOG_SHMFD: u64 = 1 << 1;
    /// The channel from back-end to front-end.
    pub(crate) const BACKEND_REQ: u64 = 1 << 5;
    /// GET_CONFIG, SET_CONFIG.
    pub(crate) const CONFIG: u64 = 1 << 9;
    /// GET_INFLIGHT_FD, SET_INFLIGHT_FD.
    pub(crate) const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// RESET_DEVICE.
    pub(crate) const RESET_DEVICE: u64 = 1 << 13;
    /// ADD_MEM_REG, REM_MEM_REG, GET_MAX_MEM_SLOTS.
    pub(crate) const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// All that we offer.
    pub(crate) const OFFERED: u64 =
        MQ | LOG_SHMFD | REPLY_ACK | BACKEND_REQ | CONFIG | INFLIGHT_SHMFD | RESET_DEVICE | CONFIGURE_MEM_SLOTS;
}

/// Request numbers of the front-end.
pub(crate) mod id {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const RESET_OWNER: u32 = 4;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_LOG_BASE: u32 = 6;
    pub(crate) const SET_LOG_FD: u32 = 7;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const SET_CONFIG: u32 = 25;
    pub(crate) const GET_INFLIGHT_FD: u32 = 31;
    pub(crate) const SET_INFLIGHT_FD: u32 = 32;
    pub(crate) const RESET_DEVICE: u32 = 34;
    pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(crate) const ADD_MEM_REG: u32 = 37;
    pub(crate) const REM_MEM_REG: u32 = 38;
    /// Back-end to front-end: the configuration space has changed.
    pub(crate) const BACKEND_CONFIG_CHANGE: u32 = 2;
}

/// Why octets are no message of ours. It ends the connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("message {request} has protocol version {version}, expected 1")]
    Version { request: u32, version: u32 },
    #[error("message {request} announces {size} bytes of payload, at most {MAX_PAYLOAD} are taken")]
    TooLarge { request: u32, size: u32 },
    #[error("message {request} is a reply, but nothing was asked")]
    UnexpectedReply { request: u32 },
    #[error("message {request} is unknown or was not negotiated")]
    Unknown { request: u32 },
    #[error("message {request} has {got} bytes of payload, expected {expected}")]
    Size { request: u32, got: usize, expected: usize },
    #[error("message {request} carries {got} file descriptors, expected {expected}")]
    Fds { request: u32, got: usize, expected: usize },
    #[error("message {request}: {what} is {value}, expected {expected}")]
    Value { request: u32, what: &'static str, value: u64, expected: &'static str },
}

/// A parsed header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) request: u32,
    pub(crate) need_reply: bool,
    pub(crate) size: u32,
}

impl Header {
    /// Checks version, direction and size.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Header, WireError> {
        let (request, flags, size) = (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8));
        if flags & VERSION_MASK != VERSION {
            return Err(WireError::Version { request, version: flags & VERSION_MASK });
        }
        if flags & FLAG_REPLY != 0 {
            return Err(WireError::UnexpectedReply { request });
        }
        if size as usize > MAX_PAYLOAD {
            return Err(WireError::TooLarge { request, size });
        }
        Ok(Header { request, need_reply: flags & FLAG_NEED_REPLY != 0, size })
    }
}

/// The octets of a reply to `request`.
pub(crate) fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    message(request, VERSION | FLAG_REPLY, payload)
}

/// The octets of a request from us to the front-end, for which we want no reply.
pub(crate) fn backend_request(request: u32) -> Vec<u8> {
    message(request, VERSION, &[])
}

fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + payload.len());
    for word in [request, flags, payload.len() as u32] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    out.extend_from_slice(payload);
    out
}

/// One region of guest memory, as the front-end describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RegionDesc {
    pub(crate) guest_addr: u64,
    pub(crate) len: u64,
    pub(crate) user_addr: u64,
    pub(crate) mmap_offset: u64,
}

/// Where a vring lies, in addresses of the front-end's process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VringAddr {
    pub(crate) desc: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
}

/// The area in which requests in flight are recorded (`VhostUserInflight`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct InflightDesc {
    pub(crate) len: u64,
    pub(crate) offset: u64,
    pub(crate) queues: u16,
    pub(crate) size: u16,
    /// Sent with the padding that C gives the structure: the answer has it as well.
    pub(crate) padded: bool,
}

impl InflightDesc {
    const BARE: usize = 20;
    const PADDED: usize = 24;

    /// Its octets, as many as it came with.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = [self.len.to_ne_bytes(), self.offset.to_ne_bytes()].concat();
        out.extend([self.queues.to_ne_bytes(), self.size.to_ne_bytes()].concat());
        out.resize(if self.padded { InflightDesc::PADDED } else { InflightDesc::BARE }, 0);
        out
    }
}

/// A checked request.
#[derive(Debug)]
pub(crate) enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(RegionDesc, Stranger)>),
    SetLogBase {
        len: u64,
        offset: u64,
        fd: Stranger,
    },
    /// Its descriptor is closed: nobody waits to be told when pages are marked.
    SetLogFd,
    SetVringNum {
        index: u32,
        num: u32,
    },
    SetVringAddr {
        index: u32,
        addr: VringAddr,
    },
    SetVringBase {
        index: u32,
        base: u32,
    },
    GetVringBase {
        index: u32,
    },
    SetVringKick {
        index: u32,
        fd: Option<Stranger>,
    },
    SetVringCall {
        index: u32,
        fd: Option<Stranger>,
    },
    SetVringErr {
        index: u32,
        fd: Option<Stranger>,
    },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable {
        index: u32,
        enable: bool,
    },
    SetBackendReqFd(Stranger),
    GetConfig {
        offset: u32,
        size: u32,
    },
    SetConfig {
        offset: u32,
        data: Vec<u8>,
    },
    GetInflightFd(InflightDesc),
    SetInflightFd(InflightDesc, Stranger),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionDesc, Stranger),
    RemMemReg(RegionDesc),
}

impl Request {
    /// Makes a request of what arrived.
    pub(crate) fn decode(request: u32, payload: &[u8], fds: Vec<Stranger>) -> Result<Request, WireError> {
        let d = Decode { request, payload, fds };
        match request {
            id::GET_FEATURES => d.empty(Request::GetFeatures),
            id::SET_FEATURES => Ok(Request::SetFeatures(d.word()?)),
            id::SET_OWNER => d.empty(Request::SetOwner),
            id::RESET_OWNER => d.empty(Request::ResetOwner),
            id::SET_MEM_TABLE => d.mem_table(),
            id::SET_LOG_BASE => {
                d.sized(16)?;
                let (len, offset) = (u64_at(payload, 0), u64_at(payload, 8));
                Ok(Request::SetLogBase { len, offset, fd: d.one_fd()? })
            }
            id::SET_LOG_FD => d.one_fd().map(|_| Request::SetLogFd),
            id::SET_VRING_NUM => d.state().map(|(index, num)| Request::SetVringNum { index, num }),
            id::SET_VRING_ADDR => d.vring_addr(),
            id::SET_VRING_BASE => d.state().map(|(index, base)| Request::SetVringBase { index, base }),
            id::GET_VRING_BASE => d.state().map(|(index, _)| Request::GetVringBase { index }),
            id::SET_VRING_KICK => d.vring_fd().map(|(index, fd)| Request::SetVringKick { index, fd }),
            id::SET_VRING_CALL => d.vring_fd().map(|(index, fd)| Request::SetVringCall { index, fd }),
            id::SET_VRING_ERR => d.vring_fd().map(|(index, fd)| Request::SetVringErr { index, fd }),
            id::GET_PROTOCOL_FEATURES => d.empty(Request::GetProtocolFeatures),
            id::SET_PROTOCOL_FEATURES => Ok(Request::SetProtocolFeatures(d.word()?)),
            id::GET_QUEUE_NUM => d.empty(Request::GetQueueNum),
            id::SET_VRING_ENABLE => d.vring_enable(),
            id::SET_BACKEND_REQ_FD => d.one_fd().map(Request::SetBackendReqFd),
            id::GET_CONFIG => d.config().map(|(offset, size)| Request::GetConfig { offset, size }),
            id::SET_CONFIG => d.set_config(),
            id::GET_INFLIGHT_FD => {
                d.no_fds()?;
                d.inflight().map(Request::GetInflightFd)
            }
            id::SET_INFLIGHT_FD => {
                let desc = d.inflight()?;
                Ok(Request::SetInflightFd(desc, d.one_fd()?))
            }
            id::RESET_DEVICE => d.empty(Request::ResetDevice),
            id::GET_MAX_MEM_SLOTS => d.empty(Request::GetMaxMemSlots),
            id::ADD_MEM_REG => {
                let region = d.single_region()?;
                Ok(Request::AddMemReg(region, d.one_fd()?))
            }
            // A descriptor here is a known mistake of older front-ends, to be closed unused.
            id::REM_MEM_REG => d.single_region().map(Request::RemMemReg),
            _ => Err(WireError::Unknown { request }),
        }
    }
}

struct Decode<'a> {
    request: u32,
    payload: &'a [u8],
    fds: Vec<Stranger>,
}

impl Decode<'_> {
    fn sized(&self, expected: usize) -> Result<(), WireError> {
        match self.payload.len() {
            got if got == expected => Ok(()),
            got => Err(WireError::Size { request: self.request, got, expected }),
        }
    }

    fn no_fds(&self) -> Result<(), WireError> {
        match self.fds.len() {
            0 => Ok(()),
            got => Err(WireError::Fds { request: self.request, got, expected: 0 }),
        }
    }

    fn one_fd(mut self) -> Result<Stranger, WireError> {
        let got = self.fds.len();
        match self.fds.pop() {
            Some(fd) if got == 1 => Ok(fd),
            _ => Err(WireError::Fds { request: self.request, got, expected: 1 }),
        }
    }

    fn empty(&self, request: Request) -> Result<Request, WireError> {
        self.sized(0)?;
        self.no_fds()?;
        Ok(request)
    }

    fn word(&self) -> Result<u64, WireError> {
        self.sized(8)?;
        self.no_fds()?;
        Ok(u64_at(self.payload, 0))
    }

    fn state(&self) -> Result<(u32, u32), WireError> {
        self.sized(8)?;
        self.no_fds()?;
        Ok((u32_at(self.payload, 0), u32_at(self.payload, 4)))
    }

    fn vring_enable(&self) -> Result<Request, WireError> {
        let (index, num) = self.state()?;
        match num {
            0 | 1 => Ok(Request::SetVringEnable { index, enable: num == 1 }),
            _ => Err(WireError::Value { request: self.request, what: "enable", value: num.into(), expected: "0 or 1" }),
        }
    }

    fn vring_addr(&self) -> Result<Request, WireError> {
        self.sized(40)?;
        self.no_fds()?;
        let at = |offset| u64_at(self.payload, offset);
        // Bytes 4..8 are flags, of which one asks for what is written of the ring to be logged, at the address in 32..40. With
        // logging on all of it is, where the guest has the ring.
        let addr = VringAddr { desc: at(8), used: at(16), avail: at(24) };
        Ok(Request::SetVringAddr { index: u32_at(self.payload, 0), addr })
    }

    fn vring_fd(mut self) -> Result<(u32, Option<Stranger>), WireError> {
        self.sized(8)?;
        let word = u64_at(self.payload, 0);
        if word >> 9 != 0 {
            let expected = "an index below 256 and bit 8";
            return Err(WireError::Value { request: self.request, what: "vring", value: word, expected });
        }
        let expected = usize::from(word & 0x100 == 0);
        let got = self.fds.len();
        if got != expected {
            return Err(WireError::Fds { request: self.request, got, expected });
        }
        Ok(((word & 0xff) as u32, self.fds.pop()))
    }

    fn mem_table(self) -> Result<Request, WireError> {
        let fixed = WireError::Size { request: self.request, got: self.payload.len(), expected: 8 };
        let count = if self.payload.len() >= 8 { u32_at(self.payload, 0) as usize } else { return Err(fixed) };
        if count > MAX_FDS {
            let value = count as u64;
            return Err(WireError::Value { request: self.request, what: "regions", value, expected: "at most 32" });
        }
        // Some front-ends (virtio_uml) always send room for more regions than they name.
        let expected = 8 + 32 * count;
        if self.payload.len() < expected {
            return Err(WireError::Size { request: self.request, got: self.payload.len(), expected });
        }
        if self.fds.len() != count {
            return Err(WireError::Fds { request: self.request, got: self.fds.len(), expected: count });
        }
        let regions = (0..count).map(|i| region_at(self.payload, 8 + 32 * i));
        Ok(Request::SetMemTable(regions.zip(self.fds).collect()))
    }

    fn single_region(&self) -> Result<RegionDesc, WireError> {
        self.sized(40)?;
        if self.fds.len() > 1 {
            return Err(WireError::Fds { request: self.request, got: self.fds.len(), expected: 1 });
        }
        Ok(region_at(self.payload, 8))
    }

    fn inflight(&self) -> Result<InflightDesc, WireError> {
        let padded = self.payload.len() == InflightDesc::PADDED;
        self.sized(if padded { InflightDesc::PADDED } else { InflightDesc::BARE })?;
        Ok(InflightDesc {
            len: u64_at(self.payload, 0),
            offset: u64_at(self.payload, 8),
            queues: u16_at(self.payload, 16),
            size: u16_at(self.payload, 18),
            padded,
        })
    }

    fn config(&self) -> Result<(u32, u32), WireError> {
        self.no_fds()?;
        if self.payload.len() < 12 {
            return Err(WireError::Size { request: self.request, got: self.payload.len(), expected: 12 });
        }
        let (offset, size) = (u32_at(self.payload, 0), u32_at(self.payload, 4));
        if size > MAX_CONFIG {
            let value = size.into();
            return Err(WireError::Value { request: self.request, what: "size", value, expected: "at most 256" });
        }
        Ok((offset, size))
    }

    fn set_config(&self) -> Result<Request, WireError> {
        let (offset, size) = self.config()?;
        self.sized(12 + size as usize)?;
        // Written by the driver, or restored on the destination of a migration: 0 and 1 by the standard, 1 and 2 by the crate `vhost`.
        let value = u32_at(self.payload, 8);
        if value > 2 {
            let value = value.into();
            return Err(WireError::Value { request: self.request, what: "flags", value, expected: "0, 1 or 2" });
        }
        Ok(Request::SetConfig { offset, data: self.payload[12..].to_vec() })
    }
}

fn region_at(bytes: &[u8], at: usize) -> RegionDesc {
    let word = |n: usize| u64_at(bytes, at + 8 * n);
    RegionDesc { guest_addr: word(0), len: word(1), user_addr: word(2), mmap_offset: word(3) }
}

/// Callers have checked the length.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fd() -> Stranger {
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        Stranger::new(fd, polypath_net::Closer::default())
    }

    #[test]
    fn headers() {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = 1;
        bytes[4] = 1 | 8;
        bytes[8] = 4;
        assert_eq!(Header::parse(&bytes), Ok(Header { request: 1, need_reply: true, size: 4 }));
        bytes[4] = 1 | 4;
        assert_eq!(Header::parse(&bytes), Err(WireError::UnexpectedReply { request: 1 }));
        bytes[4] = 2;
        assert!(matches!(Header::parse(&bytes), Err(WireError::Version { version: 2, .. })));
        bytes[4] = 1;
        bytes[9] = 0x20;
        assert!(matches!(Header::parse(&bytes), Err(WireError::TooLarge { size: 0x2004, .. })));
        assert_eq!(reply(17, &7u64.to_ne_bytes())[..12], [17, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0]);
    }

    #[test]
    fn vring_descriptors_follow_the_invalid_bit() {
        let kick = |word: u64, fds| Request::decode(id::SET_VRING_KICK, &word.to_ne_bytes(), fds);
        assert!(matches!(kick(3, vec![fd()]), Ok(Request::SetVringKick { index: 3, fd: Some(_) })));
        assert!(matches!(kick(0x103, vec![]), Ok(Request::SetVringKick { index: 3, fd: None })));
        assert!(matches!(kick(3, vec![]), Err(WireError::Fds { got: 0, expected: 1, .. })));
        assert!(matches!(kick(0x103, vec![fd()]), Err(WireError::Fds { got: 1, expected: 0, .. })));
        assert!(matches!(kick(0x200, vec![fd()]), Err(WireError::Value { .. })));
    }

    #[test]
    fn memory_tables() {
        let mut payload = vec![0; 8 + 64];
        payload[0] = 1;
        payload[8 + 8] = 9;
        let got = Request::decode(id::SET_MEM_TABLE, &payload, vec![fd()]).unwrap();
        assert!(matches!(got, Request::SetMemTable(r) if r.len() == 1 && r[0].0.len == 9));
        payload[0] = 3;
        let fds = || (0..3).map(|_| fd()).collect();
        assert!(matches!(Request::decode(id::SET_MEM_TABLE, &payload, fds()), Err(WireError::Size { .. })));
        payload[0] = 2;
        assert!(matches!(Request::decode(id::SET_MEM_TABLE, &payload, fds()), Err(WireError::Fds { .. })));
        payload[3] = 0xff;
        assert!(matches!(Request::decode(id::SET_MEM_TABLE, &payload, fds()), Err(WireError::Value { .. })));
    }

    proptest! {
        /// Nothing that arrives makes the decoder panic, whatever its length and however many descriptors came along.
        #[test]
        fn garbage_is_an_error_or_a_request(
            request in 0u32..48,
            payload in proptest::collection::vec(any::<u8>(), 0..128),
            fds in 0usize..3,
        ) {
            for cut in 0..=payload.len() {
                let _ = Request::decode(request, &payload[..cut], (0..fds).map(|_| fd()).collect());
            }
        }
    }
}
