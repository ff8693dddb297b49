//! How one target is reached and treated: the options of the URI, with defaults that are right.

use crate::chap::{Algorithm, Challenge, ChapInitiator, Credentials, GOOD_CHALLENGE_LEN, Secret};
use crate::login::{DigestOffer, InitiatorConfig, Name, Offer};
use crate::pdu::{Isid, Itt};
use crate::secret_file::read_secret;
use crate::serial::CmdSn;
use polypath_block::{DiskUri, Endpoint, Scheme, UriError};
use polypath_net::{Dialer, Resolver, TcpDialer};
use polypath_scsi::midlayer::DiskConfig;
use rand::Rng as _;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Every option of an `iscsi://` URI.
pub const OPTIONS: [&str; 31] = [
    "initiator",
    "secret_file",
    "secret_env",
    "target_user",
    "target_secret_file",
    "target_secret_env",
    "hdgst",
    "ddgst",
    "portals",
    "portals_prove",
    "keep_alive_ms",
    "connect_timeout_ms",
    "silence_timeout_ms",
    "io_timeout_ms",
    "recovery_timeout_ms",
    "busy_timeout_ms",
    "reconnect_delay_ms",
    "ctrl_loss_timeout_ms",
    "queue_depth",
    "queues",
    "fence_ms",
    "initial_r2t",
    "immediate_data",
    "first_burst",
    "max_burst",
    "max_recv",
    "max_r2t",
    "unit_reset",
    "target_reset",
    "unit_reset_fence_ms",
    "explicit_alua",
];

/// One way to a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Portal {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How one target is reached and treated.
#[derive(Clone)]
pub struct TargetConfig {
    /// For logs: the URI, its secret hidden.
    pub name: String,
    /// The portal of this path.
    pub portal: Portal,
    /// Other portals of the same portal group (`portals`): through them a session is made again when the first one is not to be had.
    pub alternates: Vec<Portal>,
    /// The portal and its alternates are of one machine (`portals_prove`, off): a login at one of them proves over what was sent through
    /// another. Without it a login does so only at the address that was used, or where its target has sent us.
    pub portals_prove: bool,
    /// iSCSI name of the target.
    pub target: Name,
    /// Number that the identities (ISID) of this path's sessions are made of, of which 24 bits count: no two paths of one initiator name to
    /// one target may have the same. None, as it should be but in tests: one that stays the same, and that no other process has meanwhile.
    pub identity: Option<u32>,
    /// iSCSI name of ours (`initiator`; otherwise that of the machine).
    pub initiator: Name,
    /// How we prove who we are; none: we do not.
    pub account: Option<Credentials>,
    /// How the target must prove who it is (`target_user`); none: it need not.
    pub target_account: Option<Credentials>,
    /// CHAP algorithms, the best first.
    pub algorithms: Vec<Algorithm>,
    /// Ask for header digests (`hdgst`).
    pub header_digest: bool,
    /// Ask for data digests (`ddgst`).
    pub data_digest: bool,
    /// A ping after so long without a word from the target (`keep_alive_ms`, 5000). Zero: none on an idle session.
    pub keep_alive: Duration,
    /// Longest time from the dial to the full feature phase (`connect_timeout_ms`, 3000).
    pub connect_timeout: Duration,
    /// Silence with something outstanding after which the target is pinged, and after as long again given up (`silence_timeout_ms`, 1000).
    pub silence_timeout: Duration,
    /// How its disks are treated (`io_timeout_ms` 10000, `recovery_timeout_ms` 3000, `busy_timeout_ms` 5000, `unit_reset` off,
    /// `target_reset` off, `unit_reset_fence_ms` none, `explicit_alua` on only where the target changes no access by itself).
    pub disks: DiskConfig,
    /// Pause before the first attempt to come back (`reconnect_delay_ms`, 500); grows up to ten times that.
    pub reconnect_delay: Duration,
    /// How long it is tried to come back before the target is given up (`ctrl_loss_timeout_ms`, 600000; `None` for -1: for ever).
    pub loss_timeout: Option<Duration>,
    /// Tasks that a session holds (`queue_depth`, 128), less where the target takes less.
    pub queue_depth: u16,
    /// Sessions that carry I/O, one for each reactor (`queues`, 64).
    pub queues: u16,
    /// How long commands of a lost session may still be executed by a target that does not answer any more (`fence_ms`, 30000).
    pub fence: Duration,
    /// What is asked for: InitialR2T (`initial_r2t`, off).
    pub initial_r2t: bool,
    /// ImmediateData (`immediate_data`, on).
    pub immediate_data: bool,
    /// FirstBurstLength in octets (`first_burst`, 262144).
    pub first_burst: u32,
    /// MaxBurstLength in octets (`max_burst`, 16776192).
    pub max_burst: u32,
    /// MaxRecvDataSegmentLength that we declare, in octets (`max_recv`, 262144).
    pub max_recv: u32,
    /// MaxOutstandingR2T (`max_r2t`, 16).
    pub max_r2t: u16,
    /// How connections are made; another one than TCP is for tests.
    pub dialer: Arc<dyn Dialer>,
    /// How names are resolved; another one than the system's is for tests.
    pub resolver: Resolver,
}

impl fmt::Debug for TargetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetConfig")
            .field("name", &self.name)
            .field("target", &self.target)
            .field("initiator", &self.initiator)
            .finish_non_exhaustive()
    }
}

impl TargetConfig {
    /// Defaults for `target` at `host:port`.
    pub fn new(host: &str, port: u16, target: Name) -> Self {
        let ms = Duration::from_millis;
        let portal = Portal { host: host.to_owned(), port };
        TargetConfig {
            name: format!("iscsi://{portal}/{target}"),
            portal,
            alternates: Vec::new(),
            portals_prove: false,
            target,
            identity: None,
            initiator: crate::identity::initiator_name(),
            account: None,
            target_account: None,
            algorithms: Vec::from(Algorithm::PREFERENCE),
            header_digest: false,
            data_digest: false,
            keep_alive: ms(5000),
            connect_timeout: ms(3000),
            silence_timeout: ms(1000),
            disks: DiskConfig {
                io_timeout: ms(10_000),
                grace: ms(3000),
                busy_limit: ms(5000),
                unit_reset: false,
                target_reset: false,
                explicit_alua: None,
                reset_fence: None,
            },
            reconnect_delay: ms(500),
            loss_timeout: Some(ms(600_000)),
            queue_depth: 128,
            queues: 64,
            fence: ms(30_000),
            initial_r2t: false,
            immediate_data: true,
            first_burst: 256 << 10,
            max_burst: (16 << 20) - 1024,
            max_recv: 256 << 10,
            max_r2t: 16,
            dialer: Arc::new(TcpDialer::default()),
            resolver: Resolver::system(),
        }
    }

    /// What a URI says, and which logical unit it names.
    ///
    /// # Errors
    /// Names the part of the URI that is wrong and what was expected. Secrets are never part of it.
    pub fn from_uri(uri: &DiskUri) -> Result<(Self, u32), UriError> {
        let Endpoint::Iscsi { user, secret, host, port, iqn, lun } = &uri.endpoint else {
            return Err(uri.error("scheme", format!("expected {}", Scheme::Iscsi.as_str())));
        };
        uri.check_options(&OPTIONS)?;
        let target = Name::new(iqn).map_err(|e| uri.error("IQN", e.to_string()))?;
        let lun = u32::try_from(*lun).map_err(|_| uri.error("LUN", format!("{lun}; expected 0 to 16383")))?;
        let default = TargetConfig::new(host, *port, target);
        let account = account(uri, user.as_deref(), secret.as_deref(), ["secret_file", "secret_env"])?;
        let theirs = account_of_target(uri)?;
        if theirs.is_some() && account.is_none() {
            let problem =
                "the target is to prove who it is, which it does only to those who do: expected user@ and a secret";
            return Err(uri.error("option target_user", problem));
        }
        let initiator = match uri.option("initiator") {
            Some(name) => Name::new(name).map_err(|e| uri.error("option initiator", e.to_string()))?,
            None => default.initiator.clone(),
        };
        let keep_alive = match uri.option("keep_alive_ms") {
            Some("0") => Duration::ZERO,
            _ => uri.option_ms("keep_alive_ms", default.keep_alive, 10)?,
        };
        let octets = |key: &str, default: u32| match uri.option_number(key, default)? {
            n @ 512..=0x00ff_ffff => Ok(n),
            n => Err(uri.error(&format!("option {key}"), format!("{n}; expected 512 to 16777215 octets"))),
        };
        let d = default.disks;
        let config = TargetConfig {
            name: uri.to_string(),
            alternates: portals(uri)?,
            portals_prove: uri.option_bool("portals_prove", default.portals_prove)?,
            initiator,
            account,
            target_account: theirs,
            header_digest: uri.option_bool("hdgst", default.header_digest)?,
            data_digest: uri.option_bool("ddgst", default.data_digest)?,
            keep_alive,
            connect_timeout: uri.option_ms("connect_timeout_ms", default.connect_timeout, 1)?,
            silence_timeout: uri.option_ms("silence_timeout_ms", default.silence_timeout, 10)?,
            disks: DiskConfig {
                io_timeout: uri.option_ms("io_timeout_ms", d.io_timeout, 10)?,
                grace: uri.option_ms("recovery_timeout_ms", d.grace, 10)?,
                busy_limit: uri.option_ms("busy_timeout_ms", d.busy_limit, 0)?,
                unit_reset: uri.option_bool("unit_reset", d.unit_reset)?,
                target_reset: uri.option_bool("target_reset", d.target_reset)?,
                explicit_alua: match uri.option("explicit_alua") {
                    Some(_) => Some(uri.option_bool("explicit_alua", false)?),
                    None => d.explicit_alua,
                },
                reset_fence: match uri.option("unit_reset_fence_ms") {
                    Some(_) => Some(uri.option_ms("unit_reset_fence_ms", Duration::ZERO, 0)?),
                    None => d.reset_fence,
                },
            },
            reconnect_delay: uri.option_ms("reconnect_delay_ms", default.reconnect_delay, 1)?,
            loss_timeout: uri.option_ms_or_never("ctrl_loss_timeout_ms", default.loss_timeout)?,
            queue_depth: uri.option_count("queue_depth", default.queue_depth, 1..=4096)?,
            queues: uri.option_count("queues", default.queues, 1..=1024)?,
            fence: uri.option_ms("fence_ms", default.fence, 0)?,
            initial_r2t: uri.option_bool("initial_r2t", default.initial_r2t)?,
            immediate_data: uri.option_bool("immediate_data", default.immediate_data)?,
            first_burst: octets("first_burst", default.first_burst)?,
            max_burst: octets("max_burst", default.max_burst)?,
            max_recv: octets("max_recv", default.max_recv)?,
            max_r2t: uri.option_count("max_r2t", default.max_r2t, 1..=255)?,
            ..default
        };
        if config.first_burst > config.max_burst {
            return Err(uri.error("option first_burst", format!("more than max_burst ({})", config.max_burst)));
        }
        if let (Some(ours), Some(theirs)) = (&config.account, &config.target_account)
            && ours.secret == theirs.secret
        {
            let problem = "the target's secret is ours; expected two that differ (RFC 7143 section 12.1.3)";
            return Err(uri.error("option target_user", problem));
        }
        Ok((config, lun))
    }
}

impl TargetConfig {
    /// What one login is made with.
    ///
    /// # Errors
    /// A CHAP name that cannot be sent.
    pub(crate) fn login(&self, isid: Isid) -> Result<InitiatorConfig, String> {
        let chap = match (&self.account, &self.target_account) {
            (None, _) => None,
            (Some(ours), None) => Some(ChapInitiator::one_way(ours.clone())),
            (Some(ours), Some(theirs)) => {
                let mut octets = vec![0; GOOD_CHALLENGE_LEN];
                rand::rng().fill_bytes(&mut octets);
                let challenge = Challenge { identifier: octets[0] ^ 0x5a, octets };
                Some(ChapInitiator::mutual(ours.clone(), theirs.clone(), challenge))
            }
        };
        let chap = chap.map(|chap| chap.and_then(|chap| chap.with_algorithms(&self.algorithms))).transpose();
        let digest = |on| if on { DigestOffer::Always } else { DigestOffer::IfNeeded };
        Ok(InitiatorConfig {
            initiator_name: self.initiator.clone(),
            initiator_alias: None,
            target_name: Some(self.target.clone()),
            isid,
            cid: 0,
            itt: Itt::new(0).ok_or("a tag")?,
            cmd_sn: CmdSn::new(1),
            offer: Offer {
                header_digest: digest(self.header_digest),
                data_digest: digest(self.data_digest),
                max_recv_data_len: self.max_recv,
                initial_r2t: self.initial_r2t,
                immediate_data: self.immediate_data,
                max_burst_len: self.max_burst,
                first_burst_len: self.first_burst,
                max_outstanding_r2t: self.max_r2t,
                time2wait_s: 0,
                time2retain_s: 0,
            },
            chap: chap.map_err(|e| e.to_string())?,
        })
    }
}

/// The secret of `user`: out of a file, the environment, or, for those who insist, the URI itself.
fn account(
    uri: &DiskUri,
    user: Option<&str>,
    inline: Option<&str>,
    [file, env]: [&str; 2],
) -> Result<Option<Credentials>, UriError> {
    let secrets = (inline, uri.option(file), uri.option(env));
    let from_text = |text: &str| Secret::new(text.trim_end_matches(['\n', '\r']));
    let secret = match secrets {
        (None, None, None) => None,
        (Some(secret), None, None) => {
            tracing::warn!(%uri, "a secret on the command line can be read by others on this machine; expected option {file} or {env}");
            Some(from_text(secret))
        }
        (None, Some(path), None) => {
            let fail = |e| uri.error(&format!("option {file}"), format!("{path} cannot be read: {e}"));
            Some(read_secret(Path::new(path)).map_err(fail)?)
        }
        (None, None, Some(name)) => {
            let fail = |e| {
                // What it says of one that is no text shows it.
                let why = if e == std::env::VarError::NotPresent { "is not set" } else { "is no text (UTF-8)" };
                uri.error(&format!("option {env}"), format!("the variable {name} {why}"))
            };
            Some(from_text(&std::env::var(name).map_err(fail)?))
        }
        _ => {
            return Err(uri.error(
                &format!("option {file}"),
                format!("the secret is given twice; expected one of %SECRET, {file} and {env}"),
            ));
        }
    };
    match (user, secret) {
        (None, None) => Ok(None),
        (Some(user), Some(secret)) if secret.bits() > 0 => Ok(Some(Credentials { name: user.to_owned(), secret })),
        (Some(_), _) => Err(uri.error("user", format!("has no secret; expected option {file} or {env}"))),
        (None, Some(_)) => Err(uri.error("user", "missing, but there is a secret; expected user@ before the host")),
    }
}

fn account_of_target(uri: &DiskUri) -> Result<Option<Credentials>, UriError> {
    let user = uri.option("target_user");
    let theirs = account(uri, user, None, ["target_secret_file", "target_secret_env"]);
    theirs.map_err(|e| if e.part == "user" { uri.error("option target_user", e.problem) } else { e })
}

/// `portals=host:port,host:port`
fn portals(uri: &DiskUri) -> Result<Vec<Portal>, UriError> {
    let Some(list) = uri.option("portals") else { return Ok(Vec::new()) };
    list.split(',')
        .map(|text| {
            let (host, port) = polypath_block::parse_host_port(text, 3260)
                .map_err(|problem| uri.error("option portals", format!("\"{text}\": {problem}")))?;
            Ok(Portal { host, port })
        })
        .collect()
}
