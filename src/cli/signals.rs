//! Ctrl-C and SIGTERM as values.

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::error::{IoContext as _, Result};

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
