//! Network namespaces, and the devices between them.

use crate::process::this_program;
use anyhow::Context as _;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Data in a full segment of Ethernet's 1500 bytes (IPv4, TCP with timestamps), and what is around it.
const SEGMENT: (u64, u64) = (1448, 66);

/// A token bucket takes whole packets, which are up to 64 KiB as long as nobody has cut them.
const BURST: &str = "70kb";

/// The address of one end of link `n`, of the range that is set aside for measurements (RFC 2544).
pub(super) fn address(link: usize, target: bool) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, link as u8, if target { 2 } else { 1 })
}

/// This program in a network namespace of its own: what `unshare` is to start. The namespace goes with its last process.
fn isolated() -> anyhow::Result<Command> {
    let mut command = Command::new("unshare");
    command.arg("--net");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg("--").arg(this_program()?);
    Ok(command)
}

/// See [`super::enter`].
pub(super) fn enter(arguments: &[String]) -> anyhow::Error {
    match isolated() {
        Ok(mut command) => anyhow::Error::new(command.args(arguments).exec())
            .context("starting anew with unshare (of util-linux) in a network namespace"),
        Err(error) => error,
    }
}

/// This program with `arguments` in a namespace beside ours.
pub(super) fn beside(arguments: &[String]) -> anyhow::Result<Command> {
    let mut command = isolated()?;
    command.args(arguments);
    Ok(command)
}

/// Makes link `n`, with its other end in the namespace of `process`, and sets this end up.
pub(super) fn link(n: usize, process: u32) -> anyhow::Result<()> {
    // The system takes a namespace apart some time after its last process has ended: a link to one that is over may still be there.
    let _ = call("ip", &format!("link delete {}", device(n, false)));
    call("ip", &format!("link add {} type veth peer name {} netns {process}", device(n, false), device(n, true)))?;
    up(n, false)
}

/// Sets one end of link `n` up; to be called in its namespace.
pub(super) fn up(n: usize, target: bool) -> anyhow::Result<()> {
    let device = device(n, target);
    call("ip", &format!("address add {}/30 dev {device}", address(n, target)))?;
    call("ip", &format!("link set {device} up"))
}

/// Makes the target's end of link `n` a tap device here, whose other end is for a guest, and sets it up; its name.
pub(super) fn tap(n: usize) -> anyhow::Result<String> {
    let device = device(n, true);
    call("ip", &format!("tuntap add dev {device} mode tap"))?;
    up(n, true)?;
    Ok(device)
}

/// Lets so many bytes of data a second leave link `n` at this end, in answers of `bs` bytes with `header` bytes before them; 0 for no limit.
pub(super) fn limit(n: usize, target: bool, bytes_per_s: u64, bs: u64, header: u64) -> anyhow::Result<()> {
    let device = device(n, target);
    // There may be none yet.
    let _ = call("tc", &format!("qdisc delete dev {device} root"));
    if bytes_per_s == 0 {
        return Ok(());
    }
    let bits = on_the_wire(bytes_per_s, bs, header) * 8;
    call("tc", &format!("qdisc add dev {device} root handle 1: htb default 10"))?;
    call(
        "tc",
        &format!(
            "class add dev {device} parent 1: classid 1:10 htb rate {bits}bit ceil {bits}bit burst {BURST} cburst {BURST} quantum 60000"
        ),
    )
}

/// What `bytes_per_s` of data take on the wire.
pub(super) fn on_the_wire(bytes_per_s: u64, bs: u64, header: u64) -> u64 {
    let (data, around) = SEGMENT;
    let of_pdus = u128::from(bytes_per_s) * u128::from(bs + header) / u128::from(bs);
    (of_pdus * u128::from(data + around) / u128::from(data)) as u64
}

/// What leaves this end of link `n` is for nobody from now on: its frames bear an address that the other end does not have.
pub(super) fn cut(n: usize, target: bool) -> anyhow::Result<()> {
    call(
        "ip",
        &format!(
            "neighbour replace {} dev {} lladdr 02:00:00:00:00:fe nud permanent",
            address(n, !target),
            device(n, target)
        ),
    )
}

/// Ends [`cut`].
pub(super) fn restore(n: usize, target: bool) -> anyhow::Result<()> {
    call("ip", &format!("neighbour delete {} dev {}", address(n, !target), device(n, target)))
}

fn device(n: usize, target: bool) -> String {
    format!("{}{n}", if target { "target" } else { "host" })
}

fn call(program: &str, arguments: &str) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .with_context(|| format!("{program} (of iproute2) cannot be started"))?;
    anyhow::ensure!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")
    );
    Ok(())
}
