//! A server inside another program: it stores what comes until standard input ends.
//!
//! ```sh
//! cargo run --example server -- certs /tmp/stored 127.0.0.1:7443
//! ```

use std::path::Path;

use sealift::access::Access;
use sealift::protocol::Rights;
use sealift::server::{CancellationToken, CrowdLimits, Server, ServerOptions, listen};
use sealift::storage::{Store, StoreOptions};
use sealift::tls::{self, ServerTls};
use sealift::{Error, ErrorKind, Result, limits};
use tokio::io::AsyncReadExt as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [certs, root, at] = arguments.as_slice() else {
        return Err(Error::new(ErrorKind::Usage, "usage: server CERTS ROOT ADDR:PORT"));
    };
    let address = at.parse().map_err(|error| Error::new(ErrorKind::Usage, "ADDR:PORT").with_source(error))?;
    let server = Server::new(ServerOptions {
        store: Store::open_served(Path::new(root), StoreOptions::default())?,
        tls: ServerTls::load(&tls::ServerOptions::in_folder(Path::new(certs)))?,
        // Whoever has a certificate may do everything but remove; nobody else comes in.
        access: Access::same_for_all(Rights::ALL.without(Rights::DELETE), None),
        listeners: vec![listen(address)?],
        receipt_key: None,
        audit: None,
        invites: None,
        memory: limits::BUFFER_BUDGET,
        crowd: CrowdLimits::default(),
        disk_threads: limits::BLOCKING_THREADS_MAX,
        threads: 1,
        congestion: sealift::net::Congestion::default(),
        rate: None,
        rate_of_one: None,
    })?;
    for address in server.addresses()? {
        println!("listening on {address}");
    }
    let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
    let until = async {
        let mut ignored = Vec::new();
        // However it ends: then we do too.
        let _ = tokio::io::stdin().read_to_end(&mut ignored).await;
        drain.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = server.run(drain.clone(), stop) => Ok(()),
        () = until => unreachable!("it waits for the server"),
    }
}
