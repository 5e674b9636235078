//! Receipts: every stored file has one that holds without the server, and nothing else passes for one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::Value;

use crate::rig::{Server, World, binary, content};

fn put(server: &Server, folder: &Path, source: &Path, path: &str) {
    let receipts = ["--receipts", folder.to_str().unwrap()].map(std::ffi::OsStr::new);
    let ran = server.run("put", [receipts[0], receipts[1], source.as_os_str(), server.at(path).as_ref()]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// The files of receipts in a folder, one per run, by age.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    files
}

fn lines(file: &Path) -> Vec<Value> {
    fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn verify(files: &[PathBuf], more: &[&str]) -> Output {
    binary().args(["receipt", "verify"]).args(more).args(files).output().unwrap()
}

#[test]
fn every_stored_file_has_a_receipt_that_holds_without_the_server() {
    let world = World::new();
    let source = world.path("source");
    // Small ones in a batch, an empty one, one of several groups.
    for index in 0..50 {
        world.file(&format!("source/small {index}"), &content(index, 100 + usize::try_from(index).unwrap()));
    }
    world.file("source/empty", b"");
    world.file("source/large", &content(7, 3_000_000));
    let folder = world.path("receipts");
    let server = world.serve();
    put(&server, &folder, &source, "tree");
    put(&server, &folder, &source, "tree");
    let known = fs::read_to_string(folder.join("known-keys")).unwrap();
    assert_eq!(known.lines().count(), 1, "the same key is recorded once: {known}");
    let pin = server.log_with("server key sha256:");
    let pin = pin.iter().find_map(|line| line.split("server key ").nth(1)).unwrap().to_owned();
    assert!(known.contains(&pin), "{known} {pin}");
    drop(server);

    let files = files(&folder);
    assert_eq!(files.len(), 2);
    let output = verify(&files, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2 * 52);
    for (file, outcome) in files.iter().zip(["stored", "unchanged"]) {
        let lines = lines(file);
        assert_eq!(lines.len(), 52);
        for line in lines {
            assert_eq!(line["outcome"], outcome, "{line}");
            assert_eq!(line["principal"], "client");
            let stored = world.root().join(line["path"].as_str().unwrap());
            let content = fs::read(stored).unwrap();
            assert_eq!(line["size"], content.len());
            assert_eq!(line["root"], blake3::hash(&content).to_hex().as_str());
        }
    }
    // The key as it is printed verifies too, and another does not.
    let key = lines(&files[0])[0]["key"].as_str().unwrap().to_owned();
    assert_eq!(verify(&files, &["--key", &key]).status.code(), Some(0));
    let other = format!("ed25519:{}", BASE64.encode([7; 32]));
    assert_eq!(verify(&files, &["--key", &other]).status.code(), Some(5));
}

#[test]
fn a_receipt_with_anything_changed_does_not_hold() {
    let world = World::new();
    let source = world.file("source", b"content");
    let folder = world.path("receipts");
    put(&world.serve(), &folder, &source, "stored");
    let file = files(&folder).remove(0);
    let line = lines(&file).remove(0);
    let check = |what: &str, changed: &Value| {
        fs::write(&file, format!("{line}\n{changed}\n")).unwrap();
        let output = verify(std::slice::from_ref(&file), &[]);
        assert_eq!(output.status.code(), Some(5), "{what}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(":2: "), "{what}: the line is named: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1, "{what}: the other holds");
    };
    for field in ["path", "root", "size", "time", "principal", "outcome", "key"] {
        let mut changed = line.clone();
        changed[field] = if field == "size" { 8.into() } else { "other".into() };
        check(field, &changed);
    }
    for field in ["receipt", "signature"] {
        let bytes = BASE64.decode(line[field].as_str().unwrap()).unwrap();
        for index in 0..bytes.len() {
            // A few of the bits: each is one more run of the program.
            if index % 16 == 0 {
                let mut flipped = bytes.clone();
                flipped[index] ^= 1;
                let mut changed = line.clone();
                changed[field] = BASE64.encode(flipped).into();
                check(&format!("{field} byte {index}"), &changed);
            }
        }
    }
    check("no receipt", &Value::from("text"));
}

#[test]
fn a_new_key_is_recorded_and_receipts_of_the_old_one_still_hold() {
    let world = World::new();
    let source = world.file("source", b"content");
    let folder = world.path("receipts");
    let key = world.root().join(".sealift/receipt-key.pem");
    let server = world.serve();
    put(&server, &folder, &source, "first");
    assert_eq!(server.stop(), Some(0));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&key).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let first = fs::read(&key).unwrap();
    // Starting again keeps it.
    let server = world.serve();
    put(&server, &folder, &source, "second");
    assert_eq!(server.stop(), Some(0));
    assert_eq!(fs::read(&key).unwrap(), first);
    // Another is made when it is taken away.
    fs::rename(&key, world.path("old-key.pem")).unwrap();
    put(&world.serve(), &folder, &source, "third");
    assert_ne!(fs::read(&key).unwrap(), first);
    assert_eq!(fs::read_to_string(folder.join("known-keys")).unwrap().lines().count(), 2);
    let files = files(&folder);
    assert_eq!(files.len(), 3);
    assert_eq!(verify(&files, &[]).status.code(), Some(0));
}

#[test]
fn a_receipt_key_that_others_can_read_stops_the_start() {
    let world = World::new();
    assert_eq!(world.serve().stop(), Some(0));
    let key = world.root().join(".sealift/receipt-key.pem");
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let mut command = binary();
    command.args(["serve", "--check", "--listen", "127.0.0.1:0", "--root"]).arg(world.root());
    let output = command.arg("--certs").arg(world.path("certs")).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod 600"), "{output:?}");
}
