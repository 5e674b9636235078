//! Lists a directory of a server.
//!
//! ```sh
//! cargo run --example list -- certs-client localhost:7443 in
//! ```

use std::path::Path;

use sealift::client::ClientOptions;
use sealift::client::event::Events;
use sealift::path::Escaped;
use sealift::tls::{self, ClientTls};
use sealift::{Client, Error, ErrorKind, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [certs, server, directory] = arguments.as_slice() else {
        return Err(Error::new(ErrorKind::Usage, "usage: list CERTS HOST[:PORT] DIRECTORY"));
    };
    let tls = ClientTls::load(&tls::ClientOptions::in_folder(Path::new(certs)))?;
    let client = Client::connect(ClientOptions::new(server.parse()?, tls), Events::unwatched()).await?;
    let mut entries = client.list(&directory.parse()?).await?;
    entries.sort_by(|left, right| left.name.cmp(&right.name));
    for entry in entries {
        // Names come from others: what is shown of them is escaped.
        println!("{:>12}  {}", entry.size, Escaped(&entry.name));
    }
    client.close().await;
    Ok(())
}
