//! The command line.

use crate::experiment::ExperimentArgs;
use crate::protocol::Protocol;
use crate::ring::{MAX_QD, Medium, RingLimitConfig, RingRatioConfig, Style};
use crate::run::{Mix, RunConfig};
use crate::scale::{Part, ScaleConfig, ScaleMedium};
use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use polypath_block::{DiskUri, Identifier};
use polypath_multipath::{Failback, SelectorKind, SliceRange};
use polypath_reactor::{CpuList, IdlePolicy};
use std::path::PathBuf;
use std::time::Duration;

/// Measures and verifies disks.
#[derive(Parser, Debug)]
#[command(name = "polypath-bench", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// What loopback TCP of this machine can do at all with the bytes of 4 KiB reads over NVMe/TCP or iSCSI; what a virtio ring can with --ring
    Limit(LimitArgs),
    /// Measure a disk, and verify it if asked to. Writes destroy what is on it
    Run(RunArgs),
    /// Drive any vhost-user-blk back-end with the front-end of `limit --ring`: reads of 4 KiB. It should poll on another core
    Drive(DriveArgs),
    /// Hold an initiator against the limit (interleaved pairs against a null target, medians, cost of an I/O), or the
    /// vhost-user-blk back-end against the limit of a ring with --ring
    Ratio(RatioArgs),
    /// What growth costs: a reactor more, disks beside a busy one, paths in a group; and the memory of each
    Scale(ScaleArgs),
    /// Repeat experiments that others have published, in network namespaces of this machine: tables, CSV files and charts in a folder
    Experiment(ExperimentArgs),
    /// Serve a disk over several links until standard input ends (the target of `experiment`)
    #[command(hide = true)]
    ServeExperiment {
        /// What is spoken
        #[arg(long, value_enum)]
        protocol: Protocol,
        /// How many links
        #[arg(long)]
        links: usize,
    },
    /// Serve disks over vhost-user-blk until standard input ends, and say what they cost (a part of `scale`)
    #[command(hide = true)]
    ServeScale {
        /// Where the sockets are made
        folder: PathBuf,
        /// How many disks
        #[arg(long)]
        disks: u32,
        /// Rings of each
        #[arg(long)]
        rings: u16,
        /// The paths of each, without a namespace
        #[arg(long = "path", required = true)]
        paths: Vec<DiskUri>,
        /// Cores of the reactors
        #[arg(long)]
        cpus: CpuList,
    },
    /// Serve null disks over NVMe/TCP until standard input ends (the target of `scale`)
    #[command(hide = true)]
    ServeNamespaces {
        /// How many
        #[arg(long)]
        namespaces: u32,
        /// Portals
        #[arg(long)]
        portals: u16,
        /// A thread on each of these cores
        #[arg(long)]
        cpus: CpuList,
    },
    /// Serve a null disk over NVMe/TCP until standard input ends (the target of `ratio`)
    #[command(hide = true)]
    ServeNull {
        /// Core to pin it to
        #[arg(long)]
        cpu: usize,
        /// What it does when there is nothing to do
        #[arg(long, value_enum, default_value = "adaptive")]
        idle: IdleMode,
        /// What it speaks
        #[arg(long, value_enum, default_value = "nvme-tcp")]
        protocol: Protocol,
    },
    /// Continue a process once standard input has ended (for `ratio --ring --peer`, which stops one: it goes on also when this is killed)
    #[command(hide = true)]
    Continue {
        /// Its number
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        process: i32,
    },
    /// Serve a disk over vhost-user-blk until standard input ends (the back-end of `ratio --ring`)
    #[command(hide = true)]
    ServeRing {
        /// Where to listen
        socket: PathBuf,
        /// What the disk is made of
        #[arg(long, value_enum, default_value = "null")]
        medium: Medium,
        /// Serve the disk as it is, not as a group of one path
        #[arg(long)]
        no_group: bool,
        /// Core to pin the reactor to
        #[arg(long)]
        cpu: usize,
        /// What it does when there is nothing to do
        #[arg(long, value_enum, default_value = "poll")]
        idle: IdleMode,
    },
}

/// What to do when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum IdleMode {
    /// Spin for up to 50 microseconds, then sleep.
    Adaptive,
    /// Never sleep.
    Poll,
    /// Never spin.
    Sleep,
}

impl IdleMode {
    /// The reactor's word for it.
    pub fn policy(self) -> IdlePolicy {
        match self {
            IdleMode::Adaptive => IdlePolicy::default(),
            IdleMode::Poll => IdlePolicy::Poll,
            IdleMode::Sleep => IdlePolicy::Sleep,
        }
    }
}

/// `polypath-bench limit`.
#[derive(Args, Debug)]
pub struct LimitArgs {
    /// Requests outstanding
    #[arg(long, default_value_t = 32)]
    pub qd: usize,
    /// Seconds to measure (or with a unit: 500ms, 2m)
    #[arg(long, default_value = "2", value_parser = parse_measured)]
    pub time: Duration,
    /// Seconds to run before measuring
    #[arg(long, default_value = "0.3", value_parser = parse_time)]
    pub ramp: Duration,
    /// What both sides do when there is nothing to do
    #[arg(long, value_enum, default_value = "adaptive")]
    pub idle: IdleMode,
    /// Core of the client, then core of the server (0,1 or a mask)
    #[arg(long)]
    pub cpus: Option<CpuList>,
    /// Leave each block where recv put it, instead of copying it to its requester's buffer
    #[arg(long)]
    pub no_copy: bool,
    /// Whose bytes
    #[arg(long, value_enum, default_value = "nvme-tcp")]
    pub protocol: Protocol,
    /// Of a split virtio ring instead: a front-end on the first core, a back-end on the second that touches what any virtio-blk device
    /// must touch for a read of 4 KiB and does nothing else. Both poll
    #[arg(long, conflicts_with_all = ["idle", "no_copy", "protocol"])]
    pub ring: bool,
    /// Of the ring.
    #[command(flatten)]
    pub ring_args: RingArgs,
    /// Write one JSON object to FILE, or to standard output with -
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What is said of a ring.
#[derive(Args, Clone, Copy, Debug)]
pub struct RingArgs {
    /// With --ring: what is behind the back-end
    #[arg(long, value_enum, default_value = "null", requires = "ring")]
    pub medium: Medium,
    /// With --ring: one descriptor and a table of three for each request, instead of three descriptors
    #[arg(long, requires = "ring")]
    pub indirect: bool,
    /// With --ring: write all of each request anew, as a guest's driver does, instead of its sector alone
    #[arg(long, requires = "ring")]
    pub renew: bool,
}

impl RingArgs {
    /// How requests are put into it.
    pub fn style(&self) -> Style {
        Style { indirect: self.indirect, renew: self.renew }
    }
}

/// `polypath-bench drive`.
#[derive(Args, Debug)]
pub struct DriveArgs {
    /// Where the back-end listens
    pub socket: PathBuf,
    /// Requests outstanding
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=MAX_QD as i64))]
    pub qd: u16,
    /// Seconds to measure (or with a unit: 500ms, 2m)
    #[arg(long, default_value = "2", value_parser = parse_measured)]
    pub time: Duration,
    /// Seconds to run before measuring
    #[arg(long, default_value = "0.3", value_parser = parse_time)]
    pub ramp: Duration,
    /// Core of the front-end; the first that is allowed if not given
    #[arg(long)]
    pub cpu: Option<usize>,
    /// One descriptor and a table of three for each request, instead of three descriptors
    #[arg(long)]
    pub indirect: bool,
    /// Write all of each request anew, as a guest's driver does, instead of its sector alone
    #[arg(long)]
    pub renew: bool,
    /// Wake the back-end after every pass: for one that sleeps
    #[arg(long)]
    pub kick: bool,
    /// Write one JSON object to FILE, or to standard output with -
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `polypath-bench run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// A way to the disk; several of them make a multipath disk
    #[arg(long = "path", value_name = "URI", required = true)]
    pub paths: Vec<DiskUri>,
    /// How to choose among paths (queue-length if not given); with a single path, makes a multipath disk of it
    #[arg(long, value_name = "NAME")]
    pub selector: Option<SelectorKind>,
    /// Requests to a path before it is the next one's turn; with --selector round-robin
    #[arg(long, value_name = "N", requires = "selector")]
    pub min_io: Option<u32>,
    /// When a better path returns: immediate or never; with --selector preferred
    #[arg(long, value_name = "WHEN", requires = "selector")]
    pub failback: Option<Failback>,
    /// The path (as given with --path) to use before others of the same access; with --selector preferred
    #[arg(long, value_name = "URI")]
    pub preferred: Option<DiskUri>,
    /// An identifier that every path must show (naa.6001..., nguid.…, eui.…, uuid.…); several times for one of each kind. Joins
    /// paths of different transports whose identifiers cannot be compared
    #[arg(long = "identity", value_name = "IDENTIFIER")]
    pub identity: Vec<Identifier>,
    /// State that all paths lead to one disk, for a target that does not prove it (tgtd does not)
    #[arg(long, conflicts_with = "identity")]
    pub stated: bool,
    /// Which requests to make
    #[arg(long, value_enum, default_value = "randread")]
    pub rw: MixArg,
    /// Bytes a request
    #[arg(long, default_value = "4k", value_parser = parse_bytes)]
    pub bs: u32,
    /// Requests outstanding, for each job
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=8192))]
    pub qd: u16,
    /// Jobs; they are spread over the reactors and each uses its own part of the disk
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: u16,
    /// Cores, one reactor each (0,2-3 or a mask such as 0xd)
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
    /// Seconds to measure (or with a unit: 500ms, 2m)
    #[arg(long, default_value = "5", value_parser = parse_measured)]
    pub time: Duration,
    /// Seconds to run before measuring
    #[arg(long, default_value = "1", value_parser = parse_time)]
    pub ramp: Duration,
    /// Percentage of reads in randrw and verify
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmix: u8,
    /// What reactors do when there is nothing to do
    #[arg(long, value_enum, default_value = "adaptive")]
    pub idle: IdleMode,
    /// Seed of the sequence of requests; taken from the clock if not given, and reported
    #[arg(long)]
    pub seed: Option<u64>,
    /// Use only so much from the start of the disk (512m, 1g)
    #[arg(long, value_parser = parse_size)]
    pub size: Option<u64>,
    /// Measure a slice of the disk, which begins there and is so long (1g+512m): requests keep to it
    #[arg(long, value_name = "OFFSET+LENGTH", value_parser = parse_slice)]
    pub slice: Option<SliceRange>,
    /// Write one JSON object to FILE, or to standard output with -
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Keep what verification knows in FILE, and continue from it
    #[arg(long, value_name = "FILE")]
    pub verify_record: Option<PathBuf>,
    /// Do not read everything that was written once more at the end
    #[arg(long)]
    pub no_sweep: bool,
    /// Count blocks that are half one write and half another instead of reporting them
    #[arg(long)]
    pub tolerate_torn: bool,
    /// Milliseconds that an I/O waits while no path is usable
    #[arg(long, value_name = "MS", default_value_t = 60_000)]
    pub no_path_timeout: u64,
    /// Seconds to wait for the disk to answer at first
    #[arg(long, default_value = "10", value_parser = parse_time)]
    pub connect_timeout: Duration,
    /// Off re-drives changes before they are proven quiet. It can lose data and is for tests that show it
    #[arg(long, value_enum, default_value = "on", hide = true)]
    pub fencing: Switch,
    /// Show the progress line even if standard error is no terminal
    #[arg(long)]
    pub progress: bool,
}

/// `polypath-bench ratio`.
#[derive(Args, Debug)]
pub struct RatioArgs {
    /// Queue depths to compare at (1,32,128 with --ring)
    #[arg(long, value_delimiter = ',', default_value = "32,1", default_value_if("ring", "true", "1,32,128"), value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub qd: Vec<u16>,
    /// Pairs of limit and run for each depth
    #[arg(long, default_value_t = 9)]
    pub pairs: usize,
    /// Seconds to measure each half of a pair
    #[arg(long, default_value = "1", value_parser = parse_measured)]
    pub time: Duration,
    /// Seconds to run before that
    #[arg(long, default_value = "0.2", value_parser = parse_time)]
    pub ramp: Duration,
    /// What both sides do when there is nothing to do
    #[arg(long, value_enum, default_value = "adaptive")]
    pub idle: IdleMode,
    /// Core of the initiator, then core of the target
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
    /// What the null target speaks, and whose bytes the limit has
    #[arg(long, value_enum, default_value = "nvme-tcp")]
    pub protocol: Protocol,
    /// Measure this disk instead of a null target
    #[arg(long, value_name = "URI")]
    pub path: Option<DiskUri>,
    /// The whole vhost-user-blk back-end against `limit --ring`, both under the front-end of that. Both poll
    #[arg(long, conflicts_with_all = ["idle", "path", "protocol"])]
    pub ring: bool,
    /// Of the ring.
    #[command(flatten)]
    pub ring_args: RingArgs,
    /// With --ring: serve the disk as it is, not as a group of one path as polypathd does
    #[arg(long, requires = "ring")]
    pub no_group: bool,
    /// With --ring: compare with the back-end that listens there, too. It keeps to the second core, polls, has a disk of what --medium
    /// says, and is stopped (SIGSTOP) while others are measured
    #[arg(long, value_name = "SOCKET", requires = "ring")]
    pub peer: Option<PathBuf>,
    /// Count system calls and instructions per I/O too (needs perf and valgrind)
    #[arg(long)]
    pub cost: bool,
    /// Write one JSON object to FILE, or to standard output with -
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `polypath-bench scale`.
#[derive(Args, Debug)]
pub struct ScaleArgs {
    /// What to measure
    #[arg(long = "part", value_delimiter = ',', value_enum, default_value = "reactors,disks,paths,memory")]
    pub parts: Vec<Part>,
    /// On what; memory of a disk, a path and a ring is that over tcp
    #[arg(long, value_delimiter = ',', value_enum, default_value = "null,ram,tcp")]
    pub media: Vec<ScaleMedium>,
    /// Numbers of disks of two paths and two rings of 1,024 entries, one of them busy
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000", default_value_if("quick", "true", "1,4"), value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub disks: Vec<u32>,
    /// Numbers of paths in a group; over tcp each has a controller of its own
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,32,64", default_value_if("quick", "true", "1,2"), value_parser = clap::value_parser!(u16).range(1..=64))]
    pub paths: Vec<u16>,
    /// Disks by which the memory of a path and of a ring is measured
    #[arg(long, default_value_t = 100, default_value_if("quick", "true", "4"), value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub memory_disks: u32,
    /// Queue depths of the busy disk
    #[arg(long, value_delimiter = ',', default_value = "1,32", value_parser = clap::value_parser!(u16).range(1..=MAX_QD as i64))]
    pub qd: Vec<u16>,
    /// Turns for each figure
    #[arg(long, default_value = "5", default_value_if("quick", "true", "1"))]
    pub turns: usize,
    /// Seconds to measure each part of a turn
    #[arg(long, default_value = "0.5", default_value_if("quick", "true", "0.05"), value_parser = parse_measured)]
    pub time: Duration,
    /// Seconds to run before that
    #[arg(long, default_value = "0.1", default_value_if("quick", "true", "0.01"), value_parser = parse_time)]
    pub ramp: Duration,
    /// The two cores of the reactors. The guests and the target have the first as well
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
    /// Few, and short: whether it works, not what it costs
    #[arg(long)]
    pub quick: bool,
    /// Write one JSON object to FILE, or to standard output with -
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw a chart
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl ScaleArgs {
    /// What to measure.
    pub fn config(&self) -> ScaleConfig {
        ScaleConfig {
            parts: self.parts.clone(),
            media: self.media.clone(),
            disks: self.disks.clone(),
            paths: self.paths.clone(),
            memory_disks: self.memory_disks,
            depths: self.qd.clone(),
            turns: self.turns,
            time: self.time,
            ramp: self.ramp,
            cpus: self.cpus.clone(),
        }
    }
}

/// On or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[allow(missing_docs, reason = "they are what they are called")]
pub enum Switch {
    On,
    Off,
}

/// The words for [`Mix`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[value(rename_all = "lower")]
pub enum MixArg {
    /// Reads, one block after the other
    Read,
    /// Writes, one block after the other
    Write,
    /// Reads anywhere
    RandRead,
    /// Writes anywhere
    RandWrite,
    /// Reads and writes anywhere
    RandRw,
    /// Reads and writes anywhere, every block verified
    Verify,
}

impl From<MixArg> for Mix {
    fn from(arg: MixArg) -> Mix {
        match arg {
            MixArg::Read => Mix::Read,
            MixArg::Write => Mix::Write,
            MixArg::RandRead => Mix::RandRead,
            MixArg::RandWrite => Mix::RandWrite,
            MixArg::RandRw => Mix::RandRw,
            MixArg::Verify => Mix::Verify,
        }
    }
}

impl LimitArgs {
    /// What to measure of a ring.
    ///
    /// # Errors
    /// A depth that no ring holds.
    pub fn ring_config(&self) -> anyhow::Result<RingLimitConfig> {
        let qd = u16::try_from(self.qd).ok().filter(|qd| (1..=MAX_QD).contains(qd));
        Ok(RingLimitConfig {
            qd: qd.with_context(|| format!("--qd {}: expected 1 to {MAX_QD} with --ring", self.qd))?,
            time: self.time,
            ramp: self.ramp,
            cpus: self.cpus.clone(),
            medium: self.ring_args.medium,
            style: self.ring_args.style(),
        })
    }
}

impl RatioArgs {
    /// What to compare of rings.
    pub fn ring_config(&self) -> RingRatioConfig {
        RingRatioConfig {
            depths: self.qd.clone(),
            pairs: self.pairs,
            time: self.time,
            ramp: self.ramp,
            cpus: self.cpus.clone(),
            medium: self.ring_args.medium,
            group: !self.no_group,
            style: self.ring_args.style(),
            peer: self.peer.clone(),
        }
    }
}

impl RunArgs {
    /// What to measure.
    pub fn config(&self) -> RunConfig {
        RunConfig {
            paths: self.paths.clone(),
            selector: self.selector,
            min_io: self.min_io,
            failback: self.failback,
            preferred: self.preferred.clone(),
            identity: self.identity.clone(),
            mix: self.rw.into(),
            bs: self.bs,
            qd: self.qd,
            jobs: self.jobs,
            cpus: self.cpus.clone(),
            time: self.time,
            ramp: self.ramp,
            rwmix: self.rwmix,
            idle: self.idle.policy(),
            seed: self.seed.unwrap_or_else(rand::random),
            size: self.size,
            slice: self.slice,
            verify_record: self.verify_record.clone(),
            sweep: !self.no_sweep,
            tolerate_torn: self.tolerate_torn,
            fencing: self.fencing == Switch::On,
            no_path_timeout: Duration::from_millis(self.no_path_timeout),
            connect_timeout: self.connect_timeout,
            weights: Vec::new(),
            stated: self.stated,
        }
    }
}

/// Longest time that can be asked for: sums of such times, and points in time that far ahead, can be told.
const LONGEST: Duration = Duration::from_secs(8760 * 3600);

/// `5`, `0.5`, `500ms`, `2s`, `3m`.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unit \"{unit}\" is not known; expected us, ms, s, m or h")),
    };
    let value: f64 = number.trim().parse().map_err(|_| format!("\"{number}\" is not a number"))?;
    let time =
        Duration::try_from_secs_f64(value * factor).map_err(|_| format!("\"{text}\" is not a length of time"))?;
    match time > LONGEST {
        true => Err(format!("\"{text}\" is longer than a year; expected at most 8760h")),
        false => Ok(time),
    }
}

/// [`parse_time`] of what is to be measured: some time at least.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub fn parse_measured(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        Duration::ZERO => Err(format!("\"{text}\" leaves nothing to measure; expected some time, such as 5 or 500ms")),
        time => Ok(time),
    }
}

/// `512`, `4k`, `1m`, `1MiB`: bytes of a request.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub fn parse_bytes(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text)?;
    match u32::try_from(bytes) {
        Ok(bytes @ 512..=0x4000_0000) => Ok(bytes),
        _ => Err(format!("\"{text}\" is out of range: expected 512 bytes to 1 GiB")),
    }
}

/// `512`, `4k`, `1m`, `2g`, `1TiB`: any size.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(format!("unit \"{unit}\" is not known; expected nothing, k, m, g or t")),
    };
    let value: u64 = number.trim().parse().map_err(|_| format!("\"{number}\" is not a number of bytes"))?;
    match value.checked_mul(1 << shift) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(format!("\"{text}\" is no size: expected one byte to 16 EiB")),
    }
}

/// `0+512m`, `1g+1g`: where a slice begins, and how long it is.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub fn parse_slice(text: &str) -> Result<SliceRange, String> {
    let (offset, length) =
        text.split_once('+').ok_or_else(|| format!("\"{text}\" has no +; expected OFFSET+LENGTH, such as 1g+512m"))?;
    let offset_bytes = if offset.trim() == "0" { 0 } else { parse_size(offset)? };
    Ok(SliceRange { offset_bytes, length_bytes: parse_size(length)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_run_as_people_write_it() {
        let line = "polypath-bench run --path null://1GiB --path ram://1GiB --selector hash --rw verify --bs 8k --qd 4 \
                    --jobs 2 --cpus 0,1 --time 500ms --ramp 0 --rwmix 60 --idle poll --seed 7 --size 1g --json - \
                    --verify-record r --fencing off --no-path-timeout 5";
        let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!("run was parsed as something else")
        };
        let c = args.config();
        assert_eq!((c.paths.len(), c.selector.unwrap().as_str(), c.mix), (2, "hash", Mix::Verify));
        assert_eq!((c.bs, c.qd, c.jobs, c.cpus.unwrap().0), (8192, 4, 2, vec![0, 1]));
        assert_eq!((c.time, c.ramp), (Duration::from_millis(500), Duration::ZERO));
        assert_eq!((c.rwmix, c.idle, c.seed, c.size), (60, IdlePolicy::Poll, 7, Some(1 << 30)));
        assert_eq!((c.fencing, c.no_path_timeout, c.sweep), (false, Duration::from_millis(5), true));
    }

    #[test]
    fn paths_as_people_choose_among_them() {
        let parse = |line: &str| {
            let line = format!("x run --path null://1GiB --path ram://1GiB {line}");
            match Cli::try_parse_from(line.split_whitespace())?.command {
                Command::Run(args) => Ok(args.config()),
                _ => panic!("run was parsed as something else"),
            }
        };
        let c = parse("--selector round-robin --min-io 128").unwrap();
        assert_eq!((c.min_io, c.failback, c.preferred, c.identity.len()), (Some(128), None, None, 0));
        let nguid = format!("nguid.{}", "1".repeat(32));
        let line = format!(
            "--selector preferred --failback never --preferred ram://1GiB --identity {nguid} --identity eui.0102030405060708"
        );
        let c = parse(&line).unwrap();
        assert_eq!((c.failback, c.preferred), (Some(Failback::Never), Some("ram://1GiB".parse().unwrap())));
        assert_eq!(c.identity.iter().map(ToString::to_string).collect::<Vec<_>>(), [&nguid, "eui.0102030405060708"]);
        for (line, word) in [
            ("--min-io 8", "--selector"),
            ("--selector preferred --failback soon", "immediate or never"),
            ("--identity serial.5", "there is no kind"),
        ] {
            let error = parse(line).map(|_| ()).map_err(|e: clap::Error| e.to_string()).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn rings_as_people_write_them() {
        let parse =
            |line: &str| Cli::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).unwrap().command;
        let Command::Limit(args) = parse("limit --ring --qd 128 --medium ram --indirect --cpus 1,0") else {
            panic!("limit was parsed as something else")
        };
        let c = args.ring_config().unwrap();
        assert_eq!((c.qd, c.medium, c.style), (128, Medium::Ram, Style { indirect: true, renew: false }));
        let Command::Limit(args) = parse("limit --ring --qd 342") else { panic!() };
        assert!(args.ring_config().unwrap_err().to_string().contains("--qd 342: expected 1 to 341"));
        let Command::Ratio(args) = parse("ratio --ring --renew --no-group --peer p.sock") else { panic!() };
        let c = args.ring_config();
        assert_eq!((c.depths, c.pairs, c.medium, c.group), (vec![1, 32, 128], 9, Medium::Null, false));
        assert_eq!((c.style, c.peer), (Style { indirect: false, renew: true }, Some("p.sock".into())));
        let Command::Ratio(args) = parse("ratio --ring --qd 4,8") else { panic!() };
        assert_eq!((args.ring_config().depths, args.ring_config().group), (vec![4, 8], true));
        let Command::Ratio(args) = parse("ratio") else { panic!() };
        assert_eq!((args.qd, args.ring), (vec![32, 1], false));
        let Command::Drive(args) = parse("drive x.sock --qd 4 --cpu 1 --kick") else { panic!() };
        assert_eq!((args.socket, args.qd, args.cpu, args.kick), ("x.sock".into(), 4, Some(1), true));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, word) in [
            ("run --path nul://1", "scheme"),
            ("run", "--path"),
            ("run --path null://1GiB --rw trim", "trim"),
            ("run --path null://1GiB --bs 100", "512 bytes"),
            ("run --path null://1GiB --selector best", "historical-service-time"),
            ("run --path null://1GiB --qd 0", "1..=8192"),
            ("limit --time 5y", "unit \"y\""),
            ("run --path null://1GiB --time 0", "nothing to measure"),
            ("limit --time 0s", "nothing to measure"),
            ("ratio --time 0.0ms", "nothing to measure"),
            ("run --path null://1GiB --time 1000000000000 --ramp 1000000000000", "longer than a year"),
            ("run --path null://1GiB --connect-timeout 8761h", "longer than a year"),
            ("limit --cpus 9-1", "upside down"),
            ("limit --ring --idle sleep", "cannot be used with"),
            ("limit --ring --no-copy", "cannot be used with"),
            ("limit --medium ram", "--ring"),
            ("limit --indirect", "--ring"),
            ("limit --ring --medium disk", "null, ram"),
            ("ratio --renew", "--ring"),
            ("ratio --no-group", "--ring"),
            ("ratio --peer x.sock", "--ring"),
            ("ratio --ring --path null://1GiB", "cannot be used with"),
            ("drive", "<SOCKET>"),
            ("drive x.sock --qd 342", "1..=341"),
            ("drive x.sock --time 0", "nothing to measure"),
        ] {
            let error =
                Cli::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!((parse_bytes("4k"), parse_bytes("1MiB"), parse_bytes("512")), (Ok(4096), Ok(1 << 20), Ok(512)));
        assert_eq!((parse_size("2t"), parse_size("3G")), (Ok(2 << 40), Ok(3 << 30)));
        let slice = |offset_bytes, length_bytes| Ok(SliceRange { offset_bytes, length_bytes });
        assert_eq!((parse_slice("0+1m"), parse_slice("4k+512")), (slice(0, 1 << 20), slice(4096, 512)));
        assert!(["1m", "+1m", "1m+", "1m+0", "a+1m"].iter().all(|text| parse_slice(text).is_err()));
        assert!(parse_size("0").is_err() && parse_size("99999999t").is_err() && parse_size("k").is_err());
        assert_eq!(
            (parse_time("1.5"), parse_time("20us")),
            (Ok(Duration::from_millis(1500)), Ok(Duration::from_micros(20)))
        );
        assert!(parse_time("-1").is_err() && parse_time("1e99").is_err() && parse_time("nan").is_err());
        assert_eq!(parse_time("8760h"), Ok(LONGEST));
    }
}
