//! Which disk a path leads to: pure rules.
//!
//! * One device per proven identity: a path joins a device when its identity is proven the same ([`Identity::compare`]) as that of *every*
//!   way that the device has. One hostile answer with the identifiers of two disks so makes no one disk of them.
//! * What could be the same and cannot be proven to be, or claims to be and does not fit, is neither: it is held aside, and said why. So
//!   no disk is shown twice, and nothing is put together that may not belong together.
//! * What differs, or has nothing to compare, is a device of its own.

use polypath_block::{DeviceInfo, Geometry, Identity, Verdict};

/// What is known of a device.
pub(crate) struct Known<'a> {
    pub(crate) name: &'a str,
    /// What each of its paths shows, or the last one did.
    pub(crate) members: &'a [Identity],
    /// What it has promised.
    pub(crate) geometry: Geometry,
    pub(crate) read_only: bool,
}

/// Where a path belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// To the device with this number.
    Join(usize),
    /// To a new one. With the name of one that it agrees with in part and differs from in another.
    New(Option<String>),
    /// To none, for this reason, as long as nothing changes.
    Aside(String),
}

/// Where a path that shows `info` belongs among `devices`.
pub(crate) fn place(info: &DeviceInfo, devices: &[Known<'_>]) -> Place {
    if let Err(error) = info.geometry.check() {
        return Place::Aside(format!("its geometry makes no sense: {error}"));
    }
    let mut home: Option<(usize, bool)> = None;
    let mut contradicts = None;
    for (at, device) in devices.iter().enumerate() {
        let verdicts = || device.members.iter().map(|member| member.compare(&info.identity));
        if !verdicts().any(|v| v == Verdict::Same) {
            continue;
        }
        if verdicts().any(|v| v == Verdict::Different) {
            contradicts = Some(device.name.to_owned());
            continue;
        }
        if let Some((other, _)) = home {
            let other = devices.get(other).map_or("", |d| d.name);
            return Place::Aside(format!(
                "it shows what both {other} and {} are known by, and they are not proven to be one disk",
                device.name
            ));
        }
        home = Some((at, verdicts().all(|v| v == Verdict::Same)));
    }
    let Some((at, proven)) = home else { return Place::New(contradicts) };
    let Some(device) = devices.get(at) else { return Place::New(contradicts) };
    if !proven {
        return Place::Aside(format!(
            "it agrees with one way to {} and cannot be compared with another, so nothing proves that it belongs there",
            device.name
        ));
    }
    match misfit(info, device) {
        None => Place::Join(at),
        Some(why) => Place::Aside(format!("it claims to be {}, but {why}", device.name)),
    }
}

/// Why a path that claims to be `device` cannot be one of its ways.
fn misfit(info: &DeviceInfo, device: &Known<'_>) -> Option<String> {
    let (has, wanted) = (info.geometry, device.geometry);
    if has.block_size != wanted.block_size {
        return Some(format!("its blocks have {} bytes and not {}", has.block_size, wanted.block_size));
    }
    if has.blocks < wanted.blocks {
        return Some(format!("it has {} blocks, fewer than the {} promised", has.blocks, wanted.blocks));
    }
    (info.limits.read_only && !device.read_only).then(|| "it is read-only".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Access, CacheDomain, Identifier, Limits};

    fn shows(identifiers: &[Identifier], blocks: u64) -> DeviceInfo {
        DeviceInfo {
            geometry: Geometry { block_size: 512, blocks },
            limits: Limits::UNLIMITED,
            identity: Identity { identifiers: identifiers.to_vec(), cache_domain: CacheDomain::default() },
            access: Access::Optimized,
            max_queues: 1,
            max_depth: 1,
        }
    }

    /// Places paths one after the other; what became of each: the device's number, or a word.
    fn sort(paths: &[DeviceInfo]) -> Vec<String> {
        let mut devices: Vec<(Vec<Identity>, Geometry)> = Vec::new();
        let mut said = Vec::new();
        for path in paths {
            let names: Vec<String> = (0..devices.len()).map(|n| format!("d{n}")).collect();
            let known: Vec<Known<'_>> = devices
                .iter()
                .zip(&names)
                .map(|((members, geometry), name)| Known { name, members, geometry: *geometry, read_only: false })
                .collect();
            let found = place(path, &known);
            said.push(match found {
                Place::Join(at) => {
                    devices[at].0.push(path.identity.clone());
                    format!("{at}")
                }
                Place::New(conflict) => {
                    devices.push((vec![path.identity.clone()], path.geometry));
                    let conflict = conflict.map_or(String::new(), |name| format!(" against {name}"));
                    format!("{}{conflict}", devices.len() - 1)
                }
                Place::Aside(why) => format!("aside: {why}"),
            });
        }
        said
    }

    #[test]
    fn proven_paths_join_and_nothing_else() {
        let uuid = |n| Identifier::Uuid([n; 16]);
        let naa = |n: u8| Identifier::Naa(vec![0x60 | n; 16]);
        let nguid = |n| Identifier::Nguid([n; 16]);
        let t10 = Identifier::T10Vendor(vec![1]);
        let all = [uuid(1), naa(1), nguid(1)];
        let cases: [(&str, Vec<DeviceInfo>, &[&str]); 9] = [
            (
                "whatever the transport",
                vec![shows(&all, 8), shows(&[naa(1)], 8), shows(&[uuid(2)], 8)],
                &["0", "0", "1"],
            ),
            (
                "nothing proven",
                vec![shows(std::slice::from_ref(&t10), 8), shows(std::slice::from_ref(&t10), 8), shows(&[], 8)],
                &["0", "1", "2"],
            ),
            ("another size", vec![shows(&all, 8), shows(&all, 7), shows(&all, 9)], &["0", "aside: fewer", "0"]),
            (
                "a contradiction",
                vec![shows(&[uuid(1), nguid(1)], 8), shows(&[uuid(1), nguid(2)], 8), shows(&[uuid(1)], 8)],
                // The last one agrees with both of two that differ.
                &["0", "1", "aside: both d0 and d1"],
            ),
            (
                "in part",
                vec![shows(&[uuid(1)], 8), shows(&[uuid(1), nguid(1)], 8), shows(&[uuid(1), nguid(2)], 8)],
                &["0", "0", "1 against d0"],
            ),
            (
                "one that says to be two disks",
                vec![shows(&[uuid(1)], 8), shows(&[naa(1)], 8), shows(&[uuid(1), naa(1)], 8)],
                &["0", "1", "aside: both d0 and d1"],
            ),
            (
                "one that came first and says to be two disks",
                vec![shows(&[uuid(1), naa(1)], 8), shows(&[uuid(1)], 8), shows(&[naa(1)], 8)],
                &["0", "0", "aside: cannot be compared"],
            ),
            ("nonsense", vec![shows(&all, u64::MAX), shows(&all, 8)], &["aside: geometry", "0"]),
            ("zeroes", vec![shows(&[uuid(0)], 8), shows(&[uuid(0)], 8)], &["0", "1"]),
        ];
        for (what, paths, want) in cases {
            for (found, want) in sort(&paths).iter().zip(want) {
                match want.strip_prefix("aside: ") {
                    Some(words) => assert!(found.starts_with("aside") && found.contains(words), "{what}: {found}"),
                    None => assert_eq!(found, want, "{what}"),
                }
            }
        }
        let mut large = shows(&all, 8);
        large.geometry.block_size = 4096;
        assert!(sort(&[shows(&all, 8), large])[1].contains("4096 bytes and not 512"));
        let mut protected = shows(&all, 8);
        protected.limits.read_only = true;
        assert!(sort(&[shows(&all, 8), protected])[1].contains("read-only"));
    }
}
