//! `sealift get`.

use std::fs::File;
use std::os::fd::AsFd as _;

use crate::cli::args::{ConnectArgs, GetArgs};
use crate::cli::session::{Session, tell_failed};
use crate::cli::sources;
use crate::client::plan::{self, GetDestination};
use crate::client::remote::{Ending, Remote};
use crate::client::{FirstAsks, GetOptions, glob};
use crate::error::{IoContext as _, Result};

/// Bytes that are taken to come of one file. How large it is, only the server knows; but who says over how many
/// connections it is to come says that it is worth them, and they are begun beside the first.
fn expected(args: &GetArgs, to_stream: bool) -> u64 {
    let is_said = args.transfer.pace.streams.is_some();
    if is_said && !args.glob && !args.transfer.dry_run && !to_stream { u64::MAX } else { 0 }
}

/// Runs the command; the answer is the exit code.
///
/// # Errors
/// What is wrong with its arguments.
pub(super) fn run(args: &GetArgs) -> Result<u8> {
    let (named, kind, remote) = sources::get_arguments(args)?;
    let connect = ConnectArgs { named: remote, ..args.connect.clone() };
    let (filter, links) = (args.filters.0.filter()?, args.filters.0.links_there()?);
    let to_stream = named.destination == GetDestination::Stream;
    // Without patterns, what cannot be meant is told before anything is tried.
    let plan = if args.glob {
        None
    } else {
        Some(plan::plan_get(named.endpoint.clone(), named.sources.clone(), kind, &named.destination)?)
    };
    let mut options = GetOptions {
        if_exists: args.transfer.if_exists.into(),
        into_directory: false,
        dry_run: args.transfer.dry_run,
        output: None,
        filter,
        links,
        skips_links: args.glob,
        special_modes: args.filters.0.special_modes(),
        xattrs: args.filters.0.xattrs(),
    };
    let session = Session {
        command: "get",
        connect: &connect,
        pace: Some(&args.transfer.pace),
        endpoint: named.endpoint.clone(),
        data_on_stdout: to_stream,
        has_summary: true,
        expected: expected(args, to_stream),
        first: plan
            .as_ref()
            .map_or_else(FirstAsks::default, |plan| FirstAsks::get(&named.endpoint, &plan.items, &options)),
        receipts: None,
    };
    session.run(async |client| {
        let plan = match plan {
            Some(plan) => plan,
            None => {
                let mut sources = Vec::new();
                for remote in named.sources {
                    if !glob::is_pattern(&remote.path) {
                        sources.push(remote);
                        continue;
                    }
                    match client.expand(&remote.path).await {
                        Ok(paths) => sources.extend(paths.into_iter().map(|path| Remote {
                            endpoint: remote.endpoint.clone(),
                            path,
                            ending: Ending::Name,
                        })),
                        Err(error) => tell_failed(&client, client.events(), remote.path.to_bytes(), error).await?,
                    }
                }
                if sources.is_empty() {
                    return Ok(());
                }
                plan::plan_get(named.endpoint, sources, kind, &named.destination)?
            }
        };
        options.into_directory = plan.into_directory;
        if to_stream {
            let output = std::io::stdout().as_fd().try_clone_to_owned();
            options.output = Some(Box::new(File::from(output.while_doing(|| "open standard output".to_owned())?)));
        }
        client.get(plan.items, options).await
    })
}
