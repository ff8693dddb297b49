//! Addresses of portals: `host[:port][,portal-group-tag]` (RFC 7143 section 13.8).

use std::net::Ipv6Addr;

/// The port of iSCSI, section 14.
pub const DEFAULT_PORT: u16 = 3260;

/// Where a target can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortalAddress {
    /// DNS name or IP address; an IPv6 address without its brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Portal group tag. Portals of one group can carry one session.
    pub group: Option<u16>,
}

/// Why something is no address of a portal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address:?} is no address of a portal: {why}")]
pub struct BadAddress {
    /// What it was.
    pub address: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl PortalAddress {
    /// Reads an address. Without port it is 3260.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub fn parse(address: &str) -> Result<Self, BadAddress> {
        split(address).map_err(|why| BadAddress { address: address.chars().take(300).collect(), why })
    }
}

fn split(address: &str) -> Result<PortalAddress, &'static str> {
    let (place, group) = match address.split_once(',') {
        Some((place, tag)) => (place, Some(small(tag).ok_or("the portal group tag is no number below 65536")?)),
        None => (address, None),
    };
    let (host, port) = if let Some(rest) = place.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("the bracket of its IPv6 address is not closed")?;
        host.parse::<Ipv6Addr>().map_err(|_| "what is in brackets is no IPv6 address")?;
        (host, rest.strip_prefix(':').or(if rest.is_empty() { None } else { Some(rest) }))
    } else {
        match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        }
    };
    let legal = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
    if host.is_empty() || host.len() > 255 || !host.bytes().all(legal) {
        return Err("its host is empty, too long, or has characters that no host name has");
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => small(port).filter(|port| *port != 0).ok_or("its port is no number from 1 to 65535")?,
    };
    Ok(PortalAddress { host: host.into(), port, group })
}

fn small(text: &str) -> Option<u16> {
    super::value::number(text)?.try_into().ok()
}

impl std::fmt::Display for PortalAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)?;
        } else {
            write!(f, "{}:{}", self.host, self.port)?;
        }
        self.group.map_or(Ok(()), |group| write!(f, ",{group}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        // RFC 7143 section 13.8 and appendix C have most of these
        let table = [
            ("10.1.1.2:5003,1", "10.1.1.2", 5003, Some(1)),
            ("10.1.1.2,1", "10.1.1.2", 3260, Some(1)),
            ("[1080:0:0:0:8:800:200C:417A]:5003,65535", "1080:0:0:0:8:800:200C:417A", 5003, Some(65535)),
            ("[1080::8:800:200C:417A],1", "1080::8:800:200C:417A", 3260, Some(1)),
            ("computingcenter.example.com,23", "computingcenter.example.com", 3260, Some(23)),
            ("computingcenter.example.com", "computingcenter.example.com", 3260, None),
            ("host:1", "host", 1, None),
            ("[::1]", "::1", 3260, None),
            ("127.0.0.1:0x10,0", "127.0.0.1", 16, Some(0)),
        ];
        for (text, host, port, group) in table {
            let address = PortalAddress::parse(text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(address, PortalAddress { host: host.into(), port, group });
            assert_eq!(PortalAddress::parse(&address.to_string()), Ok(address));
        }
        let bad = [
            "",
            ":1",
            ",1",
            "host:",
            "host:0",
            "host:65536",
            "host:1,",
            "host:1,x",
            "host:1,65536",
            "[::1",
            "::1:3260",
            "[::1]x",
            "[host]:1",
            "[]",
            "host:1:2",
            "ho st",
            "host/x",
            "host:+1",
            "\u{e9}",
            "host,1,2",
        ];
        for text in bad {
            assert!(PortalAddress::parse(text).is_err(), "{text:?}");
        }
        assert!(PortalAddress::parse(&"x".repeat(256)).is_err());
    }
}
