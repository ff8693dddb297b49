//! Discovery: what there is at an address, referrals followed.

use crate::admin::{Admin, Fault, Handle, Task, poll_once};
use crate::attach;
use crate::config::ControllerConfig;
use crate::shared::Shared;
use polypath_block::{Code, Time};
use polypath_nvme::identify::IdentifyController;
use polypath_nvme::log::{
    DISCOVERY_RECORD_LEN, DiscoveryEntry, DiscoveryHeader, DiscoveryLog, SubsystemType, TransportType, lid,
};
use polypath_nvme::nqn::Nqn;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Discovery services that are asked in one go, referrals included.
const MOST_SERVICES: usize = 16;
/// How far from the first one a referral may lead.
const MOST_HOPS: u32 = 4;
/// Entries of one discovery service.
const MOST_ENTRIES: u64 = 1000;
/// Reads of a log that changes while it is read.
const MOST_READS: u32 = 5;

/// Discovery did not succeed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("discovery at {host}:{port}: {reason}")]
pub struct DiscoverError {
    /// Host that was asked.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What went wrong.
    pub reason: String,
}

/// Everything that the discovery service of `config` lists, with what its referrals list. Entries that several services list come once.
///
/// **Blocks** (each service for at most `connect_timeout` and a little): for control threads, never for a reactor. A referral that does not
/// answer is logged and left out; only the first service must answer.
///
/// # Errors
/// [`DiscoverError`] when the first service does not answer as it should.
pub fn discover(config: &ControllerConfig) -> Result<Vec<DiscoveryEntry>, DiscoverError> {
    let mut found: Vec<DiscoveryEntry> = Vec::new();
    let mut asked = BTreeSet::new();
    let mut queue = VecDeque::from([(config.host.clone(), config.port, 0)]);
    while let Some((host, port, hops)) = queue.pop_front() {
        if asked.len() >= MOST_SERVICES || !asked.insert((host.clone(), port)) {
            continue;
        }
        let service = ControllerConfig { host: host.clone(), port, subnqn: Nqn::discovery(), ..config.clone() };
        let entries = match ask(&service) {
            Ok(entries) => entries,
            Err(fault) if hops == 0 => return Err(DiscoverError { host, port, reason: fault.reason }),
            Err(fault) => {
                tracing::warn!(%host, port, reason = %fault.reason, "a referral does not answer");
                continue;
            }
        };
        for entry in entries {
            let tcp = entry.transport == TransportType::Tcp;
            match (entry.subsystem_type, entry.trsvcid.trim().parse()) {
                (SubsystemType::Referral, Ok(port)) if tcp && hops < MOST_HOPS => {
                    queue.push_back((entry.traddr.clone(), port, hops + 1));
                }
                (SubsystemType::Referral, _) => {}
                _ if !found.contains(&entry) => found.push(entry),
                _ => {}
            }
        }
    }
    Ok(found)
}

/// Asks one service, on this thread.
fn ask(config: &ControllerConfig) -> Result<Vec<DiscoveryEntry>, Fault> {
    let start = Instant::now();
    let now = || Time::from_nanos(start.elapsed().as_nanos() as u64 + 1);
    let limit = config.connect_timeout * 4;
    let addresses = polypath_net::resolve(&config.host, config.port)
        .map_err(|e| Fault::new(Code::PathLost, format!("the name cannot be resolved: {e}")))?;
    let mut fault = Fault::new(Code::PathLost, "no address");
    for address in addresses {
        let admin = Admin::new(now()).map_err(|e| Fault::new(Code::PathLost, e.to_string()))?;
        let admin = Rc::new(RefCell::new(admin));
        let (handle, service) = (admin.clone(), config.clone());
        let mut task: Task<Result<Vec<DiscoveryEntry>, Fault>> = Box::pin(async move {
            let cntlid = attach::connect(&handle, &service, address, 0).await?;
            attach::bring_up(&handle, &service).await?;
            let _: IdentifyController = attach::identify_controller(&handle, &service, cntlid).await?;
            read(&handle, &service).await
        });
        let end = loop {
            {
                let mut a = admin.borrow_mut();
                a.now = now();
                a.receive();
            }
            let end = poll_once(&mut task);
            admin.borrow_mut().flush();
            if let Poll::Ready(end) = end {
                break end;
            }
            if start.elapsed() > limit {
                break Err(Fault::new(Code::PathTimeout, format!("not finished within {} ms", limit.as_millis())));
            }
            std::thread::sleep(Duration::from_micros(100));
        };
        match end {
            Ok(entries) => return Ok(entries),
            Err(f) => fault = Fault { reason: format!("{address}: {}", f.reason), ..f },
        }
    }
    Err(fault)
}

/// Reads the whole log, again when it has changed meanwhile.
async fn read(admin: &Handle, config: &ControllerConfig) -> Result<Vec<DiscoveryEntry>, Fault> {
    let record = DISCOVERY_RECORD_LEN as u64;
    for _ in 0..MOST_READS {
        let header = attach::read_log(admin, config, (0, lid::DISCOVERY), 0, record, attach::PIECE).await?;
        let before = DiscoveryHeader::parse(&header)?;
        let count = before.numrec.min(MOST_ENTRIES);
        let mut bytes = DiscoveryHeader { numrec: count, ..before.clone() }.to_bytes().to_vec();
        bytes
            .extend(attach::read_log(admin, config, (0, lid::DISCOVERY), record, count * record, attach::PIECE).await?);
        let header = attach::read_log(admin, config, (0, lid::DISCOVERY), 0, record, attach::PIECE).await?;
        if DiscoveryHeader::parse(&header)?.genctr != before.genctr {
            continue;
        }
        let log = DiscoveryLog::parse(&bytes)?;
        for error in &log.skipped {
            tracing::warn!(path = %config.name, %error, "a discovery entry cannot be read and is left out");
        }
        return Ok(log.entries);
    }
    let reason = format!("the discovery log changed during each of {MOST_READS} reads");
    Err(Fault::new(Code::PathProtocol, reason))
}

/// Brings what a persistent discovery controller lists up to date.
pub(crate) async fn refresh(admin: &Handle, shared: &Arc<Shared>) -> Result<(), Fault> {
    let entries = read(admin, &shared.config).await?;
    tracing::info!(path = %shared.config.name, entries = entries.len(), "discovery log read");
    shared.set_discovered(entries);
    Ok(())
}
