//! Who a disk is, and when two paths lead to the same one.

use core::fmt;
use core::str::FromStr;

/// One identifier of a disk. Like is compared with like.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identifier {
    /// NVMe namespace globally unique identifier (Identify Namespace bytes 119:104; descriptor type 2).
    Nguid([u8; 16]),
    /// IEEE extended unique identifier, 64 bit (NVMe descriptor type 1; SCSI designator type 2).
    Eui64([u8; 8]),
    /// RFC 9562 UUID (NVMe descriptor type 3; SCSI designator type Ah).
    Uuid([u8; 16]),
    /// SCSI NAA designator (type 3), 8 or 16 bytes.
    Naa(Vec<u8>),
    /// SCSI name string (type 8).
    ScsiName(String),
    /// T10 vendor identification (type 1). Some targets hand the same one out on every host: it never aggregates by itself.
    T10Vendor(Vec<u8>),
    /// Where it is, for a disk that gives no identifier at all: for NVMe the subsystem NQN, serial number and NSID. It tells that
    /// another disk answers on a path; it never aggregates.
    Place(String),
    /// Part of a disk: where, and of which one. What shows it is no whole disk, and no other part of one ([`Identity::compare`]).
    Slice(String),
}

impl Identifier {
    /// May two disks that share it be taken for one? All-zero identifiers, T10 vendor ones and locally assigned NAA ones (SPC-4 section
    /// 7.8.6.6.5, type 3h: unique within one machine room, if at all; tgt hands the same ones out on every host) may not.
    pub fn is_worldwide(&self) -> bool {
        let nonzero = |b: &[u8]| b.iter().any(|&x| x != 0);
        match self {
            Identifier::Nguid(b) | Identifier::Uuid(b) => nonzero(b),
            Identifier::Eui64(b) => nonzero(b),
            Identifier::Naa(b) => nonzero(b) && b.first().is_some_and(|first| first >> 4 != 3),
            Identifier::ScsiName(s) => !s.is_empty(),
            Identifier::T10Vendor(_) | Identifier::Place(_) | Identifier::Slice(_) => false,
        }
    }

    fn same_kind(&self, other: &Identifier) -> bool {
        core::mem::discriminant(self) == core::mem::discriminant(other)
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn hex(f: &mut fmt::Formatter<'_>, kind: &str, bytes: &[u8]) -> fmt::Result {
            write!(f, "{kind}.")?;
            bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
        }
        match self {
            Identifier::Nguid(b) => hex(f, "nguid", b),
            Identifier::Eui64(b) => hex(f, "eui", b),
            Identifier::Uuid(b) => hex(f, "uuid", b),
            Identifier::Naa(b) => hex(f, "naa", b),
            Identifier::T10Vendor(b) => hex(f, "t10", b),
            Identifier::ScsiName(s) => write!(f, "name.{s}"),
            Identifier::Place(s) => write!(f, "place.{s}"),
            Identifier::Slice(s) => write!(f, "slice.{s}"),
        }
    }
}

/// A text that is no identifier.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "identifier \"{text}\": {problem}; expected nguid., uuid., eui. or naa. and hexadecimal digits, t10. and hexadecimal digits, or name. and text, as disks show them"
)]
pub struct IdentifierError {
    /// As given.
    pub text: String,
    /// What is wrong.
    pub problem: String,
}

/// As [`fmt::Display`] writes it. Hyphens between digits are left out, as people write UUIDs with them.
impl FromStr for Identifier {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, IdentifierError> {
        let fail = |problem: String| IdentifierError { text: text.into(), problem };
        let (kind, value) = text.split_once('.').ok_or_else(|| fail("it names no kind".into()))?;
        let bytes = || {
            let digits: Vec<u8> = value.bytes().filter(|b| *b != b'-').collect();
            let pair = |pair: &[u8]| match pair {
                [_, _] => core::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok()),
                _ => None,
            };
            let bytes: Option<Vec<u8>> = digits.chunks(2).map(pair).collect();
            bytes.filter(|b| !b.is_empty()).ok_or_else(|| fail("its value is not pairs of hexadecimal digits".into()))
        };
        let wrong = |wanted: &str, bytes: Vec<u8>| fail(format!("it has {} bytes and not {wanted}", bytes.len()));
        let sixteen = || bytes()?.try_into().map_err(|b| wrong("16", b));
        match kind {
            "nguid" => Ok(Identifier::Nguid(sixteen()?)),
            "uuid" => Ok(Identifier::Uuid(sixteen()?)),
            "eui" => Ok(Identifier::Eui64(bytes()?.try_into().map_err(|b| wrong("8", b))?)),
            "naa" => match bytes()? {
                naa if matches!(naa.len(), 8 | 16) => Ok(Identifier::Naa(naa)),
                naa => Err(wrong("8 or 16", naa)),
            },
            "t10" => Ok(Identifier::T10Vendor(bytes()?)),
            "name" if !value.is_empty() => Ok(Identifier::ScsiName(value.into())),
            _ => Err(fail(format!("there is no kind \"{kind}\" that could be stated"))),
        }
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The scope of one volatile write cache: paths of one domain share it, so that a Flush through any of them covers all.
///
/// Assumed only for one NVMe subsystem (its NQN and serial) or one SCSI logical unit.
#[derive(Clone, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Default)]
pub struct CacheDomain(pub String);

impl CacheDomain {
    /// The cache at `place` since its `power_cycle`, which a driver knows that can tell losses of power. A volatile cache that lost its
    /// power is another cache at the same place: what the old one held is gone.
    pub fn since(place: &str, power_cycle: &str) -> Self {
        CacheDomain(format!("{place}#{power_cycle}"))
    }

    /// Where the cache is, without the power cycle.
    pub fn place(&self) -> &str {
        self.0.rsplit_once('#').map_or(&self.0, |(place, _)| place)
    }
}

/// Who a disk is, seen through one path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// All identifiers it gave.
    pub identifiers: Vec<Identifier>,
    /// Which write cache it has.
    pub cache_domain: CacheDomain,
}

/// Whether two paths lead to the same disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Yes: a worldwide identifier agrees and none of the same kind differs.
    Same,
    /// No: identifiers of the same kind differ.
    Different,
    /// Nothing comparable: never aggregate by itself.
    Unknown,
}

impl Identity {
    /// Compares like with like. A difference in any shared kind outweighs agreement in another. Part of a disk is never the whole one, nor
    /// another part.
    pub fn compare(&self, other: &Identity) -> Verdict {
        if self.slice() != other.slice() {
            return Verdict::Different;
        }
        let mut same = false;
        for a in self.identifiers.iter().filter(|i| i.is_worldwide()) {
            let mut kind = other.identifiers.iter().filter(|b| b.is_worldwide() && a.same_kind(b)).peekable();
            if kind.peek().is_none() {
                continue;
            }
            if kind.any(|b| a == b) {
                same = true;
            } else {
                return Verdict::Different;
            }
        }
        if same { Verdict::Same } else { Verdict::Unknown }
    }

    /// Which part of a disk it is, if it is one.
    fn slice(&self) -> Option<&Identifier> {
        self.identifiers.iter().find(|i| matches!(i, Identifier::Slice(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(list: &[Identifier]) -> Identity {
        Identity { identifiers: list.to_vec(), cache_domain: CacheDomain::default() }
    }

    fn one(i: &Identifier) -> Identity {
        id(core::slice::from_ref(i))
    }

    #[test]
    fn identifiers_are_read_as_they_are_written() {
        let all = [
            Identifier::Nguid([0xa1; 16]),
            Identifier::Uuid([7; 16]),
            Identifier::Eui64([9; 8]),
            Identifier::Naa(vec![0x60; 16]),
            Identifier::Naa(vec![0x50; 8]),
            Identifier::T10Vendor(b"ACME disk".to_vec()),
            Identifier::ScsiName("iqn.2026-01.org.example:a.b".into()),
        ];
        for identifier in all {
            assert_eq!(identifier.to_string().parse(), Ok(identifier));
        }
        let hyphens = "uuid.00112233-4455-6677-8899-aabbccddeeff".parse::<Identifier>().unwrap();
        assert_eq!(hyphens.to_string(), "uuid.00112233445566778899aabbccddeeff");
        let bad = [
            ("", "no kind"),
            ("uuid", "no kind"),
            ("uuid.12", "1 bytes and not 16"),
            ("uuid.1", "pairs"),
            ("eui.xx", "pairs"),
            ("naa.", "pairs"),
            ("naa.0102", "8 or 16"),
            ("name.", "\"name\""),
            ("place.nqn/1/2", "\"place\""),
            ("serial.5", "\"serial\""),
        ];
        for (text, problem) in bad {
            let error = text.parse::<Identifier>().unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("nguid."), "{text}: {error}");
        }
    }

    #[test]
    fn a_cache_that_lost_its_power_is_another_one_at_the_same_place() {
        let (before, after) = (CacheDomain::since("nvme:nqn.a:S#1", "7"), CacheDomain::since("nvme:nqn.a:S#1", "8"));
        assert!(before != after && before.place() == after.place());
        assert_eq!(before.place(), "nvme:nqn.a:S#1");
        assert_eq!(CacheDomain("one".into()).place(), "one");
    }

    #[test]
    fn like_with_like() {
        use Identifier::*;
        let (n1, n2) = (Nguid([1; 16]), Nguid([2; 16]));
        let cases = [
            (one(&n1), one(&n1), Verdict::Same),
            (one(&n1), one(&n2), Verdict::Different),
            (id(&[n1.clone(), Uuid([7; 16])]), id(&[n2, Uuid([7; 16])]), Verdict::Different),
            (id(&[n1.clone(), Eui64([3; 8])]), id(&[Eui64([3; 8])]), Verdict::Same),
            (one(&n1), id(&[Uuid([1; 16])]), Verdict::Unknown),
            (id(&[Uuid([0; 16])]), id(&[Uuid([0; 16])]), Verdict::Unknown),
            (id(&[T10Vendor(vec![1])]), id(&[T10Vendor(vec![1])]), Verdict::Unknown),
            (one(&Naa(vec![0x60; 16])), one(&Naa(vec![0x60; 16])), Verdict::Same),
            (one(&Naa(vec![0x30; 8])), one(&Naa(vec![0x30; 8])), Verdict::Unknown),
            (id(&[]), id(&[]), Verdict::Unknown),
            (one(&Slice("0+1 of a".into())), one(&Slice("0+1 of a".into())), Verdict::Unknown),
            (one(&Slice("0+1 of a".into())), one(&Slice("1+1 of a".into())), Verdict::Different),
            (id(&[Slice("0+1 of a".into()), n1.clone()]), one(&n1), Verdict::Different),
            (id(&[]), one(&Slice("0+1 of ".into())), Verdict::Different),
        ];
        for (a, b, want) in cases {
            assert_eq!(a.compare(&b), want, "{a:?} / {b:?}");
            assert_eq!(b.compare(&a), want, "symmetric: {b:?} / {a:?}");
        }
    }
}
