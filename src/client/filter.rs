//! What is left out of a transfer: by name, by size, by age. Without a rule nothing is, whatever its name.
//!
//! Names are matched by patterns as in `.gitignore`, against the path below the transferred tree: one without a slash
//! (but at its end) is met by a name at any depth, one with a slash counts from the top, one that ends in a slash is
//! met by directories only. Of the rules of the command line the first that matches decides, as in rsync. A directory
//! that is left out is not entered. Sizes and ages are asked of files only.
//!
//! [`Ignores`] are the rules of `.sealiftignore` files, which hold below their directory; there, as in git, the last
//! that matches decides, and deeper files before higher ones. Rules of the command line come before all of them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::{Error, ErrorKind, Result};
use crate::limits::KIB;
use crate::path::Escaped;
use crate::protocol::{EntryKind, Mtime};

/// The files that `--ignore-files` obeys.
pub const IGNORE_NAME: &str = ".sealiftignore";
/// Bytes of such a file. A longer one is a failure of its directory.
pub(crate) const IGNORE_LEN_MAX: usize = 256 * KIB;

/// A rule about names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// What matches is left out.
    Exclude(String),
    /// What matches is not.
    Include(String),
}

/// All rules of a command.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    rules: Option<Gitignore>,
    /// Files of fewer bytes are left out.
    pub min_size: Option<u64>,
    /// Files of more bytes are left out.
    pub max_size: Option<u64>,
    /// Files that were last changed before this are left out.
    pub changed_after: Option<Mtime>,
    /// Files that were last changed after this are left out.
    pub changed_before: Option<Mtime>,
    /// Whether `.sealiftignore` files are obeyed.
    pub ignore_files: bool,
}

/// The rule that left something out, as it is told.
pub type LeftOutBy = Arc<str>;

/// What a rule is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its path below the transferred tree: bytes between slashes.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind,
    /// Its bytes.
    pub size: u64,
    /// When it was changed.
    pub mtime: Mtime,
}

impl Filter {
    /// A filter by names.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a pattern that is none.
    pub fn of_rules(rules: &[Rule]) -> Result<Filter> {
        let mut builder = GitignoreBuilder::new(".");
        builder.allow_unclosed_class(false);
        // There the last that matches decides; here it is the first.
        for rule in rules.iter().rev() {
            let (line, pattern) = match rule {
                Rule::Exclude(pattern) if pattern.starts_with(['!', '#']) => (format!("\\{pattern}"), pattern),
                Rule::Exclude(pattern) => (pattern.clone(), pattern),
                Rule::Include(pattern) => (format!("!{pattern}"), pattern),
            };
            if pattern.is_empty() || pattern.contains(['\n', '\0']) {
                return Err(bad_pattern(pattern, "it is empty, or holds a line feed"));
            }
            builder.add_line(None, &line).map_err(|error| bad_pattern(pattern, &error.to_string()))?;
        }
        let built = builder.build().map_err(|error| Error::new(ErrorKind::Usage, format!("the patterns: {error}")))?;
        Ok(Filter { rules: (!rules.is_empty()).then_some(built), ..Filter::default() })
    }

    /// Whether nothing can be left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Filter { rules, min_size, max_size, changed_after, changed_before, ignore_files } = self;
        let is_narrow = min_size.is_some() || max_size.is_some() || changed_after.is_some() || changed_before.is_some();
        rules.is_none() && !is_narrow && !ignore_files
    }

    /// The rule that leaves this out, if one does.
    #[must_use]
    pub fn judge(&self, subject: Subject<'_>, ignores: Option<&Arc<Ignores>>) -> Option<LeftOutBy> {
        self.judge_name(subject.path, subject.kind == EntryKind::Directory, ignores)
            .or_else(|| self.judge_file(subject))
    }

    fn judge_name(&self, path: &[u8], is_directory: bool, ignores: Option<&Arc<Ignores>>) -> Option<LeftOutBy> {
        let as_path = Path::new(OsStr::from_bytes(path));
        if let Some(rules) = &self.rules {
            match rules.matched(as_path, is_directory) {
                Match::Ignore(glob) => {
                    let text = glob.original();
                    let text = if text.starts_with("\\!") || text.starts_with("\\#") { &text[1..] } else { text };
                    return Some(format!("--exclude {text}").into());
                }
                Match::Whitelist(_) => return None,
                Match::None => {}
            }
        }
        let mut next = ignores;
        while let Some(ignores) = next {
            let below = ignores.below(path);
            match ignores.rules.matched(Path::new(OsStr::from_bytes(below)), is_directory) {
                Match::Ignore(glob) => return Some(format!("{IGNORE_NAME}: {}", glob.original()).into()),
                Match::Whitelist(_) => return None,
                Match::None => next = ignores.parent.as_ref(),
            }
        }
        None
    }

    fn judge_file(&self, subject: Subject<'_>) -> Option<LeftOutBy> {
        if subject.kind != EntryKind::File {
            return None;
        }
        let time = |mtime: Mtime| (mtime.seconds, mtime.nanos);
        let rules = [
            ("--min-size", self.min_size.is_some_and(|min| subject.size < min)),
            ("--max-size", self.max_size.is_some_and(|max| subject.size > max)),
            ("--newer-than", self.changed_after.is_some_and(|cut| time(subject.mtime) < time(cut))),
            ("--older-than", self.changed_before.is_some_and(|cut| time(subject.mtime) > time(cut))),
        ];
        rules.into_iter().find(|(_, leaves_out)| *leaves_out).map(|(name, _)| name.into())
    }
}

/// The moment that lies so long before `now`.
#[must_use]
pub fn ago(now: SystemTime, age: Duration) -> Mtime {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Mtime { seconds: seconds.saturating_sub_unsigned(age.as_secs()), nanos: since.subsec_nanos() }
}

/// Splits what `--exclude-from` reads: a pattern a line, `!` before one that is not left out, `#` before a remark.
///
/// # Errors
/// [`ErrorKind::Usage`] when it is not text.
pub fn rules_of_file(content: &[u8], shown: &str) -> Result<Vec<Rule>> {
    let text = std::str::from_utf8(content)
        .map_err(|_| Error::new(ErrorKind::Usage, format!("the patterns in {shown} are not UTF-8 text")))?;
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines
        .map(|line| match (line.strip_prefix('!'), line.strip_prefix('\\')) {
            (Some(rest), _) => Rule::Include(rest.to_owned()),
            (None, Some(rest)) if rest.starts_with(['!', '#']) => Rule::Exclude(rest.to_owned()),
            _ => Rule::Exclude(line.to_owned()),
        })
        .collect())
}

/// The rules of one `.sealiftignore` and those above it.
#[derive(Debug)]
pub struct Ignores {
    parent: Option<Arc<Ignores>>,
    rules: Gitignore,
    /// Bytes of the path of its directory, the slash behind it included.
    prefix: usize,
}

impl Ignores {
    /// The rules of a file that lies in `directory` (bytes between slashes; empty for the top).
    ///
    /// # Errors
    /// [`ErrorKind::Io`] for one that cannot be read as rules: to leave it aside could send what shall stay.
    pub fn new(directory: &[u8], content: &[u8], parent: Option<Arc<Ignores>>) -> Result<Arc<Ignores>> {
        let shown =
            if directory.is_empty() { IGNORE_NAME.to_owned() } else { format!("{}/{IGNORE_NAME}", Escaped(directory)) };
        let bad = |why: String| Error::new(ErrorKind::Io, format!("the rules in {shown}: {why}"));
        let text = std::str::from_utf8(content).map_err(|_| bad("they are not UTF-8 text".to_owned()))?;
        let mut builder = GitignoreBuilder::new(".");
        for line in text.lines() {
            builder.add_line(None, line).map_err(|error| bad(error.to_string()))?;
        }
        let rules = builder.build().map_err(|error| bad(error.to_string()))?;
        let prefix = if directory.is_empty() { 0 } else { directory.len() + 1 };
        Ok(Arc::new(Ignores { parent, rules, prefix }))
    }

    fn below<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        path.get(self.prefix..).unwrap_or_default()
    }
}

fn bad_pattern(pattern: &str, why: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("the pattern `{}`: {why}", Escaped(pattern.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(path: &str) -> Subject<'_> {
        let kind = if path.ends_with('/') { EntryKind::Directory } else { EntryKind::File };
        let mtime = Mtime { seconds: 1000, nanos: 5 };
        Subject { path: path.trim_end_matches('/').as_bytes(), kind, size: 100, mtime }
    }

    fn exclude(pattern: &str) -> Rule {
        Rule::Exclude(pattern.to_owned())
    }

    fn include(pattern: &str) -> Rule {
        Rule::Include(pattern.to_owned())
    }

    #[track_caller]
    fn check(rules: &[Rule], out: &[&str], kept: &[&str]) {
        let filter = Filter::of_rules(rules).unwrap();
        for path in out {
            assert!(filter.judge(subject(path), None).is_some(), "{rules:?} leave {path} out");
        }
        for path in kept {
            assert_eq!(filter.judge(subject(path), None), None, "{rules:?} keep {path}");
        }
    }

    #[test]
    fn without_rules_nothing_is_left_out() {
        check(&[], &[], &[".git/", ".env", "a/.hidden", "target/", "node_modules/", "x.tmp", ".gitignore", "~"]);
        assert!(Filter::of_rules(&[]).unwrap().is_empty());
    }

    #[test]
    fn patterns_are_those_of_gitignore() {
        check(&[exclude("*.o")], &["a.o", "b/c/d.o", ".o"], &["a.oo", "o"]);
        check(&[exclude("/build")], &["build/", "build"], &["a/build"]);
        check(&[exclude("a/b")], &["a/b"], &["x/a/b", "b"]);
        check(&[exclude("cache/")], &["cache/", "x/cache/"], &["cache", "x/cache"]);
        check(&[exclude("a/**/z")], &["a/z", "a/b/c/z"], &["z"]);
        check(&[exclude("[a-c]?")], &["ax", "q/c1"], &["dx", "abc"]);
        check(&[exclude("!x"), exclude("#y")], &["!x", "#y"], &["x", "y"]);
        check(&[exclude("-x")], &["-x"], &[]);
        check(&[exclude("MAKE*")], &["MAKEFILE"], &["makefile"]);
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        check(&[include("*.c"), include("*/"), exclude("*")], &["a.h", "x/y"], &["a.c", "x/", "x/a.c"]);
        check(&[exclude("*"), include("*.c")], &["a.c"], &[]);
        check(&[exclude("secret"), include("*")], &["a/secret"], &["other"]);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for pattern in ["", "[a", "a\nb", "{a"] {
            let error = Filter::of_rules(&[exclude(pattern)]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{pattern:?}");
        }
    }

    #[test]
    fn sizes_and_ages_are_of_files() {
        let cut = |seconds, nanos| Some(Mtime { seconds, nanos });
        let of = |filter: Filter, path| filter.judge(subject(path), None).map(|rule| rule.to_string());
        let filter = Filter { min_size: Some(101), ..Filter::default() };
        assert_eq!(of(filter.clone(), "a").as_deref(), Some("--min-size"));
        assert_eq!(of(filter, "a/"), None);
        assert_eq!(of(Filter { max_size: Some(100), min_size: Some(100), ..Filter::default() }, "a"), None);
        assert!(of(Filter { max_size: Some(99), ..Filter::default() }, "a").is_some());
        assert!(of(Filter { changed_after: cut(1000, 6), ..Filter::default() }, "a").is_some());
        assert!(of(Filter { changed_after: cut(1000, 5), ..Filter::default() }, "a").is_none());
        assert!(of(Filter { changed_before: cut(1000, 4), ..Filter::default() }, "a").is_some());
        assert!(of(Filter { changed_before: cut(1000, 5), ..Filter::default() }, "a").is_none());
    }

    #[test]
    fn ignore_files_hold_below_their_directory() {
        let top = Ignores::new(b"", b"*.log\n# remark\n/only-here\n", None).unwrap();
        let deep = Ignores::new(b"a/b", b"!keep.log\n/here\n", Some(Arc::clone(&top))).unwrap();
        let filter = Filter { ignore_files: true, ..Filter::default() };
        let out = |path, ignores| filter.judge(subject(path), Some(ignores)).is_some();
        assert!(out("x.log", &top) && out("a/y.log", &top) && out("only-here", &top));
        assert!(!out("a/only-here", &top));
        assert!(out("a/b/x.log", &deep) && out("a/b/here", &deep));
        assert!(!out("a/b/keep.log", &deep) && !out("a/b/c/here", &deep));
        let first = Filter { ignore_files: true, ..Filter::of_rules(&[include("x.log")]).unwrap() };
        assert_eq!(first.judge(subject("x.log"), Some(&top)), None);
    }

    #[test]
    fn files_of_patterns() {
        let rules = rules_of_file(b"*.o\n\n# no\n!keep.o  \n\\#yes\n\\!x\n", "f").unwrap();
        assert_eq!(rules, [exclude("*.o"), include("keep.o"), exclude("#yes"), exclude("!x")]);
        assert!(rules_of_file(b"\xff", "f").is_err());
    }
}
