//! The server's own confinement: what this process can no longer do once it serves, whatever a peer makes of it.
//!
//! Three things of the Linux kernel, each of which works without the others and needs no privilege:
//! - Landlock: files are read below the directories of a [`Plan`] and written below those that it names for that,
//!   nothing is executed, and no TCP connection is made nor port bound.
//! - A filter of system calls (seccomp): no other program is started, nothing is connected to, no socket but a local
//!   one is made, and the kernel's interfaces for debugging, mounting, modules and namespaces answer "not permitted".
//! - No new privileges: a set-user-id program would give none.
//!
//! All three hold for the calling thread and those that it starts afterwards: [`confine`] comes before the runtime.
//! What the kernel or a container does not allow is left out, and told as a warning.

use std::path::{Path, PathBuf};

use crate::path::Escaped;

/// Where a confined process may read and write.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Directories whose files may be read and listed. Of directories, not files: what is replaced by renaming is a
    /// new file.
    pub read: Vec<PathBuf>,
    /// Directories below which everything may be read, made, changed and removed, except devices and sockets.
    pub write: Vec<PathBuf>,
    /// Directories whose files may be made, written and renamed, and nothing else.
    pub log: Vec<PathBuf>,
}

impl Plan {
    /// Lets a log be written, and its older files be kept beside it.
    pub fn log_beside(&mut self, file: &Path) {
        if let Ok(directory) = directory_of(file).canonicalize() {
            self.log.push(directory);
        }
    }

    /// Lets a file be read, and whatever takes its name later. One that is reached through links is read in the
    /// directory where it is, too.
    pub fn read_beside(&mut self, file: &Path) {
        let real = file.canonicalize().ok();
        for place in [Some(file), real.as_deref()].into_iter().flatten() {
            // What is not there is not read either.
            let Ok(directory) = directory_of(place).canonicalize() else { continue };
            // A directory that is the whole machine would be no restriction: the file alone.
            let allowed = if directory == Path::new("/") { file.to_path_buf() } else { directory };
            if !self.read.contains(&allowed) {
                self.read.push(allowed);
            }
        }
    }
}

fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// What holds after [`confine`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confined {
    /// What is in force, in words.
    pub in_force: Vec<String>,
    /// What is not, and why.
    pub warnings: Vec<String>,
}

impl std::fmt::Display for Confined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.in_force.is_empty() {
            return f.write_str("confined by nothing");
        }
        write!(f, "confined by {}", self.in_force.join("; "))
    }
}

/// Confines the calling thread and all that it starts from now on. Files and sockets that are open stay usable.
#[must_use]
pub fn confine(plan: &Plan) -> Confined {
    let mut confined = Confined::default();
    let mut note = |result: Result<String, String>| match result {
        Ok(text) => confined.in_force.push(text),
        Err(text) => confined.warnings.push(text),
    };
    note(system::landlock(plan));
    note(system::seccomp());
    note(system::no_new_privileges());
    confined
}

fn listed(paths: &[PathBuf]) -> String {
    let shown: Vec<_> = paths.iter().map(|path| Escaped(path.as_os_str().as_encoded_bytes()).to_string()).collect();
    shown.join(", ")
}

#[cfg(target_os = "linux")]
mod system {
    use std::collections::BTreeMap;

    use landlock::{
        ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus, PathBeneath, PathFd,
        RestrictionStatus, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
    };
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        TargetArch,
    };

    use super::{Plan, listed};

    /// The newest interface whose rights were looked at one by one; a newer kernel is asked for no more than these.
    const KNOWN: ABI = ABI::V7;

    pub(super) fn landlock(plan: &Plan) -> Result<String, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!("Landlock is not in force ({error}): a flaw in this server could reach files outside the root")
        };
        let status = restrict(plan).map_err(|error| failed(&error))?;
        let version = match status.landlock {
            LandlockStatus::Available { effective_abi, kernel_abi } => kernel_abi.unwrap_or(effective_abi as i32),
            LandlockStatus::NotEnabled => return Err(failed(&"it is switched off in this kernel")),
            LandlockStatus::NotImplemented => return Err(failed(&"the kernel, or what filters its calls, has none")),
        };
        if status.ruleset == RulesetStatus::NotEnforced {
            return Err(failed(&"it cannot tell a renaming between directories before Linux 5.19"));
        }
        let network = if version >= ABI::V4 as i32 { ", no TCP connection out and no other port" } else { "" };
        let written: Vec<_> = plan.write.iter().chain(&plan.log).cloned().collect();
        let reads = if plan.read.is_empty() { String::new() } else { format!(", reads {}", listed(&plan.read)) };
        Ok(format!("Landlock (ABI {version}: writes {}{reads}, runs nothing{network})", listed(&written)))
    }

    fn restrict(plan: &Plan) -> Result<RestrictionStatus, Box<dyn std::error::Error>> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = AccessFs::from_all(KNOWN)
            & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::MakeFifo)
            & !AccessFs::IoctlDev;
        let mut rules = Ruleset::default()
            // Without this right every renaming between two directories would be refused: then rather no Landlock.
            .set_compatibility(CompatLevel::SoftRequirement)
            .handle_access(AccessFs::Refer)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::from_all(KNOWN))?
            .scope(Scope::Signal)?
            .create()?;
        let log =
            AccessFs::WriteFile | AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::MakeReg | AccessFs::RemoveFile;
        let log = log | AccessFs::Truncate;
        let paths = plan.read.iter().map(|path| (path, read)).chain(plan.write.iter().map(|path| (path, write)));
        let paths = paths.chain(plan.log.iter().map(|path| (path, log)));
        for (path, access) in paths {
            // A file takes no rights of directories; the library leaves them out.
            rules = rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
        }
        Ok(rules.restrict_self()?)
    }

    /// Calls that this server never makes, and that a flaw in it must not offer.
    const REFUSED: &[i64] = &[
        // Other programs.
        libc::SYS_execve,
        libc::SYS_execveat,
        // Other processes.
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        // Connections out.
        libc::SYS_connect,
        // Files by number instead of by name, which no restriction of paths sees.
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        // Mounts and namespaces.
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        // The kernel itself.
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_adjtimex,
        libc::SYS_clock_adjtime,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_syslog,
        libc::SYS_personality,
        // Interfaces that past attacks on the kernel went through.
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_vmsplice,
    ];

    /// What x86-64 adds to the numbers of its second calling convention (x32), under which the same calls are made.
    const X32: i64 = 0x4000_0000;
    /// `execve` and `execveat` have numbers of their own there.
    const X32_EXEC: [i64; 2] = [X32 + 520, X32 + 545];

    pub(super) fn seccomp() -> Result<String, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!("the filter of system calls is not in force ({error}): a flaw in this server could start programs")
        };
        let program = filter().map_err(|error| failed(&error))?;
        seccompiler::apply_filter(&program).map_err(|error| failed(&error))?;
        Ok("seccomp (starts no program, connects to nothing)".into())
    }

    fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
        // A local socket is made to tell the service manager; all others were made before.
        let other_than = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?;
        rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![other_than])?]);
        if arch == TargetArch::x86_64 {
            let second: Vec<i64> = rules.keys().map(|call| X32 + call).chain(X32_EXEC).collect();
            rules.extend(second.into_iter().map(|call| (call, Vec::new())));
        }
        // "Not permitted" rather than an end by signal: a request fails, the other clients' transfers go on.
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()
    }

    pub(super) fn no_new_privileges() -> Result<String, String> {
        rustix::thread::set_no_new_privs(true)
            .map(|()| "no new privileges".into())
            .map_err(|error| format!("new privileges cannot be given up: {error}"))
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::Plan;

    pub(super) fn landlock(_: &Plan) -> Result<String, String> {
        Err("this system has no Landlock: a flaw in this server could reach files outside the root".into())
    }

    pub(super) fn seccomp() -> Result<String, String> {
        Err("this system has no filter of system calls: a flaw in this server could start programs".into())
    }

    pub(super) fn no_new_privileges() -> Result<String, String> {
        Err("new privileges cannot be given up on this system".into())
    }
}

/// Tries what a confined server cannot do, and says how each went: for tests, and only in builds for them. Each is
/// tried on a thread of its own, started now, as those that serve are.
#[cfg(all(debug_assertions, target_os = "linux"))]
pub fn try_to_escape(file: &Path, address: std::net::SocketAddr) -> Vec<String> {
    let tried = |what: &str, attempt: &mut (dyn FnMut() -> std::io::Result<()> + Send)| {
        let result = std::thread::scope(|scope| scope.spawn(attempt).join());
        match result {
            Ok(Ok(())) => format!("escape: {what} succeeded"),
            Ok(Err(error)) => format!("escape: {what} failed: {:?}", error.kind()),
            Err(_) => format!("escape: {what} panicked"),
        }
    };
    vec![
        tried("read", &mut || std::fs::File::open(file).map(drop)),
        tried("write", &mut || std::fs::File::options().append(true).open(file).map(drop)),
        tried("make", &mut || std::fs::File::create_new(file.with_extension("made")).map(drop)),
        tried("connect", &mut || std::net::TcpStream::connect(address).map(drop)),
        tried("bind", &mut || std::net::TcpListener::bind("127.0.0.1:0").map(drop)),
        tried("exec", &mut || std::process::Command::new("/bin/true").status().map(drop)),
    ]
}
