//! A folder of certificates: what `sealift certs` makes, keeps, renews, hands out and revokes.
//!
//! Running it again never makes anything worse: keys stay, so pins stay; a certificate is issued again from its key
//! when there is a reason; a new key needs `force`, a new authority `new_authority`. What is written is written to a
//! temporary name, synced and renamed, keys readable by their owner only. A certificate is in the record (the file
//! `issued`) before it exists. One process at a time holds the lock (`.lock`).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::certificates::{Authority, Key, LEAF_DAYS, Subject};
use super::issued::{Entry, Issued, Kind};
use super::names::{ClientName, Host};
use super::pem;
use super::pin::Pin;
use super::x509::{Facts, RevocationFacts, is_list_signed_by};
use super::{day, moment};
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// A certificate with less than this left is issued again.
const RENEWAL: Duration = Duration::days(30);
/// The stem of the server's files.
const SERVER: &str = "server";

/// What a folder should hold.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The folder; made if missing.
    pub directory: PathBuf,
    /// Hosts of the server, besides `localhost`, 127.0.0.1 and ::1.
    pub hosts: Vec<Host>,
    /// Clients, besides `client`.
    pub clients: Vec<ClientName>,
    /// How long new certificates last; asking for it has the certificates issued again.
    pub days: Option<u32>,
    /// Make new keys: for `clients` if there are any, else for the server and `client`.
    pub force: bool,
    /// Make a new authority, and issue everything again by it.
    pub new_authority: bool,
}

/// What became of one certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A new certificate; the key is new, or was there without one.
    Made,
    /// A new certificate for the same key.
    Renewed,
    /// It is as it was.
    Kept,
}

/// One certificate of a folder.
#[derive(Clone, Debug)]
pub struct Item {
    /// The stem of its files: `ca`, `server` or a client's name.
    pub stem: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The last moment at which it is valid.
    pub not_after: OffsetDateTime,
    /// The hosts that it is for.
    pub hosts: Vec<String>,
}

/// What was done to a folder.
#[derive(Clone, Debug)]
pub struct Report {
    /// The authority, the server, the clients.
    pub items: Vec<Item>,
    /// The pin of the server's key.
    pub pin: Pin,
    /// What the person should know.
    pub notes: Vec<String>,
}

/// What was revoked.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// The revocation list.
    pub list: PathBuf,
    /// How many certificates of the name it holds now.
    pub count: usize,
    /// How many of them it did not hold before.
    pub new_count: usize,
}

/// Makes the folder hold what is asked for.
///
/// # Errors
/// [`ErrorKind::Usage`] when what is there does not fit together or must not be replaced without `force`; what the
/// file system gives.
pub fn make(request: &Request, now: OffsetDateTime) -> Result<Report> {
    let mut notes = prepare_directory(&request.directory)?;
    let mut folder = Folder::open(&request.directory)?;
    let (authority, authority_outcome) = folder.ensure_authority(request.new_authority, now, &mut notes)?;
    let ca = Item {
        stem: "ca".to_owned(),
        outcome: authority_outcome,
        not_after: authority.facts().not_after,
        hosts: Vec::new(),
    };
    if authority.facts().not_after < now + Duration::days(i64::from(LEAF_DAYS)) {
        notes.push(format!(
            "the authority ends on {}, and everything that it issued with it: `--new-ca` makes another one, and every client then needs new files",
            day(authority.facts().not_after)
        ));
    }

    let mut items = vec![ca];
    for wish in wishes(request, &folder, now, &mut notes)? {
        match folder.ensure_leaf(&authority, &wish, request, now, &mut notes) {
            Ok(item) => items.push(item),
            // Nobody asked for it: it keeps nothing else from being done.
            Err(error) if wish.is_renewal => {
                notes.push(format!("{}.pem ends soon, and could not be renewed: {}", wish.stem, error.chain()));
            }
            Err(error) => return Err(error),
        }
    }
    let server = folder.certificate(SERVER)?;
    let pin = Pin::of_public_key(&Facts::parse(&server)?.public_key);
    Ok(Report { items, pin, notes })
}

/// Copies what a client machine needs, and nothing else, into `to`: `ca.pem`, `client.pem`, `client-key.pem`.
/// Returns what the person should know.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such client, [`ErrorKind::Trust`] when its certificate was revoked,
/// [`ErrorKind::Exists`] when other files of these names are there and `force` is not given; what the file system gives.
pub fn export(directory: &Path, name: &ClientName, to: &Path, force: bool, now: OffsetDateTime) -> Result<Vec<String>> {
    let folder = Folder::open(directory)?;
    let authority = folder.authority()?;
    let certificate = match folder.find(name.as_str())? {
        Found::Both { certificate, key, facts } if key.public_key() == facts.public_key => (certificate, facts),
        Found::Both { .. } => return Err(folder.not_a_pair(name.as_str())),
        Found::KeyOnly(_) | Found::CertificateOnly(..) | Found::Nothing => {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "{} does not hold {name}.pem and {name}-key.pem: `sealift certs --client {name}` makes them",
                    directory.display()
                ),
            ));
        }
    };
    let (certificate, facts) = certificate;
    if !authority.has_issued(&certificate) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{name}.pem is not by the authority in {}", folder.path("ca.pem").display()),
        ));
    }
    if folder.issued.is_revoked(&facts.serial) {
        return Err(Error::new(
            ErrorKind::Trust,
            format!("{name}.pem was revoked: `sealift certs --client {name} --force` makes another one"),
        ));
    }
    make_directory(to)?;
    if same_directory(directory, to)? {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{} is the folder itself: export to another one", to.display()),
        ));
    }
    let read = |name: &str| {
        let path = folder.path(name);
        fs::read(&path).while_doing(|| format!("read {}", path.display()))
    };
    let files = [
        ("ca.pem", read("ca.pem")?, PUBLIC),
        ("client.pem", read(&format!("{name}.pem"))?, PUBLIC),
        ("client-key.pem", read(&format!("{name}-key.pem"))?, PRIVATE),
    ];
    for (file, content, _) in &files {
        let path = to.join(file);
        match fs::read(&path) {
            Ok(there) if there == *content || force => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("{} is there and is another one: `--force` replaces it", path.display()),
                ));
            }
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        }
    }
    for (file, content, mode) in &files {
        write_file(to, file, content, *mode)?;
    }
    let mut notes = Vec::new();
    if facts.not_after < now {
        notes.push(format!("{name}.pem expired on {}", moment(facts.not_after)));
    }
    Ok(notes)
}

/// Revokes every certificate that was ever issued for `name` by the present authority, besides those that were
/// revoked before, in `crl.pem`.
///
/// # Errors
/// [`ErrorKind::NotFound`] when none was, or without the authority's key; [`ErrorKind::Usage`] when `crl.pem` is not
/// by this authority; what the file system gives.
pub fn revoke(directory: &Path, name: &ClientName, now: OffsetDateTime) -> Result<Revocation> {
    let mut folder = Folder::open(directory)?;
    let authority = folder.authority()?;
    folder.require_issuer(&authority, "crl.pem")?;
    let list = folder.path("crl.pem");

    // A certificate that is not in the record (the file was lost, or the folder is older) counts all the same.
    if let Ok(certificate) = folder.certificate(name.as_str())
        && authority.has_issued(&certificate)
    {
        let facts = Facts::parse(&certificate)?;
        if folder.issued.find(&facts.serial).is_none() {
            folder.issued.entries.push(entry(&facts, &authority, Kind::Client, name.as_str()));
        }
    }

    let mut revoked = folder.revoked_in_list(&authority)?;
    let held = revoked.clone();
    let (mut count, mut new_count) = (0, 0);
    let id = authority.id();
    for entry in folder.issued.entries.iter_mut().filter(|entry| entry.authority == id) {
        let earlier = held.iter().find(|(serial, _)| *serial == entry.serial);
        if entry.kind == Kind::Client && entry.name == name.as_str() {
            count += 1;
            new_count += usize::from(entry.revoked.is_none() && earlier.is_none());
            entry.revoked = entry.revoked.or(earlier.map(|(_, time)| *time)).or(Some(now));
        }
        if let (Some(time), None) = (entry.revoked, earlier) {
            revoked.push((entry.serial.clone(), time));
        }
    }
    if count == 0 {
        let known = folder.issued.clients().join(", ");
        let known = if known.is_empty() { "nobody yet".to_owned() } else { known };
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("no certificate was ever issued for `{name}` in {} (but for: {known})", directory.display()),
        ));
    }
    folder.write_issued()?;
    write_file(directory, "crl.pem", authority.revoke(&revoked, now)?.as_bytes(), PUBLIC)?;
    Ok(Revocation { list, count, new_count })
}

/// One leaf that should be there.
struct Wish {
    stem: String,
    kind: Kind,
    /// Asked for by name, so that what stands against it is an error and not a note.
    is_explicit: bool,
    /// Of a client that nobody named, whose certificate is near its end.
    is_renewal: bool,
    new_key: bool,
    /// Days that its certificate is renewed for, unless others are asked for.
    days: u32,
}

fn wishes(request: &Request, folder: &Folder, now: OffsetDateTime, notes: &mut Vec<String>) -> Result<Vec<Wish>> {
    let force_all = request.force && request.clients.is_empty();
    let (mut names, mut renewals) = (vec![ClientName::default()], Vec::new());
    for name in &request.clients {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    if request.new_authority {
        // What the earlier authority issued is of no use any more, so all of it is issued again.
        for known in folder.issued.clients() {
            let name: ClientName = known.parse()?;
            if !names.contains(&name) && exists(&folder.path(&format!("{name}.pem")))? {
                names.push(name);
            }
        }
    } else {
        for known in folder.issued.clients() {
            if names.iter().all(|name| name.as_str() != known)
                && let Ok(certificate) = folder.certificate(known)
                && let Ok(facts) = Facts::parse(&certificate)
                && !folder.issued.is_revoked(&facts.serial)
                && facts.not_after < now + RENEWAL
            {
                // Short ones, and those that have ended, may be meant to end.
                let days = (facts.not_after - facts.not_before).whole_days();
                let days = u32::try_from(days).ok().filter(|&days| Duration::days(i64::from(days)) > RENEWAL);
                match days.filter(|_| now < facts.not_after) {
                    Some(days) => renewals.push((known.to_owned(), days)),
                    None => notes.push(format!(
                        "{known}.pem ends on {}: `sealift certs --client {known}` renews it",
                        day(facts.not_after)
                    )),
                }
            }
        }
    }
    let server = Wish {
        stem: SERVER.to_owned(),
        kind: Kind::Server,
        is_explicit: !request.hosts.is_empty(),
        is_renewal: false,
        new_key: force_all,
        days: LEAF_DAYS,
    };
    let clients = names.into_iter().map(|name| {
        let is_explicit = request.clients.contains(&name);
        Wish {
            stem: name.to_string(),
            kind: Kind::Client,
            is_explicit,
            is_renewal: false,
            new_key: force_all && name == ClientName::default() || request.force && is_explicit,
            days: LEAF_DAYS,
        }
    });
    let renewals = renewals.into_iter().map(|(stem, days)| Wish {
        stem,
        kind: Kind::Client,
        is_explicit: false,
        is_renewal: true,
        new_key: false,
        days,
    });
    Ok(std::iter::once(server).chain(clients).chain(renewals).collect())
}

/// What there is of a pair of files.
enum Found {
    Nothing,
    KeyOnly(Key),
    CertificateOnly(Facts),
    Both { certificate: CertificateDer<'static>, facts: Facts, key: Key },
}

/// A folder that this process has the lock of.
struct Folder {
    directory: PathBuf,
    issued: Issued,
    /// Held until the end; the system releases it with the file.
    _lock: File,
}

impl Folder {
    fn open(directory: &Path) -> Result<Folder> {
        if !directory.is_dir() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no folder {} (`sealift certs` makes one)", directory.display()),
            ));
        }
        let path = directory.join(".lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE)
            .open(&path)
            .while_doing(|| format!("open {}", path.display()))?;
        lock.lock().while_doing(|| format!("lock {}", path.display()))?;
        // A umask may have taken away what the next run needs to open it.
        lock.set_permissions(Permissions::from_mode(PRIVATE)).while_doing(|| format!("open {}", path.display()))?;
        let path = directory.join("issued");
        let issued = match fs::read_to_string(&path) {
            Ok(text) => Issued::parse(&text).map_err(|error| error.context(path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Issued::default(),
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        Ok(Folder { directory: directory.to_owned(), issued, _lock: lock })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn ensure_authority(
        &mut self,
        new_authority: bool,
        now: OffsetDateTime,
        notes: &mut Vec<String>,
    ) -> Result<(Authority, Outcome)> {
        let has_certificate = exists(&self.path("ca.pem"))?;
        let has_key = exists(&self.path("ca-key.pem"))?;
        if has_certificate && !new_authority {
            return Ok((self.authority()?, Outcome::Kept));
        }
        // A key alone is what an interrupted first run leaves: its certificate follows.
        let key = if has_key && !new_authority {
            Key::from_loaded(&pem::load_private_key(&self.path("ca-key.pem"))?)?
        } else {
            let key = Key::generate()?;
            write_file(&self.directory, "ca-key.pem", key.to_pem().as_bytes(), PRIVATE)?;
            key
        };
        let made = Authority::make(&key, now)?;
        write_file(&self.directory, "ca.pem", made.pem.as_bytes(), PUBLIC)?;
        if exists(&self.path("crl.pem"))? {
            // It says nothing about what the new authority issues, and a server that found it would let nobody in.
            let path = self.path("crl.pem");
            fs::remove_file(&path).while_doing(|| format!("remove {}", path.display()))?;
            notes.push(
                "crl.pem of the earlier authority is gone; servers trust nothing of that one any more".to_owned(),
            );
        }
        Ok((self.authority()?, Outcome::Made))
    }

    /// The authority that is there, with its key if that is there too.
    fn authority(&self) -> Result<Authority> {
        let path = self.path("ca.pem");
        let key = self.path("ca-key.pem");
        let certificate = first(&path, pem::load_certificates(&path)?)?;
        let key = if exists(&key)? { Some(Key::from_loaded(&pem::load_private_key(&key)?)?) } else { None };
        Authority::from_loaded(certificate, key)
            .map_err(|error| error.context(format_args!("{} and ca-key.pem", path.display())))
    }

    fn require_issuer(&self, authority: &Authority, what: &str) -> Result<()> {
        if authority.can_issue() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "{} is needed to make {what} and is not there: put it back, or begin anew with `--new-ca`",
                self.path("ca-key.pem").display()
            ),
        ))
    }

    fn certificate(&self, stem: &str) -> Result<CertificateDer<'static>> {
        let path = self.path(&format!("{stem}.pem"));
        first(&path, pem::load_certificates(&path)?)
    }

    fn find(&self, stem: &str) -> Result<Found> {
        let path = self.path(&format!("{stem}-key.pem"));
        let key = if exists(&path)? {
            let key = Key::from_loaded(&pem::load_private_key(&path)?);
            Some(key.map_err(|error| error.context(path.display()))?)
        } else {
            None
        };
        let certificate =
            if exists(&self.path(&format!("{stem}.pem")))? { Some(self.certificate(stem)?) } else { None };
        Ok(match (certificate, key) {
            (Some(certificate), Some(key)) => {
                let facts = Facts::parse(&certificate)?;
                Found::Both { certificate, facts, key }
            }
            (Some(certificate), None) => Found::CertificateOnly(Facts::parse(&certificate)?),
            (None, Some(key)) => Found::KeyOnly(key),
            (None, None) => Found::Nothing,
        })
    }

    fn ensure_leaf(
        &mut self,
        authority: &Authority,
        wish: &Wish,
        request: &Request,
        now: OffsetDateTime,
        notes: &mut Vec<String>,
    ) -> Result<Item> {
        let stem = wish.stem.as_str();
        let made_for = request.days.unwrap_or(LEAF_DAYS);
        let mut hosts = match wish.kind {
            Kind::Server => ["localhost", "127.0.0.1", "::1"].iter().map(|host| host.parse()).collect::<Result<_>>()?,
            Kind::Client => Vec::new(),
        };
        if wish.new_key {
            // The earlier certificate need not even be readable to be replaced.
            let earlier = self.certificate(stem).and_then(|certificate| Facts::parse(&certificate)).ok();
            if let Some(facts) = &earlier {
                if wish.kind == Kind::Server {
                    hosts = earlier_hosts(facts, &hosts);
                } else if !self.issued.is_revoked(&facts.serial) && now < facts.not_after && !request.new_authority {
                    notes.push(format!(
                        "the earlier certificate of {stem} stays valid until {}; had its key been lost, `--revoke {stem}` and then `--client {stem} --force` would be the order",
                        day(facts.not_after)
                    ));
                }
            }
            merge_hosts(&mut hosts, wish, request);
            let key = self.new_key(authority, stem)?;
            return self.issue(authority, wish, &hosts, &key, made_for, now, Outcome::Made);
        }
        match self.find(stem)? {
            Found::Nothing => {
                merge_hosts(&mut hosts, wish, request);
                let key = self.new_key(authority, stem)?;
                self.issue(authority, wish, &hosts, &key, made_for, now, Outcome::Made)
            }
            Found::KeyOnly(key) => {
                merge_hosts(&mut hosts, wish, request);
                self.issue(authority, wish, &hosts, &key, made_for, now, Outcome::Made)
            }
            Found::CertificateOnly(facts) => {
                let missing = format!("{} is not there", self.path(&format!("{stem}-key.pem")).display());
                if wish.is_explicit {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!("{missing}: put it back, or make a new key and certificate with `--force`"),
                    ));
                }
                notes.push(format!("{missing}: {stem}.pem is left as it is"));
                Ok(item(stem, Outcome::Kept, &facts))
            }
            Found::Both { certificate, facts, key } => {
                if key.public_key() != facts.public_key {
                    return Err(self.not_a_pair(stem));
                }
                let is_current = authority.has_issued(&certificate);
                if !is_current && self.issued.find(&facts.serial).is_none() {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        format!(
                            "{} was not issued here: move it and its key away, or replace both with `--force`",
                            self.path(&format!("{stem}.pem")).display()
                        ),
                    ));
                }
                if self.issued.is_revoked(&facts.serial) {
                    let what = format!(
                        "{stem}.pem was revoked: `sealift certs --client {stem} --force` makes a new key and certificate"
                    );
                    if wish.is_explicit {
                        return Err(Error::new(ErrorKind::Trust, what));
                    }
                    notes.push(what);
                    return Ok(item(stem, Outcome::Kept, &facts));
                }
                if wish.kind == Kind::Server {
                    hosts = earlier_hosts(&facts, &hosts);
                }
                let has_new_hosts = merge_hosts(&mut hosts, wish, request);
                let is_meant = wish.is_explicit || request.clients.is_empty() && !wish.is_renewal;
                let asked = request.days.filter(|_| is_meant);
                let days = asked.unwrap_or(wish.days);
                let is_asked_for = asked.is_some();
                let is_near_end =
                    facts.not_after < now + RENEWAL && authority.end_of(days, now) > facts.not_after + Duration::DAY;
                if is_current && !has_new_hosts && !is_asked_for && !is_near_end {
                    return Ok(item(stem, Outcome::Kept, &facts));
                }
                self.issue(authority, wish, &hosts, &key, days, now, Outcome::Renewed)
            }
        }
    }

    /// A new key, written. The authority's key is asked for first, so that a key without a certificate is not left.
    fn new_key(&self, authority: &Authority, stem: &str) -> Result<Key> {
        self.require_issuer(authority, &format!("{stem}.pem"))?;
        let key = Key::generate()?;
        write_file(&self.directory, &format!("{stem}-key.pem"), key.to_pem().as_bytes(), PRIVATE)?;
        Ok(key)
    }

    #[expect(clippy::too_many_arguments, reason = "the one place where all that makes a certificate comes together")]
    fn issue(
        &mut self,
        authority: &Authority,
        wish: &Wish,
        hosts: &[Host],
        key: &Key,
        days: u32,
        now: OffsetDateTime,
        outcome: Outcome,
    ) -> Result<Item> {
        let file = format!("{}.pem", wish.stem);
        self.require_issuer(authority, &file)?;
        if authority.facts().not_after <= now {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "the authority expired on {}: `--new-ca` makes another one, and every client then needs new files",
                    moment(authority.facts().not_after)
                ),
            ));
        }
        let client;
        let subject = match wish.kind {
            Kind::Server => Subject::Server(hosts),
            Kind::Client => {
                client = wish.stem.parse::<ClientName>()?;
                Subject::Client(&client)
            }
        };
        let made = authority.issue(subject, key, days, now)?;
        self.issued.entries.push(entry(&made.facts, authority, wish.kind, &wish.stem));
        self.write_issued()?;
        write_file(&self.directory, &file, made.pem.as_bytes(), PUBLIC)?;
        Ok(item(&wish.stem, outcome, &made.facts))
    }

    fn write_issued(&self) -> Result<()> {
        write_file(&self.directory, "issued", self.issued.to_text().as_bytes(), PRIVATE)
    }

    /// What the revocation list that is there holds. One that cannot be understood is an error: to write it anew
    /// without its entries would let someone in again.
    fn revoked_in_list(&self, authority: &Authority) -> Result<Vec<(Vec<u8>, OffsetDateTime)>> {
        let path = self.path("crl.pem");
        if !exists(&path)? {
            return Ok(Vec::new());
        }
        let mut revoked = Vec::new();
        for list in pem::load_revocation_lists(&path)? {
            if !is_list_signed_by(&list, authority.facts()) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("{} is not by the authority in ca.pem: move it away", path.display()),
                ));
            }
            revoked.extend(RevocationFacts::parse(&list).map_err(|error| error.context(path.display()))?.revoked);
        }
        Ok(revoked)
    }

    fn not_a_pair(&self, stem: &str) -> Error {
        Error::new(
            ErrorKind::Usage,
            format!(
                "{} is not the key of {stem}.pem: put the right one back, or replace both with `--force`",
                self.path(&format!("{stem}-key.pem")).display()
            ),
        )
    }
}

fn item(stem: &str, outcome: Outcome, facts: &Facts) -> Item {
    Item { stem: stem.to_owned(), outcome, not_after: facts.not_after, hosts: facts.hosts.clone() }
}

fn entry(facts: &Facts, authority: &Authority, kind: Kind, name: &str) -> Entry {
    Entry {
        serial: facts.serial.clone(),
        authority: authority.id(),
        kind,
        name: name.to_owned(),
        until: facts.not_after,
        revoked: None,
    }
}

/// The hosts of an earlier certificate, then those of `always` that it lacks.
fn earlier_hosts(facts: &Facts, always: &[Host]) -> Vec<Host> {
    // A host that could not be asked for today was not made here; it is left out rather than made unreadable.
    let mut hosts: Vec<Host> = facts.hosts.iter().filter_map(|host| host.parse().ok()).collect();
    for host in always {
        if !hosts.contains(host) {
            hosts.push(host.clone());
        }
    }
    hosts
}

/// Adds the hosts that are asked for; says whether any is new.
fn merge_hosts(hosts: &mut Vec<Host>, wish: &Wish, request: &Request) -> bool {
    let mut has_new = false;
    if wish.kind == Kind::Server {
        for host in &request.hosts {
            if !hosts.contains(host) {
                hosts.push(host.clone());
                has_new = true;
            }
        }
    }
    has_new
}

fn first(path: &Path, certificates: Vec<CertificateDer<'static>>) -> Result<CertificateDer<'static>> {
    certificates
        .into_iter()
        .next()
        .ok_or_else(|| Error::new(ErrorKind::Usage, format!("{}: there is no certificate in it", path.display())))
}

/// Makes the folder if it is missing, for its owner only; an existing one is made so if everything in it is ours.
fn prepare_directory(directory: &Path) -> Result<Vec<String>> {
    if make_directory(directory)? {
        return Ok(Vec::new());
    }
    let doing = || format!("look into {}", directory.display());
    let mode = fs::metadata(directory).while_doing(doing)?.mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(Vec::new());
    }
    let mut is_ours = true;
    for found in fs::read_dir(directory).while_doing(doing)? {
        let name = found.while_doing(doing)?.file_name();
        let name = name.to_string_lossy();
        is_ours &= name.starts_with('.') || name.starts_with("README") || name.ends_with(".pem") || name == "issued";
    }
    if is_ours && fs::set_permissions(directory, Permissions::from_mode(0o700)).is_ok() {
        return Ok(Vec::new());
    }
    Ok(vec![format!(
        "{} (mode {mode:03o}) is open to others and holds other things too, so it is left so; the keys in it are not",
        directory.display()
    )])
}

/// Makes a directory for its owner only, and those above it as usual; says whether it was made.
fn make_directory(directory: &Path) -> Result<bool> {
    let doing = || format!("make the directory {}", directory.display());
    match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => return Ok(false),
        Ok(_) => {
            return Err(Error::new(ErrorKind::NotDirectory, format!("{} is not a directory", directory.display())));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(doing(), error)),
    }
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).while_doing(doing)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        // Another process was quicker; what it made is as good.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(Error::io(doing(), error)),
    }
    // A umask can take bits away that the owner needs.
    fs::set_permissions(directory, Permissions::from_mode(0o700)).while_doing(doing)?;
    Ok(true)
}

fn same_directory(left: &Path, right: &Path) -> Result<bool> {
    let of = |path: &Path| fs::metadata(path).while_doing(|| format!("look at {}", path.display()));
    let (left, right) = (of(left)?, of(right)?);
    Ok((left.dev(), left.ino()) == (right.dev(), right.ino()))
}

/// Whether something is there; a link to nowhere is something.
fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("look at {}", path.display()), error)),
    }
}

/// Writes a whole file or nothing: a temporary one, synced, renamed, the directory synced.
fn write_file(directory: &Path, name: &str, content: &[u8], mode: u32) -> Result<()> {
    let path = directory.join(name);
    let temporary = directory.join(format!(".{name}.new"));
    let doing = || format!("write {}", path.display());
    match fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(doing(), error)),
    }
    let write = || -> io::Result<()> {
        // `create_new` follows no link and takes over no file that somebody may have open.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(&temporary)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| {
        // What is left over is removed by the next run at the latest.
        let _ = fs::remove_file(&temporary);
        Error::io(doing(), error)
    })
}

/// The mode of keys and of the record.
const PRIVATE: u32 = 0o600;
/// The mode of certificates and revocation lists.
const PUBLIC: u32 = 0o644;
