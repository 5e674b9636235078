//! Who may do what. One function, [`Access::decide`], stands below every verb of every door.
//!
//! A [`Principal`] is whom the TLS handshake proved, or nobody in particular (anonymous). What it may do is a set of
//! [`Rights`]; each [`Verb`] needs some of them. Nothing here looks at a disk: what is there already is told by
//! the caller, so that the decision can be tested by itself.

use crate::error::{Error, ErrorKind, Result};
use crate::path::{NamePolicy, RemotePath};
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
    /// A client without a certificate.
    Anonymous,
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Principal::Certified { name: Some(name), .. } => f.write_str(name),
            Principal::Certified { name: None, key } => {
                write!(f, "key {:02x}{:02x}{:02x}{:02x}…", key[0], key[1], key[2], key[3])
            }
            Principal::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// What a client asks to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// See one entry or the entries of a directory.
    List,
    /// Read content, or its hash.
    Read,
    /// Store a file or link under a name, or make a directory.
    Create,
    /// Replace what a name stands for, or change a directory's mode and time.
    Overwrite,
    /// Take a name away from something (the other end needs [`Verb::Create`]).
    Rename,
    /// Remove.
    Delete,
}

impl Verb {
    fn needs(self) -> Rights {
        match self {
            Verb::List => Rights::LIST,
            Verb::Read => Rights::READ,
            Verb::Create => Rights::CREATE,
            Verb::Overwrite => Rights::CREATE.with(Rights::OVERWRITE),
            Verb::Rename => Rights::RENAME,
            Verb::Delete => Rights::DELETE,
        }
    }

    /// Whether it gives something a new name, which must then be one that the server accepts.
    fn makes_names(self) -> bool {
        matches!(self, Verb::Create | Verb::Overwrite)
    }

    fn describe(self) -> &'static str {
        match self {
            Verb::List => "see",
            Verb::Read => "read",
            Verb::Create => "create",
            Verb::Overwrite => "replace",
            Verb::Rename => "rename",
            Verb::Delete => "remove",
        }
    }
}

/// The rules of one server.
#[derive(Clone, Debug)]
pub struct Access {
    /// What every certificate of the client authority may do.
    pub certified: Rights,
    /// What a client without a certificate may do; none: it may not come in.
    pub anonymous: Option<Rights>,
    /// Which names it accepts.
    pub names: NamePolicy,
}

impl Access {
    /// What a client without a certificate may do unless the operator says more: put things down, and see nothing.
    pub const ANONYMOUS_DEFAULT: Rights = Rights::CREATE;

    /// The rights that this principal has.
    ///
    /// # Errors
    /// `Rights` for one that may not come in.
    pub fn rights(&self, principal: &Principal) -> Result<Rights> {
        match principal {
            Principal::Certified { .. } => Ok(self.certified),
            Principal::Anonymous => self
                .anonymous
                .ok_or_else(|| Error::new(ErrorKind::Rights, "this server takes no client without a certificate")),
        }
    }

    /// Decides whether `principal` may do `verb` to `path`. Every request of every door passes here.
    ///
    /// # Errors
    /// `Rights` when it may not; `Name` for a new name that this server does not accept.
    pub fn decide(&self, principal: &Principal, verb: Verb, path: &RemotePath) -> Result<()> {
        if !self.rights(principal)?.contains(verb.needs()) {
            return Err(Error::new(
                ErrorKind::Rights,
                format!("{principal} may not {} {path} on this server", verb.describe()),
            ));
        }
        if verb.makes_names() {
            self.names.check(path).map_err(|error| {
                Error::new(ErrorKind::Name, format!("{path} cannot be stored under that name here")).with_source(error)
            })?;
        }
        Ok(())
    }

    /// What really happens when something is there already: who may not replace gets [`IfExists::Fail`] instead of
    /// `Overwrite`, and who may not even see names gets `Rename` whatever it asked for, so that it learns nothing.
    #[must_use]
    pub fn if_exists(&self, principal: &Principal, asked: IfExists) -> IfExists {
        let rights = self.rights(principal).unwrap_or_default();
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

    fn access(certified: Rights, anonymous: Option<Rights>) -> Access {
        Access { certified, anonymous, names: NamePolicy::default() }
    }

    #[test]
    fn each_verb_needs_its_right_and_no_other_helps() {
        let principal = Principal::Certified { name: Some("a".into()), key: [0; 32] };
        let path = RemotePath::parse(b"x").unwrap();
        for verb in [Verb::List, Verb::Read, Verb::Create, Verb::Overwrite, Verb::Rename, Verb::Delete] {
            let all_but = Rights::ALL.without(verb.needs());
            assert_eq!(
                access(all_but, None).decide(&principal, verb, &path).unwrap_err().kind(),
                ErrorKind::Rights,
                "{verb:?}"
            );
            assert!(access(verb.needs(), None).decide(&principal, verb, &path).is_ok(), "{verb:?}");
        }
    }

    #[test]
    fn nobody_comes_in_unless_it_was_said() {
        let path = RemotePath::root();
        let denied = access(Rights::ALL, None).decide(&Principal::Anonymous, Verb::List, &path);
        assert_eq!(denied.unwrap_err().kind(), ErrorKind::Rights);
        let narrow = access(Rights::ALL, Some(Access::ANONYMOUS_DEFAULT));
        assert!(narrow.decide(&Principal::Anonymous, Verb::List, &path).is_err());
        assert!(narrow.decide(&Principal::Anonymous, Verb::Create, &path).is_ok());
        for asked in [IfExists::Overwrite, IfExists::Skip, IfExists::Fail, IfExists::Rename] {
            assert_eq!(narrow.if_exists(&Principal::Anonymous, asked), IfExists::Rename);
        }
    }

    #[test]
    fn new_names_are_checked_old_ones_are_not() {
        let access = access(Rights::ALL, Some(Rights::ALL));
        let odd = RemotePath::from_components([&b"a\nb"[..]]).unwrap();
        assert!(access.decide(&Principal::Anonymous, Verb::Delete, &odd).is_ok());
        assert_eq!(access.decide(&Principal::Anonymous, Verb::Create, &odd).unwrap_err().kind(), ErrorKind::Name);
    }
}
