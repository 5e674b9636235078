//! What the fuzz targets do with their input, as plain functions, so that the tests run them too.
//!
//! Each takes whatever bytes there are, and panics when something is wrong.

use sealift::hash::{GroupHash, Root, Tree, group_count, group_len, group_offset};
use sealift::limits::{CONTROL_LEN_MAX, DATA_LEN_MAX, FILE_SIZE_MAX, GROUP_LEN, PATH_LEN_MAX};
use sealift::path::{Component, Escaped, NamePolicy, RemotePath, escape_text};
use sealift::protocol::{self, Breach, FRAME_HEADER_LEN, Finish, Header, Kind, Message, OFFSET_LEN};
use sealift::transfer::{Fetcher, Receiver, Sender};

/// The targets by name, as `fuzz/fuzz_targets` has them.
pub const TARGETS: &[(&str, Target)] =
    &[("messages", messages), ("paths", paths), ("receiver", receiver), ("frames", frames)];

/// What a target does with one input.
pub type Target = fn(&[u8]);

/// Decodes the payload of a frame of this kind, and encodes it again.
///
/// # Errors
/// What the decoder says.
pub fn recode(kind: Kind, transfer: u32, payload: &[u8]) -> Result<Vec<u8>, Breach> {
    fn message<M: Message>(transfer: u32, payload: &[u8]) -> Result<Vec<u8>, Breach> {
        Ok(M::from_payload(payload)?.to_frame(transfer))
    }
    let recode = match kind {
        Kind::ClientHello => message::<protocol::ClientHello>,
        Kind::ServerHello => message::<protocol::ServerHello>,
        Kind::Goodbye => message::<protocol::Goodbye>,
        Kind::Working => message::<protocol::Working>,
        Kind::Failed => message::<protocol::Failed>,
        Kind::Put => message::<protocol::Put>,
        Kind::PutAnswer => message::<protocol::PutAnswer>,
        Kind::Values => message::<protocol::Values>,
        Kind::Data => data,
        Kind::Finish => message::<protocol::Finish>,
        Kind::Stored => message::<protocol::Stored>,
        Kind::StoredBatch => message::<protocol::StoredBatch>,
        Kind::Receipt => message::<protocol::Receipt>,
        Kind::Written => message::<protocol::Written>,
        Kind::Zeros => message::<protocol::Zeros>,
        Kind::FinishAhead => message::<protocol::FinishAhead>,
        Kind::Get => message::<protocol::Get>,
        Kind::GetAnswer => message::<protocol::GetAnswer>,
        Kind::Want => message::<protocol::Want>,
        Kind::WantValues => message::<protocol::WantValues>,
        Kind::Close => message::<protocol::Close>,
        Kind::Stat => message::<protocol::Stat>,
        Kind::List => message::<protocol::ListDirectory>,
        Kind::Hash => message::<protocol::Hash>,
        Kind::MakeDirectory => message::<protocol::MakeDirectory>,
        Kind::MakeLink => message::<protocol::MakeLink>,
        Kind::SetDirectory => message::<protocol::SetDirectory>,
        Kind::Remove => message::<protocol::Remove>,
        Kind::Rename => message::<protocol::Rename>,
        Kind::Entry => message::<protocol::Entry>,
        Kind::Entries => message::<protocol::Entries>,
        Kind::Done => message::<protocol::Done>,
        Kind::Space => message::<protocol::Space>,
        Kind::Volume => message::<protocol::Volume>,
        Kind::BeginTree => message::<protocol::BeginTree>,
        Kind::TreeBegun => message::<protocol::TreeBegun>,
        Kind::PublishTree => message::<protocol::PublishTree>,
        Kind::Invite => message::<protocol::Invite>,
        Kind::Invited => message::<protocol::Invited>,
        Kind::ListInvites => message::<protocol::ListInvites>,
        Kind::Invites => message::<protocol::Invites>,
        Kind::RevokeInvite => message::<protocol::RevokeInvite>,
    };
    recode(transfer, payload)
}

fn data(transfer: u32, payload: &[u8]) -> Result<Vec<u8>, Breach> {
    let mut frame = Header::new(Kind::Data, transfer, payload.len()).encode().to_vec();
    frame.extend_from_slice(payload);
    Ok(frame)
}

/// One frame: header and payload. What decodes must be the same after another round.
pub fn messages(input: &[u8]) {
    let Some((&code, payload)) = input.split_first() else { return };
    let kind = Kind::ALL[usize::from(code) % Kind::ALL.len()];
    let payload = &payload[..payload.len().min(kind.len_range().1)];
    check_message(kind, payload);
}

/// What a receipt signs, from bytes that a file may hold. What decodes must be the same after another round.
fn check_statement(bytes: &[u8]) {
    if let Ok(statement) = protocol::Statement::from_bytes(bytes) {
        assert_eq!(protocol::Statement::from_bytes(&statement.to_bytes()), Ok(statement));
    }
}

fn check_message(kind: Kind, payload: &[u8]) {
    if kind == Kind::Receipt {
        check_statement(payload);
        if let Ok(receipt) = protocol::Receipt::from_payload(payload) {
            check_statement(&receipt.statement);
        }
    }
    if payload.len() < kind.len_range().0 {
        return;
    }
    match recode(kind, 7, payload) {
        Ok(frame) => {
            let header = Header::decode(frame[..FRAME_HEADER_LEN].try_into().unwrap()).expect("what we sent");
            assert_eq!((header.kind, header.transfer), (Some(kind), 7));
            let again = recode(kind, 7, &frame[FRAME_HEADER_LEN..]).expect("what we encoded decodes");
            assert_eq!(frame, again, "the shortest form is stable");
        }
        Err(breach) => assert!(breach.to_string().len() < 16 * 1024, "a short reason"),
    }
}

/// A stream of frames, as a connection reads it.
pub fn frames(mut input: &[u8]) {
    while let Some((header, rest)) = input.split_first_chunk::<FRAME_HEADER_LEN>() {
        let Ok(header) = Header::decode(header) else { return };
        let len = header.len as usize;
        assert!(len <= CONTROL_LEN_MAX.max(OFFSET_LEN + DATA_LEN_MAX), "no header allows more");
        let Some((payload, rest)) = rest.split_at_checked(len) else { return };
        if let Some(kind) = header.kind {
            let (min, max) = kind.len_range();
            assert!((min..=max).contains(&len));
            check_message(kind, payload);
        }
        input = rest;
    }
}

/// Names: as components, as text, and shown.
pub fn paths(input: &[u8]) {
    let shown = Escaped(input).to_string();
    assert!(shown.chars().all(|c| !c.is_control()), "nothing that steers a terminal is shown");
    if let Ok(text) = std::str::from_utf8(input) {
        assert!(escape_text(text).chars().all(|c| !c.is_control()));
    }
    if let Ok(component) = Component::new(input) {
        assert!(!input.is_empty() && input.len() <= 255 && input != b"." && input != b"..");
        assert!(!input.contains(&b'/') && !input.contains(&0));
        assert_eq!(component.as_bytes(), input);
    }
    let split = |byte: u8| RemotePath::from_components(input.split(move |&b| b == byte));
    for path in [RemotePath::parse(input), split(b'/'), split(0xff)].into_iter().flatten() {
        assert!(path.len() <= PATH_LEN_MAX && path.components().len() <= 256);
        assert_eq!(path.to_bytes().len(), path.len());
        assert_eq!(RemotePath::parse(&path.to_bytes()).as_ref(), Ok(&path));
        let again = path.components().iter().map(Component::as_bytes);
        assert_eq!(RemotePath::from_components(again).as_ref(), Ok(&path));
        if let Some((parent, name)) = path.split() {
            assert!(path.starts_with(&parent) && !parent.starts_with(&path));
            assert_eq!(parent.join(name.clone()).as_ref(), Ok(&path));
        }
        if NamePolicy::default().check(&path).is_ok() {
            assert!(std::str::from_utf8(&path.to_bytes()).is_ok());
        }
    }
}

/// A receiver under a list of operations, beside a model that is one bool per byte step.
pub fn receiver(input: &[u8]) {
    let Some((head, mut ops)) = input.split_first_chunk::<4>() else { return };
    const STEP: u64 = GROUP_LEN as u64 / 4;
    // A handful of groups, and ends beside their borders.
    let size = (u64::from(head[0] % 5) * GROUP_LEN as u64).saturating_add_signed(i64::from(head[1] % 5) - 2);
    let known = head[2] % 4 > 0;
    let mut receiver = Receiver::new(known.then_some(size));
    if head[2] % 4 == 1 {
        receiver.set_base(u64::from(head[3]) * STEP / 4);
    }
    let mut received = 0;
    let mut open: Vec<u64> = Vec::new();
    while let Some((op, rest)) = ops.split_first_chunk::<4>() {
        ops = rest;
        let offset = match op[1] % 8 {
            0 => u64::MAX - u64::from(op[2]),
            1 => FILE_SIZE_MAX - u64::from(op[2]),
            2 => size.saturating_sub(u64::from(op[2])),
            _ => u64::from(op[2] % 24) * STEP,
        };
        let len = match op[3] % 4 {
            0 => usize::from(op[3]),
            1 => usize::try_from(size.saturating_sub(offset).min(STEP)).unwrap(),
            _ => STEP as usize,
        };
        let group = u64::from(op[2] % 8);
        match op[0] % 8 {
            0..=4 => {
                let checked = receiver.check(offset, len);
                let accepted = receiver.accept(offset, len);
                assert_eq!(checked, accepted);
                if let Ok(piece) = accepted {
                    received += len as u64;
                    assert!(len > 0 && offset + len as u64 <= if known { size } else { FILE_SIZE_MAX });
                    assert_eq!(group_offset(piece.group) + piece.start as u64, offset);
                    assert!(piece.start + len <= GROUP_LEN);
                    if !open.contains(&piece.group) {
                        open.push(piece.group);
                    }
                    assert!(receiver.check(offset, len).is_err(), "a piece twice");
                    if piece.completes && op[0] % 2 == 0 {
                        receiver.insert(piece.group, GroupHash::of(piece.group, &[op[3]]));
                        open.retain(|&group| group != piece.group);
                    }
                }
            }
            5 => {
                if open.contains(&group) {
                    let before = receiver.received();
                    receiver.reset(group);
                    received -= before - receiver.received();
                    open.retain(|&other| other != group);
                }
            }
            6 => {
                let finish = Finish { size: if op[1] % 2 == 0 { size } else { received }, root: Root([op[2]; 32]) };
                if receiver.set_finish(finish.clone()).is_ok() {
                    assert!(receiver.set_finish(finish).is_err(), "a second finish");
                }
            }
            _ => {
                if let Some((group, len)) = receiver.last_open() {
                    receiver.insert(group, GroupHash::of(group, &vec![1; len]));
                    open.retain(|&other| other != group);
                }
            }
        }
        assert_eq!(receiver.received(), received);
        if receiver.is_ready() {
            let finish = receiver.finish().expect("ready after the finish");
            assert!(open.is_empty(), "ready with groups open");
            let missing: Vec<u64> = receiver.missing(finish.size).collect();
            for group in missing {
                receiver.insert(group, GroupHash::of(group, &[0]));
            }
            // A made-up root never fits.
            assert!(receiver.verdict().is_err());
            return;
        }
    }
    machines(size, head);
}

/// Sender and fetcher hand out every group once, whatever is given back.
fn machines(size: u64, seed: &[u8; 4]) {
    let (mut sender, mut fetcher, mut tree) = (Sender::new(size), Fetcher::new(size), Tree::new());
    let mut steps = 0;
    while let Some(sealift::transfer::Taken { group, .. }) = sender.take() {
        steps += 1;
        if steps % 3 == 0 && steps < 16 {
            sender.give_back(group);
            continue;
        }
        let hash = GroupHash::of(group, &[seed[0]]);
        tree.insert(group, hash);
        sender.judge(group, hash, None);
        sender.sent(group);
    }
    assert!(size == 0 || group_count(size) == 1 || sender.finish().map(|finish| finish.root) == tree.root(size));
    let mut asked = 0;
    while let Some((offset, len)) = fetcher.take() {
        assert_eq!(len, group_len(size, offset / GROUP_LEN as u64) as u64);
        asked += len;
    }
    assert_eq!(asked, size);
    assert!(fetcher.is_exhausted());
}
