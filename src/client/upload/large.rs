//! Larger files: what the other side has is compared, the rest is read, hashed and sent group by group.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinSet, spawn_blocking};

use super::{FileJob, Job, Landed, Role, UNKNOWN, describe, expectation_failed, panicked, read_exact_at};
use crate::buffer::Buffer;
use crate::client::api::Item;
use crate::client::lanes::Report;
use crate::client::session::{Exchange, Reply};
use crate::client::shelf::Shelf;
use crate::client::stalls::{Cause, Stalls};
use crate::client::upload::believe::check_stored;
use crate::client::walk::OpenSource;
use crate::client::workplace::Room;
use crate::client::zeros;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, GroupHasher, GroupValue, Root, Tree, group_len, group_offset};
use crate::limits::{GROUP_LEN, ZERO_RUNS_MAX};
use crate::protocol::{self, Finish, Holding, IfExists, Put, Stored};
use crate::storage;
use crate::transfer::{Decision, Runs, Sender, Taken, Way};

/// Groups of one file that are read and hashed ahead of the connection.
const READ_AHEAD: usize = 4;

/// How sending content of known size ended.
pub(super) enum Known {
    /// It is there as a further name of a file that is there.
    Named(Stored),
    /// It is there; this is the root of what was read.
    Stored(Stored, Root),
    /// It is not what was expected, and reading it again would not change that.
    Unexpected(Error),
}

/// How the sending of groups ended.
enum Sent {
    /// All is sent or there, and this is due.
    Finished(Finish),
    /// The server has answered what this was foretold to be.
    Answered(Stored, Finish),
    /// The server knows already how it ends.
    Stored(Stored),
    /// It is not what was expected.
    Unexpected(Error),
    /// What is there is something else, and must stay.
    Differs,
}

/// A group that was read.
struct Read {
    group: u64,
    bytes: Bytes,
    hash: GroupHash,
    /// The value of its beginning, if that was asked for.
    prefix: Option<GroupValue>,
    is_zero: bool,
}

/// Where groups are read from.
#[derive(Clone)]
pub(super) enum Content {
    /// A file, and whether it lies in memory.
    File(Arc<OpenSource>, bool),
    Memory(Bytes),
}

impl Content {
    /// Reads and hashes a group while it is hot.
    fn read(&self, Taken { group, prefix }: Taken, mut buffer: Buffer, stalls: &Stalls) -> Result<Read> {
        let bytes = match self {
            Content::File(open, _) => {
                let len = group_len(open.version.size, group);
                let space = buffer.get_mut(..len).ok_or_else(|| Error::new(ErrorKind::Internal, "a group too long"))?;
                if zeros::is_hole(&open.file, group_offset(group), len) {
                    zeros::content(len)
                } else {
                    stalls.working(Cause::Reading, || read_exact_at(open, space, group_offset(group)))?;
                    Bytes::from_owner(buffer).slice(..len)
                }
            }
            Content::Memory(bytes) => bytes.clone(),
        };
        let hash = || {
            let mut hasher = GroupHasher::new(group);
            let begun = bytes.split_at_checked(prefix.unwrap_or(0)).filter(|(begun, _)| !begun.is_empty());
            let (prefix, rest) = match begun {
                Some((begun, rest)) => {
                    hasher.update(begun);
                    (Some(hasher.finish().value), rest)
                }
                None => (None, &*bytes),
            };
            hasher.update(rest);
            (hasher.finish(), prefix)
        };
        let (hash, prefix) = stalls.working(Cause::Hashing, hash);
        Ok(Read { group, hash, prefix, is_zero: zeros::is_zero(&bytes), bytes })
    }

    /// Fills `space` from a place on.
    pub(super) fn read_into(&self, space: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Content::File(open, _) => read_exact_at(open, space, offset),
            Content::Memory(bytes) => {
                let from =
                    usize::try_from(offset).ok().and_then(|from| bytes.get(from..from.checked_add(space.len())?));
                let from = from.ok_or_else(|| Error::new(ErrorKind::Internal, "a group behind the end"))?;
                space.copy_from_slice(from);
                Ok(())
            }
        }
    }

    /// Whether reading it waits for no disk.
    fn is_in_memory(&self) -> bool {
        match self {
            Content::File(_, is_in_memory) => *is_in_memory,
            Content::Memory(_) => true,
        }
    }

    /// Bytes in all.
    pub(super) fn size(&self) -> u64 {
        match self {
            Content::File(open, _) => open.version.size,
            Content::Memory(bytes) => bytes.len() as u64,
        }
    }

    pub(super) async fn check_unchanged(&self) -> Result<()> {
        match self {
            Content::Memory(_) => Ok(()),
            Content::File(open, _) => {
                let open = Arc::clone(open);
                spawn_blocking(move || open.check_unchanged()).await.map_err(panicked)?
            }
        }
    }
}

impl Job {
    pub(super) async fn put_large(self: Arc<Job>, file: FileJob, permit: OwnedSemaphorePermit) {
        self.put_file(file).await;
        drop(permit);
    }

    /// Uploads one file with asking.
    pub(super) async fn put_file(self: &Arc<Job>, mut file: FileJob) {
        let mut retry = self.client.retry();
        let mut no_base = false;
        let mut is_started = false;
        // What was hashed of it, and of which version.
        let mut hashed = (None, Tree::new());
        loop {
            let source = file.source.clone();
            let with_xattrs = self.xattrs;
            let open = move || {
                let open = source.open()?;
                let xattrs = if with_xattrs { Some(open.xattrs()?) } else { None };
                let is_in_memory = storage::is_in_memory(&open.file);
                Ok((open, xattrs, is_in_memory))
            };
            let opened = match spawn_blocking(open).await {
                Ok(opened) => opened,
                Err(error) => Err(panicked(error)),
            };
            let error = match opened {
                Err(error) => error,
                Ok((open, xattrs, is_in_memory)) => {
                    if !is_started {
                        file.item.started(Some(open.version.size)).await;
                        is_started = true;
                    }
                    let (version, attributes) = (open.version, open.attributes);
                    let upload_id = match file.upload_id.of(&version) {
                        Ok(id) => id,
                        Err(error) => {
                            self.refused(file, error).await;
                            return;
                        }
                    };
                    let put = self.put_message(&file.target, upload_id);
                    let put = describe(put, &version, &attributes, self.special_modes);
                    let mut put = Put { no_base, xattrs, ..put };
                    if let Role::Further(Landed { path, root }) = &file.role
                        && file.same == Some(version.file())
                    {
                        (put.same_as, put.same_root) = (Some(path.clone()), *root);
                    }
                    if hashed.0.replace(version) != Some(version) {
                        hashed.1 = Tree::new();
                    }
                    let content = Content::File(Arc::new(open), is_in_memory);
                    match self.send_known(&put, &content, &mut file.item, &mut hashed.1).await {
                        Ok(Known::Stored(stored, root)) => {
                            if put.same_as.is_some() {
                                file.role = Role::Alone;
                                // What is left alone may well be a name of that file.
                                let is_left = stored.outcome != protocol::Outcome::Stored;
                                if !is_left || self.if_exists == IfExists::Overwrite {
                                    self.part();
                                }
                            }
                            self.stored(file, &stored, version.size, root, &version).await;
                            return;
                        }
                        Ok(Known::Named(stored)) => {
                            let root = stored.root.or(put.same_root).unwrap_or(UNKNOWN);
                            self.stored(file, &stored, version.size, root, &version).await;
                            return;
                        }
                        Ok(Known::Unexpected(error)) => {
                            self.refused(file, error).await;
                            return;
                        }
                        Err(error) => error,
                    }
                }
            };
            file.item.restart();
            if matches!(error.kind(), ErrorKind::Mismatch | ErrorKind::Changed) {
                hashed.0 = None;
                no_base |= error.is_from_peer();
            }
            if let Err(error) = retry.after(error).await {
                self.refused(file, error).await;
                return;
            }
        }
    }

    /// One attempt at sending content of known size. What was read is judged before it is finished. `hashed` is what
    /// earlier attempts have hashed of the same version, and what this one has when it returns.
    pub(super) async fn send_known(
        &self,
        put: &Put,
        content: &Content,
        item: &mut Item,
        hashed: &mut Tree,
    ) -> Result<Known> {
        let mut sender = Sender::knowing(put.size.unwrap_or(0), std::mem::take(hashed));
        let known = self.send_by(&mut sender, put, content, item).await;
        *hashed = sender.into_tree();
        known
    }

    async fn send_by(&self, sender: &mut Sender, put: &Put, content: &Content, item: &mut Item) -> Result<Known> {
        let size = put.size.unwrap_or(0);
        if let Some(expected) = self.expect_size.filter(|&expected| expected != size) {
            return Ok(Known::Unexpected(expectation_failed(format!(
                "it has {size} bytes, not the {expected} expected"
            ))));
        }
        let session = self.session().await?;
        let mut exchange = session.open_put(put).await?;
        let mut foretells = false;
        if put.same_as.is_none() && self.if_exists == IfExists::Overwrite {
            // While the server looks what it has: most of that time is the way there and back.
            self.client.widen(&session, size, Way::Up);
        }
        match exchange.next().await? {
            Reply::Stored(stored) => {
                if put.same_as.is_some() {
                    self.check_named(&stored, put.same_root, content).await?;
                    item.advance(size, 0);
                    return Ok(Known::Named(stored));
                }
                let root = self.check_early(&stored, content).await?;
                item.advance(size, 0);
                return Ok(Known::Stored(stored, root));
            }
            Reply::PutAnswer(answer) => match answer.holding {
                // Whatever is missing there is known to be under way.
                Holding::Fresh => foretells = session.hello().finish_ahead == Some(true),
                Holding::Base => sender.set_base(answer.held_size, answer.compare_only),
                Holding::Held => sender.set_held(&answer.ranges.0)?,
            },
            other => return Err(exchange.unexpected(&other)),
        }
        let finish = match self.send_groups(&mut exchange, sender, content, item, foretells).await? {
            Sent::Finished(finish) => finish,
            Sent::Answered(stored, finish) => {
                check_stored(&stored, self.if_exists, finish.root, size)?;
                for group in sender.take_busy() {
                    let len = group_len(size, group);
                    item.advance_group(group, len, len);
                }
                return Ok(Known::Stored(stored, finish.root));
            }
            Sent::Unexpected(error) => {
                exchange.abort(&error);
                return Ok(Known::Unexpected(error));
            }
            Sent::Stored(stored) => {
                let root = self.check_early(&stored, content).await?;
                return Ok(Known::Stored(stored, root));
            }
            Sent::Differs => {
                let error = Error::new(ErrorKind::Exists, format!("{} is there with other content", put.path));
                exchange.abort(&error);
                return match self.if_exists {
                    IfExists::Skip => {
                        let stored = Stored {
                            outcome: protocol::Outcome::Skipped,
                            root: None,
                            size,
                            path: None,
                            xattrs_lost: None,
                        };
                        Ok(Known::Stored(stored, UNKNOWN))
                    }
                    _ => Err(error),
                };
            }
        };
        exchange.finish(&finish);
        loop {
            match self.client.stalls().during(Cause::Answer, exchange.next()).await? {
                Reply::Stored(stored) => {
                    check_stored(&stored, self.if_exists, finish.root, size)?;
                    return Ok(Known::Stored(stored, finish.root));
                }
                // Values of groups that were not needed any more.
                Reply::Values(_) => {}
                other => return Err(exchange.unexpected(&other)),
            }
        }
    }

    /// Looks at the whole before the server hears that this is it, and tells the zeros in it. An error in it when it is
    /// not what was expected.
    async fn conclude(
        &self,
        exchange: &Exchange,
        content: &Content,
        finish: &Finish,
        zeros: &Runs,
    ) -> Result<Option<Error>> {
        content.check_unchanged().await?;
        if let Some(expected) = self.expect_root.filter(|&expected| expected != finish.root) {
            let message = format!("it has the hash {}, not {expected} as expected", finish.root);
            return Ok(Some(expectation_failed(message)));
        }
        exchange.zeros(zeros);
        Ok(None)
    }

    /// Reads, hashes and sends the groups that the other side has not. `foretells`: the server may hear how it will end
    /// while the last of them are under way over lanes.
    async fn send_groups(
        &self,
        exchange: &mut Exchange,
        sender: &mut Sender,
        content: &Content,
        item: &mut Item,
        foretells: bool,
    ) -> Result<Sent> {
        let mut reads: JoinSet<Result<Read>> = JoinSet::new();
        let mut carrier = exchange.carry(&Shelf::default());
        self.client.widen(exchange.session(), content.size(), Way::Up);
        let workplace = exchange.session().workplace(content.is_in_memory());
        let mut room = exchange.session().room(workplace, Way::Up);
        let takes_zeros = exchange.session().hello().zeros == Some(true);
        let mut zeros = Runs::default();
        let mut foretold: Option<Finish> = None;
        let all_taken = carrier.all_taken();
        loop {
            while let Some(group) = sender.keep_known() {
                let len = group_len(content.size(), group);
                item.advance_group(group, len, len);
            }
            while reads.len() < workplace.at_once(READ_AHEAD) {
                // Who holds buffers does not wait for more: several files that did would wait for one another.
                let buffer = match self.client.pool().try_lease(GROUP_LEN) {
                    Some(buffer) => buffer,
                    None if reads.is_empty() => self.client.pool().lease(GROUP_LEN).await,
                    None => break,
                };
                let Some(taken) = sender.take() else { break };
                let (content, stalls) = (content.clone(), Arc::clone(self.client.stalls()));
                workplace.spawn(&mut reads, move || content.read(taken, buffer, &stalls));
            }
            let is_through = sender.busy() == 0;
            let may_foretell = foretells && foretold.is_none() && reads.is_empty();
            if (is_through || may_foretell && sender.busy() == carrier.under_way())
                && let Some(finish) = sender.foretell_finish()
            {
                match &foretold {
                    None => {
                        if let Some(error) = self.conclude(exchange, content, &finish, &zeros).await? {
                            return Ok(Sent::Unexpected(error));
                        }
                        if !is_through {
                            exchange.finish_ahead(&finish);
                            foretold = Some(finish.clone());
                        }
                    }
                    Some(known) if *known != finish => {
                        // A group was read once more for a lane that had lost it.
                        let message = "the file became another one while it was being read";
                        return Err(Error::new(ErrorKind::Changed, message));
                    }
                    Some(_) => {}
                }
                if is_through {
                    return Ok(Sent::Finished(finish));
                }
            }
            let begun = Instant::now();
            tokio::select! {
                Some(read) = reads.join_next() => {
                    self.client.stalls().since(Cause::Source, begun);
                    let Read { group, bytes, hash, prefix, is_zero } = read.map_err(panicked)??;
                    let from = match sender.judge(group, hash, prefix) {
                        Decision::Keep => bytes.len(),
                        Decision::Differs => return Ok(Sent::Differs),
                        Decision::Send => 0,
                        Decision::SendFrom(len) => len,
                    };
                    let len = bytes.len();
                    if from < len && is_zero && takes_zeros && foretold.is_none() && zeros.insert(group, ZERO_RUNS_MAX) {
                        sender.sent(group);
                        item.advance_group(group, len, len);
                    } else if from < len {
                        let sent = carrier.send(group, group_offset(group) + from as u64, bytes.slice(from..));
                        let mut sent = pin!(self.client.stalls().during(Cause::Room, sent));
                        // Over a slow link a group waits long, and the server goes on telling what it holds.
                        loop {
                            tokio::select! {
                                sent = &mut sent => break sent.map_err(|_| exchange.reason())?,
                                reply = exchange.next() => {
                                    if let Some(end) = heard(exchange, sender, &mut foretold, reply?)? {
                                        return Ok(end);
                                    }
                                }
                            }
                        }
                        item.begin_group(group, from);
                        if let Some(has_room) = room.as_mut().and_then(Room::look) {
                            let (session, size) = (exchange.session(), content.size());
                            self.client.share_out(session, &carrier, size, Way::Up, Some(has_room));
                        }
                    } else {
                        item.advance_group(group, len, from);
                    }
                }
                report = carrier.next() => match report {
                    Report::Sent(group) => {
                        sender.sent(group);
                        let len = group_len(content.size(), group);
                        item.advance_group(group, len, len);
                    }
                    Report::Lost(group) => sender.give_back(group),
                    Report::Wider(count) => self.client.widen_to(exchange.session(), content.size(), count),
                    Report::MayAsk | Report::Came(..) | Report::Worked(..) => {}
                },
                reply = exchange.next() => if let Some(end) = heard(exchange, sender, &mut foretold, reply?)? {
                    return Ok(end);
                },
                () = all_taken.notified(), if may_foretell => {}
            }
        }
    }
}

/// Takes what the server says while groups are sent. Some when that ends the upload.
fn heard(
    exchange: &Exchange,
    sender: &mut Sender,
    foretold: &mut Option<Finish>,
    reply: Reply,
) -> Result<Option<Sent>> {
    match reply {
        Reply::Values(values) => {
            sender.add_values(values.first, &values.values.0)?;
            Ok(None)
        }
        Reply::Stored(stored) => Ok(Some(match foretold.take() {
            Some(finish) => Sent::Answered(stored, finish),
            None => Sent::Stored(stored),
        })),
        other => Err(exchange.unexpected(&other)),
    }
}
