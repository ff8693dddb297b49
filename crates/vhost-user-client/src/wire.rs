//! Octets of the vhost-user protocol, as a front-end writes and reads them.
//!
//! vhost-user speaks the host's byte order (QEMU `docs/interop/vhost-user.rst`, "Message format").

/// Bytes of a message header.
pub(crate) const HEADER_LEN: usize = 12;
/// Largest payload of an answer that we take, in bytes; the largest legal one (a configuration space) has 268.
const MAX_PAYLOAD: u32 = 4096;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0b11;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Bit of the virtio features by which a back-end says that it has protocol features.
pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol feature bits (`VHOST_USER_PROTOCOL_F_*`).
pub(crate) mod protocol_feature {
    /// Several queues; GET_QUEUE_NUM.
    pub(crate) const MQ: u64 = 1 << 0;
    /// Acknowledgements on demand.
    pub(crate) const REPLY_ACK: u64 = 1 << 3;
    /// GET_CONFIG.
    pub(crate) const CONFIG: u64 = 1 << 9;
    /// ADD_MEM_REG, REM_MEM_REG, GET_MAX_MEM_SLOTS.
    pub(crate) const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// Those that we cannot do without.
    pub(crate) const REQUIRED: u64 = REPLY_ACK | CONFIG | CONFIGURE_MEM_SLOTS;
}

/// A request of the front-end: its number, and its name for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RequestId {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
}

/// Requests of the front-end.
pub(crate) mod request {
    use super::RequestId;

    const fn id(number: u32, name: &'static str) -> RequestId {
        RequestId { number, name }
    }

    pub(crate) const GET_FEATURES: RequestId = id(1, "GET_FEATURES");
    pub(crate) const SET_FEATURES: RequestId = id(2, "SET_FEATURES");
    pub(crate) const SET_OWNER: RequestId = id(3, "SET_OWNER");
    pub(crate) const SET_VRING_NUM: RequestId = id(8, "SET_VRING_NUM");
    pub(crate) const SET_VRING_ADDR: RequestId = id(9, "SET_VRING_ADDR");
    pub(crate) const SET_VRING_BASE: RequestId = id(10, "SET_VRING_BASE");
    pub(crate) const GET_VRING_BASE: RequestId = id(11, "GET_VRING_BASE");
    pub(crate) const SET_VRING_KICK: RequestId = id(12, "SET_VRING_KICK");
    pub(crate) const SET_VRING_CALL: RequestId = id(13, "SET_VRING_CALL");
    pub(crate) const GET_PROTOCOL_FEATURES: RequestId = id(15, "GET_PROTOCOL_FEATURES");
    pub(crate) const SET_PROTOCOL_FEATURES: RequestId = id(16, "SET_PROTOCOL_FEATURES");
    pub(crate) const GET_QUEUE_NUM: RequestId = id(17, "GET_QUEUE_NUM");
    pub(crate) const SET_VRING_ENABLE: RequestId = id(18, "SET_VRING_ENABLE");
    pub(crate) const GET_CONFIG: RequestId = id(24, "GET_CONFIG");
    pub(crate) const GET_MAX_MEM_SLOTS: RequestId = id(36, "GET_MAX_MEM_SLOTS");
    pub(crate) const ADD_MEM_REG: RequestId = id(37, "ADD_MEM_REG");
    pub(crate) const REM_MEM_REG: RequestId = id(38, "REM_MEM_REG");
}

/// An answer that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("it answered request {got} while {expected} ({name}) was asked", expected = asked.number, name = asked.name)]
    OtherRequest { got: u32, asked: RequestId },
    #[error("the header of its answer to {asked} has flags {flags:#x}; expected version 1 and the reply bit")]
    Flags { asked: &'static str, flags: u32 },
    #[error("its answer to {asked} is {got} bytes long; expected {expected}")]
    Size { asked: &'static str, got: u32, expected: u32 },
}

/// A whole message.
pub(crate) fn message(request: RequestId, need_reply: bool, payload: &[u8]) -> Vec<u8> {
    let flags = if need_reply { VERSION | FLAG_NEED_REPLY } else { VERSION };
    let mut out = Vec::with_capacity(HEADER_LEN + payload.len());
    for word in [request.number, flags, payload.len() as u32] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    out.extend_from_slice(payload);
    out
}

/// The length of the payload behind the header of an answer to `asked`.
pub(crate) fn answer_len(asked: RequestId, header: &[u8; HEADER_LEN]) -> Result<usize, WireError> {
    let [got, flags, size] = [u32_at(header, 0), u32_at(header, 4), u32_at(header, 8)];
    if flags & VERSION_MASK != VERSION || flags & FLAG_REPLY == 0 {
        return Err(WireError::Flags { asked: asked.name, flags });
    }
    if got != asked.number {
        return Err(WireError::OtherRequest { got, asked });
    }
    if size > MAX_PAYLOAD {
        return Err(WireError::Size { asked: asked.name, got: size, expected: MAX_PAYLOAD });
    }
    Ok(size as usize)
}

/// The number that is the whole payload of an answer.
pub(crate) fn word(asked: RequestId, payload: &[u8]) -> Result<u64, WireError> {
    match payload.try_into() {
        Ok(bytes) => Ok(u64::from_ne_bytes(bytes)),
        Err(_) => Err(WireError::Size { asked: asked.name, got: payload.len() as u32, expected: 8 }),
    }
}

/// `struct vhost_vring_state`: a number for one vring.
pub(crate) fn vring_state(index: u16, number: u32) -> Vec<u8> {
    [u32::from(index).to_ne_bytes(), number.to_ne_bytes()].concat()
}

/// `struct vhost_vring_addr`, in addresses of [`region`].
pub(crate) fn vring_addr(index: u16, desc: u64, used: u64, avail: u64) -> Vec<u8> {
    let head = [u32::from(index).to_ne_bytes(), 0u32.to_ne_bytes()].concat();
    [head, [desc, used, avail, 0].map(u64::to_ne_bytes).concat()].concat()
}

/// One memory region (ADD_MEM_REG, REM_MEM_REG), of `len` bytes from `offset` of its file, at `addr` both for rings ("user address") and
/// for the buffers in them ("guest address").
pub(crate) fn region(addr: u64, len: u64, offset: u64) -> Vec<u8> {
    [0, addr, len, addr, offset].map(u64::to_ne_bytes).concat()
}

/// The question for `len` bytes of the configuration space, with room for them as the protocol wants it.
pub(crate) fn config_question(len: u32) -> Vec<u8> {
    let mut out = [0, len, 0].map(u32::to_ne_bytes).concat();
    out.resize(12 + len as usize, 0);
    out
}

/// The configuration space in the answer to [`config_question`].
pub(crate) fn config_answer(payload: &[u8], len: u32) -> Result<&[u8], WireError> {
    let expected = 12 + len;
    match payload.get(12..expected as usize) {
        Some(space) if payload.len() == expected as usize && u32_at(payload, 4) == len => Ok(space),
        _ => Err(WireError::Size { asked: request::GET_CONFIG.name, got: payload.len() as u32, expected }),
    }
}

/// Callers have checked the length.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(words: [u32; 3]) -> [u8; HEADER_LEN] {
        words.map(u32::to_ne_bytes).concat().try_into().unwrap()
    }

    #[test]
    fn messages() {
        assert_eq!(message(request::SET_OWNER, false, &[])[..], header([3, 1, 0]));
        let add = message(request::ADD_MEM_REG, true, &region(7, 8, 9));
        assert_eq!(add[..12], header([37, 9, 40]));
        assert_eq!(add[12..], [0u64, 7, 8, 7, 9].map(u64::to_ne_bytes).concat());
        assert_eq!(vring_addr(1, 2, 3, 4).len(), 40);
    }

    #[test]
    fn answers_are_held_to_their_question() {
        let asked = request::GET_FEATURES;
        assert_eq!(answer_len(asked, &header([1, 5, 8])), Ok(8));
        assert!(matches!(answer_len(asked, &header([2, 5, 8])), Err(WireError::OtherRequest { got: 2, .. })));
        assert!(matches!(answer_len(asked, &header([1, 1, 8])), Err(WireError::Flags { .. })), "no reply bit");
        assert!(matches!(answer_len(asked, &header([1, 6, 8])), Err(WireError::Flags { .. })), "version 2");
        assert!(matches!(answer_len(asked, &header([1, 5, 4097])), Err(WireError::Size { .. })));
        assert_eq!(word(asked, &9u64.to_ne_bytes()), Ok(9));
        assert!(word(asked, &[0; 7]).is_err() && word(asked, &[0; 9]).is_err());
    }

    #[test]
    fn a_configuration_space_is_as_long_as_asked() {
        let mut answer = config_question(4);
        answer[12..].copy_from_slice(b"conf");
        assert_eq!(config_answer(&answer, 4), Ok(&b"conf"[..]));
        assert!(config_answer(&answer, 5).is_err());
        assert!(config_answer(&answer[..15], 4).is_err());
        assert!(config_answer(&[], 4).is_err());
        answer[4] = 0;
        assert!(config_answer(&answer, 4).is_err(), "a back-end says with length zero that it has none");
    }
}
