//! What a target is made of: listeners, subsystems, namespaces, limits. Read from TOML or built by a program.

mod iscsi;
#[cfg(test)]
mod tests;

pub use iscsi::{ChapConfig, IscsiConfig, SecretText};

use crate::media::beneath::Source;
use polypath_block::{DiskUri, Endpoint, Scheme};
use serde::Deserialize;
use std::path::PathBuf;

/// The target name used over iSCSI for namespaces that are given without a subsystem.
pub const DEFAULT_IQN: &str = "iqn.2024-01.org.polypath:target";
/// The subsystem name used when a namespace is given without one.
pub const DEFAULT_NQN: &str = "nqn.2024-01.org.polypath:target";

/// A whole target. `Default` gives one listener-less, subsystem-less target with the limits of the field docs.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetConfig {
    /// Where it listens; index in this list is the listener's name in faults and ANA states.
    pub listeners: Vec<ListenerConfig>,
    /// What it serves.
    pub subsystems: Vec<SubsystemConfig>,
    /// Other discovery controllers that our discovery log points at.
    pub referrals: Vec<String>,
    /// Threads, each an epoll loop with its share of the connections (1 to 64; default 1).
    pub threads: usize,
    /// CPUs the threads are pinned to, in order; empty for no pinning.
    pub cpus: Vec<usize>,
    /// How long an idle thread polls before it sleeps, in microseconds (default 50).
    pub spin_us: u64,
    /// Unix socket for control commands.
    pub control: Option<PathBuf>,
    /// May a host switch header digests on? (default yes)
    pub header_digest: bool,
    /// May a host switch data digests on? (default yes)
    pub data_digest: bool,
    /// Ask hosts for both digests even when they do not want them? Hosts that did not ask never get one. (default no)
    pub refuse_without_digests: bool,
    /// Keep-alive granularity in milliseconds, a multiple of 100 (default 100).
    pub kas_ms: u32,
    /// Command quiesce time that is advertised, in milliseconds; 0 reports none (default 500).
    pub cqt_ms: u16,
    /// Traffic-based keep alive (CTRATT bit 6)? (default no)
    pub tbkas: bool,
    /// I/O queues granted to one controller (1 to 128; default 16).
    pub max_io_queues: u16,
    /// Entries of a queue, the largest a host may ask for (2 to 1024; default 256).
    pub queue_depth: u16,
    /// Data bytes a command capsule of an I/O queue may carry, a multiple of 16, at most 65536 (default 8192).
    pub in_capsule: u32,
    /// MAXH2CDATA in bytes: 4096 to 1 MiB (default 131072).
    pub max_h2c_data: u32,
    /// Most bytes one R2T asks for; 0 asks for all of a command at once (default 0).
    pub r2t_bytes: u32,
    /// Largest transfer of one command in bytes, a power of two from 8192 to 1 MiB (default 131072).
    pub mdts_bytes: u32,
    /// Data alignment that hosts must keep in PDUs to us (CPDA), in dwords, zero-based (default 0; Linux takes only 0).
    pub cpda: u8,
    /// Let hosts switch SQ flow control off (then reads need no response capsule)? (default yes)
    pub allow_no_flow_control: bool,
    /// Connections at a time; more are closed at once (default 1024).
    pub max_connections: usize,
    /// Whether namespaces report a volatile write cache; `None` (default) those do whose disk has one.
    pub volatile_write_cache: Option<bool>,
    /// What concerns iSCSI only.
    pub iscsi: IscsiConfig,
}

impl Default for TargetConfig {
    fn default() -> Self {
        TargetConfig {
            listeners: Vec::new(),
            subsystems: Vec::new(),
            referrals: Vec::new(),
            threads: 1,
            cpus: Vec::new(),
            spin_us: 50,
            control: None,
            header_digest: true,
            data_digest: true,
            refuse_without_digests: false,
            kas_ms: 100,
            cqt_ms: 500,
            tbkas: false,
            max_io_queues: 16,
            queue_depth: 256,
            in_capsule: 8192,
            max_h2c_data: 131_072,
            r2t_bytes: 0,
            mdts_bytes: 131_072,
            cpda: 0,
            allow_no_flow_control: true,
            max_connections: 1024,
            volatile_write_cache: None,
            iscsi: IscsiConfig::default(),
        }
    }
}

/// What a listener speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// NVMe/TCP.
    #[default]
    NvmeTcp,
    /// iSCSI (RFC 7143).
    Iscsi,
}

/// One listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// `address:port`; port 0 takes a free one.
    pub address: String,
    /// What it speaks (default NVMe/TCP).
    #[serde(default)]
    pub protocol: Protocol,
    /// Portal group tag over iSCSI, which is also the number of its target port group and of its target port; its place among the
    /// listeners, from 1, when not given. Listeners with the same tag are one target port.
    #[serde(default)]
    pub portal_group: Option<u16>,
    /// ANA state of every group on this listener at the start (default optimized).
    #[serde(default)]
    pub ana: AnaState,
}

impl ListenerConfig {
    /// An NVMe/TCP listener at `address`, optimized.
    pub fn new(address: impl Into<String>) -> Self {
        ListenerConfig {
            address: address.into(),
            protocol: Protocol::NvmeTcp,
            portal_group: None,
            ana: AnaState::Optimized,
        }
    }

    /// An iSCSI listener at `address`, optimized.
    pub fn iscsi(address: impl Into<String>) -> Self {
        ListenerConfig { protocol: Protocol::Iscsi, ..ListenerConfig::new(address) }
    }

    /// Reads `[nvme-tcp://|iscsi://]ADDRESS:PORT[,PORTAL-GROUP-TAG]`.
    ///
    /// # Errors
    /// For people: what of it is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut listener, rest) = match text.split_once("://") {
            None => (ListenerConfig::new(""), text),
            Some(("nvme-tcp", rest)) => (ListenerConfig::new(""), rest),
            Some(("iscsi", rest)) => (ListenerConfig::iscsi(""), rest),
            Some((other, _)) => return Err(format!("listener \"{text}\": {other} is neither nvme-tcp nor iscsi")),
        };
        let (address, tag) = rest.rsplit_once(',').map_or((rest, None), |(address, tag)| (address, Some(tag)));
        if let Some(tag) = tag {
            let tag = tag.parse().map_err(|_| format!("listener \"{text}\": {tag} is no portal group tag"))?;
            listener.portal_group = Some(tag);
        }
        Ok(ListenerConfig { address: address.into(), ..listener })
    }
}

/// One NVM subsystem.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: String,
    /// Its name as a target over iSCSI; it is not served there when not given.
    #[serde(default)]
    pub iqn: Option<String>,
    /// Serial number, up to 20 characters; derived from the name when not given.
    #[serde(default)]
    pub serial: Option<String>,
    /// Its namespaces.
    #[serde(default)]
    pub namespaces: Vec<NamespaceConfig>,
}

/// One namespace.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceConfig {
    /// `ram://SIZE`, `null://SIZE`, or any other disk URI of ours, with options `nsid`, `lun`, `uuid`, `nguid`, `eui64`, `anagrp`, which
    /// the fields below override; memory also with `bs`, and with `cache=volatile` (`power_loss` loses what was not flushed) or
    /// `cache=through` (it loses nothing). Further options of other disks are those of the URI. Either this or `paths`.
    #[serde(default)]
    pub uri: String,
    /// Several URIs that are paths to one disk; the options above are those of the first.
    #[serde(default)]
    pub paths: Vec<String>,
    /// How long a request to a disk over a network waits while no path to it is usable, in milliseconds (default 30000). It is part of the
    /// command quiesce time that is advertised, up to 65 s.
    #[serde(default)]
    pub no_path_timeout_ms: Option<u64>,
    /// Namespace identifier; the next free one when not given.
    #[serde(default)]
    pub nsid: Option<u32>,
    /// Logical unit number over iSCSI; one less than the namespace identifier when not given.
    #[serde(default)]
    pub lun: Option<u32>,
    /// Logical block size of memory: 512 or 4096 (default 512). Other disks have their own, which must be this where it is given.
    #[serde(default)]
    pub bs: Option<u32>,
    /// UUID as text. Where none of the three identifiers is given, they are those that the disk beneath shows; where it shows none, or
    /// there is none, UUID and NGUID are derived from subsystem name and NSID.
    #[serde(default)]
    pub uuid: Option<String>,
    /// NGUID as 32 hexadecimal digits.
    #[serde(default)]
    pub nguid: Option<String>,
    /// EUI-64 as 16 hexadecimal digits.
    #[serde(default)]
    pub eui64: Option<String>,
    /// ANA group (1 to 1024); the NSID when not given.
    #[serde(default)]
    pub ana_group: Option<u32>,
    /// A file in which reservations outlive a loss of power and the target where hosts want that (CPTPL, APTPL), for any disk but memory; each disk
    /// has its own. Without one they are refused it. With memory they live as long as the data.
    #[serde(default)]
    pub reservations: Option<PathBuf>,
}

/// Without the secrets that URIs may have.
impl std::fmt::Debug for NamespaceConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hidden = |uri: &String| polypath_block::hide_secret(uri);
        let mut shown = f.debug_struct("NamespaceConfig");
        shown.field("uri", &hidden(&self.uri)).field("paths", &self.paths.iter().map(hidden).collect::<Vec<_>>());
        shown.field("nsid", &self.nsid).field("lun", &self.lun).field("bs", &self.bs).finish_non_exhaustive()
    }
}

impl NamespaceConfig {
    /// A namespace over the medium that `uri` names, everything else by default.
    pub fn new(uri: impl Into<String>) -> Self {
        NamespaceConfig {
            uri: uri.into(),
            paths: Vec::new(),
            no_path_timeout_ms: None,
            nsid: None,
            lun: None,
            bs: None,
            uuid: None,
            nguid: None,
            eui64: None,
            ana_group: None,
            reservations: None,
        }
    }

    /// A namespace over the disk that several paths lead to, everything else by default.
    pub fn over(paths: impl IntoIterator<Item = impl Into<String>>) -> Self {
        NamespaceConfig { paths: paths.into_iter().map(Into::into).collect(), ..NamespaceConfig::new("") }
    }
}

/// Asymmetric namespace access state, as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnaState {
    /// Best way to the namespace.
    #[default]
    Optimized,
    /// Works, slower.
    NonOptimized,
    /// Does not work for now.
    Inaccessible,
    /// Never works again here.
    PersistentLoss,
    /// Between two states.
    Change,
    /// Does not work for now, and answers more than an inaccessible one; only SCSI has it, over NVMe it is inaccessible.
    Standby,
}

/// Options of a disk URI that are the namespace's, whatever the disk.
const OWN_OPTIONS: [&str; 6] = ["nsid", "lun", "uuid", "nguid", "eui64", "anagrp"];
/// The default of [`NamespaceConfig::no_path_timeout_ms`].
const NO_PATH_TIMEOUT_MS: u64 = 30_000;

/// The code of [`AnaState::Standby`], which NVMe has none for.
pub(crate) const STANDBY: u8 = 5;

impl AnaState {
    /// The value on the wire (Base 2.1 section 8.1.1); 5 for standby, which NVMe does not have.
    pub fn code(self) -> u8 {
        match self {
            AnaState::Optimized => 1,
            AnaState::NonOptimized => 2,
            AnaState::Inaccessible => 3,
            AnaState::PersistentLoss => 4,
            AnaState::Change => 0xf,
            AnaState::Standby => STANDBY,
        }
    }

    /// The state with this code.
    pub(crate) fn from_code(code: u8) -> AnaState {
        match code {
            1 => AnaState::Optimized,
            2 => AnaState::NonOptimized,
            3 => AnaState::Inaccessible,
            4 => AnaState::PersistentLoss,
            STANDBY => AnaState::Standby,
            _ => AnaState::Change,
        }
    }

    /// The state with this name, dashes and underscores alike.
    ///
    /// # Errors
    /// Lists the names there are.
    pub fn parse(text: &str) -> Result<AnaState, String> {
        match text.replace('-', "_").as_str() {
            "optimized" => Ok(AnaState::Optimized),
            "non_optimized" | "nonoptimized" => Ok(AnaState::NonOptimized),
            "inaccessible" | "unavailable" => Ok(AnaState::Inaccessible),
            "persistent_loss" | "offline" => Ok(AnaState::PersistentLoss),
            "change" | "transitioning" => Ok(AnaState::Change),
            "standby" => Ok(AnaState::Standby),
            _ => Err(format!(
                "\"{text}\" is no access state; expected optimized, non_optimized, standby, inaccessible (unavailable), persistent_loss (offline) or change (transitioning)"
            )),
        }
    }
}

/// A configuration that cannot be served: which part, and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{part}: {problem}")]
pub struct ConfigError {
    /// Which part, such as `kas_ms` or `subsystem nqn..., namespace ram://1GiB`.
    pub part: String,
    /// What is wrong and what was expected.
    pub problem: String,
}

impl ConfigError {
    pub(crate) fn new(part: impl Into<String>, problem: impl Into<String>) -> Self {
        ConfigError { part: part.into(), problem: problem.into() }
    }
}

/// Where a namespace's bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Backing {
    Ram(u64),
    Null(u64),
    /// A disk of our own stack.
    Beneath(Source),
    /// Memory with a write cache that can lose its power; `through` when it writes through.
    Cached {
        bytes: u64,
        through: bool,
    },
}

/// A disk with everything resolved but its medium.
#[derive(Clone, Debug)]
pub(crate) struct DiskPlan {
    pub(crate) nsid: u32,
    pub(crate) lun: u32,
    pub(crate) backing: Backing,
    /// None for the block size of the disk beneath.
    pub(crate) bs: Option<u32>,
    /// The identifiers are somebody's word, and not made up.
    pub(crate) stated: bool,
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) eui64: [u8; 8],
    pub(crate) group: u32,
    /// Where its reservations are kept.
    pub(crate) reservations: Option<PathBuf>,
}

impl TargetConfig {
    /// Reads a TOML file's text.
    ///
    /// # Errors
    /// Line, key and what was expected, as the TOML reader puts it; or a value out of its range.
    pub fn from_toml(text: &str) -> Result<TargetConfig, ConfigError> {
        let config = TargetConfig::read(text).map_err(|e| ConfigError::new("configuration file", e))?;
        config.check()?;
        Ok(config)
    }

    /// The same without a look at the values; what is wrong is said by line, without what is written there: it may be a secret.
    pub(crate) fn read(text: &str) -> Result<TargetConfig, String> {
        toml::from_str(text).map_err(|e: toml::de::Error| {
            let before = e.span().and_then(|span| text.as_bytes().get(..span.start));
            let line = before.map(|before| before.iter().filter(|b| **b == b'\n').count() + 1);
            let place = line.map_or(String::new(), |line| format!("line {line}: "));
            format!("{place}{}", e.message().trim().replace('\n', "; "))
        })
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// Names the first value out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |name: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::new(name, format!("{value} is not from {low} to {high}")))
            }
        };
        range("threads", self.threads as u64, 1, 64)?;
        range("max_io_queues", self.max_io_queues.into(), 1, 128)?;
        range("queue_depth", self.queue_depth.into(), 2, 1024)?;
        range("in_capsule", self.in_capsule.into(), 0, 65_536)?;
        range("max_h2c_data", self.max_h2c_data.into(), 4096, 1 << 20)?;
        // MDTS counts in powers of two pages and says "no limit" with 0: a single page cannot be told to a host.
        range("mdts_bytes", self.mdts_bytes.into(), 8192, 1 << 20)?;
        range("cpda", self.cpda.into(), 0, 31)?;
        range("kas_ms", self.kas_ms.into(), 0, 6_553_500)?;
        self.iscsi.check()?;
        range("max_connections", self.max_connections as u64, 1, 65_536)?;
        let mut files = std::collections::BTreeSet::new();
        for ns in self.subsystems.iter().flat_map(|sub| &sub.namespaces) {
            if let Some(path) = ns.reservations.as_ref().filter(|path| !files.insert(*path)) {
                return Err(ConfigError::new("reservations", format!("{} is of two namespaces", path.display())));
            }
            range("no_path_timeout_ms", ns.no_path_timeout_ms.unwrap_or(NO_PATH_TIMEOUT_MS), 1, 3_600_000)?;
        }
        range("listeners", self.listeners.len() as u64, 1, 64)?;
        range("subsystems", self.subsystems.len() as u64, 0, 256)?;
        for (name, value, unit) in [
            ("in_capsule", self.in_capsule, 16),
            ("max_h2c_data", self.max_h2c_data, 4),
            ("r2t_bytes", self.r2t_bytes, 4),
            ("kas_ms", self.kas_ms, 100),
        ] {
            if !value.is_multiple_of(unit) {
                return Err(ConfigError::new(name, format!("{value} is not a multiple of {unit}")));
            }
        }
        if !self.mdts_bytes.is_power_of_two() {
            return Err(ConfigError::new("mdts_bytes", format!("{} is not a power of two", self.mdts_bytes)));
        }
        Ok(())
    }
}

impl SubsystemConfig {
    /// A subsystem with these namespaces.
    pub fn new(nqn: impl Into<String>, namespaces: Vec<NamespaceConfig>) -> Self {
        SubsystemConfig { nqn: nqn.into(), iqn: None, serial: None, namespaces }
    }

    pub(crate) fn plan(&self) -> Result<Vec<DiskPlan>, ConfigError> {
        polypath_nvme::nqn::Nqn::new(&self.nqn)
            .map_err(|e| ConfigError::new(format!("subsystem \"{}\"", self.nqn), e.to_string()))?;
        let mut plans: Vec<DiskPlan> = Vec::new();
        for ns in &self.namespaces {
            let uris = ns.paths.iter().map(String::as_str).chain([ns.uri.as_str()]).filter(|uri| !uri.is_empty());
            let uris: Vec<String> = uris.map(polypath_block::hide_secret).map(|uri| uri.to_string()).collect();
            let part = || format!("subsystem {}, namespace {}", self.nqn, uris.join(", "));
            let next = plans.iter().map(|p| p.nsid).max().unwrap_or(0) + 1;
            let plan = ns.plan(&self.nqn, next).map_err(|e| ConfigError::new(part(), e))?;
            if plans.iter().any(|p| p.nsid == plan.nsid) {
                return Err(ConfigError::new(part(), format!("NSID {} is taken", plan.nsid)));
            }
            if plans.iter().any(|p| p.lun == plan.lun) {
                return Err(ConfigError::new(part(), format!("LUN {} is taken", plan.lun)));
            }
            plans.push(plan);
        }
        plans.sort_by_key(|p| p.nsid);
        Ok(plans)
    }
}

impl NamespaceConfig {
    fn plan(&self, nqn: &str, next_nsid: u32) -> Result<DiskPlan, String> {
        let uris = match (self.uri.as_str(), &self.paths[..]) {
            (uri, []) => vec![uri],
            ("", paths) => paths.iter().map(String::as_str).collect(),
            _ => return Err("it has a uri and paths; expected one of both".into()),
        };
        let uris: Result<Vec<DiskUri>, _> = uris.into_iter().map(str::parse).collect();
        let uris = uris.map_err(|e: polypath_block::UriError| e.to_string())?;
        let uri = uris.first().ok_or("it has no uri")?.clone();
        let backing = match (uri.scheme, &uri.endpoint) {
            (Scheme::Ram, Endpoint::Size { bytes }) if uris.len() == 1 => match uri.option("cache") {
                None => Backing::Ram(*bytes),
                Some("volatile") => Backing::Cached { bytes: *bytes, through: false },
                Some("through") => Backing::Cached { bytes: *bytes, through: true },
                Some(other) => return Err(format!("cache \"{other}\" is neither volatile nor through")),
            },
            (Scheme::Null, Endpoint::Size { bytes }) if uris.len() == 1 => Backing::Null(*bytes),
            _ => Backing::Beneath(self.source(uris)),
        };
        let beneath = matches!(backing, Backing::Beneath(_));
        if !beneath {
            let known = ["bs", "nsid", "lun", "uuid", "nguid", "eui64", "anagrp", "cache"];
            uri.check_options(&known).map_err(|e| e.to_string())?;
        }
        let number = |key: &str, given: Option<u32>, default: u32| -> Result<u32, String> {
            match given {
                Some(n) => Ok(n),
                None => uri.option_number(key, default).map_err(|e| e.to_string()),
            }
        };
        let nsid = number("nsid", self.nsid, next_nsid)?;
        let lun = number("lun", self.lun, nsid.saturating_sub(1))?;
        let bs = match (beneath, self.bs) {
            (true, given) => given,
            (false, given) => Some(number("bs", given, 512)?),
        };
        let group = number("anagrp", self.ana_group, nsid)?;
        if !(1..=1024).contains(&nsid) || !(1..=1024).contains(&group) {
            return Err(format!("NSID {nsid} and ANA group {group} must be from 1 to 1024"));
        }
        if lun > 16_383 {
            return Err(format!("LUN {lun} is above 16383"));
        }
        if let Some(bs) = bs.filter(|bs| !beneath && ![512, 4096].contains(bs)) {
            return Err(format!("block size {bs} is neither 512 nor 4096"));
        }
        let text = |key: &str, given: &Option<String>| given.clone().or_else(|| uri.option(key).map(String::from));
        let stated = [("uuid", &self.uuid), ("nguid", &self.nguid), ("eui64", &self.eui64)];
        let stated = stated.iter().any(|(key, given)| text(key, given).is_some());
        let uuid = match text("uuid", &self.uuid) {
            Some(t) => parse_hex::<16>("uuid", &t)?,
            None => derived_uuid(nqn, nsid),
        };
        let nguid = match text("nguid", &self.nguid) {
            Some(t) => parse_hex::<16>("nguid", &t)?,
            None => derived(nqn, nsid, b"nguid"),
        };
        let eui64 = match text("eui64", &self.eui64) {
            Some(t) => parse_hex::<8>("eui64", &t)?,
            None => [0; 8],
        };
        if !beneath && self.reservations.is_some() {
            return Err(
                "reservations are kept in a file for a disk that outlives the target, and not for memory".into()
            );
        }
        let reservations = self.reservations.clone();
        Ok(DiskPlan { nsid, lun, backing, bs, stated, uuid, nguid, eui64, group, reservations })
    }

    /// The disk beneath: `uris` without what is ours.
    fn source(&self, uris: Vec<DiskUri>) -> Source {
        let own = |key: &str| OWN_OPTIONS.contains(&key);
        let theirs = |uri: DiskUri| {
            let mut options = uri.options;
            options.retain(|(key, _)| !own(key));
            if let Some(bs) = self.bs.filter(|_| uri.scheme == Scheme::File && !options.iter().any(|(k, _)| k == "bs"))
            {
                options.push(("bs".into(), bs.to_string()));
            }
            DiskUri::from_parts(uri.scheme, uri.endpoint, options)
        };
        let no_path_timeout_ms = self.no_path_timeout_ms.unwrap_or(NO_PATH_TIMEOUT_MS);
        Source { paths: uris.into_iter().map(theirs).collect(), no_path_timeout_ms }
    }
}

/// `N` bytes written as hexadecimal digits; dashes are skipped.
pub(crate) fn parse_hex<const N: usize>(name: &str, text: &str) -> Result<[u8; N], String> {
    let digits: Option<Vec<u8>> = text.chars().filter(|&c| c != '-').map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    match digits {
        Some(d) if d.len() == 2 * N => Ok(std::array::from_fn(|i| d[2 * i] << 4 | d[2 * i + 1])),
        _ => Err(format!("{name} \"{text}\" is not {} hexadecimal digits", 2 * N)),
    }
}

pub(crate) fn derived_uuid(nqn: &str, nsid: u32) -> [u8; 16] {
    let mut id = derived(nqn, nsid, b"uuid");
    id[6] = id[6] & 0x0f | 0x80; // version 8: made by a rule of our own (RFC 9562 section 5.8)
    id[8] = id[8] & 0x3f | 0x80;
    id
}

/// 16 stable bytes from a name, never all zero: two FNV-1a runs with a final mix.
pub(crate) fn derived(nqn: &str, nsid: u32, salt: &[u8]) -> [u8; 16] {
    let run = |seed: u64| {
        let mut h = 0xcbf2_9ce4_8422_2325 ^ seed;
        for &b in nqn.as_bytes().iter().chain(&nsid.to_le_bytes()).chain(salt) {
            h = (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
        h ^= h >> 33;
        h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
        h ^ h >> 33 | 1
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&run(0).to_be_bytes());
    id[8..].copy_from_slice(&run(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id
}
