//! Disks of one daemon that prove to be one.

use super::owed::{Scripted, ScriptedPath, over};
use super::*;
use polypath::multipath::PathConfig as GroupPath;

/// Waits until the only path of `disk` is `state`; why it is.
fn comes_to(daemon: &Daemon, disk: &str, state: PathState) -> String {
    let path = || lock(&daemon.state).disks[disk].group.statistics().remove(0);
    until(daemon, || path().state == state);
    path().why
}

/// Two are served before anybody knows what they are, and the path of the second shows the same disk: it carries nothing, and says why, until
/// the first one is served no more.
/// A third one, which is another disk, has nothing to do with it.
#[test]
fn a_disk_waits_while_another_that_is_the_same_is_served() {
    let (folder, device) = (tempfile::tempdir().unwrap(), Scripted::new());
    let daemon = over(&device, folder.path(), "state", &["a.sock"]);
    let mut twin = config(folder.path(), &[]).disks.remove(0);
    twin.paths.clear();
    let serve = |name: &'static str, other: bool| {
        daemon.create_disk(&DiskConfig { name: name.into(), ..twin.clone() }).unwrap();
        daemon.create_vhost(&VhostConfig { disk: name.into(), ..vhost(&format!("{name}.sock")) }).unwrap();
        let group = lock(&daemon.state).disks[name].group.clone();
        let path = ScriptedPath(device.clone(), name, Arc::new(AtomicBool::new(other)));
        group.add_path(GroupPath::new(Arc::new(path))).unwrap();
    };
    serve("twin", false);
    serve("third", true);
    comes_to(&daemon, "third", PathState::Usable);
    let why = comes_to(&daemon, "twin", PathState::Quarantined);
    assert!(why.contains("vm"), "{why}");
    daemon.delete_vhost(Path::new("third.sock")).unwrap();
    serve("fourth", false);
    let why = comes_to(&daemon, "fourth", PathState::Quarantined);
    assert!(why.contains("vm"), "{why}");
    daemon.delete_vhost(Path::new("fourth.sock")).unwrap();
    daemon.delete_vhost(Path::new("a.sock")).unwrap();
    comes_to(&daemon, "twin", PathState::Usable);
    assert!(daemon.create_vhost(&vhost("a.sock")).is_err_and(|error| error.contains("twin")));
    assert!(daemon.stop().is_empty());
}
