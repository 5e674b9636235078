//! `sealift doctor`: one step after the other from a name to a measured rate, and what to do where one fails.

use std::ffi::OsString;
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::cli::args::ConnectArgs;
use crate::cli::format;
use crate::cli::session::{explain, print};
use crate::cli::signals::Signals;
use crate::cli::trust::environment;
use crate::client::event::{self, Event, worse};
use crate::client::plan::{self, GetItem, GetTarget, PutItem, PutSource};
use crate::client::remote::Remote;
use crate::client::{Client, ClientOptions, GetOptions, PutOptions, StreamSource, look};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::{CONNECT_TIMEOUT, MIB};
use crate::path::{Component, RemotePath, escape_text};
use crate::protocol::{EntryKind, Rights};
use crate::tls::x509::Facts;
use crate::tls::{self, ClientTls, pem};

/// How long one address may take to answer a bare connection.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Round trips that are measured; the shortest counts.
const ROUND_TRIPS: usize = 5;
/// What is sent to see how fast it goes. On a fast link a second, larger piece follows: the first is over too soon.
const PROBE_LEN: usize = 4 * MIB;
const PROBE_LEN_FAST: usize = 32 * MIB;
/// A piece that took less than this says too little.
const PROBE_TIME_MIN: Duration = Duration::from_millis(500);
/// Clocks further apart than this make times of files misleading.
const CLOCK_DIFFERENCE_MAX: u64 = 2;
/// Certificates that end sooner than this are warned about.
const CERTIFICATE_DAYS_MIN: i64 = 30;
/// Less free space than this is warned about.
const FREE_MIN: u64 = 1 << 30;
/// How long the probe may take to be removed after an interruption.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(3);

/// Look for what keeps a server from being reached, or slow.
#[derive(Args, Debug)]
#[command(after_help = "\
One line for each of: configuration, name, port, certificates, trust, clock, rights, space, round
trip and rate; each ok, warn, fail or skip, with what to do. The rate is measured with a file that
is stored, fetched and removed again, if the rights allow all three; --no-rate leaves that out.

Example:
  sealift doctor nas")]
pub struct DoctorArgs {
    /// The server, or a directory on it. (Its help has brackets, which the documentation would take for a link.)
    #[arg(
        value_name = "REMOTE",
        help = "The server, or a directory on it: sealift://HOST[:PORT]/PATH, NAME or NAME:PATH"
    )]
    pub remote: OsString,
    /// Store nothing to measure the rate
    #[arg(long)]
    pub no_rate: bool,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// How one step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    Warn,
    Fail,
    Skip,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
            State::Skip => "skip",
        }
    }
}

/// What is told as it is found out.
struct Report<'a> {
    connect: &'a ConnectArgs,
    counts: [u64; 4],
    exit: u8,
    retryable: bool,
}

impl Report<'_> {
    fn tell(&mut self, check: &str, state: State, message: &str, figures: &[(&str, Value)]) -> Result<()> {
        self.counts[state as usize] += 1;
        let text = if self.connect.json {
            let mut object = Map::new();
            object.insert("type".to_owned(), json!("check"));
            object.insert("check".to_owned(), json!(check));
            object.insert("state".to_owned(), json!(state.word()));
            object.insert("message".to_owned(), json!(message));
            object.extend(figures.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
            format::json_line(&Value::Object(object))
        } else if self.connect.quiet && matches!(state, State::Ok | State::Skip) {
            return Ok(());
        } else {
            format!("{:<4}  {check:<13} {message}\n", state.word())
        };
        // Nobody reads it: the exit code says the rest.
        print(&text).map(drop)
    }

    fn ok(&mut self, check: &str, message: &str) -> Result<()> {
        self.tell(check, State::Ok, message, &[])
    }

    fn fail(&mut self, check: &str, error: &Error) -> Result<()> {
        self.exit = worse(self.exit, error.kind().exit_code());
        self.retryable |= error.kind().is_retryable();
        self.tell(check, State::Fail, &error.chain(), &[])
    }

    fn finish(self) -> Result<u8> {
        if self.connect.json {
            let [ok, warn, fail, skip] = self.counts;
            let summary = json!({
                "type": "summary", "schema": 1, "command": "doctor", "exit": self.exit, "retryable": self.retryable,
                "ok": ok, "warn": warn, "fail": fail, "skip": skip,
            });
            print(&format::json_line(&summary))?;
        }
        Ok(self.exit)
    }
}

/// Runs the command; the answer is the exit code.
///
/// # Errors
/// What is wrong with its arguments.
pub fn run(args: &DoctorArgs) -> Result<u8> {
    let (_, mut remotes) = plan::on_one_server(std::slice::from_ref(&args.remote))?;
    let Some(remote) = remotes.pop() else {
        return Err(Error::new(ErrorKind::Usage, "no remote is named"));
    };
    let named = args.connect.named.as_ref();
    let trusted = args.connect.trust.resolve(environment, named.map(|named| &named.profile))?;
    let tls = ClientTls::load(&trusted).map_err(|error| error.with_kind(ErrorKind::Usage))?;
    let options = ClientOptions {
        timeout: args.connect.timeout(environment)?,
        ..ClientOptions::new(remote.endpoint.clone(), tls)
    };
    let mut report = Report { connect: &args.connect, counts: [0; 4], exit: 0, retryable: false };
    if let Some(named) = named {
        let text = format!("`{}` is {} in {}", named.name, named.profile.address, named.config.display());
        report.ok("configuration", &text)?;
    }
    if let Some(path) = &trusted.certificate {
        own_certificate(&mut report, path)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .while_doing(|| "start the runtime".to_owned())?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        // What is stored to measure the rate, so that it can be taken away again.
        let stored: Mutex<Option<(Client, RemotePath)>> = Mutex::default();
        let looked = tokio::select! {
            signal = signals.next() => Err(signal),
            looked = look_at(args, &remote, options, &mut report, &stored) => Ok(looked),
        };
        let left = stored.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((client, path)) = left {
            // It is named by its own name: whoever finds it knows what it was.
            let _ = tokio::time::timeout(CLEAN_UP_TIMEOUT, client.remove(&path, false)).await;
        }
        match looked {
            Ok(looked) => looked.map(|()| None),
            Err(signal) => Ok(Some(signal)),
        }
    });
    runtime.shutdown_timeout(CLEAN_UP_TIMEOUT);
    if let Some(signal) = ended? {
        report.exit = signal.exit_code();
        report.retryable = true;
    }
    report.finish()
}

fn own_certificate(report: &mut Report<'_>, path: &std::path::Path) -> Result<()> {
    let facts = pem::load_certificates(path).and_then(|chain| match chain.first() {
        Some(first) => Facts::parse(first),
        None => Err(Error::new(ErrorKind::Usage, format!("{} holds no certificate", path.display()))),
    });
    match facts {
        Ok(facts) => {
            let whose =
                facts.common_name.as_deref().map_or_else(String::new, |name| format!(" ({})", escape_text(name)));
            let what = format!("own certificate{whose}");
            dates(report, "own dates", &what, &facts, "ask whoever runs the server for a new one")
        }
        Err(error) => report.fail("own dates", &error),
    }
}

/// Whether a certificate is valid now, and for some time to come.
fn dates(report: &mut Report<'_>, check: &str, what: &str, facts: &Facts, advice: &str) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let days = (facts.not_after - now).whole_days();
    let until = tls::day(facts.not_after);
    let figures = [("days_left", json!(days))];
    if facts.not_after < now {
        report.tell(check, State::Warn, &format!("{what} expired on {until}: {advice}"), &figures)
    } else if now < facts.not_before {
        let from = tls::moment(facts.not_before);
        report.tell(check, State::Warn, &format!("{what} is valid only from {from}: check the clocks"), &figures)
    } else if days < CERTIFICATE_DAYS_MIN {
        report.tell(check, State::Warn, &format!("{what} expires on {until}: {advice}"), &figures)
    } else {
        report.tell(check, State::Ok, &format!("{what} is valid until {until}"), &figures)
    }
}

async fn look_at(
    args: &DoctorArgs,
    remote: &Remote,
    options: ClientOptions,
    report: &mut Report<'_>,
    stored: &Mutex<Option<(Client, RemotePath)>>,
) -> Result<()> {
    let endpoint = &remote.endpoint;
    let addresses = match look::addresses(endpoint).await {
        Ok(addresses) => addresses,
        Err(error) => return report.fail("name", &error.context("check the name, and this machine's DNS")),
    };
    let list: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    report.tell(
        "name",
        State::Ok,
        &format!("{} is {}", endpoint.host(), list.join(", ")),
        &[("addresses", json!(list))],
    )?;

    let mut knocks = JoinSet::new();
    for (index, address) in addresses.iter().copied().enumerate() {
        knocks.spawn(async move { (index, address, look::knock(address, KNOCK_TIMEOUT).await) });
    }
    let mut knocked = Vec::new();
    while let Some(Ok(knock)) = knocks.join_next().await {
        knocked.push(knock);
    }
    knocked.sort_by_key(|(index, ..)| *index);
    let is_open = knocked.iter().any(|(.., result)| result.is_ok());
    for (_, address, result) in &knocked {
        match result {
            Ok(time) => {
                let text = format!("{address} answers in {}", milliseconds(*time));
                report.tell("port", State::Ok, &text, &[("seconds", json!(time.as_secs_f64()))])?;
            }
            // One address that answers is enough, but the others cost time.
            Err(error) if is_open => {
                let advice = "the others are used; take it out of the DNS, or open it";
                report.tell("port", State::Warn, &format!("{}: {advice}", error.chain()), &[])?;
            }
            Err(error) => {
                let advice = "is the server running, does it listen there, and does a firewall let TCP through?";
                report.fail("port", &Error::new(ErrorKind::Connection, format!("{}: {advice}", error.chain())))?;
            }
        }
    }
    if !is_open {
        return Ok(());
    }

    match look::shown(endpoint).await {
        Ok(shown) => {
            dates(report, "dates", "the server's certificate", &shown.facts, "renew it there (`sealift certs`)")?;
            report.tell("key", State::Ok, &format!("{}", shown.pin), &[("pin", json!(shown.pin.to_string()))])?;
        }
        Err(error) => report.fail("tls", &error)?,
    }

    let (events, mut receiver) = event::channel();
    let notes = Arc::new(Mutex::new(Notes::default()));
    let mut listeners = JoinSet::new();
    let heard = Arc::clone(&notes);
    listeners.spawn(async move {
        while let Some(event) = receiver.recv().await {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Event::Note(text) if text == MARK => heard.marks += 1,
                Event::Note(text) => heard.description = text,
                Event::Warning(text) => heard.warnings.push(text),
                Event::Failed { error, .. } => heard.failures.push(error.chain()),
                _ => {}
            }
        }
    });
    let client = match Client::connect(options, events).await {
        Ok(client) => client,
        Err(error) => return report.fail("trust", &explain(error, args.connect.named.as_ref())),
    };
    settle(&client, &notes).await;
    {
        let heard = notes.lock().unwrap_or_else(PoisonError::into_inner);
        report.ok("trust", &format!("both sides agree{}", with_comma(&heard.description)))?;
        for warning in &heard.warnings {
            report.tell("trust", State::Warn, warning, &[])?;
        }
    }
    served(args, remote, &client, report, stored, &notes).await?;
    client.close().await;
    Ok(())
}

/// What the client tells while it works.
#[derive(Default)]
struct Notes {
    description: String,
    warnings: Vec<String>,
    failures: Vec<String>,
    marks: u64,
}

/// Told to learn that everything before it was heard.
const MARK: &str = "so far";

/// Waits until all that was told is heard.
async fn settle(client: &Client, notes: &Mutex<Notes>) {
    let marks = || notes.lock().unwrap_or_else(PoisonError::into_inner).marks;
    let before = marks();
    client.events().tell(Event::Note(MARK.to_owned())).await;
    while marks() == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn with_comma(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

/// What only a server that let us in can tell.
async fn served(
    args: &DoctorArgs,
    remote: &Remote,
    client: &Client,
    report: &mut Report<'_>,
    stored: &Mutex<Option<(Client, RemotePath)>>,
    notes: &Mutex<Notes>,
) -> Result<()> {
    let Some(server) = client.server().await else {
        return report.fail("connection", &Error::new(ErrorKind::Connection, "the connection was lost at once"));
    };
    let here = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let apart = server.now.unsigned_abs().abs_diff(here);
    let figures = [("difference_seconds", json!(apart))];
    if apart <= CLOCK_DIFFERENCE_MAX {
        report.tell("clock", State::Ok, "this machine's and the server's agree", &figures)?;
    } else {
        let text = format!(
            "this machine's and the server's differ by {}: times of files and dates of certificates mislead; \
             synchronise both (NTP)",
            format::duration(Duration::from_secs(apart))
        );
        report.tell("clock", State::Warn, &text, &figures)?;
    }

    let who =
        server.principal.as_deref().map_or_else(|| "no name".to_owned(), |name| format!("`{}`", escape_text(name)));
    let figures = [("rights", json!(server.rights.to_string())), ("principal", json!(server.principal))];
    if server.rights == Rights::NONE {
        let text = format!("known there as {who}, and it may do nothing: ask whoever runs the server");
        report.exit = worse(report.exit, ErrorKind::Rights.exit_code());
        report.tell("rights", State::Fail, &text, &figures)?;
    } else {
        report.tell("rights", State::Ok, &format!("known there as {who}: {}", server.rights), &figures)?;
    }

    let may_list = server.rights.contains(Rights::LIST);
    let mut directory = RemotePath::root();
    if may_list {
        let space = client.space(&remote.path).await;
        match space {
            Ok(space) => {
                let text = format!("{} of {} are free", format::size(space.free), format::size(space.total));
                let figures = [("free", json!(space.free)), ("total", json!(space.total))];
                let (state, advice) = match space.free {
                    ..FREE_MIN => (State::Warn, ": make room there"),
                    _ => (State::Ok, ""),
                };
                report.tell("space", state, &format!("{text}{advice}"), &figures)?;
            }
            Err(error) => report.fail("space", &error)?,
        }
        let mut best = Duration::MAX;
        for _ in 0..ROUND_TRIPS {
            let begun = Instant::now();
            match client.stat(&RemotePath::root()).await {
                Ok(_) => best = best.min(begun.elapsed()),
                Err(error) => return report.fail("round trip", &error),
            }
        }
        let figures = [("seconds", json!(best.as_secs_f64()))];
        report.tell("round trip", State::Ok, &milliseconds(best), &figures)?;
        if matches!(client.stat(&remote.path).await, Ok(entry) if entry.kind == EntryKind::Directory) {
            directory = remote.path.clone();
        }
    } else {
        report.tell("space", State::Skip, "not told without the right to list", &[])?;
        report.tell("round trip", State::Skip, "not measured without the right to list", &[])?;
    }

    if args.no_rate {
        return report.tell("rate", State::Skip, "not asked for", &[]);
    }
    let needed = Rights::CREATE.with(Rights::READ).with(Rights::DELETE);
    if !server.rights.contains(needed) {
        return report.tell("rate", State::Skip, "not measured: that needs the rights create, read and delete", &[]);
    }
    match rate(client, &directory, stored, notes).await {
        Ok((up, down)) => {
            let text = format!("{} up (durable there), {} down", shown_rate(up), shown_rate(down));
            let figures = [("up", json!(per_second(up))), ("down", json!(per_second(down)))];
            report.tell("rate", State::Ok, &text, &figures)
        }
        Err(error) => report.fail("rate", &error),
    }
}

/// Bytes, and how long they took.
type Moved = (u64, Duration);

/// Stores a file, fetches it, and removes it again.
async fn rate(
    client: &Client,
    directory: &RemotePath,
    stored: &Mutex<Option<(Client, RemotePath)>>,
    notes: &Mutex<Notes>,
) -> Result<(Moved, Moved)> {
    let random = |bytes: &mut [u8]| {
        getrandom::fill(bytes).map_err(|error| Error::new(ErrorKind::Internal, "take random bytes").with_source(error))
    };
    let mut number = [0; 8];
    random(&mut number)?;
    let name = format!("sealift-doctor-{:016x}.tmp", u64::from_ne_bytes(number));
    let named = Component::new(name.as_bytes()).and_then(|name| directory.join(name));
    let path = named.map_err(|error| Error::new(ErrorKind::Name, error.to_string()))?;
    let mut len = PROBE_LEN;
    loop {
        let mut content = vec![0; len];
        random(&mut content)?;
        *stored.lock().unwrap_or_else(PoisonError::into_inner) = Some((client.clone(), path.clone()));
        let begun = Instant::now();
        let stream = StreamSource {
            name: "the probe".to_owned(),
            reader: Box::new(Cursor::new(content)),
            check: Box::new(|| Ok(())),
            spool: None,
        };
        let items = vec![PutItem { source: PutSource::Stream, target: path.clone() }];
        client.put(items, PutOptions { stream: Some(stream), ..PutOptions::default() }).await?;
        let up = (len as u64, begun.elapsed());
        check(client, notes).await?;
        let begun = Instant::now();
        let items = vec![GetItem { source: path.clone(), target: GetTarget::Stream }];
        let options = GetOptions { output: Some(Box::new(std::io::sink())), ..GetOptions::default() };
        client.get(items, options).await?;
        let down = (len as u64, begun.elapsed());
        check(client, notes).await?;
        let is_enough = len == PROBE_LEN_FAST || up.1.max(down.1) >= PROBE_TIME_MIN;
        if is_enough {
            client.remove(&path, false).await?;
            stored.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Ok((up, down));
        }
        len = PROBE_LEN_FAST;
    }
}

/// What failed is told in events.
async fn check(client: &Client, notes: &Mutex<Notes>) -> Result<()> {
    settle(client, notes).await;
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    notes.failures.pop().map_or(Ok(()), |failure| Err(Error::new(ErrorKind::Io, failure)))
}

fn per_second((bytes, time): Moved) -> f64 {
    bytes as f64 / time.as_secs_f64().max(1e-6)
}

fn shown_rate((bytes, time): Moved) -> String {
    format::rate(bytes, time)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

const _: () =
    assert!(KNOCK_TIMEOUT.as_secs() < CONNECT_TIMEOUT.as_secs(), "an address is given up before the server is");
