//! Small files that are stored in batches: the modes that they get, and what stays open.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Pid;

use crate::order::strace_works;
use crate::rig::{World, content, staged, until, wrapped};

/// Files and directories that a process has open, by their paths.
fn open_files(pid: Pid) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // Others may be closed meanwhile.
    let links = descriptors.filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok());
    let mut paths: Vec<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    paths.retain(|path| path.starts_with('/') && !path.starts_with("/dev/null"));
    paths.sort();
    paths
}

/// What a file of this mode has there, by `--file-mode 0640:0774`: also where the umask would take some away.
fn held(mode: u32) -> u32 {
    (mode | 0o640) & 0o774
}

#[test]
fn small_files_get_their_modes_and_leave_nothing_open() {
    for world in [World::new(), World::in_memory()] {
        let server = world.serve_and(&["--file-mode".as_ref(), "0640:0774".as_ref()]);
        let modes = [0o600, 0o640, 0o644, 0o755, 0o777, 0o444, 0o4711];
        let name = |number: usize| format!("source/{}/{number}", number % 3);
        let put = |numbers: std::ops::Range<usize>, round: u64| {
            for number in numbers.clone() {
                // Not everybody may write to what was there before.
                let _ = fs::remove_file(world.path(&name(number)));
                let whole = content(number as u64 + 10_000 * round, (number * 41) % 3000);
                let file = world.file(&name(number), &whole);
                fs::set_permissions(file, fs::Permissions::from_mode(modes[number % modes.len()])).unwrap();
            }
            server.put(&world.path("source"), "/");
            for number in numbers {
                let file = world.root().join(name(number));
                let (there, mode) = (fs::read(&file).unwrap(), file.metadata().unwrap().permissions().mode() & 0o7777);
                assert!(there == fs::read(world.path(&name(number))).unwrap(), "file {number}");
                let asked = modes[number % modes.len()];
                assert_eq!(mode, held(asked), "file {number}, round {round}: {mode:o} where {asked:o} was asked for");
            }
        };
        // Whatever is opened once and kept is open then.
        put(0..7, 0);
        let before = until("nothing of the first files is open", || {
            let open = open_files(server.pid());
            open.iter().all(|path| !path.contains("/source/")).then_some(open)
        });
        // New ones, and new content for those that are there.
        for round in 1..3 {
            put(0..1000, round);
            let mut open = Vec::new();
            until(&format!("of {before:?} and others nothing more is open"), || {
                open = open_files(server.pid());
                (open.len() <= before.len()).then_some(())
            });
        }
        assert_eq!(staged(&world.root()), 0);
    }
}

/// The batch behind another one waits for it at the disk threads, which gain nothing by working on both at once.
#[test]
fn batches_of_one_client_in_memory_are_committed_one_after_the_other() {
    if !strace_works() {
        return;
    }
    let world = World::in_memory();
    let count = 300;
    for number in 0..count {
        world.file(&format!("source/{number}"), &content(number, 100));
    }
    // A new directory would get its name as a whole.
    fs::create_dir(world.root().join("source")).unwrap();
    let log = world.path("trace");
    let naming = "linkat,renameat,renameat2";
    // Each name takes so long that another batch could begin meanwhile.
    let (trace, slow) = (format!("trace=pwrite64,{naming}"), format!("inject={naming}:delay_exit=2000"));
    let args = ["-D", "-f", "-y", "-e", &trace, "-e", &slow, "-e", "signal=none", "-o", log.to_str().unwrap()];
    let server = world.serve_by(wrapped("strace", args), 0);
    server.put(&world.path("source"), "/");
    server.stop();
    let text = until("the tracer has written its log", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().last().is_some_and(|line| line.contains("+++ exited")).then_some(text)
    });
    // The threads that give the files of a batch their names, and whether nobody else has done anything meanwhile.
    let (mut named, mut batches, mut naming) = (0, 0, HashMap::new());
    for line in text.lines().filter(|line| line.contains("/source")) {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let is_named = call.starts_with("linkat(") || call.starts_with("renameat");
        if !is_named && !call.starts_with("pwrite64(") {
            continue;
        }
        naming.iter_mut().for_each(|(&other, is_alone)| *is_alone &= other == thread);
        if is_named {
            let is_alone = naming.insert(thread, true);
            assert_ne!(is_alone, Some(false), "another batch was worked on before this call: {line}");
            batches += usize::from(is_alone.is_none());
            named += 1;
        } else {
            naming.remove(thread);
        }
    }
    println!("{named} names in {batches} batches");
    assert!(named >= count && batches > 1, "{named} names in {batches} batches");
}
