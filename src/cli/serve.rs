//! `sealift serve`: checks everything, listens, and runs until it is told to stop.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::args::{AccessArgs, ServeArgs};
use super::notify::Notifier;
use super::rules::{Loaded, Sources, refuse_beneath};
use crate::access::Access;
use crate::confine;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::{self, GROUP_LEN, MIB};
use crate::protocol::Rights;
use crate::server::audit::Audit;
use crate::server::{CrowdLimits, InviteOptions, Server, ServerOptions, listen};
use crate::storage::{Store, StoreOptions};
use crate::tls::SigningKey;

/// Runs the command. `listening on ADDR:PORT` goes to `out`, once it accepts.
///
/// # Errors
/// Whatever keeps it from starting, as a usage error: nothing was tried.
pub fn run(args: &ServeArgs, out: &mut dyn Write) -> Result<()> {
    if args.show_limits {
        return show_limits(args, out);
    }
    logging(args);
    if args.check {
        return check(args, out).map_err(|error| error.with_kind(ErrorKind::Usage));
    }
    let (prepared, plan) = prepare(args).map_err(|error| error.with_kind(ErrorKind::Usage))?;
    let notifier = Notifier::open();
    // Before any other thread: each inherits what holds for this one.
    restrict(args, &plan);
    // It accepts and waits for signals; connections have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .while_doing(|| "start the runtime".into())?;
    runtime.block_on(serve(args, prepared, &notifier, out))
}

/// Confines the process, unless it was told not to, and says what holds.
fn restrict(args: &ServeArgs, plan: &confine::Plan) {
    if args.no_sandbox {
        warn!("not confined (--no-sandbox): a flaw in this server could reach all that its user can");
        return;
    }
    let confined = confine::confine(plan);
    info!("{confined}");
    for warning in &confined.warnings {
        warn!("{warning}");
    }
}

/// Looks at everything that the arguments name and changes nothing, so that it can be done beside the server that
/// it is about.
fn check(args: &ServeArgs, out: &mut dyn Write) -> Result<()> {
    check_counts(args)?;
    let sources = Sources::new(args)?;
    let Loaded { tls, access, .. } = sources.load()?;
    let root = sources.root();
    memory(args)?;
    for grant in access.grants() {
        let what = || format!("the home of `{}`", grant.name);
        Store::check_directory(root, &grant.home).map_err(|error| error.context(what()))?;
    }
    if let Some(file) = &args.audit {
        refuse_log_beneath(root, file)?;
    }
    let holder = Store::check_served(root, std::env::home_dir().as_deref())?;
    for warning in tls.warnings(time::OffsetDateTime::now_utc()) {
        warn!("{warning}");
    }
    for address in &args.listen {
        match std::net::TcpListener::bind(address) {
            Ok(_) => {}
            // It is most likely the server that has the root.
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && holder.is_some() => {}
            Err(error) => return Err(Error::io(format!("listen on {address}"), error)),
        }
    }
    match holder {
        Some(holder) => print(out, &format!("everything is in order; {} is served now by {holder}\n", root.display())),
        None => print(out, "everything is in order\n"),
    }
}

/// Refuses what would let nobody in, or do nothing.
fn check_counts(args: &ServeArgs) -> Result<()> {
    if args.per_address == 0 || args.per_principal == 0 {
        return Err(usage("--per-address and --per-principal must be at least 1"));
    }
    if args.disk_threads == 0 {
        return Err(usage("--disk-threads must be at least 1"));
    }
    Ok(())
}

/// All that a server is made of, and where its rules come from.
struct Prepared {
    options: ServerOptions,
    sources: Sources,
    loaded: Loaded,
}

/// Reads and checks everything that the arguments name.
fn prepare(args: &ServeArgs) -> Result<(Prepared, confine::Plan)> {
    check_counts(args)?;
    let sources = Sources::new(args)?;
    let loaded = sources.load()?;
    let memory = memory(args)?;
    let mut store = StoreOptions { home: std::env::home_dir(), sync_each: args.sync_each, ..StoreOptions::default() };
    store.invites = args.access.invites;
    store.keep_partial.age = args.keep_partial;
    store.keep_partial.bytes = args.keep_partial_max;
    if let Some(mode) = args.file_mode {
        store.file_mode = mode;
    }
    if let Some(mode) = args.dir_mode {
        store.directory_mode = mode;
    }
    if args.access.allow_special_modes {
        store.allow_special_modes();
    }
    let root = sources.root().to_path_buf();
    let store = Store::open_served(&root, store)?;
    let mut plan = sources.plan(&loaded);
    let receipt_key = Arc::new(receipt_key(&store)?);
    let audit = match &args.audit {
        Some(file) => {
            refuse_log_beneath(&root, file)?;
            plan.log_beside(file);
            Some(Audit::open(file, Arc::clone(&receipt_key))?)
        }
        None => None,
    };
    let listeners = args.listen.iter().map(|&address| listen(address)).collect::<Result<_>>()?;
    let (per_address, per_principal) = (args.per_address, args.per_principal);
    let half_open_per_address = half_open_of(per_address);
    let public = args.access.public.as_ref().map(|public| format!("{}:{}", bracketed(public.host()), public.port()));
    let invites = args.access.invites.then_some(InviteOptions { public });
    let crowd = CrowdLimits { per_address, half_open_per_address, per_principal };
    let disk_threads = args.disk_threads;
    // What the control group allows can't be read any more by a confined process. Each has at least two of the
    // threads for the disk, as far as there are two.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min((disk_threads / 2).max(1));
    let options = ServerOptions {
        store,
        tls: loaded.tls.clone(),
        access: loaded.access.clone(),
        receipt_key: Some(receipt_key),
        audit,
        invites,
        listeners,
        memory,
        crowd,
        threads,
        disk_threads,
        congestion: args.cc.clone().unwrap_or_default(),
        rate: args.bwlimit,
        rate_of_one: args.bwlimit_client,
    };
    Ok((Prepared { options, sources, loaded }, plan))
}

/// A host as it stands before a port.
fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// The name of the key of receipts and of the audit log in the state directory.
const RECEIPT_KEY: &str = "receipt-key.pem";

/// The key that signs receipts: the one that is there, or a new one.
fn receipt_key(store: &Store) -> Result<SigningKey> {
    if let Some(text) = store.state_file(RECEIPT_KEY)? {
        return SigningKey::from_pem(&Zeroizing::new(text), RECEIPT_KEY);
    }
    let (key, text) = SigningKey::generate()?;
    store.make_state_file(RECEIPT_KEY, text.as_bytes())?;
    Ok(key)
}

/// Bytes of buffers.
fn memory(args: &ServeArgs) -> Result<usize> {
    let memory = usize::try_from(args.memory).map_err(|_| usage("--memory is more than this machine can address"))?;
    if memory < 4 * GROUP_LEN {
        return Err(usage("--memory is less than 4M, too little for one transfer"));
    }
    Ok(memory)
}

/// Refuses a log that a client could reach, or replace. It need not be there yet.
fn refuse_log_beneath(root: &Path, file: &Path) -> Result<()> {
    if file.exists() {
        return refuse_beneath(root, file);
    }
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    refuse_beneath(root, directory).map_err(|_| {
        let (file, root) = (file.display(), root.display());
        usage(&format!("{file} lies beneath the root {root}, or in no directory: keep the audit log elsewhere"))
    })
}

async fn serve(args: &ServeArgs, prepared: Prepared, notifier: &Notifier, out: &mut dyn Write) -> Result<()> {
    raise_descriptor_limit();
    let Prepared { options, sources, loaded } = prepared;
    for warning in loaded.tls.warnings(time::OffsetDateTime::now_utc()).iter().chain(options.store.warnings()) {
        warn!("{warning}");
    }
    let pin = loaded.tls.pin();
    let access = loaded.access.clone();
    let receipt_key = options.receipt_key.as_ref().map(|key| key.public());
    let audit = options.audit.clone();
    let server = Server::new(options).map_err(|error| error.with_kind(ErrorKind::Usage))?;
    let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
    // Handlers first: a signal that comes while the line below is read must already drain.
    let mut terminate = signal(SignalKind::terminate()).while_doing(|| "wait for SIGTERM".into())?;
    let mut interrupt = signal(SignalKind::interrupt()).while_doing(|| "wait for SIGINT".into())?;
    let hangup = signal(SignalKind::hangup()).while_doing(|| "wait for SIGHUP".into())?;
    info!("server key {pin}");
    if let Some(key) = receipt_key {
        info!("receipt key {key}");
    }
    say_who_may_what(&args.access, &access);
    for address in server.addresses()? {
        print(out, &format!("listening on {address}\n"))?;
    }
    notifier.ready();
    #[cfg(all(debug_assertions, target_os = "linux"))]
    try_to_escape();
    let signals = async {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("stopping: no new connections; once more to stop at once");
        notifier.stopping();
        drain.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        warn!("stopping at once");
        stop.cancel();
        std::future::pending::<()>().await;
    };
    let turning = async {
        match audit {
            Some(audit) => turn_over_on_hangup(audit).await,
            None => std::future::pending().await,
        }
    };
    let control = server.control();
    tokio::select! {
        result = turning => return result,
        () = server.run(drain.clone(), stop.clone()) => {}
        () = signals => {}
        never = sources.follow(control, loaded, hangup) => match never {},
    }
    info!("stopped");
    Ok(())
}

/// Begins a new file of the audit log on each SIGHUP.
async fn turn_over_on_hangup(audit: Audit) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup()).while_doing(|| "wait for SIGHUP".into())?;
    while hangup.recv().await.is_some() {
        let audit = audit.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || audit.rotate()).await {
            warn!("the audit log goes on in the same file: {error}");
        }
    }
    std::future::pending().await
}

/// The planted hook of the tests: what a server that was taken over would try. In no release build.
#[cfg(all(debug_assertions, target_os = "linux"))]
fn try_to_escape() {
    let variable = |name: &str| std::env::var_os(name);
    if let (Some(file), Some(address)) = (variable("SEALIFT_TEST_ESCAPE"), variable("SEALIFT_TEST_ESCAPE_TO"))
        && let Some(address) = address.to_str().and_then(|address| address.parse().ok())
    {
        for line in confine::try_to_escape(Path::new(&file), address) {
            warn!("{line}");
        }
    }
}

fn say_who_may_what(args: &AccessArgs, access: &Access) {
    let grants = access.grants();
    if args.invites {
        info!("invites are given and taken: who holds one needs no certificate");
    }
    if let Some(file) = &args.policy {
        info!("{} principals by the policy {}", grants.len(), file.display());
        return;
    }
    for grant in grants {
        let rights = access.rights_of(&grant);
        match (grant.name.as_str(), rights) {
            ("anonymous", rights) => warn!("clients without a certificate are let in and may: {rights}"),
            (_, Rights::ALL) => info!("every certificate of the client authority has all rights here"),
            (_, rights) => info!("certificates of the client authority may: {rights}"),
        }
    }
}

fn print(out: &mut dyn Write, text: &str) -> Result<()> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).while_doing(|| "write to standard output".into())
}

/// Each connection is a descriptor: take as many as the machine allows.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}

fn logging(args: &ServeArgs) {
    let level = match (args.quiet, args.verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,sealift={level}"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // What cannot be written is lost: saying so on standard error, which is where it was to go, would end the process.
    let logs = logs.log_internal_errors(false);
    // A second subscriber is only set up by tests that run the command twice in one process.
    let _ = logs.try_init();
}

/// How many of the connections of one address may not have said hello: whoever may have more of them may also make more
/// at the same time.
fn half_open_of(per_address: usize) -> usize {
    per_address.min(limits::HALF_OPEN_PER_ADDRESS_MAX.max(per_address / 8)).min(limits::HALF_OPEN_MAX / 2)
}

fn show_limits(args: &ServeArgs, out: &mut dyn Write) -> Result<()> {
    let seconds = |time: std::time::Duration| format!("{} s", time.as_secs());
    let rows: [(&str, String); 27] = [
        ("connections at once", limits::CONNECTIONS_MAX.to_string()),
        ("connections of one address (--per-address)", args.per_address.to_string()),
        ("connections of one certificate (--per-principal)", args.per_principal.to_string()),
        ("connections that have not said hello", limits::HALF_OPEN_MAX.to_string()),
        ("… of one address", half_open_of(args.per_address).to_string()),
        ("connections that join one client's first", limits::JOINS_MAX.to_string()),
        ("handshake deadline", seconds(limits::HANDSHAKE_TIMEOUT)),
        ("hello deadline", seconds(limits::HELLO_TIMEOUT)),
        ("idle connections end after", seconds(limits::IDLE_TIMEOUT)),
        ("least progress", format!("{} bytes in {}", limits::PROGRESS_LEN_MIN, seconds(limits::PROGRESS_TIMEOUT))),
        ("nothing but words of being at work", seconds(limits::WORKING_TIMEOUT)),
        ("drain on SIGTERM", seconds(limits::SHUTDOWN_DRAIN_TIMEOUT)),
        ("group buffers, all connections (--memory)", format!("{} MiB", args.memory / MIB as u64)),
        ("… of one certificate", format!("{} MiB", args.memory / MIB as u64 / limits::BUFFER_SHARE as u64)),
        ("a buffer that is not filled is written after", seconds(limits::LEASE_TIMEOUT)),
        ("group buffers, one connection", format!("{} MiB", limits::BUFFERS_PER_CONNECTION * GROUP_LEN / MIB)),
        ("unanswered small files, one connection", format!("{} MiB", limits::UNASKED_CONNECTION_MAX / MIB as u64)),
        ("open transfers, one connection", limits::OPEN_TRANSFERS_MAX.to_string()),
        ("… of one certificate", limits::OPEN_PER_PRINCIPAL_MAX.to_string()),
        ("disk threads (--disk-threads)", args.disk_threads.to_string()),
        ("… that hash for one certificate", limits::HASHES_PER_PRINCIPAL_MAX.to_string()),
        ("the disk is looked at every", seconds(limits::STORE_TRIAL_INTERVAL)),
        ("unfinished uploads are kept (--keep-partial)", crate::cli::format::duration(args.keep_partial)),
        (
            "unfinished uploads, all and one principal",
            format!("{} and {}", limits::KEPT_COUNT_MAX, limits::KEPT_COUNT_MAX / limits::KEPT_SHARE),
        ),
        (
            "their bytes (--keep-partial-max)",
            format!(
                "{} and {}",
                crate::cli::format::size(args.keep_partial_max),
                crate::cli::format::size(args.keep_partial_max / limits::KEPT_SHARE as u64)
            ),
        ),
        ("largest file", format!("{} TiB", limits::FILE_SIZE_MAX >> 40)),
        (
            "longest path",
            format!(
                "{} bytes, {} deep, {} a name",
                limits::PATH_LEN_MAX,
                limits::PATH_DEPTH_MAX,
                limits::COMPONENT_LEN_MAX
            ),
        ),
    ];
    for (what, bound) in rows.into_iter().chain(crate::cli::invite::limits_shown()) {
        print(out, &format!("{what:<52}{bound}\n"))?;
    }
    Ok(())
}

fn usage(message: &str) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_have_more_connections_may_make_more_at_the_same_time() {
        for (per_address, half_open) in [(1, 1), (256, 256), (2048, 256), (4096, 512), (8192, 1024), (1 << 20, 1024)] {
            assert_eq!(half_open_of(per_address), half_open, "{per_address}");
        }
    }
}
