//! Disks that are full, cannot be written, or fail (cases D05, D07, D08, R08): whoever asked is told, nothing partial
//! has a final name, no positive answer without durable data, and the server goes on.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};

use crate::order::strace_works;
use crate::rig::{
    Mount, Ran, Server, What, World, binary, content, hash_of, leftovers, long, staged, tree, until, wrapped,
};

/// All that is told as done is there with its hash, and nothing that was told as failed has changed.
#[track_caller]
fn check(ran: &Ran, top: &Path, source: &Path, what: &str) {
    for (name, hash) in ran.done_files() {
        let name = Path::new(&name).strip_prefix(source).unwrap();
        let bytes = fs::read(top.join(name)).unwrap_or_else(|error| panic!("{what}: {}: {error}", name.display()));
        assert_eq!(hash_of(&bytes), hash, "{what}: {}", name.display());
    }
}

#[test]
fn a_full_disk_of_the_server_is_told_and_passes() {
    let world = World::new();
    let Some(_mount) = Mount::tmpfs(&world.root(), "size=24M") else { return };
    fill_the_server(&world);
}

#[test]
fn a_full_ext4_of_the_server_is_told_and_passes() {
    let world = World::new();
    let Some(_mount) = Mount::image(&world.path("image"), &world.root(), "ext4", 30 << 20) else { return };
    fill_the_server(&world);
}

fn fill_the_server(world: &World) {
    let mut server = world.serve();
    world.file("huge", &content(1, 30 << 20));
    for index in 0..20 {
        world.file(&format!("many/{index}"), &content(index, (2 << 20) + 100));
        world.file(&format!("small/{index}"), &content(100 + index, 3000));
    }
    // One that can be known beforehand not to fit.
    let ran = server.run("put", [world.path("huge").as_os_str(), server.at("huge").as_ref()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.of_type("failed")[0]["error"], "no_space", "{ran:?}");
    assert!(ran.failures().contains("31457280"), "what is needed is not told: {ran:?}");
    assert!(tree(&world.root()).is_empty());
    // A stream of unknown length.
    let mut client = server.client(&["put", "--json", "-", &server.at("stream")]);
    client.stdin(fs::File::open(world.path("huge")).unwrap());
    let ran = Ran::of(client.output().unwrap());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.of_type("failed")[0]["error"], "no_space", "{ran:?}");
    assert!(tree(&world.root()).is_empty());
    until("its staging is gone", || (staged(&world.root()) == 0).then_some(()));
    // Many that fill it together, while others put small ones.
    let many = world.path("many");
    std::thread::scope(|scope| {
        let filler = scope.spawn(|| server.run("put", [many.as_os_str(), server.at("many").as_ref()]));
        let ran = filler.join().unwrap();
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(!ran.done_files().is_empty(), "{ran:?}");
        assert_eq!(ran.done_files().len() + ran.of_type("failed").len(), 20, "{ran:?}");
        for failed in ran.of_type("failed") {
            assert_eq!(failed["error"], "no_space", "{ran:?}");
        }
        check(&ran, &world.root().join("many"), &many, "many");
        let there = tree(&world.root().join("many")).len();
        assert_eq!(there, ran.done_files().len(), "something has a name that was not told as stored");
    });
    assert_eq!((staged(&world.root()), leftovers(&world.root()).len()), (0, 0));
    // Reading goes on.
    let some = tree(&world.root().join("many")).into_keys().next().unwrap();
    server.get(&format!("many/{}", some.display()), &world.path("got"));
    // Space is freed, and the same server stores again.
    let removed = server.client(&["rm", "-r", &server.at("many")]).output().unwrap();
    assert!(removed.status.success(), "{removed:?}");
    server.put(&world.path("small"), "small");
    assert_eq!(tree(&world.root().join("small")).len(), 20);
    assert!(server.is_alive());
}

#[test]
fn a_server_without_inodes_tells_it_and_goes_on() {
    let world = World::new();
    let Some(mount) = Mount::tmpfs(&world.root(), "size=64M,nr_inodes=60") else { return };
    let mut server = world.serve();
    for index in 0..100 {
        world.file(&format!("many/d{}/{index}", index % 10), &content(index, 500));
    }
    let many = world.path("many");
    let ran = server.run("put", [many.as_os_str(), server.at("many").as_ref()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for failed in ran.of_type("failed") {
        assert_eq!(failed["error"], "no_space", "{ran:?}");
    }
    check(&ran, &world.root().join("many"), &many, "many");
    let files = tree(&world.root()).into_values().filter(|seen| matches!(seen.kind, What::File { .. })).count();
    assert_eq!(files, ran.done_files().len(), "a file has a name that was not told as stored");
    // None left at all: refused before anything is tried, by a sentence that says what is missing.
    let fillers = world.root().join("fillers");
    for index in 0..100 {
        let made = if index == 0 { fs::create_dir(&fillers) } else { fs::write(fillers.join(index.to_string()), b"") };
        if made.is_err() {
            break;
        }
    }
    let ran = server.run("put", [many.join("d1/1").as_os_str(), server.at("one").as_ref()]);
    assert_eq!((ran.code, &ran.of_type("failed")[0]["error"]), (1, &"no_space".into()), "{ran:?}");
    assert!(ran.failures().contains("inodes left"), "{ran:?}");
    mount.remount("nr_inodes=1000");
    if fillers.exists() {
        fs::remove_dir_all(fillers).unwrap();
    }
    server.put(&many, "many");
    assert!(server.is_alive());
}

#[test]
fn a_full_disk_of_the_client_is_told_and_passes() {
    let world = World::new();
    let server = world.serve();
    let target = world.path("small-disk");
    let Some(_mount) = Mount::tmpfs(&target, "size=8M") else { return };
    fs::write(world.root().join("huge"), content(1, 30 << 20)).unwrap();
    for index in 0..40 {
        world.file(&format!("root/many/{index}"), &content(index, (3 << 20) + 5));
        world.file(&format!("root/little/{index}"), &content(index, 250_000));
    }
    let ran = server.run("get", [server.at("huge").as_ref(), target.as_os_str()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let ran = server.run("get", [server.at("huge").as_ref(), target.join("huge").as_os_str()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.of_type("failed")[0]["error"], "no_space", "{ran:?}");
    assert!(tree(&target).is_empty());
    // Several are on their way when there is no more room: each is told, and the connection holds.
    for directory in ["many", "little"] {
        let ran = server.run("get", [server.at(directory).as_ref(), target.join(directory).as_os_str()]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert_eq!(ran.done_files().len() + ran.of_type("failed").len(), 40, "{directory}: {ran:?}");
        for failed in ran.of_type("failed") {
            assert_eq!(failed["error"], "no_space", "{ran:?}");
        }
        for (name, hash) in ran.done_files() {
            assert_eq!(hash_of(&fs::read(target.join(&name)).unwrap()), hash, "{name}");
        }
        let there = tree(&target.join(directory));
        assert_eq!(
            there.len(),
            ran.done_files().len(),
            "{directory}: something has a name that was not told as stored"
        );
        fs::remove_dir_all(target.join(directory)).unwrap();
    }
    server.get("many/1", &target.join("x"));
}

/// Every download fails in its middle while content is on its way: each is told, over one connection.
#[test]
fn a_failing_disk_of_the_client_is_told_file_by_file() {
    if !strace_works() {
        return;
    }
    let world = World::new();
    // Reading is slow, so that what is given up is still being read.
    let slow = ["-D", "-f", "-o", "/dev/null", "-e", "trace=pread64", "-e", "inject=pread64:delay_enter=30000"];
    let server = world.serve_by(wrapped("strace", slow), 0);
    for index in 0..80 {
        world.file(&format!("root/many/{index}"), &content(index, (5 << 20) + 5));
    }
    let target = world.path("target");
    let mut client =
        wrapped("strace", ["-f", "-o", "/dev/null", "-e", "trace=pwrite64", "-e", "inject=pwrite64:error=EIO"]);
    client.args(["get", "--json", "--certs"]).arg(world.path("client")).arg(server.at("many")).arg(&target);
    let ran = Ran::of(client.output().unwrap());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.of_type("failed").len(), 80, "{ran:?}");
    for failed in ran.of_type("failed") {
        assert_eq!(failed["error"], "io", "{ran:?}");
    }
    assert_eq!(ran.summary()["retries"], 0, "{ran:?}");
    assert!(tree(&target).is_empty());
}

/// A file system that found itself damaged takes no more writes: told by what it is, and reading goes on.
#[test]
fn a_disk_that_gives_up_while_it_is_served_is_told() {
    let world = World::new();
    let Some(_mount) = Mount::image(&world.path("image"), &world.root(), "ext4", 30 << 20) else { return };
    let mut server = world.serve();
    for name in ["small", "large"] {
        world.file(name, &content(1, if name == "small" { 100 } else { 3 << 20 }));
    }
    server.put(&world.path("small"), "there");
    let source = Command::new("findmnt").args(["-no", "SOURCE"]).arg(world.root()).output();
    let device =
        source.map(|output| String::from_utf8_lossy(&output.stdout).trim().replace("/dev/", "")).unwrap_or_default();
    let remounted = Command::new("mount").args(["-o", "remount,errors=remount-ro"]).arg(world.root()).status();
    if !remounted.is_ok_and(|status| status.success())
        || fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a test").is_err()
    {
        println!("skipped, no file system can be made to fail here");
        return;
    }
    for name in ["small", "large"] {
        let ran = server.run("put", [world.path(name).as_os_str(), server.at(name).as_ref()]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let kind = ran.of_type("failed")[0]["error"].as_str().unwrap().to_owned();
        assert!(["read_only", "io"].contains(&&*kind), "{ran:?}");
    }
    for args in [&["rm", "there"][..], &["mkdir", "made"], &["mv", "there", "moved"]] {
        let names = args[1..].iter().map(|name| server.at(name));
        let output = server.client(&args[..1]).args(names).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    }
    server.get("there", &world.path("got"));
    assert_eq!(tree(&world.root()).len(), 1);
    assert!(server.is_alive());
}

/// A volume is unmounted under a running server (lazily: its handles keep it alive): nothing is stored where nobody
/// would look for it, nor into the directory below, and it goes on when the volume is back.
#[test]
fn a_volume_that_disappears_is_noticed_and_may_come_back() {
    let world = World::new();
    let volume = world.path("volume");
    let Some(_volume) = Mount::tmpfs(&volume, "size=24M") else { return };
    let Some(mount) = Mount::bind(&volume, &world.root()) else { return };
    let mut server = world.serve();
    for name in ["small", "large"] {
        world.file(name, &content(1, if name == "small" { 100 } else { 3 << 20 }));
    }
    server.put(&world.path("small"), "there");
    drop(mount);
    assert!(tree(&world.root()).is_empty() && !world.root().join(".sealift").exists());
    for name in ["small", "large"] {
        let ran = server.run("put", [world.path(name).as_os_str(), server.at(name).as_ref()]);
        assert_eq!((ran.code, &ran.of_type("failed")[0]["error"]), (1, &"io".into()), "{ran:?}");
        assert!(ran.failures().contains("its volume was unmounted"), "{ran:?}");
    }
    // What is there already is not called stored either, and names are not changed.
    let ran = server.run("put", [world.path("small").as_os_str(), server.at("there").as_ref()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for args in [&["rm", "there"][..], &["mkdir", "made"], &["mv", "there", "moved"]] {
        let names = args[1..].iter().map(|name| server.at(name));
        let output = server.client(&args[..1]).args(names).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    }
    // Told in the log though nobody asks.
    until("it is told", || server.said().iter().any(|line| line.contains("nothing is stored for now")).then_some(()));
    assert!(tree(&world.root()).is_empty(), "something was stored below the mount point");
    assert_eq!(tree(&volume).len(), 1, "something was stored in a volume that is not there");
    // Another volume in its place is not taken for it.
    let Some(other) = Mount::tmpfs(&world.root(), "size=1M") else { return };
    let ran = server.run("put", [world.path("small").as_os_str(), server.at("small").as_ref()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(tree(&world.root()).is_empty());
    drop(other);
    let Some(_mount) = Mount::bind(&volume, &world.root()) else { return };
    server.put(&world.path("large"), "large");
    until("it is told", || server.said().iter().any(|line| line.contains("can be written to again")).then_some(()));
    assert_eq!(tree(&world.root()).len(), 2);
    assert!(server.is_alive());
}

#[test]
fn a_root_that_cannot_be_written_is_refused_at_the_start() {
    let world = World::new();
    let Some(mount) = Mount::tmpfs(&world.root(), "size=8M") else { return };
    for was_served in [false, true] {
        if was_served {
            mount.remount("rw");
            world.serve().stop();
        }
        mount.remount("ro");
        let mut command = binary();
        command.arg("serve").arg("--root").arg(world.root()).arg("--certs").arg(world.path("certs"));
        let output = command.args(["--listen", "127.0.0.1:0"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("Read-only file system") && text.contains("root"), "{text}");
        assert!(output.stdout.is_empty());
    }
}

/// A tracer that makes calls of a running server fail. Ended, the server goes on without it.
pub(crate) struct Faults {
    tracer: Child,
}

impl Faults {
    pub(crate) fn inject(server: &Server, fault: &str, log: &Path) -> Faults {
        let call = fault.split(':').next().unwrap();
        let trace = format!("{call},fchmod,linkat,renameat,renameat2,fsync,syncfs");
        Faults::trace(server, &trace, &["-e", &format!("inject={fault}")], log)
    }

    /// Only writes down these calls.
    pub(crate) fn watch(server: &Server, calls: &str, log: &Path) -> Faults {
        Faults::trace(server, calls, &[], log)
    }

    fn trace(server: &Server, calls: &str, args: &[&str], log: &Path) -> Faults {
        let mut tracer = Command::new("strace")
            .args(["-f", "-y", "-s", "64", "-e", "signal=none", "-e"])
            .arg(format!("trace={calls}"))
            .args(args)
            .args(["-p", &server.pid().to_string(), "-o"])
            .arg(log)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It tells of each thread, or of all at once.
        let mut lines = BufReader::new(tracer.stderr.take().unwrap()).lines();
        let attached = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")));
        assert!(attached.is_some(), "strace does not attach");
        let rest = Arc::new(Mutex::new(lines));
        std::thread::spawn(move || rest.lock().unwrap().by_ref().map_while(Result::ok).for_each(drop));
        Faults { tracer }
    }

    pub(crate) fn end(mut self) {
        let _ = kill_process(Pid::from_child(&self.tracer), Signal::TERM);
        until("the tracer lets go", || self.tracer.try_wait().unwrap());
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        let _ = self.tracer.kill();
        let _ = self.tracer.wait();
    }
}

/// How many calls had a fault, and which staging files had a failed sync and got a name all the same.
pub(crate) fn judge(log: &Path) -> (usize, Vec<String>) {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let (mut faults, mut published) = (0, Vec::new());
    let mut poisoned = HashSet::new();
    // What a descriptor stood for when it was last seen: every staging file gets its mode before it is synced.
    let mut open: HashMap<&str, &str> = HashMap::new();
    let mut syncing: HashMap<&str, &str> = HashMap::new();
    for line in text.lines() {
        let (thread, call) = line.split_once(' ').unwrap_or_default();
        let first = call.split_once('(').and_then(|(_, args)| args.split_once('<'));
        let first = first.and_then(|(number, rest)| Some((number, rest.split_once('>')?.0)));
        if let Some((number, path)) = first.filter(|(number, _)| number.parse::<u32>().is_ok()) {
            open.insert(number, path);
            if call.trim_start().starts_with("fsync(") {
                syncing.insert(thread, path);
            }
        }
        if line.contains("(INJECTED)") {
            faults += 1;
            if line.contains("fsync") && line.contains("EIO") {
                poisoned.extend(syncing.get(thread).copied());
            }
        }
        if !line.contains("linkat(") && !line.contains("renameat") {
            continue;
        }
        let is_staging = |path: &&&str| path.contains("/#") || path.contains("/.sealift-");
        for path in poisoned.iter().filter(is_staging) {
            let name = path.rsplit('/').next().unwrap();
            let linked = line.split("\"/proc/self/fd/").nth(1).and_then(|rest| rest.split('"').next());
            if linked.and_then(|number| open.get(number)) == Some(path) || line.contains(&format!("\"{name}\"")) {
                published.push(format!("{path}: {line}"));
            }
        }
    }
    (faults, published)
}

/// One reference run of everything with one kind of fault.
fn run_with_fault(fault: &str) {
    let world = World::new();
    let mut server = world.serve();
    let (call, rest) = fault.split_once(':').unwrap();
    // No sync fails for want of descriptors, so that error is as final as any other there.
    let does_pass = rest.contains("EINTR") || rest.ends_with("EMFILE:when=1") && !call.contains("sync");
    let comes_back = rest.ends_with('+') || rest.contains("1+3");
    let old: Vec<(String, Vec<u8>)> = (0..3).map(|index| (format!("over{index}"), content(50 + index, 3000))).collect();
    for (name, bytes) in &old {
        fs::write(world.root().join(name), bytes).unwrap();
        fs::write(world.root().join(format!("{name}-away")), bytes).unwrap();
    }
    let source = world.path("source");
    for (name, len) in
        [("over0", 2000), ("over1", (2 << 20) + 9), ("over2", 300_000), ("new/small", 10), ("new/large", (5 << 20) + 1)]
    {
        world.file(&format!("source/{name}"), &content(70, len));
    }
    for index in 0..40 {
        world.file(&format!("source/many/{index}"), &content(index, 400));
    }
    let log = world.path("faults");
    let faults = Faults::inject(&server, fault, &log);
    let put = server.run("put", ["--timeout".as_ref(), "20s".as_ref(), source.as_os_str(), server.at("").as_ref()]);
    let put_top =
        server.run("put", [source.join("over0").as_os_str(), source.join("over1").as_os_str(), server.at("").as_ref()]);
    let target = world.path("target");
    let get = server.run("get", [server.at("over2").as_ref(), target.as_os_str()]);
    let mv =
        server.client(&["mv", "--timeout", "20s", &server.at("over0-away"), &server.at("moved/x")]).output().unwrap();
    let rm = server.client(&["rm", "--timeout", "20s", &server.at("over1-away")]).output().unwrap();
    let mkdir = server.client(&["mkdir", "--timeout", "20s", &server.at("made/deep")]).output().unwrap();
    faults.end();
    let (count, published) = judge(&log);
    let what = format!("{fault} ({count} faults)");
    assert!(count > 0 || long("rare calls"), "{what}: it never happened");
    assert!(published.is_empty(), "{what}: a file whose sync failed got a name: {published:?}");
    assert!(server.is_alive(), "{what}: the server died: {:?}", server.said());
    assert!(!server.said().iter().any(|line| line.contains("panicked")), "{what}: {:?}", server.said());
    // What was told is so.
    check(&put, &world.root().join("source"), &source, &what);
    check(&put_top, &world.root(), &source, &what);
    for (name, bytes) in &old {
        let there = fs::read(world.root().join(name)).unwrap();
        let new = fs::read(source.join(name)).unwrap();
        assert!(there == *bytes || there == new, "{what}: {name} is a mixture");
    }
    let stored = world.root().join("source");
    for (name, seen) in if stored.exists() { tree(&stored) } else { Default::default() } {
        if matches!(seen.kind, What::File { .. }) && source.join(&name).exists() {
            let (there, sent) =
                (fs::read(world.root().join("source").join(&name)).unwrap(), fs::read(source.join(&name)).unwrap());
            assert!(there == sent, "{what}: {} is partial", name.display());
        }
    }
    if mv.status.success() {
        assert!(world.root().join("moved/x").exists() && !world.root().join("over0-away").exists(), "{what}: mv");
    } else {
        assert!(world.root().join("moved/x").exists() != world.root().join("over0-away").exists(), "{what}: mv");
    }
    assert!(!rm.status.success() || !world.root().join("over1-away").exists(), "{what}: rm");
    assert!(!mkdir.status.success() || world.root().join("made/deep").is_dir(), "{what}: mkdir");
    if get.code == 0 {
        assert!(fs::read(&target).unwrap() == fs::read(world.root().join("over2")).unwrap(), "{what}: get");
    } else {
        assert!(!target.exists(), "{what}: get failed and left something: {get:?}");
    }
    for ran in [&put, &put_top, &get] {
        // What passes is tried again until the time for that is over.
        let is_busy = ran.code == 3 && rest.contains("EMFILE") && comes_back;
        assert!(matches!(ran.code, 0 | 1) || is_busy, "{what}: {ran:?}");
        // An interrupted call is called again, and descriptors come back.
        assert!(ran.code == 0 || !does_pass, "{what}: {ran:?}");
    }
    if rest.ends_with("when=1+") && matches!(call, "fsync,syncfs,fdatasync") {
        assert!(put.done_files().is_empty() && put_top.done_files().is_empty(), "{what}: told without a sync: {put:?}");
        assert!(!mv.status.success() && !rm.status.success() && !mkdir.status.success(), "{what}");
    }
    // Without faults it works again, or it says why not and works a little later, without a restart.
    until("the server stores again", || {
        let again =
            server.run("put", ["--timeout".as_ref(), "20s".as_ref(), source.as_os_str(), server.at("").as_ref()]);
        if again.code == 0 {
            return Some(());
        }
        assert!(
            again.failures().contains("nothing is written to this disk before it works again"),
            "{what}: {again:?}"
        );
        assert!(
            // A directory is looked at and opened to be synced.
            ["sync", "unlink", "open", "stat"].iter().any(|cause| call.contains(cause)),
            "{what}: the store refused without a reason: {again:?}"
        );
        // Reading goes on.
        server.get("over2", &world.path("still"));
        None
    });
    if call.contains("unlinkat") || staged(&world.root()) > 0 {
        // What could not be removed then is removed by the next server.
        server.kill();
        server = world.serve();
    }
    until("staging is removed", || (staged(&world.root()) == 0).then_some(()));
    assert!(server.is_alive());
    let hidden = leftovers(&world.root());
    // What could not be removed stays hidden for an hour.
    assert!(hidden.is_empty() || call.contains("unlinkat"), "{what}: {hidden:?}");
    let mut there = tree(&world.root().join("source"));
    there.retain(|name, _| source.join(name).exists());
    let mut expected = tree(&source);
    if !hidden.is_empty() {
        // Their removal by whoever lists changes the time of a directory.
        for seen in there.values_mut().chain(expected.values_mut()) {
            seen.mtime = (0, 0);
        }
    }
    assert_eq!(there, expected, "{what}");
}

#[test]
fn failing_calls_never_make_a_false_answer() {
    if !strace_works() {
        return;
    }
    // Each call is counted for each thread of the server, so the first of every thread fails, or the second.
    let mut faults: Vec<String> = [
        "fsync:error=EIO:when=1",
        "fsync:error=EIO:when=2",
        "fsync,syncfs,fdatasync:error=EIO:when=1+",
        "fsync,syncfs,openat,pwrite64,mkdirat,linkat,renameat,renameat2,unlinkat:error=EROFS:when=1+",
        "syncfs:error=EIO:when=1",
        "pwrite64:error=EIO:when=1",
        "pwrite64:error=ENOSPC:when=2",
        "pwrite64:error=EINTR:when=1",
        "renameat2:error=EIO:when=1",
        "renameat:error=EIO:when=1",
        "linkat:error=ENOSPC:when=2",
        "fchmod:error=EIO:when=1",
        "fsetxattr:error=EIO:when=1",
        "fsetxattr:error=ENOSPC:when=1+",
        "utimensat:error=EIO:when=2",
        "mkdirat:error=ENOSPC:when=1",
        "unlinkat:error=EIO:when=1",
        "fsync:error=EINTR:when=1",
        "linkat:error=EINTR:when=1",
        "fchmod:error=EINTR:when=1",
        "utimensat:error=EINTR:when=1",
        "mkdirat:error=EINTR:when=1",
        "openat:error=EMFILE:when=1",
        "openat2:error=EMFILE:when=1",
    ]
    .map(str::to_owned)
    .into();
    if long("every call with every error at the first eight places") {
        for call in [
            "fsync",
            "syncfs",
            "pwrite64",
            "renameat",
            "renameat2",
            "linkat",
            "fchmod",
            "fsetxattr",
            "utimensat",
            "mkdirat",
            "unlinkat",
            "ftruncate",
            "fallocate",
            "openat",
            "openat2",
            "pread64",
            "fstat",
            "newfstatat",
        ] {
            for error in ["EIO", "ENOSPC", "EDQUOT", "EINTR", "EACCES", "EROFS", "EMFILE"] {
                for place in ["1", "2", "3", "5", "8", "1+3"] {
                    faults.push(format!("{call}:error={error}:when={place}"));
                }
            }
        }
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) {
                    run_with_fault(fault);
                }
            });
        }
    });
}

/// A disk for logs that is full, or whoever read them gone.
#[test]
fn a_server_whose_log_cannot_be_written_goes_on() {
    let world = World::new();
    let mut command = wrapped("sh", ["-c", "exec \"$0\" \"$@\" 2>/dev/full"]);
    command.args(["serve", "--listen", "127.0.0.1:0", "--root"]).arg(world.root());
    command.arg("--certs").arg(world.path("certs"));
    let server = world.started(command);
    let source = world.file("source", b"content");
    server.put(&source, "a");
    server.get("a", &world.path("b"));
    assert_eq!(server.stop(), Some(0));
}
