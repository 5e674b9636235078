//! What `scripts/install.sh` installs beside the program: shell completions and manual pages, made from the same
//! description of the command line that parses it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, Subcommand, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::args::Cli;
use crate::cli::session::print;
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// The shells that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShellArg {
    /// GNU bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// The friendly interactive shell.
    Fish,
}

/// Make completions and manual pages.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// What to make.
    #[command(subcommand)]
    pub what: What,
}

/// What can be made.
#[derive(Subcommand, Debug)]
pub enum What {
    /// Completions of one shell, on standard output
    Completions {
        /// Which
        shell: ShellArg,
    },
    /// Manual pages, as files in a directory
    Man {
        /// Where to
        directory: PathBuf,
    },
}

/// Names of remotes come from the configuration; everything else is known beforehand.
const BASH_NAMES: &str = r#"
_sealift_or_remote() {
    _sealift "$@"
    local current=${COMP_WORDS[COMP_CWORD]}
    if ((COMP_CWORD > 1)) && [[ $current != -* && $current != *[:/]* ]]; then
        local name
        while IFS= read -r name; do
            [[ $name == "$current"* ]] && COMPREPLY+=("$name:")
        done < <(sealift remote ls --names 2>/dev/null)
        [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace
    fi
    return 0
}
complete -F _sealift_or_remote -o bashdefault -o default sealift
"#;

const FISH_NAMES: &str = r#"
complete -c sealift -n "__fish_seen_subcommand_from put get ls stat hash rm mv mkdir doctor" -a "(sealift remote ls --names 2>/dev/null | string replace -r '$' ':')" -d remote
"#;

/// Runs the command.
///
/// # Errors
/// What keeps the output from being written.
pub fn run(args: &GenerateArgs) -> Result<()> {
    match &args.what {
        What::Completions { shell } => print(&completions(*shell)?).map(drop),
        What::Man { directory } => pages(directory),
    }
}

fn completions(shell: ShellArg) -> Result<String> {
    let (shell, names) = match shell {
        ShellArg::Bash => (Shell::Bash, BASH_NAMES),
        ShellArg::Zsh => (Shell::Zsh, ""),
        ShellArg::Fish => (Shell::Fish, FISH_NAMES),
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown_commands(), "sealift", &mut script);
    let script =
        String::from_utf8(script).map_err(|error| Error::new(ErrorKind::Internal, "completions").with_source(error))?;
    Ok(script + names)
}

/// The command line without what is hidden.
fn shown_commands() -> clap::Command {
    let command = Cli::command();
    let shown: Vec<clap::Command> =
        command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    clap::Command::new("sealift")
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        .disable_help_subcommand(true)
        .after_help(command.get_after_help().cloned().unwrap_or_default())
        .subcommands(shown)
}

fn pages(directory: &Path) -> Result<()> {
    let mut command = with_all_flags(shown_commands());
    command.build();
    page(&command, directory)
}

/// A command whose flags are all shown: a manual page need not fit a screen.
fn with_all_flags(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| arg.hide(false)).mut_subcommands(with_all_flags)
}

fn page(command: &clap::Command, directory: &Path) -> Result<()> {
    for inner in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        page(inner, directory)?;
    }
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let man = Man::new(command.clone().after_help(None::<&str>)).source(concat!("sealift ", env!("CARGO_PKG_VERSION")));
    let path = directory.join(man.get_filename());
    let write = || {
        let mut text = Vec::new();
        man.render(&mut text)?;
        // Lines of examples stay as they are.
        text.extend_from_slice(b".SH NOTES AND EXAMPLES\n.nf\n");
        for line in examples.lines() {
            let line = line.replace('\\', "\\\\").replace('-', "\\-");
            // A line that begins with one of these would be a command.
            let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
            writeln!(text, "{guard}{line}")?;
        }
        text.extend_from_slice(b".fi\n");
        std::fs::write(&path, text)
    };
    write().while_doing(|| format!("write the manual page {}", path.display()))
}
