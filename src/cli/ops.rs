//! `sealift ls`, `stat`, `hash`, `rm`, `mv` and `mkdir`: each argument by itself, one that fails does not keep the
//! others from being done.

use std::io::{IsTerminal as _, stdout};

use serde_json::{Value, json};

use crate::cli::args::{ConnectArgs, HashArgs, IfExistsArg, LsArgs, MkdirArgs, MvArgs, RmArgs, StatArgs};
use crate::cli::format;
use crate::cli::session::{Session, print, tell_failed};
use crate::client::plan::{self, Kind, check_target};
use crate::client::remote::Endpoint;
use crate::client::{Client, FirstAsks, glob};
use crate::error::{Error, ErrorKind, Result};
use crate::path::{Component, RemotePath};
use crate::protocol::{Entry, EntryKind};

fn session<'a>(command: &'static str, connect: &'a ConnectArgs, endpoint: Endpoint, prints: bool) -> Session<'a> {
    // In JSON what is printed and the summary are one stream.
    let data_on_stdout = prints && !connect.json;
    let (pace, has_summary, expected, first, receipts) = (None, false, 0, FirstAsks::default(), None);
    Session { command, connect, pace, endpoint, data_on_stdout, has_summary, expected, first, receipts }
}

/// What a command asks first that goes through names: what it asks of the first of them.
fn first(paths: &[RemotePath], with_patterns: bool, ask: impl Fn(&RemotePath) -> FirstAsks) -> FirstAsks {
    let first = paths.first().filter(|path| !with_patterns || !glob::is_pattern(path));
    first.map_or_else(FirstAsks::default, ask)
}

/// The names that arguments stand for. A pattern that matches nothing is told as a failure.
async fn expanded(client: &Client, paths: Vec<RemotePath>, with_patterns: bool) -> Result<Vec<RemotePath>> {
    let mut names = Vec::new();
    for path in paths {
        if !with_patterns || !glob::is_pattern(&path) {
            names.push(path);
            continue;
        }
        match client.expand(&path).await {
            Ok(found) => names.extend(found),
            Err(error) => tell_failed(client, client.events(), path.to_bytes(), error).await?,
        }
    }
    Ok(names)
}

fn paths_of(arguments: &[std::ffi::OsString]) -> Result<(Endpoint, Vec<RemotePath>)> {
    let (endpoint, remotes) = plan::on_one_server(arguments)?;
    Ok((endpoint, remotes.into_iter().map(|remote| remote.path).collect()))
}

/// What of a path is shown for the root, which has no name.
fn shown(path: &RemotePath) -> Vec<u8> {
    if path.is_root() { b"/".to_vec() } else { path.to_bytes() }
}

pub(super) fn ls(args: &LsArgs) -> Result<u8> {
    let (endpoint, paths) = paths_of(&args.paths)?;
    let first = first(&paths, args.glob, FirstAsks::listing);
    Session { first, ..session("ls", &args.connect, endpoint, true) }.run(async |client| {
        let paths = expanded(&client, paths, args.glob).await?;
        let with_prefix = paths.len() > 1;
        for path in paths {
            match list(&client, args, &path, with_prefix).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => tell_failed(&client, client.events(), shown(&path), error).await?,
            }
        }
        Ok(())
    })
}

/// Lists one argument. The answer is whether anybody still reads.
async fn list(client: &Client, args: &LsArgs, path: &RemotePath, with_prefix: bool) -> Result<bool> {
    let line = |path: &RemotePath, name: &[u8], entry: &Entry| {
        if args.connect.json {
            format::json_line(&format::entry_json(&shown(path), entry))
        } else if args.long {
            format!("{}\n", format::long_entry(name, entry))
        } else {
            format!("{}\n", format::short_entry(name, entry))
        }
    };
    let entry = client.stat(path).await?;
    if entry.kind != EntryKind::Directory {
        return print(&line(path, &shown(path), &entry));
    }
    let prefix = if with_prefix { path.clone() } else { RemotePath::root() };
    let mut waiting = vec![(path.clone(), prefix)];
    while let Some((directory, below)) = waiting.pop() {
        let mut entries = match client.list(&directory).await {
            Ok(entries) => entries,
            Err(error) if directory == *path => return Err(error),
            Err(error) => {
                tell_failed(client, client.events(), shown(&directory), error).await?;
                continue;
            }
        };
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        let mut text = String::new();
        let mut inner = Vec::new();
        for entry in &entries {
            let named =
                Component::new(&entry.name).and_then(|name| Ok((directory.join(name.clone())?, below.join(name)?)));
            match named {
                Ok((path, name)) => {
                    text.push_str(&line(&path, &name.to_bytes(), entry));
                    if args.recursive && entry.kind == EntryKind::Directory {
                        inner.push((path, name));
                    }
                }
                Err(error) => {
                    let error = Error::new(ErrorKind::Name, error.to_string());
                    tell_failed(client, client.events(), entry.name.clone(), error).await?;
                }
            }
        }
        if !print(&text)? {
            return Ok(false);
        }
        waiting.extend(inner.into_iter().rev());
    }
    Ok(true)
}

pub(super) fn stat(args: &StatArgs) -> Result<u8> {
    let (endpoint, paths) = paths_of(&args.paths)?;
    let first = first(&paths, args.glob, FirstAsks::stat);
    Session { first, ..session("stat", &args.connect, endpoint, true) }.run(async |client| {
        for (index, path) in expanded(&client, paths, args.glob).await?.into_iter().enumerate() {
            let text = match client.stat(&path).await {
                Ok(entry) if args.connect.json => format::json_line(&format::entry_json(&shown(&path), &entry)),
                Ok(entry) => {
                    let gap = if index > 0 { "\n" } else { "" };
                    format!("{gap}{}", format::stat(&shown(&path), &entry))
                }
                Err(error) => {
                    tell_failed(&client, client.events(), shown(&path), error).await?;
                    continue;
                }
            };
            if !print(&text)? {
                return Ok(());
            }
        }
        Ok(())
    })
}

pub(super) fn hash(args: &HashArgs) -> Result<u8> {
    let (endpoint, paths) = paths_of(&args.paths)?;
    let is_terminal = stdout().is_terminal();
    session("hash", &args.connect, endpoint, true).run(async |client| {
        let mut waiting = expanded(&client, paths, args.glob).await?;
        waiting.reverse();
        while let Some(path) = waiting.pop() {
            let error = match client.hash(&path).await {
                Ok((root, size)) => {
                    let text = if args.connect.json {
                        let mut object = serde_json::Map::new();
                        object.insert("type".to_owned(), json!("hash"));
                        format::insert_name(&mut object, "name", &path.to_bytes());
                        object.insert("b3".to_owned(), json!(root.to_string()));
                        object.insert("size".to_owned(), json!(size));
                        format::json_line(&Value::Object(object))
                    } else {
                        format::hash_line(root, &path.to_bytes(), is_terminal)
                    };
                    if !print(&text)? {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) if args.recursive && error.kind() == ErrorKind::IsDirectory => {
                    match files_and_directories(&client, &path).await {
                        Ok(inner) => {
                            waiting.extend(inner.into_iter().rev());
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(error) if error.kind() == ErrorKind::IsDirectory => error.context("add -r to hash the files in it"),
                Err(error) => error,
            };
            tell_failed(&client, client.events(), shown(&path), error).await?;
        }
        Ok(())
    })
}

/// What in a directory can be hashed or holds something that can, in the order of names.
async fn files_and_directories(client: &Client, directory: &RemotePath) -> Result<Vec<RemotePath>> {
    let mut names = Vec::new();
    for entry in client.list(directory).await? {
        if matches!(entry.kind, EntryKind::File | EntryKind::Directory) {
            let path = Component::new(&entry.name).and_then(|name| directory.join(name));
            names.push(path.map_err(|error| Error::new(ErrorKind::Name, error.to_string()))?);
        }
    }
    names.sort();
    Ok(names)
}

pub(super) fn rm(args: &RmArgs) -> Result<u8> {
    let (endpoint, paths) = plan::plan_remove(&args.paths)?;
    session("rm", &args.connect, endpoint, true).run(async |client| {
        for path in expanded(&client, paths, args.glob).await? {
            match remove(&client, args, &path).await {
                Ok(()) => {}
                Err(error) => tell_failed(&client, client.events(), shown(&path), error).await?,
            }
        }
        Ok(())
    })
}

async fn remove(client: &Client, args: &RmArgs, path: &RemotePath) -> Result<()> {
    let is_shown = args.dry_run || args.connect.verbose || args.connect.json;
    // A directory is told apart before, so that the sentence says what to do.
    let entry = client.stat(path).await;
    if let Ok(Entry { kind: EntryKind::Directory, .. }) = entry
        && !args.recursive
    {
        return Err(Error::new(ErrorKind::IsDirectory, format!("{path} is a directory: add -r to remove it")));
    }
    if args.dry_run {
        entry?;
    } else {
        client.remove(path, args.recursive).await?;
    }
    if is_shown {
        let (json_type, words) = if args.dry_run { ("would_remove", "would remove") } else { ("removed", "removed") };
        tell(&args.connect, json_type, words, path, None)?;
    }
    Ok(())
}

/// Prints what was done.
fn tell(connect: &ConnectArgs, json_type: &str, words: &str, path: &RemotePath, to: Option<&RemotePath>) -> Result<()> {
    let text = if connect.json {
        let mut object = serde_json::Map::new();
        object.insert("type".to_owned(), json!(json_type));
        format::insert_name(&mut object, "name", &path.to_bytes());
        if let Some(to) = to {
            format::insert_name(&mut object, "to", &to.to_bytes());
        }
        format::json_line(&Value::Object(object))
    } else {
        match to {
            Some(to) => format!("{words}: {path} -> {to}\n"),
            None => format!("{words}: {path}\n"),
        }
    };
    // Nobody reads it: what was asked for is done all the same.
    print(&text).map(drop)
}

pub(super) fn mv(args: &MvArgs) -> Result<u8> {
    let plan = plan::plan_move(&args.paths)?;
    session("mv", &args.connect, plan.endpoint.clone(), true).run(async |client| {
        for item in &plan.items {
            let moved = async {
                let (source, target) = (&item.source, &item.target);
                let moved = if args.dry_run {
                    would_move(&client, args, source, target).await
                } else {
                    client.rename(source, target, args.if_exists.into()).await
                };
                let to = match moved {
                    Ok(to) => to,
                    Err(error) if plan.into_directory => return Err(error),
                    Err(error) => return Err(with_hint(&client, target, error).await),
                };
                let Some(to) = to else {
                    // It still has its old name, which nobody would expect after success in silence.
                    return if args.connect.quiet { Ok(()) } else { tell(&args.connect, "kept", "kept", source, None) };
                };
                let is_shown = args.dry_run || args.connect.verbose || args.connect.json || to != *target;
                if is_shown {
                    let (json_type, words) =
                        if args.dry_run { ("would_move", "would move") } else { ("moved", "moved") };
                    tell(&args.connect, json_type, words, source, Some(&to))?;
                }
                Ok(())
            };
            if let Err(error) = moved.await {
                tell_failed(&client, client.events(), shown(&item.source), error).await?;
            }
        }
        Ok(())
    })
}

/// What a rename would do, as far as that can be told without doing it.
async fn would_move(
    client: &Client,
    args: &MvArgs,
    source: &RemotePath,
    target: &RemotePath,
) -> Result<Option<RemotePath>> {
    client.stat(source).await?;
    match (client.stat(target).await, args.if_exists) {
        (Ok(_), IfExistsArg::Fail) => {
            Err(Error::new(ErrorKind::Exists, format!("move {source} to {target}: it exists")))
        }
        (Ok(_), IfExistsArg::Skip) => Ok(None),
        (Err(error), _) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(Some(target.clone())),
    }
}

/// Says what to do when the new name is that of a directory.
async fn with_hint(client: &Client, target: &RemotePath, error: Error) -> Error {
    if !matches!(error.kind(), ErrorKind::Exists | ErrorKind::IsDirectory) {
        return error;
    }
    let is_directory = matches!(client.stat(target).await, Ok(Entry { kind: EntryKind::Directory, .. }));
    // Whoever may not look is told what the server said.
    let hint = || check_target(Kind::File, Some(Kind::Directory), target, false).err();
    if is_directory { hint().unwrap_or(error) } else { error }
}

pub(super) fn mkdir(args: &MkdirArgs) -> Result<u8> {
    let (endpoint, paths) = paths_of(&args.paths)?;
    session("mkdir", &args.connect, endpoint, true).run(async |client| {
        for path in paths {
            match client.make_directory(&path).await {
                Ok(()) if args.connect.verbose || args.connect.json => {
                    tell(&args.connect, "made", "made", &path, None)?;
                }
                Ok(()) => {}
                Err(error) => tell_failed(&client, client.events(), shown(&path), error).await?,
            }
        }
        Ok(())
    })
}
