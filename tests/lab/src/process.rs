//! Child processes that cannot outlive the test, and consoles to read them by line.
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::lab::find_program;

/// A running program. Dropping it kills it, by its own pid, and waits for it.
///
/// The kernel kills it too when the thread that started it ends (through `setpriv --pdeathsig`, where there is one), so that a test
/// that dies leaves nothing behind.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

/// What a process prints on its standard output, by line, and a way to write to its standard input.
#[derive(Debug)]
pub struct Console {
    name: String,
    lines: Receiver<String>,
    input: Option<ChildStdin>,
    recent: VecDeque<String>,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `program` with `arguments`; everything it prints goes to the file `log`.
    ///
    /// # Errors
    /// The program cannot be started or the log cannot be made.
    pub fn start<S: AsRef<str>>(program: &Path, arguments: &[S], log: PathBuf) -> Result<Self> {
        // One that is started again goes on where it was.
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot make the log {}", log.display()))?;
        let mut command = guarded(program, arguments);
        // A daemon keeps its state beside its log: each lab has daemons of its own.
        command.env("STATE_DIRECTORY", log.with_file_name("state"));
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Self::spawn(program, command, log)
    }

    /// Starts `program` with a [`Console`] on its standard input and output; its standard error goes to `log`, and what the console
    /// reads goes to `log` with the extension `console`.
    ///
    /// # Errors
    /// The program cannot be started or a log cannot be made.
    pub fn start_with_console<S: AsRef<str>>(program: &Path, arguments: &[S], log: PathBuf) -> Result<(Self, Console)> {
        let file = File::create(&log).with_context(|| format!("cannot make the log {}", log.display()))?;
        let transcript = File::create(log.with_extension("console"))?;
        let mut command = guarded(program, arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut process = Self::spawn(program, command, log)?;
        let output = process.child.stdout.take().context("the child has a standard output")?;
        let input = process.child.stdin.take();
        let (sender, lines) = channel();
        let mut transcript = transcript;
        let reader = std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut bytes = Vec::new();
            while matches!(output.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
                // the transcript is a help for people: a full disk must not end the test's console
                let _ = transcript.write_all(&bytes);
                let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                bytes.clear();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let console =
            Console { name: process.name.clone(), lines, input, recent: VecDeque::new(), reader: Some(reader) };
        Ok((process, console))
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The status it ended with, or `None` while it runs.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It did not within `limit`; the message carries the end of its log.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a pid is a positive number")?;
        // a pidfd becomes readable when the process ends: no sleeping, no signal handler
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left =
                rustix::event::Timespec { tv_sec: i64::try_from(left.as_secs())?, tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut fds, Some(&left)) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
                Ok(0) => bail!("{} did not end within {limit:?}\n{}", self.name, self.log_tail()),
                Ok(_) => {
                    let status = self.child.wait()?;
                    self.status = Some(status);
                    return Ok(status);
                }
            }
        }
    }

    /// Ends it at once (SIGKILL) and waits.
    ///
    /// # Errors
    /// The operating system does not take it away.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill()?;
        }
        self.wait(Duration::from_secs(30)).map(drop)
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// It did not end within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        if self.ended()?.is_none() {
            self.signal(Signal::TERM)?;
        }
        self.wait(limit)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a pid is a positive number")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Waits until there is a Unix socket at `path`, without connecting to it (some servers serve one connection), or the process ends.
    ///
    /// # Errors
    /// Neither within `limit`, or the process ended first.
    pub fn wait_for_socket(&mut self, path: &Path, limit: Duration) -> Result<()> {
        self.wait_until(&format!("serve {}", path.display()), limit, || path.exists())
    }

    /// Waits until a Unix socket at `path` accepts a connection (a stale one does not), or the process ends.
    ///
    /// # Errors
    /// Neither within `limit`, or the process ended first.
    pub fn wait_for_answer(&mut self, path: &Path, limit: Duration) -> Result<()> {
        self.wait_until(&format!("answer on {}", path.display()), limit, || {
            std::os::unix::net::UnixStream::connect(path).is_ok()
        })
    }

    /// The file with everything it printed.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until a TCP connection to 127.0.0.1:`port` is accepted, or the process ends.
    ///
    /// # Errors
    /// Neither within `limit`, or the process ended first.
    pub fn wait_for_port(&mut self, port: u16, limit: Duration) -> Result<()> {
        self.wait_until(&format!("listen on 127.0.0.1:{port}"), limit, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
    }

    /// The last lines of its log, for an error message.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(30);
        format!("--- the last lines of {}\n{}", self.log.display(), lines[from..].join("\n"))
    }

    fn wait_until(&mut self, what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !condition() {
            if let Some(status) = self.ended()? {
                bail!("{} ended ({status}) before it could {what}\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{} did not {what} within {limit:?}\n{}", self.name, self.log_tail());
            }
            // polling is the only way: a socket's appearance makes no event for others. The condition decides, not the pause.
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    }

    fn spawn(program: &Path, mut command: Command, log: PathBuf) -> Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Process { name, child, log, status: None })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            // both fail only when it has ended already
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Console {
    /// Writes one line to the process.
    ///
    /// # Errors
    /// The process has closed its input.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().with_context(|| format!("{} has no input", self.name))?;
        input.write_all(format!("{line}\n").as_bytes()).with_context(|| format!("cannot write to {}", self.name))?;
        input.flush()?;
        Ok(())
    }

    /// Reads lines until `pick` makes something of one, and returns that.
    ///
    /// # Errors
    /// No such line within `limit`, or the process closed its output; the message carries the last lines.
    pub fn wait_for<T>(&mut self, limit: Duration, mut pick: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let line = match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.error(&format!("did not say what was waited for within {limit:?}")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.error("closed its output before it said what was waited for"));
                }
            };
            let picked = pick(&line);
            if self.recent.len() == 30 {
                self.recent.pop_front();
            }
            self.recent.push_back(line);
            if let Some(picked) = picked {
                return Ok(picked);
            }
        }
    }

    fn error(&self, what: &str) -> anyhow::Error {
        let recent: Vec<&str> = self.recent.iter().map(String::as_str).collect();
        anyhow!("{} {what}; its last lines were:\n{}", self.name, recent.join("\n"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.input = None;
        // the reader ends when the process does; a process that is kept alive on purpose must not hold the test
        if self.reader.as_ref().is_some_and(JoinHandle::is_finished) {
            let _ = self.reader.take().map(JoinHandle::join);
        }
    }
}

fn guarded<S: AsRef<str>>(program: &Path, arguments: &[S]) -> Command {
    let mut words: Vec<OsString> = Vec::new();
    if let Some(setpriv) = find_program("setpriv") {
        words.extend([setpriv.into(), "--pdeathsig".into(), "KILL".into(), "--".into()]);
    }
    words.extend(hears_signals().iter().map(Into::into));
    words.push(program.into());
    words.extend(arguments.iter().map(|argument| argument.as_ref().into()));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// What goes before a program so that it hears of hang-ups and interrupts though whoever runs the tests ignores them (`nohup`, a shell that has
/// put them into the background); nothing where there is no such thing.
fn hears_signals() -> &'static [String] {
    static WORDS: OnceLock<Vec<String>> = OnceLock::new();
    WORDS.get_or_init(|| {
        let words = ["env".to_owned(), "--default-signal=HUP,INT".to_owned()];
        let tried = Command::new(&words[0]).args([&words[1], "true"]).stderr(Stdio::null()).status();
        if tried.is_ok_and(|status| status.success()) { words.into() } else { Vec::new() }
    })
}
