use super::*;

fn strings(arguments: &[&str]) -> Vec<OsString> {
    arguments.iter().map(OsString::from).collect()
}

/// What `put ARGUMENTS` does, as `source>target` pairs, or the message of the refusal.
fn put(arguments: &[&str], kind: Sources, listed: &[&str]) -> Result<Vec<String>, String> {
    let real = |path: &Path| match path.to_str() {
        Some("." | "/home/me/x/..") => Ok(PathBuf::from("/home/me")),
        Some("..") => Ok(PathBuf::from("/home")),
        Some("/..") => Ok(PathBuf::from("/")),
        other => panic!("no need to ask for the real name of {other:?}"),
    };
    put_arguments(&strings(arguments), strings(listed))
        .and_then(|(sources, destination)| plan_put(sources, kind, &destination, real))
        .map(|plan| plan.items.iter().map(|item| format!("{}>{}", item.source, item.target)).collect())
        .map_err(|error| {
            assert_eq!(error.kind(), ErrorKind::Usage, "{error:?}");
            error.chain()
        })
}

#[track_caller]
fn check_put(arguments: &[&str], expected: &[&str]) {
    let got = put(arguments, Sources::Named, &[]);
    assert_eq!(got, Ok(expected.iter().map(|&text| text.to_owned()).collect()), "put {arguments:?}");
}

#[track_caller]
fn check_put_refused(arguments: &[&str], why: &str) {
    let got = put(arguments, Sources::Named, &[]);
    assert!(got.as_ref().is_err_and(|message| message.contains(why)), "put {arguments:?}: expected `{why}`: {got:?}");
}

fn get(arguments: &[&str], kind: Sources, listed: &[&str]) -> Result<Vec<String>, String> {
    get_arguments(&strings(arguments), &strings(listed))
        .and_then(|named| plan_get(named.endpoint, named.sources, kind, &named.destination))
        .map(|plan| {
            let pair = |item: &GetItem| match &item.target {
                GetTarget::Local(path) => format!("{}>{}", item.source, path.display()),
                GetTarget::Stream => format!("{}>-", item.source),
            };
            plan.items.iter().map(pair).collect()
        })
        .map_err(|error| {
            assert_eq!(error.kind(), ErrorKind::Usage, "{error:?}");
            error.chain()
        })
}

#[track_caller]
fn check_get(arguments: &[&str], expected: &[&str]) {
    let got = get(arguments, Sources::Named, &[]);
    assert_eq!(got, Ok(expected.iter().map(|&text| text.to_owned()).collect()), "get {arguments:?}");
}

#[track_caller]
fn check_get_refused(arguments: &[&str], why: &str) {
    let got = get(arguments, Sources::Named, &[]);
    assert!(got.as_ref().is_err_and(|message| message.contains(why)), "get {arguments:?}: expected `{why}`: {got:?}");
}

#[track_caller]
fn check_move(arguments: &[&str], expected: Result<&[&str], &str>) {
    let got = plan_move(&strings(arguments));
    match (got, expected) {
        (Ok(plan), Ok(expected)) => {
            let pairs: Vec<String> = plan.items.iter().map(|item| format!("{}>{}", item.source, item.target)).collect();
            assert_eq!(pairs, expected, "mv {arguments:?}");
        }
        (Err(error), Err(why)) => {
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.chain().contains(why), "mv {arguments:?}: expected `{why}`: {}", error.chain());
        }
        (got, expected) => panic!("mv {arguments:?}: expected {expected:?}, got {got:?}"),
    }
}

#[test]
fn without_a_slash_the_destination_is_the_name() {
    check_put(&["b", "sealift://nas/y"], &["b>y"]);
    check_put(&["a/b/", "sealift://nas/in/y"], &["a/b>in/y"]);
    check_put(&[".", "sealift://nas/y"], &[".>y"]);
    check_put(&["/", "sealift://nas/y"], &["/>y"]);
    check_put(&["-", "sealift://nas/y"], &["->y"]);
}

#[test]
fn with_a_slash_the_destination_is_a_directory() {
    check_put(&["b", "sealift://nas/y/"], &["b>y/b"]);
    check_put(&["a", "b", "sealift://nas/in/"], &["a>in/a", "b>in/b"]);
    for root in ["sealift://nas", "sealift://nas/", "sealift://nas/.", "sealift://nas/x/.."] {
        check_put(&["x/b", root], &["x/b>b"]);
    }
    check_put(&["b", "sealift://nas/in/."], &["b>in/b"]);
    check_put(&["b", "sealift://nas/in/x/.."], &["b>in/b"]);
    check_put(&["./-", "sealift://nas/in/"], &["./->in/-"]);
}

#[test]
fn a_trailing_slash_on_a_source_means_nothing() {
    check_put(&["b/", "sealift://nas/y/"], &["b>y/b"]);
    check_put(&["b///", "sealift://nas/y"], &["b>y"]);
}

#[test]
fn a_directory_is_stored_under_its_real_name() {
    check_put(&[".", "sealift://nas/in/"], &[".>in/me"]);
    check_put(&["./", "sealift://nas/in/"], &[".>in/me"]);
    check_put(&["..", "sealift://nas/in/"], &["..>in/home"]);
    check_put(&["/home/me/x/..", "sealift://nas/"], &["/home/me/x/..>me"]);
    check_put_refused(&["/", "sealift://nas/in/"], "has no name");
    check_put_refused(&["/..", "sealift://nas/in/"], "has no name");
}

#[test]
fn several_sources_need_a_directory() {
    check_put_refused(&["a", "b", "sealift://nas/in"], "end the destination in `/` (`sealift://nas/in/`)");
    check_put_refused(&["a", "-", "sealift://nas/in"], "need a directory");
}

#[test]
fn two_sources_with_one_final_name_are_refused() {
    check_put_refused(&["x/a", "y/a", "sealift://nas/in/"], "`x/a` and `y/a` would both be stored as `a`");
    check_put_refused(&["a", "a/", "sealift://nas/in/"], "would both be stored");
    check_put_refused(&[".", "../me", "sealift://nas/in/"], "would both be stored as `me`");
}

#[test]
fn put_wants_local_sources_and_a_remote_destination() {
    check_put_refused(&["a", "b"], "must be a remote");
    check_put_refused(&["a", "-"], "must be a remote");
    check_put_refused(&["sealift://nas/y"], "no source");
    check_put_refused(&["sealift://nas/y", "sealift://nas/z"], "is a remote one");
    check_put_refused(&["a", "nas:x"], "no remote is configured as `nas`");
    check_put_refused(&["nas:x", "sealift://nas/"], "no remote is configured as `nas`");
    check_put_refused(&["", "sealift://nas/"], "empty name");
    check_put_refused(&[], "needs a destination");
}

#[test]
fn a_stream_needs_a_name() {
    check_put_refused(&["-", "sealift://nas/in/"], "has no name");
    check_put_refused(&["-", "sealift://nas"], "has no name");
    check_put_refused(&["a", "-", "sealift://nas/in/"], "has no name");
    check_put_refused(&["-", "-", "sealift://nas/in/"], "only once");
}

#[test]
fn lists_are_local_names_and_need_a_directory() {
    assert_eq!(
        put(&["sealift://nas/in/"], Sources::Listed, &["a", "nas:b", "-"]).unwrap(),
        ["a>in/a", "nas:b>in/nas:b", "->in/-"]
    );
    assert_eq!(put(&["sealift://nas/in/"], Sources::Listed, &[]).unwrap(), [""; 0]);
    assert!(put(&["sealift://nas/in"], Sources::Listed, &["a"]).unwrap_err().contains("from a list"));
    assert!(put(&["sealift://nas/in/"], Sources::Listed, &["a", "x/a"]).unwrap_err().contains("both"));
    assert_eq!(split_list(b"a\n\nb c\nd\r", b'\n'), ["a", "b c", "d\r"]);
    assert_eq!(split_list(b"a\nb\0c\0", 0), ["a\nb", "c"]);
}

#[test]
fn names_that_are_not_utf8_are_kept() {
    let source = OsString::from_vec(b"x/\xff\xfe".to_vec());
    let (sources, destination) = put_arguments(&[source, OsString::from("sealift://nas/in/")], Vec::new()).unwrap();
    let plan = plan_put(sources, Sources::Named, &destination, real_path).unwrap();
    assert_eq!(plan.items[0].target.to_bytes(), b"in/\xff\xfe");
    let source = OsString::from_vec(b"sealift://nas/x/\xff".to_vec());
    let named = get_arguments(&[source], &[]).unwrap();
    let plan = plan_get(named.endpoint, named.sources, Sources::Named, &named.destination).unwrap();
    let expected = PathBuf::from(OsString::from_vec(b"./\xff".to_vec()));
    assert_eq!(plan.items[0].target, GetTarget::Local(expected));
}

#[test]
fn get_stores_here_by_default() {
    check_get(&["sealift://nas/in/x"], &["in/x>./x"]);
    check_get(&["sealift://nas/in/x/"], &["in/x>./x"]);
    check_get(&["sealift://nas/a", "sealift://nas/in/b"], &["a>./a", "in/b>./b"]);
}

#[test]
fn get_follows_the_same_rule() {
    check_get(&["sealift://nas/in/x", "y"], &["in/x>y"]);
    check_get(&["sealift://nas/in/x", "y/"], &["in/x>y/x"]);
    check_get(&["sealift://nas/in/x", "."], &["in/x>./x"]);
    check_get(&["sealift://nas/in/x", ".."], &["in/x>../x"]);
    check_get(&["sealift://nas/in/x", "a/.."], &["in/x>a/../x"]);
    check_get(&["sealift://nas/in/x", "/"], &["in/x>/x"]);
    check_get(&["sealift://nas/in/x", ""], &["in/x>./x"]);
    check_get(&["sealift://nas/in/x/..", "y/"], &["in>y/in"]);
    check_get(&["sealift://nas/", "y"], &["/>y"]);
    check_get(&["sealift://nas/x", "-"], &["x>-"]);
    check_get(&["sealift://nas/x", "./-"], &["x>./-"]);
    check_get_refused(&["sealift://nas/a", "sealift://nas/b", "y"], "(`y/`)");
    check_get_refused(&["sealift://nas/a", "sealift://nas/b", "-"], "takes one file");
    check_get_refused(&["sealift://nas/x/a", "sealift://nas/y/a"], "would both be stored as `a`");
    check_get_refused(&["sealift://nas/", "y/"], "has no name");
    check_get_refused(&["sealift://nas"], "has no name");
    check_get_refused(&["y", "sealift://nas/x"], "only the last argument");
    check_get_refused(&["-", "sealift://nas/x"], "only the last argument");
    check_get_refused(&["y"], "no remote");
    check_get_refused(&[], "no remote");
    check_get_refused(&["sealift://nas/x", "sealift://other/y"], "two servers");
    check_get_refused(&["sealift://nas/x", "nas:y"], "no remote is configured");
}

#[test]
fn lists_of_remotes_need_a_directory() {
    assert_eq!(get(&["y/"], Sources::Listed, &["sealift://nas/a"]).unwrap(), ["a>y/a"]);
    assert_eq!(get(&[], Sources::Listed, &["sealift://nas/a"]).unwrap(), ["a>./a"]);
    assert!(get(&["y"], Sources::Listed, &["sealift://nas/a"]).unwrap_err().contains("from a list"));
    assert!(get(&["y/"], Sources::Listed, &["a"]).unwrap_err().contains("not a remote"));
}

#[test]
fn mv_follows_the_same_rule() {
    check_move(&["sealift://nas/a", "sealift://nas/b"], Ok(&["a>b"]));
    check_move(&["sealift://nas/a/", "sealift://nas/b"], Ok(&["a>b"]));
    check_move(&["sealift://nas/x/a", "sealift://nas/b/"], Ok(&["x/a>b/a"]));
    check_move(&["sealift://nas/x/a", "sealift://nas/y/b", "sealift://nas"], Ok(&["x/a>a", "y/b>b"]));
    check_move(&["sealift://nas/x/a", "sealift://nas/x/.."], Ok(&["x/a>a"]));
    check_move(&["sealift://nas/a", "sealift://nas/b", "sealift://nas/c"], Err("need a directory"));
    check_move(&["sealift://nas/x/a", "sealift://nas/y/a", "sealift://nas/c/"], Err("both"));
    check_move(&["sealift://nas/a", "sealift://nas/a"], Err("already has that name"));
    check_move(&["sealift://nas/a", "sealift://nas/"], Err("already has that name"));
    check_move(&["sealift://nas/a", "sealift://nas/a/"], Err("into itself"));
    check_move(&["sealift://nas/a", "sealift://nas/a/b/c"], Err("into itself"));
    check_move(&["sealift://nas/a", "sealift://nas/ab"], Ok(&["a>ab"]));
    check_move(&["sealift://nas/", "sealift://nas/b"], Err("root"));
    check_move(&["sealift://nas/a/.", "sealift://nas/b"], Err("`.` or `..`"));
    check_move(&["sealift://nas/a"], Err("a new one"));
    check_move(&["sealift://nas/a", "b"], Err("not a remote"));
    check_move(&["sealift://nas/a", "sealift://nas:1/b"], Err("two servers"));
}

#[test]
fn the_root_is_never_removed() {
    let remove = |text: &str| plan_remove(&strings(&[text])).map(|(_, paths)| paths[0].to_string());
    assert_eq!(remove("sealift://nas/a/b/").unwrap(), "a/b");
    for text in ["sealift://nas", "sealift://nas/", "sealift://nas/.", "sealift://nas/a/..", "sealift://nas/a/b/.."] {
        assert_eq!(remove(text).unwrap_err().kind(), ErrorKind::Usage, "{text}");
    }
}

#[test]
fn what_stands_there_is_respected() {
    let check = |source, existing, slash| check_target(source, existing, &"nas/y", slash);
    for slash in [false, true] {
        assert!(check(Kind::File, None, slash).is_ok());
        assert!(check(Kind::Directory, None, slash).is_ok());
        assert!(check(Kind::File, Some(Kind::File), slash).is_ok());
        assert!(check(Kind::Directory, Some(Kind::Directory), slash).is_ok());
        assert_eq!(check(Kind::File, Some(Kind::Directory), slash).unwrap_err().kind(), ErrorKind::IsDirectory);
        assert_eq!(check(Kind::Directory, Some(Kind::File), slash).unwrap_err().kind(), ErrorKind::NotDirectory);
    }
    assert!(check(Kind::File, Some(Kind::Directory), false).unwrap_err().chain().contains("add `/` (`nas/y/`)"));
    assert!(check(Kind::Directory, Some(Kind::File), false).unwrap_err().chain().contains("add `/`"));
    assert!(!check(Kind::File, Some(Kind::Directory), true).unwrap_err().chain().contains("add"));
}
