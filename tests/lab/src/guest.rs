//! QEMU guests under plain emulation, with one command line over a serial port and QEMU's user network.
//!
//! A guest reaches services of this host's loopback at 10.0.2.2 (10.0.3.2 through its second card); the host reaches the guest through
//! forwarded ports of 127.0.0.1. Neither needs root.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::initramfs::Contents;
use crate::lab::{Kernel, Lab, find_program};
use crate::process::{Console, Process};

/// How long a guest may take to boot. Four seconds are usual; the limit is for a machine that does many other things.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// What a network card is plugged into.
#[derive(Debug, Clone)]
enum Card {
    /// QEMU's user network, with these ports of 127.0.0.1 forwarded to those of the guest.
    User(Vec<(u16, u16)>),
    /// A tap device of this name.
    Tap(String),
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    name: String,
    memory_mib: u32,
    contents: Contents,
    cards: Vec<Card>,
    arguments: Vec<String>,
    kernel_arguments: Vec<String>,
}

impl GuestSpec {
    /// A guest with 512 MiB and no network, no disk and no setup script. `name` names its logs.
    #[must_use]
    pub fn new(name: &str) -> Self {
        GuestSpec {
            name: name.to_owned(),
            memory_mib: 512,
            contents: Contents::default(),
            cards: Vec::new(),
            arguments: Vec::new(),
            kernel_arguments: Vec::new(),
        }
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Loads a kernel module with these options. A kernel with everything built in gets the options on its command line.
    #[must_use]
    pub fn module(mut self, name: &str, options: &str) -> Self {
        self.contents.modules.push((name.to_owned(), options.to_owned()));
        let dotted = name.replace('-', "_");
        self.kernel_arguments.extend(options.split_whitespace().map(|option| format!("{dotted}.{option}")));
        self
    }

    /// Brings a program of this machine; it lies in `/sbin` of the guest.
    #[must_use]
    pub fn program(mut self, name: &str) -> Self {
        self.contents.programs.push(name.to_owned());
        self
    }

    /// Has the guest source this file of the repository's `lab/` folder before it takes commands.
    #[must_use]
    pub fn setup(mut self, script: &str) -> Self {
        self.contents.scripts.push((script.to_owned(), "setup.sh".to_owned()));
        self
    }

    /// Brings a file of the repository's `lab/` folder, for the setup script to source; it lies in `/`.
    #[must_use]
    pub fn script(mut self, script: &str) -> Self {
        self.contents.scripts.push((script.to_owned(), script.to_owned()));
        self
    }

    /// Adds a network card; each pair forwards 127.0.0.1:first on this host to the second, a port of the guest.
    #[must_use]
    pub fn card(self, forwards: &[(u16, u16)]) -> Self {
        self.plug(Card::User(forwards.to_vec()))
    }

    /// Adds a network card on the tap device `name` of this network namespace; it has no address. It is `ethN` in a guest of QEMU's and
    /// `vecN` in a User-Mode Linux.
    #[must_use]
    pub fn tap(self, name: &str) -> Self {
        self.plug(Card::Tap(name.to_owned()))
    }

    fn plug(mut self, card: Card) -> Self {
        if self.cards.is_empty() {
            self = self.module("virtio_pci", "").module("virtio_net", "");
        }
        self.cards.push(card);
        self
    }

    /// Makes the first file system in `folder` instead of keeping it for the next run: for programs that are built anew often.
    #[must_use]
    pub fn image_in(mut self, folder: &Path) -> Self {
        self.contents.folder = Some(folder.to_owned());
        self
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn kernel_arguments(mut self, words: &str) -> Self {
        self.kernel_arguments.push(words.to_owned());
        self
    }

    /// Adds a disk served over vhost-user-blk at `socket`; it is `/dev/vda` in the guest.
    #[must_use]
    pub fn vhost_user_blk(self, socket: &Path, queues: u16) -> Self {
        self.vhost_user_blk_with(socket, "", queues, "")
    }

    /// The same, with more options for QEMU's connection (`,reconnect=1`) and its device (`,packed=on`).
    #[must_use]
    pub fn vhost_user_blk_with(mut self, socket: &Path, connection: &str, queues: u16, device: &str) -> Self {
        self = self.module("virtio_pci", "").module("virtio_blk", "");
        self.arguments.extend([
            "-chardev".to_owned(),
            format!("socket,id=vub,path={}{connection}", socket.display()),
            "-device".to_owned(),
            format!("vhost-user-blk-pci,chardev=vub,num-queues={queues}{device}"),
        ]);
        self
    }

    /// Has QEMU serve its monitor at `socket`.
    #[must_use]
    pub fn monitor(mut self, socket: &Path) -> Self {
        self.arguments.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", socket.display())]);
        self
    }

    fn command_line(&self, kernel: &Kernel, initramfs: &Path, console_log: &Path) -> Vec<String> {
        let mut line: Vec<String> = [
            "-accel",
            "tcg,thread=multi",
            "-machine",
            "q35,memory-backend=ram",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]
        .map(str::to_owned)
        .into();
        let mut add = |option: &str, value: String| line.extend([option.to_owned(), value]);
        add("-m", self.memory_mib.to_string());
        // shared, because a vhost-user back-end maps it
        add("-object", format!("memory-backend-memfd,id=ram,size={}M,share=on", self.memory_mib));
        add("-chardev", format!("file,id=console,path={}", console_log.display()));
        add("-serial", "chardev:console".to_owned());
        add("-chardev", "stdio,id=control,signal=off".to_owned());
        add("-serial", "chardev:control".to_owned());
        for (n, card) in self.cards.iter().enumerate() {
            let (kind, options) = match card {
                Card::User(forwards) => {
                    let forwards: String = forwards
                        .iter()
                        .map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-10.0.{}.15:{guest}", n + 2))
                        .collect();
                    ("user", format!("net=10.0.{}.0/24{forwards}", n + 2))
                }
                Card::Tap(name) => ("tap", format!("ifname={name},script=no,downscript=no")),
            };
            add("-netdev", format!("{kind},id=net{n},{options}"));
            add("-device", format!("virtio-net-pci,netdev=net{n},romfile="));
        }
        add("-kernel", kernel.image.display().to_string());
        add("-initrd", initramfs.display().to_string());
        add(
            "-append",
            format!("console=ttyS0 panic=-1 loglevel=5 random.trust_cpu=on {}", self.kernel_arguments.join(" ")),
        );
        line.extend(self.arguments.iter().cloned());
        line
    }
}

/// A running guest. Dropping it ends QEMU.
#[derive(Debug)]
pub struct Guest {
    console: Console,
    process: Process,
    next_id: u32,
    /// How long it took from starting QEMU to the guest's first word.
    pub boot_time: Duration,
}

/// A command that was sent to a guest and not yet answered.
#[must_use = "a command that nobody waits for leaves its answer for the next one to stumble over"]
#[derive(Debug)]
pub struct Running {
    id: u32,
    command: String,
}

impl Guest {
    /// Boots a guest and waits until it takes commands.
    ///
    /// # Errors
    /// Something it is made of is missing, its setup script failed, or it was not ready within [`BOOT_LIMIT`].
    pub fn boot(lab: &Lab, spec: &GuestSpec) -> Result<Self> {
        let (qemu, line, console_log) = Self::qemu(lab, spec)?;
        Self::start(lab, spec, &qemu, &line, &console_log)
    }

    /// Starts a QEMU made as `spec` says, which waits at the UNIX socket `at` for the guest that `from` runs now. What is said to the
    /// guest goes there from now on: commands that were begun are waited for here.
    ///
    /// # Errors
    /// Something it is made of is missing, or QEMU does not wait.
    pub fn incoming(lab: &Lab, spec: &GuestSpec, from: &Guest, at: &Path) -> Result<Self> {
        let (qemu, mut line, _) = Self::qemu(lab, spec)?;
        line.extend(["-incoming".to_owned(), format!("unix:{}", at.display())]);
        let (mut process, console) = Process::start_with_console(&qemu, &line, lab.log(&spec.name))?;
        process.wait_for_socket(at, BOOT_LIMIT)?;
        Ok(Guest { console, process, next_id: from.next_id, boot_time: Duration::ZERO })
    }

    /// QEMU, its command line, and where the guest's kernel log goes.
    fn qemu(lab: &Lab, spec: &GuestSpec) -> Result<(PathBuf, Vec<String>, PathBuf)> {
        let kernel = Kernel::find()?;
        let initramfs = spec
            .contents
            .build(Some(&kernel))
            .with_context(|| format!("cannot build the first file system of `{}`", spec.name))?;
        let qemu = find_program("qemu-system-x86_64").context("qemu-system-x86_64 is not installed")?;
        let console_log = lab.log(&format!("{}-kernel", spec.name));
        let line = spec.command_line(&kernel, &initramfs, &console_log);
        Ok((qemu, line, console_log))
    }

    /// Boots a User-Mode Linux, a Linux kernel that is an ordinary program, with everything built in and a vhost-user-blk disk at
    /// `socket`. Of `spec` it takes the name, the memory, programs and scripts.
    ///
    /// # Errors
    /// As [`Guest::boot`].
    pub fn boot_user_mode_linux(lab: &Lab, spec: &GuestSpec, kernel: &Path, socket: &Path) -> Result<Self> {
        // 2 is the virtio device number of a block device
        let disk = format!("virtio_uml.device={}:2", socket.display());
        Self::boot_user_mode_linux_with(lab, spec, kernel, &[disk])
    }

    /// The same without that disk, and with the network cards of `spec` that are on tap devices.
    ///
    /// # Errors
    /// As [`Guest::boot`].
    pub fn boot_user_mode_linux_on_taps(lab: &Lab, spec: &GuestSpec, kernel: &Path) -> Result<Self> {
        let taps = spec.cards.iter().enumerate().filter_map(|(n, card)| match card {
            Card::Tap(name) => Some(format!("vec{n}:transport=tap,ifname={name},depth=64,gro=1")),
            Card::User(_) => None,
        });
        Self::boot_user_mode_linux_with(lab, spec, kernel, &taps.collect::<Vec<_>>())
    }

    fn boot_user_mode_linux_with(lab: &Lab, spec: &GuestSpec, kernel: &Path, devices: &[String]) -> Result<Self> {
        let initramfs = spec
            .contents
            .build(None)
            .with_context(|| format!("cannot build the first file system of `{}`", spec.name))?;
        let log = lab.log(&spec.name);
        let mut line = vec![
            format!("mem={}M", spec.memory_mib),
            format!("initrd={}", initramfs.display()),
            // the command line of a guest is its second serial port
            "ssl1=fd:0,fd:1".to_owned(),
            "con0=null,fd:2".to_owned(),
            "root=/dev/ram0".to_owned(),
            "rdinit=/init".to_owned(),
            "con=null".to_owned(),
            "ssl=null".to_owned(),
            "seccomp=on".to_owned(),
            // its own scratch files go where ours go
            format!("uml_dir={}", lab.path("uml").display()),
        ];
        line.extend_from_slice(devices);
        Self::start(lab, spec, kernel, &line, &log)
    }

    fn start(lab: &Lab, spec: &GuestSpec, program: &Path, line: &[String], console_log: &Path) -> Result<Self> {
        let started = Instant::now();
        let (process, mut console) = Process::start_with_console(program, line, lab.log(&spec.name))?;
        let answer = console.wait_for(BOOT_LIMIT, |line| {
            line.starts_with("LAB READY")
                .then_some(Ok(()))
                .or_else(|| line.strip_prefix("LAB FAILED").map(|why| Err(why.trim().to_owned())))
        });
        let outcome = match answer {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(anyhow::anyhow!("{why}")),
            Err(e) => Err(e),
        };
        outcome.with_context(|| {
            let kernel_log = std::fs::read(console_log).unwrap_or_default();
            let kernel_log = String::from_utf8_lossy(&kernel_log).into_owned();
            let lines: Vec<&str> = kernel_log.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            format!(
                "the guest `{}` did not come up\n{}\n--- the end of {}\n{tail}",
                spec.name,
                process.log_tail(),
                console_log.display()
            )
        })?;
        Ok(Guest { console, process, next_id: 1, boot_time: started.elapsed() })
    }

    /// Runs a shell command in the guest and returns what it printed.
    ///
    /// # Errors
    /// It ended with another status than 0, or not within `limit`.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        let running = self.begin(command)?;
        self.finish(running, limit)
    }

    /// Sends a command and does not wait for it, so that the host can act meanwhile. The guest carries out one at a time.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn begin(&mut self, command: &str) -> Result<Running> {
        assert!(!command.contains('\n'), "a command is one line");
        let id = self.next_id;
        self.next_id += 1;
        self.console.send(&format!("{id} {command}"))?;
        Ok(Running { id, command: command.to_owned() })
    }

    /// Waits until a command that was begun prints a line that begins with `prefix`. The lines up to there are gone for `finish`.
    ///
    /// # Errors
    /// It ended before it did, or did not within `limit`.
    pub fn wait_for_line(&mut self, running: &Running, prefix: &str, limit: Duration) -> Result<()> {
        let marker = format!("LAB DONE {} ", running.id);
        let seen = self.console.wait_for(limit, |line| {
            line.starts_with(prefix).then_some(true).or_else(|| line.starts_with(&marker).then_some(false))
        });
        match seen.with_context(|| format!("the guest's command `{}` did not say `{prefix}`", running.command))? {
            true => Ok(()),
            false => bail!("the guest's command `{}` ended before it said `{prefix}`", running.command),
        }
    }

    /// Waits until a command that was begun prints a line that begins with one of `prefixes`, and returns that line.
    ///
    /// # Errors
    /// As [`Guest::wait_for_line`].
    pub fn wait_for_one_of(&mut self, running: &Running, prefixes: &[&str], limit: Duration) -> Result<String> {
        let marker = format!("LAB DONE {} ", running.id);
        let seen = self.console.wait_for(limit, |line| {
            let ended = line.starts_with(&marker);
            (ended || prefixes.iter().any(|prefix| line.starts_with(prefix))).then(|| line.to_owned())
        });
        let line =
            seen.with_context(|| format!("the guest's command `{}` said none of {prefixes:?}", running.command))?;
        ensure!(!line.starts_with(&marker), "the guest's command `{}` ended: {line}", running.command);
        Ok(line)
    }

    /// Waits until all readers and writers of a `guest-load` have got something done since `since`, and nothing has gone wrong.
    ///
    /// # Errors
    /// Something has, or they have not within `limit`.
    pub fn wait_load_alive(&mut self, running: &Running, since: Instant, limit: Duration) -> Result<()> {
        let mut alive = 0;
        // What was said just before may be read just after, and the next may have been begun before.
        while alive < 2 {
            let left = limit.saturating_sub(since.elapsed());
            let line = self.wait_for_one_of(running, &["ALIVE", "WRONG", "ERROR"], left)?;
            ensure!(line.starts_with("ALIVE"), "the guest says: {line}");
            alive += u32::from(since.elapsed() > Duration::from_millis(300));
        }
        Ok(())
    }

    /// Waits for a command that was begun and returns what it printed.
    ///
    /// # Errors
    /// It ended with another status than 0, or not within `limit`.
    pub fn finish(&mut self, running: Running, limit: Duration) -> Result<String> {
        let marker = format!("LAB DONE {} ", running.id);
        let mut output = String::new();
        let status = self
            .console
            .wait_for(limit, |line| {
                let status = line.strip_prefix(&marker).map(str::to_owned);
                if status.is_none() {
                    output.push_str(line);
                    output.push('\n');
                }
                status
            })
            .with_context(|| format!("the guest's command `{}` did not end", running.command))?;
        if status != "0" {
            bail!("the guest's command `{}` ended with {status}:\n{}", running.command, output.trim());
        }
        Ok(output.trim().to_owned())
    }

    /// QEMU's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
