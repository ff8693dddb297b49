//! Measures the target alone: a bare socket asks for blocks as fast as it can and throws them away.
//!
//! `cargo run --release -p polypath-target --example blast -- MEDIUM-URI QD BLOCK-BYTES SECONDS [write] [spin]`

use polypath_nvme::fabrics::{CNTLID_DYNAMIC, ConnectData, cattr};
use polypath_nvme::nqn::{HostId, Nqn};
use polypath_nvme::properties::Register;
use polypath_nvme::{SglDescriptor, Sqe};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2024-01.org.example:blast";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [uri, qd, bytes, seconds, rest @ ..] = &args[..] else {
        return Err("arguments: MEDIUM-URI QD BLOCK-BYTES SECONDS [write] [spin]".into());
    };
    let (qd, bytes, seconds): (usize, usize, u64) = (qd.parse()?, bytes.parse()?, seconds.parse()?);
    let write = rest.iter().any(|r| r == "write");
    let target = Target::start(TargetConfig {
        listeners: vec![ListenerConfig::new("127.0.0.1:0")],
        subsystems: vec![SubsystemConfig::new(NQN, vec![NamespaceConfig::new(uri)])],
        cpus: vec![0],
        spin_us: if rest.iter().any(|r| r == "spin") { 1_000_000 } else { 50 },
        ..TargetConfig::default()
    })?;
    let mut set = rustix::thread::CpuSet::new();
    set.set(1);
    rustix::thread::sched_setaffinity(None, &set)?;
    let address = target.addresses()[0];
    let (_admin, cntlid) = connect(address, 0, CNTLID_DYNAMIC)?;
    let (mut stream, _) = connect(address, 1, cntlid)?;
    stream.set_nonblocking(true)?;

    let blocks = (bytes / 512) as u64;
    let in_capsule = write && bytes <= 8192;
    if write && !in_capsule {
        return Err("this small program writes in-capsule only, up to 8192 bytes".into());
    }
    let reply = if write { 24 } else { 24 + bytes };
    let mut rng = 0x9e37_79b9_7f4a_7c15_u64;
    let mut request = |cid: u16, out: &mut Vec<u8>| {
        rng ^= rng << 13;
        rng ^= rng >> 7;
        rng ^= rng << 17;
        let lba = rng % 100_000 / blocks * blocks;
        let len = if write { 72 + bytes as u32 } else { 72 };
        out.extend_from_slice(&[4, 0, 72, if write { 72 } else { 0 }]);
        out.extend_from_slice(&len.to_le_bytes());
        let length = bytes as u32;
        let sqe = if write {
            Sqe::write(cid, 1, lba, blocks as u16 - 1, false).with_sgl(SglDescriptor::InCapsule { offset: 0, length })
        } else {
            Sqe::read(cid, 1, lba, blocks as u16 - 1, false).with_sgl(SglDescriptor::Transport { length })
        };
        out.extend_from_slice(sqe.as_bytes());
        if write {
            out.resize(out.len() + bytes, 0x5a);
        }
    };
    let mut out = Vec::with_capacity(qd * (72 + bytes));
    (0..qd).for_each(|i| request(i as u16, &mut out));
    let (mut done, mut partial) = (0u64, 0usize);
    let mut buffer = vec![0; 1 << 20];
    let cpu_before_ns = target_cpu_ns();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(seconds) {
        let mut sent = 0;
        while sent < out.len() {
            match stream.write(&out[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        out.clear();
        for _ in 0..64 {
            match stream.read(&mut buffer) {
                Ok(0) => return Err("the target closed the connection".into()),
                Ok(n) => {
                    let all = partial + n;
                    done += (all / reply) as u64;
                    (0..all / reply).for_each(|i| request(i as u16, &mut out));
                    partial = all % reply;
                    if !out.is_empty() {
                        break;
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    let rate = done as f64 / begin.elapsed().as_secs_f64();
    let cpu_ns = (target_cpu_ns() - cpu_before_ns) as f64 / done as f64;
    println!(
        "{uri} QD {qd} {bytes} B {}: {:.0} k IO/s, {cpu_ns:.0} ns of the target's core per I/O",
        if write { "write" } else { "read" },
        rate / 1000.0
    );
    Ok(())
}

/// What the target's thread has run for, in nanoseconds: less disturbed by a loaded machine than the rate.
fn target_cpu_ns() -> u64 {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|task| read(task.path().join("comm")).trim() == "target-0")
        .filter_map(|task| read(task.path().join("schedstat")).split(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn connect(address: SocketAddr, qid: u16, cntlid: u16) -> std::io::Result<(TcpStream, u16)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut ic = [0; 128];
    (ic[2], ic[4]) = (128, 128);
    stream.write_all(&ic)?;
    stream.read_exact(&mut ic)?;
    let name = |text| Nqn::new(text).map_err(std::io::Error::other);
    let data = ConnectData {
        host_id: HostId::from_bytes([1; 16]),
        cntlid,
        subnqn: name(NQN)?,
        hostnqn: name("nqn.2024-01.org.example:host")?,
    };
    let mut send = |sqe: Sqe, data: &[u8]| -> std::io::Result<u16> {
        let mut pdu = vec![4, 0, 72, if data.is_empty() { 0 } else { 72 }];
        pdu.extend_from_slice(&(72 + data.len() as u32).to_le_bytes());
        pdu.extend_from_slice(sqe.as_bytes());
        pdu.extend_from_slice(data);
        stream.write_all(&pdu)?;
        let mut response = [0; 24];
        stream.read_exact(&mut response)?;
        if response[22] >> 1 != 0 || response[23] != 0 {
            return Err(std::io::Error::other(format!("refused: {response:?}")));
        }
        Ok(u16::from_le_bytes([response[8], response[9]]))
    };
    let connect = Sqe::connect(1, qid, 127, cattr::DISABLE_SQ_FLOW_CONTROL, 0)
        .with_sgl(SglDescriptor::InCapsule { offset: 0, length: 1024 });
    let id = send(connect, &data.to_bytes())?;
    if qid == 0 {
        send(Sqe::property_set(2, Register::Cc, 0x0046_0001).with_sgl(SglDescriptor::NO_DATA), &[])?;
    }
    Ok((stream, id))
}
