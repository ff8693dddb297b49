//! Asymmetric access: what a port gives now, what becomes of requests while it changes, and asking for it.

use crate::script::{BLOCK, Driven, Reply, Rig, Rule, ScriptAlua, ms, rig_with};
use polypath_block::{Access, Code, Device, DeviceState, Health, Io, Proof};
use polypath_scsi::Sense;
use polypath_scsi::alua::AluaState;
use polypath_scsi::inquiry::Tpgs;
use polypath_scsi::opcode;
use polypath_scsi::sense::key;

fn rig(tpgs: Tpgs, state: AluaState, edit: impl FnOnce(&mut ScriptAlua)) -> Rig {
    let mut alua = ScriptAlua::new(tpgs, state);
    edit(&mut alua);
    rig_with(100, Some(alua), None)
}

fn access(rig: &Rig) -> Option<Access> {
    rig.disk.state().info().map(|info| info.access)
}

fn set(rig: &Rig, state: AluaState) {
    rig.script(|s| s.alua.as_mut().unwrap().state = state);
}

/// The control side gets on, and no time passes.
fn look(rig: &mut Rig) {
    (0..20).for_each(|_| {
        rig.scanner.poll(rig.now, 0);
    });
}

/// One read of the first block, and how it ended.
fn read(rig: &mut Rig, d: &mut Driven) -> (Code, Proof) {
    let span = d.span(0, BLOCK);
    d.done.completions.clear();
    d.submit(rig, Io::read(1, 0, 1, span)).unwrap();
    assert!(d.until(rig, 200, |done| done.completions.len() == 1));
    (d.done.completions[0].status.code, d.done.completions[0].proof)
}

#[test]
fn the_access_is_that_of_the_port_that_answers() {
    let states = [
        (AluaState::Optimized, Access::Optimized),
        (AluaState::NonOptimized, Access::NonOptimized),
        (AluaState::LogicalBlockDependent, Access::NonOptimized),
        (AluaState::Standby, Access::Inaccessible),
        (AluaState::Unavailable, Access::Inaccessible),
        (AluaState::Transitioning, Access::Change),
    ];
    for (state, want) in states {
        for (extended, names_group) in [(true, true), (false, true), (true, false)] {
            let rig = rig(Tpgs::Implicit, state, |alua| {
                (alua.extended, alua.names_group, alua.tells_size) = (extended, names_group, true);
            });
            assert_eq!(access(&rig), Some(want), "{state:?}, extended {extended}, group {names_group}");
        }
    }
    // Of a target that does not say so.
    let rig = rig(Tpgs::None, AluaState::NonOptimized, |_| {});
    assert_eq!(access(&rig), Some(Access::Optimized));
}

#[test]
fn what_the_target_prefers_is_known() {
    let mut rig = rig(Tpgs::Both, AluaState::Optimized, |alua| alua.preferred = true);
    assert!(rig.disk.is_preferred());
    let version = rig.disk.version();
    rig.script(|s| {
        s.alua.as_mut().unwrap().preferred = false;
        s.rules = vec![Rule { opcodes: &[opcode::TEST_UNIT_READY], times: 1, reply: changed(6) }];
    });
    rig.scan();
    assert!(!rig.disk.is_preferred() && rig.disk.version() > version);
}

fn changed(ascq: u8) -> Reply {
    Reply::Sense(Sense::new(key::UNIT_ATTENTION, 0x2a, ascq))
}

#[test]
fn without_access_and_without_a_past_there_is_no_disk_yet() {
    for (state, cause) in [(AluaState::Standby, Code::PathNoAccess), (AluaState::Transitioning, Code::PathBusy)] {
        let mut rig = rig(Tpgs::Implicit, state, |_| {});
        let DeviceState::Down { cause: got, reason } = rig.disk.state() else { panic!("{:?}", rig.disk.state()) };
        assert!(got == cause && reason.contains(&format!("{state:?}")), "{got:?}: {reason}");
        set(&rig, AluaState::NonOptimized);
        rig.scan();
        assert_eq!(access(&rig), Some(Access::NonOptimized), "it is looked at again");
    }
}

#[test]
fn a_disk_that_loses_its_access_stays_a_disk() {
    let cases = [
        (AluaState::Standby, Code::PathNoAccess, Access::Inaccessible),
        (AluaState::Unavailable, Code::PathNoAccess, Access::Inaccessible),
        (AluaState::Transitioning, Code::PathBusy, Access::Change),
    ];
    for (state, code, want) in cases {
        let mut rig = rig(Tpgs::Implicit, AluaState::Optimized, |_| {});
        let before = rig.disk.state().info().unwrap().clone();
        let mut d = Driven::open(&mut rig);
        set(&rig, state);
        // The target's answer is an end: the request may go elsewhere at once.
        assert_eq!(read(&mut rig, &mut d), (code, Proof::Answered), "{state:?}");
        rig.now = rig.now.after(ms(20));
        look(&mut rig);
        let now = rig.disk.state().info().unwrap_or_else(|| panic!("{state:?}: {:?}", rig.disk.state())).clone();
        assert_eq!(now.access, want, "{state:?}: known at once, because a request was answered so");
        assert_eq!((now.geometry, now.limits, &now.identity), (before.geometry, before.limits, &before.identity));
        assert_eq!(d.queue.health(), Health::Ready);
        // Over another way it is known again, too.
        rig.script(|s| s.nexus = 2);
        rig.scan();
        (0..100).for_each(|_| d.turn(&mut rig, 1));
        assert_eq!((access(&rig), d.queue.health()), (Some(want), Health::Ready), "{state:?}");
        set(&rig, AluaState::NonOptimized);
        rig.scan();
        assert_eq!(access(&rig), Some(Access::NonOptimized), "{state:?}");
        assert_eq!(read(&mut rig, &mut d).0, Code::Ok, "{state:?}");
    }
}

#[test]
fn another_disk_without_access_is_another_disk() {
    let mut rig = rig(Tpgs::Implicit, AluaState::Optimized, |_| {});
    set(&rig, AluaState::Standby);
    rig.script(|s| (s.nexus, s.naa) = (2, 8));
    rig.scan();
    let DeviceState::Down { cause, reason } = rig.disk.state() else { panic!("{:?}", rig.disk.state()) };
    assert!(cause == Code::PathIdentity && reason.contains("another disk"), "{cause:?}: {reason}");
}

#[test]
fn an_attention_has_the_access_read_again() {
    for ascq in [6, 7] {
        let mut rig = rig(Tpgs::Implicit, AluaState::Optimized, |_| {});
        let mut d = Driven::open(&mut rig);
        set(&rig, AluaState::NonOptimized);
        rig.script(|s| {
            s.rules = vec![Rule { opcodes: &[opcode::READ_10, opcode::READ_16], times: 1, reply: changed(ascq) }]
        });
        assert_eq!(read(&mut rig, &mut d).0, Code::Ok, "nobody above hears of it");
        look(&mut rig);
        assert_eq!(access(&rig), Some(Access::NonOptimized), "2Ah/{ascq:02X}h");
    }
}

#[test]
fn a_change_has_its_time_and_no_more() {
    for (seconds, limit_s) in [(3, 3), (0, 60)] {
        let mut rig = rig(Tpgs::Implicit, AluaState::Optimized, |alua| alua.transition_seconds = seconds);
        set(&rig, AluaState::Transitioning);
        rig.scan();
        let begin = rig.now;
        assert_eq!(access(&rig), Some(Access::Change));
        while access(&rig) == Some(Access::Change) {
            rig.scan();
            assert!(rig.now.since(begin) < ms(1000 * (limit_s + 4)), "for ever");
        }
        assert_eq!(access(&rig), Some(Access::Inaccessible));
        assert!(rig.now.since(begin) >= ms(1000 * limit_s) - ms(2500), "{:?}", rig.now.since(begin));
        rig.scan();
        assert_eq!(access(&rig), Some(Access::Inaccessible), "it stays so");
        set(&rig, AluaState::Optimized);
        rig.scan();
        assert_eq!(access(&rig), Some(Access::Optimized));
        // The next change has its own time.
        set(&rig, AluaState::Transitioning);
        rig.scan();
        assert_eq!(access(&rig), Some(Access::Change));
    }
}

#[test]
fn a_change_that_is_over_is_noticed_soon() {
    let mut rig = rig(Tpgs::Implicit, AluaState::Optimized, |_| {});
    set(&rig, AluaState::Transitioning);
    rig.scan();
    set(&rig, AluaState::Optimized);
    for _ in 0..20 {
        rig.now = rig.now.after(ms(20));
        rig.scanner.poll(rig.now, 0);
    }
    assert_eq!(access(&rig), Some(Access::Optimized), "within 400 ms");
}

#[test]
fn access_is_asked_for_where_that_is_allowed() {
    let cases = [
        (Tpgs::Explicit, None, true),
        (Tpgs::Both, None, false),
        (Tpgs::Both, Some(true), true),
        (Tpgs::Explicit, Some(false), false),
        (Tpgs::Implicit, Some(true), false),
        (Tpgs::None, Some(true), false),
    ];
    for (tpgs, option, asks) in cases {
        let mut alua = ScriptAlua::new(tpgs, AluaState::Standby);
        alua.tells_size = true;
        let mut rig = rig_with(100, Some(alua), option);
        let sets = |rig: &Rig| rig.script(|s| s.alua.as_ref().unwrap().sets.clone());
        assert!(sets(&rig).is_empty(), "{tpgs:?}: nobody wants it");
        rig.disk.ask_for_access();
        rig.scan();
        let want = if asks { vec![vec![(9, AluaState::Optimized)]] } else { Vec::new() };
        assert_eq!(sets(&rig), want, "{tpgs:?}, {option:?}");
        if asks {
            assert_eq!(access(&rig), Some(Access::Optimized), "{tpgs:?}: looked at at once");
        }
    }
}

#[test]
fn a_target_that_does_not_obey_is_asked_now_and_then() {
    let mut rig = rig(Tpgs::Explicit, AluaState::Standby, |alua| (alua.tells_size, alua.obeys) = (true, false));
    // 20 s, of which somebody wants access all the time.
    for _ in 0..10 {
        rig.disk.ask_for_access();
        rig.scan();
    }
    let asked = rig.script(|s| s.alua.as_ref().unwrap().sets.len());
    assert!((3..=5).contains(&asked), "{asked} times in 20 s");
    assert_eq!(access(&rig), Some(Access::Inaccessible));
}
