//! Encrypted file transfer that keeps its promises: what is acknowledged is verified, durable and whole.
//!
//! Layers, each using only those below it (`docs/ARCHITECTURE.md` is the map):
//!
//! ```text
//! main  cli            prints, exits, reads flags, environment, signals
//! client  server       the roles; they never call one another
//! access  audit        who may do what; what was done
//! net  tls  storage    the only code that touches sockets, keys, disks
//! transfer             what to send next, what is missing, is this frame right: pure
//! protocol  hash  path bytes <-> types: pure
//! error  limits
//! ```
//!
//! What the command line does, a program can do through [`Client`]; see `examples/` for whole ones.
//!
//! ```no_run
//! use sealift::client::event::Events;
//! use sealift::client::{ClientOptions, GetOptions, PutOptions};
//! use sealift::tls::{self, ClientTls};
//! use sealift::Client;
//!
//! # async fn run() -> sealift::Result<()> {
//! // ca.pem, client.pem and client-key.pem, as `sealift certs --export` writes them.
//! let tls = ClientTls::load(&tls::ClientOptions::in_folder("certs".as_ref()))?;
//! let options = ClientOptions::new("nas.example.org".parse()?, tls);
//! let client = Client::connect(options, Events::unwatched()).await?;
//! client.upload("report.pdf", &"in/report.pdf".parse()?, PutOptions::default()).await?.whole()?;
//! for entry in client.list(&"in".parse()?).await? {
//!     println!("{} bytes: {}", entry.size, sealift::path::Escaped(&entry.name));
//! }
//! client.download(&"in".parse()?, "copies", GetOptions::default()).await?.whole()?;
//! client.remove(&"in/report.pdf".parse()?, false).await?;
//! client.close().await;
//! # Ok(())
//! # }
//! ```

pub mod access;
pub mod audit;
pub mod buffer;
pub mod cli;
pub mod client;
pub mod confine;
pub mod error;
pub mod hash;
pub mod limits;
pub mod net;
pub mod path;
pub mod protocol;
pub mod server;
pub mod storage;
pub mod tls;
pub mod transfer;
pub mod xattrs;

pub use client::Client;
pub use error::{Error, ErrorKind, Result};
