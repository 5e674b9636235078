//! Room for open files, before there are threads.
//!
//! The kernel doubles a process's table of descriptors when it is full. With several threads it waits meanwhile until
//! no processor can be looking at the old one, in which whoever opens a file stands still: 8 ms and more. A transfer of
//! small files has hundreds open and would meet that three times. A process of one thread does not wait.

use std::io;
use std::os::fd::AsFd as _;

/// The descriptor that the table has to have room for: below the limit that most systems set.
const LAST: i32 = 1023;

/// Makes room for as many open files as a transfer has. To be called while there is one thread.
pub fn make_room() {
    // The handle is closed at once and the table stays. Where the limit is lower, it grows as it is needed.
    let _ = rustix::io::fcntl_dupfd_cloexec(io::stderr().as_fd(), LAST);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_as_many_files_as_the_usual_limit_allows() {
        make_room();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        assert!(size.trim().parse::<i32>().unwrap() > LAST, "{size}");
    }
}
