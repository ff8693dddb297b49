//! What is written down of how a daemon ended, and what it makes the next one wait for.

use super::*;

/// As the target's own URI, but what is in flight may land for half a minute.
fn slow_fence(target: &Target) -> Vec<String> {
    target.uris().iter().map(|uri| uri.replace("keep_alive_ms=1000", "keep_alive_ms=15000")).collect()
}

// What a killed daemon may have in flight.

/// The second daemon is asked to end while changes wait for what the first, which was killed, may have in flight. It ends in order; the
/// wait is not over for that.
#[test]
fn an_end_in_order_does_not_shorten_the_wait_after_a_kill() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_wait_is_kept", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 1, 16)?;
    let mut daemon = Daemon::start(&lab, &slow_fence(&target), 1)?;
    daemon.process().kill()?;
    let killed = Instant::now();
    drop(daemon);
    Daemon::start(&lab, &slow_fence(&target), 1)?.stop()?;
    let daemon = Daemon::start(&lab, &slow_fence(&target), 1)?;
    writes_wait(&daemon, killed)
}

/// The same with RPC: the socket is deleted and made again.
#[test]
fn a_socket_that_is_made_again_does_not_shorten_the_wait_after_a_kill() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_wait_is_kept_by_rpc", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 1, 16)?;
    let mut daemon = Daemon::start(&lab, &slow_fence(&target), 1)?;
    daemon.process().kill()?;
    let killed = Instant::now();
    drop(daemon);
    let daemon = Daemon::start(&lab, &slow_fence(&target), 1)?;
    daemon.rpc("vhost_delete", &json!({ "socket": daemon.socket }))?;
    daemon.rpc("vhost_create", &json!({ "disk": "disk", "socket": daemon.socket }))?;
    writes_wait(&daemon, killed)
}

/// The socket that a killed daemon left is there, but not its state folder (an upgrade from a daemon that had none, another user): that it
/// was killed can be seen, and how long to wait is known of the paths.
#[test]
fn a_stale_socket_tells_of_a_kill_also_without_a_mark() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_stale_socket", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 1, 16)?;
    let mut daemon = Daemon::start(&lab, &slow_fence(&target), 1)?;
    let state = daemon.process().log().with_file_name("state");
    daemon.process().kill()?;
    let killed = Instant::now();
    drop(daemon);
    fs::remove_dir_all(state)?;
    let daemon = Daemon::start(&lab, &slow_fence(&target), 1)?;
    writes_wait(&daemon, killed)
}

fn writes_wait(daemon: &Daemon, killed: Instant) -> Result<()> {
    let (mut guest, region) = (FrontEnd::connect(daemon)?, region()?);
    guest.write(1, &region)?;
    let done = guest.wait(Duration::from_secs(20).saturating_sub(killed.elapsed()));
    let after = killed.elapsed();
    ensure!(done.is_empty() || after > Duration::from_secs(25), "a write was done {after:?} after the kill: {done:?}");
    Ok(())
}

/// From the answer on, the path may carry changes. A kill after that finds how long they may land.
#[test]
fn a_path_is_not_added_before_it_is_written_down_how_long_its_requests_may_land() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_bound_of_path", &[]) else { return Ok(()) };
    let target = Target::start(&lab, 4, 16)?;
    let mut daemon = Daemon::start(&lab, &[target.uri(0)], 1)?;
    let mark = daemon.process().log().with_file_name("state").join("disk.json");
    for (n, seconds) in [(1, 20), (2, 40), (3, 60)] {
        let uri = target.uri(n).replace("keep_alive_ms=1000", &format!("keep_alive_ms={}", seconds * 1000));
        let state = daemon.rpc("path_add", &json!({ "disk": "disk", "uri": uri, "wait_ms": 20_000 }))?;
        let word: Value = serde_json::from_str(&fs::read_to_string(&mark)?)?;
        ensure!(
            word["bound_ms"].as_u64() >= Some(2 * seconds * 1000),
            "the path is {}, and a daemon that is killed now leaves {word}",
            state["state"]
        );
    }
    daemon.stop()
}

// Marks.

/// Nothing was ever served: the operator mistyped something.
#[test]
fn a_socket_that_could_not_be_made_is_no_end_out_of_order() -> Result<()> {
    let dir = TempDir::new()?;
    let daemon = start_in(dir.path(), WITHOUT_SOCKET)?;
    let wrong = json!({ "disk": "disk", "socket": daemon.socket, "serial": "longer than twenty bytes" });
    daemon.rpc("vhost_create", &wrong).expect_err("too long");
    daemon.stop()?;
    let mut daemon = start_in(dir.path(), &with_socket(dir.path()))?;
    let said = log(&mut daemon)?;
    ensure!(!said.contains(UNCLEAN), "the last daemon served nothing and ended in order: {said}");
    daemon.stop()
}

/// A folder of state in which somebody left a FIFO in place of a lock.
#[test]
fn odd_files_in_the_state_folder_are_refused_and_not_waited_for() -> Result<()> {
    for name in ["disk.lock", "disk.json", "disk.new"] {
        let dir = TempDir::new()?;
        let state = dir.path().join("state");
        fs::create_dir(&state)?;
        ensure!(Command::new("mkfifo").arg(state.join(name)).status()?.success());
        let file = dir.path().join("polypath.toml");
        let rpc = dir.path().join("rpc.sock");
        fs::write(&file, format!("[daemon]\nrpc_socket = \"{}\"\n{}", rpc.display(), with_socket(dir.path())))?;
        let arguments = ["-c".to_owned(), file.display().to_string()];
        let mut process = Process::start(&program("polypathd")?, &arguments, dir.path().join("log"))?;
        thread::sleep(Duration::from_secs(4));
        // It may refuse it, or go on without; but it may not stand still, deaf to signals.
        if process.ended()?.is_none() {
            let ended = process.terminate(Duration::from_secs(10));
            ensure!(ended.is_ok(), "{name} is a FIFO: polypathd hangs and does not heed SIGTERM");
        }
    }
    Ok(())
}

/// Signals are heeded while a daemon starts, too: somebody else's back-end takes its time.
#[test]
fn a_daemon_that_is_still_starting_heeds_signals() -> Result<()> {
    let dir = TempDir::new()?;
    let silent = dir.path().join("silent.sock");
    let _accepts_nobody = std::os::unix::net::UnixListener::bind(&silent)?;
    let (rpc, file) = (dir.path().join("rpc.sock"), dir.path().join("polypath.toml"));
    let uri = format!("vhost-user-blk://{}?control_timeout_ms=60000", silent.display());
    let text =
        format!("[daemon]\nrpc_socket = \"{}\"\n[[disk]]\nname = \"disk\"\npaths = [\"{uri}\"]\n", rpc.display());
    fs::write(&file, text)?;
    let arguments = ["-c".to_owned(), file.display().to_string()];
    let mut process = Process::start(&program("polypathd")?, &arguments, dir.path().join("log"))?;
    thread::sleep(Duration::from_secs(1));
    ensure!(process.ended()?.is_none(), "it waits: {}", process.log_tail());
    process.signal(Signal::TERM)?;
    thread::sleep(Duration::from_secs(2));
    if process.ended()?.is_none() {
        process.signal(Signal::TERM)?;
    }
    let ended = process.wait(Duration::from_secs(10));
    ensure!(ended.is_ok(), "asked to end twice, and it goes on starting");
    Ok(())
}

/// Whoever can write to the folder must not have the daemon write elsewhere.
#[test]
fn a_symbolic_link_in_the_state_folder_is_not_followed() -> Result<()> {
    let dir = TempDir::new()?;
    let precious = dir.path().join("precious");
    fs::write(&precious, "precious")?;
    fs::create_dir(dir.path().join("state"))?;
    symlink(&precious, dir.path().join("state/disk.new"))?;
    let daemon = start_in(dir.path(), &with_socket(dir.path()));
    ensure!(fs::read_to_string(&precious)? == "precious", "overwritten: {}", fs::read_to_string(&precious)?);
    daemon.map_or(Ok(()), Daemon::stop)
}

/// One disk cannot drain, and its operator does not want to wait. The others have drained long ago: their guests do not pay for it.
#[test]
fn a_disk_that_drained_is_left_in_order_whatever_becomes_of_another() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_other_disk", &[]) else { return Ok(()) };
    let (_target, mut daemon, _guest, _region) = without_a_path(&lab)?;
    daemon.rpc("disk_create", &json!({ "name": "other", "paths": ["ram://8MiB"] }))?;
    daemon.rpc("vhost_create", &json!({ "disk": "other", "socket": lab.path("other.sock") }))?;
    daemon.process().signal(Signal::TERM)?;
    thread::sleep(Duration::from_secs(3));
    ensure!(daemon.process().ended()?.is_none(), "it waits for what is in flight");
    daemon.process().terminate(LIMIT)?;
    let mark = fs::read_to_string(daemon.process().log().with_file_name("state").join("other.json"))?;
    let word: Value = serde_json::from_str(&mark)?;
    ensure!(word["clean"] == true, "nothing of it was in flight for three seconds: {word}");
    Ok(())
}

/// Where marks are kept may be slow, or hang. That holds up who asked for a mark, and nobody else.
#[test]
fn a_state_folder_that_hangs_costs_no_other_call() -> Result<()> {
    let dir = TempDir::new()?;
    let daemon = start_in(dir.path(), WITHOUT_SOCKET)?;
    ensure!(Command::new("mkfifo").arg(dir.path().join("state/disk.lock")).status()?.success());
    let _call = call(&daemon, "vhost_create", &json!({ "disk": "disk", "socket": daemon.socket }))?;
    thread::sleep(Duration::from_secs(1));
    let mut look = call(&daemon, "disk_list", &json!({}))?;
    look.set_read_timeout(Some(Duration::from_secs(10)))?;
    ensure!(look.read(&mut [0; 1]).is_ok(), "nobody can look at disks any more");
    Ok(())
}

/// A start that fails, because somebody has one of the sockets, has served nothing.
#[test]
fn a_start_that_fails_is_no_end_out_of_order() -> Result<()> {
    let dir = TempDir::new()?;
    let taken = dir.path().join("taken.sock");
    let theirs = std::os::unix::net::UnixListener::bind(&taken)?;
    let text = |socket: &Path| {
        let more = "[[disk]]\nname = \"second\"\npaths = [\"ram://8MiB\"]\n[[vhost]]\ndisk = \"second\"\n";
        format!("{}{more}socket = \"{}\"\n", with_socket(dir.path()), socket.display())
    };
    let file = dir.path().join("polypath.toml");
    let rpc = dir.path().join("rpc.sock");
    fs::write(&file, format!("[daemon]\nrpc_socket = \"{}\"\n{}", rpc.display(), text(&taken)))?;
    let arguments = ["-c".to_owned(), file.display().to_string()];
    let mut refused = Process::start(&program("polypathd")?, &arguments, dir.path().join("log"))?;
    ensure!(!refused.wait(LIMIT)?.success(), "{}", refused.log_tail());
    drop((refused, theirs));
    let mut daemon = start_in(dir.path(), &text(&dir.path().join("free.sock")))?;
    let said = log(&mut daemon)?;
    ensure!(!said.contains(UNCLEAN), "nothing was ever served: {said}");
    daemon.stop()
}
