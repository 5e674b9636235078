//! Ctrl-C and SIGTERM as values.

use std::time::Duration;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::sync::watch;

use crate::error::{IoContext as _, Result};

/// How long a client that was told to end may be held up by something that it writes to and that nobody reads.
const HELD_UP_MAX: Duration = Duration::from_secs(2);

/// What a person or a supervisor asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    /// The exit code of a command that ended by it: 128 and the signal's number, as shells say it.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Signal::Interrupt => 130,
            Signal::Terminate => 143,
        }
    }
}

/// The signals that come from now on. A server drains on the first and stops on the second; a client stops on the
/// first, and what it has moved counts when it is run again.
#[derive(Debug)]
pub struct Signals {
    interrupt: Stream,
    terminate: Stream,
}

impl Signals {
    /// Takes both signals over from their default, which is to end the process at once.
    ///
    /// # Errors
    /// What the operating system says.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen() -> Result<Signals> {
        let listen = |kind| signal(kind).while_doing(|| "listen for signals".to_owned());
        Ok(Signals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// The next signal.
    ///
    /// # Cancel safety
    /// Safe: no signal is lost, though several of one kind may count as one.
    pub async fn next(&mut self) -> Signal {
        // Neither stream ever ends.
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}

/// A thread of its own that ends the process after a signal, where the process does not get to it: standard output
/// that nobody reads holds up whoever writes to it, for ever. A second signal ends it at once.
pub(super) struct LastResort {
    /// For how long from now on nothing need come of a signal.
    patience: watch::Sender<Duration>,
}

impl LastResort {
    /// From here on, until it is dropped.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn begin() -> Result<LastResort> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .while_doing(|| "start the runtime for signals".to_owned())?;
        let signals = {
            let _inside = runtime.enter();
            Signals::listen()?
        };
        let (patience, watched) = watch::channel(HELD_UP_MAX);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if let Some(signal) = runtime.block_on(is_held_up(signals, watched)) {
                    std::process::exit(i32::from(signal.exit_code()));
                }
            })
            .while_doing(|| "start a thread for signals".to_owned())?;
        Ok(LastResort { patience })
    }

    /// What comes now may take this long by itself; thereafter it is as before.
    pub(super) fn allow(&self, more: Duration) {
        self.patience.send_replace(more + HELD_UP_MAX);
    }
}

/// The signal by which the process is to be ended; none when it ended by itself.
async fn is_held_up(mut signals: Signals, mut patience: watch::Receiver<Duration>) -> Option<Signal> {
    let signal = tokio::select! {
        signal = signals.next() => signal,
        () = until_gone(patience.clone()) => return None,
    };
    loop {
        let limit = *patience.borrow_and_update();
        tokio::select! {
            _ = signals.next() => return Some(signal),
            () = tokio::time::sleep(limit) => return Some(signal),
            changed = patience.changed() => if changed.is_err() { return None },
        }
    }
}

async fn until_gone(mut patience: watch::Receiver<Duration>) {
    while patience.changed().await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signals_are_told_apart() {
        let mut signals = Signals::listen().unwrap();
        for (raw, expected) in
            [(rustix::process::Signal::INT, Signal::Interrupt), (rustix::process::Signal::TERM, Signal::Terminate)]
        {
            rustix::process::kill_process(rustix::process::getpid(), raw).unwrap();
            assert_eq!(signals.next().await, expected);
        }
        assert_eq!((Signal::Interrupt.exit_code(), Signal::Terminate.exit_code()), (130, 143));
    }
}
