//! `sealift serve`: checks everything, listens, and runs until it is told to stop.

use std::io::Write;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::args::{AccessArgs, ServeArgs};
use super::rules::{Loaded, Sources};
use crate::access::Access;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::{self, GROUP_LEN, MIB};
use crate::protocol::Rights;
use crate::server::{Server, ServerOptions};
use crate::storage::{Store, StoreOptions};

/// Runs the command. `listening on ADDR:PORT` goes to `out`, once it accepts.
///
/// # Errors
/// Whatever keeps it from starting, as a usage error: nothing was tried.
pub fn run(args: &ServeArgs, out: &mut dyn Write) -> Result<()> {
    if args.show_limits {
        return show_limits(args, out);
    }
    logging(args);
    let prepared = prepare(args).map_err(|error| error.with_kind(ErrorKind::Usage))?;
    // It accepts and waits for signals; connections have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .while_doing(|| "start the runtime".into())?;
    runtime.block_on(serve(args, prepared, out))
}

/// Reads and checks everything that the arguments name.
fn prepare(args: &ServeArgs) -> Result<(Store, Sources, Loaded)> {
    let sources = Sources::new(args)?;
    let loaded = sources.load()?;
    memory(args)?;
    let mut store = StoreOptions { home: std::env::home_dir(), sync_each: args.sync_each, ..StoreOptions::default() };
    if let Some(mode) = args.file_mode {
        store.file_mode = mode;
    }
    if let Some(mode) = args.dir_mode {
        store.directory_mode = mode;
    }
    let store = Store::open_served(sources.root(), store)?;
    Ok((store, sources, loaded))
}

/// Bytes of buffers.
fn memory(args: &ServeArgs) -> Result<usize> {
    let memory = usize::try_from(args.memory).map_err(|_| usage("--memory is more than this machine can address"))?;
    if memory < 4 * GROUP_LEN {
        return Err(usage("--memory is less than 4M, too little for one transfer"));
    }
    Ok(memory)
}

async fn serve(args: &ServeArgs, prepared: (Store, Sources, Loaded), out: &mut dyn Write) -> Result<()> {
    raise_descriptor_limit();
    let (store, sources, loaded) = prepared;
    for warning in loaded.tls.warnings(time::OffsetDateTime::now_utc()).iter().chain(store.warnings()) {
        warn!("{warning}");
    }
    let pin = loaded.tls.pin();
    let access = loaded.access.clone();
    let options = ServerOptions {
        store,
        tls: loaded.tls.clone(),
        access: access.clone(),
        listen: args.listen.clone(),
        memory: memory(args)?,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        congestion: args.cc.clone().unwrap_or_default(),
        rate: args.bwlimit,
        rate_of_one: args.bwlimit_client,
    };
    let server = Server::bind(options).map_err(|error| error.with_kind(ErrorKind::Usage))?;
    if args.check {
        return print(out, "everything is in order\n");
    }
    let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
    // Handlers first: a signal that comes while the line below is read must already drain.
    let mut terminate = signal(SignalKind::terminate()).while_doing(|| "wait for SIGTERM".into())?;
    let mut interrupt = signal(SignalKind::interrupt()).while_doing(|| "wait for SIGINT".into())?;
    let hangup = signal(SignalKind::hangup()).while_doing(|| "wait for SIGHUP".into())?;
    info!("server key {pin}");
    say_who_may_what(&args.access, &access);
    for address in server.addresses()? {
        print(out, &format!("listening on {address}\n"))?;
    }
    // Not run by systemd, or its socket is gone: either way the server serves.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let signals = async {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("stopping: no new connections; once more to stop at once");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        drain.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        warn!("stopping at once");
        stop.cancel();
        std::future::pending::<()>().await;
    };
    let control = server.control();
    tokio::select! {
        () = server.run(drain.clone(), stop.clone()) => {}
        () = signals => {}
        never = sources.follow(control, loaded, hangup) => match never {},
    }
    info!("stopped");
    Ok(())
}

fn say_who_may_what(args: &AccessArgs, access: &Access) {
    let grants = access.grants();
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
    // A second subscriber is only set up by tests that run the command twice in one process.
    let _ = logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init();
}

fn show_limits(args: &ServeArgs, out: &mut dyn Write) -> Result<()> {
    let seconds = |time: std::time::Duration| format!("{} s", time.as_secs());
    let rows: [(&str, String); 14] = [
        ("connections at once", limits::CONNECTIONS_MAX.to_string()),
        ("connections that have not said hello", limits::HALF_OPEN_MAX.to_string()),
        ("handshake deadline", seconds(limits::HANDSHAKE_TIMEOUT)),
        ("hello deadline", seconds(limits::HELLO_TIMEOUT)),
        ("idle connections end after", seconds(limits::IDLE_TIMEOUT)),
        ("least progress", format!("{} bytes in {}", limits::PROGRESS_LEN_MIN, seconds(limits::PROGRESS_TIMEOUT))),
        ("drain on SIGTERM", seconds(limits::SHUTDOWN_DRAIN_TIMEOUT)),
        ("group buffers, all connections (--memory)", format!("{} MiB", args.memory / MIB as u64)),
        ("group buffers, one connection", format!("{} MiB", limits::BUFFERS_PER_CONNECTION * GROUP_LEN / MIB)),
        ("unanswered small files, one connection", format!("{} MiB", limits::UNASKED_CONNECTION_MAX / MIB as u64)),
        ("open transfers, one connection", limits::OPEN_TRANSFERS_MAX.to_string()),
        ("disk threads", limits::BLOCKING_THREADS_MAX.to_string()),
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
    for (what, bound) in rows {
        print(out, &format!("{what:<44}{bound}\n"))?;
    }
    Ok(())
}

fn usage(message: &str) -> Error {
    Error::new(ErrorKind::Usage, message)
}
