//! Where two mends meet: what a start asks and `--check` does not, and what becomes of a daemon whose log is not read any more.
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath::{Buffer, Disk, Stack, StackConfig, block_on};
use polypath_tests::Lab;
use polypath_tests::products::{Daemon, Target, program};
use serde_json::{Value, json};
use tempfile::TempDir;

const NOBODY: u32 = 65534;
const LIMIT: Duration = Duration::from_secs(20);

/// Ends what a test has started.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_root(dir: &Path) -> Result<bool> {
    Ok(fs::metadata(dir)?.uid() == 0)
}

/// A disk of memory on `socket`, everything in `dir`.
fn config(dir: &Path, socket: &str) -> String {
    let at = dir.display();
    format!(
        "[daemon]\nrpc_socket = \"{at}/rpc.sock\"\nsocket_dir = \"{at}\"\nstate_dir = \"{at}/state\"\n\
         [[disk]]\nname = \"a\"\npaths = [\"ram://1MiB\"]\n[[vhost]]\ndisk = \"a\"\nsocket = \"{socket}\"\n"
    )
}

/// Runs `polypathd -c polypath.toml` in `cwd`, at most three seconds, as `user` if that is given.
fn polypathd(dir: &Path, cwd: &Path, user: Option<u32>, check: bool) -> Result<Output> {
    let mut words = Vec::new();
    if let Some(user) = user {
        let user = user.to_string();
        words.extend(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"].map(str::to_owned));
    }
    // 124 and no other says that it was running still.
    words.extend(["timeout", "3"].map(str::to_owned));
    words.push(dir.join("polypathd").display().to_string());
    words.extend(["-c".to_owned(), dir.join("polypath.toml").display().to_string()]);
    words.extend(check.then(|| "--check".to_owned()));
    let mut command = Command::new(&words[0]);
    Ok(command.args(&words[1..]).env("POLYPATH_LOG", "error").current_dir(cwd).output()?)
}

/// What `--check` finds good, and a start refuses.
fn disagreement(dir: &Path, cwd: &Path, user: Option<u32>) -> Result<Option<String>> {
    let check = polypathd(dir, cwd, user, true)?;
    let start = polypathd(dir, cwd, user, false)?;
    let started = start.status.code() == Some(124) || start.status.success();
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("").to_owned();
    Ok((check.status.success() != started)
        .then(|| format!("--check: {} {}; start: {} {}", check.status, said(&check), start.status, said(&start))))
}

fn new_folder() -> Result<TempDir> {
    let dir = TempDir::new()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    // By another process: what this one has open for writing may be open in a child of another test just then, and cannot be executed.
    let copied = Command::new("cp").arg(program("polypathd")?).arg(dir.path().join("polypathd")).status()?;
    ensure!(copied.success(), "cp: {copied}");
    fs::create_dir(dir.path().join("state"))?;
    fs::set_permissions(dir.path().join("state"), fs::Permissions::from_mode(0o700))?;
    Ok(dir)
}

/// A state folder that others may write to, or that belongs to somebody else; a link and a pipe in place of a mark; names of sockets that are
/// none. All of it is there to be seen, and none of it is of another process: `--check` refuses what a start refuses.
#[test]
fn check_looks_at_the_state_folder_and_at_names_as_a_start_does() -> Result<()> {
    type Case = (&'static str, &'static str, fn(&Path) -> Result<()>);
    let cases: [Case; 6] = [
        ("a state folder that others may write to", "a.sock", |state| {
            Ok(fs::set_permissions(state, fs::Permissions::from_mode(0o777))?)
        }),
        ("a state folder of somebody else", "a.sock", |state| Ok(chown(state, Some(NOBODY), Some(NOBODY))?)),
        ("a mark that is a link", "a.sock", |state| Ok(symlink("/dev/null", state.join("a.json"))?)),
        ("a lock that is a pipe", "a.sock", |state| {
            ensure!(Command::new("mkfifo").arg(state.join("a.lock")).status()?.success());
            Ok(())
        }),
        ("a socket with a NUL in its name", "a\\u0000.sock", |_| Ok(())),
        ("a socket that is a folder to be", "new/", |_| Ok(())),
    ];
    let mut wrong = Vec::new();
    for (what, socket, change) in cases {
        let dir = new_folder()?;
        if what.contains("somebody else") && !is_root(dir.path())? {
            continue;
        }
        fs::write(dir.path().join("polypath.toml"), config(dir.path(), socket))?;
        change(&dir.path().join("state"))?;
        wrong.extend(disagreement(dir.path(), dir.path(), None)?.map(|found| format!("{what}: {found}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A socket that a daemon of root has left behind, where a daemon of somebody else is to have his: in a folder that he may not write to, and in
/// one like /var/tmp, where files are removed by their owners only. (The default of the RPC socket is there.)
#[test]
fn check_sees_that_a_socket_that_was_left_behind_cannot_be_replaced() -> Result<()> {
    let mut wrong = Vec::new();
    for (what, mode) in [("a folder of root", 0o755), ("a folder as /var/tmp", 0o1777)] {
        let dir = new_folder()?;
        if !is_root(dir.path())? {
            return Ok(());
        }
        let folder = dir.path().join("sockets");
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode))?;
        drop(UnixListener::bind(folder.join("rpc.sock"))?);
        let own = dir.path().join("own");
        fs::create_dir(&own)?;
        let text = config(&own, "a.sock").replace("own/rpc.sock", "sockets/rpc.sock");
        fs::write(dir.path().join("polypath.toml"), text)?;
        chown(&own, Some(NOBODY), Some(NOBODY))?;
        wrong.extend(disagreement(dir.path(), &own, Some(NOBODY))?.map(|found| format!("{what}: {found}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// All sockets have paths of their own; the daemon is started in a folder that is not its user's, as a service is in `/`.
#[test]
fn a_folder_that_no_socket_goes_to_keeps_nobody_from_starting() -> Result<()> {
    let dir = new_folder()?;
    if !is_root(dir.path())? {
        return Ok(());
    }
    let own = dir.path().join("own");
    fs::create_dir(&own)?;
    chown(&own, Some(NOBODY), Some(NOBODY))?;
    let socket = own.join("a.sock").display().to_string();
    let text = config(&own, &socket).replace(&format!("socket_dir = \"{}\"\n", own.display()), "");
    fs::write(dir.path().join("polypath.toml"), text)?;
    let check = polypathd(dir.path(), Path::new("/"), Some(NOBODY), true)?;
    ensure!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    Ok(())
}

/// A daemon whose standard error is a pipe that nobody reads from now on (a pager that waits, a terminal after Ctrl-S, a service manager that
/// hangs), and that is full.
fn with_a_full_log(dir: &Path) -> Result<(Service, std::io::PipeReader)> {
    fs::write(dir.join("polypath.toml"), config(dir, "a.sock"))?;
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = Command::new(dir.join("polypathd"));
    command.arg("-c").arg(dir.join("polypath.toml")).env_remove("POLYPATH_LOG").stdin(Stdio::null());
    let daemon = Service(command.stdout(Stdio::null()).stderr(writer.try_clone()?).spawn()?);
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("ready") {
        let mut byte = [0];
        ensure!(reader.read(&mut byte)? == 1, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    // The same pipe, with a mode of this test's own.
    let at = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let mut filler = fs::File::from(rustix::fs::open(at, flags, rustix::fs::Mode::empty())?);
    for some in [&[b'.'; 4096][..], b"."] {
        while match filler.write(some) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => return Err(error.into()),
        } {}
    }
    Ok((daemon, reader))
}

/// SIGTERM drains, whoever reads the log or does not.
#[test]
fn a_log_that_nobody_reads_keeps_no_daemon_from_ending() -> Result<()> {
    let dir = new_folder()?;
    let (mut daemon, _reader) = with_a_full_log(dir.path())?;
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let (tell, told) = channel();
    // Waits for it without taking its status.
    std::thread::spawn(move || {
        let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let _ = tell.send(rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).is_ok());
    });
    ensure!(told.recv_timeout(LIMIT) == Ok(true), "it has not ended within {LIMIT:?} of SIGTERM");
    ensure!(daemon.0.wait()?.success());
    Ok(())
}

/// A front-end sends nonsense, which is worth a line; then another one would be served. Nobody reads the lines.
#[test]
fn a_log_that_nobody_reads_keeps_no_front_end_from_its_disk() -> Result<()> {
    let dir = new_folder()?;
    let (_daemon, _reader) = with_a_full_log(dir.path())?;
    let socket = dir.path().join("a.sock");
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let mut front_end = std::os::unix::net::UnixStream::connect(&socket)?;
        front_end.set_read_timeout(Some(LIMIT))?;
        // GET_FEATURES, without a payload.
        front_end.write_all(&[1u32, 1, 0].map(u32::to_ne_bytes).concat())?;
        let mut answer = [0; 20];
        match front_end.read_exact(&mut answer) {
            Ok(()) => return Ok(()),
            // Another front-end is on its way out.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error).context("the disk's thread waits for who reads the log"),
        }
    }
    anyhow::bail!("not served")
}

/// `nohup polypathd`, and a service manager that wants no hang-up: who starts it ignores SIGHUP for it, and logs out.
#[test]
fn a_hang_up_that_was_to_be_ignored_is_ignored() -> Result<()> {
    let dir = new_folder()?;
    fs::write(dir.path().join("polypath.toml"), config(dir.path(), "a.sock"))?;
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec ./polypathd -c polypath.toml"]).current_dir(dir.path());
    let log = fs::File::create(dir.path().join("log"))?;
    let daemon = Service(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?);
    let begun = Instant::now();
    while !fs::read_to_string(dir.path().join("log"))?.contains("ready") {
        ensure!(begun.elapsed() < LIMIT, "it does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP)?;
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let _ = tell.send(rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).is_ok());
    });
    // A drain of nothing takes no time.
    ensure!(told.recv_timeout(Duration::from_secs(5)).is_err(), "it has ended, and its guests are without their disks");
    Ok(())
}

/// One block device by two nodes, as containers and `mknod` make them: two disks of one daemon would write it.
#[test]
fn a_block_device_is_one_disk_whatever_its_nodes() -> Result<()> {
    let dir = new_folder()?;
    if !is_root(dir.path())? {
        return Ok(());
    }
    let image = dir.path().join("image");
    fs::File::create(&image)?.set_len(1 << 20)?;
    let attached = Command::new("losetup").args(["--show", "-f"]).arg(&image).output()?;
    ensure!(attached.status.success(), "losetup: {}", String::from_utf8_lossy(&attached.stderr));
    let device = String::from_utf8(attached.stdout)?.trim().to_owned();
    let number = fs::metadata(&device)?.rdev();
    let (major, minor) = (rustix::fs::major(number).to_string(), rustix::fs::minor(number).to_string());
    let nodes = ["one", "two"].map(|name| dir.path().join(name));
    let mut outcome = Ok(());
    for node in &nodes {
        let made = Command::new("mknod").arg(node).args(["b", &major, &minor]).status()?;
        outcome = outcome.and(made.success().then_some(()).context("mknod"));
    }
    let disks = nodes.iter().map(|node| {
        let name = node.file_name().unwrap_or_default().display();
        format!("[[disk]]\nname = \"{name}\"\npaths = [\"file://{}\"]\n", node.display())
    });
    let text = config(dir.path(), "a.sock") + &disks.collect::<String>();
    fs::write(dir.path().join("polypath.toml"), text)?;
    let start = outcome.and_then(|()| polypathd(dir.path(), dir.path(), None, false));
    Command::new("losetup").args(["-d", &device]).status()?;
    let start = start?;
    ensure!(start.status.code() != Some(124), "two disks of one daemon write {device}");
    let said = String::from_utf8_lossy(&start.stderr);
    ensure!(said.contains("same") || said.contains("used by"), "{said}");
    Ok(())
}

/// One block through `socket`.
fn write(socket: &Path) -> Result<()> {
    let stack = Stack::start(StackConfig::default())?;
    let uri = format!("vhost-user-blk://{}", socket.display());
    let disk = Disk::builder().uris([uri]).stack(&stack).open_blocking()?;
    let buffer: Buffer = disk.buffer(4096)?;
    Ok(block_on(disk.write(0, buffer)).0.map(drop)?)
}

/// Two disks of one configuration lead to one namespace by two ways. Nobody knows when their sockets are made: the target answers later, as it
/// does after each start of the machine. Then they prove to be one, and two groups cannot fence each other's writes.
#[test]
fn two_disks_that_prove_to_be_one_later_are_served_only_once() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "operator_seams_twins", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 2, 16)?;
    (0..2).try_for_each(|listener| target.drop_silently(listener))?;
    let (rpc, file) = (lab.path("rpc.sock"), lab.path("polypath.toml"));
    let mut text = format!("[daemon]\nrpc_socket = \"{}\"\n", rpc.display());
    let sockets = ["one", "two"].map(|name| lab.path(&format!("{name}.sock")));
    for (n, name) in ["one", "two"].into_iter().enumerate() {
        let (uri, socket) = (target.uri(n), sockets[n].display());
        text += &format!(
            "[[disk]]\nname = \"{name}\"\nno_path_timeout_ms = 2000\npaths = [\"{uri}&reconnect_delay_ms=100\"]\n"
        );
        text += &format!("[[vhost]]\ndisk = \"{name}\"\nsocket = \"{socket}\"\n");
    }
    fs::write(&file, text)?;
    let arguments = ["-c".to_owned(), file.display().to_string()];
    let daemon = Daemon::start_with(&arguments, lab.log("polypathd"), rpc, sockets[0].clone())?;
    (0..2).try_for_each(|listener| target.restore(listener))?;
    let begun = Instant::now();
    let states = loop {
        let disks = daemon.rpc("disk_list", &json!({}))?;
        let states = [0, 1].map(|n| disks[n]["paths"][0]["state"].clone());
        let decided = |state: &Value| state == "usable" || state == "quarantined";
        if states.iter().all(decided) {
            break states;
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "{disks:#}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let written = [write(&sockets[0]), write(&sockets[1])];
    let same = daemon.rpc("disk_list", &json!({}))?[0]["same_as"].clone();
    ensure!(
        written.iter().filter(|written| written.is_ok()).count() < 2,
        "both are written ({states:?}, same_as {same}): a write that one has lost lands on top of the other's"
    );
    Ok(())
}

/// Which of the two is served is the operator's choice: once the first is not any more, the second has its path.
#[test]
fn a_disk_that_was_refused_as_another_one_is_looked_at_again_when_that_is_let_go() -> Result<()> {
    let dir = new_folder()?;
    let same = "ram://1MiB?uuid=00112233-4455-6677-8899-aabbccddeeff";
    let nobody = "nvme-tcp://127.0.0.1:9/nqn.2026-01.org.example:nobody";
    let second =
        format!("[[disk]]\nname = \"b\"\npaths = [\"{nobody}\"]\n[[vhost]]\ndisk = \"b\"\nsocket = \"b.sock\"\n");
    let text = config(dir.path(), "a.sock").replace("ram://1MiB", same) + &second;
    fs::write(dir.path().join("polypath.toml"), text)?;
    let arguments = ["-c".to_owned(), dir.path().join("polypath.toml").display().to_string()];
    let (rpc, log, socket) = (dir.path().join("rpc.sock"), dir.path().join("log"), dir.path().join("a.sock"));
    let daemon = Daemon::start_with(&arguments, log, rpc, socket)?;
    let added = daemon.rpc("path_add", &json!({ "disk": "b", "uri": same, "wait_ms": 10_000 }))?;
    let why = added["why"].as_str().unwrap_or("");
    ensure!(added["state"] == "quarantined" && why.contains("\"a\"") && why.contains("served already"), "{added}");
    daemon.rpc("vhost_delete", &json!({ "socket": "a.sock" }))?;
    let begun = Instant::now();
    loop {
        // What it shows is written down first.
        let paths = daemon.rpc("statistics", &json!({ "disk": "b" }))?;
        if paths["b"][1]["state"] == "usable" {
            break;
        }
        ensure!(begun.elapsed() < LIMIT, "{paths:#}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let refused = daemon.rpc("vhost_create", &json!({ "disk": "a", "socket": "a.sock" }));
    ensure!(refused.as_ref().is_err_and(|e| format!("{e:#}").contains("served already")), "{refused:?}");
    daemon.stop()
}

/// A name with a NUL in it, which TOML and JSON can say and a thread cannot have. One call must not cost all guests their disks.
#[test]
fn a_name_that_no_thread_can_have_ends_no_daemon() -> Result<()> {
    let dir = new_folder()?;
    let file = dir.path().join("polypath.toml");
    let text = config(dir.path(), "a.sock");
    fs::write(&file, &text)?;
    let rpc = dir.path().join("rpc.sock");
    let arguments = ["-c".to_owned(), file.display().to_string()];
    let mut daemon = Daemon::start_with(&arguments, dir.path().join("log"), rpc, dir.path().join("a.sock"))?;
    let name = "b\0c";
    // Whichever of the two refuses it.
    let _ = daemon.rpc("disk_create", &json!({ "name": name, "paths": ["ram://2MiB"] }));
    let _ = daemon.rpc("vhost_create", &json!({ "disk": name, "socket": "b.sock" }));
    let called = daemon.rpc("version", &json!({}));
    ensure!(called.is_ok(), "{called:?}; {:?}\n{}", daemon.process().ended()?, daemon.process().log_tail());
    daemon.stop()?;
    // And in the file: --check says what a start says.
    fs::write(&file, text.replace("\"a\"", "\"b\\u0000c\""))?;
    let found = disagreement(dir.path(), dir.path(), None)?;
    ensure!(found.is_none(), "{}", found.unwrap_or_default());
    Ok(())
}

/// What lies behind the end of an image belongs to whoever has it: blocks that were set aside there, or, when somebody makes the image longer
/// just then, data. `--check` holds no lock, and looks.
#[test]
fn check_changes_nothing_of_a_file_that_it_does_not_lock() -> Result<()> {
    let dir = new_folder()?;
    // A file system that gives such blocks back (XFS does as well; ext4 does when the file has become longer).
    let shared = tempfile::tempdir_in("/dev/shm")?;
    let path = shared.path().join("image");
    let image = fs::File::create(&path)?;
    image.set_len(1 << 20)?;
    rustix::fs::fallocate(&image, rustix::fs::FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20)?;
    image.sync_all()?;
    let before = image.metadata()?.blocks();
    ensure!(before >= (1 << 20) / 512, "blocks are set aside here: {before}");
    let text = config(dir.path(), "a.sock").replace("ram://1MiB", &format!("file://{}", path.display()));
    fs::write(dir.path().join("polypath.toml"), text)?;
    let check = polypathd(dir.path(), dir.path(), None, true)?;
    ensure!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    image.sync_all()?;
    let after = image.metadata()?.blocks();
    ensure!(after == before, "{before} blocks before, {after} after: it has punched a hole");
    Ok(())
}

/// That a socket was left in order cannot be written down at that moment: the file system is full (here: something is in the way). The operator
/// makes room and makes the socket again. The daemon was there all the time, and nothing of it is in flight.
#[test]
fn an_end_that_could_not_be_written_down_is_written_down_later() -> Result<()> {
    let dir = new_folder()?;
    fs::write(dir.path().join("polypath.toml"), config(dir.path(), "a.sock"))?;
    let (rpc, log) = (dir.path().join("rpc.sock"), dir.path().join("log"));
    let arguments = ["-c".to_owned(), dir.path().join("polypath.toml").display().to_string()];
    let daemon = Daemon::start_with(&arguments, log.clone(), rpc, dir.path().join("a.sock"))?;
    let obstacle = dir.path().join("state/a.new");
    fs::create_dir(&obstacle)?;
    let deleted = daemon.rpc("vhost_delete", &json!({ "socket": "a.sock" }));
    fs::remove_dir(&obstacle)?;
    daemon.rpc("vhost_create", &json!({ "disk": "a", "socket": "a.sock" }))?;
    let said = fs::read_to_string(&log)?;
    daemon.stop()?;
    ensure!(!said.contains("did not end in order"), "vhost_delete: {deleted:?}; then:\n{said}");
    Ok(())
}

/// The same at the end of the daemon: nobody is left to try again, and whoever has stopped it must hear of it.
#[test]
fn a_stop_that_cannot_be_written_down_is_no_success() -> Result<()> {
    let dir = new_folder()?;
    fs::write(dir.path().join("polypath.toml"), config(dir.path(), "a.sock"))?;
    let (rpc, log) = (dir.path().join("rpc.sock"), dir.path().join("log"));
    let arguments = ["-c".to_owned(), dir.path().join("polypath.toml").display().to_string()];
    let mut daemon = Daemon::start_with(&arguments, log.clone(), rpc, dir.path().join("a.sock"))?;
    fs::create_dir(dir.path().join("state/a.new"))?;
    daemon.process().signal(rustix::process::Signal::TERM)?;
    let status = daemon.process().wait(LIMIT)?;
    let said = fs::read_to_string(&log)?;
    ensure!(status.code() == Some(1) && said.contains("could not be written down"), "{status}: {said}");
    ensure!(said.lines().last().is_some_and(|line| line.starts_with("polypathd: not ended in order")), "{said}");
    Ok(())
}

/// A monitoring script that leaks its connections, each with half a call. Who asks then is an operator.
#[test]
fn halves_of_calls_do_not_keep_the_operator_out() -> Result<()> {
    const ANSWER_LIMIT: Duration = Duration::from_secs(30);
    let dir = new_folder()?;
    fs::write(dir.path().join("polypath.toml"), config(dir.path(), "a.sock"))?;
    let rpc = dir.path().join("rpc.sock");
    let arguments = ["-c".to_owned(), dir.path().join("polypath.toml").display().to_string()];
    let daemon = Daemon::start_with(&arguments, dir.path().join("log"), rpc.clone(), dir.path().join("a.sock"))?;
    let mut leaked = Vec::new();
    for _ in 0..256 {
        let mut half = std::os::unix::net::UnixStream::connect(&rpc)?;
        half.write_all(b"{\"jsonrpc\"")?;
        leaked.push(half);
    }
    let mut operator = std::os::unix::net::UnixStream::connect(&rpc)?;
    operator.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version\"}")?;
    // As long as one that takes no answers is borne.
    operator.set_read_timeout(Some(ANSWER_LIMIT + Duration::from_secs(5)))?;
    let answered = operator.read(&mut [0; 64]);
    drop(leaked);
    ensure!(matches!(answered, Ok(1..)), "{answered:?}");
    daemon.stop()
}
