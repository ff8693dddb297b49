//! The command line of `polypath-target`.

use crate::config::{
    AnaState, ChapConfig, DEFAULT_IQN, DEFAULT_NQN, ListenerConfig, NamespaceConfig, Protocol, SecretText,
    SubsystemConfig, TargetConfig,
};
use crate::control::{Command as Control, call};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::io::Write as _;
use std::path::PathBuf;

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// Serve this.
    Serve(Box<TargetConfig>),
    /// Send one command to a running target's control socket.
    Control(PathBuf, Box<Control>),
}

fn command() -> Command {
    let many = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).action(ArgAction::Append).help(help)
    };
    let number = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).value_parser(value_parser!(u64)).help(help)
    };
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    Command::new("polypath-target")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A small NVMe/TCP and iSCSI target in software")
        .after_help(
            "Examples:\n  polypath-target --listen 127.0.0.1:4420 --listen 127.0.0.1:4421 --namespace ram://1GiB\n  \
             polypath-target --listen 127.0.0.1:4420 --listen iscsi://127.0.0.1:3260 --namespace ram://1GiB\n\n\
             A namespace belongs to the --subsystem before it, and so does an --iqn, the subsystem's name over iSCSI. Options override the file given with --config.\n\
             polypath-target ctl SOCKET COMMAND [KEY=VALUE]... sends a command to --control SOCKET of a running target.",
        )
        .subcommand_negates_reqs(true)
        .args_conflicts_with_subcommands(true)
        .arg(Arg::new("config").long("config").short('c').value_name("FILE.toml").help("Read the configuration from a file"))
        .arg(many(
            "listen",
            "[iscsi://]ADDR:PORT[,TAG]",
            "Listen here (port 0 takes a free one), for NVMe/TCP or iSCSI, there with a portal group tag; may be repeated",
        ))
        .arg(many("ana", "[ADDR:PORT=]STATE", "ANA state at the start of all listeners, or of one"))
        .arg(many("subsystem", "NQN", "Serve a subsystem of this name; may be repeated"))
        .arg(many("iqn", "IQN", "Name of the subsystem before it as an iSCSI target [default, without --subsystem: iqn.2024-01.org.polypath:target]"))
        .arg(many("namespace", "URI", "ram://SIZE, null://SIZE, file:///PATH or any other disk, with ?bs= &nsid= &lun= &uuid= &nguid= &eui64= &anagrp="))
        .arg(many("path", "URI", "One more path to the disk of the --namespace before it; may be repeated"))
        .arg(number("no-path-timeout-ms", "MS", "How long requests to disks over a network wait while no path is usable [default: 30000]"))
        .arg(many("referral", "ADDR:PORT", "Name another discovery controller in the discovery log"))
        .arg(number("bs", "BYTES", "Logical block size of namespaces that do not say: 512 or 4096"))
        .arg(
            Arg::new("digests")
                .long("digests")
                .value_name("LIST")
                .value_delimiter(',')
                .value_parser(["hdr", "data", "none"])
                .help("Digests a host may switch on [default: hdr,data]"),
        )
        .arg(flag("demand-digests", "Refuse hosts that do not switch both digests on"))
        .arg(Arg::new("control").long("control").value_name("SOCKET").help("Unix socket for control commands"))
        .arg(number("kas-ms", "MS", "Keep-alive granularity, a multiple of 100 [default: 100]"))
        .arg(number("cqt-ms", "MS", "Command quiesce time that is advertised; 0 for none [default: 500]"))
        .arg(flag("tbkas", "Traffic-based keep alive"))
        .arg(number("max-io-queues", "N", "I/O queues per controller [default: 16]"))
        .arg(number("queue-depth", "N", "Entries per queue, at most [default: 256]"))
        .arg(number("in-capsule", "BYTES", "In-capsule data of I/O queues [default: 8192]"))
        .arg(number("max-h2c-data", "BYTES", "MAXH2CDATA [default: 131072]"))
        .arg(number("r2t-bytes", "BYTES", "Most bytes of one R2T; 0 for whole commands [default: 0]"))
        .arg(number("mdts", "BYTES", "Largest transfer of a command [default: 131072]"))
        .arg(number("cpda", "N", "Data alignment demanded of hosts, dwords, zero-based [default: 0]"))
        .arg(flag("flow-control", "Do not let hosts switch SQ flow control off"))
        .arg(number("threads", "N", "Threads [default: 1]"))
        .arg(
            Arg::new("cpus")
                .long("cpus")
                .value_name("LIST")
                .value_delimiter(',')
                .value_parser(value_parser!(usize))
                .help("CPUs to pin the threads to"),
        )
        .arg(number("spin-us", "US", "How long an idle thread polls before it sleeps [default: 50]"))
        .arg(number("max-connections", "N", "Connections at a time [default: 1024]"))
        .arg(
            Arg::new("write-cache")
                .long("write-cache")
                .value_parser(["auto", "on", "off"])
                .help("Report a volatile write cache [default: auto: where the disk has one]"),
        )
        .args(chap_arguments())
        .subcommand(
            Command::new("ctl")
                .about("Send a command to a running target and print its answer")
                .after_help(CONTROL_HELP)
                .arg(Arg::new("socket").required(true).value_name("SOCKET"))
                .arg(Arg::new("words").required(true).num_args(1..).value_name("COMMAND [KEY=VALUE]").help(
                    "A command with its fields, or one JSON object",
                )),
        )
}

/// Environment variables with the secrets, for those who give neither files nor the secrets themselves.
const SECRET_VARIABLE: &str = "POLYPATH_TARGET_CHAP_SECRET";
const OWN_SECRET_VARIABLE: &str = "POLYPATH_TARGET_CHAP_OWN_SECRET";

fn chap_arguments() -> [Arg; 6] {
    let one = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    [
        one("chap-user", "NAME", "Let only this user in over iSCSI, by CHAP"),
        one(
            "chap-secret-file",
            "FILE",
            "File with the user's secret; else it is that of the environment variable POLYPATH_TARGET_CHAP_SECRET",
        )
        .requires("chap-user"),
        one("chap-secret", "TEXT", "The user's secret, for everybody on this machine to see")
            .requires("chap-user")
            .conflicts_with("chap-secret-file"),
        one("chap-own-user", "NAME", "Prove to be this to initiators that ask").requires("chap-user"),
        one(
            "chap-own-secret-file",
            "FILE",
            "File with the target's own secret; else it is that of POLYPATH_TARGET_CHAP_OWN_SECRET",
        )
        .requires("chap-own-user"),
        one("chap-own-secret", "TEXT", "The target's own secret, for everybody on this machine to see")
            .requires("chap-own-user")
            .conflicts_with("chap-own-secret-file"),
    ]
}

/// Who may log in over iSCSI.
fn chap(m: &ArgMatches) -> Option<ChapConfig> {
    let text = |name: &str| m.get_one::<String>(name).cloned();
    let secret = |name: &str, file: &Option<PathBuf>, variable: &str| match text(name) {
        Some(secret) => {
            // Nobody reads a log yet: it is not set up before the configuration is known.
            let _ =
                writeln!(std::io::stderr(), "polypath-target: --{name} shows the secret to everybody on this machine");
            Some(SecretText::new(secret))
        }
        None if file.is_some() => None,
        None => std::env::var(variable).ok().map(SecretText::new),
    };
    let user = text("chap-user")?;
    let (secret_file, own_secret_file) =
        (text("chap-secret-file").map(PathBuf::from), text("chap-own-secret-file").map(PathBuf::from));
    let own_user = text("chap-own-user");
    let own_secret = own_user.as_ref().and_then(|_| secret("chap-own-secret", &own_secret_file, OWN_SECRET_VARIABLE));
    Some(ChapConfig {
        user,
        secret: secret("chap-secret", &secret_file, SECRET_VARIABLE),
        secret_file,
        own_user,
        own_secret,
        own_secret_file,
    })
}

const CONTROL_HELP: &str = "\
Commands (SCOPE is any of listener=INDEX|ADDR:PORT|PORT cntlid=N qid=N conn=N; an iSCSI session is tsih=N):
  ping | status
  stall SCOPE [window_ms=N]                   read and say nothing
  delay SCOPE ms=N|us=N [op=OP] [count=N]     execute commands later
  lose SCOPE [op=OP] [count=N] [execute=true] never answer
  corrupt SCOPE digest=header|data [count=N]  wrong digests
  hold_write SCOPE [count=N|window_ms=N] [apply_after_ms=N] [beyond=true] [answer=never|after]
  trickle SCOPE [bytes=1] [us=1000]           output in small lots
  clear [id=N | SCOPE]                        end these faults
  reset SCOPE | fin SCOPE                     break connections
  drop_silently listener=L | restore listener=L
  close_listener listener=L | open_listener listener=L
  latency listener=L us=N | bandwidth listener=L bytes_per_s=N
  set_ana state=STATE [listener=L] [nsid=N|group=N] [nqn=NQN]
  swap_identity nsid=N [nguid=HEX] [uuid=UUID] [new_contents=true] [nqn=NQN]
  resize nsid=N bytes=N [nqn=NQN]
  logout_request SCOPE [ms=N] | drop_connection SCOPE | nop_in SCOPE    iSCSI: what the target says of its own accord
OP is all, read, write, flush, compare, write_zeroes (zero), dsm (trim), keep_alive, identify, get_log_page (report), abort,
fabrics (session) or other. NQN may be an IQN.";

/// Reads a command line; exits with a message where clap does (`--help`, unknown options).
///
/// # Errors
/// A text for people about a configuration that cannot be served.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Request, String> {
    let matches = command().get_matches_from(args);
    if let Some(("ctl", sub)) = matches.subcommand() {
        let socket = sub.get_one::<String>("socket").map(PathBuf::from).unwrap_or_default();
        let words: Vec<String> = sub.get_many::<String>("words").into_iter().flatten().cloned().collect();
        return Ok(Request::Control(socket, Box::new(control(&words)?)));
    }
    let config = config(&matches)?;
    config.check().map_err(|e| e.to_string())?;
    Ok(Request::Serve(Box::new(config)))
}

/// Sends a control command and prints the answer.
///
/// # Errors
/// What the target or the socket said.
pub fn run_control(socket: &std::path::Path, command: &Control) -> Result<(), String> {
    let answer = call(socket, command)?;
    let text = serde_json::to_string_pretty(&answer).map_err(|e| e.to_string())?;
    match writeln!(std::io::stdout(), "{text}") {
        // Whoever wanted to know has gone; what was commanded is done.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|e| format!("writing to standard output: {e}")),
    }
}

fn control(words: &[String]) -> Result<Control, String> {
    let text = match words {
        [one] if one.starts_with('{') => one.clone(),
        [cmd, fields @ ..] => {
            let mut object = serde_json::Map::new();
            object.insert("cmd".into(), cmd.as_str().into());
            for field in fields {
                let (key, value) = field.split_once('=').ok_or_else(|| format!("\"{field}\" is not KEY=VALUE"))?;
                // Texts of digits only are numbers except where a text is meant.
                let text = ["nguid", "uuid", "nqn", "iqn"].contains(&key);
                let value = match (value.parse::<u64>(), value) {
                    (Ok(n), _) if !text => n.into(),
                    (_, "true") => true.into(),
                    (_, "false") => false.into(),
                    _ => value.into(),
                };
                object.insert(key.into(), value);
            }
            serde_json::Value::Object(object).to_string()
        }
        [] => return Err("a command is needed".into()),
    };
    let mut command: Control = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    // A number above any index is a port.
    if let Some(crate::ListenerName::Index(n)) = command.listener
        && n >= 64
    {
        command.listener = Some(crate::ListenerName::Address(n.to_string()));
    }
    Ok(command)
}

fn config(m: &ArgMatches) -> Result<TargetConfig, String> {
    let mut config = match m.get_one::<String>("config") {
        None => TargetConfig::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
            TargetConfig::read(&text).map_err(|e| format!("{path}: {e}"))?
        }
    };
    let texts = |name: &str| m.get_many::<String>(name).into_iter().flatten().cloned().collect::<Vec<_>>();
    for text in texts("listen") {
        config.listeners.push(ListenerConfig::parse(&text)?);
    }
    if config.listeners.is_empty() {
        config.listeners.push(ListenerConfig::new("127.0.0.1:4420"));
    }
    for text in texts("ana") {
        let (address, state) = text.rsplit_once('=').map_or((None, text.as_str()), |(a, s)| (Some(a), s));
        let state = AnaState::parse(state)?;
        let mut any = false;
        for l in config.listeners.iter_mut().filter(|l| address.is_none_or(|a| a == l.address)) {
            l.ana = state;
            any = true;
        }
        if !any {
            return Err(format!("--ana {text}: there is no such --listen"));
        }
    }
    config.referrals.extend(texts("referral"));
    if let Some(chap) = chap(m) {
        config.iscsi.chap = Some(chap);
    }
    subsystems(m, &mut config)?;
    numbers(m, &mut config)?;
    if let Some(digests) = m.get_many::<String>("digests") {
        let digests: Vec<&String> = digests.collect();
        config.header_digest = digests.iter().any(|d| *d == "hdr");
        config.data_digest = digests.iter().any(|d| *d == "data");
    }
    config.refuse_without_digests |= m.get_flag("demand-digests");
    config.tbkas |= m.get_flag("tbkas");
    config.allow_no_flow_control &= !m.get_flag("flow-control");
    if let Some(path) = m.get_one::<String>("control") {
        config.control = Some(path.into());
    }
    if let Some(cpus) = m.get_many::<usize>("cpus") {
        config.cpus = cpus.copied().collect();
    }
    match m.get_one::<String>("write-cache").map(String::as_str) {
        Some("on") => config.volatile_write_cache = Some(true),
        Some("off") => config.volatile_write_cache = Some(false),
        _ => {}
    }
    Ok(config)
}

/// Gives each namespace to the subsystem named before it.
fn subsystems(m: &ArgMatches, config: &mut TargetConfig) -> Result<(), String> {
    let bs = m.get_one::<u64>("bs").map(|&n| u32::try_from(n).unwrap_or(u32::MAX));
    let placed = |name: &str| -> Vec<(usize, String)> {
        m.indices_of(name)
            .into_iter()
            .flatten()
            .zip(m.get_many::<String>(name).into_iter().flatten().cloned())
            .collect()
    };
    let mut named: Vec<(usize, SubsystemConfig)> =
        placed("subsystem").into_iter().map(|(at, nqn)| (at, SubsystemConfig::new(nqn, Vec::new()))).collect();
    let mut nameless = SubsystemConfig::new(DEFAULT_NQN, Vec::new());
    if config.listeners.iter().any(|l| l.protocol == Protocol::Iscsi) {
        nameless.iqn = Some(DEFAULT_IQN.into());
    }
    for (at, iqn) in placed("iqn") {
        let owner = named.iter_mut().rev().find(|(s, _)| *s < at).map_or(&mut nameless, |(_, s)| s);
        owner.iqn = Some(iqn);
    }
    let mut namespaces: Vec<(usize, NamespaceConfig)> =
        placed("namespace").into_iter().map(|(at, uri)| (at, NamespaceConfig::new(uri))).collect();
    for (at, uri) in placed("path") {
        let before = namespaces.iter_mut().rev().find(|(n, _)| *n < at);
        let (_, namespace) = before.ok_or("--path belongs to the --namespace before it, and there is none")?;
        if namespace.paths.is_empty() {
            namespace.paths.push(std::mem::take(&mut namespace.uri));
        }
        namespace.paths.push(uri);
    }
    for (at, mut namespace) in namespaces {
        namespace.no_path_timeout_ms = m.get_one::<u64>("no-path-timeout-ms").copied();
        if !namespace.uri.contains("bs=") {
            namespace.bs = bs;
        }
        let owner = named.iter_mut().rev().find(|(s, _)| *s < at).map_or(&mut nameless, |(_, s)| s);
        owner.namespaces.push(namespace);
    }
    if !nameless.namespaces.is_empty() {
        config.subsystems.push(nameless);
    }
    config.subsystems.extend(named.into_iter().map(|(_, s)| s));
    if config.subsystems.is_empty() {
        return Err("nothing to serve: give --namespace ram://1GiB, or --config FILE".into());
    }
    Ok(())
}

fn numbers(m: &ArgMatches, config: &mut TargetConfig) -> Result<(), String> {
    fn set<T: TryFrom<u64>>(m: &ArgMatches, name: &str, field: &mut T) -> Result<(), String> {
        if let Some(&n) = m.get_one::<u64>(name) {
            *field = T::try_from(n).map_err(|_| format!("--{name} {n} is too large"))?;
        }
        Ok(())
    }
    set(m, "kas-ms", &mut config.kas_ms)?;
    set(m, "cqt-ms", &mut config.cqt_ms)?;
    set(m, "max-io-queues", &mut config.max_io_queues)?;
    set(m, "queue-depth", &mut config.queue_depth)?;
    set(m, "in-capsule", &mut config.in_capsule)?;
    set(m, "max-h2c-data", &mut config.max_h2c_data)?;
    set(m, "r2t-bytes", &mut config.r2t_bytes)?;
    set(m, "mdts", &mut config.mdts_bytes)?;
    set(m, "cpda", &mut config.cpda)?;
    set(m, "threads", &mut config.threads)?;
    set(m, "spin-us", &mut config.spin_us)?;
    set(m, "max-connections", &mut config.max_connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Result<Request, String> {
        parse(std::iter::once("polypath-target").chain(text.split_whitespace()).map(String::from))
    }

    fn serve(text: &str) -> TargetConfig {
        match args(text) {
            Ok(Request::Serve(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn namespaces_belong_to_the_subsystem_before_them() {
        let c = serve(
            "--listen 127.0.0.1:0 --listen [::1]:0 --namespace null://1TiB --subsystem nqn.a --namespace ram://1MiB --namespace ram://2MiB?bs=4096 --subsystem nqn.b --bs 512 --namespace null://1GiB --ana [::1]:0=inaccessible --digests hdr --kas-ms 200 --tbkas",
        );
        let shape: Vec<_> = c.subsystems.iter().map(|s| (s.nqn.as_str(), s.namespaces.len())).collect();
        assert_eq!(shape, [(DEFAULT_NQN, 1), ("nqn.a", 2), ("nqn.b", 1)]);
        assert_eq!(c.subsystems[1].namespaces[1].bs, None);
        assert_eq!(c.listeners[1].ana, AnaState::Inaccessible);
        assert_eq!((c.header_digest, c.data_digest, c.kas_ms, c.tbkas), (true, false, 200, true));
    }

    #[test]
    fn iscsi_is_a_listener_and_a_name() {
        let c = serve(
            "--listen iscsi://127.0.0.1:0,9 --listen nvme-tcp://[::1]:0 --namespace ram://1MiB --subsystem nqn.a --iqn iqn.2026-01.org.example:a --namespace ram://1MiB?lun=7",
        );
        let listeners: Vec<_> = c.listeners.iter().map(|l| (l.protocol, l.address.as_str(), l.portal_group)).collect();
        let want = [(Protocol::Iscsi, "127.0.0.1:0", Some(9)), (Protocol::NvmeTcp, "[::1]:0", None)];
        assert_eq!(listeners, want);
        let names: Vec<_> = c.subsystems.iter().map(|s| s.iqn.as_deref()).collect();
        assert_eq!(names, [Some(DEFAULT_IQN), Some("iqn.2026-01.org.example:a")]);
        assert_eq!(c.subsystems[1].plan().unwrap()[0].lun, 7);
        assert_eq!(c.subsystems[0].plan().unwrap()[0].lun, 0, "one less than the NSID");
        let paths = serve(
            "--namespace nvme-tcp://h/nqn.a?ns=1 --path iscsi://h/iqn.2026-01.org.example:a/0 --namespace ram://1MiB",
        );
        let namespaces = &paths.subsystems[0].namespaces;
        assert_eq!((namespaces[0].uri.as_str(), namespaces[0].paths.len(), namespaces[1].paths.len()), ("", 2, 0));
        assert!(args("--path ram://1MiB --namespace ram://1MiB").unwrap_err().contains("--path"));
        let only_nvme = serve("--namespace ram://1MiB");
        assert_eq!(only_nvme.subsystems[0].iqn, None);
        let c = serve(
            "--listen iscsi://127.0.0.1:0 --namespace ram://1MiB --chap-user u --chap-secret-file /s --chap-own-user t --chap-own-secret very-secret",
        );
        let chap = c.iscsi.chap.unwrap();
        assert_eq!((chap.user.as_str(), chap.own_user.as_deref()), ("u", Some("t")));
        assert_eq!((chap.secret, chap.secret_file), (None, Some(PathBuf::from("/s"))));
        assert!(!format!("{:?}", chap.own_secret).contains("very"));
        for text in ["iscsi://127.0.0.1:1,x", "nbd://127.0.0.1:1"] {
            assert!(args(&format!("--listen {text} --namespace ram://1MiB")).unwrap_err().contains(text));
        }
        let toml = "[[listeners]]\naddress = \"127.0.0.1:0\"\nprotocol = \"iscsi\"\nportal_group = 3\n[iscsi]\nfirst_burst = 4096\n[iscsi.chap]\nuser = \"u\"\nsecret = \"passw0rd1234\"\n[[subsystems]]\nnqn = \"nqn.x\"\niqn = \"iqn.2026-01.org.example:x\"\n";
        let c = TargetConfig::from_toml(toml).unwrap();
        assert_eq!((c.listeners[0].protocol, c.iscsi.first_burst), (Protocol::Iscsi, 4096));
        assert!(
            TargetConfig::from_toml(&toml.replace("4096", "999999")).unwrap_err().to_string().contains("first_burst")
        );
    }

    #[test]
    fn mistakes_are_told() {
        assert!(args("--listen 127.0.0.1:0").unwrap_err().contains("--namespace"));
        assert!(args("--namespace ram://1MiB --kas-ms 50").unwrap_err().contains("kas_ms"));
        assert!(args("--namespace ram://1MiB --max-io-queues 70000").unwrap_err().contains("max-io-queues"));
        assert!(args("ctl /x delay colour=1").unwrap_err().contains("colour"));
    }

    #[test]
    fn control_words_become_fields() {
        let Ok(Request::Control(path, c)) = args("ctl /run/x hold_write listener=1 count=3 beyond=true uuid=12") else {
            panic!()
        };
        assert_eq!(path, PathBuf::from("/run/x"));
        assert_eq!(
            (c.cmd.as_str(), c.count, c.beyond, c.uuid.as_deref()),
            ("hold_write", Some(3), Some(true), Some("12"))
        );
        assert_eq!(c.listener, Some(crate::ListenerName::Index(1)));
        let Ok(Request::Control(_, c)) = args("ctl /run/x reset listener=4420") else { panic!() };
        assert_eq!(c.listener, Some(crate::ListenerName::Address("4420".into())));
    }
}
