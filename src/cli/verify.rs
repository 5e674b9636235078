//! `sealift verify`.

use crate::cli::args::VerifyArgs;
use crate::cli::session::Session;
use crate::cli::sources;
use crate::client::FirstAsks;
use crate::error::Result;

/// Runs the command; the answer is the exit code.
///
/// # Errors
/// What is wrong with its arguments.
pub(super) fn run(args: &VerifyArgs) -> Result<u8> {
    let plan = sources::verify_plan(args)?;
    let session = Session {
        expected: 0,
        first: FirstAsks::default(),
        receipts: None,
        command: "verify",
        connect: &args.connect,
        pace: None,
        endpoint: plan.endpoint.clone(),
        data_on_stdout: false,
        has_summary: true,
    };
    session.run(async |client| client.verify(plan.items).await)
}
