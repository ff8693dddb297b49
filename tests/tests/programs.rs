//! All our programs, where what they print is read by somebody who leaves, or goes into a file; and what a user is told of an error.
use std::io::{PipeWriter, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath_tests::Lab;
use polypath_tests::process::Process;
use polypath_tests::products::{Daemon, Target, program, program_of};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

/// A pipe whose reader has gone.
fn closed_pipe() -> Result<PipeWriter> {
    let (_, writer) = std::io::pipe()?;
    Ok(writer)
}

fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_remove("POLYPATH_LOG").stdin(Stdio::null());
    command
}

/// Runs it with nobody to read its standard output.
fn into_closed_pipe(program: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = command(program, arguments);
    Ok(command.stdout(closed_pipe()?).stderr(Stdio::piped()).spawn()?.wait_with_output()?)
}

/// A long-running program; killed if the test ends before it does.
struct Service(Child);

impl Service {
    fn end(mut self) -> Result<std::process::ExitStatus> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            ensure!(start.elapsed() < LIMIT, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Either of them fails only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects once somebody listens there.
fn connect(socket: &Path) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Err(_) if start.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(10)),
            stream => {
                let stream = stream.with_context(|| format!("nobody answers on {}", socket.display()))?;
                stream.set_read_timeout(Some(LIMIT))?;
                return Ok(stream);
            }
        }
    }
}

/// One command to the target's control socket, and its answer.
fn control(socket: &Path, command: &Value) -> Result<Value> {
    let mut stream = connect(socket)?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    let answer = serde_json::Deserializer::from_reader(stream).into_iter().next();
    Ok(answer.context("no answer")??)
}

/// A target whose standard output nobody reads, with its standard error in `log`; and where it listens.
fn serve(ctl: &Path, log: Stdio) -> Result<(Service, String)> {
    let control_socket = ctl.display().to_string();
    let arguments = ["--listen", "127.0.0.1:0", "--subsystem", Target::NQN, "--namespace", "ram://1MiB"];
    let mut target = command(&program("polypath-target")?, &arguments);
    target.args(["--control", &control_socket]);
    let service = Service(target.stdout(closed_pipe()?).stderr(log).spawn()?);
    let status = control(ctl, &json!({"cmd": "status"}))?;
    let address = status.pointer("/listeners/0/address").and_then(Value::as_str);
    let address = address.with_context(|| format!("it does not tell where it listens: {status:#}"))?.to_owned();
    Ok((service, address))
}

#[test]
fn nobody_panics_when_its_reader_has_gone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (rpc, ctl, toml) = (dir.path().join("rpc"), dir.path().join("ctl"), dir.path().join("polypathd.toml"));
    std::fs::write(&toml, "")?;
    let daemon = UnixListener::bind(&rpc)?;
    let answers = std::thread::spawn(move || -> Result<()> {
        let (mut call, _) = daemon.accept()?;
        let _: usize = call.read(&mut [0; 4096])?;
        Ok(call.write_all(br#"{"jsonrpc":"2.0","id":1,"result":{"much":"to read"}}"#)?)
    });
    let target = program("polypath-target")?;
    let [rpc, ctl_text, toml] = [&rpc, &ctl, &toml].map(|path| path.display().to_string());
    let (service, address) = serve(&ctl, closed_pipe()?.into())?;
    let (cli, bench, polypathd) =
        (program_of("polypath-cli", "polypath")?, program("polypath-bench")?, program("polypathd")?);
    let null = ["run", "--path", "null://1GiB", "--time", "50ms", "--ramp", "0"];
    let cases: [(&Path, Vec<&str>, i32); 8] = [
        (&cli, vec!["rpc", "-r", &rpc, "disk_list"], 141),
        (&cli, vec!["qemu", "disk.sock"], 141),
        (&cli, vec!["discover", &address], 141),
        (&bench, null.to_vec(), 141),
        (&bench, [&null[..], &["--json", "-"]].concat(), 141),
        (&bench, vec!["limit", "--time", "50ms", "--ramp", "0"], 141),
        // What was asked of these is done, read or not.
        (&target, vec!["ctl", &ctl_text, "ping"], 0),
        (&polypathd, vec!["-c", &toml, "--check"], 0),
    ];
    for (program, arguments, expected) in cases {
        let output = into_closed_pipe(program, &arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(expected), "{program:?} {arguments:?}: {}\n{said}", output.status);
        ensure!(said.is_empty(), "{program:?} {arguments:?} complains: {said}");
    }
    answers.join().map_err(|_| anyhow::anyhow!("who answers panicked"))??;
    // Its log went nowhere either; hosts came and went all the same.
    let ended = service.end()?;
    ensure!(ended.success(), "polypath-target ended with {ended}");
    Ok(())
}

#[test]
fn nobody_stops_for_want_of_a_reader_of_its_remarks() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (rpc, state) = (dir.path().join("rpc"), dir.path().join("state"));
    let (socket, folder) = (rpc.display().to_string(), dir.path().display().to_string());
    let mut daemon =
        command(&program("polypathd")?, &["-S", &folder, "-r", &socket, "--state-dir", &state.display().to_string()]);
    let service = Service(daemon.stdout(Stdio::null()).stderr(closed_pipe()?).spawn()?);
    drop(connect(&rpc)?);
    let ended = service.end()?;
    ensure!(ended.success(), "polypathd ended with {ended}");
    let ratio = ["ratio", "--path", "null://1GiB", "--qd", "1", "--pairs", "1", "--time", "50ms", "--ramp", "0"];
    let mut ratio = command(&program("polypath-bench")?, &ratio);
    let output = ratio.stderr(closed_pipe()?).stdout(Stdio::piped()).spawn()?.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.contains("others took"), "{}: {text}", output.status);
    Ok(())
}

#[test]
fn logs_have_no_colours_in_a_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (ctl, rpc, state) = (dir.path().join("ctl"), dir.path().join("rpc"), dir.path().join("state"));
    let (log, toml) = (|name: &str| dir.path().join(name), dir.path().join("polypathd.toml"));
    let (target, address) = serve(&ctl, std::fs::File::create(log("target"))?.into())?;
    let disk = format!("nvme-tcp://{address}/{}?ns=1", Target::NQN);
    std::fs::write(&toml, format!("[[disk]]\nname = \"disk\"\npaths = [\"{disk}\"]\n"))?;
    let [toml, rpc_text, state] = [&toml, &rpc, &state].map(|path| path.display().to_string());
    let arguments = ["-c", &toml, "-r", &rpc_text, "--state-dir", &state];
    let mut daemon = command(&program("polypathd")?, &arguments);
    let daemon = Service(daemon.stdout(Stdio::null()).stderr(std::fs::File::create(log("daemon"))?).spawn()?);
    drop(connect(&rpc)?);
    for (service, name, word) in [(daemon, "daemon", "drained and ended"), (target, "target", "association created")] {
        service.end()?;
        let text = std::fs::read_to_string(log(name))?;
        ensure!(text.contains(word) && !text.contains('\x1b'), "{name}: {text:?}");
    }
    Ok(())
}

#[test]
fn a_path_that_the_back_end_lost_is_no_medium_error() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "no_medium_error", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 1, 16)?;
    let (rpc, socket, report) = (lab.path("rpc.sock"), lab.path("disk.sock"), lab.path("report.json"));
    let arguments = ["-r".to_owned(), rpc.display().to_string()];
    let daemon = Daemon::start_with(&arguments, lab.log("polypathd"), rpc, socket.clone())?;
    daemon.rpc("disk_create", &json!({"name": "disk", "paths": target.uris(), "no_path_timeout_ms": 100}))?;
    daemon.rpc("vhost_create", &json!({"disk": "disk", "socket": socket}))?;
    let (uri, report) = (format!("vhost-user-blk://{}", socket.display()), report.display().to_string());
    let run = ["run", "--path", &uri, "--time", "2", "--ramp", "0", "--progress", "--json", &report];
    let mut bench = Process::start(&program("polypath-bench")?, &run, lab.log("polypath-bench"))?;
    let start = Instant::now();
    while !std::fs::read_to_string(bench.log())?.contains(" IOPS") {
        ensure!(bench.ended()?.is_none() && start.elapsed() < LIMIT, "it does not begin\n{}", bench.log_tail());
        std::thread::sleep(Duration::from_millis(10));
    }
    for cmd in ["close_listener", "reset"] {
        target.control(&json!({"cmd": cmd, "listener": 0}))?;
    }
    let ended = bench.wait(LIMIT)?;
    let report: Value = serde_json::from_slice(&std::fs::read(&report)?)?;
    ensure!(ended.code() == Some(1) && report["errors"].as_u64() > Some(0), "{ended}: {report:#}");
    ensure!(!report["error_samples"].to_string().contains("medium"), "{report:#}");
    ensure!(report["error_causes"].get("medium error").is_none(), "{report:#}");
    Ok(())
}
