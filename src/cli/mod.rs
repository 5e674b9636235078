//! The command line: reads flags and the environment, runs a command, prints, exits.
//!
//! Only this module and `main` print, exit or look at the environment. [`args`] types the flags, [`sources`] turns
//! those of a transfer into a plan, [`certs`] makes certificates, [`trust`] says who is trusted, [`output`] shows what happens, [`mod@format`] writes
//! entries and hashes, [`signals`] listens.

pub mod args;
pub mod certs;
pub mod format;
pub mod output;
pub mod serve;
pub mod signals;
pub mod sources;
pub mod trust;
pub mod values;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::args::{Cli, Command};
use crate::client::plan;
use crate::error::{Error, ErrorKind, Result};

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
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
fn run(command: Command) -> Result<u8> {
    match command {
        Command::Certs(args) => certs::run(*args, &mut io::stdout(), &mut io::stderr()).map(|()| 0),
        Command::Serve(args) => serve::run(&args, &mut io::stdout()).map(|()| 0),
        Command::Put(args) => sources::put_plan(&args).and_then(|_| Err(not_built("put"))),
        Command::Get(args) => sources::get_arguments(&args).and_then(|_| Err(not_built("get"))),
        Command::Ls(args) => plan::on_one_server(&args.paths).and_then(|_| Err(not_built("ls"))),
        Command::Stat(args) => plan::on_one_server(&args.paths).and_then(|_| Err(not_built("stat"))),
        Command::Hash(args) => plan::on_one_server(&args.paths).and_then(|_| Err(not_built("hash"))),
        Command::Rm(args) => plan::plan_remove(&args.paths).and_then(|_| Err(not_built("rm"))),
        Command::Mv(args) => plan::plan_move(&args.paths).and_then(|_| Err(not_built("mv"))),
        Command::Mkdir(args) => plan::on_one_server(&args.paths).and_then(|_| Err(not_built("mkdir"))),
    }
}

fn not_built(command: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{command}: not part of this build"))
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
/// Every other failure, as [`ErrorKind::Io`]: a closed pipe here is no lost connection.
pub fn after_output(written: io::Result<()>) -> Result<std::ops::ControlFlow<()>> {
    match written {
        Ok(()) => Ok(std::ops::ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(std::ops::ControlFlow::Break(())),
        Err(error) => Err(Error::io("write standard output", error)),
    }
}
