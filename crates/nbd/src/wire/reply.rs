//! What the server answers in transmission ("Simple reply message", "Structured reply chunk message", "Error values").

use super::cut;

/// First word of a simple reply (`NBD_SIMPLE_REPLY_MAGIC`).
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply (`NBD_STRUCTURED_REPLY_MAGIC`).
pub const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
/// Octets of a simple reply without its data.
pub const SIMPLE_LEN: usize = 16;
/// Octets of a chunk without its payload.
pub const CHUNK_LEN: usize = 20;

/// Flag of a chunk: the last one of its reply.
const FLAG_DONE: u16 = 1;
/// Types of chunks.
const TYPE_NONE: u16 = 0;
const TYPE_OFFSET_DATA: u16 = 1;
const TYPE_BLOCK_STATUS: u16 = 5;
const TYPE_ERROR: u16 = (1 << 15) + 1;

/// Longest text in an error chunk. The standard allows 4096 octets; a line says what there is to say.
pub const TEXT_MAX: usize = 256;
/// Longest front of a reply: an error chunk with its text.
const HEAD_MAX: usize = CHUNK_LEN + 6 + TEXT_MAX;

/// What went wrong, in the words that the standard has for it ("Error values").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    /// EPERM: the export takes no changes.
    NotPermitted,
    /// EIO: the disk has failed.
    Io,
    /// ENOMEM: there is no memory for it.
    NoMemory,
    /// EINVAL: the request makes no sense, or is not for this export.
    Invalid,
    /// ENOSPC: beyond the end of the export, or the disk is full.
    NoSpace,
    /// EOVERFLOW: too long for one chunk. Never sent: what may be asked for at a time fits in one.
    Overflow,
    /// ENOTSUP: not quickly, and it was to be quick.
    NotSupported,
    /// ESHUTDOWN: the server, or this export of it, ends.
    Shutdown,
}

impl Errno {
    /// To the wire.
    pub fn code(self) -> u32 {
        match self {
            Errno::NotPermitted => 1,
            Errno::Io => 5,
            Errno::NoMemory => 12,
            Errno::Invalid => 22,
            Errno::NoSpace => 28,
            Errno::Overflow => 75,
            Errno::NotSupported => 95,
            Errno::Shutdown => 108,
        }
    }
}

/// The front of a reply, or all of it if no data of the disk follow.
#[derive(Clone, Copy)]
pub struct Head {
    octets: [u8; HEAD_MAX],
    len: u16,
}

impl Head {
    /// A simple reply; if it is the one to a read and there is no error, the data follow.
    pub fn simple(cookie: u64, error: Option<Errno>) -> Head {
        let mut head = Head::empty();
        head.put(&SIMPLE_MAGIC.to_be_bytes());
        head.put(&error.map_or(0, Errno::code).to_be_bytes());
        head.put(&cookie.to_be_bytes());
        head
    }

    /// The only chunk of a reply that says nothing but that it is done.
    pub fn done(cookie: u64) -> Head {
        Head::chunk(TYPE_NONE, cookie, 0)
    }

    /// The only chunk of a reply to a read: `length` bytes from `offset` on follow. `length` is at most 32 MiB.
    pub fn data(cookie: u64, offset: u64, length: u32) -> Head {
        let mut head = Head::chunk(TYPE_OFFSET_DATA, cookie, 8 + length);
        head.put(&offset.to_be_bytes());
        head
    }

    /// The only chunk of a reply that has failed, with a line for people, which is cut at [`TEXT_MAX`].
    pub fn error(cookie: u64, error: Errno, text: &str) -> Head {
        let text = cut(text, TEXT_MAX).as_bytes();
        let mut head = Head::chunk(TYPE_ERROR, cookie, 6 + text.len() as u32);
        head.put(&error.code().to_be_bytes());
        head.put(&(text.len() as u16).to_be_bytes());
        head.put(text);
        head
    }

    /// The only chunk of the status of a range that is one extent: the context, how long the extent is, its flags in that context.
    pub fn block_status(cookie: u64, context: u32, length: u32, status: u32) -> Head {
        let mut head = Head::chunk(TYPE_BLOCK_STATUS, cookie, 12);
        for word in [context, length, status] {
            head.put(&word.to_be_bytes());
        }
        head
    }

    /// Its octets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }

    fn chunk(kind: u16, cookie: u64, length: u32) -> Head {
        let mut head = Head::empty();
        head.put(&STRUCTURED_MAGIC.to_be_bytes());
        head.put(&FLAG_DONE.to_be_bytes());
        head.put(&kind.to_be_bytes());
        head.put(&cookie.to_be_bytes());
        head.put(&length.to_be_bytes());
        head
    }

    fn empty() -> Head {
        Head { octets: [0; HEAD_MAX], len: 0 }
    }

    /// All that is put together fits: the longest is an error with the longest text.
    fn put(&mut self, octets: &[u8]) {
        let at = usize::from(self.len);
        self.octets[at..at + octets.len()].copy_from_slice(octets);
        self.len += octets.len() as u16;
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Head").field(&self.as_bytes()).finish()
    }
}
