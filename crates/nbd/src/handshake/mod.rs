//! The handshake of fixed newstyle without socket and clock: octets in, octets out, questions to whoever knows the exports.
//!
//! Whoever drives it reads as many octets as [`Next::More`] wants, gives them to [`Handshake::take`], sends what
//! [`Handshake::output`] has, and answers what [`Next::Ask`] asks with [`Handshake::answer`]. A time limit is his.
//!
//! What a client can make it hold is one option: [`OPTION_MAX`] octets. Longer ones are passed over and refused up to
//! [`SKIP_MAX`], beyond that, and after [`OPTIONS_MAX`] options, the client is let go.

#[cfg(test)]
mod tests;

use crate::wire::option::{CLIENT_FLAGS_LEN, OptionError, parse_export_name, put_export};
use crate::wire::{
    ClientFlags, ContextRequest, ExportRequest, GREETING, InfoType, OPTION_HEADER_LEN, OptionHeader, OptionReply,
    OptionType, TransmissionFlags, WireError,
};

/// Longest data of an option that are read: a name and some queries of 4096 octets each.
pub const OPTION_MAX: u32 = 32 << 10;
/// Longest data of an option that are passed over and refused in order.
pub const SKIP_MAX: u32 = 1 << 20;
/// Most options of one handshake. Clients send about five.
pub const OPTIONS_MAX: u32 = 256;
/// Most octets that are passed over at a time.
const SKIP_STEP: u32 = 4096;

/// The one metadata context there is ("The `base:` metadata namespace").
pub const ALLOCATION: &str = "base:allocation";
/// Its number where it was chosen. Where it is only listed the standard has zero.
pub const ALLOCATION_ID: u32 = 1;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Give this many octets to [`Handshake::take`]; never zero.
    More(usize),
    /// Answer this with [`Handshake::answer`].
    Ask(Ask),
    /// Transmission begins, with the export that was asked for last.
    Go(Agreed),
    /// The client wishes to go.
    End,
}

/// What a handshake must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// All exports.
    List,
    /// The export of this name; empty: the default one.
    Export(String),
}

/// An answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Ask::List`]: names, and what each is for people.
    List(Vec<(String, String)>),
    /// To [`Ask::Export`]: it is there.
    Export(Offer),
    /// To [`Ask::Export`]: there is none of that name, or it cannot be used now; why, for people.
    Unknown(String),
    /// To both: the server ends.
    Shutdown,
}

/// What is told of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its name, which the client may have left out.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// Bytes.
    pub size: u64,
    /// What it can do. [`TransmissionFlags::SEND_DF`] is added where it belongs.
    pub flags: TransmissionFlags,
    /// Smallest request in bytes: all are multiples of it.
    pub smallest: u32,
    /// Bytes of a request that costs nothing extra.
    pub preferred: u32,
    /// Largest read or write in bytes.
    pub largest: u32,
}

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Replies are structured.
    pub structured: bool,
    /// [`ALLOCATION`] was chosen for the export that is used.
    pub allocation: bool,
}

/// Why a client is let go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// It does not speak the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// An option of which too much would come.
    #[error("an option with {length} octets of data; at most {SKIP_MAX} are expected")]
    TooLong {
        /// Octets it has announced.
        length: u32,
    },
    /// It asks and asks.
    #[error("{OPTIONS_MAX} options, and no export chosen")]
    TooMany,
    /// It insists on an export (EXPORT_NAME, which knows no errors) that it cannot have.
    #[error("export \"{}\" was asked for: {why}", .name.escape_debug())]
    NoExport {
        /// Its name.
        name: String,
        /// Why it cannot.
        why: String,
    },
    /// Octets or an answer that nobody asked for: a defect of whoever drives it.
    #[error("the handshake was given what it had not asked for")]
    Misused,
}

/// One handshake, from the side of the server.
#[derive(Debug)]
pub struct Handshake {
    phase: Phase,
    no_zeroes: bool,
    structured: bool,
    /// Name of the export for which [`ALLOCATION`] was chosen.
    allocation: Option<String>,
    options: u32,
    out: Vec<u8>,
}

#[derive(Debug)]
enum Phase {
    ClientFlags,
    Header,
    Data(OptionHeader),
    Skip { option: OptionType, left: u32 },
    Asking(Question),
    Over,
}

/// What is done with the answer.
#[derive(Debug)]
enum Question {
    List,
    Take { name: String },
    Tell { option: OptionType, wanted: Vec<InfoType> },
    Contexts { option: OptionType, matches: bool },
}

impl Handshake {
    /// A new one. Its output begins with the greeting.
    pub fn new() -> Handshake {
        Handshake {
            phase: Phase::ClientFlags,
            no_zeroes: false,
            structured: false,
            allocation: None,
            options: 0,
            out: GREETING.to_vec(),
        }
    }

    /// What is to be sent now. Empty afterwards.
    pub fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// How many octets it wants; zero while it waits for an answer, and when it is over.
    pub fn wants(&self) -> usize {
        match &self.phase {
            Phase::ClientFlags => CLIENT_FLAGS_LEN,
            Phase::Header => OPTION_HEADER_LEN,
            Phase::Data(header) => header.length as usize,
            Phase::Skip { left, .. } => (*left).min(SKIP_STEP) as usize,
            Phase::Asking(_) | Phase::Over => 0,
        }
    }

    /// Takes the octets that it wants, no more and no fewer.
    ///
    /// # Errors
    /// The client is to be let go; what is in the output is of no use then.
    pub fn take(&mut self, octets: &[u8]) -> Result<Next, HandshakeError> {
        if octets.len() != self.wants() || octets.is_empty() {
            return Err(HandshakeError::Misused);
        }
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::ClientFlags => {
                self.no_zeroes = ClientFlags::parse(octets)?.no_zeroes;
                Ok(self.more())
            }
            Phase::Header => self.header(OptionHeader::parse(octets)?),
            Phase::Data(header) => self.option(header.option, octets),
            Phase::Skip { option, left } => {
                let left = left.saturating_sub(octets.len() as u32);
                Ok(self.skip(option, left))
            }
            Phase::Asking(_) | Phase::Over => Err(HandshakeError::Misused),
        }
    }

    fn header(&mut self, header: OptionHeader) -> Result<Next, HandshakeError> {
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(HandshakeError::TooMany);
        }
        match header.length {
            // There is no way to refuse it but to hang up.
            length if header.option == OptionType::ExportName && length > OPTION_MAX => {
                Err(HandshakeError::TooLong { length })
            }
            0 => self.option(header.option, &[]),
            1..=OPTION_MAX => {
                self.phase = Phase::Data(header);
                Ok(Next::More(self.wants()))
            }
            length if length <= SKIP_MAX => Ok(self.skip(header.option, length)),
            length => Err(HandshakeError::TooLong { length }),
        }
    }

    fn skip(&mut self, option: OptionType, left: u32) -> Next {
        if left > 0 {
            self.phase = Phase::Skip { option, left };
            return Next::More(self.wants());
        }
        self.refuse(option, OptionError::TooBig, "this option has more data than anybody needs")
    }

    fn option(&mut self, option: OptionType, data: &[u8]) -> Result<Next, HandshakeError> {
        let bare = data.is_empty();
        Ok(match option {
            OptionType::ExportName => {
                let name = parse_export_name(data)?.to_owned();
                self.ask(Ask::Export(name.clone()), Question::Take { name })
            }
            // Data that come with it are passed over, as the standard wishes.
            OptionType::Abort => {
                OptionReply::Ack.put(option, &mut self.out);
                Next::End
            }
            OptionType::List if bare => self.ask(Ask::List, Question::List),
            OptionType::StructuredReply if bare => {
                self.structured = true;
                OptionReply::Ack.put(option, &mut self.out);
                self.more()
            }
            OptionType::List | OptionType::StructuredReply => {
                self.refuse(option, OptionError::Invalid, "this option has no data")
            }
            OptionType::Info | OptionType::Go => match ExportRequest::parse(data) {
                Ok(ExportRequest { name, wanted }) => {
                    self.ask(Ask::Export(name.to_owned()), Question::Tell { option, wanted })
                }
                Err(error) => self.refuse(option, OptionError::Invalid, &error.to_string()),
            },
            OptionType::ListMetaContext | OptionType::SetMetaContext => self.contexts(option, data),
            OptionType::StartTls => self.refuse(option, OptionError::Unsupported, "there is no TLS here"),
            OptionType::Other(_) => self.refuse(option, OptionError::Unsupported, "this option is not known here"),
        })
    }

    fn contexts(&mut self, option: OptionType, data: &[u8]) -> Next {
        let set = option == OptionType::SetMetaContext;
        if set {
            // Also where it fails.
            self.allocation = None;
        }
        if !self.structured {
            return self.refuse(option, OptionError::Invalid, "structured replies are to be asked for first");
        }
        match ContextRequest::parse(data) {
            Ok(ContextRequest { name, queries }) => {
                let matches = match set {
                    true => queries.contains(&ALLOCATION),
                    false => queries.is_empty() || queries.iter().any(|query| [ALLOCATION, "base:"].contains(query)),
                };
                self.ask(Ask::Export(name.to_owned()), Question::Contexts { option, matches })
            }
            Err(error) => self.refuse(option, OptionError::Invalid, &error.to_string()),
        }
    }

    /// Takes the answer to what it has asked.
    ///
    /// # Errors
    /// As [`Handshake::take`].
    pub fn answer(&mut self, answer: Answer) -> Result<Next, HandshakeError> {
        let question = match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Asking(question) => question,
            _ => return Err(HandshakeError::Misused),
        };
        let option = question.option();
        match (question, answer) {
            (Question::Take { name }, Answer::Unknown(why)) => Err(HandshakeError::NoExport { name, why }),
            (Question::Take { name }, Answer::Shutdown) => {
                Err(HandshakeError::NoExport { name, why: "the server ends".into() })
            }
            (_, Answer::Shutdown) => Ok(self.refuse(option, OptionError::Shutdown, "the server ends")),
            (_, Answer::Unknown(why)) => Ok(self.refuse(option, OptionError::Unknown, &why)),
            (Question::List, Answer::List(exports)) => {
                for (name, description) in &exports {
                    OptionReply::Server(name, description).put(option, &mut self.out);
                }
                Ok(self.acknowledge(option))
            }
            (Question::Take { .. }, Answer::Export(offer)) => {
                put_export(offer.size, self.flags(&offer), self.no_zeroes, &mut self.out);
                Ok(Next::Go(self.agreed(&offer)))
            }
            (Question::Tell { wanted, .. }, Answer::Export(offer)) => {
                self.tell(option, &wanted, &offer);
                let more = self.acknowledge(option);
                if option == OptionType::Info {
                    return Ok(more);
                }
                self.phase = Phase::Over;
                Ok(Next::Go(self.agreed(&offer)))
            }
            (Question::Contexts { matches, .. }, Answer::Export(offer)) => {
                let set = option == OptionType::SetMetaContext;
                if matches {
                    let id = if set { ALLOCATION_ID } else { 0 };
                    OptionReply::MetaContext(id, ALLOCATION).put(option, &mut self.out);
                }
                if set {
                    self.allocation = matches.then_some(offer.name);
                }
                Ok(self.acknowledge(option))
            }
            (Question::List, Answer::Export(_)) | (_, Answer::List(_)) => Err(HandshakeError::Misused),
        }
    }

    fn tell(&mut self, option: OptionType, wanted: &[InfoType], offer: &Offer) {
        OptionReply::InfoExport(offer.size, self.flags(offer)).put(option, &mut self.out);
        for info in wanted {
            let reply = match info {
                InfoType::Export => continue,
                InfoType::Name => OptionReply::InfoName(&offer.name),
                InfoType::Description => OptionReply::InfoDescription(&offer.description),
                InfoType::BlockSize => OptionReply::InfoBlockSize(offer.smallest, offer.preferred, offer.largest),
            };
            reply.put(option, &mut self.out);
        }
    }

    fn flags(&self, offer: &Offer) -> TransmissionFlags {
        let mut flags = offer.flags;
        flags.set(TransmissionFlags::SEND_DF, self.structured);
        flags
    }

    fn agreed(&self, offer: &Offer) -> Agreed {
        Agreed { structured: self.structured, allocation: self.allocation.as_ref() == Some(&offer.name) }
    }

    fn ask(&mut self, ask: Ask, question: Question) -> Next {
        self.phase = Phase::Asking(question);
        Next::Ask(ask)
    }

    fn acknowledge(&mut self, option: OptionType) -> Next {
        OptionReply::Ack.put(option, &mut self.out);
        self.more()
    }

    fn refuse(&mut self, option: OptionType, error: OptionError, why: &str) -> Next {
        OptionReply::Error(error, why).put(option, &mut self.out);
        self.more()
    }

    fn more(&mut self) -> Next {
        self.phase = Phase::Header;
        Next::More(OPTION_HEADER_LEN)
    }
}

impl Default for Handshake {
    fn default() -> Self {
        Handshake::new()
    }
}

impl Question {
    fn option(&self) -> OptionType {
        match self {
            Question::List => OptionType::List,
            Question::Take { .. } => OptionType::ExportName,
            Question::Tell { option, .. } | Question::Contexts { option, .. } => *option,
        }
    }
}
