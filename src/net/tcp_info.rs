//! What the kernel knows of a TCP connection: `TCP_INFO`.
//!
//! No crate that this one uses asks for it, so the one system call is made here, into bytes, which are then read as
//! the kernel lays them out (`struct tcp_info` in `linux/tcp.h`; it only ever grows at its end, and says how far it
//! goes). This is the only place of the crate with `unsafe`.

#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// What is known of the path and of what held a connection up. What a kernel does not tell is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// The round trip as smoothed now, by what was acknowledged to this side.
    pub rtt: Duration,
    /// The shortest that was seen.
    pub rtt_min: Duration,
    /// The round trip as the receiver of content sees it.
    pub receive_rtt: Duration,
    /// Bytes that the other side has acknowledged.
    pub acked: u64,
    /// Bytes that were received.
    pub received: u64,
    /// Bytes that were sent once more.
    pub resent: u64,
    /// Packets that came before those that they follow.
    pub out_of_order: u32,
    /// How long there was something to send.
    pub busy: Duration,
    /// How much of that the other side's window held it up, or this side's send buffer.
    pub limited_by_buffers: Duration,
    /// How much of that the other side's window held it up: it did not take more.
    pub limited_by_peer: Duration,
    /// Bytes in a second, as the last acknowledgements told.
    pub delivery_rate: u64,
}

/// Asks the kernel; none where it does not tell.
#[must_use]
pub fn tcp_info(socket: BorrowedFd<'_>) -> Option<TcpInfo> {
    let mut bytes = [0; 256];
    let len = read(socket, &mut bytes)?;
    // What is past the end stays zero.
    parse(&bytes, len)
}

#[cfg(target_os = "linux")]
fn read(socket: BorrowedFd<'_>, bytes: &mut [u8; 256]) -> Option<usize> {
    let mut len: libc::socklen_t = 256;
    // SAFETY: the descriptor is open as long as it is borrowed; the pointers are to a buffer of `len` bytes and to
    // that length, both of which live through the call, and any bytes are a valid value of the buffer.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, bytes.as_mut_ptr().cast(), &raw mut len)
    };
    (result == 0).then_some((len as usize).min(bytes.len()))
}

#[cfg(not(target_os = "linux"))]
fn read(_: BorrowedFd<'_>, _: &mut [u8; 256]) -> Option<usize> {
    None
}

fn parse(bytes: &[u8; 256], len: usize) -> Option<TcpInfo> {
    let word =
        |at: usize| bytes.get(at..at + 4).map_or(0, |part| u32::from_ne_bytes(part.try_into().unwrap_or_default()));
    let long =
        |at: usize| bytes.get(at..at + 8).map_or(0, |part| u64::from_ne_bytes(part.try_into().unwrap_or_default()));
    let micros = |value: u32| Duration::from_micros(value.into());
    let rtt_min = word(148);
    // The first fields are as old as the call.
    (len >= 104).then(|| TcpInfo {
        rtt: micros(word(68)),
        rtt_min: if rtt_min == u32::MAX { Duration::ZERO } else { micros(rtt_min) },
        receive_rtt: micros(word(92)),
        acked: long(120),
        received: long(128),
        resent: long(208),
        out_of_order: word(224),
        busy: Duration::from_micros(long(168)),
        limited_by_buffers: Duration::from_micros(long(176).saturating_add(long(184))),
        limited_by_peer: Duration::from_micros(long(176)),
        delivery_rate: long(160),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_kernel_counts_what_is_sent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[1; 10_000]).unwrap();
        server.read_exact(&mut [0; 10_000]).unwrap();
        server.write_all(b"x").unwrap();
        // What comes back brings the acknowledgement with it.
        client.read_exact(&mut [0; 1]).unwrap();
        let (here, there) = (tcp_info(client.as_fd()).unwrap(), tcp_info(server.as_fd()).unwrap());
        println!("{here:?}");
        // The kernel counts the beginning of the connection as one more.
        assert!((10_000..=10_001).contains(&here.acked), "{here:?}");
        assert!((10_000..=10_001).contains(&there.received), "{there:?}");
        assert!(here.rtt > Duration::ZERO && here.rtt < Duration::from_secs(1), "{here:?}");
        assert!(here.rtt_min <= here.rtt.max(Duration::from_millis(1)), "{here:?}");
    }

    #[test]
    fn what_is_no_tcp_socket_is_not_known() {
        assert_eq!(tcp_info(std::fs::File::open("/dev/null").unwrap().as_fd()), None);
        assert_eq!(parse(&[0xff; 256], 100), None, "too short to be one");
    }
}
