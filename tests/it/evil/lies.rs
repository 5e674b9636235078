//! Hashes, sizes, answers, hellos and texts that a server lies in.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use sealift::ErrorKind;
use sealift::hash::{GroupValue, Root};
use sealift::protocol::*;

use super::server::*;
use crate::terminal::Terminal;

/// Content of more than a few groups.
fn large() -> Vec<u8> {
    crate::kit::noise(9, (3 << 20) + 5)
}

/// What is said to a request, if anything is.
type Answer = Option<Vec<Say>>;

/// The right content, when it is wanted.
fn wanted(request: &Request, right: &[u8]) -> Answer {
    let pieces = request.is::<Want>()?.ranges.0.into_iter().flat_map(|(offset, len)| {
        let at = (offset..offset + len).step_by(256 << 10);
        at.map(move |at| (at as usize, (at + (256 << 10)).min(offset + len) as usize))
    });
    Some(pieces.map(|(at, end)| content(request.transfer, at as u64, &right[at..end])).collect())
}

/// Opens a file of this content, tells these ends ahead, and sends what is wanted.
fn told_ahead(request: &Request, right: &[u8], ends: &[FinishAhead]) -> Answer {
    if request.kind == Kind::Close {
        // It keeps to its lie.
        let FinishAhead { size, root } = ends[0].clone();
        return Some(vec![say(request.transfer, &Finish { size, root })]);
    }
    if request.kind != Kind::Get {
        return wanted(request, right);
    }
    let answer = get_answer(&file("f"), right.len() as u64, false);
    let ends = ends.iter().map(|end| say(request.transfer, end));
    Some(std::iter::once(say(request.transfer, &answer)).chain(ends).collect())
}

/// How a download is wrong.
type Wrong = fn(&Request, &[u8]) -> Answer;

const WRONG: &[(&str, Wrong)] = &[
    ("another root", |request, right| {
        let (get, transfer) = (request.is::<Get>()?, request.transfer);
        let unasked = right.len() as u64 <= get.unasked_max;
        unasked.then(|| {
            let wrong = Finish { size: right.len() as u64, root: Root([7; 32]) };
            let answer = get_answer(&file("f"), right.len() as u64, true);
            vec![say(transfer, &answer), content(transfer, 0, right), say(transfer, &wrong)]
        })
    }),
    ("another root at the end of a long file", |request, right| {
        let wrong = Finish { size: right.len() as u64, root: Root([7; 32]) };
        request.is::<Close>().map(|_| vec![say(request.transfer, &wrong)])
    }),
    ("the right content, and another root that was recorded", |request, right| {
        let transfer = request.transfer;
        if let Some(wanted) = wanted(request, right) {
            return Some(wanted);
        }
        if request.kind == Kind::Close {
            return Some(vec![say(transfer, &finish(right))]);
        }
        let unasked = right.len() as u64 <= request.is::<Get>()?.unasked_max;
        let told = get_answer(&file("f"), right.len() as u64, unasked);
        let mut says = vec![say(transfer, &GetAnswer { root: Some(Root([7; 32])), ..told })];
        if unasked {
            says.extend([content(transfer, 0, right), say(transfer, &finish(right))]);
        }
        Some(says)
    }),
    ("a first group that nobody asked for", |request, right| {
        let answer = GetAnswer { first: Some(true), ..get_answer(&file("f"), right.len() as u64, false) };
        let first = &right[..right.len().min(256 << 10)];
        (request.kind == Kind::Get).then(|| vec![say(request.transfer, &answer), content(request.transfer, 0, first)])
    }),
    ("another root before the end", |request, right| {
        told_ahead(request, right, &[FinishAhead { size: right.len() as u64, root: Root([7; 32]) }])
    }),
    ("another size before the end", |request, right| {
        told_ahead(request, right, &[FinishAhead { size: right.len() as u64 + 1, root: Root::of(right) }])
    }),
    ("the end, told twice", |request, right| {
        let end = FinishAhead { size: right.len() as u64, root: Root::of(right) };
        told_ahead(request, right, &[end.clone(), end])
    }),
    ("the end, told before the answer", |request, right| {
        let end = FinishAhead { size: right.len() as u64, root: Root::of(right) };
        (request.kind == Kind::Get).then(|| vec![say(request.transfer, &end)])
    }),
    ("the end, told and without content", |request, right| {
        let end = FinishAhead { size: right.len() as u64, root: Root::of(right) };
        if request.kind == Kind::Want { Some(vec![Say::Cut]) } else { told_ahead(request, right, &[end]) }
    }),
    ("another size at the end", |request, right| {
        let wrong = Finish { size: right.len() as u64 + 1, root: Root::of(right) };
        request.is::<Close>().map(|_| vec![say(request.transfer, &wrong)])
    }),
    ("an end without content", |request, right| {
        request.is::<Want>().map(|_| vec![say(request.transfer, &finish(right))])
    }),
    ("no root, and a wrong one for who asks", |request, right| {
        let root = Some(Root([7; 32]));
        matches!(request.kind, Kind::Close | Kind::Hash).then(|| {
            let done = Done { count: 0, root, size: Some(right.len() as u64), ..Done::default() };
            vec![say(request.transfer, &done)]
        })
    }),
    ("no root whoever asks", |request, _| {
        matches!(request.kind, Kind::Close | Kind::Hash)
            .then(|| vec![say(request.transfer, &Done { count: 0, ..Done::default() })])
    }),
    ("short content", |request, right| {
        let (get, transfer) = (request.is::<Get>()?, request.transfer);
        (right.len() as u64 <= get.unasked_max).then(|| {
            let answer = get_answer(&file("f"), right.len() as u64, true);
            vec![say(transfer, &answer), content(transfer, 0, &right[..right.len() - 1]), say(transfer, &finish(right))]
        })
    }),
    ("more content", |request, right| {
        let (get, transfer) = (request.is::<Get>()?, request.transfer);
        (right.len() as u64 <= get.unasked_max).then(|| {
            let answer = get_answer(&file("f"), right.len() as u64, true);
            let more = [right, b"more"].concat();
            vec![say(transfer, &answer), content(transfer, 0, &more), say(transfer, &finish(&more))]
        })
    }),
    ("content behind the end", |request, right| {
        let (get, transfer) = (request.is::<Get>()?, request.transfer);
        (right.len() as u64 <= get.unasked_max).then(|| {
            let answer = get_answer(&file("f"), right.len() as u64, true);
            let behind = content(transfer, right.len() as u64, b"more");
            vec![say(transfer, &answer), content(transfer, 0, right), behind, say(transfer, &finish(right))]
        })
    }),
    ("other content", |request, right| {
        let want = request.is::<Want>()?;
        let wrong: Vec<u8> = right.iter().map(|byte| byte ^ 1).collect();
        let pieces = want.ranges.0.into_iter().flat_map(|(offset, len)| {
            let wrong = wrong.clone();
            (offset..offset + len).step_by(256 << 10).map(move |at| {
                content(request.transfer, at, &wrong[at as usize..(at + (256 << 10)).min(offset + len) as usize])
            })
        });
        Some(pieces.collect())
    }),
    ("content in another order", |request, right| {
        let want = request.is::<Want>()?;
        let (offset, _) = *want.ranges.0.last()?;
        Some(vec![content(request.transfer, offset + 1, &right[offset as usize..offset as usize + 2])])
    }),
    ("content that nobody wanted", |request, right| {
        (request.kind == Kind::Get).then(|| {
            let answer = get_answer(&file("f"), right.len() as u64, false);
            vec![say(request.transfer, &answer), content(request.transfer, 0, &right[..5])]
        })
    }),
    ("a size that cannot be", |request, _| {
        (request.kind == Kind::Get).then(|| vec![say(request.transfer, &get_answer(&file("f"), u64::MAX, false))])
    }),
    ("a size of 2^63, unasked", |request, _| {
        (request.kind == Kind::Get).then(|| vec![say(request.transfer, &get_answer(&file("f"), 1 << 63, true))])
    }),
    ("a size of 4 PiB", |request, _| {
        let answer = get_answer(&file("f"), 1 << 52, false);
        match request.kind {
            Kind::Get => Some(vec![say(request.transfer, &answer)]),
            Kind::Want => Some(vec![Say::Close]),
            _ => None,
        }
    }),
    ("two answers", |request, right| {
        (request.kind == Kind::Get).then(|| {
            let answer = get_answer(&file("f"), right.len() as u64, false);
            vec![say(request.transfer, &answer), say(request.transfer, &answer)]
        })
    }),
    ("the answer of an upload", |request, right| {
        (request.kind == Kind::Get).then(|| vec![say(request.transfer, &stored(right))])
    }),
    ("the end in the middle", |request, right| {
        (request.kind == Kind::Want).then(|| vec![content(request.transfer, 0, &right[..1000]), Say::Close])
    }),
    ("the end of TCP in the middle", |request, right| {
        (request.kind == Kind::Want).then(|| vec![content(request.transfer, 0, &right[..1000]), Say::Cut])
    }),
    ("the end of TCP where a file ends", |request, right| {
        let get = request.is::<Get>()?;
        (right.len() as u64 <= get.unasked_max).then(|| {
            let answer = get_answer(&file("f"), right.len() as u64, true);
            vec![say(request.transfer, &answer), content(request.transfer, 0, right), Say::Cut]
        })
    }),
];

#[test]
fn a_download_that_is_wrong_in_any_way_leaves_the_old_version() {
    for (what, wrong) in WRONG {
        for right in [EVIL.to_vec(), large()] {
            for command in
                [&["get", "top", "target/top"][..], &["get", "top/f", "target/top/f"], &["sync", "top", "target/top"]]
            {
                let entry = Entry { size: right.len() as u64, ..file("f") };
                let tree = Tree::default().with("", [directory("top")]).with("top", [entry]).holding("top/f", &right);
                let (content, met) = (right.clone(), std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)));
                let meets = std::sync::Arc::clone(&met);
                let evil = Evil::start(tree, move |request| {
                    let answer = wrong(request, &content);
                    meets.fetch_add(usize::from(answer.is_some()), std::sync::atomic::Ordering::Relaxed);
                    answer
                });
                let place = Place::new();
                fs::create_dir(place.target().join("top")).unwrap();
                let old = place.target().join("top/f");
                fs::write(&old, b"the old version").unwrap();
                let before = fs::metadata(&old).unwrap();
                let url = evil.url(command[1]);
                let (code, stdout, stderr) = place.run(&[command[0], &url, command[2], "--timeout", "1s", "--json"]);
                let what = format!("{command:?} {} bytes, {what}: {code} {stdout} {stderr}", right.len());
                place.check(&what);
                if met.load(std::sync::atomic::Ordering::Relaxed) == 0 {
                    // This lie has no place in so short or long a file.
                    assert_eq!(code, 0, "{what}");
                    continue;
                }
                assert!([1, 3, 5].contains(&code), "{what}");
                if what.contains("another root") || what.contains("other content") {
                    assert_eq!(code, 5, "{what}");
                }
                assert_eq!(fs::read(&old).unwrap(), b"the old version", "{what}");
                let after = fs::metadata(&old).unwrap();
                assert_eq!((after.ino(), after.mtime_nsec()), (before.ino(), before.mtime_nsec()), "{what}");
                for found in place.found() {
                    let name = found.rsplit('/').next().unwrap();
                    // What came right of a large file is kept for the next run, hidden.
                    assert!(["", "f"].contains(&name) || name.starts_with(".sealift-"), "{found}: {what}");
                }
            }
        }
    }
}

/// How the answer to an upload is wrong.
type WrongEnd = fn(&[u8]) -> Stored;

const WRONG_ENDS: &[(&str, WrongEnd)] = &[
    ("another root", |right| Stored { root: Some(Root([7; 32])), ..stored(right) }),
    ("no root", |right| Stored { root: None, ..stored(right) }),
    ("another size", |right| Stored { size: right.len() as u64 + 1, ..stored(right) }),
    ("size 2^63", |right| Stored { size: 1 << 63, ..stored(right) }),
    ("unchanged, no root", |right| Stored { outcome: Outcome::Unchanged, root: None, ..stored(right) }),
    ("skipped", |right| Stored { outcome: Outcome::Skipped, ..stored(right) }),
    ("unchanged, another root", |right| Stored {
        outcome: Outcome::Unchanged,
        root: Some(Root([7; 32])),
        ..stored(right)
    }),
];

#[test]
fn an_upload_is_not_believed_to_be_stored_for_a_wrong_answer() {
    for (what, end) in WRONG_ENDS {
        // At the end of a small and of a large one, and of a large one before any content.
        for (len, when) in [(21, Kind::Finish), (3 << 20, Kind::Finish), (3 << 20, Kind::Put)] {
            let right = crate::kit::noise(5, len);
            let expected = right.clone();
            let evil = Evil::start(Tree::default(), move |request| {
                (request.kind == when).then(|| vec![say(request.transfer, &end(&expected))])
            });
            for more in [&[][..], &["--remove-source"], &["--if-exists", "rename"]] {
                let place = Place::new();
                let source = place.target().join("mine");
                fs::write(&source, &right).unwrap();
                let url = evil.url("f");
                let arguments = [&["put", "target/mine", &url, "--timeout", "1s", "--json"][..], more].concat();
                let (code, stdout, stderr) = place.run(&arguments);
                let what = format!("{what} {len} {when:?} {more:?}: {code} {stdout} {stderr}");
                assert!([3, 5].contains(&code), "{what}");
                assert_eq!(fs::read(&source).unwrap(), right, "{what}");
                place.check(&what);
            }
        }
    }
}

/// Exit codes that say what only this side knows: that nothing was tried, and that a person ended it.
#[test]
fn no_word_of_a_server_passes_for_a_wrong_command_line_or_a_signal() {
    for kind in [ErrorKind::Usage, ErrorKind::Interrupted] {
        let whole = Goodbye { code: kind.code(), text: "because".to_owned() };
        for (when, transfer) in [(Kind::Put, true), (Kind::Put, false), (Kind::Get, true), (Kind::Stat, true)] {
            let said = whole.clone();
            let evil = Evil::start(Tree::default(), move |request| {
                (request.kind == when).then(|| match transfer {
                    true => vec![failed(request.transfer, kind, "because")],
                    false => vec![say(0, &said)],
                })
            });
            let place = Place::new();
            let (source, url) = (place.source(), evil.url("f"));
            let arguments = match when {
                Kind::Put => ["put", &source, &url],
                _ => ["get", &url, "target/f"],
            };
            let (code, stdout, stderr) = place.run(&arguments);
            let what = format!("{kind:?} {when:?} {transfer}: {code} {stdout} {stderr}");
            assert_eq!(code, 4, "{what}");
            assert!(stderr.contains("because"), "{what}");
            place.check(&what);
        }
    }
}

#[test]
fn what_a_server_claims_to_hold_is_bounded_and_costs_no_content() {
    let answer = |holding, held_size, ranges: Vec<(u64, u64)>| PutAnswer {
        holding,
        generation: u64::MAX,
        held_size,
        compare_only: false,
        ranges: List(ranges),
    };
    let (mib, max) = (1 << 20, u64::MAX);
    let answers = [
        answer(Holding::Held, max, vec![(0, max)]),
        answer(Holding::Held, 1, vec![(max, max)]),
        answer(Holding::Held, 2 * mib, vec![(mib, mib), (0, mib)]),
        answer(Holding::Held, 2 * mib, vec![(0, mib), (0, mib)]),
        answer(Holding::Held, 2 * mib, (0..2048).map(|index| (index, 1)).collect()),
        answer(Holding::Held, 3 * mib, vec![(5, 3 * mib)]),
        answer(Holding::Base, max, vec![]),
        answer(Holding::Base, 1 << 52, vec![]),
        PutAnswer { compare_only: true, ..answer(Holding::Base, 3 * mib, vec![]) },
        PutAnswer { compare_only: true, ..answer(Holding::Fresh, 0, vec![]) },
    ];
    for answer in answers {
        let shown = format!("{answer:?}").chars().take(200).collect::<String>();
        for values in [0, 3, 1000] {
            let answer = answer.clone();
            let evil = Evil::start(Tree::default(), move |request| {
                request.is::<Put>().filter(|put| !put.unasked).map(|_| {
                    let mut said = vec![say(request.transfer, &answer)];
                    if values > 0 {
                        let values = Values { first: 0, values: List(vec![GroupValue([7; 32]); values]) };
                        said.push(say(request.transfer, &values));
                    } else {
                        said.push(Say::Close);
                    }
                    said
                })
            });
            let place = Place::new();
            let (source, url) = (place.source(), evil.url("f"));
            let mut child = place.start(&["put", &source, &url, "--timeout", "1s"]);
            // Whether such a claim is refused, or believed and waited for, is told apart by the time allowed.
            let code = ended_or_interrupted(&mut child);
            let what = format!("{shown} {values} values: {code:?}");
            assert!(code.is_some_and(|code| [0, 1, 3, 5, 130].contains(&code)), "{what}");
            place.check(&what);
        }
    }
}

/// The exit code of a client, which is interrupted when it does not end by itself soon.
fn ended_or_interrupted(child: &mut std::process::Child) -> Option<i32> {
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_millis(700) {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    super::time::interrupt(child)
}

#[test]
fn hellos_that_promise_anything_are_taken_for_no_more_than_they_can_be() {
    let max = ServerHello {
        version: 1,
        zeros: None,
        finish_ahead: None,
        agent: "\x1b]0;agent\x07\u{202e}\r".into(),
        principal: Some("\x1b[31mroot\n\u{9b}2J".repeat(50)),
        rights: u32::MAX,
        token: Some(Bytes16([1; 16])),
        unasked_max: u64::MAX,
        open_max: u32::MAX,
        idle_seconds: u32::MAX,
        now: i64::MAX,
        file_mode: Some((u32::MAX, u32::MAX)),
        directory_mode: Some((u32::MAX, 0)),
        receipt_key: Some(Bytes32([0; 32])),
        trees: Some(true),
        invites: Some(true),
        xattrs: None,
    };
    let min = ServerHello {
        rights: 0,
        unasked_max: 0,
        open_max: 0,
        idle_seconds: 0,
        now: i64::MIN,
        file_mode: Some((0, 0)),
        token: None,
        ..max.clone()
    };
    for hello in [max, min, ServerHello { version: 2, ..hello() }, ServerHello { version: u16::MAX, ..hello() }] {
        let is_version = hello.version == 1;
        let tree = Tree::default().with("", [directory("top")]).with("top", [file("f")]);
        let evil = Evil::start_with(hello, tree, |_| None);
        let place = Place::new();
        let source = place.source();
        fs::write(place.target().join("small"), b"small").unwrap();
        let (top, f, new) = (evil.url("top"), evil.url("top/f"), evil.url("new"));
        for command in [
            &["get", &top, "target/top", "-v"][..],
            &["get", &f, "target/f", "-v", "--json"],
            &["put", &source, &new, "-v"],
            &["put", "target/small", &new, "--receipts", "target/receipts"],
            &["sync", "target", &top],
            &["sync", &top, "target/top"],
            &["ls", &top, "-v"],
            &["stat", &f],
            &["hash", &f],
            &["doctor", &top],
            &["doctor", &top, "--json"],
            &["verify", "target", &top],
        ] {
            let (code, stdout, stderr) = place.run(command);
            let what = format!("{command:?}: {code} {stdout} {stderr}");
            if !is_version {
                assert_ne!(code, 0, "{what}");
            }
            place.check(&what);
        }
    }
}

#[test]
fn receipts_that_are_not_right_are_no_receipts() {
    let key = Some(Bytes32([9; 32]));
    let receipts: [fn(u32) -> Vec<Say>; 4] = [
        |transfer| vec![say(transfer, &Receipt { statement: vec![0xff; 60_000], signature: vec![0; 64] })],
        |transfer| vec![say(transfer, &Receipt { statement: b"\x1b[2J".to_vec(), signature: Vec::new() })],
        |transfer| {
            let receipt = say(transfer, &Receipt { statement: vec![0xa0], signature: vec![1; 1000] });
            let again = say(transfer, &Receipt { statement: vec![0xa0], signature: vec![1; 64] });
            vec![receipt, again]
        },
        |_| Vec::new(),
    ];
    for receipt in receipts {
        let evil = Evil::start_with(ServerHello { receipt_key: key, ..hello() }, Tree::default(), move |request| {
            request.is::<Finish>().map(|end| {
                let mut said = receipt(request.transfer);
                let stored = Stored {
                    outcome: Outcome::Stored,
                    root: Some(end.root),
                    size: end.size,
                    path: None,
                    xattrs_lost: None,
                };
                said.push(say(request.transfer, &stored));
                said
            })
        });
        let place = Place::new();
        let source = place.source();
        let url = evil.url("f");
        let put = ["put", &source, &url, "--receipts", "target/receipts", "--remove-source", "--timeout", "1s"];
        let (code, stdout, stderr) = place.run(&put);
        assert!([3, 5].contains(&code), "{code} {stdout} {stderr}");
        place.check("receipts");
    }
}

/// Sequences that would do something to a terminal.
const TEXT: &str =
    "\x1b[2J\x1b]0;title\x07\x1b]52;c;cm0=\x07\x1b]8;;x\x1b\\\u{9b}31m\u{85}\r\n\x08\u{202e}\u{200b}\u{7f}\x00end";

#[test]
fn texts_of_a_server_reach_a_terminal_escaped() {
    let ends: [fn(&Request) -> Answer; 3] = [
        |request| (request.transfer > 0).then(|| vec![failed(request.transfer, ErrorKind::Io, &TEXT.repeat(100))]),
        |request| {
            let goodbye = Goodbye { code: 60_000, text: TEXT.repeat(200) };
            (request.transfer > 0).then(|| vec![say(0, &goodbye), Say::Close])
        },
        |request| {
            let goodbye = Goodbye { code: ErrorKind::Rights.code(), text: TEXT.to_owned() };
            (request.kind == Kind::ClientHello).then(|| vec![say(0, &goodbye), Say::Close])
        },
    ];
    for (index, end) in ends.into_iter().enumerate() {
        let evil = Evil::start(Tree::default(), end);
        let place = Place::new();
        let (source, f) = (place.source(), evil.url("f"));
        for command in [
            &["get", &f, "target/f"][..],
            &["get", &f, "-"],
            &["put", &source, &f],
            &["sync", &f, "target"],
            &["sync", "target", &f],
            &["ls", &f],
            &["stat", &f],
            &["hash", &f],
            &["rm", &f],
            &["mkdir", &f],
            &["doctor", &f],
            &["verify", &source, &f],
        ] {
            let what = format!("{index} {command:?}");
            let json = [command, &["--json"]].concat();
            let (code, ..) = place.run(&json);
            assert!([1, 3, 4].contains(&code), "{what}: {code}");
            let (status, screen, bytes) = Terminal::start(place.command(command), 24, 80).end();
            assert!(!status.success(), "{what}: {screen}");
            assert_tame(&bytes, &what);
            place.check(&what);
        }
    }
}

#[test]
fn names_reach_a_terminal_escaped_while_bars_are_shown() {
    let name = "\x1b[2J\x1b]0;t\x07\u{9b}1m\r\u{202e}x";
    let entry = Entry { size: large().len() as u64, ..file(name) };
    let tree = Tree::default().with("", [directory("top")]).with("top", [entry, link(format!("l{name}"), TEXT)]);
    let evil = Evil::with(tree.holding(&format!("top/{name}"), &large()));
    let place = Place::new();
    let top = evil.url("top");
    for command in [&["get", &top, "target/top", "-v"][..], &["get", &top, "target/again"], &["ls", "-lR", &top]] {
        let (status, screen, bytes) = Terminal::start(place.command(command), 24, 80).end();
        assert!(status.success(), "{screen}");
        assert_tame(&bytes, &format!("{command:?}"));
        place.check("bars");
    }
}

/// On a terminal the program itself moves the cursor and clears lines, and does nothing else.
#[track_caller]
fn assert_tame(bytes: &[u8], what: &str) {
    let text = String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| panic!("{what}: not text: {bytes:?}"));
    let mut rest = text.as_str();
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        let sequence = after.strip_prefix('[').unwrap_or_else(|| panic!("{what}: {after:?} in {text:?}"));
        let end = sequence.find(|c: char| c.is_ascii_alphabetic()).unwrap();
        let command = &sequence[..=end];
        let is_own = matches!(&command[end..], "A" | "B" | "C" | "D" | "K" | "m")
            || ["?25l", "?25h", "?2026h", "?2026l", "0J", "J"].contains(&command);
        assert!(is_own, "{what}: {command:?} in {text:?}");
        rest = &sequence[end + 1..];
    }
    plain.push_str(rest);
    assert_harmless(plain.replace('\r', "").as_bytes(), what);
}
