//! The configuration file. What is wrong is reported as `FILE:LINE: key: what was found, what was expected`.

mod slice;
mod sources;

pub(crate) use slice::SliceConfig;

use crate::nbd::Place;
use crate::values::{self, FencingName, MatchValue, check_rings, no_path_timeout, socket_access};
use polypath::DiskUri;
use polypath::block::Scheme;
use polypath::multipath::{Fencing, MAX_PATHS, MatchPolicy, PathConfig as GroupPath, SelectorError, SelectorKind};
use polypath::nvmf_tcp::ControllerConfig;
use polypath::reactor::{CpuList, IdlePolicy};
use polypath::sources::{SourceUri, SourcesConfig};
use polypath::vhost_user_blk::SocketAccess;
use polypath::vhost_user_client::ClientConfig;
use serde::Deserialize;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::Spanned;

/// Checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) cpus: Option<CpuList>,
    pub(crate) idle: IdlePolicy,
    pub(crate) socket_dir: PathBuf,
    pub(crate) rpc_socket: PathBuf,
    /// `None`: there is no home to have one in; see [`state_dir`].
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) disks: Vec<DiskConfig>,
    pub(crate) slices: Vec<SliceConfig>,
    pub(crate) vhosts: Vec<VhostConfig>,
    pub(crate) nbds: Vec<NbdConfig>,
    /// Where disks come from that are not named here.
    pub(crate) sources: Vec<SourceUri>,
    pub(crate) source_config: SourcesConfig,
}

/// One disk and its paths.
#[derive(Debug, Clone)]
pub(crate) struct DiskConfig {
    pub(crate) name: String,
    pub(crate) selector: SelectorKind,
    pub(crate) no_path_timeout_ms: u64,
    pub(crate) fencing: Fencing,
    pub(crate) matching: MatchPolicy,
    pub(crate) paths: Vec<PathConfig>,
}

/// One way to a disk.
#[derive(Debug, Clone)]
pub(crate) struct PathConfig {
    pub(crate) uri: DiskUri,
    pub(crate) name: Option<String>,
    pub(crate) weight: u32,
    pub(crate) preferred: bool,
}

impl PathConfig {
    /// Its name: the URI if it was given none.
    pub(crate) fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.uri.to_string())
    }

    /// Is `other` the same path again? The same way taken twice survives no more than once, and names are how paths are told apart.
    pub(crate) fn clashes(&self, other: &PathConfig) -> bool {
        self.label() == other.label() || self.uri.to_string() == other.uri.to_string()
    }
}

/// One vhost-user socket.
#[derive(Debug, Clone)]
pub(crate) struct VhostConfig {
    pub(crate) disk: String,
    /// As it was named: without a path it is in the directory of sockets, wherever that turns out to be.
    pub(crate) socket: PathBuf,
    pub(crate) queues: u16,
    pub(crate) queue_size: u16,
    pub(crate) read_only: bool,
    pub(crate) serial: Option<String>,
    pub(crate) access: SocketAccess,
    /// Cores among the daemon's that serve it; all of them when `None`.
    pub(crate) cpus: Option<CpuList>,
}

/// One NBD export.
#[derive(Debug, Clone)]
pub(crate) struct NbdConfig {
    pub(crate) disk: String,
    /// What clients call it.
    pub(crate) name: String,
    /// As it was named: a socket without a path is in the directory of sockets, wherever that turns out to be.
    pub(crate) place: Place,
    pub(crate) read_only: bool,
    /// Of a socket. All exports of one socket have the same.
    pub(crate) access: SocketAccess,
}

/// What the command line says over the file.
pub(crate) struct Overrides {
    pub(crate) cpus: Option<String>,
    pub(crate) socket_dir: Option<PathBuf>,
    pub(crate) rpc_socket: Option<PathBuf>,
    pub(crate) state_dir: Option<PathBuf>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub(crate) struct ConfigError {
    place: String,
    problem: String,
}

/// Longest time an I/O waits for a path unless told otherwise, in milliseconds.
pub(crate) const NO_PATH_TIMEOUT_MS: u64 = 60_000;
/// Largest ring a front-end may set up unless told otherwise; what is reserved depends on what it does set up.
pub(crate) const QUEUE_SIZE: u16 = 1024;
/// Weight of a path unless told otherwise.
pub(crate) const WEIGHT: u32 = GroupPath::WEIGHT;
/// Where sockets are that are named without a path, unless told otherwise.
pub(crate) const SOCKET_DIR: &str = ".";
/// Where RPC is served unless told otherwise.
const RPC_SOCKET: &str = "/var/tmp/polypath.sock";

impl Default for Config {
    fn default() -> Self {
        Config {
            cpus: None,
            idle: IdlePolicy::default(),
            socket_dir: PathBuf::from(SOCKET_DIR),
            rpc_socket: PathBuf::from(RPC_SOCKET),
            state_dir: state_dir(|name| std::env::var_os(name), rustix::process::geteuid().is_root()),
            disks: Vec::new(),
            slices: Vec::new(),
            vhosts: Vec::new(),
            nbds: Vec::new(),
            sources: Vec::new(),
            source_config: SourcesConfig::default(),
        }
    }
}

impl Config {
    /// Reads and checks `path`.
    pub(crate) fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError { place: path.display().to_string(), problem: format!("cannot be read: {e}") })?;
        Self::parse(&path.display().to_string(), &text)
    }

    fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
        let at = Source { file, text };
        let raw = toml::Deserializer::parse(text)
            .map_err(|e| at.error(e.span().map(|s| s.start), None, e.message()))
            .and_then(|de| {
            serde_path_to_error::deserialize::<_, RawConfig>(de).map_err(|e| {
                // A value with its place in the file is a table to serde; its inner key is nobody's business.
                let path = e.path().to_string();
                let key = path.split(".$__serde_spanned").next().unwrap_or_default().to_owned();
                at.error(e.inner().span().map(|s| s.start), Some(&key), e.inner().message())
            })
        })?;
        raw.check(&at)
    }

    /// Applies the command line.
    pub(crate) fn overrule(&mut self, over: Overrides) -> Result<(), ConfigError> {
        if let Some(cpus) = over.cpus {
            // As other vhost daemons take it, `-m 3` is the mask 0x3, not core 3.
            let mask = if cpus.contains([',', '-', '[', 'x', 'X']) { cpus.clone() } else { format!("0x{cpus}") };
            let parsed = mask.parse().map_err(|e: polypath::reactor::CpuListError| ConfigError {
                place: "command line, -m".into(),
                problem: e.to_string(),
            })?;
            self.cpus = Some(parsed);
        }
        if let Some(rpc) = over.rpc_socket {
            self.rpc_socket = rpc;
        }
        if over.state_dir.is_some() {
            self.state_dir = over.state_dir;
        }
        if let Some(dir) = over.socket_dir {
            self.socket_dir = dir;
        }
        Ok(())
    }

    /// Where the socket of `vhost` is.
    pub(crate) fn socket_of(&self, vhost: &VhostConfig) -> PathBuf {
        self.socket_dir.join(&vhost.socket)
    }

    /// Where `nbd` is reached.
    pub(crate) fn place_of(&self, nbd: &NbdConfig) -> Place {
        match &nbd.place {
            Place::Socket(path) => Place::Socket(self.socket_dir.join(path)),
            address => address.clone(),
        }
    }
}

/// Where marks of disks are kept unless told otherwise: where the service manager says, or where such things are for the system or for
/// the user.
fn state_dir(env: impl Fn(&str) -> Option<OsString>, root: bool) -> Option<PathBuf> {
    let set = |name| env(name).filter(|value| !value.is_empty());
    if let Some(given) = set("STATE_DIRECTORY") {
        return std::env::split_paths(&given).next();
    }
    if root {
        return Some(PathBuf::from("/var/lib/polypath"));
    }
    let home = || set("HOME").map(|home| Path::new(&home).join(".local/state"));
    set("XDG_STATE_HOME").map(PathBuf::from).or_else(home).map(|base| base.join("polypath"))
}

/// Does its driver know the options, and is what it names on this machine there? Networks and other processes are not asked.
fn driver_takes(uri: &DiskUri) -> Result<(), String> {
    match uri.scheme {
        Scheme::NvmeTcp => match ControllerConfig::from_uri(uri).map_err(|e| e.to_string())?.is_discovery() {
            true => {
                Err("it is a discovery controller, which has no disks; expected the NQN of an NVM subsystem".into())
            }
            false => Ok(()),
        },
        Scheme::Iscsi => polypath::iscsi::TargetConfig::from_uri(uri).map(drop).map_err(|e| e.to_string()),
        Scheme::VhostUserBlk => ClientConfig::from_uri(uri).map(drop).map_err(|e| e.to_string()),
        Scheme::File | Scheme::Ram | Scheme::Null => polypath::local::check(uri).map_err(|e| e.to_string()),
        other => Err(format!(
            "there is no driver for {}:// in this build; expected nvme-tcp, iscsi, file, ram, null or vhost-user-blk",
            other.as_str()
        )),
    }
}

/// Turns offsets in the file into lines.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, offset: Option<usize>, key: Option<&str>, problem: impl Display) -> ConfigError {
        let mut place = self.file.to_owned();
        if let Some(offset) = offset {
            let line = self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|&&b| b == b'\n').count() + 1;
            place = format!("{place}:{line}");
        }
        match key {
            Some(key) if key != "." => place = format!("{place}: key \"{key}\""),
            _ => {}
        }
        ConfigError { place, problem: problem.to_string().trim().replace('\n', "; ") }
    }

    /// A URI whose driver takes all of it.
    fn uri(&self, key: &str, value: &Spanned<String>) -> Result<DiskUri, ConfigError> {
        let bad = |problem| self.error(Some(value.span().start), Some(key), problem);
        values::fits_a_line(value.get_ref(), "a URI").map_err(bad)?;
        let uri = self.parse::<DiskUri>(key, value)?;
        driver_takes(&uri).map_err(bad)?;
        Ok(uri)
    }

    fn parse<T: FromStr<Err: Display>>(&self, key: &str, value: &Spanned<String>) -> Result<T, ConfigError> {
        value.get_ref().parse().map_err(|e: T::Err| self.error(Some(value.span().start), Some(key), e))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    daemon: RawDaemon,
    #[serde(default, rename = "disk")]
    disks: Vec<RawDisk>,
    #[serde(default, rename = "slice")]
    slices: Vec<slice::RawSlice>,
    #[serde(default, rename = "vhost")]
    vhosts: Vec<RawVhost>,
    #[serde(default, rename = "nbd")]
    nbds: Vec<RawNbd>,
    #[serde(default, rename = "source")]
    sources: Vec<sources::RawSource>,
    #[serde(default, rename = "sources")]
    source_config: sources::RawSourceConfig,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawDaemon {
    cpus: Option<Spanned<String>>,
    idle: Option<Spanned<String>>,
    max_spin_us: Option<u32>,
    socket_dir: Option<PathBuf>,
    rpc_socket: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDisk {
    name: Spanned<String>,
    selector: Option<Spanned<String>>,
    min_io: Option<Spanned<u32>>,
    failback: Option<Spanned<String>>,
    no_path_timeout_ms: Option<Spanned<i64>>,
    fencing: Option<Spanned<String>>,
    #[serde(rename = "match")]
    matching: Option<Spanned<MatchValue>>,
    #[serde(rename = "path", default)]
    path_tables: Vec<RawPath>,
    #[serde(default)]
    paths: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table [[disk.path]] with uri, name, weight and preferred; a list of URIs is called \"paths\""
)]
struct RawPath {
    uri: Spanned<String>,
    name: Option<Spanned<String>>,
    weight: Option<Spanned<u32>>,
    #[serde(default)]
    preferred: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVhost {
    disk: Spanned<String>,
    socket: Spanned<PathBuf>,
    queues: Option<Spanned<u16>>,
    queue_size: Option<Spanned<u16>>,
    #[serde(default)]
    read_only: bool,
    serial: Option<Spanned<String>>,
    mode: Option<Spanned<String>>,
    owner: Option<Spanned<String>>,
    group: Option<Spanned<String>>,
    cpus: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNbd {
    disk: Spanned<String>,
    name: Option<Spanned<String>>,
    socket: Option<Spanned<PathBuf>>,
    address: Option<Spanned<String>>,
    #[serde(default)]
    read_only: bool,
    mode: Option<Spanned<String>>,
    owner: Option<Spanned<String>>,
    group: Option<Spanned<String>>,
}

impl RawConfig {
    fn check(self, at: &Source<'_>) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        if let Some(cpus) = &self.daemon.cpus {
            config.cpus = Some(at.parse("daemon.cpus", cpus)?);
        }
        config.idle = self.daemon.idle(at)?;
        if let Some(dir) = self.daemon.socket_dir {
            config.socket_dir = dir;
        }
        if let Some(socket) = self.daemon.rpc_socket {
            config.rpc_socket = socket;
        }
        if self.daemon.state_dir.is_some() {
            config.state_dir = self.daemon.state_dir;
        }
        for (i, disk) in self.disks.iter().enumerate() {
            if config.disks.iter().any(|d| d.name == *disk.name.get_ref()) {
                let problem = format!("\"{}\" is the name of another disk; expected a new one", disk.name.get_ref());
                return Err(at.error(Some(disk.name.span().start), Some(&format!("disk[{i}].name")), problem));
            }
            config.disks.push(disk.check(at, i)?);
        }
        for (i, slice) in self.slices.iter().enumerate() {
            config.slices.push(slice.check(at, i, &config)?);
        }
        config.source_config = self.source_config.check(at)?;
        for (i, source) in self.sources.iter().enumerate() {
            config.sources.push(source.check(at, i, &config.sources)?);
        }
        for (i, vhost) in self.vhosts.iter().enumerate() {
            config.vhosts.push(vhost.check(at, i, &config)?);
        }
        for (i, nbd) in self.nbds.iter().enumerate() {
            config.nbds.push(nbd.check(at, i, &config)?);
        }
        Ok(config)
    }
}

impl RawDaemon {
    fn idle(&self, at: &Source<'_>) -> Result<IdlePolicy, ConfigError> {
        let IdlePolicy::Adaptive { max_spin_us } = IdlePolicy::default() else { return Ok(IdlePolicy::default()) };
        let max_spin_us = self.max_spin_us.unwrap_or(max_spin_us);
        match self.idle.as_ref().map(|s| (s.get_ref().as_str(), s)) {
            None | Some(("adaptive", _)) => Ok(IdlePolicy::Adaptive { max_spin_us }),
            Some(("poll", _)) => Ok(IdlePolicy::Poll),
            Some(("sleep", _)) => Ok(IdlePolicy::Sleep),
            Some((other, s)) => {
                let problem = format!("\"{other}\" found; expected adaptive, poll or sleep");
                Err(at.error(Some(s.span().start), Some("daemon.idle"), problem))
            }
        }
    }
}

impl RawDisk {
    fn check(&self, at: &Source<'_>, i: usize) -> Result<DiskConfig, ConfigError> {
        let key = |k: &str| format!("disk[{i}].{k}");
        let name_at = Some(self.name.span().start);
        values::disk_name(self.name.get_ref()).map_err(|e| at.error(name_at, Some(&key("name")), e))?;
        let selector = match &self.selector {
            Some(s) => at.parse(&key("selector"), s)?,
            None => SelectorKind::default(),
        };
        let selector = self.selector_options(at, &key, selector)?;
        let fencing = match &self.fencing {
            Some(s) => at.parse::<FencingName>(&key("fencing"), s)?.0,
            None => Fencing::On,
        };
        let mut paths = Vec::<PathConfig>::new();
        let mut add = |at_key: String, offset: usize, path: PathConfig| match paths.iter().find(|p| p.clashes(&path)) {
            Some(other) => {
                let problem =
                    format!("{} is listed twice; expected each path once, under a name of its own", other.label());
                Err(at.error(Some(offset), Some(&at_key), problem))
            }
            None => {
                paths.push(path);
                Ok(())
            }
        };
        for (n, uri) in self.paths.iter().enumerate() {
            let at_key = key(&format!("paths[{n}]"));
            let path = PathConfig { uri: at.uri(&at_key, uri)?, name: None, weight: WEIGHT, preferred: false };
            add(at_key, uri.span().start, path)?;
        }
        for (n, path) in self.path_tables.iter().enumerate() {
            let weight = path.weight.as_ref().map_or(WEIGHT, |w| *w.get_ref());
            if weight == 0 {
                let span = path.weight.as_ref().map(|w| w.span().start);
                return Err(at.error(span, Some(&key(&format!("path[{n}].weight"))), "is 0; expected 1 or more"));
            }
            let name = path.name.as_ref().map(|name| name.get_ref().clone());
            if let Some(name) = &path.name {
                let at_key = key(&format!("path[{n}].name"));
                values::path_name(name.get_ref()).map_err(|e| at.error(Some(name.span().start), Some(&at_key), e))?;
            }
            let at_key = key(&format!("path[{n}].uri"));
            let uri = at.uri(&at_key, &path.uri)?;
            add(at_key, path.uri.span().start, PathConfig { uri, name, weight, preferred: path.preferred })?;
        }
        if paths.len() > MAX_PATHS {
            let problem = format!("has {} paths; expected at most {MAX_PATHS}", paths.len());
            return Err(at.error(name_at, Some(&key("paths")), problem));
        }
        if paths.is_empty() {
            let problem = "no path; expected paths = [\"URI\", ...] or [[disk.path]] tables with a uri";
            return Err(at.error(name_at, Some(&key("paths")), problem));
        }
        let no_path_timeout_ms = match &self.no_path_timeout_ms {
            None => NO_PATH_TIMEOUT_MS,
            Some(given) => no_path_timeout(*given.get_ref())
                .map_err(|e| at.error(Some(given.span().start), Some(&key("no_path_timeout_ms")), e))?,
        };
        let matching = match &self.matching {
            None => MatchPolicy::default(),
            Some(given) => {
                given.get_ref().policy().map_err(|e| at.error(Some(given.span().start), Some(&key("match")), e))?
            }
        };
        Ok(DiskConfig { name: self.name.get_ref().clone(), selector, no_path_timeout_ms, fencing, matching, paths })
    }
}

impl RawDisk {
    /// `selector` with `min_io` and `failback`.
    fn selector_options(
        &self,
        at: &Source<'_>,
        key: &impl Fn(&str) -> String,
        selector: SelectorKind,
    ) -> Result<SelectorKind, ConfigError> {
        let failback = self.failback.as_ref().map(|s| at.parse(&key("failback"), s)).transpose()?;
        let fail = |k: &str, offset: usize, e: SelectorError| at.error(Some(offset), Some(&key(k)), e.to_string());
        let mut selector = selector;
        if let Some(min_io) = &self.min_io {
            let options = selector.with_options(Some(*min_io.get_ref()), None);
            selector = options.map_err(|e| fail("min_io", min_io.span().start, e))?;
        }
        if let Some(given) = &self.failback {
            let options = selector.with_options(None, failback);
            selector = options.map_err(|e| fail("failback", given.span().start, e))?;
        }
        Ok(selector)
    }
}

impl RawVhost {
    fn check(&self, at: &Source<'_>, i: usize, config: &Config) -> Result<VhostConfig, ConfigError> {
        let fail =
            |offset: usize, k: &str, problem: String| at.error(Some(offset), Some(&format!("vhost[{i}].{k}")), problem);
        let disk = config.can_serve(&self.disk).map_err(|problem| fail(self.disk.span().start, "disk", problem))?;
        let socket = self.socket.get_ref().clone();
        values::socket_path(&socket).map_err(|e| fail(self.socket.span().start, "socket", e))?;
        let place = config.socket_dir.join(&socket);
        if config.vhosts.iter().any(|v| config.socket_of(v) == place) {
            return Err(fail(
                self.socket.span().start,
                "socket",
                format!("{} is used twice; expected a socket of its own", place.display()),
            ));
        }
        let queues = self.queues.as_ref().map_or(1, |q| *q.get_ref());
        let queue_size = self.queue_size.as_ref().map_or(QUEUE_SIZE, |q| *q.get_ref());
        if let Err((k, problem)) = check_rings(queues, queue_size) {
            let given = if k == "queues" { &self.queues } else { &self.queue_size };
            return Err(fail(given.as_ref().map_or(0, |q| q.span().start), k, problem));
        }
        if let Some(serial) = &self.serial {
            values::serial(serial.get_ref()).map_err(|e| fail(serial.span().start, "serial", e))?;
        }
        let serial = text(&self.serial);
        let access = access([&self.mode, &self.owner, &self.group]).map_err(|(at, k, problem)| fail(at, k, problem))?;
        let cpus = self.cpus.as_ref().map(|s| at.parse::<CpuList>(&format!("vhost[{i}].cpus"), s)).transpose()?;
        let read_only = self.read_only;
        Ok(VhostConfig { disk, socket, queues, queue_size, read_only, serial, access, cpus })
    }
}

impl RawNbd {
    fn check(&self, at: &Source<'_>, i: usize, config: &Config) -> Result<NbdConfig, ConfigError> {
        let fail =
            |offset: usize, k: &str, problem: String| at.error(Some(offset), Some(&format!("nbd[{i}].{k}")), problem);
        let disk = config.can_serve(&self.disk).map_err(|problem| fail(self.disk.span().start, "disk", problem))?;
        let (place, place_at, key) = match (&self.socket, &self.address) {
            (Some(socket), None) => {
                values::socket_path(socket.get_ref()).map_err(|e| fail(socket.span().start, "socket", e))?;
                (Place::Socket(socket.get_ref().clone()), socket.span().start, "socket")
            }
            (None, Some(address)) => {
                let read = values::address(address.get_ref());
                let read = read.map_err(|e| fail(address.span().start, "address", e))?;
                (Place::Address(read), address.span().start, "address")
            }
            (socket, _) => {
                let found = if socket.is_some() { "both socket and address" } else { "neither socket nor address" };
                return Err(fail(self.disk.span().start, "socket", format!("{found} found; expected one of them")));
            }
        };
        let name = self.name.as_ref().map_or_else(|| disk.clone(), |name| name.get_ref().clone());
        let name_at = self.name.as_ref().map_or(place_at, |name| name.span().start);
        values::export_name(&name).map_err(|e| fail(name_at, "name", e))?;
        let access = access([&self.mode, &self.owner, &self.group]).map_err(|(at, k, problem)| fail(at, k, problem))?;
        let nbd = NbdConfig { disk, name, place, read_only: self.read_only, access };
        let place = config.place_of(&nbd);
        let beside = |other: &&NbdConfig| config.place_of(other) == place;
        if config.nbds.iter().filter(beside).any(|other| other.name == nbd.name) {
            let problem = format!("\"{}\" is exported twice at {place}; expected a name of its own", nbd.name);
            return Err(fail(name_at, "name", problem));
        }
        if config.nbds.iter().filter(beside).any(|other| other.access != nbd.access) {
            let problem = format!("{place} has another mode, owner or group above; expected the same");
            return Err(fail(place_at, key, problem));
        }
        let vhosts = config.vhosts.iter().map(|vhost| Place::Socket(config.socket_of(vhost)));
        if vhosts.into_iter().any(|vhost| vhost == place) {
            return Err(fail(place_at, key, format!("{place} is a vhost socket; expected one of its own")));
        }
        Ok(nbd)
    }
}

fn text(given: &Option<Spanned<String>>) -> Option<String> {
    given.as_ref().map(|s| s.get_ref().clone())
}

/// Who may reach a socket, from its mode, owner and group; an error has its place, its key, and what was expected.
fn access(given: [&Option<Spanned<String>>; 3]) -> Result<SocketAccess, (usize, &'static str, String)> {
    let [mode, owner, group] = given;
    socket_access(text(mode), text(owner), text(group)).map_err(|(key, problem)| {
        let given = match key {
            "mode" => mode,
            "owner" => owner,
            _ => group,
        };
        (given.as_ref().map_or(0, |s| s.span().start), key, problem)
    })
}

#[cfg(test)]
mod tests;
