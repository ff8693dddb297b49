//! Records the golden octets under `crates/nvmf-tcp/tests/captures`: Linux's NVMe/TCP initiator in one guest, Linux's target in
//! another, and between them a proxy that keeps what passes. Nothing of ours makes or touches an octet, but in the capture whose name
//! begins with `polypath-target`. `docs/TESTING-captures.md` says how to use it; `cargo xtask capture` runs it.
#![forbid(unsafe_code)]
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use polypath_tests::capture::{CapturingProxy, Recording};
use polypath_tests::lab::repository;
use polypath_tests::peers::NvmetGuest;
use polypath_tests::products::Target;
use polypath_tests::{Guest, GuestSpec, Lab, Need};

const NEEDS: [Need; 6] = [
    Need::Program("qemu-system-x86_64"),
    Need::Program("busybox"),
    Need::Program("modprobe"),
    Need::Program("blkdiscard"),
    Need::Program("nvme"),
    Need::GuestKernel,
];
const LIMIT: Duration = Duration::from_secs(180);

/// One capture: what the initiator wishes for, and how much of it is kept.
struct Variant {
    name: &'static str,
    options: &'static str,
    /// How much is done on the admin queue.
    admin: Admin,
}

#[derive(PartialEq)]
enum Admin {
    /// Discovery, further questions, events and a keep alive; all of it is kept.
    Whole,
    /// Only what Linux does by itself; the first so many commands are kept.
    First(usize),
}

/// Up to Identify Controller: before the first command that is answered out of turn.
const BRING_UP: Admin = Admin::First(9);
const VARIANTS: [Variant; 4] = [
    Variant { name: "plain", options: "", admin: Admin::Whole },
    Variant { name: "digests", options: ",hdr_digest,data_digest", admin: BRING_UP },
    Variant { name: "no-sq-flow", options: ",hdr_digest,disable_sqflow", admin: BRING_UP },
    Variant { name: "data-digest", options: ",data_digest", admin: BRING_UP },
];
const OWN: &str = "polypath-target";

/// The side that answers.
enum Side {
    Linux(Box<NvmetGuest>),
    Own(Box<Target>),
}

impl Side {
    fn port(&self) -> u16 {
        match self {
            Side::Linux(guest) => guest.ports[0],
            Side::Own(target) => target.ports[0],
        }
    }

    fn nqn(&self) -> &'static str {
        match self {
            Side::Linux(_) => NvmetGuest::NQN,
            Side::Own(_) => Target::NQN,
        }
    }

    fn set_ana(&mut self, state: &str) -> Result<()> {
        match self {
            Side::Linux(guest) => guest.set_ana(1, 1, state),
            Side::Own(target) => target.set_ana(0, state),
        }
    }
}

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let known: Vec<&str> = VARIANTS.iter().map(|v| v.name).chain([OWN]).collect();
    if let Some(other) = wanted.iter().find(|w| !known.contains(&w.as_str())) {
        bail!("there is no capture `{other}`; there are: {}", known.join(", "));
    }
    let Some(lab) = Lab::enter("nvmet", "capture", &NEEDS) else { bail!("the lab is not whole") };
    let spec = GuestSpec::new("capture-initiator")
        .card(&[])
        .module("nvme-core", "multipath=Y")
        .module("nvme-tcp", "")
        .module("crc32c-intel", "")
        .program("dd")
        .program("blkdiscard")
        .program("nvme")
        .setup("capture-initiator.sh");
    let mut initiator = Guest::boot(&lab, &spec)?;
    let release = initiator.run("uname -r", LIMIT)?;
    let short: Vec<&str> = release.split('.').take(2).collect();
    if VARIANTS.iter().any(|v| wants(v.name)) {
        let mut target = Side::Linux(Box::new(NvmetGuest::start(&lab)?));
        for variant in VARIANTS.iter().filter(|v| wants(v.name)) {
            let name = format!("linux-{}-{}", short.join("."), variant.name);
            record(&name, variant, &mut initiator, &mut target).with_context(|| format!("capture {name}"))?;
        }
    }
    if wants(OWN) {
        let variant = Variant { name: OWN, options: ",hdr_digest,data_digest", admin: BRING_UP };
        let mut target = Side::Own(Box::new(Target::start(&lab, 1, 8)?));
        record(&format!("{OWN}-digests"), &variant, &mut initiator, &mut target)?;
    }
    Ok(())
}

/// Commands given to the initiator's guest, for the reader of the capture.
struct Journal<'a> {
    guest: &'a mut Guest,
    lines: String,
}

impl Journal<'_> {
    fn run(&mut self, command: &str) -> Result<String> {
        let _ = writeln!(self.lines, "initiator: {command}");
        let said = self.guest.run(command, LIMIT);
        if said.is_err() {
            eprintln!("{}", self.guest.run("dmesg | tail -n 30", LIMIT).unwrap_or_default());
        }
        said
    }

    fn note(&mut self, what: &str) {
        let _ = writeln!(self.lines, "{what}");
    }
}

fn record(name: &str, variant: &Variant, initiator: &mut Guest, target: &mut Side) -> Result<()> {
    eprintln!("recording {name}");
    let proxy = CapturingProxy::start(target.port())?;
    let mut journal = Journal { guest: initiator, lines: String::new() };
    let whole = variant.admin == Admin::Whole;
    prepare(target, &mut journal, whole)?;
    if whole {
        journal.run(&format!("find_out {}", proxy.port))?;
        proxy.wait_for("the end of discovery", LIMIT, |all| all.iter().all(Recording::is_closed))?;
    }
    let admin = connections(&proxy);
    journal.run(&format!("join {} {} {}", proxy.port, target.nqn(), variant.options))?;
    journal.run("until_true 60 disk_is_there && until_true 60 ana_is optimized")?;
    journal.run("work")?;
    if whole {
        journal.note("target: ANA group 1 becomes non-optimized");
        target.set_ana("non-optimized")?;
        journal.run("until_true 60 ana_is non-optimized")?;
        eprintln!("{}", journal.run("questions")?);
        set_second_namespace(target, &mut journal, false)?;
        journal.run("until_true 60 test ! -e /dev/nvme0n2")?;
        journal.note("nothing is done until the host sends a keep alive");
        let is_keep_alive = |all: &[Recording]| has_keep_alive(&all[admin].host_to_controller);
        proxy.wait_for("a keep alive", LIMIT, is_keep_alive)?;
    }
    journal.run("leave")?;
    let lines = std::mem::take(&mut journal.lines);
    let facts = facts(initiator, target)?;
    if whole {
        target.set_ana("optimized")?;
    }
    let mut recordings = proxy.finish(LIMIT)?;
    if let Admin::First(commands) = variant.admin {
        cut(&mut recordings[admin], commands);
    }
    store(name, variant, &facts, &lines, &recordings)
}

/// Keeps the first so many commands of a connection and everything up to the completion of the last of them.
fn cut(recording: &mut Recording, commands: usize) {
    // a command capsule; a response capsule, or data whose SUCCESS flag stands for one
    cut_after(&mut recording.host_to_controller, commands, |pdu| pdu[0] == 4);
    cut_after(&mut recording.controller_to_host, commands, |pdu| pdu[0] == 5 || pdu[0] == 7 && pdu[1] & 8 != 0);
}

fn cut_after(octets: &mut Vec<u8>, count: usize, counts: impl Fn(&[u8]) -> bool) {
    let (mut at, mut seen) = (0, 0);
    while at + 8 <= octets.len() && seen < count {
        let length = u32::from_le_bytes([octets[at + 4], octets[at + 5], octets[at + 6], octets[at + 7]]);
        seen += usize::from(counts(&octets[at..]));
        at += length as usize;
    }
    octets.truncate(at);
}

fn connections(proxy: &CapturingProxy) -> usize {
    let count = std::cell::Cell::new(0);
    // true at once: this only looks
    let _ = proxy.wait_for("", Duration::ZERO, |all| {
        count.set(all.len());
        true
    });
    count.get()
}

/// Whether a Keep Alive (opcode 18h) capsule without digests is the last PDU, which is 72 octets long.
fn has_keep_alive(octets: &[u8]) -> bool {
    octets.len() > 72 && octets[octets.len() - 72..][..9] == [4, 0, 72, 0, 72, 0, 0, 0, 0x18]
}

/// Little in-capsule data, so that little data makes an R2T; a second namespace where the whole admin queue is kept.
fn prepare(target: &mut Side, journal: &mut Journal<'_>, second: bool) -> Result<()> {
    if let Side::Linux(target) = target {
        journal.note("target: param_inline_data_size of the port is 4096");
        target.port_down(1)?;
        target.guest().run("echo 4096 > $NVMET/ports/1/param_inline_data_size", LIMIT)?;
        target.port_up(1)?;
    }
    set_second_namespace(target, journal, second)
}

fn set_second_namespace(target: &mut Side, journal: &mut Journal<'_>, on: bool) -> Result<()> {
    if let Side::Linux(target) = target {
        journal.note(&format!("target: namespace 2 {}", if on { "enabled" } else { "disabled" }));
        target.guest().run(&format!("echo {} > $SUBSYSTEM/namespaces/2/enable", u8::from(on)), LIMIT)?;
    }
    Ok(())
}

/// Lines of the README's table.
fn facts(initiator: &mut Guest, target: &mut Side) -> Result<String> {
    let kernel = "echo $(uname -r), $(uname -v)";
    let mut out = format!("| host | Linux {} |\n", initiator.run(kernel, LIMIT)?);
    match target {
        Side::Linux(guest) => {
            let _ = writeln!(out, "| controller | Linux nvmet {} |", guest.guest().run(kernel, LIMIT)?);
        }
        Side::Own(_) => {
            let commit = said_by("git", &["rev-parse", "--short", "HEAD"])?;
            let _ = writeln!(out, "| controller | polypath-target of commit {commit} or a little later |");
        }
    }
    let _ = writeln!(out, "| lab | {} |", said_by("qemu-system-x86_64", &["--version"])?);
    let _ = writeln!(out, "| nvme-cli | {} |", said_by("nvme", &["version"])?);
    let _ = writeln!(out, "| recorded | {} |", said_by("date", &["-u", "+%Y-%m-%d"])?);
    Ok(out)
}

fn said_by(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(repository()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

fn store(name: &str, variant: &Variant, facts: &str, lines: &str, recordings: &[Recording]) -> Result<()> {
    let folder: PathBuf = repository().join("crates/nvmf-tcp/tests/captures").join(name);
    let _ = fs::remove_dir_all(&folder);
    let mut text = format!(
        "# {name}\n\nWritten by `cargo xtask capture {}`; see `docs/TESTING-captures.md`.\n\n| | |\n| --- | --- |\n{facts}\n\
         Options of the connection: `{}`\n\nWhat was done, in order (the words are those of `lab/capture-initiator.sh`):\n\n```text\n{lines}```\n\n\
         | connection | host to controller | controller to host |\n| --- | --- | --- |\n",
        variant.name,
        if variant.options.is_empty() { "none" } else { variant.options.trim_start_matches(',') },
    );
    fs::create_dir_all(&folder)?;
    for (n, recording) in recordings.iter().enumerate() {
        let (host, controller) = (&recording.host_to_controller, &recording.controller_to_host);
        ensure!(host.len() >= 128 && controller.len() >= 128, "connection {n} was not even initialised");
        fs::write(folder.join(format!("host-to-controller.{n}.bin")), host)?;
        fs::write(folder.join(format!("controller-to-host.{n}.bin")), controller)?;
        let _ = writeln!(text, "| {n} | {} bytes | {} bytes |", host.len(), controller.len());
    }
    if let Admin::First(commands) = variant.admin {
        let _ = writeln!(text, "\nConnection 0 (the admin queue) was cut after its first {commands} commands.");
    }
    fs::write(folder.join("README.md"), text)?;
    eprintln!("{}: {} connections", folder.display(), recordings.len());
    Ok(())
}
