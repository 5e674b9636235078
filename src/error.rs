//! The one error type: what failed, whose fault it is, whether trying again can help.
//!
//! Every [`ErrorKind`] has a number on the wire (`docs/PROTOCOL.md`, "Error codes") and an exit code
//! (the manual, "Exit codes"). `Display` prints one level; the chain is printed once, by the command line.

use std::fmt;
use std::io;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who has to act for the failure to go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The other side broke the protocol or a limit.
    Peer,
    /// The request itself: the person asked for something that cannot be.
    Request,
    /// Disk, network or another process.
    Environment,
    /// A defect of this program.
    Ourselves,
}

macro_rules! error_kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $blame:ident, exit $exit:literal, retry $retry:literal;)+) => {
        /// What kind of failure it is. The numbers are wire codes and never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum ErrorKind { $($(#[doc = $doc])+ $name = $code,)+ }

        impl ErrorKind {
            /// All kinds, in the order of their wire codes.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name,)+];

            /// The number that stands for this kind on the wire.
            #[must_use]
            pub fn code(self) -> u16 { self as u16 }

            /// The kind for a wire code; an unknown code is [`ErrorKind::Refused`], which is final.
            #[must_use]
            pub fn from_code(code: u16) -> ErrorKind {
                match code { $($code => ErrorKind::$name,)+ _ => ErrorKind::Refused }
            }

            /// Whose fault it is.
            #[must_use]
            pub fn blame(self) -> Blame { match self { $(ErrorKind::$name => Blame::$blame,)+ } }

            /// The exit code of a command that ends with this kind.
            #[must_use]
            pub fn exit_code(self) -> u8 { match self { $(ErrorKind::$name => $exit,)+ } }

            /// Whether the same request may succeed when it is tried again by itself, unchanged.
            #[must_use]
            pub fn is_retryable(self) -> bool { match self { $(ErrorKind::$name => $retry,)+ } }
        }
    };
}

error_kinds! {
    /// Refused for a reason that this version does not know.
    Refused = 1, Request, exit 4, retry false;
    /// The command line or the configuration is wrong; nothing was tried.
    Usage = 2, Request, exit 2, retry false;
    /// No connection could be made, or it broke.
    Connection = 3, Environment, exit 3, retry true;
    /// The other side's certificate, pin or name is not accepted, or ours is not.
    Trust = 4, Request, exit 3, retry false;
    /// The two sides have no protocol version in common.
    Version = 5, Peer, exit 3, retry false;
    /// A frame or message breaks the protocol.
    Protocol = 6, Peer, exit 3, retry false;
    /// A deadline passed.
    Timeout = 7, Environment, exit 3, retry true;
    /// The server is stopping; another attempt finds it, or its successor.
    Stopping = 8, Environment, exit 3, retry true;
    /// The server has no room for this just now.
    Busy = 9, Environment, exit 3, retry true;
    /// The principal may not do this.
    Rights = 10, Request, exit 4, retry false;
    /// A limit or quota stands against it.
    Limit = 11, Request, exit 4, retry false;
    /// A name that cannot be stored or is not allowed.
    Name = 12, Request, exit 1, retry false;
    /// There is nothing of that name.
    NotFound = 13, Request, exit 1, retry false;
    /// Something of that name is there and must not be replaced.
    Exists = 14, Request, exit 1, retry false;
    /// A directory stands where a file is needed.
    IsDirectory = 15, Request, exit 1, retry false;
    /// Something else stands where a directory is needed.
    NotDirectory = 16, Request, exit 1, retry false;
    /// A directory that must be empty is not.
    NotEmpty = 17, Request, exit 1, retry false;
    /// The disk is full.
    NoSpace = 18, Environment, exit 1, retry false;
    /// The file system takes no writes.
    ReadOnly = 19, Environment, exit 1, retry false;
    /// The operating system refused or failed.
    Io = 20, Environment, exit 1, retry false;
    /// The file changed while it was being read.
    Changed = 21, Environment, exit 1, retry true;
    /// The content does not match its hash.
    Mismatch = 22, Environment, exit 5, retry true;
    /// A newer attempt has taken over this upload.
    Superseded = 23, Request, exit 1, retry false;
    /// Neither a file, a directory nor a symbolic link.
    Special = 24, Request, exit 1, retry false;
    /// The operation is not offered by this peer.
    Unsupported = 25, Request, exit 1, retry false;
    /// Ended by a person's signal.
    Interrupted = 26, Request, exit 130, retry false;
    /// A symbolic link that is not followed or not made.
    Link = 27, Request, exit 1, retry false;
    /// A token or session that this server does not know (any more).
    Session = 28, Environment, exit 3, retry true;
    /// A defect of this program.
    Internal = 29, Ourselves, exit 1, retry false;
    /// The content is not what the person said that it would be, or its receipt is not right.
    Expectation = 30, Request, exit 5, retry false;
    /// The server cannot write its audit log, and makes no change without.
    Audit = 31, Environment, exit 1, retry false;
    /// What is stored under a name is not what was stored there, though nothing says that anybody changed it.
    Rotten = 32, Environment, exit 5, retry false;
}

/// A failure: its kind, one sentence about what was being done to what, and its cause.
pub struct Error {
    kind: ErrorKind,
    message: String,
    from_peer: bool,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure of this kind. The message says what was being done and to what, in lower case, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), from_peer: false, source: None }
    }

    /// The same failure with its cause attached.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// A failure that the peer reported; the text must already be escaped.
    pub fn from_peer(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), from_peer: true, source: None }
    }

    /// A failed system call on this machine: the kind follows from the error number. A file system that is behind a
    /// network of its own may say what otherwise a connection to the peer says; that is `Io`, because no new connection
    /// to the peer mends it.
    pub fn io(message: impl Into<String>, error: impl Into<io::Error>) -> Error {
        let error = error.into();
        let kind = match kind_of_io(&error) {
            ErrorKind::Connection | ErrorKind::Timeout => ErrorKind::Io,
            kind => kind,
        };
        Error::new(kind, message).with_source(error)
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the other side reported it (so it need not be told).
    #[must_use]
    pub fn is_from_peer(&self) -> bool {
        self.from_peer
    }

    /// The same failure seen as another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.kind = kind;
        self
    }

    /// The same failure with `what: ` put before its message.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The message and all its causes on one line, for logs, the wire and the last line of a command.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let level = error.to_string();
            // Wrappers often repeat their cause word for word; once is enough for a reader.
            if !text.ends_with(&level) {
                text.push_str(": ");
                text.push_str(&level);
            }
            cause = error.source();
        }
        text
    }

    /// Whether this process or machine had no file descriptor left, which passes.
    #[must_use]
    pub fn is_out_of_descriptors(&self) -> bool {
        use rustix::io::Errno;
        [Errno::MFILE, Errno::NFILE].iter().any(|errno| self.system_code() == Some(errno.raw_os_error()))
    }

    /// Whether a system call failed, rather than what somebody wrote or asked for.
    #[must_use]
    pub fn is_of_system(&self) -> bool {
        self.system_code().is_some()
    }

    /// The number of the system call's failure, if that is the cause.
    fn system_code(&self) -> Option<i32> {
        self.source.as_deref()?.downcast_ref::<io::Error>()?.raw_os_error()
    }

    /// The same failure once more, for a second listener: the causes become text, but for a system call's.
    #[must_use]
    pub fn duplicate(&self) -> Error {
        let source = self.system_code().map(|code| io::Error::from_raw_os_error(code).into());
        Error { kind: self.kind, message: self.chain(), from_peer: self.from_peer, source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

/// Attaches what was being done to a failed system call.
pub trait IoContext<T> {
    /// Turns the failure into an [`Error`] whose message is made by `message`, only when needed.
    ///
    /// # Errors
    /// The failure itself, with the kind that its error number means.
    fn while_doing(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn while_doing(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::io(message(), error))
    }
}

/// The kind that an operating system error means, of a connection or of a file.
#[must_use]
pub fn kind_of_io(error: &io::Error) -> ErrorKind {
    use io::ErrorKind as K;
    if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        return ErrorKind::Link;
    }
    match error.kind() {
        K::NotFound => ErrorKind::NotFound,
        K::AlreadyExists => ErrorKind::Exists,
        K::IsADirectory => ErrorKind::IsDirectory,
        K::NotADirectory => ErrorKind::NotDirectory,
        K::DirectoryNotEmpty => ErrorKind::NotEmpty,
        K::StorageFull | K::QuotaExceeded => ErrorKind::NoSpace,
        K::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        K::InvalidFilename => ErrorKind::Name,
        K::ConnectionRefused
        | K::ConnectionReset
        | K::ConnectionAborted
        | K::BrokenPipe
        | K::NotConnected
        | K::HostUnreachable
        | K::NetworkUnreachable
        | K::NetworkDown
        | K::UnexpectedEof => ErrorKind::Connection,
        K::TimedOut => ErrorKind::Timeout,
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_round() {
        for &kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(kind.code()), kind);
        }
        assert_eq!(ErrorKind::from_code(0), ErrorKind::Refused);
        assert_eq!(ErrorKind::from_code(u16::MAX), ErrorKind::Refused);
    }

    #[test]
    fn a_file_system_that_lost_its_network_is_no_lost_connection() {
        use rustix::io::Errno;
        for errno in [Errno::NOTCONN, Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::CONNRESET, Errno::PIPE, Errno::STALE]
        {
            let error = Error::io("read x", errno);
            assert_eq!(error.kind(), ErrorKind::Io, "{errno}");
            assert!(!error.kind().is_retryable());
        }
        assert_eq!(kind_of_io(&Errno::TIMEDOUT.into()), ErrorKind::Timeout, "of a connection");
    }

    #[test]
    fn a_chain_names_each_level_once() {
        let error = Error::io("write /x", io::Error::from_raw_os_error(28));
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.chain(), "write /x: No space left on device (os error 28)");
    }
}
