//! A controller's life in virtual time: attempts to come up, the pauses between them, what it shows, and its end.

use crate::script::{Script, Shown, What};
use crate::turns::{World, config};
use polypath_block::{Code, Device, DeviceState, Health, Io, OpenError, QueueConfig, UnitId};
use polypath_nvme::identify::cns;
use polypath_nvmf_tcp::ControllerConfig;
use std::time::Duration;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Why the device is down.
fn reason(world: &World) -> String {
    match world.device.state() {
        DeviceState::Down { reason, .. } => reason,
        state => panic!("the device must be down and is {state:?}"),
    }
}

fn is_gone(world: &World) -> bool {
    matches!(world.device.state(), DeviceState::Gone { .. })
}

/// The keep-alive timeout runs since Connect: a controller that takes its time to say what it has is kept alive meanwhile, every half
/// timeout and no more often.
#[test]
fn a_slow_controller_is_kept_alive_while_it_is_got_to_know() {
    for (keep_alive, sent) in [(200, 8..=9), (0, 0..=0)] {
        let script = Script::new();
        script.hold(What::Identify(cns::CONTROLLER));
        let config = ControllerConfig { keep_alive: ms(keep_alive), ..config(&script) };
        let mut world = World::start(script.clone(), config);
        world.run_ms(950);
        let asked = script.asked(What::KeepAlive);
        assert!(sent.contains(&asked), "{asked} times in 950 ms, with a timeout of {keep_alive} ms");
        script.release(What::Identify(cns::CONTROLLER));
        world.run_until("a device that is live", 100, |w| w.is_live());
    }
}

#[test]
fn attempts_come_less_and_less_often_until_one_succeeds() {
    let script = Script::new();
    script.set_reachable(false);
    let config = config(&script);
    let mut world = World::start(script.clone(), config);
    let start = world.now;
    let (mut version, mut attempts) = (world.controller.version(), Vec::new());
    for _ in 0..5000 {
        world.turn();
        if world.controller.version() != version {
            version = world.controller.version();
            attempts.push(world.now.since(start).as_millis());
            let pause = reason(&world).split("next attempt in ").nth(1).unwrap().to_owned();
            let pauses = ["100 ms", "200 ms", "400 ms", "800 ms", "1000 ms"];
            assert_eq!(pause, pauses[attempts.len().min(5) - 1], "{}", attempts.len());
        }
        world.pass_ms(1);
    }
    assert_eq!(attempts, [0, 100, 300, 700, 1500, 2500, 3500, 4500]);
    script.set_reachable(true);
    world.run_until("a device that is live", 1500, |w| w.is_live());
    script.reset(0);
    world.run_until("the loss", 10, |w| !w.is_live());
    world.run_ms(2);
    assert!(
        reason(&world).ends_with("next attempt in 100 ms"),
        "patience is for what does not come up: {}",
        reason(&world)
    );
    assert_eq!(reason(&world).matches("127.0.0.1:4420").count(), 1, "it says where: {}", reason(&world));
}

#[test]
fn a_device_that_is_down_for_long_says_so_and_is_given_up() {
    let script = Script::new();
    let limits = (Some(ms(500)), Some(ms(2000)));
    let config = ControllerConfig { fast_io_fail_timeout: limits.0, ctrl_loss_timeout: limits.1, ..config(&script) };
    let mut world = World::start(script.clone(), config);
    world.run_until("a device that is live", 500, |w| w.is_live());
    // Being up for long is no reason to give up at once.
    world.run_in_steps(10_000, &[20]);
    script.set_reachable(false);
    script.reset(0);
    let took = world.run_until("the loss", 100, |w| !w.is_live());
    assert!(took < ms(100));
    let down = world.now;
    let passed = |world: &World| reason(world).contains("fast_io_fail_timeout has passed");
    let took = world.run_until("the final word", 2000, passed);
    // Attempts end after 100, 300 and 700 ms.
    assert!((ms(690)..ms(720)).contains(&took), "{took:?}");
    world.run_until("the end", 2000, is_gone);
    let took = world.now.since(down);
    assert!(
        (ms(2490)..ms(2520)).contains(&took),
        "the first attempt that fails after two seconds is the last: {took:?}"
    );
    let DeviceState::Gone { reason } = world.device.state() else { unreachable!() };
    assert!(reason.contains("ctrl_loss_timeout_ms"), "{reason}");
    script.set_reachable(true);
    world.run_ms(2000);
    assert!(is_gone(&world), "given up is given up");
}

/// A queue that is open has somebody who must be told of its end in order: the controller ends after it, up or down.
#[test]
fn a_controller_that_is_closed_ends_after_its_queues() {
    for reachable in [true, false] {
        let mut world = World::up(8);
        if !reachable {
            world.script.set_reachable(false);
            world.script.reset(0);
            world.run_until("the loss", 10, |w| !w.is_live());
        }
        world.device.close();
        for _ in 0..300 {
            world.pass_ms(1);
            world.turn_admin();
        }
        assert!(!is_gone(&world) && world.pollers.len() == 1, "a queue is open");
        if reachable {
            let span = world.memory(512, 7);
            assert_eq!(world.round_trip(Io::write(1, 0, 1, span)).1.status.code, Code::Ok, "and serves");
        }
        world.queues.clear();
        world.run_ms(2);
        assert!(is_gone(&world) && world.pollers.is_empty() && world.script.is_closed(0));
        assert!(world.device.open_queue(QueueConfig { depth: 1 }).is_err());
    }
}

#[test]
fn a_way_that_is_lost_while_it_is_closed_is_not_tried_again() {
    let mut world = World::up(8);
    world.device.close();
    world.run_ms(10);
    let dialled = world.script.dialled();
    world.script.reset(0);
    world.run_ms(500);
    assert_eq!(world.script.dialled(), dialled);
    assert!(!reason(&world).contains("next attempt"), "{}", reason(&world));
    world.queues.clear();
    world.run_ms(2);
    assert!(is_gone(&world));
}

#[test]
fn a_controller_that_is_closed_while_it_comes_up_ends_at_once() {
    // While it connects, in the pause between two attempts, and while its name is resolved: a resolver may be done before we look, but
    // not each time.
    for case in [0, 2].into_iter().chain([1; 20]) {
        let script = Script::new();
        script.hold(What::Identify(cns::CONTROLLER));
        script.set_reachable(case != 2);
        let mut config = ControllerConfig { reconnect_delay: ms(60_000), ..config(&script) };
        if case == 1 {
            config.host = "localhost".into();
        }
        let mut world = World::start(script.clone(), config);
        if case != 1 {
            world.run_ms(10);
        }
        world.controller.close();
        world.pass_ms(1);
        world.turn_admin();
        assert!(is_gone(&world) && world.pollers.is_empty(), "{case}: {:?}", world.device.state());
        assert!(case != 0 || script.is_closed(0));
    }
}

/// The resolver works on another thread, whose answer is waited for: the first attempt is not over before it has come.
#[test]
fn a_name_that_takes_its_time_to_be_resolved_costs_no_attempt() {
    for _ in 0..20 {
        let script = Script::new();
        // A clock that turns faster than the resolver does.
        let config = ControllerConfig { host: "localhost".into(), connect_timeout: ms(3_600_000), ..config(&script) };
        let mut world = World::start(script, config);
        while matches!(world.device.state(), DeviceState::Starting) {
            world.pass_ms(1);
            world.turn_admin();
            std::thread::yield_now();
        }
        assert!(world.is_live(), "{:?}", world.device.state());
    }
}

#[test]
fn a_controller_ends_with_its_last_handle() {
    let mut world = World::start_up();
    let device = world.controller.namespace(1);
    let World { controller, device: first, pollers, .. } = &mut world;
    assert!(!std::sync::Arc::ptr_eq(&device, first));
    assert_eq!((controller.config().name.as_str(), pollers.len()), (device.controller().config().name.as_str(), 1));
    let World { script, controller, device: first, now, reactor, mut segs, mut pollers, .. } = world;
    drop((controller, first));
    let mut turn = |pollers: &mut Vec<Box<dyn polypath_block::Poller>>, after| {
        let mut cx = polypath_block::Cx { now: now.after(after), segs: &mut segs, reactor: 0 };
        pollers.retain_mut(|poller| poller.poll(&mut cx) != polypath_block::Turn::Finished);
    };
    turn(&mut pollers, ms(2));
    assert!(!pollers.is_empty() && !script.is_closed(0), "a device is a handle to it");
    drop((device, reactor));
    turn(&mut pollers, ms(4));
    assert!(pollers.is_empty() && script.is_closed(0));
}

#[test]
fn a_controller_tells_where_it_is_connected_and_what_it_has() {
    let script = Script::new();
    script.state().show(9, Shown::new(9));
    let config = ControllerConfig { ns: None, ..config(&script) };
    let mut world = World::start(script.clone(), config);
    let controller = world.controller.clone();
    assert_eq!((controller.connected_to(), controller.is_live(), controller.namespaces().len()), (None, false, 0));
    assert_eq!(controller.device().nsid(), None, "nobody knows yet");
    let before = controller.version();
    world.run_until("a controller that is up", 500, |w| w.controller.is_live());
    assert_eq!(controller.connected_to(), Some(("127.0.0.1:4420".parse().unwrap(), 7)));
    let devices = controller.namespaces();
    let told: Vec<_> = devices.iter().map(|d| (d.nsid(), d.unit(), d.state().info().is_some())).collect();
    assert_eq!(told, [1, 9].map(|nsid| (Some(nsid), UnitId(nsid.into()), true)));
    assert!(controller.version() > before && devices[0].version() == controller.version());
    script.reset(0);
    world.run_until("the loss", 10, |w| !w.controller.is_live());
    assert_eq!((controller.connected_to(), controller.namespaces().len()), (None, 0));
}

/// A namespace of a controller is closed by itself; the device that stands for the whole controller closes that.
#[test]
fn a_device_that_is_closed_takes_only_what_is_its_own() {
    let script = Script::new();
    script.state().show(2, Shown::new(2));
    let config = ControllerConfig { ns: None, ..config(&script) };
    let mut world = World::start(script, config);
    world.run_until("a controller that is up", 500, |w| w.controller.is_live());
    let (one, two) = (world.controller.namespace(1), world.controller.namespace(2));
    let version = one.version();
    one.close();
    assert!(one.version() > version, "whoever watches must look");
    world.run_ms(2);
    assert!(matches!(one.state(), DeviceState::Gone { reason } if reason == "it was closed"));
    let refused = one.open_queue(QueueConfig { depth: 8 }).map(|_| ());
    assert!(matches!(refused, Err(OpenError::Gone { reason, .. }) if reason == "it was closed"));
    assert!(two.state().info().is_some() && world.controller.is_live(), "another one is none of its business");
    assert!(world.controller.namespace(1).state().info().is_some(), "and neither is who asks for it anew");
    world.device = two;
    let at = world.open_queue(8);
    assert_eq!(world.queues[at].queue.health(), Health::Ready);
    world.queues.clear();
    world.controller.device().close();
    world.run_ms(2);
    assert!(is_gone(&world), "{:?}", world.device.state());
}
