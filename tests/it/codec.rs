//! Decoders under arbitrary content, arbitrary bytes, every truncation and every lie about a length.

use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use sealift::hash::{GroupValue, Root};
use sealift::limits::{self, CONTROL_LEN_MAX};
use sealift::path::RemotePath;
use sealift::protocol::*;
use sealift::xattrs::Xattrs;

use super::targets::{TARGETS, recode};
use super::vectors::vectors;

// ---- arbitrary messages ------------------------------------------------------------------------------------

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..300_u64, Just(u64::from(u32::MAX)), Just(1 << 31), Just(u64::MAX)]
}

fn small() -> impl Strategy<Value = u32> {
    number().prop_map(|number| number as u32)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,40}", Just("\u{202e}\n\0".to_owned()), Just("x".repeat(limits::PEER_TEXT_LEN_MAX))]
}

fn path() -> impl Strategy<Value = RemotePath> {
    let component = prop_oneof![
        vec(any::<u8>().prop_filter("no name", |byte| !matches!(byte, 0 | b'/')), 1..20)
            .prop_filter("dots", |bytes| bytes != b"." && bytes != b".."),
        Just(vec![b'x'; limits::COMPONENT_LEN_MAX]),
        Just(b"...".to_vec()),
    ];
    let few = vec(component, 0..8).prop_map(|parts| RemotePath::from_components(parts.iter().map(Vec::as_slice)));
    let deep = Just(RemotePath::from_components([&b"d"[..]; limits::PATH_DEPTH_MAX]));
    let long = Just(RemotePath::from_components([&[b'l'; 255][..]; 16]));
    prop_oneof![8 => few, 1 => deep, 1 => long].prop_map(|path| path.unwrap())
}

fn id() -> impl Strategy<Value = Bytes16> {
    any::<[u8; 16]>().prop_map(Bytes16)
}

fn key() -> impl Strategy<Value = Bytes32> {
    any::<[u8; 32]>().prop_map(Bytes32)
}

fn root() -> impl Strategy<Value = Root> {
    any::<[u8; 32]>().prop_map(Root)
}

fn mtime() -> impl Strategy<Value = Mtime> {
    (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Mtime { seconds, nanos })
}

fn if_exists() -> impl Strategy<Value = IfExists> {
    prop_oneof![Just(IfExists::Overwrite), Just(IfExists::Skip), Just(IfExists::Fail), Just(IfExists::Rename)]
}

fn maybe<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::of(strategy)
}

fn ranges<const MAX: usize>() -> impl Strategy<Value = List<(u64, u64), MAX>> {
    prop_oneof![9 => vec((number(), number()), 0..8), 1 => Just(vec![(u64::MAX, u64::MAX); MAX])].prop_map(List)
}

fn stored() -> impl Strategy<Value = Stored> {
    let outcome = prop_oneof![Just(Outcome::Stored), Just(Outcome::Unchanged), Just(Outcome::Skipped)];
    (outcome, maybe(root()), number(), maybe(path()), any::<Option<u16>>())
        .prop_map(|(outcome, root, size, path, xattrs_lost)| Stored { outcome, root, size, path, xattrs_lost })
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind =
        prop_oneof![Just(EntryKind::File), Just(EntryKind::Directory), Just(EntryKind::Link), Just(EntryKind::Special)];
    let name = vec(any::<u8>(), 0..20);
    (
        name,
        kind,
        number(),
        mtime(),
        small(),
        maybe(vec(any::<u8>(), 0..40)),
        (maybe(id()), maybe(id()), maybe(xattrs())),
    )
        .prop_map(|(name, kind, size, mtime, mode, target, (same, xattrs_digest, xattrs))| Entry {
            name,
            kind,
            size,
            mtime,
            mode,
            target,
            same,
            xattrs_digest,
            xattrs: xattrs.map(Box::new),
        })
}

fn xattrs() -> impl Strategy<Value = Xattrs> {
    let name = vec(1_u8.., 1..12).prop_map(|name| [b"user.", &name[..]].concat());
    let few = vec((name, vec(any::<u8>(), 0..40)), 0..4).prop_map(|mut pairs| {
        pairs.sort();
        pairs.dedup_by(|left, right| left.0 == right.0);
        Xattrs::new(pairs)
    });
    let one = |index: usize, len: usize| (format!("user.{index:03}").into_bytes(), vec![7; len]);
    let many = Just(Xattrs::new((0..limits::XATTR_COUNT_MAX).map(|index| one(index, 0)).collect()));
    let long = Just(Xattrs::new(vec![one(0, limits::XATTR_VALUE_LEN_MAX), one(1, 16_000)]));
    prop_oneof![8 => few, 1 => many, 1 => long].prop_map(|xattrs| xattrs.unwrap())
}

fn invite_id() -> impl Strategy<Value = InviteId> {
    any::<[u8; 8]>().prop_map(InviteId)
}

fn invite_kind() -> impl Strategy<Value = InviteKind> {
    prop_oneof![Just(InviteKind::Upload), Just(InviteKind::Download), Just(InviteKind::Drop)]
}

fn invite_facts() -> impl Strategy<Value = InviteFacts> {
    let state = prop_oneof![
        Just(InviteState::Open),
        Just(InviteState::Expired),
        Just(InviteState::UsedUp),
        Just(InviteState::Revoked),
        Just(InviteState::Ended),
        Just(InviteState::Damaged),
    ];
    let numbers = (any::<(i64, i64)>(), small(), small(), small(), maybe(number()), number());
    (invite_id(), state, path(), invite_kind(), text(), numbers).prop_map(
        |(id, state, path, kind, issuer, ((issued, expires), uses, spent, reserved, max_size, used_size))| {
            InviteFacts { id, state, path, kind, issuer, issued, expires, uses, spent, reserved, max_size, used_size }
        },
    )
}

#[track_caller]
fn check<M: Message + PartialEq + std::fmt::Debug>(message: &M, transfer: u32) -> Result<(), TestCaseError> {
    let frame = message.to_frame(transfer);
    let (header, payload) = frame.split_first_chunk().unwrap();
    let header = Header::decode(header).unwrap();
    prop_assert_eq!((header.kind, header.transfer, header.len as usize), (Some(M::KIND), transfer, payload.len()));
    prop_assert_eq!(&M::from_payload(payload).unwrap(), message);
    prop_assert_eq!(recode(M::KIND, transfer, payload).unwrap(), frame.clone());
    Ok(())
}

macro_rules! round_trips {
    ($($name:ident: $strategy:expr;)+) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
            $(#[test] fn $name(message in $strategy, transfer in any::<u32>()) { check(&message, transfer)?; })+
        }
    };
}

round_trips! {
    client_hello_goes_round: (vec(any::<u16>(), 0..=16), text(), maybe(id()), maybe(any::<[u8; 32]>()), maybe(id()),
            maybe(any::<bool>()))
        .prop_map(|(versions, agent, join, redeem, run, receipts)| {
            ClientHello { versions: List(versions), agent, join, redeem: redeem.map(Ticket::new), run, receipts }
        });
    server_hello_goes_round:
        (any::<u16>(), text(), maybe(text()), small(), maybe(id()), number(), small(), small(), any::<i64>(),
            (maybe(key()), maybe((small(), small())), any::<[Option<bool>; 5]>())).prop_map(
            |(version, agent, principal, rights, token, unasked_max, open_max, idle_seconds, now,
                (receipt_key, modes, [trees, invites, zeros, xattrs, finish_ahead]))| {
                ServerHello {
                    version, agent, principal, rights, token, unasked_max, open_max, idle_seconds, now, receipt_key,
                    file_mode: modes, directory_mode: modes, trees, invites, zeros, xattrs, finish_ahead,
                }
            });
    receipt_goes_round: (vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..70))
        .prop_map(|(statement, signature)| Receipt { statement, signature });
    goodbye_goes_round: (any::<u16>(), text()).prop_map(|(code, text)| Goodbye { code, text });
    failed_goes_round: (any::<u16>(), text(), any::<Option<bool>>())
        .prop_map(|(code, text, retry)| Failed { code, text, retry });
    working_goes_round: (prop_oneof![Just(Phase::Waiting), Just(Phase::Hashing), Just(Phase::Syncing)], number(), number(),
            maybe(vec(number(), 0..=8)))
        .prop_map(|(phase, done, total, spent)| Working { phase, done, total, spent: spent.map(List) });
    put_goes_round: (path(), maybe(number()), maybe(mtime()), maybe(small()), id(), if_exists(), any::<(bool, bool)>(),
            maybe(id()), (maybe(path()), maybe(root()), maybe(xattrs())))
        .prop_map(|(path, size, mtime, mode, upload_id, if_exists, (unasked, no_base), resume, same)| Put {
            path, size, mtime, mode, upload_id, if_exists, unasked, no_base, resume, same_as: same.0, same_root: same.1,
            xattrs: same.2,
        });
    put_answer_goes_round: (prop_oneof![Just(Holding::Fresh), Just(Holding::Held), Just(Holding::Base)], number(),
            number(), any::<bool>(), ranges())
        .prop_map(|(holding, generation, held_size, compare_only, ranges)| PutAnswer {
            holding, generation, held_size, compare_only, ranges,
        });
    values_go_round: (number(), prop_oneof![0..5_usize, Just(VALUES_MAX)])
        .prop_map(|(first, count)| Values { first, values: List(vec![GroupValue([7; 32]); count]) });
    finish_goes_round: (number(), root()).prop_map(|(size, root)| Finish { size, root });
    stored_goes_round: stored();
    stored_batch_goes_round: vec((small(), stored()), 0..8).prop_map(|items| StoredBatch {
        items: List(items.into_iter().map(|(transfer, stored)| StoredItem { transfer, stored }).collect()),
    });
    written_goes_round: vec(number(), 0..20).prop_map(|groups| Written { groups: List(groups) });
    get_goes_round: (path(), number(), maybe(number()), any::<[Option<bool>; 2]>())
        .prop_map(|(path, unasked_max, first_max, [finish_ahead, xattrs])| Get {
            path, unasked_max, finish_ahead, first_max, xattrs,
        });
    finish_ahead_goes_round: (number(), root()).prop_map(|(size, root)| FinishAhead { size, root });
    zeros_goes_round: ranges().prop_map(|runs| Zeros { runs });
    get_answer_goes_round: (number(), mtime(), small(), any::<bool>(), maybe(root()), vec(any::<u8>(), 0..60),
            (maybe(ranges()), any::<Option<bool>>(), maybe(xattrs())))
        .prop_map(|(size, mtime, mode, unasked, root, version, (zeros, first, xattrs))| {
            // As a server does, which has both to tell.
            let runs = |mut zeros: List<_, 2048>| { zeros.0.truncate(limits::ZERO_RUNS_WITH_XATTRS); zeros };
            let zeros = if xattrs.is_some() { zeros.map(runs) } else { zeros };
            GetAnswer { size, mtime, mode, unasked, root, version, zeros, first, xattrs }
        });
    want_goes_round: ranges().prop_map(|ranges| Want { ranges });
    want_values_goes_round: (number(), number()).prop_map(|(first, count)| WantValues { first, count });
    close_goes_round: Just(Close {});
    stat_goes_round: (path(), any::<Option<bool>>()).prop_map(|(path, xattrs)| Stat { path, xattrs });
    list_goes_round: (path(), maybe(number()), maybe(number()), any::<Option<bool>>(), maybe(id()))
        .prop_map(|(path, after, count_max, xattrs, directory)| ListDirectory { path, after, count_max, xattrs, directory });
    hash_goes_round: (path(), maybe(any::<bool>())).prop_map(|(path, read)| Hash { path, read });
    make_directory_goes_round: path().prop_map(|path| MakeDirectory { path });
    make_link_goes_round: (path(), vec(any::<u8>(), 0..100), maybe(mtime()), if_exists())
        .prop_map(|(path, target, mtime, if_exists)| MakeLink { path, target, mtime, if_exists });
    set_directory_goes_round: (path(), maybe(small()), maybe(mtime()), maybe(xattrs()))
        .prop_map(|(path, mode, mtime, xattrs)| SetDirectory { path, mode, mtime, xattrs });
    space_goes_round: path().prop_map(|path| Space { path });
    begin_tree_goes_round: (path(), id(), maybe(id())).prop_map(|(path, run, resume)| BeginTree { path, run, resume });
    tree_begun_goes_round: any::<(bool, bool)>().prop_map(|(resumed, done)| TreeBegun { resumed, done });
    publish_tree_goes_round: path().prop_map(|path| PublishTree { path });
    volume_goes_round: (number(), number()).prop_map(|(free, total)| Volume { free, total });
    remove_goes_round: (path(), any::<bool>()).prop_map(|(path, recursive)| Remove { path, recursive });
    rename_goes_round: (path(), path(), if_exists(), id())
        .prop_map(|(from, to, if_exists, id)| Rename { from, to, if_exists, id });
    entry_goes_round: entry();
    entries_go_round: vec(entry().prop_map(|entry| Entry { xattrs: None, ..entry }), 0..20).prop_map(|entries| Entries { entries: List(entries) });
    invite_goes_round: (path(), invite_kind(), key(), number(), small(), maybe(number()))
        .prop_map(|(path, kind, verifier, seconds, uses, max_size)| {
            Invite { path, kind, verifier, seconds, uses, max_size }
        });
    invited_goes_round: (invite_id(), any::<i64>(), maybe(text()))
        .prop_map(|(id, expires, address)| Invited { id, expires, address });
    list_invites_goes_round: (path(), maybe(invite_id())).prop_map(|(path, after)| ListInvites { path, after });
    invites_go_round: (vec(invite_facts(), 0..8), any::<bool>())
        .prop_map(|(invites, more)| Invites { invites: List(invites), more });
    revoke_invite_goes_round: invite_id().prop_map(|id| RevokeInvite { id });
    done_goes_round: (number(), maybe(root()), maybe(number()), maybe(path()), maybe(number()), any::<Option<u16>>(), maybe(id()), any::<Option<bool>>())
        .prop_map(|(count, root, size, path, next, xattrs_lost, directory, hidden)| {
            Done { count, root, size, path, next, xattrs_lost, directory, hidden }
        });
}

// ---- what is not a message ---------------------------------------------------------------------------------

#[test]
fn every_truncation_is_an_error() {
    for vector in vectors() {
        let (header, payload) = vector.frame.split_first_chunk().unwrap();
        let header = Header::decode(header).unwrap();
        if vector.kind == Kind::Data {
            continue; // content has no structure; its length is the header's
        }
        for len in 0..payload.len() {
            assert!(recode(vector.kind, header.transfer, &payload[..len]).is_err(), "{} cut to {len}", vector.name);
        }
        let longer = [payload, &[0xf6]].concat();
        assert!(recode(vector.kind, header.transfer, &longer).is_err(), "{} with a byte more", vector.name);
    }
}

#[test]
fn every_field_but_the_optional_ones_must_be_there_and_others_are_skipped() {
    for vector in vectors().iter().filter(|vector| vector.kind != Kind::Data) {
        let payload = &vector.frame[FRAME_HEADER_LEN..];
        let fields = fields(payload);
        // A field that nobody knows, of every CBOR type.
        for unknown in [&[0x18, 99][..], &[0x62, b'a', b'b'], &[0x9f, 0x81, 0x80, 0xff], &[0xbf, 0, 1, 0xff], &[0xf6]] {
            let mut longer = vec![0xa0 + fields.len() as u8 + 1];
            fields.iter().for_each(|field| longer.extend_from_slice(field));
            longer.extend_from_slice(&[0x19, 0x7f, 0xff]);
            longer.extend_from_slice(unknown);
            assert_eq!(recode(vector.kind, 0, &longer), recode(vector.kind, 0, payload), "{}", vector.name);
        }
        for left_out in 0..fields.len() {
            let mut shorter = vec![0xa0 + fields.len() as u8 - 1];
            let others = fields.iter().enumerate().filter(|(index, _)| *index != left_out);
            others.for_each(|(_, field)| shorter.extend_from_slice(field));
            let optional = matches!(
                (vector.kind, fields[left_out][0]),
                (Kind::ClientHello, 2..=4 | 8)
                    | (Kind::ServerHello, 2 | 4 | 9..=12 | 16 | 17 | 24)
                    | (Kind::BeginTree, 2)
                    | (Kind::Invite, 5)
                    | (Kind::Invited, 2)
                    | (Kind::ListInvites, 1)
                    | (Kind::Failed, 2)
                    | (Kind::Put | Kind::Done, 1..=3)
                    | (Kind::Put, 8..=10)
                    | (Kind::Done, 4)
                    | (Kind::List, 1 | 2)
                    | (Kind::Hash, 1)
                    | (Kind::Stored, 1 | 3)
                    | (Kind::Get, 2 | 3)
                    | (Kind::GetAnswer, 4 | 6 | 7)
                    | (Kind::MakeLink, 2)
                    | (Kind::SetDirectory, 1 | 2)
                    | (Kind::Entry, 5 | 6 | 17)
                    | (Kind::Put | Kind::Stored | Kind::Get | Kind::GetAnswer | Kind::Stat | Kind::List, 16)
                    | (Kind::SetDirectory | Kind::Entry | Kind::Done, 16)
                    | (Kind::List | Kind::Done, 17)
                    | (Kind::Done, 18)
                    | (Kind::Working, 3)
            );
            let decoded = recode(vector.kind, 0, &shorter);
            assert_eq!(decoded.is_ok(), optional, "{} without field {}", vector.name, fields[left_out][0]);
        }
    }
}

/// The fields of a map, each with its number.
fn fields(payload: &[u8]) -> Vec<&[u8]> {
    let mut decoder = minicbor::Decoder::new(payload);
    let count = decoder.map().unwrap().unwrap();
    let mut fields = Vec::new();
    for _ in 0..count {
        let start = decoder.position();
        decoder.skip().unwrap();
        decoder.skip().unwrap();
        fields.push(&payload[start..decoder.position()]);
    }
    fields
}

/// Replaces the head of every CBOR item of a payload by one that announces another length.
fn lies(payload: &[u8]) -> Vec<Vec<u8>> {
    let mut lies = Vec::new();
    let mut position = 0;
    while position < payload.len() {
        let (major, info) = (payload[position] >> 5, payload[position] & 31);
        let extra = if info < 24 { 0 } else { 1 << (info - 24) };
        let head = &payload[position..position + 1 + extra];
        let value = if info < 24 {
            u64::from(info)
        } else {
            head[1..].iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
        };
        if (2..=5).contains(&major) {
            for lie in [0, value + 1, 1 << 16, 1 << 31, u64::from(u32::MAX), 1 << 63, u64::MAX] {
                if lie == value {
                    continue;
                }
                let mut frame = payload[..position].to_vec();
                frame.push(major << 5 | 27);
                frame.extend_from_slice(&lie.to_be_bytes());
                frame.extend_from_slice(&payload[position + 1 + extra..]);
                lies.push(frame);
            }
        }
        position += head.len() + if major == 2 || major == 3 { value as usize } else { 0 };
    }
    lies
}

#[test]
fn every_lie_about_a_length_is_refused() {
    let mut count = 0;
    for vector in vectors().iter().filter(|vector| vector.kind != Kind::Data) {
        for lie in lies(&vector.frame[FRAME_HEADER_LEN..]) {
            count += 1;
            // A shorter string or list can leave something that is well formed; it never gives what was meant.
            if let Ok(frame) = recode(vector.kind, 0, &lie) {
                assert_ne!(frame[FRAME_HEADER_LEN..], vector.frame[FRAME_HEADER_LEN..], "{}", vector.name);
                assert!(frame.len() < vector.frame.len() + 9, "{}", vector.name);
            }
        }
    }
    assert!(count > 500, "{count} lies");
}

/// A list of `count` items, each of these bytes, as field 0 (or another) of a message.
fn with_list(before: &[u8], count: usize, item: &[u8], after: &[u8]) -> Vec<u8> {
    let mut payload = [before, &[0x99], &(count as u16).to_be_bytes()].concat();
    (0..count).for_each(|_| payload.extend_from_slice(item));
    payload.extend_from_slice(after);
    payload
}

#[test]
fn lists_and_names_end_at_their_bounds() {
    let name = |len: usize| [&[0x59][..], &(len as u16).to_be_bytes(), &vec![b'n'; len]].concat();
    let value = [&[0x58, 32][..], &[7; 32]].concat();
    let entry = [&[0xa5, 0, 0x41, b'a', 1, 0, 2, 0, 3, 0x82, 0, 0, 4, 0][..]].concat();
    let item = [0xa2, 0, 7, 1, 0xa2, 0, 0, 2, 0];
    let check = |what: &str, kind: Kind, max: usize, list: &dyn Fn(usize) -> Vec<u8>| {
        assert!(recode(kind, 0, &list(max)).is_ok(), "{what}: {max}");
        assert!(recode(kind, 0, &list(max + 1)).is_err(), "{what}: {}", max + 1);
    };
    check("versions", Kind::ClientHello, 16, &|n| with_list(&[0xa2, 1, 0x60, 0], n, &[1], &[]));
    check("components", Kind::Stat, limits::PATH_DEPTH_MAX, &|n| with_list(&[0xa1, 0], n, &[0x41, b'a'], &[]));
    check("a component", Kind::Stat, limits::COMPONENT_LEN_MAX, &|n| with_list(&[0xa1, 0], 1, &name(n), &[]));
    // 16 names of 255 bytes and 15 slashes are 4095 bytes.
    check("a path", Kind::Stat, 16, &|n| with_list(&[0xa1, 0], n, &name(255), &[]));
    check("values", Kind::Values, VALUES_MAX, &|n| with_list(&[0xa2, 0, 0, 1], n, &value, &[]));
    check("ranges", Kind::Want, 1024, &|n| with_list(&[0xa1, 0], n, &[0x82, 0, 1], &[]));
    let answer = [0xa5, 0, 0, 1, 0, 2, 0, 3, 0xf4, 4];
    check("held ranges", Kind::PutAnswer, 2048, &|n| with_list(&answer, n, &[0x82, 0, 1], &[]));
    check("entries", Kind::Entries, limits::LIST_PAGE_MAX, &|n| with_list(&[0xa1, 0], n, &entry, &[]));
    check("written groups", Kind::Written, WRITTEN_MAX, &|n| with_list(&[0xa1, 0], n, &[3], &[]));
    check("items", Kind::StoredBatch, 512, &|n| with_list(&[0xa1, 0], n, &item, &[]));
    check("nanoseconds", Kind::SetDirectory, 999_999_999, &|n| {
        [&[0xa2, 0, 0x80, 2, 0x82, 0, 0x1a][..], &(n as u32).to_be_bytes()].concat()
    });
    for (kind, first) in [(Kind::Working, 3), (Kind::Failed, 24)] {
        let payload: &[u8] =
            if kind == Kind::Working { &[0xa3, 0, first, 1, 0, 2, 0] } else { &[0xa2, 0, first, 1, 0x60] };
        assert!(recode(kind, 0, payload).is_err(), "an unknown value, or a number without its bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_headers_are_within_bounds_or_refused(bytes in any::<[u8; FRAME_HEADER_LEN]>()) {
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert!(header.len as usize <= CONTROL_LEN_MAX.max(OFFSET_LEN + limits::DATA_LEN_MAX));
            if header.kind.is_some() {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }

    /// A message with a few bytes changed: most are nonsense, many are nearly right.
    #[test]
    fn damaged_messages_never_panic(
        which in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let vectors = vectors();
        let vector = &vectors[which.index(vectors.len())];
        let mut payload = vector.frame[FRAME_HEADER_LEN..].to_vec();
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        let _ = black_box(recode(vector.kind, 0, &payload));
    }
}

// ---- memory and time ---------------------------------------------------------------------------------------

/// Runs a test's body in a process of its own, so that what it measures is its own.
#[track_caller]
pub(super) fn alone(test: &str, body: impl FnOnce()) {
    const CHILD: &str = "SEALIFT_TEST_ALONE";
    if std::env::var_os(CHILD).is_some_and(|name| name == test) {
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// KiB of this process: `VmRSS` now, `VmHWM` at most.
pub(super) fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn lies_and_nests_cost_no_memory_and_no_time() {
    alone("codec::lies_and_nests_cost_no_memory_and_no_time", || {
        let vectors = vectors();
        // Whatever is made once is made.
        for vector in vectors.iter().filter(|vector| vector.kind != Kind::Data) {
            lies(&vector.frame[FRAME_HEADER_LEN..]).iter().for_each(|lie| drop(recode(vector.kind, 0, lie)));
        }
        let before = memory("VmHWM");
        let started = Instant::now();
        for vector in vectors.iter().filter(|vector| vector.kind != Kind::Data) {
            for lie in lies(&vector.frame[FRAME_HEADER_LEN..]) {
                let _ = black_box(recode(vector.kind, 0, &lie));
            }
            // A field that nobody knows, of 64 KiB of beginnings.
            for nest in [0x81, 0x9f, 0xa1, 0xbf, 0xc1, 0x5f, 0x7f, 0x82] {
                let mut payload = vec![nest; CONTROL_LEN_MAX];
                payload[..3].copy_from_slice(&[0xbf, 0x18, 99]);
                let _ = black_box(recode(vector.kind, 0, &payload));
            }
        }
        // The decoder's own stack for what it skips is 16 bytes for each byte of a frame of 64 KiB.
        let grown = memory("VmHWM").saturating_sub(before);
        assert!(grown <= 4096, "{grown} KiB for payloads of at most 64 KiB");
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    });
}

/// What `fuzz/` does for hours, for about two seconds.
#[test]
fn fuzz_targets_hold_for_a_while() {
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from_le_bytes(rand_bytes()));
    println!("FUZZ_SEED={seed}");
    let vectors = vectors();
    let mut random = Random(seed | 1);
    let mut input = Vec::new();
    let mut count = 0;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        for (index, (_, target)) in TARGETS.iter().enumerate() {
            input.clear();
            let vector = &vectors[random.below(vectors.len())];
            match (index, random.below(4)) {
                // Real messages with some bytes changed; for the first target without the header.
                (0, 1..) => {
                    input.push(Kind::ALL.iter().position(|&kind| kind == vector.kind).unwrap() as u8);
                    input.extend_from_slice(&vector.frame[FRAME_HEADER_LEN..]);
                }
                (3, 1..) => {
                    for _ in 0..1 + random.below(4) {
                        input.extend_from_slice(&vectors[random.below(vectors.len())].frame);
                    }
                }
                _ => {
                    let len = random.below(200);
                    input.extend((0..len).map(|_| random.byte()));
                }
            }
            for _ in 0..random.below(4) {
                let at = random.below(input.len().max(1));
                if let Some(byte) = input.get_mut(at) {
                    *byte = random.byte();
                }
            }
            target(&input);
            count += 1;
        }
    }
    println!("{count} runs");
}

fn rand_bytes() -> [u8; 8] {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// A generator that is good enough to choose bytes (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 24) as u8
    }
}
