//! Sense data: why a command ended with CHECK CONDITION (SPC-4 4.5), in both formats.

mod text;

pub use text::asc_text;

use crate::ParseError;
use crate::wire::{bit, flag, front, get8, get16, get32, get64, put, put32, put64};
use std::fmt;

/// Sense keys (SPC-4 4.5.6).
pub mod key {
    /// NO SENSE: nothing to say.
    pub const NO_SENSE: u8 = 0x0;
    /// RECOVERED ERROR: the command was carried out, with some effort.
    pub const RECOVERED_ERROR: u8 = 0x1;
    /// NOT READY: the logical unit is not accessible.
    pub const NOT_READY: u8 = 0x2;
    /// MEDIUM ERROR: a flaw of the medium or of what is recorded on it.
    pub const MEDIUM_ERROR: u8 = 0x3;
    /// HARDWARE ERROR: a failure that is not to be recovered.
    pub const HARDWARE_ERROR: u8 = 0x4;
    /// ILLEGAL REQUEST: something is wrong with the command or its parameters.
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    /// UNIT ATTENTION: something happened that this initiator port is to hear of. The command was not carried out.
    pub const UNIT_ATTENTION: u8 = 0x6;
    /// DATA PROTECT: reading or writing is not allowed there.
    pub const DATA_PROTECT: u8 = 0x7;
    /// BLANK CHECK: blank or not blank medium.
    pub const BLANK_CHECK: u8 = 0x8;
    /// VENDOR SPECIFIC.
    pub const VENDOR_SPECIFIC: u8 = 0x9;
    /// COPY ABORTED: a third-party copy ended early.
    pub const COPY_ABORTED: u8 = 0xa;
    /// ABORTED COMMAND: the device server gave the command up; trying it again may help.
    pub const ABORTED_COMMAND: u8 = 0xb;
    /// VOLUME OVERFLOW: the end of the medium was reached with data left.
    pub const VOLUME_OVERFLOW: u8 = 0xd;
    /// MISCOMPARE: the data are not those on the medium.
    pub const MISCOMPARE: u8 = 0xe;
    /// COMPLETED: for the information of whoever asked; the command was carried out.
    pub const COMPLETED: u8 = 0xf;
}

/// Name of a sense key; only the lower four bits count.
pub const fn key_text(key: u8) -> &'static str {
    match key & 0x0f {
        key::NO_SENSE => "NO SENSE",
        key::RECOVERED_ERROR => "RECOVERED ERROR",
        key::NOT_READY => "NOT READY",
        key::MEDIUM_ERROR => "MEDIUM ERROR",
        key::HARDWARE_ERROR => "HARDWARE ERROR",
        key::ILLEGAL_REQUEST => "ILLEGAL REQUEST",
        key::UNIT_ATTENTION => "UNIT ATTENTION",
        key::DATA_PROTECT => "DATA PROTECT",
        key::BLANK_CHECK => "BLANK CHECK",
        key::VENDOR_SPECIFIC => "VENDOR SPECIFIC",
        key::COPY_ABORTED => "COPY ABORTED",
        key::ABORTED_COMMAND => "ABORTED COMMAND",
        key::VOLUME_OVERFLOW => "VOLUME OVERFLOW",
        key::MISCOMPARE => "MISCOMPARE",
        key::COMPLETED => "COMPLETED",
        _ => "reserved sense key",
    }
}

/// Which field of a command or of its parameter list a target objects to (SPC-4 4.5.2.4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct FieldPointer {
    /// C/D: in the command descriptor block; else in the parameter list.
    pub in_cdb: bool,
    /// First octet of the field.
    pub byte: u16,
    /// Leftmost bit of the field in that octet, 7 to 0, where the field is smaller than an octet.
    pub bit: Option<u8>,
}

impl fmt::Display for FieldPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}", self.byte)?;
        if let Some(bit) = self.bit {
            write!(f, " bit {bit}")?;
        }
        f.write_str(if self.in_cdb { " of the CDB" } else { " of the parameter list" })
    }
}

/// What sense data say. Plain `Copy` data; both formats hold the same facts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Sense {
    /// It concerns an earlier command that has been answered already (response codes 71h and 73h). The command that it came with was not
    /// carried out (SPC-4 4.5.5).
    pub deferred: bool,
    /// Sense key, four bits, see [`key`].
    pub key: u8,
    /// Additional sense code; zero if the data ended before it.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// INFORMATION, where VALID says that there is one: for block devices mostly the LBA of the first block in error. The fixed format
    /// has 32 bits for it.
    pub information: Option<u64>,
    /// COMMAND-SPECIFIC INFORMATION, where there is one. The fixed format cannot tell zero from none: zero is none.
    pub command_specific: Option<u64>,
    /// SENSE KEY SPECIFIC with its valid bit removed, where that was set: three octets whose meaning depends on the key.
    pub key_specific: Option<[u8; 3]>,
}

/// Descriptor types (SPC-4 4.5.2.1).
mod descriptor {
    pub(super) const INFORMATION: u8 = 0x00;
    pub(super) const COMMAND_SPECIFIC: u8 = 0x01;
    pub(super) const KEY_SPECIFIC: u8 = 0x02;
}

const FIXED_LEN: usize = 18;
const VALID: u8 = 7;
const SKSV: u8 = 7;

/// Building.
impl Sense {
    /// Current sense data with this key and this additional sense code, and nothing else.
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        let (deferred, key) = (false, key & 0x0f);
        Sense { deferred, key, asc, ascq, information: None, command_specific: None, key_specific: None }
    }

    /// What a target answers to a parameter list that it cannot read: PARAMETER LIST LENGTH ERROR or INVALID FIELD IN PARAMETER LIST.
    pub const fn of_parameter_list(error: &ParseError) -> Self {
        match error {
            ParseError::Short { .. } | ParseError::Length { .. } => Sense::new(key::ILLEGAL_REQUEST, 0x1a, 0),
            ParseError::Value { .. } => Sense::new(key::ILLEGAL_REQUEST, 0x26, 0),
        }
    }

    /// The same about an earlier command.
    #[must_use]
    pub const fn deferred(mut self) -> Self {
        self.deferred = true;
        self
    }

    /// The same with this INFORMATION, for instance an LBA.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// The same with a field pointer. Only for ILLEGAL REQUEST.
    #[must_use]
    pub const fn with_field(mut self, field: FieldPointer) -> Self {
        let bits = match field.bit {
            Some(bit) => 1 << 3 | bit & 7,
            None => 0,
        };
        let [high, low] = field.byte.to_be_bytes();
        self.key_specific = Some([(field.in_cdb as u8) << 6 | bits, high, low]);
        self
    }

    /// The same with a progress, in parts of 65 536. Only for NO SENSE and NOT READY.
    #[must_use]
    pub const fn with_progress(mut self, progress: u16) -> Self {
        let [high, low] = progress.to_be_bytes();
        self.key_specific = Some([0, high, low]);
        self
    }

    /// The octets in fixed format, 18 of them: what a target returns whose Control mode page has D_SENSE zero. INFORMATION that does not
    /// fit in 32 bits is left out (SPC-4 4.5.3: VALID shall be zero then).
    pub fn to_fixed(&self) -> [u8; FIXED_LEN] {
        let mut b = [0; FIXED_LEN];
        b[0] = 0x70 | flag(self.deferred, 0);
        b[2] = self.key & 0x0f;
        b[7] = (FIXED_LEN - 8) as u8;
        (b[12], b[13]) = (self.asc, self.ascq);
        if let Some(information) = self.information.and_then(|i| u32::try_from(i).ok()) {
            b[0] |= 1 << VALID;
            put32(&mut b, 3, information);
        }
        if let Some(specific) = self.command_specific.and_then(|c| u32::try_from(c).ok()) {
            put32(&mut b, 8, specific);
        }
        if let Some(specific) = self.key_specific {
            put(&mut b, 15, &specific);
            b[15] |= 1 << SKSV;
        }
        b
    }

    /// The octets in descriptor format: what a target returns whose Control mode page has D_SENSE set. 8 to 40 of them.
    pub fn to_descriptors(&self) -> Vec<u8> {
        let mut b = vec![0x72 | flag(self.deferred, 0), self.key & 0x0f, self.asc, self.ascq, 0, 0, 0, 0];
        for (kind, value) in
            [(descriptor::INFORMATION, self.information), (descriptor::COMMAND_SPECIFIC, self.command_specific)]
        {
            if let Some(value) = value {
                let mut d = [kind, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                d[2] = flag(kind == descriptor::INFORMATION, VALID);
                put64(&mut d, 4, value);
                b.extend_from_slice(&d);
            }
        }
        if let Some([first, second, third]) = self.key_specific {
            b.extend_from_slice(&[descriptor::KEY_SPECIFIC, 6, 0, 0, first | 1 << SKSV, second, third, 0]);
        }
        b[7] = (b.len() - 8) as u8;
        b
    }
}

/// Reading.
impl Sense {
    /// Reads sense data of either format. What is cut off or missing is absent; octets beyond the structure's own length do not count.
    ///
    /// # Errors
    /// [`ParseError::Short`] if not even the sense key is there, [`ParseError::Value`] for a response code other than 70h to 73h.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "sense data";
        let code = get8(front(bytes, 1, WHAT)?, 0) & 0x7f;
        match code {
            0x70 | 0x71 => Ok(Self::parse_fixed(front(bytes, 3, WHAT)?, bytes)),
            0x72 | 0x73 => Ok(Self::parse_descriptors(front(bytes, 2, WHAT)?, bytes)),
            code => Err(ParseError::Value {
                what: "response code of sense data",
                value: code.into(),
                expected: "70h to 73h",
            }),
        }
    }

    fn parse_fixed(head: &[u8], bytes: &[u8]) -> Self {
        // Some devices say zero for the additional length and send the usual 18 octets: what is there is believed.
        let end = match get8(bytes, 7) {
            0 => FIXED_LEN,
            more => 8 + usize::from(more),
        };
        let b = bytes.get(..end).unwrap_or(bytes);
        let command_specific = u64::from(get32(b, 8));
        Sense {
            deferred: get8(head, 0) & 1 != 0,
            key: get8(head, 2) & 0x0f,
            asc: get8(b, 12),
            ascq: get8(b, 13),
            information: (bit(b, 0, VALID) && b.len() >= 7).then(|| get32(b, 3).into()),
            command_specific: (b.len() >= 12 && command_specific != 0).then_some(command_specific),
            key_specific: key_specific(b.get(15..18)),
        }
    }

    fn parse_descriptors(head: &[u8], bytes: &[u8]) -> Self {
        let mut sense = Sense::new(get8(head, 1), get8(bytes, 2), get8(bytes, 3));
        sense.deferred = get8(head, 0) & 1 != 0;
        let end = 8 + usize::from(get8(bytes, 7));
        let mut rest = bytes.get(..end).unwrap_or(bytes).get(8..).unwrap_or(&[]);
        while let Some((&[kind, length], tail)) = rest.split_first_chunk::<2>() {
            // One that is cut off is left out.
            let Some((d, next)) = tail.split_at_checked(usize::from(length)) else { break };
            match kind {
                descriptor::INFORMATION if d.len() >= 10 && bit(d, 0, VALID) => sense.information = Some(get64(d, 2)),
                descriptor::COMMAND_SPECIFIC if d.len() >= 10 => sense.command_specific = Some(get64(d, 2)),
                descriptor::KEY_SPECIFIC => sense.key_specific = key_specific(d.get(2..5)),
                _ => {}
            }
            rest = next;
        }
        sense
    }

    /// Additional sense code and qualifier as one number, `asc << 8 | ascq`.
    pub const fn code(&self) -> u16 {
        (self.asc as u16) << 8 | self.ascq as u16
    }

    /// Key, additional sense code and qualifier as one number for [`polypath_block::Status::detail`]: `key << 16 | asc << 8 | ascq`.
    pub const fn detail(&self) -> u32 {
        (self.key as u32) << 16 | self.code() as u32
    }

    /// Whether key, additional sense code and qualifier are these.
    pub const fn is(&self, key: u8, asc: u8, ascq: u8) -> bool {
        self.key == key && self.asc == asc && self.ascq == ascq
    }

    /// Which field an ILLEGAL REQUEST is about, if it tells.
    pub fn field(&self) -> Option<FieldPointer> {
        let [first, rest @ ..] = self.key_specific.filter(|_| self.key == key::ILLEGAL_REQUEST)?;
        let bit = (first & 1 << 3 != 0).then_some(first & 7);
        Some(FieldPointer { in_cdb: first & 1 << 6 != 0, byte: u16::from_be_bytes(rest), bit })
    }

    /// How far something is that NOT READY or NO SENSE wait for, in parts of 65 536, if it tells.
    pub fn progress(&self) -> Option<u16> {
        let waits = matches!(self.key, key::NO_SENSE | key::NOT_READY);
        self.key_specific.filter(|_| waits).map(|s| get16(&s, 1))
    }
}

fn key_specific(octets: Option<&[u8]>) -> Option<[u8; 3]> {
    let [first, rest @ ..] = *octets?.first_chunk::<3>()?;
    (first & 1 << SKSV != 0).then_some([first & 0x7f, rest[0], rest[1]])
}

/// As `3 MEDIUM ERROR, 11h/00h unrecovered read error, information 1234h`.
impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.deferred {
            f.write_str("deferred: ")?;
        }
        write!(f, "{:X} {}, {:02X}h/{:02X}h", self.key, key_text(self.key), self.asc, self.ascq)?;
        if let Some(text) = asc_text(self.asc, self.ascq) {
            write!(f, " {text}")?;
        }
        if let Some(information) = self.information {
            write!(f, ", information {information:X}h")?;
        }
        if let Some(field) = self.field() {
            write!(f, ", {field}")?;
        }
        match self.progress() {
            Some(progress) => write!(f, ", {} % done", u32::from(progress) * 100 / 0x1_0000),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
