//! The configuration file: named remotes, and nothing else yet.
//!
//! It is read only when an argument is written `NAME:PATH` or a command is about remotes. What it does not know is
//! an error with its line, never ignored: a misspelt `pins` would trust more than was meant. It is written whole,
//! beside the old one, and renamed into its place; comments and order of what a person wrote stay.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Deserializer, de};
use toml_edit::{DocumentMut, Item, Table, value};

use crate::cli::values;
use crate::client::remote::{Endpoint, is_name};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::tls::Pin;

/// Bytes of a configuration file; a longer one is not one.
const CONFIG_LEN_MAX: u64 = 1 << 20;

/// One remote of the file: where it is, whom to believe there, and what commands take if no flag says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The server.
    #[serde(deserialize_with = "endpoint")]
    pub address: Endpoint,
    /// As `--certs`.
    #[serde(default, deserialize_with = "path")]
    pub certs: Option<PathBuf>,
    /// As `--ca`.
    #[serde(default, deserialize_with = "path")]
    pub ca: Option<PathBuf>,
    /// As `--cert`.
    #[serde(default, deserialize_with = "path")]
    pub cert: Option<PathBuf>,
    /// As `--key`.
    #[serde(default, deserialize_with = "path")]
    pub key: Option<PathBuf>,
    /// As `--pin`.
    #[serde(default, deserialize_with = "pins")]
    pub pins: Vec<Pin>,
    /// As `--timeout`.
    #[serde(default, deserialize_with = "timeout")]
    pub timeout: Option<Duration>,
    /// As `--streams`.
    #[serde(default, deserialize_with = "streams")]
    pub streams: Option<u16>,
}

impl Profile {
    /// A remote of which only the address is known.
    #[must_use]
    pub fn at(address: Endpoint) -> Profile {
        Profile {
            address,
            certs: None,
            ca: None,
            cert: None,
            key: None,
            pins: Vec::new(),
            timeout: None,
            streams: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(default)]
    remotes: BTreeMap<Name, Profile>,
}

/// A name that `NAME:PATH` can begin with.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        let text = String::deserialize(deserializer)?;
        if is_name(&text) { Ok(Name(text)) } else { Err(de::Error::custom(name_rule(&text))) }
    }
}

fn endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Endpoint, D::Error> {
    let text = String::deserialize(deserializer)?;
    address(&text).map_err(|error| de::Error::custom(error.chain()))
}

fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Err(de::Error::custom("an empty path")) } else { Ok(Some(PathBuf::from(text))) }
}

fn pins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Pin>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    if texts.is_empty() {
        return Err(de::Error::custom("`pins` names no pin: leave it out, or name one"));
    }
    texts.iter().map(|text| text.parse().map_err(|error: Error| de::Error::custom(error.chain()))).collect()
}

fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    values::duration(&String::deserialize(deserializer)?).map(Some).map_err(de::Error::custom)
}

fn streams<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let number = u16::deserialize(deserializer)?;
    values::streams(number).map(Some).map_err(de::Error::custom)
}

/// A server's address as `remote add` and the file take it: `HOST[:PORT]`, with or without `sealift://` before it.
///
/// # Errors
/// [`ErrorKind::Usage`] with the rule that is broken.
pub fn address(text: &str) -> Result<Endpoint> {
    let rest = match text.get(..10) {
        Some(scheme) if scheme.eq_ignore_ascii_case("sealift://") => &text[10..],
        _ => text,
    };
    let host = rest.strip_suffix('/').unwrap_or(rest);
    if host.contains('/') {
        return Err(usage("the address of a remote is HOST[:PORT], without a path"));
    }
    Endpoint::parse(host.as_bytes())
}

/// What is wrong with a name.
pub(super) fn name_rule(name: &str) -> String {
    format!(
        "`{}` cannot be the name of a remote: a letter, then letters, digits, `-` and `_`, two characters or more",
        crate::path::escape_text(name)
    )
}

/// The file as it was read.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    remotes: BTreeMap<String, Profile>,
}

impl Config {
    /// Where the file is: `SEALIFT_CONFIG`, or below `XDG_CONFIG_HOME` or the home directory. None: nothing says so.
    pub fn place(environment: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = || {
            // The specification of these directories says that relative ones count as not set.
            let configured = variable("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
            configured.or_else(|| Some(variable("HOME")?.join(".config")))
        };
        variable("SEALIFT_CONFIG").or_else(|| Some(folder()?.join("sealift/config.toml")))
    }

    /// Reads the file. One that is not there has no remotes.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when it cannot be read, can be changed by everybody, or holds what is not understood.
    pub fn load(environment: impl Fn(&str) -> Option<OsString>) -> Result<Config> {
        let path = Config::place(environment).ok_or_else(|| {
            usage("where the configuration is cannot be told: neither SEALIFT_CONFIG, XDG_CONFIG_HOME nor HOME is set")
        })?;
        let text = read(&path)?;
        let mut remotes = parse(&text, &path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for profile in remotes.values_mut() {
            let paths = [&mut profile.certs, &mut profile.ca, &mut profile.cert, &mut profile.key];
            for path in paths.into_iter().flatten() {
                // Relative to the file, so that a folder with both can be moved.
                *path = folder.join(&*path);
            }
        }
        Ok(Config { path, remotes })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All remotes, by name.
    pub fn remotes(&self) -> impl Iterator<Item = (&str, &Profile)> {
        self.remotes.iter().map(|(name, profile)| (name.as_str(), profile))
    }

    /// The remote of this name.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when there is none.
    pub fn remote(&self, name: &str) -> Result<&Profile> {
        self.remotes.get(name).ok_or_else(|| {
            let near = self.remotes.keys().find(|known| known.eq_ignore_ascii_case(name));
            let hint = match near {
                Some(near) => format!("there is `{near}`"),
                None => "`sealift remote ls` names those that there are".to_owned(),
            };
            usage(format!("no remote is configured as `{name}` in {} ({hint})", self.path.display()))
        })
    }

    /// Enters a remote, or takes one out, and writes the file.
    ///
    /// # Errors
    /// What keeps it from being written; the old file is whole then.
    pub fn change(&self, name: &str, profile: Option<&Profile>) -> Result<()> {
        // Whoever keeps the file elsewhere by a link keeps it there.
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let doing = || format!("write the configuration {}", self.path.display());
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folder.exists() {
            let mut builder = fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
            builder.create(folder).while_doing(doing)?;
        }
        let directory = File::open(folder).while_doing(doing)?;
        // Two that change it at once take turns; it is given back when the handle is closed.
        flock(&directory, FlockOperation::LockExclusive).while_doing(doing)?;
        let text = read(&path)?;
        parse(&text, &path)?;
        let mut document: DocumentMut =
            text.parse().map_err(|error: toml_edit::TomlError| usage(error.message().to_owned()))?;
        edit(&mut document, name, profile)?;
        let text = document.to_string();
        // What would not be read again is not written.
        parse(&text, &path)?;
        let staged = folder.join(format!(".config-{}.tmp", std::process::id()));
        let written = (|| {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&staged, &path)?;
            directory.sync_all()
        })();
        if written.is_err() {
            // It may not have got that far.
            let _ = fs::remove_file(&staged);
        }
        written.while_doing(doing)
    }
}

fn read(path: &Path) -> Result<String> {
    let doing = || format!("read the configuration {}", path.display());
    let refused = |error: Error| error.with_kind(ErrorKind::Usage);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        file => file.while_doing(doing).map_err(refused)?,
    };
    let metadata = file.metadata().while_doing(doing).map_err(refused)?;
    // It says whom to believe.
    if metadata.mode() & 0o002 != 0 {
        return Err(usage(format!("{}: everybody may change it (chmod o-w)", doing())));
    }
    if metadata.len() > CONFIG_LEN_MAX {
        return Err(usage(format!("{}: it is longer than {CONFIG_LEN_MAX} bytes", doing())));
    }
    io::read_to_string(io::Read::take(file, CONFIG_LEN_MAX)).while_doing(doing).map_err(refused)
}

fn parse(text: &str, path: &Path) -> Result<BTreeMap<String, Profile>> {
    let contents: Contents = toml_edit::de::from_str(text).map_err(|error| {
        let line = |at: usize| 1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count();
        let place = error.span().map_or_else(String::new, |span| format!(", line {}", line(span.start)));
        // Its sentences may have several lines.
        let what = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        usage(format!("the configuration {}{place}: {}", path.display(), crate::path::escape_text(&what)))
    })?;
    Ok(contents.remotes.into_iter().map(|(name, profile)| (name.0, profile)).collect())
}

fn edit(document: &mut DocumentMut, name: &str, profile: Option<&Profile>) -> Result<()> {
    let remotes = document.entry("remotes").or_insert_with(|| {
        let mut table = Table::new();
        // Only `[remotes.NAME]` is written.
        table.set_implicit(true);
        Item::Table(table)
    });
    let Some(remotes) = remotes.as_table_like_mut() else {
        return Err(usage("`remotes` in the configuration is no table"));
    };
    let Some(profile) = profile else {
        remotes.remove(name);
        return Ok(());
    };
    let item = remotes.entry(name).or_insert_with(|| Item::Table(Table::new()));
    let Some(table) = item.as_table_like_mut() else {
        return Err(usage(format!("`remotes.{name}` in the configuration is no table")));
    };
    let mut set = |key: &str, new: Option<toml_edit::Value>| match new {
        Some(new) => {
            // Comments beside a value stay with it.
            let mut item = value(new);
            let old = table.get(key).and_then(Item::as_value).map(|old| old.decor().clone());
            if let (Some(new), Some(old)) = (item.as_value_mut(), old) {
                *new.decor_mut() = old;
            }
            table.insert(key, item);
        }
        None => drop(table.remove(key)),
    };
    set("address", Some(format!("{}", profile.address).into()));
    let files = [("certs", &profile.certs), ("ca", &profile.ca), ("cert", &profile.cert), ("key", &profile.key)];
    for (key, path) in files {
        let text = match path {
            Some(path) => Some(path.to_str().ok_or_else(|| usage(format!("{} is not text", path.display())))?),
            None => None,
        };
        set(key, text.map(Into::into));
    }
    let pins: toml_edit::Array = profile.pins.iter().map(ToString::to_string).collect();
    set("pins", (!pins.is_empty()).then(|| pins.into()));
    set("timeout", profile.timeout.map(|time| format!("{}s", time.as_secs()).into()));
    set("streams", profile.streams.map(|count| i64::from(count).into()));
    Ok(())
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const PIN: &str = "sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn at(path: &Path) -> impl Fn(&str) -> Option<OsString> {
        let path = path.as_os_str().to_owned();
        move |name| (name == "SEALIFT_CONFIG").then(|| path.clone())
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn it_is_where_the_environment_says() {
        let place = |list: &[(&str, &str)]| {
            Config::place(|name| list.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)))
        };
        let all = [("SEALIFT_CONFIG", "c.toml"), ("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(place(&all), Some("c.toml".into()));
        assert_eq!(place(&all[1..]), Some("/x/sealift/config.toml".into()));
        assert_eq!(place(&all[2..]), Some("/h/.config/sealift/config.toml".into()));
        assert_eq!(place(&[("XDG_CONFIG_HOME", "x"), ("HOME", "/h")]), Some("/h/.config/sealift/config.toml".into()));
        assert_eq!(place(&[("SEALIFT_CONFIG", "")]), None);
    }

    #[test]
    fn all_keys_are_read() {
        let text = format!(
            "[remotes.nas]\naddress = \"nas:9\"\ncerts = \"/c\"\npins = [\"{PIN}\"]\ntimeout = \"2s\"\nstreams = 4\n\
             [remotes.two-2]\naddress = 'sealift://[::1]/'\nca = 'ca.pem'\ncert = '/c'\nkey = '/k'\n"
        );
        let file = file(&text);
        let config = Config::load(at(file.path())).unwrap();
        let nas = config.remote("nas").unwrap();
        assert_eq!((nas.address.host(), nas.address.port(), nas.streams), ("nas", 9, Some(4)));
        assert_eq!((nas.timeout, nas.pins.len()), (Some(Duration::from_secs(2)), 1));
        let two = config.remote("two-2").unwrap();
        // Relative to the file.
        assert_eq!(two.ca.as_deref(), Some(&*file.path().parent().unwrap().join("ca.pem")));
        assert_eq!(two.key.as_deref(), Some(Path::new("/k")));
        assert!(config.remote("NAS").unwrap_err().chain().contains("there is `nas`"));
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line() {
        for (text, expected) in [
            ("[remotes.nas]\naddress = \"nas\"\npin = \"x\"\n", "line 3: unknown field `pin`"),
            ("colour = true\n", "line 1: unknown field `colour`"),
            ("[remotes.nas]\ncerts = \"c\"\n", "line 1: missing field `address`"),
            ("[remotes.nas]\naddress = \"a b\"\n", "line 2: `a b` is neither a host name nor an address"),
            ("[remotes.nas]\naddress = \"nas/x\"\n", "line 2: the address of a remote is HOST[:PORT]"),
            ("[remotes.nas]\naddress = \"nas\"\npins = []\n", "line 3: `pins` names no pin"),
            ("[remotes.nas]\naddress = \"nas\"\npins = [\"x\"]\n", "line 3: `x` is not a pin"),
            ("[remotes.nas]\naddress = \"nas\"\n\ntimeout = \"5\"\n", "line 4: a length of time"),
            ("[remotes.nas]\naddress = \"nas\"\nstreams = 33\n", "line 3: connections of one transfer"),
            ("[remotes.n]\naddress = \"nas\"\n", "`n` cannot be the name of a remote"),
            ("[remotes.nas\n", "line 1: "),
        ] {
            let file = file(text);
            let error = Config::load(at(file.path())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.chain().contains(expected), "{text}: {}", error.chain());
            assert!(!error.chain().contains('\n'));
        }
    }

    #[test]
    fn what_a_person_wrote_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/config.toml");
        let config = Config::load(at(&path)).unwrap();
        let profile = |address: &str| Profile {
            pins: vec![PIN.parse().unwrap()],
            ..Profile::at(super::address(address).unwrap())
        };
        config.change("nas", Some(&profile("nas"))).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!("[remotes.nas]\naddress = \"nas\"\npins = [\"{PIN}\"]\n")
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let mut text = fs::read_to_string(&path).unwrap();
        text.insert_str(0, "# mine\n\n");
        text = text.replace("address = \"nas\"", "address = \"nas\" # in the cellar");
        text.push_str("\n# kept\n[remotes.other]\naddress = \"o\"\n");
        fs::write(&path, &text).unwrap();
        config.change("nas", Some(&profile("nas:9"))).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text.replace("\"nas\" #", "\"nas:9\" #"));
        config.change("nas", None).unwrap();
        let rest = fs::read_to_string(&path).unwrap();
        assert!(rest.ends_with("# kept\n[remotes.other]\naddress = \"o\"\n") && !rest.contains("nas"), "{rest}");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        // A file that is not understood is not written over.
        fs::write(&path, "colour = 1\n").unwrap();
        assert!(config.change("nas", Some(&profile("nas"))).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "colour = 1\n");
    }

    #[test]
    fn a_file_that_everybody_may_change_is_refused() {
        let file = file("");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o646)).unwrap();
        assert!(Config::load(at(file.path())).unwrap_err().chain().contains("everybody may change it"));
    }
}
