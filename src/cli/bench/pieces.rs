//! Each piece of a transfer, alone.

use std::fs::{File, OpenOptions};
use std::io::{Cursor, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::Bytes;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use time::OffsetDateTime;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{Count, KeyExchange, Piece, process_cpu, thread_cpu};
use crate::buffer::{Buffer, Pool};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::hash::{GroupHash, Root};
use crate::limits::{DATA_LEN_MAX, GROUP_LEN, MIB, SOCKET_READ_LEN};
use crate::net::{Connection, Event, Handler, Socket, SocketBuffers};
use crate::path::RemotePath;
use crate::storage::{FileMetadata, NewFile, Store, StoreOptions};
use crate::tls::{self, ClientTls, ServerTls, folder, pem};

pub(super) const TLS: &str = "TLS with frames, both sides, TCP included";
pub(super) const HASH: &str = "BLAKE3 of 1 MiB groups, hot";
pub(super) const READ: &str = "page cache read, memory";
pub(super) const WRITE_MEMORY: &str = "page cache write of new pages, memory, again";
pub(super) const DIRECT: &str = "O_DIRECT write with fsync, disk";

const GIB: f64 = (1_u64 << 30) as f64;
/// Bytes in a TLS record.
const RECORD_LEN: usize = 16 * 1024;
/// Bytes that are hashed as if from memory: more than any cache holds.
const MEMORY_LEN: usize = 256 * MIB;
/// Small files that are stored, their size, and how many of them a batch has.
const SMALL: (usize, usize, usize) = (3000, 10 * 1024, 100);

fn piece(name: &str, bytes: u64, elapsed: Duration, sides: &[f64]) -> Piece {
    let gib = bytes as f64 / GIB;
    let sides: Vec<f64> = sides.iter().map(|cpu| cpu / gib).collect();
    Piece { name: name.to_owned(), gib_s: gib / elapsed.as_secs_f64(), cpu_s_per_gib: sides.iter().sum(), sides }
}

/// Repeats `step`, which tells how many bytes it did, on this thread.
fn repeat(name: &str, time: Duration, mut step: impl FnMut() -> usize) -> Piece {
    step();
    let (began, cpu, mut bytes) = (Instant::now(), thread_cpu(), 0);
    while began.elapsed() < time {
        bytes += step() as u64;
    }
    piece(name, bytes, began.elapsed(), &[thread_cpu() - cpu])
}

fn joined<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a measuring thread failed")))
}

/// Bytes over loopback, without encryption.
pub(super) fn tcp(time: Duration) -> Result<Piece> {
    let listener = TcpListener::bind("127.0.0.1:0").while_doing(|| "listen on loopback".into())?;
    let address = listener.local_addr().while_doing(|| "listen on loopback".into())?;
    let sender = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).while_doing(|| "connect over loopback".into())?;
        let block = vec![7; SOCKET_READ_LEN];
        let (began, cpu) = (Instant::now(), thread_cpu());
        while began.elapsed() < time {
            stream.write_all(&block).while_doing(|| "write over loopback".into())?;
        }
        Ok(thread_cpu() - cpu)
    });
    let (mut stream, _) = listener.accept().while_doing(|| "accept over loopback".into())?;
    let mut block = vec![0; SOCKET_READ_LEN];
    let (began, cpu, mut bytes) = (Instant::now(), thread_cpu(), 0);
    loop {
        match stream.read(&mut block).while_doing(|| "read over loopback".into())? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    let (elapsed, receiver) = (began.elapsed(), thread_cpu() - cpu);
    Ok(piece("TCP over loopback, blocks of 256 KiB", bytes, elapsed, &[joined(sender)?, receiver]))
}

/// AES-256-GCM of whole records, as rustls seals them.
pub(super) fn seal(time: Duration) -> Piece {
    let key = aead_key();
    let mut records = vec![7; GROUP_LEN];
    repeat("AES-256-GCM, sealing", time, || {
        for record in records.chunks_mut(RECORD_LEN) {
            // The nonce repeats: nothing of this leaves the process.
            let nonce = Nonce::assume_unique_for_key([1; 12]);
            let tag =
                key.seal_in_place_separate_tag(nonce, Aad::from([0; 5]), record).expect("a record is not too long");
            // The optimiser must believe that the tag is used.
            let _ = std::hint::black_box(tag);
        }
        GROUP_LEN
    })
}

/// The same, the other way.
pub(super) fn open(time: Duration) -> Piece {
    let key = aead_key();
    let mut record = vec![7; RECORD_LEN];
    let nonce = || Nonce::assume_unique_for_key([1; 12]);
    let tag = key.seal_in_place_separate_tag(nonce(), Aad::from([0; 5]), &mut record).expect("it is not too long");
    let records = record.repeat(GROUP_LEN / RECORD_LEN);
    let mut plain = vec![0; RECORD_LEN];
    repeat("AES-256-GCM, opening", time, || {
        for record in records.chunks(RECORD_LEN) {
            key.open_separate_gather(nonce(), Aad::from([0; 5]), record, tag.as_ref(), &mut plain)
                .expect("it was sealed with this key");
        }
        GROUP_LEN
    })
}

fn aead_key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[9; 32]).expect("a key of 32 bytes"))
}

/// One group again and again.
pub(super) fn hash_hot(time: Duration) -> Piece {
    let group = vec![7; GROUP_LEN];
    repeat(HASH, time, || {
        std::hint::black_box(GroupHash::of(1, &group));
        GROUP_LEN
    })
}

/// Groups that no cache holds.
pub(super) fn hash_memory(time: Duration) -> Piece {
    let memory = vec![7; MEMORY_LEN];
    let mut groups = memory.chunks(GROUP_LEN).cycle();
    repeat("BLAKE3 of 1 MiB groups, from memory", time, || {
        std::hint::black_box(GroupHash::of(1, groups.next().unwrap_or(&memory)));
        GROUP_LEN
    })
}

/// A file of new pages in the page cache, twice (memory that this machine has not touched lately is dearer), and
/// read back.
pub(super) fn page_cache(directory: &Path, place: &str, size: u64) -> Result<Vec<Piece>> {
    let path = directory.join("pages");
    let mut buffer = group_buffer();
    buffer.fill(7);
    let mut pieces = Vec::new();
    for turn in ["first touch", "again"] {
        let file = make(&path, OFlags::empty())?;
        let name = format!("page cache write of new pages, {place}, {turn}");
        let began = (Instant::now(), thread_cpu());
        preallocate(&file, size)?;
        for offset in (0..size).step_by(GROUP_LEN) {
            file.write_all_at(&buffer, offset).while_doing(|| format!("write {}", path.display()))?;
        }
        pieces.push(piece(&name, size, began.0.elapsed(), &[thread_cpu() - began.1]));
        if turn == "again" {
            let began = (Instant::now(), thread_cpu());
            for offset in (0..size).step_by(GROUP_LEN) {
                file.read_exact_at(&mut buffer, offset).while_doing(|| format!("read {}", path.display()))?;
            }
            let name = format!("page cache read, {place}");
            pieces.push(piece(&name, size, began.0.elapsed(), &[thread_cpu() - began.1]));
        }
        drop(file);
        remove(&path)?;
    }
    Ok(pieces)
}

/// A file written past the page cache, and made durable. Nothing where the file system refuses that.
pub(super) fn direct(directory: &Path, size: u64) -> Result<Option<Piece>> {
    let path = directory.join("direct");
    let Ok(file) = make(&path, OFlags::DIRECT) else { return Ok(None) };
    let mut buffer = group_buffer();
    buffer.fill(7);
    let began = (Instant::now(), thread_cpu());
    preallocate(&file, size)?;
    for offset in (0..size).step_by(GROUP_LEN) {
        if file.write_all_at(&buffer, offset).is_err() {
            remove(&path)?;
            return Ok(None);
        }
    }
    file.sync_all().while_doing(|| format!("sync {}", path.display()))?;
    let direct = piece(DIRECT, size, began.0.elapsed(), &[thread_cpu() - began.1]);
    drop(file);
    remove(&path)?;
    Ok(Some(direct))
}

fn make(path: &Path, flags: OFlags) -> Result<File> {
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).custom_flags(flags);
    options.open(path).while_doing(|| format!("make {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).while_doing(|| format!("remove {}", path.display()))
}

fn preallocate(file: &File, size: u64) -> Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        Err(rustix::io::Errno::NOSPC) => Err(Error::new(ErrorKind::NoSpace, "no room for the file: give a --size")),
        // Where it is not offered, space comes with the writes.
        Ok(()) | Err(_) => Ok(()),
    }
}

fn group_buffer() -> Buffer {
    Pool::new(GROUP_LEN).try_lease(GROUP_LEN).expect("a new pool has room")
}

/// Small files through the store, in batches, as the server commits them.
pub(super) fn small_files(directory: &Path, place: &str) -> Result<Count> {
    let (count, size, batch) = SMALL;
    let store = Store::open_served(&directory.join("small"), StoreOptions::default())?;
    let content = vec![7; size];
    let root = Root::of(&content);
    let (began, cpu) = (Instant::now(), process_cpu());
    for first in (0..count).step_by(batch) {
        let mut staged = Vec::with_capacity(batch);
        for index in first..(first + batch).min(count) {
            let name = format!("d{}/f{index}", first / batch);
            let path = RemotePath::parse(name.as_bytes())
                .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
            let options = NewFile { size: Some(size as u64), make_parents: true, ..NewFile::default() };
            let upload = store.begin(&path, options)?;
            upload.write_at(0, &content)?;
            let metadata = FileMetadata { mode: None, mtime: None, root, upload_id: [0; 16], xattrs: None };
            staged.push(upload.finish(size as u64, metadata)?);
        }
        for published in store.publish(staged) {
            published?;
        }
    }
    let (elapsed, cpu) = (began.elapsed().as_secs_f64(), process_cpu() - cpu);
    Ok(counted(format!("small files stored durably, {place}"), count as f64, elapsed, cpu))
}

fn counted(name: String, count: f64, elapsed: f64, cpu: f64) -> Count {
    Count { name, per_s: count / elapsed, per_cpu_s: count / cpu.max(1e-9) }
}

/// Certificates made for this run.
pub(super) struct Keys(PathBuf);

impl Keys {
    pub(super) fn make(directory: &Path) -> Result<Keys> {
        let directory = directory.join("certs");
        folder::make(
            &folder::Request { directory: directory.clone(), ..Default::default() },
            OffsetDateTime::now_utc(),
        )?;
        Ok(Keys(directory))
    }

    fn server(&self, certificates: bool) -> Result<Arc<ServerConfig>> {
        let mut options = tls::ServerOptions::in_folder(&self.0);
        if !certificates {
            (options.client_ca, options.allow_anonymous) = (None, true);
        }
        Ok(ServerTls::load(&options)?.config())
    }

    fn client(&self, certificates: bool) -> tls::ClientOptions {
        let mut options = tls::ClientOptions::in_folder(&self.0);
        if !certificates {
            (options.certificate, options.key) = (None, None);
        }
        options
    }
}

/// A client as the program has it, but with one key exchange only.
pub(super) fn client_with(options: &tls::ClientOptions, exchange: KeyExchange) -> Result<ClientConfig> {
    use rustls::crypto::aws_lc_rs::kx_group;
    let group = match exchange {
        KeyExchange::Hybrid => kx_group::X25519MLKEM768,
        KeyExchange::X25519 => kx_group::X25519,
    };
    let provider = CryptoProvider { kx_groups: vec![group], ..tls::provider().as_ref().clone() };
    let refused = |error: rustls::Error| Error::new(ErrorKind::Usage, "set up TLS").with_source(error);
    let mut roots = RootCertStore::empty();
    for certificate in options.ca.iter().map(|path| pem::load_certificates(path)).collect::<Result<Vec<_>>>()?.concat()
    {
        roots.add(certificate).map_err(refused)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .with_root_certificates(roots);
    let mut config = match (&options.certificate, &options.key) {
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(pem::load_certificates(certificate)?, pem::load_private_key(key)?)
            .map_err(refused)?,
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Full handshakes without a network, and how much of them is the server's.
pub(super) fn handshakes(keys: &Keys, time: Duration) -> Result<Vec<Count>> {
    let mut counts = Vec::new();
    for (exchange, called) in [(KeyExchange::Hybrid, "hybrid"), (KeyExchange::X25519, "X25519")] {
        for certificates in [false, true] {
            let server = keys.server(certificates)?;
            let client = Arc::new(client_with(&keys.client(certificates), exchange)?);
            let began = Instant::now();
            let (mut count, mut cpu) = (0.0, 0.0);
            while began.elapsed() < time {
                cpu += handshake(&server, &client)?;
                count += 1.0;
            }
            let whom = if certificates { "with client certificate" } else { "without client certificate" };
            let name = format!("handshakes, {called}, {whom}, server's CPU");
            counts.push(counted(name, count, began.elapsed().as_secs_f64(), cpu));
        }
    }
    Ok(counts)
}

/// One handshake; the server's CPU seconds.
fn handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Result<f64> {
    let failed = |error: rustls::Error| Error::new(ErrorKind::Internal, "a handshake failed").with_source(error);
    let name = tls::server_name("localhost")?;
    let mut client = ClientConnection::new(Arc::clone(client), name).map_err(failed)?;
    let mut cpu = -thread_cpu();
    let mut server = ServerConnection::new(Arc::clone(server)).map_err(failed)?;
    cpu += thread_cpu();
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).while_doing(|| "write a flight".into())?;
        }
        cpu -= thread_cpu();
        let mut flight = Cursor::new(&wire[..]);
        while server.read_tls(&mut flight).while_doing(|| "read a flight".into())? > 0 {
            server.process_new_packets().map_err(failed)?;
        }
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).while_doing(|| "write a flight".into())?;
        }
        cpu += thread_cpu();
        let mut flight = Cursor::new(&answer[..]);
        while client.read_tls(&mut flight).while_doing(|| "read a flight".into())? > 0 {
            client.process_new_packets().map_err(failed)?;
        }
    }
    Ok(cpu)
}

/// Frames from memory to memory through the program's own connections, one thread for each side.
pub(super) fn tls(keys: &Keys, time: Duration) -> Result<Piece> {
    let (server, client) = (keys.server(true)?, ClientTls::load(&keys.client(true))?.config());
    let listener = TcpListener::bind("127.0.0.1:0").while_doing(|| "listen on loopback".into())?;
    let address = listener.local_addr().while_doing(|| "listen on loopback".into())?;
    let sender = thread::spawn(move || {
        runtime()?.block_on(async move {
            let tcp = tokio::net::TcpStream::connect(address).await.while_doing(|| "connect over loopback".into())?;
            let socket = Socket::new(tcp, SocketBuffers::new());
            let name = tls::server_name("localhost")?;
            let tls = TlsConnector::from(client).connect(name, socket).await.while_doing(|| "shake hands".into())?;
            let mut connection = Connection::new(TlsStream::Client(tls));
            connection.greeted();
            let cpu = thread_cpu();
            let mut source = Source { content: Bytes::from(vec![7; GROUP_LEN]), offset: 0, end: Instant::now() + time };
            std::future::poll_fn(|cx| {
                let polled = connection.poll_next(cx, &mut source);
                if Instant::now() >= source.end { Poll::Ready(Ok(())) } else { polled.map_ok(|_| ()) }
            })
            .await?;
            connection.flush(Duration::from_secs(5)).await?;
            let cpu = thread_cpu() - cpu;
            connection.close().await;
            Ok(cpu)
        })
    });
    let (tcp, _) = listener.accept().while_doing(|| "accept over loopback".into())?;
    tcp.set_nonblocking(true).while_doing(|| "accept over loopback".into())?;
    let (bytes, elapsed, receiver) = runtime()?.block_on(async move {
        let tcp = tokio::net::TcpStream::from_std(tcp).while_doing(|| "accept over loopback".into())?;
        let tls = TlsAcceptor::from(server).accept(Socket::new(tcp, SocketBuffers::new())).await;
        let mut connection = Connection::new(TlsStream::Server(tls.while_doing(|| "shake hands".into())?));
        connection.greeted();
        let mut sink = Sink { group: vec![0; GROUP_LEN], bytes: 0 };
        let (began, cpu) = (Instant::now(), thread_cpu());
        loop {
            if let Event::Closed = connection.next(&mut sink).await? {
                break Ok::<_, Error>((sink.bytes, began.elapsed(), thread_cpu() - cpu));
            }
        }
    })?;
    Ok(piece(TLS, bytes, elapsed, &[joined(sender)?, receiver]))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().while_doing(|| "start a runtime".into())
}

/// Content without end, until its time is up.
struct Source {
    content: Bytes,
    offset: u64,
    end: Instant,
}

impl Handler for Source {
    fn poll_space(&mut self, _: &mut Context<'_>, _: u32, _: u64, _: usize) -> Poll<Result<&mut [u8]>> {
        Poll::Ready(Ok(&mut []))
    }

    fn filled(&mut self, _: u32, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        if Instant::now() >= self.end {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let start = usize::try_from(self.offset % GROUP_LEN as u64).unwrap_or(0);
        let frame = (1, self.offset, self.content.slice(start..start + DATA_LEN_MAX));
        self.offset += DATA_LEN_MAX as u64;
        Poll::Ready(frame)
    }
}

/// One group that is overwritten again and again.
struct Sink {
    group: Vec<u8>,
    bytes: u64,
}

impl Handler for Sink {
    fn poll_space(&mut self, _: &mut Context<'_>, _: u32, offset: u64, len: usize) -> Poll<Result<&mut [u8]>> {
        let start = usize::try_from(offset % GROUP_LEN as u64).unwrap_or(0);
        let end = (start + len).min(GROUP_LEN);
        Poll::Ready(Ok(&mut self.group[start..end]))
    }

    fn filled(&mut self, _: u32, _: u64, len: usize) -> Result<()> {
        self.bytes += len as u64;
        Ok(())
    }

    fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        Poll::Pending
    }
}
