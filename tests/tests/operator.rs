//! What the operator of `polypathd` is told: the truth, once.
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath::{Buffer, Disk, Error, Stack, StackConfig, block_on};
use polypath_tests::lab::{find_program, repository};
use polypath_tests::peers::StorageDaemon;
use polypath_tests::products::{Daemon, Target, program};
use polypath_tests::{Lab, Need, Process};
use serde_json::{Value, json};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
const BLOCK: u64 = 4096;

#[test]
fn a_disk_without_any_path_is_a_state_and_is_told_once() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "operator_no_path", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 2, 16)?;
    let paths = format!("paths = {:?}\nno_path_timeout_ms = 4000\nmatch = \"worldwide\"", target.uris());
    let mut daemon = start(&lab, &paths, "")?;
    let guest = Guest::connect(&daemon)?;
    guest.write(1).context("all is well")?;
    ensure!(disk(&daemon)?["state"] == "live");

    target.drop_silently(0)?;
    target.drop_silently(1)?;
    let writes: Vec<_> = (2..4).map(|block| guest.begin(block)).collect();
    wait_for(&mut daemon, "the state of the disk", |d| Ok(disk(d)?["state"] == "no-path"))?;
    wait_for(&mut daemon, "requests that wait", |d| Ok(disk(d)?["waiting"].as_u64() > Some(0)))?;
    let shown = disk(&daemon)?;
    ensure!(shown["usable_paths"] == 0 && shown["no_path_for_ms"].is_u64() && shown["bytes"] == 16 << 20, "{shown:#}");
    ensure!(shown["why"].as_str().is_some_and(|why| why.contains("is down: ")), "{shown:#}");
    for write in writes {
        write.join().expect("no panic").expect_err("four seconds are over");
    }
    ensure!(disk(&daemon)?["failed_no_path"].as_u64() > Some(0), "{:#}", disk(&daemon)?);
    let log = fs::read_to_string(daemon.process().log())?;
    let told = |level: &str, what: &str| log.lines().filter(|l| l.contains(level) && l.contains(what)).count();
    ensure!(told("WARN", "requests wait") == 1 && told("ERROR", "requests fail") == 1, "{log}");

    target.restore(0)?;
    wait_for(&mut daemon, "the disk", |d| Ok(disk(d)?["state"] == "live"))?;
    guest.write(5)?;
    let refused =
        daemon.rpc("path_remove", &json!({ "disk": "disk", "path": target.uri(0) })).expect_err("the last one");
    ensure!(refused.to_string().contains("last usable") && refused.to_string().contains("force"), "{refused}");
    daemon.rpc("path_remove", &json!({ "disk": "disk", "path": target.uri(1) })).context("it carries nothing")?;
    guest.write(6)?;
    daemon.rpc("path_remove", &json!({ "disk": "disk", "path": target.uri(0), "force": true }))?;
    wait_for(&mut daemon, "its end", |d| Ok(disk(d)?["paths"] == json!([])))?;
    ensure!(disk(&daemon)?["why"] == "it has no path", "{:#}", disk(&daemon)?);
    drop(guest);
    daemon.stop()
}

#[test]
fn a_path_that_is_added_can_be_waited_for_and_so_can_one_that_never_comes() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "operator_path_add", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 3, 16)?;
    let daemon = start(&lab, &format!("paths = [\"{}\"]\nno_path_timeout_ms = -1", target.uri(0)), "")?;
    ensure!(disk(&daemon)?["no_path_timeout_ms"] == -1);
    let add =
        |uri: &str, wait_ms: u64| daemon.rpc("path_add", &json!({ "disk": "disk", "uri": uri, "wait_ms": wait_ms }));
    let good = add(&target.uri(1), 20_000)?;
    ensure!(good["state"] == "usable" && good["path"] == target.uri(1), "{good}");
    let begun = Instant::now();
    let nobody = add("nvme-tcp://127.0.0.1:9/nqn.2026-01.org.example:none?ns=1", 1500)?;
    ensure!(nobody["state"] != "usable" && nobody["why"].as_str().is_some_and(|w| !w.is_empty()), "{nobody}");
    ensure!(begun.elapsed() < Duration::from_secs(20));
    // What cannot be shown to be the same disk is told as soon as it answers.
    let other = add("ram://16MiB", 20_000)?;
    ensure!(
        other["state"] == "quarantined" && other["why"].as_str().is_some_and(|w| w.contains("nothing proves")),
        "{other}"
    );
    let at_once = add(&target.uri(2), 0)?;
    ensure!(at_once["path"] == target.uri(2), "{at_once}");
    daemon.stop()
}

#[test]
fn a_disk_that_no_guest_uses_is_looked_after() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "operator_idle_disk", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 1, 16)?;
    let mut daemon = start(&lab, &format!("paths = [\"{}\"]", target.uri(0)), "")?;
    let log = daemon.process().log().to_owned();
    let count = |what: &str| Ok::<_, anyhow::Error>(fs::read_to_string(&log)?.matches(what).count());
    wait_for(&mut daemon, "its path", |_| Ok(count("path taken into use")? == 1))?;
    let up = Instant::now();
    wait_for(&mut daemon, "some time to pass", |_| Ok(up.elapsed() > Duration::from_secs(2)))?;
    target.reset(0)?;
    // Nobody asks by RPC meanwhile.
    wait_for(&mut daemon, "its path again", |_| Ok(count("path taken into use")? == 2))?;
    let back = Instant::now();
    let path = disk(&daemon)?["paths"][0].clone();
    let since = Duration::from_millis(path["state_for_ms"].as_u64().context("a time")?);
    ensure!(path["state"] == "usable" && since <= back.elapsed() + Duration::from_millis(1200), "{path:#}");
    daemon.stop()
}

#[test]
fn what_is_stated_of_a_match_is_taken() -> Result<()> {
    let dir = TempDir::new()?;
    let config = |matching: &str| {
        format!("[[disk]]\nname = \"disk\"\npaths = [\"ram://8MiB\", \"ram://8MiB?bs=512&readonly=off\"]\n{matching}\n")
    };
    for (matching, second) in [("", "quarantined"), ("match = \"stated\"", "usable")] {
        let daemon = start_in(dir.path(), &config(matching))?;
        let states: Vec<_> =
            disk(&daemon)?["paths"].as_array().context("paths")?.iter().map(|p| p["state"].clone()).collect();
        ensure!(states == ["usable", second], "{matching}: {states:?}");
        daemon.stop()?;
    }
    let pinned = "match = [\"uuid.00112233-4455-6677-8899-aabbccddeeff\"]";
    let daemon = start_in(dir.path(), &config(pinned))?;
    let shown = disk(&daemon)?;
    ensure!(
        shown["state"] == "down" && shown["match"] == json!(["uuid.00112233445566778899aabbccddeeff"]),
        "{shown:#}"
    );
    daemon.stop()
}

#[test]
fn a_file_is_one_disk_and_heeds_the_locks_of_qemu() -> Result<()> {
    let Some(lab) = Lab::enter("qemu-storage-daemon", "operator_locks", &[Need::Program("qemu-storage-daemon")]) else {
        return Ok(());
    };
    let image = lab.disk_image("image", 8 << 20)?;
    let uri = format!("file://{}", image.display());
    let daemon = start(&lab, &format!("paths = [\"{uri}\"]"), "")?;
    let twin = daemon.rpc("disk_create", &json!({ "name": "twin", "paths": [uri] })).expect_err("one file, two disks");
    ensure!(twin.to_string().contains("another disk of this one") && twin.to_string().contains("lock=off"), "{twin}");
    let theirs = [
        "--blockdev".to_owned(),
        format!("driver=file,node-name=d0,filename={}", image.display()),
        "--export".to_owned(),
        format!(
            "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on",
            lab.path("theirs.sock").display()
        ),
    ];
    let qemu = Command::new("timeout").args(["20", "qemu-storage-daemon"]).args(theirs).output()?;
    let said = String::from_utf8_lossy(&qemu.stderr).into_owned();
    ensure!(!qemu.status.success() && said.contains("lock"), "qemu-storage-daemon: {said}");
    daemon.stop()?;
    let taken = StorageDaemon::start(&lab, 8 << 20)?;
    let theirs = format!("file://{}", lab.path("qsd.img").display());
    let stack = Stack::start(StackConfig::default())?;
    let refused = stack.open_device(&theirs.parse()?).map(drop).expect_err("QEMU writes it");
    ensure!(refused.to_string().contains("another process"), "{refused}");
    drop(taken);
    stack.open_device(&theirs.parse()?).map(drop).context("nobody has it any more")
}

#[test]
fn sockets_have_the_mode_owner_group_and_cores_that_were_asked_for() -> Result<()> {
    let dir = TempDir::new()?;
    let (socket, more) = (dir.path().join("vm.sock"), dir.path().join("more.sock"));
    let config = format!(
        "cpus = \"0-1\"\n[[disk]]\nname = \"disk\"\npaths = [\"ram://8MiB\"]\n[[vhost]]\ndisk = \"disk\"\nsocket = \"{}\"\nqueues = 2\nmode = \"0660\"\ngroup = \"daemon\"\ncpus = \"1\"\n",
        socket.display()
    );
    let mut daemon = start_in(dir.path(), &config)?;
    let meta = fs::symlink_metadata(&socket)?;
    ensure!(meta.permissions().mode() & 0o777 == 0o660 && meta.gid() == 1, "{:o} {}", meta.mode(), meta.gid());
    let parameters = json!({ "disk": "disk", "socket": more, "mode": "600", "owner": "1", "group": "1", "cpus": "0" });
    daemon.rpc("vhost_create", &parameters)?;
    let meta = fs::symlink_metadata(&more)?;
    ensure!((meta.mode() & 0o777, meta.uid(), meta.gid()) == (0o600, 1, 1));
    let shown = daemon.rpc("vhost_list", &json!({}))?;
    ensure!(
        shown[0]["cpus"] == "0" && shown[0]["owner"] == 1 && shown[1]["cpus"] == "1" && shown[1]["mode"] == "660",
        "{shown:#}"
    );
    for (wrong, says) in [(json!("2"), "core 2"), (json!("x"), "CPU list")] {
        let parameters = json!({ "disk": "disk", "socket": dir.path().join("third"), "cpus": wrong });
        let error = daemon.rpc("vhost_create", &parameters).expect_err("no such core").to_string();
        ensure!(error.contains(says), "{error}");
    }
    // The one that is served by core 1 alone keeps it busy, and no other.
    let stack = Stack::start(StackConfig::default())?;
    let disk =
        Disk::builder().uris([format!("vhost-user-blk://{}", socket.display())]).stack(&stack).open_blocking()?;
    let busy = |d: &Daemon| -> Result<Vec<u64>> {
        let all = d.rpc("reactor_statistics", &json!({}))?;
        all.as_array().context("reactors")?.iter().map(|r| r["busy_turns"].as_u64().context("a number")).collect()
    };
    let before = busy(&daemon)?;
    for block in 0..2_000 {
        let (result, _) = block_on(disk.read(block % 100 * BLOCK, disk.buffer(BLOCK as u32)?));
        result?;
    }
    let after = busy(&daemon)?;
    ensure!(after[1] - before[1] > 1_000 && after[0] - before[0] < 200, "{before:?} {after:?}");
    block_on(disk.close());
    let log = fs::read_to_string(daemon.process().log())?;
    ensure!(log.contains("cpus=0,1"), "the log says which cores it got: {log}");
    daemon.stop()
}

#[test]
fn a_socket_that_does_not_refuse_is_not_ours_to_remove() -> Result<()> {
    let dir = TempDir::new()?;
    let rpc = dir.path().join("rpc.sock");
    let _theirs = UnixDatagram::bind(&rpc)?;
    let output = Command::new(program("polypathd")?)
        .args(["-S", &dir.path().display().to_string(), "-r", &rpc.display().to_string()])
        .env("STATE_DIRECTORY", dir.path())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("cannot be told") && rpc.exists(), "{said}");
    Ok(())
}

#[test]
fn check_refuses_what_start_refuses_and_says_it_once() -> Result<()> {
    let dir = TempDir::new()?;
    let long = dir.path().join("x".repeat(120));
    let cases = [
        ("[daemon]\nsocket_dir = \"/dev/null/none\"\n".to_owned(), "no directory"),
        ("[daemon]\ncpus = \"1000\"\n".to_owned(), "core 1000"),
        (format!("[daemon]\nrpc_socket = \"{}\"\n", long.display()), "expected at most 107"),
        ("[daemon]\nrpc_socket = \"/dev/null/x/rpc.sock\"\n".to_owned(), "RPC socket"),
        (
            "[[disk]]\nname = \"a\"\npaths = [\"ram://1MiB\"]\n[[vhost]]\ndisk = \"a\"\nsocket = \"a\"\ncpus = \"0\"\n"
                .to_owned(),
            "-m",
        ),
    ];
    for (config, says) in cases {
        let file = dir.path().join("polypath.toml");
        fs::write(&file, &config)?;
        let mut errors = Vec::new();
        for check in [true, false] {
            let mut command = Command::new(program("polypathd")?);
            command.arg("-c").arg(&file).env("STATE_DIRECTORY", dir.path()).env("POLYPATH_LOG", "error");
            command.current_dir(dir.path());
            if !config.contains("rpc_socket") {
                command.arg("-r").arg(dir.path().join("rpc.sock"));
            }
            let output = command.args(check.then_some("--check")).output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success() && said.contains(says), "{config}: {said}");
            ensure!(said.lines().count() == 1 && said.matches(says).count() == 1, "told twice: {said}");
            errors.push(said);
        }
        ensure!(errors[0] == errors[1], "{errors:?}");
    }
    Ok(())
}

/// The disk and the socket that the README tells of, by somebody without rights. Its target does not exist, which is no reason not to start.
#[test]
fn the_example_of_the_readme_runs_as_an_ordinary_user() -> Result<()> {
    const NOBODY: u32 = 65534;
    let dir = TempDir::new()?;
    let readme = fs::read_to_string(repository().join("README.md"))?;
    let example = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).context("a TOML block")?;
    ensure!(example.contains("[[disk]]") && example.contains("[[vhost]]"), "{example}");
    fs::write(dir.path().join("polypath.toml"), example)?;
    let binary = dir.path().join("polypathd");
    fs::copy(program("polypathd")?, &binary)?;
    let mut words: Vec<String> = Vec::new();
    if fs::metadata(dir.path())?.uid() == 0 {
        for place in [dir.path().to_owned(), binary, dir.path().join("polypath.toml")] {
            chown(place, Some(NOBODY), Some(NOBODY))?;
        }
        let nobody = NOBODY.to_string();
        words.extend(["setpriv", "--reuid", &nobody, "--regid", &nobody, "--clear-groups"].map(str::to_owned));
    }
    let daemon = "./polypathd -c polypath.toml -r rpc.sock";
    let script = format!("cd '{}' && {daemon} --check && exec {daemon}", dir.path().display());
    words.extend(["env".to_owned(), "-i".to_owned(), format!("HOME={}", dir.path().display())]);
    words.extend(["sh".to_owned(), "-c".to_owned(), script]);
    let first = find_program(&words.remove(0)).context("setpriv or env")?;
    let mut user = Process::start(&first, &words, dir.path().join("log"))?;
    user.wait_for_answer(&dir.path().join("rpc.sock"), LIMIT)?;
    let meta = fs::symlink_metadata(dir.path().join("vm1.sock"))?;
    ensure!(meta.uid() == fs::metadata(dir.path())?.uid() && meta.mode() & 0o777 == 0o600);
    ensure!(dir.path().join(".local/state/polypath").is_dir());
    ensure!(fs::read_to_string(user.log())?.contains("configuration is good"), "{}", user.log_tail());
    ensure!(user.terminate(LIMIT)?.success(), "{}", user.log_tail());
    Ok(())
}

/// A front-end with a disk of the daemon.
struct Guest {
    disk: Disk,
    _stack: Stack,
}

impl Guest {
    fn connect(daemon: &Daemon) -> Result<Guest> {
        let stack = Stack::start(StackConfig::default())?;
        let uri = format!("vhost-user-blk://{}", daemon.socket.display());
        Ok(Guest { disk: Disk::builder().uris([uri]).stack(&stack).open_blocking()?, _stack: stack })
    }

    fn write(&self, block: u64) -> Result<()> {
        self.begin(block).join().expect("no panic").map_err(Into::into)
    }

    fn begin(&self, block: u64) -> thread::JoinHandle<Result<(), Error>> {
        let disk = self.disk.clone();
        thread::spawn(move || {
            let buffer: Buffer = disk.buffer(BLOCK as u32)?;
            block_on(disk.write(block * BLOCK, buffer)).0.map(drop)
        })
    }
}

/// A daemon with a disk named `disk`, `keys` being the rest of its table, and its socket with `vhost` keys.
fn start(lab: &Lab, keys: &str, vhost: &str) -> Result<Daemon> {
    let (rpc, socket, file) = (lab.path("rpc.sock"), lab.path("disk.sock"), lab.path("daemon.toml"));
    let text = format!(
        "[daemon]\nrpc_socket = \"{}\"\n\n[[disk]]\nname = \"disk\"\n{keys}\n\n[[vhost]]\ndisk = \"disk\"\nsocket = \"{}\"\n{vhost}\n",
        rpc.display(),
        socket.display()
    );
    fs::write(&file, text)?;
    Daemon::start_with(&["-c".to_owned(), file.display().to_string()], lab.log("polypathd"), rpc, socket)
}

/// A daemon in a folder; `config` begins with keys of `[daemon]`.
fn start_in(dir: &Path, config: &str) -> Result<Daemon> {
    let (rpc, file) = (dir.join("rpc.sock"), dir.join("polypath.toml"));
    fs::write(&file, format!("[daemon]\nrpc_socket = \"{}\"\n{config}", rpc.display()))?;
    Daemon::start_with(&["-c".to_owned(), file.display().to_string()], dir.join("log"), rpc, dir.join("vm.sock"))
}

fn disk(daemon: &Daemon) -> Result<Value> {
    let all = daemon.rpc("disk_list", &json!({}))?;
    Ok(all[0].clone())
}

fn wait_for(daemon: &mut Daemon, what: &str, done: impl Fn(&Daemon) -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done(daemon)? {
        ensure!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {what}\n{}", daemon.process().log_tail());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
