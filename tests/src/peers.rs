//! The outside programs that judge Polypath, each with the handles that a test pulls.
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guest::{Guest, GuestSpec};
use crate::lab::{Lab, find_program, free_port};
use crate::process::Process;

/// How long a small command in a guest may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Linux's NVMe/TCP target in a guest: one subsystem, two ports, two ram disks of 128 MiB in ANA groups 1 and 2.
#[derive(Debug)]
pub struct NvmetGuest {
    guest: Guest,
    /// Ports 1 and 2 of the target, as ports of 127.0.0.1.
    pub ports: [u16; 2],
}

impl NvmetGuest {
    /// The subsystem's name.
    pub const NQN: &'static str = "nqn.2026-01.org.polypath.lab:nvmet";

    /// Boots the guest. Port 1 is optimized for namespace 1 and port 2 is not; for namespace 2 it is the other way round.
    ///
    /// # Errors
    /// The guest does not come up.
    pub fn start(lab: &Lab) -> Result<Self> {
        let ports = [free_port()?, free_port()?];
        let spec = GuestSpec::new("nvmet")
            .memory_mib(640)
            .module("brd", "rd_nr=2 rd_size=131072")
            .card(&[(ports[0], 4420)])
            .card(&[(ports[1], 4421)])
            .module("nvmet-tcp", "")
            .module("crc32c-intel", "")
            .script("cards.sh")
            .setup("nvmet.sh");
        Ok(NvmetGuest { guest: Guest::boot(lab, &spec)?, ports })
    }

    /// The URI of namespace `nsid` through port 1 or 2.
    #[must_use]
    pub fn uri(&self, port: usize, nsid: u32) -> String {
        format!("nvme-tcp://127.0.0.1:{}/{}?ns={nsid}", self.ports[port - 1], Self::NQN)
    }

    /// Changes the ANA state of a group on port 1 or 2 while I/O runs; `state` is the kernel's word, e.g. `inaccessible`.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_ana(&mut self, port: usize, group: u32, state: &str) -> Result<()> {
        self.command(&format!("ana {port} {group} {state}"))
    }

    /// Takes the subsystem away from a port: its connections are closed, new ones are refused.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn port_down(&mut self, port: usize) -> Result<()> {
        self.command(&format!("port_down {port}"))
    }

    /// Gives it back.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn port_up(&mut self, port: usize) -> Result<()> {
        self.command(&format!("port_up {port}"))
    }

    /// Makes a port silent: nothing is closed, nothing is answered.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn link_down(&mut self, port: usize) -> Result<()> {
        self.command(&format!("link_down {port}"))
    }

    /// Lets it speak again.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn link_up(&mut self, port: usize) -> Result<()> {
        self.command(&format!("link_up {port}"))
    }

    /// Waits until `kib` further KiB have come in through a port: the proof that a path is in use, from the target's side.
    ///
    /// # Errors
    /// Not within half a minute of the guest's time.
    pub fn wait_for_traffic(&mut self, port: usize, kib: u32) -> Result<()> {
        self.guest.run(&format!("wait_moved {port} {kib} 30"), 3 * COMMAND_LIMIT).map(drop)
    }

    /// The guest itself.
    pub fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }

    fn command(&mut self, command: &str) -> Result<()> {
        self.guest.run(command, COMMAND_LIMIT).map(drop)
    }
}

/// LIO, the iSCSI target of Linux's kernel, in a guest: one target with two portals, each a portal group and an ALUA target port group of
/// its own, and a ram disk of 64 MiB as LUN 0.
#[derive(Debug)]
pub struct LioGuest {
    guest: Guest,
    /// The portals of groups 1 and 2, as ports of 127.0.0.1.
    pub ports: [u16; 2],
}

impl LioGuest {
    /// The target's name.
    pub const IQN: &'static str = "iqn.2026-01.org.polypath.lab:lio";

    /// Boots the guest. Group 1 is optimized, group 2 is not; everybody may come in.
    ///
    /// # Errors
    /// The guest does not come up.
    pub fn start(lab: &Lab) -> Result<Self> {
        let ports = [free_port()?, free_port()?];
        let spec = GuestSpec::new("lio")
            .memory_mib(640)
            .module("brd", "rd_nr=1 rd_size=65536")
            .card(&[(ports[0], 3260)])
            .card(&[(ports[1], 3260)])
            .module("target_core_iblock", "")
            .module("crc32c_generic", "")
            .module("crc32c-intel", "")
            .module("iscsi_target_mod", "")
            .script("cards.sh")
            .setup("lio.sh");
        Ok(LioGuest { guest: Guest::boot(lab, &spec)?, ports })
    }

    /// The URI of logical unit `lun` through group 1 or 2; `user` is what stands before the host, with its `@`.
    #[must_use]
    pub fn uri(&self, user: &str, group: usize, lun: u32, options: &str) -> String {
        format!("iscsi://{user}127.0.0.1:{}/{}/{lun}{options}", self.ports[group - 1], Self::IQN)
    }

    /// Has the guest run one of the functions of `lab/lio.sh`, and returns what it prints.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn command(&mut self, command: &str) -> Result<String> {
        self.guest.run(command, COMMAND_LIMIT)
    }
}

/// Linux's NVMe/TCP initiator with native multipath in a guest. Targets listen on 127.0.0.1 of this host.
#[derive(Debug)]
pub struct InitiatorGuest {
    guest: Guest,
}

impl InitiatorGuest {
    /// Boots the guest, not connected to anything.
    ///
    /// # Errors
    /// The guest does not come up.
    pub fn start(lab: &Lab) -> Result<Self> {
        let spec = GuestSpec::new("initiator")
            .card(&[])
            .module("nvme-core", "multipath=Y io_timeout=10")
            .module("nvme-tcp", "")
            .module("crc32c-intel", "")
            .setup("nvme-initiator.sh");
        Ok(InitiatorGuest { guest: Guest::boot(lab, &spec)? })
    }

    /// Adds one path: the subsystem `nqn` at 127.0.0.1:`port` of this host.
    ///
    /// # Errors
    /// The kernel could not connect; the message carries its log.
    pub fn connect(&mut self, port: u16, nqn: &str) -> Result<()> {
        let outcome = self.guest.run(&format!("connect 10.0.2.2 {port} {nqn}"), COMMAND_LIMIT);
        if outcome.is_err() {
            let said = self.guest.run("dmesg | grep -i nvme | tail -n 20", COMMAND_LIMIT).unwrap_or_default();
            outcome.with_context(|| {
                format!("Linux's initiator does not connect to 127.0.0.1:{port}; its kernel says:\n{said}")
            })?;
        }
        Ok(())
    }

    /// Waits until the multipath device is there and `count` paths match `pattern` (e.g. ` live ` or `=optimized`).
    ///
    /// # Errors
    /// Not within a minute of the guest's time; the message shows the paths.
    pub fn wait_for_paths(&mut self, pattern: &str, count: usize) -> Result<()> {
        self.guest.run(&format!("wait_disk 60 && wait_for 60 '{pattern}' {count}"), 3 * COMMAND_LIMIT).map(drop)
    }

    /// The paths in words, for a log.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn paths(&mut self) -> Result<String> {
        self.guest.run("paths", COMMAND_LIMIT)
    }

    /// Writes and reads back fresh random patterns of `mib` MiB through the multipath device, rounds `first..=last`.
    ///
    /// # Errors
    /// An I/O failed or the data differed.
    pub fn verified_rounds(&mut self, first: u32, last: u32, mib: u32) -> Result<()> {
        self.guest.run(&format!("verified_rounds {first} {last} {mib}"), 5 * COMMAND_LIMIT).map(drop)
    }

    /// The guest itself.
    pub fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

/// A guest whose disk is a vhost-user-blk socket.
///
/// # Errors
/// The guest does not come up, or finds no disk.
pub fn vhost_blk_guest(lab: &Lab, socket: &Path, queues: u16) -> Result<Guest> {
    let spec = GuestSpec::new("vhost-blk")
        .vhost_user_blk(socket, queues)
        .module("ext4", "")
        .module("crc32c-intel", "")
        .program("mke2fs")
        .program("e2fsck")
        .setup("vhost-blk.sh");
    Guest::boot(lab, &spec)
}

/// A guest with Linux's NBD client, not connected to anything. Exports are reached at ports of this host's loopback.
///
/// # Errors
/// The guest does not come up.
pub fn nbd_guest(lab: &Lab) -> Result<Guest> {
    let spec = GuestSpec::new("nbd")
        .card(&[])
        .module("nbd", "nbds_max=1 max_part=0")
        .module("ext4", "")
        .module("crc32c-intel", "")
        .program("nbd-client")
        .program("mke2fs")
        .program("e2fsck")
        .script("vhost-blk.sh")
        .setup("nbd.sh");
    Guest::boot(lab, &spec)
}

/// A guest with Linux's iSCSI initiator (open-iscsi) and dm-multipath, not logged in anywhere. Targets listen on 127.0.0.1 of this host,
/// and have that address in the guest.
///
/// # Errors
/// The guest does not come up.
pub fn open_iscsi_guest(lab: &Lab) -> Result<Guest> {
    let modules = [
        "sd_mod",
        "iscsi_tcp",
        "scsi_dh_alua",
        "dm-multipath",
        "dm-service-time",
        "ext4",
        "crc32c_generic",
        "crc32c-intel",
    ];
    let programs = ["iscsid", "iscsiadm", "dmsetup", "mke2fs", "e2fsck"];
    let spec = GuestSpec::new("open-iscsi").card(&[]).script("vhost-blk.sh").setup("open-iscsi.sh");
    let spec = modules.iter().fold(spec, |spec, module| spec.module(module, ""));
    Guest::boot(lab, &programs.iter().fold(spec, |spec, program| spec.program(program)))
}

/// QEMU's own vhost-user-blk back-end over a sparse file.
#[derive(Debug)]
pub struct StorageDaemon {
    process: Process,
    /// Its socket.
    pub socket: PathBuf,
}

impl StorageDaemon {
    /// Starts it over a file of `bytes` bytes.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(lab: &Lab, bytes: u64) -> Result<Self> {
        let program =
            find_program("qemu-storage-daemon").context("qemu-storage-daemon (package qemu-utils) is not installed")?;
        let image = lab.disk_image("qsd.img", bytes)?;
        let socket = lab.path("qsd.sock");
        let arguments = [
            "--object".to_owned(),
            "iothread,id=t0".to_owned(),
            "--blockdev".to_owned(),
            format!("driver=file,node-name=d0,filename={},aio=threads", image.display()),
            "--export".to_owned(),
            format!(
                "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on,num-queues=1,iothread=t0,logical-block-size=512",
                socket.display()
            ),
        ];
        let mut process = Process::start(&program, &arguments, lab.log("qemu-storage-daemon"))?;
        process.wait_for_socket(&socket, COMMAND_LIMIT)?;
        Ok(StorageDaemon { process, socket })
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
