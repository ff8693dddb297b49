//! What names a source: a disk URI that leaves something out.

use polypath_block::{DiskUri, Endpoint, Scheme, UriError, hide_secret};
use polypath_iscsi::TargetConfig;
use polypath_nvmf_tcp::ControllerConfig;
use std::fmt;
use std::str::FromStr;

/// NQN of every discovery service (NVMe Base 2.1 section 3.1.3.3).
const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Stands in for the name of a target where none was given.
const NO_TARGET: &str = "iqn.1970-01.invalid:none";

/// What a source gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceKind {
    /// An NVMe/TCP discovery service: every subsystem in its log and in those of its referrals, with all their namespaces.
    NvmeDiscovery,
    /// An NVMe/TCP subsystem at one address: all its namespaces.
    NvmeSubsystem,
    /// An iSCSI portal: every target that it lists (SendTargets), through each of its portals, with all their logical units.
    IscsiPortal,
    /// An iSCSI target at one portal: all its logical units.
    IscsiTarget,
    /// One path, given whole.
    Path,
}

impl SourceKind {
    /// Its name, for people and programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            SourceKind::NvmeDiscovery => "nvme-discovery",
            SourceKind::NvmeSubsystem => "nvme-subsystem",
            SourceKind::IscsiPortal => "iscsi-portal",
            SourceKind::IscsiTarget => "iscsi-target",
            SourceKind::Path => "path",
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where paths come from.
///
/// | source | gives |
/// |---|---|
/// | `nvme-tcp://host[:8009]` | what the discovery service there lists |
/// | `nvme-tcp://host[:4420]/NQN` | all namespaces of that subsystem |
/// | `iscsi://[user[%secret]@]host[:3260]` | what the portal there lists |
/// | `iscsi://[user[%secret]@]host[:3260]/IQN` | all logical units of that target |
/// | any disk URI | that one path |
///
/// Options after `?` are those of the disk URIs, and go with every path that is found. Shown without its secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceUri {
    /// With a discovery NQN or an invented target where the text has none.
    pub(crate) uri: DiskUri,
    kind: SourceKind,
    text: String,
}

impl SourceUri {
    /// What it gives.
    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// A whole disk URI, for the configurations that drivers read from one: what was left out is the discovery NQN, a target that nobody
    /// has, LUN 0.
    pub fn completed(&self) -> &DiskUri {
        &self.uri
    }
}

impl fmt::Display for SourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SourceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let shown = hide_secret(text);
        // People see what they wrote, not what was put in.
        let as_written = |error: UriError| UriError { uri: shown.clone(), ..error };
        let (whole, kind) = complete(text).map_err(|(part, problem)| UriError {
            uri: shown.clone(),
            part: part.into(),
            problem: problem.into(),
        })?;
        let uri: DiskUri = whole.parse().map_err(as_written)?;
        let kind = check(&uri, kind).map_err(as_written)?;
        Ok(SourceUri { uri, kind, text: shown })
    }
}

/// The URI with what it leaves out, and what that makes of it. `None`: a path, or a subsystem.
fn complete(text: &str) -> Result<(String, Option<SourceKind>), (&'static str, &'static str)> {
    let (base, query) = text.split_once('?').map_or((text, String::new()), |(base, query)| (base, format!("?{query}")));
    let Some((scheme, body)) = base.split_once("://") else { return Ok((text.to_owned(), None)) };
    let body = body.trim_end_matches('/');
    let (authority, rest) = body.split_once('/').map_or((body, None), |(authority, rest)| (authority, Some(rest)));
    Ok(match (scheme.to_ascii_lowercase().as_str(), rest) {
        ("nvme-tcp", None) => (format!("{scheme}://{authority}/{DISCOVERY_NQN}{query}"), None),
        ("iscsi", None) => (format!("{scheme}://{authority}/{NO_TARGET}/0{query}"), Some(SourceKind::IscsiPortal)),
        // No iSCSI name has a slash in it (RFC 3722).
        ("iscsi", Some(name)) if !name.contains('/') => {
            if name == NO_TARGET {
                return Err(("IQN", "that name is nobody's"));
            }
            (format!("{scheme}://{authority}/{name}/0{query}"), Some(SourceKind::IscsiTarget))
        }
        _ => (text.to_owned(), None),
    })
}

/// Do drivers take its options, and what is it?
fn check(uri: &DiskUri, kind: Option<SourceKind>) -> Result<SourceKind, UriError> {
    match uri.scheme {
        Scheme::NvmeTcp => {
            let config = ControllerConfig::from_uri(uri)?;
            match (config.is_discovery(), config.ns) {
                (true, None) => Ok(SourceKind::NvmeDiscovery),
                (true, Some(_)) => Err(uri.error("option ns", "a discovery service has no namespaces")),
                (false, None) => Ok(SourceKind::NvmeSubsystem),
                (false, Some(_)) => Ok(SourceKind::Path),
            }
        }
        Scheme::Iscsi => {
            TargetConfig::from_uri(uri)?;
            if kind == Some(SourceKind::IscsiPortal) && uri.option("portals").is_some() {
                return Err(uri.error("option portals", "those of each target are listed by the portal that is asked"));
            }
            Ok(kind.unwrap_or(SourceKind::Path))
        }
        _ => Ok(SourceKind::Path),
    }
}

/// One controller or target whose units are paths: a URI without its unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ServiceUri {
    /// Without namespace; with LUN 0.
    pub(crate) uri: DiskUri,
    /// The same place has the same key, whoever lists it.
    pub(crate) key: String,
    /// Nothing but this one path.
    pub(crate) single: bool,
}

impl ServiceUri {
    /// Of `uri`, whose unit does not matter unless it is `single`.
    pub(crate) fn new(uri: &DiskUri, single: bool) -> ServiceUri {
        let key = if single { uri.to_string() } else { place(uri, None) };
        ServiceUri { uri: uri.clone(), key, single }
    }

    /// The path of its unit.
    pub(crate) fn path(&self, unit: u32) -> DiskUri {
        match &self.uri.endpoint {
            _ if self.single => self.uri.clone(),
            Endpoint::Iscsi { user, secret, host, port, iqn, .. } => {
                let (user, secret, host, iqn) = (user.clone(), secret.clone(), host.clone(), iqn.clone());
                let endpoint = Endpoint::Iscsi { user, secret, host, port: *port, iqn, lun: unit.into() };
                DiskUri::from_parts(self.uri.scheme, endpoint, self.uri.options.clone())
            }
            _ => self.uri.with_option("ns", unit.to_string()),
        }
    }

    /// `uri` of this service or one of its paths as it is opened: drivers of what was found do not give up, unless they were told to. Whether
    /// it is of use is for who looks after the source to say.
    pub(crate) fn for_driver(&self, uri: &DiskUri) -> DiskUri {
        let found = !self.single && matches!(uri.scheme, Scheme::NvmeTcp | Scheme::Iscsi);
        if found && uri.option("ctrl_loss_timeout_ms").is_none() {
            return uri.with_option("ctrl_loss_timeout_ms", "-1");
        }
        uri.clone()
    }

    /// What that path is called: where it leads, without who we are there and how it is treated.
    pub(crate) fn path_name(&self, unit: u32) -> String {
        match (&self.uri.endpoint, self.single) {
            (_, false) => place(&self.uri, Some(unit)),
            // By the same name as others find it.
            (Endpoint::Iscsi { lun, .. }, true) => place(&self.uri, u32::try_from(*lun).ok()),
            (Endpoint::NvmeTcp { .. }, true) => place(&self.uri, self.uri.option("ns").and_then(|ns| ns.parse().ok())),
            _ => self.uri.to_string(),
        }
    }
}

fn place(uri: &DiskUri, unit: Option<u32>) -> String {
    let bare = match &uri.endpoint {
        Endpoint::Iscsi { host, port, iqn, .. } => {
            let (host, iqn) = (host.to_ascii_lowercase(), iqn.clone());
            let lun = unit.unwrap_or(0).into();
            Endpoint::Iscsi { user: None, secret: None, host, port: *port, iqn, lun }
        }
        Endpoint::NvmeTcp { host, port, subnqn } => {
            Endpoint::NvmeTcp { host: host.to_ascii_lowercase(), port: *port, subnqn: subnqn.clone() }
        }
        other => other.clone(),
    };
    let options = match (uri.scheme, unit) {
        (Scheme::NvmeTcp, Some(ns)) => vec![("ns".to_owned(), ns.to_string())],
        _ => Vec::new(),
    };
    DiskUri::from_parts(uri.scheme, bare, options).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_uri_leaves_out_says_what_it_is() {
        use SourceKind::*;
        let table = [
            ("nvme-tcp://10.0.0.1", NvmeDiscovery),
            ("nvme-tcp://10.0.0.1:8009/?hdgst=on", NvmeDiscovery),
            ("nvme-tcp://[::1]/nqn.2014-08.org.nvmexpress.discovery", NvmeDiscovery),
            ("nvme-tcp://10.0.0.1/nqn.2026-01.org.example:a", NvmeSubsystem),
            ("nvme-tcp://10.0.0.1/nqn.2026-01.org.example:a?ns=1", Path),
            ("iscsi://10.0.0.1", IscsiPortal),
            ("iscsi://joe%word-of-joe-1@[::1]:3261/?hdgst=on", IscsiPortal),
            ("iscsi://10.0.0.1/iqn.2026-01.org.example:a", IscsiTarget),
            ("iscsi://10.0.0.1/iqn.2026-01.org.example:a/3", Path),
            ("ram://1MiB", Path),
        ];
        for (text, kind) in table {
            let source: SourceUri = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(source.kind(), kind, "{text}");
        }
        let joe: SourceUri = "iscsi://joe%word-of-joe-1@h".parse().unwrap();
        assert_eq!(joe.to_string(), "iscsi://joe%***@h");
        assert!(!format!("{joe}{:?}", joe.text).contains("word"));
        let bad = [
            ("10.0.0.1", "\"10.0.0.1\": scheme"),
            ("nvme-tcp://", "host"),
            ("iscsi://h?nonsense=1", "option nonsense"),
            ("iscsi://joe@h", "\"iscsi://joe@h\": user: has no secret"),
            ("iscsi://h/disk", "IQN"),
            ("iscsi://h?portals=a:1", "option portals"),
            ("nvme-tcp://h?ns=1", "option ns"),
        ];
        for (text, says) in bad {
            let error = text.parse::<SourceUri>().unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains(NO_TARGET), "{text}: {error}");
        }
    }

    #[test]
    fn a_service_is_known_by_its_place_and_names_its_paths() {
        let service = |text: &str| ServiceUri::new(&text.parse().unwrap(), false);
        let iscsi = service("iscsi://joe%word-of-joe-1@Host/iqn.2026-01.org.example:a/0?hdgst=on");
        assert_eq!(iscsi.key, service("iscsi://host:3260/iqn.2026-01.org.example:a/7").key);
        assert_eq!(iscsi.path_name(5), "iscsi://host:3260/iqn.2026-01.org.example:a/5");
        let path = iscsi.path(5);
        assert!(matches!(&path.endpoint, Endpoint::Iscsi { secret: Some(s), lun: 5, .. } if s == "word-of-joe-1"));
        assert_eq!((path.option("hdgst"), path.option("ctrl_loss_timeout_ms")), (Some("on"), None));
        assert_eq!(iscsi.for_driver(&path).option("ctrl_loss_timeout_ms"), Some("-1"));
        let nvme = service("nvme-tcp://10.0.0.1/nqn.2026-01.org.example:a?ctrl_loss_timeout_ms=9");
        assert_eq!(nvme.path_name(2), "nvme-tcp://10.0.0.1:4420/nqn.2026-01.org.example:a?ns=2");
        assert_eq!(nvme.for_driver(&nvme.path(2)).option("ctrl_loss_timeout_ms"), Some("9"));
        let single = ServiceUri::new(&"ram://1MiB".parse().unwrap(), true);
        assert_eq!((single.path_name(0).as_str(), single.path(0).to_string().as_str()), ("ram://1MiB", "ram://1MiB"));
    }
}
