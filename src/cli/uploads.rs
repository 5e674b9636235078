//! `sealift uploads`: what a server keeps of uploads that were cut, looked at on its machine.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, json};

use crate::cli::args::{UploadsArgs, UploadsCommand};
use crate::cli::{after_output, format};
use crate::error::{Error, ErrorKind, Result};
use crate::path::{Escaped, RemotePath};
use crate::storage::{self, Partial, UnfinishedTree};

/// Runs the command.
///
/// # Errors
/// `NotFound` for a root that was never served, or an id that is not there; what the disk says.
pub(super) fn run(args: &UploadsArgs, out: &mut dyn Write) -> Result<()> {
    match &args.command {
        UploadsCommand::Ls { root, json } => {
            for partial in storage::list_partials(root)? {
                let line = if *json { json_line(&partial) } else { line(&partial) };
                if after_output(out.write_all(line.as_bytes()))?.is_break() {
                    return Ok(());
                }
            }
            for tree in storage::list_trees(root)? {
                let line = if *json { json_line_of_tree(&tree) } else { line_of_tree(&tree) };
                if after_output(out.write_all(line.as_bytes()))?.is_break() {
                    break;
                }
            }
            Ok(())
        }
        UploadsCommand::Rm { root, ids, all } => remove(root, ids, *all, out),
    }
}

fn line(partial: &Partial) -> String {
    let record = &partial.record;
    let age = Duration::from_secs(storage::now().saturating_sub(record.touched));
    format!(
        "{}  {} of {}  {} ago  {}  {}{}\n",
        partial.id,
        format::size(record.held.bytes()),
        format::size(record.held.size()),
        format::duration(age),
        Escaped(record.owner_name.as_bytes()),
        record.path,
        if partial.is_active { "  (being received)" } else { "" }
    )
}

fn json_line(partial: &Partial) -> String {
    let record = &partial.record;
    let mut object = Map::new();
    object.insert("type".to_owned(), json!("upload"));
    object.insert("id".to_owned(), json!(partial.id));
    format::insert_name(&mut object, "name", &record.path.to_bytes());
    object.insert("owner".to_owned(), json!(record.owner_name));
    object.insert("size".to_owned(), json!(record.held.size()));
    object.insert("held".to_owned(), json!(record.held.bytes()));
    object.insert("disk_size".to_owned(), json!(partial.disk_size));
    object.insert("generation".to_owned(), json!(record.generation));
    object.insert("begun".to_owned(), json!(record.begun));
    object.insert("touched".to_owned(), json!(record.touched));
    object.insert("active".to_owned(), json!(partial.is_active));
    format::json_line(&object.into())
}

fn line_of_tree(tree: &UnfinishedTree) -> String {
    let age = Duration::from_secs(storage::now().saturating_sub(tree.touched));
    format!(
        "{}  {} in {} new files  {} ago  {}  {}/ as a whole{}\n",
        tree.id,
        format::size(tree.size),
        tree.files,
        format::duration(age),
        Escaped(tree.owner_name.as_bytes()),
        tree.path,
        if tree.is_active { "  (being received)" } else { "" }
    )
}

fn json_line_of_tree(tree: &UnfinishedTree) -> String {
    let mut object = Map::new();
    object.insert("type".to_owned(), json!("tree"));
    object.insert("id".to_owned(), json!(tree.id));
    format::insert_name(&mut object, "name", &tree.path.to_bytes());
    object.insert("owner".to_owned(), json!(tree.owner_name));
    object.insert("size".to_owned(), json!(tree.size));
    object.insert("files".to_owned(), json!(tree.files));
    object.insert("begun".to_owned(), json!(tree.begun));
    object.insert("touched".to_owned(), json!(tree.touched));
    object.insert("active".to_owned(), json!(tree.is_active));
    format::json_line(&object.into())
}

/// What can be removed.
enum Unfinished<'a> {
    Upload(&'a Partial),
    Tree(&'a UnfinishedTree),
}

impl Unfinished<'_> {
    fn remove(&self, root: &Path) -> Result<bool> {
        match self {
            Unfinished::Upload(partial) => storage::remove_partial(root, partial),
            Unfinished::Tree(tree) => storage::remove_tree(root, tree),
        }
    }

    fn id(&self) -> &str {
        match self {
            Unfinished::Upload(partial) => &partial.id,
            Unfinished::Tree(tree) => &tree.id,
        }
    }

    fn path(&self) -> &RemotePath {
        match self {
            Unfinished::Upload(partial) => &partial.record.path,
            Unfinished::Tree(tree) => &tree.path,
        }
    }
}

fn remove(root: &Path, ids: &[String], all: bool, out: &mut dyn Write) -> Result<()> {
    let (partials, trees) = (storage::list_partials(root)?, storage::list_trees(root)?);
    let there = || partials.iter().map(Unfinished::Upload).chain(trees.iter().map(Unfinished::Tree));
    let mut chosen: Vec<Unfinished<'_>> = Vec::new();
    for id in ids {
        let found = there().find(|unfinished| unfinished.id() == id);
        let found = found.ok_or_else(|| {
            let shown = Escaped(id.as_bytes()).to_string();
            Error::new(ErrorKind::NotFound, format!("there is no unfinished upload `{shown}`: `uploads ls` names them"))
        })?;
        chosen.push(found);
    }
    if all {
        chosen = there().collect();
    }
    let mut is_left = false;
    for unfinished in chosen {
        if unfinished.remove(root)? {
            let line = format!("removed: {}  {}\n", unfinished.id(), unfinished.path());
            // Who does not read it has it removed all the same.
            let _ = after_output(out.write_all(line.as_bytes()))?;
        } else {
            is_left = true;
        }
    }
    if is_left {
        return Err(Error::new(ErrorKind::Busy, "some are being received at this moment, and were left"));
    }
    Ok(())
}
