//! Paths of different transports in one group: by an identifier that both show, or because the operator says so.

use crate::common::scripted::{Bench, info};
use polypath_block::{CacheDomain, Code, DeviceInfo, DeviceState, Health, Identifier, Io, SegSpan};
use polypath_multipath::{GroupConfig, MatchPolicy, PathState};

const NGUID: Identifier = Identifier::Nguid([0x11; 16]);
const EUI: Identifier = Identifier::Eui64([0x22; 8]);

fn naa(last: u8) -> Identifier {
    let mut octets = vec![0x60; 16];
    octets[15] = last;
    Identifier::Naa(octets)
}

fn shows(domain: &str, identifiers: &[Identifier]) -> DeviceInfo {
    let mut info = info("");
    info.identity.identifiers = identifiers.to_vec();
    info.identity.cache_domain = CacheDomain(domain.into());
    info
}

fn group(matching: MatchPolicy, paths: [&[Identifier]; 2]) -> Bench {
    let config = GroupConfig { matching, ..GroupConfig::new("disk") };
    Bench::new(config, vec![shows("nvme:nqn.a:S1", paths[0]), shows("scsi:naa.6060", paths[1])])
}

fn states(b: &Bench) -> [PathState; 2] {
    [b.stats(0).state, b.stats(1).state]
}

#[test]
fn an_identifier_of_both_worlds_joins_them() {
    let mut b = group(MatchPolicy::Worldwide, [&[NGUID, EUI], &[naa(1), EUI]]);
    assert_eq!(states(&b), [PathState::Usable; 2]);
    let tags: Vec<_> = (0..4).map(|n| b.submit(Io::write(0, n, 1, SegSpan::EMPTY))).collect();
    assert_eq!([0, 1].map(|at| b.devices[at].in_flight().len()), [2, 2], "both carry I/O");
    b.devices.iter().for_each(|d| d.succeed_all());
    b.turn();
    assert!(tags.iter().all(|tag| b.outcome(*tag) == Some(Code::Ok)));
    b.finish();
}

#[test]
fn what_cannot_be_compared_is_one_disk_only_by_a_statement() {
    let b = group(MatchPolicy::Worldwide, [&[NGUID], &[naa(1)]]);
    assert_eq!(states(&b), [PathState::Usable, PathState::Quarantined]);
    assert!(b.stats(1).why.contains("state the match"), "{}", b.stats(1).why);
    b.finish();
    let b = group(MatchPolicy::Pinned(vec![naa(1), NGUID]), [&[NGUID], &[naa(1)]]);
    assert_eq!(states(&b), [PathState::Usable; 2]);
    b.finish();
    let b = group(MatchPolicy::Pinned(vec![naa(1), NGUID]), [&[NGUID], &[naa(2)]]);
    assert_eq!(states(&b), [PathState::Usable, PathState::Quarantined]);
    assert!(b.stats(1).why.contains("the configuration expects"), "{}", b.stats(1).why);
    b.finish();
}

#[test]
fn what_was_stated_is_checked_again_at_each_connect() {
    let others: [&[Identifier]; 4] = [&[naa(2)], &[EUI], &[NGUID], &[naa(1), Identifier::Nguid([9; 16])]];
    for other in others {
        let mut b = group(MatchPolicy::Pinned(vec![naa(1), NGUID]), [&[NGUID], &[naa(1)]]);
        b.devices[1].set_health(Health::Down);
        b.devices[1].set_down(Code::PathLost, "unplugged");
        b.turns(2);
        assert_eq!(states(&b), [PathState::Usable, PathState::Down]);
        b.devices[1].set_live(shows("scsi:naa.6060", other));
        b.devices[1].set_health(Health::Ready);
        b.turns(3);
        assert_eq!(states(&b), [PathState::Usable, PathState::Quarantined], "{other:?}");
        let tags: Vec<_> = (0..8).map(|n| b.submit(Io::write(0, n, 1, SegSpan::EMPTY))).collect();
        b.turn();
        assert!(b.devices[1].taken().is_empty(), "{other:?}: nothing goes there");
        b.devices[0].succeed_all();
        b.turn();
        assert!(tags.iter().all(|tag| b.outcome(*tag) == Some(Code::Ok)), "{other:?}");
        // It is who it was again.
        b.devices[1].set_live(shows("scsi:naa.6060", &[naa(1)]));
        b.turns(4);
        assert_eq!(states(&b), [PathState::Usable; 2], "{other:?}");
        b.finish();
    }
}

#[test]
fn the_first_path_is_held_to_the_statement_too() {
    let b = group(MatchPolicy::Pinned(vec![naa(1), NGUID]), [&[EUI], &[naa(2)]]);
    assert_eq!(states(&b), [PathState::Quarantined; 2]);
    assert!(matches!(polypath_block::Device::state(&*b.group), DeviceState::Down { .. }));
    b.finish();
}
