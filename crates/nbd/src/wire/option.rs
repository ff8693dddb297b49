//! The handshake: greeting, options, replies to options ("Newstyle negotiation", "Option types", "Option reply types").

use super::request::TransmissionFlags;
use super::{Fields, STRING_MAX, WireError, cut, text};

/// `NBDMAGIC`, the first word of the server.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the second word of the server and the first of each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The first word of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Handshake flag `NBD_FLAG_FIXED_NEWSTYLE`: options may follow each other, and each is replied to.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag `NBD_FLAG_NO_ZEROES`: no padding after the reply to EXPORT_NAME, if the client wishes so.
pub const FLAG_NO_ZEROES: u16 = 2;

/// What the server says first: both magic numbers and its handshake flags.
pub const GREETING: [u8; 18] = {
    let (init, option) = (INIT_MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes());
    let flags = (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes();
    let mut out = [0; 18];
    let mut at = 0;
    while at < 8 {
        out[at] = init[at];
        out[8 + at] = option[at];
        at += 1;
    }
    out[16] = flags[0];
    out[17] = flags[1];
    out
};

/// Octets of the client's flags.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Octets of an option before its data: magic number, option, length of the data.
pub const OPTION_HEADER_LEN: usize = 16;
/// Zeroes after the reply to EXPORT_NAME for clients that did not decline them.
pub const EXPORT_PADDING: usize = 124;

/// What a client says of itself ("Client flags").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientFlags {
    /// `NBD_FLAG_C_FIXED_NEWSTYLE`. One that does not set it is heard all the same, as the standard allows.
    pub fixed_newstyle: bool,
    /// `NBD_FLAG_C_NO_ZEROES`.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// From the wire.
    ///
    /// # Errors
    /// Short, or a flag that was not offered, for which the standard has the connection dropped.
    pub fn parse(octets: &[u8]) -> Result<ClientFlags, WireError> {
        let mut fields = Fields::new(octets, "client flags");
        let found = fields.u32()?;
        fields.end()?;
        let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        if found & !known != 0 {
            return Err(WireError::ClientFlags { found });
        }
        Ok(ClientFlags { fixed_newstyle: found & 1 != 0, no_zeroes: found & 2 != 0 })
    }
}

/// What a client asks in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionType {
    /// Take this export, or hang up.
    ExportName,
    /// End the handshake.
    Abort,
    /// Name all exports.
    List,
    /// Go on over TLS.
    StartTls,
    /// Tell of an export.
    Info,
    /// Tell of an export and take it.
    Go,
    /// Structured replies from now on.
    StructuredReply,
    /// Name the metadata contexts of an export.
    ListMetaContext,
    /// Choose metadata contexts of an export.
    SetMetaContext,
    /// Any other one, `NBD_OPT_EXTENDED_HEADERS` (11) included.
    Other(u32),
}

impl OptionType {
    /// From the wire.
    pub fn from_code(code: u32) -> OptionType {
        match code {
            1 => OptionType::ExportName,
            2 => OptionType::Abort,
            3 => OptionType::List,
            5 => OptionType::StartTls,
            6 => OptionType::Info,
            7 => OptionType::Go,
            8 => OptionType::StructuredReply,
            9 => OptionType::ListMetaContext,
            10 => OptionType::SetMetaContext,
            other => OptionType::Other(other),
        }
    }

    /// To the wire.
    pub fn code(self) -> u32 {
        match self {
            OptionType::ExportName => 1,
            OptionType::Abort => 2,
            OptionType::List => 3,
            OptionType::StartTls => 5,
            OptionType::Info => 6,
            OptionType::Go => 7,
            OptionType::StructuredReply => 8,
            OptionType::ListMetaContext => 9,
            OptionType::SetMetaContext => 10,
            OptionType::Other(code) => code,
        }
    }
}

/// The front of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: OptionType,
    /// Octets of data that follow, as the client says.
    pub length: u32,
}

impl OptionHeader {
    /// From the wire.
    ///
    /// # Errors
    /// Short, or without the magic number.
    pub fn parse(octets: &[u8]) -> Result<OptionHeader, WireError> {
        let mut fields = Fields::new(octets, "option");
        let magic = fields.u64()?;
        if magic != OPTION_MAGIC {
            return Err(WireError::Magic { what: "option", found: magic, expected: OPTION_MAGIC });
        }
        let header = OptionHeader { option: OptionType::from_code(fields.u32()?), length: fields.u32()? };
        fields.end()?;
        Ok(header)
    }

    /// To the wire, for clients.
    pub fn to_bytes(self) -> [u8; OPTION_HEADER_LEN] {
        let mut out = [0; OPTION_HEADER_LEN];
        out[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.code().to_be_bytes());
        out[12..].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

/// The data of EXPORT_NAME: the name alone.
///
/// # Errors
/// It is too long, or no text.
pub fn parse_export_name(data: &[u8]) -> Result<&str, WireError> {
    text(data, "export name")
}

/// Kinds of information about an export (`NBD_INFO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InfoType {
    /// Size and transmission flags.
    Export,
    /// Its name, as LIST has it.
    Name,
    /// A line for people.
    Description,
    /// Smallest, preferred and largest request.
    BlockSize,
}

impl InfoType {
    fn from_code(code: u16) -> Option<InfoType> {
        match code {
            0 => Some(InfoType::Export),
            1 => Some(InfoType::Name),
            2 => Some(InfoType::Description),
            3 => Some(InfoType::BlockSize),
            _ => None,
        }
    }

    /// To the wire.
    pub fn code(self) -> u16 {
        match self {
            InfoType::Export => 0,
            InfoType::Name => 1,
            InfoType::Description => 2,
            InfoType::BlockSize => 3,
        }
    }
}

/// The data of INFO and GO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRequest<'a> {
    /// Name of the export; empty: the default one.
    pub name: &'a str,
    /// What the client wants to know, as far as we know what that is. Each once.
    pub wanted: Vec<InfoType>,
}

impl<'a> ExportRequest<'a> {
    /// From the wire.
    ///
    /// # Errors
    /// Lengths that do not fit together, a name that is none.
    pub fn parse(data: &'a [u8]) -> Result<ExportRequest<'a>, WireError> {
        let mut fields = Fields::new(data, "information request");
        let name = fields.counted_text("export name")?;
        let count = fields.u16()?;
        let mut wanted = Vec::new();
        for _ in 0..count {
            if let Some(info) = InfoType::from_code(fields.u16()?)
                && !wanted.contains(&info)
            {
                wanted.push(info);
            }
        }
        fields.end()?;
        Ok(ExportRequest { name, wanted })
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRequest<'a> {
    /// Name of the export; empty: the default one.
    pub name: &'a str,
    /// Which contexts are wanted. What they may be says their namespace.
    pub queries: Vec<&'a str>,
}

impl<'a> ContextRequest<'a> {
    /// From the wire.
    ///
    /// # Errors
    /// Lengths that do not fit together, a name or query that is none.
    pub fn parse(data: &'a [u8]) -> Result<ContextRequest<'a>, WireError> {
        let mut fields = Fields::new(data, "metadata context request");
        let name = fields.counted_text("export name")?;
        let count = fields.u32()?;
        // Not with room for as many as it says: it may say anything.
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(fields.counted_text("metadata context query")?);
        }
        fields.end()?;
        Ok(ContextRequest { name, queries })
    }
}

/// A reply to an option ("Option reply types").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionReply<'a> {
    /// It is done.
    Ack,
    /// An export: its name, and a line for people.
    Server(&'a str, &'a str),
    /// Size in bytes, and what it can do.
    InfoExport(u64, TransmissionFlags),
    /// Its name.
    InfoName(&'a str),
    /// A line for people.
    InfoDescription(&'a str),
    /// Smallest, preferred and largest request in bytes.
    InfoBlockSize(u32, u32, u32),
    /// A metadata context: its number and its name.
    MetaContext(u32, &'a str),
    /// It is not, with a line for people.
    Error(OptionError, &'a str),
}

/// Why an option is not done (`NBD_REP_ERR_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionError {
    /// The option is not known here.
    Unsupported,
    /// Its data make no sense.
    Invalid,
    /// There is no such export.
    Unknown,
    /// The server ends.
    Shutdown,
    /// It is longer than anybody needs.
    TooBig,
}

impl OptionError {
    fn code(self) -> u32 {
        let code = match self {
            OptionError::Unsupported => 1,
            OptionError::Invalid => 3,
            OptionError::Unknown => 6,
            OptionError::Shutdown => 7,
            OptionError::TooBig => 9,
        };
        (1 << 31) + code
    }
}

impl OptionReply<'_> {
    /// Appends it to `out` as the reply to `option`. Text that is longer than a string may be is cut.
    pub fn put(&self, option: OptionType, out: &mut Vec<u8>) {
        out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        out.extend_from_slice(&option.code().to_be_bytes());
        let (kind, length_at) = (self.code(), out.len() + 4);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        let data_at = out.len();
        self.put_data(out);
        // A few strings of 4096 octets at most.
        let length = (out.len() - data_at) as u32;
        out[length_at..data_at].copy_from_slice(&length.to_be_bytes());
    }

    fn code(&self) -> u32 {
        match self {
            OptionReply::Ack => 1,
            OptionReply::Server(..) => 2,
            OptionReply::InfoExport(..)
            | OptionReply::InfoName(_)
            | OptionReply::InfoDescription(_)
            | OptionReply::InfoBlockSize(..) => 3,
            OptionReply::MetaContext(..) => 4,
            OptionReply::Error(error, _) => error.code(),
        }
    }

    fn put_data(&self, out: &mut Vec<u8>) {
        let info = |kind: InfoType| kind.code().to_be_bytes();
        match *self {
            OptionReply::Ack => {}
            OptionReply::Server(name, description) => {
                let name = cut(name, STRING_MAX);
                out.extend_from_slice(&(name.len() as u32).to_be_bytes());
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(cut(description, STRING_MAX).as_bytes());
            }
            OptionReply::InfoExport(size, flags) => {
                out.extend_from_slice(&info(InfoType::Export));
                out.extend_from_slice(&size.to_be_bytes());
                out.extend_from_slice(&flags.bits().to_be_bytes());
            }
            OptionReply::InfoName(name) => {
                out.extend_from_slice(&info(InfoType::Name));
                out.extend_from_slice(cut(name, STRING_MAX).as_bytes());
            }
            OptionReply::InfoDescription(text) => {
                out.extend_from_slice(&info(InfoType::Description));
                out.extend_from_slice(cut(text, STRING_MAX).as_bytes());
            }
            OptionReply::InfoBlockSize(smallest, preferred, largest) => {
                out.extend_from_slice(&info(InfoType::BlockSize));
                for bytes in [smallest, preferred, largest] {
                    out.extend_from_slice(&bytes.to_be_bytes());
                }
            }
            OptionReply::MetaContext(id, name) => {
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(cut(name, STRING_MAX).as_bytes());
            }
            OptionReply::Error(_, text) => out.extend_from_slice(cut(text, STRING_MAX).as_bytes()),
        }
    }
}

/// Appends the answer to EXPORT_NAME, which has no header: size, flags, and zeroes for those who have not declined them.
pub fn put_export(size: u64, flags: TransmissionFlags, no_zeroes: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&flags.bits().to_be_bytes());
    if !no_zeroes {
        out.extend_from_slice(&[0; EXPORT_PADDING]);
    }
}
