//! `sealift sync`.

use crate::cli::args::SyncArgs;
use crate::cli::session::Session;
use crate::client::{Direction, FirstAsks, SyncOptions, SyncPlan};
use crate::error::{Error, ErrorKind, Result};

/// Runs the command; the answer is the exit code.
///
/// # Errors
/// What is wrong with its arguments.
pub(super) fn run(args: &SyncArgs) -> Result<u8> {
    let plan = SyncPlan::parse(&args.source, &args.destination)?;
    if args.atomic && plan.direction == Direction::Up && plan.remote.is_root() {
        let text = "the root of a server cannot be replaced as a whole (--atomic): name a directory in it";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let links = match plan.direction {
        Direction::Up => args.filters.links(),
        Direction::Down => args.filters.links_there()?,
    };
    let options = SyncOptions {
        filter: args.filters.filter()?,
        links,
        checksum: args.checksum,
        delete: args.delete || args.delete_excluded,
        delete_excluded: args.delete_excluded,
        delete_max: args.max_delete,
        dry_run: args.dry_run,
        atomic: args.atomic,
        special_modes: args.filters.special_modes(),
        xattrs: args.filters.xattrs(),
    };
    let session = Session {
        command: "sync",
        connect: &args.connect,
        pace: Some(&args.pace.0),
        expected: 0,
        first: FirstAsks::default(),
        receipts: None,
        endpoint: plan.endpoint.clone(),
        data_on_stdout: false,
        has_summary: true,
    };
    session.run(async |client| Box::pin(client.sync(plan, options)).await)
}
