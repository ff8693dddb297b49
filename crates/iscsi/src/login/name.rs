//! Names of initiators and targets (RFC 7143 section 4.2.7).

/// Most octets of a name, section 4.2.7.1.
pub const MAX_NAME_LEN: usize = 223;

/// An iSCSI name: `iqn.`, `eui.` or `naa.` with what belongs to it, in lower case.
///
/// Names are compared octet by octet. Characters beyond ASCII are taken as they come: bringing them into the form of RFC 3722 is for
/// whoever types them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// Why something is no iSCSI name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no iSCSI name: {why}")]
pub struct BadName {
    /// What it was, cut to a length that can be shown.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Name {
    /// Checks a name. Capital letters of ASCII become small ones, as RFC 3722 says for what a person typed.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn new(name: &str) -> Result<Self, BadName> {
        let name = name.to_ascii_lowercase();
        match fault(&name) {
            None => Ok(Name(name)),
            Some(why) => Err(BadName { name: name.chars().take(MAX_NAME_LEN + 1).collect(), why }),
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Name {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        Name::new(name)
    }
}

fn fault(name: &str) -> Option<&'static str> {
    if name.len() > MAX_NAME_LEN {
        return Some("more than 223 bytes");
    }
    let hex = |digits: &str| digits.bytes().all(|b| b.is_ascii_hexdigit());
    match name.split_at_checked(4) {
        Some(("iqn.", rest)) => iqn_fault(rest),
        Some(("eui.", id)) if id.len() == 16 && hex(id) => None,
        Some(("eui.", _)) => Some("16 hexadecimal digits follow eui."),
        Some(("naa.", id)) if matches!(id.len(), 16 | 32) && hex(id) => None,
        Some(("naa.", _)) => Some("16 or 32 hexadecimal digits follow naa."),
        _ => Some("it begins with iqn., eui. or naa."),
    }
}

/// `yyyy-mm.reversed-domain[:anything]`, section 4.2.7.4.
fn iqn_fault(rest: &str) -> Option<&'static str> {
    let date = rest.as_bytes();
    let digits = |range: std::ops::Range<usize>| date.get(range).is_some_and(|d| d.iter().all(u8::is_ascii_digit));
    let month = rest.get(5..7).and_then(|m| m.parse::<u8>().ok()).unwrap_or(0);
    if !digits(0..4) || date.get(4) != Some(&b'-') || !digits(5..7) || !(1..=12).contains(&month) {
        return Some("year and month follow iqn., such as iqn.2026-01.");
    }
    let Some(rest) = rest.get(7..).and_then(|rest| rest.strip_prefix('.')) else {
        return Some("a reversed domain name follows the date, such as iqn.2026-01.org.example");
    };
    let authority = rest.split(':').next().unwrap_or_default();
    if authority.is_empty() {
        return Some("the domain name after the date is empty");
    }
    // section 4.2.7.2: no other punctuation, no spaces, no control characters
    let legal = |c: char| {
        if c.is_ascii() {
            c.is_ascii_alphanumeric() || ".-:".contains(c)
        } else {
            !c.is_whitespace() && !c.is_control()
        }
    };
    if rest.chars().all(legal) { None } else { Some("only letters, digits, and . - : are in it") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let good = [
            "iqn.2001-04.com.example:storage:diskarrays-sn-a8675309",
            "iqn.2001-04.com.example",
            "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-inq",
            "iqn.2026-12.org.polypath:\u{fc}",
            "eui.02004567a425678d",
            "naa.52004567ba64678d",
            "naa.62004567ba64678d0123456789abcdef",
        ];
        for name in good {
            assert_eq!(Name::new(name).map(|n| n.0).as_deref(), Ok(name));
        }
        assert_eq!(Name::new("IQN.2001-04.com.Example").unwrap().as_str(), "iqn.2001-04.com.example");
        let longest = format!("iqn.2001-04.com.example:{}", "x".repeat(199));
        assert_eq!(longest.len(), MAX_NAME_LEN);
        assert!(Name::new(&longest).is_ok());
        let too_long = format!("{longest}x");
        let bad = [
            "",
            "iqn",
            "iqn.",
            "abc.2001-04.com.example",
            "iqn.2001-13.com.example",
            "iqn.2001-00.com",
            "iqn.201-04.com",
            "iqn.2001-4.com",
            "iqn.2001-04",
            "iqn.2001-04.",
            "iqn.2001-04.:x",
            "iqn.2001-04.com example",
            "iqn.2001-04.com/x",
            "iqn.2001-04.com_x",
            "iqn.2001-04.com:\n",
            "iqn.2001-+4.com",
            "eui.02004567a425678",
            "eui.02004567a425678g",
            "naa.5200",
            "naa.52004567ba64678d01",
            &too_long,
            "\u{e9}qn.2001-04.com",
        ];
        for name in bad {
            let error = Name::new(name).expect_err(name).to_string();
            assert!(error.contains("is no iSCSI name"), "{error}");
        }
        assert!(Name::new(&"x".repeat(100_000)).unwrap_err().name.len() < 300);
    }
}
