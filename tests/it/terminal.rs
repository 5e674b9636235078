//! The program on a terminal: a real pseudo-terminal, and what its screen shows.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::kit::{Server, noise};

/// A program on a terminal of its own.
pub(crate) struct Terminal {
    master: File,
    child: Child,
    seen: Arc<Mutex<Seen>>,
    reader: Option<JoinHandle<()>>,
}

/// What the terminal was sent, and what it shows.
struct Seen {
    bytes: Vec<u8>,
    screen: vt100::Parser,
}

impl Terminal {
    /// Starts a command whose three streams are one terminal of this size.
    pub(crate) fn start(mut command: Command, rows: u16, columns: u16) -> Terminal {
        let master: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let slave = || {
            let path = std::path::Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
            OpenOptions::new().read(true).write(true).open(path).unwrap()
        };
        command.env("TERM", "xterm-256color").env_remove("COLUMNS").env_remove("LINES");
        let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        // The command holds ends of the terminal too: without them the reader below sees its end.
        drop(command);
        let cells = |count| std::num::NonZero::new(count).unwrap();
        let seen = Seen { bytes: Vec::new(), screen: vt100::Parser::new(cells(rows), cells(columns), 100) };
        let seen = Arc::new(Mutex::new(seen));
        let mut from = File::from(master.try_clone().unwrap());
        let into = Arc::clone(&seen);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The end of a terminal is an error.
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let mut seen = into.lock().unwrap();
                seen.bytes.extend_from_slice(&buffer[..count]);
                seen.screen.process(&buffer[..count]);
            }
        });
        Terminal { master: File::from(master), child, seen, reader: Some(reader) }
    }

    /// Types at it.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// As ctrl-C does to the program in front.
    pub(crate) fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    /// Waits until the screen shows something.
    #[track_caller]
    pub(crate) fn until(&self, text: &str) {
        let begun = Instant::now();
        while !self.screen().contains(text) {
            assert!(begun.elapsed() < Duration::from_secs(60), "`{text}` never showed:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The lines that show, without blanks at their ends.
    pub(crate) fn screen(&self) -> String {
        self.seen.lock().unwrap().screen.screen().contents()
    }

    /// All that it was ever sent.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.seen.lock().unwrap().bytes.clone()
    }

    /// Waits for its end. The answer is how it ended, what shows then, and all that was sent.
    #[track_caller]
    pub(crate) fn end(mut self) -> (ExitStatus, String, Vec<u8>) {
        let status = self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        (status, self.screen(), self.bytes())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stream that goes on until it is dropped: a `put -` whose end the test decides.
fn large(server: &Server, name: &str, len: usize) {
    std::fs::write(server.local(name), noise(len as u64, len)).unwrap();
}

#[test]
fn bars_show_and_are_gone_at_the_end() {
    let server = Server::start(&[]);
    large(&server, "big", 96 << 20);
    let terminal = Terminal::start(server.command(&["put", "--bwlimit", "64M", "big", "@in/"]), 24, 80);
    terminal.until("files: 0 done, 1 left");
    assert!(terminal.screen().contains("96.0 MiB"), "{}", terminal.screen());
    let (status, screen, bytes) = terminal.end();
    assert!(status.success(), "{screen}");
    assert!(screen.starts_with("1 stored (96.0 MiB); moved 96.0 MiB in "), "{screen}");
    assert!(!screen.contains('[') && !screen.contains("left"), "bars are left over:\n{screen}");
    // The cursor is shown again if it was hidden.
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.rfind("\x1b[?25h") >= text.rfind("\x1b[?25l"), "the cursor stays hidden");
}

#[test]
fn narrow_terminals_show_no_broken_lines() {
    let server = Server::start(&[]);
    large(&server, "big", 96 << 20);
    let terminal = Terminal::start(server.command(&["put", "--bwlimit", "64M", "big", "@in/"]), 10, 32);
    terminal.until("files: 0 done");
    let (status, screen, bytes) = terminal.end();
    assert!(status.success(), "{screen}");
    assert!(!screen.contains('[') && !screen.contains(" left"), "bars are left over:\n{screen}");
    assert_eq!(screen.matches("files:").count(), 0, "{screen}");
    assert!(!bytes.is_empty());
}

#[test]
fn nothing_is_coloured() {
    let server = Server::start(&[]);
    large(&server, "big", 8 << 20);
    for variable in [None, Some("NO_COLOR")] {
        let mut command = server.command(&["put", "big", "missing", "@in/"]);
        command.envs(variable.map(|name| (name, "1")));
        let (status, screen, bytes) = Terminal::start(command, 24, 80).end();
        assert_eq!(status.code(), Some(1), "{screen}");
        assert!(screen.contains("missing"), "{screen}");
        let text = String::from_utf8_lossy(&bytes);
        for sequence in text.split("\x1b[").skip(1) {
            let end = sequence.find(|c: char| c.is_ascii_alphabetic()).map(|at| &sequence[..=at]);
            assert!(matches!(end, Some("0m" | "m")) || end.is_none_or(|end| !end.ends_with('m')), "a colour: {end:?}");
        }
    }
}

#[test]
fn an_interruption_leaves_no_bar_behind() {
    let server = Server::start(&[]);
    // What never ends: the bar shows until the signal comes.
    let command = server.command(&[
        "put",
        "--stdin-from-command",
        "@x",
        "--",
        "sh",
        "-c",
        "head -c 3000000 /dev/zero; exec sleep 600",
    ]);
    let mut terminal = Terminal::start(command, 24, 80);
    terminal.until("files: 0 done, 1 left");
    terminal.until("1.00 MiB");
    // The terminal shows the keys, and then sends the signal.
    terminal.type_in("\x03");
    terminal.until("^C");
    terminal.interrupt();
    let (status, screen, _) = terminal.end();
    assert_eq!(status.code(), Some(130), "{screen}");
    let lines: Vec<&str> = screen.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 2, "{screen}");
    assert!(lines[0].starts_with("nothing was finished"), "{screen}");
    assert_eq!(lines[1], "interrupted: run the same command again to continue");
}

#[test]
fn a_stream_shows_no_total() {
    let server = Server::start(&[]);
    let command = server.command(&[
        "put",
        "--stdin-from-command",
        "@x",
        "--",
        "sh",
        "-c",
        "head -c 3000000 /dev/zero; exec sleep 600",
    ]);
    let terminal = Terminal::start(command, 24, 80);
    terminal.until("1.00 MiB");
    let screen = terminal.screen();
    assert!(!screen.contains(" of "), "a total that nobody knows:\n{screen}");
    // With a size that is expected there is one.
    let command = server.command(&[
        "put",
        "--expect-size",
        "5M",
        "--stdin-from-command",
        "@y",
        "--",
        "sh",
        "-c",
        "head -c 3000000 /dev/zero; exec sleep 600",
    ]);
    let terminal = Terminal::start(command, 24, 80);
    terminal.until("of 5.00 MiB");
}
