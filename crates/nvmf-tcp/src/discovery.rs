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
use std::net::SocketAddr;
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
/// **Blocks** (each service for at most four times `connect_timeout`, all of its addresses together): for control threads, never for a reactor. A referral that does not
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
    let addresses = polypath_net::resolve(&config.host, config.port)
        .map_err(|e| Fault::new(Code::PathLost, format!("the name cannot be resolved: {e}")))?;
    ask_each(config, &addresses)
}

/// Asks one address of a service after the other until one answers. Each has its share of the time that is left: one that takes the connection
/// and says nothing has none of the next one's.
fn ask_each(config: &ControllerConfig, addresses: &[SocketAddr]) -> Result<Vec<DiscoveryEntry>, Fault> {
    let (start, limit) = (Instant::now(), config.connect_timeout * 4);
    let mut fault = Fault::new(Code::PathLost, "no address");
    for (at, &address) in addresses.iter().enumerate() {
        let others = u32::try_from(addresses.len() - at - 1).unwrap_or(u32::MAX);
        let share = limit.saturating_sub(start.elapsed()) / others.saturating_add(1);
        match ask_one(config, address, share) {
            Ok(entries) => return Ok(entries),
            Err(f) => fault = Fault { reason: format!("{address}: {}", f.reason), ..f },
        }
    }
    Err(fault)
}

/// Asks one address, for at most so long.
fn ask_one(config: &ControllerConfig, address: SocketAddr, limit: Duration) -> Result<Vec<DiscoveryEntry>, Fault> {
    let start = Instant::now();
    let now = || Time::from_nanos(start.elapsed().as_nanos() as u64 + 1);
    let admin = Admin::new(now()).map_err(|e| Fault::new(Code::PathLost, e.to_string()))?;
    let admin = Rc::new(RefCell::new(admin));
    let (handle, service) = (admin.clone(), config.clone());
    let mut task: Task<Result<Vec<DiscoveryEntry>, Fault>> = Box::pin(async move {
        let cntlid = attach::connect(&handle, &service, address, 0).await?;
        attach::bring_up(&handle, &service).await?;
        let _: IdentifyController = attach::identify_controller(&handle, &service, cntlid).await?;
        read(&handle, &service).await
    });
    loop {
        {
            let mut a = admin.borrow_mut();
            a.now = now();
            a.receive();
        }
        let end = poll_once(&mut task);
        admin.borrow_mut().flush();
        if let Poll::Ready(end) = end {
            return end;
        }
        if start.elapsed() > limit {
            return Err(Fault::new(Code::PathTimeout, format!("not finished within {} ms", limit.as_millis())));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// An address that takes connections and says nothing does not use up the time of those after it.
    #[test]
    fn each_address_of_a_name_has_its_time() {
        let silent: Vec<TcpListener> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let talks = TcpListener::bind("127.0.0.1:0").unwrap();
        let all = silent.iter().chain([&talks]);
        let addresses: Vec<SocketAddr> = all.map(|listener| listener.local_addr().unwrap()).collect();
        let thread = std::thread::spawn(move || {
            let (mut socket, _) = talks.accept().unwrap();
            // An ICReq, and no answer to that.
            socket.read_exact(&mut [0; 128]).unwrap();
            socket.write_all(&[0xff; 128]).unwrap();
        });
        let config = ControllerConfig {
            connect_timeout: Duration::from_millis(500),
            ..ControllerConfig::new("192.0.2.1", 8009, Nqn::discovery())
        };
        let start = Instant::now();
        let fault = ask_each(&config, &addresses).unwrap_err();
        let last = addresses.last().unwrap().to_string();
        assert!(fault.reason.starts_with(&last) && fault.code == Code::PathProtocol, "{fault:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        thread.join().unwrap();
    }
}
