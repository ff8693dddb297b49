//! The least a program must do to serve a disk: `serve_ram SOCKET [MIB] [QUEUES]`, until its standard input ends.
//!
//! The disk is the tests' own, in memory; any other `polypath_block::Device` takes its place.

#[path = "../tests/common/ram.rs"]
#[allow(dead_code, unreachable_pub)]
mod ram;

use polypath_block::Limits;
use polypath_reactor::{IdlePolicy, Pool, PoolConfig};
use polypath_vhost_user_blk::{Server, ServerConfig};
use std::io::Read;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().ok_or("usage: serve_ram SOCKET [MIB] [QUEUES]")?;
    let mib: u64 = args.next().map_or(Ok(64), |a| a.parse())?;
    let device = ram::RamDevice::new(512, mib << 11, Limits { write_cache: true, ..Limits::UNLIMITED });
    let pool = Pool::start(&PoolConfig { cpus: None, idle: IdlePolicy::default() })?;
    let mut config = ServerConfig::new("ram0", socket, device, pool.hosts());
    config.num_queues = args.next().map_or(Ok(1), |a| a.parse())?;
    let mut server = Server::start(config)?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:#?}", server.statistics());
    Ok(server.stop()?)
}
