//! What a guest says of its cache outlives the connection over which it said so, and the process that heard it.

use crate::common::client::{Client, F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1, FLUSH, OUT, Served, serve};
use crate::common::ram::RamDevice;
use polypath_block::{Limits, Op};
use polypath_vhost_user_blk::ServerConfig;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

const BASE: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_PROTOCOL;
const F_FLUSH: u64 = 1 << 9;
const F_CONFIG_WCE: u64 = 1 << 11;
const ALL: u64 = BASE | F_FLUSH | F_CONFIG_WCE;

/// A disk with a cache, and its server.
fn cached(change: impl FnOnce(&mut ServerConfig)) -> (Arc<RamDevice>, Served) {
    let device = RamDevice::new(512, 64, Limits { write_cache: true, fua: false, ..Limits::UNLIMITED });
    device.change(|s| s.record = true);
    let served = serve(device.clone(), change);
    (device, served)
}

fn connect(served: &Served, features: u64) -> Client {
    Client::connect(served.server.socket_path(), features, 1, 16)
}

/// Is a write flushed before it completes? The guest is told the same.
fn is_durable(device: &RamDevice, client: &mut Client) -> bool {
    let before = device.log().len();
    assert_eq!(client.run(0, OUT, 0, &mut [1; 512]), 0);
    let durable = device.log()[before..].iter().any(|(op, ..)| *op == Op::Flush);
    assert_eq!(client.config()[32] == 0, durable, "what the guest reads and what it gets");
    durable
}

fn set(client: &mut Client, writeback: u8) -> bool {
    client.fe.set_config(32, VhostUserConfigFlags::WRITABLE, &[writeback]).is_ok()
}

#[test]
fn a_front_end_that_comes_back_need_not_say_it_again() {
    let (device, served) = cached(|_| ());
    let mut client = connect(&served, ALL);
    assert!(!is_durable(&device, &mut client) && set(&mut client, 0) && is_durable(&device, &mut client));
    drop(client);
    let mut client = connect(&served, ALL);
    assert!(is_durable(&device, &mut client), "the guest has not said anything else");
    assert!(set(&mut client, 1) && !is_durable(&device, &mut client));
    drop(client);
    let mut client = connect(&served, ALL);
    assert!(!is_durable(&device, &mut client));
    // A guest that resets its device begins anew.
    assert!(set(&mut client, 0));
    client.fe.reset_device().unwrap();
    drop(client);
    assert!(!is_durable(&device, &mut connect(&served, ALL)));
}

#[test]
fn the_server_after_this_one_knows_and_the_guest_hears_no_before_it_could_be_kept() {
    let kept = Arc::new(Mutex::new((Vec::new(), true)));
    let (device, served) = cached(|c| {
        let kept = kept.clone();
        c.keep_write_through = Some(Arc::new(move |through| {
            let (list, works) = &mut *kept.lock().unwrap();
            if !*works {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            list.push(through);
            Ok(())
        }));
    });
    let mut client = connect(&served, ALL);
    kept.lock().unwrap().1 = false;
    assert!(!set(&mut client, 0) && !is_durable(&device, &mut client), "nothing has changed");
    kept.lock().unwrap().1 = true;
    let begun = Instant::now();
    for _ in 0..20 {
        assert!(set(&mut client, 0));
        assert_eq!(kept.lock().unwrap().0.last(), Some(&true), "before the guest hears of it");
        assert!(is_durable(&device, &mut client) && set(&mut client, 1) && !is_durable(&device, &mut client));
    }
    let writes = kept.lock().unwrap().0.len() as u64;
    assert!(
        writes <= 1 + begun.elapsed().as_secs() / 5,
        "{writes} writes: not each time that the guest changes its mind"
    );
    drop((client, served));
    assert_eq!(kept.lock().unwrap().0.last(), Some(&false), "at the end at the latest");
    let (device, served) = cached(|c| c.write_through = true);
    assert!(is_durable(&device, &mut connect(&served, ALL)));
}

#[test]
fn a_driver_that_cannot_flush_begins_without_a_cache() {
    let (device, served) = cached(|_| ());
    let mut client = connect(&served, BASE | F_CONFIG_WCE);
    assert!(is_durable(&device, &mut client));
    assert!(set(&mut client, 1) && !is_durable(&device, &mut client), "it may know better");
    drop(client);
    assert!(!is_durable(&device, &mut connect(&served, ALL)));
}

#[test]
fn the_configuration_space_is_written_by_drivers_and_migrations_only() {
    let (_device, served) = cached(|_| ());
    let mut client = connect(&served, ALL);
    assert!(set(&mut client, 0));
    assert!(client.fe.set_config(32, VhostUserConfigFlags::LIVE_MIGRATION, &[1]).is_ok());
    assert_eq!(client.config()[32], 1);
    let both = VhostUserConfigFlags::WRITABLE | VhostUserConfigFlags::LIVE_MIGRATION;
    assert!(client.fe.set_config(32, both, &[0]).is_err());
    assert_eq!(connect(&served, ALL).run(0, FLUSH, 0, &mut []), 0);
}
