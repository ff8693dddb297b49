//! What can be called. Parameters are objects; unknown members are refused by name.

use super::RpcError;
use crate::config::{
    DiskConfig, FencingName, NO_PATH_TIMEOUT_MS, PathConfig, QUEUE_SIZE, VhostConfig, WEIGHT, check_rings,
};
use crate::daemon::Daemon;
use polypath::DiskUri;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Display;
use std::str::FromStr;

type Answer = Result<Value, RpcError>;
type Method = fn(&Daemon, Value) -> Answer;

/// Every method with its parameters, as `rpc_methods` lists them.
const METHODS: &[(&str, &str, Method)] = &[
    ("version", "", |_, p| bare(p, || json!({ "version": env!("CARGO_PKG_VERSION") }))),
    ("rpc_methods", "", |_, p| bare(p, || METHODS.iter().map(|m| json!({ "method": m.0, "params": m.1 })).collect())),
    (
        "disk_create",
        "name, paths: [URI | {uri, name?, weight?}], selector?, no_path_timeout_ms?, fencing?",
        disk_create,
    ),
    ("disk_list", "", |d, p| bare(p, || d.disks())),
    ("disk_delete", "name", disk_delete),
    ("path_add", "disk, uri, name?, weight?", path_add),
    ("path_remove", "disk, path", path_remove),
    ("path_set_weight", "disk, path, weight", path_set_weight),
    ("selector_set", "disk, selector", selector_set),
    ("vhost_create", "disk, socket, queues?, queue_size?, read_only?, serial?", vhost_create),
    ("vhost_list", "", |d, p| bare(p, || d.vhosts())),
    ("vhost_delete", "socket", vhost_delete),
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
    uri: String,
    name: Option<String>,
    weight: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskCreate {
    name: String,
    paths: Vec<PathParameter>,
    selector: Option<String>,
    no_path_timeout_ms: Option<u64>,
    fencing: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathAdd {
    disk: String,
    uri: String,
    name: Option<String>,
    weight: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathName {
    disk: String,
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathWeight {
    disk: String,
    path: String,
    weight: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectorSet {
    disk: String,
    selector: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VhostCreate {
    disk: String,
    socket: std::path::PathBuf,
    queues: Option<u16>,
    queue_size: Option<u16>,
    #[serde(default)]
    read_only: bool,
    serial: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Socket {
    socket: std::path::PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Statistics {
    disk: Option<String>,
}

/// A method without parameters.
fn bare(params: Value, answer: impl FnOnce() -> Value) -> Answer {
    let Nothing {} = read(params)?;
    Ok(answer())
}

fn disk_create(daemon: &Daemon, params: Value) -> Answer {
    let p: DiskCreate = read(params)?;
    if p.name.is_empty() || p.paths.is_empty() {
        return Err(RpcError::parameters("a disk needs a name and at least one path"));
    }
    let mut paths = Vec::new();
    for (i, path) in p.paths.into_iter().enumerate() {
        let table = match path {
            PathParameter::Uri(uri) => PathTable { uri, name: None, weight: None },
            PathParameter::Full(table) => table,
        };
        paths.push(path_config(&format!("paths[{i}]"), &table.uri, table.name, table.weight)?);
    }
    let config = DiskConfig {
        name: p.name,
        selector: p.selector.map_or(Ok(Default::default()), |s| parse("selector", &s))?,
        no_path_timeout_ms: p.no_path_timeout_ms.unwrap_or(NO_PATH_TIMEOUT_MS),
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

fn path_add(daemon: &Daemon, params: Value) -> Answer {
    let p: PathAdd = read(params)?;
    let path = path_config("uri", &p.uri, p.name, p.weight)?;
    let name = daemon.add_path(&p.disk, &path).map_err(RpcError::failed)?;
    Ok(json!({ "path": name }))
}

fn path_remove(daemon: &Daemon, params: Value) -> Answer {
    let p: PathName = read(params)?;
    daemon.remove_path(&p.disk, &p.path).map_err(RpcError::failed)?;
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

fn selector_set(daemon: &Daemon, params: Value) -> Answer {
    let p: SelectorSet = read(params)?;
    daemon.set_selector(&p.disk, parse("selector", &p.selector)?).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

fn vhost_create(daemon: &Daemon, params: Value) -> Answer {
    let p: VhostCreate = read(params)?;
    let (queues, queue_size) = (p.queues.unwrap_or(1), p.queue_size.unwrap_or(QUEUE_SIZE));
    check_rings(queues, queue_size).map_err(|(key, problem)| RpcError::parameters(format!("{key} {problem}")))?;
    let config =
        VhostConfig { disk: p.disk, socket: p.socket, queues, queue_size, read_only: p.read_only, serial: p.serial };
    let socket = daemon.create_vhost(&config).map_err(RpcError::failed)?;
    Ok(json!({ "socket": socket }))
}

fn vhost_delete(daemon: &Daemon, params: Value) -> Answer {
    let p: Socket = read(params)?;
    daemon.delete_vhost(&p.socket).map_err(RpcError::failed)?;
    Ok(Value::Bool(true))
}

fn statistics(daemon: &Daemon, params: Value) -> Answer {
    let p: Statistics = read(params)?;
    daemon.statistics(p.disk.as_deref()).map_err(RpcError::failed)
}

fn path_config(key: &str, uri: &str, name: Option<String>, weight: Option<u32>) -> Result<PathConfig, RpcError> {
    let uri: DiskUri = parse(key, uri)?;
    if name.as_ref().is_some_and(String::is_empty) {
        return Err(RpcError::parameters(format!("{key}: name is empty; expected a name, or none")));
    }
    match weight.unwrap_or(WEIGHT) {
        0 => Err(RpcError::parameters(format!("{key}: weight is 0; expected 1 or more"))),
        weight => Ok(PathConfig { uri, name, weight }),
    }
}

fn read<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    if !params.is_object() {
        return Err(RpcError::parameters("parameters are not an object; expected members by name"));
    }
    serde_path_to_error::deserialize(params).map_err(|e| {
        let path = e.path().to_string();
        RpcError::parameters(if path == "." { e.inner().to_string() } else { format!("{path}: {}", e.inner()) })
    })
}

fn parse<T: FromStr<Err: Display>>(key: &str, text: &str) -> Result<T, RpcError> {
    text.parse().map_err(|e: T::Err| RpcError::parameters(format!("{key}: {e}")))
}
