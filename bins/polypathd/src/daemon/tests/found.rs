//! Disks that sources lead to. Memory that says who it is stands in for the network: each is a path.

use super::*;
use crate::config::NbdConfig;
use crate::nbd::Place;
use serde_json::Value;

const ID: &str = "uuid.00112233445566778899aabbccddeeff";
const NGUID: &str = "nguid.11112222333344445555666677778888";

fn source(size: &str, n: u8) -> String {
    format!("ram://{size}?uuid=00112233-4455-6677-8899-aabbccddeeff&huge={}", if n == 0 { "off" } else { "on" })
}

fn with_sources(folder: &Path, sources: &[&str], vhosts: Vec<VhostConfig>) -> Config {
    Config {
        sources: sources.iter().map(|uri| uri.parse().unwrap()).collect(),
        disks: Vec::new(),
        vhosts,
        ..config(folder, &[])
    }
}

/// Looks after the daemon until something is so.
fn until(daemon: &Daemon, what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < end, "{:#} {:#}", daemon.disks(), daemon.list_sources());
        daemon.look_after();
        thread::sleep(Duration::from_millis(5));
    }
}

fn paths(daemon: &Daemon, disk: &str) -> usize {
    let disks = daemon.disks();
    let found = disks.as_array().unwrap().iter().find(|d| d["name"] == disk);
    found.map_or(0, |d| d["paths"].as_array().unwrap().iter().filter(|p| p["state"] == "usable").count())
}

fn served(daemon: &Daemon, socket: &str) -> Option<(String, String)> {
    let vhosts = daemon.vhosts();
    let all = vhosts.as_array().unwrap();
    let one = all.iter().find(|v| v["socket"].as_str().unwrap().ends_with(socket))?;
    let text = |key: &str| one[key].as_str().unwrap().to_owned();
    Some((text("disk"), text("state")))
}

#[test]
fn an_export_appears_with_its_disk_and_the_disk_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (source("16M", 0), source("16M", 1));
    let vhosts = vec![VhostConfig { disk: ID.into(), ..vhost("a.sock") }];
    let daemon = Daemon::start(&with_sources(folder.path(), &["ram://8M", "null://8M"], vhosts)).unwrap();
    until(&daemon, || daemon.disks().as_array().unwrap().len() == 2);
    assert_eq!(served(&daemon, "a.sock"), Some((ID.into(), "waiting".into())));
    daemon.create_source(&first.parse().unwrap()).unwrap();
    until(&daemon, || served(&daemon, "a.sock") == Some((ID.into(), "serving".into())));
    daemon.create_source(&second.parse().unwrap()).unwrap();
    until(&daemon, || paths(&daemon, ID) == 2);
    // A stranger with its identifiers and another size is no path of it, and no disk.
    let liar = source("8M", 0).replace("ram", "null").replace("&huge=off", "");
    daemon.create_source(&liar.parse().unwrap()).unwrap();
    until(&daemon, || daemon.list_sources()["unused"].to_string().contains("fewer than"));
    assert_eq!((daemon.disks().as_array().unwrap().len(), paths(&daemon, ID)), (3, 2));
    assert!(
        daemon.disks().as_array().unwrap().iter().all(|disk| disk["found"] == true && disk["same_as"] == Value::Null)
    );
    // What sources look after is not for others to change.
    for refused in [
        daemon.delete_disk(ID),
        daemon.remove_path(ID, &first, true),
        daemon
            .add_path(
                ID,
                &PathConfig { uri: "ram://16M".parse().unwrap(), name: None, weight: 1, preferred: false },
                Duration::ZERO,
            )
            .map(drop),
    ] {
        assert!(refused.unwrap_err().contains("from sources"));
    }
    // Requests go on over what is left, and the last path does not go by accident.
    let guest = {
        let uri = format!("vhost-user-blk://{}", folder.path().join("a.sock").display());
        let stack = Stack::start(StackConfig::default()).unwrap();
        GuestDisk::builder().uris(uri.as_str()).stack(&stack).open_blocking().unwrap()
    };
    block_on(guest.write(0, guest.buffer(4096).unwrap())).0.unwrap();
    daemon.delete_source(&second, false).unwrap();
    until(&daemon, || paths(&daemon, ID) == 1);
    block_on(guest.write(0, guest.buffer(4096).unwrap())).0.unwrap();
    let refused = daemon.delete_source(&first, false).unwrap_err();
    assert!(refused.contains(ID) && refused.contains("force"), "{refused}");
    assert!(daemon.delete_source("nvme-tcp://10.0.0.1", false).unwrap_err().contains("source_list"));
    drop(guest);
    daemon.delete_vhost(Path::new("a.sock")).unwrap();
    daemon.delete_source(&first, false).unwrap();
    until(&daemon, || daemon.disks().as_array().unwrap().iter().all(|disk| disk["name"] != ID));
    assert_eq!(daemon.stop(), Vec::<String>::new());
}

#[test]
fn a_disk_is_called_what_its_export_calls_it_also_the_next_time() {
    let folder = tempfile::tempdir().unwrap();
    let uri = format!("{}&nguid=11112222-3333-4444-5555-666677778888", source("16M", 0));
    let vhosts = vec![VhostConfig { disk: NGUID.into(), ..vhost("a.sock") }];
    let nbd = NbdConfig {
        disk: ID.into(),
        name: "b".into(),
        place: Place::Socket("b.sock".into()),
        read_only: false,
        access: Default::default(),
    };
    for _ in 0..2 {
        let config = Config { nbds: vec![nbd.clone()], ..with_sources(folder.path(), &[&uri], vhosts.clone()) };
        let daemon = Daemon::start(&config).unwrap();
        // One of the two names that the exports have for it.
        until(&daemon, || served(&daemon, "a.sock").is_some_and(|(_, state)| state == "serving"));
        until(&daemon, || daemon.nbds()[0]["state"] == "serving");
        let name = served(&daemon, "a.sock").unwrap().0;
        assert_eq!(daemon.nbds()[0]["disk"], name.as_str());
        assert_eq!((daemon.disks().as_array().unwrap().len(), name.as_str()), (1, ID), "the best of the names");
        assert_eq!(daemon.disk_name(NGUID), ID);
        assert_eq!(daemon.stop(), Vec::<String>::new());
    }
    let marks: Vec<_> =
        std::fs::read_dir(folder.path().join("state")).unwrap().flatten().map(|f| f.file_name()).collect();
    assert!(marks.iter().all(|name| name.to_string_lossy().contains("uuid")), "{marks:?}");
    let config = with_sources(folder.path(), &[&uri], vhosts);
    let daemon = Daemon::start(&config).unwrap();
    until(&daemon, || served(&daemon, "a.sock") == Some((NGUID.into(), "serving".into())));
    assert_eq!(daemon.stop(), Vec::<String>::new());
}

/// A slice is a use of its disk, served or not: a disk that comes back is another one, which slices of the first would not be of.
#[test]
fn a_disk_that_has_slices_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let uri = source("16M", 0);
    let daemon = Daemon::start(&with_sources(folder.path(), &[&uri], Vec::new())).unwrap();
    until(&daemon, || paths(&daemon, ID) == 1);
    let range = polypath::SliceRange { offset_bytes: 0, length_bytes: 1 << 20 };
    daemon.create_slice(&crate::config::SliceConfig { name: "a".into(), disk: ID.into(), range }).unwrap();
    let refused = daemon.delete_source(&uri, false).unwrap_err();
    assert!(refused.contains(ID) && refused.contains("force"), "{refused}");
    daemon.delete_source(&uri, true).unwrap();
    until(&daemon, || daemon.list_sources()["sources"].as_array().unwrap().is_empty() && paths(&daemon, ID) == 0);
    for _ in 0..600 {
        daemon.look_after();
        thread::sleep(Duration::from_millis(5));
        let there = daemon.disks().as_array().unwrap().iter().any(|disk| disk["name"] == ID);
        assert!(there, "its slice is left: {:#}", daemon.slices());
    }
    // It comes back, and the slice with it.
    daemon.create_source(&uri.parse().unwrap()).unwrap();
    until(&daemon, || paths(&daemon, ID) == 1);
    until(&daemon, || daemon.slices()[0]["state"] == "live");
    daemon.delete_slice("a").unwrap();
    daemon.delete_source(&uri, false).unwrap();
    until(&daemon, || daemon.disks().as_array().unwrap().is_empty());
    assert_eq!(daemon.stop(), Vec::<String>::new());
}

/// Somebody gives up an export that waits while another one is made: it is that one, and no panic, which would end the daemon.
#[test]
fn what_is_given_up_while_others_are_made_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let uri = source("16M", 0);
    let vhosts = ["a.sock", "b.sock"].map(|socket| VhostConfig { disk: ID.into(), ..vhost(socket) });
    let daemon = Daemon::start(&with_sources(folder.path(), &[&uri], vhosts.into())).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while paths(&daemon, ID) == 0 {
        assert!(Instant::now() < end, "{:#}", daemon.list_sources());
        thread::sleep(Duration::from_millis(5));
    }
    let changing = daemon.changing.clone();
    let held = lock(&changing);
    thread::scope(|scope| {
        let made = scope.spawn(|| daemon.serve_waiting());
        // By then it waits for its turn to change something; if not, there is nothing to be seen.
        thread::sleep(Duration::from_millis(300));
        assert!(daemon.forget_vhost(&folder.path().join("a.sock")));
        drop(held);
        assert!(made.join().is_ok());
    });
    assert_eq!(served(&daemon, "b.sock"), Some((ID.into(), "serving".into())));
    daemon.delete_vhost(Path::new("b.sock")).unwrap();
    assert!(daemon.vhosts().as_array().unwrap().iter().all(|v| v["state"] != "waiting"), "{:#}", daemon.vhosts());
    // What has just been made is not given up by forgetting that it has waited.
    daemon.create_vhost(&VhostConfig { disk: ID.into(), ..vhost("c.sock") }).unwrap();
    daemon.wait_for_disk(super::super::found::Export::Vhost(VhostConfig { disk: ID.into(), ..vhost("c.sock") }));
    daemon.delete_vhost(Path::new("c.sock")).unwrap();
    assert_eq!(served(&daemon, "c.sock"), None);
    assert_eq!(daemon.stop(), Vec::<String>::new());
}

#[test]
fn what_waits_may_be_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let vhosts = vec![VhostConfig { disk: ID.into(), ..vhost("a.sock") }];
    let daemon = Daemon::start(&with_sources(folder.path(), &["ram://8M"], vhosts)).unwrap();
    assert!(served(&daemon, "a.sock").is_some());
    daemon.delete_vhost(Path::new("a.sock")).unwrap();
    assert!(served(&daemon, "a.sock").is_none() && daemon.delete_vhost(Path::new("a.sock")).is_err());
    let twice = daemon.create_source(&"ram://8M".parse().unwrap()).unwrap_err();
    assert!(twice.contains("already"), "{twice}");
    let named = daemon.list_sources()["sources"][0]["source"].to_string();
    daemon.delete_source(&named, false).unwrap();
    until(&daemon, || daemon.disks().as_array().unwrap().is_empty());
    assert_eq!(daemon.stop(), Vec::<String>::new());
    assert!(daemon.create_source(&"ram://8M".parse().unwrap()).unwrap_err().contains("ending"));
}
