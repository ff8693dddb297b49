//! Values that the configuration file and RPC share: what they may be, and what is said when they are not.

use crate::state::file_name;
use polypath::SliceRange;
use polypath::block::{Identifier, parse_size};
use polypath::multipath::{Fencing, GroupConfig, MatchPolicy};
use polypath::vhost_user_blk::SocketAccess;
use serde::Deserialize;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

/// Longest name of a file, as Linux's file systems have it, without the longest ending of those that are kept of a disk.
const FILE_NAME_MOST: usize = 255 - ".json".len();
/// Longest name of a path: it is in lines of the log.
const PATH_NAME_MOST: usize = 255;
/// Longest path of a UNIX socket: `sun_path` without its end.
const SOCKET_PATH_MOST: usize = 107;

/// Longest serial number of a virtio disk.
const SERIAL_MOST: usize = 20;

/// Whether a disk can be called `name`, which is in lines of the log, in the name of a thread, and is the name of a file.
pub(crate) fn disk_name(name: &str) -> Result<(), String> {
    fits_a_line(name, "a name")?;
    match file_name(name).len() {
        ..=FILE_NAME_MOST => Ok(()),
        length => Err(format!(
            "takes {length} bytes in the name of a file in the state folder; expected at most {FILE_NAME_MOST} (letters, digits, - and _ \
             take one each, others three for each byte)"
        )),
    }
}

/// Whether a path to a disk can be called `name`.
pub(crate) fn path_name(name: &str) -> Result<(), String> {
    fits_a_line(name, "a name, or none")?;
    match name.len() {
        ..=PATH_NAME_MOST => Ok(()),
        length => Err(format!("has {length} bytes; expected at most {PATH_NAME_MOST}")),
    }
}

/// Whether a socket can be at `path`, wherever that is.
pub(crate) fn socket_path(path: &Path) -> Result<(), String> {
    fits_a_line(&path.to_string_lossy(), "a path")?;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > SOCKET_PATH_MOST {
        return Err(format!("has {} bytes; expected at most {SOCKET_PATH_MOST}", bytes.len()));
    }
    match bytes.rsplit(|&byte| byte == b'/').next() {
        Some(b"" | b"." | b"..") => Err("names a folder; expected the path of a socket".into()),
        _ => Ok(()),
    }
}

/// Whether an NBD export can be called `name`, which is in lines of the log. Empty is the default one.
pub(crate) fn export_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    path_name(name)
}

/// An address to listen on: numbers, for names may be several addresses, or others tomorrow.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("is \"{text}\"; expected an address and a port, such as 192.0.2.1:10809 or [2001:db8::1]:10809")
    })
}

/// Whether `text` has something in it, and nothing that ends lines or names, or steers terminals.
pub(crate) fn fits_a_line(text: &str, expected: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("is empty; expected {expected}"));
    }
    match text.chars().find(|c| c.is_control()) {
        None => Ok(()),
        Some(c) => Err(format!("has the control character {c:?} in it; expected {expected} without any")),
    }
}

/// Checks what a vhost socket's numbers may be, wherever they come from; an error names the key and what was expected.
pub(crate) fn check_rings(queues: u16, queue_size: u16) -> Result<(), (&'static str, String)> {
    if !(1..=256).contains(&queues) {
        return Err(("queues", format!("is {queues}; expected 1 to 256")));
    }
    if !queue_size.is_power_of_two() || !(2..=1024).contains(&queue_size) {
        return Err(("queue_size", format!("is {queue_size}; expected a power of two from 2 to 1024")));
    }
    Ok(())
}

/// Whether a virtio disk can have that serial number (virtio 1.3 section 5.2.6: 20 bytes).
pub(crate) fn serial(text: &str) -> Result<(), String> {
    match text.len() {
        ..=SERIAL_MOST => Ok(()),
        length => Err(format!("has {length} bytes; expected at most {SERIAL_MOST}")),
    }
}

/// A size as it is written: bytes, or a text with a unit, as disk URIs have them.
#[derive(Deserialize, Debug, Clone)]
#[serde(untagged, expecting = "a number of bytes, or a size such as 64GiB")]
pub(crate) enum SizeValue {
    Bytes(u64),
    Text(String),
}

impl SizeValue {
    /// What it means.
    pub(crate) fn bytes(&self) -> Result<u64, String> {
        match self {
            SizeValue::Bytes(bytes) => Ok(*bytes),
            SizeValue::Text(text) => text.parse().or_else(|_| parse_size(text)),
        }
    }
}

/// Whether a slice may be there, as far as that can be told without its disk; an error names the key and what was expected.
pub(crate) fn slice_range(range: SliceRange) -> Result<(), (&'static str, String)> {
    const BLOCK: u64 = 512;
    let aligned = |bytes: u64| match bytes.is_multiple_of(BLOCK) {
        true => Ok(()),
        false => Err(format!("is {bytes} bytes; expected a multiple of the disk's blocks, {BLOCK} at least")),
    };
    aligned(range.offset_bytes).map_err(|e| ("offset", e))?;
    aligned(range.length_bytes).map_err(|e| ("length", e))?;
    if range.length_bytes == 0 {
        return Err(("length", "is 0; expected at least one block".into()));
    }
    match range.end_bytes().filter(|end| *end <= i64::MAX as u64) {
        Some(_) => Ok(()),
        None => Err(("length", format!("is {} bytes, which ends beyond any disk", range.length_bytes))),
    }
}

/// `no_path_timeout_ms` as it is written: -1 is for ever.
pub(crate) fn no_path_timeout(ms: i64) -> Result<u64, String> {
    match ms {
        -1 => Ok(GroupConfig::FOR_EVER_MS),
        ms => u64::try_from(ms).map_err(|_| format!("is {ms}; expected milliseconds, or -1 to wait for ever")),
    }
}

/// `match` as it is written: a word, or identifiers.
#[derive(Deserialize, Debug, Clone)]
#[serde(untagged, expecting = "worldwide, stated, or a list of identifiers")]
pub(crate) enum MatchValue {
    Word(String),
    Identifiers(Vec<String>),
}

impl MatchValue {
    /// What it means.
    pub(crate) fn policy(&self) -> Result<MatchPolicy, String> {
        match self {
            MatchValue::Word(word) if word == "worldwide" => Ok(MatchPolicy::Worldwide),
            MatchValue::Word(word) if word == "stated" => Ok(MatchPolicy::Stated),
            MatchValue::Word(word) => {
                Err(format!("\"{word}\" found; expected worldwide, stated, or a list of identifiers"))
            }
            MatchValue::Identifiers(list) if list.is_empty() => {
                Err("is an empty list; expected at least one identifier".into())
            }
            MatchValue::Identifiers(list) => {
                let read = list.iter().map(|text| text.parse::<Identifier>().map_err(|e| e.to_string()));
                Ok(MatchPolicy::Pinned(read.collect::<Result<_, _>>()?))
            }
        }
    }
}

/// Who may reach a socket, from `mode` (octal digits), `owner` and `group` (names or numbers); an error names the key and what was expected.
pub(crate) fn socket_access(
    mode: Option<String>,
    owner: Option<String>,
    group: Option<String>,
) -> Result<SocketAccess, (&'static str, String)> {
    let mut access = SocketAccess::default();
    if let Some(text) = mode {
        let digits = text.strip_prefix("0o").unwrap_or(&text);
        let bits = u32::from_str_radix(digits, 8).ok().filter(|bits| bits & !0o777 == 0);
        access.mode =
            bits.ok_or_else(|| ("mode", format!("is \"{text}\"; expected octal digits up to 777, such as \"660\"")))?;
    }
    access.owner = owner.map(|name| account("/etc/passwd", &name).map_err(|e| ("owner", e))).transpose()?;
    access.group = group.map(|name| account("/etc/group", &name).map_err(|e| ("group", e))).transpose()?;
    Ok(access)
}

/// The number of a user or group: given as such, or looked up. Accounts that only a directory service knows are given by number.
fn account(table: &str, name: &str) -> Result<u32, String> {
    match name.parse() {
        // To chown(2) it means "leave it as it is".
        Ok(u32::MAX) => return Err(format!("is {name}, which is nobody's number; expected another one, or a name")),
        Ok(number) => return Ok(number),
        Err(_) => {}
    }
    let text = std::fs::read_to_string(table).map_err(|e| format!("{table} cannot be read: {e}; expected a number"))?;
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    });
    found
        .filter(|number| *number != u32::MAX)
        .ok_or_else(|| format!("\"{name}\" is not in {table}; expected a name from there, or a number"))
}

/// `on` or `off`.
pub(crate) struct FencingName(pub(crate) Fencing);

impl FromStr for FencingName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(FencingName(Fencing::On)),
            "off" => Ok(FencingName(Fencing::Off)),
            other => Err(format!("\"{other}\" found; expected on or off")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_paths_match_is_a_word_or_identifiers() {
        let policy = |json: &str| serde_json::from_str::<MatchValue>(json).unwrap().policy();
        assert_eq!(policy("\"worldwide\""), Ok(MatchPolicy::Worldwide));
        assert_eq!(policy("\"stated\""), Ok(MatchPolicy::Stated));
        let uuid = Identifier::Uuid([0x11; 16]);
        assert_eq!(policy(&format!("[\"{uuid}\"]")), Ok(MatchPolicy::Pinned(vec![uuid])));
        for (wrong, says) in [("\"any\"", "worldwide, stated"), ("[]", "at least one"), ("[\"uuid.1\"]", "pairs")] {
            let error = policy(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }

    #[test]
    fn accounts_are_numbers_or_names_of_the_tables() {
        let access = |mode: &str, owner: &str, group: &str| {
            let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            socket_access(given(mode), given(owner), given(group))
        };
        assert_eq!(access("", "", ""), Ok(SocketAccess::default()));
        let wanted = SocketAccess { mode: 0o660, owner: Some(0), group: Some(77) };
        assert_eq!(access("0660", "root", "77"), Ok(wanted));
        assert_eq!(access("0o660", "0", "77"), Ok(wanted));
        for (mode, owner, group, key, says) in [
            ("999", "", "", "mode", "octal"),
            ("1777", "", "", "mode", "777"),
            ("", "4294967295", "", "owner", "nobody"),
            ("", "", "4294967295", "group", "nobody"),
            ("", "no-such-user", "", "owner", "/etc/passwd"),
            ("", "", "no-such-group", "group", "/etc/group"),
        ] {
            let (at, problem) = access(mode, owner, group).unwrap_err();
            assert!(at == key && problem.contains(says), "{at}: {problem}");
        }
    }

    #[test]
    fn names_are_what_becomes_of_them_allows() {
        let socket = |text: &str| socket_path(Path::new(text));
        for good in ["vm1", "ü", "a b", "../x"] {
            assert_eq!((disk_name(good), path_name(good), socket(good)), (Ok(()), Ok(()), Ok(())), "{good}");
        }
        for (bad, says) in [("", "empty"), ("a\0b", "'\\0'"), ("a\nb", "'\\n'"), ("\u{9b}1m", "control")] {
            for outcome in [disk_name(bad), path_name(bad), socket(bad)] {
                let error = outcome.unwrap_err();
                assert!(error.contains(says) && error.contains("expected a"), "{bad:?}: {error}");
            }
        }
        assert_eq!((disk_name(&"a".repeat(250)), path_name(&"é".repeat(127))), (Ok(()), Ok(())));
        assert!(disk_name(&"é".repeat(42)).unwrap_err().contains("252 bytes in the name of a file"));
        assert!(path_name(&"a".repeat(256)).unwrap_err().contains("at most 255"));
        assert_eq!(socket(&"a".repeat(107)), Ok(()));
        assert!(socket(&"a".repeat(108)).unwrap_err().contains("at most 107"));
        for folder in ["new/", "/", ".", "a/..", "a/."] {
            assert!(socket(folder).unwrap_err().contains("folder"), "{folder}");
        }
    }

    #[test]
    fn serial_numbers_have_20_bytes() {
        assert_eq!((serial(""), serial(&"é".repeat(10))), (Ok(()), Ok(())));
        assert!(serial(&"a".repeat(21)).unwrap_err().contains("has 21 bytes; expected at most 20"));
    }

    #[test]
    fn exports_have_names_and_addresses() {
        assert_eq!((export_name(""), export_name("größe"), export_name(&"a".repeat(255))), (Ok(()), Ok(()), Ok(())));
        assert!(export_name("a\nb").is_err() && export_name(&"a".repeat(256)).is_err());
        assert_eq!(address("[::1]:0"), Ok("[::1]:0".parse().unwrap()));
        for wrong in ["", "127.0.0.1", "localhost:1", ":1", "::1:10809"] {
            assert!(address(wrong).unwrap_err().contains("expected an address and a port"), "{wrong}");
        }
    }

    #[test]
    fn minus_one_is_for_ever() {
        assert_eq!((no_path_timeout(-1), no_path_timeout(0)), (Ok(GroupConfig::FOR_EVER_MS), Ok(0)));
        assert!(no_path_timeout(-2).unwrap_err().contains("-1"));
    }
}
