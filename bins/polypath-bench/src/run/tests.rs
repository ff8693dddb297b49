//! Runs over memory, one path and several.

use super::*;
use polypath_multipath::SelectorKind;
use polypath_target::{Command, ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use serde_json::Value;

fn quick(paths: &[&str]) -> RunConfig {
    RunConfig {
        time: Duration::from_millis(150),
        ramp: Duration::from_millis(20),
        ..RunConfig::new(paths.iter().map(|p| p.parse().unwrap()).collect())
    }
}

fn json(report: &RunReport) -> Value {
    serde_json::to_value(report).unwrap()
}

#[test]
fn reads_of_nothing_are_counted() {
    let report = run(&quick(&["null://1GiB"]), |_| ()).unwrap();
    assert!(report.is_good() && report.ios > 1000 && report.writes == 0, "{report:?}");
    let rate = report.ios as f64 / report.seconds;
    assert!((report.iops - rate).abs() < 1.0 && report.cpu_us_per_io > 0.0);
    assert!(report.buffers.pages == "huge" || report.buffers.reason.is_some(), "fell back without a word");
}

#[test]
fn the_keys_are_what_was_promised() {
    let value = json(&run(&quick(&["null://1GiB"]), |_| ()).unwrap());
    let latency = ["mean", "p50", "p90", "p99", "p99_9", "p99_99", "max"];
    let top = ["iops", "mib_s", "lat_us", "errors", "verify_errors", "longest_gap_ms", "cpu_us_per_io"];
    for object in [&value, &value["paths"][0]] {
        for key in top {
            assert!(object.get(key).is_some_and(|v| !v.is_null()), "{key} in {object}");
        }
        for key in latency {
            assert!(object["lat_us"][key].is_number(), "lat_us.{key} in {object}");
        }
    }
    let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
    keys.sort();
    let known = [
        "bs",
        "buffers",
        "core_taken_pct",
        "cpu_us_per_io",
        "cpus",
        "disk",
        "error_causes",
        "error_samples",
        "errors",
        "fencing",
        "idle",
        "interrupted",
        "iops",
        "iops_quiet",
        "ios",
        "jobs",
        "lat_read_us",
        "lat_us",
        "lat_write_us",
        "longest_gap_ms",
        "mib_s",
        "mode",
        "paths",
        "qd",
        "reactors",
        "reads",
        "rw",
        "seconds",
        "seed",
        "selector",
        "suspects",
        "unanswered",
        "verdict",
        "verify",
        "verify_error_samples",
        "verify_errors",
        "writes",
    ];
    assert_eq!(keys, known, "whoever reads the JSON must hear of a new key: it is listed in docs/PERFORMANCE.md");
}

#[test]
fn reads_and_writes_have_latencies_of_their_own() {
    let value = json(&run(&quick(&["null://1GiB"]), |_| ()).unwrap());
    assert_eq!((&value["lat_read_us"], &value["lat_write_us"]), (&value["lat_us"], &Value::Null), "reads only");
    let (target, uri) = target("null://1GiB");
    target.control(&Command { ms: Some(20), op: Some("write".into()), ..Command::new("delay") }).unwrap();
    for selector in [None, Some(SelectorKind::default())] {
        let config = RunConfig { mix: Mix::RandRw, qd: 4, selector, ..quick(&[&uri]) };
        let report = run(&config, |_| ()).unwrap();
        let value = json(&report);
        for object in [&value, &value["paths"][0]] {
            let p50 = |key: &str| object[key]["p50"].as_f64().unwrap();
            assert!(p50("lat_write_us") >= 20_000.0 && p50("lat_read_us") < 10_000.0, "{object:#}");
            assert_eq!(object["lat_us"]["max"], object["lat_write_us"]["max"], "{object:#}");
        }
    }
}

#[test]
fn memory_is_verified_and_continued() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    std::fs::File::create_new(&file).unwrap().set_len(8 << 20).unwrap();
    let uri = format!("file://{}", file.display());
    let config =
        RunConfig { mix: Mix::Verify, qd: 16, verify_record: Some(dir.path().join("record")), ..quick(&[&uri]) };
    let first = run(&config, |_| ()).unwrap();
    let v = first.verify.unwrap();
    assert!(first.is_good() && v.writes > 10 && v.swept > 10, "{first:?}");
    // Somebody changes the disk behind the checker's back; the checker of the next run must notice.
    let clean = run(&RunConfig { mix: Mix::Verify, seed: 2, ..config.clone() }, |_| ()).unwrap();
    assert!(clean.is_good(), "{clean:?}");
    let data = std::fs::read(&file).unwrap();
    let at = data.chunks(4096).position(|b| b[0] != 0).expect("something was written") * 4096;
    let mut bad = data;
    bad[at + 100] ^= 1;
    std::fs::write(&file, bad).unwrap();
    let config = RunConfig { rwmix: 100, ..config };
    let caught = run(&config, |_| ()).unwrap();
    assert_eq!((caught.verify_errors, caught.is_good()), (1, false), "{caught:?}");
    assert!(caught.verify_error_samples[0].contains("corrupted"), "{:?}", caught.verify_error_samples);
}

#[test]
fn a_disk_that_forgets_is_caught() {
    // Fully written before it is read, so that there is something to be caught at.
    let config = RunConfig { mix: Mix::Verify, rwmix: 50, size: Some(1 << 20), ..quick(&["null://1GiB"]) };
    let report = run(&config, |_| ()).unwrap();
    assert!(report.verify_errors > 0 && !report.is_good(), "{report:?}");
}

#[test]
fn a_slice_is_measured_alone() {
    let uri = format!("ram://4MiB?bs=4096&uuid={:032x}", 0x511ce);
    let slice = polypath_multipath::SliceRange { offset_bytes: 1 << 20, length_bytes: 64 << 10 };
    for paths in [vec![uri.as_str()], vec![uri.as_str(), uri.as_str()]] {
        let selector = Some(SelectorKind::default());
        let config = RunConfig { mix: Mix::Verify, rwmix: 50, slice: Some(slice), selector, ..quick(&paths[..1]) };
        let report = run(&config, |_| ()).unwrap();
        assert!(report.is_good() && report.disk.ends_with("#1048576+65536"), "{report:?}");
        let too_far = polypath_multipath::SliceRange { offset_bytes: 4 << 20, ..slice };
        let error = run(&RunConfig { slice: Some(too_far), ..config }, |_| ()).unwrap_err().to_string();
        assert!(error.contains("beyond"), "{error}");
    }
}

#[test]
fn several_paths_share_the_work() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::File::create_new(dir.path().join("disk")).unwrap().set_len(8 << 20).unwrap();
    // Two names for one file, and an identifier that says so. That they are one file is why neither may lock it.
    let name = |at: &str| {
        format!("file://{}{at}/disk?lock=off&uuid=00000000-0000-4000-8000-000000000001", dir.path().display())
    };
    let names = [name(""), name("/.")];
    let config = RunConfig {
        mix: Mix::Verify,
        selector: Some(SelectorKind::RoundRobin { min_io: 0 }),
        ..quick(&[&names[0], &names[1]])
    };
    let report = run(&config, |_| ()).unwrap();
    assert!(report.is_good() && report.selector == Some("round-robin"), "{report:?}");
    let [a, b] = &report.paths[..] else { panic!("two paths: {report:?}") };
    assert!(a.ios.abs_diff(b.ios) < a.ios / 10 + 32, "round-robin: {} and {}", a.ios, b.ios);
    assert!((a.ios + b.ios).abs_diff(report.ios) <= 64, "{} + {} of {}", a.ios, b.ios, report.ios);
    assert_eq!(
        [&a.state, &b.state],
        [&Some("usable".into()), &Some("usable".into())],
        "as they were before the disk was closed"
    );
    assert!(a.lat_us.p50 > 0.0 && a.mib_s > 0.0 && a.longest_gap_ms > 0.0, "{a:?}");
}

#[test]
fn one_name_twice_is_refused() {
    let error = run(&quick(&["ram://1MiB", "ram://1MiB"]), |_| ()).unwrap_err().to_string();
    assert!(error.contains("name"), "{error}");
}

#[test]
fn jobs_have_parts_of_their_own() {
    let config = RunConfig { mix: Mix::Verify, jobs: 3, qd: 4, ..quick(&["ram://8MiB"]) };
    let report = run(&config, |_| ()).unwrap();
    assert!(report.is_good() && report.ios > 100 && report.longest_gap_ms > 0.0, "{report:?}");
    assert_eq!(report.reactors.len(), 1);
}

#[test]
fn what_does_not_suit_the_disk_is_named() {
    let odd = RunConfig { bs: 4096 + 256, ..quick(&["null://1GiB"]) };
    assert!(run(&odd, |_| ()).unwrap_err().to_string().contains("expected a multiple"), "odd request size");
    let small = RunConfig { size: Some(100), ..quick(&["null://1GiB"]) };
    assert!(run(&small, |_| ()).unwrap_err().to_string().contains("too few"), "nothing to use");
    let read_only = RunConfig { mix: Mix::RandWrite, ..quick(&["ram://1MiB?readonly=true"]) };
    match run(&read_only, |_| ()) {
        Ok(report) => assert!(report.errors > 0 && !report.error_samples.is_empty() && !report.is_good()),
        Err(error) => assert!(error.to_string().contains("readonly"), "{error}"),
    }
}

/// A target with one namespace, and its URI.
fn target(namespace: &str) -> (TargetHandle, String) {
    let nqn = "nqn.2026-01.org.example:bench";
    let target = Target::start(TargetConfig {
        listeners: vec![ListenerConfig::new("127.0.0.1:0")],
        subsystems: vec![SubsystemConfig::new(nqn, vec![NamespaceConfig::new(namespace)])],
        ..TargetConfig::default()
    })
    .unwrap();
    let uri = format!("nvme-tcp://{}/{nqn}?ns=1", target.addresses()[0]);
    (target, uri)
}

#[test]
fn what_is_late_counts_though_the_time_is_up() {
    let (target, uri) = target("null://1GiB");
    target.control(&Command { ms: Some(600), op: Some("read".into()), ..Command::new("delay") }).unwrap();
    for jobs in [1, 2] {
        let report = run(&RunConfig { qd: 1, jobs, ..quick(&[&uri]) }, |_| ()).unwrap();
        assert_eq!((report.ios, report.errors), (0, 0), "none completed in the time measured: {report:?}");
        assert!(report.lat_us.max >= 590_000.0, "the slowest request: {:?}", report.lat_us);
        // With one job until it completed, with several until the time was up.
        let least = if jobs == 1 { 550.0 } else { 140.0 };
        assert!(report.longest_gap_ms >= least, "{jobs} jobs: {} ms", report.longest_gap_ms);
    }
}

#[test]
fn a_lost_path_is_told_as_one() {
    let (target, uri) = target("null://1GiB");
    for (selector, cause) in [(None, "path lost"), (Some(SelectorKind::default()), "no usable path in time")] {
        target.control(&Command { op: Some("read".into()), ..Command::new("lose") }).unwrap();
        let mut reset = false;
        let config = RunConfig {
            selector,
            qd: 4,
            time: Duration::from_secs(1),
            no_path_timeout: Duration::from_millis(100),
            ..quick(&[&uri])
        };
        let report = run(&config, |_| {
            // The connections end, and nobody listens any more.
            if !std::mem::replace(&mut reset, true) {
                let listener = || Some(polypath_target::ListenerName::Index(0));
                target.control(&Command { listener: listener(), ..Command::new("close_listener") }).unwrap();
                target.control(&Command { listener: listener(), ..Command::new("reset") }).unwrap();
            }
        })
        .unwrap();
        assert!(report.errors >= 4 && !report.is_good(), "{report:?}");
        assert_eq!(report.error_causes, [(cause.to_owned(), report.errors)].into(), "{report:?}");
        let listener = Some(polypath_target::ListenerName::Index(0));
        target.control(&Command { listener, ..Command::new("open_listener") }).unwrap();
        target.control(&Command::new("clear")).unwrap();
    }
}

#[test]
fn a_stop_ends_the_measured_time_and_the_report_is_of_it() {
    for (mix, jobs) in [(Mix::RandRw, 2), (Mix::Verify, 1)] {
        let stop = Stop::default();
        assert!(!stop.request(), "there is nothing to stop");
        let config =
            RunConfig { mix, jobs, time: Duration::from_secs(600), ramp: Duration::ZERO, ..quick(&["ram://8MiB"]) };
        let report = run_until(&config, &stop, |_| assert!(stop.request())).unwrap();
        assert!(report.interrupted && report.is_good() && report.ios > 100, "{report:?}");
        assert!(report.seconds > 0.05 && report.seconds < 60.0, "{report:?}");
        assert!((report.iops - report.ios as f64 / report.seconds).abs() < report.iops / 100.0, "{report:?}");
        assert_eq!(report.verify.map(|v| v.swept), (mix == Mix::Verify).then_some(0), "nobody waits for the sweep");
        assert!(!stop.request(), "it has ended");
    }
    assert!(!run(&quick(&["null://1GiB"]), |_| ()).unwrap().interrupted);
}

#[test]
fn a_stop_during_the_ramp_reports_that_nothing_was_measured() {
    let stop = Stop::default();
    let config = RunConfig { ramp: Duration::from_secs(600), ..quick(&["null://1GiB"]) };
    let report = run_until(&config, &stop, |_| assert!(stop.request())).unwrap();
    assert!(report.interrupted && report.seconds == 0.0 && report.ios == 0, "{report:?}");
    assert_eq!((report.iops, report.iops_quiet, report.longest_gap_ms), (0.0, 0.0, 0.0));
}

#[test]
fn a_sweep_is_cut_short_by_a_stop() {
    let (target, uri) = target("ram://1MiB");
    let stop = Stop::default();
    let config = RunConfig { mix: Mix::Verify, rwmix: 0, qd: 4, jobs: 1, ..quick(&[&uri]) };
    target.control(&Command { ms: Some(200), op: Some("read".into()), ..Command::new("delay") }).unwrap();
    let mut written = None;
    let report = run_until(&config, &stop, |p| {
        if p.elapsed > p.total && p.ios > *written.get_or_insert(p.ios) + u64::from(config.qd) {
            // More than the writes that were outstanding then: what comes back now was swept.
            stop.request();
        }
    })
    .unwrap();
    let swept = report.verify.unwrap().swept;
    assert!(report.interrupted && swept > 0 && swept < 256, "{report:?}");
}

#[test]
fn what_never_comes_back_costs_nobody_the_report() {
    let (target, uri) = target("null://1GiB");
    let stop = Stop::default();
    target.control(&Command { ms: Some(600_000), op: Some("read".into()), ..Command::new("delay") }).unwrap();
    let config = RunConfig { qd: 3, time: Duration::from_secs(600), ..quick(&[&uri]) };
    let report = run_until(&config, &stop, |_| assert!(stop.request())).unwrap();
    assert_eq!((report.unanswered, report.interrupted, report.is_good()), (3, true, false), "{report:?}");
}

#[test]
fn no_time_is_refused() {
    let error = run(&RunConfig { time: Duration::ZERO, ..quick(&["null://1GiB"]) }, |_| ()).unwrap_err().to_string();
    assert!(error.contains("--time 0") && error.contains("expected"), "{error}");
}
