//! TLS by the byte: hellos in pieces and of great length, early data, floods inside the encryption, and ends without
//! a word for it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA384, KeyType, Prk};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, HandshakeKind, KeyLog};
use sealift::protocol::*;
use tokio::io::AsyncWriteExt as _;

use super::peer::{SOON, World, block_on, data, finish, hello, put, put_small};

fn connection(world: &World) -> ClientConnection {
    ClientConnection::new(world.client(true), ServerName::try_from("localhost").unwrap()).unwrap()
}

fn tcp(world: &World) -> TcpStream {
    let tcp = TcpStream::connect(world.address).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.set_read_timeout(Some(SOON)).unwrap();
    tcp.set_write_timeout(Some(SOON)).unwrap();
    tcp
}

/// Runs what blocks beside the server, which has this thread.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A handshake record's content.
fn record_content(records: &[u8]) -> Vec<u8> {
    let (mut rest, mut content) = (records, Vec::new());
    while let [22, _, _, high, low, more @ ..] = rest {
        let len = usize::from(*high) << 8 | usize::from(*low);
        content.extend_from_slice(&more[..len]);
        rest = &more[len..];
    }
    content
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).unwrap();
    [&[kind, 3, 3][..], &len.to_be_bytes(), content].concat()
}

/// Goes on with a handshake whose first flight was sent, and greets.
fn goes_on(mut connection: ClientConnection, mut tcp: TcpStream) {
    let mut stream = rustls::Stream::new(&mut connection, &mut tcp);
    stream.write_all(&hello().to_frame(0)).unwrap();
    let mut header = [0; FRAME_HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(Header::decode(&header).unwrap().kind, Some(Kind::ServerHello));
}

#[test]
fn a_hello_in_pieces_is_a_hello() {
    block_on(async {
        let world = World::new().await;
        for by_record in [true, false] {
            let (mut client, mut tcp) = (connection(&world), tcp(&world));
            beside(move || {
                let mut first = Vec::new();
                client.write_tls(&mut first).unwrap();
                if by_record {
                    // One byte of the message in each record.
                    let content = record_content(&first);
                    let pieces: Vec<u8> = content.iter().flat_map(|&byte| record(22, &[byte])).collect();
                    tcp.write_all(&pieces).unwrap();
                } else {
                    for byte in first {
                        tcp.write_all(&[byte]).unwrap();
                    }
                }
                goes_on(client, tcp);
            })
            .await;
        }
        world.check(&[]).await;
    });
}

/// A `ClientHello` with these extensions besides those that every one has.
fn client_hello(more: &[(u16, Vec<u8>)], key_shares: &[(u16, Vec<u8>)], last: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let list16 = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let shares: Vec<u8> =
        key_shares.iter().flat_map(|(group, key)| [group.to_be_bytes().to_vec(), list16(key)].concat()).collect();
    let groups: Vec<u8> = key_shares.iter().flat_map(|(group, _)| group.to_be_bytes()).collect();
    let mut extensions = vec![
        (43, vec![2, 3, 4]),
        (10, list16(&groups)),
        (13, list16(&[4, 3, 8, 4, 8, 7])),
        (51, list16(&shares)),
        (16, list16(&[&[9][..], b"sealift/1"].concat())),
    ];
    extensions.extend_from_slice(more);
    extensions.extend_from_slice(last);
    let extensions: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, content): &(u16, Vec<u8>)| [kind.to_be_bytes().to_vec(), list16(content)].concat())
        .collect();
    let body = [&[3, 3][..], &[7; 32], &[32], &[8; 32], &[0, 2, 0x13, 0x02], &[1, 0], &list16(&extensions)].concat();
    [&[1][..], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], &body].concat()
}

fn x25519() -> (u16, Vec<u8>) {
    (29, vec![9; 32])
}

/// What a server says to these bytes first: 22 a hello, 21 an alert, 0 the end.
fn answer_to(mut tcp: TcpStream, bytes: &[u8]) -> u8 {
    // It may close before it has read everything.
    let _ = tcp.write_all(bytes);
    let mut first = [0; 1];
    match tcp.read(&mut first) {
        Ok(1) => first[0],
        _ => 0,
    }
}

#[test]
fn hellos_of_any_length_are_answered_or_refused() {
    block_on(async {
        let world = World::new().await;
        let many =
            |count: u16| (0..count).map(|index| (0x0a0a + index, vec![1; 32])).chain([x25519()]).collect::<Vec<_>>();
        let hellos = [
            ("plain", client_hello(&[], &[x25519()], &[]), &[22][..]),
            ("17 key shares", client_hello(&[], &many(16), &[]), &[22, 21]),
            ("1500 key shares", client_hello(&[], &many(1500), &[]), &[22, 21, 0]),
            (
                "an extension of 60,000 bytes",
                client_hello(&[(0xfafa, vec![0; 60_000])], &[x25519()], &[]),
                &[22, 21, 0],
            ),
            (
                "thousands of extensions",
                client_hello(&(0..12_000).map(|index| (20_000 + index, vec![0])).collect::<Vec<_>>(), &[x25519()], &[]),
                &[22, 21, 0],
            ),
            ("the same extension twice", client_hello(&[(0xfafa, vec![]), (0xfafa, vec![])], &[x25519()], &[]), &[21]),
            ("no key share", client_hello(&[], &[], &[]), &[21]),
        ];
        for (what, hello, expected) in hellos {
            let records: Vec<u8> = hello.chunks(16_384).flat_map(|piece| record(22, piece)).collect();
            let tcp = tcp(&world);
            let got = beside(move || answer_to(tcp, &records)).await;
            assert!(expected.contains(&got), "{what}: {got}");
        }
        // A message of 16 MiB is announced, and not waited for.
        let tcp = tcp(&world);
        let got = beside(move || answer_to(tcp, &record(22, &[1, 0xff, 0xff, 0xff, 3, 3]))).await;
        assert!([21, 0].contains(&got), "16 MiB: {got}");
        world.check(&[]).await;
    });
}

#[test]
fn early_data_is_never_taken() {
    block_on(async {
        let world = World::new().await;
        // A ticket from elsewhere, early data, and an upload as its content, in clear and as noise.
        let list16 = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
        let identity = [list16(&[5; 100]), vec![0; 4]].concat();
        let psk = [list16(&identity), list16(&[&[32][..], &[6; 32]].concat())].concat();
        let offers = [(42, vec![]), (45, vec![1, 1])];
        let early = [put_small("early", b"x").to_frame(1), data(1, 0, b"x"), finish(b"x").to_frame(1)].concat();
        for content in [early, vec![0xaa; 16_000]] {
            let hello = record(22, &client_hello(&offers, &[x25519()], &[(41, psk.clone())]));
            let bytes = [hello, record(23, &content), record(23, &content)].concat();
            let tcp = tcp(&world);
            let got = beside(move || answer_to(tcp, &bytes)).await;
            assert!([22, 21].contains(&got), "{got}");
        }
        // Nobody is given anything to offer: a client that would resume never can.
        let config = world.client(true);
        let mut config = (*config).clone();
        config.enable_early_data = true;
        let config = Arc::new(config);
        for _ in 0..3 {
            let client =
                ClientConnection::new(Arc::clone(&config), ServerName::try_from("localhost").unwrap()).unwrap();
            let tcp = tcp(&world);
            beside(move || {
                let (mut client, mut tcp) = (client, tcp);
                assert!(client.early_data().is_none(), "there is no early data without a ticket");
                let mut stream = rustls::Stream::new(&mut client, &mut tcp);
                stream.write_all(&hello().to_frame(0)).unwrap();
                stream.read_exact(&mut [0; FRAME_HEADER_LEN]).unwrap();
                assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
            })
            .await;
        }
        world.check(&[]).await;
    });
}

/// Keeps a client's secret, so that records can be made by hand.
#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<u8>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        if label == "CLIENT_TRAFFIC_SECRET_0" {
            *self.0.lock().unwrap() = secret.to_vec();
        }
    }
}

struct Len(usize);

impl KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

/// RFC 8446, section 7.1.
fn expand(secret: &[u8], label: &str, len: usize) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let info =
        [&u16::try_from(len).unwrap().to_be_bytes()[..], &[u8::try_from(label.len()).unwrap()], label.as_bytes(), &[0]]
            .concat();
    let mut out = vec![0; len];
    let prk = Prk::new_less_safe(HKDF_SHA384, secret);
    prk.expand(&[&info], Len(len)).unwrap().fill(&mut out).unwrap();
    out
}

/// The sending half of TLS 1.3's record layer.
struct Records {
    secret: Vec<u8>,
    key: LessSafeKey,
    iv: Vec<u8>,
    number: u64,
}

impl Records {
    fn new(secret: Vec<u8>, number: u64) -> Records {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &expand(&secret, "key", 32)).unwrap());
        let iv = expand(&secret, "iv", 12);
        Records { secret, key, iv, number }
    }

    fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut nonce: [u8; 12] = self.iv.clone().try_into().unwrap();
        nonce[4..].iter_mut().zip(self.number.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        self.number += 1;
        let mut sealed = [content, &[kind]].concat();
        let len = u16::try_from(sealed.len() + 16).unwrap();
        let header = [&[23, 3, 3][..], &len.to_be_bytes()].concat();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(&header), &mut sealed).unwrap();
        [header, sealed].concat()
    }

    /// A `KeyUpdate`, and the keys that follow it.
    fn update(&mut self, is_asking: bool) -> Vec<u8> {
        let record = self.seal(22, &[24, 0, 0, 1, u8::from(is_asking)]);
        *self = Records::new(expand(&self.secret, "traffic upd", 48), 0);
        record
    }
}

#[test]
fn floods_inside_tls_end_the_connection_or_cost_next_to_nothing() {
    /// Makes the next record of a flood.
    type Flood = fn(&mut Records) -> Vec<u8>;
    const COUNT: usize = 50_000;
    let floods: [(&str, Flood); 5] = [
        ("empty records", |records| records.seal(23, b"")),
        ("warnings", |records| records.seal(21, &[1, 90])),
        ("key updates", |records| records.update(false)),
        ("key updates that ask for another", |records| records.update(true)),
        ("padding", |records| records.seal(0, &[0; 16_000])),
    ];
    block_on(async {
        let world = World::new().await;
        for (what, flood) in floods {
            let secrets = Arc::new(Secrets::default());
            let mut config = (*world.client(true)).clone();
            config.key_log = Arc::clone(&secrets) as _;
            let client = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
            let tcp = tcp(&world);
            let sent = beside(move || {
                let (mut client, mut tcp) = (client, tcp);
                while client.is_handshaking() || client.wants_write() {
                    client.complete_io(&mut tcp).unwrap();
                }
                let suite = client.negotiated_cipher_suite().unwrap().suite();
                assert_eq!(suite, rustls::CipherSuite::TLS13_AES_256_GCM_SHA384, "the keys below are for it");
                let mut records = Records::new(secrets.0.lock().unwrap().clone(), 0);
                // Records by hand are understood: the server greets.
                tcp.write_all(&records.seal(23, &hello().to_frame(0))).unwrap();
                let mut stream = rustls::Stream::new(&mut client, &mut tcp);
                stream.read_exact(&mut [0; FRAME_HEADER_LEN]).unwrap();
                (0..COUNT).find(|_| tcp.write_all(&flood(&mut records)).is_err()).unwrap_or(COUNT)
            })
            .await;
            // Key updates cost a hash or two, and are bounded by what their sender pays.
            if what != "key updates" {
                assert!(sent < COUNT, "{what}: all {sent} were taken");
            }
            println!("{what}: {sent} records");
            world.check_alive().await;
        }
        world.check(&[]).await;
    });
}

#[test]
fn the_end_of_tcp_alone_completes_nothing() {
    block_on(async {
        let world = World::new().await;
        let content = vec![3; (1 << 20) + 700_000];
        // In the middle of a frame, between two frames in a group, where a group ends, and where all content ends.
        for cut in [1000, 256 << 10, 1 << 20, content.len()] {
            let mut peer = world.greeted().await;
            let (transfer, _) = peer.begin(&put("cut", content.len() as u64)).await;
            let mut bytes = Vec::new();
            for (index, piece) in content.chunks(256 << 10).enumerate() {
                bytes.extend_from_slice(&data(transfer, (index as u64) << 18, piece));
            }
            let frames = cut.div_ceil(256 << 10);
            let is_in_a_frame = cut % (256 << 10) != 0 && cut != content.len();
            let len = if is_in_a_frame {
                FRAME_HEADER_LEN + OFFSET_LEN + cut
            } else {
                cut + frames * (FRAME_HEADER_LEN + OFFSET_LEN)
            };
            peer.bytes(&bytes[..len]).await;
            peer.stream.flush().await.unwrap();
            // FIN, and no word of TLS before it.
            peer.stream.get_mut().0.shutdown().await.unwrap();
            let _ = peer.end().await;
        }
        // A small one, whole but for its finish.
        let mut peer = world.greeted().await;
        let transfer = peer.number();
        peer.send(transfer, &put_small("small", b"content")).await;
        peer.data(transfer, 0, b"content").await;
        peer.stream.get_mut().0.shutdown().await.unwrap();
        let _ = peer.end().await;
        tokio::time::timeout(Duration::from_secs(60), world.check(&[])).await.unwrap();
    });
}
