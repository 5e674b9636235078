//! Zeros in files that are sent: holes are not read, and whole groups of zeros are told instead of sent.

use std::fs::File;

use bytes::Bytes;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::buffer::{ZEROS, is_of_zeros};
use crate::limits::KIB;

/// So many zeros, at most a group.
pub(crate) fn content(len: usize) -> Bytes {
    Bytes::from_static(ZEROS.get(..len).unwrap_or(&ZEROS))
}

/// Whether a range of a file lies in a hole, as far as the file system tells. Where its place was does not matter: all
/// reads say where they begin.
pub(crate) fn is_hole(file: &File, offset: u64, len: usize) -> bool {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data >= offset + len as u64,
        // There is no data any more; whether the file still is so long is looked at after the last read.
        Err(Errno::NXIO) => true,
        Err(_) => false,
    }
}

/// Whether there is nothing but zeros. Ends with the first page that has something else.
pub(crate) fn is_zero(content: &[u8]) -> bool {
    // A hole is known to be.
    is_of_zeros(content) || content.chunks(4 * KIB).all(|page| page.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::GROUP_LEN;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn holes_and_zeros_are_seen() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"x", 3 << 20).unwrap();
        assert!(is_hole(&file, 0, GROUP_LEN) && is_hole(&file, 7 << 20, GROUP_LEN), "before and behind all data");
        assert!(!is_hole(&file, 3 << 20, GROUP_LEN) && !is_hole(&file, 2 << 20, 2 * GROUP_LEN), "data");
        assert!(is_zero(&content(100)) && is_zero(&[0; 5000]) && is_zero(&[]));
        let mut almost = vec![0; 5000];
        almost[4999] = 1;
        assert!(!is_zero(&almost));
    }
}
