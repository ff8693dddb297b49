//! JSON-RPC 2.0 over a UNIX socket: concatenated objects without framing, batches, notifications.
//!
//! A connection that sends what is not JSON, or more than [`LIMIT`] bytes without a complete value, gets one error and is closed.
//! At most [`CONNECTIONS`] are served at a time; more wait in line. A client that takes no answers for [`ANSWER_LIMIT`] is let go of.

mod methods;

use crate::daemon::Daemon;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{RwLock, Semaphore};

/// Longest request in bytes.
const LIMIT: usize = 1 << 20;
/// Most connections at a time.
const CONNECTIONS: usize = 256;
/// Longest wait for a client to take an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
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
    path: PathBuf,
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
        if let Ok(meta) = std::fs::symlink_metadata(path) {
            if !meta.file_type().is_socket() {
                bail!("RPC socket {}: a file of another kind is there; expected none or a socket", path.display());
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                bail!("RPC socket {}: another daemon listens there; end it or choose another with -r", path.display());
            }
            std::fs::remove_file(path).with_context(|| format!("removing the stale RPC socket {}", path.display()))?;
        }
        crate::daemon::make_folder(path).map_err(anyhow::Error::msg)?;
        let listener = UnixListener::bind(path).with_context(|| format!("RPC socket {}", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("permissions of {}", path.display()))?;
        Ok(Server { listener, path: path.to_owned(), daemon, calls: Calls::default() })
    }

    /// What is under way.
    pub(crate) fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// Serves for ever. A connection that cannot be accepted costs nobody else.
    pub(crate) async fn serve(&self) -> Result<()> {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = places.clone().acquire_owned().await.context("connection limit")?;
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "an RPC connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (daemon, calls) = (self.daemon.clone(), self.calls.clone());
            tokio::spawn(async move {
                if let Err(error) = talk(stream, &daemon, &calls).await {
                    tracing::debug!(%error, "RPC connection ended");
                }
                drop(place);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "RPC socket file");
        }
    }
}

async fn talk(mut stream: UnixStream, daemon: &Arc<Daemon>, calls: &Calls) -> Result<()> {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let (values, used, broken) = split(&buffer);
        for value in values {
            let _under_way = calls.0.read().await;
            if let Some(answer) = answer(value, daemon).await {
                say(&mut stream, &answer).await?;
            }
        }
        buffer.drain(..used);
        let too_long =
            || (buffer.len() >= LIMIT).then(|| format!("longer than {LIMIT} bytes; expected a shorter request"));
        let problem = match broken {
            Some(message) => Some(RpcError { code: -32700, message }),
            None => too_long().map(|message| RpcError { code: -32600, message }),
        };
        if let Some(problem) = problem {
            return say(&mut stream, &error(&Value::Null, &problem)).await;
        }
        // Never more than the limit in memory, however much the client has written.
        let room = (LIMIT - buffer.len()) as u64;
        if (&mut stream).take(room).read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

async fn say(stream: &mut UnixStream, answer: &Value) -> Result<()> {
    let text = format!("{answer}\n");
    let taken = tokio::time::timeout(ANSWER_LIMIT, stream.write_all(text.as_bytes())).await;
    taken.context("the client takes no answer")?.context("answering")
}

/// The complete values at the start of `buffer`, how many bytes they take, and what is broken after them.
fn split(buffer: &[u8]) -> (Vec<Value>, usize, Option<String>) {
    let mut stream = serde_json::Deserializer::from_slice(buffer).into_iter::<Value>();
    let mut values = Vec::new();
    loop {
        match stream.next() {
            Some(Ok(value)) => values.push(value),
            None => return (values, buffer.len(), None),
            Some(Err(e)) if e.is_eof() => return (values, stream.byte_offset(), None),
            Some(Err(e)) => return (values, stream.byte_offset(), Some(format!("not JSON: {e}"))),
        }
    }
}

async fn answer(value: Value, daemon: &Arc<Daemon>) -> Option<Value> {
    match value {
        Value::Array(batch) if batch.is_empty() => {
            Some(error(&Value::Null, &RpcError { code: -32600, message: "an empty batch".into() }))
        }
        Value::Array(batch) => {
            let mut answers = Vec::new();
            for call in batch {
                answers.extend(answer_one(call, daemon).await);
            }
            (!answers.is_empty()).then_some(Value::Array(answers))
        }
        one => answer_one(one, daemon).await,
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
        let text = br#"{"a":1}{"b":2} [3] {"c"#;
        let (values, used, broken) = split(text);
        assert_eq!((values.len(), broken), (3, None));
        assert_eq!(text[used..].trim_ascii(), br#"{"c"#, "an incomplete value waits for the rest");
        let (values, _, broken) = split(b"{}nonsense");
        assert_eq!(values.len(), 1);
        assert!(broken.unwrap().contains("not JSON"));
        assert_eq!(split(b"  \n").1, 3);
    }
}
