//! Frames over TLS, for both roles.
//!
//! One task owns a [`Connection`] and drives both directions at once through [`Connection::next`]: it writes what is
//! queued, asks the [`Handler`] for data when there is room, reads content straight into the handler's buffers, and
//! returns each control frame. Control frames overtake data between frames; at most one data frame and what TLS has
//! buffered ([`TLS_WRITE_BUFFER_LEN`]) is ahead of them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use super::Socket;
use super::limiter::{Limits, Meter};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{self, DATA_LEN_MAX, GROUP_LEN, TLS_WRITE_BUFFER_LEN};
use crate::protocol::{Breach, FRAME_HEADER_LEN, Header, Kind, Message, OFFSET_LEN};

/// What a connection reports to the task that drives it.
#[derive(Debug)]
pub enum Event {
    /// A control frame: its kind, its transfer, its payload (still to be decoded).
    Control(Kind, u32, Vec<u8>),
    /// The peer ended the stream in order, between frames.
    Closed,
}

/// The task's side of the content that a connection moves.
pub trait Handler {
    /// Where the next bytes of content go: at most `len` of them, at `offset` of this transfer's file. The same
    /// piece may be asked for in several steps, and again after `Pending`. An empty buffer means that the content
    /// is to be thrown away.
    fn poll_space(&mut self, cx: &mut Context<'_>, transfer: u32, offset: u64, len: usize) -> Poll<Result<&mut [u8]>>;

    /// `len` bytes are in the buffer that [`Handler::poll_space`] gave (or were thrown away).
    ///
    /// # Errors
    /// What ends the connection.
    fn filled(&mut self, transfer: u32, offset: u64, len: usize) -> Result<()>;

    /// Nothing is there yet for the buffer that [`Handler::poll_space`] gave; it will be asked for anew.
    fn nothing_came(&mut self, _transfer: u32) {}

    /// The next content to send: transfer, offset and at most [`DATA_LEN_MAX`] bytes inside one group.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<(u32, u64, Bytes)>;
}

/// What has moved over a connection: content and frames, not records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of frames received.
    pub received: u64,
    /// Bytes of frames sent.
    pub sent: u64,
}

enum Reading {
    /// Bytes of a header that are there.
    Header([u8; FRAME_HEADER_LEN], usize),
    /// A control payload, as far as it came.
    Control(Header, Vec<u8>),
    /// The offset of a data payload, as far as it came.
    Offset(Header, [u8; OFFSET_LEN], usize),
    /// Content: transfer, offset of the next byte, bytes still to come.
    Content(u32, u64, usize),
    /// The stream has ended.
    Closed,
}

impl Reading {
    fn start() -> Reading {
        Reading::Header([0; FRAME_HEADER_LEN], 0)
    }
}

struct Outgoing {
    header: [u8; FRAME_HEADER_LEN + OFFSET_LEN],
    content: Bytes,
    written: usize,
    /// The content is a copy of what the handler gave.
    is_copy: bool,
}

/// A TLS connection that carries frames.
pub struct Connection {
    tls: Box<TlsStream<Socket>>,
    reading: Reading,
    /// Control frames, whole; the first may be written in part.
    control: VecDeque<Bytes>,
    control_len: usize,
    control_written: usize,
    data: Option<Outgoing>,
    /// What follows that frame, where a limit makes frames short: transfer, offset, content, and whether it is a copy.
    rest: Option<(u32, u64, Bytes, bool)>,
    /// How much may be sent and received.
    sending: Meter,
    receiving: Meter,
    unflushed: bool,
    hello_len_max: Option<usize>,
    traffic: Traffic,
}

impl Connection {
    /// Takes over a stream whose handshake is done. Until [`Connection::greeted`], only small frames are read.
    #[must_use]
    pub fn new(mut tls: TlsStream<Socket>) -> Connection {
        match &mut tls {
            TlsStream::Client(tls) => tls.get_mut().1.set_buffer_limit(Some(TLS_WRITE_BUFFER_LEN)),
            TlsStream::Server(tls) => tls.get_mut().1.set_buffer_limit(Some(TLS_WRITE_BUFFER_LEN)),
        }
        Connection {
            tls: Box::new(tls),
            reading: Reading::start(),
            control: VecDeque::new(),
            control_len: 0,
            control_written: 0,
            data: None,
            rest: None,
            sending: Meter::default(),
            receiving: Meter::default(),
            unflushed: false,
            hello_len_max: Some(limits::HELLO_LEN_MAX),
            traffic: Traffic::default(),
        }
    }

    /// The hellos are exchanged: frames of full size may come.
    pub fn greeted(&mut self) {
        self.hello_len_max = None;
    }

    /// Bounds how fast frames are sent and content is received, together with all connections of the same limits.
    pub fn set_limits(&mut self, limits: &Limits) {
        (self.sending, self.receiving) = limits.meters();
    }

    /// Whether a limit of ours keeps something from being sent or received now.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.sending.is_waiting() || self.receiving.is_waiting()
    }

    /// How long limits of ours have kept something from being sent or received, together.
    #[must_use]
    pub fn held_back(&self) -> Duration {
        self.sending.waited() + self.receiving.waited()
    }

    /// The socket, for addresses and options.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        self.tls.get_ref().0
    }

    /// What has moved so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Queues a message.
    pub fn send<M: Message>(&mut self, transfer: u32, message: &M) {
        self.send_frame(message.to_frame(transfer).into());
    }

    /// Queues a control frame that is already encoded.
    pub fn send_frame(&mut self, frame: Bytes) {
        self.control_len += frame.len();
        self.control.push_back(frame);
    }

    /// Bytes of control frames that are queued. Whoever answers requests reads no more of them above
    /// [`limits::CONTROL_QUEUE_MAX`].
    #[must_use]
    pub fn control_queued(&self) -> usize {
        self.control_len
    }

    /// Whether nothing that was queued is still unwritten.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.control.is_empty() && self.data.is_none() && self.rest.is_none() && !self.unflushed
    }

    /// Whether a data frame is being written out of the handler's buffer.
    #[must_use]
    pub fn holds_data(&self) -> bool {
        self.data.as_ref().is_some_and(|outgoing| !outgoing.is_copy)
            || self.rest.as_ref().is_some_and(|(.., is_copy)| !is_copy)
    }

    /// Copies the data frame that is being written, so that the handler's buffer is free again though
    /// the peer does not read.
    pub fn detach_data(&mut self) {
        if let Some(outgoing) = self.data.as_mut().filter(|outgoing| !outgoing.is_copy) {
            outgoing.content = Bytes::copy_from_slice(&outgoing.content);
            outgoing.is_copy = true;
        }
        if let Some((_, _, content, is_copy)) = self.rest.as_mut().filter(|(.., is_copy)| !is_copy) {
            *content = Bytes::copy_from_slice(content);
            *is_copy = true;
        }
    }

    /// Drives both directions until a control frame or the end of the stream has come.
    ///
    /// # Errors
    /// A broken connection (`Connection`, also for a stream that ends without TLS's close_notify), a breach of the
    /// protocol, or what the handler refuses.
    ///
    /// # Cancel safety
    /// Safe: all state lives in the connection and the handler.
    pub async fn next(&mut self, handler: &mut impl Handler) -> Result<Event> {
        std::future::poll_fn(|cx| self.poll_next(cx, handler)).await
    }

    /// One step of [`Connection::next`].
    ///
    /// # Errors
    /// As [`Connection::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>, handler: &mut impl Handler) -> Poll<Result<Event>> {
        // Writing first: a peer that waits for our answer sends nothing.
        // Pending or not, it has written what it could; reading goes on in any case.
        let _ = self.poll_write(cx, Some(handler))?;
        if self.control_len > limits::CONTROL_QUEUE_MAX {
            // The peer asks for more than it reads: `poll_write` wakes us when it has read.
            return Poll::Pending;
        }
        self.poll_read(cx, handler)
    }

    /// Writes what is queued, and data while the handler has some. Pending or not, it has done what it could.
    fn poll_write<H: Handler>(&mut self, cx: &mut Context<'_>, mut handler: Option<&mut H>) -> Result<Poll<()>> {
        loop {
            let is_begun = self.data.as_ref().is_some_and(|outgoing| outgoing.written > 0);
            if !is_begun && self.control.is_empty() && self.data.is_none() {
                if let Some(rest) = self.rest.take() {
                    self.begin_data(rest);
                } else if let Some(handler) = handler.as_mut()
                    && let Poll::Ready((transfer, offset, content)) = handler.poll_data(cx)
                {
                    self.begin_data((transfer, offset, content, false));
                }
            }
            if self.control.is_empty() && self.data.is_none() {
                return self.poll_flush(cx);
            }
            if self.sending.poll(cx).is_pending() {
                // What was sent before goes on its way meanwhile.
                let _ = self.poll_flush(cx)?;
                return Ok(Poll::Pending);
            }
            let result = match self.data.as_mut() {
                Some(outgoing) if is_begun || self.control.is_empty() => poll_data_frame(&mut self.tls, cx, outgoing),
                _ => self.poll_control(cx),
            };
            match result {
                Poll::Ready(Ok(count)) => {
                    self.traffic.sent += count as u64;
                    self.sending.took(count);
                    self.unflushed = true;
                    if self.data.as_ref().is_some_and(Outgoing::is_written) {
                        self.data = None;
                    }
                }
                Poll::Ready(Err(error)) => return Err(broken(error)),
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
    }

    /// Begins the next data frame, of as much of the content as there should be in one.
    fn begin_data(&mut self, (transfer, offset, mut content, is_copy): (u32, u64, Bytes, bool)) {
        let len = content.len().min(self.sending.grant_len());
        let piece = content.split_to(len);
        if !content.is_empty() {
            self.rest = Some((transfer, offset + len as u64, content, is_copy));
        }
        self.data = Some(data_frame(transfer, offset, piece, is_copy));
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>> {
        if !self.unflushed {
            return Ok(Poll::Ready(()));
        }
        match Pin::new(&mut *self.tls).poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                self.unflushed = false;
                Ok(Poll::Ready(()))
            }
            Poll::Ready(Err(error)) => Err(broken(error)),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Writes queued control frames, many to a system call.
    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = Vec::with_capacity(self.control.len().min(64));
        for (index, frame) in self.control.iter().take(64).enumerate() {
            slices.push(IoSlice::new(if index == 0 { &frame[self.control_written..] } else { frame }));
        }
        let written = std::task::ready!(Pin::new(&mut *self.tls).poll_write_vectored(cx, &slices))?;
        self.control_written += written;
        while let Some(first) = self.control.front() {
            if self.control_written < first.len() {
                break;
            }
            self.control_written -= first.len();
            self.control_len -= first.len();
            self.control.pop_front();
        }
        Poll::Ready(Ok(written))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, handler: &mut impl Handler) -> Poll<Result<Event>> {
        // After this much the task yields, so that a fast peer does not hold a thread: others on it, whose sockets hold
        // little more, would get less in their turns.
        let mut budget = 2 * GROUP_LEN;
        loop {
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let tls = &mut self.tls;
            let count = match &mut self.reading {
                Reading::Header(bytes, filled) => {
                    let count = match poll_fill(tls, cx, &mut bytes[*filled..]) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                        Poll::Ready(Ok(count)) => count,
                    };
                    if count == 0 {
                        if *filled > 0 {
                            return Poll::Ready(Err(cut("in a frame header")));
                        }
                        self.reading = Reading::Closed;
                        return Poll::Ready(Ok(Event::Closed));
                    }
                    *filled += count;
                    if *filled == FRAME_HEADER_LEN {
                        let header = Header::decode(bytes)?;
                        if let (Some(max), Some(kind)) = (self.hello_len_max, header.kind)
                            && header.len as usize > max
                        {
                            return Poll::Ready(Err(Breach::TooLong { kind, len: header.len }.into()));
                        }
                        self.reading = match header.kind {
                            Some(Kind::Data) => Reading::Offset(header, [0; OFFSET_LEN], 0),
                            _ => Reading::Control(header, Vec::new()),
                        };
                    }
                    count
                }
                Reading::Control(header, payload) => {
                    let len = header.len as usize;
                    let filled = payload.len();
                    // The buffer follows the bytes that came, not the length that was announced.
                    let step = (len - filled).min(limits::HELLO_LEN_MAX);
                    payload.resize(filled + step, 0);
                    let count = match poll_fill(tls, cx, &mut payload[filled..]) {
                        Poll::Pending => {
                            payload.truncate(filled);
                            return Poll::Pending;
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                        Poll::Ready(Ok(count)) => count,
                    };
                    payload.truncate(filled + count);
                    if count == 0 && step > 0 {
                        return Poll::Ready(Err(cut("in a message")));
                    }
                    if payload.len() == len {
                        let (header, payload) = (*header, std::mem::take(payload));
                        self.reading = Reading::start();
                        self.traffic.received += (FRAME_HEADER_LEN + len) as u64;
                        // A kind that is not known and may be skipped leaves no trace.
                        if let Some(kind) = header.kind {
                            return Poll::Ready(Ok(Event::Control(kind, header.transfer, payload)));
                        }
                    }
                    count
                }
                Reading::Offset(header, bytes, filled) => {
                    let count = match poll_fill(tls, cx, &mut bytes[*filled..]) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(cut("in a data frame"))),
                        Poll::Ready(Ok(count)) => count,
                    };
                    *filled += count;
                    if *filled == OFFSET_LEN {
                        let content_len = header.len as usize - OFFSET_LEN;
                        self.traffic.received += (FRAME_HEADER_LEN + OFFSET_LEN) as u64;
                        self.reading = Reading::Content(header.transfer, u64::from_be_bytes(*bytes), content_len);
                    }
                    count
                }
                Reading::Content(transfer, offset, rest) => {
                    let space = match handler.poll_space(cx, *transfer, *offset, *rest) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(space) => space?,
                    };
                    let mut waste = Vec::new();
                    let space = if space.is_empty() {
                        waste.resize(16 * limits::KIB, 0);
                        &mut waste[..]
                    } else {
                        space
                    };
                    if self.receiving.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    let limit = space.len().min(*rest).min(budget).min(self.receiving.grant_len());
                    let count = match poll_fill(tls, cx, &mut space[..limit]) {
                        Poll::Pending => {
                            handler.nothing_came(*transfer);
                            return Poll::Pending;
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(cut("in content"))),
                        Poll::Ready(Ok(count)) => count,
                    };
                    self.traffic.received += count as u64;
                    self.receiving.took(count);
                    handler.filled(*transfer, *offset, count)?;
                    *offset += count as u64;
                    *rest -= count;
                    if *rest == 0 {
                        self.reading = Reading::start();
                    }
                    count
                }
                Reading::Closed => return Poll::Ready(Ok(Event::Closed)),
            };
            budget = budget.saturating_sub(count);
        }
    }

    /// Writes all that is queued, without reading.
    ///
    /// # Errors
    /// A broken connection, or `Timeout`.
    ///
    /// # Cancel safety
    /// Safe: what is unwritten stays queued.
    pub async fn flush(&mut self, limit: Duration) -> Result<()> {
        let flushed = std::future::poll_fn(|cx| match self.poll_write(cx, None::<&mut NoData>) {
            Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
            Ok(Poll::Pending) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        });
        timeout(limit, flushed)
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "the peer does not read what it is sent")))
    }

    /// Ends the connection in order, without waiting for what the peer says to that: what is queued is written and TLS is
    /// closed. For a side that was answered all that it asked.
    ///
    /// # Cancel safety
    /// Not safe, and harmless: the connection is gone in any case.
    pub async fn leave(mut self) {
        // Whether the peer is still there to hear it makes no difference to us.
        let _ = self.flush(limits::REFUSAL_DRAIN_TIMEOUT).await;
        let _ = self.tls.shutdown().await;
    }

    /// Ends the connection in order: what is queued is written, TLS is closed, and what the peer still sends is read
    /// for a bounded time, so that a reset does not destroy what it has not read yet.
    ///
    /// # Cancel safety
    /// Not safe, and harmless: the connection is gone in any case.
    pub async fn close(mut self) {
        // Whether the peer is still there to hear it makes no difference to us.
        let _ = self.flush(limits::REFUSAL_DRAIN_TIMEOUT).await;
        drain_refused(*self.tls).await;
    }
}

/// Says close_notify and reads and forgets what comes, bounded in time and bytes.
///
/// # Cancel safety
/// Not safe, and harmless.
pub async fn drain_refused(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let drain = async {
        // A peer that is already gone cannot be told; that is all right.
        let _ = stream.shutdown().await;
        let mut waste = vec![0; 16 * limits::KIB];
        let mut rest = limits::REFUSAL_DRAIN_LEN_MAX;
        while rest > 0 {
            match stream.read(&mut waste).await {
                Ok(0) | Err(_) => break,
                Ok(count) => rest = rest.saturating_sub(count),
            }
        }
    };
    // The deadline is the point: whatever was not read by then is lost.
    let _ = timeout(limits::REFUSAL_DRAIN_TIMEOUT, drain).await;
}

struct NoData;

impl Handler for NoData {
    fn poll_space(&mut self, _: &mut Context<'_>, _: u32, _: u64, _: usize) -> Poll<Result<&mut [u8]>> {
        Poll::Ready(Ok(&mut []))
    }

    fn filled(&mut self, _: u32, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        Poll::Pending
    }
}

impl Outgoing {
    fn is_written(&self) -> bool {
        self.written == self.header.len() + self.content.len()
    }
}

fn data_frame(transfer: u32, offset: u64, content: Bytes, is_copy: bool) -> Outgoing {
    debug_assert!(!content.is_empty() && content.len() <= DATA_LEN_MAX, "one data frame");
    let mut header = [0; FRAME_HEADER_LEN + OFFSET_LEN];
    header[..FRAME_HEADER_LEN].copy_from_slice(&Header::new(Kind::Data, transfer, OFFSET_LEN + content.len()).encode());
    header[FRAME_HEADER_LEN..].copy_from_slice(&offset.to_be_bytes());
    Outgoing { header, content, written: 0, is_copy }
}

fn poll_data_frame(
    tls: &mut TlsStream<Socket>,
    cx: &mut Context<'_>,
    outgoing: &mut Outgoing,
) -> Poll<io::Result<usize>> {
    let written = match outgoing.written.checked_sub(outgoing.header.len()) {
        None => {
            let slices = [IoSlice::new(&outgoing.header[outgoing.written..]), IoSlice::new(&outgoing.content)];
            std::task::ready!(Pin::new(tls).poll_write_vectored(cx, &slices))?
        }
        Some(start) => std::task::ready!(Pin::new(tls).poll_write(cx, &outgoing.content[start..]))?,
    };
    outgoing.written += written;
    Poll::Ready(Ok(written))
}

/// Reads what is there, at most as much as fits; 0 at the end of the stream or for an empty buffer.
fn poll_fill(tls: &mut TlsStream<Socket>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    // A read yields one record; going on while there are more saves the walk through the frames for each.
    while buffer.remaining() > 0 {
        let filled = buffer.filled().len();
        match Pin::new(&mut *tls).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() == filled => break,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) if filled == 0 => return Poll::Ready(Err(error)),
            Poll::Pending if filled == 0 => return Poll::Pending,
            // What came first is handed over; the error or the waiting is met again by the next call.
            Poll::Ready(Err(_)) | Poll::Pending => break,
        }
    }
    Poll::Ready(Ok(buffer.filled().len()))
}

fn cut(place: &str) -> Error {
    Error::new(ErrorKind::Connection, format!("the connection ended {place}"))
}

fn broken(error: io::Error) -> Error {
    let kind = match error.kind() {
        // After the handshake only the right keys make records that are accepted, so these were changed on their way
        // (or those of the other side were, as its alert says), and another connection may be luckier.
        io::ErrorKind::InvalidData => {
            let message = "the connection broke: what came over it is not what was sent";
            return Error::new(ErrorKind::Connection, message).with_source(error);
        }
        io::ErrorKind::TimedOut => ErrorKind::Timeout,
        _ => ErrorKind::Connection,
    };
    Error::new(kind, "the connection broke").with_source(error)
}
