//! What can be called. Parameters are objects; unknown members are refused by name.

use super::{RpcError, passthrough, reservations};
use crate::config::{
    DiskConfig, NO_PATH_TIMEOUT_MS, NbdConfig, PathConfig, QUEUE_SIZE, SliceConfig, VhostConfig, WEIGHT,
};
use crate::daemon::Daemon;
use crate::nbd::Place;
use crate::values::{self, FencingName, MatchValue, SizeValue, check_rings, no_path_timeout, socket_access};
use polypath::sources::SourceUri;
use polypath::{DiskUri, SelectorKind, SliceRange};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

/// Longest wait that a call may ask for.
pub(super) const LONGEST_WAIT_MS: u64 = 600_000;

pub(super) type Answer = Result<Value, RpcError>;
type Method = fn(&Daemon, Value) -> Answer;

/// Every method with its parameters, as `rpc_methods` lists them.
const METHODS: &[(&str, &str, Method)] = &[
    ("version", "", |_, p| bare(p, || json!({ "version": env!("CARGO_PKG_VERSION") }))),
    ("rpc_methods", "", |_, p| bare(p, || METHODS.iter().map(|m| json!({ "method": m.0, "params": m.1 })).collect())),
    (
        "disk_create",
        "name, paths: [URI | {uri, name?, weight?, preferred?}], selector?, min_io?, failback?, no_path_timeout_ms?, fencing?, match?",
        disk_create,
    ),
    ("disk_list", "", |d, p| bare(p, || d.disks())),
    ("disk_delete", "name", disk_delete),
    ("slice_create", "name, disk, offset, length", slice_create),
    ("slice_list", "", |d, p| bare(p, || d.slices())),
    ("slice_delete", "name", slice_delete),
    ("reservation_register", "disk, key", reservations::register),
    ("reservation_unregister", "disk", reservations::unregister),
    ("reservation_reserve", "disk, type?", reservations::reserve),
    ("reservation_release", "disk", reservations::release),
    ("reservation_preempt", "disk, victim, type?, abort?", reservations::preempt),
    ("reservation_clear", "disk", reservations::clear),
    ("reservation_report", "disk", reservations::report),
    ("passthrough_scsi", "disk, cdb, length?, data?, changes?, timeout_ms?", passthrough::scsi),
    (
        "passthrough_nvme",
        "disk, queue: admin | io, opcode, scope?: namespace | controller | all, cdw10? ... cdw15?, length?, data?, changes?, timeout_ms?",
        passthrough::nvme,
    ),
    ("path_add", "disk, uri, name?, weight?, preferred?, wait_ms?", path_add),
    ("path_remove", "disk, path, force?", path_remove),
    ("path_set_weight", "disk, path, weight", path_set_weight),
    ("path_set_preferred", "disk, path, preferred", path_set_preferred),
    ("selector_set", "disk, selector, min_io?, failback?", selector_set),
    (
        "vhost_create",
        "disk, socket, queues?, queue_size?, read_only?, serial?, mode?, owner?, group?, cpus?",
        vhost_create,
    ),
    ("vhost_list", "", |d, p| bare(p, || d.vhosts())),
    ("vhost_delete", "socket", vhost_delete),
    ("nbd_create", "disk, socket | address, name?, read_only?, mode?, owner?, group?", nbd_create),
    ("nbd_list", "", |d, p| bare(p, || d.nbds())),
    ("nbd_delete", "socket | address, name?", nbd_delete),
    ("source_create", "uri", source_create),
    ("source_list", "", |d, p| bare(p, || d.list_sources())),
    ("source_delete", "source: number or URI, force?", source_delete),
    ("statistics", "disk?", statistics),
    ("reactor_statistics", "", |d, p| bare(p, || d.reactors())),
    ("shutdown", "", |d, p| {
        bare(p, || {
            d.request_shutdown();
            Value::Bool(true)
        })
    }),
];

/// Calls `method`.
pub(super) fn call(daemon: &Daemon, method: &str, params: Value) -> Answer {
    match METHODS.iter().find(|m| m.0 == method) {
        Some((_, _, call)) => call(daemon, params),
        None => {
            let names: Vec<_> = METHODS.iter().map(|m| m.0).collect();
            let message = format!("no method \"{method}\"; there are: {}", names.join(", "));
            Err(RpcError { code: -32601, message })
        }
    }
}

/// A text that may look like a number to who sent it: a name, a serial number, octal digits.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Text(text)),
            Value::Number(number) => Ok(Text(number.to_string())),
            Value::Bool(word) => Ok(Text(word.to_string())),
            other => {
                let found = if other.is_array() {
                    "a list"
                } else if other.is_object() {
                    "an object"
                } else {
                    "null"
                };
                Err(D::Error::custom(format!("{found} found; expected a text")))
            }
        }
    }
}

pub(super) fn text<'de, D: Deserializer<'de>, T: From<String>>(deserializer: D) -> Result<T, D::Error> {
    Ok(T::from(Text::deserialize(deserializer)?.0))
}

pub(super) fn text_if_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Text>::deserialize(deserializer)?.map(|text| text.0))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(untagged)]
enum PathParameter {
    Uri(String),
    Full(PathTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathTable {
    #[serde(deserialize_with = "text")]
    uri: String,
    #[serde(default, deserialize_with = "text_if_any")]
    name: Option<String>,
    weight: Option<u32>,
    #[serde(default)]
    preferred: bool,
}

/// `min_io` and `failback`, beside a `selector`.
#[derive(Default)]
struct SelectorText {
    selector: Option<String>,
    min_io: Option<u32>,
    failback: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskCreate {
    #[serde(deserialize_with = "text")]
    name: String,
    paths: Vec<PathParameter>,
    #[serde(default, deserialize_with = "text_if_any")]
    selector: Option<String>,
    min_io: Option<u32>,
    #[serde(default, deserialize_with = "text_if_any")]
    failback: Option<String>,
    no_path_timeout_ms: Option<i64>,
    #[serde(default, deserialize_with = "text_if_any")]
    fencing: Option<String>,
    #[serde(rename = "match")]
    matching: Option<MatchValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    #[serde(deserialize_with = "text")]
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SliceCreate {
    #[serde(deserialize_with = "text")]
    name: String,
    #[serde(deserialize_with = "text")]
    disk: String,
    offset: SizeValue,
    length: SizeValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathAdd {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(deserialize_with = "text")]
    uri: String,
    #[serde(default, deserialize_with = "text_if_any")]
    name: Option<String>,
    weight: Option<u32>,
    #[serde(default)]
    preferred: bool,
    #[serde(default)]
    wait_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathRemove {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(deserialize_with = "text")]
    path: String,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathWeight {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(deserialize_with = "text")]
    path: String,
    weight: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathPreferred {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(deserialize_with = "text")]
    path: String,
    preferred: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectorSet {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(deserialize_with = "text")]
    selector: String,
    min_io: Option<u32>,
    #[serde(default, deserialize_with = "text_if_any")]
    failback: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VhostCreate {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(deserialize_with = "text")]
    socket: std::path::PathBuf,
    queues: Option<u16>,
    queue_size: Option<u16>,
    #[serde(default)]
    read_only: bool,
    #[serde(default, deserialize_with = "text_if_any")]
    serial: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    mode: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    owner: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    group: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    cpus: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NbdCreate {
    #[serde(deserialize_with = "text")]
    disk: String,
    #[serde(default, deserialize_with = "text_if_any")]
    socket: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    address: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    name: Option<String>,
    #[serde(default)]
    read_only: bool,
    #[serde(default, deserialize_with = "text_if_any")]
    mode: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    owner: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    group: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NbdDelete {
    #[serde(default, deserialize_with = "text_if_any")]
    socket: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    address: Option<String>,
    #[serde(default, deserialize_with = "text_if_any")]
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Socket {
    #[serde(deserialize_with = "text")]
    socket: std::path::PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceCreate {
    #[serde(deserialize_with = "text")]
    uri: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceDelete {
    #[serde(deserialize_with = "text")]
    source: String,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Statistics {
    #[serde(default, deserialize_with = "text_if_any")]
    disk: Option<String>,
}

/// A method without parameters.
fn bare(params: Value, answer: impl FnOnce() -> Value) -> Answer {
    let Nothing {} = read(params)?;
    Ok(answer())
}

fn disk_create(daemon: &Daemon, params: Value) -> Answer {
    let p: DiskCreate = read(params)?;
    values::disk_name(&p.name).map_err(|e| RpcError::parameters(format!("name {e}")))?;
    if p.paths.is_empty() {
        return Err(RpcError::parameters("paths is empty; expected at least one path"));
    }
    let mut paths = Vec::new();
    for (i, path) in p.paths.into_iter().enumerate() {
        let table = match path {
            PathParameter::Uri(uri) => PathTable { uri, name: None, weight: None, preferred: false },
            PathParameter::Full(table) => table,
        };
        let path = path_config(&format!("paths[{i}]"), &table.uri, table.name, table.weight)?;
        paths.push(PathConfig { preferred: table.preferred, ..path });
    }
    let config = DiskConfig {
        name: p.name,
        selector: SelectorText { selector: p.selector, min_io: p.min_io, failback: p.failback }.read()?,
        no_path_timeout_ms: p.no_path_timeout_ms.map_or(Ok(NO_PATH_TIMEOUT_MS), |ms| {
            no_path_timeout(ms).map_err(|e| RpcError::parameters(format!("no_path_timeout_ms {e}")))
        })?,
        matching: p
            .matching
            .map_or(Ok(Default::default()), |m| m.policy().map_err(|e| RpcError::parameters(format!("match: {e}"))))?,
        fencing: p.fencing.map_or(Ok(FencingName(Default::default())), |s| parse("fencing", &s))?.0,
        paths,
    };
    daemon.create_disk(&config).map_err(RpcError::failed)?;
    Ok(json!({ "name": config.name }))
}

fn disk_delete(daemon: &Daemon, params: Value) -> Answer {
    let p: Name = read(params)?;
    daemon.delete_disk(&p.name).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

fn slice_create(daemon: &Daemon, params: Value) -> Answer {
    let p: SliceCreate = read(params)?;
    values::disk_name(&p.name).map_err(|e| RpcError::parameters(format!("name {e}")))?;
    let bytes = |key, value: &SizeValue| value.bytes().map_err(|e| RpcError::parameters(format!("{key}: {e}")));
    let range = SliceRange { offset_bytes: bytes("offset", &p.offset)?, length_bytes: bytes("length", &p.length)? };
    values::slice_range(range).map_err(|(key, e)| RpcError::parameters(format!("{key} {e}")))?;
    let config = SliceConfig { name: p.name, disk: p.disk, range };
    daemon.create_slice(&config).map_err(RpcError::failed)?;
    Ok(json!({ "name": config.name }))
}

fn slice_delete(daemon: &Daemon, params: Value) -> Answer {
    let p: Name = read(params)?;
    daemon.delete_slice(&p.name).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

fn path_add(daemon: &Daemon, params: Value) -> Answer {
    let p: PathAdd = read(params)?;
    let path = PathConfig { preferred: p.preferred, ..path_config("uri", &p.uri, p.name, p.weight)? };
    let limit = Duration::from_millis(p.wait_ms.min(LONGEST_WAIT_MS));
    daemon.add_path(&p.disk, &path, limit).map_err(RpcError::failed)
}

fn path_remove(daemon: &Daemon, params: Value) -> Answer {
    let p: PathRemove = read(params)?;
    daemon.remove_path(&p.disk, &p.path, p.force).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

fn path_set_weight(daemon: &Daemon, params: Value) -> Answer {
    let p: PathWeight = read(params)?;
    if p.weight == 0 {
        return Err(RpcError::parameters("weight is 0; expected 1 or more"));
    }
    daemon.set_weight(&p.disk, &p.path, p.weight).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

fn path_set_preferred(daemon: &Daemon, params: Value) -> Answer {
    let p: PathPreferred = read(params)?;
    daemon.set_preferred(&p.disk, &p.path, p.preferred).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

impl SelectorText {
    fn read(self) -> Result<SelectorKind, RpcError> {
        let kind: SelectorKind = self.selector.map_or(Ok(Default::default()), |s| parse("selector", &s))?;
        let failback = self.failback.map(|s| parse("failback", &s)).transpose()?;
        kind.with_options(self.min_io, failback).map_err(|e| RpcError::parameters(e.to_string()))
    }
}

fn selector_set(daemon: &Daemon, params: Value) -> Answer {
    let p: SelectorSet = read(params)?;
    let text = SelectorText { selector: Some(p.selector), min_io: p.min_io, failback: p.failback };
    daemon.set_selector(&p.disk, text.read()?).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

fn vhost_create(daemon: &Daemon, params: Value) -> Answer {
    let p: VhostCreate = read(params)?;
    values::socket_path(&p.socket).map_err(|e| RpcError::parameters(format!("socket {e}")))?;
    let (queues, queue_size) = (p.queues.unwrap_or(1), p.queue_size.unwrap_or(QUEUE_SIZE));
    check_rings(queues, queue_size).map_err(|(key, problem)| RpcError::parameters(format!("{key} {problem}")))?;
    let bad = |(key, problem): (&str, String)| RpcError::parameters(format!("{key} {problem}"));
    p.serial.as_deref().map_or(Ok(()), values::serial).map_err(|e| bad(("serial", e)))?;
    let config = VhostConfig {
        disk: daemon.disk_name(&p.disk),
        socket: p.socket,
        queues,
        queue_size,
        read_only: p.read_only,
        serial: p.serial,
        access: socket_access(p.mode, p.owner, p.group).map_err(bad)?,
        cpus: p.cpus.map(|text| parse("cpus", &text)).transpose()?,
    };
    let socket = daemon.create_vhost(&config).map_err(RpcError::failed)?;
    Ok(json!({ "socket": socket }))
}

fn vhost_delete(daemon: &Daemon, params: Value) -> Answer {
    let p: Socket = read(params)?;
    daemon.delete_vhost(&p.socket).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

/// Where an NBD export is: one of the two.
fn place(socket: Option<String>, address: Option<String>) -> Result<Place, RpcError> {
    match (socket, address) {
        (Some(socket), None) => {
            let socket = std::path::PathBuf::from(socket);
            values::socket_path(&socket).map_err(|e| RpcError::parameters(format!("socket {e}")))?;
            Ok(Place::Socket(socket))
        }
        (None, Some(text)) => {
            let address = values::address(&text).map_err(|e| RpcError::parameters(format!("address {e}")))?;
            Ok(Place::Address(address))
        }
        (Some(_), Some(_)) => Err(RpcError::parameters("socket and address are given; expected one of them")),
        (None, None) => Err(RpcError::parameters("neither socket nor address is given; expected one of them")),
    }
}

fn nbd_create(daemon: &Daemon, params: Value) -> Answer {
    let p: NbdCreate = read(params)?;
    let name = p.name.unwrap_or_else(|| p.disk.clone());
    values::export_name(&name).map_err(|e| RpcError::parameters(format!("name {e}")))?;
    let bad = |(key, problem): (&str, String)| RpcError::parameters(format!("{key} {problem}"));
    let config = NbdConfig {
        disk: daemon.disk_name(&p.disk),
        name,
        place: place(p.socket, p.address)?,
        read_only: p.read_only,
        access: socket_access(p.mode, p.owner, p.group).map_err(bad)?,
    };
    let place = daemon.create_nbd(&config).map_err(RpcError::failed)?;
    Ok(match place {
        Place::Socket(path) => json!({ "socket": path, "name": config.name }),
        Place::Address(address) => json!({ "address": address.to_string(), "name": config.name }),
    })
}

fn nbd_delete(daemon: &Daemon, params: Value) -> Answer {
    let p: NbdDelete = read(params)?;
    daemon.delete_nbd(&place(p.socket, p.address)?, p.name.as_deref()).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

fn source_create(daemon: &Daemon, params: Value) -> Answer {
    let p: SourceCreate = read(params)?;
    values::fits_a_line(&p.uri, "a URI").map_err(|e| RpcError::parameters(format!("uri {e}")))?;
    let uri: SourceUri = parse("uri", &p.uri)?;
    let id = daemon.create_source(&uri).map_err(RpcError::failed)?;
    Ok(json!({ "source": id.0, "uri": uri.to_string(), "type": uri.kind().as_str() }))
}

fn source_delete(daemon: &Daemon, params: Value) -> Answer {
    let p: SourceDelete = read(params)?;
    daemon.delete_source(&p.source, p.force).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

fn statistics(daemon: &Daemon, params: Value) -> Answer {
    let p: Statistics = read(params)?;
    daemon.statistics(p.disk.as_deref()).map_err(RpcError::failed)
}

fn path_config(key: &str, uri: &str, name: Option<String>, weight: Option<u32>) -> Result<PathConfig, RpcError> {
    values::fits_a_line(uri, "a URI").map_err(|e| RpcError::parameters(format!("{key} {e}")))?;
    let uri: DiskUri = parse(key, uri)?;
    if let Some(name) = &name {
        values::path_name(name).map_err(|e| RpcError::parameters(format!("{key}: name {e}")))?;
    }
    match weight.unwrap_or(WEIGHT) {
        0 => Err(RpcError::parameters(format!("{key}: weight is 0; expected 1 or more"))),
        weight => Ok(PathConfig { uri, name, weight, preferred: false }),
    }
}

pub(super) fn read<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    if !params.is_object() {
        return Err(RpcError::parameters("parameters are not an object; expected members by name"));
    }
    serde_path_to_error::deserialize(params).map_err(|e| {
        let path = e.path().to_string();
        RpcError::parameters(if path == "." { e.inner().to_string() } else { format!("{path}: {}", e.inner()) })
    })
}

pub(super) fn parse<T: FromStr<Err: Display>>(key: &str, text: &str) -> Result<T, RpcError> {
    text.parse().map_err(|e: T::Err| RpcError::parameters(format!("{key}: {e}")))
}
