//! QEMU's monitor protocol, as much as the tests say: one command at a time, events passed over.
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// A connection to the monitor of one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

/// How a migration went, by QEMU's word.
#[derive(Debug, Clone, Copy)]
pub struct Migrated {
    /// For how long neither side ran the guest.
    pub downtime: Duration,
    /// From the first page to the end.
    pub total: Duration,
}

impl Qmp {
    /// Connects to `socket` and leaves the greeting behind.
    ///
    /// # Errors
    /// Nobody answers there, or not as QEMU does.
    pub fn connect(socket: &Path) -> Result<Qmp> {
        let stream = UnixStream::connect(socket).with_context(|| format!("no monitor at {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let lines = BufReader::new(stream.try_clone()?);
        let mut qmp = Qmp { stream, lines };
        let greeting = qmp.line()?;
        ensure!(greeting.get("QMP").is_some(), "no greeting: {greeting}");
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Carries out one command and returns what it answers.
    ///
    /// # Errors
    /// QEMU refuses it or does not answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    /// Sends the guest to a QEMU that waits for it at `to`, and waits until it is there.
    ///
    /// # Errors
    /// It did not get there within `limit`.
    pub fn migrate(&mut self, to: &Path, limit: Duration) -> Result<Migrated> {
        self.execute("migrate", &json!({ "uri": format!("unix:{}", to.display()) }))?;
        let until = Instant::now() + limit;
        loop {
            let state = self.execute("query-migrate", &json!({}))?;
            let ms = |key: &str| state[key].as_u64().map(Duration::from_millis).context("a time in ms");
            match state["status"].as_str() {
                Some("completed") => return Ok(Migrated { downtime: ms("downtime")?, total: ms("total-time")? }),
                Some("failed" | "cancelled") => bail!("the migration failed: {state}"),
                _ => ensure!(Instant::now() < until, "the migration did not end within {limit:?}: {state}"),
            }
            std::thread::park_timeout(LOOK);
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.lines.read_line(&mut line)? > 0, "QEMU closed its monitor");
        Ok(serde_json::from_str(&line)?)
    }
}
