//! JSON-RPC 2.0 over a UNIX socket: concatenated objects without framing, batches, notifications.
//!
//! A connection that sends what is not JSON, or more than [`LIMIT`] bytes without a complete value, gets one error and is closed. Calls are
//! read and answered one by one, those of a batch as well: what is in memory is the request and one answer.
//! At most [`CONNECTIONS`] are served at a time. One more waits, and the one goes that has called nothing for the longest, if that is longer
//! than [`IDLE_LEAST`]: scripts leak connections, and who asks then is an operator. A client that takes no answers, or does not get to the end
//! of a call, for [`CLIENT_LIMIT`] is let go of.

mod methods;
mod passthrough;
mod places;
mod reservations;

use crate::daemon::Daemon;
use anyhow::{Context, Result};
use places::{Place, Places};
use polypath::vhost_user_blk::{SocketAccess, UnixSocket};
use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::RwLock;
use tokio::time::{Instant, timeout_at};

/// Longest request in bytes.
const LIMIT: usize = 1 << 20;
/// Most calls in a batch.
const BATCH: usize = 1000;
/// Most connections at a time.
const CONNECTIONS: usize = 256;
/// Longest wait for a client to take an answer, or to end a call that it has begun.
const CLIENT_LIMIT: Duration = Duration::from_secs(30);
/// A connection that has called something in this time is not idle.
const IDLE_LEAST: Duration = Duration::from_secs(1);
/// Pause after the operating system refused a connection: descriptors that are out now may be back then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What went wrong with a call; becomes the `error` member of its response.
#[derive(Debug)]
pub(crate) struct RpcError {
    pub(crate) code: i32,
    pub(crate) message: String,
}

impl RpcError {
    /// The parameters are wrong.
    pub(crate) fn parameters(message: impl Into<String>) -> Self {
        RpcError { code: -32602, message: message.into() }
    }

    /// The call was understood and could not be carried out.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        RpcError { code: -32000, message: message.into() }
    }
}

/// The socket. Removed from the file system on drop.
pub(crate) struct Server {
    listener: UnixListener,
    socket: UnixSocket,
    daemon: Arc<Daemon>,
    calls: Calls,
}

/// Calls under way: from their request to the answer that was handed to the operating system.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<RwLock<()>>);

impl Calls {
    /// Waits until each has its answer, at most `limit`: the one that asked for the end among them.
    pub(crate) async fn answered(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.0.write()).await.is_err() {
            tracing::warn!("ending with RPC calls that have no answer yet");
        }
    }
}

impl Server {
    /// Binds `path`, mode 0600. A socket nobody listens on is replaced.
    pub(crate) fn bind(path: &Path, daemon: Arc<Daemon>) -> Result<Self> {
        crate::daemon::make_folder(path).map_err(anyhow::Error::msg)?;
        let socket = UnixSocket::listen(path, SocketAccess::default()).context("RPC (choose another with -r)")?;
        let listener = socket.listener().try_clone().and_then(UnixListener::from_std).context("RPC socket")?;
        Ok(Server { listener, socket, daemon, calls: Calls::default() })
    }

    /// What is under way.
    pub(crate) fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// Serves for ever. A connection that cannot be accepted costs nobody else.
    pub(crate) async fn serve(&self) -> Result<()> {
        let places = Places::new(CONNECTIONS);
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "an RPC connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let place = places.take(IDLE_LEAST).await;
            let (daemon, calls) = (self.daemon.clone(), self.calls.clone());
            tokio::spawn(async move {
                if let Err(error) = talk(stream, &daemon, &calls, &place).await {
                    tracing::debug!(%error, "RPC connection ended");
                }
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.socket.remove() {
            tracing::debug!(%error, path = %self.socket.path().display(), "RPC socket file");
        }
    }
}

async fn talk(mut stream: UnixStream, daemon: &Arc<Daemon>, calls: &Calls, place: &Place) -> Result<()> {
    let mut buffer = Vec::with_capacity(4096);
    // Until when what is there must be a whole call.
    let mut until = None;
    loop {
        let mut used = 0;
        let broken = loop {
            match first(&buffer[used..]) {
                First::Value(value, length) => {
                    used += length;
                    let _under_way = calls.0.read().await;
                    let _busy = place.busy();
                    answer(value, daemon, &mut stream).await?;
                    until = None;
                }
                First::Incomplete => break None,
                First::Broken(problem) => break Some(problem),
            }
        };
        buffer.drain(..used);
        let too_long =
            || (buffer.len() >= LIMIT).then(|| format!("longer than {LIMIT} bytes; expected a shorter request"));
        let problem = match broken {
            Some(message) => Some(RpcError { code: -32700, message }),
            None => too_long().map(|message| RpcError { code: -32600, message }),
        };
        if let Some(problem) = problem {
            return say(&mut stream, &error(&Value::Null, &problem), "\n").await;
        }
        if buffer.trim_ascii().is_empty() {
            until = None;
        } else {
            until.get_or_insert_with(|| Instant::now() + CLIENT_LIMIT);
        }
        // Never more than the limit in memory, however much the client has written.
        let room = (LIMIT - buffer.len()) as u64;
        let mut more = (&mut stream).take(room);
        let read = async {
            match until {
                Some(until) => timeout_at(until, more.read_buf(&mut buffer)).await.ok(),
                None => Some(more.read_buf(&mut buffer).await),
            }
        };
        let read = tokio::select! {
            read = read => read,
            () = place.unwanted() => return Ok(()),
        };
        let Some(read) = read else {
            let message = format!("no whole call within {} s; expected its end", CLIENT_LIMIT.as_secs());
            return say(&mut stream, &error(&Value::Null, &RpcError { code: -32600, message }), "\n").await;
        };
        if read? == 0 {
            return Ok(());
        }
    }
}

/// Writes an answer, or a part of one, and what comes after it.
async fn say(stream: &mut UnixStream, answer: &Value, after: &str) -> Result<()> {
    put(stream, &format!("{answer}{after}")).await
}

async fn put(stream: &mut UnixStream, text: &str) -> Result<()> {
    let taken = tokio::time::timeout(CLIENT_LIMIT, stream.write_all(text.as_bytes())).await;
    taken.context("the client takes no answer")?.context("answering")
}

/// What was sent: one call (whatever it is), or several.
enum Sent {
    One(Value),
    Batch(Vec<Value>),
    /// More calls than a batch may have; they were not kept.
    TooMany,
}

impl<'de> Deserialize<'de> for Sent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sent, D::Error> {
        deserializer.deserialize_any(SentVisitor)
    }
}

struct SentVisitor;

impl<'de> Visitor<'de> for SentVisitor {
    type Value = Sent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a call or a batch of calls")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut batch: A) -> Result<Sent, A::Error> {
        let mut calls = Vec::new();
        while calls.len() < BATCH {
            match batch.next_element()? {
                Some(call) => calls.push(call),
                None => return Ok(Sent::Batch(calls)),
            }
        }
        match batch.next_element::<IgnoredAny>()? {
            None => Ok(Sent::Batch(calls)),
            Some(_) => {
                drop(calls);
                while batch.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Sent::TooMany)
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, call: A) -> Result<Sent, A::Error> {
        Value::deserialize(MapAccessDeserializer::new(call)).map(Sent::One)
    }

    // What is neither is told that a call must be an object.

    fn visit_bool<E>(self, _: bool) -> Result<Sent, E> {
        Ok(Sent::One(Value::Null))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Sent, E> {
        Ok(Sent::One(Value::Null))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Sent, E> {
        Ok(Sent::One(Value::Null))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Sent, E> {
        Ok(Sent::One(Value::Null))
    }

    fn visit_str<E>(self, _: &str) -> Result<Sent, E> {
        Ok(Sent::One(Value::Null))
    }

    fn visit_unit<E>(self) -> Result<Sent, E> {
        Ok(Sent::One(Value::Null))
    }
}

/// What a buffer begins with.
enum First {
    /// This, and how many bytes it takes.
    Value(Sent, usize),
    Incomplete,
    Broken(String),
}

fn first(buffer: &[u8]) -> First {
    let mut stream = serde_json::Deserializer::from_slice(buffer).into_iter::<Sent>();
    match stream.next() {
        Some(Ok(value)) => First::Value(value, stream.byte_offset()),
        None => First::Incomplete,
        Some(Err(e)) if e.is_eof() => First::Incomplete,
        Some(Err(e)) => First::Broken(format!("not JSON: {e}")),
    }
}

/// Carries out what was sent, and answers it as far as it wants to be.
async fn answer(sent: Sent, daemon: &Arc<Daemon>, stream: &mut UnixStream) -> Result<()> {
    let refused = |message: String| error(&Value::Null, &RpcError { code: -32600, message });
    match sent {
        Sent::TooMany => {
            let problem = format!("a batch of more than {BATCH} calls; expected at most as many");
            say(stream, &refused(problem), "\n").await
        }
        Sent::Batch(batch) if batch.is_empty() => say(stream, &refused("an empty batch".into()), "\n").await,
        Sent::Batch(batch) => {
            let mut before = "[";
            for call in batch {
                if let Some(answer) = answer_one(call, daemon).await {
                    put(stream, before).await?;
                    say(stream, &answer, "").await?;
                    before = ",";
                }
            }
            if before == "[" { Ok(()) } else { put(stream, "]\n").await }
        }
        Sent::One(call) => match answer_one(call, daemon).await {
            Some(answer) => say(stream, &answer, "\n").await,
            None => Ok(()),
        },
    }
}

async fn answer_one(call: Value, daemon: &Arc<Daemon>) -> Option<Value> {
    let id = call.get("id").cloned();
    let shown = id.clone().unwrap_or(Value::Null);
    let invalid = |message: &str| Some(error(&shown, &RpcError { code: -32600, message: message.into() }));
    if !call.is_object() {
        return invalid("a call must be an object");
    }
    if call.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return invalid("member \"jsonrpc\" must be \"2.0\"");
    }
    if id.as_ref().is_some_and(|id| !(id.is_null() || id.is_number() || id.is_string())) {
        return invalid("member \"id\" must be a number, a string or null");
    }
    let Some(method) = call.get("method").and_then(Value::as_str).map(str::to_owned) else {
        return invalid("member \"method\" must be a string");
    };
    let params = call.get("params").cloned().unwrap_or_else(|| json!({}));
    let daemon = daemon.clone();
    // Methods may wait for reactors (bounded); the control thread goes on with other connections meanwhile.
    let result = tokio::task::spawn_blocking(move || methods::call(&daemon, &method, params)).await;
    let result = result.unwrap_or_else(|e| Err(RpcError { code: -32603, message: format!("the method failed: {e}") }));
    id.map(|id| match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(problem) => error(&id, &problem),
    })
}

fn error(id: &Value, problem: &RpcError) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": problem.code, "message": problem.message } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_without_framing_and_in_pieces() {
        let mut text = &br#"{"a":1}{"b":2} [3] {"c"#[..];
        let mut calls = Vec::new();
        while let First::Value(sent, length) = first(text) {
            text = &text[length..];
            calls.push(match sent {
                Sent::One(_) => 1,
                Sent::Batch(batch) => 100 + batch.len(),
                Sent::TooMany => unreachable!(),
            });
        }
        assert_eq!(calls, [1, 1, 101]);
        assert_eq!(text.trim_ascii(), br#"{"c"#, "an incomplete value waits for the rest");
        assert!(matches!(first(text), First::Incomplete) && matches!(first(b"  \n"), First::Incomplete));
        assert!(matches!(first(b"nonsense"), First::Broken(why) if why.contains("not JSON")));
        for odd in ["null", "true", "-1", "1", "1.5", "\"text\""] {
            let complete = format!("{odd} ");
            assert!(matches!(first(complete.as_bytes()), First::Value(Sent::One(Value::Null), _)), "{odd}");
        }
    }

    #[test]
    fn a_batch_has_a_bound() {
        let batch = |calls: usize| format!("[{}] ", vec!["{}"; calls].join(","));
        assert!(matches!(first(batch(BATCH).as_bytes()), First::Value(Sent::Batch(calls), _) if calls.len() == BATCH));
        let (one, two) = (batch(BATCH + 1), batch(BATCH + 2));
        for more in [one, two] {
            assert!(matches!(first(more.as_bytes()), First::Value(Sent::TooMany, length) if length == more.len() - 1));
        }
        assert!(matches!(first(b"[]"), First::Value(Sent::Batch(calls), 2) if calls.is_empty()));
    }
}
