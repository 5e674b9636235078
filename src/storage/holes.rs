//! Holes of stored files: what need not be sent, because it reads as zeros.

use rustix::fs::SeekFrom;

use super::StoredFile;
use crate::hash::{group_count, group_offset};
use crate::limits::{GROUP_LEN, HOLES_SOUGHT_MAX, ZERO_RUNS_IN_MESSAGE};

impl StoredFile {
    /// Whole groups that lie in holes, as runs: the first group, and how many there are. At most
    /// [`ZERO_RUNS_IN_MESSAGE`] of them; none where the file system does not tell, or there are none.
    #[must_use]
    pub fn zero_groups(&self) -> Option<Vec<(u64, u64)>> {
        let (size, count) = (self.size(), group_count(self.size()));
        // On tmpfs the search would go through all pages.
        if self.is_in_memory() && self.has_all_blocks() {
            return None;
        }
        // The place in the file is nobody's: all reads say where they begin.
        let seek = |from| rustix::fs::seek(self, from);
        let mut runs = Vec::new();
        let mut offset = 0;
        for _ in 0..HOLES_SOUGHT_MAX {
            if offset >= size || runs.len() == ZERO_RUNS_IN_MESSAGE {
                break;
            }
            let Ok(hole) = seek(SeekFrom::Hole(offset)) else { break };
            if hole >= size {
                break;
            }
            // Behind the last data there is nothing but a hole.
            let end = match seek(SeekFrom::Data(hole)) {
                Ok(data) => data.min(size),
                Err(rustix::io::Errno::NXIO) => size,
                Err(_) => break,
            };
            let first = hole.div_ceil(GROUP_LEN as u64);
            let last = if end == size { count } else { end / GROUP_LEN as u64 };
            if first < last && group_offset(first) < end {
                runs.push((first, last - first));
            }
            if end <= offset {
                break;
            }
            offset = end;
        }
        (!runs.is_empty()).then_some(runs)
    }

    /// Whether there are as many blocks as the size needs.
    fn has_all_blocks(&self) -> bool {
        let blocks = rustix::fs::fstat(self).ok().and_then(|stat| u64::try_from(stat.st_blocks).ok());
        // In units of 512 bytes, whatever the file system has.
        blocks.is_some_and(|blocks| blocks >= self.size().div_ceil(512))
    }
}
