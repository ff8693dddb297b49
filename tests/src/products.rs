//! Our own programs, run as a user would: by their command lines and sockets, with nothing linked.
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::lab::{Lab, profile_folder, repository, target_folder};
use crate::process::{Console, Process};

const START_LIMIT: Duration = Duration::from_secs(60);

/// The path of one of our programs, which cargo brings up to date first.
///
/// # Errors
/// It does not build.
pub fn program(name: &str) -> Result<PathBuf> {
    program_of(name, name)
}

/// The same, of a program whose package has another name.
///
/// # Errors
/// It does not build.
pub fn program_of(package: &str, name: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(repository())
        .args(["build", "--quiet", "--package", package, "--bin", name, "--target-dir"])
        .arg(target_folder());
    if profile_folder().ends_with("release") {
        command.arg("--release");
    }
    let output = command.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "{name} does not build:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(profile_folder().join(name))
}

/// `polypath-target`: a software target with one disk of RAM behind several listeners, for NVMe/TCP and, where a test wants it, iSCSI.
#[derive(Debug)]
pub struct Target {
    process: Process,
    control: PathBuf,
    // its standard output stays open as long as it runs
    _console: Console,
    /// One port of 127.0.0.1 per listener.
    pub ports: Vec<u16>,
    /// Which of the listeners speak iSCSI, as portals of one group.
    portals: Vec<usize>,
}

impl Target {
    /// The subsystem's name.
    pub const NQN: &'static str = "nqn.2026-01.org.polypath.lab:target";
    /// Its name over iSCSI.
    pub const IQN: &'static str = "iqn.2026-01.org.polypath.lab:target";

    /// Starts it with `listeners` listeners over `mib` MiB of RAM in blocks of 512 bytes.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(lab: &Lab, listeners: usize, mib: u32) -> Result<Self> {
        Self::start_on(lab, &vec![Self::NVME_TCP; listeners], mib)
    }

    /// The same with two listeners for NVMe/TCP (0 and 3) and two for iSCSI (1 and 2).
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_mixed(lab: &Lab, mib: u32) -> Result<Self> {
        Self::start_on(lab, &[Self::NVME_TCP, Self::ISCSI, Self::ISCSI, Self::NVME_TCP], mib)
    }

    const NVME_TCP: &'static str = "127.0.0.1:0";
    const ISCSI: &'static str = "iscsi://127.0.0.1:0,1";

    fn start_on(lab: &Lab, listeners: &[&str], mib: u32) -> Result<Self> {
        let control = lab.path("target.ctl");
        let mut arguments: Vec<String> =
            listeners.iter().flat_map(|listener| ["--listen", listener].map(str::to_owned)).collect();
        arguments.extend(["--subsystem", Self::NQN, "--iqn", Self::IQN].map(str::to_owned));
        arguments.extend(["--namespace".to_owned(), format!("ram://{mib}MiB?nsid=1&anagrp=1")]);
        arguments.extend(["--control".to_owned(), control.display().to_string()]);
        let (process, mut console) =
            Process::start_with_console(&program("polypath-target")?, &arguments, lab.log("polypath-target"))?;
        let mut ports = Vec::new();
        console
            .wait_for(START_LIMIT, |line| {
                ports.extend(line.strip_prefix("listening on 127.0.0.1:").and_then(|port| port.parse::<u16>().ok()));
                (line == "ready").then_some(())
            })
            .with_context(|| process.log_tail())?;
        ensure!(
            ports.len() == listeners.len(),
            "polypath-target told of the listeners {ports:?}, {listeners:?} were asked for"
        );
        let portals = (0..listeners.len()).filter(|&index| listeners[index] == Self::ISCSI).collect();
        Ok(Target { process, control, ports, portals, _console: console })
    }

    /// The disk's URI through listener `index` (from 0). The keep-alive timeout is 1 s so that fences are short; a lost session is made
    /// again through another portal at once.
    #[must_use]
    pub fn uri(&self, index: usize) -> String {
        if self.portals.contains(&index) {
            let others = self.portals.iter().filter(|&&other| other != index);
            let others: Vec<String> = others.map(|&other| format!("127.0.0.1:{}", self.ports[other])).collect();
            let (port, others) = (self.ports[index], others.join(","));
            return format!("iscsi://127.0.0.1:{port}/{}/0?portals={others}&portals_prove=on", Self::IQN);
        }
        format!("nvme-tcp://127.0.0.1:{}/{}?ns=1&keep_alive_ms=1000", self.ports[index], Self::NQN)
    }

    /// The URIs through all listeners.
    #[must_use]
    pub fn uris(&self) -> Vec<String> {
        (0..self.ports.len()).map(|index| self.uri(index)).collect()
    }

    /// Sends one command to its control socket and returns the answer.
    ///
    /// # Errors
    /// The target refuses it or does not answer.
    pub fn control(&self, command: &Value) -> Result<Value> {
        let answer = ask(&self.control, command)?;
        if answer.get("ok") != Some(&Value::Bool(true)) {
            bail!("polypath-target refused {command}: {answer}");
        }
        Ok(answer)
    }

    /// From now on nothing arrives and nothing leaves on a listener's connections, new ones included; nothing is closed.
    ///
    /// # Errors
    /// As [`Target::control`].
    pub fn drop_silently(&self, listener: usize) -> Result<()> {
        self.control(&json!({"cmd": "drop_silently", "listener": listener})).map(drop)
    }

    /// Resets a listener's connections (TCP RST); it takes new ones.
    ///
    /// # Errors
    /// As [`Target::control`].
    pub fn reset(&self, listener: usize) -> Result<()> {
        self.control(&json!({"cmd": "reset", "listener": listener})).map(drop)
    }

    /// Ends the silence of a listener.
    ///
    /// # Errors
    /// As [`Target::control`].
    pub fn restore(&self, listener: usize) -> Result<()> {
        self.control(&json!({"cmd": "restore", "listener": listener})).map(drop)
    }

    /// Changes the ANA state of group 1 on a listener.
    ///
    /// # Errors
    /// As [`Target::control`].
    pub fn set_ana(&self, listener: usize, state: &str) -> Result<()> {
        self.control(&json!({"cmd": "set_ana", "listener": listener, "group": 1, "state": state})).map(drop)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// `polypathd`, usually with one disk and one vhost-user-blk socket.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    rpc: PathBuf,
    /// The vhost-user-blk socket.
    pub socket: PathBuf,
}

impl Daemon {
    /// Starts it over these paths.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(lab: &Lab, paths: &[String], queues: u16) -> Result<Self> {
        let (socket, rpc) = (lab.path("disk.sock"), lab.path("rpc.sock"));
        let paths: Vec<String> = paths.iter().map(|path| format!("\"{path}\"")).collect();
        let config = format!(
            "[daemon]\nrpc_socket = \"{}\"\n\n[[disk]]\nname = \"disk\"\npaths = [{}]\n\n[[vhost]]\ndisk = \"disk\"\nsocket = \"{}\"\nqueues = {queues}\n",
            rpc.display(),
            paths.join(", "),
            socket.display()
        );
        let file = lab.path("polypathd.toml");
        std::fs::write(&file, config)?;
        let arguments = ["-c".to_owned(), file.display().to_string()];
        let mut process = Process::start(&program("polypathd")?, &arguments, lab.log("polypathd"))?;
        // A socket may be a killed daemon's; when RPC answers, all that the file names is there.
        process.wait_for_answer(&rpc, START_LIMIT)?;
        Ok(Daemon { process, rpc, socket })
    }

    /// Starts it with these arguments, which make it serve RPC on `rpc` and, perhaps later, a disk on `socket`. What it prints goes to
    /// `log`. Returns when RPC answers: everything in its configuration file is there then.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_with(arguments: &[String], log: PathBuf, rpc: PathBuf, socket: PathBuf) -> Result<Self> {
        let mut process = Process::start(&program("polypathd")?, arguments, log)?;
        process.wait_for_answer(&rpc, START_LIMIT)?;
        Ok(Daemon { process, rpc, socket })
    }

    /// Its RPC socket.
    #[must_use]
    pub fn rpc_socket(&self) -> &Path {
        &self.rpc
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Calls a method of its JSON-RPC 2.0 interface.
    ///
    /// # Errors
    /// It answers with an error, or not at all.
    pub fn rpc(&self, method: &str, parameters: &Value) -> Result<Value> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters});
        let mut answer = ask(&self.rpc, &request)?;
        if let Some(error) = answer.get("error") {
            bail!("polypathd refused {method}: {error}");
        }
        Ok(answer.get_mut("result").map(Value::take).unwrap_or_default())
    }

    /// What its statistics say of each path of the disk `disk`.
    ///
    /// # Errors
    /// As [`Daemon::rpc`].
    pub fn paths(&self) -> Result<Vec<Value>> {
        let all = self.rpc("statistics", &json!({ "disk": "disk" }))?;
        Ok(all["disk"].as_array().context("a list of paths")?.clone())
    }

    /// Asks it to end and checks that it drains and ends well.
    ///
    /// # Errors
    /// It does not end within a minute, or with a failure.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(START_LIMIT)?;
        ensure!(status.success(), "polypathd ended with {status}\n{}", self.process.log_tail());
        Ok(())
    }
}

/// `polypath-bench run --rw verify` on these paths for so many seconds: whether it was content, and what it says.
///
/// # Errors
/// It cannot be run.
pub fn bench(uris: &[&str], seconds: &str, more: &[&str]) -> Result<(bool, String)> {
    let mut command = Command::new(program("polypath-bench")?);
    command.args(["run", "--rw", "verify", "--qd", "16", "--time", seconds]);
    command.args(uris.iter().flat_map(|uri| ["--path", uri])).args(more);
    let output = command.output().context("cannot run polypath-bench")?;
    let said = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat();
    Ok((output.status.success(), said))
}

/// The same for a second, which finds that everything that was written was read back.
///
/// # Errors
/// It does not.
pub fn verifies(uris: &[&str]) -> Result<()> {
    let (content, said) = bench(uris, "1", &[])?;
    ensure!(content && said.contains("verified: 0 errors") && !said.contains("requests failed"), "{uris:?}: {said}");
    Ok(())
}

/// A running `polypath-bench run --rw verify`.
#[derive(Debug)]
pub struct BenchVerify {
    process: Process,
    json: PathBuf,
}

impl BenchVerify {
    /// Starts it over these paths for `seconds`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(lab: &Lab, paths: &[String], queue_depth: u32, seconds: u32) -> Result<Self> {
        let json = lab.log("polypath-bench").with_extension("json");
        let mut arguments = vec!["run".to_owned()];
        for path in paths {
            arguments.extend(["--path".to_owned(), path.clone()]);
        }
        arguments.extend(["--rw", "verify", "--bs", "4k", "--ramp", "0", "--qd"].map(str::to_owned));
        arguments.extend([queue_depth.to_string(), "--time".to_owned(), seconds.to_string()]);
        arguments.extend(["--json".to_owned(), json.display().to_string()]);
        let process = Process::start(&program("polypath-bench")?, &arguments, lab.log("polypath-bench"))?;
        Ok(BenchVerify { process, json })
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Waits for its end and returns its JSON report, which shows no error.
    ///
    /// # Errors
    /// It fails, does not end within `limit`, or reports an error.
    pub fn finish(mut self, limit: Duration) -> Result<Value> {
        let status = self.process.wait(limit)?;
        let text = std::fs::read_to_string(&self.json).unwrap_or_default();
        ensure!(status.success(), "polypath-bench ended with {status}\n{}\n{text}", self.process.log_tail());
        let report: Value =
            serde_json::from_str(&text).with_context(|| format!("polypath-bench wrote no JSON object but: {text}"))?;
        let number = |key: &str| {
            report
                .get(key)
                .and_then(Value::as_f64)
                .with_context(|| format!("the report has no number `{key}`: {report:#}"))
        };
        ensure!(
            number("errors")? == 0.0 && number("verify_errors")? == 0.0,
            "polypath-bench found trouble: {report:#}"
        );
        ensure!(number("iops")? > 0.0, "polypath-bench did nothing: {report:#}");
        Ok(report)
    }
}

/// One JSON value out, one back. Both ends know where a value ends by themselves, so nothing depends on line ends.
fn ask(socket: &Path, request: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let answer = serde_json::Deserializer::from_reader(stream).into_iter::<Value>().next();
    answer
        .with_context(|| format!("{} closed without an answer to {request}", socket.display()))?
        .with_context(|| format!("no answer on {} to {request}", socket.display()))
}
