//! Which transports a plan's paths speak, and what of a plan matters to iSCSI only.

use crate::plan::{Dice, Plan};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What a path speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// NVMe/TCP.
    #[default]
    NvmeTcp,
    /// iSCSI.
    Iscsi,
}

/// What the paths of a world speak.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mix {
    /// All of them NVMe/TCP.
    NvmeTcp,
    /// All of them iSCSI.
    Iscsi,
    /// One at least of either.
    Mixed,
}

impl Mix {
    /// All there are.
    pub const ALL: [Mix; 3] = [Mix::NvmeTcp, Mix::Iscsi, Mix::Mixed];

    /// As it is written on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Mix::NvmeTcp => "nvme-tcp",
            Mix::Iscsi => "iscsi",
            Mix::Mixed => "mixed",
        }
    }

    /// That of a seed: each in its turn.
    pub fn of_seed(seed: u64) -> Mix {
        Mix::ALL[(seed % 3) as usize]
    }

    /// What the paths of `plan` are.
    pub fn of(plan: &Plan) -> Mix {
        let iscsi = plan.paths.iter().filter(|p| p.transport == Transport::Iscsi).count();
        match iscsi {
            0 => Mix::NvmeTcp,
            n if n == plan.paths.len() => Mix::Iscsi,
            _ => Mix::Mixed,
        }
    }

    /// Gives the paths of `plan` their transports.
    pub(crate) fn lay_out(self, plan: &mut Plan, dice: &mut Dice) {
        if self == Mix::NvmeTcp {
            return;
        }
        let odd = dice.range(0, plan.paths.len() as u64 - 1) as usize;
        let most = dice.chance(50);
        for (i, path) in plan.paths.iter_mut().enumerate() {
            // One that is not like the others, so that there are both.
            let iscsi = self == Mix::Iscsi || (i == odd) != most;
            path.transport = if iscsi { Transport::Iscsi } else { Transport::NvmeTcp };
        }
        plan.settings.iscsi = IscsiSettings::thrown(dice);
        let iscsi: Vec<usize> =
            (0..plan.paths.len()).filter(|&i| plan.paths[i].transport == Transport::Iscsi).collect();
        // Portals of one group, each of its own, or two of one group and others of another.
        let groups = dice.one_of(&[1, 2, 2, 4]);
        for &i in &iscsi {
            plan.paths[i].iscsi.portal_group = i as u16 % groups + 1;
        }
        let tags: Vec<u16> = plan.paths.iter().map(|p| p.iscsi.portal_group).collect();
        for &i in &iscsi {
            // Alternates should be of the same group. Where somebody wrote another one, a login there is no proof.
            let wrong = dice.chance(25);
            let others = iscsi.iter().copied().filter(|&other| other != i && (wrong || tags[other] == tags[i]));
            if dice.chance(60) {
                plan.paths[i].iscsi.alternates = others.collect();
            }
        }
        let resets = dice.chance(50);
        plan.settings.iscsi.reset_fence_ms = resets.then(|| dice.one_of(&[0, 10, 60]));
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let found = Mix::ALL.into_iter().find(|mix| mix.name() == text);
        found.ok_or_else(|| format!("`{text}` is no family; expected nvme-tcp, iscsi or mixed"))
    }
}

/// What of a path matters over iSCSI only.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IscsiPath {
    /// Its portal group tag; zero over other transports.
    pub portal_group: u16,
    /// Paths whose portals its sessions try when its own is not to be had.
    pub alternates: Vec<usize>,
}

/// What of the configuration matters over iSCSI only. Lengths are in bytes, times in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(
    missing_docs,
    reason = "they bear the names of the keys that are negotiated, or of the options of the initiator"
)]
pub struct IscsiSettings {
    pub initial_r2t: bool,
    pub immediate_data: bool,
    pub first_burst: u32,
    pub max_burst: u32,
    pub max_recv: u32,
    pub max_r2t: u16,
    /// Commands that the target lets a session have under way.
    pub window: u16,
    /// LOGICAL UNIT RESET is allowed.
    pub unit_reset: bool,
    /// How long each rung of the recovery may take.
    pub grace_ms: u64,
    /// The bound after which the tasks of a lost session are taken for quiet: more than the target ever holds a write.
    pub fence_ms: u64,
    /// How long a lost change is left to its own session before LOGICAL UNIT RESET through another path; none: for good.
    #[serde(default)]
    pub reset_fence_ms: Option<u64>,
}

impl Default for IscsiSettings {
    fn default() -> Self {
        IscsiSettings {
            initial_r2t: false,
            immediate_data: true,
            first_burst: 65_536,
            max_burst: 262_144,
            max_recv: 262_144,
            max_r2t: 4,
            window: 128,
            unit_reset: false,
            grace_ms: 100,
            fence_ms: 1400,
            reset_fence_ms: None,
        }
    }
}

impl IscsiSettings {
    fn thrown(dice: &mut Dice) -> IscsiSettings {
        let first_burst = dice.one_of(&[512, 2048, 8192, 65_536]);
        IscsiSettings {
            initial_r2t: dice.chance(40),
            immediate_data: dice.chance(60),
            first_burst,
            max_burst: dice.one_of(&[4096, 16_384, 262_144]).max(first_burst),
            max_recv: dice.one_of(&[512, 4096, 262_144]),
            max_r2t: dice.one_of(&[1, 2, 16]),
            window: dice.one_of(&[2, 8, 8, 32, 128]),
            unit_reset: dice.chance(40),
            grace_ms: dice.one_of(&[50, 100, 200]),
            fence_ms: dice.one_of(&[1300, 1500]),
            reset_fence_ms: None,
        }
    }
}
