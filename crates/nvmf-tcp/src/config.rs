//! How a controller is reached and treated: the options of the URI, with defaults that are right.

use polypath_block::{DiskUri, Endpoint, Scheme, UriError};
use polypath_net::{Dialer, TcpDialer};
use polypath_nvme::nqn::{DISCOVERY_NQN, HostId, HostIdentity, Nqn};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Every option of an `nvme-tcp://` URI.
pub const OPTIONS: [&str; 16] = [
    "ns",
    "hostnqn",
    "hostid",
    "hdgst",
    "ddgst",
    "keep_alive_ms",
    "connect_timeout_ms",
    "silence_timeout_ms",
    "io_timeout_ms",
    "reconnect_delay_ms",
    "ctrl_loss_timeout_ms",
    "fast_io_fail_timeout_ms",
    "queue_depth",
    "queues",
    "fence_ms",
    "quiesce_ms",
];

/// Shortest keep-alive timeout that is asked for, so that a typo does not flood a target.
const LEAST_KEEP_ALIVE_MS: u32 = 100;

/// How one controller is reached and treated.
#[derive(Clone)]
pub struct ControllerConfig {
    /// For logs: the URI.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Subsystem; the discovery NQN makes it a discovery controller.
    pub subnqn: Nqn,
    /// Namespace that is wanted (`ns`). Without it, the only one there is.
    pub ns: Option<u32>,
    /// Who we are (`hostnqn`, `hostid`; otherwise as nvme-cli keeps them).
    pub identity: HostIdentity,
    /// Ask for header digests (`hdgst`).
    pub header_digest: bool,
    /// Ask for data digests (`ddgst`).
    pub data_digest: bool,
    /// Keep-alive timeout told to the controller (`keep_alive_ms`, 5000). Zero switches keep alive off, and then a lost write can
    /// only be fenced by `fence`.
    pub keep_alive: Duration,
    /// Longest time for each step from the dial to a controller that is up (`connect_timeout_ms`, 3000); one that needs longer to get
    /// ready and says so in CAP.TO gets that time on top.
    pub connect_timeout: Duration,
    /// Silence on a connection with commands outstanding after which the way is suspected and probed by a Keep Alive; when that is
    /// not answered for as long again, the way is lost (`silence_timeout_ms`, 1000). A connection on which the target's host does not
    /// even acknowledge what was sent is lost after the same time, whatever the controller answers elsewhere; one that is
    /// acknowledged and silent may have a slow medium behind it, and only `io_timeout` judges that.
    pub silence_timeout: Duration,
    /// Longest time for one I/O command; then it is aborted, and when that does not help, the way is left (`io_timeout_ms`, 10000).
    pub io_timeout: Duration,
    /// Pause before the first attempt to come back (`reconnect_delay_ms`, 1000); grows up to ten times that.
    pub reconnect_delay: Duration,
    /// How long it is tried to come back before the device is given up (`ctrl_loss_timeout_ms`, 600000; `None` for -1: for ever).
    pub ctrl_loss_timeout: Option<Duration>,
    /// How long after a loss a queue lets requests wait before it refuses them (`fast_io_fail_timeout_ms`; `None` for -1).
    ///
    /// Requests are refused (`Gone`) at once while a way is down, so that whoever chooses among ways takes another one; this limit
    /// is for the device as a whole: after it the device says [`polypath_block::DeviceState::Down`] with a final word in its reason.
    pub fast_io_fail_timeout: Option<Duration>,
    /// Commands an I/O queue holds (`queue_depth`, 128), less where the controller grants less.
    pub queue_depth: u16,
    /// I/O queues to ask for (`queues`, 64); the controller grants what it can.
    pub queues: u16,
    /// How long a controller without keep alive may still execute commands of a lost connection (`fence_ms`, 30000).
    pub fence: Duration,
    /// Command quiesce time of a controller that reports none (`quiesce_ms`, 5000).
    pub quiesce: Duration,
    /// How connections are made; another one than TCP is for tests.
    pub dialer: Arc<dyn Dialer>,
}

impl fmt::Debug for ControllerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControllerConfig")
            .field("name", &self.name)
            .field("subnqn", &self.subnqn)
            .field("ns", &self.ns)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl ControllerConfig {
    /// Defaults for a subsystem at `host:port`.
    pub fn new(host: &str, port: u16, subnqn: Nqn) -> Self {
        let bracket = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let ms = Duration::from_millis;
        ControllerConfig {
            name: format!("nvme-tcp://{bracket}:{port}/{subnqn}"),
            host: host.to_owned(),
            port,
            subnqn,
            ns: None,
            identity: host_identity(),
            header_digest: false,
            data_digest: false,
            keep_alive: ms(5000),
            connect_timeout: ms(3000),
            silence_timeout: ms(1000),
            io_timeout: ms(10_000),
            reconnect_delay: ms(1000),
            ctrl_loss_timeout: Some(ms(600_000)),
            fast_io_fail_timeout: None,
            queue_depth: 128,
            queues: 64,
            fence: ms(30_000),
            quiesce: ms(5000),
            dialer: Arc::new(TcpDialer::default()),
        }
    }

    /// What a URI says. Without a subsystem NQN it is the discovery controller at that address.
    ///
    /// # Errors
    /// Names the part of the URI that is wrong and what was expected.
    pub fn from_uri(uri: &DiskUri) -> Result<Self, UriError> {
        let Endpoint::NvmeTcp { host, port, subnqn } = &uri.endpoint else {
            return Err(uri.error("scheme", format!("expected {}", Scheme::NvmeTcp.as_str())));
        };
        uri.check_options(&OPTIONS)?;
        let subnqn = if subnqn.is_empty() { DISCOVERY_NQN } else { subnqn };
        let subnqn = Nqn::new(subnqn).map_err(|e| uri.error("NQN", e.to_string()))?;
        let default = ControllerConfig::new(host, *port, subnqn);
        let keep_alive = match uri.option("keep_alive_ms") {
            Some("0") => Duration::ZERO,
            _ => uri.option_ms("keep_alive_ms", default.keep_alive, LEAST_KEEP_ALIVE_MS)?,
        };
        Ok(ControllerConfig {
            name: uri.to_string(),
            ns: namespace_option(uri)?,
            identity: identity_option(uri, &default.identity)?,
            header_digest: uri.option_bool("hdgst", default.header_digest)?,
            data_digest: uri.option_bool("ddgst", default.data_digest)?,
            keep_alive,
            connect_timeout: uri.option_ms("connect_timeout_ms", default.connect_timeout, 1)?,
            silence_timeout: uri.option_ms("silence_timeout_ms", default.silence_timeout, 10)?,
            io_timeout: uri.option_ms("io_timeout_ms", default.io_timeout, 10)?,
            reconnect_delay: uri.option_ms("reconnect_delay_ms", default.reconnect_delay, 1)?,
            ctrl_loss_timeout: uri.option_ms_or_never("ctrl_loss_timeout_ms", default.ctrl_loss_timeout)?,
            fast_io_fail_timeout: uri.option_ms_or_never("fast_io_fail_timeout_ms", default.fast_io_fail_timeout)?,
            queue_depth: uri.option_count("queue_depth", default.queue_depth, 1..=4096)?.max(2),
            queues: uri.option_count("queues", default.queues, 1..=1024)?,
            fence: uri.option_ms("fence_ms", default.fence, 0)?,
            quiesce: uri.option_ms("quiesce_ms", default.quiesce, 0)?,
            ..default
        })
    }

    /// Is it a discovery controller?
    pub fn is_discovery(&self) -> bool {
        self.subnqn.is_discovery()
    }

    /// Keep-alive timeout in milliseconds, as Connect carries it.
    pub(crate) fn kato_ms(&self) -> u32 {
        u32::try_from(self.keep_alive.as_millis()).unwrap_or(u32::MAX)
    }
}

fn namespace_option(uri: &DiskUri) -> Result<Option<u32>, UriError> {
    match uri.option("ns") {
        None => Ok(None),
        Some(_) => match uri.option_number("ns", 0)? {
            n @ 1..=0xffff_fffd => Ok(Some(n)),
            n => Err(uri.error("option ns", format!("{n} is no namespace identifier; expected 1 to 4294967293"))),
        },
    }
}

fn identity_option(uri: &DiskUri, default: &HostIdentity) -> Result<HostIdentity, UriError> {
    let (nqn, id) = (uri.option("hostnqn"), uri.option("hostid"));
    if nqn.is_none() && id.is_none() {
        return Ok(default.clone());
    }
    let part = if nqn.is_some() { "option hostnqn" } else { "option hostid" };
    // A host ID of its own keeps the NQN that belongs to it; an NQN of its own keeps the machine's host ID.
    let id = id.map_or_else(|| default.id.to_string(), str::to_owned);
    HostIdentity::derive(nqn, Some(&id), [0; 16]).map_err(|e| uri.error(part, e.to_string()))
}

/// Who this machine is: `/etc/nvme/hostnqn` and `/etc/nvme/hostid` as nvme-cli keeps them, otherwise derived from the
/// machine's UUID (DMI) or `/etc/machine-id`, otherwise made up once per process. Stable over reconnects in any case.
pub fn host_identity() -> HostIdentity {
    static IDENTITY: OnceLock<HostIdentity> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let (nqn, id) = (read("/etc/nvme/hostnqn"), read("/etc/nvme/hostid"));
        let own = machine_id(read);
        match HostIdentity::derive(nqn.as_deref(), id.as_deref(), own) {
            Ok(identity) => identity,
            Err(error) => {
                tracing::warn!(%error, "/etc/nvme/hostnqn or /etc/nvme/hostid is not usable; deriving both from the machine's id");
                let id = HostId::from_random(own);
                HostIdentity { nqn: Nqn::from_uuid(id), id }
            }
        }
    })
    .clone()
}

fn machine_id(read: impl Fn(&str) -> Option<String>) -> [u8; 16] {
    if let Some(id) = read("/sys/class/dmi/id/product_uuid").and_then(|t| t.parse::<HostId>().ok()) {
        return *id.as_bytes();
    }
    let seed = read("/etc/machine-id").filter(|t| t.trim().len() == 32).unwrap_or_else(|| {
        // No machine id: anything that differs between hosts and stays for the life of the process.
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        format!("{}-{time}", std::process::id())
    });
    // The machine id itself must not leave the machine (machine-id(5)); its digest may.
    let half = |salt: u64| {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ salt;
        for byte in seed.trim().bytes().chain(*b"polypath nvme host id") {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            hash ^= hash >> 29;
        }
        hash.to_be_bytes()
    };
    let mut out = [0; 16];
    out[..8].copy_from_slice(&half(0x9e37_79b9_7f4a_7c15));
    out[8..].copy_from_slice(&half(0xd1b5_4a32_d192_ed03));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(uri: &str) -> Result<ControllerConfig, String> {
        ControllerConfig::from_uri(&uri.parse().map_err(|e: UriError| e.to_string())?).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_and_options() {
        let c = config("nvme-tcp://h/nqn.x").unwrap();
        assert_eq!((c.port, c.queue_depth, c.ns, c.keep_alive.as_millis()), (4420, 128, None, 5000));
        assert_eq!((c.ctrl_loss_timeout, c.fast_io_fail_timeout), (Some(Duration::from_secs(600)), None));
        let c = config(
            "nvme-tcp://[::1]:5/nqn.x?ns=7&hdgst=on&ddgst=1&ctrl_loss_timeout_ms=-1&fast_io_fail_timeout_ms=50&keep_alive_ms=0\
             &hostnqn=nqn.h&hostid=2cd2c43b-a90a-45c1-a8cd-86b33ab273b5&queue_depth=1&fence_ms=9",
        )
        .unwrap();
        assert_eq!((c.host.as_str(), c.port, c.ns, c.queue_depth), ("::1", 5, Some(7), 2));
        assert!(c.header_digest && c.data_digest && c.ctrl_loss_timeout.is_none() && c.keep_alive.is_zero());
        assert_eq!((c.fast_io_fail_timeout, c.fence), (Some(Duration::from_millis(50)), Duration::from_millis(9)));
        assert_eq!(c.identity.nqn.as_str(), "nqn.h");
        assert_eq!(c.identity.id.to_string(), "2cd2c43b-a90a-45c1-a8cd-86b33ab273b5");
        assert!(config("nvme-tcp://h:8009").unwrap().is_discovery());
    }

    #[test]
    fn every_option_goes_where_it_belongs() {
        let ms = Duration::from_millis;
        type Says = fn(&ControllerConfig) -> Duration;
        let times: [(&str, Says); 8] = [
            ("keep_alive_ms", |c| c.keep_alive),
            ("connect_timeout_ms", |c| c.connect_timeout),
            ("silence_timeout_ms", |c| c.silence_timeout),
            ("io_timeout_ms", |c| c.io_timeout),
            ("reconnect_delay_ms", |c| c.reconnect_delay),
            ("fence_ms", |c| c.fence),
            ("quiesce_ms", |c| c.quiesce),
            ("ctrl_loss_timeout_ms", |c| c.ctrl_loss_timeout.unwrap()),
        ];
        for (option, says) in times {
            let c = config(&format!("nvme-tcp://h/nqn.x?{option}=1234")).unwrap();
            assert_eq!(says(&c), ms(1234), "{option}");
            assert_eq!(c.name, format!("nvme-tcp://h/nqn.x?{option}=1234"));
            for (other, says) in times.iter().filter(|(other, _)| *other != option) {
                assert_eq!(says(&c), says(&config("nvme-tcp://h/nqn.x").unwrap()), "{option} has changed {other}");
            }
        }
        let c = config("nvme-tcp://h/nqn.x?queue_depth=33&queues=7&fast_io_fail_timeout_ms=0").unwrap();
        assert_eq!((c.queue_depth, c.queues, c.fast_io_fail_timeout), (33, 7, Some(ms(0))));
        assert!(!c.header_digest && !c.data_digest && !c.is_discovery());
        assert!(config("nvme-tcp://h/nqn.x?hdgst=1").is_ok_and(|c| c.header_digest && !c.data_digest));
        assert!(config("nvme-tcp://h/nqn.x?ddgst=1").is_ok_and(|c| c.data_digest && !c.header_digest));
    }

    #[test]
    fn the_least_and_the_most_of_an_option_are_allowed() {
        for (option, least, most) in [
            ("keep_alive_ms", 100, None),
            ("connect_timeout_ms", 1, None),
            ("silence_timeout_ms", 10, None),
            ("io_timeout_ms", 10, None),
            ("queue_depth", 1, Some(4096)),
            ("queues", 1, Some(1024)),
            ("ns", 1, Some(0xffff_fffd_u32)),
        ] {
            let with = |n: u32| config(&format!("nvme-tcp://h/nqn.x?{option}={n}"));
            assert!(with(least).is_ok(), "{option}={least}");
            // Keep alive is switched off by 0.
            assert!(with(if least == 100 { 99 } else { least - 1 }).is_err(), "{option} below {least}");
            assert!(most.is_none_or(|most| with(most).is_ok() && with(most + 1).is_err()), "{option} up to {most:?}");
        }
    }

    #[test]
    fn errors_name_the_option() {
        for (uri, part) in [
            ("nvme-tcp://h/nqn.x?nss=1", "option nss"),
            ("nvme-tcp://h/nqn.x?ns=0", "option ns"),
            ("nvme-tcp://h/nqn.x?ns=4294967295", "option ns"),
            ("nvme-tcp://h/nqn.x?keep_alive_ms=5", "option keep_alive_ms"),
            ("nvme-tcp://h/nqn.x?io_timeout_ms=never", "option io_timeout_ms"),
            ("nvme-tcp://h/nqn.x?ctrl_loss_timeout_ms=-2", "option ctrl_loss_timeout_ms"),
            ("nvme-tcp://h/nqn.x?hostid=7", "option hostid"),
            ("nvme-tcp://h/nqn.x?hostnqn=a%20b", "option hostnqn"),
            ("nvme-tcp://h/nqn.x?queue_depth=0", "option queue_depth"),
            ("nvme-tcp://h/a%20b", "NQN"),
            ("ram://1GiB", "scheme"),
        ] {
            let error = config(uri).unwrap_err();
            assert!(error.contains(part), "{uri}: {error}");
        }
    }

    #[test]
    fn the_machine_id_is_hashed_and_stable() {
        let id = |text: &'static str| machine_id(move |path| (path == "/etc/machine-id").then(|| text.to_owned()));
        let a = id("0123456789abcdef0123456789abcdef\n");
        assert_eq!(a, id("0123456789abcdef0123456789abcdef"));
        assert_ne!(a, id("0123456789abcdef0123456789abcde0"));
        assert_ne!(&a[..8], &[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
        assert_eq!(host_identity(), host_identity());
        // Targets know hosts by it and reservations belong to it: an update of ours must not make another host of this one.
        assert_eq!(u128::from_be_bytes(a), 0x2c9f_36f9_a399_c65c_22e8_c6a4_74e3_ddbe);
        let uuid = "2cd2c43b-a90a-45c1-a8cd-86b33ab273b5";
        let board = machine_id(|path| path.ends_with("product_uuid").then(|| uuid.to_owned()));
        assert_eq!(HostId::from_random(board).to_string(), uuid);
    }
}
