//! Directories that take the place of others as a whole (`--atomic`), in both directions: who reads sees the old or
//! the new one; a kill at any byte leaves one of the two; a change meanwhile, a right that is missing and whatever
//! fails leave the old one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::process::Pid;
use sealift::ErrorKind;
use sealift::path::RemotePath;
use sealift::storage::{IfExists, NewFile, Store, StoreOptions, Tree, TreeBuilder, TreeChange};

use crate::crash::{deadly, instant};
use crate::policy::House;
use crate::rig::{Mount, Numbers, Plan, Proxy, Ran, Server, World, content, long, remote, until};

/// Names and contents below a directory, hidden names left out; a missing one has none.
fn files(top: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(top: &Path, path: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        let Ok(entries) = fs::read_dir(path) else { return };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            let kind = fs::symlink_metadata(&path).unwrap();
            if kind.is_dir() {
                walk(top, &path, found);
                found.insert(format!("{name}/"), Vec::new());
            } else if kind.is_symlink() {
                found.insert(name, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
            } else {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(top, top, &mut found);
    found
}

/// Whether nothing of a tree is left that was being built.
fn is_clean(world: &World) -> bool {
    let trees = fs::read_dir(world.root().join(".sealift/trees")).unwrap();
    trees.map(|entry| entry.unwrap().path()).all(|path| !path.join("tree").exists() && !path.join("spare").exists())
}

fn hidden_in(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".sealift-")).collect()
}

/// A site of one version: small files in some directories, a large one, a link; version 2 lacks one and has another.
fn site(world: &World, name: &str, version: u64) -> PathBuf {
    for index in 0..30 {
        let text = format!("version {version} of {index}").repeat(20);
        world.file(&format!("{name}/pages/{}/{index}.html", index % 3), text.as_bytes());
    }
    world.file(&format!("{name}/only-{version}"), b"x");
    world.file(&format!("{name}/large"), &content(version, (2 << 20) + 77));
    world.file(&format!("{name}/same"), b"the same in all versions");
    let time = fs::File::options().write(true).open(world.path(&format!("{name}/same"))).unwrap();
    time.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000)).unwrap();
    let path = world.path(name);
    symlink("large", path.join("link")).unwrap();
    path
}

#[track_caller]
fn put(server: &Server, source: &Path, path: &str) -> Ran {
    server.run("put", ["--atomic".as_ref(), source.as_os_str(), server.at(path).as_ref()])
}

fn args<'a>(command: &'a str, from: &'a str, to: &'a str) -> Vec<&'a str> {
    let more: &[&str] = if command == "sync" { &["--delete", "--max-delete", "100%"] } else { &[] };
    [&[command, "--json", "--atomic"], more, &[from, to]].concat()
}

/// One direction of a run: where it comes from and where it goes, as the command names them and on this disk.
struct Way {
    from: String,
    to: String,
    there: PathBuf,
}

fn way(world: &World, port: u16, is_up: bool, version: u64) -> Way {
    let (here, there) = (format!("v{version}"), format!("v{version}"));
    if is_up {
        let from = world.path(&here).to_str().unwrap().to_owned();
        Way { from, to: remote(port, "www/site"), there: world.root().join("www/site") }
    } else {
        let there = remote(port, &there);
        let to = world.path("www/site");
        Way { from: there, to: to.to_str().unwrap().to_owned(), there: to }
    }
}

fn versions(world: &World, is_up: bool) {
    for version in 1..=2 {
        site(world, &if is_up { format!("v{version}") } else { format!("root/v{version}") }, version);
    }
}

#[test]
fn readers_see_the_old_tree_or_the_new_one() {
    for is_up in [true, false] {
        let world = World::new();
        let server = world.serve();
        versions(&world, is_up);
        let Way { there, .. } = way(&world, server.port, is_up, 1);
        let done = Arc::new(AtomicBool::new(false));
        let reader = {
            let (done, there) = (Arc::clone(&done), there.clone());
            std::thread::spawn(move || {
                let read = |name: &str| fs::read_to_string(there.join(name)).ok();
                let (mut seen, mut rounds) = (0, 0_u64);
                while !done.load(Ordering::SeqCst) {
                    for index in [0, 13, 29, 7] {
                        let text = read(&format!("pages/{}/{index}.html", index % 3));
                        let version = text.map_or(0, |text| text["version ".len()..][..1].parse().unwrap());
                        assert!(version >= seen, "version {version} after {seen}: {}", there.display());
                        seen = version;
                        // What goes with one version is there with it, and looked at after it.
                        if seen == 1 {
                            let is_still = read("only-1").is_some();
                            assert!(is_still || read("only-2").is_some(), "a mixture");
                        } else if seen == 2 {
                            assert!(read("only-2").is_some() && read("only-1").is_none(), "a mixture");
                        }
                    }
                    rounds += 1;
                }
                (seen, rounds)
            })
        };
        for version in 1..=2 {
            let Way { from, to, .. } = way(&world, server.port, is_up, version);
            let output = server.client(&args("sync", &from, &to)).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        done.store(true, Ordering::SeqCst);
        let (seen, rounds) = reader.join().unwrap();
        println!("{rounds} rounds of reading, up: {is_up}");
        assert!(rounds > 0 && seen <= 2);
        let source = if is_up { world.path("v2") } else { world.root().join("v2") };
        assert_eq!(files(&there), files(&source));
    }
}

#[test]
fn what_is_there_is_carried_over_and_nothing_is_left() {
    let world = World::new();
    let server = world.serve();
    site(&world, "v1", 1);
    site(&world, "v2", 2);
    assert_eq!(put(&server, &world.path("v1"), "www/site").code, 0);
    let there = world.root().join("www/site");
    world.file("root/www/site/pages/mine", b"only here");
    fs::set_permissions(there.join("pages"), fs::Permissions::from_mode(0o750)).unwrap();
    let (inode, mine) =
        (fs::metadata(there.join("same")).unwrap().ino(), fs::metadata(there.join("pages/mine")).unwrap());
    let ran = put(&server, &world.path("v2"), "www/site");
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut expected = files(&world.path("v1"));
    expected.extend(files(&world.path("v2")));
    expected.insert("pages/mine".to_owned(), b"only here".to_vec());
    assert_eq!(files(&there), expected, "put merges and never deletes");
    let now = fs::metadata(there.join("pages/mine")).unwrap();
    assert_eq!((now.ino(), now.mtime_nsec(), now.mode()), (mine.ino(), mine.mtime_nsec(), mine.mode()));
    assert_eq!(fs::metadata(there.join("same")).unwrap().ino(), inode, "the same file under the same name");
    until("the old tree is gone", || is_clean(&world).then_some(()));
    assert_eq!(fs::metadata(there.join("same")).unwrap().nlink(), 1);
    // Another time alone: a file of its own, made from what is there.
    let large = fs::File::options().write(true).open(world.path("v2/large")).unwrap();
    large.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_400_000_000)).unwrap();
    let proxy = Proxy::new(server.port, |_| Plan::default());
    let target = remote(proxy.port, "www/site");
    let output = server.client(&args("sync", world.path("v2").to_str().unwrap(), &target)).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(proxy.bytes().0 < 500_000, "{} bytes for a time", proxy.bytes().0);
    assert_eq!(fs::metadata(there.join("large")).unwrap().mtime(), 1_400_000_000);
    // Exactly the source: what only the old tree has is removed with the exchange.
    let ran = server.run("sync", &args("sync", world.path("v2").to_str().unwrap(), &server.at("www/site"))[2..]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(files(&there), files(&world.path("v2")));
}

#[test]
fn killed_servers_and_clients_leave_one_of_the_two() {
    for is_up in [true, false] {
        let world = World::new();
        let mut server = world.serve();
        let mut numbers = Numbers::new(if is_up { "killed trees up" } else { "killed trees down" });
        versions(&world, is_up);
        let source = |version: u64| {
            files(&if is_up { world.path(&format!("v{version}")) } else { world.root().join(format!("v{version}")) })
        };
        let all = [source(1), source(2)];
        let there = way(&world, server.port, is_up, 1).there;
        let traffic = {
            let proxy = Proxy::new(server.port, |_| Plan::default());
            for version in 1..=2 {
                let Way { from, to, .. } = way(&world, proxy.port, is_up, version);
                assert!(server.client(&args("sync", &from, &to)).output().unwrap().status.success());
            }
            let (up, down) = proxy.bytes();
            (up / 2, down / 2)
        };
        let rounds = if long("100 killed trees") { 100 } else { 12 };
        let mut died = 0;
        for round in 0..rounds {
            let version = 1 + round % 2;
            let before = files(&there);
            assert!(all.contains(&before), "round {round}");
            let (at, is_at_up) = instant(&mut numbers, traffic);
            let is_server = numbers.below(2) == 0;
            let what = format!("up {is_up}, round {round}, {at} {is_at_up}, server {is_server}");
            let victim = Arc::new(AtomicI32::new(if is_server { server.pid().as_raw_nonzero().get() } else { 0 }));
            let proxy = Proxy::new(server.port, deadly(Arc::clone(&victim), at, is_at_up));
            let Way { from, to, .. } = way(&world, proxy.port, is_up, version);
            let mut client = server.client(&args("sync", &from, &to));
            let mut client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            if !is_server {
                victim.store(Pid::from_child(&client).as_raw_nonzero().get(), Ordering::SeqCst);
            }
            until(&what, || (client.try_wait().unwrap().is_some() || is_server && !server.is_alive()).then_some(()));
            if is_server {
                died += u64::from(!server.is_alive());
                let _ = client.kill();
                server.kill();
                let now = files(&there);
                assert!(now == before || now == all[(version - 1) as usize], "{what}: a mixture");
                server = world.serve();
            } else {
                let ran = client.wait().unwrap();
                died += u64::from(!ran.success());
            }
            let now = files(&there);
            assert!(now == before || now == all[(version - 1) as usize], "{what}: a mixture");
            // The same again gets through.
            let Way { from, to, .. } = way(&world, server.port, is_up, version);
            let output = server.client(&args("sync", &from, &to)).output().unwrap();
            assert!(output.status.success(), "{what}: {output:?}");
            assert_eq!(files(&there), all[(version - 1) as usize], "{what}");
            until("nothing is left", || {
                let is_clean = if is_up { is_clean(&world) } else { hidden_in(&world.path("www")).is_empty() };
                is_clean.then_some(())
            });
        }
        println!("{died} of {rounds} died in the middle, up: {is_up}");
        assert!(died * 3 > rounds, "the kills did not hit");
    }
}

/// What a former run has brought does not come again, and nothing of it is left when the source has it no more.
#[test]
fn a_cut_run_is_gone_on_with_and_leaves_nothing_of_what_it_had_brought() {
    for is_up in [true, false] {
        let world = World::new();
        let server = world.serve();
        versions(&world, is_up);
        let base = if is_up { "v2" } else { "root/v2" };
        world.file(&format!("{base}/aa-gone"), &content(5, 300_000));
        for index in 0..12 {
            world.file(&format!("{base}/b{index}"), &content(100 + index, 900_000));
        }
        let Way { from, to, there } = way(&world, server.port, is_up, 1);
        assert!(server.client(&args("sync", &from, &to)).output().unwrap().status.success());
        let old = files(&there);
        let victim = Arc::new(AtomicI32::new(0));
        let proxy = Proxy::new(server.port, deadly(Arc::clone(&victim), 11_000_000, is_up));
        let Way { from, to, .. } = way(&world, proxy.port, is_up, 2);
        let mut client = server.client(&args("sync", &from, &to));
        let mut client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        victim.store(Pid::from_child(&client).as_raw_nonzero().get(), Ordering::SeqCst);
        assert!(!client.wait().unwrap().success());
        assert_eq!(files(&there), old, "nothing of a cut run is under a final name");
        fs::remove_file(world.path(&format!("{base}/aa-gone"))).unwrap();
        let proxy = Proxy::new(server.port, |_| Plan::default());
        let Way { from, to, .. } = way(&world, proxy.port, is_up, 2);
        let output = server.client(&args("sync", &from, &to)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(files(&there), files(&world.path(base)), "what the source has no more is not there");
        let (up, down) = proxy.bytes();
        let again = if is_up { up } else { down };
        println!("{again} bytes in the second run, up: {is_up}");
        // About 13 MB in all, 11 of which had come; what was on its way to memory or in small pieces may be lost.
        assert!(again < 9_000_000, "{again} bytes were sent once more");
    }
}

#[test]
fn a_change_in_the_old_tree_keeps_it() {
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 6] = [
        ("new", |top| fs::write(top.join("pages/0/new"), b"new").unwrap()),
        ("gone", |top| fs::remove_file(top.join("pages/1/1.html")).unwrap()),
        ("written", |top| fs::write(top.join("same"), b"another content").unwrap()),
        ("replaced", |top| {
            fs::write(top.join("other"), b"x").unwrap();
            fs::rename(top.join("other"), top.join("only-1")).unwrap();
        }),
        ("mode", |top| fs::set_permissions(top.join("pages"), fs::Permissions::from_mode(0o700)).unwrap()),
        ("whole", |top| {
            fs::rename(top, top.with_extension("old")).unwrap();
            fs::create_dir(top).unwrap();
        }),
    ];
    for is_up in [true, false] {
        for (what, change) in changes {
            let world = World::new();
            let server = world.serve();
            versions(&world, is_up);
            let Way { from, to, there } = way(&world, server.port, is_up, 1);
            assert!(server.client(&args("sync", &from, &to)).output().unwrap().status.success());
            let changed = there.clone();
            let proxy = Proxy::new(server.port, move |number| {
                let changed = changed.clone();
                let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || change(&changed));
                // In the middle of the large file, when the tree was begun long ago.
                let hook = (number == 0).then_some((1_500_000, hook));
                if is_up { Plan { up: hook, ..Plan::default() } } else { Plan { down: hook, ..Plan::default() } }
            });
            let Way { from, to, .. } = way(&world, proxy.port, is_up, 2);
            let ran = Ran::of(
                server.client(&[&args("sync", &from, &to)[..], &["--streams", "1"]].concat()).output().unwrap(),
            );
            assert_eq!(ran.code, 1, "{what}, up {is_up}: {ran:?}");
            let said = ran.failures();
            // Or it is seen earlier, by who compares the file.
            let is_told = said.contains("meanwhile") && said.contains("run it again");
            assert!(is_told || said.contains("changed while it was"), "{what}: {said}");
            assert!(!there.join("only-2").exists(), "{what}: the old tree stays");
            let Way { from, to, .. } = way(&world, server.port, is_up, 2);
            let again = Ran::of(server.client(&args("sync", &from, &to)).output().unwrap());
            assert_eq!(again.code, 0, "{what}: {again:?}");
            assert_eq!(files(&there), files(&world.path(if is_up { "v2" } else { "root/v2" })), "{what}");
        }
    }
}

#[test]
fn what_cannot_be_replaced_is_refused_with_a_sentence() {
    let world = World::new();
    let server = world.serve();
    let source = site(&world, "v1", 1);
    world.file("root/file", b"a file");
    symlink("file", world.root().join("link")).unwrap();
    let local = source.to_str().unwrap();
    let check = |arguments: &[&str], code: i32, sentence: &str| {
        let output = server.client(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(sentence), "{arguments:?}: {said}");
    };
    let at = |path: &str| server.at(path);
    check(&["sync", "--atomic", local, &at("")], 2, "root of a server cannot be replaced as a whole");
    check(&["put", "--atomic", &format!("{local}/same"), &at("x")], 2, "is no directory");
    check(&["put", "--atomic", local, &format!("{local}/same"), &at("x/")], 2, "--atomic takes one directory");
    check(&["put", "--atomic", "-", &at("x")], 2, "--atomic takes one directory");
    check(&["put", "--atomic", "--remove-source", local, &at("x")], 2, "cannot be used with");
    check(&["put", "--atomic", "--receipts", "r", local, &at("x")], 2, "cannot be used with");
    check(&["put", "--atomic", local, &at("file")], 1, "only a directory is replaced as a whole");
    check(&["put", "--atomic", local, &at("link")], 1, "symbolic link");
    check(&["put", "--atomic", local, &at(".sealift/x")], 1, ".sealift");
    check(&["sync", "--atomic", &at("link"), "/"], 1, "");
    assert_eq!(fs::read(world.root().join("file")).unwrap(), b"a file");
    // A failure in the middle: nothing is there, and what is wrong is named.
    let bad = world.file("v1/new\nline", b"x");
    check(&["put", "--atomic", local, &at("site")], 1, "is as it was, because 1 of the above failed");
    assert!(!world.root().join("site").exists());
    fs::remove_file(bad).unwrap();
    check(&["put", "--atomic", local, &at("site")], 0, "");
    assert_eq!(files(&world.root().join("site")), files(&source));
}

#[test]
fn mount_points_are_no_part_of_what_is_replaced() {
    let world = World::new();
    let source = site(&world, "v1", 1);
    world.file("root/site/in/file", b"x");
    let Some(_mount) = Mount::tmpfs(&world.root().join("site/in"), "size=1m") else { return };
    let server = world.serve();
    let ran = put(&server, &source, "site");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.failures().contains("mount point"), "{ran:?}");
    let ran = put(&server, &source, "site/in");
    assert!(ran.code == 1 && ran.failures().contains("mount point"), "{ran:?}");
    // In it, on its own file system, it can be done: beside its target.
    let ran = put(&server, &source, "site/in/site");
    assert!(ran.code == 1 || ran.code == 0, "{ran:?}");
    fs::remove_dir_all(world.path("v1")).unwrap();
    world.file("v1/small", b"fits");
    let ran = put(&server, &source, "site/in/site");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fs::read(world.root().join("site/in/site/small")).unwrap(), b"fits");
    until("nothing is left beside it", || hidden_in(&world.root().join("site/in")).is_empty().then_some(()));
}

fn rules(rights: &[&str]) -> String {
    format!("[user.alice]\nhome = \"alice\"\nrights = {rights:?}\n")
}

fn rule(house: &House, rights: &[&str]) {
    fs::write(house.policy(), rules(rights)).unwrap();
}

/// Every right that doing it file by file needs, each cell of the matrix: what may be is done, all else changes nothing.
#[test]
fn each_difference_needs_its_right() {
    let house = House::new(&["alice"]);
    let world = &house.world;
    site(world, "v1", 1);
    site(world, "v2", 2);
    world.file("same/pages/extra", b"new");
    let rights = ["create", "overwrite", "delete"];
    for cell in 0..8 {
        let some: Vec<&str> = (0..3).filter(|bit| cell & 1 << bit != 0).map(|bit| rights[bit]).collect();
        let _ = fs::remove_dir_all(world.root());
        fs::create_dir(world.root()).unwrap();
        rule(&house, &[&["list", "read"], &some[..]].concat());
        site(world, "root/alice/site", 1);
        world.file("root/alice/site/pages/mine", b"only here");
        let server = house.serve();
        let has = |right: &str| some.contains(&right);
        let before = files(&world.root().join("alice/site"));
        let check = |what: &str, arguments: &[&str], is_allowed: bool| {
            let arguments: Vec<String> =
                arguments.iter().map(|part| part.replace("SITE", &server.at("site"))).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let output = house.client("alice", &arguments).output().unwrap();
            let now = files(&world.root().join("alice/site"));
            if is_allowed {
                assert!(output.status.success(), "{what} with {some:?}: {output:?}");
            } else {
                assert!(!output.status.success(), "{what} with {some:?}: {output:?}");
                assert_eq!(now, before, "{what} with {some:?}: {output:?}");
            }
            now
        };
        let (v2, extra) = (world.path("v2"), world.path("same"));
        let delete = ["sync", "--atomic", "--delete", "--max-delete", "100%", v2.to_str().unwrap(), "SITE"];
        if !(has("create") && has("overwrite") && has("delete")) {
            check("all", &delete, false);
        }
        if !(has("create") && has("overwrite")) {
            check("new and other files", &["sync", "--atomic", v2.to_str().unwrap(), "SITE"], false);
        }
        let now = check("new files", &["put", "--atomic", extra.to_str().unwrap(), "SITE"], has("create"));
        assert_eq!(now.contains_key("pages/extra"), has("create"));
        assert!(now.contains_key("pages/mine"));
        if has("create") && has("overwrite") && has("delete") {
            let now = check("all", &delete, true);
            assert_eq!(now, files(&v2));
        }
    }
}

/// What a cut run has left goes on to count, also when all is counted anew.
#[test]
fn an_unfinished_tree_counts_towards_the_quota() {
    let house = House::new(&["alice"]);
    let world = &house.world;
    house.edit(&["user", "add", "alice", "--bytes", "10M"], 0);
    let server = house.serve();
    for index in 0..30 {
        world.file(&format!("first/{index}"), &content(index, 300_000));
    }
    let victim = Arc::new(AtomicI32::new(0));
    let proxy = Proxy::new(server.port, deadly(Arc::clone(&victim), 8_000_000, true));
    let target = remote(proxy.port, "first");
    let mut client = house.client("alice", &["put", "--atomic", world.path("first").to_str().unwrap(), &target]);
    let mut client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    victim.store(Pid::from_child(&client).as_raw_nonzero().get(), Ordering::SeqCst);
    assert!(!client.wait().unwrap().success());
    // The next start counts all of it.
    server.stop();
    let server = house.serve();
    let more = world.file("more", &content(9, 9_800_000));
    let said = until("it is counted", || {
        let output = house.client("alice", &["put", more.to_str().unwrap(), &server.at("more")]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (!said.contains("still being counted")).then_some((output.status.code(), said))
    });
    assert!(said.0 == Some(4) && said.1.contains("quota"), "{said:?}");
}

#[test]
fn rights_that_end_meanwhile_are_seen_at_the_end() {
    let house = House::new(&["alice"]);
    let world = &house.world;
    site(world, "v1", 1);
    let v2 = site(world, "v2", 2);
    site(world, "root/alice/site", 1);
    rule(&house, &["list", "read", "create", "overwrite", "delete"]);
    let server = house.serve();
    let before = files(&world.root().join("alice/site"));
    let policy = house.policy();
    let said = Arc::new(AtomicBool::new(false));
    let hook: Arc<dyn Fn() + Send + Sync> = {
        let (policy, said) = (policy.clone(), Arc::clone(&said));
        Arc::new(move || {
            // No rights to remove, from some moment in the middle on.
            fs::write(&policy, rules(&["list", "read", "create", "overwrite"])).unwrap();
            said.store(true, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(1500));
        })
    };
    let proxy = Proxy::new(server.port, move |number| Plan {
        up: (number == 0).then(|| (1_500_000, Arc::clone(&hook))),
        ..Plan::default()
    });
    let target = remote(proxy.port, "site");
    let arguments = args("sync", v2.to_str().unwrap(), &target);
    let output = house.client("alice", &[&arguments[..], &["--streams", "1"]].concat()).output().unwrap();
    assert!(said.load(Ordering::SeqCst));
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert_eq!(files(&world.root().join("alice/site")), before, "{output:?}");
}

#[test]
fn an_unfinished_tree_is_listed_and_removed() {
    let world = World::new();
    let server = world.serve();
    let source = site(&world, "v1", 1);
    let victim = Arc::new(AtomicI32::new(0));
    let proxy = Proxy::new(server.port, deadly(Arc::clone(&victim), 1_800_000, true));
    let target = remote(proxy.port, "site");
    let mut client = server.client(&["put", "--atomic", source.to_str().unwrap(), &target]);
    let mut client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    victim.store(Pid::from_child(&client).as_raw_nonzero().get(), Ordering::SeqCst);
    assert!(!client.wait().unwrap().success());
    let root = world.root();
    let listed = |active: bool| {
        let output = crate::rig::binary().args(["uploads", "ls", "--json", "--root"]).arg(&root).output().unwrap();
        let ran = Ran::of(output);
        ran.of_type("tree").into_iter().find(|tree| tree["active"] == active).cloned()
    };
    let tree = until("the tree rests", || listed(false));
    assert_eq!(tree["name"], "site");
    let id = tree["id"].as_str().unwrap();
    let output = crate::rig::binary().args(["uploads", "rm", "--root"]).arg(&root).arg(id).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("site"), "{output:?}");
    assert!(listed(false).is_none() && is_clean(&world));
    assert_eq!(put(&server, &source, "site").code, 0);
}

// ---- the store alone -------------------------------------------------------------------------------------------

fn path(text: &str) -> RemotePath {
    RemotePath::parse(text.as_bytes()).unwrap()
}

fn begin(store: &Store, run: u8) -> Tree {
    let builder = TreeBuilder { owner: [1; 32], name: "alice".to_owned(), run: [run; 16] };
    // A child of another test of this process may have inherited the lock for the moment before it runs.
    until("the tree is begun", || match store.begin_tree(&path("site"), &builder) {
        Err(error) if error.kind() == ErrorKind::Busy => None,
        tree => Some(tree.unwrap()),
    })
}

fn store(store: &Store, name: &str, content: &[u8]) -> Result<(), ErrorKind> {
    let upload = begin_upload(store, name, content);
    finish_upload(store, upload, content)
}

fn begin_upload(store: &Store, name: &str, content: &[u8]) -> sealift::storage::Upload {
    let size = Some(content.len() as u64);
    let options = NewFile { size, if_exists: IfExists::Overwrite, make_parents: true, ..NewFile::default() };
    store.begin(&path(name), options).unwrap()
}

fn finish_upload(store: &Store, upload: sealift::storage::Upload, content: &[u8]) -> Result<(), ErrorKind> {
    upload.write_at(0, content).unwrap();
    let root = sealift::hash::Root::of(content);
    let metadata = sealift::storage::FileMetadata { mode: None, mtime: None, root, upload_id: [2; 16], xattrs: None };
    let staged = upload.finish(content.len() as u64, metadata).unwrap();
    store.publish(vec![staged]).pop().unwrap().map(drop).map_err(|error| error.kind())
}

/// Of everything that others store while a tree is exchanged, nothing that was answered is lost.
#[test]
fn what_others_store_meanwhile_ends_the_exchange_or_goes_into_the_new_tree() {
    let folder = tempfile::tempdir().unwrap();
    let open = Store::open_served(folder.path(), StoreOptions::default()).unwrap();
    store(&open, "site/a", b"old").unwrap();
    let tree = begin(&open, 1);
    let inside = open.grafted(&tree);
    store(&inside, "site/a", b"new").unwrap();
    assert_eq!(fs::read(folder.path().join("site/a")).unwrap(), b"old");
    // Stored while it is built: a change.
    store(&open, "site/b", b"other").unwrap();
    assert_eq!(tree.publish(&mut |_| Ok(())).unwrap_err().kind(), ErrorKind::Changed);
    assert_eq!(fs::read(folder.path().join("site/a")).unwrap(), b"old");
    drop((tree, inside));
    // Begun before the exchange and ended after it: its directory is another's by now.
    let tree = begin(&open, 2);
    let inside = open.grafted(&tree);
    store(&inside, "site/a", b"new").unwrap();
    let late = begin_upload(&open, "site/c", b"late");
    let mut told = Vec::new();
    tree.publish(&mut |change| {
        told.push(change);
        Ok(())
    })
    .unwrap();
    assert_eq!(told, [TreeChange::Replaced(path("site/a"))]);
    assert_eq!(finish_upload(&open, late, b"late"), Err(ErrorKind::Changed));
    assert_eq!(store(&open, "site/c", b"late"), Ok(()), "once more, it finds the new one");
    tree.clean().unwrap();
    let now = files(&folder.path().join("site"));
    let expected = [("a", "new"), ("b", "other"), ("c", "late")];
    assert_eq!(now, expected.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).into());
}

#[test]
fn a_run_goes_on_in_its_tree_and_a_refusal_leaves_all_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let open = Store::open_served(folder.path(), StoreOptions::default()).unwrap();
    store(&open, "site/a", b"old").unwrap();
    let tree = begin(&open, 1);
    assert!(!tree.is_resumed());
    store(&open.grafted(&tree), "site/b", b"brought").unwrap();
    let refused = tree.publish(&mut |change| {
        assert_eq!(change, TreeChange::Created(path("site/b")));
        Err(sealift::Error::new(ErrorKind::Rights, "no"))
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Rights);
    assert_eq!(files(&folder.path().join("site")).len(), 1);
    // Only one at a time has it, and the same run finds what it had brought, also after a restart.
    let builder = TreeBuilder { owner: [1; 32], name: String::new(), run: [1; 16] };
    assert_eq!(open.begin_tree(&path("site"), &builder).unwrap_err().kind(), ErrorKind::Busy);
    drop((tree, open));
    let open = Store::open_served(folder.path(), StoreOptions::default()).unwrap();
    let tree = begin(&open, 1);
    assert!(tree.is_resumed() && open.grafted(&tree).stat(&path("site/b")).is_ok());
    drop(tree);
    // Another run begins anew, and is offered it.
    let tree = begin(&open, 2);
    let inside = open.grafted(&tree);
    assert!(tree.is_resumed() && inside.stat(&path("site/b")).is_err());
    inside.bring_back(&path("site/b"));
    assert_eq!(inside.stat(&path("site/b")).unwrap().size, 7);
    tree.publish(&mut |_| Ok(())).unwrap();
    drop((tree, inside, open));
    // Killed before it was cleaned up: the next start does it, and knows how it ended.
    let open = Store::open_served(folder.path(), StoreOptions::default()).unwrap();
    let trees = folder.path().join(".sealift/trees");
    let left: Vec<_> = fs::read_dir(&trees).unwrap().map(|entry| entry.unwrap().path().join("tree")).collect();
    assert!(left.iter().all(|tree| !tree.exists()), "{left:?}");
    assert!(begin(&open, 2).is_done());
    assert_eq!(files(&folder.path().join("site")).len(), 2);
    // What rests too long goes.
    drop(begin(&open, 3));
    assert_eq!(open.expire_trees(sealift::storage::now() + 25 * 3600), 1);
    assert_eq!(fs::read_dir(&trees).unwrap().count(), 0);
}
