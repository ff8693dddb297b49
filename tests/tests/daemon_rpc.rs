//! `polypathd` as an operator meets it before any guest does: command line, configuration errors, sockets, JSON-RPC.
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polypath_tests::products::{Daemon, program};
use serde_json::{Value, json};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);

/// As vhost daemons are started for a quick try: sockets in a directory, a mask of cores, an RPC socket, no file.
fn quick(dir: &Path) -> Result<Daemon> {
    let rpc = dir.join("rpc.sock");
    let arguments =
        ["-S", &dir.display().to_string(), "-m", "0x1", "-r", &rpc.display().to_string()].map(str::to_owned);
    Daemon::start_with(&arguments, dir.join("log"), rpc, dir.join("vm.sock"))
}

struct Client(UnixStream);

impl Client {
    fn connect(daemon: &Daemon) -> Result<Client> {
        let stream = UnixStream::connect(daemon.rpc_socket())?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Client(stream))
    }

    fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.0.write_all(text.as_bytes())?)
    }

    /// Says that nothing more comes, and reads every answer.
    fn answers(mut self) -> Result<Vec<Value>> {
        self.0.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        self.0.read_to_string(&mut text)?;
        serde_json::Deserializer::from_str(&text).into_iter().map(|v| v.context("an answer is JSON")).collect()
    }

    fn next(&mut self) -> Result<Value> {
        let one = serde_json::Deserializer::from_reader(&mut self.0).into_iter().next();
        Ok(one.context("no answer")??)
    }
}

/// All answers to what is sent on a connection of its own.
fn exchange(daemon: &Daemon, text: &str) -> Result<Vec<Value>> {
    let mut client = Client::connect(daemon)?;
    client.send(text)?;
    client.answers()
}

fn call(id: u32, method: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "method": method }).to_string()
}

fn code(answer: &Value) -> Option<i64> {
    answer["error"]["code"].as_i64()
}

#[test]
fn json_rpc_needs_no_framing_and_knows_batches_and_notifications() -> Result<()> {
    let dir = TempDir::new()?;
    let daemon = quick(dir.path())?;
    let three =
        exchange(&daemon, &format!("{}{}\n\t {}", call(1, "version"), call(2, "disk_list"), call(3, "vhost_list")))?;
    let ids: Vec<_> = three.iter().map(|a| a["id"].as_u64()).collect();
    ensure!(ids == [Some(1), Some(2), Some(3)], "{three:?}");
    ensure!(three[0]["result"]["version"].is_string() && three[1]["result"] == json!([]), "{three:?}");

    // One octet at a time; the answer to the first call comes before the second is complete.
    let mut client = Client::connect(&daemon)?;
    let text = format!("{}{}", call(7, "version"), call(8, "version"));
    let (first, second) = text.split_at(call(7, "version").len() + 5);
    for octet in first.bytes() {
        client.send(&char::from(octet).to_string())?;
    }
    ensure!(client.next()?["id"] == 7);
    client.send(second)?;
    ensure!(client.next()?["id"] == 8);

    let note = json!({ "jsonrpc": "2.0", "method": "version" });
    let silent = exchange(&daemon, &format!("{note}[{note},{note}]"))?;
    ensure!(silent.is_empty(), "notifications are not answered: {silent:?}");
    let batch = exchange(&daemon, &format!("[{}, {note}, 5, {}]", call(1, "version"), call(2, "nonsense")))?;
    ensure!(batch.len() == 1, "a batch has one answer: {batch:?}");
    let answers = batch[0].as_array().context("a list")?;
    ensure!(answers.len() == 3 && answers[0]["id"] == 1, "{batch:?}");
    ensure!(
        code(&answers[1]) == Some(-32600) && answers[1]["id"].is_null() && code(&answers[2]) == Some(-32601),
        "{batch:?}"
    );
    daemon.stop()
}

#[test]
fn errors_have_the_codes_of_json_rpc_and_say_what_was_expected() -> Result<()> {
    let dir = TempDir::new()?;
    let daemon = quick(dir.path())?;
    let with = |method: &str, params: Value| {
        json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
    };
    let disk = |uri: &str| json!({ "name": "a", "paths": [uri] });
    let cases: Vec<(String, i64, &[&str])> = vec![
        ("{]".into(), -32700, &["not JSON"]),
        ("[]".into(), -32600, &["empty batch"]),
        ("5".into(), -32600, &["object"]),
        (json!({ "id": 1, "method": "version" }).to_string(), -32600, &["jsonrpc", "2.0"]),
        (json!({ "jsonrpc": "2.0", "id": [], "method": "version" }).to_string(), -32600, &["id"]),
        (json!({ "jsonrpc": "2.0", "id": 1, "method": 3 }).to_string(), -32600, &["method"]),
        (call(1, "disk_creat"), -32601, &["disk_creat", "disk_create"]),
        (with("version", json!({ "verbose": true })), -32602, &["verbose"]),
        (with("disk_list", json!([1])), -32602, &["object"]),
        (with("disk_create", json!({ "name": "a" })), -32602, &["paths"]),
        (with("disk_create", disk("rum://1MiB")), -32602, &["paths[0]", "rum", "nvme-tcp"]),
        (
            with("disk_create", json!({ "name": "a", "paths": ["ram://1MiB"], "selector": "fastest" })),
            -32602,
            &["selector", "queue-length"],
        ),
        (
            with("disk_create", json!({ "name": "a", "paths": [{ "uri": "ram://1MiB", "weight": 0 }] })),
            -32602,
            &["weight", "1 or more"],
        ),
        (
            with("disk_create", json!({ "name": "a", "paths": ["ram://1MiB", "ram://1MiB"] })),
            -32000,
            &["ram://1MiB", "already"],
        ),
        (with("disk_create", disk("file:///nowhere/at/all")), -32000, &["/nowhere/at/all", "No such file"]),
        (with("disk_delete", json!({ "name": "b" })), -32000, &["\"b\"", "disk_list"]),
        (with("path_add", json!({ "disk": "b", "uri": "ram://1MiB" })), -32000, &["\"b\""]),
        (with("vhost_create", json!({ "disk": "b", "socket": "x", "queues": 0 })), -32602, &["queues", "1 to 256"]),
        (
            with("vhost_create", json!({ "disk": "b", "socket": "x", "queue_size": 100 })),
            -32602,
            &["queue_size", "power of two"],
        ),
        (
            with("vhost_create", json!({ "disk": "b", "socket": "x", "serial": "a-serial-of-21-bytes!" })),
            -32602,
            &["serial", "at most 20"],
        ),
        (with("vhost_create", json!({ "disk": "b", "socket": "x" })), -32000, &["\"b\""]),
        (with("vhost_delete", json!({ "socket": "x" })), -32000, &["x", "vhost_list"]),
        (with("statistics", json!({ "disk": "b" })), -32000, &["\"b\""]),
    ];
    for (text, wanted, words) in cases {
        let answers = exchange(&daemon, &text)?;
        ensure!(answers.len() == 1 && code(&answers[0]) == Some(wanted), "{text}: {answers:?}, expected code {wanted}");
        let message = answers[0]["error"]["message"].as_str().context("a message")?;
        for word in words {
            ensure!(message.contains(word), "{text}: \"{word}\" is not in: {message}");
        }
    }
    // Nothing of all this left anything behind.
    ensure!(daemon.rpc("disk_list", &json!({}))? == json!([]) && daemon.rpc("vhost_list", &json!({}))? == json!([]));
    daemon.stop()
}

#[test]
fn a_request_without_end_costs_its_connection_only() -> Result<()> {
    let dir = TempDir::new()?;
    let daemon = quick(dir.path())?;
    let mut bystander = Client::connect(&daemon)?;
    let mut client = Client::connect(&daemon)?;
    client.send("{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"")?;
    // The daemon hangs up at its limit, so the writing may end early; the error is there to read all the same.
    let chunk = vec![b'x'; 64 << 10];
    let mut written = 0;
    while written < 4 << 20 && client.0.write_all(&chunk).is_ok() {
        written += chunk.len();
    }
    let answer = client.next()?;
    ensure!(code(&answer) == Some(-32600), "{answer}");
    ensure!(answer["error"]["message"].as_str().is_some_and(|m| m.contains("1048576 bytes")), "{answer}");
    ensure!(written < 4 << 20, "four times the limit was taken");
    bystander.send(&call(5, "version"))?;
    ensure!(bystander.next()?["id"] == 5);
    // A long request below the limit is none of that.
    let name = "n".repeat(1 << 19);
    let long = json!({ "jsonrpc": "2.0", "id": 6, "method": "disk_delete", "params": { "name": name } }).to_string();
    let answers = exchange(&daemon, &long)?;
    ensure!(answers.len() == 1 && code(&answers[0]) == Some(-32000), "a long request is answered");
    daemon.stop()
}

#[test]
fn a_hundred_connections_at_a_time() -> Result<()> {
    let dir = TempDir::new()?;
    let daemon = quick(dir.path())?;
    let mut clients: Vec<Client> = (0..100).map(|_| Client::connect(&daemon)).collect::<Result<_>>()?;
    for round in 0..3 {
        for (id, client) in (0..).zip(&mut clients) {
            client.send(&call(round * 1000 + id, "disk_list"))?;
        }
        for (id, client) in (0..).zip(&mut clients) {
            let answer = client.next()?;
            ensure!(answer["id"] == round * 1000 + id && answer["result"] == json!([]), "{answer}");
        }
    }
    drop(clients);
    daemon.stop()
}

#[test]
fn disks_and_sockets_come_and_go_by_rpc_and_by_the_command_line_client() -> Result<()> {
    let dir = TempDir::new()?;
    let daemon = quick(dir.path())?;
    let rpc = |words: &[&str]| -> Result<Output> {
        let socket = daemon.rpc_socket().display().to_string();
        let client = program_of_package("polypath-cli", "polypath")?;
        Ok(Command::new(client).args(["rpc", "-r", &socket]).args(words).output()?)
    };
    let said = |output: &Output| -> Result<Value> {
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let methods = said(&rpc(&["rpc_methods"])?)?;
    ensure!(methods.as_array().is_some_and(|m| m.iter().any(|m| m["method"] == "path_set_weight")), "{methods}");
    ensure!(
        said(&rpc(&["disk_create", "name=vm", "paths=[\"ram://8MiB?bs=4096\"]", "selector=hash"])?)?
            == json!({ "name": "vm" })
    );
    ensure!(said(&rpc(&["vhost_create", "disk=vm", "socket=vm.sock", "queues=2"])?)?["socket"] == json!(daemon.socket));
    let meta = fs::symlink_metadata(&daemon.socket)?;
    ensure!(meta.file_type().is_socket() && meta.permissions().mode() & 0o777 == 0o600, "{meta:?}");
    let mode = fs::symlink_metadata(daemon.rpc_socket())?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "the RPC socket has mode {mode:o}");

    let disks = said(&rpc(&["disk_list"])?)?;
    ensure!(disks[0]["state"] == "live" && disks[0]["blocks"] == 2048 && disks[0]["bytes"] == 8 << 20, "{disks:#}");
    ensure!(
        disks[0]["selector"] == "hash" && disks[0]["fencing"] == "on" && disks[0]["block_size"] == 4096,
        "{disks:#}"
    );
    ensure!(disks[0]["paths"][0]["state"] == "usable" && disks[0]["paths"][0]["access"] == "optimized", "{disks:#}");
    let vhosts = said(&rpc(&["vhost_list"])?)?;
    ensure!(
        vhosts[0]["queues"] == 2
            && vhosts[0]["connected"] == false
            && vhosts[0]["rings"].as_array().is_some_and(|r| r.len() == 2),
        "{vhosts:#}"
    );

    let served = rpc(&["disk_delete", "name=vm"])?;
    let message = String::from_utf8_lossy(&served.stderr).into_owned();
    ensure!(!served.status.success() && message.contains("vm.sock") && message.contains("-32000"), "{message}");
    let twice = rpc(&["vhost_create", "disk=vm", "socket=vm.sock"])?;
    ensure!(String::from_utf8_lossy(&twice.stderr).contains("served already"), "{twice:?}");
    said(&rpc(&["vhost_delete", "socket=vm.sock"])?)?;
    ensure!(!daemon.socket.exists(), "the socket file stays");
    said(&rpc(&["disk_delete", "name=vm"])?)?;
    ensure!(said(&rpc(&["disk_list"])?)? == json!([]));

    said(&rpc(&["shutdown"])?)?;
    let rpc_socket = daemon.rpc_socket().to_owned();
    let mut daemon = daemon;
    let status = daemon.process().wait(LIMIT)?;
    ensure!(status.success() && !rpc_socket.exists(), "{status}, the RPC socket exists: {}", rpc_socket.exists());
    Ok(())
}

#[test]
fn one_disk_under_two_names_is_told_and_served_once() -> Result<()> {
    let dir = TempDir::new()?;
    let daemon = quick(dir.path())?;
    let rpc = |method: &str, params: Value| -> Result<Value> {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        exchange(&daemon, &call)?.pop().context("an answer")
    };
    let uri = "ram://4MiB?uuid=4a0c6a0e-0000-4000-8000-000000000001";
    for (disk, path) in [("a", "left"), ("b", "right")] {
        let answer = rpc("disk_create", json!({ "name": disk, "paths": [{ "uri": uri, "name": path }] }))?;
        ensure!(answer["result"]["name"] == disk, "{answer}");
    }
    let list = rpc("disk_list", json!({}))?;
    ensure!(list["result"][0]["same_as"] == "b" && list["result"][1]["same_as"] == "a", "{list}");
    let first = rpc("vhost_create", json!({ "disk": "a", "socket": "a.sock" }))?;
    ensure!(first["result"]["socket"].is_string(), "{first}");
    let second = rpc("vhost_create", json!({ "disk": "b", "socket": "b.sock" }))?;
    let message = second["error"]["message"].as_str().unwrap_or("");
    ensure!(message.contains("disk \"a\"") && message.contains("add the paths"), "{second}");
    Ok(())
}

#[test]
fn stale_sockets_are_replaced_and_living_ones_are_not() -> Result<()> {
    let dir = TempDir::new()?;
    let file = dir.path().join("daemon.toml");
    let (rpc, vhost) = (dir.path().join("rpc.sock"), dir.path().join("vm.sock"));
    fs::write(
        &file,
        format!(
            "[daemon]\nrpc_socket = \"{}\"\n[[disk]]\nname = \"vm\"\npaths = [\"ram://1MiB\"]\n[[vhost]]\ndisk = \"vm\"\nsocket = \"{}\"\n",
            rpc.display(),
            vhost.display()
        ),
    )?;
    // What a daemon that was killed leaves behind: files of sockets on which nobody listens.
    drop(UnixListener::bind(&rpc)?);
    drop(UnixListener::bind(&vhost)?);
    ensure!(rpc.exists() && UnixStream::connect(&rpc).is_err());
    let arguments = ["-c".to_owned(), file.display().to_string()];
    let daemon = Daemon::start_with(&arguments, dir.path().join("log"), rpc.clone(), vhost.clone())?;
    drop(UnixStream::connect(&vhost).context("the vhost socket was not replaced")?);

    let second = run(&["-S", &dir.path().display().to_string(), "-r", &rpc.display().to_string()])?;
    ensure!(second.0 == Some(1) && second.1.contains("choose another with -r"), "{second:?}");
    let other_rpc = dir.path().join("other.sock").display().to_string();
    let second = run(&["-c", &file.display().to_string(), "-r", &other_rpc])?;
    ensure!(second.0 == Some(1) && second.1.contains("another process serves it"), "{second:?}");
    ensure!(daemon.rpc("version", &json!({}))?["version"].is_string(), "the first one goes on");
    daemon.stop()?;
    ensure!(!rpc.exists() && !vhost.exists(), "sockets stay after the end");

    fs::write(&rpc, "precious")?;
    let refused = run(&["-S", &dir.path().display().to_string(), "-r", &rpc.display().to_string()])?;
    ensure!(refused.0 == Some(1) && refused.1.contains("something that is no socket is there"), "{refused:?}");
    ensure!(fs::read_to_string(&rpc)? == "precious");
    Ok(())
}

#[test]
fn wrong_configurations_are_told_by_file_line_key_and_expectation() -> Result<()> {
    let dir = TempDir::new()?;
    let file = dir.path().join("bad.toml");
    let cases: [(&str, &[&str]); 8] = [
        (
            "[[disk]]\nname = \"a\"\npaths = [\"ram://1MiB\",\n  \"ram://1MiB\"]\n",
            &[":4", "disk[0].paths[1]", "twice", "each path once"],
        ),
        (
            "[[disk]]\nname = \"a\"\nselector = \"best\"\npaths = [\"ram://1MiB\"]\n",
            &[":3", "disk[0].selector", "best", "queue-length"],
        ),
        ("[[disk]]\nname = \"a\"\npaths = []\n", &[":2", "disk[0].paths", "[[disk.path]]"]),
        ("[[disk]]\nname = \"a\"\npath = \"ram://1MiB\"\n", &[":3", "disk[0].path"]),
        ("[daemon]\ncpu = 1\n", &[":2", "cpu", "cpus"]),
        ("[[vhost]]\ndisk = \"a\"\nsocket = \"x\"\n", &[":2", "vhost[0].disk", "\"a\""]),
        (
            "[[disk]]\nname = \"a\"\npaths = [\"nvme-tcp://127.0.0.1:4420/nqn.x?kepalive=3\"]\n",
            &["bad.toml", "kepalive", "keep_alive_ms"],
        ),
        ("[daemon]\nsocket_dir = \"/dev/null/at/all\"\n", &["/dev/null/at/all", "daemon.socket_dir"]),
    ];
    for (text, words) in cases {
        fs::write(&file, text)?;
        let rpc = dir.path().join("rpc.sock");
        let (status, message) = run(&["-c", &file.display().to_string(), "-r", &rpc.display().to_string()])?;
        ensure!(status == Some(1), "{text}: status {status:?}: {message}");
        for word in words {
            ensure!(message.contains(word), "{text}: \"{word}\" is not in: {message}");
        }
        ensure!(!rpc.exists(), "{text}: it left its RPC socket behind");
    }
    let (status, message) = run(&["-m", "0x0"])?;
    ensure!(status == Some(1) && message.contains("-m"), "{message}");
    let (status, message) = run(&["-c", &dir.path().join("none.toml").display().to_string()])?;
    ensure!(status == Some(1) && message.contains("none.toml"), "{message}");
    Ok(())
}

/// Runs the daemon, which is to end by itself, and returns its status and what it said.
fn run(arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let dir = TempDir::new()?;
    let log = dir.path().join("log");
    let mut process = polypath_tests::Process::start(&program("polypathd")?, arguments, log.clone())?;
    let status = process.wait(LIMIT)?;
    Ok((status.code(), fs::read_to_string(log)?))
}

/// A program that does not bear its package's name.
fn program_of_package(package: &str, name: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(polypath_tests::lab::repository()).args([
        "build",
        "--quiet",
        "--package",
        package,
        "--bin",
        name,
    ]);
    command.arg("--target-dir").arg(polypath_tests::lab::target_folder());
    let folder = polypath_tests::lab::profile_folder();
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(folder.join(name))
}
