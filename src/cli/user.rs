//! `sealift user` and `sealift grant`: edit a policy file and leave everything else in it, comments included, as it is.
//!
//! What they write has been read as a server would read it, is durable, and takes the old file's place by renaming, so
//! a server that follows the file never sees half of it. Two of them at once wait for one another.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rustix::fs::{FlockOperation, flock};
use toml_edit::{Array, DocumentMut, Item, Table, TableLike, Value};

use super::values::Bound;
use super::{rules, values};
use crate::access::policy::{Policy, is_name};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::{Escaped, RemotePath};
use crate::protocol::Rights;
use crate::tls::Pin;

/// What a policy file begins with that is made here.
const HEADER: &str = "\
# Who may do what on a sealift server (serve --policy). Edit it by hand or with `sealift user` and `sealift grant`;
# a server that runs follows it at once. Whoever is not named here has no rights.
";

/// Name users in a policy file, and revoke them.
#[derive(Args, Debug)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
A server that runs with `serve --policy FILE` follows every change of the file at once.

Examples:
  sealift user add alice --policy policy.toml
  sealift serve --root /srv/files --certs certs --policy policy.toml"
)]
pub struct UserArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: UserCommand,
}

/// What to do with a user.
#[derive(Subcommand, Debug)]
pub enum UserCommand {
    /// Name a user, with a home and rights there
    #[command(after_help = "\
The file is made if it is missing. NAME is the common name of the user's certificate; with --pin,
the user is known by the key instead, whatever the certificate says. HOME is the user's `/`.

Example:
  sealift user add alice --policy policy.toml --bytes 50G")]
    Add(AddArgs),
    /// Change a user's quota and limits
    #[command(
        override_usage = "sealift user set --policy <FILE> <LIMIT>... <NAME>",
        after_help = "\
`none` takes a limit away. Rights are changed with `sealift grant`. A server that runs goes by the
new limits at once; what runs is bound to another rate within seconds.

Example:
  sealift user set alice --policy policy.toml --bytes 80G --rate-down 10M"
    )]
    Set(SetArgs),
    /// List users, their homes, rights and rules
    #[command(after_help = "Example:\n  sealift user ls --policy policy.toml")]
    Ls(PolicyArgs),
    /// Take a user out of the file; files stay
    #[command(after_help = "\
A name that is revoked stays revoked.

Example:
  sealift user rm alice --policy policy.toml")]
    Rm(NameArgs),
    /// Let a user, or a key, in no more
    #[command(after_help = "\
Running transfers are cut, and new certificates of that name are refused too, until `restore`.

Example:
  sealift user revoke alice --policy policy.toml")]
    Revoke(NameArgs),
    /// Let a revoked user, or key, in again
    #[command(after_help = "Example:\n  sealift user restore alice --policy policy.toml")]
    Restore(NameArgs),
}

/// Which file.
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    /// The policy file
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
}

/// Whom.
#[derive(Args, Clone, Debug)]
pub struct NameArgs {
    /// The user's name; for revoke and restore also a pin, sha256:…
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Which file.
    #[command(flatten)]
    pub file: PolicyArgs,
}

/// A new user.
#[derive(Args, Clone, Debug)]
pub struct AddArgs {
    /// The common name of the user's certificate
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Which file.
    #[command(flatten)]
    pub file: PolicyArgs,
    /// The user's `/`, below the served root [default: NAME]
    #[arg(long, value_name = "DIR")]
    pub home: Option<String>,
    /// Rights there: some of list,read,create,overwrite,rename,delete,share
    #[arg(long, value_name = "RIGHTS", value_parser = values::rights, default_value = "list,read,create,overwrite,rename,delete", hide_default_value = true)]
    pub rights: Rights,
    /// A key of the user's, as sha256:… (repeatable)
    #[arg(long, value_name = "PIN")]
    pub pin: Vec<Pin>,
    /// It is meant that the home is, or holds, another user's
    #[arg(long)]
    pub overlap: bool,
    /// Bytes of all files there, at most
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub bytes: Option<u64>,
    /// Files and directories there, at most
    #[arg(long, value_name = "N")]
    pub files: Option<u64>,
    /// Bytes of one file, at most
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub file_size: Option<u64>,
    /// Open uploads, at most
    #[arg(long, value_name = "N")]
    pub uploads: Option<u32>,
    /// Connections, at most
    #[arg(long, value_name = "N")]
    pub connections: Option<u32>,
    /// Bytes per second from all its connections together, at most
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub rate_up: Option<u64>,
    /// Bytes per second to all its connections together, at most
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub rate_down: Option<u64>,
}

/// Other limits of a user.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct SetArgs {
    /// The user
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Which file.
    #[command(flatten)]
    pub file: PolicyArgs,
    /// What.
    #[command(flatten)]
    pub limits: SetLimits,
}

/// The limits that are set.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = true)]
pub struct SetLimits {
    /// Bytes of all files in the home, at most
    #[arg(long, value_name = "SIZE", value_parser = values::size_or_none)]
    pub bytes: Option<Bound>,
    /// Files and directories there, at most
    #[arg(long, value_name = "N", value_parser = values::count_or_none)]
    pub files: Option<Bound>,
    /// Bytes of one file, at most
    #[arg(long, value_name = "SIZE", value_parser = values::size_or_none)]
    pub file_size: Option<Bound>,
    /// Open uploads, at most
    #[arg(long, value_name = "N", value_parser = values::count_or_none)]
    pub uploads: Option<Bound>,
    /// Connections, at most
    #[arg(long, value_name = "N", value_parser = values::count_or_none)]
    pub connections: Option<Bound>,
    /// Bytes per second from all its connections together, at most
    #[arg(long, value_name = "RATE", value_parser = values::rate_or_none)]
    pub rate_up: Option<Bound>,
    /// Bytes per second to all its connections together, at most
    #[arg(long, value_name = "RATE", value_parser = values::rate_or_none)]
    pub rate_down: Option<Bound>,
}

/// Say what a user may do at a path and below.
#[derive(Args, Debug)]
#[command(after_help = "\
PATH is as the server's operator sees it, below the served root, in or at the user's home.
RIGHTS are some of list,read,create,overwrite,rename,delete,share, or `none`, or `default`: what
holds above it. The longest path that holds decides.

Examples:
  sealift grant alice alice/inbox create --policy policy.toml      a drop box
  sealift grant alice alice/archive list,read --policy policy.toml
  sealift grant alice alice/archive default --policy policy.toml   as the home again")]
pub struct GrantArgs {
    /// The user
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where, below the served root
    #[arg(value_name = "PATH")]
    pub path: String,
    /// What
    #[arg(value_name = "RIGHTS")]
    pub rights: String,
    /// Which file.
    #[command(flatten)]
    pub file: PolicyArgs,
}

/// Runs `sealift user …`.
///
/// # Errors
/// `Usage` for what the policy would not be good with, and for users that are not there; what the file can fail with.
pub fn user(args: &UserArgs, out: &mut dyn Write) -> Result<()> {
    match &args.command {
        UserCommand::Add(args) => add(args, out),
        UserCommand::Set(args) => set_limits(args, out),
        UserCommand::Ls(args) => list(args, out),
        UserCommand::Rm(NameArgs { name, file }) => {
            let mut edit = Edit::open(&file.policy, false)?;
            edit.user(name)?;
            edit.users()?.remove(name);
            let policy = edit.save()?;
            say(out, &format!("`{name}` is not in {} any more\n", edit.shown()))?;
            if policy.is_revoked(name) {
                say(out, &format!("`{name}` stays revoked, should it be added again\n"))?;
            }
            Ok(())
        }
        UserCommand::Revoke(NameArgs { name, file }) => revoke(name, &file.policy, out),
        UserCommand::Restore(NameArgs { name, file }) => restore(name, &file.policy, out),
    }
}

/// Runs `sealift grant`.
///
/// # Errors
/// As [`user`].
pub fn grant(args: &GrantArgs, out: &mut dyn Write) -> Result<()> {
    let parse = |text: &str| {
        RemotePath::parse(text.as_bytes())
            .map_err(|error| usage(format!("`{}` is no path below the root: {error}", Escaped(text.as_bytes()))))
    };
    let path = parse(&args.path)?;
    let rights = match args.rights.as_str() {
        "default" => None,
        "none" => Some(Rights::NONE),
        names => Some(values::rights(names).map_err(usage)?),
    };
    let mut edit = Edit::open(&args.file.policy, false)?;
    let user = edit.user(&args.name)?;
    let home = parse(user.get("home").and_then(Item::as_str).unwrap_or_default())?;
    if path == home {
        let rights = rights.ok_or_else(|| usage(format!("{path} is the home: there is nothing above it to go by")))?;
        set(user, "rights", names_of(rights).into());
    } else {
        if user.get("paths").is_none() {
            user.insert("paths", Item::Table(Table::new()));
        }
        let paths = user.get_mut("paths").and_then(Item::as_table_like_mut);
        let paths = paths.ok_or_else(|| usage(format!("`paths` of `{}` is no table", args.name)))?;
        // The same place may be spelt otherwise.
        let spelt = paths.iter().map(|(key, _)| key.to_owned()).find(|key| parse(key).is_ok_and(|key| key == path));
        match rights {
            Some(rights) => {
                let written = String::from_utf8_lossy(&path.to_bytes()).into_owned();
                set(paths, &spelt.unwrap_or(written), names_of(rights).into());
            }
            None => {
                let spelt = spelt.ok_or_else(|| usage(format!("`{}` has no rule for {path}", args.name)))?;
                paths.remove(&spelt);
            }
        }
    }
    edit.save()?;
    let may = rights.map_or_else(|| "as above it".to_owned(), |rights| rights.to_string());
    say(out, &format!("`{}` at {path} and below: {may}\n", args.name))
}

fn add(args: &AddArgs, out: &mut dyn Write) -> Result<()> {
    let AddArgs { name, file, home, rights, .. } = args;
    if !is_name(name) {
        let shown = Escaped(name.as_bytes());
        return Err(usage(format!("`{shown}` can be no certificate's name: 1 to 64 printable ASCII characters")));
    }
    let mut edit = Edit::open(&file.policy, true)?;
    if edit.user(name).is_ok() {
        return Err(usage(format!("`{name}` is in {} already: see `sealift grant`", edit.shown())));
    }
    let home = home.as_ref().unwrap_or(name);
    let mut user = Table::new();
    user.insert("home", value(home.as_str()));
    user.insert("rights", value(names_of(*rights)));
    if !args.pin.is_empty() {
        user.insert("pins", value(args.pin.iter().map(ToString::to_string).collect::<Array>()));
    }
    if args.overlap {
        user.insert("overlap", value(true));
    }
    let mut limits = Table::new();
    for (key, limit) in [
        ("bytes", args.bytes),
        ("files", args.files),
        ("file-size", args.file_size),
        ("uploads", args.uploads.map(u64::from)),
        ("connections", args.connections.map(u64::from)),
        ("rate-up", args.rate_up),
        ("rate-down", args.rate_down),
    ] {
        if let Some(limit) = limit {
            limits.insert(key, value(number(limit)?));
        }
    }
    if !limits.is_empty() {
        user.insert("limits", Item::Table(limits));
    }
    if edit.before.is_none() {
        user.decor_mut().set_prefix(format!("{HEADER}\n"));
    }
    edit.users()?.insert(name, Item::Table(user));
    let policy = edit.save()?;
    let home = if home.trim_matches('/').is_empty() { "the whole root" } else { home };
    say(out, &format!("`{name}` is at home in {} and may: {rights}\n", Escaped(home.as_bytes())))?;
    if policy.is_revoked(name) {
        say(out, &format!("`{name}` is revoked: `sealift user restore {name}` lets it in\n"))?;
    }
    Ok(())
}

fn number(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| usage(format!("{number} is too large")))
}

fn set_limits(args: &SetArgs, out: &mut dyn Write) -> Result<()> {
    let SetArgs { name, file, limits } = args;
    let mut edit = Edit::open(&file.policy, false)?;
    let user = edit.user(name)?;
    if user.get("limits").is_none() {
        user.insert("limits", Item::Table(Table::new()));
    }
    let table = user.get_mut("limits").and_then(Item::as_table_like_mut);
    let table = table.ok_or_else(|| usage(format!("`limits` of `{name}` is no table")))?;
    for (key, bound) in [
        ("bytes", limits.bytes),
        ("files", limits.files),
        ("file-size", limits.file_size),
        ("uploads", limits.uploads),
        ("connections", limits.connections),
        ("rate-up", limits.rate_up),
        ("rate-down", limits.rate_down),
    ] {
        match bound {
            None => {}
            Some(Bound(None)) => drop(table.remove(key)),
            Some(Bound(Some(limit))) => set(table, key, number(limit)?.into()),
        }
    }
    if table.is_empty() {
        user.remove("limits");
    }
    let policy = edit.save()?;
    let grant = policy.grants().into_iter().find(|grant| grant.name == *name);
    let named = grant.map_or_else(Vec::new, |grant| grant.limits.named());
    let all: Vec<String> = named.into_iter().map(|(what, limit)| format!("{what} {limit}")).collect();
    let all = if all.is_empty() { "no limit of its own".to_owned() } else { format!("at most: {}", all.join(", ")) };
    say(out, &format!("`{name}` has {all}\n"))
}

fn list(args: &PolicyArgs, out: &mut dyn Write) -> Result<()> {
    let policy = rules::load_policy(&args.policy)?;
    let mut text = String::new();
    for grant in policy.grants() {
        let mark = if policy.is_revoked(&grant.name) { "  REVOKED" } else { "" };
        for (index, (path, rights)) in grant.rules().enumerate() {
            let who = if index == 0 { &*grant.name } else { "" };
            text += &format!("{who:<20}  {path:<30}  {rights}{}\n", if index == 0 { mark } else { "" });
        }
        for pin in policy.pins_of(&grant) {
            text += &format!("{:<20}  {pin}\n", "");
        }
        for (what, limit) in grant.limits.named() {
            text += &format!("{:<20}  at most: {what} {limit}\n", "");
        }
    }
    for revoked in policy.revoked() {
        text += &format!("revoked: {revoked}\n");
    }
    say(out, &text)
}

/// A revocation names what it revokes: a name, or a key in its one spelling.
fn revocable(name: &str) -> Result<String> {
    if name.starts_with("sha256:") { Ok(name.parse::<Pin>()?.to_string()) } else { Ok(name.to_owned()) }
}

fn is_same(written: &Value, revoked: &str) -> bool {
    written.as_str().is_some_and(|written| revocable(written).is_ok_and(|written| written == revoked))
}

fn revoke(name: &str, file: &Path, out: &mut dyn Write) -> Result<()> {
    let revoked = revocable(name)?;
    let mut edit = Edit::open(file, false)?;
    if revoked == name && !name.starts_with("sha256:") {
        // A slip of the pen would leave in whom it was meant for.
        edit.user(name)?;
    }
    let list = edit.revoked()?;
    if list.iter().any(|written| is_same(written, &revoked)) {
        return say(out, &format!("`{revoked}` is revoked already\n"));
    }
    list.push(revoked.as_str());
    edit.save()?;
    say(out, &format!("`{revoked}` is revoked: a server that runs cuts it off within seconds\n"))
}

fn restore(name: &str, file: &Path, out: &mut dyn Write) -> Result<()> {
    let revoked = revocable(name)?;
    let mut edit = Edit::open(file, false)?;
    let list = edit.revoked()?;
    let before = list.len();
    list.retain(|written| !is_same(written, &revoked));
    if list.len() == before {
        return Err(usage(format!("`{}` is not revoked", Escaped(revoked.as_bytes()))));
    }
    edit.save()?;
    say(out, &format!("`{revoked}` is revoked no more\n"))
}

fn names_of(rights: Rights) -> Array {
    Rights::NAMES.iter().filter(|(_, right)| rights.contains(*right)).map(|(name, _)| *name).collect()
}

fn value(value: impl Into<Value>) -> Item {
    Item::Value(value.into())
}

/// Gives a key this value; what a person wrote around the old one stays.
fn set(table: &mut dyn TableLike, key: &str, mut value: Value) {
    match table.get_mut(key) {
        Some(item) => {
            if let Some(old) = item.as_value() {
                *value.decor_mut() = old.decor().clone();
            }
            *item = Item::Value(value);
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

/// A policy file that is being changed, and whose other changers wait.
struct Edit {
    path: PathBuf,
    document: DocumentMut,
    /// The state that was read; none: there was no file.
    before: Option<File>,
}

impl Edit {
    fn open(path: &Path, may_make: bool) -> Result<Edit> {
        let what = || format!("read the policy {}", path.display());
        // Behind a link lies the file that is to be replaced.
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_make => {
                return Ok(Edit { path: path.to_owned(), document: DocumentMut::new(), before: None });
            }
            Err(error) => return Err(Error::io(what(), error).with_kind(ErrorKind::Usage)),
        };
        loop {
            let mut file = File::open(&real).while_doing(what)?;
            flock(&file, FlockOperation::LockExclusive)
                .while_doing(|| format!("lock the policy {}", path.display()))?;
            // Who held the lock may have put another file in its place.
            let (ours, there) = (file.metadata().while_doing(what)?, fs::metadata(&real).while_doing(what)?);
            if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
                continue;
            }
            let mut text = String::new();
            io::Read::read_to_string(&mut file, &mut text).while_doing(what)?;
            let of_file = |error: Error| error.context(format!("the policy {}", path.display()));
            Policy::parse(&text).map_err(of_file)?;
            let document = text.parse().map_err(|error| of_file(usage("it is no TOML").with_source(error)))?;
            return Ok(Edit { path: real, document, before: Some(file) });
        }
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    fn users(&mut self) -> Result<&mut dyn TableLike> {
        let users = self.document.entry("user").or_insert_with(|| {
            let mut users = Table::new();
            users.set_implicit(true);
            Item::Table(users)
        });
        users.as_table_like_mut().ok_or_else(|| usage("`user` is no table"))
    }

    fn user(&mut self, name: &str) -> Result<&mut dyn TableLike> {
        let shown = self.shown();
        let user = self.users()?.get_mut(name).and_then(Item::as_table_like_mut);
        user.ok_or_else(|| usage(format!("there is no user `{}` in {shown}", Escaped(name.as_bytes()))))
    }

    fn revoked(&mut self) -> Result<&mut Array> {
        let list = self.document.entry("revoked").or_insert_with(|| value(Array::new()));
        list.as_array_mut().ok_or_else(|| usage("`revoked` is no list"))
    }

    /// Puts the changed text in the file's place, durably, if a server could use it.
    fn save(&mut self) -> Result<Policy> {
        let text = self.document.to_string();
        let policy = Policy::parse(&text).map_err(|error| error.context("nothing was changed, for then"))?;
        let what = || format!("write the policy {}", self.shown());
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".new-{}", std::process::id()));
        let new = self.path.with_file_name(name);
        let written = self.write(&new, &text).and_then(|()| match &self.before {
            Some(_) => fs::rename(&new, &self.path),
            // Another who makes it now is not undone.
            None => fs::hard_link(&new, &self.path).and_then(|()| fs::remove_file(&new)),
        });
        if written.is_err() {
            // It may not have been made.
            let _ = fs::remove_file(&new);
        }
        written.while_doing(what)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).while_doing(what)?;
        Ok(policy)
    }

    fn write(&self, new: &Path, text: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
        match &self.before {
            Some(before) => {
                // A server that could read the old one can read the new one.
                let before = before.metadata()?;
                let now = file.metadata()?;
                if (before.uid(), before.gid()) != (now.uid(), now.gid()) {
                    std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()))?;
                }
                file.set_permissions(before.permissions())?;
            }
            None => file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?,
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }
}

fn say(out: &mut dyn Write, text: &str) -> Result<()> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    super::after_output(written).map(|_| ())
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}
