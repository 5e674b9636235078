//! Load on a running server: handshakes one after another, or connections that stay.

use std::io::{Read as _, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::{BenchArgs, pieces, process_cpu};
use crate::client::event::channel;
use crate::client::remote::Endpoint;
use crate::client::{Client, ClientOptions};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::RemotePath;
use crate::tls::{self, ClientTls, server_name};

/// Handshakes, or connections being made, at once.
const AT_ONCE: usize = 32;

pub(super) fn run(args: &BenchArgs, address: SocketAddr, out: &mut dyn Write) -> Result<()> {
    let options = tls::ClientOptions {
        ca: args.ca.clone(),
        certificate: args.cert.clone(),
        key: args.key.clone(),
        pins: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.while_doing(|| "start the runtime".into())?;
    match args.hold {
        Some(count) => runtime.block_on(hold(address, ClientTls::load(&options)?, count, out)),
        None => {
            let made = runtime.block_on(handshakes(args, address, &options))?;
            let text = json!({"handshakes": made, "cpu_s": process_cpu()});
            writeln!(out, "{text}").while_doing(|| "write to standard output".into())
        }
    }
}

/// Makes full handshakes for a while, and counts them.
async fn handshakes(args: &BenchArgs, address: SocketAddr, options: &tls::ClientOptions) -> Result<u64> {
    let mut config = pieces::client_with(options, args.key_exchange)?;
    // A peer may speak something else, and is to be measured too.
    config.alpn_protocols.push(b"http/1.1".to_vec());
    let connector = TlsConnector::from(Arc::new(config));
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let connector = connector.clone();
        tasks.spawn(async move {
            let mut made = 0;
            while Instant::now() < end {
                let tcp = TcpStream::connect(address).await.while_doing(|| format!("connect to {address}"))?;
                // Ended by a reset, so that no closed connection keeps its port.
                tcp.set_zero_linger().while_doing(|| "set up a connection".into())?;
                let tls = connector.connect(server_name("localhost")?, tcp).await;
                let mut tls = tls.while_doing(|| format!("shake hands with {address}"))?;
                // The client is done before the server has seen its last flight: without one byte more, or an end,
                // the reset could overtake it.
                tokio::io::AsyncWriteExt::shutdown(&mut tls).await.while_doing(|| "end a connection".into())?;
                let mut rest = [0; 512];
                // Whatever the server does now, the handshake is made.
                let _ =
                    tokio::time::timeout(Duration::from_secs(1), tokio::io::AsyncReadExt::read(&mut tls, &mut rest))
                        .await;
                made += 1;
            }
            Ok::<u64, Error>(made)
        });
    }
    let mut made = 0;
    while let Some(task) = tasks.join_next().await {
        made += task.map_err(|error| Error::new(ErrorKind::Internal, "a task failed").with_source(error))??;
    }
    Ok(made)
}

/// Makes connections that ask once and then stay until standard input ends. Tells when all are there.
async fn hold(address: SocketAddr, tls: ClientTls, count: usize, out: &mut dyn Write) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    // Without more descriptors, fewer connections are held, and the count says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let endpoint = Endpoint::parse(address.to_string().as_bytes())?;
    let name = RemotePath::parse(b"f").map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    let (events, mut receiver) = channel();
    let mut held = Vec::with_capacity(count);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while receiver.recv().await.is_some() {}
        None
    });
    let mut started = 0;
    while held.len() < count {
        while started < count && tasks.len() <= AT_ONCE {
            started += 1;
            let (options, events, name) =
                (ClientOptions::new(endpoint.clone(), tls.clone()), events.clone(), name.clone());
            tasks.spawn(async move {
                let client = Client::connect(options, events).await;
                let Ok(client) = client else { return Some(client) };
                Some(client.stat(&name).await.map(|_| client))
            });
        }
        match tasks.join_next().await {
            Some(Ok(Some(Ok(client)))) => held.push(client),
            Some(Ok(Some(Err(error)))) => return Err(error),
            Some(Ok(None)) | None => break,
            Some(Err(error)) => {
                return Err(Error::new(ErrorKind::Internal, "a task failed").with_source(error));
            }
        }
    }
    writeln!(out, "{} held", held.len())
        .and_then(|()| out.flush())
        .while_doing(|| "write to standard output".into())?;
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await;
    ended
        .map_err(|error| Error::new(ErrorKind::Internal, "a task failed").with_source(error))?
        .while_doing(|| "wait".into())?;
    Ok(())
}
