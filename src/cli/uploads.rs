//! `sealift uploads`: what a server keeps of uploads that were cut, looked at on its machine.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, json};

use crate::cli::args::{UploadsArgs, UploadsCommand};
use crate::cli::{after_output, format};
use crate::error::{Error, ErrorKind, Result};
use crate::path::Escaped;
use crate::storage::{self, Partial};

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

fn remove(root: &Path, ids: &[String], all: bool, out: &mut dyn Write) -> Result<()> {
    let there = storage::list_partials(root)?;
    let mut chosen: Vec<&Partial> = Vec::new();
    for id in ids {
        let found = there.iter().find(|partial| partial.id == *id);
        let found = found.ok_or_else(|| {
            let shown = Escaped(id.as_bytes()).to_string();
            Error::new(ErrorKind::NotFound, format!("there is no unfinished upload `{shown}`: `uploads ls` names them"))
        })?;
        chosen.push(found);
    }
    if all {
        chosen = there.iter().collect();
    }
    let mut is_left = false;
    for partial in chosen {
        if storage::remove_partial(root, partial)? {
            let line = format!("removed: {}  {}\n", partial.id, partial.record.path);
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
