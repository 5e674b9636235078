//! `sealift put`.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::cli::args::PutArgs;
use crate::cli::session::Session;
use crate::cli::sources;
use crate::client::plan::{PutItem, PutPlan, PutSource};
use crate::client::receipts::Receipts;
use crate::client::{FirstAsks, PutOptions, StreamSource};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::Escaped;

/// Runs the command; the answer is the exit code.
///
/// # Errors
/// What is wrong with its arguments.
pub(super) fn run(args: &PutArgs) -> Result<u8> {
    let plan = sources::put_plan(args)?;
    if args.atomic {
        check_atomic(&plan)?;
    }
    let (filter, links) = (args.filters.0.filter()?, args.filters.0.links());
    let receipts = match &args.receipts {
        Some(folder) if !args.transfer.dry_run => Some(Arc::new(Receipts::open(folder, plan.endpoint.to_string())?)),
        _ => None,
    };
    let book = receipts.clone();
    let mut options = PutOptions {
        if_exists: args.transfer.if_exists.into(),
        into_directory: plan.into_directory,
        remove_source: args.remove_source,
        dry_run: args.transfer.dry_run,
        expect_size: args.expect_size,
        expect_root: args.expect_b3,
        stream: None,
        filter,
        links,
        special_modes: args.filters.0.special_modes(),
        xattrs: args.filters.0.xattrs(),
    };
    let session = Session {
        command: "put",
        connect: &args.connect,
        pace: Some(&args.transfer.pace),
        endpoint: plan.endpoint.clone(),
        data_on_stdout: false,
        has_summary: true,
        expected: if args.transfer.dry_run { 0 } else { largest(&plan) },
        first: FirstAsks::put(&plan.items, &options),
        receipts,
    };
    session.run(async |client| {
        // Only now: a command whose output nobody would take is not run.
        let stream = match args.command()? {
            Some((_, command)) if !args.transfer.dry_run => Some(command_stream(command)?),
            _ if plan.items.iter().any(|item| item.source == PutSource::Stream) => Some(standard_input()?),
            _ => None,
        };
        options.stream = match stream {
            Some(stream) if args.spool => Some(StreamSource { spool: Some(spool_file()?), ..stream }),
            stream => stream,
        };
        let mut items = plan.items;
        let result = match (args.atomic, items.pop()) {
            (true, Some(item)) => Box::pin(client.put_atomic(item, options)).await,
            (_, item) => {
                items.extend(item);
                client.put(items, options).await
            }
        };
        let kept = book.map_or(Ok(()), |book| book.sync());
        result.and(kept)
    })
}

/// Bytes of the largest file that was named. What lies in directories is found later.
fn largest(plan: &PutPlan) -> u64 {
    let size = |item: &PutItem| match &item.source {
        PutSource::Local(path) => path.metadata().ok().filter(Metadata::is_file).map(|metadata| metadata.len()),
        PutSource::Stream => None,
    };
    plan.items.iter().filter_map(size).max().unwrap_or(0)
}

/// Whether this is something that can take the place of another as a whole.
fn check_atomic(plan: &PutPlan) -> Result<()> {
    let refuse = |text: String| Err(Error::new(ErrorKind::Usage, text));
    let [PutItem { source: PutSource::Local(path), target }] = plan.items.as_slice() else {
        return refuse("--atomic takes one directory and its destination".to_owned());
    };
    if target.is_root() {
        let text = "the root of a server cannot be replaced as a whole (--atomic): name a directory in it";
        return refuse(text.to_owned());
    }
    if !path.is_dir() {
        let shown = Escaped(path.as_os_str().as_bytes());
        return refuse(format!("`{shown}` is no directory: a single file is there all at once without --atomic"));
    }
    Ok(())
}

fn standard_input() -> Result<StreamSource> {
    // A handle of its own is read in large blocks; the shared one has a buffer in between.
    let input = std::io::stdin().as_fd().try_clone_to_owned().while_doing(|| "open standard input".to_owned())?;
    let (name, reader) = ("standard input".to_owned(), Box::new(File::from(input)));
    Ok(StreamSource { name, reader, check: Box::new(|| Ok(())), spool: None })
}

/// A file without a name in the directory for temporary files: it is gone with this process.
fn spool_file() -> Result<File> {
    let directory = std::env::temp_dir();
    let what = || format!("make a temporary file in `{}`", Escaped(directory.as_os_str().as_bytes()));
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(&directory, flags, Mode::RUSR | Mode::WUSR).while_doing(what)?))
}

/// A command that is ended when nobody takes its output any more.
struct Running {
    child: Child,
    shown: String,
}

impl Running {
    /// Waits for its end, after that of its output.
    fn succeed(mut self) -> Result<()> {
        let status = self.child.wait().while_doing(|| format!("wait for `{}`", self.shown))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Io, format!("`{}` failed ({status}), so nothing is stored", self.shown)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended by itself is all the better.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command_stream(command: &[OsString]) -> Result<StreamSource> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::new(ErrorKind::Usage, "--stdin-from-command needs a command"));
    };
    let shown = Escaped(program.as_bytes()).to_string();
    let mut child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .while_doing(|| format!("run `{shown}`"))?;
    let output = child.stdout.take();
    let running = Running { child, shown: shown.clone() };
    let Some(output) = output else {
        return Err(Error::new(ErrorKind::Internal, "a command without its output"));
    };
    let check = Box::new(move || running.succeed());
    Ok(StreamSource { name: shown, reader: Box::new(output), check, spool: None })
}
