//! What loopback TCP of this machine can do at all with the bytes of 4 KiB reads over NVMe/TCP or iSCSI.
//!
//! A client thread and a server thread, each pinned to a core of its own, one connection, no protocol but lengths and a
//! number per request: of NVMe/TCP 72 bytes out (a command capsule) and 4,120 bytes back (a data PDU with the SUCCESS flag), of iSCSI 48
//! (a SCSI Command PDU) and 4,144 (a Data-In PDU with status). Both sides do what the cheapest imaginable initiator and target do and
//! nothing else:
//!
//! - non-blocking sockets; everything that one pass has to say leaves in one `send`;
//! - whatever has arrived is taken with one `recv` into a large buffer;
//! - the client parses the headers, copies each 4 KiB into the buffer of whoever asked (once; `--no-copy` leaves that out), notes
//!   the latency, and asks for as many blocks as came in.
//!
//! The idle mode is the reactor's own ([`polypath_reactor::Idle`]) on both sides.

mod shape;
mod sides;

use crate::cpu;
use crate::latency::{LatencyUs, round3};
use crate::protocol::Protocol;
use anyhow::Context as _;
use polypath_reactor::{CpuList, IdlePolicy};
use serde::{Deserialize, Serialize};
use shape::{Iscsi, NvmeTcp, Shape};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

const BLOCK: usize = 4096;

/// What to measure.
#[derive(Clone, Debug)]
pub struct LimitConfig {
    /// Requests outstanding, 1 ..= 4096.
    pub qd: usize,
    /// How long to measure.
    pub time: Duration,
    /// How long to run before that.
    pub ramp: Duration,
    /// What both sides do when there is nothing to do.
    pub idle: IdlePolicy,
    /// Client's and server's core; the first two that are allowed if not given.
    pub cpus: Option<CpuList>,
    /// Copy each block to the requester's buffer, as an initiator that does not receive in place must.
    pub copy: bool,
    /// Whose bytes.
    pub protocol: Protocol,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitReport {
    /// Always `limit`.
    pub mode: String,
    /// Whose bytes.
    pub protocol: Protocol,
    /// Requests outstanding.
    pub qd: usize,
    /// `adaptive`, `poll` or `sleep`.
    pub idle: String,
    /// Core of the client, core of the server.
    pub cpus: [usize; 2],
    /// Was each block copied once more into the requester's buffer?
    pub copy: bool,
    /// Measured time in seconds.
    pub seconds: f64,
    /// Blocks of 4 KiB.
    pub ios: u64,
    /// Blocks a second.
    pub iops: f64,
    /// The rate of the best tenth of all milliseconds: what it is when the cores are not wanted by others.
    pub iops_quiet: f64,
    /// MiB of blocks a second.
    pub mib_s: f64,
    /// Latency of a request.
    pub lat_us: LatencyUs,
    /// Requests answered wrongly: always zero unless the machine is broken.
    pub errors: u64,
    /// System calls of the client, per block.
    pub syscalls_per_io: f64,
    /// System calls of the server, per block.
    pub server_syscalls_per_io: f64,
    /// CPU time of the client thread, microseconds per block.
    pub cpu_us_per_io: f64,
    /// Part of the time that the client (first) and the server (second) were kept from their core by others, in percent.
    /// Above one or two the figures say more about the neighbours than about the machine.
    pub core_taken_pct: [f64; 2],
}

/// Measures.
///
/// # Errors
/// When there are no sockets or cores to be had, or the other side goes silent.
pub fn run(config: &LimitConfig) -> anyhow::Result<LimitReport> {
    match config.protocol {
        Protocol::NvmeTcp => run_as::<NvmeTcp>(config),
        Protocol::Iscsi => run_as::<Iscsi>(config),
    }
}

fn run_as<S: Shape>(config: &LimitConfig) -> anyhow::Result<LimitReport> {
    anyhow::ensure!((1..=4096).contains(&config.qd), "--qd {}: expected 1 to 4096", config.qd);
    anyhow::ensure!(
        !config.time.is_zero(),
        "--time 0 leaves nothing to measure; expected some time, such as 5 or 500ms"
    );
    let (client_cpu, server_cpu) = cpu::two(config.cpus.as_ref());
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("listening on loopback")?;
    let address = listener.local_addr()?;
    let (qd, idle) = (config.qd, config.idle);
    let server = std::thread::Builder::new().name("limit-server".into()).spawn(move || {
        cpu::pin(server_cpu)?;
        let (socket, _) = listener.accept().context("accepting")?;
        sides::serve::<S>(&socket, qd, idle)
    })?;
    // A thread of its own, so that the caller keeps its affinity.
    let client_config = config.clone();
    let client = std::thread::Builder::new().name("limit-client".into()).spawn(move || {
        cpu::pin(client_cpu)?;
        let socket = TcpStream::connect(address).context("connecting to loopback")?;
        sides::Client::<S>::new(&socket, &client_config)?.run()
    })?;
    let client = client.join().map_err(|_| anyhow::anyhow!("the client thread panicked"))?;
    let server = server.join().map_err(|_| anyhow::anyhow!("the server thread panicked"))?;
    let (c, s) = (client?, server?);
    let seconds = c.elapsed.as_secs_f64();
    let per_io = |n: u64, ios: u64| round3(n as f64 / ios.max(1) as f64);
    let ios = c.latencies.count();
    Ok(LimitReport {
        mode: "limit".into(),
        protocol: config.protocol,
        qd: config.qd,
        idle: config.idle.as_str().into(),
        cpus: [client_cpu, server_cpu],
        copy: config.copy,
        seconds: round3(seconds),
        ios,
        iops: round3(ios as f64 / seconds),
        iops_quiet: c.quiet_rate,
        mib_s: round3(ios as f64 * BLOCK as f64 / seconds / f64::from(1 << 20)),
        lat_us: c.latencies.summary(),
        errors: c.errors,
        syscalls_per_io: per_io(c.syscalls, ios),
        server_syscalls_per_io: per_io(s.syscalls, s.ios),
        cpu_us_per_io: round3(c.cpu.as_secs_f64() * 1e6 / ios.max(1) as f64),
        core_taken_pct: [c.taken_pct, s.taken_pct],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_answered_in_every_mode() {
        for idle in [IdlePolicy::Sleep, IdlePolicy::default(), IdlePolicy::Poll] {
            for (qd, copy, protocol) in [
                (1, true, Protocol::NvmeTcp),
                (7, false, Protocol::NvmeTcp),
                (300, true, Protocol::NvmeTcp),
                (1, true, Protocol::Iscsi),
                (33, true, Protocol::Iscsi),
            ] {
                let config = LimitConfig {
                    qd,
                    time: Duration::from_millis(30),
                    ramp: Duration::from_millis(5),
                    idle,
                    cpus: None,
                    copy,
                    protocol,
                };
                let report = run(&config).unwrap();
                assert!(report.ios > 0 && report.errors == 0, "{report:?}");
                assert!(report.lat_us.p50 > 0.0 && report.lat_us.max >= report.lat_us.p50, "{report:?}");
                assert!(report.syscalls_per_io > 0.0 && report.server_syscalls_per_io > 0.0, "{report:?}");
            }
        }
    }

    #[test]
    fn a_depth_of_nothing_is_refused() {
        let config = LimitConfig {
            qd: 0,
            time: Duration::ZERO,
            ramp: Duration::ZERO,
            idle: IdlePolicy::Poll,
            cpus: None,
            copy: true,
            protocol: Protocol::NvmeTcp,
        };
        assert!(run(&config).unwrap_err().to_string().contains("--qd 0"));
    }
}
