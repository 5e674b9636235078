//! `docs/PROTOCOL.md` and the code say the same: vectors, numbers, fields and limits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use minicbor::data::Type;
use minicbor::decode::Decoder;
use sealift::ErrorKind;
use sealift::error::Blame;
use sealift::hash::{GroupHash, GroupValue, Root, Tree};
use sealift::limits;
use sealift::path::RemotePath;
use sealift::protocol::*;
use sealift::xattrs::Xattrs;

use super::targets::recode;

const DOCUMENT: &str = include_str!("../../docs/PROTOCOL.md");

/// One message, as the code makes it.
pub(super) struct Vector {
    /// The kind, and what is special about it.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) frame: Vec<u8>,
    /// Whether a payload decodes to exactly this message.
    is_same: IsSame,
}

type IsSame = Box<dyn Fn(&[u8]) -> bool>;

fn vector<M: Message + PartialEq + 'static>(name: &'static str, transfer: u32, message: M) -> Vector {
    let frame = message.to_frame(transfer);
    let is_same = Box::new(move |payload: &[u8]| M::from_payload(payload).as_ref() == Ok(&message));
    Vector { name, kind: M::KIND, frame, is_same }
}

fn path(text: &str) -> RemotePath {
    RemotePath::parse(text.as_bytes()).unwrap()
}

fn numbered<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|index| first + index as u8)
}

/// Every kind, and every optional field at least once with and once without.
pub(super) fn vectors() -> Vec<Vector> {
    let mtime = Mtime { seconds: 1_700_000_000, nanos: 123_456_789 };
    let before = Mtime { seconds: -1, nanos: 0 };
    let id = Bytes16(numbered(0x10));
    let root = Root::of(b"abc");
    let ticket = InviteSecret::new(zeroize::Zeroizing::new(numbered(0x60))).ticket(&path("in/bob"));
    let put = Put {
        path: path("in/a b"),
        size: Some(3),
        mtime: Some(mtime),
        mode: Some(0o644),
        upload_id: id,
        if_exists: IfExists::Overwrite,
        unasked: true,
        no_base: false,
        resume: None,
        same_as: None,
        same_root: None,
        xattrs: None,
    };
    let stored = Stored { outcome: Outcome::Stored, root: Some(root), size: 3, path: None, xattrs_lost: None };
    let statement = Statement {
        root,
        size: 3,
        path: path("in/a b"),
        principal: "alice".into(),
        principal_key: Some(Bytes32(numbered(0x20))),
        time: mtime,
        outcome: Outcome::Stored,
        key: Bytes32(numbered(0x40)),
    };
    let entry = Entry {
        name: b"a".to_vec(),
        kind: EntryKind::File,
        size: 3,
        mtime,
        mode: 0o644,
        target: None,
        same: None,
        xattrs_digest: None,
        xattrs: None,
    };
    let link = Entry {
        name: vec![0xff],
        kind: EntryKind::Link,
        size: 0,
        mtime: before,
        mode: 0o777,
        target: Some(b"../a".to_vec()),
        same: None,
        xattrs_digest: None,
        xattrs: None,
    };
    let xattrs = Xattrs::new(vec![(b"user.mime".to_vec(), b"text".to_vec()), (b"user.x".to_vec(), vec![])]).unwrap();
    let content = [&5_u64.to_be_bytes()[..], b"abc"].concat();
    let data = Vector {
        name: "Data",
        kind: Kind::Data,
        frame: [&Header::new(Kind::Data, 7, content.len()).encode()[..], &content].concat(),
        is_same: Box::new(move |payload| payload == content),
    };
    vec![
        vector(
            "ClientHello",
            0,
            ClientHello {
                versions: List(vec![1]),
                agent: "sealift/0.1.0".into(),
                join: None,
                redeem: None,
                run: None,
                receipts: None,
            },
        ),
        vector(
            "ClientHello invite",
            0,
            ClientHello {
                versions: List(vec![2, 1]),
                agent: String::new(),
                join: Some(id),
                redeem: Some(ticket.clone()),
                run: Some(Bytes16(numbered(0x30))),
                receipts: Some(true),
            },
        ),
        vector(
            "ServerHello",
            0,
            ServerHello {
                version: 1,
                agent: "sealift/0.1.0".into(),
                principal: Some("alice".into()),
                rights: Rights::ALL.0,
                token: None,
                unasked_max: limits::UNASKED_CONNECTION_MAX,
                open_max: limits::OPEN_TRANSFERS_MAX as u32,
                idle_seconds: 300,
                now: 1_700_000_000,
                file_mode: None,
                directory_mode: None,
                zeros: None,
                finish_ahead: None,
                receipt_key: Some(Bytes32(numbered(0x40))),
                trees: None,
                invites: Some(true),
                xattrs: None,
            },
        ),
        vector(
            "ServerHello token",
            0,
            ServerHello {
                version: 1,
                agent: String::new(),
                principal: None,
                rights: Rights::CREATE.0,
                token: Some(id),
                unasked_max: 0,
                open_max: 1,
                idle_seconds: 0,
                now: -1,
                file_mode: None,
                directory_mode: None,
                zeros: None,
                finish_ahead: None,
                receipt_key: None,
                trees: None,
                invites: None,
                xattrs: None,
            },
        ),
        vector(
            "ServerHello modes",
            0,
            ServerHello {
                version: 1,
                agent: String::new(),
                principal: None,
                rights: Rights::CREATE.0,
                token: None,
                unasked_max: 0,
                open_max: 1,
                idle_seconds: 0,
                now: 0,
                file_mode: Some((0o640, 0o660)),
                directory_mode: Some((0, 0o775)),
                zeros: Some(true),
                finish_ahead: Some(true),
                receipt_key: None,
                trees: Some(true),
                invites: None,
                xattrs: Some(true),
            },
        ),
        vector("Goodbye", 0, Goodbye { code: ErrorKind::Stopping.code(), text: "the server is stopping".into() }),
        vector("Working", 0, Working { phase: Phase::Hashing, done: 1 << 20, total: 1 << 32, spent: None }),
        vector(
            "Working spent",
            0,
            Working { phase: Phase::Waiting, done: 0, total: 0, spent: Some(List(vec![1, 2, 3, 70_000, 0])) },
        ),
        vector("Failed", 7, Failed { code: ErrorKind::NotFound.code(), text: "no a".into(), retry: None }),
        vector("Failed retry", 7, Failed { code: 1, text: String::new(), retry: Some(true) }),
        vector("Put", 7, put.clone()),
        vector(
            "Put stream",
            8,
            Put {
                path: path("log"),
                size: None,
                mtime: None,
                mode: None,
                if_exists: IfExists::Rename,
                unasked: false,
                no_base: true,
                resume: Some(id),
                ..put.clone()
            },
        ),
        vector(
            "Put name",
            9,
            Put {
                path: path("in/b"),
                unasked: false,
                same_as: Some(path("in/a b")),
                same_root: Some(root),
                ..put.clone()
            },
        ),
        vector("Put attributes", 9, Put { xattrs: Some(xattrs.clone()), ..put }),
        vector(
            "PutAnswer",
            8,
            PutAnswer {
                holding: Holding::Fresh,
                generation: 1,
                held_size: 0,
                compare_only: false,
                ranges: List::default(),
            },
        ),
        vector(
            "PutAnswer base",
            8,
            PutAnswer {
                holding: Holding::Base,
                generation: 2,
                held_size: 3 << 20,
                compare_only: true,
                ranges: List::default(),
            },
        ),
        vector(
            "PutAnswer held",
            8,
            PutAnswer {
                holding: Holding::Held,
                generation: u64::MAX,
                held_size: 5 << 20,
                compare_only: false,
                ranges: List(vec![(0, 1 << 20), (2 << 20, 64 << 10)]),
            },
        ),
        vector("Values", 8, Values { first: 1, values: List(vec![GroupValue([0xaa; 32]), GroupValue([0xbb; 32])]) }),
        data,
        vector("Finish", 7, Finish { size: 3, root }),
        vector("Stored", 7, stored.clone()),
        vector(
            "Stored elsewhere",
            7,
            Stored { outcome: Outcome::Stored, root: None, size: 0, path: Some(path("a (1)")), xattrs_lost: None },
        ),
        vector("Stored without attributes", 7, Stored { xattrs_lost: Some(25), ..stored.clone() }),
        vector(
            "StoredBatch",
            0,
            StoredBatch {
                items: List(vec![
                    StoredItem { transfer: 7, stored },
                    StoredItem {
                        transfer: 9,
                        stored: Stored {
                            outcome: Outcome::Skipped,
                            root: None,
                            size: 0,
                            path: None,
                            xattrs_lost: None,
                        },
                    },
                ]),
            },
        ),
        vector("Written", 8, Written { groups: List(vec![0, 1, 70_000]) }),
        vector("Zeros", 8, Zeros { runs: List(vec![(1, 2), (7, 1 << 20)]) }),
        vector("FinishAhead", 8, FinishAhead { size: 3, root }),
        vector("Receipt", 7, Receipt { statement: statement.to_bytes(), signature: numbered::<64>(0x80).to_vec() }),
        vector(
            "Get",
            10,
            Get {
                path: path("in/a b"),
                unasked_max: limits::UNASKED_FILE_MAX,
                finish_ahead: None,
                first_max: None,
                xattrs: None,
            },
        ),
        vector(
            "Get ahead",
            10,
            Get {
                path: path("in/a b"),
                unasked_max: 0,
                finish_ahead: Some(true),
                first_max: Some(1 << 21),
                xattrs: None,
            },
        ),
        vector(
            "Get attributes",
            10,
            Get { path: path("in/a b"), unasked_max: 0, finish_ahead: None, first_max: None, xattrs: Some(true) },
        ),
        vector(
            "GetAnswer",
            10,
            GetAnswer {
                size: 3,
                mtime,
                mode: 0o644,
                unasked: true,
                root: Some(root),
                version: vec![1, 2, 3],
                zeros: None,
                first: None,
                xattrs: None,
            },
        ),
        vector(
            "GetAnswer unknown root",
            10,
            GetAnswer {
                size: 1 << 40,
                mtime: before,
                mode: 0,
                unasked: false,
                root: None,
                version: vec![],
                zeros: Some(List(vec![(0, 3), (7, 1 << 20)])),
                first: None,
                xattrs: None,
            },
        ),
        vector(
            "GetAnswer first",
            10,
            GetAnswer {
                size: (1 << 20) + 1,
                mtime,
                mode: 0o644,
                unasked: false,
                root: None,
                version: vec![1],
                zeros: None,
                first: Some(true),
                xattrs: None,
            },
        ),
        vector(
            "GetAnswer attributes",
            10,
            GetAnswer {
                size: 0,
                mtime,
                mode: 0o644,
                unasked: true,
                root: None,
                version: vec![1],
                zeros: None,
                first: None,
                xattrs: Some(xattrs.clone()),
            },
        ),
        vector("Want", 10, Want { ranges: List(vec![(0, 1 << 20), (1 << 20, 1)]) }),
        vector("WantValues", 10, WantValues { first: 0, count: 2 }),
        vector("Close", 10, Close {}),
        vector("Stat", 11, Stat { path: RemotePath::root(), xattrs: None }),
        vector("Stat attributes", 11, Stat { path: RemotePath::root(), xattrs: Some(true) }),
        vector("List", 12, ListDirectory { path: path("in"), ..ListDirectory::default() }),
        vector(
            "List page",
            12,
            ListDirectory {
                path: path("in"),
                after: Some(1 << 40),
                count_max: Some(512),
                directory: Some(id),
                ..ListDirectory::default()
            },
        ),
        vector(
            "List attributes",
            12,
            ListDirectory { path: path("in"), xattrs: Some(true), ..ListDirectory::default() },
        ),
        vector("Hash", 13, Hash { path: path("in/a b"), read: None }),
        vector("Hash read", 13, Hash { path: path("in/a b"), read: Some(true) }),
        vector("MakeDirectory", 14, MakeDirectory { path: path("in/new") }),
        vector(
            "MakeLink",
            15,
            MakeLink { path: path("in/link"), target: b"../x".to_vec(), mtime: Some(mtime), if_exists: IfExists::Fail },
        ),
        vector(
            "SetDirectory",
            16,
            SetDirectory { path: path("in"), mode: Some(0o755), mtime: Some(before), xattrs: None },
        ),
        vector("SetDirectory nothing", 16, SetDirectory { path: path("in"), mode: None, mtime: None, xattrs: None }),
        vector(
            "SetDirectory attributes",
            16,
            SetDirectory { path: path("in"), mode: None, mtime: None, xattrs: Some(xattrs.clone()) },
        ),
        vector("Remove", 17, Remove { path: path("in"), recursive: true }),
        vector("Rename", 18, Rename { from: path("a"), to: path("b/c"), if_exists: IfExists::Skip, id }),
        vector("Space", 19, Space { path: path("in") }),
        vector("Volume", 19, Volume { free: 5 << 30, total: 1 << 40 }),
        vector(
            "Invite",
            20,
            Invite {
                path: path("in/bob"),
                kind: InviteKind::Upload,
                verifier: ticket.verifier().into(),
                seconds: 259_200,
                uses: 1,
                max_size: Some(50 << 30),
            },
        ),
        vector(
            "Invited",
            20,
            Invited {
                id: ticket.verifier().id(),
                expires: 1_700_259_200,
                address: Some("nas.example.org:7443".into()),
            },
        ),
        vector("ListInvites", 21, ListInvites { path: path("in"), after: Some(ticket.verifier().id()) }),
        vector(
            "Invites",
            21,
            Invites {
                invites: List(vec![InviteFacts {
                    id: ticket.verifier().id(),
                    state: InviteState::Open,
                    path: path("in/bob"),
                    kind: InviteKind::Drop,
                    issuer: "alice".into(),
                    issued: 1_700_000_000,
                    expires: 1_700_259_200,
                    uses: 3,
                    spent: 1,
                    reserved: 1,
                    max_size: Some(50 << 30),
                    used_size: 4096,
                }]),
                more: false,
            },
        ),
        vector("RevokeInvite", 22, RevokeInvite { id: ticket.verifier().id() }),
        vector("BeginTree", 20, BeginTree { path: path("www/site"), run: id, resume: None }),
        vector("BeginTree without a certificate", 20, BeginTree { path: path("site"), run: id, resume: Some(id) }),
        vector("TreeBegun", 20, TreeBegun { resumed: true, done: false }),
        vector("PublishTree", 21, PublishTree { path: path("www/site") }),
        vector("Entry", 11, entry.clone()),
        vector("Entry link", 11, link.clone()),
        vector("Entry same", 11, Entry { same: Some(id), ..entry.clone() }),
        vector("Entry digest", 11, Entry { xattrs_digest: Some(Bytes16(xattrs.digest())), ..entry.clone() }),
        vector("Entry attributes", 11, Entry { xattrs: Some(Box::new(xattrs.clone())), ..entry.clone() }),
        vector("Entries", 12, Entries { entries: List(vec![entry, link]) }),
        vector("Done", 12, Done { count: 2, ..Done::default() }),
        vector(
            "Done hash",
            13,
            Done { count: 1, root: Some(root), size: Some(3), path: Some(path("b/c (1)")), ..Done::default() },
        ),
        vector("Done page", 12, Done { count: 512, next: Some(1 << 40), directory: Some(id), ..Done::default() }),
        vector("Done hidden", 12, Done { count: 3, hidden: Some(true), ..Done::default() }),
        vector("Done attributes", 16, Done { count: 1, xattrs_lost: Some(18), ..Done::default() }),
    ]
}

/// Frames that end a connection, and why.
fn refused() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let stat = Stat { path: path("a"), xattrs: None }.to_frame(7);
    let header = |kind: u8, len: u32| [&[kind, 0, 0, 0, 0, 0, 0, 7][..], &len.to_be_bytes()].concat();
    let framed = |kind: u8, payload: &[u8]| [&header(kind, payload.len() as u32)[..], payload].concat();
    let changed = |index: usize, byte: u8| {
        let mut frame = stat.clone();
        frame[index] = byte;
        frame
    };
    vec![
        ("flags", changed(1, 1), "reserved bits of a frame header are set"),
        ("reserved bytes", changed(3, 1), "reserved bits of a frame header are set"),
        ("unknown kind", framed(0x7f, &[0xa0]), "an unknown frame kind 0x7f"),
        ("unknown kind that is too long", header(0x80, 65_537), "an unknown frame kind 0x80"),
        ("too long", header(Kind::Stat as u8, 65_537), "a Stat frame of 65537 bytes is too long"),
        ("hello too long", header(Kind::ClientHello as u8, 4097), "a ClientHello frame of 4097 bytes is too long"),
        ("too short", header(Kind::Stat as u8, 0), "a Stat frame of 0 bytes is too short"),
        ("data without content", header(Kind::Data as u8, 8), "a Data frame of 8 bytes is too short"),
        ("too much data", header(Kind::Data as u8, 262_153), "a Data frame of 262153 bytes is too long"),
        ("bytes after the map", framed(Kind::Close as u8, &[0xa0, 0]), "a malformed Close message"),
        ("indefinite list", framed(Kind::Stat as u8, &[0xa1, 0, 0x9f, 0xff]), "a malformed Stat message"),
        ("missing field", framed(Kind::Stat as u8, &[0xa0]), "a malformed Stat message"),
        ("two dots", framed(Kind::Stat as u8, &[0xa1, 0, 0x81, 0x42, b'.', b'.']), "a malformed Stat message"),
        ("slash", framed(Kind::Stat as u8, &[0xa1, 0, 0x81, 0x41, b'/']), "a malformed Stat message"),
        ("empty name", framed(Kind::Stat as u8, &[0xa1, 0, 0x81, 0x40]), "a malformed Stat message"),
        (
            "2^64 components",
            framed(Kind::Stat as u8, &[0xa1, 0, 0x9b, 255, 255, 255, 255, 255, 255, 255, 255]),
            "a malformed Stat message",
        ),
        ("system attribute", attributes(&[("security.capability", b"\x01")]), "a malformed SetDirectory message"),
        ("trusted attribute", attributes(&[("trusted.overlay.opaque", b"y")]), "a malformed SetDirectory message"),
        ("own attribute", attributes(&[("user.sealift", b"x")]), "a malformed SetDirectory message"),
        ("attribute twice", attributes(&[("user.a", b"1"), ("user.a", b"2")]), "a malformed SetDirectory message"),
        (
            "attributes out of order",
            attributes(&[("user.b", b""), ("user.a", b"")]),
            "a malformed SetDirectory message",
        ),
    ]
}

/// A frame that asks for these attributes, whatever they are.
fn attributes(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    let mut payload = Vec::new();
    let mut encoder = minicbor::Encoder::new(&mut payload);
    encoder.map(2).unwrap().u8(0).unwrap().array(1).unwrap().bytes(b"in").unwrap();
    encoder.u8(16).unwrap().array(pairs.len() as u64).unwrap();
    for (name, value) in pairs {
        encoder.array(2).unwrap().bytes(name.as_bytes()).unwrap().bytes(value).unwrap();
    }
    [&Header::new(Kind::SetDirectory, 7, payload.len()).encode()[..], &payload].concat()
}

/// What a receiver steps over: an unknown kind, and an unknown field in a known one.
fn skipped() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("unknown kind", vec![0x80, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0xde, 0xad]),
        ("unknown kind without payload", vec![0xff, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0]),
    ]
}

// ---- the document ------------------------------------------------------------------------------------------

/// The fenced blocks with this word, by name.
fn blocks(word: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        let Some(name) =
            line.strip_prefix("```").and_then(|rest| rest.strip_prefix(word)).filter(|n| n.starts_with(' '))
        else {
            continue;
        };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        assert!(found.insert(name.trim().to_owned(), body.join("\n")).is_none(), "two blocks `{word}{name}`");
    }
    found
}

/// Hexadecimal digits in lines of 40 bytes.
fn hex(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    bytes.chunks(40).map(line).collect::<Vec<_>>().join("\n")
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    assert!(digits.len().is_multiple_of(2) && text.chars().all(|c| c.is_whitespace() || c.is_ascii_hexdigit()));
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// A payload in diagnostic notation (RFC 8949, section 8).
fn diagnose(d: &mut Decoder<'_>, out: &mut String) {
    match d.datatype().unwrap() {
        Type::Bool => write!(out, "{}", d.bool().unwrap()).unwrap(),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Int => {
            write!(out, "{}", d.int().unwrap()).unwrap();
        }
        Type::Bytes => write!(out, "h'{}'", hex(d.bytes().unwrap())).unwrap(),
        Type::String => write!(out, "{:?}", d.str().unwrap()).unwrap(),
        Type::Array => {
            out.push('[');
            for index in 0..d.array().unwrap().unwrap() {
                out.push_str(if index > 0 { ", " } else { "" });
                diagnose(d, out);
            }
            out.push(']');
        }
        Type::Map => {
            out.push('{');
            for index in 0..d.map().unwrap().unwrap() {
                out.push_str(if index > 0 { ", " } else { "" });
                diagnose(d, out);
                out.push_str(": ");
                diagnose(d, out);
            }
            out.push('}');
        }
        other => panic!("no message has a {other}"),
    }
}

/// What a block says after its bytes.
fn describe(kind: Kind, frame: &[u8]) -> String {
    let header = Header::decode(frame[..FRAME_HEADER_LEN].try_into().unwrap()).unwrap();
    let payload = &frame[FRAME_HEADER_LEN..];
    let mut text = format!("= {}: ", header.transfer);
    if kind == Kind::Data {
        let (offset, content) = payload.split_first_chunk().unwrap();
        write!(text, "{}, h'{}'", u64::from_be_bytes(*offset), hex(content)).unwrap();
    } else {
        let mut decoder = Decoder::new(payload);
        diagnose(&mut decoder, &mut text);
        assert_eq!(decoder.position(), payload.len());
    }
    text
}

/// The rows of the tables whose first column is this.
fn table(first: &str) -> Vec<Vec<&'static str>> {
    let mut rows = Vec::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        if line.starts_with(&format!("| {first} |")) {
            lines.next();
            rows.extend(lines.by_ref().take_while(|line| line.starts_with('|')).map(cells));
        }
    }
    assert!(!rows.is_empty(), "no table `{first}`");
    rows
}

fn cells(row: &'static str) -> Vec<&'static str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

// ---- the tests ---------------------------------------------------------------------------------------------

/// Compares the document's blocks of one sort with those that the code makes.
#[track_caller]
fn check_blocks(word: &str, expected: &[(String, String)]) {
    let mut found = blocks(word);
    let mut wrong = String::new();
    for (name, body) in expected {
        if found.remove(name).as_deref() != Some(body) {
            write!(wrong, "```{word} {name}\n{body}\n```\n\n").unwrap();
        }
    }
    assert!(wrong.is_empty(), "docs/PROTOCOL.md lacks these, or has them otherwise:\n\n{wrong}");
    assert!(found.is_empty(), "docs/PROTOCOL.md has blocks that nothing makes: {:?}", found.keys());
}

#[test]
fn every_vector_of_the_document_is_what_the_code_makes() {
    let vectors = vectors();
    let expected: Vec<_> = vectors
        .iter()
        .map(|vector| {
            (vector.name.to_owned(), format!("{}\n{}", hex(&vector.frame), describe(vector.kind, &vector.frame)))
        })
        .collect();
    check_blocks("vector", &expected);
}

#[test]
fn vectors_decode_to_their_values_and_encode_to_their_bytes() {
    let vectors = vectors();
    let blocks = blocks("vector");
    for Vector { name, kind, is_same, .. } in &vectors {
        assert_eq!(name.split(' ').next(), Some(&*format!("{kind:?}")), "names begin with the kind");
        let frame = unhex(blocks[*name].split('=').next().unwrap());
        let header = Header::decode(frame[..FRAME_HEADER_LEN].try_into().unwrap()).unwrap();
        assert_eq!(header.kind, Some(*kind), "{name}");
        assert_eq!(header.len as usize, frame.len() - FRAME_HEADER_LEN, "{name}");
        let payload = &frame[FRAME_HEADER_LEN..];
        assert!(is_same(payload), "{name} decodes to another value");
        assert_eq!(recode(*kind, header.transfer, payload).as_ref(), Ok(&frame), "{name}");
    }
    let with_vector: Vec<Kind> = vectors.iter().map(|vector| vector.kind).collect();
    for kind in Kind::ALL {
        assert!(with_vector.contains(kind), "{kind:?} has no vector");
    }
}

#[test]
fn refused_and_skipped_frames_have_their_fate() {
    let refused = refused();
    let expected: Vec<_> =
        refused.iter().map(|(name, frame, why)| ((*name).to_owned(), format!("{}\n= {why}", hex(frame)))).collect();
    check_blocks("refused", &expected);
    for (name, frame, why) in &refused {
        let (header, payload) = frame.split_first_chunk().unwrap();
        let breach = match Header::decode(header) {
            Err(breach) => breach,
            Ok(header) => recode(header.kind.unwrap(), header.transfer, payload).unwrap_err(),
        };
        assert!(breach.to_string().starts_with(why), "{name}: {breach}");
    }
    let skipped = skipped();
    let expected: Vec<_> = skipped.iter().map(|(name, frame)| ((*name).to_owned(), hex(frame))).collect();
    check_blocks("skipped", &expected);
    for (name, frame) in &skipped {
        let header = Header::decode(frame[..FRAME_HEADER_LEN].try_into().unwrap()).unwrap();
        assert_eq!((header.kind, header.len as usize), (None, frame.len() - FRAME_HEADER_LEN), "{name}");
    }
}

#[test]
fn hash_vectors_are_what_the_code_computes() {
    const G: usize = limits::GROUP_LEN;
    let mut expected = Vec::new();
    for size in [0, 1, 1024, 1025, G - 1, G, G + 1, 2 * G, 2 * G + 1, 5 * G + 17] {
        let content: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
        let mut tree = Tree::new();
        let mut body = String::new();
        for (index, group) in content.chunks(G).enumerate() {
            let hash = GroupHash::of(index as u64, group);
            tree.insert(index as u64, hash);
            write!(body, "\ngroup {index}\n{}", hex(&hash.value.0)).unwrap();
        }
        let root = tree.root(size as u64).unwrap();
        assert_eq!(root, Root::of(&content));
        expected.push((size.to_string(), format!("root\n{root}{body}")));
    }
    check_blocks("hash", &expected);
}

#[test]
fn kinds_are_those_of_the_document() {
    let documented: Vec<(u8, &str)> = table("number")
        .iter()
        .map(|row| (u8::from_str_radix(row[0].strip_prefix("0x").unwrap(), 16).unwrap(), row[1]))
        .collect();
    let known: Vec<(u8, String)> = Kind::ALL.iter().map(|&kind| (kind as u8, format!("{kind:?}"))).collect();
    assert_eq!(documented, known.iter().map(|(code, name)| (*code, &**name)).collect::<Vec<_>>());
}

#[test]
fn error_codes_are_those_of_the_document() {
    let documented: Vec<String> = table("code").iter().map(|row| row[..5].join(" | ")).collect();
    let known: Vec<String> = ErrorKind::ALL
        .iter()
        .map(|kind| {
            let blame = match kind.blame() {
                Blame::Peer => "peer",
                Blame::Request => "request",
                Blame::Environment => "environment",
                Blame::Ourselves => "ourselves",
            };
            let retry = if kind.is_retryable() { "yes" } else { "no" };
            format!("{} | {kind:?} | {blame} | {retry} | {}", kind.code(), kind.exit_code())
        })
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn limits_and_deadlines_are_those_of_the_document() {
    let seconds = |limit: Duration| limit.as_secs();
    let known = [
        ("COMPONENT_LEN_MAX", limits::COMPONENT_LEN_MAX as u64),
        ("PATH_LEN_MAX", limits::PATH_LEN_MAX as u64),
        ("PATH_DEPTH_MAX", limits::PATH_DEPTH_MAX as u64),
        ("PEER_TEXT_LEN_MAX", limits::PEER_TEXT_LEN_MAX as u64),
        ("LINK_TARGET_LEN_MAX", limits::LINK_TARGET_LEN_MAX as u64),
        ("HELLO_LEN_MAX", limits::HELLO_LEN_MAX as u64),
        ("CONTROL_LEN_MAX", limits::CONTROL_LEN_MAX as u64),
        ("DATA_LEN_MAX", limits::DATA_LEN_MAX as u64),
        ("GROUP_LEN", limits::GROUP_LEN as u64),
        ("PREFIX_STEP", limits::PREFIX_STEP as u64),
        ("VALUES_MAX", VALUES_MAX as u64),
        ("LIST_PAGE_MAX", limits::LIST_PAGE_MAX as u64),
        ("UNASKED_FILE_MAX", limits::UNASKED_FILE_MAX),
        ("UNASKED_CONNECTION_MAX", limits::UNASKED_CONNECTION_MAX),
        ("OPEN_TRANSFERS_MAX", limits::OPEN_TRANSFERS_MAX as u64),
        ("JOINS_MAX", limits::JOINS_MAX as u64),
        ("OPEN_GROUPS_MAX", limits::OPEN_GROUPS_MAX as u64),
        ("WANTED_MAX", limits::WANTED_MAX),
        ("WANTED_RANGES_MAX", limits::WANTED_RANGES_MAX as u64),
        ("ZERO_RUNS_MAX", limits::ZERO_RUNS_MAX as u64),
        ("XATTR_COUNT_MAX", limits::XATTR_COUNT_MAX as u64),
        ("XATTR_NAME_LEN_MAX", limits::XATTR_NAME_LEN_MAX as u64),
        ("XATTR_VALUE_LEN_MAX", limits::XATTR_VALUE_LEN_MAX as u64),
        ("XATTRS_LEN_MAX", limits::XATTRS_LEN_MAX as u64),
        ("XATTRS_CONNECTION_MAX", limits::XATTRS_CONNECTION_MAX as u64),
        ("FILE_SIZE_MAX", limits::FILE_SIZE_MAX),
        ("CONNECTIONS_PER_ADDRESS_MAX", limits::CONNECTIONS_PER_ADDRESS_MAX as u64),
        ("HALF_OPEN_PER_ADDRESS_MAX", limits::HALF_OPEN_PER_ADDRESS_MAX as u64),
        ("CONNECTIONS_PER_PRINCIPAL_MAX", limits::CONNECTIONS_PER_PRINCIPAL_MAX as u64),
        ("OPEN_PER_PRINCIPAL_MAX", limits::OPEN_PER_PRINCIPAL_MAX as u64),
        ("PROGRESS_LEN_MIN", limits::PROGRESS_LEN_MIN),
        ("REFUSAL_DRAIN_LEN_MAX", limits::REFUSAL_DRAIN_LEN_MAX as u64),
        ("HANDSHAKE_TIMEOUT", seconds(limits::HANDSHAKE_TIMEOUT)),
        ("HELLO_TIMEOUT", seconds(limits::HELLO_TIMEOUT)),
        ("IDLE_TIMEOUT", seconds(limits::IDLE_TIMEOUT)),
        ("PROGRESS_TIMEOUT", seconds(limits::PROGRESS_TIMEOUT)),
        ("WORKING_TIMEOUT", seconds(limits::WORKING_TIMEOUT)),
        ("WORKING_INTERVAL", seconds(limits::WORKING_INTERVAL)),
        ("REFUSAL_DRAIN_TIMEOUT", seconds(limits::REFUSAL_DRAIN_TIMEOUT)),
        ("SHUTDOWN_DRAIN_TIMEOUT", seconds(limits::SHUTDOWN_DRAIN_TIMEOUT)),
    ];
    let rows = [table("limit"), table("deadline")].concat();
    let documented: BTreeMap<&str, u64> = rows.iter().map(|row| (row[0], row[1].parse().unwrap())).collect();
    assert_eq!(documented, BTreeMap::from(known));
    assert!(DOCUMENT.contains(&format!("The default port is {DEFAULT_PORT}.")));
    assert!(DOCUMENT.contains(&format!("ALPN must name `{}`", str::from_utf8(ALPN).unwrap())));
    assert_eq!(VERSIONS, [1]);
}

/// Every field that a vector has is in its message's table, and every field of a table is in some vector.
#[test]
fn fields_are_those_of_the_document() {
    for &kind in Kind::ALL.iter().filter(|&&kind| kind != Kind::Data) {
        let mut sent = BTreeSet::new();
        for vector in vectors().iter().filter(|vector| vector.kind == kind) {
            let mut decoder = Decoder::new(&vector.frame[FRAME_HEADER_LEN..]);
            for _ in 0..decoder.map().unwrap().unwrap() {
                sent.insert(decoder.u64().unwrap());
                decoder.skip().unwrap();
            }
        }
        let heading = format!("\n#### {kind:?}\n");
        let start = DOCUMENT.find(&heading).unwrap_or_else(|| panic!("no section about {kind:?}")) + heading.len();
        let section = &DOCUMENT[start..];
        let section = &section[..section.find("\n#").unwrap_or(section.len())];
        let documented: BTreeSet<u64> =
            section.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok()).collect();
        assert_eq!(documented, sent, "{kind:?}");
    }
}
