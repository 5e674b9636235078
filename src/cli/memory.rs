//! How much freed memory the C library keeps for what comes next.
//!
//! rustls makes each record that it sends in memory of its own, and up to half a MiB of records is freed at once when
//! the socket takes them. glibc gives freed memory above 128 KiB back to the system at once, so each such burst cost an
//! interrupt of the other processors and new pages afterwards.

use crate::limits::KIB;

/// What is freed at first. glibc takes twice the size of the largest block that it has mapped and unmapped as the most
/// that it keeps: 1.5 MiB for each thread that allocates. Group buffers are larger, and stay mapped on their own.
const FREED_LEN: usize = 768 * KIB;

/// Lets the C library keep more freed memory. Of no effect where it is not glibc.
pub fn keep_more() {
    // Seen by nobody, and not to be optimised away.
    drop(std::hint::black_box(vec![1_u8; FREED_LEN]));
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Pages that this thread has touched for the first time.
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[test]
    fn bursts_of_records_reuse_their_memory() {
        const BURSTS: u64 = 100;
        let burst = || {
            let records: Vec<Vec<u8>> = (0..32).map(|_| vec![1; 16 * KIB + 22]).collect();
            drop(std::hint::black_box(records));
        };
        keep_more();
        burst();
        let before = faults();
        (0..BURSTS).for_each(|_| burst());
        let new = faults() - before;
        assert!(new < BURSTS, "{new} new pages in {BURSTS} bursts");
    }
}
