//! `sealift invite`: give links, list them, take them back.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use serde_json::json;

use crate::cli::args::ConnectArgs;
use crate::cli::session::{Session, print, tell_failed};
use crate::cli::{format, values};
use crate::client::event::Event;
use crate::client::invite::{InviteTerms, Link};
use crate::client::plan;
use crate::client::remote::Endpoint;
use crate::client::{Client, FirstAsks};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{self, INVITE_USES_MAX};
use crate::path::{RemotePath, escape_text};
use crate::protocol::{InviteFacts, InviteId, InviteKind, InviteState};

/// Give a link to a directory.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    override_usage = "sealift invite [OPTIONS] REMOTE-DIR\n       sealift invite ls|revoke ...",
    group = ArgGroup::new("kind").args(["upload", "download", "drop"]),
    after_help = "\
Prints one line, the link: who has it needs nothing else. Takes the right to share, which every
certificate has where there is no policy, and a server with --invites. A run is a put or a get.

Examples:
  sealift invite --certs certs sealift://nas/in/bob            a link to upload with, once
  sealift invite --certs certs sealift://nas/builds --download --uses 20 --expires 7d
  sealift invite ls --certs certs sealift://nas/"
)]
pub struct InviteArgs {
    /// List links, or take one back.
    #[command(subcommand)]
    pub command: Option<InviteCommand>,
    /// The directory; its holder sees nothing else
    #[arg(required = true, value_name = "REMOTE-DIR")]
    pub path: Option<OsString>,
    /// To see what is there and to store under free names (default)
    #[arg(long)]
    pub upload: bool,
    /// To see and to read
    #[arg(long)]
    pub download: bool,
    /// To store and to see nothing; taken names get another
    #[arg(long)]
    pub drop: bool,
    /// How long runs may begin
    #[arg(long, value_name = "TIME", default_value = "3d", value_parser = values::duration)]
    pub expires: Duration,
    /// Runs in all
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=i64::from(INVITE_USES_MAX)))]
    pub uses: u32,
    /// Bytes of content over all runs
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub max_size: Option<u64>,
    /// Address in the link [default: what `serve --public` says, or as here]
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// What to do with links that were given.
#[derive(Subcommand, Debug)]
pub enum InviteCommand {
    /// List invites to what is at or below a directory, and how far they are used
    #[command(after_help = "\
Each line: its name, state, what for, uses spent and in all, bytes, end, who gave it, directory.

Example:
  sealift invite ls --certs certs sealift://nas/")]
    Ls {
        /// The directory
        #[arg(value_name = "REMOTE")]
        path: OsString,
        /// How to connect.
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Take invites back, and cut off who uses them
    #[command(after_help = "Example:\n  sealift invite revoke --certs certs sealift://nas/ 0123456789abcdef")]
    Revoke {
        /// The server
        #[arg(value_name = "REMOTE")]
        path: OsString,
        /// As `ls` prints them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<InviteId>,
        /// How to connect.
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// Runs the command; the answer is the exit code.
///
/// # Errors
/// What is wrong with its arguments.
pub(super) fn run(args: &InviteArgs) -> Result<u8> {
    match &args.command {
        None => give(args),
        Some(InviteCommand::Ls { path, connect }) => {
            let (endpoint, path) = place(path)?;
            session(connect, endpoint).run(async |client| list(&client, connect, &path).await)
        }
        Some(InviteCommand::Revoke { path, ids, connect }) => {
            let (endpoint, _) = place(path)?;
            session(connect, endpoint).run(async |client| {
                for id in ids {
                    if let Err(error) = client.revoke_invite(*id).await {
                        tell_failed(&client, client.events(), id.to_string().into_bytes(), error).await?;
                    }
                }
                Ok(())
            })
        }
    }
}

fn place(argument: &OsString) -> Result<(Endpoint, RemotePath)> {
    let (endpoint, mut remotes) = plan::on_one_server(std::slice::from_ref(argument))?;
    let path = remotes.pop().map(|remote| remote.path).unwrap_or_default();
    Ok((endpoint, path))
}

fn session(connect: &ConnectArgs, endpoint: Endpoint) -> Session<'_> {
    let data_on_stdout = !connect.json;
    Session {
        command: "invite",
        connect,
        pace: None,
        endpoint,
        data_on_stdout,
        has_summary: false,
        expected: 0,
        first: FirstAsks::default(),
        receipts: None,
    }
}

fn give(args: &InviteArgs) -> Result<u8> {
    let path = args.path.as_ref().ok_or_else(|| Error::new(ErrorKind::Usage, "which directory is not said"))?;
    let (endpoint, path) = place(path)?;
    let parse = |text: &String| {
        text.parse::<Endpoint>().map_err(|error| error.context("--address").with_kind(ErrorKind::Usage))
    };
    let address = args.address.as_ref().map(parse).transpose()?;
    let terms = InviteTerms {
        kind: match (args.download, args.drop) {
            (true, _) => InviteKind::Download,
            (_, true) => InviteKind::Drop,
            _ => InviteKind::Upload,
        },
        seconds: args.expires.as_secs(),
        uses: args.uses,
        max_size: args.max_size,
    };
    session(&args.connect, endpoint.clone()).run(async |client| {
        let pin = client.pin().await;
        let pin = pin.ok_or_else(|| Error::new(ErrorKind::Trust, "the server's key cannot be read"))?;
        let mut link = Link::generate(address.clone().unwrap_or_else(|| endpoint.clone()), path, pin)?;
        let invited = client.invite(&link, terms).await?;
        if address.is_none() {
            match invited.address.as_deref().map(str::parse) {
                Some(Ok(public)) => link.endpoint = public,
                // The server's operator has said something that is no address.
                Some(Err(_)) | None => {
                    if client.is_private().await {
                        let text = format!(
                            "the link leads to {}, which only its neighbours can reach: give --address HOST:PORT, or \
                             have the server started with --public HOST:PORT",
                            link.endpoint
                        );
                        client.events().tell(Event::Warning(text)).await;
                    }
                }
            }
        }
        if args.connect.json {
            let object = json!({
                "type": "invite",
                "id": invited.id.to_string(),
                "link": *link.to_text(),
                "expires": invited.expires,
            });
            print(&format::json_line(&object))?;
        } else {
            // Not by way of anything that might keep or show it.
            let mut text = link.to_text();
            text.push('\n');
            let mut out = io::stdout().lock();
            // Who does not read it does not get it.
            let _ = super::after_output(out.write_all(text.as_bytes()).and_then(|()| out.flush()))?;
        }
        Ok(())
    })
}

async fn list(client: &Client, connect: &ConnectArgs, path: &RemotePath) -> Result<()> {
    for facts in client.invites(path).await? {
        let text = if connect.json { format::json_line(&json_of(&facts)) } else { line(&facts) };
        if !print(&text)? {
            break;
        }
    }
    Ok(())
}

fn state(state: InviteState) -> &'static str {
    match state {
        InviteState::Open => "open",
        InviteState::Expired => "expired",
        InviteState::UsedUp => "used up",
        InviteState::Revoked => "revoked",
        InviteState::Ended => "ended",
        InviteState::Damaged => "damaged",
    }
}

fn line(facts: &InviteFacts) -> String {
    if facts.state == InviteState::Damaged {
        return format!("{}  damaged\n", facts.id);
    }
    let size = match facts.max_size {
        Some(max) => format!("{} of {}", format::size(facts.used_size), format::size(max)),
        None => format::size(facts.used_size),
    };
    let reserved = if facts.reserved > 0 { format!(" (+{} running)", facts.reserved) } else { String::new() };
    format!(
        "{}  {}  {}  {} of {}{reserved}  {size}  until {}  by {}  /{}\n",
        facts.id,
        state(facts.state),
        facts.kind,
        facts.spent,
        facts.uses,
        moment(facts.expires),
        escape_text(&facts.issuer),
        if facts.path.is_root() { String::new() } else { facts.path.to_string() },
    )
}

fn moment(seconds: i64) -> String {
    use time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| seconds.to_string())
}

fn json_of(facts: &InviteFacts) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    object.insert("type".to_owned(), json!("invite"));
    object.insert("id".to_owned(), json!(facts.id.to_string()));
    object.insert("state".to_owned(), json!(state(facts.state)));
    format::insert_name(&mut object, "path", &facts.path.to_bytes());
    object.insert("for".to_owned(), json!(facts.kind.to_string()));
    object.insert("issuer".to_owned(), json!(facts.issuer));
    object.insert("issued".to_owned(), json!(facts.issued));
    object.insert("expires".to_owned(), json!(facts.expires));
    object.insert("uses".to_owned(), json!(facts.uses));
    object.insert("spent".to_owned(), json!(facts.spent));
    object.insert("reserved".to_owned(), json!(facts.reserved));
    object.insert("max_size".to_owned(), json!(facts.max_size));
    object.insert("used_size".to_owned(), json!(facts.used_size));
    object.into()
}

/// What bounds invites, for `serve --show-limits`.
pub(super) fn limits_shown() -> [(&'static str, String); 8] {
    let duration = crate::cli::format::duration;
    [
        ("invites that are kept (--invites)", limits::INVITES_MAX.to_string()),
        ("uses of one invite", limits::INVITE_USES_MAX.to_string()),
        ("an invite is good for, at most", duration(limits::INVITE_LIFETIME_MAX)),
        ("… unless something else is asked for", duration(limits::INVITE_LIFETIME)),
        ("a run may go on after its invite has expired for", duration(limits::INVITE_GRACE)),
        ("a use is kept for a run that was cut for", duration(limits::INVITE_RESERVED)),
        ("an invite that has ended is known for", duration(limits::INVITE_KEPT)),
        ("the certificates of who gives one", format!("{} KiB", limits::INVITE_CHAIN_LEN_MAX / limits::KIB)),
    ]
}
