//! The flags that leave things out of a transfer. What `--exclude`, `--include` and `--exclude-from` mean depends on
//! their order among one another, so it is kept.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};

use crate::cli::values;
use crate::client::compare::Links;
use crate::client::filter::{Filter, Rule, ago, rules_of_file};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::MIB;
use crate::path::Escaped;

/// Bytes of a file of patterns. Longer: refused.
const PATTERNS_LEN_MAX: u64 = 4 * MIB as u64;

/// What becomes of symbolic links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LinksArg {
    /// Kept when relative and inside the tree.
    #[default]
    Copy,
    /// Skipped.
    Skip,
    /// What they point to is moved.
    Follow,
}

impl From<LinksArg> for Links {
    fn from(argument: LinksArg) -> Links {
        match argument {
            LinksArg::Copy => Links::Copy,
            LinksArg::Skip => Links::Skip,
            LinksArg::Follow => Links::Follow,
        }
    }
}

#[derive(Args, Clone, Debug, Default)]
#[command(
    next_help_heading = "What is left out (by default nothing; patterns as in .gitignore, the first that matches decides)"
)]
struct Flags {
    /// Names that match
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    exclude: Vec<String>,
    /// But not these
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    include: Vec<String>,
    /// Patterns from FILE, one a line; `!` before one to include
    #[arg(long, value_name = "FILE")]
    exclude_from: Vec<PathBuf>,
    /// What .sealiftignore files in the source say
    #[arg(long)]
    ignore_files: bool,
    /// Files smaller than this (64K, 10M, 2G)
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    min_size: Option<u64>,
    /// Files larger than this
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    max_size: Option<u64>,
    /// Files last changed longer ago (5m, 24h, 3d); --older-than: since then
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    newer_than: Option<Duration>,
    /// Files changed since
    // Told with the one before: the help fits a screen.
    #[arg(long, hide = true, value_name = "TIME", value_parser = values::duration)]
    older_than: Option<Duration>,
    /// Links: copy (those that stay inside), skip, follow
    #[arg(long, value_name = "WHAT", value_enum, default_value = "copy", hide_possible_values = true)]
    links: LinksArg,
    /// Keep setuid, setgid, sticky and world-writable too
    // Told with the next: the help fits a screen.
    #[arg(long, hide = true)]
    special_modes: bool,
    /// Keep extended attributes (user.*); --special-modes: setuid, sticky …
    #[arg(long)]
    xattrs: bool,
}

/// One flag about names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    Rule(Rule),
    From(PathBuf),
}

/// The flags, those about names in their order.
#[derive(Clone, Debug, Default)]
pub struct FilterArgs {
    flags: Flags,
    names: Vec<Named>,
}

impl FilterArgs {
    /// The filter that they make.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for patterns that are none and files of patterns that cannot be read.
    pub fn filter(&self) -> Result<Arc<Filter>> {
        let mut rules = Vec::new();
        for named in &self.names {
            match named {
                Named::Rule(rule) => rules.push(rule.clone()),
                Named::From(path) => rules.extend(read_rules(path)?),
            }
        }
        let flags = &self.flags;
        let now = SystemTime::now();
        let mut filter = Filter::of_rules(&rules)?;
        (filter.min_size, filter.max_size) = (flags.min_size, flags.max_size);
        filter.changed_after = flags.newer_than.map(|age| ago(now, age));
        filter.changed_before = flags.older_than.map(|age| ago(now, age));
        filter.ignore_files = flags.ignore_files;
        Ok(Arc::new(filter))
    }

    /// What becomes of links.
    #[must_use]
    pub fn links(&self) -> Links {
        self.flags.links.into()
    }

    /// Whether setuid, setgid, sticky and world-writable are kept.
    #[must_use]
    pub fn special_modes(&self) -> bool {
        self.flags.special_modes
    }

    /// Whether extended attributes are moved.
    #[must_use]
    pub fn xattrs(&self) -> bool {
        self.flags.xattrs
    }

    /// What becomes of links on a server, which follows none.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for `--links follow`.
    pub fn links_there(&self) -> Result<Links> {
        match self.links() {
            Links::Follow => Err(Error::new(
                ErrorKind::Usage,
                "--links follow is for links here: a server never follows one; name what they point to",
            )),
            links => Ok(links),
        }
    }
}

fn read_rules(path: &Path) -> Result<Vec<Rule>> {
    let shown = format!("`{}`", Escaped(path.as_os_str().as_bytes()));
    let doing = || format!("read the patterns in {shown}");
    let usage = |error: Error| error.with_kind(ErrorKind::Usage);
    let file = File::open(path).while_doing(doing).map_err(usage)?;
    let mut content = Vec::new();
    file.take(PATTERNS_LEN_MAX + 1).read_to_end(&mut content).while_doing(doing).map_err(usage)?;
    if content.len() as u64 > PATTERNS_LEN_MAX {
        return Err(Error::new(ErrorKind::Usage, format!("{}: longer than {PATTERNS_LEN_MAX} bytes", doing())));
    }
    rules_of_file(&content, &shown)
}

impl FromArgMatches for FilterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<FilterArgs, clap::Error> {
        let flags = Flags::from_arg_matches(matches)?;
        let indices = |id: &str| matches.indices_of(id).into_iter().flatten().collect::<Vec<_>>();
        let rule = |make: fn(String) -> Rule| move |text: &String| Named::Rule(make(text.clone()));
        let mut names: Vec<(usize, Named)> = Vec::new();
        names.extend(indices("exclude").into_iter().zip(flags.exclude.iter().map(rule(Rule::Exclude))));
        names.extend(indices("include").into_iter().zip(flags.include.iter().map(rule(Rule::Include))));
        let files = flags.exclude_from.iter().cloned().map(Named::From);
        names.extend(indices("exclude_from").into_iter().zip(files));
        names.sort_by_key(|(index, _)| *index);
        Ok(FilterArgs { flags, names: names.into_iter().map(|(_, named)| named).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = FilterArgs::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for FilterArgs {
    fn augment_args(command: Command) -> Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args_for_update(command)
    }
}

/// The same flags for commands whose help has no room for them: it refers to that of `sync`.
#[derive(Clone, Debug, Default)]
pub struct UnlistedFilterArgs(pub FilterArgs);

const NAMES: [&str; 11] = [
    "exclude",
    "include",
    "exclude_from",
    "ignore_files",
    "min_size",
    "max_size",
    "newer_than",
    "older_than",
    "links",
    "special_modes",
    "xattrs",
];

impl FromArgMatches for UnlistedFilterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<UnlistedFilterArgs, clap::Error> {
        FilterArgs::from_arg_matches(matches).map(UnlistedFilterArgs)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl Args for UnlistedFilterArgs {
    fn augment_args(command: Command) -> Command {
        NAMES.iter().fold(Flags::augment_args(command), |command, name| command.mut_arg(name, |arg| arg.hide(true)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        UnlistedFilterArgs::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filters: FilterArgs,
    }

    fn parse(line: &str) -> FilterArgs {
        Line::try_parse_from(std::iter::once("x").chain(line.split(' '))).unwrap().filters
    }

    #[test]
    fn rules_keep_their_order() {
        let args = parse("--include a --exclude b --exclude-from f --include c --exclude=-d --exclude e");
        let exclude = |text: &str| Named::Rule(Rule::Exclude(text.to_owned()));
        let include = |text: &str| Named::Rule(Rule::Include(text.to_owned()));
        let expected = [include("a"), exclude("b"), Named::From("f".into()), include("c"), exclude("-d"), exclude("e")];
        assert_eq!(args.names, expected);
    }

    #[test]
    fn a_file_of_patterns_must_be_there() {
        let error = parse("--exclude-from /nonexistent/patterns").filter().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }

    #[test]
    fn links_on_a_server_are_never_followed() {
        assert_eq!(parse("--links skip").links_there().unwrap(), Links::Skip);
        assert!(parse("--links follow").links_there().is_err());
    }
}
