//! When invites end, and when they don't: their own time, and the certificates of who gave them (A06, T11).

use std::fs;
use std::path::PathBuf;

use rcgen::{
    CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::invites::Hall;
use crate::rig::{content, until};

/// Whether the holder of this link is let in.
fn is_open(hall: &Hall, link: &str) -> bool {
    let output = hall.receiver("bob", &["ls"]).env("SEALIFT_INVITE", link).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => true,
        Some(4) => {
            assert!(said.contains("this invite"), "{said}");
            false
        }
        code => panic!("{code:?}: {said}"),
    }
}

/// The authority of this hall's certificates, which signs what the commands do not make.
struct Authority<'a> {
    hall: &'a Hall,
}

impl Authority<'_> {
    fn issuer(&self) -> Issuer<'static, KeyPair> {
        let read = |name: &str| fs::read_to_string(self.hall.house.world.path("certs").join(name)).unwrap();
        Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca-key.pem")).unwrap()).unwrap()
    }

    /// A folder with a certificate of alice's with this serial number and key, good for so long.
    fn certificate(&self, folder: &str, serial: u8, key: &KeyPair, good: Duration) -> PathBuf {
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
        params.not_after = OffsetDateTime::now_utc() + good;
        params.serial_number = Some(SerialNumber::from(vec![serial; 12]));
        params.distinguished_name.push(DnType::CommonName, "alice");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let world = &self.hall.house.world;
        let folder = world.path(folder);
        fs::create_dir(&folder).unwrap();
        fs::copy(world.path("certs/ca.pem"), folder.join("ca.pem")).unwrap();
        // Its mode is right.
        fs::copy(world.path("certs/client-key.pem"), folder.join("client-key.pem")).unwrap();
        fs::write(folder.join("client-key.pem"), key.serialize_pem()).unwrap();
        fs::write(folder.join("client.pem"), params.signed_by(key, &self.issuer()).unwrap().pem()).unwrap();
        folder
    }

    /// A list of the certificates with these serial numbers.
    fn revoke(&self, serials: &[u8]) {
        let now = OffsetDateTime::now_utc();
        let revoked = |&serial: &u8| RevokedCertParams {
            serial_number: SerialNumber::from(vec![serial; 12]),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now - Duration::days(1),
            next_update: now + Duration::days(30),
            crl_number: SerialNumber::from(vec![1]),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let certs = self.hall.house.world.path("certs");
        fs::write(certs.join("crl.new"), list.signed_by(&self.issuer()).unwrap().pem().unwrap()).unwrap();
        fs::rename(certs.join("crl.new"), certs.join("crl.pem")).unwrap();
    }
}

/// A link that alice gives with the certificate in this folder.
fn given(hall: &Hall, folder: &str) -> String {
    let mut command = hall.house.client(folder, &["invite", "--uses", "100", &hall.at("in")]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn a_giver_who_renews_a_certificate_goes_on_to_answer_for_what_it_gave() {
    let mut hall = Hall::new();
    let (old, new) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let authority = Authority { hall: &hall };
    authority.certificate("brief", 1, &old, Duration::seconds(6));
    authority.certificate("renewed", 2, &new, Duration::days(1));
    authority.certificate("again", 3, &new, Duration::days(2));
    let link = given(&hall, "brief");
    assert!(is_open(&hall, &link));
    // Nobody answers for it when that certificate has run out: others do not, however good theirs are.
    until("the certificate has ended", || (!is_open(&hall, &link)).then_some(()));
    hall.house.run("client", &["ls", &hall.at("")], 4);
    assert!(!is_open(&hall, &link));
    // Its giver comes back with a newer one.
    hall.house.run("renewed", &["ls", &hall.at("")], 0);
    until("the invite is open again", || is_open(&hall, &link).then_some(()));
    let later = given(&hall, "renewed");
    hall.crash();
    assert!(is_open(&hall, &link), "that is kept");
    // A list that names the certificate that it was given with ends it, though that has run out and there is another;
    // what was given with the other is not touched.
    let authority = Authority { hall: &hall };
    authority.revoke(&[1]);
    until("the invite ends", || (!is_open(&hall, &link)).then_some(()));
    assert!(is_open(&hall, &later));
    hall.house.run("again", &["ls", &hall.at("")], 0);
    assert!(!is_open(&hall, &link), "and for good");
    // The same for one that it stands on by now: `later` stands on the second and the third.
    authority.revoke(&[1, 2]);
    until("the other ends too", || (!is_open(&hall, &later)).then_some(()));
}

#[test]
fn what_began_in_time_is_finished_and_nothing_begins_after_the_end() {
    let hall = Hall::new();
    let link = hall.link("in", &["--uses", "9", "--expires", "12s"]);
    // So long that it outlives the end.
    let run = hall.slow(&link, 5 << 20);
    let expired = || hall.only().0 == "expired";
    until("the invite has expired", || expired().then_some(()));
    hall.file("bob", "f", b"x");
    let said = hall.redeem("bob", &link, &["put", "f"], 4);
    assert!(said.contains("this invite expired at") && said.contains("a new one"), "{said}");
    assert!(hall.stored("in/f").is_none());
    assert!(!is_open(&hall, &link), "not even to look");
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(hall.stored("in/big").unwrap(), content(7, 5 << 20));
    // The run that is over does not begin again either.
    hall.file("slow", "more", b"x");
    hall.redeem("slow", &link, &["put", "more"], 4);
    assert_eq!(hall.only(), ("expired".to_owned(), 1, 0));
}
