//! TransportIDs (SPC-4 7.6.4): how an initiator port is named to a target.

use crate::ParseError;
use crate::wire::{get8, get16, get64, len16, put64};

/// A TransportID as it is on the wire.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct TransportId(pub Vec<u8>);

/// PROTOCOL IDENTIFIER, bits 3:0 of byte 0.
const PROTOCOL: u8 = 0x0f;
const ISCSI: u8 = 5;
const SAS: u8 = 6;
/// TPID FORMAT 01b: initiator port, that is, name and ISID.
const WITH_ISID: u8 = 1 << 6;
/// Length of those that have no length of their own, and the least of those that do.
const LEN: usize = 24;

impl TransportId {
    /// The TransportID of an iSCSI initiator: its name, and for one port the session identifier.
    pub fn iscsi(name: &str, isid: Option<[u8; 6]>) -> Self {
        let mut text = name.as_bytes().to_vec();
        if let Some(isid) = isid {
            text.extend_from_slice(b",i,0x");
            text.extend(isid.iter().flat_map(|octet| format!("{octet:02x}").into_bytes()));
        }
        // ends with a NUL, is a multiple of four and at least 20
        text.resize((text.len() + 1).next_multiple_of(4).max(LEN - 4), 0);
        let [high, low] = len16(text.len()).to_be_bytes();
        let format = if isid.is_some() { WITH_ISID } else { 0 };
        TransportId([&[format | ISCSI, 0, high, low][..], &text].concat())
    }

    /// The TransportID of a SAS initiator port.
    pub fn sas(address: u64) -> Self {
        let mut b = vec![0; LEN];
        b[0] = SAS;
        put64(&mut b, 4, address);
        TransportId(b)
    }

    /// The iSCSI name, with the separator and the session identifier behind it where there is one; `None` for another protocol.
    pub fn iscsi_name(&self) -> Option<&str> {
        let text = self.0.get(4..).filter(|_| get8(&self.0, 0) & PROTOCOL == ISCSI)?;
        let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
        core::str::from_utf8(text.get(..end)?).ok().filter(|name| !name.chars().any(char::is_control))
    }

    /// The SAS address; `None` for another protocol.
    pub fn sas_address(&self) -> Option<u64> {
        (get8(&self.0, 0) & PROTOCOL == SAS && self.0.len() >= 12).then(|| get64(&self.0, 4))
    }

    /// The TransportID at the front of `bytes`, and what is behind it.
    pub(super) fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), ParseError> {
        let length = match get8(bytes, 0) & PROTOCOL {
            ISCSI => 4 + usize::from(get16(bytes, 2)),
            _ => LEN,
        };
        match bytes.split_at_checked(length) {
            Some((id, rest)) => Ok((TransportId(id.to_vec()), rest)),
            None => Err(ParseError::Value {
                what: "length of a TransportID",
                value: length as u64,
                expected: "no more than what is left of its list",
            }),
        }
    }

    pub(super) fn parse_list(bytes: &[u8]) -> Result<Vec<Self>, ParseError> {
        let (mut ids, mut rest) = (Vec::new(), bytes);
        while !rest.is_empty() {
            let (id, next) = Self::parse(rest)?;
            ids.push(id);
            rest = next;
        }
        Ok(ids)
    }
}
