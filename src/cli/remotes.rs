//! `sealift remote`: names for servers, kept in the configuration file.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::config::{self, Config, Profile};
use crate::cli::session::print;
use crate::cli::trust::{TrustArgs, environment};
use crate::cli::{format, values};
use crate::client::look;
use crate::client::remote::is_name;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::escape_text;
use crate::tls::look::Shown;
use crate::tls::{ClientTls, Pin};

/// Keep names for servers.
#[derive(Args, Debug)]
#[command(after_help = "\
They are kept in ~/.config/sealift/config.toml (SEALIFT_CONFIG names another file), and are
written NAME:PATH wherever a command takes a REMOTE. Flags and the environment win over the file.

Example:
  sealift remote add nas nas.example.org --certs ~/certs && sealift ls nas:/")]
pub struct RemoteArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with the remotes of the configuration.
#[derive(Subcommand, Debug)]
pub enum Action {
    /// Remember a server under a name
    Add(AddArgs),
    /// List the remotes
    Ls(ListArgs),
    /// Show what is remembered of one
    Show(ShowArgs),
    /// Forget one
    Rm(RemoveArgs),
}

/// Remember a server.
#[derive(Args, Debug)]
#[command(after_help = "\
Without --certs, --ca or --pin the server's key is shown and, once you agree, remembered: compare it
with the one that `sealift serve` printed there. That needs a terminal.

Examples:
  sealift remote add nas nas.example.org
  sealift remote add nas nas.example.org:7000 --certs ~/certs --timeout 10m")]
pub struct AddArgs {
    /// A letter, then letters, digits, - and _; two characters or more
    pub name: String,
    /// Where the server is. (Its help has brackets, which the documentation would take for a link.)
    #[arg(help = "HOST[:PORT] of the server")]
    pub address: String,
    /// Longest time without progress, for its commands
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub timeout: Option<Duration>,
    /// Connections of one transfer, for its commands
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(values::STREAMS_MAX)))]
    pub streams: Option<u16>,
    /// Replace what is remembered under this name
    #[arg(long)]
    pub replace: bool,
    /// Whom to trust.
    #[command(flatten)]
    pub trust: TrustArgs,
}

/// List the remotes.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  sealift remote ls")]
pub struct ListArgs {
    /// Print names only
    #[arg(long)]
    pub names: bool,
    /// Print JSON, one object a line
    #[arg(long, conflicts_with = "names")]
    pub json: bool,
}

/// Show what is remembered of one.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  sealift remote show nas")]
pub struct ShowArgs {
    /// Its name
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Forget one.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  sealift remote rm nas")]
pub struct RemoveArgs {
    /// Its name
    pub name: String,
}

/// Runs the command.
///
/// # Errors
/// What is wrong with its arguments or the configuration; what keeps a server from being looked at.
pub fn run(args: &RemoteArgs) -> Result<()> {
    let config = Config::load(environment)?;
    match &args.action {
        Action::Add(args) => add(args, &config),
        Action::Ls(args) => {
            let mut text = String::new();
            let width = config.remotes().map(|(name, _)| name.len()).max().unwrap_or(0);
            for (name, profile) in config.remotes() {
                text.push_str(&match args {
                    ListArgs { names: true, .. } => format!("{name}\n"),
                    ListArgs { json: true, .. } => format::json_line(&json_of(name, profile)),
                    _ => format!("{name:width$}  {}\n", profile.address),
                });
            }
            print(&text).map(drop)
        }
        Action::Show(args) => {
            let profile = config.remote(&args.name)?;
            if args.json {
                return print(&format::json_line(&json_of(&args.name, profile))).map(drop);
            }
            let mut text = String::new();
            for (key, value) in facts(profile) {
                text.push_str(&format!("{key:<8} {}\n", escape_text(&value)));
            }
            print(&text).map(drop)
        }
        Action::Rm(args) => {
            config.remote(&args.name)?;
            config.change(&args.name, None)
        }
    }
}

fn facts(profile: &Profile) -> Vec<(&'static str, String)> {
    let mut facts = vec![("address", profile.address.to_string())];
    let files = [("certs", &profile.certs), ("ca", &profile.ca), ("cert", &profile.cert), ("key", &profile.key)];
    for (key, path) in files {
        facts.extend(path.as_ref().map(|path| (key, path.display().to_string())));
    }
    facts.extend(profile.pins.iter().map(|pin| ("pin", pin.to_string())));
    facts.extend(profile.timeout.map(|time| ("timeout", format!("{}s", time.as_secs()))));
    facts.extend(profile.streams.map(|count| ("streams", count.to_string())));
    facts
}

fn json_of(name: &str, profile: &Profile) -> serde_json::Value {
    json!({
        "type": "remote",
        "name": name,
        "address": profile.address.to_string(),
        "certs": profile.certs,
        "ca": profile.ca,
        "cert": profile.cert,
        "key": profile.key,
        "pins": profile.pins.iter().map(Pin::to_string).collect::<Vec<_>>(),
        "timeout_seconds": profile.timeout.map(|time| time.as_secs()),
        "streams": profile.streams,
    })
}

fn add(args: &AddArgs, config: &Config) -> Result<()> {
    if !is_name(&args.name) {
        return Err(usage(config::name_rule(&args.name)));
    }
    if !args.replace && config.remotes().any(|(name, _)| name == args.name) {
        return Err(usage(format!(
            "`{}` is there already (`sealift remote show {}`): --replace puts this one in its place",
            args.name, args.name
        )));
    }
    let mut profile = Profile {
        certs: absolute(args.trust.certs.as_deref())?,
        ca: absolute(args.trust.ca.as_deref())?,
        cert: absolute(args.trust.cert.as_deref())?,
        key: absolute(args.trust.key.as_deref())?,
        pins: args.trust.pin.clone(),
        timeout: args.timeout,
        streams: args.streams,
        ..Profile::at(config::address(&args.address)?)
    };
    let is_told = profile.certs.is_some() || profile.ca.is_some() || !profile.pins.is_empty();
    if !is_told {
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Err(usage(
                "whom to trust is not said, and there is no terminal to ask at: give --pin sha256:… (printed by \
                 `sealift serve` there), --ca FILE or --certs DIR",
            ));
        }
        profile.pins.push(ask(&profile)?);
    }
    // What commands would refuse later is refused now.
    let trusted = TrustArgs::default().resolve(|_| None, Some(&profile))?;
    let tls = ClientTls::load(&trusted).map_err(|error| error.with_kind(ErrorKind::Usage))?;
    for warning in tls.warnings() {
        say(&format!("sealift: warning: {warning}\n"))?;
    }
    config.change(&args.name, Some(&profile))?;
    say(&format!("remembered as `{}`; `sealift doctor {}` looks whether all is well\n", args.name, args.name))
}

/// Paths are kept as they are from here: commands run elsewhere.
fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>> {
    path.map(|path| std::path::absolute(path).while_doing(|| format!("find {}", path.display()))).transpose()
}

/// Shows the key of a server and asks whether to remember it.
fn ask(profile: &Profile) -> Result<Pin> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .while_doing(|| "start the runtime".to_owned())?;
    let Shown { pin, facts } = runtime.block_on(look::shown(&profile.address))?;
    let hosts: Vec<String> = facts.hosts.iter().map(|host| escape_text(host)).collect();
    say(&format!(
        "The server at {} shows a certificate for {}, valid until {}.\nIts key has the pin\n\n  {pin}\n\n\
         Whoever runs it can compare: `sealift serve` prints `server key {pin}` when it starts.\n\
         Trust this key from now on? [y/N] ",
        profile.address,
        if hosts.is_empty() { "no name".to_owned() } else { hosts.join(", ") },
        crate::tls::day(facts.not_after),
    ))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).while_doing(|| "read the answer".to_owned())?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(pin),
        _ => Err(Error::new(ErrorKind::Trust, "nothing is remembered: the key was not agreed to")),
    }
}

fn say(text: &str) -> Result<()> {
    let mut out = io::stderr().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).while_doing(|| "write standard error".to_owned())
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}
