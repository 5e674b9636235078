//! Handshakes between our client and our server, with every kind of certificate that must not work, and what each
//! side is told then.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use sealift::tls::{
    self, ClientOptions, ClientTls, Pin, Principal, ServerOptions, ServerTls, explain_client_error,
    explain_server_error,
};
use sealift::{Error, ErrorKind};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A directory of keys and certificates, right and wrong ones.
struct World {
    folder: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl World {
    fn new() -> World {
        let world = World { folder: tempfile::tempdir().unwrap(), ca: authority("the CA") };
        world.write("ca.pem", &world.ca.pem());
        world.leaf("server", server());
        world.leaf("client", client("alice"));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// A certificate by the right authority.
    fn leaf(&self, stem: &str, params: CertificateParams) -> KeyPair {
        self.leaf_by(&self.ca, stem, params)
    }

    fn leaf_by(&self, ca: &CertifiedIssuer<'static, KeyPair>, stem: &str, params: CertificateParams) -> KeyPair {
        let key = KeyPair::generate().unwrap();
        self.write(&format!("{stem}.pem"), &params.signed_by(&key, ca).unwrap().pem());
        self.write(&format!("{stem}-key.pem"), &key.serialize_pem());
        key
    }

    fn revocation_list(&self, name: &str, ca: &CertifiedIssuer<'static, KeyPair>, serials: &[u64], until: Duration) {
        let list = CertificateRevocationListParams {
            this_update: now() - Duration::days(9),
            next_update: now() + until,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|&serial| RevokedCertParams {
                    serial_number: SerialNumber::from(serial),
                    revocation_time: now() - Duration::DAY,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        self.write(name, &list.signed_by(ca).unwrap().pem().unwrap());
    }

    fn server_options(&self) -> ServerOptions {
        ServerOptions::in_folder(self.folder.path())
    }

    fn client_options(&self, stem: &str) -> ClientOptions {
        ClientOptions {
            ca: Some(self.path("ca.pem")),
            certificate: Some(self.path(&format!("{stem}.pem"))),
            key: Some(self.path(&format!("{stem}-key.pem"))),
            pins: Vec::new(),
        }
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = base(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn base(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = now() - Duration::HOUR;
    params.not_after = now() + Duration::days(90);
    params.serial_number = Some(SerialNumber::from(7));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn client(name: &str) -> CertificateParams {
    let mut params = base(name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn server() -> CertificateParams {
    let mut params = base("a server");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names =
        vec![SanType::DnsName("localhost".try_into().unwrap()), SanType::IpAddress("127.0.0.1".parse().unwrap())];
    params
}

/// What each side has at the end of a handshake and the first byte from the server.
struct Ended {
    client: Result<(String, Vec<String>), Error>,
    server: Result<Option<Principal>, Error>,
}

/// As the real thing does it: the client finishes first, then reads what the server says.
async fn meet(server: &ServerTls, client: &ClientTls, host: &str) -> Ended {
    meet_with(server.config(), client, client.config(), host).await
}

async fn meet_with(
    server: Arc<rustls::ServerConfig>,
    client: &ClientTls,
    config: Arc<rustls::ClientConfig>,
    host: &str,
) -> Ended {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let client_side = async {
        let name = tls::server_name(host)?;
        let connected = TlsConnector::from(config).connect(name, near).await;
        let mut stream = connected.map_err(|error| explain_client_error(error, host))?;
        let described = tls::describe(stream.get_ref().1);
        let warnings = client.accept_server(stream.get_ref().1, host)?;
        stream.read_u8().await.map_err(|error| explain_client_error(error, host))?;
        Ok((described, warnings))
    };
    let server_side = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await.map_err(explain_server_error)?;
        tls::require_native(stream.get_ref().1)?;
        let principal = Principal::of_peer(stream.get_ref().1.peer_certificates())?;
        stream.write_u8(1).await.map_err(explain_server_error)?;
        stream.flush().await.map_err(explain_server_error)?;
        Ok(principal)
    };
    let (client, server) = tokio::join!(client_side, server_side);
    Ended { client, server }
}

#[track_caller]
fn check_refused<T>(case: &str, result: Result<T, Error>, kind: ErrorKind, sentence: &str) {
    let error = result.err().unwrap_or_else(|| panic!("{case}: must be refused"));
    assert_eq!((error.kind(), error.to_string().as_str()), (kind, sentence), "{case}");
}

#[tokio::test]
async fn the_right_certificates_work_and_the_key_exchange_is_hybrid() {
    let world = World::new();
    let server = ServerTls::load(&world.server_options()).unwrap();
    let client = ClientTls::load(&ClientOptions::in_folder(world.folder.path())).unwrap();
    for host in ["localhost", "127.0.0.1"] {
        let ended = meet(&server, &client, host).await;
        let (described, warnings) = ended.client.unwrap();
        assert_eq!(described, "TLS 1.3, X25519MLKEM768, TLS13_AES_256_GCM_SHA384");
        assert_eq!(warnings, [""; 0]);
        assert_eq!(ended.server.unwrap().expect("somebody").name(), Some("alice"));
    }
    assert!(server.warnings(now()).is_empty(), "{:?}", server.warnings(now()));
}

#[tokio::test]
async fn a_classical_peer_still_works() {
    let world = World::new();
    let server = ServerTls::load(&world.server_options()).unwrap();
    let client = ClientTls::load(&world.client_options("client")).unwrap();
    let mut provider = rustls::crypto::CryptoProvider::clone(client.config().crypto_provider());
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let config = classical(&world, provider);
    let ended = meet_with(server.config(), &client, Arc::new(config), "localhost").await;
    assert_eq!(ended.client.unwrap().0, "TLS 1.3, X25519, TLS13_AES_256_GCM_SHA384");
}

/// A plain client of the library, to leave out one thing at a time.
fn classical(world: &World, provider: rustls::crypto::CryptoProvider) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in tls::pem::load_certificates(&world.path("ca.pem")).unwrap() {
        roots.add(certificate).unwrap();
    }
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            tls::pem::load_certificates(&world.path("client.pem")).unwrap(),
            tls::pem::load_private_key(&world.path("client-key.pem")).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    config
}

#[tokio::test]
async fn sessions_are_not_resumed() {
    let world = World::new();
    let server = ServerTls::load(&world.server_options()).unwrap();
    let provider = rustls::crypto::CryptoProvider::clone(&tls::provider());
    // A client that would resume if it could.
    let config = Arc::new(classical(&world, provider));
    for _ in 0..3 {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let client = async {
            let name = tls::server_name("localhost").unwrap();
            let mut stream = TlsConnector::from(config.clone()).connect(name, near).await.unwrap();
            stream.read_u8().await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        };
        let server = async {
            let mut stream = TlsAcceptor::from(server.config()).accept(far).await.unwrap();
            stream.write_u8(1).await.unwrap();
            stream.flush().await.unwrap();
        };
        tokio::join!(client, server);
    }
}

#[tokio::test]
async fn wrong_client_certificates_are_refused_and_the_client_is_told_why() {
    let world = World::new();
    let other = authority("another CA");
    let namesake = authority("the CA");
    world.leaf_by(&other, "foreign", client("alice"));
    world.leaf_by(&namesake, "namesake", client("alice"));
    let key = KeyPair::generate().unwrap();
    world.write("self.pem", &client("alice").self_signed(&key).unwrap().pem());
    world.write("self-key.pem", &key.serialize_pem());
    let mut params = client("alice");
    params.not_before = now() - Duration::days(9);
    params.not_after = now() - Duration::days(2);
    world.leaf("expired", params);
    let mut params = client("alice");
    params.not_before = now() + Duration::days(2);
    world.leaf("future", params);
    world.leaf("server-as-client", server());
    let mut params = client("alice");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    world.leaf("ca-as-client", params);
    let mut params = client("alice");
    params.serial_number = Some(SerialNumber::from(66));
    world.leaf("revoked", params);
    world.revocation_list("crl.pem", &world.ca, &[66], Duration::days(30));

    let not_accepted = "nas does not accept this client's certificate: ";
    let foreign = "it was not issued by the authority that the server trusts; ask whoever runs the server for one (`sealift certs --client NAME`)";
    let dates = "it has expired, or is not valid yet; ask whoever runs the server for a new one, or check the clocks of both machines";
    let server_says = "the client's certificate is not accepted: ";
    let at = |time: OffsetDateTime| {
        let time = time.to_string();
        // `2026-01-02 3:04:05.6 +00:00:00`: only the day is compared.
        time.split(' ').next().unwrap_or_default().to_owned()
    };
    for allow_anonymous in [false, true] {
        let options = ServerOptions { allow_anonymous, ..world.server_options() };
        let server = ServerTls::load(&options).unwrap();
        for (stem, told, logged) in [
            ("foreign", foreign, "it was not issued by a trusted authority".to_owned()),
            (
                "namesake",
                "the signature on it is not by the authority that the server trusts",
                "its signature is not by the authority that it names".to_owned(),
            ),
            ("self", foreign, "it was not issued by a trusted authority".to_owned()),
            ("expired", dates, format!("it expired on {}", at(now() - Duration::days(2)))),
            ("future", dates, format!("it is valid only from {}", at(now() + Duration::days(2)))),
            (
                "server-as-client",
                "it is not meant for clients (a server's certificate, for example)",
                "it is meant for another purpose".to_owned(),
            ),
            ("ca-as-client", "the reason is in the server's log", "CaUsedAsEndEntity".to_owned()),
            ("revoked", "it was revoked; ask whoever runs the server for another one", "it was revoked".to_owned()),
        ] {
            let mut options = world.client_options(stem);
            // The server's certificate is for other names: a pin alone, so that only the client's side is looked at.
            options.ca = None;
            options.pins = vec![server.pin()];
            let client = ClientTls::load(&options).unwrap();
            let ended = meet(&server, &client, "nas").await;
            check_refused(stem, ended.client, ErrorKind::Trust, &format!("{not_accepted}{told}"));
            let logs = ended.server.expect_err(stem);
            assert_eq!(logs.kind(), ErrorKind::Trust, "{stem}");
            assert!(logs.to_string().starts_with(&format!("{server_says}{logged}")), "{stem}: {logs}");
        }
        let client = ClientTls::load(&world.client_options("client")).unwrap();
        assert!(meet(&server, &client, "localhost").await.server.unwrap().is_some());
    }
}

#[tokio::test]
async fn no_certificate_is_refused_unless_anonymous_clients_are_let_in() {
    let world = World::new();
    let anonymous = ClientOptions { ca: Some(world.path("ca.pem")), ..ClientOptions::default() };
    let client = ClientTls::load(&anonymous).unwrap();

    let server = ServerTls::load(&world.server_options()).unwrap();
    let ended = meet(&server, &client, "localhost").await;
    check_refused(
        "no certificate",
        ended.client,
        ErrorKind::Trust,
        "localhost wants a client certificate and none was given: use `--certs DIR` with what `sealift certs --export NAME --to DIR` wrote there, or `--cert` and `--key`",
    );
    check_refused("no certificate", ended.server, ErrorKind::Trust, "the client showed no certificate");

    for client_ca in [None, Some(world.path("ca.pem"))] {
        let options = ServerOptions { client_ca, allow_anonymous: true, ..world.server_options() };
        let ended = meet(&ServerTls::load(&options).unwrap(), &client, "localhost").await;
        assert!(ended.client.is_ok());
        assert_eq!(ended.server.unwrap(), None);
    }
    let options = ServerOptions { client_ca: None, ..world.server_options() };
    check_refused(
        "nobody said who",
        ServerTls::load(&options),
        ErrorKind::Usage,
        "say who may connect: a client CA (`--client-ca FILE`, or `ca.pem` in the folder given with `--certs`), or `--allow-anonymous`",
    );
}

#[tokio::test]
async fn two_common_names_are_no_name() {
    let world = World::new();
    let mut params = client("alice");
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "root");
    world.leaf("two", params);
    let server = ServerTls::load(&world.server_options()).unwrap();
    let client = ClientTls::load(&world.client_options("two")).unwrap();
    let principal = meet(&server, &client, "localhost").await.server.unwrap().expect("somebody");
    assert_eq!(principal.name(), None);
}

#[tokio::test]
async fn a_revocation_list_past_its_date_lets_nobody_in_and_says_so() {
    let world = World::new();
    world.revocation_list("crl.pem", &world.ca, &[66], -Duration::HOUR);
    let server = ServerTls::load(&world.server_options()).unwrap();
    let warnings = server.warnings(now());
    assert!(
        warnings.iter().any(|text| text.contains("no certificate is let in until there is a newer one")),
        "{warnings:?}"
    );
    let client = ClientTls::load(&world.client_options("client")).unwrap();
    let ended = meet(&server, &client, "localhost").await;
    check_refused(
        "expired list",
        ended.client,
        ErrorKind::Trust,
        "localhost lets in no certificate at present, because its revocation list is past its date or does not fit: tell whoever runs the server",
    );
    check_refused(
        "expired list",
        ended.server,
        ErrorKind::Trust,
        "the client's certificate is not accepted: the revocation list is past its date or does not fit, so nobody's is",
    );

    world.revocation_list("crl.pem", &world.ca, &[66], Duration::days(6));
    let warnings = ServerTls::load(&world.server_options()).unwrap().warnings(now());
    assert!(warnings.iter().any(|text| text.contains("from then on no certificate is let in")), "{warnings:?}");
    world.revocation_list("crl.pem", &world.ca, &[66], Duration::days(8));
    assert!(ServerTls::load(&world.server_options()).unwrap().warnings(now()).is_empty());
}

#[test]
fn a_revocation_list_that_cannot_count_stops_the_server() {
    let world = World::new();
    let crl = world.path("crl.pem");
    world.write("crl.pem", "garbage");
    check_refused(
        "garbage",
        ServerTls::load(&world.server_options()),
        ErrorKind::Usage,
        &format!("{}: there is no revocation list (PEM, `BEGIN X509 CRL`) in it", crl.display()),
    );
    world.write("crl.pem", "-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n");
    check_refused(
        "damaged",
        ServerTls::load(&world.server_options()),
        ErrorKind::Usage,
        &format!("{}: not a valid X.509 revocation list", crl.display()),
    );
    for name in ["another CA", "the CA"] {
        world.revocation_list("crl.pem", &authority(name), &[], Duration::days(30));
        check_refused(
            name,
            ServerTls::load(&world.server_options()),
            ErrorKind::Usage,
            &format!(
                "{}: the revocation list is not by an authority of the client CA file, so it says nothing about its certificates",
                crl.display()
            ),
        );
    }
    // Only the first list of an authority would count: an older one in front must not hide a newer one.
    world.revocation_list("crl.pem", &world.ca, &[], Duration::days(30));
    let twice = fs::read_to_string(&crl).unwrap().repeat(2);
    world.write("crl.pem", &twice);
    check_refused(
        "two lists",
        ServerTls::load(&world.server_options()),
        ErrorKind::Usage,
        &format!("{}: there are two revocation lists of the same authority in it: keep the newer one", crl.display()),
    );
    fs::remove_file(&crl).unwrap();
    std::os::unix::fs::symlink("nowhere", &crl).unwrap();
    assert_eq!(ServerTls::load(&world.server_options()).map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
    let options = ServerOptions { client_ca: None, allow_anonymous: true, ..world.server_options() };
    assert_eq!(ServerTls::load(&options).map(|_| ()).unwrap_err().kind(), ErrorKind::Usage);
}

#[tokio::test]
async fn wrong_servers_are_refused_by_name_date_authority_and_purpose() {
    let world = World::new();
    let client = ClientTls::load(&world.client_options("client")).unwrap();
    let server = ServerTls::load(&world.server_options()).unwrap();
    let ended = meet(&server, &client, "nas.example.org").await;
    check_refused(
        "wrong name",
        ended.client,
        ErrorKind::Trust,
        "the certificate of nas.example.org is for localhost, 127.0.0.1: use one of these names, have it made for this one too (`sealift certs --host nas.example.org` there), or give `--pin` alone",
    );
    check_refused(
        "wrong name",
        ended.server,
        ErrorKind::Trust,
        "the client does not accept this server's certificate (BadCertificate)",
    );
    assert!(meet(&server, &client, "127.0.0.2").await.client.is_err());

    let day = |time: OffsetDateTime| time.date().to_string();
    let mut expired = server_params();
    expired.not_after = now() - Duration::days(2);
    expired.not_before = now() - Duration::days(9);
    let mut future = server_params();
    future.not_before = now() + Duration::days(2);
    let other = authority("another CA");
    let namesake = authority("the CA");
    let foreign = "the certificate of localhost was not issued by the authority given with `--ca` or `--certs`: take `ca.pem` from whoever runs the server".to_owned();
    let not_accepted = "the certificate of localhost is not accepted: ";
    for (case, ca, params, sentence) in [
        ("expired", &world.ca, expired, format!("{not_accepted}it expired on {}", day(now() - Duration::days(2)))),
        (
            "future",
            &world.ca,
            future,
            format!("{not_accepted}it is valid only from {}", day(now() + Duration::days(2))),
        ),
        ("foreign", &other, server_params(), foreign.clone()),
        ("namesake", &namesake, server_params(), foreign.clone()),
        (
            "purpose",
            &world.ca,
            client_as_server(),
            format!("{not_accepted}it is not meant for servers (a client's, for example)"),
        ),
    ] {
        world.leaf_by(ca, "server", params);
        let server = ServerTls::load(&world.server_options()).unwrap();
        let error = meet(&server, &client, "localhost").await.client.map(|_| ()).expect_err(case);
        assert_eq!(error.kind(), ErrorKind::Trust, "{case}");
        assert!(error.to_string().starts_with(&sentence), "{case}: {error}");
    }
}

fn server_params() -> CertificateParams {
    server()
}

fn client_as_server() -> CertificateParams {
    let mut params = server();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

#[tokio::test]
async fn a_pin_alone_decides_and_with_an_authority_both_do() {
    let world = World::new();
    let server_tls = ServerTls::load(&world.server_options()).unwrap();
    let right = server_tls.pin();
    let wrong = Pin::of_public_key(b"another");
    let options = |ca: bool, pins: &[Pin]| ClientOptions {
        ca: ca.then(|| world.path("ca.pem")),
        pins: pins.to_vec(),
        ..world.client_options("client")
    };
    let load = |ca: bool, pins: &[Pin]| ClientTls::load(&options(ca, pins)).unwrap();
    let wrong_pin = format!(
        "HOST does not have the pinned key; unless whoever runs the server confirms the one it has, something else answers in its place: its key has the pin {right}"
    );

    assert!(meet(&server_tls, &load(false, &[right]), "any.name.at.all").await.client.is_ok());
    assert!(meet(&server_tls, &load(false, &[wrong, right]), "any").await.client.is_ok());
    for ca in [false, true] {
        let ended = meet(&server_tls, &load(ca, &[wrong]), "localhost").await;
        let error = ended.client.map(|_| ()).unwrap_err();
        assert!(sealift::tls::is_wrong_pin(&error), "{error}");
        assert_eq!((error.kind(), error.chain()), (ErrorKind::Trust, wrong_pin.replace("HOST", "localhost")));
    }
    assert!(meet(&server_tls, &load(true, &[right]), "localhost").await.client.is_ok());
    let error = meet(&server_tls, &load(true, &[right]), "nas").await.client.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("is for localhost"), "{error}");

    // Expired, not meant for servers, self-signed: a pinned key is enough, and the person hears of the date.
    let mut params = client("alice");
    params.not_before = now() - Duration::days(9);
    params.not_after = now() - Duration::days(2);
    let key = KeyPair::generate().unwrap();
    world.write("server.pem", &params.self_signed(&key).unwrap().pem());
    world.write("server-key.pem", &key.serialize_pem());
    let server_tls = ServerTls::load(&world.server_options()).unwrap();
    let (_, warnings) = meet(&server_tls, &load(false, &[server_tls.pin()]), "nas").await.client.unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("the certificate of nas expired on "), "{warnings:?}");
    let warnings = server_tls.warnings(now());
    assert!(warnings.iter().any(|text| text.contains("clients refuse it")), "{warnings:?}");

    check_refused(
        "neither",
        ClientTls::load(&options(false, &[])),
        ErrorKind::Usage,
        "say how to know the server: `--certs DIR` or `--ca FILE` with the authority of its certificate, or `--pin sha256:…` with the pin that `sealift serve` and `sealift certs` print there",
    );
}

/// The pinned certificate shown by somebody who does not have its key.
#[tokio::test]
async fn a_pin_must_be_proven() {
    let world = World::new();
    let honest = ServerTls::load(&world.server_options()).unwrap();
    let chain = tls::pem::load_certificates(&world.path("server.pem")).unwrap();
    let thief = KeyPair::generate().unwrap();
    let thief = world.write("thief-key.pem", &thief.serialize_pem());
    let provider = tls::provider();
    let key = provider.key_provider.load_private_key(tls::pem::load_private_key(&thief).unwrap()).unwrap();
    let certified = Arc::new(rustls::sign::CertifiedKey::new(chain, key));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    let options = ClientOptions { pins: vec![honest.pin()], ..ClientOptions::default() };
    let client = ClientTls::load(&options).unwrap();
    let ended = meet_with(Arc::new(config), &client, client.config(), "localhost").await;
    assert_eq!(ended.client.map(|_| ()).unwrap_err().kind(), ErrorKind::Trust);
}

#[tokio::test]
async fn protocols_must_be_named_and_in_common() {
    let world = World::new();
    let server = ServerTls::load(&world.server_options()).unwrap();
    let client = ClientTls::load(&world.client_options("client")).unwrap();
    let with = |protocols: &[&[u8]]| {
        let mut config = rustls::ClientConfig::clone(&client.config());
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    };
    let ended = meet_with(server.config(), &client, with(&[b"h2", b"sealift/9"]), "localhost").await;
    check_refused(
        "other protocols",
        ended.client,
        ErrorKind::Version,
        "localhost is not a sealift server, or of a version that has no protocol in common with this client",
    );
    check_refused(
        "other protocols",
        ended.server,
        ErrorKind::Version,
        "the client speaks none of this server's protocols (ALPN)",
    );

    let ended = meet_with(server.config(), &client, with(&[]), "localhost").await;
    assert_eq!(ended.server.map(|_| ()).unwrap_err().kind(), ErrorKind::Version);
    assert_eq!(ended.client.map(|_| ()).unwrap_err().kind(), ErrorKind::Version);

    // A server that names no protocol.
    let mut config = rustls::ServerConfig::clone(&server.config());
    config.alpn_protocols = Vec::new();
    let ended = meet_with(Arc::new(config), &client, client.config(), "localhost").await;
    check_refused(
        "no protocol",
        ended.client,
        ErrorKind::Version,
        "localhost: the other side named no protocol in the TLS handshake (ALPN): it is not sealift, or another version",
    );
}

#[tokio::test]
async fn what_is_not_tls_is_named() {
    let world = World::new();
    let client = ClientTls::load(&world.client_options("client")).unwrap();
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    far.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
    let connected = TlsConnector::from(client.config()).connect(tls::server_name("nas").unwrap(), near).await;
    check_refused(
        "ssh",
        connected.map_err(|error| explain_client_error(error, "nas")),
        ErrorKind::Version,
        "what answers at nas does not speak TLS: is the port right?",
    );

    let server = ServerTls::load(&world.server_options()).unwrap();
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    near.write_all(b"GET / HTTP/1.1\r\nHost: nas\r\n\r\n").await.unwrap();
    let accepted = TlsAcceptor::from(server.config()).accept(far).await;
    check_refused("http", accepted.map_err(explain_server_error), ErrorKind::Protocol, "the client does not speak TLS");

    let (near, far) = tokio::io::duplex(64 * 1024);
    drop(far);
    let connected = TlsConnector::from(client.config()).connect(tls::server_name("nas").unwrap(), near).await;
    let error = connected.map(|_| ()).map_err(|error| explain_client_error(error, "nas")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
}

/// A client and a server of another make that know nothing newer than TLS 1.2.
#[tokio::test]
async fn tls_1_2_is_refused_in_both_directions() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: there is no openssl here");
        return;
    }
    let world = World::new();
    let server = ServerTls::load(&world.server_options()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut child = Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect", &address.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let error =
        TlsAcceptor::from(server.config()).accept(tcp).await.map(|_| ()).map_err(explain_server_error).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Version, "{error:?}");
    let mut said = String::new();
    io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    child.wait().unwrap();
    assert!(said.contains("protocol version"), "{said}");

    // A server hello that chooses TLS 1.2, as such a server answers a client that offers more: ECDHE-ECDSA-AES256-GCM.
    let client = ClientTls::load(&world.client_options("client")).unwrap();
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let mut hello = vec![0x16, 3, 3, 0, 49, 2, 0, 0, 45, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0xc0, 0x2c, 0, 0, 5, 0xff, 0x01, 0, 1, 0]);
    far.write_all(&hello).await.unwrap();
    let connected = TlsConnector::from(client.config()).connect(tls::server_name("nas").unwrap(), near).await;
    check_refused(
        "TLS 1.2 server",
        connected.map_err(|error| explain_client_error(error, "nas")),
        ErrorKind::Version,
        "nas does not speak TLS 1.3, and nothing older is used",
    );
}

#[test]
fn keys_must_fit_and_be_private() {
    let world = World::new();
    let key = world.path("client-key.pem");
    let certificate = world.path("client.pem");
    let swapped = ClientOptions { key: Some(world.path("server-key.pem")), ..world.client_options("client") };
    check_refused(
        "client",
        ClientTls::load(&swapped),
        ErrorKind::Usage,
        &format!(
            "{} is not the key of the certificate in {}",
            world.path("server-key.pem").display(),
            certificate.display()
        ),
    );
    let swapped = ServerOptions { key: key.clone(), ..world.server_options() };
    check_refused(
        "server",
        ServerTls::load(&swapped),
        ErrorKind::Usage,
        &format!("{} is not the key of the certificate in {}", key.display(), world.path("server.pem").display()),
    );
    let half = ClientOptions { key: None, ..world.client_options("client") };
    check_refused(
        "half",
        ClientTls::load(&half),
        ErrorKind::Usage,
        &format!("{} is of no use alone: give `--key` too", certificate.display()),
    );
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let error = ClientTls::load(&world.client_options("client")).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("others can use this private key (mode 644)"), "{error}");
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    ClientTls::load(&world.client_options("client")).unwrap();
}

#[test]
fn misplaced_keys_and_near_ends_are_told() {
    let world = World::new();
    // In this world the server's key lies in the client's folder; a second one holds only what it should.
    let client = ClientTls::load(&world.client_options("client")).unwrap();
    assert_eq!(
        client.warnings(),
        [format!(
            "{} does not belong on a client: give it what `sealift certs --export NAME --to DIR` writes",
            world.path("server-key.pem").display()
        )]
    );
    world.write("ca-key.pem", "");
    assert_eq!(ClientTls::load(&world.client_options("client")).unwrap().warnings().len(), 2);
    let warnings = ServerTls::load(&world.server_options()).unwrap().warnings(now());
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("ca-key.pem is not needed here"), "{warnings:?}");

    let exported = tempfile::tempdir().unwrap();
    for name in ["ca.pem", "client.pem", "client-key.pem"] {
        copy(&world.path(name), &exported.path().join(name));
    }
    assert!(ClientTls::load(&ClientOptions::in_folder(exported.path())).unwrap().warnings().is_empty());
    let server = ServerTls::load(&world.server_options()).unwrap();
    assert!(server.warnings(now() + Duration::days(80)).iter().any(|text| text.contains("server.pem expires on")));
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
}
