//! Downloads a file or a directory.
//!
//! ```sh
//! cargo run --example download -- certs-client localhost:7443 in/report.pdf report.pdf
//! ```

use std::path::Path;

use sealift::client::event::Events;
use sealift::client::{ClientOptions, GetOptions};
use sealift::tls::{self, ClientTls};
use sealift::{Client, Error, ErrorKind, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [certs, server, source, target] = arguments.as_slice() else {
        return Err(Error::new(ErrorKind::Usage, "usage: download CERTS HOST[:PORT] NAME FILE_OR_DIRECTORY"));
    };
    let tls = ClientTls::load(&tls::ClientOptions::in_folder(Path::new(certs)))?;
    let client = Client::connect(ClientOptions::new(server.parse()?, tls), Events::unwatched()).await?;
    let report = client.download(&source.parse()?, target, GetOptions::default()).await?;
    client.close().await;
    for (name, error) in &report.failures {
        eprintln!("{}: {}", sealift::path::Escaped(name), error.chain());
    }
    let summary = report.whole()?;
    println!("{} stored, {} unchanged", summary.stored, summary.unchanged);
    Ok(())
}
