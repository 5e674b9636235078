//! Small files: read in batches, sent unasked, answered as the server commits them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;

use super::{FileJob, Job, describe, panicked, read_exact_at};
use crate::buffer::{Buffer, Pool};
use crate::client::session::Reply;
use crate::client::stalls::{Cause, Stalls};
use crate::client::upload::believe::check_stored;
use crate::client::walk::{Attributes, OpenSource, Source, SourceVersion};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Root;
use crate::limits::{GROUP_LEN, MIB, UNASKED_FILE_MAX};
use crate::protocol::{Finish, Put};
use crate::xattrs::Xattrs;

/// Small files of one batch: one hop to a blocking thread, one round of answers.
pub(super) const BATCH_FILES: usize = 64;

/// Bytes of content in one batch, held until they are answered.
pub(super) const BATCH_LEN: u64 = 2 * MIB as u64;

/// Batches at once: enough that the window of unasked content never runs dry while others are answered.
pub(super) const BATCHES_MAX: usize = 8;

/// A small file that has been read.
struct Small {
    content: Bytes,
    /// Of the content, once all of its batch are read.
    root: Root,
    version: SourceVersion,
    attributes: Attributes,
    xattrs: Option<Xattrs>,
}

fn xattrs_len(small: &Small) -> usize {
    small.xattrs.as_ref().map_or(0, Xattrs::len)
}

/// How reading a small file went.
enum ReadSmall {
    Read(Small),
    /// It is large by now.
    Grown,
    Failed(Error),
}

/// Reads small files next to one another into buffers of the pool, as far as it has some to spare: fresh memory for
/// each file costs as much as reading it.
fn read_batch(sources: &[Source], pool: &Pool, stalls: &Stalls, xattrs: bool) -> Vec<ReadSmall> {
    let mut read = Vec::with_capacity(sources.len());
    let mut shared: Option<(Buffer, usize)> = None;
    let mut in_shared: Vec<(usize, Range<usize>)> = Vec::new();
    for source in sources {
        let open = match source.open() {
            Ok(open) => open,
            Err(error) => {
                read.push(ReadSmall::Failed(error));
                continue;
            }
        };
        let size = match usize::try_from(open.version.size) {
            Ok(size) if open.version.size <= UNASKED_FILE_MAX => size,
            _ => {
                read.push(ReadSmall::Grown);
                continue;
            }
        };
        if shared.as_ref().is_none_or(|(buffer, used)| buffer.len() - used < size) {
            share(&mut read, shared.take(), &mut in_shared);
            shared = pool.try_lease(GROUP_LEN).map(|buffer| (buffer, 0));
        }
        let (content, range) = match &mut shared {
            Some((buffer, used)) => {
                let range = *used..*used + size;
                let small = read_small(&open, &mut buffer[range.clone()], stalls, xattrs);
                *used += size;
                (small, Some(range))
            }
            None => {
                let mut own = vec![0; size];
                let small = read_small(&open, &mut own, stalls, xattrs);
                (small.map(|small| Small { content: own.into(), ..small }), None)
            }
        };
        match content {
            Ok(small) => {
                in_shared.extend(range.map(|range| (read.len(), range)));
                read.push(ReadSmall::Read(small));
            }
            Err(error) => read.push(ReadSmall::Failed(error)),
        }
    }
    share(&mut read, shared, &mut in_shared);
    stalls.working(Cause::Hashing, || hash(&mut read));
    read
}

/// Hashes what was read.
fn hash(read: &mut [ReadSmall]) {
    let mut read: Vec<&mut Small> = read
        .iter_mut()
        .filter_map(|read| match read {
            ReadSmall::Read(small) => Some(small),
            _ => None,
        })
        .collect();
    let contents: Vec<&[u8]> = read.iter().map(|small| &*small.content).collect();
    let roots = Root::of_each(&contents);
    read.iter_mut().zip(roots).for_each(|(small, root)| small.root = root);
}

/// Gives the files that lie in this buffer their pieces of it. It goes back to its pool with the last of them.
fn share(read: &mut [ReadSmall], shared: Option<(Buffer, usize)>, in_shared: &mut Vec<(usize, Range<usize>)>) {
    let Some((buffer, _)) = shared else { return };
    let whole = Bytes::from_owner(buffer);
    for (index, range) in in_shared.drain(..) {
        if let Some(ReadSmall::Read(small)) = read.get_mut(index) {
            small.content = whole.slice(range);
        }
    }
}

/// Reads a small file into a buffer of its size. The content and its root are for the caller to fill in.
fn read_small(open: &OpenSource, content: &mut [u8], stalls: &Stalls, xattrs: bool) -> Result<Small> {
    let xattrs = if xattrs { Some(open.xattrs()?) } else { None };
    stalls.working(Cause::Reading, || read_exact_at(open, content, 0))?;
    open.check_unchanged()?;
    let (version, attributes) = (open.version, open.attributes);
    Ok(Small { content: Bytes::new(), root: Root([0; 32]), version, attributes, xattrs })
}

impl Job {
    /// Uploads small files: reads them all, sends them all, and takes the answers as they come.
    pub(super) async fn put_batch(self: Arc<Job>, files: Vec<FileJob>, permit: OwnedSemaphorePermit) {
        let mut rest = files;
        let mut retry = self.client.retry();
        while !rest.is_empty() {
            let (again, error) = self.put_batch_once(rest).await;
            rest = again;
            let Some(error) = error else { continue };
            if let Err(error) = retry.after(error).await {
                for mut file in rest.drain(..) {
                    file.item.failed(error.duplicate()).await;
                    self.let_go(file.directory).await;
                }
            }
        }
        drop(permit);
    }

    /// One attempt at a batch. Returns what is to be tried again, and why.
    async fn put_batch_once(self: &Arc<Job>, files: Vec<FileJob>) -> (Vec<FileJob>, Option<Error>) {
        let session = match self.session().await {
            Ok(session) => session,
            Err(error) => return (files, Some(error)),
        };
        let sources: Vec<Source> = files.iter().map(|file| file.source.clone()).collect();
        let stalls = Arc::clone(self.client.stalls());
        let pool = self.client.pool().clone();
        let xattrs = self.xattrs;
        let read = spawn_blocking(move || read_batch(&sources, &pool, &stalls, xattrs));
        let read = self.client.stalls().during(Cause::Source, read).await;
        let read = match read {
            Ok(read) => read,
            Err(error) => return (files, Some(panicked(error))),
        };
        let mut again = Vec::new();
        let mut reason = None;
        let mut waiting: HashMap<u32, (FileJob, Small)> = HashMap::new();
        // Each file has one answer, so there is always room for it.
        let (replies, mut answers) = mpsc::channel(files.len().max(1));
        for (mut file, read) in files.into_iter().zip(read) {
            let mut small = match read {
                ReadSmall::Read(small) if session.takes_unasked(small.version.size, xattrs_len(&small)) => small,
                ReadSmall::Read(_) | ReadSmall::Grown => {
                    self.put_file(file).await;
                    continue;
                }
                ReadSmall::Failed(error) if error.kind() == ErrorKind::Changed => {
                    reason = Some(error);
                    again.push(file);
                    continue;
                }
                ReadSmall::Failed(error) => {
                    file.item.failed(error).await;
                    self.let_go(file.directory).await;
                    continue;
                }
            };
            file.item.started(Some(small.version.size)).await;
            let upload_id = match file.upload_id.of(&small.version) {
                Ok(id) => id,
                Err(error) => {
                    self.refused(file, error).await;
                    continue;
                }
            };
            let put = Put {
                unasked: true,
                xattrs: small.xattrs.take(),
                ..describe(
                    self.put_message(&file.target, upload_id),
                    &small.version,
                    &small.attributes,
                    self.special_modes,
                )
            };
            let finish = Finish { size: small.version.size, root: small.root };
            // Only what is not written yet holds its buffer.
            let content = std::mem::take(&mut small.content);
            match session.put_unasked(&put, content, &finish, replies.clone()).await {
                Ok(transfer) => {
                    waiting.insert(transfer, (file, small));
                }
                Err(error) => {
                    reason = Some(error);
                    again.push(file);
                }
            }
        }
        drop(replies);
        while let Some((transfer, reply)) = self.client.stalls().during(Cause::Answer, answers.recv()).await {
            let Some((mut file, small)) = waiting.remove(&transfer) else { continue };
            let size = small.version.size;
            match reply {
                Reply::Stored(stored) => {
                    if let Err(error) = check_stored(&stored, self.if_exists, small.root, size) {
                        self.refused(file, error).await;
                        continue;
                    }
                    file.item.advance(size, size);
                    self.stored(file, &stored, size, small.root, &small.version).await;
                }
                Reply::Failed(error) if error.kind().is_retryable() => {
                    reason = Some(error);
                    again.push(file);
                }
                Reply::Failed(error) => self.refused(file, error).await,
                other => {
                    reason = Some(session.unexpected(&other));
                    again.push(file);
                }
            }
        }
        // The session has ended without an answer for these.
        if !waiting.is_empty() {
            reason = Some(session.reason());
            again.extend(waiting.into_values().map(|(file, _)| file));
        }
        (again, reason)
    }
}
