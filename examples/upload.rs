//! Uploads a file or a directory and shows how far it is.
//!
//! ```sh
//! cargo run --example upload -- certs-client localhost:7443 report.pdf in/report.pdf
//! ```

use std::io::Write as _;
use std::path::Path;

use sealift::client::event::{self, Event};
use sealift::client::{ClientOptions, PutOptions};
use sealift::tls::{self, ClientTls};
use sealift::{Client, Error, ErrorKind, Result};
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [certs, server, source, target] = arguments.as_slice() else {
        return Err(Error::new(ErrorKind::Usage, "usage: upload CERTS HOST[:PORT] FILE_OR_DIRECTORY NAME"));
    };
    let tls = ClientTls::load(&tls::ClientOptions::in_folder(Path::new(certs)))?;
    let options = ClientOptions::new(server.parse()?, tls);

    // Events come over a bounded channel: whoever asks for them reads them.
    let (events, mut heard) = event::channel();
    let mut shower = JoinSet::new();
    shower.spawn(async move {
        let (mut found, mut done) = (0, 0_u64);
        while let Some(event) = heard.recv().await {
            match event {
                Event::Found { bytes, .. } => found += bytes,
                Event::Progress { bytes, .. } => done = done.saturating_add_signed(bytes),
                Event::Retrying { reason, .. } => eprintln!("\nconnecting again: {reason}"),
                _ => continue,
            }
            eprint!("\r{done} of {found} bytes");
            // Nobody has to see it.
            let _ = std::io::stderr().flush();
        }
        eprintln!();
    });

    let client = Client::connect(options, events).await?;
    let report = client.upload(source, &target.parse()?, PutOptions::default()).await?;
    client.close().await;
    drop(client);
    // It ends with the last handle of the client.
    shower.join_all().await;

    // Success means: hashed on both sides, synced, and under its name.
    let summary = report.whole()?;
    println!("{} stored, {} unchanged", summary.stored, summary.unchanged);
    Ok(())
}
