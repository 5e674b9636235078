//! Whom a command trusts and what it proves itself with: flags first, then the environment, then what the
//! configuration says of the remote that the command names; nothing implicitly.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::config::Profile;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::tls::{self, ClientOptions, Pin, ServerOptions};

/// The flags of every command that connects. Each can also come from the environment, where it is looked for by
/// itself: a pin that stands there still counts when `--certs` is given.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Trust (also as SEALIFT_CERTS, SEALIFT_CA, SEALIFT_CERT, SEALIFT_KEY, SEALIFT_PIN)")]
pub struct TrustArgs {
    /// Folder with ca.pem, client.pem and client-key.pem
    #[arg(long, value_name = "DIR", conflicts_with_all = ["ca", "cert", "key"])]
    pub certs: Option<PathBuf>,
    /// Certificates that may have signed the server's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Own certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// The server's key as `serve` prints it, sha256:… (repeatable)
    #[arg(long, value_name = "PIN")]
    pub pin: Vec<Pin>,
}

/// The flags that say how a server proves itself, and whom it knows. With any of them, the environment is not asked:
/// it could only let in more people than the flags say.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Who is who (certs, cert and key also as SEALIFT_CERTS, SEALIFT_CERT, SEALIFT_KEY)")]
pub struct ServerIdentityArgs {
    /// Folder with server.pem, server-key.pem, ca.pem for clients, any crl.pem
    #[arg(long, value_name = "DIR", conflicts_with_all = ["cert", "key", "client_ca", "crl"])]
    pub certs: Option<PathBuf>,
    /// The server's certificate chain
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Its private key, which others must not be able to read
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Certificates that may have signed a client's
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub client_ca: Option<PathBuf>,
    /// Certificates that are revoked
    #[arg(long, value_name = "FILE", requires = "client_ca")]
    pub crl: Option<PathBuf>,
}

impl TrustArgs {
    /// Decides between flags, environment and the remote of the configuration; `environment` answers for a variable
    /// of that name.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when nobody would be trusted, or half a pair is given.
    pub fn resolve(
        &self,
        environment: impl Fn(&str) -> Option<OsString>,
        profile: Option<&Profile>,
    ) -> Result<ClientOptions> {
        let variables = Variables(environment);
        let near = Level {
            folder: self.certs.clone(),
            ca: self.ca.clone(),
            identity: pair(self.cert.clone(), self.key.clone(), "--cert", "--key")?,
        };
        let far = Level {
            folder: variables.path("SEALIFT_CERTS"),
            ca: variables.path("SEALIFT_CA"),
            identity: variables.identity()?,
        };
        let file = match profile {
            Some(profile) => Level {
                folder: profile.certs.clone(),
                ca: profile.ca.clone(),
                identity: pair(profile.cert.clone(), profile.key.clone(), "`cert` in the configuration", "`key`")?,
            },
            None => Level { folder: None, ca: None, identity: None },
        };
        let ca = near.ca().or_else(|| far.ca()).or_else(|| file.ca());
        let (certificate, key) = near.identity().or_else(|| far.identity()).or_else(|| file.identity()).unzip();
        let mut pins = self.pin.clone();
        if pins.is_empty() {
            pins = pins_of(variables.get("SEALIFT_PIN").as_deref())?;
        }
        if pins.is_empty() {
            pins = profile.map(|profile| profile.pins.clone()).unwrap_or_default();
        }
        if ca.is_none() && pins.is_empty() {
            return Err(usage(
                "whom to trust is not said: give --certs DIR, --ca FILE or --pin sha256:… (nothing is looked up by \
                 itself)",
            ));
        }
        Ok(ClientOptions { ca, certificate, key, pins })
    }
}

impl ServerIdentityArgs {
    /// Decides between flags and environment; `environment` answers for a variable of that name.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when there is no certificate, or nobody could connect.
    pub fn resolve(
        &self,
        allow_anonymous: bool,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<ServerOptions> {
        let variables = Variables(environment);
        let options = if let Some(folder) = &self.certs {
            in_folder(folder)?
        } else if let Some((certificate, key)) = pair(self.cert.clone(), self.key.clone(), "--cert", "--key")? {
            let alpn = vec![tls::ALPN.to_vec()];
            let (client_ca, crl) = (self.client_ca.clone(), self.crl.clone());
            ServerOptions { certificate, key, client_ca, crl, allow_anonymous, alpn }
        } else if let Some((certificate, key)) = variables.identity()? {
            let alpn = vec![tls::ALPN.to_vec()];
            let (client_ca, crl) = (variables.path("SEALIFT_CLIENT_CA"), variables.path("SEALIFT_CRL"));
            ServerOptions { certificate, key, client_ca, crl, allow_anonymous, alpn }
        } else if let Some(folder) = variables.path("SEALIFT_CERTS") {
            in_folder(&folder)?
        } else {
            return Err(usage("a server needs a certificate: give --certs DIR, or --cert FILE and --key FILE"));
        };
        if options.client_ca.is_none() && !allow_anonymous {
            return Err(usage(
                "who may connect is not said: give --client-ca FILE (or a --certs folder with ca.pem), or \
                 --allow-anonymous",
            ));
        }
        Ok(ServerOptions { allow_anonymous, ..options })
    }
}

/// What a server takes from a folder. One that is not there has no authority in it either, but that is not what went
/// wrong.
fn in_folder(folder: &Path) -> Result<ServerOptions> {
    folder.metadata().while_doing(|| format!("read the folder {}", folder.display()))?;
    Ok(ServerOptions::in_folder(folder))
}

/// What the flags say, or the environment.
struct Level {
    folder: Option<PathBuf>,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

impl Level {
    fn in_folder(&self) -> Option<ClientOptions> {
        self.folder.as_deref().map(ClientOptions::in_folder)
    }

    fn ca(&self) -> Option<PathBuf> {
        self.ca.clone().or_else(|| self.in_folder()?.ca)
    }

    fn identity(&self) -> Option<(PathBuf, PathBuf)> {
        self.identity.clone().or_else(|| {
            let options = self.in_folder()?;
            options.certificate.zip(options.key)
        })
    }
}

/// The environment. A variable that is empty is not there.
struct Variables<F>(F);

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    fn get(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    fn identity(&self) -> Result<Option<(PathBuf, PathBuf)>> {
        pair(self.path("SEALIFT_CERT"), self.path("SEALIFT_KEY"), "SEALIFT_CERT", "SEALIFT_KEY")
    }
}

fn pair(left: Option<PathBuf>, right: Option<PathBuf>, name: &str, other: &str) -> Result<Option<(PathBuf, PathBuf)>> {
    match (left, right) {
        (Some(left), Some(right)) => Ok(Some((left, right))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(usage(format!("{name} needs {other}"))),
        (None, Some(_)) => Err(usage(format!("{other} needs {name}"))),
    }
}

/// Pins of the environment, between commas or blanks.
fn pins_of(value: Option<&OsStr>) -> Result<Vec<Pin>> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let text = value.to_str().ok_or_else(|| usage("SEALIFT_PIN is not text"))?;
    let pins = text.split([',', ' ']).filter(|pin| !pin.is_empty()).map(str::parse);
    let pins: Vec<Pin> = pins.collect::<Result<_>>().map_err(|error| error.context("SEALIFT_PIN"))?;
    // A variable that names no pin although it is set would quietly trust more than was meant.
    if pins.is_empty() { Err(usage("SEALIFT_PIN is set and names no pin")) } else { Ok(pins) }
}

/// The environment of this process.
#[must_use]
pub fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        move |name| list.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    }

    type Shown = (Option<PathBuf>, Option<(PathBuf, PathBuf)>, usize);

    fn client(flags: &TrustArgs, list: &[(&str, &str)]) -> Result<Shown, String> {
        let options = flags.resolve(variables(list), None).map_err(|error| error.chain())?;
        Ok((options.ca, options.certificate.zip(options.key), options.pins.len()))
    }

    fn some(path: &str) -> Option<PathBuf> {
        Some(PathBuf::from(path))
    }

    fn pin(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    /// A folder as `sealift certs` makes it, with empty files.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ca.pem", "client.pem", "client-key.pem", "server.pem", "server-key.pem"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        folder
    }

    #[test]
    fn nobody_is_trusted_by_default() {
        let flags = TrustArgs::default();
        for list in [&[][..], &[("SEALIFT_CA", "")], &[("SEALIFT_CERT", "c"), ("SEALIFT_KEY", "k")]] {
            assert!(client(&flags, list).unwrap_err().contains("whom to trust"));
        }
    }

    #[test]
    fn a_folder_names_all_three() {
        let (near, far) = (folder(), folder());
        let name = |folder: &tempfile::TempDir| folder.path().to_str().unwrap().to_owned();
        let of = |folder: &tempfile::TempDir| {
            let file = |name: &str| folder.path().join(name);
            (Some(file("ca.pem")), Some((file("client.pem"), file("client-key.pem"))), 0)
        };
        let flags = TrustArgs { certs: Some(near.path().to_owned()), ..TrustArgs::default() };
        assert_eq!(client(&flags, &[]), Ok(of(&near)));
        assert_eq!(client(&TrustArgs::default(), &[("SEALIFT_CERTS", &name(&far))]), Ok(of(&far)));
        let others =
            [("SEALIFT_CERTS", &*name(&far)), ("SEALIFT_CA", "a"), ("SEALIFT_CERT", "c"), ("SEALIFT_KEY", "k")];
        assert_eq!(client(&flags, &others), Ok(of(&near)));
    }

    #[test]
    fn flags_come_before_the_environment_one_by_one() {
        let far = folder();
        let flags = TrustArgs { ca: some("own"), ..TrustArgs::default() };
        let (ca, identity, _) = client(&flags, &[("SEALIFT_CERTS", far.path().to_str().unwrap())]).unwrap();
        assert_eq!((ca, identity.is_some()), (some("own"), true));
        assert_eq!(client(&flags, &[]), Ok((some("own"), None, 0)));
    }

    #[test]
    fn a_pin_of_the_environment_is_not_forgotten() {
        let pins = format!("{}, {}", pin("0a"), pin("0b"));
        let list = [("SEALIFT_PIN", &*pins)];
        let flags = TrustArgs { ca: some("own"), ..TrustArgs::default() };
        assert_eq!(client(&flags, &list), Ok((some("own"), None, 2)));
        let flags = TrustArgs { pin: vec![pin("0c").parse().unwrap()], ..TrustArgs::default() };
        assert_eq!(client(&flags, &list), Ok((None, None, 1)));
        assert!(client(&TrustArgs { ca: some("own"), ..TrustArgs::default() }, &[("SEALIFT_PIN", ",")]).is_err());
    }

    #[test]
    fn half_a_pair_is_refused() {
        let halves = [("SEALIFT_CA", "a"), ("SEALIFT_CERT", "c")];
        assert!(client(&TrustArgs::default(), &halves).unwrap_err().contains("SEALIFT_CERT needs SEALIFT_KEY"));
    }

    #[test]
    fn a_server_says_who_may_connect() {
        let resolve = |flags: &ServerIdentityArgs, anonymous, list: &[(&str, &str)]| {
            flags.resolve(anonymous, variables(list)).map_err(|error| error.chain())
        };
        let none = ServerIdentityArgs::default();
        assert!(resolve(&none, true, &[]).unwrap_err().contains("needs a certificate"));
        let bare = ServerIdentityArgs { cert: some("c"), key: some("k"), ..ServerIdentityArgs::default() };
        assert!(resolve(&bare, false, &[]).unwrap_err().contains("who may connect"));
        assert!(resolve(&bare, true, &[]).unwrap().allow_anonymous);
        // The environment never widens what flags say.
        let folder = folder();
        let list = [("SEALIFT_CERTS", folder.path().to_str().unwrap()), ("SEALIFT_CLIENT_CA", "a")];
        assert!(resolve(&bare, false, &list).unwrap_err().contains("who may connect"));
        let options = resolve(&none, false, &list).unwrap();
        assert_eq!((options.certificate, options.allow_anonymous), (folder.path().join("server.pem"), false));
    }
}
