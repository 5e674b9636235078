//! Extended attributes as they are moved: those that users set for themselves (`user.*`), as a set that keeps its
//! bounds. Those of the system (`security.*`, `trusted.*`, `system.*`) and this program's own record are never in it,
//! whatever a peer or a disk says.

use crate::limits::{XATTR_COUNT_MAX, XATTR_NAME_LEN_MAX, XATTR_VALUE_LEN_MAX, XATTRS_LEN_MAX};
use crate::path::Escaped;

/// The attribute in which a store records the hash of a file. It belongs to the copy and not to what is copied.
pub const OWN_NAME: &str = "user.sealift";
/// What every name begins with.
const NAMESPACE: &[u8] = b"user.";

/// A set of extended attributes, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs(Vec<Xattr>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Xattr {
    /// Its whole name, which begins with `user.`.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// What it holds.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }
}

/// Why a set is none that is moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XattrError {
    /// A name that is not one of a user's, or too long, or holds a NUL.
    Name(Vec<u8>),
    /// The name under which this program keeps its own record.
    Own,
    /// The same name twice, or names that are not in order.
    Order(Vec<u8>),
    /// More of them than are moved.
    Count,
    /// A value longer than is moved.
    Value(Vec<u8>, usize),
    /// All of them together are longer than is moved.
    Len,
}

impl std::fmt::Display for XattrError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            XattrError::Name(name) => write!(f, "{} cannot be the name of a user's extended attribute", Escaped(name)),
            XattrError::Own => write!(f, "the extended attribute {OWN_NAME} is not one of a user's"),
            XattrError::Order(name) => write!(f, "the extended attribute {} twice or out of order", Escaped(name)),
            XattrError::Count => write!(f, "more than {XATTR_COUNT_MAX} extended attributes"),
            XattrError::Value(name, len) => {
                let name = Escaped(name);
                write!(f, "the extended attribute {name} has {len} bytes, more than {XATTR_VALUE_LEN_MAX}")
            }
            XattrError::Len => write!(f, "extended attributes of more than {XATTRS_LEN_MAX} bytes in all"),
        }
    }
}

impl std::error::Error for XattrError {}

/// Whether an attribute of this name is one that is moved.
#[must_use]
pub fn is_moved(name: &[u8]) -> bool {
    name.starts_with(NAMESPACE) && name != OWN_NAME.as_bytes()
}

impl Xattrs {
    /// A set of these names and values, in whatever order.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(mut pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Xattrs, XattrError> {
        pairs.sort_unstable();
        Xattrs::in_order(pairs)
    }

    /// The same of names that must be in ascending order already, each once.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn in_order(pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<Xattrs, XattrError> {
        let (mut set, mut len) = (Vec::<Xattr>::new(), 0);
        for (name, value) in pairs {
            if name == OWN_NAME.as_bytes() {
                return Err(XattrError::Own);
            }
            if !is_moved(&name) || name.len() <= NAMESPACE.len() || name.len() > XATTR_NAME_LEN_MAX || name.contains(&0)
            {
                return Err(XattrError::Name(name));
            }
            if set.last().is_some_and(|last| last.name >= name) {
                return Err(XattrError::Order(name));
            }
            if set.len() >= XATTR_COUNT_MAX {
                return Err(XattrError::Count);
            }
            if value.len() > XATTR_VALUE_LEN_MAX {
                return Err(XattrError::Value(name, value.len()));
            }
            len += name.len() + value.len();
            if len > XATTRS_LEN_MAX {
                return Err(XattrError::Len);
            }
            set.push(Xattr { name, value });
        }
        Ok(Xattrs(set))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes in names and values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|xattr| xattr.name.len() + xattr.value.len()).sum()
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> &[Xattr] {
        &self.0
    }

    /// Whether one has this name.
    #[must_use]
    pub fn has(&self, name: &[u8]) -> bool {
        self.0.binary_search_by(|xattr| xattr.name.as_slice().cmp(name)).is_ok()
    }

    /// What two equal sets have in common, and no others: the beginning of a hash over all names and values.
    #[must_use]
    pub fn digest(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        for Xattr { name, value } in &self.0 {
            for part in [name, value] {
                // Bounded far below.
                hasher.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes()).update(part);
            }
        }
        let mut digest = [0; 16];
        hasher.finalize_xof().fill(&mut digest);
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, len: usize) -> (Vec<u8>, Vec<u8>) {
        (name.as_bytes().to_vec(), vec![7; len])
    }

    #[test]
    fn a_set_keeps_its_bounds() {
        let name = |name: &str| XattrError::Name(name.as_bytes().to_vec());
        for (bad, error) in [
            ("security.capability", name("security.capability")),
            ("trusted.overlay.opaque", name("trusted.overlay.opaque")),
            ("system.posix_acl_access", name("system.posix_acl_access")),
            ("user.", name("user.")),
            ("users.x", name("users.x")),
            ("", name("")),
            ("user.a\0b", name("user.a\0b")),
            (OWN_NAME, XattrError::Own),
        ] {
            assert_eq!(Xattrs::new(vec![pair(bad, 1)]), Err(error), "{bad}");
        }
        let long = format!("user.{}", "n".repeat(XATTR_NAME_LEN_MAX - 5));
        assert!(Xattrs::new(vec![pair(&long, 0), pair("user.sealift.x", 0)]).is_ok());
        assert_eq!(Xattrs::new(vec![pair(&format!("{long}n"), 0)]), Err(name(&format!("{long}n"))));
        assert!(Xattrs::new(vec![pair("user.x", XATTR_VALUE_LEN_MAX)]).is_ok());
        let too_long = XattrError::Value(b"user.x".to_vec(), XATTR_VALUE_LEN_MAX + 1);
        assert_eq!(Xattrs::new(vec![pair("user.x", XATTR_VALUE_LEN_MAX + 1)]), Err(too_long));
        let many = |count: usize| (0..count).map(|index| pair(&format!("user.{index}"), 0)).collect();
        assert!(Xattrs::new(many(XATTR_COUNT_MAX)).is_ok());
        assert_eq!(Xattrs::new(many(XATTR_COUNT_MAX + 1)), Err(XattrError::Count));
        let two = |second: usize| vec![pair("user.a", XATTR_VALUE_LEN_MAX), pair("user.b", second)];
        let rest = XATTRS_LEN_MAX - XATTR_VALUE_LEN_MAX - 12;
        assert_eq!(Xattrs::new(two(rest)).unwrap().len(), XATTRS_LEN_MAX);
        assert_eq!(Xattrs::new(two(rest + 1)), Err(XattrError::Len));
        for names in [["user.a", "user.a"], ["user.b", "user.a"]] {
            let pairs = names.map(|name| pair(name, 1));
            assert_eq!(Xattrs::in_order(pairs), Err(XattrError::Order(names[1].as_bytes().to_vec())));
        }
        assert_eq!(Xattrs::new(vec![pair("user.a", 1); 2]), Err(XattrError::Order(b"user.a".to_vec())));
    }

    #[test]
    fn only_equal_sets_have_one_digest() {
        let set = |pairs: &[(&str, &str)]| {
            let bytes = |text: &str| text.as_bytes().to_vec();
            Xattrs::new(pairs.iter().map(|(name, value)| (bytes(name), bytes(value))).collect()).unwrap()
        };
        let sets = [
            set(&[]),
            set(&[("user.a", "")]),
            set(&[("user.a", "b")]),
            set(&[("user.ab", "")]),
            set(&[("user.a", ""), ("user.b", "")]),
            set(&[("user.a", "user.b")]),
        ];
        for (index, left) in sets.iter().enumerate() {
            for (other, right) in sets.iter().enumerate() {
                assert_eq!(left.digest() == right.digest(), index == other, "{left:?} {right:?}");
            }
        }
        assert_eq!(set(&[("user.b", "1"), ("user.a", "2")]), set(&[("user.a", "2"), ("user.b", "1")]));
        assert!(sets[4].has(b"user.b") && !sets[4].has(b"user.c"));
    }
}
