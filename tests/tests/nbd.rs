//! Everybody else's NBD clients against our exports: what they copy, write and verify must be what is there, over UNIX and TCP sockets, also
//! while paths of a group over NVMe/TCP and iSCSI die.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use polypath_tests::lab::{find_program, free_port};
use polypath_tests::peers::nbd_guest;
use polypath_tests::products::{Daemon, Target, program, program_of};
use polypath_tests::{Console, Lab, Need, Process};
use serde_json::{Value, json};

const TOOLS: [Need; 4] =
    [Need::Program("nbdinfo"), Need::Program("nbdcopy"), Need::Program("qemu-img"), Need::Program("qemu-io")];
const FIO: [Need; 1] = [Need::Program("fio")];
const GUEST: [Need; 7] = [
    Need::Program("nbd-client"),
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::Program("modprobe"),
    Need::Program("mke2fs"),
    Need::Program("e2fsck"),
    Need::GuestKernel,
];
const MINUTE: Duration = Duration::from_secs(60);

/// `polypath nbd`, which says where it is when it is ready.
struct Cli {
    process: Process,
    _console: Console,
    uri: String,
}

impl Cli {
    fn start(lab: &Lab, name: &str, arguments: &[&str]) -> Result<Cli> {
        let mut line = vec!["nbd"];
        line.extend(arguments);
        let program = program_of("polypath-cli", "polypath")?;
        let (process, mut console) = Process::start_with_console(&program, &line, lab.log(name))?;
        let uri = console.wait_for(MINUTE, |line| Some(line.rsplit_once(", ")?.1.to_owned()));
        let uri = uri.with_context(|| process.log_tail())?;
        Ok(Cli { process, _console: console, uri })
    }

    fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(MINUTE)?;
        ensure!(status.success(), "polypath nbd ended with {status}\n{}", self.process.log_tail());
        Ok(())
    }
}

/// Runs one of their programs to its end; what it says is the answer.
fn tool(name: &str, arguments: &[&str]) -> Result<String> {
    let program = find_program(name).with_context(|| format!("{name} is not installed"))?;
    let output = Command::new(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} {arguments:?} ended with {}:\n{said}", output.status);
    Ok(said)
}

/// A file of `mib` MiB in which no two blocks of 512 bytes are the same.
fn image(lab: &Lab, name: &str, mib: u64) -> Result<PathBuf> {
    let path = lab.path(name);
    let mut data = Vec::with_capacity((mib << 20) as usize);
    let mut word = 0x9e37_79b9_7f4a_7c15_u64 ^ mib;
    while data.len() < (mib << 20) as usize {
        // xorshift64
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        data.extend_from_slice(&word.to_le_bytes());
    }
    std::fs::write(&path, data)?;
    Ok(path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the lab is text")
}

fn same(one: &Path, other: &Path) -> Result<()> {
    let (one_data, other_data) = (std::fs::read(one)?, std::fs::read(other)?);
    let differs = one_data.iter().zip(&other_data).position(|(one, other)| one != other);
    ensure!(
        one_data.len() == other_data.len() && differs.is_none(),
        "{} ({} bytes) and {} ({} bytes) differ at {differs:?}",
        one.display(),
        one_data.len(),
        other.display(),
        other_data.len()
    );
    Ok(())
}

#[test]
fn tools_copy_what_is_there_over_unix_and_tcp_sockets() -> Result<()> {
    let Some(lab) = Lab::enter("nbd-tools", "nbd_tools", &TOOLS) else { return Ok(()) };
    let source = image(&lab, "source.img", 40)?;
    let disk = lab.disk_image("disk.img", 40 << 20)?;
    let (socket, port) = (lab.path("n.sock"), free_port()?);
    let address = format!("127.0.0.1:{port}");
    let (unix, tcp) = (["--socket", text(&socket)], ["--listen", &address]);
    for (name, place, block) in [("unix", unix, 512), ("tcp", tcp, 512), ("large-blocks", unix, 4096)] {
        std::fs::write(&disk, vec![0; 40 << 20])?;
        let arguments = [&format!("file://{}?bs={block}", disk.display()), place[0], place[1], "--name", "a disk"];
        let server = Cli::start(&lab, name, &arguments)?;
        let uri = server.uri.as_str();
        let told: Value = serde_json::from_str(&tool("nbdinfo", &["--json", uri])?)?;
        let export = &told["exports"][0];
        ensure!(told["protocol"] == "newstyle-fixed" && told["structured"] == true, "{told:#}");
        ensure!(export["export-size"] == 40 << 20 && export["export-name"] == "a disk", "{told:#}");
        ensure!(export["contexts"] == json!(["base:allocation"]) && export["is_read_only"] == false, "{told:#}");
        for can in ["can_multi_conn", "can_flush", "can_fua", "can_zero", "can_fast_zero", "can_df"] {
            ensure!(export[can] == true, "{can}: {told:#}");
        }
        ensure!(export["block_size_minimum"] == block && export["block_size_maximum"] == 32 << 20, "{told:#}");
        let listed = tool("nbdinfo", &["--list", uri])?;
        ensure!(listed.contains("export=\"a disk\""), "{listed}");
        let map: Value = serde_json::from_str(&tool("nbdinfo", &["--map", "--json", uri])?)?;
        ensure!(map[0]["length"] == 40 << 20 && map[0]["type"] == 0 && map[1].is_null(), "{map:#}");

        tool("nbdcopy", &["--flush", text(&source), uri])?;
        same(&source, &disk)?;
        let back = lab.path("back.img");
        tool("nbdcopy", &[uri, text(&back)])?;
        same(&source, &back)?;
        std::fs::write(&disk, vec![0xff; 40 << 20])?;
        tool("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&source), uri])?;
        same(&source, &disk)?;
        let compared = tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&source), uri])?;
        ensure!(compared.contains("identical"), "{compared}");
        tool("qemu-img", &["convert", "-f", "raw", "-O", "raw", uri, text(&back)])?;
        same(&source, &back)?;
        server.stop()?;
        ensure!(!socket.exists(), "its file is removed");
    }
    Ok(())
}

#[test]
fn qemu_io_writes_zeroes_trims_and_hears_errors() -> Result<()> {
    let Some(lab) = Lab::enter("nbd-tools", "nbd_qemu_io", &TOOLS) else { return Ok(()) };
    let disk = lab.disk_image("disk.img", 8 << 20)?;
    let disk_uri = format!("file://{}", disk.display());
    let socket = lab.path("n.sock");
    let server = Cli::start(&lab, "polypath", &[&disk_uri, "--socket", text(&socket)])?;
    let io = |uri: &str, commands: &[&str]| {
        let mut line = vec!["-f", "raw", "-d", "unmap"];
        commands.iter().for_each(|command| line.extend(["-c", command]));
        line.push(uri);
        tool("qemu-io", &line)
    };
    let commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 1M 64k",
        "write -z 64k 64k",
        "write -z -u 192k 64k",
        "discard 320k 64k",
        "flush",
        "aio_write -P 0x33 2M 1M",
        "aio_write -P 0x44 3M 1M",
        "aio_flush",
        "read -P 0x11 0 64k",
        "read -P 0 64k 64k",
        "read -P 0x11 128k 64k",
        "read -P 0 192k 64k",
        "read -P 0x11 256k 64k",
        "read -P 0x22 1M 64k",
        "read -P 0x33 2M 1M",
        "read -P 0x44 3M 1M",
    ];
    let said = io(&server.uri, &commands)?;
    ensure!(!said.contains("failed") && !said.contains("error"), "{said}");
    server.stop()?;
    let data = std::fs::read(&disk)?;
    ensure!(data[1 << 20..][..65536].iter().all(|&byte| byte == 0x22) && data[65536..131072] == [0; 65536]);

    let server = Cli::start(&lab, "read-only", &[&disk_uri, "--socket", text(&socket), "--read-only"])?;
    let refused = io(&server.uri, &["write -P 0x55 0 4k"]);
    ensure!(refused.is_err(), "a read-only export was written to: {refused:?}");
    tool("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0x11 0 64k", &server.uri])?;
    let told: Value = serde_json::from_str(&tool("nbdinfo", &["--json", &server.uri])?)?;
    ensure!(told["exports"][0]["is_read_only"] == true && told["exports"][0]["can_zero"] == false, "{told:#}");
    server.stop()?;
    ensure!(data == std::fs::read(&disk)?, "nothing was changed");
    Ok(())
}

/// A daemon with a disk of all paths of this target, two for each protocol, exported at a socket and at a port.
fn export(lab: &Lab, target: &Target) -> Result<(Daemon, String, String)> {
    let mut daemon = Daemon::start(lab, &target.uris(), 1)?;
    let until = Instant::now() + MINUTE;
    while daemon.paths()?.iter().any(|path| path["state"] != "usable") {
        ensure!(Instant::now() < until, "{:#?}\n{}", daemon.paths()?, daemon.process().log_tail());
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let socket = lab.path("n.sock");
    daemon.rpc("nbd_create", &json!({ "disk": "disk", "socket": socket }))?;
    let made = daemon.rpc("nbd_create", &json!({ "disk": "disk", "address": "127.0.0.1:0", "name": "tcp" }))?;
    let address = made["address"].as_str().context("an address")?.to_owned();
    Ok((daemon, format!("nbd+unix:///disk?socket={}", socket.display()), format!("nbd://{address}/tcp")))
}

/// What an export of a daemon has done.
fn done(daemon: &Daemon, name: &str, key: &str) -> Result<u64> {
    let all = daemon.rpc("nbd_list", &json!({}))?;
    let export = all.as_array().context("a list")?.iter().find(|export| export["name"] == name);
    export.and_then(|export| export[key].as_u64()).with_context(|| format!("{name}, {key}: {all:#}"))
}

/// Every path has carried I/O, and of each protocol one was lost.
fn all_paths_were_used(daemon: &Daemon) -> Result<()> {
    let paths = daemon.paths()?;
    ensure!(paths.len() == 4 && paths.iter().all(|path| path["ios"].as_u64() > Some(0)), "{paths:#?}");
    for protocol in ["nvme-tcp:", "iscsi:"] {
        let lost = |path: &&Value| {
            path["uri"].as_str().is_some_and(|uri| uri.starts_with(protocol)) && path["failures"].as_u64() > Some(0)
        };
        ensure!(paths.iter().any(|path| lost(&path)), "no path over {protocol} was lost: {paths:#?}");
    }
    Ok(())
}

/// Waits until an export has written more than `bytes`, while `client` is still at it.
fn wait_written(daemon: &Daemon, name: &str, bytes: u64, client: &mut Process) -> Result<()> {
    let until = Instant::now() + MINUTE;
    while done(daemon, name, "bytes_written")? <= bytes {
        ensure!(client.ended()?.is_none(), "the client ended before {bytes} bytes were written\n{}", client.log_tail());
        ensure!(Instant::now() < until, "{bytes} bytes were not written in time");
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn copies_equal_their_source_while_paths_die() -> Result<()> {
    let Some(lab) = Lab::enter("nbd-tools", "nbd_paths_die", &TOOLS) else { return Ok(()) };
    let mib = 192;
    let source = image(&lab, "source.img", mib)?;
    let back = lab.path("back.img");
    let target = Target::start_mixed(&lab, mib as u32)?;
    let (daemon, unix, tcp) = export(&lab, &target)?;

    let nbdcopy = find_program("nbdcopy").context("nbdcopy")?;
    let line = ["--flush", "--connections=4", "--threads=4", text(&source), &unix];
    let mut copy = Process::start(&nbdcopy, &line, lab.log("nbdcopy"))?;
    wait_written(&daemon, "disk", 8 << 20, &mut copy)?;
    target.drop_silently(0)?;
    wait_written(&daemon, "disk", 48 << 20, &mut copy)?;
    target.reset(1)?;
    let status = copy.wait(3 * MINUTE)?;
    ensure!(status.success(), "{}", copy.log_tail());
    ensure!(done(&daemon, "disk", "connections")? >= 4, "several connections to one export");
    tool("nbdcopy", &[&tcp, text(&back)])?;
    same(&source, &back)?;

    target.restore(0)?;
    let other = image(&lab, "other.img", mib - 1)?;
    let qemu_img = find_program("qemu-img").context("qemu-img")?;
    let before = done(&daemon, "tcp", "bytes_written")?;
    let line = ["convert", "-n", "-f", "raw", "-O", "raw", text(&other), &tcp];
    let mut convert = Process::start(&qemu_img, &line, lab.log("qemu-img"))?;
    wait_written(&daemon, "tcp", before + (8 << 20), &mut convert)?;
    target.drop_silently(2)?;
    wait_written(&daemon, "tcp", before + (48 << 20), &mut convert)?;
    target.reset(3)?;
    let status = convert.wait(3 * MINUTE)?;
    ensure!(status.success(), "{}", convert.log_tail());
    tool("nbdcopy", &[&unix, text(&back)])?;
    // The last MiB is that of the first copy.
    let (back, other, source) = (std::fs::read(&back)?, std::fs::read(&other)?, std::fs::read(&source)?);
    ensure!(back[..other.len()] == other[..] && back[other.len()..] == source[other.len()..]);
    ensure!(done(&daemon, "disk", "errors")? == 0 && done(&daemon, "tcp", "errors")? == 0);
    all_paths_were_used(&daemon)?;
    daemon.stop()
}

#[test]
fn fio_verifies_what_it_writes_while_paths_die() -> Result<()> {
    let Some(lab) = Lab::enter("fio-nbd", "nbd_fio", &FIO) else { return Ok(()) };
    let engines = tool("fio", &["--enghelp"])?;
    ensure!(engines.split_whitespace().any(|engine| engine == "nbd"), "this fio has no nbd engine: {engines}");
    let target = Target::start_mixed(&lab, 64)?;
    let (daemon, unix, tcp) = export(&lab, &target)?;
    let job = |uri: &str, seed: &str| {
        ["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=16", "--verify=crc32c"]
            .map(str::to_owned)
            .into_iter()
            .chain(
                ["--verify_fatal=1", "--do_verify=1", "--fsync=64", "--size=64m", "--allow_file_create=0"]
                    .map(str::to_owned),
            )
            // Nor does it leave a file behind where it was started.
            .chain([format!("--uri={uri}"), format!("--randseed={seed}"), "--verify_state_save=0".to_owned()])
            .collect::<Vec<_>>()
    };
    let fio = find_program("fio").context("fio")?;
    for (name, uri, seed, lost) in [("disk", &unix, "1", 0), ("tcp", &tcp, "2", 1)] {
        let mut run = Process::start(&fio, &job(uri, seed), lab.log(name))?;
        wait_written(&daemon, name, 4 << 20, &mut run)?;
        target.drop_silently(lost)?;
        wait_written(&daemon, name, 16 << 20, &mut run)?;
        target.reset(2)?;
        let status = run.wait(3 * MINUTE)?;
        ensure!(status.success(), "{}", run.log_tail());
        target.restore(lost)?;
        ensure!(done(&daemon, name, "errors")? == 0 && done(&daemon, name, "bytes_read")? >= 16 << 20);
    }
    all_paths_were_used(&daemon)?;
    daemon.stop()
}

/// What a killed daemon has sent may still land: the next one lets reads through, and changes when that is over.
#[test]
fn changes_wait_after_a_daemon_that_was_killed() -> Result<()> {
    let Some(lab) = Lab::enter("nbd-tools", "nbd_killed", &TOOLS) else { return Ok(()) };
    let target = Target::start(&lab, 2, 16)?;
    let (rpc, socket, file) = (lab.path("rpc.sock"), lab.path("n.sock"), lab.path("polypathd.toml"));
    let paths: Vec<_> = target.uris().iter().map(|uri| format!("\"{uri}\"")).collect();
    std::fs::write(
        &file,
        format!(
            "[daemon]\nrpc_socket = \"{}\"\nstate_dir = \"{}\"\n[[disk]]\nname = \"disk\"\npaths = [{}]\n[[nbd]]\ndisk = \"disk\"\nsocket = \"{}\"\n",
            rpc.display(),
            lab.path("state").display(),
            paths.join(", "),
            socket.display()
        ),
    )?;
    let arguments = ["-c".to_owned(), text(&file).to_owned()];
    let start = |name: &str| Daemon::start_with(&arguments, lab.log(name), rpc.clone(), socket.clone());
    let checked = Command::new(program("polypathd")?).args(&arguments).arg("--check").output()?;
    let said = String::from_utf8_lossy(&checked.stdout);
    ensure!(checked.status.success() && said.contains("1 NBD export"), "{said}");
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let io = |command: &str| tool("qemu-io", &["-f", "raw", "-c", command, &uri]);

    let mut killed = start("killed")?;
    io("write -P 0x11 0 1M")?;
    killed.process().kill()?;
    let next = start("next")?;
    let begun = Instant::now();
    io("read -P 0x11 0 1M")?;
    let read = begun.elapsed();
    io("write -P 0x22 0 1M")?;
    let written = begun.elapsed();
    // Twice the keep-alive timeout of a second, and the time that the target says it needs to quiesce.
    ensure!(read < Duration::from_secs(2) && written > Duration::from_secs(2), "{read:?} {written:?}");
    io("read -P 0x22 0 1M")?;
    next.stop()?;
    // After an end in order nothing waits.
    let last = start("last")?;
    let begun = Instant::now();
    io("write -P 0x33 0 1M")?;
    ensure!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    last.stop()
}

#[test]
fn linux_keeps_a_file_system_on_an_export_while_a_path_dies() -> Result<()> {
    let Some(lab) = Lab::enter("linux-nbd", "nbd_linux", &GUEST) else { return Ok(()) };
    let target = Target::start_mixed(&lab, 256)?;
    let (daemon, _, tcp) = export(&lab, &target)?;
    let port = tcp.trim_start_matches("nbd://127.0.0.1:").trim_end_matches("/tcp");
    let mut guest = nbd_guest(&lab)?;
    let size = guest.run(&format!("nbd_connect {port} tcp 512 2"), MINUTE)?;
    ensure!(size.lines().any(|line| line == (256 << 20).to_string()), "{size}");
    guest.run("raw_rounds 1 2 8", 3 * MINUTE)?;
    guest.run("fs_make", MINUTE)?;
    let rounds = guest.begin("fs_rounds 1 5 16")?;
    guest.wait_for_line(&rounds, "ROUND 2", 3 * MINUTE)?;
    target.drop_silently(0)?;
    guest.wait_for_line(&rounds, "ROUND 4", 3 * MINUTE)?;
    target.reset(1)?;
    target.restore(0)?;
    guest.finish(rounds, 5 * MINUTE)?;
    guest.run("fs_fsck", MINUTE)?;
    let errors = guest.run("io_errors", MINUTE)?;
    ensure!(errors.is_empty(), "the guest's kernel saw I/O errors:\n{errors}");
    ensure!(done(&daemon, "tcp", "clients")? == 2, "two connections");
    all_paths_were_used(&daemon)?;
    guest.run("nbd_disconnect", MINUTE)?;
    drop(guest);
    daemon.stop()
}
