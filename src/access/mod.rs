//! Who may do what. One function, [`Access::decide`], stands below every verb of every door.
//!
//! A [`Principal`] is whom the TLS handshake proved, or nobody in particular (anonymous). What it may do is its
//! [`Grant`]: a home, which is its `/`, and [`Rights`] by path. Rules are kept by the names that things have below
//! the served root, compared by whole components, and the longest one that holds decides. An [`Action`] that moves or
//! removes a tree needs the right everywhere below, so that no rule is escaped by moving what is above it.
//!
//! Nothing here looks at a disk: what is there already is told by the caller, so that the decision can be tested by
//! itself. Whoever is not named, or not understood, has no rights.

pub mod invite;
pub mod policy;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

pub use self::invite::Invite;
pub use self::policy::Policy;
use crate::error::{Error, ErrorKind, Result};
use crate::path::{Component, NamePolicy, RemotePath};
use crate::protocol::{IfExists, Rights};

/// Whom a connection acts for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// The holder of a certificate of the client authority: its single common name, if it has one, and the SHA-256
    /// of its public key.
    Certified {
        /// The certificate's single plain common name.
        name: Option<String>,
        /// SHA-256 of the SubjectPublicKeyInfo.
        key: [u8; 32],
    },
    /// The holder of an invite, who has no certificate.
    Invite(Arc<Invite>),
    /// A client without a certificate.
    Anonymous,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Certified { name: Some(name), .. } => f.write_str(name),
            Principal::Certified { name: None, key } => {
                write!(f, "key {:02x}{:02x}{:02x}{:02x}…", key[0], key[1], key[2], key[3])
            }
            Principal::Invite(invite) => write!(f, "invite {}", invite.id),
            Principal::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// What a client asks to do, with the names that it calls things by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// See one entry or the entries of a directory.
    List(&'a RemotePath),
    /// Read content, or its hash.
    Read(&'a RemotePath),
    /// Store a file or link under a name, or make a directory.
    Create(&'a RemotePath),
    /// Replace what a name stands for, or change a directory's mode and time.
    Overwrite(&'a RemotePath),
    /// Remove something and all below it.
    Remove(&'a RemotePath),
    /// Give something, and all below it, another name.
    Rename {
        /// The name that it has.
        from: &'a RemotePath,
        /// The name that it shall have.
        to: &'a RemotePath,
    },
    /// Hand the right to something, and to all below it, on to somebody else.
    Share(&'a RemotePath),
}

impl fmt::Display for Action<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::List(path) => write!(f, "see {path}"),
            Action::Read(path) => write!(f, "read {path}"),
            Action::Create(path) => write!(f, "create {path}"),
            Action::Overwrite(path) => write!(f, "replace {path}"),
            Action::Remove(path) => write!(f, "remove {path}"),
            Action::Rename { from, to } => write!(f, "rename {from} to {to}"),
            Action::Share(path) => write!(f, "share {path}"),
        }
    }
}

/// Bounds of one principal; none: only those of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files below its home.
    pub bytes: Option<u64>,
    /// Files, links and directories below its home.
    pub files: Option<u64>,
    /// Bytes of one file.
    pub file_size: Option<u64>,
    /// Uploads that are open at once, over all its connections.
    pub uploads: Option<u32>,
    /// Connections at once.
    pub connections: Option<u32>,
    /// Bytes per second that come from all its connections together.
    pub rate_up: Option<u64>,
    /// Bytes per second that go to all its connections together.
    pub rate_down: Option<u64>,
}

impl Limits {
    /// Those that there are, by the keys of the policy file.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("bytes", self.bytes),
            ("files", self.files),
            ("file-size", self.file_size),
            ("uploads", self.uploads.map(u64::from)),
            ("connections", self.connections.map(u64::from)),
            ("rate-up", self.rate_up),
            ("rate-down", self.rate_down),
        ];
        all.into_iter().filter_map(|(name, limit)| Some((name, limit?))).collect()
    }
}

/// What one principal has: where it is at home, and what it may do there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What the rules call it.
    pub name: String,
    /// Under which its connections and what it has left are counted: that of nobody else, also where another kind of
    /// principal has the same name.
    pub key: String,
    /// Under which its open uploads and its rates are counted: its own key, or that of who gave it what it has.
    pub meter: String,
    /// The directory below the served root that is its `/`.
    pub home: RemotePath,
    /// Its bounds.
    pub limits: Limits,
    /// The home whose quota what it stores counts against: its own, but for the holder of an invite.
    pub account: RemotePath,
    /// Rights by the names that things have below the served root; each holds for all below, up to a longer one.
    rules: BTreeMap<Vec<Component>, Rights>,
}

impl Grant {
    /// The same rights everywhere below `home`.
    #[must_use]
    pub fn new(name: impl Into<String>, home: RemotePath, rights: Rights) -> Grant {
        let rules = BTreeMap::from([(home.components().to_vec(), rights)]);
        let (name, account) = (name.into(), home.clone());
        Grant { key: name.clone(), meter: name.clone(), name, home, limits: Limits::default(), account, rules }
    }

    /// Gives these rights, and no others, at `path` (as it is called below the served root) and below. Tells whether
    /// there was no rule for this very path yet.
    pub fn rule(&mut self, path: &RemotePath, rights: Rights) -> bool {
        self.rules.insert(path.components().to_vec(), rights).is_none()
    }

    /// Every rule, the home's first: where, below the served root, and what.
    pub fn rules(&self) -> impl Iterator<Item = (String, Rights)> {
        let shown = |path: &[Component]| {
            let parts: Vec<String> = path.iter().map(Component::to_string).collect();
            if parts.is_empty() { "/".to_owned() } else { parts.join("/") }
        };
        self.rules.iter().map(move |(path, rights)| (shown(path), *rights))
    }

    /// The rights at a place below the served root, by the longest rule that holds there.
    fn at(&self, place: &[Component]) -> Rights {
        if !place.starts_with(self.home.components()) {
            return Rights::NONE;
        }
        let rule = (0..=place.len()).rev().find_map(|len| self.rules.get(&place[..len]));
        rule.copied().unwrap_or(Rights::NONE)
    }

    /// The places strictly below this one for which there is a rule, seen from it.
    fn rules_below<'a>(&'a self, place: &'a [Component]) -> impl Iterator<Item = &'a [Component]> {
        self.rules
            .range::<[Component], _>((Bound::Excluded(place), Bound::Unbounded))
            .take_while(move |(path, _)| path.starts_with(place))
            .map(move |(path, _)| &path[place.len()..])
    }

    /// Where a name of the principal's is, below the served root.
    #[must_use]
    pub fn place<'a>(&self, path: &'a RemotePath) -> Cow<'a, [Component]> {
        match self.home.components() {
            [] => Cow::Borrowed(path.components()),
            home => [home, path.components()].concat().into(),
        }
    }
}

/// The rules of one server.
#[derive(Clone, Debug)]
pub struct Access {
    rules: Rules,
    /// Rights that nobody has here whatever else is said.
    withheld: Rights,
    /// Which names it accepts.
    names: NamePolicy,
}

#[derive(Clone, Debug)]
enum Rules {
    /// All certificates the same; none for anonymous: it may not come in.
    Same { certified: Arc<Grant>, anonymous: Option<Arc<Grant>> },
    /// Each by its name or key.
    Policy(Arc<Policy>),
}

impl Access {
    /// What a client without a certificate may do unless the operator says more: put things down, and see nothing.
    pub const ANONYMOUS_DEFAULT: Rights = Rights::CREATE;

    /// The same rights for every certificate, and some or no entrance (none) for a client without one.
    #[must_use]
    pub fn same_for_all(certified: Rights, anonymous: Option<Rights>) -> Access {
        let grant = |name: &str, rights| Arc::new(Grant::new(name, RemotePath::root(), rights));
        let rules = Rules::Same {
            certified: grant("certified", certified),
            anonymous: anonymous.map(|rights| grant("anonymous", rights)),
        };
        Access { rules, withheld: Rights::NONE, names: NamePolicy::default() }
    }

    /// What a policy says.
    #[must_use]
    pub fn by_policy(policy: Policy) -> Access {
        Access { rules: Rules::Policy(Arc::new(policy)), withheld: Rights::NONE, names: NamePolicy::default() }
    }

    /// The same rules, but nobody has these rights.
    #[must_use]
    pub fn withholding(mut self, rights: Rights) -> Access {
        self.withheld = self.withheld.with(rights);
        self
    }

    /// What this principal has.
    ///
    /// # Errors
    /// `Rights` for one that may not come in.
    pub fn admit(&self, principal: &Principal) -> Result<Arc<Grant>> {
        match (&self.rules, principal) {
            (_, Principal::Invite(invite)) => self.admit_invite(invite),
            (Rules::Same { certified, .. }, Principal::Certified { .. }) => Ok(Arc::clone(certified)),
            (Rules::Same { anonymous, .. }, Principal::Anonymous) => anonymous
                .clone()
                .ok_or_else(|| Error::new(ErrorKind::Rights, "this server takes no client without a certificate")),
            (Rules::Policy(policy), principal) => policy.admit(principal).map(Arc::clone),
        }
    }

    /// Whether two certificates are those of one and the same: with a policy, of one entry in it, by which both are let
    /// in; without, with one name or one key.
    #[must_use]
    pub fn is_same(&self, one: &Principal, other: &Principal) -> bool {
        let (Principal::Certified { name, key }, Principal::Certified { name: others, key: others_key }) = (one, other)
        else {
            return false;
        };
        match &self.rules {
            Rules::Same { .. } => key == others_key || name.is_some() && name == others,
            Rules::Policy(policy) => matches!(
                (policy.admit(one), policy.admit(other)),
                (Ok(one), Ok(other)) if one.key == other.key
            ),
        }
    }

    /// Everybody who may come in, each once.
    #[must_use]
    pub fn grants(&self) -> Vec<Arc<Grant>> {
        match &self.rules {
            Rules::Same { certified, anonymous } => {
                [Some(certified), anonymous.as_ref()].into_iter().flatten().cloned().collect()
            }
            Rules::Policy(policy) => policy.grants(),
        }
    }

    /// What the rules call whom this grant is of; none where they have no names.
    #[must_use]
    pub fn label(&self, grant: &Grant) -> Option<String> {
        matches!(self.rules, Rules::Policy(_)).then(|| grant.name.clone())
    }

    /// The rights that this principal has at a place.
    ///
    /// # Errors
    /// `Rights` for one that may not come in.
    pub fn rights(&self, principal: &Principal, path: &RemotePath) -> Result<Rights> {
        let grant = self.admit(principal)?;
        Ok(self.at(&grant, &grant.place(path)))
    }

    /// The rights that a grant comes to at its home.
    #[must_use]
    pub fn rights_of(&self, grant: &Grant) -> Rights {
        self.at(grant, grant.home.components())
    }

    fn at(&self, grant: &Grant, place: &[Component]) -> Rights {
        grant.at(place).without(self.withheld)
    }

    /// Decides whether `principal` may do this. Every request of every door passes here.
    ///
    /// # Errors
    /// `Rights` when it may not; `Name` for a new name that this server does not accept.
    pub fn decide(&self, principal: &Principal, action: Action<'_>) -> Result<()> {
        let grant = self.admit(principal)?;
        let denied =
            |why: &str| Error::new(ErrorKind::Rights, format!("{principal} may not {action} on this server{why}"));
        let here = |path: &RemotePath, needed: Rights| self.at(&grant, &grant.place(path)).contains(needed);
        let below = |path: &RemotePath, needed: Rights| {
            let place = grant.place(path);
            let mut places = grant.rules_below(&place);
            places.all(|rest| self.at(&grant, &[&*place, rest].concat()).contains(needed))
        };
        let everywhere = |path: &RemotePath, needed: Rights| match () {
            () if !here(path, needed) => Err(denied("")),
            () if !below(path, needed) => Err(denied(": it may not do that to all that is below")),
            () => Ok(()),
        };
        let allowed = match action {
            Action::List(path) => here(path, Rights::LIST),
            Action::Read(path) => here(path, Rights::READ),
            Action::Create(path) => here(path, Rights::CREATE),
            Action::Overwrite(path) => here(path, Rights::CREATE.with(Rights::OVERWRITE)),
            Action::Share(path) => return everywhere(path, Rights::SHARE),
            Action::Remove(path) => return everywhere(path, Rights::DELETE),
            Action::Rename { from, to } => {
                everywhere(from, Rights::RENAME)?;
                everywhere(to, Rights::CREATE)?;
                if !self.gains_nothing(&grant, &grant.place(from), &grant.place(to)) {
                    return Err(denied(": it may do more there than it may here"));
                }
                true
            }
        };
        if !allowed {
            return Err(denied(""));
        }
        match action {
            Action::Create(path) | Action::Overwrite(path) | Action::Rename { to: path, .. } => self.check_name(path),
            Action::List(_) | Action::Read(_) | Action::Remove(_) | Action::Share(_) => Ok(()),
        }
    }

    /// Whether nothing that moves from one place to the other comes under rights that it was not under before.
    /// Creating does not count: it says nothing about what is there.
    fn gains_nothing(&self, grant: &Grant, from: &[Component], to: &[Component]) -> bool {
        let borders = [&[][..]].into_iter().chain(grant.rules_below(from)).chain(grant.rules_below(to));
        borders.into_iter().all(|rest| {
            let before = self.at(grant, &[from, rest].concat());
            let after = self.at(grant, &[to, rest].concat()).without(Rights::CREATE);
            before.contains(after)
        })
    }

    fn check_name(&self, path: &RemotePath) -> Result<()> {
        self.names.check(path).map_err(|error| {
            Error::new(ErrorKind::Name, format!("{path} cannot be stored under that name here")).with_source(error)
        })
    }

    /// The deepest directory above `path` that this principal may not make, and which must therefore be there before
    /// something is created under it. None: all may be made, or exist by themselves.
    #[must_use]
    pub fn needed_parent(&self, principal: &Principal, path: &RemotePath) -> Option<RemotePath> {
        let grant = self.admit(principal).ok()?;
        let mut above = path.clone();
        while let Some((parent, _)) = above.split().filter(|(parent, _)| !parent.is_root()) {
            if !self.at(&grant, &grant.place(&parent)).contains(Rights::CREATE) {
                return Some(parent);
            }
            above = parent;
        }
        None
    }

    /// Whether all that lies here and below may be seen.
    #[must_use]
    pub fn sees_all(&self, principal: &Principal, path: &RemotePath) -> bool {
        self.admit(principal).is_ok_and(|grant| {
            let place = grant.place(path);
            let below = grant.rules_below(&place).map(|rest| self.at(&grant, &[&*place, rest].concat()));
            below.chain([self.at(&grant, &place)]).all(|rights| rights.contains(Rights::LIST))
        })
    }

    /// Whether there are names in this directory that may not be seen though the directory may. Whether there is
    /// anything of these names makes no difference.
    #[must_use]
    pub fn hides_some(&self, principal: &Principal, directory: &RemotePath) -> bool {
        self.admit(principal).is_ok_and(|grant| {
            let place = grant.place(directory);
            let mut inside = grant.rules_below(&place).filter(|rest| rest.len() == 1);
            inside.any(|rest| !self.at(&grant, &[&*place, rest].concat()).contains(Rights::LIST))
        })
    }

    /// What really happens when something is there already: who may not replace gets [`IfExists::Fail`] instead of
    /// `Overwrite`, and who may not even see names gets `Rename` whatever it asked for, so that it learns nothing.
    #[must_use]
    pub fn if_exists(&self, principal: &Principal, path: &RemotePath, asked: IfExists) -> IfExists {
        let rights = self.rights(principal, path).unwrap_or_default();
        match asked {
            _ if !rights.contains(Rights::LIST) && !rights.contains(Rights::OVERWRITE) => IfExists::Rename,
            IfExists::Overwrite if !rights.contains(Rights::OVERWRITE) => IfExists::Fail,
            asked => asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RemotePath {
        RemotePath::parse(text.as_bytes()).unwrap()
    }

    fn alice() -> Principal {
        Principal::Certified { name: Some("alice".into()), key: [0; 32] }
    }

    /// Alice at home in `alice`, with these rights there and by these rules.
    fn policy(rights: &str, rules: &[(&str, &str)]) -> Access {
        let list = |rights: &str| {
            let names: Vec<_> =
                rights.split(',').filter(|name| !name.is_empty()).map(|name| format!("\"{name}\"")).collect();
            format!("[{}]", names.join(", "))
        };
        let rules: Vec<_> = rules.iter().map(|(path, rights)| format!("\"{path}\" = {}\n", list(rights))).collect();
        let text = format!(
            "[user.alice]\nhome = \"alice\"\nrights = {}\n[user.alice.paths]\n{}",
            list(rights),
            rules.concat()
        );
        Access::by_policy(Policy::parse(&text).unwrap())
    }

    #[track_caller]
    fn check(access: &Access, action: Action<'_>, expected: bool) {
        let decided = access.decide(&alice(), action).map_err(|error| error.kind());
        assert_eq!(decided, if expected { Ok(()) } else { Err(ErrorKind::Rights) }, "{action}");
    }

    #[test]
    fn each_action_needs_its_right_and_no_other_helps() {
        let file = path("x");
        for (action, needs) in [
            (Action::List(&file), Rights::LIST),
            (Action::Read(&file), Rights::READ),
            (Action::Create(&file), Rights::CREATE),
            (Action::Overwrite(&file), Rights::CREATE.with(Rights::OVERWRITE)),
            (Action::Remove(&file), Rights::DELETE),
            (Action::Rename { from: &file, to: &path("y") }, Rights::RENAME.with(Rights::CREATE)),
            (Action::Share(&file), Rights::SHARE),
        ] {
            for bit in (0..7).map(|bit| Rights(1 << bit)).filter(|&bit| needs.contains(bit)) {
                check(&Access::same_for_all(Rights::ALL.without(bit), None), action, false);
                check(&Access::same_for_all(Rights::ALL, None).withholding(bit), action, false);
            }
            check(&Access::same_for_all(needs, None), action, true);
        }
    }

    #[test]
    fn nobody_comes_in_unless_it_was_said() {
        let root = RemotePath::root();
        let denied = Access::same_for_all(Rights::ALL, None).decide(&Principal::Anonymous, Action::List(&root));
        assert_eq!(denied.unwrap_err().kind(), ErrorKind::Rights);
        let narrow = Access::same_for_all(Rights::ALL, Some(Access::ANONYMOUS_DEFAULT));
        assert!(narrow.decide(&Principal::Anonymous, Action::List(&root)).is_err());
        assert!(narrow.decide(&Principal::Anonymous, Action::Create(&root)).is_ok());
        for asked in [IfExists::Overwrite, IfExists::Skip, IfExists::Fail, IfExists::Rename] {
            assert_eq!(narrow.if_exists(&Principal::Anonymous, &root, asked), IfExists::Rename);
        }
        let access = policy("list", &[]);
        for principal in [
            Principal::Anonymous,
            Principal::Certified { name: Some("alice2".into()), key: [0; 32] },
            Principal::Certified { name: None, key: [0; 32] },
        ] {
            assert_eq!(access.admit(&principal).unwrap_err().kind(), ErrorKind::Rights, "{principal}");
        }
    }

    #[test]
    fn a_renewed_certificate_is_of_the_same_one_only_where_the_rules_say_so() {
        let who = |name: Option<&str>, key: u8| Principal::Certified { name: name.map(str::to_owned), key: [key; 32] };
        let named = Access::same_for_all(Rights::ALL, None);
        let pin = format!("sha256:{}", "07".repeat(32));
        let text = format!(
            "revoked = [\"eve\"]\n[user.alice]\nhome = \"a\"\nrights = []\n[user.bob]\nhome = \"b\"\nrights = \
             []\npins = [\"{pin}\"]\n[user.eve]\nhome = \"e\"\nrights = []\n"
        );
        let policy = Access::by_policy(Policy::parse(&text).unwrap());
        for (access, one, other, expected) in [
            (&named, who(Some("x"), 1), who(Some("x"), 2), true),
            (&named, who(Some("x"), 1), who(Some("y"), 2), false),
            (&named, who(None, 1), who(None, 1), true),
            (&named, who(None, 1), who(None, 2), false),
            (&named, Principal::Anonymous, Principal::Anonymous, false),
            (&policy, who(Some("alice"), 1), who(Some("alice"), 2), true),
            (&policy, who(Some("alice"), 1), who(Some("bob"), 7), false),
            // Who has pins is known by them alone.
            (&policy, who(Some("bob"), 7), who(Some("bob"), 8), false),
            (&policy, who(Some("bob"), 7), who(Some("alice"), 7), true),
            (&policy, who(Some("alice"), 1), who(Some("alice"), 7), false),
            (&policy, who(Some("eve"), 1), who(Some("eve"), 1), false),
            (&policy, who(Some("nobody"), 1), who(Some("nobody"), 1), false),
        ] {
            assert_eq!(access.is_same(&one, &other), expected, "{one:?} {other:?}");
            assert_eq!(access.is_same(&other, &one), expected, "{other:?} {one:?}");
        }
    }

    #[test]
    fn new_names_are_checked_old_ones_are_not() {
        let access = Access::same_for_all(Rights::ALL, Some(Rights::ALL));
        let odd = RemotePath::from_components([&b"a\nb"[..]]).unwrap();
        let fine = path("a");
        let decide = |action| access.decide(&Principal::Anonymous, action).map_err(|error| error.kind());
        assert_eq!(decide(Action::Remove(&odd)), Ok(()));
        assert_eq!(decide(Action::Create(&odd)), Err(ErrorKind::Name));
        assert_eq!(decide(Action::Rename { from: &odd, to: &fine }), Ok(()));
        assert_eq!(decide(Action::Rename { from: &fine, to: &odd }), Err(ErrorKind::Name));
    }

    #[test]
    fn the_longest_rule_decides_and_components_are_whole() {
        let access = policy("list,create", &[("alice/a", "read"), ("alice/a/b/c", "list"), ("alice/a/b/c/d", "")]);
        for (place, rights) in [
            ("", "list, create"),
            ("ab", "list, create"),
            ("a", "read"),
            ("a/b", "read"),
            ("a/b/cc", "read"),
            ("a/b/c", "list"),
            ("a/b/c/x", "list"),
            ("a/b/c/d/e", "nothing"),
        ] {
            assert_eq!(access.rights(&alice(), &path(place)).unwrap().to_string(), rights, "{place}");
        }
    }

    #[test]
    fn a_tree_is_removed_moved_and_shared_only_whole() {
        let all = "list,read,create,overwrite,rename,delete,share";
        let access = policy(all, &[("alice/a/b/keep", "list,read")]);
        for above in ["", "a", "a/b", "a/b/keep", "a/b/keep/x"] {
            check(&access, Action::Remove(&path(above)), false);
            check(&access, Action::Share(&path(above)), false);
            check(&access, Action::Rename { from: &path(above), to: &path("z") }, false);
            check(&access, Action::Rename { from: &path("z"), to: &path(above) }, false);
        }
        for beside in ["a/b/keeper", "a/b/c", "ab"] {
            check(&access, Action::Remove(&path(beside)), true);
            check(&access, Action::Share(&path(beside)), true);
            check(&access, Action::Rename { from: &path(beside), to: &path("z") }, true);
        }
    }

    #[test]
    fn nothing_is_moved_to_where_more_is_allowed() {
        let access = policy(
            "list,read,create,overwrite,rename,delete",
            &[
                ("alice/unread", "list,create,rename"),
                ("alice/kept", "list,read,create,rename"),
                ("alice/out", "create"),
                ("alice/deep/unread", "list,create,rename"),
            ],
        );
        let moves = |from: &str, to: &str| (path(from), path(to));
        for ((from, to), expected) in [
            (moves("unread/x", "x"), false),
            (moves("unread", "x"), false),
            (moves("kept/x", "x"), false),
            (moves("kept/x", "unread/x"), true),
            (moves("unread/x", "kept/x"), false),
            (moves("x", "out/x"), true),
            (moves("deep", "other"), false),
            (moves("unread/x", "unread/y"), true),
        ] {
            check(&access, Action::Rename { from: &from, to: &to }, expected);
        }
    }

    #[test]
    fn a_directory_hides_some_where_a_rule_denies_a_name_in_it() {
        let access = policy("list,read", &[("alice/a/b", "read"), ("alice/c", "list"), ("alice/c/d", "list")]);
        for (directory, hides) in [("a", true), ("", false), ("a/b", false), ("c", false), ("ab", false)] {
            let directory = if directory.is_empty() { RemotePath::root() } else { path(directory) };
            assert_eq!(access.hides_some(&alice(), &directory), hides, "{directory}");
        }
    }

    #[test]
    fn directories_that_may_not_be_made_are_told() {
        let access = policy("list", &[("alice/a/b", "create"), ("alice/a/b/c/d", "list")]);
        let needed = |text| access.needed_parent(&alice(), &path(text)).map(|path| path.to_string());
        assert_eq!(needed("a/b"), Some("a".into()));
        assert_eq!(needed("a/b/x/y"), Some("a".into()));
        assert_eq!(needed("a/b/c/d/e"), Some("a/b/c/d".into()));
        assert_eq!(needed("x"), None);
    }
}
