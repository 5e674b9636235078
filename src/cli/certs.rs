//! `sealift certs`: certificates for a server and its clients, without another tool.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use time::OffsetDateTime;

use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::tls::certificates::LEAF_DAYS;
use crate::tls::folder::{self, Item, Outcome, Report, Request};
use crate::tls::names::{ClientName, Host};

/// Make, renew, hand out and revoke the certificates of a server and its clients.
///
/// Running it again keeps what is there: keys stay, and with them the server's pin. A certificate is issued again from
/// its key when it lacks a host, when `--days` asks for it, or when it has under 30 days left.
#[derive(Args, Clone, Debug)]
pub struct CertsArgs {
    /// The folder of certificates
    #[arg(long, value_name = "DIR", default_value = "certs")]
    pub dir: PathBuf,

    /// A name or address of the server, besides localhost, 127.0.0.1 and ::1 (repeatable)
    #[arg(long, value_name = "NAME_OR_IP")]
    pub host: Vec<Host>,

    /// A client to make a certificate for, besides `client`; servers know it by this name (repeatable)
    #[arg(long, value_name = "NAME")]
    pub client: Vec<ClientName>,

    /// Days that new certificates last [default: 365]; they never outlive the authority
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: Option<u32>,

    /// Make new keys: for the clients that are named, or else for the server and `client`; with --export, overwrite
    #[arg(long)]
    pub force: bool,

    /// Replace the authority, and issue everything again: every client then needs its new files
    #[arg(long)]
    pub new_ca: bool,

    /// Write what the machine of this client needs, and nothing else, into the directory given with --to
    #[arg(long, value_name = "NAME", requires = "to", conflicts_with_all = ["host", "client", "days", "new_ca", "revoke"])]
    pub export: Option<ClientName>,

    /// Where --export writes ca.pem, client.pem and client-key.pem
    #[arg(long, value_name = "DIR", requires = "export")]
    pub to: Option<PathBuf>,

    /// Revoke all certificates of this client, in crl.pem, which the server needs
    #[arg(long, value_name = "NAME", conflicts_with_all = ["host", "client", "days", "force", "new_ca"])]
    pub revoke: Option<ClientName>,
}

/// Does what the arguments ask for; says on `out` what was done, on `err` what the person should know.
///
/// # Errors
/// As [`folder::make`], [`folder::export`] and [`folder::revoke`]; [`ErrorKind::Io`] when `out` or `err` fails.
pub fn run(args: CertsArgs, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Error> {
    let now = OffsetDateTime::now_utc();
    let (text, notes) = match (&args.export, &args.to, &args.revoke) {
        (Some(name), Some(to), _) => {
            let notes = folder::export(&args.dir, name, to, args.force, now)?;
            let text = format!(
                "{to}: ca.pem, client.pem, client-key.pem for `{name}`\n\
                 move it to the client's machine by a safe way, then there: sealift ls --certs {to} sealift://HOST/\n",
                to = quoted(to)
            );
            (text, notes)
        }
        (Some(_), None, _) | (None, Some(_), _) => {
            return Err(Error::new(ErrorKind::Usage, "`--export NAME` and `--to DIR` go together"));
        }
        (None, None, Some(name)) => {
            let done = folder::revoke(&args.dir, name, now)?;
            let text = format!(
                "{list}: {count} of `{name}` revoked, {new} of them now\n\
                 give it to the server (`--certs DIR` reads crl.pem, or `--crl`)\n",
                list = done.list.display(),
                count = counted(done.count, "certificate"),
                new = done.new_count
            );
            (text, Vec::new())
        }
        (None, None, None) => {
            let request = Request {
                directory: args.dir.clone(),
                hosts: args.host.clone(),
                clients: args.client.clone(),
                days: args.days,
                force: args.force,
                new_authority: args.new_ca,
            };
            let mut report = folder::make(&request, now)?;
            let notes = std::mem::take(&mut report.notes);
            (made(&args, &report), notes)
        }
    };
    let print = |to: &mut dyn Write, text: &str| -> io::Result<()> {
        to.write_all(text.as_bytes())?;
        to.flush()
    };
    let notes: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
    print(err, &notes).while_doing(|| "print".to_owned())?;
    print(out, &text).while_doing(|| "print".to_owned())
}

fn made(args: &CertsArgs, report: &Report) -> String {
    let directory = quoted(&args.dir);
    let mut text = format!("certificates in {}:\n", args.dir.display());
    let width = report.items.iter().map(|item| item.stem.len()).max().unwrap_or_default();
    for item in &report.items {
        text.push_str(&line(item, width));
    }
    text.push_str(&format!("server pin: {}\n", report.pin));
    // What comes next is for who sees this for the first time.
    if report.items.first().is_some_and(|item| item.outcome == Outcome::Made) {
        text.push_str(&format!(
            "\nnext:\n  \
             sealift serve --certs {directory} --root DIR\n  \
             sealift put --certs {directory} FILE sealift://localhost/\n  \
             sealift certs --dir {directory} --export client --to OTHER_DIR    what a client machine needs\n\
             keep ca-key.pem away from servers and clients: who has it can let in anyone\n"
        ));
    }
    text
}

fn line(item: &Item, width: usize) -> String {
    let outcome = match item.outcome {
        Outcome::Made => "new",
        Outcome::Renewed => "issued again",
        Outcome::Kept => "kept",
    };
    let until = item.not_after.date();
    let hosts = if item.hosts.is_empty() { String::new() } else { format!(", for {}", item.hosts.join(", ")) };
    let what = match item.stem.as_str() {
        "ca" => " (authority)",
        _ => "",
    };
    format!("  {:width$}  {outcome}, until {until}{hosts}{what}\n", item.stem)
}

/// A path as it can be pasted into a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+,:@%".contains(&byte));
    if is_plain && !text.is_empty() { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

const _: () = assert!(LEAF_DAYS == 365, "the help of --days states the default");
