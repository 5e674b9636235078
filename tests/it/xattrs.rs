//! Extended attributes of users (`--xattrs`): both ways, for every way that content goes, and where they cannot be kept.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use rustix::fs::XattrFlags;
use sealift::limits::{XATTR_COUNT_MAX, XATTR_NAME_LEN_MAX, XATTR_VALUE_LEN_MAX, XATTRS_LEN_MAX};
use sealift::protocol::{FRAME_HEADER_LEN, Header, Message};
use serde_json::Value;

use crate::kit::{Server, noise, tree};
use crate::rig::{self, Mount, World, has};

fn count(summary: &Value, key: &str) -> u64 {
    summary[key].as_u64().unwrap_or_else(|| panic!("{key} in {summary}"))
}

fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[track_caller]
fn set(path: &Path, name: &str, value: impl AsRef<[u8]>) {
    rustix::fs::setxattr(path, name, value.as_ref(), XattrFlags::empty())
        .unwrap_or_else(|error| panic!("set {name} of {}: {error}", path.display()));
}

fn remove(path: &Path, name: &str) {
    rustix::fs::removexattr(path, name).unwrap_or_else(|error| panic!("remove {name} of {}: {error}", path.display()));
}

/// All attributes of a file or directory, without what is recorded with it.
fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut memory = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut memory[..]).unwrap_or(0);
    let names: Vec<Vec<u8>> = memory[..len].split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
    let mut found = BTreeMap::new();
    for name in names.into_iter().filter(|name| name.starts_with(b"user.") && name != b"user.sealift") {
        let len = rustix::fs::lgetxattr(path, name.as_slice(), &mut memory[..]).unwrap();
        found.insert(name, memory[..len].to_vec());
    }
    found
}

/// The attributes of everything in a tree that has some, the top aside.
fn all_xattrs(top: &Path) -> BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>> {
    let names = tree(top).into_keys().filter(|name| !name.is_empty() && !name.starts_with(b".sealift"));
    names
        .map(|name| String::from_utf8(name).unwrap())
        .map(|name| (name.clone(), xattrs(&top.join(name))))
        .filter(|(_, xattrs)| !xattrs.is_empty())
        .collect()
}

/// Whether attributes can be set in this directory at all.
fn works_in(directory: &Path) -> bool {
    let works = rustix::fs::setxattr(directory, "user.probe", b"x", XattrFlags::empty()).is_ok()
        && rustix::fs::removexattr(directory, "user.probe").is_ok();
    if !works {
        println!("skipped: no extended attributes on this file system");
    }
    works
}

/// Files and directories of every kind that attributes can be on.
fn tree_with_xattrs(top: &Path) {
    write(&top.join("plain"), "plain");
    for (name, content) in [("small", &b"small"[..]), ("empty", b""), ("large", &noise(3, (3 << 20) + 5))] {
        write(&top.join(name), content);
        set(&top.join(name), "user.mime_type", "text/plain");
        set(&top.join(name), "user.empty", "");
    }
    set(&top.join("small"), "user.binary", [0, 1, 2, 255, b'\n', 0]);
    set(&top.join("small"), "user.a long name with spaces and \u{fc}", "x".repeat(1500));
    fs::create_dir_all(top.join("directory/inner")).unwrap();
    fs::create_dir_all(top.join("empty directory")).unwrap();
    write(&top.join("directory/inner/file"), "f");
    set(&top.join("directory/inner/file"), "user.checksum", "c");
    for name in ["directory", "directory/inner", "empty directory"] {
        set(&top.join(name), "user.of a directory", name);
    }
    write(&top.join("first name"), "linked");
    set(&top.join("first name"), "user.linked", "yes");
    fs::hard_link(top.join("first name"), top.join("second name")).unwrap();
    write(&top.join("read only"), "r");
    set(&top.join("read only"), "user.read_only", "yes");
    fs::set_permissions(top.join("read only"), fs::Permissions::from_mode(0o444)).unwrap();
    write(&top.join("closed/in it"), "x");
    set(&top.join("closed"), "user.closed", "yes");
    fs::set_permissions(top.join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
}

/// What rsync would still do, what is recorded aside.
#[track_caller]
fn rsync_differences(from: &Path, to: &Path) -> String {
    let mut command = Command::new("rsync");
    command.args(["-rlptHX", "--dry-run", "--itemize-changes", "--delete", "--filter=-x user.sealift"]);
    let output = command.arg(from.join("")).arg(to.join("")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn they_go_both_ways_and_rsync_finds_no_difference() {
    let server = Server::start(&[]);
    let here = server.local("tree");
    tree_with_xattrs(&here);
    if !works_in(&here) {
        return;
    }
    let expected = all_xattrs(&here);
    assert_eq!(expected.len(), 11, "{expected:?}");
    let with_rsync = has("rsync", &["--version"], "trees with attributes are not compared by it");
    let same = |top: &Path| {
        assert_eq!(all_xattrs(top), expected, "{}", top.display());
        if with_rsync {
            assert_eq!(rsync_differences(&here, top), "", "{}", top.display());
        }
    };
    for (command, target) in [("put", "put/tree"), ("sync", "sync/tree")] {
        server.run(&[command, "--xattrs", "tree", &format!("@{target}")], 0);
        same(&server.root().join(target));
        let summary = server.summary(&["sync", "--xattrs", "tree", &format!("@{target}")], 0);
        assert_eq!((count(&summary, "stored"), count(&summary, "directories")), (0, 0), "{summary}");
        assert_eq!(count(&summary, "unchanged"), 9, "{summary}");
    }
    for (command, target) in [("get", "got"), ("sync", "synced")] {
        server.run(&[command, "--xattrs", "@put/tree", target], 0);
        same(&server.local(target));
        let summary = server.summary(&["sync", "--xattrs", "@put/tree", target], 0);
        assert_eq!((count(&summary, "stored"), count(&summary, "directories")), (0, 0), "{summary}");
    }
    // Files that are named one by one, and again where they are already.
    for _ in 0..2 {
        server.run(&["put", "--xattrs", "tree/small", "tree/large", "tree/empty", "@files/"], 0);
        server.run(&["get", "--xattrs", "@files/small", "@files/large", "@files/empty", "files/"], 0);
        for top in [server.root().join("files"), server.local("files")] {
            let named: Vec<_> = all_xattrs(&top).into_iter().collect();
            let wanted =
                expected.clone().into_iter().filter(|(name, _)| ["small", "large", "empty"].contains(&&**name));
            assert_eq!(named, wanted.collect::<Vec<_>>());
        }
    }
    server.assert_no_leftovers();
}

#[test]
fn without_the_flag_nothing_is_sent_or_touched() {
    let server = Server::start(&[]);
    let here = server.local("tree");
    tree_with_xattrs(&here);
    if !works_in(&here) {
        return;
    }
    for command in ["put", "sync"] {
        server.run(&[command, "tree", &format!("@{command}/tree")], 0);
        assert_eq!(all_xattrs(&server.root().join(command).join("tree")), BTreeMap::new(), "{command}");
    }
    let there = server.root().join("put/tree");
    for name in ["small", "large", "directory"] {
        set(&there.join(name), "user.of the server", "x");
    }
    let before = all_xattrs(&there);
    for command in [&["put", "tree", "@put/tree"], &["sync", "tree", "@put/tree"]] {
        let summary = server.summary(command, 0);
        assert_eq!(count(&summary, "stored"), 0, "{summary}");
        assert_eq!(all_xattrs(&there), before, "{command:?}");
    }
    for command in ["get", "sync"] {
        server.run(&[command, "@put/tree", command], 0);
        assert_eq!(all_xattrs(&server.local(command)), BTreeMap::new(), "{command}");
    }
}

/// Runs a `sync --xattrs`, dry and then in earnest, and compares what both tell.
#[track_caller]
fn sync_as_foreseen(server: &Server, source: &str, target: &str, files: u64, directories: u64) -> Value {
    let dry = server.summary(&["sync", "-n", "--xattrs", source, target], 0);
    let unchanged = count(&dry, "unchanged");
    assert_eq!((count(&dry, "planned"), count(&dry, "directories")), (files, directories), "{dry}");
    let summary = server.summary(&["sync", "--xattrs", source, target], 0);
    let done = count(&summary, "stored") + count(&summary, "unchanged");
    assert_eq!((done, count(&summary, "directories")), (files + unchanged, directories), "{summary}");
    let again = server.summary(&["sync", "--xattrs", source, target], 0);
    assert_eq!((count(&again, "stored"), count(&again, "directories")), (0, 0), "{again}");
    summary
}

#[test]
fn an_attribute_alone_is_a_difference_that_costs_no_content() {
    let server = Server::start(&[]);
    let here = server.local("tree");
    tree_with_xattrs(&here);
    if !works_in(&here) {
        return;
    }
    server.run(&["sync", "--xattrs", "tree", "@tree"], 0);
    server.run(&["sync", "--xattrs", "@tree", "back"], 0);
    let (there, back) = (server.root().join("tree"), server.local("back"));
    for (top, other, arguments) in
        [(&here, &there, ["tree", "@tree"]), (&there, &back, ["@tree", "back"]), (&here, &there, ["tree", "@tree"])]
    {
        set(&top.join("small"), "user.mime_type", format!("changed in {}", arguments[0]));
        set(&top.join("large"), "user.more", arguments[0]);
        set(&top.join("plain"), "user.first", arguments[0]);
        set(&top.join("read only"), "user.read_only", arguments[0]);
        remove(&top.join("small"), "user.binary");
        set(&top.join("small"), "user.binary", arguments[1]);
        set(&top.join("directory/inner"), "user.more", arguments[0]);
        let summary = sync_as_foreseen(&server, arguments[0], arguments[1], 4, 2);
        assert_eq!(count(&summary, "bytes_moved"), 0, "{summary}");
        assert_eq!(all_xattrs(other), all_xattrs(top), "{arguments:?}");
    }
    // One that is gone at the source goes, and one that only the destination has.
    server.run(&["sync", "--xattrs", "@tree", "back"], 0);
    remove(&here.join("small"), "user.binary");
    set(&there.join("plain"), "user.of the server", "x");
    set(&there.join("directory"), "user.of the server", "x");
    let summary = sync_as_foreseen(&server, "tree", "@tree", 2, 2);
    assert_eq!(count(&summary, "bytes_moved"), 0, "{summary}");
    assert_eq!(all_xattrs(&there), all_xattrs(&here));
    // So with content compared.
    set(&here.join("large"), "user.more", "again");
    let summary = server.summary(&["sync", "--xattrs", "--checksum", "tree", "@tree"], 0);
    assert_eq!((count(&summary, "bytes_moved"), count(&summary, "failed")), (0, 0), "{summary}");
    assert_eq!(all_xattrs(&there), all_xattrs(&here));
    // A put and a get of what is there give it the attributes, too.
    set(&here.join("small"), "user.more", "once more");
    server.run(&["put", "--xattrs", "tree", "@tree"], 0);
    assert_eq!(all_xattrs(&there), all_xattrs(&here));
    let summary = server.summary(&["get", "--xattrs", "@tree", "back"], 0);
    assert_eq!(count(&summary, "bytes_moved"), 0, "{summary}");
    assert_eq!(all_xattrs(&back), all_xattrs(&here));
    server.assert_no_leftovers();
}

/// What is replaced has exactly the source's; what is left alone keeps its own.
#[test]
fn what_is_replaced_has_those_of_the_source_and_no_others() {
    let server = Server::start(&[]);
    let here = server.local("tree");
    write(&here.join("small"), "new");
    write(&here.join("large"), noise(1, 3 << 20));
    if !works_in(&here) {
        return;
    }
    set(&here.join("small"), "user.new", "1");
    for (top, put) in [(server.root(), true), (server.local("got"), false)] {
        write(&top.join("small"), "old content");
        write(&top.join("large"), noise(2, (3 << 20) - 1));
        for name in ["small", "large"] {
            set(&top.join(name), "user.old", "1");
        }
        let arguments: &[&str] = if put {
            &["put", "--xattrs", "tree/small", "tree/large", "@"]
        } else {
            &["get", "--xattrs", "@small", "@large", "got/"]
        };
        server.run(arguments, 0);
        let names = |name: &str| xattrs(&top.join(name)).into_keys().collect::<Vec<_>>();
        assert_eq!((names("small"), names("large")), (vec![b"user.new".to_vec()], vec![]), "{arguments:?}");
    }
    // Who does not overwrite does not change them either.
    set(&server.root().join("small"), "user.old", "1");
    server.run(&["put", "--xattrs", "--if-exists", "skip", "tree/small", "@"], 0);
    assert!(xattrs(&server.root().join("small")).contains_key(&b"user.old"[..]));
}

#[test]
fn a_file_system_without_them_is_named_and_counted() {
    let world = World::new();
    let source = world.path("tree");
    tree_with_xattrs(&source);
    if !works_in(&source) {
        return;
    }
    let Some(_mount) = Mount::ramfs(&world.root()) else { return };
    let server = world.serve();
    let why = "were not all kept, because the file system of the destination keeps none; everything else is there";
    let said = |ran: &rig::Ran, lost: u64| {
        assert_eq!((ran.code, count(ran.summary(), "xattrs_lost")), (1, lost), "{ran:?}");
        assert_eq!(count(ran.summary(), "failed"), 0, "{ran:?}");
        let told = ran.of_type("xattrs_lost");
        assert_eq!(told.len(), 1, "{ran:?}");
        assert!(told[0]["message"].as_str().unwrap().ends_with(why), "{told:?}");
        assert_eq!((&told[0]["count"], &told[0]["why"]), (&lost.into(), &"unsupported".into()), "{told:?}");
    };
    // Eleven names have some, two of them of one file.
    for command in ["put", "sync"] {
        let target = server.at(&format!("{command}/tree"));
        let ran = server.run(command, ["--xattrs".as_ref(), source.as_os_str(), target.as_ref()]);
        said(&ran, 10);
        assert_eq!(fs::read(world.root().join(command).join("tree/large")).unwrap().len(), (3 << 20) + 5);
        let links = fs::metadata(world.root().join(command).join("tree/first name")).unwrap().nlink();
        assert_eq!(links, 2, "names stay together");
    }
    // Every run says so, as every run finds them missing.
    let target = server.at("sync/tree");
    let again = server.run("sync", ["--xattrs".as_ref(), source.as_os_str(), target.as_ref()]);
    assert!(again.code == 1 && count(again.summary(), "xattrs_lost") > 0, "{again:?}");
    assert_eq!(count(again.summary(), "bytes_moved"), 0, "{again:?}");
    // Without the flag nothing is missed.
    server.put(&source, "plain");
    // The other way round.
    let full = world.path("full");
    let other = World::new();
    let server = other.serve();
    let ran = server.run("put", ["--xattrs".as_ref(), source.as_os_str(), server.at("tree").as_ref()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let Some(_mount) = Mount::ramfs(&full) else { return };
    for command in ["get", "sync"] {
        let ran =
            server.run(command, ["--xattrs".as_ref(), server.at("tree").as_ref(), full.join(command).as_os_str()]);
        said(&ran, 10);
        assert_eq!(fs::read(full.join(command).join("small")).unwrap(), b"small");
    }
}

#[test]
fn more_than_a_file_system_or_a_message_holds_is_told() {
    let world = World::new();
    let (source, small) = (world.path("source"), world.root());
    let Some(_source) = Mount::tmpfs(&source, "size=20m") else { return };
    let Some(_small) = Mount::image(&world.path("image"), &small, "ext4", 30 << 20) else { return };
    write(&source.join("tree/fits"), "fits");
    write(&source.join("tree/much"), "much");
    write(&source.join("tree/too much"), "too much");
    if !works_in(&source) {
        return;
    }
    set(&source.join("tree/fits"), "user.a", "b");
    set(&source.join("tree/much"), "user.little", "little");
    set(&source.join("tree/much"), "user.much", "x".repeat(20_000));
    set(&source.join("tree/too much"), "user.a", "x".repeat(33_000));
    let server = world.serve();
    let tree = source.join("tree");
    let ran = server.run("put", ["--xattrs".as_ref(), tree.as_os_str(), server.at("tree").as_ref()]);
    assert_eq!((ran.code, count(ran.summary(), "failed"), count(ran.summary(), "stored")), (1, 1, 2), "{ran:?}");
    let told = ran.failures();
    assert!(told.contains("user.a has 33000 bytes, more than 32768"), "{told}");
    assert!(told.contains("without --xattrs it is moved without them"), "{told}");
    let lost = ran.of_type("xattrs_lost");
    assert_eq!((count(ran.summary(), "xattrs_lost"), &lost[0]["why"]), (1, &"no_space".into()), "{ran:?}");
    // What there is room for is kept.
    assert_eq!(all_xattrs(&small.join("tree")).get("much").unwrap().len(), 1);
    assert_eq!(all_xattrs(&small.join("tree")).get("fits").unwrap().len(), 1);
    assert!(!small.join("tree/too much").exists());
    // The only place where the rest of them is stays.
    let args = ["--xattrs".as_ref(), "--remove-source".as_ref(), tree.as_os_str()];
    let ran = server.run("put", args.into_iter().chain([server.at("moved").as_ref()]));
    assert_eq!((ran.code, tree.join("fits").exists(), tree.join("much").exists()), (1, false, true), "{ran:?}");
    assert_eq!(xattrs(&tree.join("much")).len(), 2);
    assert!(ran.failures().contains("it is stored, and was not removed here: not all of its extended"), "{ran:?}");
}

#[test]
fn a_tree_that_is_replaced_as_a_whole_has_them() {
    let server = Server::start(&[]);
    let here = server.local("tree");
    tree_with_xattrs(&here);
    if !works_in(&here) {
        return;
    }
    let inode = |name: &str| fs::metadata(server.root().join("tree").join(name)).unwrap().ino();
    server.run(&["put", "--atomic", "--xattrs", "tree", "@tree"], 0);
    assert_eq!(all_xattrs(&server.root().join("tree")), all_xattrs(&here));
    let before = ["plain", "small", "large"].map(inode);
    set(&here.join("small"), "user.mime_type", "changed");
    set(&here.join("directory"), "user.more", "changed");
    let old = fs::File::open(server.root().join("tree/small")).unwrap();
    let summary = server.summary(&["sync", "--atomic", "--xattrs", "tree", "@tree"], 0);
    assert_eq!(count(&summary, "bytes_moved"), 0, "{summary}");
    assert_eq!(all_xattrs(&server.root().join("tree")), all_xattrs(&here));
    let after = ["plain", "small", "large"].map(inode);
    assert_eq!([before[0], before[2]], [after[0], after[2]], "what is the same in all is the same file");
    assert_ne!(before[1], after[1], "the old tree keeps its attributes until the new one is in its place");
    let mut value = [0; 20];
    let len = rustix::fs::fgetxattr(&old, "user.mime_type", &mut value[..]).unwrap();
    assert_eq!(&value[..len], b"text/plain");
    server.run(&["sync", "--atomic", "--xattrs", "@tree", "back"], 0);
    set(&server.root().join("tree/large"), "user.more", "changed there");
    server.run(&["sync", "--atomic", "--xattrs", "@tree", "back"], 0);
    assert_eq!(all_xattrs(&server.local("back")), all_xattrs(&server.root().join("tree")));
}

/// What the system sets on a file at the source stays there, and what is recorded here is not moved.
#[test]
fn only_those_of_users_are_moved() {
    let server = Server::start(&[]);
    write(&server.local("tree/a"), "a");
    if !works_in(&server.local("tree")) {
        return;
    }
    server.run(&["sync", "tree", "@tree"], 0);
    let record = |path: &Path| {
        let mut value = [0; 100];
        rustix::fs::lgetxattr(path, "user.sealift", &mut value[..]).ok().map(|len| value[..len].to_vec())
    };
    // A file that was got has a record of its own; its source gets none by that.
    let there = server.root().join("tree/a");
    let stored = record(&there).expect("the hash is recorded");
    set(&server.local("tree/a"), "user.sealift", "somebody's own");
    let has_trusted = rustix::fs::setxattr(server.local("tree/a"), "trusted.x", b"x", XattrFlags::empty()).is_ok();
    if !has_trusted {
        println!("skipped: this user may not set what the system keeps");
    }
    let foreseen = server.summary(&["sync", "-n", "--xattrs", "tree", "@tree"], 0);
    assert_eq!((count(&foreseen, "planned"), count(&foreseen, "unchanged")), (0, 1), "no difference: {foreseen}");
    let summary = server.summary(&["sync", "--xattrs", "tree", "@tree"], 0);
    assert_eq!((count(&summary, "stored"), count(&summary, "unchanged")), (0, 1), "no difference: {summary}");
    set(&server.local("tree/a"), "user.x", "x");
    server.run(&["sync", "--xattrs", "tree", "@tree"], 0);
    assert_eq!(xattrs(&there).into_keys().collect::<Vec<_>>(), [b"user.x".to_vec()]);
    assert_eq!(record(&there), Some(stored), "its record is the server's own and stays right");
    let mut value = [0; 10];
    assert!(rustix::fs::lgetxattr(&there, "trusted.x", &mut value[..]).is_err());
}

// ---- what no peer may send -------------------------------------------------------------------------------------

/// Sets that are none, by what is wrong with them.
pub(crate) fn wrong() -> Vec<(&'static str, Pairs)> {
    let one = |name: &str, value: &[u8]| vec![(name.as_bytes().to_vec(), value.to_vec())];
    let long = format!("user.{}", "n".repeat(XATTR_NAME_LEN_MAX - 4));
    let numbered = |count: usize| (0..count).map(|index| (format!("user.{index:04}").into_bytes(), vec![])).collect();
    let kilobyte = |index: usize| (format!("user.{index:04}").into_bytes(), vec![0; 1024]);
    let whole = (0..XATTRS_LEN_MAX / 1024).map(kilobyte).collect();
    vec![
        ("a capability", one("security.capability", &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("a label", one("security.selinux", b"unconfined")),
        ("what the system trusts", one("trusted.overlay.opaque", b"y")),
        ("an access list", one("system.posix_acl_access", &[2, 0, 0, 0])),
        ("the server's own", one("user.sealift", &[0; 64])),
        ("no name", one("user.", b"")),
        ("no name space", one("mime", b"")),
        ("an empty name", one("", b"")),
        ("a NUL in a name", one("user.a\0security.capability", b"")),
        ("a name that is too long", one(&long, b"")),
        ("a value that is too long", one("user.a", &vec![0; XATTR_VALUE_LEN_MAX + 1])),
        ("too many", numbered(XATTR_COUNT_MAX + 1)),
        ("too much in all", whole),
        ("one name twice", [one("user.a", b"1"), one("user.a", b"2")].concat()),
        ("names out of order", [one("user.b", b""), one("user.a", b"")].concat()),
    ]
}

pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The frame of a message with these attributes, whatever they are, in the field that has them.
pub(crate) fn raw<M: Message>(transfer: u32, message: &M, pairs: &Pairs) -> Vec<u8> {
    raw_field(transfer, message, 16, pairs)
}

/// The same in another field.
pub(crate) fn raw_field<M: Message>(transfer: u32, message: &M, field: u8, pairs: &Pairs) -> Vec<u8> {
    let mut payload = message.to_frame(transfer).split_off(FRAME_HEADER_LEN);
    assert!(payload[0] & 0xe0 == 0xa0 && payload[0] & 0x1f < 23, "a map of few fields");
    payload[0] += 1;
    let mut encoder = minicbor::Encoder::new(&mut payload);
    encoder.u8(field).unwrap().array(pairs.len() as u64).unwrap();
    for (name, value) in pairs {
        encoder.array(2).unwrap().bytes(name).unwrap().bytes(value).unwrap();
    }
    [&Header::new(M::KIND, transfer, payload.len()).encode()[..], &payload].concat()
}
