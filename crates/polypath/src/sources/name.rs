//! What devices are called: by who they are, so that they are called the same tomorrow.

use polypath_block::{Identifier, Identity};

/// Longest name that is taken from a disk, in bytes.
const MOST: usize = 80;

/// What a disk that proves who it is may be called, the best name first: UUID, EUI-64, NGUID, NAA, SCSI name.
pub(crate) fn proven(identity: &Identity) -> Vec<String> {
    let mut found: Vec<(u8, String)> = identity
        .identifiers
        .iter()
        .filter(|identifier| identifier.is_worldwide())
        .map(|identifier| (rank(identifier), identifier.to_string()))
        .filter(|(_, name)| name.len() <= MOST && !name.chars().any(char::is_control))
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().map(|(_, name)| name).collect()
}

fn rank(identifier: &Identifier) -> u8 {
    match identifier {
        Identifier::Uuid(_) => 0,
        Identifier::Eui64(_) => 1,
        Identifier::Nguid(_) => 2,
        Identifier::Naa(_) => 3,
        Identifier::ScsiName(_) => 4,
        Identifier::T10Vendor(_) | Identifier::Place(_) | Identifier::Slice(_) => 5,
    }
}

/// What a disk that does not is called: where its only path leads, or a number made of that where it is too long to be a name.
pub(crate) fn of_place(path: &str) -> String {
    if path.len() <= MOST && !path.chars().any(char::is_control) {
        return path.to_owned();
    }
    // FNV-1a.
    let hash = path
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("place.{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_fit() {
        let identifiers = vec![
            Identifier::T10Vendor(vec![1]),
            Identifier::Naa(vec![0x60; 16]),
            Identifier::Uuid([0; 16]),
            Identifier::Eui64([2; 8]),
            Identifier::ScsiName("x".repeat(200)),
            Identifier::ScsiName("a\nb".into()),
        ];
        let mut identity = Identity { identifiers, ..Identity::default() };
        let names = proven(&identity);
        assert_eq!(names, ["eui.0202020202020202", "naa.60606060606060606060606060606060"]);
        identity.identifiers.reverse();
        assert_eq!(proven(&identity), names, "in whatever order they are told");
        assert!(proven(&Identity::default()).is_empty());
        assert_eq!(
            of_place("iscsi://h:3260/iqn.2026-01.org.example:a/1"),
            "iscsi://h:3260/iqn.2026-01.org.example:a/1"
        );
        let long = of_place(&"x".repeat(300));
        assert!(long.starts_with("place.") && long == of_place(&"x".repeat(300)) && long != of_place(&"x".repeat(301)));
    }
}
