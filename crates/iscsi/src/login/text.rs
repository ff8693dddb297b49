//! Text: `key=value` pairs that end with a zero, over one PDU or several (RFC 7143 section 6.1).

use super::LoginError;

/// Most octets of a key, section 6.1.
pub const MAX_KEY_LEN: usize = 63;
/// Most octets of a value, unless its key says otherwise, section 6.1.
pub const MAX_VALUE_LEN: usize = 255;
/// Most octets of a binary value as text: 1024 octets in hexadecimal digits (section 6.1, large-binary-value).
pub const MAX_BINARY_VALUE_LEN: usize = 2 + 2 * 1024;
/// Most octets of text of one side in one step of a login, over all PDUs that the C bit ties together. All keys of section 13 with the
/// longest values fit several times.
pub const MAX_LOGIN_TEXT_LEN: usize = 64 * 1024;

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// More than the receiver puts together.
    #[error("the text is longer than {0} bytes")]
    TooLong(usize),
    /// The last pair has no zero after it.
    #[error("the text does not end with a zero")]
    Unterminated,
    /// Something that is no `key=value`.
    #[error("{0:?} is no key=value")]
    NoPair(String),
    /// A key that is empty, too long, or has other characters than section 6.1 allows.
    #[error("{0:?} is no key: 1 to {MAX_KEY_LEN} letters, digits, and . - + @ _ beginning with a letter")]
    BadKey(String),
    /// A value that is too long.
    #[error("the value of {key} has {len} bytes, more than {max}")]
    LongValue {
        /// Its key.
        key: String,
        /// How long it is.
        len: usize,
        /// How long it may be.
        max: usize,
    },
    /// A value that is no UTF-8 or has control characters.
    #[error("the value of {0} is no text")]
    NotText(String),
    /// The same key twice.
    #[error("{0} is there twice")]
    Twice(String),
}

/// Puts together the text of several PDUs, within a bound.
#[derive(Debug)]
pub struct Collector {
    text: Vec<u8>,
    limit: usize,
}

impl Collector {
    /// Takes at most `limit` octets for one text.
    pub fn new(limit: usize) -> Self {
        Collector { text: Vec::new(), limit }
    }

    /// Adds the data of a PDU. When the PDU does not say that the text goes on, the whole text comes back, and the next one begins.
    ///
    /// # Errors
    /// [`TextError::TooLong`]; nothing is kept then.
    pub fn add(&mut self, data: &[u8], continues: bool) -> Result<Option<Vec<u8>>, TextError> {
        if data.len() > self.limit - self.text.len() {
            self.text = Vec::new();
            return Err(TextError::TooLong(self.limit));
        }
        self.text.extend_from_slice(data);
        Ok(if continues { None } else { Some(std::mem::take(&mut self.text)) })
    }

    /// Whether a text has begun and not ended.
    pub fn is_open(&self) -> bool {
        !self.text.is_empty()
    }
}

/// Text that leaves in pieces of what the peer takes at once.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    text: Vec<u8>,
    at: usize,
}

impl Pieces {
    /// All of `text` is still to leave.
    pub(crate) fn new(text: Vec<u8>) -> Self {
        Pieces { text, at: 0 }
    }

    /// The next piece of at most `max` octets, and whether more follow.
    pub(crate) fn next(&mut self, max: usize) -> (Vec<u8>, bool) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let piece = rest[..rest.len().min(max.max(1))].to_vec();
        self.at += piece.len();
        (piece, self.is_open())
    }

    /// Whether something is still to leave.
    pub(crate) fn is_open(&self) -> bool {
        self.at < self.text.len()
    }
}

/// Reads a whole text into its pairs, in order. Keys may repeat: what may not is for [`unique`] to say.
///
/// # Errors
/// [`TextError`].
pub fn pairs(text: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
    let Some((last, _)) = text.split_last() else { return Ok(Vec::new()) };
    if *last != 0 {
        return Err(TextError::Unterminated);
    }
    // one zero ends a pair, and more of them mean nothing
    text.split(|octet| *octet == 0).filter(|pair| !pair.is_empty()).map(pair).collect()
}

fn pair(octets: &[u8]) -> Result<(&str, &str), TextError> {
    let shown = || String::from_utf8_lossy(&octets[..octets.len().min(MAX_KEY_LEN)]).into_owned();
    let equals = octets.iter().position(|octet| *octet == b'=').ok_or_else(|| TextError::NoPair(shown()))?;
    let (key, value) = (&octets[..equals], &octets[equals + 1..]);
    let letter = |octet: &u8| octet.is_ascii_alphanumeric() || b".-+@_".contains(octet);
    // section 6.1 wants a capital letter, but section 13.24 defines iSCSIProtocolLevel
    let well_formed =
        key.len() <= MAX_KEY_LEN && key.first().is_some_and(u8::is_ascii_alphabetic) && key.iter().all(letter);
    let key = match std::str::from_utf8(key) {
        Ok(key) if well_formed => key,
        _ => return Err(TextError::BadKey(shown())),
    };
    let max = max_value_len(key);
    if value.len() > max {
        return Err(TextError::LongValue { key: key.into(), len: value.len(), max });
    }
    match std::str::from_utf8(value) {
        Ok(value) if !value.chars().any(char::is_control) => Ok((key, value)),
        _ => Err(TextError::NotText(key.into())),
    }
}

fn max_value_len(key: &str) -> usize {
    match key {
        "CHAP_C" | "CHAP_R" => MAX_BINARY_VALUE_LEN,
        // a DNS name of 255 octets with port and group tag (section 13.8)
        "TargetAddress" => MAX_VALUE_LEN + 16,
        _ => MAX_VALUE_LEN,
    }
}

/// The same pairs, none of whose keys is there twice.
///
/// # Errors
/// [`TextError::Twice`].
pub fn unique<'a>(pairs: Vec<(&'a str, &'a str)>) -> Result<Vec<(&'a str, &'a str)>, TextError> {
    for (at, (key, _)) in pairs.iter().enumerate() {
        if pairs[..at].iter().any(|(earlier, _)| earlier == key) {
            return Err(TextError::Twice((*key).into()));
        }
    }
    Ok(pairs)
}

/// A text in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text(Vec<u8>);

impl Text {
    /// Without any pair.
    pub fn new() -> Self {
        Text::default()
    }

    /// Adds a pair. Zeros and other control characters, which only a caller could have put there, are left out.
    pub fn add(&mut self, key: &str, value: &str) {
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        let start = self.0.len();
        self.0.extend_from_slice(value.as_bytes());
        if value.chars().any(char::is_control) {
            self.0.truncate(start);
            let clean: String = value.chars().filter(|c| !c.is_control()).collect();
            self.0.extend_from_slice(clean.as_bytes());
        }
        self.0.push(0);
    }

    /// Its octets.
    pub fn into_octets(self) -> Vec<u8> {
        self.0
    }

    /// Octets so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no pair.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<TextError> for LoginError {
    fn from(error: TextError) -> Self {
        LoginError::Text(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Row<'a> = (&'a [u8], &'a [(&'a str, &'a str)]);

    #[test]
    fn pairs_end_with_zeros() {
        let ok: [Row<'_>; 6] = [
            (b"", &[]),
            (b"\0\0", &[]),
            (b"A=\0", &[("A", "")]),
            (
                b"HeaderDigest=CRC32C,None\0X-a.b-c+d@e_f=g=h\0",
                &[("HeaderDigest", "CRC32C,None"), ("X-a.b-c+d@e_f", "g=h")],
            ),
            (b"A=1\0\0\0B=2\0\0", &[("A", "1"), ("B", "2")]),
            ("TargetAlias=b\u{fc}ro\0".as_bytes(), &[("TargetAlias", "b\u{fc}ro")]),
        ];
        for (text, want) in ok {
            assert_eq!(pairs(text).as_deref(), Ok(want));
        }
        let long_key = [&[b'K'; 64][..], b"=1\0"].concat();
        let long_value = [b"A=", &[b'v'; 256][..], b"\0"].concat();
        let bad: [(&[u8], &str); 11] = [
            (b"A=1", "does not end with a zero"),
            (b"A=1\0B", "does not end with a zero"),
            (b"A\0", "no key=value"),
            (b"=1\0", "is no key"),
            (b".a=1\0", "is no key"),
            (b"1=1\0", "is no key"),
            (b"A B=1\0", "is no key"),
            (b"A\xff=1\0", "is no key"),
            (&long_key, "is no key"),
            (&long_value, "256 bytes, more than 255"),
            (b"A=\xff\0", "no text"),
        ];
        for (text, words) in bad {
            let error = pairs(text).expect_err("it is not legal").to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(pairs(&long_key[1..]).is_ok() && pairs(&[b"A=", &[b'v'; 255][..], b"\0"].concat()).is_ok());
        assert!(pairs(b"A=1\n\0").is_err());
        assert_eq!(unique(pairs(b"A=1\0B=1\0A=2\0").unwrap()), Err(TextError::Twice("A".into())));
        assert!(unique(pairs(b"A=1\0B=1\0").unwrap()).is_ok());
    }

    #[test]
    fn a_text_that_is_cut_is_noticed_wherever_it_is_cut() {
        let text = b"InitiatorName=iqn.2026-01.lab:i\0AuthMethod=CHAP,None\0X-=\0\0";
        let whole = pairs(text).unwrap();
        for n in 0..text.len() {
            match pairs(&text[..n]) {
                Ok(read) => {
                    assert!(n == 0 || text[n - 1] == 0, "{n}");
                    assert_eq!(read, whole[..read.len()], "{n}");
                }
                Err(error) => assert_eq!((error, text[n - 1] == 0), (TextError::Unterminated, false), "{n}"),
            }
        }
    }

    #[test]
    fn a_collector_has_a_bound() {
        let mut collector = Collector::new(10);
        assert_eq!(collector.add(b"A=12", true), Ok(None));
        assert!(collector.is_open());
        assert_eq!(collector.add(b"", true), Ok(None));
        assert_eq!(collector.add(b"3\0", false), Ok(Some(b"A=123\0".to_vec())));
        assert!(!collector.is_open());
        assert_eq!(collector.add(&[1; 10], true), Ok(None));
        assert_eq!(collector.add(&[1], true), Err(TextError::TooLong(10)));
        assert_eq!(collector.add(&[1; 11], false), Err(TextError::TooLong(10)));
    }

    #[test]
    fn only_text_is_written() {
        let mut text = Text::new();
        text.add("A", "1\0B=2\n");
        assert_eq!(text.into_octets(), b"A=1B=2\0");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            all in proptest::collection::vec(("[A-Za-z][a-zA-Z0-9.@_+-]{0,62}", "[ -~\u{a0}-\u{ff}]{0,120}"), 0..20),
            cut in 1usize..50,
        ) {
            let mut text = Text::new();
            all.iter().for_each(|(key, value)| text.add(key, value));
            let octets = text.into_octets();
            let read = pairs(&octets).unwrap();
            prop_assert_eq!(&read, &all.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>());
            // the same in pieces
            let (mut pieces, mut collector, mut whole) = (Pieces::new(octets.clone()), Collector::new(octets.len()), None);
            while whole.is_none() {
                let (piece, more) = pieces.next(cut);
                prop_assert!(piece.len() <= cut);
                whole = collector.add(&piece, more).unwrap();
            }
            prop_assert_eq!(whole.unwrap(), octets);
        }

        #[test]
        fn any_octets(text in proptest::collection::vec(prop_oneof![Just(0u8), Just(b'='), any::<u8>()], 0..200)) {
            let _ = pairs(&text).map(unique);
        }
    }
}
