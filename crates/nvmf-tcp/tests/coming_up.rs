//! What a controller is asked while it comes up, and which answers will not do.

use crate::script::{Script, What};
use crate::turns::{World, config};
use polypath_block::{Access, Code, Device, DeviceState};
use polypath_nvme::StatusField;
use polypath_nvme::log::{AnaState, EventKind, lid};
use polypath_nvme::nqn::Nqn;
use polypath_nvme::properties::Cap;
use polypath_nvmf_tcp::ControllerConfig;

const ANA: What = What::Log(lid::ANA);
const SMART: What = What::Log(lid::SMART);

/// Digests that were asked for and are not granted: the way is not used without them.
#[test]
fn a_connection_without_the_digests_that_are_wanted_is_refused() {
    for (header_digest, data_digest, which) in [(true, false, "header"), (false, true, "data")] {
        let script = Script::new();
        let config = ControllerConfig { header_digest, data_digest, ..config(&script) };
        let mut world = World::start(script, config);
        world.run_ms(50);
        let DeviceState::Down { cause, reason } = world.device.state() else { panic!("{:?}", world.device.state()) };
        assert_eq!(cause, Code::PathProtocol);
        assert!(reason.contains(&format!("{which} digest")), "{reason}");
        assert!(!world.controller.is_live());
    }
}

/// A discovery controller has no I/O command set at all. What it lists is read again when it says that it has changed, until it is given.
#[test]
fn a_discovery_controller_needs_no_command_set() {
    let script = Script::new();
    script.state().cap = Cap::CSS_NONE | 2 << 24 | 1023;
    let discovery = ControllerConfig { subnqn: Nqn::discovery(), ns: None, ..config(&script) };
    let mut world = World::start(script.clone(), discovery);
    world.run_until("a discovery controller that is up", 500, |w| w.controller.is_live());
    let log = What::Log(lid::DISCOVERY);
    let read = script.asked(log);
    assert!(read > 0 && script.asked(ANA) == 0);
    world.run_ms(100);
    script.event(EventKind::DiscoveryChanged);
    world.run_ms(100);
    world.run_in_steps(60_000, &[20]);
    assert_eq!(script.asked(log), 2 * read, "read once more");
    script.refuse(log, StatusField::INTERNAL_ERROR, 1);
    script.event(EventKind::DiscoveryChanged);
    world.run_ms(100);
    assert_eq!(script.asked(log), 2 * read + 1);
    world.run_in_steps(60_000, &[20]);
    assert_eq!(script.asked(log), 3 * read + 1, "the first command of a reading was refused: it is read after a pause");

    let mut world = World::start(script.clone(), config(&script));
    world.run_ms(500);
    assert!(!world.controller.is_live(), "one with namespaces does need one");
}

/// A controller that transfers 8 KiB at a time, and an ANA log of `most_groups` groups, the last of which has the namespace.
fn ana_in_pieces(most_groups: u32) -> (Script, ControllerConfig) {
    let script = Script::new();
    let mut state = script.state();
    (state.mdts, state.most_groups, state.most_namespaces) = (1, most_groups, 12);
    state.ana = (1..most_groups).map(|group| (group, AnaState::Inaccessible, vec![])).collect();
    state.ana.push((most_groups, AnaState::NonOptimized, vec![1]));
    drop(state);
    let config = config(&script);
    (script, config)
}

/// 16 octets, 32 for each group, 4 for each namespace.
const EIGHT_KIB_GROUPS: u32 = (8192 - 16 - 4 * 12) / 32;

#[test]
fn an_ana_log_that_is_longer_than_a_transfer_comes_in_pieces() {
    for (groups, pieces) in [(EIGHT_KIB_GROUPS, 1), (EIGHT_KIB_GROUPS + 1, 2), (1000, 4)] {
        let (script, config) = ana_in_pieces(groups);
        let mut world = World::start(script.clone(), config);
        world.run_until("a device that is live", 500, |w| w.is_live());
        assert_eq!((world.info().access, script.asked(ANA)), (Access::NonOptimized, pieces), "{groups}");
        let mut end = 0;
        for piece in script.seen(0).iter().filter(|sqe| crate::script::kind(sqe) == ANA) {
            assert_eq!(piece.log_offset(), end, "one behind the other");
            end += piece.log_length();
        }
        assert_eq!(end, 16 + 4 * 12 + 32 * u64::from(groups), "and no more than there is");
    }
}

/// Pieces of a log that changes while it is read do not fit together: it is read again, a few times. One that came at once and makes no
/// sense will make none the next time.
#[test]
fn an_ana_log_whose_pieces_do_not_fit_is_read_again() {
    // So many answers are bad; so many are asked for; is the controller up?
    for (groups, bad, asked, up) in [
        (EIGHT_KIB_GROUPS + 1, 1, 4, true),
        (EIGHT_KIB_GROUPS + 1, 4, 6, true),
        (EIGHT_KIB_GROUPS + 1, 6, 6, false),
        (EIGHT_KIB_GROUPS, 1, 1, false),
        (8, 1, 1, false),
    ] {
        let (script, config) = ana_in_pieces(groups);
        script.state().babbled_ana = bad;
        let mut world = World::start(script.clone(), config);
        world.run_ms(90);
        assert_eq!((script.asked(ANA), world.controller.is_live()), (asked, up), "{groups} groups, {bad} bad answers");
        world.run_until("a device that is live", 500, |w| w.is_live());
    }
}

fn lose_and_come_back(world: &mut World, limit_ms: u64) {
    world.script.reset(0);
    world.run_until("the loss", 10, |w| !w.is_live());
    world.run_until("a way back", limit_ms, |w| w.is_live());
}

/// A volatile cache that lost its power is another one at the same place: what the old one held is gone.
#[test]
fn a_cache_that_lost_its_power_is_another_one() {
    let mut world = World::start_up();
    let cache = |world: &World| world.info().identity.cache_domain.clone();
    let first = cache(&world);
    lose_and_come_back(&mut world, 500);
    assert_eq!(cache(&world), first, "only the way was lost");
    world.script.state().power_cycles += 1;
    lose_and_come_back(&mut world, 500);
    assert!(cache(&world) != first && cache(&world).place() == first.place());
    assert_eq!(world.script.asked(SMART), 3, "once for each association");
}

/// It told how often it lost its power, and refuses to after a loss of the way: whether its cache is the same is not known. It is not
/// used meanwhile; when it has refused five times, the cache is taken for another one.
#[test]
fn a_controller_that_tells_of_its_power_no_more_is_asked_five_times() {
    for refusals in [4, 5, u32::MAX] {
        let mut world = World::start_up();
        let cache = |world: &World| world.info().identity.cache_domain.clone();
        let first = cache(&world);
        world.script.refuse(SMART, StatusField::INTERNAL_ERROR, refusals);
        lose_and_come_back(&mut world, 5000);
        assert_eq!(world.script.asked(SMART), 1 + 5, "{refusals}");
        assert_eq!(cache(&world) == first, refusals == 4);
        assert_eq!(cache(&world).place(), first.place());
        let untold = cache(&world);
        lose_and_come_back(&mut world, 500);
        match refusals {
            u32::MAX => assert_ne!(cache(&world), untold, "nobody knows of the time between the two either"),
            _ => assert_eq!(cache(&world), first, "it tells again"),
        }
    }
}

#[test]
fn a_controller_that_never_told_of_its_power_is_used_all_the_same() {
    let script = Script::new();
    script.refuse(SMART, StatusField::INVALID_FIELD, u32::MAX);
    let config_of = config(&script);
    let mut world = World::start(script.clone(), config_of);
    world.run_until("a device that is live", 90, |w| w.is_live());
    assert!(world.info().limits.write_cache);
    lose_and_come_back(&mut world, 500);
    assert_eq!(script.asked(SMART), 2);

    let script = Script::new();
    script.state().write_cache = false;
    let mut world = World::start(script.clone(), config(&script));
    world.run_until("a device that is live", 90, |w| w.is_live());
    assert_eq!(
        (script.asked(SMART), world.info().limits.write_cache),
        (0, false),
        "it has no cache that could lose anything"
    );
}
