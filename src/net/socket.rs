//! A TCP stream that reads much at a time, and holds a buffer only while there is something in it.
//!
//! rustls asks for about 4 KiB at a time. One system call fetches up to [`SOCKET_READ_LEN`] into a leased buffer and
//! serves those small reads from memory; when the socket has nothing more, the buffer goes back, so an idle
//! connection costs none. A connection whose reads are small, or one more than [`LARGE_MAX`] that hold a large
//! buffer, reads through a small one.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{Congestion, TcpInfo, tcp_info};
use crate::limits::{KIB, SOCKET_READ_LEN};

/// Large buffers in use at once, over all connections: 32 MiB. Above it, connections read through small ones.
const LARGE_MAX: usize = 128;
/// Bytes of a small buffer: one TLS record with its overhead.
const SMALL_LEN: usize = 17 * KIB;
/// A read that filled at least this much makes the next one large.
const LARGE_FROM: usize = 16 * KIB;

/// The large read buffers that all sockets of a process share.
#[derive(Clone, Default)]
pub struct SocketBuffers(Arc<Mutex<Shelf>>);

#[derive(Default)]
struct Shelf {
    free: Vec<Box<[u8]>>,
    leased: usize,
}

impl SocketBuffers {
    /// An empty shelf; buffers are made when they are first needed.
    #[must_use]
    pub fn new() -> SocketBuffers {
        SocketBuffers::default()
    }

    fn take(&self, large: bool) -> Box<[u8]> {
        if large {
            let mut shelf = self.0.lock().expect("no panic while the shelf is locked");
            if shelf.leased < LARGE_MAX {
                shelf.leased += 1;
                let free = shelf.free.pop();
                drop(shelf);
                return free.unwrap_or_else(|| vec![0; SOCKET_READ_LEN].into_boxed_slice());
            }
        }
        vec![0; SMALL_LEN].into_boxed_slice()
    }

    fn put_back(&self, buffer: Box<[u8]>) {
        if buffer.len() == SOCKET_READ_LEN {
            let mut shelf = self.0.lock().expect("no panic while the shelf is locked");
            shelf.leased -= 1;
            shelf.free.push(buffer);
        }
    }
}

/// A TCP stream as TLS sees it.
pub struct Socket {
    tcp: TcpStream,
    buffers: SocketBuffers,
    buffer: Option<Box<[u8]>>,
    /// The bytes of `buffer` that were read from the socket and not yet asked for.
    start: usize,
    end: usize,
    large: bool,
    received: u64,
    sent: u64,
}

impl Socket {
    /// Wraps a connected stream and switches off Nagle's algorithm: frames are written whole.
    #[must_use]
    pub fn new(tcp: TcpStream, buffers: SocketBuffers) -> Socket {
        // A socket that refuses the option is merely slower.
        let _ = tcp.set_nodelay(true);
        Socket { tcp, buffers, buffer: None, start: 0, end: 0, large: false, received: 0, sent: 0 }
    }

    /// The stream itself, for addresses and options.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Whether the other end is on the same machine, which it is when both have the same address.
    #[must_use]
    pub fn stays_on_machine(&self) -> bool {
        let ends = self.tcp.local_addr().and_then(|here| Ok((here.ip(), self.tcp.peer_addr()?.ip())));
        // Without addresses nobody knows.
        ends.is_ok_and(|(here, there)| here.to_canonical() == there.to_canonical())
    }

    /// Asks for a congestion control. To be called when the round trip is known: after the handshake.
    pub fn set_congestion(&self, congestion: &Congestion) {
        congestion.apply(&self.tcp);
    }

    /// Whether what is sent slows down at every lost packet, as far as is known of its congestion control.
    #[must_use]
    pub fn minds_loss(&self) -> bool {
        self.congestion().is_none_or(|name| !name.starts_with("bbr"))
    }

    #[cfg(target_os = "linux")]
    fn congestion(&self) -> Option<String> {
        rustix::net::sockopt::tcp_congestion(&self.tcp).ok()
    }

    #[cfg(not(target_os = "linux"))]
    fn congestion(&self) -> Option<String> {
        None
    }

    /// Gives the connection up: dropped, it ends by a reset, and what the peer has not been sent yet never is. A system
    /// would otherwise go on sending it for minutes, and a request could arrive after newer ones of a successor.
    pub fn give_up(&self) {
        // A socket that refuses is one that is gone.
        let _ = self.tcp.set_zero_linger();
    }

    /// Takes [`Socket::give_up`] back: dropped, the connection sends what it still has.
    pub fn keep(&self) {
        // As above.
        let _ = socket2::SockRef::from(&self.tcp).set_linger(None);
    }

    /// What the kernel knows of the path.
    #[must_use]
    pub fn info(&self) -> Option<TcpInfo> {
        tcp_info(self.tcp.as_fd())
    }

    /// Bytes read from the network.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes written to the network.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    fn release(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.buffers.put_back(buffer);
        }
    }

    fn poll_refill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.tcp.poll_read_ready(cx)?.is_pending() {
                self.release();
                return Poll::Pending;
            }
            let large = self.large;
            let buffer = self.buffer.get_or_insert_with(|| self.buffers.take(large));
            match self.tcp.try_read(buffer) {
                Ok(count) => {
                    (self.start, self.end) = (0, count);
                    self.received += count as u64;
                    // Where there is much, the next refill takes a large buffer.
                    self.large = count >= LARGE_FROM;
                    if count == 0 {
                        self.release();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.release();
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.start == this.end {
            if this.large && this.buffer.as_ref().is_some_and(|buffer| buffer.len() == SMALL_LEN) {
                this.release();
            }
            ready!(this.poll_refill(cx))?;
        }
        if let Some(buffer) = &this.buffer {
            let count = (this.end - this.start).min(buf.remaining());
            buf.put_slice(&buffer[this.start..this.start + count]);
            this.start += count;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.tcp).poll_write(cx, buf))?;
        self.sent += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs))?;
        self.sent += count as u64;
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_within_the_machine_is_told_by_its_addresses() {
        for (listens, connects) in
            [("127.0.0.1:0", "127.0.0.1:0"), ("[::]:0", "127.0.0.1:0"), ("127.0.0.1:0", "127.0.0.2:0")]
        {
            // Where there is no IPv6 there is nothing to see of it.
            let Ok(listener) = TcpListener::bind(listens).await else { continue };
            let at = std::net::SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
            let from = tokio::net::TcpSocket::new_v4().unwrap();
            from.bind(connects.parse().unwrap()).unwrap();
            let tcp = from.connect(at).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            for tcp in [tcp, accepted] {
                let socket = Socket::new(tcp, SocketBuffers::new());
                assert_eq!(socket.stays_on_machine(), connects == "127.0.0.1:0", "{listens}, {connects}");
            }
        }
    }

    /// What a peer that reads only later gets of what was written before the connection was dropped, and whether it
    /// ends like a whole one.
    async fn arrives(gives_up: bool, keeps: bool) -> (usize, usize, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut socket = Socket::new(tcp, SocketBuffers::new());
        let mut written = 0;
        // Until neither system takes more.
        while let Ok(Ok(count)) =
            tokio::time::timeout(std::time::Duration::from_millis(200), socket.write(&[7; 65536])).await
        {
            written += count;
        }
        if gives_up {
            socket.give_up();
        }
        if keeps {
            socket.keep();
        }
        drop(socket);
        let (mut read, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            match peer.read(&mut buffer).await {
                Ok(0) => return (written, read, true),
                Ok(count) => read += count,
                Err(_) => return (written, read, false),
            }
        }
    }

    #[tokio::test]
    async fn what_is_given_up_does_not_arrive_later() {
        for (gives_up, keeps) in [(false, false), (true, true)] {
            let (written, read, is_whole) = arrives(gives_up, keeps).await;
            assert!(is_whole && read == written, "in order: {read} of {written}");
        }
        let (written, read, is_whole) = arrives(true, false).await;
        assert!(!is_whole && read < written, "given up: {read} of {written}");
    }
}
