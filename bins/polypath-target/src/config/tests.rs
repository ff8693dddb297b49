//! What is read, what is made of it, and what is refused.

use super::*;

#[test]
fn namespaces_get_stable_distinct_identities() {
    let sub = SubsystemConfig::new(
        "nqn.2024-01.org.example:a",
        vec![NamespaceConfig::new("ram://1MiB?bs=4096"), NamespaceConfig::new("null://1TiB?anagrp=9")],
    );
    let plans = sub.plan().unwrap();
    assert_eq!(plans[0].nsid, 1);
    assert_eq!((plans[1].nsid, plans[1].group, plans[0].bs), (2, 9, Some(4096)));
    assert_ne!(plans[0].nguid, plans[1].nguid);
    assert_eq!(plans[0].nguid, sub.plan().unwrap()[0].nguid);
    assert_ne!(plans[0].nguid, plans[0].uuid);
}

#[test]
fn mistakes_are_named() {
    let plan = |uri: &str| SubsystemConfig::new("nqn.x", vec![NamespaceConfig::new(uri)]).plan();
    for (uri, word) in [
        ("ram://1MiB?bs=100", "100"),
        ("ram://1MiB?nguid=12", "nguid"),
        ("ram://1MiB?cache=on", "cache"),
        ("ram://1MiB?colour=red", "colour"),
        ("ram://1MiB?cache=wet", "wet"),
        ("ram://1MiB?nsid=5000", "5000"),
    ] {
        let error = plan(uri).unwrap_err().to_string();
        assert!(error.contains(word), "{uri}: {error}");
    }
    for text in ["kas_ms = 150\n", "mdts_bytes = 4096\n", "mdts_bytes = 9000\n", "threads = 0\n", "colour = 1\n"] {
        let listener = format!("{text}[[listeners]]\naddress = \"127.0.0.1:0\"\n");
        assert!(TargetConfig::from_toml(&listener).is_err(), "{text}");
    }
    let kept = |uri: &str| NamespaceConfig { reservations: Some("r".into()), ..NamespaceConfig::new(uri) };
    let memory = SubsystemConfig::new("nqn.x", vec![kept("ram://1MiB")]).plan().unwrap_err().to_string();
    assert!(memory.contains("not for memory"), "{memory}");
    let listeners = vec![ListenerConfig::new("127.0.0.1:0")];
    let subsystems = vec![SubsystemConfig::new("nqn.x", vec![kept("file:///a"), kept("file:///b")])];
    let twice = TargetConfig { listeners, subsystems, ..TargetConfig::default() }.check().unwrap_err().to_string();
    assert!(twice.contains("r is of two namespaces"), "{twice}");
    let good = "tbkas = true\n[[listeners]]\naddress = \"127.0.0.1:0\"\nana = \"non_optimized\"\n[[subsystems]]\nnqn = \"nqn.x\"\n[[subsystems.namespaces]]\nuri = \"ram://1MiB\"\n";
    let config = TargetConfig::from_toml(good).unwrap();
    assert_eq!(config.listeners[0].ana, AnaState::NonOptimized);
}

/// What is wrong with a configuration ends in logs, and so does what it is when somebody asks for that.
#[test]
fn secrets_of_a_configuration_are_not_shown() {
    let listener = "[[listeners]]\naddress = \"127.0.0.1:0\"\n";
    for (line, chap) in [
        (5, "[iscsi.chap]\nuser = \"u\"\nsecret = passw0rd1234\n"),
        (5, "[iscsi.chap]\nuser = \"u\"\nsecret = \"passw0rd1234\n"),
        (5, "[iscsi.chap]\nuser = \"u\"\nsecret = 7770001234567\n"),
        (4, "[iscsi]\nchap = { user = \"u\", secret = \"passw0rd1234\", sekret_file = 1 }\n"),
    ] {
        let error = TargetConfig::from_toml(&format!("{listener}{chap}")).unwrap_err().to_string();
        let shown = ["passw0rd", "777000"].iter().any(|secret| error.contains(secret));
        assert!(!shown && error.contains(&format!("line {line}")), "{error}");
    }
    let disk = NamespaceConfig::new("iscsi://joe%passw0rd@10.0.0.1/iqn.2026-01.org.example:a/0");
    let two = NamespaceConfig { uri: String::new(), paths: vec![disk.uri.clone()], ..NamespaceConfig::new("") };
    for shown in [format!("{disk:?}"), format!("{two:?}"), format!("{:?}", SubsystemConfig::new("nqn.x", vec![disk]))] {
        assert!(!shown.contains("passw0rd") && shown.contains("iscsi://joe"), "{shown}");
    }
}
