//! A disk served on a vhost-user-blk socket by one stack and opened through it by another.

use polypath::vhost_user_blk::{Server, ServerConfig};
use polypath::{Disk, Stack, StackConfig, block_on};
use std::time::Duration;

#[test]
fn a_disk_through_a_vhost_user_socket_is_the_same_disk() {
    let stack = || Stack::start(StackConfig { buffer_bytes: 4 << 20, ..StackConfig::default() }).unwrap();
    let (below, above) = (stack(), stack());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let medium = below.open_device(&"ram://4MiB".parse().unwrap()).unwrap();
    let config = ServerConfig::new("disk", &socket, medium.clone(), below.hosts());
    let mut server = Server::start(config).unwrap();
    let direct = block_on(Disk::builder().device(medium).stack(&below).open()).unwrap();
    let uri = format!("vhost-user-blk://{}?queue_size=128", socket.display());
    let served = block_on(Disk::builder().uris(uri).stack(&above).timeout(Duration::from_secs(10)).open()).unwrap();
    assert_eq!(served.size(), 4 << 20);
    let data: Vec<u8> = (0..65536u32).map(|n| (n / 13) as u8).collect();
    let mut buffer = served.buffer(65536).unwrap();
    buffer.write_at(0, &data).unwrap();
    block_on(served.write(1 << 20, buffer)).0.unwrap();
    block_on(served.flush()).unwrap();
    let (result, buffer) = block_on(direct.read(1 << 20, direct.buffer(65536).unwrap()));
    result.unwrap();
    assert!(buffer.to_vec() == data, "what was written above is not what lies below");
    block_on(served.close());
    drop(served);
    server.stop().unwrap();
}
