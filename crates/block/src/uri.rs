//! One URI names any disk, in the command line, the configuration and RPC alike.
//!
//! | URI | disk |
//! |---|---|
//! | `nvme-tcp://host:4420/SUBNQN?ns=1` | NVMe/TCP namespace |
//! | `iscsi://[user[%secret]@]host:3260/IQN/LUN` | iSCSI logical unit (libiscsi's form) |
//! | `nvme-pcie://0000:01:00.0?ns=1` | local NVMe drive over VFIO |
//! | `nvme-vfio-user:///path/to.sock?ns=1` | NVMe controller over vfio-user |
//! | `mpt3sas://0000:01:00.0/SAS-ADDRESS` | disk behind a SAS adapter |
//! | `mpt3sas-vfio-user:///path/to.sock/SAS-ADDRESS` | the same over vfio-user |
//! | `file:///path` | file or block device |
//! | `ram://1GiB`, `null://1TiB` | memory, or nothing at all |
//! | `vhost-user-blk:///path/to.sock` | vhost-user-blk back-end, as a client |
//!
//! Every scheme takes options after `?`, `key=value` joined by `&`; the driver checks which it knows.

use core::fmt;
use core::ops::RangeInclusive;
use core::str::FromStr;
use core::time::Duration;

mod build;

/// Kind of disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs, reason = "each is described in the table of the module")]
pub enum Scheme {
    NvmeTcp,
    Iscsi,
    NvmePcie,
    NvmeVfioUser,
    Mpt3sas,
    Mpt3sasVfioUser,
    File,
    Ram,
    Null,
    VhostUserBlk,
}

const SCHEMES: [(&str, Scheme); 10] = [
    ("nvme-tcp", Scheme::NvmeTcp),
    ("iscsi", Scheme::Iscsi),
    ("nvme-pcie", Scheme::NvmePcie),
    ("nvme-vfio-user", Scheme::NvmeVfioUser),
    ("mpt3sas", Scheme::Mpt3sas),
    ("mpt3sas-vfio-user", Scheme::Mpt3sasVfioUser),
    ("file", Scheme::File),
    ("ram", Scheme::Ram),
    ("null", Scheme::Null),
    ("vhost-user-blk", Scheme::VhostUserBlk),
];

impl Scheme {
    /// The word before `://`.
    pub fn as_str(self) -> &'static str {
        SCHEMES.iter().find(|(_, s)| *s == self).map_or("?", |(name, _)| name)
    }
}

/// What stands between the scheme and the options.
#[derive(Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `host:port/NQN`. The port is 4420 (or 8009 for the discovery NQN) when left out. IPv6 addresses stand in brackets.
    NvmeTcp {
        /// Host name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// Subsystem NQN; empty when none was named.
        subnqn: String,
    },
    /// `[user[%secret]@]host:port/IQN/LUN`; port 3260 when left out.
    Iscsi {
        /// CHAP user.
        user: Option<String>,
        /// CHAP secret. Not printed.
        secret: Option<String>,
        /// Host name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// Target name.
        iqn: String,
        /// Logical unit number.
        lun: u64,
    },
    /// `domain:bus:device.function`, and a SAS address for `mpt3sas`.
    Pci {
        /// PCI address as the kernel writes it, such as `0000:01:00.0`.
        bdf: String,
        /// SAS address in hexadecimal.
        sas: Option<u64>,
    },
    /// An absolute path, and a SAS address for `mpt3sas-vfio-user`.
    Path {
        /// Absolute path.
        path: String,
        /// SAS address in hexadecimal.
        sas: Option<u64>,
    },
    /// A size in bytes, as in `ram://1GiB`.
    Size {
        /// Bytes.
        bytes: u64,
    },
}

/// A parsed disk URI. It is shown, for people and for programmers, with its secret hidden.
#[derive(Clone, PartialEq, Eq)]
pub struct DiskUri {
    /// Kind of disk.
    pub scheme: Scheme,
    /// Where it is.
    pub endpoint: Endpoint,
    /// Options in the order given, keys unique, percent-decoded.
    pub options: Vec<(String, String)>,
    text: String,
}

/// What is wrong with a disk URI, and which part.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("disk URI \"{uri}\": {part}: {problem}")]
pub struct UriError {
    /// The URI as given, secrets hidden.
    pub uri: String,
    /// Which part: `scheme`, `host`, `port`, `NQN`, `option ns`, ...
    pub part: String,
    /// What is wrong with it and what was expected.
    pub problem: String,
}

impl DiskUri {
    /// The option `key`.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The option `key` as a number, or `default` when it is not given.
    ///
    /// # Errors
    /// Names the option when its value is not a number of type `T`.
    pub fn option_number<T: FromStr>(&self, key: &str, default: T) -> Result<T, UriError> {
        match self.option(key) {
            None => Ok(default),
            Some(v) => v
                .parse()
                .map_err(|_| self.error(&format!("option {key}"), format!("\"{v}\" is not a number that fits"))),
        }
    }

    /// The option `key` as on/off (`1`, `0`, `on`, `off`, `true`, `false`, `yes`, `no`), or `default`.
    ///
    /// # Errors
    /// Names the option when its value is none of these.
    pub fn option_bool(&self, key: &str, default: bool) -> Result<bool, UriError> {
        match self.option(key) {
            None => Ok(default),
            Some("1" | "on" | "true" | "yes" | "") => Ok(true),
            Some("0" | "off" | "false" | "no") => Ok(false),
            Some(v) => Err(self.error(&format!("option {key}"), format!("\"{v}\" is neither on nor off"))),
        }
    }

    /// The option `key` in milliseconds, at least `least_ms`, or `default` when it is not given.
    ///
    /// # Errors
    /// Names the option when its value is no number, or too small.
    pub fn option_ms(&self, key: &str, default: Duration, least_ms: u32) -> Result<Duration, UriError> {
        match self.option_number::<u32>(key, default.as_millis() as u32)? {
            ms if ms < least_ms => {
                Err(self.error(&format!("option {key}"), format!("{ms} ms is too short; at least {least_ms}")))
            }
            ms => Ok(Duration::from_millis(ms.into())),
        }
    }

    /// The option `key` in milliseconds, where -1 means never, or `default` when it is not given.
    ///
    /// # Errors
    /// Names the option when its value is no number, or less than -1.
    pub fn option_ms_or_never(&self, key: &str, default: Option<Duration>) -> Result<Option<Duration>, UriError> {
        match self.option_number::<i64>(key, default.map_or(-1, |d| d.as_millis() as i64))? {
            -1 => Ok(None),
            ms @ 0.. => Ok(Some(Duration::from_millis(ms as u64))),
            ms => Err(self.error(&format!("option {key}"), format!("{ms} is negative; expected milliseconds or -1"))),
        }
    }

    /// The option `key` as a number in `range`, or `default` when it is not given.
    ///
    /// # Errors
    /// Names the option when its value is no number, or not in the range.
    pub fn option_count(&self, key: &str, default: u16, range: RangeInclusive<u16>) -> Result<u16, UriError> {
        match self.option_number(key, default)? {
            n if range.contains(&n) => Ok(n),
            n => {
                let expected = format!("{n}; expected {} to {}", range.start(), range.end());
                Err(self.error(&format!("option {key}"), expected))
            }
        }
    }

    /// Checks that every option is one of `known`.
    ///
    /// # Errors
    /// Names the first unknown option and lists the known ones.
    pub fn check_options(&self, known: &[&str]) -> Result<(), UriError> {
        match self.options.iter().find(|(k, _)| !known.contains(&k.as_str())) {
            None => Ok(()),
            Some((k, _)) => Err(self.error(
                &format!("option {k}"),
                format!("not an option of {}; known: {}", self.scheme.as_str(), known.join(", ")),
            )),
        }
    }

    /// An error about `part` of this URI.
    pub fn error(&self, part: &str, problem: impl Into<String>) -> UriError {
        UriError { uri: self.text.clone(), part: part.into(), problem: problem.into() }
    }
}

impl fmt::Display for DiskUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for DiskUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskUri({self})")
    }
}

/// Without the secret.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::NvmeTcp { host, port, subnqn } => write!(f, "NvmeTcp({host:?}, {port}, {subnqn:?})"),
            Endpoint::Iscsi { user, secret, host, port, iqn, lun } => {
                let secret = secret.as_ref().map(|_| "***");
                write!(f, "Iscsi({user:?}, {secret:?}, {host:?}, {port}, {iqn:?}, {lun})")
            }
            Endpoint::Pci { bdf, sas } => write!(f, "Pci({bdf:?}, {sas:x?})"),
            Endpoint::Path { path, sas } => write!(f, "Path({path:?}, {sas:x?})"),
            Endpoint::Size { bytes } => write!(f, "Size({bytes})"),
        }
    }
}

impl FromStr for DiskUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let shown = hide_secret(text);
        let fail = |part: &str, problem: String| UriError { uri: shown.clone(), part: part.into(), problem };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| {
            fail("scheme", format!("no \"://\"; expected SCHEME://... with one of {}", scheme_names()))
        })?;
        let scheme =
            SCHEMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(scheme)).map(|(_, s)| *s).ok_or_else(|| {
                fail("scheme", format!("\"{scheme}\" is unknown; expected one of {}", scheme_names()))
            })?;
        let (body, query) = rest.split_once('?').unwrap_or((rest, ""));
        let options = parse_options(query).map_err(|(part, problem)| fail(&part, problem))?;
        let endpoint = parse_endpoint(scheme, body).map_err(|(part, problem)| fail(&part, problem))?;
        Ok(DiskUri { scheme, endpoint, options, text: shown })
    }
}

type PartError = (String, String);

fn bad(part: &str, problem: impl Into<String>) -> PartError {
    (part.into(), problem.into())
}

fn scheme_names() -> String {
    SCHEMES.map(|(name, _)| name).join(", ")
}

fn parse_endpoint(scheme: Scheme, body: &str) -> Result<Endpoint, PartError> {
    match scheme {
        Scheme::NvmeTcp => {
            let (authority, nqn) = body.split_once('/').unwrap_or((body, ""));
            let subnqn = percent_decode("NQN", nqn)?;
            if subnqn.len() > 223 {
                return Err(bad("NQN", format!("{} bytes long; at most 223 are allowed", subnqn.len())));
            }
            let port = if subnqn == "nqn.2014-08.org.nvmexpress.discovery" { 8009 } else { 4420 };
            let (host, port) = split_host_port(authority, port)?;
            Ok(Endpoint::NvmeTcp { host, port, subnqn })
        }
        Scheme::Iscsi => parse_iscsi(body),
        Scheme::NvmePcie => Ok(Endpoint::Pci { bdf: parse_bdf(body)?, sas: None }),
        Scheme::Mpt3sas => {
            let (bdf, sas) =
                body.split_once('/').ok_or_else(|| bad("SAS address", "missing; expected BDF/SAS-ADDRESS"))?;
            Ok(Endpoint::Pci { bdf: parse_bdf(bdf)?, sas: Some(parse_sas(sas)?) })
        }
        Scheme::Mpt3sasVfioUser => {
            let (path, sas) =
                body.rsplit_once('/').ok_or_else(|| bad("SAS address", "missing; expected /PATH/SAS-ADDRESS"))?;
            Ok(Endpoint::Path { path: parse_path(path)?, sas: Some(parse_sas(sas)?) })
        }
        Scheme::NvmeVfioUser | Scheme::File | Scheme::VhostUserBlk => {
            Ok(Endpoint::Path { path: parse_path(body)?, sas: None })
        }
        Scheme::Ram | Scheme::Null => Ok(Endpoint::Size { bytes: parse_size(body).map_err(|p| bad("size", p))? }),
    }
}

/// Reads `host`, `host:port`, `[address]` or `[address]:port`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_host_port(text: &str, default_port: u16) -> Result<(String, u16), String> {
    split_host_port(text, default_port).map_err(|(part, problem)| format!("{part}: {problem}"))
}

fn split_host_port(authority: &str, default: u16) -> Result<(String, u16), PartError> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(|| bad("host", "\"[\" without \"]\""))?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(bad("port", format!("\"{after}\" after the address; expected :PORT"))),
        }
    } else {
        match authority.split_once(':') {
            Some((_, p)) if p.contains(':') => return Err(bad("host", "an IPv6 address must stand in brackets")),
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err(bad("host", "empty"));
    }
    let port = match port {
        None => default,
        Some(p) => match p.parse() {
            Ok(n) if n > 0 => n,
            _ => return Err(bad("port", format!("\"{p}\" is not a number from 1 to 65535"))),
        },
    };
    Ok((host.to_owned(), port))
}

fn parse_iscsi(body: &str) -> Result<Endpoint, PartError> {
    let mut parts = body.splitn(2, '/');
    let authority = parts.next().unwrap_or("");
    let (iqn, lun) = parts
        .next()
        .and_then(|rest| rest.rsplit_once('/'))
        .ok_or_else(|| bad("IQN/LUN", "missing; expected host/IQN/LUN"))?;
    let (login, authority) = match authority.rsplit_once('@') {
        Some((login, a)) => (Some(login), a),
        None => (None, authority),
    };
    let (user, secret) = match login.map(|l| l.split_once('%').map_or((l, None), |(u, s)| (u, Some(s)))) {
        Some((u, s)) => (Some(u.to_owned()), s.map(str::to_owned)),
        None => (None, None),
    };
    if login.is_none() && authority.contains('%') && !authority.starts_with('[') {
        // Most likely the first half of a secret: it and the rest are not to be taken for host and target.
        let problem = "there is a % and no @ before the first slash; expected user@host, and a secret with a slash in it in a file";
        return Err(bad("host", problem));
    }
    let (host, port) = split_host_port(authority, 3260)?;
    let lun = lun.parse().map_err(|_| bad("LUN", format!("\"{lun}\" is not a number")))?;
    Ok(Endpoint::Iscsi { user, secret, host, port, iqn: percent_decode("IQN", iqn)?, lun })
}

fn parse_bdf(text: &str) -> Result<String, PartError> {
    let hex = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_hexdigit());
    let ok = text.split_once('.').is_some_and(|(left, function)| {
        let parts: Vec<_> = left.split(':').collect();
        hex(function, 1) && parts.len() == 3 && hex(parts[0], 4) && hex(parts[1], 2) && hex(parts[2], 2)
    });
    if ok { Ok(text.to_owned()) } else { Err(bad("PCI address", format!("\"{text}\"; expected such as 0000:01:00.0"))) }
}

fn parse_sas(text: &str) -> Result<u64, PartError> {
    let digits = text.trim_start_matches("0x");
    u64::from_str_radix(digits, 16)
        .map_err(|_| bad("SAS address", format!("\"{text}\" is not a hexadecimal number of 64 bits")))
}

fn parse_path(text: &str) -> Result<String, PartError> {
    let path = percent_decode("path", text)?;
    if path.starts_with('/') {
        Ok(path)
    } else {
        Err(bad("path", format!("\"{path}\" is not absolute; expected ///...")))
    }
}

/// Parses a size in bytes: `4096`, `64KiB`, `1GiB`, `2TiB`, `10GB` (decimal), `1G` (binary).
///
/// # Errors
/// What is wrong with it: no number, a unit that there is not, zero, or more than 2^63 - 1 bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("\"{text}\" is not a size; expected such as 1GiB"))?;
    let power = |base: u64, n: u32| base.pow(n);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => power(1024, 1),
        "m" | "mib" => power(1024, 2),
        "g" | "gib" => power(1024, 3),
        "t" | "tib" => power(1024, 4),
        "p" | "pib" => power(1024, 5),
        "kb" => power(1000, 1),
        "mb" => power(1000, 2),
        "gb" => power(1000, 3),
        "tb" => power(1000, 4),
        _ => return Err(format!("unit \"{unit}\" is unknown; expected KiB, MiB, GiB or TiB")),
    };
    match number.checked_mul(factor) {
        Some(n) if n > 0 && n <= i64::MAX as u64 => Ok(n),
        _ => Err(format!("\"{text}\" is zero or too large")),
    }
}

fn parse_options(query: &str) -> Result<Vec<(String, String)>, PartError> {
    let mut options: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = percent_decode("options", key)?;
        let value = percent_decode(&format!("option {key}"), value)?;
        if options.iter().any(|(k, _)| *k == key) {
            return Err(bad(&format!("option {key}"), "given twice"));
        }
        options.push((key, value));
    }
    Ok(options)
}

fn percent_decode(part: &str, text: &str) -> Result<String, PartError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let pair = [bytes.next(), bytes.next()];
        let digit = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
        match (digit(pair[0]), digit(pair[1])) {
            (Some(h), Some(l)) => out.push((h * 16 + l) as u8),
            _ => return Err(bad(part, "\"%\" must be followed by two hexadecimal digits")),
        }
    }
    String::from_utf8(out).map_err(|_| bad(part, "is not UTF-8 after percent decoding"))
}

/// `text`, which may be a URI or wants to be one, without the secret in it: for messages about what cannot be read.
pub fn hide_secret(text: &str) -> String {
    let (scheme, rest) = text.find("://").map_or(("", text), |at| text.split_at(at + 3));
    // Also behind the name of an option.
    let other = !scheme.is_empty() && !scheme.to_ascii_lowercase().ends_with("iscsi://");
    match secret(rest, !scheme.is_empty()).filter(|_| !other) {
        Some((from, to)) => format!("{scheme}{}***{}", &rest[..from], &rest[to..]),
        None => text.to_owned(),
    }
}

/// From where to where the secret goes in what follows the scheme: from the first `%` to the last `@` before the options. Slashes and
/// question marks in it make the whole no URI, but no less a secret.
fn secret(rest: &str, with_scheme: bool) -> Option<(usize, usize)> {
    let head = rest.split('?').next().unwrap_or(rest);
    let login = if with_scheme { head.split('/').next().unwrap_or(head) } else { head };
    let percent = login.find('%')?;
    // That of an address with its zone.
    if head[..percent].rsplit('@').next().is_some_and(|host| host.starts_with('[')) {
        return None;
    }
    let end = head.rfind('@').filter(|at| *at > percent).or_else(|| rest.rfind('@').filter(|at| *at > percent))?;
    Some((percent + 1, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_sees_a_secret() {
        let uri: DiskUri = "iscsi://joe%hush@10.0.0.1/iqn.2026-01.org.example:a/1?x=1".parse().unwrap();
        for shown in [uri.to_string(), format!("{uri:?}"), format!("{:?}", uri.endpoint)] {
            assert!(shown.contains("joe") && shown.contains("***") && !shown.contains("hush"), "{shown}");
        }
    }

    /// Whatever is wrong with it: people put slashes and question marks into secrets, and forget what comes before them.
    #[test]
    fn nobody_sees_the_secret_of_what_is_no_uri() {
        for text in [
            "iscsi://joe%hu/sh@10.0.0.1/iqn.2026-01.org.example:a/1",
            "iscsi://joe%hu?sh@10.0.0.1/iqn.2026-01.org.example:a/1",
            "iscsi://joe%/hush@10.0.0.1/iqn.2026-01.org.example:a/1",
            "iscsi:/joe%hush@10.0.0.1/iqn.2026-01.org.example:a/1",
            "joe%hush@10.0.0.1/iqn.2026-01.org.example:a/1",
            "iscsi://joe%hu@sh@10.0.0.1",
            "ISCSI://joe%hu/sh@10.0.0.1/a",
        ] {
            let shown = [hide_secret(text), text.parse::<DiskUri>().map_or_else(|e| e.to_string(), |u| u.to_string())];
            for shown in shown {
                assert!(!shown.contains("hu") && !shown.contains("sh@"), "{text}: {shown}");
            }
        }
        for text in ["file:///a%b/c@d", "nvme-tcp://[fe80::1%eth0]/nqn.2026-01.org.example:a?x=a@b", "ram://1MiB"] {
            assert_eq!(hide_secret(text), text);
        }
        for text in ["[fe80::1%eth0]/iqn.2026-01.org.example:a", "10.0.0.1/iqn.2026-01.org.example:a%20b"] {
            let text = format!("iscsi://{text}/1?target_user=a@b");
            assert_eq!(hide_secret(&text), text);
        }
    }

    #[test]
    fn parses_every_scheme() {
        let uri: DiskUri = "nvme-tcp://10.0.0.1:4421/nqn.2026-01.org.example:a?ns=2&hdgst=on".parse().unwrap();
        let want =
            Endpoint::NvmeTcp { host: "10.0.0.1".into(), port: 4421, subnqn: "nqn.2026-01.org.example:a".into() };
        assert_eq!(uri.endpoint, want);
        assert_eq!(uri.option_number("ns", 1), Ok(2));
        assert_eq!(uri.option_bool("hdgst", false), Ok(true));
        let endpoint = |s: &str| s.parse::<DiskUri>().unwrap().endpoint;
        assert_eq!(
            endpoint("nvme-tcp://[::1]/nqn.2014-08.org.nvmexpress.discovery"),
            Endpoint::NvmeTcp { host: "::1".into(), port: 8009, subnqn: "nqn.2014-08.org.nvmexpress.discovery".into() }
        );
        assert_eq!(endpoint("ram://1GiB"), Endpoint::Size { bytes: 1 << 30 });
        assert_eq!(endpoint("file:///dev/sda"), Endpoint::Path { path: "/dev/sda".into(), sas: None });
        assert_eq!(endpoint("nvme-pcie://0000:01:00.0?ns=1"), Endpoint::Pci { bdf: "0000:01:00.0".into(), sas: None });
        assert_eq!(
            endpoint("mpt3sas-vfio-user:///run/a.sock/500605b0000272b9"),
            Endpoint::Path { path: "/run/a.sock".into(), sas: Some(0x5006_05b0_0002_72b9) }
        );
        let iscsi = endpoint("iscsi://joe%pw@h:3261/iqn.2026-01.a:t/3");
        assert!(matches!(iscsi, Endpoint::Iscsi { lun: 3, port: 3261, secret: Some(ref s), .. } if s == "pw"));
    }

    #[test]
    fn errors_name_the_part() {
        let cases = [
            ("nvme-tcp:/x", "scheme"),
            ("nvmf://x", "scheme"),
            ("nvme-tcp:///nqn", "host"),
            ("nvme-tcp://h:0/nqn", "port"),
            ("nvme-tcp://h:99999/nqn", "port"),
            ("nvme-tcp://::1/nqn", "host"),
            ("nvme-tcp://[::1/nqn", "host"),
            ("nvme-tcp://h/n%zz", "NQN"),
            ("iscsi://h/iqn", "IQN/LUN"),
            ("iscsi://h/iqn/x", "LUN"),
            ("nvme-pcie://01:00.0", "PCI address"),
            ("mpt3sas://0000:01:00.0/xyz", "SAS address"),
            ("file://relative", "path"),
            ("ram://12QiB", "size"),
            ("ram://0", "size"),
            ("null://1TiB?a=1&a=2", "option a"),
        ];
        for (text, part) in cases {
            let err = text.parse::<DiskUri>().unwrap_err();
            assert_eq!(err.part, part, "{err}");
            assert!(err.to_string().contains(text), "{err}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let err = "iscsi://joe%hunter2@h/iqn".parse::<DiskUri>().unwrap_err();
        assert!(!err.to_string().contains("hunter2"), "{err}");
        let uri: DiskUri = "iscsi://joe%hunter2@h/iqn/0".parse().unwrap();
        assert!(!uri.to_string().contains("hunter2"));
    }

    #[test]
    fn unknown_options_are_refused_with_the_known_ones() {
        let uri: DiskUri = "null://1TiB?colour=red".parse().unwrap();
        let err = uri.check_options(&["bs"]).unwrap_err();
        assert!(err.to_string().contains("option colour") && err.to_string().contains("bs"), "{err}");
    }
}
