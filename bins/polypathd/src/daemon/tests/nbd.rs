//! NBD exports, and a client of our own.

use super::*;
use crate::config::NbdConfig;
use crate::nbd::Place;
use polypath_nbd::wire::{Command, CommandFlags, OptionHeader, OptionType, Request};
use std::net::TcpStream;

fn nbd(socket: &str, name: &str) -> NbdConfig {
    let place = Place::Socket(socket.into());
    NbdConfig { disk: "vm".into(), name: name.into(), place, read_only: false, access: Default::default() }
}

fn with_nbd(folder: &Path, exports: &[NbdConfig]) -> Config {
    Config { nbds: exports.to_vec(), ..config(folder, &[]) }
}

/// A client that hears simple replies.
struct Client<S>(S);

impl<S: Read + Write> Client<S> {
    /// `None`: there is no such export.
    fn go(mut stream: S, name: &str) -> Option<Client<S>> {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        let data = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), &[0, 0]].concat();
        let option = OptionHeader { option: OptionType::Go, length: data.len() as u32 }.to_bytes();
        stream.write_all(&[&[0, 0, 0, 3], &option[..], &data].concat()).unwrap();
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head).unwrap();
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            let mut data = vec![0; word(16) as usize];
            stream.read_exact(&mut data).unwrap();
            match word(12) {
                1 => return Some(Client(stream)),
                kind if kind >= 1 << 31 => return None,
                _ => {}
            }
        }
    }

    fn ask(&mut self, command: Command, length: u32) {
        let request = Request { flags: CommandFlags::empty(), command, cookie: 7, offset: 0, length };
        self.0.write_all(&request.to_bytes()).unwrap();
        self.0.write_all(&vec![0x55; request.payload() as usize]).unwrap();
    }

    /// The error of a reply without data; `None`: the connection is over.
    fn hear(&mut self) -> Option<u32> {
        let mut head = [0; 16];
        self.0.read_exact(&mut head).ok()?;
        Some(u32::from_be_bytes(head[4..8].try_into().unwrap()))
    }

    fn call(&mut self, command: Command, length: u32) -> Option<u32> {
        self.ask(command, length);
        self.hear()
    }
}

fn connect(folder: &Path, socket: &str, name: &str) -> Option<Client<UnixStream>> {
    let stream = UnixStream::connect(folder.join(socket)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    Client::go(stream, name)
}

#[test]
fn a_disk_is_exported_and_not_exported_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&with_nbd(folder.path(), &[nbd("n.sock", "vm")])).unwrap();
    let mut client = connect(folder.path(), "n.sock", "").unwrap();
    assert_eq!((client.call(Command::Write, 4096), client.call(Command::Flush, 0)), (Some(0), Some(0)));
    let list = daemon.nbds();
    let shown = |key: &str| list[0][key].clone();
    assert_eq!((shown("disk"), shown("name"), shown("state")), (json!("vm"), json!("vm"), json!("serving")));
    assert_eq!(shown("socket"), json!(folder.path().join("n.sock")));
    assert_eq!((shown("clients"), shown("requests"), shown("bytes_written")), (json!(1), json!(2), json!(4096)));
    // Two of them at one place, one of which takes no changes.
    let read_only = NbdConfig { read_only: true, ..nbd("n.sock", "look") };
    let place = Place::Socket(folder.path().join("n.sock"));
    assert_eq!(daemon.create_nbd(&read_only), Ok(place.clone()));
    let mut looks = connect(folder.path(), "n.sock", "look").unwrap();
    assert_eq!(looks.call(Command::Write, 4096), Some(1));
    assert!(connect(folder.path(), "n.sock", "").is_none(), "none of two is the default one");
    for (config, word) in [
        (nbd("n.sock", "vm"), "already"),
        (
            NbdConfig {
                access: polypath::vhost_user_blk::SocketAccess { mode: 0o666, ..Default::default() },
                ..nbd("n.sock", "new")
            },
            "mode",
        ),
        (NbdConfig { disk: "nobody".into(), ..nbd("m.sock", "new") }, "no disk"),
        (nbd("sub/", "new"), "folder"),
    ] {
        let error = daemon.create_nbd(&config).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    assert!(daemon.delete_disk("vm").unwrap_err().contains("n.sock as \"look\" (NBD)"));
    assert!(daemon.delete_nbd(&place, None).unwrap_err().contains("look, vm"));
    assert!(daemon.delete_nbd(&place, Some("nobody")).unwrap_err().contains("nbd_list"));
    daemon.delete_nbd(&place, Some("vm")).unwrap();
    assert_eq!((client.hear(), looks.call(Command::Flush, 0)), (None, Some(0)));
    assert_eq!(word(folder.path())["clean"], false, "the other one serves");
    // A socket is named as it was when it was made.
    daemon.delete_nbd(&Place::Socket("n.sock".into()), None).unwrap();
    assert_eq!((word(folder.path())["clean"].clone(), daemon.nbds()), (json!(true), json!([])));
    assert!(!folder.path().join("n.sock").exists());
    daemon.delete_disk("vm").unwrap();
    assert!(daemon.stop().is_empty());
}

#[test]
fn a_port_that_was_left_to_the_system_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), &["a.sock"])).unwrap();
    let any = NbdConfig { place: Place::Address("127.0.0.1:0".parse().unwrap()), ..nbd("", "vm") };
    let Ok(Place::Address(address)) = daemon.create_nbd(&any) else { panic!("a port") };
    assert_eq!(daemon.nbds()[0]["address"], json!(address.to_string()));
    let mut client = Client::go(TcpStream::connect(address).unwrap(), "vm").unwrap();
    assert_eq!(client.call(Command::Write, 512), Some(0));
    // Beside a guest: both are the same group.
    assert_eq!(daemon.vhosts()[0]["state"], "serving");
    assert!(daemon.stop().is_empty());
    assert_eq!((client.hear(), word(folder.path())["clean"].clone()), (None, json!(true)));
    assert!(TcpStream::connect(address).is_err());
}

/// A client that has a write under way which no path takes.
fn waiting_client(daemon: &Daemon, folder: &Path) -> Client<UnixStream> {
    let mut client = connect(folder, "n.sock", "vm").unwrap();
    assert_eq!(client.call(Command::Write, 4096), Some(0));
    daemon.remove_path("vm", "only", true).unwrap();
    client.ask(Command::Write, 4096);
    until(daemon, || lock(&daemon.state).disks["vm"].group.availability().waiting == 1);
    client
}

#[test]
fn an_export_that_drains_late_is_known_until_then() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_nbd(folder.path(), &[nbd("n.sock", "vm")]);
    config.disks[0].matching = polypath::MatchPolicy::Stated;
    let daemon = Daemon::start(&config).unwrap();
    let mut client = waiting_client(&daemon, folder.path());
    let place = Place::Socket("n.sock".into());
    assert!(daemon.delete_nbd(&place, None).unwrap_err().contains("in flight"));
    assert_eq!(daemon.nbds()[0]["state"], "ending", "it is not forgotten");
    assert!(!folder.path().join("n.sock").exists(), "nobody else gets in");
    for error in [
        daemon.create_nbd(&nbd("n.sock", "vm")).unwrap_err(),
        daemon.create_vhost(&vhost("a.sock")).unwrap_err(),
        daemon.delete_disk("vm").unwrap_err(),
    ] {
        assert!(error.contains("in flight") && error.contains("(NBD)"), "{error}");
    }
    let uri = "ram://16M".parse().unwrap();
    let path = PathConfig { uri, name: Some("another".into()), weight: 100, preferred: false };
    daemon.add_path("vm", &path, Duration::from_secs(20)).unwrap();
    assert_eq!((client.hear(), client.hear()), (Some(0), None), "its answer, and the end");
    until(&daemon, || daemon.nbds() == json!([]));
    assert_eq!(word(folder.path())["clean"], true);
    daemon.create_nbd(&nbd("n.sock", "vm")).unwrap();
    assert!(daemon.stop().is_empty());
}

#[test]
fn an_end_with_something_in_flight_is_not_clean() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&with_nbd(folder.path(), &[nbd("n.sock", "vm")])).unwrap();
    let _client = waiting_client(&daemon, folder.path());
    let faults = daemon.stop();
    assert!(faults.iter().any(|fault| fault.contains("NBD export \"vm\"")), "{faults:?}");
    assert_eq!(word(folder.path())["clean"], false);
}

/// What somebody who was killed has sent may still land: changes wait for that, whoever asks for them.
#[test]
fn changes_wait_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let config = with_nbd(folder.path(), &[nbd("n.sock", "vm")]);
    let killed = Daemon::start(&config).unwrap();
    let mut left = word(folder.path());
    assert!(killed.stop().is_empty());
    drop(killed);
    // As a kill leaves it, with paths on which requests may land for an hour.
    left["bound_ms"] = json!(3_600_000);
    std::fs::write(folder.path().join("state/vm.json"), serde_json::to_vec(&left).unwrap()).unwrap();
    let daemon = Daemon::start(&config).unwrap();
    let mut client = connect(folder.path(), "n.sock", "vm").unwrap();
    client.ask(Command::Write, 4096);
    assert_eq!(client.call(Command::Flush, 0), Some(0), "it does not wait for the write");
    // One that was not begun when its export ends is refused.
    thread::scope(|scope| {
        let ends = scope.spawn(|| daemon.stop());
        assert_eq!((client.hear(), client.hear()), (Some(108), None));
        assert_eq!(ends.join().unwrap(), [""; 0]);
    });
}
