//! What guests hear of ends: no error that is none of the disk, and every loss.

use super::*;

/// Two guests share a disk. What one of them says of its cache is not taken back by what the other says.
#[test]
fn the_word_of_one_guest_is_not_forgotten_for_another_of_the_same_disk() -> Result<()> {
    let dir = TempDir::new()?;
    let mut daemon = start_in(dir.path(), &with_socket(dir.path()))?;
    let second = dir.path().join("second.sock");
    daemon.rpc("vhost_create", &json!({ "disk": "disk", "socket": second }))?;
    let (mut one, mut other) = (Wire::connect(&daemon.socket)?, Wire::connect(&second)?);
    one.set_writeback(false)?;
    other.set_writeback(false)?;
    other.set_writeback(true)?;
    let mark = daemon.process().log().with_file_name("state").join("disk.json");
    let word: Value = serde_json::from_str(&fs::read_to_string(mark)?)?;
    ensure!(word["write_through"] == true, "the first guest still counts on it: {word}");
    daemon.stop()
}

/// What the guest hears of its write. That its back-end has gone is no error of the disk: a front-end that keeps a record goes on with the
/// next one. An error is one.
fn hears_no_error(guest: &mut FrontEnd, daemon: &mut Daemon) -> Result<()> {
    let done = guest.wait(LIMIT);
    let told = done.iter().any(|c| c.tag == 2 && c.status.code == Code::Aborted);
    ensure!(!told, "the guest was told of an I/O error because the daemon ended: {done:?}\n{}", log(daemon)?);
    Ok(())
}

/// A socket is being deleted, which takes as long as its requests; SIGTERM comes meanwhile.
#[test]
fn a_termination_while_a_socket_is_deleted_fails_none_of_its_requests() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_while_deleting", &[]) else { return Ok(()) };
    let (_target, mut daemon, mut guest, _region) = without_a_path(&lab)?;
    let _call = call(&daemon, "vhost_delete", &json!({ "socket": daemon.socket }))?;
    thread::sleep(Duration::from_secs(1));
    daemon.process().signal(Signal::TERM)?;
    hears_no_error(&mut guest, &mut daemon)
}

/// The socket could not be drained in time, which its operator was told. Then comes SIGTERM.
#[test]
fn a_termination_after_a_socket_that_did_not_drain_fails_none_of_its_requests() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_after_deleting", &[]) else { return Ok(()) };
    let (_target, mut daemon, mut guest, _region) = without_a_path(&lab)?;
    not_drained(&daemon)?;
    daemon.process().signal(Signal::TERM)?;
    hears_no_error(&mut guest, &mut daemon)?;
    let status = daemon.process().wait(LIMIT)?;
    ensure!(!status.success(), "it says that all was drained");
    Ok(())
}

/// The same, and the disk is to be deleted.
#[test]
fn a_disk_with_requests_of_a_deleted_socket_in_flight_is_not_deleted() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_delete_disk", &[]) else { return Ok(()) };
    let (_target, mut daemon, mut guest, _region) = without_a_path(&lab)?;
    not_drained(&daemon)?;
    let deleted = daemon.rpc("disk_delete", &json!({ "name": "disk" }));
    let done = guest.wait(Duration::from_secs(5));
    ensure!(deleted.is_err() && done.is_empty(), "{deleted:?}; the guest heard {done:?}\n{}", log(&mut daemon)?);
    Ok(())
}

fn not_drained(daemon: &Daemon) -> Result<()> {
    let mut answer = String::new();
    let mut call = call(daemon, "vhost_delete", &json!({ "socket": daemon.socket }))?;
    call.set_read_timeout(Some(LIMIT))?;
    call.shutdown(std::net::Shutdown::Write)?;
    call.read_to_string(&mut answer)?;
    ensure!(answer.contains("in flight"), "{answer}");
    Ok(())
}

// What a flush says, whoever is asked.

/// A target whose medium has a cache that can lose its power.
struct Volatile {
    _process: Process,
    control: std::path::PathBuf,
    uri: String,
}

impl Volatile {
    fn start(lab: &Lab) -> Result<Volatile> {
        Volatile::start_as(lab, "target", "cache=volatile")
    }

    /// A target called `name`, its namespace with `options`.
    fn start_as(lab: &Lab, name: &str, options: &str) -> Result<Volatile> {
        let control = lab.path(&format!("{name}.ctl"));
        let words = ["--listen", "127.0.0.1:0", "--subsystem", Target::NQN, "--namespace"];
        let mut words = words.map(str::to_owned).to_vec();
        words.extend([format!("ram://16MiB?nsid=1&{options}"), "--control".to_owned()]);
        words.push(control.display().to_string());
        let mut process = Process::start(&program("polypath-target")?, &words, lab.log(name))?;
        process.wait_for_answer(&control, LIMIT)?;
        let log = process.log().to_owned();
        let port = || -> Result<Option<u16>> {
            let text = fs::read_to_string(&log)?;
            let port = text.lines().find_map(|line| line.strip_prefix("listening on 127.0.0.1:"));
            Ok(port.and_then(|port| port.parse().ok()))
        };
        wait_for("its port", || Ok(port()?.is_some()))?;
        let port = port()?.context("a port")?;
        let uri = format!("nvme-tcp://127.0.0.1:{port}/{}?ns=1&keep_alive_ms=1000", Target::NQN);
        Ok(Volatile { _process: process, control, uri })
    }

    fn lose_power(&self) -> Result<()> {
        let mut stream = UnixStream::connect(&self.control)?;
        stream.set_read_timeout(Some(LIMIT))?;
        writeln!(stream, "{}", json!({ "cmd": "power_loss" }))?;
        let answer = serde_json::Deserializer::from_reader(stream).into_iter::<Value>().next();
        let answer = answer.context("no answer")??;
        ensure!(answer["ok"] == true, "{answer}");
        Ok(())
    }
}

/// A flush that succeeds says that what was written before is there. Between the write and the flush, the daemon is another one and
/// the target has lost its power: neither of them knows alone, and the guest, which outlives the daemon, must not be told that all is well
/// unless it is. A daemon that ends in order has flushed; one that was killed has not.
#[test]
fn a_loss_of_power_between_two_daemons_is_told_with_the_next_flush() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_power", &[]) else { return Ok(()) };
    let target = Volatile::start(&lab)?;
    let region = region()?;
    let window = region.window(0, LEN.into()).context("a window")?;
    for (n, end) in ["it goes on", "SIGTERM", "SIGKILL"].into_iter().enumerate() {
        let mut daemon = Daemon::start(&lab, std::slice::from_ref(&target.uri), 1)?;
        // It does not let go of its ring, which would flush what it has written.
        let mut guest = FrontEnd::connect(&daemon)?;
        let pattern = [0x11 * (n as u8 + 1); LEN as usize];
        window.copy_in(0, &pattern)?;
        guest.written(1, &region)?;
        match end {
            "SIGTERM" => daemon.stop()?,
            "SIGKILL" => {
                daemon.process().kill()?;
                drop(daemon);
            }
            _ => {
                target.lose_power()?;
                let told = guest.flush()?;
                ensure!(told != Code::Ok, "what was written is lost, and the flush says {told:?}");
                ensure!(guest.flush()? == Code::Ok, "told once");
                daemon.stop()?;
                continue;
            }
        }
        target.lose_power()?;
        daemon = Daemon::start(&lab, std::slice::from_ref(&target.uri), 1)?;
        guest = FrontEnd::connect(&daemon)?;
        let told = guest.flush()?;
        guest.read(1, &region)?;
        ensure!(guest.done(1)? == Code::Ok);
        let mut there = [0; LEN as usize];
        window.copy_out(0, &mut there)?;
        let kept = there == pattern;
        ensure!(told == Code::Ok || !kept, "{end}: nothing is lost, and the flush says {told:?}");
        ensure!(told != Code::Ok || kept, "{end}: what was written is lost, and the flush says {told:?}");
        ensure!(kept == (end == "SIGTERM"), "{end}: {kept}");
        ensure!(guest.flush()? == Code::Ok, "{end}: told once");
        daemon.stop()?;
    }
    Ok(())
}

/// One of the paths leads to another disk, which the daemon has said. The next daemon, started under the same guest while the right path is
/// away, must not take that one for the guest's disk: what was in flight, and all that follows, would be written there.
#[test]
fn a_disk_does_not_become_another_one_with_another_daemon() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_identity", &[]) else { return Ok(()) };
    let of = |digit: &str| format!("nguid={}&uuid={}", digit.repeat(32), digit.repeat(32));
    let right = Volatile::start_as(&lab, "right", &of("1"))?;
    let wrong = Volatile::start_as(&lab, "wrong", &of("2"))?;
    let region = region()?;
    let daemon = Daemon::start(&lab, std::slice::from_ref(&right.uri), 1)?;
    let mut guest = FrontEnd::connect(&daemon)?;
    guest.written(1, &region)?;
    let added = daemon.rpc("path_add", &json!({ "disk": "disk", "uri": wrong.uri, "wait_ms": 20_000 }))?;
    ensure!(added["state"] == "quarantined", "{added}");
    daemon.stop()?;
    let both = [right.uri.clone(), wrong.uri.clone()];
    drop(right);
    let daemon = Daemon::start(&lab, &both, 1)?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        let disk = disk(&daemon)?;
        ensure!(disk["paths"][1]["state"] != "usable", "guests are served another disk: {:#}", disk["identity"]);
        thread::sleep(Duration::from_millis(20));
    }
    drop(guest);
    daemon.stop()
}

/// Two guests share a disk, and both have written. Both hear that it is lost.
#[test]
fn a_loss_of_power_is_told_to_each_guest_of_the_disk() -> Result<()> {
    let Some(lab) = Lab::enter("blkio", "ends_power_shared", &[]) else { return Ok(()) };
    let target = Volatile::start(&lab)?;
    let region = region()?;
    let mut daemon = Daemon::start(&lab, std::slice::from_ref(&target.uri), 1)?;
    let (first, second) = (daemon.socket.clone(), lab.path("second.sock"));
    daemon.rpc("vhost_create", &json!({ "disk": "disk", "socket": second }))?;
    let mut one = FrontEnd::connect(&daemon)?;
    daemon.socket = second;
    let mut other = FrontEnd::connect(&daemon)?;
    daemon.socket = first;
    one.written(1, &region)?;
    other.written(2, &region)?;
    target.lose_power()?;
    let told = (one.flush()?, other.flush()?);
    ensure!(told.0 != Code::Ok && told.1 != Code::Ok, "{told:?}");
    daemon.stop()
}
