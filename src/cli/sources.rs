//! From the arguments of a transfer to its plan: lists of names are read here, nothing else is.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::cli::args::ConnectArgs;
use crate::cli::args::{GetArgs, PutArgs};
use crate::cli::names::{self, Named};
use crate::cli::output::{Detail, Reader};
use crate::client::plan::{self, GetArguments, PutPlan, Sources};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::MIB;
use crate::path::Escaped;

/// Bytes of a list of names, all of which are needed before anything moves: two of them may clash. Longer: refused.
const LIST_LEN_MAX: usize = 64 * MIB;

/// What a `put` is to do.
///
/// # Errors
/// [`ErrorKind::Usage`] for what cannot be meant, and what the file system says about a list or a `.`.
pub fn put_plan(args: &PutArgs) -> Result<PutPlan> {
    args.check()?;
    let (listed, kind) = listed(args.transfer.files_from.as_deref(), args.transfer.null)?;
    let (sources, destination) = match args.command()? {
        Some((destination, _)) => plan::put_arguments(&[OsString::from("-"), destination.clone()], listed)?,
        None => plan::put_arguments(&args.paths, listed)?,
    };
    plan::plan_put(sources, kind, &destination, plan::real_path)
}

/// What a `get` names. Without `--glob`, [`plan::plan_get`] makes a plan of it at once; with it, patterns are
/// expanded first. The second value is what it is to be told about the sources, the third the remote of the
/// configuration that they are on, if one is named.
///
/// # Errors
/// As [`put_plan`].
pub fn get_arguments(args: &GetArgs) -> Result<(GetArguments, Sources, Option<Named>)> {
    let (mut listed, kind) = listed(args.transfer.files_from.as_deref(), args.transfer.null)?;
    let remote = names::expand_listed(&args.paths, &mut listed, args.connect.named.clone())?;
    let named = plan::get_arguments(&args.paths, &listed)?;
    Ok((named, if args.glob { Sources::Listed } else { kind }, remote))
}

fn listed(path: Option<&Path>, is_null: bool) -> Result<(Vec<OsString>, Sources)> {
    let Some(path) = path else { return Ok((Vec::new(), Sources::Named)) };
    let doing = || format!("read the list of names `{}`", Escaped(path.as_os_str().as_bytes()));
    let mut bytes = Vec::new();
    let limit = LIST_LEN_MAX as u64 + 1;
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        // A list that is not there is a wrong command line.
        let file = File::open(path).while_doing(doing).map_err(|error| error.with_kind(ErrorKind::Usage))?;
        file.take(limit).read_to_end(&mut bytes)
    };
    read.while_doing(doing)?;
    if bytes.len() > LIST_LEN_MAX {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{}: longer than {} MiB; move its directories instead, or split it", doing(), LIST_LEN_MAX / MIB),
        ));
    }
    Ok((plan::split_list(&bytes, if is_null { 0 } else { b'\n' }), Sources::Listed))
}

/// How much a command shows, and to whom. `data_on_stdout` says that standard output carries data.
#[must_use]
pub fn output_of(args: &ConnectArgs, data_on_stdout: bool) -> (Detail, Reader) {
    let detail = match (args.quiet, args.verbose) {
        (true, _) => Detail::Quiet,
        (false, true) => Detail::Verbose,
        (false, false) => Detail::Normal,
    };
    let reader = match (args.json, data_on_stdout) {
        (false, _) => Reader::Person,
        (true, false) => Reader::Program,
        (true, true) => Reader::ProgramBesideData,
    };
    (detail, reader)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn put(line: &[&str]) -> Result<Vec<String>> {
        let cli = Cli::try_parse_from(["sealift", "put"].iter().chain(line)).unwrap();
        let Command::Put(args) = cli.command else { panic!("not a put") };
        let plan = put_plan(&args)?;
        Ok(plan.items.iter().map(|item| format!("{}>{}", item.source, item.target)).collect())
    }

    #[test]
    fn a_list_adds_sources() {
        let mut list = tempfile::NamedTempFile::new().unwrap();
        list.write_all(b"x/a\nnas:b\n").unwrap();
        let path = list.path().to_str().unwrap();
        let plan = put(&["--files-from", path, "c", "sealift://nas/in/"]).unwrap();
        assert_eq!(plan, ["c>in/c", "x/a>in/a", "nas:b>in/nas:b"]);
        let error = put(&["--files-from", path, "sealift://nas/in"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let error = put(&["--files-from", "/nonexistent/list", "sealift://nas/in/"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }

    #[test]
    fn the_output_of_a_command_is_a_stream() {
        assert_eq!(put(&["--stdin-from-command", "sealift://nas/db", "--", "pg_dump"]).unwrap(), ["->db"]);
        assert_eq!(put(&["--stdin-from-command", "--", "sealift://nas/db", "--", "a", "-b"]).unwrap(), ["->db"]);
        assert!(put(&["--stdin-from-command", "sealift://nas/db/", "--", "pg_dump"]).is_err());
        assert!(put(&["--stdin-from-command", "a", "sealift://nas/db", "--", "pg_dump"]).is_err());
        // Without the flag what follows is no command.
        assert!(put(&["sealift://nas/db", "--", "pg_dump"]).is_err());
    }

    #[test]
    fn names_may_begin_with_a_dash() {
        assert_eq!(put(&["--", "-x", "sealift://nas/in/"]).unwrap(), ["-x>in/-x"]);
    }
}
