//! `polypath rpc METHOD [PARAMS]`: one call to `polypathd`.

use anyhow::{Context, Result, bail};
use polypath_bench::output;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `polypath rpc`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// RPC socket of the daemon.
    #[arg(short = 'r', long, default_value = "/var/tmp/polypath.sock", value_name = "SOCKET")]
    rpc_socket: PathBuf,
    /// Method; `rpc_methods` lists them all.
    method: String,
    /// Parameters: `key=value` pairs (a value that is JSON is taken as such), or one JSON object.
    params: Vec<String>,
}

/// Longest wait for an answer, beyond what the call itself asks for with `wait_ms`. Rings that are taken down may drain for half a minute.
const LIMIT: Duration = Duration::from_secs(90);

/// How long to wait for the answer to a call with `params`.
fn limit(params: &Value) -> Duration {
    LIMIT.saturating_add(Duration::from_millis(params.get("wait_ms").and_then(Value::as_u64).unwrap_or(0)))
}

/// Calls and prints the result; an error of the method ends with a non-zero code.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let params = params(&args.params)?;
    let socket = args.rpc_socket.display();
    let mut stream =
        UnixStream::connect(&args.rpc_socket).with_context(|| format!("no polypathd answers on {socket}"))?;
    let limit = limit(&params);
    // Longer than the operating system can say is for ever.
    stream.set_read_timeout(Some(limit).filter(|limit| limit.as_secs() < u64::from(u32::MAX)))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": args.method, "params": params });
    stream.write_all(call.to_string().as_bytes()).with_context(|| format!("writing to {socket}"))?;
    let mut text = Vec::new();
    let answer: Value = loop {
        let mut chunk = [0; 65536];
        let n = stream.read(&mut chunk).with_context(|| format!("no answer on {socket} within {limit:?}"))?;
        text.extend_from_slice(&chunk[..n]);
        match serde_json::from_slice(&text) {
            Ok(value) => break value,
            Err(e) if e.is_eof() && n > 0 => {}
            Err(e) if e.is_eof() => bail!("polypathd closed {socket} before it had answered"),
            Err(e) => bail!("{socket} answered what is not JSON: {e}"),
        }
    };
    if let Some(error) = answer.get("error") {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("no message");
        bail!("{}: {message} (code {})", args.method, error.get("code").unwrap_or(&Value::Null));
    }
    output::line(serde_json::to_string_pretty(answer.get("result").unwrap_or(&Value::Null))?)?;
    Ok(ExitCode::SUCCESS)
}

fn params(words: &[String]) -> Result<Value> {
    if let [one] = words
        && one.trim_start().starts_with('{')
    {
        // There may be secrets in it.
        return serde_json::from_str(one).context("parameters that are no JSON object");
    }
    let mut object = serde_json::Map::new();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .with_context(|| format!("parameter \"{}\": expected key=value", polypath::block::hide_secret(word)))?;
        let read = serde_json::from_str(value).ok();
        // A number that would not be written in the same way is not known to be one: "0660", "1e5", a serial number of many digits.
        let same = read.filter(|read: &Value| read.as_number().is_none_or(|number| number.to_string() == value));
        object.insert(key.to_owned(), same.unwrap_or_else(|| Value::String(value.to_owned())));
    }
    Ok(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_parameters() {
        let words = |w: &[&str]| params(&w.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let got = words(&["name=vm1", "paths=[\"ram://1MiB\"]", "weight=3"]).unwrap();
        assert_eq!(got, json!({ "name": "vm1", "paths": ["ram://1MiB"], "weight": 3 }));
        assert_eq!(words(&["{\"a\":1}"]).unwrap(), json!({ "a": 1 }));
        assert!(words(&["nonsense"]).is_err());
        for text in ["0660", "1e5", "1.50", "123456789012345678901234567890"] {
            assert_eq!(words(&[&format!("serial={text}")]).unwrap(), json!({ "serial": text }));
        }
    }

    #[test]
    fn what_is_wrong_is_named_without_its_secrets() {
        for wrong in [
            "iscsi://joe%word-of-joe-1@10.0.0.1/iqn.2026-01.org.example:a/0",
            "{\"disk\":\"vm\",\"uri\":\"iscsi://joe%word-of-joe-1@10.0.0.1/iqn.2026-01.org.example:a/0\"",
        ] {
            let error = format!("{:#}", params(&[wrong.to_owned()]).unwrap_err());
            assert!(!error.contains("word-of"), "{error}");
        }
    }

    #[test]
    fn an_answer_is_waited_for_as_long_as_was_asked_for() {
        assert_eq!(limit(&json!({ "wait_ms": 600_000 })), LIMIT + Duration::from_secs(600));
        assert_eq!(limit(&json!({ "wait_ms": "long" })), LIMIT);
        assert!(limit(&json!({ "wait_ms": u64::MAX })) > LIMIT);
    }
}
