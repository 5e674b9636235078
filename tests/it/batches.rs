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

/// Two batches of one client are committed at once in memory, where neither waits for a disk, and no more: others need
/// the threads too.
#[test]
fn two_batches_of_one_client_in_memory_are_committed_at_once() {
    if !strace_works() {
        return;
    }
    let world = World::in_memory();
    let count = 400;
    for number in 0..count {
        world.file(&format!("source/{number}"), &content(number, 100));
    }
    let log = world.path("trace");
    let naming = "linkat,renameat,renameat2";
    // Each name takes so long that other batches could begin meanwhile.
    let (trace, slow) = (format!("trace=pwrite64,{naming}"), format!("inject={naming}:delay_exit=2000"));
    let args = ["-D", "-f", "-y", "-e", &trace, "-e", &slow, "-e", "signal=none", "-o", log.to_str().unwrap()];
    let server = world.serve_by(wrapped("strace", args), 0);
    server.put(&world.path("source"), "/");
    server.stop();
    let text = until("the tracer has written its log", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().last().is_some_and(|line| line.contains("+++ exited")).then_some(text)
    });
    // From the first to the last name that a thread gives to the files of one batch.
    let (mut named, mut spans, mut open) = (0, Vec::new(), HashMap::new());
    for (at, line) in text.lines().enumerate().filter(|(_, line)| line.contains("/source")) {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if call.starts_with("linkat(") || call.starts_with("renameat") {
            open.entry(thread).or_insert((at, at)).1 = at;
            named += 1;
        } else if call.starts_with("pwrite64(") {
            spans.extend(open.remove(thread));
        }
    }
    spans.extend(open.into_values());
    let at_once = |at: usize| spans.iter().filter(|(first, last)| (*first..=*last).contains(&at)).count();
    let most = spans.iter().map(|&(first, _)| at_once(first)).max().unwrap_or(0);
    println!("{named} names in {} batches, at most {most} at once", spans.len());
    assert!(named >= count && most == 2, "{named} names in {} batches, {most} of them at once", spans.len());
}
