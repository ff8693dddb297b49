//! A guest, a target beside it, and four links between them whose limits are on the target's end.

use super::Initiator;
use super::figures::Figures;
use crate::experiment::SumpConfig;
use crate::experiment::load::{self, LINKS};
use crate::experiment::network::{self, address};
use crate::process::this_program;
use crate::protocol::Protocol;
use anyhow::Context as _;
use polypath_lab::tgt::Tgt;
use polypath_lab::{Guest, GuestSpec, Lab, Need};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

/// Of the disk; what is read of it stays in the page cache of the target's machine.
const DISK_MIB: u64 = 64;
/// fio has many libraries.
const MEMORY_MIB: u32 = 1024;
const PORT: u16 = 3260;
/// For a command in the guest that takes no time of its own.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);
/// Names the User-Mode Linux.
const UML: &str = "POLYPATH_LAB_UML";

/// A kind of guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::experiment) enum Kind {
    Qemu,
    UserModeLinux,
}

impl Kind {
    pub(in crate::experiment) const ALL: [Kind; 2] = [Kind::Qemu, Kind::UserModeLinux];

    /// In the names of files.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Qemu => "qemu",
            Kind::UserModeLinux => "uml",
        }
    }

    /// For people.
    pub(in crate::experiment) fn words(self) -> &'static str {
        match self {
            Kind::Qemu => "a QEMU guest",
            Kind::UserModeLinux => "User-Mode Linux",
        }
    }

    /// What this machine lacks for it, and how to get that.
    pub(super) fn missing(self) -> Option<String> {
        let shared = ["busybox", "fio", "iscsistart", "dmsetup", "tgtd", "tgtadm"].map(Need::Program);
        let own: &[Need] = match self {
            Kind::Qemu => &[Need::Program("qemu-system-x86_64"), Need::Program("modprobe"), Need::GuestKernel],
            Kind::UserModeLinux => &[Need::FileNamedBy(UML)],
        };
        let missing = shared.iter().chain(own).find_map(|need| need.missing())?;
        Some(match self {
            Kind::Qemu => missing,
            Kind::UserModeLinux => format!(
                "{missing} (a User-Mode Linux of at least 6.12 with ISCSI_TCP, BLK_DEV_SD, DM_MULTIPATH_QL and UML_NET_VECTOR built in)"
            ),
        })
    }

    /// Its links are its own.
    fn first_link(self) -> usize {
        match self {
            Kind::Qemu => 16,
            Kind::UserModeLinux => 24,
        }
    }

    fn card(self, n: usize) -> String {
        match self {
            Kind::Qemu => format!("eth{n}"),
            Kind::UserModeLinux => format!("vec{n}"),
        }
    }
}

pub(super) struct Arrangement {
    pub(super) kind: Kind,
    guest: Guest,
    tgt: Tgt,
    time: Duration,
    qd: u16,
    /// The guest's kernel.
    pub(super) release: String,
    /// What it takes the time from.
    pub(super) clock: String,
    // Last, as guest and target have files there.
    _lab: Lab,
}

impl Arrangement {
    /// Boots the guest and has its kernel attach to the target over all links.
    pub(super) fn start(kind: Kind, config: &SumpConfig) -> anyhow::Result<Arrangement> {
        let lab = Lab::with_logs(config.out.join("logs").join(kind.as_str()))?;
        let mut taps = Vec::new();
        for n in 0..LINKS {
            taps.push(network::tap(kind.first_link() + n)?);
        }
        let portals: Vec<SocketAddrV4> =
            (0..LINKS).map(|n| SocketAddrV4::new(address(kind.first_link() + n, true), PORT)).collect();
        let tgt = Tgt::start_at(&lab, &portals, 1, DISK_MIB).context("starting tgtd")?;
        let spec = taps.iter().fold(spec(&lab)?, |spec, tap| spec.tap(tap));
        let mut guest = match kind {
            Kind::Qemu => Guest::boot(&lab, &spec)?,
            Kind::UserModeLinux => {
                let kernel = PathBuf::from(std::env::var_os(UML).with_context(|| format!("{UML} is not set"))?);
                Guest::boot_user_mode_linux_on_taps(&lab, &spec, &kernel)?
            }
        };
        for n in 0..LINKS {
            let own = address(kind.first_link() + n, false);
            guest.run(&format!("address {} {own}", kind.card(n)), COMMAND_LIMIT)?;
        }
        let addresses: Vec<String> = portals.iter().map(|portal| portal.ip().to_string()).collect();
        guest
            .run(&format!("attach {} {}", Tgt::IQN, addresses.join(" ")), COMMAND_LIMIT)
            .context("the guest's kernel does not attach to the target")?;
        let mut ask = |question| guest.run(question, COMMAND_LIMIT);
        let release = ask("uname -r")?;
        let clock = ask("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")?;
        Ok(Arrangement { kind, guest, tgt, time: config.time, qd: config.qd, release, clock, _lab: lab })
    }

    /// Why this program does not run in the guest, if it does not.
    pub(super) fn unfit(&mut self) -> Option<String> {
        let trial = "/sbin/polypath-bench run --path null://1MiB --time 10ms --ramp 0 --json /tmp/trial";
        let error = self.guest.run(trial, COMMAND_LIMIT).err()?;
        Some(format!(
            "polypath-bench does not run there (where a kernel's vDSO lacks getcpu, as that of User-Mode Linux may, one built with \
             RUSTFLAGS='--cfg rustix_use_libc' does not ask for it): {}",
            format!("{error:#}").replace('\n', "; ")
        ))
    }

    /// Limits each link to so many bytes of data a second; 0 for no limit.
    pub(super) fn limit(&self, bytes_per_s: [u64; LINKS]) -> anyhow::Result<()> {
        let header = Protocol::Iscsi.read_header() as u64;
        for (n, limit) in bytes_per_s.into_iter().enumerate() {
            network::limit(self.kind.first_link() + n, true, limit, load::BS.into(), header)?;
        }
        Ok(())
    }

    /// Lets `initiator` read for the usual time.
    pub(super) fn turn(&mut self, initiator: Initiator) -> anyhow::Result<Figures> {
        // Queues of a slow path fill in this time.
        let (ramp, time) = (self.time / 4, self.time);
        let (ramp_ms, time_ms) = (ramp.as_millis(), time.as_millis());
        let load = match initiator {
            Initiator::Kernel => format!("reads {time_ms}ms {ramp_ms}ms {}", self.qd),
            Initiator::Ours => {
                let paths: String = (0..LINKS).map(|n| format!(" --path '{}'", self.tgt.uri("", n, 1, ""))).collect();
                format!(
                    "/sbin/polypath-bench run{paths} --stated --selector queue-length --rw randread --bs {} --qd {} --time {time_ms}ms --ramp {ramp_ms}ms --json -",
                    load::BS,
                    self.qd
                )
            }
        };
        // The load goes on for a while after the window, however long the guest takes to see that it has begun.
        let window = time.as_secs_f64() * 0.7;
        let command = format!("measured {:.3} {window:.3} {load}", ramp.as_secs_f64());
        let said = self.guest.run(&command, COMMAND_LIMIT + 2 * (ramp + time))?;
        Figures::parse(&said, initiator)
    }
}

/// A guest without links.
fn spec(lab: &Lab) -> anyhow::Result<GuestSpec> {
    let us = this_program()?;
    let us = us.to_str().context("the name of this program is no text")?;
    let modules = ["sd_mod", "iscsi_tcp", "dm-multipath", "dm-queue-length", "crc32c_generic", "crc32c-intel"];
    let spec = GuestSpec::new("initiators")
        .memory_mib(MEMORY_MIB)
        .image_in(&lab.path("image"))
        .program("iscsistart")
        .program("dmsetup")
        .program("fio")
        .program(us)
        .setup("iscsi-initiator.sh");
    Ok(modules.iter().fold(spec, |spec, module| spec.module(module, "")))
}
