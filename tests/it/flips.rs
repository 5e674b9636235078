//! Bits that are flipped on the way (case F04): TLS finds every one, the client comes again, and nothing is ever stored
//! or saved that is not what it should be.

use std::fs;

use crate::rig::{Numbers, Plan, Proxy, Ran, World, content, leftovers, long, remote, staged};

/// Bytes of the records that an end of TLS has, which nobody need read.
const TLS_END_LEN: u64 = 24;

/// A plan that flips a bit of this byte of the first connection.
fn flip_first(at: u64, is_up: bool) -> impl Fn(usize) -> Plan + Send + 'static {
    move |number| match (number, is_up) {
        (0, true) => Plan { flip_up: Some(at), ..Plan::default() },
        (0, false) => Plan { flip: Some(at), ..Plan::default() },
        _ => Plan::default(),
    }
}

#[test]
fn a_flipped_bit_costs_a_connection_and_is_never_stored() {
    let world = World::new();
    let server = world.serve();
    let mut numbers = Numbers::new("a_flipped_bit_costs_a_connection_and_is_never_stored");
    let runs = if long("1,000 flipped bits") { 1000 } else { 16 };
    let sizes = [5_000, 400_000, 3_000_000];
    let plain = |command: &str, args: &dyn Fn(u16) -> [String; 2]| {
        let proxy = Proxy::new(server.port, |_| Plan::default());
        let output = server.client(&[command, "--json"]).args(args(proxy.port)).output().unwrap();
        assert_eq!(Ran::of(output).code, 0);
        proxy.bytes()
    };
    let source = |index: usize| world.file(&format!("sources/{index}"), &content(index as u64, sizes[index]));
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let totals: Vec<_> = (0..sizes.len())
        .map(|index| {
            let name = format!("there-{index}");
            let up = plain("put", &|port| [text(&source(index)), remote(port, &name)]);
            let down = plain("get", &|port| [remote(port, &name), text(&world.path(&format!("plain-{index}")))]);
            (up, down)
        })
        .collect();
    let mut again = 0;
    for run in 0..runs {
        let (index, is_put, is_up) = (run % sizes.len(), numbers.below(2) == 0, numbers.below(2) == 0);
        let total = if is_put { totals[index].0 } else { totals[index].1 };
        let total = if is_up { total.0 } else { total.1 };
        let at = numbers.below(total - TLS_END_LEN);
        let proxy = Proxy::new(server.port, flip_first(at, is_up));
        let saved = world.path(&format!("saved-{run}"));
        let name = format!("new-{run}");
        let args = if is_put {
            [text(&source(index)), remote(proxy.port, &name)]
        } else {
            [remote(proxy.port, &format!("there-{index}")), text(&saved)]
        };
        let command = if is_put { "put" } else { "get" };
        let ran = Ran::of(server.client(&[command, "--json"]).args(args).output().unwrap());
        let what =
            format!("run {run}: {command} of {} bytes, byte {at} of {total}, up {is_up}: {ran:#?}", sizes[index]);
        let found = fs::read(if is_put { world.root().join(&name) } else { saved });
        // Inside the handshake a changed bit can look like another peer, which is refused for good.
        let is_handshake = at < 8_000;
        assert!(ran.code == 0 || is_handshake && ran.code == 3, "{what}");
        match found {
            Ok(found) => assert!(found == content(index as u64, sizes[index]), "other content; {what}"),
            Err(_) => assert!(ran.code != 0, "nothing there; {what}"),
        }
        again += usize::from(proxy.connections() > 1);
    }
    assert!(again * 2 >= runs, "only {again} of {runs} connections were ended by their flipped bits");
    drop(server);
    assert_eq!(staged(&world.root()), 0);
    assert_eq!(leftovers(&world.root()), Vec::<std::path::PathBuf>::new());
}
