//! What a start, its check, RPC and the tools say and refuse, and what front-ends may take of others.

use super::*;

// What is refused.

fn polypathd(dir: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("timeout");
    // A daemon that starts is ended, and then has a status of its own: 0.
    command.args(["--preserve-status", "--kill-after=20", "5"]).arg(program("polypathd")?).args(arguments);
    Ok(command.env("STATE_DIRECTORY", dir.join("state")).env("POLYPATH_LOG", "error").current_dir(dir).output()?)
}

/// What a configuration says alone, whatever the machine and the network.
#[test]
fn what_a_start_refuses_of_the_file_alone_check_refuses_too() -> Result<()> {
    let dir = TempDir::new()?;
    fs::File::create(dir.path().join("image"))?.set_len(1 << 20)?;
    let ram = |name: &str| format!("[[disk]]\nname = \"{name}\"\npaths = [\"ram://1MiB\"]\n");
    let vhost = |disk: &str, socket: &str| format!("[[vhost]]\ndisk = \"{disk}\"\nsocket = \"{socket}\"\n");
    let long = "a".repeat(252);
    let paths: Vec<_> = (1..=65).map(|n| format!("\"ram://{n}MiB\"")).collect();
    let image = format!("file://{}/image", dir.path().display());
    let cases = [
        ("a name too long for a mark", ram(&long) + &vhost(&long, "a.sock")),
        ("one socket twice", ram("a") + &ram("b") + &vhost("a", "a.sock") + &vhost("b", "./a.sock")),
        ("a disk's socket is that of RPC", ram("a") + &vhost("a", "rpc.sock")),
        (
            "one file, two disks",
            ["a", "b"].map(|n| format!("[[disk]]\nname = \"{n}\"\npaths = [\"{image}\"]\n")).concat(),
        ),
        (
            "a discovery controller as a disk",
            "[[disk]]\nname = \"a\"\npaths = [\"nvme-tcp://127.0.0.1/nqn.2014-08.org.nvmexpress.discovery\"]\n"
                .to_owned(),
        ),
        ("more paths than there can be", format!("[[disk]]\nname = \"a\"\npaths = [{}]\n", paths.join(", "))),
        ("an owner that is none", ram("a") + &vhost("a", "a.sock") + "owner = \"4294967295\"\n"),
    ];
    let mut wrong = Vec::new();
    for (what, config) in cases {
        fs::write(dir.path().join("polypath.toml"), format!("[daemon]\nrpc_socket = \"rpc.sock\"\n{config}"))?;
        let arguments = ["-c", "polypath.toml", "-S", dir.path().to_str().context("UTF-8")?];
        let arguments = if what.contains("that of RPC") { &arguments[..2] } else { &arguments[..] };
        let check = polypathd(dir.path(), &[arguments, &["--check"]].concat())?;
        let start = polypathd(dir.path(), arguments)?;
        if check.status.success() && !start.status.success() {
            let said = String::from_utf8_lossy(&start.stderr);
            let last = said.lines().last().unwrap_or_default();
            wrong.push(format!("{what}: --check is content; start: {}: {last}", start.status));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Somebody without rights: who may own a socket can be told without making one.
#[test]
fn check_refuses_an_owner_that_only_root_may_give() -> Result<()> {
    const NOBODY: u32 = 65534;
    let dir = TempDir::new()?;
    if fs::metadata(dir.path())?.uid() != 0 {
        return Ok(());
    }
    let config = "[daemon]\nrpc_socket = \"rpc.sock\"\n[[disk]]\nname = \"a\"\npaths = [\"ram://1MiB\"]\n[[vhost]]\ndisk = \"a\"\nsocket = \"a.sock\"\nowner = \"root\"\n";
    fs::write(dir.path().join("polypath.toml"), config)?;
    fs::copy(program("polypathd")?, dir.path().join("polypathd"))?;
    chown(dir.path(), Some(NOBODY), Some(NOBODY))?;
    let run = |check: &[&str]| -> Result<Output> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "timeout", "--preserve-status", "5"]);
        command.args(["./polypathd", "-c", "polypath.toml", "--state-dir", "state"]).args(check);
        Ok(command.env("POLYPATH_LOG", "error").current_dir(dir.path()).output()?)
    };
    let (check, start) = (run(&["--check"])?, run(&[])?);
    let said = String::from_utf8_lossy(&start.stderr);
    ensure!(check.status.success() == start.status.success(), "--check is content; start: {} {said}", start.status);
    Ok(())
}

/// A number that means "leave it as it is" to chown(2) is nobody's.
#[test]
fn an_owner_that_is_none_is_refused_by_rpc_and_ends_nothing() -> Result<()> {
    let dir = TempDir::new()?;
    let mut daemon = start_in(dir.path(), WITHOUT_SOCKET)?;
    for key in ["owner", "group"] {
        let parameters = json!({ "disk": "disk", "socket": daemon.socket, key: "4294967295" });
        let said = daemon.rpc("vhost_create", &parameters);
        thread::sleep(Duration::from_secs(1));
        ensure!(daemon.process().ended()?.is_none(), "{key}: the daemon has ended: {}", log(&mut daemon)?);
        ensure!(said.is_err(), "{key}: taken, and nothing was done about it");
        daemon.rpc("version", &json!({}))?;
    }
    daemon.stop()
}

// The command line.

/// `key=value`, as `docs/CONFIGURATION.md` has it, with the values that it has.
#[test]
fn values_that_look_like_numbers_are_taken_by_the_command_line_client() -> Result<()> {
    let dir = TempDir::new()?;
    let daemon = start_in(dir.path(), &format!("cpus = \"0\"\n{WITHOUT_SOCKET}"))?;
    let rpc = daemon.rpc_socket().display().to_string();
    let mut wrong = Vec::new();
    for parameter in ["mode=660", "owner=0", "group=0", "cpus=0", "serial=20261122"] {
        let socket = format!("socket={}", dir.path().join(parameter).display());
        let mut command = Command::new(program_of("polypath-cli", "polypath")?);
        let output = command.args(["rpc", "-r", &rpc, "vhost_create", "disk=disk", &socket, parameter]).output()?;
        if !output.status.success() {
            wrong.push(format!("{parameter}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    daemon.stop()
}

/// `wait_ms` may be as long as ten minutes; who asks for it waits as long.
#[test]
fn the_command_line_client_waits_as_long_as_it_asked_for() -> Result<()> {
    let dir = TempDir::new()?;
    let daemon = start_in(dir.path(), WITHOUT_SOCKET)?;
    let rpc = daemon.rpc_socket().display().to_string();
    // Somebody listens, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let port = silent.local_addr()?.port();
    let uri = format!("uri=nvme-tcp://127.0.0.1:{port}/nqn.2026-01.org.example:none?ns=1&connect_timeout_ms=60000");
    let mut command = Command::new(program_of("polypath-cli", "polypath")?);
    let output = command.args(["rpc", "-r", &rpc, "path_add", "disk=disk", &uri, "wait_ms=33000"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    daemon.stop()
}

/// `-S` is for sockets that are named without a path.
#[test]
fn a_socket_with_a_path_of_its_own_stays_there() -> Result<()> {
    let (dir, other) = (TempDir::new()?, TempDir::new()?);
    let (socket, rpc) = (dir.path().join("db.sock"), dir.path().join("rpc.sock"));
    let file = dir.path().join("polypath.toml");
    let text = format!(
        "[daemon]\nsocket_dir = \"{}\"\n{WITHOUT_SOCKET}[[vhost]]\ndisk = \"disk\"\nsocket = \"{}\"\n",
        dir.path().display(),
        socket.display()
    );
    fs::write(&file, text)?;
    let arguments = ["-c", &file.display().to_string(), "-S", &other.path().display().to_string(), "-r"];
    let mut arguments = arguments.map(str::to_owned).to_vec();
    arguments.push(rpc.display().to_string());
    let daemon = Daemon::start_with(&arguments, dir.path().join("log"), rpc, socket.clone())?;
    ensure!(socket.exists(), "it is {:#}", daemon.rpc("vhost_list", &json!({}))?[0]["socket"]);
    daemon.stop()
}

// Floods.

/// Who connects and goes, again and again, decides how often it does, and not how long the log gets.
#[test]
fn a_front_end_that_comes_and_goes_does_not_fill_the_log() -> Result<()> {
    let dir = TempDir::new()?;
    let mut daemon = start_in(dir.path(), &with_socket(dir.path()))?;
    let begun = Instant::now();
    let mut served = 0;
    while served < 500 && begun.elapsed() < LIMIT {
        let mut stream = UnixStream::connect(&daemon.socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        // GET_FEATURES: one that was answered was let in.
        let asked = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
        if stream.write_all(&asked).is_ok() && stream.read_exact(&mut [0; 20]).is_ok() {
            served += 1;
        }
    }
    let lines = log(&mut daemon)?.lines().count();
    ensure!(lines < 100, "{served} connections within {:?}: {lines} lines", begun.elapsed());
    daemon.stop()
}

/// A megabyte of calls is a megabyte of calls, and not as much memory as all their answers together.
#[test]
fn a_batch_of_calls_does_not_use_up_the_memory() -> Result<()> {
    let dir = TempDir::new()?;
    let mut daemon = start_in(dir.path(), WITHOUT_SOCKET)?;
    let peak = |daemon: &mut Daemon| -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.process().pid()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
    };
    let before = peak(&mut daemon)?;
    let one = json!({ "jsonrpc": "2.0", "id": 1, "method": "rpc_methods" }).to_string();
    let batch = format!("[{}]", vec![one; 18_000].join(","));
    ensure!(batch.len() < 1 << 20);
    let mut stream = UnixStream::connect(daemon.rpc_socket())?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(batch.as_bytes())?;
    let Ok(1) = stream.read(&mut [0; 1]) else { bail!("no answer") };
    let more = peak(&mut daemon)?.saturating_sub(before);
    ensure!(more < 64 << 10, "one call of {} bytes took {more} KiB of memory", batch.len());
    drop(stream);
    daemon.stop()
}

/// Descriptors are few where nobody has asked for more (1024, as service managers have it), and a front-end may bring 256 with its memory. What
/// some of them take does not shut out the operator, nor keep a path from coming back.
#[test]
fn front_ends_with_much_memory_leave_descriptors_for_others() -> Result<()> {
    let dir = TempDir::new()?;
    let (rpc, file) = (dir.path().join("rpc.sock"), dir.path().join("polypath.toml"));
    let sockets: Vec<_> = (0..5).map(|n| dir.path().join(format!("{n}.sock"))).collect();
    let vhosts = sockets.iter().map(|s| format!("[[vhost]]\ndisk = \"disk\"\nsocket = \"{}\"\n", s.display()));
    let vhosts = vhosts.collect::<String>();
    fs::write(&file, format!("[daemon]\nrpc_socket = \"{}\"\n{WITHOUT_SOCKET}{vhosts}", rpc.display()))?;
    let script = format!("ulimit -S -n 1024; exec {} -c {}", program("polypathd")?.display(), file.display());
    let shell = polypath_tests::lab::find_program("sh").context("a shell")?;
    let mut daemon = Process::start(&shell, &["-c", &script], dir.path().join("log"))?;
    daemon.wait_for_answer(&rpc, LIMIT)?;
    let mut guests = Vec::new();
    for socket in &sockets {
        let (mut guest, taken) = with_regions(socket, 256)?;
        if taken < 256 {
            // That was too much, and it was shut out for it. A little less, then.
            drop(guest);
            thread::sleep(Duration::from_millis(300));
            guest = with_regions(socket, taken)?.0;
            guests.push(guest);
            break;
        }
        guests.push(guest);
    }
    let mut stream = UnixStream::connect(&rpc)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(br#"{"jsonrpc":"2.0","id":1,"method":"version"}"#)?;

    let answered = matches!(stream.read(&mut [0; 1]), Ok(1));
    ensure!(answered, "the operator is shut out\n{}", daemon.log_tail());
    drop(guests);
    Ok(())
}

/// A front-end that brings `most` regions of memory, or as many as are taken; and how many were.
fn with_regions(socket: &Path, most: u64) -> Result<(Wire, u64)> {
    let mut guest = Wire::connect(socket)?;
    // CONFIGURE_MEM_SLOTS as well.
    guest.send(16, 1, &(1u64 << 3 | 1 << 9 | 1 << 15).to_ne_bytes())?;
    for n in 0..most {
        let memory = rustix::fs::memfd_create("dimm", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, 4096)?;
        let at = 0x1000_0000 + n * 4096;
        let payload = [0, at, 4096, at, 0].map(u64::to_ne_bytes).concat();
        let message = [[37u32, 1 | 8, 40].map(u32::to_ne_bytes).concat(), payload].concat();
        let fds = [std::os::fd::AsFd::as_fd(&memory)];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        ensure!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        let flags = rustix::net::SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&guest.0, &[std::io::IoSlice::new(&message)], &mut control, flags)?;
        if guest.0.read_exact(&mut [0; 20]).is_err() {
            return Ok((guest, n));
        }
    }
    Ok((guest, most))
}
