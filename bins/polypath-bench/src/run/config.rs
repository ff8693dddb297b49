//! What to measure, and with which requests.

use polypath::{CpuList, IdlePolicy};
use polypath_block::{DiskUri, Identifier};
use polypath_multipath::{Failback, SelectorKind, SliceRange};
use std::path::PathBuf;
use std::time::Duration;

/// What requests to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mix {
    /// Reads, one block after the other.
    Read,
    /// Writes, one block after the other.
    Write,
    /// Reads anywhere.
    RandRead,
    /// Writes anywhere.
    RandWrite,
    /// Reads and writes anywhere.
    RandRw,
    /// Reads and writes anywhere, every block verified.
    Verify,
}

impl Mix {
    /// The word on the command line and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mix::Read => "read",
            Mix::Write => "write",
            Mix::RandRead => "randread",
            Mix::RandWrite => "randwrite",
            Mix::RandRw => "randrw",
            Mix::Verify => "verify",
        }
    }

    pub(super) fn is_random(self) -> bool {
        !matches!(self, Mix::Read | Mix::Write)
    }

    pub(super) fn read_pct(self, rwmix: u8) -> u8 {
        match self {
            Mix::Read | Mix::RandRead => 100,
            Mix::Write | Mix::RandWrite => 0,
            Mix::RandRw | Mix::Verify => rwmix,
        }
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Ways to the disk, at least one.
    pub paths: Vec<DiskUri>,
    /// How to choose among them. Given with one path, it makes a multipath disk of that.
    pub selector: Option<SelectorKind>,
    /// Share of each path for the rules that know weights, in the order of the paths; the usual one for those that are not there.
    pub weights: Vec<u32>,
    /// Requests to a path in its turn; of round-robin alone.
    pub min_io: Option<u32>,
    /// When a better path returns; of preferred alone.
    pub failback: Option<Failback>,
    /// The one of `paths` that is marked as preferred.
    pub preferred: Option<DiskUri>,
    /// Identifiers that every path must show, one of each kind that it has. Given with one path, they make a multipath disk of that.
    pub identity: Vec<Identifier>,
    /// It is stated that all of them lead to one disk; otherwise they must prove it.
    pub stated: bool,
    /// What requests.
    pub mix: Mix,
    /// Bytes a request, a multiple of the disk's block.
    pub bs: u32,
    /// Requests outstanding, for each job.
    pub qd: u16,
    /// Jobs; they are spread over the reactors.
    pub jobs: u16,
    /// Cores, a reactor each; one reactor that is not pinned if not given.
    pub cpus: Option<CpuList>,
    /// How long to measure.
    pub time: Duration,
    /// How long to run before that.
    pub ramp: Duration,
    /// Percentage of reads in mixes.
    pub rwmix: u8,
    /// What reactors do when there is nothing to do.
    pub idle: IdlePolicy,
    /// Seed of the sequence of requests.
    pub seed: u64,
    /// Use only so many bytes from the start of the disk.
    pub size: Option<u64>,
    /// Measure this part of the disk, as a slice of it.
    pub slice: Option<SliceRange>,
    /// File in which the verification record survives. Several jobs add `.0`, `.1`, ... to it.
    pub verify_record: Option<PathBuf>,
    /// After verified I/O, read everything that is known once more.
    pub sweep: bool,
    /// Count torn blocks instead of reporting them.
    pub tolerate_torn: bool,
    /// Off can lose data and is for tests that show it.
    pub fencing: bool,
    /// How long an I/O waits while no path is usable.
    pub no_path_timeout: Duration,
    /// How long to wait for the disk to answer at first.
    pub connect_timeout: Duration,
}

impl RunConfig {
    /// 4 KiB random reads at QD 32 for five seconds.
    pub fn new(paths: Vec<DiskUri>) -> Self {
        RunConfig {
            paths,
            selector: None,
            weights: Vec::new(),
            min_io: None,
            failback: None,
            preferred: None,
            identity: Vec::new(),
            stated: false,
            mix: Mix::RandRead,
            bs: 4096,
            qd: 32,
            jobs: 1,
            cpus: None,
            time: Duration::from_secs(5),
            ramp: Duration::from_secs(1),
            rwmix: 70,
            idle: IdlePolicy::default(),
            seed: 1,
            size: None,
            slice: None,
            verify_record: None,
            sweep: true,
            tolerate_torn: false,
            fencing: true,
            no_path_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
        }
    }
}
