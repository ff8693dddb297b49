//! Targets that send us elsewhere.

use super::*;

/// Two that send us to each other are not asked without a pause.
#[test]
fn a_target_that_sends_us_round_and_round_is_followed_for_a_while() {
    let mut rig = Rig::new("round");
    rig.turns(200);
    rig.target.reset();
    let begun = rig.now();
    let mut times = Vec::new();
    for _ in 0..4000 {
        rig.target.script().redirect = Some("192.0.2.99:3333,1".into());
        let before = rig.dials();
        rig.turn(1);
        times.extend((before..rig.dials()).map(|_| rig.now().since(begun)));
    }
    let at_once = times.iter().take_while(|at| **at < ms(100)).count();
    assert!((2..20).contains(&at_once) && times.len() < 20, "{times:?}");
    assert!(times.last().is_some_and(|last| *last > ms(3000)), "it is looked for all the time: {times:?}");
    let (code, _) = rig.session.trouble().unwrap();
    assert_eq!(code, Code::PathNoAccess);
    rig.target.script().redirect = None;
    rig.turns(2000);
    assert!(rig.is_up());
}

#[test]
fn the_target_port_is_that_of_the_session_that_is_there() {
    let mut rig = Rig::new("port");
    for (nexus, portal_group) in [(2, 7), (3, 1)] {
        rig.turns(200);
        rig.target.script().portal_group = portal_group;
        rig.target.reset();
        rig.turns(10);
        assert_eq!((rig.session.nexus(), rig.session.target_port()), (nexus, u64::from(portal_group)));
    }
}
