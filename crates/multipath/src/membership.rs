//! Who is the same disk: pure rules, asked at every (re)connection of a path.

use crate::config::MatchPolicy;
use core::mem::discriminant;
use polypath_block::{DeviceInfo, Geometry, Identifier, Identity, Limits, Verdict};

/// What the group has promised to whoever uses it.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    pub(crate) identity: Identity,
    pub(crate) geometry: Geometry,
    pub(crate) limits: Limits,
    /// Abilities can no longer shrink: somebody relies on them.
    pub(crate) frozen: bool,
}

impl Exported {
    /// Takes back what is promised beyond what a path does that was admitted; says whether anything was.
    pub(crate) fn take_back(&mut self, have: &Limits) -> bool {
        let most = self.limits.max_compare_and_write_blocks.min(have.max_compare_and_write_blocks);
        let lacks = (self.limits.compare && !have.compare) || most < self.limits.max_compare_and_write_blocks;
        self.limits.compare &= have.compare;
        self.limits.max_compare_and_write_blocks = most;
        lacks
    }
}

/// May a path that shows `info` carry I/O? `before` is what the same path showed when it was admitted last.
pub(crate) fn admit(
    policy: &MatchPolicy,
    exported: Option<&Exported>,
    before: Option<&Identity>,
    info: &DeviceInfo,
) -> Result<(), String> {
    info.geometry.check().map_err(|e| format!("its geometry makes no sense: {e}"))?;
    identity(policy, exported, before, info)?;
    let Some(exported) = exported else { return Ok(()) };
    let (have, want) = (info.geometry, exported.geometry);
    if have.block_size != want.block_size {
        return Err(format!("its blocks have {} bytes, those of the group {}", have.block_size, want.block_size));
    }
    if have.blocks < want.blocks {
        return Err(format!("it has {} blocks, fewer than the {} the group has promised", have.blocks, want.blocks));
    }
    abilities(exported, &info.limits)
}

/// The part of [`admit`] that is about which disk it is.
pub(crate) fn identity(
    policy: &MatchPolicy,
    exported: Option<&Exported>,
    before: Option<&Identity>,
    info: &DeviceInfo,
) -> Result<(), String> {
    let shown = &info.identity;
    if let MatchPolicy::Pinned(expected) = policy {
        pinned(expected, shown)?;
    }
    if let Some(before) = before {
        match before.compare(shown) {
            Verdict::Same => {}
            Verdict::Different => {
                return Err(format!(
                    "another disk answers since it reconnected: it shows {:?}, before it was {:?}",
                    shown.identifiers, before.identifiers
                ));
            }
            // Nothing that can be compared: then at least the subsystem or logical unit must be the one that it was.
            Verdict::Unknown if before.identifiers == shown.identifiers => same_place(before, shown)?,
            Verdict::Unknown => {
                return Err(format!(
                    "since it reconnected it shows {:?}, which cannot be compared with {:?} from before",
                    shown.identifiers, before.identifiers
                ));
            }
        }
    }
    let Some(exported) = exported else { return Ok(()) };
    let reference = &exported.identity;
    match (compare(policy, reference, shown), policy) {
        (Verdict::Same, _) => Ok(()),
        (Verdict::Different, _) => Err(format!(
            "it is another disk: it shows {:?}, the group is {:?}",
            shown.identifiers, reference.identifiers
        )),
        (Verdict::Unknown, MatchPolicy::Stated | MatchPolicy::Pinned(_)) => Ok(()),
        (Verdict::Unknown, MatchPolicy::Worldwide) if before.is_some() => Ok(()),
        (Verdict::Unknown, MatchPolicy::Worldwide) => Err(format!(
            "nothing proves that it is the same disk: it shows {:?}, the group is {:?}; \
             state the match in the configuration if you know that it is",
            shown.identifiers, reference.identifiers
        )),
    }
}

/// Do two paths lead to the same disk, as far as that is to be told by what they show? Of kinds that are pinned each was held to the pins,
/// of which there may be several of a kind: what the operator has listed is of one disk.
pub(crate) fn compare(policy: &MatchPolicy, one: &Identity, other: &Identity) -> Verdict {
    let MatchPolicy::Pinned(expected) = policy else { return one.compare(other) };
    let open = |identity: &Identity| {
        let is_open = |i: &&Identifier| expected.iter().all(|e| discriminant(e) != discriminant(*i));
        let identifiers = identity.identifiers.iter().filter(is_open).cloned().collect();
        Identity { identifiers, ..Identity::default() }
    };
    open(one).compare(&open(other))
}

fn same_place(before: &Identity, shown: &Identity) -> Result<(), String> {
    let (then, now) = (&before.cache_domain, &shown.cache_domain);
    if then.place() == now.place() {
        return Ok(());
    }
    Err(format!(
        "it shows no identifier that could be compared, and since it reconnected it is \"{}\", before it was \"{}\"; \
         remove the path and add it again if that is the same disk",
        now.0, then.0
    ))
}

/// What is known of a path that showed `before` and shows `shown` now: kinds of identifiers that it leaves out are remembered,
/// so that it cannot become another disk in two steps.
pub(crate) fn remember(before: Option<&Identity>, shown: &Identity) -> Identity {
    let mut known = shown.clone();
    let shows = |kind| shown.identifiers.iter().any(|i| discriminant(i) == kind);
    let left_out = before.into_iter().flat_map(|b| &b.identifiers).filter(|i| !shows(discriminant(*i)));
    known.identifiers.extend(left_out.cloned());
    known
}

/// Of each kind that is pinned and that it shows, it must show one of the pinned; and there must be such a kind.
fn pinned(expected: &[Identifier], shown: &Identity) -> Result<(), String> {
    let of_kind = |list: &[Identifier], i: &Identifier| list.iter().any(|e| discriminant(e) == discriminant(i));
    let agrees = |i: &Identifier| {
        let kind = discriminant(i);
        shown.identifiers.iter().any(|other| discriminant(other) == kind && expected.contains(other))
    };
    let mut held = shown.identifiers.iter().filter(|i| of_kind(expected, i)).peekable();
    if held.peek().is_some() && held.all(agrees) {
        return Ok(());
    }
    Err(format!("it shows {:?}, the configuration expects {expected:?}", shown.identifiers))
}

/// Is everything promised still there? Smaller sizes are no matter: the group splits. Nor is Compare, nor Compare and Write: no guest is ever told that there is
/// one, and paths of another transport may not have it. The promise is taken back then ([`Exported::take_back`]).
fn abilities(exported: &Exported, have: &Limits) -> Result<(), String> {
    let want = &exported.limits;
    if have.read_only && !want.read_only {
        return Err("it is read-only and the group takes changes".into());
    }
    if !exported.frozen {
        return Ok(());
    }
    let lacks = [
        (want.fua && !have.fua, "force unit access"),
        (want.max_write_zeroes_blocks > 0 && have.max_write_zeroes_blocks == 0, "Write Zeroes"),
        (want.max_discard_blocks > 0 && have.max_discard_blocks == 0, "Discard"),
    ];
    if let Some((_, what)) = lacks.iter().find(|(lacking, _)| *lacking) {
        return Err(format!("it does not do {what}, which the group has promised"));
    }
    if have.write_cache && !want.write_cache {
        return Err("it has a volatile write cache, and the group was exported as having none".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Access, CacheDomain};

    fn info(ids: &[Identifier], blocks: u64) -> DeviceInfo {
        DeviceInfo {
            geometry: Geometry { block_size: 512, blocks },
            limits: Limits::UNLIMITED,
            identity: Identity { identifiers: ids.to_vec(), cache_domain: CacheDomain::default() },
            access: Access::Optimized,
            max_queues: 1,
            max_depth: 128,
        }
    }

    fn exported(of: &DeviceInfo, frozen: bool) -> Exported {
        Exported { identity: of.identity.clone(), geometry: of.geometry, limits: of.limits, frozen }
    }

    const A: Identifier = Identifier::Uuid([1; 16]);
    const B: Identifier = Identifier::Uuid([2; 16]);

    #[test]
    fn identity_decides() {
        let first = info(&[A], 100);
        let p = exported(&first, true);
        let w = MatchPolicy::Worldwide;
        let t10 = Identifier::T10Vendor(vec![7]);
        assert_eq!(admit(&w, Some(&p), None, &info(&[A], 100)), Ok(()));
        assert!(admit(&w, Some(&p), None, &info(&[B], 100)).unwrap_err().contains("another disk"));
        assert!(admit(&w, Some(&p), None, &info(&[], 100)).unwrap_err().contains("state the match"));
        assert_eq!(admit(&MatchPolicy::Stated, Some(&p), None, &info(&[], 100)), Ok(()));
        assert!(admit(&MatchPolicy::Stated, Some(&p), None, &info(&[B], 100)).is_err());
        let pin = MatchPolicy::Pinned(vec![t10.clone()]);
        assert_eq!(admit(&pin, None, None, &info(std::slice::from_ref(&t10), 100)), Ok(()));
        assert!(admit(&pin, None, None, &info(&[A], 100)).unwrap_err().contains("expects"));
        assert!(admit(&MatchPolicy::Pinned(vec![A]), None, None, &info(&[B], 100)).is_err());
        // One identifier that was pinned does not make up for another one that differs.
        let pin = MatchPolicy::Pinned(vec![A, Identifier::Nguid([1; 16])]);
        assert_eq!(admit(&pin, None, None, &info(&[A], 100)), Ok(()));
        assert!(admit(&pin, None, None, &info(&[A, Identifier::Nguid([2; 16])], 100)).is_err());
    }

    #[test]
    fn paths_of_different_kinds_join_by_what_both_show_or_by_a_statement() {
        let eui = |n| Identifier::Eui64([n; 8]);
        let nguid = |n| Identifier::Nguid([n; 16]);
        let naa = |n: u8| Identifier::Naa(vec![0x60 | n; 16]);
        let t10 = |n| Identifier::T10Vendor(vec![n]);
        let worldwide = MatchPolicy::Worldwide;
        let pins = |list: &[Identifier]| MatchPolicy::Pinned(list.to_vec());
        let stated = pins(&[naa(1), nguid(1)]);
        let several = pins(&[naa(1), naa(2), nguid(1)]);
        // What the first path shows, what the second one shows, and whether the second one belongs.
        let cases = [
            // NVMe descriptor type 1 and SCSI designator type 2.
            (&worldwide, vec![nguid(1), eui(1)], vec![naa(1), eui(1)], true),
            (&worldwide, vec![nguid(1), eui(1)], vec![naa(1), eui(2)], false),
            (&worldwide, vec![nguid(1)], vec![naa(1)], false),
            (&MatchPolicy::Stated, vec![nguid(1)], vec![naa(1)], true),
            (&stated, vec![nguid(1)], vec![naa(1)], true),
            (&stated, vec![nguid(1)], vec![naa(2)], false),
            (&stated, vec![nguid(1)], vec![naa(1), nguid(2)], false),
            (&stated, vec![nguid(1)], vec![eui(1)], false),
            (&stated, vec![nguid(1), eui(1)], vec![naa(1), eui(1)], true),
            // What is not pinned must not differ either.
            (&stated, vec![nguid(1), eui(1)], vec![naa(1), eui(2)], false),
            // Two of a kind are of one disk if the operator says so.
            (&several, vec![naa(1)], vec![naa(2)], true),
            (&several, vec![naa(1)], vec![naa(2), naa(3)], true),
            (&several, vec![nguid(1)], vec![naa(3)], false),
            // A kind that never proves anything by itself speaks against a path if it was pinned.
            (&pins(&[t10(1), nguid(1)]), vec![nguid(1)], vec![nguid(1), t10(2)], false),
        ];
        for (policy, first, second, belongs) in cases {
            let (first, second) = (info(&first, 100), info(&second, 100));
            assert_eq!(admit(policy, None, None, &first), Ok(()), "{policy:?}");
            let p = exported(&first, true);
            let got = admit(policy, Some(&p), None, &second);
            let both = compare(policy, &first.identity, &second.identity) != Verdict::Different;
            assert_eq!(got.is_ok() && both, belongs, "{policy:?}: {first:?} and {second:?}: {got:?}");
            // At each connect again.
            if belongs {
                let again = |shown: &DeviceInfo| admit(policy, Some(&p), Some(&second.identity), shown);
                assert_eq!(again(&second), Ok(()), "{policy:?}");
                for other in [nguid(9), naa(9), eui(9), A] {
                    let why = again(&info(std::slice::from_ref(&other), 100)).unwrap_err();
                    assert!(why.contains("expects") || why.contains("reconnected"), "{other:?}: {why}");
                }
            }
        }
    }

    #[test]
    fn reconnecting_as_somebody_else_is_seen() {
        let first = info(&[A], 100);
        let p = exported(&first, true);
        for policy in [MatchPolicy::Worldwide, MatchPolicy::Stated] {
            let err = admit(&policy, Some(&p), Some(&first.identity), &info(&[B], 100)).unwrap_err();
            assert!(err.contains("reconnected"), "{err}");
            assert!(admit(&policy, Some(&p), Some(&first.identity), &info(&[], 100)).is_err());
        }
        let nameless = info(&[], 100);
        let p = exported(&nameless, true);
        assert_eq!(admit(&MatchPolicy::Worldwide, Some(&p), Some(&nameless.identity), &nameless), Ok(()));
    }

    #[test]
    fn who_shows_nothing_comparable_must_be_where_it_was() {
        let t10 = [Identifier::T10Vendor(vec![7])];
        for ids in [&[][..], &t10] {
            let at = |domain: &str| {
                let mut i = info(ids, 100);
                i.identity.cache_domain = CacheDomain(domain.into());
                i
            };
            let before = at("nqn.a:S1#3").identity;
            let p = exported(&at("nqn.a:S1#3"), true);
            let again = |domain: &str| admit(&MatchPolicy::Stated, Some(&p), Some(&before), &at(domain));
            assert_eq!((again("nqn.a:S1#3"), again("nqn.a:S1#4"), again("nqn.a:S1")), (Ok(()), Ok(()), Ok(())));
            for other in ["nqn.a:S2#3", "nqn.b:S1#3", "nqn.b:S1", ""] {
                let err = again(other).unwrap_err();
                assert!(err.contains("nqn.a:S1#3") && err.contains("add it again"), "{err}");
            }
            assert_eq!(
                admit(&MatchPolicy::Stated, Some(&p), None, &at("nqn.b:S1")),
                Ok(()),
                "a new path is told by policy"
            );
        }
        // Who shows an identifier is told by that alone: a controller may be replaced.
        let named = |domain: &str| {
            let mut i = info(&[A], 100);
            i.identity.cache_domain = CacheDomain(domain.into());
            i
        };
        let p = exported(&named("one"), true);
        assert_eq!(admit(&MatchPolicy::Worldwide, Some(&p), Some(&named("one").identity), &named("two")), Ok(()));
    }

    #[test]
    fn nobody_becomes_another_disk_in_two_steps() {
        let nguid = |n| Identifier::Nguid([n; 16]);
        let first = info(&[A], 100);
        let p = exported(&first, true);
        let w = MatchPolicy::Worldwide;
        let mut known = remember(None, &info(&[A, nguid(1)], 100).identity);
        for shown in [&[A][..], &[nguid(1), A][..]] {
            let shown = info(shown, 100);
            assert_eq!(admit(&w, Some(&p), Some(&known), &shown), Ok(()));
            known = remember(Some(&known), &shown.identity);
        }
        assert!(admit(&w, Some(&p), Some(&known), &info(&[A, nguid(2)], 100)).is_err());
        known = remember(Some(&known), &info(&[A], 100).identity);
        assert!(admit(&w, Some(&p), Some(&known), &info(&[A, nguid(2)], 100)).is_err());
    }

    #[test]
    fn size_and_abilities() {
        let first = info(&[A], 100);
        let w = MatchPolicy::Worldwide;
        let p = exported(&first, true);
        assert_eq!(admit(&w, Some(&p), None, &info(&[A], 101)), Ok(()));
        assert!(admit(&w, Some(&p), None, &info(&[A], 99)).unwrap_err().contains("promised"));
        let mut other = info(&[A], 100);
        other.geometry.block_size = 4096;
        assert!(admit(&w, Some(&p), None, &other).unwrap_err().contains("4096"));
        let mut other = info(&[A], 100);
        other.limits.fua = false;
        assert!(admit(&w, Some(&p), None, &other).unwrap_err().contains("force unit"));
        assert_eq!(admit(&w, Some(&exported(&first, false)), None, &other), Ok(()));
        let mut other = info(&[A], 100);
        other.limits.write_cache = true;
        assert!(admit(&w, Some(&p), None, &other).unwrap_err().contains("cache"));
        let mut other = info(&[A], 100);
        other.limits.max_transfer_bytes = 512;
        assert_eq!(admit(&w, Some(&p), None, &other), Ok(()));
    }

    #[test]
    fn what_was_promised_and_nothing_else_is_asked_for() {
        let with = |edit: fn(&mut Limits)| {
            let mut i = info(&[A], 100);
            edit(&mut i.limits);
            i
        };
        type Edit = fn(&mut Limits);
        let abilities: [(&str, Edit); 3] = [
            ("force unit access", |l| l.fua = false),
            ("Write Zeroes", |l| l.max_write_zeroes_blocks = 0),
            ("Discard", |l| l.max_discard_blocks = 0),
        ];
        for (what, lacking) in abilities {
            let (able, unable) = (with(|_| {}), with(lacking));
            let check = |first: &DeviceInfo, path: &DeviceInfo| {
                admit(&MatchPolicy::Worldwide, Some(&exported(first, true)), None, path)
            };
            assert!(check(&able, &unable).unwrap_err().contains(what));
            assert_eq!((check(&able, &able), check(&unable, &able), check(&unable, &unable)), (Ok(()), Ok(()), Ok(())));
        }
        let (able, unable) = (with(|_| {}), with(|l| l.compare = false));
        let mut promised = exported(&able, true);
        assert_eq!(admit(&MatchPolicy::Worldwide, Some(&promised), None, &unable), Ok(()), "of another transport");
        let changes = [&able, &unable, &unable].map(|path| promised.take_back(&path.limits));
        assert_eq!((changes, promised.limits.compare), ([false, true, false], false));
        let most = |blocks| Limits { max_compare_and_write_blocks: blocks, ..Limits::UNLIMITED };
        promised.limits = most(8);
        let changes = [8, 9, 1, 0, 0].map(|blocks| promised.take_back(&most(blocks)));
        assert_eq!((changes, promised.limits.max_compare_and_write_blocks), ([false, false, true, true, false], 0));
        // Who may take changes is a matter of what the disk is, and no ability that could be narrowed.
        let (open, protected) = (with(|_| {}), with(|l| l.read_only = true));
        for frozen in [false, true] {
            let check = |first: &DeviceInfo, path: &DeviceInfo| {
                admit(&MatchPolicy::Worldwide, Some(&exported(first, frozen)), None, path)
            };
            assert!(check(&open, &protected).unwrap_err().contains("read-only"));
            assert_eq!((check(&protected, &protected), check(&protected, &open)), (Ok(()), Ok(())));
        }
    }
}
