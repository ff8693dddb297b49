//! Methods that pass a command through to a disk. Octets are hexadecimal digits in a text; a number is none, for it may have been rounded.

use super::RpcError;
use super::methods::{Answer, LONGEST_WAIT_MS, read, text, text_if_any};
use crate::daemon::Daemon;
use polypath::block::{NvmeCommand, NvmeScope, PassthroughCommand, PassthroughData, PassthroughRequest};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// How long a command may take, unless told otherwise.
const TIMEOUT_MS: u64 = 30_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scsi {
    #[serde(deserialize_with = "text")]
    disk: String,
    cdb: String,
    length: Option<u32>,
    data: Option<String>,
    #[serde(default)]
    changes: bool,
    timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nvme {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(deserialize_with = "text")]
    queue: String,
    #[serde(deserialize_with = "text")]
    opcode: String,
    #[serde(default, deserialize_with = "text_if_any")]
    scope: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    cdw10: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    cdw11: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    cdw12: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    cdw13: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    cdw14: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    cdw15: Option<String>,
    length: Option<u32>,
    data: Option<String>,
    #[serde(default)]
    changes: bool,
    timeout_ms: Option<u64>,
}

/// Octets as pairs of digits, after `0x` or not.
fn octets(name: &str, text: &str) -> Result<Vec<u8>, RpcError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let digits: Option<Vec<u8>> = digits.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2)).ok_or_else(|| {
        RpcError::parameters(format!(
            "{name} is no octets; expected pairs of hexadecimal digits, such as 0x12000000ff00"
        ))
    })?;
    Ok(digits.chunks(2).map(|pair| pair.iter().fold(0, |octet, digit| octet << 4 | digit)).collect())
}

/// A number of at most `most`, hexadecimal after `0x`.
fn number(name: &str, text: &str, most: u32) -> Result<u32, RpcError> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    number.filter(|number| *number <= most).ok_or_else(|| {
        RpcError::parameters(format!("{name}: \"{text}\" found; expected a number from 0 to {most}, or as 0x7f"))
    })
}

fn data(length: Option<u32>, data: Option<String>) -> Result<PassthroughData, RpcError> {
    match (length, data) {
        (None, None) => Ok(PassthroughData::None),
        (Some(length), None) => Ok(PassthroughData::In(length)),
        (None, Some(text)) => Ok(PassthroughData::Out(octets("data", &text)?)),
        (Some(_), Some(_)) => {
            Err(RpcError::parameters("length (of what comes) and data (that go) are given; expected one of them"))
        }
    }
}

fn scope(text: Option<String>) -> Result<NvmeScope, RpcError> {
    match text.as_deref() {
        None | Some("namespace") => Ok(NvmeScope::Namespace),
        Some("controller") => Ok(NvmeScope::Controller),
        Some("all") => Ok(NvmeScope::All),
        Some(other) => {
            Err(RpcError::parameters(format!("scope is \"{other}\"; expected namespace, controller or all")))
        }
    }
}

fn limit(timeout_ms: Option<u64>) -> Duration {
    Duration::from_millis(timeout_ms.unwrap_or(TIMEOUT_MS).min(LONGEST_WAIT_MS))
}

pub(super) fn scsi(daemon: &Daemon, params: Value) -> Answer {
    let p: Scsi = read(params)?;
    let command = PassthroughCommand::Scsi(octets("cdb", &p.cdb)?);
    let request = PassthroughRequest { command, data: data(p.length, p.data)?, changes: p.changes };
    daemon.passthrough(&p.disk, request, limit(p.timeout_ms)).map_err(RpcError::failed)
}

pub(super) fn nvme(daemon: &Daemon, params: Value) -> Answer {
    let p: Nvme = read(params)?;
    let admin = match p.queue.as_str() {
        "admin" => true,
        "io" => false,
        other => return Err(RpcError::parameters(format!("queue is \"{other}\"; expected admin or io"))),
    };
    let opcode = number("opcode", &p.opcode, 0xff)? as u8;
    let mut cdw10_15 = [0; 6];
    let dwords = [p.cdw10, p.cdw11, p.cdw12, p.cdw13, p.cdw14, p.cdw15];
    for ((n, text), dword) in (10..).zip(&dwords).zip(&mut cdw10_15) {
        *dword = text.as_deref().map_or(Ok(0), |text| number(&format!("cdw{n}"), text, u32::MAX))?;
    }
    let command = PassthroughCommand::Nvme(NvmeCommand { admin, opcode, scope: scope(p.scope)?, cdw10_15 });
    let request = PassthroughRequest { command, data: data(p.length, p.data)?, changes: p.changes };
    daemon.passthrough(&p.disk, request, limit(p.timeout_ms)).map_err(RpcError::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_numbers_and_data_are_read() {
        assert_eq!(octets("cdb", "12000000fF00").unwrap(), [0x12, 0, 0, 0, 0xff, 0]);
        assert_eq!(octets("cdb", "0x28").unwrap(), [0x28]);
        assert!(octets("cdb", "").unwrap().is_empty());
        for wrong in ["1", "zz", "0x123", "12 00", "é"] {
            assert!(octets("cdb", wrong).unwrap_err().message.contains("pairs"), "{wrong}");
        }
        assert_eq!((number("n", "0x7f", 0xff).unwrap(), number("n", "255", 0xff).unwrap()), (127, 255));
        assert_eq!(number("n", "0xffffffff", u32::MAX).unwrap(), u32::MAX);
        for wrong in ["256", "-1", "0x", "", "0x100", "x"] {
            assert!(number("n", wrong, 0xff).unwrap_err().message.contains("from 0 to 255"), "{wrong}");
        }
        assert_eq!(data(Some(4), None).unwrap(), PassthroughData::In(4));
        assert_eq!(data(None, Some("0a0b".into())).unwrap(), PassthroughData::Out(vec![10, 11]));
        assert!(data(Some(4), Some("0a".into())).unwrap_err().message.contains("one of them"));
        assert!(scope(Some("disk".into())).unwrap_err().message.contains("namespace, controller or all"));
        assert_eq!(scope(None).unwrap(), NvmeScope::Namespace);
    }
}
