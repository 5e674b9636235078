//! Streams: content whose size and whose next byte nobody knows beforehand.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::large::{Content, Known};
use super::{Job, StreamSource, UNKNOWN, expectation_failed, panicked};
use crate::client::api::{Item, random_id};
use crate::client::session::{Exchange, Reply};
use crate::client::stalls::Cause;
use crate::client::upload::believe::{check_skipped, check_stored};
use crate::client::walk::OpenSource;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::hash::{GroupHash, Root, Tree, group_offset};
use crate::limits::GROUP_LEN;
use crate::path::{Escaped, RemotePath};
use crate::protocol::{Finish, Holding, Put, Stored};

enum Opened {
    Exchange(Exchange),
    Skipped(Stored),
}

type StreamCheck = Box<dyn FnOnce() -> Result<()> + Send + Sync>;

/// A group of a stream.
struct Block {
    content: Bytes,
    hash: GroupHash,
    is_last: bool,
}

/// Writes a stream to its file, and makes sure that it came to its real end. Blocks.
fn spool(stream: StreamSource) -> Result<OpenSource> {
    let StreamSource { name, mut reader, check, spool } = stream;
    let mut file = spool.ok_or_else(|| Error::new(ErrorKind::Internal, "a stream without a file to spool it to"))?;
    let what = || format!("write {} to a temporary file", Escaped(name.as_bytes()));
    io::copy(&mut reader, &mut file).while_doing(what)?;
    check()?;
    OpenSource::of(file, PathBuf::from(name))
}

/// Reads a stream on a thread of its own, two groups ahead. The thread is not waited for: a read that nobody
/// answers (a terminal, a silent pipe) cannot be called off, and ends with the process.
fn read_stream(stream: StreamSource) -> Result<(mpsc::Receiver<Result<Block>>, StreamCheck)> {
    let StreamSource { name, mut reader, check, .. } = stream;
    let (sender, receiver) = mpsc::channel(2);
    std::thread::Builder::new()
        .name("stream".to_owned())
        .spawn(move || {
            // A group is known to be the last only when nothing follows it.
            let mut held = match read_block(&mut reader, 0, &name) {
                Ok(block) => block,
                Err(error) => return drop(sender.blocking_send(Err(error))),
            };
            let mut index = 0;
            loop {
                if held.is_last {
                    return drop(sender.blocking_send(Ok(held)));
                }
                index += 1;
                let next = read_block(&mut reader, index, &name);
                match next {
                    Ok(next) if next.content.is_empty() => held.is_last = true,
                    Ok(next) => {
                        if sender.blocking_send(Ok(std::mem::replace(&mut held, next))).is_err() {
                            return;
                        }
                    }
                    Err(error) => return drop(sender.blocking_send(Err(error))),
                }
            }
        })
        .while_doing(|| "start a thread for the stream".to_owned())?;
    Ok((receiver, check))
}

fn read_block(reader: &mut impl io::Read, index: u64, name: &str) -> Result<Block> {
    let mut content = vec![0; GROUP_LEN];
    let mut filled = 0;
    while let Some(rest) = content.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(format!("read {}", Escaped(name.as_bytes())), error)),
        }
    }
    content.truncate(filled);
    let hash = if filled == 0 { GroupHash::of(index, &[0]) } else { GroupHash::of(index, &content) };
    Ok(Block { content: content.into(), hash, is_last: filled < GROUP_LEN })
}

async fn next_block(blocks: &mut mpsc::Receiver<Result<Block>>) -> Result<Block> {
    let gone = || Error::new(ErrorKind::Internal, "the thread that reads the stream has ended");
    blocks.recv().await.ok_or_else(gone)?
}

impl Job {
    /// Uploads a stream. One that ends within its first group has a known size, and is sent like a file.
    pub(super) async fn put_stream(self: Arc<Job>, mut item: Item, target: RemotePath, stream: StreamSource) {
        item.started(self.expect_size).await;
        match self.send_stream(&target, stream, &mut item).await {
            Ok((stored, root, size)) => self.told_stored(item, &stored, size, root, false).await,
            Err(error) => item.failed(self.explain(error, &target)).await,
        }
    }

    async fn send_stream(
        &self,
        target: &RemotePath,
        stream: StreamSource,
        item: &mut Item,
    ) -> Result<(Stored, Root, u64)> {
        let put = self.put_message(target, random_id()?);
        if stream.spool.is_some() {
            let spooled = spawn_blocking(move || spool(stream)).await.map_err(panicked)??;
            return self.send_again_and_again(put, Content::File(Arc::new(spooled), false), item).await;
        }
        let (mut blocks, check) = read_stream(stream)?;
        let first = self.client.stalls().during(Cause::Source, next_block(&mut blocks)).await?;
        if first.is_last {
            self.check_stream_end(check).await?;
            return self.send_again_and_again(put, Content::Memory(first.content), item).await;
        }
        // Until the first byte has left it can be tried again; then it cannot, as nobody can read it once more.
        let mut retry = self.client.retry();
        let exchange = loop {
            match self.open_stream(&put).await {
                Ok(Opened::Exchange(exchange)) => break exchange,
                Ok(Opened::Skipped(stored)) => {
                    let size = stored.size;
                    return Ok((stored, UNKNOWN, size));
                }
                Err(error) => retry.after(error).await?,
            }
        };
        let sent = self.send_blocks(exchange, first, &mut blocks, check, item).await;
        sent.map_err(|error| match error.kind().is_retryable() {
            true => error.context("a stream cannot be read again (with `--spool` it goes on)"),
            false => error,
        })
    }

    /// Sends a stream to its end, once.
    async fn send_blocks(
        &self,
        mut exchange: Exchange,
        first: Block,
        blocks: &mut mpsc::Receiver<Result<Block>>,
        check: StreamCheck,
        item: &mut Item,
    ) -> Result<(Stored, Root, u64)> {
        let (mut tree, mut size, mut block) = (Tree::new(), 0_u64, first);
        loop {
            let (index, content) = (size / GROUP_LEN as u64, block.content);
            size += content.len() as u64;
            if let Some(expected) = self.expect_size.filter(|&expected| size > expected) {
                let error = expectation_failed(format!("it has more than the {expected} bytes expected"));
                exchange.abort(&error);
                return Err(error);
            }
            if !content.is_empty() {
                tree.insert(index, block.hash);
                let len = content.len() as u64;
                exchange.send_content(group_offset(index), content).await?;
                item.advance(len, len);
            }
            if block.is_last {
                break;
            }
            tokio::select! {
                next = self.client.stalls().during(Cause::Source, next_block(blocks)) => block = next?,
                reply = exchange.next() => {
                    let reply = reply?;
                    return Err(exchange.unexpected(&reply));
                }
            }
        }
        let root =
            tree.root(size).ok_or_else(|| Error::new(ErrorKind::Internal, "a group of the stream was not hashed"))?;
        let fit = self.check_stream_end(check).await.and_then(|()| self.check_expected(size, root));
        if let Err(error) = fit {
            exchange.abort(&error);
            return Err(error);
        }
        exchange.finish(&Finish { size, root });
        match self.client.stalls().during(Cause::Answer, exchange.next()).await? {
            Reply::Stored(stored) => {
                check_stored(&stored, self.if_exists, root, size)?;
                Ok((stored, root, size))
            }
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// Sends what a stream has brought, until it is there or will not be.
    async fn send_again_and_again(
        &self,
        mut put: Put,
        content: Content,
        item: &mut Item,
    ) -> Result<(Stored, Root, u64)> {
        let size = content.size();
        put.size = Some(size);
        let mut retry = self.client.retry();
        let mut hashed = Tree::new();
        loop {
            match self.send_known(&put, &content, item, &mut hashed).await {
                Ok(Known::Stored(stored, root)) => return Ok((stored, root, size)),
                Ok(Known::Named(_)) => {
                    return Err(Error::new(ErrorKind::Internal, "a stream is no further name of a file"));
                }
                Ok(Known::Unexpected(error)) => return Err(error),
                Err(error) => {
                    item.restart();
                    if error.kind() == ErrorKind::Mismatch {
                        hashed = Tree::new();
                        put.no_base |= error.is_from_peer();
                    }
                    retry.after(error).await?;
                }
            }
        }
    }

    async fn open_stream(&self, put: &Put) -> Result<Opened> {
        let session = self.client.session().await?;
        let mut exchange = session.open_put(put).await?;
        match exchange.next().await? {
            Reply::PutAnswer(answer) if answer.holding == Holding::Fresh => Ok(Opened::Exchange(exchange)),
            // Nothing of it was sent, so nothing of it can be stored.
            Reply::Stored(stored) if check_skipped(&stored, self.if_exists)? => Ok(Opened::Skipped(stored)),
            other => Err(exchange.unexpected(&other)),
        }
    }

    async fn check_stream_end(&self, check: StreamCheck) -> Result<()> {
        spawn_blocking(check).await.map_err(panicked)?
    }
}
