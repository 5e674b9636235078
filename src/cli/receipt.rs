//! `sealift receipt verify`: whether receipts hold, without a server.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::client::receipts::{known_keys, outcome_of, time_of, verify_file};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::Escaped;
use crate::tls::VerifyingKey;

/// The flags of the command.
#[derive(Args, Debug)]
pub struct ReceiptArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ReceiptCommand,
}

/// What can be done with receipts.
#[derive(Subcommand, Debug)]
pub enum ReceiptCommand {
    /// Check receipts that `put --receipts` kept, without a server
    #[command(
        long_about = None,
        after_help = "\
One line per receipt: hash, size, time, who stored it, and where. Exit code 5: one does not hold.

Example:
  sealift receipt verify receipts/*.jsonl"
    )]
    Verify {
        /// Files of receipts
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        /// A server's receipt key as `serve` prints it (repeatable); else those in FILE's folder
        #[arg(long, value_name = "KEY")]
        key: Vec<VerifyingKey>,
    },
}

/// Runs the command; the answer is the exit code.
///
/// # Errors
/// What reading the files can fail with.
pub(super) fn run(args: &ReceiptArgs, out: &mut dyn Write, notes: &mut dyn Write) -> Result<u8> {
    let ReceiptCommand::Verify { files, key } = &args.command;
    let mut wrong = 0_u64;
    for file in files {
        let beside = if key.is_empty() { known_keys(folder_of(file))? } else { Vec::new() };
        let keys = if key.is_empty() { &beside } else { key };
        if keys.is_empty() {
            let message = format!("there are no known keys beside {}: give one with --key", file.display());
            return Err(Error::new(ErrorKind::Usage, message));
        }
        verify_file(file, keys, |number, verified| {
            let written = match verified {
                Ok(statement) => writeln!(
                    out,
                    "{}  {}  {}  {}  {}  {}",
                    statement.root,
                    statement.size,
                    time_of(statement.time),
                    Escaped(statement.principal.as_bytes()),
                    outcome_of(statement.outcome),
                    statement.path
                ),
                Err(error) => {
                    wrong += 1;
                    writeln!(notes, "sealift: {}:{number}: {}", file.display(), error.chain())
                }
            };
            written.while_doing(|| "write the result".into())
        })?;
    }
    Ok(if wrong > 0 { ErrorKind::Mismatch.exit_code() } else { 0 })
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
