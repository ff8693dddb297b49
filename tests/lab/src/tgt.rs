//! `tgtd`, the iSCSI target of Linux's user space: one target with portals, on 127.0.0.1 or elsewhere, and file-backed logical units.
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Lab, find_program, free_port};
use crate::process::Process;

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running tgtd.
#[derive(Debug)]
pub struct Tgt {
    process: Process,
    socket: PathBuf,
    control: u16,
    images: Vec<PathBuf>,
    log: PathBuf,
    /// Its portals.
    portals: Vec<SocketAddrV4>,
}

impl Tgt {
    /// The ports of its portals.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.portals.iter().map(SocketAddrV4::port).collect()
    }

    /// The name of its target.
    pub const IQN: &'static str = "iqn.2026-01.org.polypath.lab:tgt";

    /// Starts it with two portals on 127.0.0.1 and `units` logical units of `mib` MiB each: LUN 1, 2, ...
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(lab: &Lab, units: usize, mib: u64) -> Result<Self> {
        let portals = [free_port()?, free_port()?].map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        Self::start_at(lab, &portals, units, mib)
    }

    /// The same with these portals.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_at(lab: &Lab, portals: &[SocketAddrV4], units: usize, mib: u64) -> Result<Self> {
        let first = *portals.first().context("a target without a portal")?;
        let images: Result<Vec<_>> = (1..=units).map(|n| lab.disk_image(&format!("lun{n}.img"), mib << 20)).collect();
        let (socket, log) = (lab.path("tgt"), lab.log("tgtd"));
        // Its control sockets are told apart by a number; a port of ours is nobody else's.
        let control = first.port() % 30_000;
        let process = spawn(&socket, control, first, log.clone())?;
        let mut tgt = Tgt { process, socket, control, images: images?, log, portals: portals.to_vec() };
        tgt.set_up()?;
        Ok(tgt)
    }

    /// The URI of logical unit `lun` through portal 0, 1, ...; `user` is what stands before the host, with its `@`.
    #[must_use]
    pub fn uri(&self, user: &str, portal: usize, lun: u32, options: &str) -> String {
        format!("iscsi://{user}{}/{}/{lun}{options}", self.portals[portal], Self::IQN)
    }

    /// `tgtadm --lld iscsi` with these arguments; what it prints.
    ///
    /// # Errors
    /// It does not do it.
    pub fn admin(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new("tgtadm");
        command.env("TGT_IPC_SOCKET", &self.socket).args(["-C", &self.control.to_string(), "--lld", "iscsi"]);
        let output = command.args(arguments.split_whitespace()).output().context("cannot run tgtadm")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tgtadm {arguments}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Demands of initiators that they prove to be `user`, with `secret`.
    ///
    /// # Errors
    /// It does not do it.
    pub fn require_account(&self, user: &str, secret: &str) -> Result<()> {
        self.admin(&format!("--op new --mode account --user {user} --password {secret}"))?;
        self.admin(&format!("--op bind --mode account --tid 1 --user {user}")).map(drop)
    }

    /// Proves to be `user`, with `secret`, to initiators that want to know.
    ///
    /// # Errors
    /// It does not do it.
    pub fn prove_account(&self, user: &str, secret: &str) -> Result<()> {
        self.admin(&format!("--op new --mode account --user {user} --password {secret}"))?;
        self.admin(&format!("--op bind --mode account --tid 1 --user {user} --outgoing")).map(drop)
    }

    /// Takes digests from those who ask for them.
    ///
    /// # Errors
    /// It does not do it.
    pub fn take_digests(&self) -> Result<()> {
        for key in ["HeaderDigest", "DataDigest"] {
            self.admin(&format!("--op update --mode target --tid 1 -n {key} -v CRC32C,None"))?;
        }
        Ok(())
    }

    /// Sessions that are up now.
    ///
    /// # Errors
    /// It does not tell.
    pub fn sessions(&self) -> Result<usize> {
        let said = self.admin("--op show --mode conn --tid 1")?;
        Ok(said.lines().filter(|line| line.starts_with("Session:")).count())
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// It is not there.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again, with the same portals and logical units.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.socket, self.control, self.portals[0], self.log.clone())?;
        self.set_up()
    }

    fn set_up(&mut self) -> Result<()> {
        let start = Instant::now();
        while self.admin("--op show --mode target").is_err() {
            if start.elapsed() > START_LIMIT || self.process.ended()?.is_some() {
                bail!("tgtd does not come up:\n{}", self.process.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for portal in &self.portals[1..] {
            self.admin(&format!("--op new --mode portal --param portal={portal}"))?;
        }
        self.admin(&format!("--op new --mode target --tid 1 -T {}", Self::IQN))?;
        for (image, lun) in self.images.iter().zip(1..) {
            self.admin(&format!("--op new --mode logicalunit --tid 1 --lun {lun} -b {}", image.display()))?;
        }
        self.admin("--op bind --mode target --tid 1 -I ALL").map(drop)
    }
}

fn spawn(socket: &std::path::Path, control: u16, portal: SocketAddrV4, log: PathBuf) -> Result<Process> {
    let program = find_program("env").context("env (package coreutils) is not installed")?;
    let arguments = [
        format!("TGT_IPC_SOCKET={}", socket.display()),
        "tgtd".into(),
        "-f".into(),
        "-C".into(),
        control.to_string(),
        "--iscsi".into(),
        format!("portal={portal}"),
    ];
    Process::start(&program, &arguments, log)
}
