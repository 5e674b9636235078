//! What a summary says of why a transfer was not faster, with a cause of our own making.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::kit::{Server, client_certificates, noise, output_of, program, text};
use crate::rig::{Ran, World, has, wrapped};

/// A link that carries this many bytes a second, in either direction. The answer is its near end.
fn slow_link(address: &str, rate: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = listener.local_addr().unwrap().to_string();
    let far = address.to_owned();
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let server = TcpStream::connect(&far).unwrap();
            for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                std::thread::spawn(move || {
                    let mut piece = vec![0; rate / 50];
                    while let Ok(count @ 1..) = from.read(&mut piece) {
                        // The link is the only thing here that takes time.
                        std::thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
                        if to.write_all(&piece[..count]).is_err() {
                            break;
                        }
                    }
                    // The other side may be gone.
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    near
}

#[track_caller]
fn summary(server: &Server, arguments: &[&str]) -> Value {
    let mut command = program();
    command.env("SEALIFT_CERTS", client_certificates()).current_dir(server.local("")).args(arguments).arg("--json");
    let output = output_of(command, b"");
    assert!(output.status.success(), "{}", text(&output));
    let lines = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(lines.lines().last().unwrap()).unwrap()
}

#[test]
fn a_slow_link_is_named_in_both_directions() {
    let server = Server::start(&[]);
    // More than what the sockets in between hold.
    fs::write(server.local("big"), noise(3, 16 << 20)).unwrap();
    let near = slow_link(&server.address, 16 << 20);
    let up = summary(&server, &["put", "big", &format!("sealift://{near}/big")]);
    assert_eq!(up["limited_by"], "link", "{up:#}");
    assert!(up["waited"]["server"]["limit"] == 0.0 && up["waited"]["link_rate"].as_u64().unwrap() > 0, "{up:#}");
    let waited = |cause: &str| up["waited"][cause].as_f64().unwrap();
    assert!(waited("room") + waited("answer") > waited("source"), "{up:#}");
    let down = summary(&server, &["get", &format!("sealift://{near}/big"), "copy"]);
    assert_eq!(down["limited_by"], "link", "{down:#}");
    assert!(down["waited"]["content"].as_f64().unwrap() > 0.5, "{down:#}");
    // For people it stands at the end of the summary.
    let mut command = program();
    command.env("SEALIFT_CERTS", client_certificates()).current_dir(server.local(""));
    command.args(["get", &format!("sealift://{near}/big"), "again"]);
    let output = output_of(command, b"");
    assert!(text(&output).ends_with("; limited by the link\n"), "{}", text(&output));
}

#[test]
fn a_slow_source_is_named() {
    let server = Server::start(&[]);
    let slow = "for part in 1 2 3; do head -c 2000000 /dev/zero; sleep 0.5; done";
    let up = summary(&server, &["put", "--stdin-from-command", &server.url("x"), "--json", "--", "sh", "-c", slow]);
    assert_eq!(up["limited_by"], "source_disk", "{up:#}");
}

#[test]
fn many_small_files_are_named() {
    let server = Server::start(&[]);
    fs::create_dir(server.local("tree")).unwrap();
    for index in 0..3000 {
        fs::write(server.local(&format!("tree/{index}")), noise(index, 3000)).unwrap();
    }
    let up = summary(&server, &["put", "tree", &server.url("tree")]);
    // Too fast to tell would be fine, anything else would not.
    let is_short = up["seconds"].as_f64().unwrap() < 0.25 && up["limited_by"] == Value::Null;
    assert!(is_short || up["limited_by"] == "small_files", "{up:#}");
    let again = summary(&server, &["put", "tree/1", &server.url("one")]);
    assert_eq!(again["limited_by"], Value::Null, "too short to tell: {again:#}");
}

#[test]
fn a_limit_of_the_server_is_named_in_both_directions() {
    let server = Server::start(&["--bwlimit", "4M"]);
    fs::write(server.local("big"), noise(4, 12 << 20)).unwrap();
    let up = summary(&server, &["put", "big", &server.url("big")]);
    assert_eq!(up["limited_by"], "server_limit", "{up:#}");
    assert!(up["waited"]["server"]["limit"].as_f64().unwrap() > 0.4, "{up:#}");
    let down = summary(&server, &["get", &server.url("big"), "copy"]);
    assert_eq!(down["limited_by"], "server_limit", "{down:#}");
}

#[test]
fn the_limit_that_the_person_set_is_named_in_both_directions() {
    let server = Server::start(&[]);
    fs::write(server.local("big"), noise(5, 12 << 20)).unwrap();
    let up = summary(&server, &["put", "--bwlimit", "4M", "big", &server.url("big")]);
    assert_eq!(up["limited_by"], "own_limit", "{up:#}");
    assert!(up["waited"]["own_limit"].as_f64().unwrap() > 0.4, "{up:#}");
    let down = summary(&server, &["get", "--bwlimit", "4M", &server.url("big"), "copy"]);
    assert_eq!(down["limited_by"], "own_limit", "{down:#}");
}

/// A disk whose every write, or every read, takes its time.
#[test]
fn a_slow_disk_of_the_server_is_named_in_both_directions() {
    if !has("strace", &["-e", "trace=none", "true"], "no disk is made slow") {
        return;
    }
    let world = World::new();
    let slow = |call: &str| {
        let inject = format!("inject={call}:delay_enter=150000");
        let trace = format!("trace={call}");
        wrapped("strace", ["-D", "-f", "-o", "/dev/null", "-e", &trace, "-e", &inject])
    };
    let big = world.file("big", &noise(6, 24 << 20));
    let server = world.serve_by(slow("pwrite64"), 0);
    let up = server.put(&big, "big");
    assert_eq!(up.summary()["limited_by"], "server_disk", "{:#}", up.summary());
    let disk = up.summary()["waited"]["server"]["disk"].as_f64().unwrap();
    assert!(disk > 24.0 * 0.15, "each megabyte waited: {:#}", up.summary());
    server.kill();
    let server = world.serve_by(slow("pread64"), 0);
    let down = server.get("big", &world.path("copy"));
    assert_eq!(down.summary()["limited_by"], "server_disk", "{:#}", down.summary());
    server.kill();
    // The other way round it is the disk here.
    let server = world.serve();
    let mut client = slow("pwrite64");
    client.args(["get", "--json", "--certs"]).arg(world.path("client")).arg(server.at("big")).arg(world.path("other"));
    let down = Ran::of(client.output().unwrap());
    assert_eq!(down.summary()["limited_by"], "disk", "{down:?}");
}
