//! Methods of reservations.

use super::RpcError;
use super::methods::{Answer, parse, read, text, text_if_any};
use crate::daemon::{Daemon, Wanted};
use polypath::block::ReservationType;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfDisk {
    #[serde(deserialize_with = "text")]
    disk: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Register {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(deserialize_with = "text")]
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reserve {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(rename = "type", default, deserialize_with = "text_if_any")]
    kind: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Preempt {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(deserialize_with = "text")]
    victim: String,
    #[serde(rename = "type", default, deserialize_with = "text_if_any")]
    kind: Option<String>,
    #[serde(default)]
    abort: bool,
}

/// A key as it is written: 64 bits, hexadecimal after `0x`, and not zero.
fn key(name: &str, text: &str) -> Result<u64, RpcError> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    number.filter(|key| *key != 0).ok_or_else(|| {
        RpcError::parameters(format!(
            "{name}: \"{text}\" found; expected a number of 64 bits that is not 0, such as 0xa11ce"
        ))
    })
}

/// Unless told otherwise others may read, and every session of ours may write.
fn kind(text: Option<String>) -> Result<ReservationType, RpcError> {
    text.map_or(Ok(ReservationType::WriteExclusiveRegistrantsOnly), |text| parse("type", &text))
}

fn carry_out(daemon: &Daemon, disk: &str, wanted: Wanted) -> Answer {
    daemon.reservation(disk, wanted).map_err(RpcError::failed)
}

pub(super) fn register(daemon: &Daemon, params: Value) -> Answer {
    let p: Register = read(params)?;
    carry_out(daemon, &p.disk, Wanted::Register { key: key("key", &p.key)? })
}

pub(super) fn unregister(daemon: &Daemon, params: Value) -> Answer {
    let p: OfDisk = read(params)?;
    carry_out(daemon, &p.disk, Wanted::Unregister)
}

pub(super) fn reserve(daemon: &Daemon, params: Value) -> Answer {
    let p: Reserve = read(params)?;
    carry_out(daemon, &p.disk, Wanted::Reserve { kind: kind(p.kind)? })
}

pub(super) fn release(daemon: &Daemon, params: Value) -> Answer {
    let p: OfDisk = read(params)?;
    carry_out(daemon, &p.disk, Wanted::Release)
}

pub(super) fn preempt(daemon: &Daemon, params: Value) -> Answer {
    let p: Preempt = read(params)?;
    let wanted = Wanted::Preempt { victim: key("victim", &p.victim)?, kind: kind(p.kind)?, abort: p.abort };
    carry_out(daemon, &p.disk, wanted)
}

pub(super) fn clear(daemon: &Daemon, params: Value) -> Answer {
    let p: OfDisk = read(params)?;
    carry_out(daemon, &p.disk, Wanted::Clear)
}

pub(super) fn report(daemon: &Daemon, params: Value) -> Answer {
    let p: OfDisk = read(params)?;
    carry_out(daemon, &p.disk, Wanted::Report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_types_are_read() {
        assert_eq!(key("key", "0xA11ce").unwrap(), 0xa11ce);
        assert_eq!(key("key", "18446744073709551615").unwrap(), u64::MAX);
        for wrong in ["0", "0x0", "-1", "key", "0x10000000000000000", ""] {
            assert!(key("key", wrong).unwrap_err().message.contains("64 bits"), "{wrong}");
        }
        assert_eq!(kind(None).unwrap(), ReservationType::WriteExclusiveRegistrantsOnly);
        assert!(kind(Some("mine".into())).unwrap_err().message.contains("write-exclusive-all-registrants"));
    }
}
