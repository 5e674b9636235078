//! Principals × verbs × places, beside a model that knows nothing of how the server decides (A01 to A03, N10, N11):
//! it works on plain text and on what lies in the root, and says for every cell how it is answered, and which names
//! below the root are other afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use sealift::ErrorKind;
use sealift::access::{Access, Policy};
use sealift::protocol::*;

use super::peer::{Peer, World, get, path, put, put_small};

/// Paths below the root, and rights there.
type Rules = &'static [(&'static str, &'static str)];

/// Name, home, and the rights at home and by path below the root: l(ist) r(ead) c(reate) o(verwrite) m(ove) d(elete).
const PRINCIPALS: &[(&str, &str, Rules)] = &[
    (
        "alice",
        "alice",
        &[
            ("alice", "lrcomd"),
            ("alice/box", "c"),
            ("alice/ro", "lr"),
            ("alice/secret", ""),
            ("alice/keep", "lrcm"),
            ("alice/dir/deep/lock", "lr"),
        ],
    ),
    ("alice2", "alice2", &[("alice2", "lrcomds")]),
    ("reader", "reader", &[("reader", "lr")]),
    ("drop", "drop", &[("drop", "c"), ("drop/dir", "lrc")]),
    ("lister", "lister", &[("lister", "l"), ("lister/dir", ""), ("lister/dir/inside", "lr")]),
    ("nested", "alice/dir", &[("alice/dir", "lrc"), ("alice/dir/new", "")]),
    ("admin", "", &[("", "lrcomds"), ("bob/private", "")]),
    (
        "giver",
        "giver",
        &[("giver", "ls"), ("giver/dir", "lrcs"), ("giver/ro/new", "cs"), ("giver/keep", "lrs"), ("giver/box", "rcs")],
    ),
];

/// What lies below the root at the beginning of each cell: `/` directories, `@` links, otherwise files.
const TREE: &[&str] = &[
    "alice/",
    "alice/file",
    "alice/dir/",
    "alice/dir/inside",
    "alice/dir/deep/",
    "alice/dir/deep/lock/",
    "alice/dir/deep/lock/f",
    "alice/dir/file",
    "alice/dir/dir/",
    "alice/dir/dir/inside",
    "alice/dir/link@../../bob",
    "alice/box/",
    "alice/box/theirs",
    "alice/boxer/",
    "alice/boxer/file",
    "alice/ro/",
    "alice/ro/file",
    "alice/secret/",
    "alice/secret/file",
    "alice/secrets/",
    "alice/secrets/file",
    "alice/keep/",
    "alice/keep/file",
    "alice/link@../bob",
    "alice/flink@../bob/file",
    "alice/inlink@dir",
    "alice2/",
    "alice2/file",
    "alice2/link@../alice",
    "alice2/dir/",
    "alice2/dir/inside",
    "bob/",
    "bob/file",
    "bob/private/",
    "bob/private/file",
    "bob/privateer/",
    "bob/privateer/file",
    "reader/",
    "reader/file",
    "reader/link@../alice",
    "reader/dir/",
    "reader/dir/inside",
    "drop/",
    "drop/file",
    "drop/dir/",
    "drop/dir/inside",
    "drop/link@../bob",
    "lister/",
    "lister/file",
    "lister/dir/",
    "lister/dir/inside",
    "lister/flink@../bob/file",
    "mallory/",
    "sharer/",
    "sharer/file",
    "sharer/dir/",
    "sharer/dir/inside",
    "sharer/link@../alice",
    "giver/",
    "giver/file",
    "giver/dir/",
    "giver/dir/inside",
    "giver/link@../alice",
    "giver/keep/",
    "giver/keep/file",
    "file",
    "link@bob",
    "outside@../canaries",
];

/// What each of them calls the places.
const PLACES: &[&str] = &[
    "",
    "file",
    "dir",
    "dir/inside",
    "dir/deep",
    "dir/deep/lock",
    "dir/new/x",
    "box",
    "box/theirs",
    "box/new",
    "boxer/file",
    "ro/file",
    "ro/new",
    "ro/new/x",
    "secret",
    "secret/file",
    "secrets/file",
    "keep/file",
    "link",
    "link/file",
    "link/new",
    "flink",
    "inlink/inside",
    "new",
    "newdir/new",
    ".sealift",
    ".sealift/lock",
    "alice",
    "alice/file",
    "bob",
    "bob/private",
    "bob/private/file",
    "bob/privateer/file",
    "outside/file",
    "moved",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Stat,
    List,
    Get,
    Hash,
    Space,
    /// An open download, and the values of its groups.
    Values,
    Put(IfExists),
    PutAsked,
    MakeDirectory,
    MakeLink(IfExists),
    SetDirectory,
    Remove,
    RemoveTree,
    /// To `moved` at home.
    RenameFrom,
    /// From `file` at home.
    RenameTo(IfExists),
    /// A directory that takes its place as a whole.
    Tree,
    /// An invite to it.
    Give(InviteKind),
    /// The invites to it, and to what is below.
    Given,
}

const VERBS: &[Verb] = &[
    Verb::Stat,
    Verb::List,
    Verb::Get,
    Verb::Hash,
    Verb::Space,
    Verb::Values,
    Verb::Put(IfExists::Overwrite),
    Verb::Put(IfExists::Skip),
    Verb::Put(IfExists::Fail),
    Verb::Put(IfExists::Rename),
    Verb::PutAsked,
    Verb::MakeDirectory,
    Verb::MakeLink(IfExists::Fail),
    Verb::MakeLink(IfExists::Overwrite),
    Verb::SetDirectory,
    Verb::Remove,
    Verb::RemoveTree,
    Verb::RenameFrom,
    Verb::RenameTo(IfExists::Fail),
    Verb::RenameTo(IfExists::Overwrite),
    Verb::Tree,
    Verb::Give(InviteKind::Upload),
    Verb::Give(InviteKind::Download),
    Verb::Give(InviteKind::Drop),
    Verb::Given,
];

/// How a cell is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// With these names, if it is a listing.
    Done(BTreeSet<String>),
    /// For lack of rights.
    Denied,
    /// For another reason: nothing there, something in the way.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    File,
    Directory,
    Link,
}

fn join(above: &str, below: &str) -> String {
    [above, below].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/")
}

fn is_at_or_below(path: &str, above: &str) -> bool {
    above.is_empty() || path == above || path.starts_with(&format!("{above}/"))
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

struct Model {
    home: &'static str,
    rules: Rules,
    /// The holder of an invite builds no directories.
    is_invite: bool,
    nodes: BTreeMap<String, Node>,
}

impl Model {
    fn new(home: &'static str, rules: Rules, is_invite: bool) -> Model {
        let mut nodes = BTreeMap::from([(String::new(), Node::Directory)]);
        for entry in TREE {
            if let Some(directory) = entry.strip_suffix('/') {
                nodes.insert(directory.to_owned(), Node::Directory);
            } else if let Some((link, _)) = entry.split_once('@') {
                nodes.insert(link.to_owned(), Node::Link);
            } else {
                nodes.insert((*entry).to_owned(), Node::File);
            }
        }
        Model { home, rules, is_invite, nodes }
    }

    /// Whether all these rights hold at a place below the root.
    fn may(&self, place: &str, rights: &str) -> bool {
        let holds = self.rules.iter().filter(|(path, _)| is_at_or_below(place, path));
        let (_, given) = holds.max_by_key(|(path, _)| path.len()).unwrap();
        rights.chars().all(|right| given.contains(right))
    }

    /// The same for a place and whatever there is or could be below it that has a rule.
    fn may_all(&self, place: &str, rights: &str) -> bool {
        let known = self.nodes.keys().map(String::as_str).chain(self.rules.iter().map(|(path, _)| *path));
        known.chain([place]).filter(|path| is_at_or_below(path, place)).all(|path| self.may(path, rights))
    }

    fn gains(&self, from: &str, to: &str) -> bool {
        let known = self.nodes.keys().map(String::as_str).chain(self.rules.iter().map(|(path, _)| *path));
        let below = known.flat_map(|path| [path.strip_prefix(from), path.strip_prefix(to)]).flatten();
        let below = below.filter(|rest| rest.is_empty() || rest.starts_with('/')).chain([""]);
        let rests: BTreeSet<&str> = below.collect();
        rests.iter().any(|rest| {
            let (from, to) = (format!("{from}{rest}"), format!("{to}{rest}"));
            "lromds".chars().any(|right| self.may(&to, &right.to_string()) && !self.may(&from, &right.to_string()))
        })
    }

    /// What stands there; an error where there is no way to it.
    fn node(&self, place: &str) -> Result<Option<Node>, ()> {
        if is_at_or_below(place, ".sealift") {
            return Err(());
        }
        let mut above = parent(place);
        while !above.is_empty() {
            if matches!(self.nodes.get(above), Some(Node::File | Node::Link)) {
                return Err(());
            }
            above = parent(above);
        }
        Ok(self.nodes.get(place).copied())
    }

    fn below(&self, place: &str) -> BTreeSet<String> {
        self.nodes.keys().filter(|path| is_at_or_below(path, place)).cloned().collect()
    }

    /// Directories above a place that are not there, inside the home.
    fn missing(&self, place: &str) -> Vec<String> {
        let mut missing = Vec::new();
        let mut above = parent(place).to_owned();
        while above != self.home && !above.is_empty() && !self.nodes.contains_key(&above) {
            missing.push(above.clone());
            above = parent(&above).to_owned();
        }
        missing
    }

    fn made(&self, place: &str) -> (Answer, BTreeSet<String>) {
        let made = self.missing(place).into_iter().chain([place.to_owned()]);
        (Answer::Done(BTreeSet::new()), made.collect())
    }

    fn says(&self, verb: Verb, name: &str) -> (Answer, BTreeSet<String>) {
        let place = join(self.home, name);
        let none = |answer| (answer, BTreeSet::new());
        let done = || none(Answer::Done(BTreeSet::new()));
        let (denied, refused) = (|| none(Answer::Denied), || none(Answer::Refused));
        let is_root = name.is_empty();
        let may_make = |place: &str| self.may(place, "c") && self.missing(place).iter().all(|path| self.may(path, "c"));
        let is_blind = !self.may(&place, "l") && !self.may(&place, "o");
        let beside = || (Answer::Done(BTreeSet::new()), BTreeSet::from([format!("{place} (1)")]));
        let node = self.node(&place);
        match verb {
            Verb::Stat | Verb::List if !self.may(&place, "l") => denied(),
            Verb::Stat if matches!(node, Ok(Some(_))) => done(),
            Verb::List if node == Ok(Some(Node::Directory)) => {
                let names =
                    self.nodes.keys().filter(|path| !path.is_empty() && parent(path) == place && **path != place);
                let names = names.filter(|path| self.may(path, "l"));
                none(Answer::Done(names.map(|path| path.rsplit('/').next().unwrap().to_owned()).collect()))
            }
            Verb::Space if !self.may(&place, "l") => denied(),
            // It tells of the volume that something is on or would be; a link is on none that is told.
            Verb::Space => {
                let mut above = place.as_str();
                while !above.is_empty() && !is_at_or_below(above, ".sealift") {
                    if self.nodes.get(above) == Some(&Node::Link) {
                        return refused();
                    }
                    above = parent(above);
                }
                done()
            }
            Verb::Get | Verb::Hash | Verb::Values if !self.may(&place, "r") => denied(),
            Verb::Get | Verb::Hash | Verb::Values if node == Ok(Some(Node::File)) => done(),
            Verb::Stat | Verb::List | Verb::Get | Verb::Hash | Verb::Values => refused(),

            Verb::Put(_) | Verb::PutAsked | Verb::MakeDirectory | Verb::MakeLink(_) if !self.may(&place, "c") => {
                denied()
            }
            // Two ways in, two first reasons: a directory is never replaced, and this one may replace nothing.
            Verb::PutAsked if node == Ok(Some(Node::Directory)) && !is_blind && !self.may(&place, "o") => denied(),
            Verb::Put(_) | Verb::PutAsked | Verb::MakeLink(_) if is_root => refused(),
            // Whether there is a way is seen first only where all of it may be made.
            Verb::Put(_) | Verb::PutAsked | Verb::MakeDirectory | Verb::MakeLink(_) if node.is_err() => refused(),
            Verb::Put(_) | Verb::PutAsked | Verb::MakeDirectory | Verb::MakeLink(_) if !may_make(&place) => denied(),
            Verb::MakeDirectory => match node.unwrap() {
                None => self.made(&place),
                Some(Node::Directory) => done(),
                Some(_) => refused(),
            },
            Verb::Put(_) | Verb::PutAsked | Verb::MakeLink(_) => {
                let policy = match verb {
                    _ if is_blind => IfExists::Rename,
                    Verb::Put(policy) | Verb::MakeLink(policy) => policy,
                    _ => IfExists::Overwrite,
                };
                match (node.unwrap(), policy) {
                    (None, _) => self.made(&place),
                    (Some(_), IfExists::Rename) => beside(),
                    (Some(Node::Directory), _) | (Some(_), IfExists::Fail) => refused(),
                    (Some(_), IfExists::Skip) => done(),
                    (Some(_), IfExists::Overwrite) if !self.may(&place, "o") => denied(),
                    (Some(_), IfExists::Overwrite) => (done().0, BTreeSet::from([place])),
                }
            }

            Verb::SetDirectory if !self.may(&place, "c") => denied(),
            Verb::SetDirectory if !self.may(&place, "o") => done(),
            Verb::SetDirectory if node == Ok(Some(Node::Directory)) => (done().0, BTreeSet::from([place])),
            Verb::SetDirectory => refused(),

            Verb::Remove | Verb::RemoveTree if is_root || !self.may_all(&place, "d") => denied(),
            Verb::Remove | Verb::RemoveTree => match node {
                Ok(Some(Node::Directory)) if verb == Verb::Remove && self.below(&place).len() > 1 => refused(),
                Ok(Some(_)) => (done().0, self.below(&place)),
                Ok(None) | Err(()) => refused(),
            },

            Verb::RenameFrom => {
                let to = join(self.home, "moved");
                if !self.may_all(&place, "m") || !self.may_all(&to, "c") || self.gains(&place, &to) || is_root {
                    return denied();
                }
                match node {
                    // A link that leads out of where its mover can see does not become another's.
                    Ok(Some(Node::Link)) if name != "link" || !self.home.is_empty() => refused(),
                    Ok(Some(_)) => {
                        let from = self.below(&place);
                        let moved = from.iter().map(|path| format!("{to}{}", &path[place.len()..])).collect();
                        (done().0, from.union(&moved).cloned().collect())
                    }
                    Ok(None) | Err(()) => refused(),
                }
            }
            Verb::RenameTo(policy) => {
                let from = join(self.home, "file");
                if !self.may_all(&from, "m") || !self.may_all(&place, "c") || self.gains(&from, &place) || is_root {
                    return denied();
                }
                if is_at_or_below(&place, &from) {
                    return if place == from { done() } else { refused() };
                }
                let Ok(node) = node else { return refused() };
                if !may_make(&place) {
                    return denied();
                }
                let (answer, mut changed) = match node {
                    None => self.made(&place),
                    Some(_) if is_blind => beside(),
                    Some(Node::Directory) => return refused(),
                    Some(_) if policy == IfExists::Fail || !self.may(&place, "o") => return refused(),
                    Some(_) => (done().0, BTreeSet::from([place])),
                };
                changed.insert(from);
                (answer, changed)
            }

            // It begins as what is there.
            Verb::Tree if self.is_invite => refused(),
            Verb::Tree if is_root || !self.may(&place, "lc") => denied(),
            Verb::Tree if node.is_err() => refused(),
            Verb::Tree if !may_make(&place) => denied(),
            Verb::Tree => match node.unwrap() {
                None => self.made(&place),
                Some(Node::Directory) => done(),
                Some(_) => refused(),
            },

            Verb::Given if !self.may_all(&place, "s") => denied(),
            Verb::Given => done(),
            Verb::Give(kind) => {
                let handed = match kind {
                    InviteKind::Upload => "lc",
                    InviteKind::Download => "lr",
                    InviteKind::Drop => "c",
                };
                if !self.may_all(&place, "s") || !self.may(&place, handed) {
                    return denied();
                }
                let Ok(node) = node else { return refused() };
                match node {
                    Some(Node::Directory) => done(),
                    Some(_) => refused(),
                    None if kind == InviteKind::Download => refused(),
                    None if !may_make(&place) => denied(),
                    None => self.made(&place),
                }
            }
        }
    }
}

fn plant(root: &Path) {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    TREE.iter().for_each(|entry| plant_one(root, entry));
}

fn plant_one(root: &Path, entry: &str) {
    if let Some(directory) = entry.strip_suffix('/') {
        // Homes are there, made by the server.
        let _ = fs::create_dir(root.join(directory));
        fs::set_permissions(root.join(directory), fs::Permissions::from_mode(0o755)).unwrap();
    } else if let Some((link, target)) = entry.split_once('@') {
        symlink(target, root.join(link)).unwrap();
    } else {
        fs::write(root.join(entry), entry).unwrap();
    }
}

/// Makes everything as it was planted.
fn restore(root: &Path, changed: &BTreeSet<String>) {
    let original = |name: &str| {
        TREE.iter().find(|entry| entry.split_once('@').map_or(entry.trim_end_matches('/'), |(link, _)| link) == name)
    };
    for name in changed.iter().rev().filter(|name| !name.is_empty()) {
        let path = root.join(name);
        match fs::symlink_metadata(&path) {
            Ok(status) if status.is_dir() && original(name).is_some_and(|entry| entry.ends_with('/')) => {}
            Ok(status) if status.is_dir() => fs::remove_dir_all(&path).unwrap(),
            Ok(_) => fs::remove_file(&path).unwrap(),
            Err(_) => {}
        }
    }
    changed.iter().filter_map(|name| original(name)).for_each(|entry| plant_one(root, entry));
    if changed.contains("") {
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Every name below the root: what it is, what is in it, and for directories who may enter.
fn look(root: &Path) -> BTreeMap<String, (char, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![String::new()];
    while let Some(directory) = waiting.pop() {
        let path = root.join(&directory);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let name = join(&directory, entry.file_name().to_str().unwrap());
            let path = root.join(&name);
            let kind = entry.file_type().unwrap();
            if name == ".sealift" {
                continue;
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.insert(name, ('l', target.into_os_string().into_encoded_bytes()));
            } else if kind.is_dir() {
                waiting.push(name);
            } else {
                found.insert(name, ('f', fs::read(&path).unwrap()));
            }
        }
        found.insert(directory, ('d', mode.to_string().into_bytes()));
    }
    found
}

async fn attempt(peer: &mut Peer, verb: Verb, name: &str) -> Result<BTreeSet<String>, ErrorKind> {
    let place = path(name);
    // Each is a request of its own: the same id would be given the first one's answer.
    let id = put("any", 0).upload_id;
    let answer = match verb {
        Verb::Stat => peer.ask(&Stat { path: place, xattrs: None }).await,
        Verb::List => {
            let (mut kind, mut payload) = peer
                .ask(&ListDirectory { path: place, after: None, count_max: None, xattrs: None, directory: None })
                .await?;
            let mut names = BTreeSet::new();
            while kind == Kind::Entries {
                let entries = Entries::from_payload(&payload).unwrap().entries.0;
                names.extend(entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()));
                // The rest of the same answer.
                (kind, payload) = peer.more().await?;
            }
            assert_eq!(Done::from_payload(&payload).unwrap().count, names.len() as u64);
            return Ok(names);
        }
        Verb::Get => peer.ask(&Get { path: place, unasked_max: 100, ..get("") }).await,
        Verb::Hash => peer.ask(&Hash { path: place, read: None }).await,
        Verb::Space => peer.ask(&Space { path: place }).await,
        Verb::Put(if_exists) => {
            let put = Put { if_exists, ..put_small(name, b"newer") };
            return peer.store(put, b"newer").await.map(|_| BTreeSet::new());
        }
        Verb::PutAsked => {
            let transfer = peer.number();
            peer.send(transfer, &put(name, 5)).await;
            let (kind, _) = peer.answer(transfer).await?;
            assert_eq!(kind, Kind::PutAnswer);
            peer.data(transfer, 0, b"newer").await;
            peer.send(transfer, &super::peer::finish(b"newer")).await;
            peer.answer(transfer).await
        }
        Verb::MakeDirectory => peer.ask(&MakeDirectory { path: place }).await,
        Verb::Values => {
            let transfer = peer.number();
            peer.send(transfer, &Get { path: place, ..get("") }).await;
            peer.answer(transfer).await?;
            peer.send(transfer, &WantValues { first: 0, count: 1 }).await;
            let answer = peer.answer(transfer).await;
            peer.send(transfer, &Close {}).await;
            peer.answer(transfer).await?;
            answer
        }
        Verb::Tree => {
            peer.ask(&BeginTree { path: place.clone(), run: id, resume: None }).await?;
            peer.ask(&PublishTree { path: place }).await
        }
        Verb::Give(kind) => {
            let verifier = Ticket::new([id.0, id.0].concat().try_into().unwrap()).verifier().into();
            peer.ask(&Invite { path: place, kind, verifier, seconds: 600, uses: 1, max_size: None }).await
        }
        Verb::Given => peer.ask(&ListInvites { path: place, after: None }).await,
        Verb::MakeLink(if_exists) => {
            peer.ask(&MakeLink { path: place, target: b"target".to_vec(), mtime: None, if_exists }).await
        }
        Verb::SetDirectory => {
            peer.ask(&SetDirectory { path: place, mode: Some(0o711), mtime: None, xattrs: None }).await
        }
        Verb::Remove => peer.ask(&Remove { path: place, recursive: false }).await,
        Verb::RemoveTree => peer.ask(&Remove { path: place, recursive: true }).await,
        Verb::RenameFrom => peer.ask(&Rename { from: place, to: path("moved"), if_exists: IfExists::Fail, id }).await,
        Verb::RenameTo(if_exists) => peer.ask(&Rename { from: path("file"), to: place, if_exists, id }).await,
    };
    answer.map(|_| BTreeSet::new())
}

/// The same rules as a policy file.
fn policy() -> Policy {
    let rights = |letters: &str| {
        let names = [
            ("l", "list"),
            ("r", "read"),
            ("c", "create"),
            ("o", "overwrite"),
            ("m", "rename"),
            ("d", "delete"),
            ("s", "share"),
        ];
        let names: Vec<_> =
            names.iter().filter(|(letter, _)| letters.contains(letter)).map(|(_, name)| format!("{name:?}")).collect();
        format!("[{}]", names.join(", "))
    };
    let mut text = "revoked = [\"mallory\"]\n".to_owned();
    for (name, home, rules) in PRINCIPALS {
        text += &format!("[user.{name}]\nhome = {home:?}\noverlap = true\nrights = {}\n", rights(rules[0].1));
        text += &format!("[user.{name}.paths]\n");
        for (path, letters) in &rules[1..] {
            text += &format!("{path:?} = {}\n", rights(letters));
        }
    }
    text += "[user.sharer]\nhome = \"sharer\"\nrights = [\"create\", \"share\"]\n";
    text += "[user.sharer.paths]\n\"sharer/dir\" = [\"share\"]\n";
    text += "[user.mallory]\nhome = \"mallory\"\nrights = [\"list\"]\n";
    Policy::parse(&text).unwrap()
}

/// What was found, cell by cell.
#[derive(Default)]
struct Tally {
    cells: usize,
    wrong: Vec<String>,
    counts: BTreeMap<&'static str, usize>,
}

impl Tally {
    /// Tries every verb at every place. Each verb begins with a connection that has made nothing.
    async fn look(
        &mut self,
        (who, home, rules): (&str, &'static str, Rules),
        root: &Path,
        planted: &BTreeMap<String, (char, Vec<u8>)>,
        connect: impl AsyncFn() -> Peer,
    ) {
        let model = Model::new(home, rules, who.contains("invite"));
        for &verb in VERBS {
            // What a connection has made it may finish: each verb begins with nothing.
            let mut peer = connect().await;
            for place in PLACES {
                let what = format!("{verb:?} {place:?} by {who}");
                peer.said.clear();
                let answer = match attempt(&mut peer, verb, place).await {
                    Ok(names) => Answer::Done(names),
                    Err(ErrorKind::Rights) => Answer::Denied,
                    Err(ErrorKind::Protocol | ErrorKind::Internal | ErrorKind::Connection) => panic!("{what}"),
                    Err(_) => Answer::Refused,
                };
                let found = look(root);
                let names: BTreeSet<&String> = planted.keys().chain(found.keys()).collect();
                let changed: BTreeSet<String> =
                    names.into_iter().filter(|name| planted.get(*name) != found.get(*name)).cloned().collect();
                let expected = model.says(verb, place);
                if (&answer, &changed) != (&expected.0, &expected.1) {
                    let said = &peer.said;
                    self.wrong.push(format!("{what}: {answer:?} {changed:?}, expected {expected:?}: {said}"));
                }
                // Nobody learns where its home is.
                let shows = !home.is_empty() && peer.said.contains(&format!("{home}/")) && !place.contains(home);
                assert!(!shows, "{what}: {}", peer.said);
                restore(root, &changed);
                self.cells += 1;
                let kind = match answer {
                    Answer::Done(_) => "done",
                    Answer::Denied => "denied",
                    Answer::Refused => "refused",
                };
                *self.counts.entry(kind).or_default() += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cell_is_what_the_model_says() {
    let mut clients: Vec<&str> = PRINCIPALS.iter().map(|(name, ..)| *name).collect();
    clients.extend(["mallory", "stranger"]);
    let world = World::with_invites(Access::by_policy(policy()), &clients).await;
    let root = world.root();
    plant(&root);
    let planted = look(&root);
    let mut tally = Tally::default();
    for (name, home, rules) in PRINCIPALS {
        tally.look((name, home, rules), &root, &planted, async || world.greeted_as(name).await).await;
    }
    let Tally { cells, wrong, counts } = tally;
    println!("{cells} cells: {counts:?}");
    assert!(wrong.is_empty(), "{} cells are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cells >= 2000);
    // A model that says one thing of everything would show nothing.
    assert!(counts.values().all(|&count| count > 300), "{counts:?}");
    for nobody in ["mallory", "stranger"] {
        let mut peer = world.connect_with(world.client_named(nobody)).await.unwrap();
        peer.send(0, &super::peer::hello()).await;
        assert_eq!(peer.answer(1).await, Err(ErrorKind::Rights), "{nobody}");
    }
}

/// Who gives an invite, to which of the own places, for what; where that is below the root, and what its holder has.
const INVITES: &[(&str, &str, InviteKind, &str, Rules)] = &[
    ("admin", "alice", InviteKind::Upload, "alice", &[("alice", "lc")]),
    ("admin", "alice", InviteKind::Download, "alice", &[("alice", "lr")]),
    ("admin", "alice", InviteKind::Drop, "alice", &[("alice", "c")]),
    ("alice2", "", InviteKind::Upload, "alice2", &[("alice2", "lc")]),
    ("alice2", "dir", InviteKind::Download, "alice2/dir", &[("alice2/dir", "lr")]),
    ("sharer", "", InviteKind::Drop, "sharer", &[("sharer", "c"), ("sharer/dir", "")]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cell_of_an_invite_is_what_the_model_says() {
    let mut clients: Vec<&str> = PRINCIPALS.iter().map(|(name, ..)| *name).collect();
    clients.push("sharer");
    let world = World::with_invites(Access::by_policy(policy()), &clients).await;
    let root = world.root();
    plant(&root);
    let planted = look(&root);
    let mut tally = Tally::default();
    for (index, (giver, given, kind, home, rules)) in INVITES.iter().enumerate() {
        let ticket = Ticket::new([index as u8; 32]);
        let mut peer = world.greeted_as(giver).await;
        let verifier = ticket.verifier().into();
        let invite = Invite { path: path(given), kind: *kind, verifier, seconds: 600, uses: 1000, max_size: None };
        let (answer, _) = peer.ask(&invite).await.unwrap_or_else(|error| panic!("{giver} {given:?}: {error:?}"));
        assert_eq!(answer, Kind::Invited);
        let who = format!("the holder of an invite to {given:?} of {giver} for {kind}");
        let connect = async || {
            let peer = world.connect_with(world.client(false)).await.unwrap();
            let number = getrandom::u64().unwrap().to_be_bytes();
            let run = Some(Bytes16([number, number].concat().try_into().unwrap()));
            peer.greet_with(ClientHello { redeem: Some(ticket.clone()), run, ..super::peer::hello() }).await
        };
        tally.look((&who, home, rules), &root, &planted, connect).await;
    }
    let Tally { cells, wrong, counts } = tally;
    println!("{cells} cells: {counts:?}");
    assert!(wrong.is_empty(), "{} cells are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cells >= 2000);
    assert!(counts.values().all(|&count| count > 300), "{counts:?}");
    // Nobody gives more than it has, or what it may not share: prefix twins, others' places, what lies deeper.
    for (giver, given, kind) in [
        ("alice", "", InviteKind::Drop),
        ("admin", "", InviteKind::Drop),
        ("admin", "bob", InviteKind::Drop),
        ("reader", "", InviteKind::Download),
        ("sharer", "", InviteKind::Download),
        ("sharer", "dir", InviteKind::Drop),
    ] {
        let mut peer = world.greeted_as(giver).await;
        let verifier = Ticket::new([99; 32]).verifier().into();
        let invite = Invite { path: path(given), kind, verifier, seconds: 600, uses: 1, max_size: None };
        assert_eq!(peer.ask(&invite).await.map(drop), Err(ErrorKind::Rights), "{giver} {given:?} {kind}");
    }
}
