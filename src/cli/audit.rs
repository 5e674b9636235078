//! `sealift audit verify`: whether an audit log is whole and unchanged.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::audit::{Chain, Verifier};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::tls::VerifyingKey;

/// Bytes of one line that are looked at; a server writes none that is nearly as long.
const LINE_LEN_MAX: u64 = 1 << 20;

/// The flags of the command.
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: AuditCommand,
}

/// What can be done with an audit log.
#[derive(Subcommand, Debug)]
pub enum AuditCommand {
    /// Find every changed, missing, moved or cut-off line of an audit log
    #[command(
        long_about = None,
        after_help = "\
Prints the head of the log. Keep it elsewhere: given as --head later, it shows that nothing before
it was cut off or written anew. Exit code 5: the log is not as it was written.

Example:
  sealift audit verify --key ed25519:... /var/log/sealift/audit.jsonl*"
    )]
    Verify {
        /// The files of the log, in any order
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        /// A head that the log had, as NUMBER:HASH: it must still have it
        #[arg(long, value_name = "HEAD")]
        head: Option<Chain>,
        /// The server's receipt key as `serve` prints it (repeatable); else those in the log
        #[arg(long, value_name = "KEY")]
        key: Vec<VerifyingKey>,
    },
}

/// Runs the command; the answer is the exit code.
///
/// # Errors
/// What reading the files can fail with.
pub(super) fn run(args: &AuditArgs, out: &mut dyn Write, notes: &mut dyn Write) -> Result<u8> {
    let AuditCommand::Verify { files, head, key } = &args.command;
    let mut ordered = Vec::with_capacity(files.len());
    for file in files {
        let (line, _) = read_line(&mut open(file)?, file)?.unwrap_or_default();
        // One whose first line can't be read goes first: what is wrong with it is told there.
        ordered.push((Chain::after(&line).map_or(0, |chain| chain.seq), file));
    }
    ordered.sort();
    let mut verifier = Verifier::new(key, *head);
    for (index, (_, path)) in ordered.iter().enumerate() {
        let mut reader = open(path)?;
        let mut number = 0;
        while let Some((line, whole)) = read_line(&mut reader, path)? {
            number += 1;
            verifier.line(index, number, &line, whole);
        }
    }
    let report = verifier.finish();
    let mut wrong = !report.problems.is_empty();
    let writing = || "write the result".to_owned();
    for problem in &report.problems {
        let file = ordered[problem.file].1.display();
        writeln!(notes, "sealift: {file}:{}: {}", problem.line, problem.what).while_doing(writing)?;
    }
    if let Some(head) = head.filter(|_| !report.head_found) {
        wrong = true;
        writeln!(notes, "sealift: the log does not hold the head {head}: it was cut off, or written anew")
            .while_doing(writing)?;
    }
    let since = if report.first > 1 { format!(", from line {} on", report.first) } else { String::new() };
    writeln!(out, "{} lines{since}, signed up to line {}", report.lines, report.signed).while_doing(writing)?;
    for known in &report.keys {
        let whose = if key.is_empty() { " (named by the log itself)" } else { "" };
        writeln!(out, "signed by {known}{whose}").while_doing(writing)?;
    }
    writeln!(out, "head {}", report.end).while_doing(writing)?;
    Ok(if wrong { ErrorKind::Mismatch.exit_code() } else { 0 })
}

fn open(path: &Path) -> Result<BufReader<File>> {
    Ok(BufReader::new(File::open(path).while_doing(|| format!("read {}", path.display()))?))
}

/// The next line without its end, and whether it had one.
fn read_line(reader: &mut BufReader<File>, path: &Path) -> Result<Option<(Vec<u8>, bool)>> {
    let mut line = Vec::new();
    let read = reader.take(LINE_LEN_MAX).read_until(b'\n', &mut line);
    if read.while_doing(|| format!("read {}", path.display()))? == 0 {
        return Ok(None);
    }
    if line.len() as u64 == LINE_LEN_MAX {
        let message =
            format!("{} holds a line longer than {LINE_LEN_MAX} bytes: it is not an audit log", path.display());
        return Err(Error::new(ErrorKind::Mismatch, message));
    }
    let whole = line.last() == Some(&b'\n');
    if whole {
        line.pop();
    }
    Ok(Some((line, whole)))
}
