//! URIs out of their parts: for what was found and not typed.

use super::{DiskUri, Endpoint, Scheme};
use core::fmt::Write;

impl DiskUri {
    /// The URI of `endpoint` with `options`. Whatever a name has in it stays in its part: characters that would end one are encoded, so
    /// that a peer that names itself `x?secret_file=...` adds no option. A secret is kept and not shown.
    pub fn from_parts(scheme: Scheme, endpoint: Endpoint, options: Vec<(String, String)>) -> DiskUri {
        let mut text = format!("{}://", scheme.as_str());
        body(&endpoint, &mut text);
        for (n, (key, value)) in options.iter().enumerate() {
            text.push(if n == 0 { '?' } else { '&' });
            encode(key, "", &mut text);
            text.push('=');
            encode(value, "/:,[]", &mut text);
        }
        DiskUri { scheme, endpoint, options, text }
    }

    /// The same with another option: `key` is `value`, whatever it was.
    #[must_use]
    pub fn with_option(&self, key: &str, value: impl Into<String>) -> DiskUri {
        let mut options: Vec<_> = self.options.iter().filter(|(k, _)| k != key).cloned().collect();
        options.push((key.to_owned(), value.into()));
        DiskUri::from_parts(self.scheme, self.endpoint.clone(), options)
    }

    /// The same without the option `key`.
    #[must_use]
    pub fn without_option(&self, key: &str) -> DiskUri {
        let options = self.options.iter().filter(|(k, _)| k != key).cloned().collect();
        DiskUri::from_parts(self.scheme, self.endpoint.clone(), options)
    }
}

fn body(endpoint: &Endpoint, text: &mut String) {
    match endpoint {
        Endpoint::NvmeTcp { host, port, subnqn } => {
            authority(host, *port, text);
            if !subnqn.is_empty() {
                text.push('/');
                encode(subnqn, ":/", text);
            }
        }
        Endpoint::Iscsi { user, secret, host, port, iqn, lun } => {
            if let Some(user) = user {
                text.push_str(user);
                text.push_str(if secret.is_some() { "%***@" } else { "@" });
            }
            authority(host, *port, text);
            text.push('/');
            encode(iqn, ":", text);
            let _ = write!(text, "/{lun}");
        }
        Endpoint::Pci { bdf, sas } => {
            text.push_str(bdf);
            sas_address(*sas, text);
        }
        Endpoint::Path { path, sas } => {
            encode(path, "/:", text);
            sas_address(*sas, text);
        }
        Endpoint::Size { bytes } => {
            let _ = write!(text, "{bytes}");
        }
    }
}

fn authority(host: &str, port: u16, text: &mut String) {
    let _ = if host.contains(':') { write!(text, "[{host}]:{port}") } else { write!(text, "{host}:{port}") };
}

fn sas_address(sas: Option<u64>, text: &mut String) {
    if let Some(sas) = sas {
        let _ = write!(text, "/{sas:x}");
    }
}

/// Octets that are neither unreserved (RFC 3986 section 2.3) nor among `also` become `%XX`.
fn encode(part: &str, also: &str, text: &mut String) {
    for b in part.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) || also.as_bytes().contains(&b) {
            text.push(char::from(b));
        } else {
            let _ = write!(text, "%{b:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_of_parts_reads_as_the_parts() {
        for text in [
            "nvme-tcp://10.0.0.1:4421/nqn.2026-01.org.example:a?ns=2&hdgst=on",
            "nvme-tcp://[::1]:4420",
            "iscsi://joe@[fe80::1]:3261/iqn.2026-01.org.example:a/7?secret_file=/run/a.key&portals=[::1]:1,b:2",
            "mpt3sas://0000:01:00.0/5000c50012345678",
            "file:///a/b",
            "ram://4096",
        ] {
            let uri: DiskUri = text.parse().unwrap();
            let made = DiskUri::from_parts(uri.scheme, uri.endpoint.clone(), uri.options.clone());
            assert_eq!(made.to_string(), text);
            assert_eq!(made, uri);
        }
    }

    #[test]
    fn a_name_adds_no_options_and_no_path() {
        let hostile = "nqn.x?ns=1&secret_file=/etc/shadow#%41/../b c";
        let endpoint = Endpoint::NvmeTcp { host: "10.0.0.1".into(), port: 4420, subnqn: hostile.into() };
        let made = DiskUri::from_parts(Scheme::NvmeTcp, endpoint.clone(), vec![("ns".into(), "3".into())]);
        let read: DiskUri = made.to_string().parse().unwrap();
        assert_eq!((&read.endpoint, read.option("ns"), read.options.len()), (&endpoint, Some("3"), 1));
        assert_eq!(made.with_option("ns", "4").option("ns"), Some("4"));
        assert!(made.without_option("ns").options.is_empty());
    }

    #[test]
    fn a_secret_is_kept_and_not_shown() {
        let uri: DiskUri = "iscsi://joe%word@h/iqn.2026-01.org.example:a/1".parse().unwrap();
        let made = uri.with_option("hdgst", "on");
        assert_eq!(made.to_string(), "iscsi://joe%***@h:3260/iqn.2026-01.org.example:a/1?hdgst=on");
        assert!(matches!(made.endpoint, Endpoint::Iscsi { secret: Some(ref s), .. } if s == "word"));
    }
}
