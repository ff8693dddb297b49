//! Clients and operators of a control socket who do it wrong.

use super::*;
use crate::config::{ListenerConfig, NamespaceConfig, SubsystemConfig, TargetConfig};
use crate::target::{Target, TargetHandle};
use std::os::unix::fs::PermissionsExt as _;

fn config(control: &Path) -> TargetConfig {
    TargetConfig {
        listeners: vec![ListenerConfig::new("127.0.0.1:0")],
        subsystems: vec![SubsystemConfig::new("nqn.2026-01.org.example:t", vec![NamespaceConfig::new("ram://1MiB")])],
        control: Some(control.to_owned()),
        threads: 1,
        ..TargetConfig::default()
    }
}

fn ends_in_time(target: TargetHandle) -> bool {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        target.stop();
        tell.send(())
    });
    told.recv_timeout(Duration::from_secs(20)).is_ok()
}

#[test]
fn a_client_that_takes_no_answers_does_not_hold_up_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let target = Target::start(config(&path)).unwrap();
    let mut deaf = UnixStream::connect(&path).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let mut full = Instant::now();
    // Until nothing was read from it for a while.
    while full.elapsed() < Duration::from_millis(500) {
        match deaf.write(b"{\"cmd\":\"status\"}\n") {
            // A piece of a line at the end is as good.
            Ok(written) if written > 0 => full = Instant::now(),
            Ok(_) => panic!("it has hung up"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(call(&path, &Command::new("ping")).is_ok(), "others are heard");
    assert!(ends_in_time(target));
    drop(deaf);
}

#[test]
fn what_is_no_socket_stays_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    std::fs::write(&path, "precious").unwrap();
    let started = Target::start(config(&path)).map(TargetHandle::stop);
    assert_eq!(std::fs::read_to_string(&path).ok().as_deref(), Some("precious"), "{started:?}");
    assert!(started.unwrap_err().to_string().contains("disk.img"));
    std::fs::remove_file(&path).unwrap();
    let target = Target::start(config(&path)).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "for this user alone");
    assert!(Target::start(config(&path)).is_err(), "it is served");
    target.stop();
    assert!(!path.exists());
}

#[test]
fn times_that_nobody_lives_to_see_are_taken_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let target = Target::start(config(&folder.path().join("control"))).unwrap();
    for cmd in ["delay", "trickle", "latency", "hold_write", "stall"] {
        for most in [u64::MAX, u64::MAX / 1000] {
            let command = Command {
                ms: Some(most),
                window_ms: Some(most),
                apply_after_ms: Some(most),
                ..Command::new(cmd).listener(0)
            };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target.control(&command)));
            assert!(done.is_ok(), "{cmd} {most}");
        }
    }
    target.stop();
}

#[test]
fn writes_to_a_disk_beneath_are_not_said_to_be_held() {
    use crate::media::Medium;
    use crate::media::beneath::testing::Rig;
    use crate::store::Disk;
    let rig = Rig::new(polypath_block::Limits::UNLIMITED);
    let subsystem = SubsystemConfig::new("nqn.x", vec![NamespaceConfig::new("ram://1MiB")]);
    let listeners = vec![ListenerConfig::new("127.0.0.1:1")];
    let config = TargetConfig { listeners, subsystems: vec![subsystem], ..TargetConfig::default() };
    let rooms = Rooms::driven(config, &["127.0.0.1:1".parse().unwrap()]).unwrap();
    let hold = Command::new("hold_write");
    assert!(execute(&rooms, &hold).is_ok());
    let medium = Arc::new(Medium::Beneath(rig.disk.clone()));
    rooms.stores[0].replace(1, |old| Ok(Disk { medium, ..old.copy() })).unwrap();
    assert!(execute(&rooms, &hold).is_err_and(|e| e.contains("cannot be held")));
    drop(rooms);
    rig.finish();
}

/// One that takes the connection and does nothing, and one that does not even do that.
#[test]
fn an_answer_is_not_waited_for_without_end() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let silent = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&silent, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    // One connection may wait to be taken.
    listen(&silent, 0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    for room in [false, true] {
        if room {
            listen(&silent, 16).unwrap();
        }
        let (path, (tell, told)) = (path.clone(), mpsc::channel());
        std::thread::spawn(move || tell.send(call_within(&path, &Command::new("ping"), Duration::from_millis(50))));
        let said = told.recv_timeout(Duration::from_secs(20)).expect("it comes back").unwrap_err();
        assert!(said.contains("control: no answer within 0.05 s"), "{said}");
    }
}
