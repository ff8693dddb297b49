//! Requests in a ring: our own front-end fills it, and the back-end's poller is what is counted.

use crate::counted::counted;
use crate::guest::{DEPTH, Guest, Here, until};
use crate::queues::null_disk;
use anyhow::{Context, Result, ensure};
use polypath_block::{Device, Host, Op, QueueConfig};
use polypath_vhost_user_blk::{Server, ServerConfig};
use polypath_vhost_user_client::{ClientConfig, VhostUserDisk};
use std::sync::Arc;

/// A round: 32 reads into the ring, turns of the back-end until all are used, 32 completions out of it.
pub(crate) fn requests(rounds: u64) -> Result<()> {
    let folder = tempfile::tempdir().context("a folder for the socket")?;
    let path = folder.path().join("disk.sock");
    let (host, mut pollers) = Here::new();
    let hosts: Vec<Arc<dyn Host>> = vec![Arc::new(host)];
    let mut server = Server::start(ServerConfig::new("disk", &path, null_disk()?, hosts))?;
    let config = ClientConfig::new(path.display().to_string());
    // It blocks; the back-end's threads and turns answer meanwhile.
    let connecting = std::thread::spawn(move || VhostUserDisk::connect(&config));
    let mut guest = Guest::new(Op::Read)?;
    // No time passes before all is set up: how many turns that takes is the threads' affair.
    until("a back-end that answers", || {
        pollers.turn(&mut guest);
        Ok(connecting.is_finished())
    })?;
    let disk = connecting.join().map_err(|_| anyhow::anyhow!("connecting panicked"))??;
    let mut queue = disk.open_queue(QueueConfig { depth: DEPTH })?;

    // The first requests wait for the ring and for their memory to be mapped.
    guest.submit(&mut *queue)?;
    let mut completed = 0;
    until("the first requests' end", || {
        guest.kick(&mut *queue);
        pollers.turn(&mut guest);
        guest.poll(&mut *queue);
        completed += guest.take_completions()?;
        Ok(completed == u64::from(DEPTH))
    })?;
    let [poller] = &mut pollers.list[..] else {
        anyhow::bail!("{} pollers for one ring", pollers.list.len());
    };
    for _ in 0..rounds {
        guest.move_on();
        guest.pass();
        guest.submit(&mut *queue)?;
        guest.kick(&mut *queue);
        counted(|| poller.poll(&mut guest.cx()));
        guest.poll(&mut *queue);
        let completed = guest.take_completions()?;
        ensure!(completed == u64::from(DEPTH), "{completed} of {DEPTH} requests were used in their turn");
    }
    queue.close(&mut guest.cx());
    drop((queue, disk));
    let stopping = std::thread::spawn(move || server.stop());
    until("the back-end's end", || {
        pollers.turn(&mut guest);
        Ok(stopping.is_finished())
    })?;
    stopping.join().map_err(|_| anyhow::anyhow!("stopping panicked"))??;
    Ok(())
}
