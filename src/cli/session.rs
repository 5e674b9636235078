//! What every command that connects has in common: who is trusted, one runtime, one reporter, signals, the exit code.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::args::{ConnectArgs, PaceArgs};
use crate::cli::names::Named;
use crate::cli::output::{Detail, Ending, Reader, Reporter};
use crate::cli::redeem::Run;
use crate::cli::signals::{LastResort, Signals};
use crate::cli::{print_error, secret, sources, trust};
use crate::client::event::{self, Event};
use crate::client::receipts::Receipts;
use crate::client::remote::Endpoint;
use crate::client::{Client, ClientOptions, FirstAsks};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::BLOCKING_THREADS_MAX;
use crate::protocol::Bytes16;
use crate::tls::{self, ClientTls, is_wrong_pin};

/// How long what was interrupted may take to clean up behind itself.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// What whoever types the link of an invite as an argument is told.
const VISIBLE: &str = "the link on the command line can be read by everybody on this machine while this runs, and stays \
                       in the shell's history: give it with --invite (asks for it), --invite-file or SEALIFT_INVITE";

/// A command that connects to one server.
pub(super) struct Session<'a> {
    pub(super) command: &'static str,
    pub(super) connect: &'a ConnectArgs,
    /// How connections are used, if content is moved.
    pub(super) pace: Option<&'a PaceArgs>,
    pub(super) endpoint: Endpoint,
    /// Whether standard output carries data.
    pub(super) data_on_stdout: bool,
    /// Whether counts at the end say more than what was printed.
    pub(super) has_summary: bool,
    /// Bytes of the largest file that is to be moved, as far as that is known.
    pub(super) expected: u64,
    /// What it begins with, as far as that is known.
    pub(super) first: FirstAsks,
    /// Where receipts are kept, if they are asked for.
    pub(super) receipts: Option<Arc<Receipts>>,
}

impl Session<'_> {
    /// Connects and does `work`. The answer is the exit code; failures are printed by then.
    ///
    /// # Errors
    /// What is wrong with flags and files before anything is tried.
    pub(super) fn run(self, work: impl AsyncFnOnce(Client) -> Result<()>) -> Result<u8> {
        let named = self.connect.named.as_ref();
        let invited = self.connect.invited.as_ref();
        let trusted = match invited {
            Some(received) => tls::ClientOptions { pins: vec![received.link.pin], ..tls::ClientOptions::default() },
            None => self.connect.trust.resolve(trust::environment, named.map(|named| &named.profile))?,
        };
        let tls = ClientTls::load(&trusted).map_err(|error| error.with_kind(ErrorKind::Usage))?;
        let (mut detail, reader) = sources::output_of(self.connect, self.data_on_stdout);
        if !self.has_summary && reader == Reader::Person && detail == Detail::Normal {
            detail = Detail::Quiet;
        }
        // One thread for the protocol: its steps wake one another, and reading, hashing and writing have others.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("sealift")
            .build()
            .while_doing(|| "start the runtime".to_owned())?;
        let (events, receiver) = event::channel();
        let reporter = Reporter::new(self.command, detail, reader);
        let watcher = std::thread::Builder::new()
            .name("reporter".to_owned())
            .spawn(move || reporter.watch(receiver))
            .while_doing(|| "start a thread for the output".to_owned())?;
        let run = invited.map(|received| Run::begin(received.link.id())).transpose()?;
        let invite = invited.zip(run.as_ref()).map(|(received, run)| run.redemption(&received.link));
        let is_visible = invited.is_some_and(|received| received.is_visible);
        let options = ClientOptions {
            invite,
            timeout: self.connect.timeout(trust::environment)?,
            receipts: self.receipts,
            expected: self.expected,
            first: self.first,
            streams: self.connect.streams(self.pace.and_then(|pace| pace.streams), trust::environment)?,
            congestion: self.pace.and_then(|pace| pace.cc.clone()).unwrap_or_default(),
            rate: self.pace.and_then(|pace| pace.bwlimit),
            resume_secret: (matches!(self.command, "put" | "sync") && trusted.certificate.is_none())
                .then(secret::load)
                .flatten()
                .map(Bytes16),
            ..ClientOptions::new(self.endpoint, tls)
        };
        let last_resort = LastResort::begin()?;
        let ending = runtime.block_on(async {
            let mut signals = match Signals::listen() {
                Ok(signals) => signals,
                Err(error) => return Ending::Failed(error),
            };
            let work = async {
                if is_visible {
                    events.tell(Event::Warning(VISIBLE.to_owned())).await;
                }
                let client = Client::connect(options, events).await.map_err(|error| explain(error, named))?;
                let result = work(client.clone()).await;
                client.events().tell(Event::Waited(Box::new(client.waited()))).await;
                if invited.is_none() || result.is_ok() {
                    client.close().await;
                }
                // Otherwise the connection is cut: a run that is closed in order is over, and this one may go on.
                result
            };
            tokio::select! {
                signal = signals.next() => Ending::Interrupted(signal),
                result = work => result.map_or_else(Ending::Failed, |()| Ending::Finished),
            }
        });
        // What was cut short drops its staging files now.
        last_resort.allow(CLEAN_UP_TIMEOUT);
        runtime.shutdown_timeout(CLEAN_UP_TIMEOUT);
        last_resort.allow(Duration::ZERO);
        let Ok(reporter) = watcher.join() else {
            return Err(Error::new(ErrorKind::Internal, "the thread that shows progress failed"));
        };
        // One that was cut may be gone on with; one that is refused is over.
        let is_over = match &ending {
            Ending::Finished => true,
            Ending::Failed(error) => matches!(error.kind(), ErrorKind::Rights | ErrorKind::Limit | ErrorKind::Trust),
            Ending::Interrupted(_) => false,
        };
        if let Some(run) = run.filter(|_| is_over) {
            run.end();
        }
        let code = reporter.finish(&ending);
        if let Ending::Failed(error) = &ending
            && reader == Reader::Person
        {
            print_error(error);
        }
        Ok(code)
    }
}

/// Says of a key that is another one than is remembered what the person can do about it.
pub(super) fn explain(error: Error, named: Option<&Named>) -> Error {
    let Some(named) = named.filter(|_| is_wrong_pin(&error)) else { return error };
    let text = format!(
        "{}; its key is not the one that {} remembers for `{}`: if it was changed on purpose, `sealift remote add \
         --replace {} {}` takes the new one",
        error.chain(),
        named.config.display(),
        named.name,
        named.name,
        named.profile.address
    );
    Error::new(error.kind(), text)
}

/// Tells that something failed, and goes on.
pub(super) async fn tell_failed(client: &Client, events: &event::Events, name: Vec<u8>, error: Error) -> Result<()> {
    client.check_alive()?;
    events.tell(Event::Failed { item: None, name, error }).await;
    Ok(())
}

/// Prints to standard output. Who reads it may stop at any time (`| head`): then there is nothing left to do.
///
/// # Errors
/// `Io` when it cannot be written for another reason. The answer is whether anybody still reads.
pub(super) fn print(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(super::after_output(written)?.is_continue())
}
