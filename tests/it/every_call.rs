//! Every file system call of a reference upload, download and rename fails once (case D07): they are counted in a run
//! without faults, and then each one in turn fails with each error.
//!
//! The server has one disk thread here, so that "the n-th call" means the same in each run. Calls that another run
//! does not make are not failed there, and not counted.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::faults::{Faults, judge};
use crate::order::strace_works;
use crate::rig::{Numbers, Ran, Server, World, binary, content, hash_of, leftovers, long, staged, tree, until};

/// All calls of storing, reading and renaming that touch a file system.
const CALLS: &str = "openat,openat2,close,fstat,newfstatat,statx,pread64,preadv2,pwrite64,fsync,syncfs,ftruncate,fallocate,\
                     fchmod,utimensat,fsetxattr,fgetxattr,linkat,renameat,renameat2,unlinkat,mkdirat,fstatfs,flock,\
                     getdents64,readlinkat,fadvise64,copy_file_range,stat,lseek";
const ERRORS: [&str; 7] = ["EIO", "ENOSPC", "EDQUOT", "EINTR", "EMFILE", "EACCES", "EROFS"];

struct Reference {
    world: World,
    server: Server,
    small: Vec<u8>,
    large: Vec<u8>,
    old: Vec<u8>,
}

impl Reference {
    fn new() -> Reference {
        let world = World::new();
        let (small, large, old) = (content(1, 3000), content(2, (5 << 20) + 7), content(3, 2000));
        world.file("small", &small);
        world.file("large", &large);
        for name in ["old-small", "old-large", "away"] {
            fs::write(world.root().join(name), &old).unwrap();
        }
        fs::write(world.root().join("got"), &large).unwrap();
        let server = world.serve_with_args(binary(), &["--disk-threads", "1"]);
        // What is done once is done.
        server.put(&world.path("small"), "warm");
        Reference { world, server, small, large, old }
    }

    fn put(&self, source: &str, name: &str) -> Ran {
        let source = self.world.path(source);
        self.server
            .run("put", ["--timeout".as_ref(), "20s".as_ref(), source.as_os_str(), self.server.at(name).as_ref()])
    }

    /// New and over an old one, small and large; a download; a rename. What was told holds.
    fn run(&self, what: &str) {
        for (source, name, is_new) in [
            ("small", "new/small", true),
            ("large", "new/large", true),
            ("small", "old-small", false),
            ("large", "old-large", false),
        ] {
            let ran = self.put(source, name);
            assert!(matches!(ran.code, 0 | 1), "{what}: {ran:?}");
            let sent = if source == "small" { &self.small } else { &self.large };
            let there = fs::read(self.world.root().join(name)).ok();
            match &there {
                Some(there) if there == sent => {}
                Some(there) if !is_new && *there == self.old => {
                    assert_ne!(ran.code, 0, "{what}: {name} is the old one")
                }
                None if is_new => assert_ne!(ran.code, 0, "{what}: {name} is not there"),
                _ => panic!("{what}: {name} is partial or gone: {ran:?}"),
            }
            for (_, hash) in ran.done_files() {
                assert_eq!(hash, hash_of(sent), "{what}: {name}");
            }
        }
        let target = self.world.path("target");
        let got = self.server.run("get", [self.server.at("got").as_ref(), target.as_os_str()]);
        match fs::read(&target) {
            Ok(bytes) => assert!(bytes == self.large && got.code == 0, "{what}: {got:?}"),
            Err(_) => assert_eq!(got.code, 1, "{what}: {got:?}"),
        }
        let mv = self.server.client(&["mv", &self.server.at("away"), &self.server.at("moved/x")]).output().unwrap();
        let (away, moved) = (self.world.root().join("away"), self.world.root().join("moved/x"));
        assert!(away.exists() != moved.exists(), "{what}: mv: {mv:?}");
        assert!(!mv.status.success() || moved.exists(), "{what}: mv: {mv:?}");
    }

    /// Without faults all of it works, without a restart.
    fn check(mut self, what: &str, leaves: bool) {
        until("the server stores again", || {
            let ran = self.put("large", "again");
            assert!(matches!(ran.code, 0 | 1), "{what}: {ran:?}");
            (ran.code == 0).then_some(())
        });
        assert!(self.server.is_alive(), "{what}: {:?}", self.server.said());
        assert!(!self.server.said().iter().any(|line| line.contains("panicked")), "{what}: {:?}", self.server.said());
        if !leaves {
            until("staging is removed", || (staged(&self.world.root()) == 0).then_some(()));
            assert!(leftovers(&self.world.root()).is_empty(), "{what}: {:?}", leftovers(&self.world.root()));
        }
        assert!(tree(&self.world.root()).len() >= 6, "{what}");
    }
}

/// How often each call is made.
fn count() -> BTreeMap<String, usize> {
    let reference = Reference::new();
    let log = reference.world.path("calls");
    let tracer = Faults::watch(&reference.server, CALLS, &log);
    reference.run("without faults");
    tracer.end();
    let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&fs::read(&log).unwrap()).lines() {
        let (thread, call) = line.split_once(' ').unwrap_or_default();
        if let Some((call, _)) = call.trim_start().split_once('(').filter(|_| !line.contains("resumed>")) {
            *counts.entry(call.to_owned()).or_default().entry(thread.to_owned()).or_default() += 1;
        }
    }
    // Faults are counted for each thread; the one with the most is the disk thread.
    let most = |threads: BTreeMap<String, usize>| threads.into_values().max().unwrap_or(0);
    counts.into_iter().map(|(call, threads)| (call, most(threads))).filter(|(call, _)| call != "close").collect()
}

#[test]
fn every_file_system_call_fails_once_with_every_error() {
    if !strace_works() {
        return;
    }
    let counts = count();
    let total: usize = counts.values().sum();
    assert!(total > 60, "{counts:?}");
    for call in ["openat2", "pwrite64", "fsync", "fchmod", "linkat", "renameat", "mkdirat"] {
        assert!(counts.contains_key(call), "{call} is not among {counts:?}");
    }
    let mut faults: Vec<(String, String)> = Vec::new();
    for (call, count) in &counts {
        for n in 1..=*count {
            faults.extend(ERRORS.map(|error| (call.clone(), format!("{call}:error={error}:when={n}"))));
        }
    }
    let all = faults.len();
    if !long("each of all file system calls fails with each error") {
        let mut numbers = Numbers::new("every_file_system_call_fails_once_with_every_error");
        for _ in 0..12 {
            let chosen = usize::try_from(numbers.below(faults.len() as u64)).unwrap();
            let chosen = faults.swap_remove(chosen);
            faults.push(chosen);
        }
        faults = faults.split_off(all - 12);
    }
    let (next, hit) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some((call, fault)) = faults.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let reference = Reference::new();
                    let log = reference.world.path("faults");
                    let tracer = Faults::inject(&reference.server, fault, &log);
                    reference.run(fault);
                    tracer.end();
                    let (count, published) = judge(&log);
                    assert!(published.is_empty(), "{fault}: a file whose sync failed got a name: {published:?}");
                    if count == 0 {
                        missed.lock().unwrap().push(fault.clone());
                    }
                    hit.fetch_add(usize::from(count > 0), Ordering::SeqCst);
                    reference.check(fault, call == "unlinkat");
                }
            });
        }
    });
    let (hit, missed) = (hit.into_inner(), missed.into_inner().unwrap());
    println!(
        "calls of the reference: {total}, of {} kinds; faults tried: {} of {all}, of which {hit} hit a call",
        counts.len(),
        faults.len()
    );
    assert!(hit * 2 > faults.len(), "most faults hit nothing: {missed:?}");
}
