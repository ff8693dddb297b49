use super::*;

const GOOD: &str = r#"
[daemon]
cpus = "0-1"
idle = "sleep"
socket_dir = "/run/polypath"

[[disk]]
name = "vm1"
selector = "round-robin"
paths = ["ram://64MiB"]

[[disk.path]]
uri = "nvme-tcp://10.0.0.1:4420/nqn.2026-01.org.example:a?ns=1"
weight = 3

[[vhost]]
disk = "vm1"
socket = "vm1.sock"
queues = 2

[[nbd]]
disk = "vm1"
socket = "nbd.sock"
mode = "660"

[[nbd]]
disk = "vm1"
name = "backup"
address = "127.0.0.1:10809"
read_only = true
"#;

#[test]
fn reads_a_good_file() {
    let mut config = Config::parse("polypath.toml", GOOD).unwrap();
    assert_eq!(config.disks[0].paths.len(), 2);
    assert_eq!(config.disks[0].paths[1].weight, 3);
    assert_eq!(config.socket_of(&config.vhosts[0]), Path::new("/run/polypath/vm1.sock"));
    assert_eq!(config.idle, IdlePolicy::Sleep);
    let nbd: Vec<_> = config.nbds.iter().map(|n| (n.name.as_str(), config.place_of(n), n.read_only)).collect();
    let (socket, address) = (Place::Socket("/run/polypath/nbd.sock".into()), "127.0.0.1:10809".parse().unwrap());
    assert_eq!(nbd, [("vm1", socket, false), ("backup", Place::Address(address), true)]);
    assert_eq!(config.nbds[0].access.mode, 0o660);
    let over = Overrides { cpus: Some("3".into()), socket_dir: Some("/tmp".into()), rpc_socket: None, state_dir: None };
    config.overrule(over).unwrap();
    assert_eq!(config.cpus, Some(CpuList(vec![0, 1])));
    assert_eq!(config.socket_of(&config.vhosts[0]), Path::new("/tmp/vm1.sock"));
}

#[test]
fn selectors_have_options_and_a_path_may_be_preferred() {
    use polypath::multipath::Failback;
    let read = |text: &str| Config::parse("f", &GOOD.replacen("\"round-robin\"", text, 1)).unwrap().disks.remove(0);
    assert_eq!(read("\"round-robin\"").selector, SelectorKind::RoundRobin { min_io: 0 });
    let turns = read("\"round-robin\"\nmin_io = 1024");
    assert_eq!(turns.selector, SelectorKind::RoundRobin { min_io: 1024 });
    for (text, failback) in [
        ("\"preferred\"", Failback::Immediate),
        ("\"preferred\"\nfailback = \"immediate\"", Failback::Immediate),
        ("\"preferred\"\nfailback = \"never\"", Failback::Never),
    ] {
        assert_eq!(read(text).selector, SelectorKind::Preferred { failback }, "{text}");
    }
    assert!(turns.paths.iter().all(|path| !path.preferred));
    let marked = Config::parse("f", &GOOD.replacen("weight = 3", "weight = 3\npreferred = true", 1)).unwrap();
    let marks: Vec<_> = marked.disks[0].paths.iter().map(|path| path.preferred).collect();
    assert_eq!(marks, [false, true]);
}

#[test]
fn a_socket_with_a_path_is_where_that_says() {
    let named = GOOD.replacen("\"vm1.sock\"", "\"/run/polypath/vm1.sock\"", 1);
    let mut config = Config::parse("f", &named).unwrap();
    let over = Overrides { cpus: None, socket_dir: Some("sub".into()), rpc_socket: None, state_dir: None };
    config.overrule(over).unwrap();
    assert_eq!(config.socket_of(&config.vhosts[0]), Path::new("/run/polypath/vm1.sock"));
    config.vhosts[0].socket = "vm1.sock".into();
    assert_eq!(config.socket_of(&config.vhosts[0]), Path::new("sub/vm1.sock"));
}

#[test]
fn state_is_kept_where_such_things_are() {
    let dir = |set: &[(&str, &str)], root| {
        let found = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        state_dir(found, root).map(|path| path.display().to_string())
    };
    let home = [("HOME", "/home/u"), ("XDG_STATE_HOME", "")];
    assert_eq!(dir(&home, true).as_deref(), Some("/var/lib/polypath"));
    assert_eq!(dir(&home, false).as_deref(), Some("/home/u/.local/state/polypath"));
    assert_eq!(dir(&[home[0], ("XDG_STATE_HOME", "/x")], false).as_deref(), Some("/x/polypath"));
    assert_eq!(dir(&[("STATE_DIRECTORY", "/s/a:/s/b")], true).as_deref(), Some("/s/a"));
    assert_eq!(dir(&[], false), None);
    let with = GOOD.replacen("idle =", "state_dir = \"/elsewhere\"\nidle =", 1);
    assert_eq!(Config::parse("f", &with).unwrap().state_dir.as_deref(), Some(Path::new("/elsewhere")));
}

#[test]
fn errors_name_file_line_key_and_what_was_expected() {
    let many: Vec<_> = (1..=65).map(|n| format!("\"ram://{n}MiB\"")).collect();
    let many = format!("paths = [{}]", many.join(", "));
    let cases: [(&str, &str, &[&str]); 34] = [
        ("socket = \"nbd.sock\"", "", &["polypath.toml:22", "nbd[0].socket", "neither", "one of them"]),
        ("mode = \"660\"", "address = \"[::1]:1\"", &["polypath.toml:22", "nbd[0].socket", "both"]),
        ("mode = \"660\"", "mode = \"999\"", &["polypath.toml:24", "nbd[0].mode", "octal"]),
        ("nbd.sock", "vm1.sock", &["polypath.toml:23", "nbd[0].socket", "vhost socket"]),
        ("127.0.0.1:10809", "localhost:10809", &["polypath.toml:29", "nbd[1].address", "192.0.2.1:10809"]),
        ("address = \"127.0.0.1:10809\"", "socket = \"nbd.sock\"", &["polypath.toml:29", "nbd[1].socket", "mode"]),
        (
            "name = \"backup\"\naddress = \"127.0.0.1:10809\"",
            "socket = \"nbd.sock\"\nmode = \"660\"",
            &["polypath.toml:28", "nbd[1].name", "twice", "vm1"],
        ),
        ("\"backup\"", "\"a\\u0007b\"", &["polypath.toml:28", "nbd[1].name", "control"]),
        ("read_only = true", "queues = 1", &["polypath.toml:30", "queues", "read_only"]),
        ("paths = [\"ram://64MiB\"]", &many, &["polypath.toml:8", "disk[0].paths", "66 paths", "at most 64"]),
        ("nqn.2026-01.org.example:a", "nqn.2014-08.org.nvmexpress.discovery", &["polypath.toml:13", "discovery"]),
        ("\"vm1.sock\"", "\"\"", &["polypath.toml:18", "vhost[0].socket", "empty"]),
        ("queues = 2", "owner = \"4294967295\"", &["polypath.toml:19", "vhost[0].owner", "nobody's"]),
        (
            "paths = [\"ram://64MiB\"]\n\n[[disk.path]]\nuri = ",
            "path = [\"ram://64MiB\"]\nuri = ",
            &["polypath.toml:10", "disk[0].path[0]", "a table [[disk.path]]", "called \"paths\""],
        ),
        ("queues = 2", "queues = \"2\"", &["polypath.toml:19", "key \"vhost[0].queues\"", "u16"]),
        (
            "paths = [\"ram://64MiB\"]",
            "paths = [\"ram://64MiB\", \"ram://64MiB\"]",
            &["polypath.toml:10", "disk[0].paths[1]", "ram://64MiB", "twice", "each path once"],
        ),
        (
            "weight = 3",
            "name = \"ram://64MiB\"",
            &["polypath.toml:13", "disk[0].path[0].uri", "twice", "a name of its own"],
        ),
        ("queues = 2", "serial = \"a-serial-of-21-bytes!\"", &["polypath.toml:19", "vhost[0].serial", "at most 20"]),
        ("queues = 2", "queue_size = 100", &["polypath.toml:19", "vhost[0].queue_size", "power of two"]),
        ("\"round-robin\"", "\"fastest\"", &["polypath.toml:9", "disk[0].selector", "queue-length"]),
        ("\"round-robin\"", "\"round-robin\"\nmin_io = 0", &["polypath.toml:10", "disk[0].min_io", "1 or more"]),
        (
            "\"round-robin\"",
            "\"round-robin\"\nfailback = \"never\"",
            &["polypath.toml:10", "disk[0].failback", "selector preferred", "not of round-robin"],
        ),
        ("\"round-robin\"", "\"hash\"\nmin_io = 8", &["polypath.toml:10", "disk[0].min_io", "round-robin", "hash"]),
        (
            "\"round-robin\"",
            "\"preferred\"\nfailback = \"later\"",
            &["polypath.toml:10", "disk[0].failback", "later", "immediate or never"],
        ),
        ("weight = 3", "preferred = 3", &["polypath.toml:14", "preferred", "boolean"]),
        ("idle = \"sleep\"", "idle = \"nap\"", &["polypath.toml:4", "daemon.idle", "adaptive"]),
        ("ram://64MiB", "rum://64MiB", &["polypath.toml:10", "disk[0].paths[0]", "scheme", "nvme-tcp"]),
        ("weight = 3", "weight = 0", &["polypath.toml:14", "disk[0].path[0].weight", "1 or more"]),
        ("weight = 3", "weight = \"x\"", &["polypath.toml:14", "weight", "u32"]),
        ("weight = 3", "wieght = 3", &["polypath.toml:14", "wieght", "weight"]),
        ("disk = \"vm1\"", "disk = \"vm2\"", &["polypath.toml:17", "vhost[0].disk", "vm1"]),
        ("queues = 2", "queues = 0", &["polypath.toml:19", "vhost[0].queues", "1 to 256"]),
        ("cpus = \"0-1\"", "cpus = \"1-0\"", &["polypath.toml:3", "daemon.cpus", "0x1d"]),
        ("[daemon]", "[daemon", &["polypath.toml:2"]),
    ];
    for (good, bad, wanted) in cases {
        let error = Config::parse("polypath.toml", &GOOD.replacen(good, bad, 1)).unwrap_err().to_string();
        for word in wanted {
            assert!(error.contains(word), "{bad}: {word} not in: {error}");
        }
    }
}

#[test]
fn sources_stand_in_for_disks() {
    let text = r#"
[sources]
refresh_ms = 500
rounds = 2
selector = "round-robin"
no_path_timeout_ms = -1

[[source]]
uri = "nvme-tcp://10.0.0.1"

[[source]]
uri = "iscsi://joe%word-of-joe-1@10.0.0.2"

[[vhost]]
disk = "uuid.00112233445566778899aabbccddeeff"
socket = "a.sock"
"#;
    let config = Config::parse("f", text).unwrap();
    let shown: Vec<_> = config.sources.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["nvme-tcp://10.0.0.1", "iscsi://joe%***@10.0.0.2"]);
    let (sources, policy) = (config.source_config, config.source_config.policy);
    assert_eq!((sources.refresh, sources.rounds), (std::time::Duration::from_millis(500), 2));
    assert_eq!((policy.selector.to_string().as_str(), policy.no_path_timeout_ms), ("round-robin", u64::MAX));
    for (from, to, says) in [
        ("refresh_ms = 500", "refresh_ms = 1", "sources.refresh_ms\": is 1"),
        ("rounds = 2", "rounds = 0", "sources.rounds"),
        ("\"round-robin\"", "\"best\"", "sources.selector"),
        ("10.0.0.1\"", "10.0.0.1?ns=1\"", "source[0].uri"),
        (
            "iscsi://joe%word-of-joe-1@10.0.0.2",
            "nvme-tcp://10.0.0.1",
            "source[1].uri\": nvme-tcp://10.0.0.1 is listed twice",
        ),
        ("joe%word-of-joe-1@10.0.0.2", "joe%word-of-joe-1@10.0.0.2?x=1", "option x"),
        ("uri = \"nvme", "url = \"nvme", "url"),
        ("uuid.0011", "a\\nb", "control character"),
    ] {
        assert!(text.contains(from), "{from}");
        let error = Config::parse("f", &text.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains("word-of-joe"), "{to}: {error}");
    }
    let without = text.replace("[[source]]", "[[source_]]");
    assert!(Config::parse("f", &without).is_err());
    let none = "[[vhost]]\ndisk = \"uuid.00\"\nsocket = \"a.sock\"\n";
    assert!(Config::parse("f", none).unwrap_err().to_string().contains("no disk is called"));
}
