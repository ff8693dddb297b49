//! A part of an arrangement in a process of its own: it says a line when it is ready, answers questions by lines, and ends when its
//! standard input does.

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde::de::DeserializeOwned;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub(crate) struct Process {
    what: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// This program, with `args`. `what` is its name for people.
    pub(crate) fn start(what: &'static str, args: &[String]) -> anyhow::Result<Process> {
        Process::start_as(what, Command::new(this_program()?).args(args))
    }

    /// What `command` starts, which must come to run this program.
    pub(crate) fn start_as(what: &'static str, command: &mut Command) -> anyhow::Result<Process> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("starting {what}"))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().with_context(|| format!("{what} has no output"))?);
        Ok(Process { what, child, input, output })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it says.
    pub(crate) fn answer<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        self.output.read_line(&mut line).with_context(|| format!("waiting for {}", self.what))?;
        if line.is_empty() {
            drop(self.input.take());
            anyhow::bail!("{} ended: {:?}", self.what, self.child.wait());
        }
        serde_json::from_str(&line).with_context(|| format!("{} says {line:?}", self.what))
    }

    /// What it answers to `question`.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, question: &str) -> anyhow::Result<T> {
        let input = self.input.as_mut().with_context(|| format!("{} has ended", self.what))?;
        writeln!(input, "{question}").with_context(|| format!("asking {}", self.what))?;
        self.answer()
    }

    /// Does `work` while it is stopped.
    pub(crate) fn stopped<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.signal(Signal::STOP)?;
        let done = work();
        self.signal(Signal::CONT)?;
        done
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("stopping and continuing {}", self.what))
    }

    /// Ends it, and waits for that.
    ///
    /// # Errors
    /// It did not end well.
    pub(crate) fn end(&mut self) -> anyhow::Result<()> {
        // Whoever is stopped does not see that its input has ended.
        self.signal(Signal::CONT)?;
        drop(self.input.take());
        let status = self.child.wait().with_context(|| format!("waiting for {}", self.what))?;
        anyhow::ensure!(status.success(), "{} ended with {status}", self.what);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.input.is_some()
            && let Err(error) = self.end()
        {
            tracing::warn!("{error:#}");
        }
    }
}

/// Where this program is.
pub(crate) fn this_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("asking for the name of this program")
}

/// The other side: answers the lines of standard input until it ends. Ends with whoever started it, even if it is stopped then.
pub(crate) fn answer_all(mut answer: impl FnMut(&str) -> anyhow::Result<String>) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("asking to end with who started this")?;
    for line in std::io::stdin().lines() {
        crate::output::line(answer(line.context("reading standard input")?.trim())?)?;
    }
    Ok(())
}
