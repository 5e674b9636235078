//! The `sealift` command.

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sealift::cli::certs;

#[derive(Parser)]
#[command(name = "sealift", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Certs(certs::CertsArgs),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Certs(args) => certs::run(args, &mut io::stdout(), &mut io::stderr()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sealift: {}", error.chain());
            ExitCode::from(error.kind().exit_code())
        }
    }
}
