//! `polypath-bench` as its users meet it: signals, files, what it prints and where.
#![allow(missing_docs)]

use polypath_target::{Command as Control, ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polypath-bench"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A run under way, killed if the test ends before it does.
struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        let mut child = bench(arguments).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Running { child, stderr }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Reads its standard error up to a line that has `word`.
    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "it ended before it said {word}");
        }
    }

    /// Waits for its end, calling `meanwhile` now and then; its status and what it printed.
    fn finish(mut self, meanwhile: impl Fn(&Running)) -> (ExitStatus, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < LIMIT, "it does not end");
            meanwhile(&self);
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        (status, text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Either of them fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn ctrl_c_prints_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let file = dir.path().join("report.json");
        let path = file.display().to_string();
        let mut run = Running::start(&[
            "run",
            "--path",
            "ram://16MiB",
            "--rw",
            "randrw",
            "--time",
            "10m",
            "--ramp",
            "0",
            "--progress",
            "--json",
            &path,
        ]);
        run.wait_for(" IOPS");
        run.signal(signal);
        run.wait_for("once more ends at once");
        let (ended, text) = run.finish(|_| ());
        assert_eq!(ended.code(), Some(status), "{text}");
        assert!(text.starts_with("INTERRUPTED after ") && text.contains("ram://16MiB"), "{text}");
        let report = json(&file);
        let number = |key: &str| report[key].as_f64().unwrap();
        assert_eq!(report["interrupted"], true);
        assert!(number("seconds") > 0.0 && number("seconds") < LIMIT.as_secs_f64(), "{report:#}");
        assert!(number("reads") > 0.0 && number("writes") > 0.0 && number("errors") == 0.0, "{report:#}");
        let rate = number("ios") / number("seconds");
        assert!((number("iops") - rate).abs() < rate * 0.01, "the rate is of the time until then: {report:#}");
    }
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let nqn = "nqn.2026-01.org.example:silent";
    let target = Target::start(TargetConfig {
        listeners: vec![ListenerConfig::new("127.0.0.1:0")],
        subsystems: vec![SubsystemConfig::new(nqn, vec![NamespaceConfig::new("null://1GiB")])],
        ..TargetConfig::default()
    })
    .unwrap();
    // What is outstanding comes back in ten minutes.
    target.control(&Control { ms: Some(600_000), op: Some("read".into()), ..Control::new("delay") }).unwrap();
    let uri = format!("nvme-tcp://{}/{nqn}?ns=1", target.addresses()[0]);
    let mut run = Running::start(&["run", "--path", &uri, "--time", "10m", "--ramp", "0", "--progress"]);
    run.wait_for(" IOPS");
    run.signal(Signal::INT);
    run.wait_for("once more ends at once");
    let begin = Instant::now();
    let (ended, text) = run.finish(|run| run.signal(Signal::INT));
    assert_eq!((ended.code(), text.as_str()), (Some(130), ""));
    assert!(begin.elapsed() < Duration::from_secs(10), "it waited for what is outstanding: {:?}", begin.elapsed());
}

#[test]
fn a_json_file_that_cannot_be_written_is_noticed_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("missing/report.json").display().to_string();
    let disk = TcpListener::bind("127.0.0.1:0").unwrap();
    disk.set_nonblocking(true).unwrap();
    let uri = format!("nvme-tcp://{}/nqn.2026-01.org.example:disk?ns=1", disk.local_addr().unwrap());
    let output = bench(&["run", "--path", &uri, "--connect-timeout", "1", "--json", &bad]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("--json {bad}")) && said.contains("No such file"), "{said}");
    assert_eq!(
        disk.accept().unwrap_err().kind(),
        ErrorKind::WouldBlock,
        "the disk was asked before the file was tried"
    );
    for mode in ["limit", "ratio"] {
        let (ended, text) = Running::start(&[mode, "--time", "10m", "--json", &bad]).finish(|_| ());
        assert_eq!((ended.code(), text.as_str()), (Some(2), ""), "{mode}");
    }
}

#[test]
fn a_run_that_fails_leaves_the_report_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old.json"), dir.path().join("new.json"));
    std::fs::write(&old, "[]").unwrap();
    for file in [&old, &new] {
        let output = bench(&["run", "--path", "null://1GiB", "--bs", "5000", "--json"]).arg(file).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "5000 is no multiple of a block");
    }
    assert!(std::fs::read(&old).unwrap() == b"[]" && !new.exists());
}

#[test]
fn logs_have_no_colours_in_a_file() {
    // Nobody answers there, which is worth a warning.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let uri = format!("nvme-tcp://{closed}/nqn.2026-01.org.example:nobody?ns=1");
    let output = bench(&["run", "--path", &uri, "--connect-timeout", "500ms"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("WARN") && !said.contains('\x1b'), "{said:?}");
}

#[test]
fn the_text_says_how_much_others_took() {
    for (mode, words) in [
        (&["run", "--path", "null://1GiB", "--time", "100ms", "--ramp", "0"][..], "others took the cores "),
        (&["limit", "--time", "100ms", "--ramp", "0"], " % (client) and "),
    ] {
        let text = String::from_utf8(bench(mode).output().unwrap().stdout).unwrap();
        assert!(text.contains(words), "{text}");
    }
}

/// `serve-ring` in a folder of its own.
struct ServedRing {
    child: Child,
    dir: tempfile::TempDir,
}

impl ServedRing {
    fn start(more: &[&str]) -> ServedRing {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s").display().to_string();
        let mut command = bench(&["serve-ring", &socket, "--cpu", "0"]);
        let mut child = command.args(more).stdin(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        ServedRing { child, dir }
    }

    fn socket(&self) -> String {
        self.dir.path().join("s").display().to_string()
    }

    /// Its status once its standard input has ended. It takes its socket with it.
    fn end(mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        let status = self.child.wait().unwrap();
        assert!(!self.dir.path().join("s").exists());
        status.code()
    }
}

const SHORT: [&str; 4] = ["--time", "20ms", "--ramp", "0"];

#[test]
fn a_ring_is_measured_by_itself_and_against_any_back_end() {
    let output = bench(&["limit", "--ring", "--qd", "2", "--json", "-"]).args(SHORT).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["mode"], &report["qd"], &report["medium"]), (&"ring-limit".into(), &2.into(), &"null".into()));
    assert_eq!((output.status.code(), &report["errors"], &report["unanswered"]), (Some(0), &0.into(), &0.into()));
    let served = ServedRing::start(&["--medium", "ram", "--idle", "adaptive"]);
    let file = served.dir.path().join("report.json").display().to_string();
    let output = bench(&["drive", &served.socket(), "--qd", "8", "--json", &file]).args(SHORT).output().unwrap();
    let (text, report) = (String::from_utf8(output.stdout).unwrap(), json(Path::new(&file)));
    assert!(output.status.success() && text.contains(&served.socket()), "{text}");
    assert_eq!(
        (&report["mode"], &report["errors"], &report["ring_size"]),
        (&"ring-drive".into(), &0.into(), &32.into())
    );
    assert!(report["total_ios"].as_u64().unwrap() >= 8, "{report:#}");
    assert_eq!(served.end(), Some(0));
}

/// The peer is stopped while others are measured, and goes on afterwards, also when something fails.
#[test]
fn back_ends_are_compared_in_turns_with_a_peer() {
    let peer = ServedRing::start(&["--idle", "adaptive", "--no-group"]);
    let ratio = ["ratio", "--ring", "--qd", "1,4", "--pairs", "2", "--peer"];
    let file = peer.dir.path().join("report.json").display().to_string();
    let output = bench(&ratio).args([&peer.socket(), "--json", &file]).args(SHORT).output().unwrap();
    let (text, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(
        output.status.success() && text.contains("a group of one path") && text.contains("peer IOPS"),
        "{text}{said}"
    );
    assert!(said.contains("QD 1 turn 1: limit ") && said.contains("QD 4 turn 2: limit "), "{said}");
    let report = json(Path::new(&file));
    assert_eq!(
        (&report["mode"], &report["goal"], &report["medium"]),
        (&"ring-ratio".into(), &0.8.into(), &"null".into())
    );
    for case in report["cases"].as_array().unwrap() {
        assert_eq!((case["pairs"].as_array().unwrap().len(), &case["errors"]), (2, &0.into()), "{case:#}");
        assert!(case["peer_iops"].is_number() && case["over_peer_quiet"].is_number(), "{case:#}");
    }
    // A core that is not there.
    let output = bench(&ratio).args([&peer.socket(), "--cpus", "1023"]).args(SHORT).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(peer.end(), Some(0), "it goes on");
    let output = bench(&ratio).arg("/nowhere/s").args(SHORT).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("--peer /nowhere/s: is a back-end listening"), "{said}");
}

/// The state of a process as the kernel has it: T is stopped.
fn state(process: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap()
}

fn patiently(what: &str, mut until: impl FnMut() -> bool) {
    let start = Instant::now();
    while !until() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A comparison with a back-end of somebody else's that takes a while, in a part of which that one is stopped.
fn compare_with(peer: &ServedRing) -> Running {
    let running = Running::start(&[
        "ratio",
        "--ring",
        "--qd",
        "1",
        "--pairs",
        "9",
        "--time",
        "2",
        "--ramp",
        "0",
        "--peer",
        &peer.socket(),
    ]);
    patiently("the others' turn", || state(peer.child.id()) == 'T');
    running
}

/// It may serve guests: whatever becomes of the measurement, it goes on.
#[test]
fn a_peer_goes_on_however_the_measurement_ends() {
    let peer = ServedRing::start(&["--idle", "adaptive", "--no-group"]);
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let running = compare_with(&peer);
        running.signal(signal);
        let (status, _) = running.finish(|_| {});
        assert!(!status.success(), "{signal:?}: {status}");
        patiently("the peer to go on", || state(peer.child.id()) != 'T');
    }
    assert_eq!(peer.end(), Some(0));
}

/// The error names it, and why it could not be measured.
#[test]
fn a_peer_that_dies_is_named() {
    let mut peer = ServedRing::start(&["--idle", "adaptive", "--no-group"]);
    let mut running = compare_with(&peer);
    peer.child.kill().unwrap();
    peer.child.wait().unwrap();
    let mut said = String::new();
    running.stderr.read_to_string(&mut said).unwrap();
    let (status, _) = running.finish(|_| {});
    assert_eq!(status.code(), Some(2));
    let process = format!("process {}", peer.child.id());
    assert!(said.contains(&format!("--peer {}", peer.socket())) && said.contains(&process), "{said}");
}

/// Before the first depth is measured, not when it is their turn.
#[test]
fn depths_that_no_ring_holds_are_refused_before_anything_is_measured() {
    let output = bench(&["ratio", "--ring", "--qd", "1,342", "--pairs", "1"]).args(SHORT).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("--qd 342: expected 1 to 341") && !said.contains("turn 1"), "{said}");
}

/// All parts of it over TCP and on null, with few and short turns: every disk is there, and every request is answered.
#[test]
fn growth_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let [file, chart] = ["report.json", "chart.svg"].map(|name| dir.path().join(name).display().to_string());
    let few = ["--quick", "--media", "null,tcp", "--disks", "3", "--paths", "3", "--memory-disks", "2", "--qd", "2"];
    let output =
        bench(&["scale", "--json", &file, "--svg", &chart]).args(few).args(["--time", "300ms"]).output().unwrap();
    let (text, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && said.contains("live after"), "{text}{said}");
    let report = json(Path::new(&file));
    assert_eq!((&report["mode"], report["reactors"].as_array().unwrap().len()), (&"scale".into(), 2));
    for (part, disks, paths) in [("disks", 3, 2), ("paths", 1, 3)] {
        let cases = report[part].as_array().unwrap();
        assert_eq!(cases.iter().map(|c| c["medium"].as_str().unwrap()).collect::<Vec<_>>(), ["null", "tcp"]);
        for case in cases {
            assert_eq!((&case["arrangement"]["disks"], &case["arrangement"]["paths"]), (&disks.into(), &paths.into()));
            let busy = &case["busy"][0];
            assert!(busy["iops"].as_f64().unwrap() > 0.0 && busy["errors"] == 0 && busy["qd"] == 2, "{busy:#}");
            // Two rings of each disk, at least; and all of its memory is counted.
            assert!(case["pollers"].as_u64().unwrap() >= 2 * disks && case["memory"]["anon_kib"].as_u64().unwrap() > 0);
        }
    }
    for key in ["disk_kib", "path_kib", "ring_kib"] {
        assert!(report["memory"][key].as_f64().unwrap().is_finite(), "{report:#}");
    }
    assert!(text.contains("disks of two paths, one busy") && text.contains("goal 0.9"), "{text}");
    assert!(std::fs::read_to_string(&chart).unwrap().contains("tcp QD 2"));
    let bad = dir.path().join("missing/chart.svg").display().to_string();
    let output = bench(&["scale", "--svg", &bad]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("--svg"), "{said}");
}
