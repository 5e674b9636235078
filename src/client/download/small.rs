//! Small files: asked for in batches, answered as they come, committed together.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::here::{Compared, Here, look};
use super::large::mismatch;
use super::{FileJob, Job, Place, blocking, mtime_to_storage, panicked, policy_to_storage};
use crate::buffer::Buffer;
use crate::client::api::random_id;
use crate::client::blocking::spawn_blocking;
use crate::client::event::Outcome;
use crate::client::session::{Reply, Session};
use crate::client::stalls::Cause;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Root;
use crate::limits::{MIB, UNASKED_FILE_MAX};
use crate::protocol::{Done, GetAnswer, Hash, IfExists};
use crate::storage::{self, FileMetadata, NewFile};
use crate::transfer::check_recorded;

/// Files of one batch.
pub(super) const BATCH_FILES: usize = 64;

/// Bytes in one batch, held until they are saved.
pub(super) const BATCH_LEN: u64 = 2 * MIB as u64;

/// Batches at once.
pub(super) const BATCHES_MAX: usize = 6;

/// Answers to one request of a batch: description, content, finish.
const ANSWERS_PER_FILE: usize = 3;

/// A small file that has come.
struct Fetched {
    file: FileJob,
    answer: GetAnswer,
    /// None when there is none.
    content: Option<Buffer>,
    /// What the server says it is.
    root: Root,
}

impl Fetched {
    fn bytes(&self) -> &[u8] {
        self.content.as_deref().unwrap_or_default()
    }
}

/// What is to be tried again, and why.
#[derive(Default)]
struct Again {
    files: Vec<FileJob>,
    reason: Option<Error>,
}

impl Again {
    fn add(&mut self, files: Vec<FileJob>, reason: Error) {
        self.files.extend(files);
        self.reason = Some(reason);
    }

    /// Files that the session ended without an answer for.
    fn lost(&mut self, files: Vec<FileJob>, session: &Session) {
        if !files.is_empty() {
            self.add(files, session.reason());
        }
    }
}

/// Stages a small file. Blocks.
fn stage_small(
    place: &Place,
    parents: &mut storage::Parents,
    answer: GetAnswer,
    content: &[u8],
    root: Root,
    (policy, with_xattrs): (IfExists, bool),
) -> Result<storage::Staged> {
    let mode = Some(answer.mode & 0o7777);
    let if_exists = policy_to_storage(policy);
    let options = NewFile { size: Some(answer.size), if_exists, make_parents: true, mode };
    let upload = place.store.begin_in(parents, &place.path, options)?;
    if !content.is_empty() {
        upload.write_at(0, content)?;
    }
    let metadata = FileMetadata {
        mode,
        mtime: mtime_to_storage(answer.mtime),
        root,
        upload_id: random_id()?.0,
        xattrs: answer.xattrs.filter(|_| with_xattrs),
    };
    upload.finish(answer.size, metadata)
}

impl Job {
    pub(super) async fn get_batch(self: Arc<Job>, files: Vec<FileJob>) {
        let mut rest = files;
        let mut retry = self.client.retry();
        while !rest.is_empty() {
            let (again, error) = self.get_batch_once(rest).await;
            rest = again;
            let Some(error) = error else { continue };
            if let Err(error) = retry.after(error).await {
                for mut file in rest.drain(..) {
                    file.item.failed(error.duplicate()).await;
                }
            }
        }
    }

    /// One attempt at a batch. Returns what is to be tried again, and why.
    async fn get_batch_once(self: &Arc<Job>, files: Vec<FileJob>) -> (Vec<FileJob>, Option<Error>) {
        let opened = files.iter().find_map(|file| file.opened.as_ref());
        let session = match opened {
            Some(opened) => opened.session().clone(),
            None => match self.session().await {
                Ok(session) => session,
                Err(error) => return (files, Some(error)),
            },
        };
        let mut again = Again::default();
        let wanted = self.compare_batch(&session, files, &mut again).await;
        let fetched = self.fetch_batch(&session, wanted, &mut again).await;
        self.save_batch(fetched).await;
        (again.files, again.reason)
    }

    /// Tells of the files that are here already, and returns the others.
    async fn compare_batch(&self, session: &Session, files: Vec<FileJob>, again: &mut Again) -> Vec<FileJob> {
        let policy = self.if_exists;
        // What somebody else puts there in the meantime is replaced, as it would be a moment later.
        let is_free = |file: &FileJob| {
            policy == IfExists::Overwrite && file.directory.as_ref().is_some_and(|directory| directory.is_new)
        };
        let (mut wanted, files): (Vec<FileJob>, Vec<FileJob>) = files.into_iter().partition(is_free);
        if files.is_empty() {
            return wanted;
        }
        let places: Vec<(Arc<Place>, u64)> = files.iter().map(|file| (file.place.clone(), file.size)).collect();
        let looked = blocking(move || {
            let mut parents = storage::Parents::default();
            let look = |(place, size): &(Arc<Place>, u64)| look(place, *size, policy, &mut parents);
            Ok(places.iter().map(look).collect::<Vec<_>>())
        });
        let looked = match looked.await {
            Ok(looked) => looked,
            Err(error) => {
                again.add(files, error);
                return wanted;
            }
        };
        let mut same_size = Vec::new();
        for (mut file, here) in files.into_iter().zip(looked) {
            match here {
                Here::Free => wanted.push(file),
                Here::SameSize(local) => same_size.push((file, local)),
                Here::Kept => self.tell_done(file.item, file.size, None, Outcome::Kept, None).await,
                Here::Refused(error) => file.item.failed(error).await,
            }
        }
        let (replies, mut answers) = mpsc::channel(same_size.len().max(1));
        let mut asked = HashMap::new();
        for (file, local) in same_size {
            match session.request_into(&Hash { path: file.remote.clone(), read: None }, replies.clone()).await {
                Ok(transfer) => {
                    asked.insert(transfer, (file, local));
                }
                Err(error) => again.add(vec![file], error),
            }
        }
        drop(replies);
        while let Some((transfer, reply)) = answers.recv().await {
            let Some((mut file, local)) = asked.remove(&transfer) else { continue };
            match reply {
                Reply::Done(Done { root: Some(theirs), size: Some(size), .. }) => {
                    match self.compare(&file, local, theirs, size, None).await {
                        Ok(Compared::Same(root)) => {
                            file.item.advance(size, 0);
                            file.role.is_there(&file.place, None, root);
                            self.tell_done(file.item, size, Some(root), Outcome::Unchanged, None).await;
                        }
                        Ok(Compared::Other(Here::Kept)) => {
                            self.tell_done(file.item, file.size, None, Outcome::Kept, None).await;
                        }
                        Ok(Compared::Other(Here::Refused(error))) => file.item.failed(error).await,
                        Ok(Compared::Other(_)) => wanted.push(file),
                        Err(error) => file.item.failed(error).await,
                    }
                }
                Reply::Failed(error) if error.kind().is_retryable() => again.add(vec![file], error),
                Reply::Failed(error) => file.item.failed(error).await,
                other => again.add(vec![file], session.unexpected(&other)),
            }
        }
        again.lost(asked.into_values().map(|(file, _)| file).collect(), session);
        wanted
    }

    /// Asks for small files all at once and takes them as they come.
    async fn fetch_batch(&self, session: &Session, files: Vec<FileJob>, again: &mut Again) -> Vec<Fetched> {
        let (replies, mut answers) = mpsc::channel((ANSWERS_PER_FILE * files.len()).max(1));
        let mut asked: HashMap<u32, (FileJob, Option<GetAnswer>, Option<Buffer>)> = HashMap::new();
        for mut file in files {
            file.item.started(Some(file.size)).await;
            if let Some(opened) = file.opened.take() {
                // It is the only one.
                let transfer;
                (transfer, answers) = opened.into_parts();
                asked.insert(transfer, (file, None, None));
                continue;
            }
            let get = self.get_message(&file.remote, UNASKED_FILE_MAX);
            match session.get_into(&get, replies.clone()).await {
                Ok(transfer) => {
                    asked.insert(transfer, (file, None, None));
                }
                Err(error) => again.add(vec![file], error),
            }
        }
        drop(replies);
        let mut fetched = Vec::new();
        let mut grown = Vec::new();
        while let Some((transfer, reply)) = self.client.stalls().during(Cause::Content, answers.recv()).await {
            let Some((mut file, mut answer, mut content)) = asked.remove(&transfer) else { continue };
            match reply {
                Reply::GetAnswer(new) if self.xattrs && new.xattrs.is_none() => {
                    again.add(vec![file], session.unexpected(&Reply::GetAnswer(new)));
                    continue;
                }
                Reply::GetAnswer(new) if new.unasked => answer = Some(new),
                Reply::GetAnswer(new) => {
                    // It has grown since it was listed.
                    session.abort(transfer, &Error::new(ErrorKind::Changed, "larger than it was listed"));
                    file.size = new.size;
                    grown.push(file);
                    continue;
                }
                Reply::Group(0, buffer) => content = Some(buffer),
                Reply::Finish(finish) => {
                    let Some(answer) = answer else {
                        again.add(vec![file], session.unexpected(&Reply::Finish(finish)));
                        continue;
                    };
                    let came = Fetched { file, answer, content, root: finish.root };
                    if finish.size == came.answer.size && came.bytes().len() as u64 == finish.size {
                        fetched.push(came);
                    } else {
                        let error = mismatch(Root::of(came.bytes()), finish.root);
                        again.add(vec![came.file], error);
                    }
                    continue;
                }
                Reply::Failed(error) if error.kind().is_retryable() => {
                    again.add(vec![file], error);
                    continue;
                }
                Reply::Failed(error) => {
                    file.item.failed(error).await;
                    continue;
                }
                other => {
                    again.add(vec![file], session.unexpected(&other));
                    continue;
                }
            }
            asked.insert(transfer, (file, answer, content));
        }
        again.lost(asked.into_values().map(|(file, ..)| file).collect(), session);
        for file in grown {
            self.get_file(file).await;
        }
        self.check_batch(fetched, again).await
    }

    /// Compares what has come with what the server says it is, and returns what is right.
    async fn check_batch(&self, fetched: Vec<Fetched>, again: &mut Again) -> Vec<Fetched> {
        let contents: Vec<&[u8]> = fetched.iter().map(Fetched::bytes).collect();
        let roots = self.client.stalls().working(Cause::Hashing, || Root::of_each(&contents));
        let mut right = Vec::with_capacity(fetched.len());
        for (mut came, root) in fetched.into_iter().zip(roots) {
            if root != came.root {
                again.add(vec![came.file], mismatch(root, came.root));
            } else if let Err(error) = check_recorded(came.answer.root, root) {
                came.file.item.failed(error).await;
            } else {
                came.file.item.advance(came.answer.size, came.answer.size);
                right.push(came);
            }
        }
        right
    }

    /// Saves files whose content was found right: one hop, one commit.
    async fn save_batch(&self, fetched: Vec<Fetched>) {
        if fetched.is_empty() {
            return;
        }
        let (policy, with_xattrs) = (self.if_exists, self.xattrs);
        let (files, contents): (Vec<_>, Vec<_>) = fetched
            .into_iter()
            .map(|Fetched { file, answer, content, root }| {
                let place = file.place.clone();
                ((file, answer.size, root), (place, answer, content, root))
            })
            .unzip();
        let emptying = self.client.pool().emptying();
        let saved = spawn_blocking(move || {
            let _emptying = emptying;
            let mut store = None;
            let mut parents = storage::Parents::default();
            let staged: Vec<Result<storage::Staged>> = contents
                .into_iter()
                .map(|(place, answer, content, root)| {
                    let content = content.as_deref().unwrap_or_default();
                    let staged = stage_small(&place, &mut parents, answer, content, root, (policy, with_xattrs));
                    store.get_or_insert_with(|| place.store.clone());
                    staged
                })
                .collect();
            let (mut whole, mut ends) = (Vec::new(), Vec::new());
            for staged in staged {
                ends.push(staged.map(|staged| {
                    let lost = staged.xattrs_lost();
                    whole.push(staged);
                    lost
                }));
            }
            let mut published = store.map_or_else(Vec::new, |store| store.publish(whole)).into_iter();
            let missing = || Err(Error::new(ErrorKind::Internal, "a commit without an answer"));
            ends.into_iter()
                .map(|end| end.and_then(|lost| Ok((published.next().unwrap_or_else(missing)?, lost))))
                .collect::<Vec<Result<(storage::Published, Option<ErrorKind>)>>>()
        });
        match self.saving(saved).await {
            Ok(saved) => {
                for ((mut file, size, root), saved) in files.into_iter().zip(saved) {
                    match saved {
                        Ok((published, lost)) => self.tell_published(file, size, root, &published, lost).await,
                        Err(error) => file.item.failed(error).await,
                    }
                }
            }
            Err(error) => {
                let error = panicked(error);
                for (mut file, ..) in files {
                    file.item.failed(error.duplicate()).await;
                }
            }
        }
    }
}
