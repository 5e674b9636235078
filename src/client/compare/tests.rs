use super::*;

fn entry(name: &str, kind: EntryKind) -> Entry {
    let target = (kind == EntryKind::Link).then(|| b"x".to_vec());
    let mtime = Mtime { seconds: 7, nanos: 123_456_789 };
    Entry {
        name: name.as_bytes().to_vec(),
        kind,
        size: 10,
        mtime,
        mode: 0o644,
        target,
        same: None,
        xattrs_digest: None,
        xattrs: None,
    }
}

fn file(name: &str) -> Entry {
    entry(name, EntryKind::File)
}

fn settings() -> Settings {
    Settings {
        if_exists: IfExists::Overwrite,
        checksum: false,
        delete: false,
        delete_excluded: false,
        links: Links::Copy,
        file_mode: ModeRange { min: 0, max: 0o775 },
        directory_mode: ModeRange { min: 0, max: 0o775 },
        xattrs: false,
    }
}

/// Names beginning with `-` are left out.
fn judge(entry: &Entry, _: bool) -> Option<LeftOutBy> {
    (entry.name.first() == Some(&b'-')).then(|| "rule".into())
}

fn shown(compared: &Compared) -> Vec<String> {
    let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    compared
        .actions
        .iter()
        .map(|action| match action {
            Action::Send { source, is_there, looks_same } => {
                let (star, equals) = (if *is_there { "*" } else { "" }, if *looks_same { "=" } else { "" });
                format!("send {}{star}{equals}", name(&source.name))
            }
            Action::Same { source, .. } => format!("same {}", name(&source.name)),
            Action::Check { source, .. } => format!("check {}", name(&source.name)),
            Action::Enter { source, is_there, .. } => {
                format!("enter {}{}", name(&source.name), if *is_there { "*" } else { "" })
            }
            Action::Conflict { source, .. } => format!("conflict {}", name(&source.name)),
            Action::Surplus(there) => format!("remove {}", name(&there.name)),
            Action::Kept(source) => format!("keep {}", name(&source.name)),
            Action::Skip { name: skipped, .. } => format!("skip {}", name(skipped)),
            Action::Refuse { name: refused, error } => format!("refuse {} {:?}", name(refused), error.kind()),
        })
        .collect()
}

#[track_caller]
fn check(source: Vec<Entry>, there: Vec<Entry>, settings: &Settings, expected: &[&str]) -> Compared {
    let source = source.into_iter().map(Listed::from).collect();
    let compared = compare(source, there, 0, settings, judge);
    assert_eq!(shown(&compared), expected);
    compared
}

#[test]
fn names_are_merged_in_order() {
    let compared = check(vec![file("c"), file("a")], vec![file("b"), file("c")], &settings(), &["send a"]);
    assert_eq!((compared.unchanged, compared.source_files, compared.destination_files), (1, 2, 2));
    let delete = Settings { delete: true, ..settings() };
    check(vec![file("c"), file("a")], vec![file("b"), file("c")], &delete, &["send a", "remove b"]);
}

#[test]
fn size_time_and_mode_tell_a_change() {
    let there = || vec![file("a")];
    check(vec![Entry { size: 11, ..file("a") }], there(), &settings(), &["send a"]);
    check(vec![Entry { mtime: Mtime { seconds: 8, nanos: 0 }, ..file("a") }], there(), &settings(), &["send a*"]);
    check(vec![Entry { mode: 0o600, ..file("a") }], there(), &settings(), &["send a*"]);
    // What the destination cannot keep is no difference.
    check(vec![Entry { mode: 0o4646, ..file("a") }], there(), &settings(), &[]);
    let checksum = Settings { checksum: true, ..settings() };
    check(vec![file("a")], there(), &checksum, &["check a"]);
    check(vec![Entry { size: 11, ..file("a") }], there(), &checksum, &["send a"]);
}

#[test]
fn times_are_compared_as_finely_as_both_sides_keep_them() {
    let time = |nanos| Mtime { seconds: 5, nanos };
    for (left, right, same) in [
        (123_456_789, 123_456_789, true),
        (123_456_789, 123_456_788, false),
        (123_456_789, 123_456_700, true),
        (123_456_789, 123_456_000, true),
        (123_456_789, 123_000_000, true),
        (123_456_789, 0, true),
        (123_456_789, 100_000_000, false),
        (123_456_789, 123_456_780, false),
        (120_000_000, 0, true),
        (120_000_000, 110_000_000, false),
    ] {
        assert_eq!(is_same_time(time(left), time(right)), same, "{left} {right}");
        assert_eq!(is_same_time(time(right), time(left)), same, "{right} {left}");
    }
    assert!(!is_same_time(Mtime { seconds: 5, nanos: 0 }, Mtime { seconds: 6, nanos: 0 }));
}

#[test]
fn kinds_that_differ_need_a_removal() {
    let directory = entry("a", EntryKind::Directory);
    let delete = Settings { delete: true, ..settings() };
    check(vec![file("a")], vec![directory.clone()], &delete, &["conflict a"]);
    check(vec![directory.clone()], vec![file("a")], &delete, &["conflict a"]);
    check(vec![file("a")], vec![directory.clone()], &settings(), &["refuse a IsDirectory"]);
    check(vec![directory.clone()], vec![file("a")], &settings(), &["refuse a NotDirectory"]);
    // A link and a file replace one another.
    check(vec![file("a")], vec![entry("a", EntryKind::Link)], &settings(), &["send a"]);
    check(vec![entry("a", EntryKind::Link)], vec![file("a")], &settings(), &["send a"]);
    check(vec![file("a")], vec![entry("a", EntryKind::Special)], &delete, &["refuse a Special"]);
    check(vec![directory.clone()], vec![directory], &settings(), &["enter a*"]);
}

#[test]
fn what_is_left_out_or_skipped_protects_its_name() {
    let delete = Settings { delete: true, ..settings() };
    let compared = check(vec![file("-a")], vec![file("-a"), file("-b")], &delete, &[]);
    assert!(compared.has_hidden);
    assert_eq!(compared.left_out.values().sum::<u64>(), 1);
    assert_eq!(compared.destination_files, 0);
    let excluded = Settings { delete_excluded: true, ..delete };
    check(vec![file("-a")], vec![file("-a"), file("-b")], &excluded, &["remove -a", "remove -b"]);
    check(vec![entry("s", EntryKind::Special)], vec![file("s")], &delete, &["skip s"]);
    let absolute = Entry { target: Some(b"/etc".to_vec()), ..entry("l", EntryKind::Link) };
    check(vec![absolute], vec![file("l")], &delete, &["skip l"]);
    let skip = Settings { links: Links::Skip, ..delete };
    check(vec![entry("l", EntryKind::Link)], vec![], &skip, &["skip l"]);
    // A device is never removed.
    check(vec![], vec![entry("s", EntryKind::Special)], &delete, &[]);
}

#[test]
fn policies_of_put_and_get_are_foreseen() {
    let there = || vec![Entry { size: 11, ..file("a") }];
    for (if_exists, differing, same) in [
        (IfExists::Overwrite, "send a", None),
        (IfExists::Skip, "keep a", None),
        (IfExists::Fail, "refuse a Exists", None),
        (IfExists::Rename, "send a", Some("send a")),
    ] {
        let settings = Settings { if_exists, ..settings() };
        check(vec![file("a")], there(), &settings, &[differing]);
        check(vec![file("a")], vec![file("a")], &settings, &same.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn how_much_may_be_removed() {
    let max = |text: &str| text.parse::<DeleteMax>();
    assert_eq!(max("25%"), Ok(DeleteMax::default()));
    assert_eq!(max("0"), Ok(DeleteMax::Files(0)));
    for text in ["", "%", "101%", "-1", "+1", "1.5%", "a", "25 %"] {
        assert!(max(text).is_err(), "{text}");
    }
    for (max, count, all, allowed) in [
        ("25%", 10, 10, true),
        ("25%", 11, 43, false),
        ("25%", 11, 44, true),
        ("0%", 10, 1000, true),
        ("0%", 11, 1000, false),
        ("100%", 1000, 1000, true),
        ("3", 3, 3, true),
        ("3", 4, 1000, false),
        ("0", 0, 5, true),
        ("0", 1, 5, false),
    ] {
        assert_eq!(max.parse::<DeleteMax>().unwrap().allows(count, all), allowed, "{max} {count} of {all}");
    }
}

#[test]
fn extended_attributes_alone_are_a_difference_where_they_are_compared() {
    let with =
        |digest: Option<u8>, entry: Entry| Entry { xattrs_digest: digest.map(|digest| Bytes16([digest; 16])), ..entry };
    let compares = Settings { xattrs: true, ..settings() };
    for (source, there, expected) in [
        (Some(1), Some(1), &[][..]),
        (Some(1), Some(2), &["send a*="]),
        // What could not be read on one side is no reason to believe that it is the same.
        (Some(1), None, &["send a*="]),
        (None, None, &["send a*="]),
    ] {
        check(vec![with(source, file("a"))], vec![with(there, file("a"))], &compares, expected);
        check(vec![with(source, file("a"))], vec![with(there, file("a"))], &settings(), &[]);
    }
    let newer = Entry { mtime: Mtime { seconds: 8, nanos: 0 }, ..file("a") };
    check(vec![with(Some(1), newer)], vec![with(Some(2), file("a"))], &compares, &["send a*"]);
    let checksum = Settings { checksum: true, ..compares };
    let compared = check(vec![with(Some(1), file("a"))], vec![with(Some(2), file("a"))], &checksum, &["check a"]);
    assert!(matches!(compared.actions[0], Action::Check { is_same_otherwise: false, .. }));
    let directory = |digest| vec![with(Some(digest), entry("d", EntryKind::Directory))];
    for (digest, expected) in [(1, false), (2, true)] {
        let compared = check(directory(1), directory(digest), &compares, &["enter d*"]);
        assert!(matches!(compared.actions[0], Action::Enter { differs, .. } if differs == expected), "{digest}");
    }
}
