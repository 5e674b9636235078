//! The rules of a server in its files: certificates, revocation list and policy, read at the start and again when one
//! of them changes.
//!
//! Files are looked at by name, four times a second, so that one that was replaced by renaming is seen like one that was
//! written into. What cannot be read or makes no sense changes nothing: the rules that held go on to hold, and the
//! log says why.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::args::{AccessArgs, ServeArgs};
use crate::access::{Access, Policy};
use crate::confine;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::{POLICY_LEN_MAX, RELOAD_INTERVAL, WARN_INTERVAL};
use crate::protocol::Rights;
use crate::server::Control;
use crate::tls::{self, ServerTls};

/// Where the rules are.
#[derive(Clone)]
pub(super) struct Sources {
    root: PathBuf,
    identity: super::trust::ServerIdentityArgs,
    access: AccessArgs,
}

/// What was read.
pub(super) struct Loaded {
    pub(super) tls: ServerTls,
    pub(super) access: Access,
    options: tls::ServerOptions,
    /// The files as they were before they were read.
    stamps: Vec<Stamp>,
}

/// What tells one state of a file from another; none: it is not there.
type Stamp = Option<[i64; 7]>;

impl Sources {
    /// What the arguments of `serve` name.
    ///
    /// # Errors
    /// `Usage` without a root.
    pub(super) fn new(args: &ServeArgs) -> Result<Sources> {
        let root = args.root.clone().ok_or_else(|| usage("which directory to serve is not said: give --root DIR"))?;
        Ok(Sources { root, identity: args.identity.clone(), access: args.access.clone() })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// What a confined server must go on to reach: the root, and the directories of the files that it follows.
    pub(super) fn plan(&self, loaded: &Loaded) -> confine::Plan {
        let mut plan = confine::Plan { write: vec![self.root.clone()], ..confine::Plan::default() };
        let options = &loaded.options;
        let files = [Some(&options.certificate), Some(&options.key), options.client_ca.as_ref(), options.crl.as_ref()];
        files.into_iter().flatten().chain(&self.access.policy).for_each(|file| plan.read_beside(file));
        plan
    }

    fn options(&self) -> Result<tls::ServerOptions> {
        let mut options = self.identity.resolve(self.access.allow_anonymous, |name| std::env::var_os(name))?;
        if self.access.invites {
            if options.client_ca.is_none() {
                return Err(usage(
                    "--invites needs a client authority (--client-ca FILE, or a --certs folder with ca.pem): only who \
                     has a certificate gives invites",
                ));
            }
            // A certificate is asked for then, and who shows none says which invite it redeems.
            options.allow_anonymous = true;
        }
        Ok(options)
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// `Usage` for whatever is not as it must be; what reading can fail with.
    pub(super) fn load(&self) -> Result<Loaded> {
        let stamps = self.stamps();
        let options = self.options()?;
        let files = [Some(&options.certificate), Some(&options.key), options.client_ca.as_ref(), options.crl.as_ref()];
        for file in files.into_iter().flatten().chain(&self.access.policy) {
            refuse_beneath(&self.root, file)?;
        }
        let tls = ServerTls::load(&options)?;
        let access = match &self.access.policy {
            None => same_for_all(&self.access, options.client_ca.is_some()),
            Some(file) => {
                let policy = load_policy(file)?;
                // The handshake lets them come for invites, too.
                let policy = if self.access.allow_anonymous { policy } else { policy.without_anonymous() };
                Access::by_policy(policy).withholding(withheld(&self.access))
            }
        };
        Ok(Loaded { tls, access, options, stamps })
    }

    /// As [`Sources::load`], for a server that runs: a revocation list does not vanish.
    fn load_again(&self, before: &tls::ServerOptions) -> Result<Loaded> {
        let loaded = self.load()?;
        match &before.crl {
            Some(list) if loaded.options.crl.is_none() => {
                Err(usage(&format!("{} is gone: what it revokes stays revoked until a restart", list.display())))
            }
            _ => Ok(loaded),
        }
    }

    /// The files as they are now.
    fn stamps(&self) -> Vec<Stamp> {
        let options = self.options().ok();
        let options = options.into_iter().flat_map(|options| {
            [Some(options.certificate), Some(options.key), options.client_ca, options.crl]
                .map(Option::unwrap_or_default)
        });
        options.chain(self.access.policy.clone()).map(|file| stamp(&file)).collect()
    }

    /// Reads the rules again whenever a file of theirs has changed, or at SIGHUP, and has the server follow them.
    /// Never returns.
    pub(super) async fn follow(self, control: Control, loaded: Loaded, mut hangup: Signal) -> std::convert::Infallible {
        let mut tick = interval(RELOAD_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut options = loaded.options;
        let mut pin = loaded.tls.pin();
        // The state that was read, or that was tried in vain; and what was there at the last look.
        let mut read = loaded.stamps;
        let mut seen = self.look().await;
        // What kept the new ones from being used, if that was said.
        let mut told = None;
        let mut warned = Instant::now();
        loop {
            let is_asked = tokio::select! {
                _ = hangup.recv() => true,
                // What ends soon is warned of again.
                _ = tick.tick() => warned.elapsed() >= WARN_INTERVAL,
            };
            let now = self.look().await;
            // A file that changed since the last look may be half written: the next look tells.
            let is_settled = now == seen;
            seen.clone_from(&now);
            if !is_asked && (now == read || !is_settled) {
                continue;
            }
            if is_asked {
                (told, warned) = (None, Instant::now());
            }
            read = now;
            let (sources, before, control) = (self.clone(), options.clone(), control.clone());
            let replaced = spawn_blocking(move || {
                let Loaded { tls, access, options, .. } = sources.load_again(&before)?;
                let warnings = tls.warnings(time::OffsetDateTime::now_utc());
                let (principals, pin) = (access.grants().len(), tls.pin());
                control.replace(tls, access)?;
                Ok::<_, Error>((options, warnings, principals, pin))
            });
            match replaced.await {
                Ok(Ok((new, warnings, principals, new_pin))) => {
                    (options, told) = (new, None);
                    if std::mem::replace(&mut pin, new_pin) != new_pin {
                        info!("server key {pin}");
                    }
                    info!("certificates and rules are read again: {principals} principals");
                    for warning in warnings {
                        warn!("{warning}");
                    }
                }
                Ok(Err(error)) => {
                    // That passes, and nobody edits the files again for it: the next look tries once more.
                    if error.is_of_system() {
                        read.clear();
                    }
                    let why = error.chain();
                    if told.as_ref() != Some(&why) {
                        error!("the rules stay as they were, for the new ones cannot be used: {why}");
                        told = Some(why);
                    }
                }
                Err(error) => error!("the rules stay as they were: reading the new ones failed: {error}"),
            }
        }
    }

    async fn look(&self) -> Vec<Stamp> {
        let sources = self.clone();
        // A panic there would be here at the next look: nothing is known of the files then.
        spawn_blocking(move || sources.stamps()).await.unwrap_or_default()
    }
}

fn stamp(file: &Path) -> Stamp {
    let status = fs::metadata(file).ok()?;
    let [device, inode, size] = [status.dev(), status.ino(), status.size()].map(u64::cast_signed);
    Some([device, inode, size, status.mtime(), status.mtime_nsec(), status.ctime(), status.ctime_nsec()])
}

/// Reads a policy file.
///
/// # Errors
/// `Usage` for one that cannot be read or says something that is not understood.
pub(super) fn load_policy(file: &Path) -> Result<Policy> {
    let of_file = |error: Error| error.context(format!("the policy {}", file.display())).with_kind(ErrorKind::Usage);
    let status = fs::metadata(file).while_doing(|| "look at it".into()).map_err(of_file)?;
    if status.len() > POLICY_LEN_MAX as u64 {
        return Err(of_file(usage(&format!("it is longer than {POLICY_LEN_MAX} bytes"))));
    }
    let text = fs::read_to_string(file).while_doing(|| "read it".into()).map_err(of_file)?;
    Policy::parse(&text).map_err(of_file)
}

/// Refuses a key, certificate, list or policy that a client could reach, or replace, as a stored file.
pub(super) fn refuse_beneath(root: &Path, file: &Path) -> Result<()> {
    // A root that is not there yet holds nothing.
    let Ok(root_real) = root.canonicalize() else { return Ok(()) };
    let file_real = file.canonicalize().while_doing(|| format!("read {}", file.display()))?;
    let beneath = |path: &Path| path.starts_with(&root_real);
    let named_beneath = std::path::absolute(file).is_ok_and(|file| beneath(&file));
    if beneath(&file_real) || named_beneath {
        return Err(usage(&format!(
            "{} lies beneath the root {}: clients could reach it; keep certificates, keys and policy elsewhere",
            file.display(),
            root.display()
        )));
    }
    Ok(())
}

/// What nobody may do, whatever else is said.
fn withheld(args: &AccessArgs) -> Rights {
    let mut rights = Rights::NONE;
    if args.read_only {
        rights = Rights::ALL.without(Rights::LIST).without(Rights::READ);
    }
    // A name that can be taken away from its file can be given to another: without the right to replace or to
    // remove there is none to rename either.
    if args.no_overwrite {
        rights = rights.with(Rights::OVERWRITE).with(Rights::RENAME);
    }
    if args.no_delete {
        rights = rights.with(Rights::DELETE).with(Rights::RENAME);
    }
    rights
}

fn same_for_all(args: &AccessArgs, has_authority: bool) -> Access {
    let anonymous = args.allow_anonymous.then(|| args.anonymous_rights.unwrap_or(Access::ANONYMOUS_DEFAULT));
    let certified = if has_authority { Rights::ALL } else { Rights::NONE };
    Access::same_for_all(certified, anonymous).withholding(withheld(args))
}

fn usage(message: &str) -> Error {
    Error::new(ErrorKind::Usage, message)
}
