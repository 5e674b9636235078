//! The command line: reads flags and the environment, runs a command, prints, exits.
//!
//! Only this module and `main` print, exit or look at the environment. [`args`] types the flags, [`sources`] turns
//! those of a transfer into a plan, [`certs`] makes certificates, [`trust`] says who is trusted, [`user`] edits policies,
//! `rules` follows them, `put`, `get`, `sync`, `verify` and `ops` run over one `session`, [`filters`] types what is left
//! out, `scrub` and `uploads` look at a disk here, [`output`] shows what happens, [`mod@format`] writes entries and
//! hashes, [`signals`] listens, [`memory`] sees to what the allocator keeps, and [`descriptors`] to room for open files.

pub mod args;
pub mod audit;
pub mod bench;
pub mod certs;
pub mod config;
pub mod descriptors;
pub mod doctor;
pub mod filters;
pub mod format;
pub mod generate;
mod get;
pub mod invite;
pub mod memory;
pub mod names;
mod notify;
mod ops;
pub mod output;
mod put;
pub mod receipt;
pub mod redeem;
pub mod remotes;
mod rules;
mod screen;
mod scrub;
mod secret;
pub mod serve;
mod session;
pub mod signals;
pub mod sources;
mod sync;
pub mod trust;
mod uploads;
pub mod user;
pub mod values;
mod verify;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::args::{Cli, Command};
use crate::error::{Error, Result};

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    memory::keep_more();
    descriptors::make_room();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // When even this cannot be printed, the exit code is all that is left to say.
            let _ = error.print();
            // 0 for help and version, 2 for everything else.
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            print_error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// Runs one command; the answer is the exit code.
fn run(mut command: Command) -> Result<u8> {
    redeem::resolve(&mut command)?;
    names::resolve(&mut command)?;
    match command {
        Command::Certs(args) => certs::run(*args, &mut io::stdout(), &mut io::stderr()).map(|()| 0),
        Command::Serve(args) => serve::run(&args, &mut io::stdout()).map(|()| 0),
        Command::Put(args) => put::run(&args),
        Command::Get(args) => get::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Sync(args) => sync::run(&args),
        Command::Invite(args) => invite::run(&args),
        Command::Ls(args) => ops::ls(&args),
        Command::Stat(args) => ops::stat(&args),
        Command::Hash(args) => ops::hash(&args),
        Command::Rm(args) => ops::rm(&args),
        Command::Mv(args) => ops::mv(&args),
        Command::Mkdir(args) => ops::mkdir(&args),
        Command::Uploads(args) => uploads::run(&args, &mut io::stdout()).map(|()| 0),
        Command::Receipt(args) => receipt::run(&args, &mut io::stdout(), &mut io::stderr()),
        Command::Audit(args) => audit::run(&args, &mut io::stdout(), &mut io::stderr()),
        Command::Remote(args) => remotes::run(&args).map(|()| 0),
        Command::Doctor(args) => doctor::run(&args),
        Command::Generate(args) => generate::run(&args).map(|()| 0),
        Command::User(args) => user::user(&args, &mut io::stdout()).map(|()| 0),
        Command::Grant(args) => user::grant(&args, &mut io::stdout()).map(|()| 0),
        Command::Scrub(args) => scrub::run(&args),
        Command::Bench(args) => bench::run(&args, &mut io::stdout()).map(|()| 0),
    }
}

/// Prints an error and its causes, once, on one line.
pub fn print_error(error: &Error) {
    // When standard error is closed, the exit code is all that is left to say.
    let _ = writeln!(io::stderr(), "sealift: {}", error.chain());
}

/// What becomes of a failed write to standard output. A reader that has seen enough (`| head`) is no failure of a
/// listing: nothing is left to do then.
///
/// # Errors
/// Every other failure, as [`Io`](crate::ErrorKind::Io): a closed pipe here is no lost connection.
pub fn after_output(written: io::Result<()>) -> Result<std::ops::ControlFlow<()>> {
    match written {
        Ok(()) => Ok(std::ops::ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(std::ops::ControlFlow::Break(())),
        Err(error) => Err(Error::io("write standard output", error)),
    }
}
