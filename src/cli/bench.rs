//! `sealift bench`, hidden: what this machine can do here and now, piece by piece, and the bound that follows.
//!
//! Each piece runs alone, on as many threads as it has sides, and tells bytes per second and CPU seconds per GiB (the
//! threads' own clocks). A transfer cannot be faster than its slowest single stage, nor than the cores divided by the
//! CPU time that all its pieces need together: the smaller of the two is the bound. `scripts/bench.sh` compares real
//! transfers with it, and uses `--load` to ask a running server for handshakes or to hold connections.

use std::io::{Read as _, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::cli::values;
use crate::error::{IoContext as _, Result};

mod load;
mod pieces;

/// Measure what this machine can do.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// A directory on a disk, for the pieces that write to one
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// A directory in memory (tmpfs)
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub memory_dir: PathBuf,
    /// How long each piece runs
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = values::duration)]
    pub time: Duration,
    /// Bytes of the files that are written
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = values::size)]
    pub size: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print the table of a result that comes on standard input
    #[arg(long)]
    pub explain: bool,
    /// Put load on a server instead
    #[arg(long, value_name = "ADDR:PORT", requires = "ca")]
    pub load: Option<SocketAddr>,
    /// Load: connections that ask for one name and then stay
    #[arg(long, value_name = "N", requires = "load")]
    pub hold: Option<usize>,
    /// Load: how long handshakes are made
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    pub seconds: u64,
    /// Load: which key exchange
    #[arg(long, value_enum, default_value = "hybrid")]
    pub key_exchange: KeyExchange,
    /// Load: certificates that may have signed the server's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Load: own certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Load: its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// The key exchange of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyExchange {
    /// X25519 with ML-KEM-768, the preferred one.
    Hybrid,
    /// X25519 alone.
    X25519,
}

/// What was measured, and what follows.
#[derive(Serialize, Deserialize)]
struct Measured {
    schema: u32,
    cores: usize,
    pieces: Vec<Piece>,
    counts: Vec<Count>,
    bounds: Vec<Bound>,
}

/// A piece that moves bytes.
#[derive(Clone, Serialize, Deserialize)]
struct Piece {
    name: String,
    gib_s: f64,
    cpu_s_per_gib: f64,
    /// The same, for each of its threads: the sender's, then the receiver's.
    sides: Vec<f64>,
}

/// A piece that does things one by one.
#[derive(Clone, Serialize, Deserialize)]
struct Count {
    name: String,
    per_s: f64,
    per_cpu_s: f64,
}

/// What a whole transfer cannot exceed.
#[derive(Serialize, Deserialize)]
struct Bound {
    name: String,
    mib_s: f64,
    cpu_s_per_gib: f64,
    limited_by: String,
}

/// Runs the command.
///
/// # Errors
/// What keeps a piece from being measured: a directory that cannot be written, a server that cannot be reached.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<()> {
    if let Some(address) = args.load {
        return load::run(args, address, out);
    }
    let measured = if args.explain {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).while_doing(|| "read the result".into())?;
        serde_json::from_str(&text).while_doing(|| "read the result".into())?
    } else {
        measure(args)?
    };
    let text = if args.json {
        serde_json::to_string(&measured).while_doing(|| "write the result".into())? + "\n"
    } else {
        measured.to_string()
    };
    out.write_all(text.as_bytes()).while_doing(|| "write to standard output".into())
}

fn measure(args: &BenchArgs) -> Result<Measured> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let scratch = Scratch::new(&std::env::temp_dir())?;
    let keys = pieces::Keys::make(&scratch.0)?;
    let mut pieces = vec![
        pieces::tcp(args.time)?,
        pieces::tls(&keys, args.time)?,
        pieces::seal(args.time),
        pieces::open(args.time),
        pieces::hash_hot(args.time),
        pieces::hash_memory(args.time),
    ];
    let mut counts = Vec::new();
    let memory = args.memory_dir.is_dir().then(|| Scratch::new(&args.memory_dir)).transpose()?;
    let disk = args.dir.as_deref().map(Scratch::new).transpose()?;
    for (place, scratch) in [("memory", &memory), ("disk", &disk)] {
        let Some(Scratch(directory)) = scratch else { continue };
        pieces.extend(pieces::page_cache(directory, place, args.size)?);
        if place == "disk" {
            pieces.extend(pieces::direct(directory, args.size)?);
        }
        counts.push(pieces::small_files(directory, place)?);
    }
    counts.extend(pieces::handshakes(&keys, args.time / 2)?);
    let bounds = bounds(cores, &pieces);
    Ok(Measured { schema: 1, cores, pieces, counts, bounds })
}

/// The pieces of each kind of transfer, and what they allow together.
fn bounds(cores: usize, pieces: &[Piece]) -> Vec<Bound> {
    let read = pieces::READ;
    let kinds: [(&str, &[&str]); 3] = [
        ("memory to memory", &[read, pieces::HASH, pieces::TLS, pieces::HASH, pieces::WRITE_MEMORY]),
        ("memory to disk, durable", &[read, pieces::HASH, pieces::TLS, pieces::HASH, pieces::DIRECT]),
        ("nowhere to nowhere", &[pieces::HASH, pieces::TLS, pieces::HASH]),
    ];
    let find = |name: &str| pieces.iter().find(|piece| piece.name == name);
    let bound = |(name, stages): (&str, &[&str])| {
        let stages: Vec<&Piece> = stages.iter().map(|name| find(name)).collect::<Option<_>>()?;
        let cpu: f64 = stages.iter().map(|stage| stage.cpu_s_per_gib).sum();
        // The two sides of a connection run beside one another: alone it is as fast as it was measured.
        let slowest = stages.iter().min_by(|a, b| a.gib_s.total_cmp(&b.gib_s))?;
        let by_cores = cores as f64 / cpu;
        let (gib_s, limited_by) = if by_cores < slowest.gib_s {
            (by_cores, format!("{cores} cores"))
        } else {
            (slowest.gib_s, slowest.name.clone())
        };
        Some(Bound { name: name.to_owned(), mib_s: gib_s * 1024.0, cpu_s_per_gib: cpu, limited_by })
    };
    kinds.into_iter().filter_map(bound).collect()
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:<58}{:>9}{:>11}  of which each side", "piece", "GiB/s", "CPU s/GiB")?;
        for Piece { name, gib_s, cpu_s_per_gib, sides } in &self.pieces {
            let sides: Vec<String> = sides.iter().map(|side| format!("{side:.3}")).collect();
            let sides = if sides.len() > 1 { sides.join(" ") } else { String::new() };
            writeln!(f, "{name:<58}{gib_s:>9.2}{cpu_s_per_gib:>11.3}  {sides}")?;
        }
        writeln!(f, "\n{:<58}{:>9}{:>11}", "", "per s", "per CPU s")?;
        for Count { name, per_s, per_cpu_s } in &self.counts {
            writeln!(f, "{name:<58}{per_s:>9.0}{per_cpu_s:>11.0}")?;
        }
        writeln!(f, "\n{:<58}{:>9}{:>11}", "bound", "MiB/s", "CPU s/GiB")?;
        for Bound { name, mib_s, cpu_s_per_gib, limited_by } in &self.bounds {
            writeln!(f, "{name:<58}{mib_s:>9.0}{cpu_s_per_gib:>11.3}  {limited_by}")?;
        }
        Ok(())
    }
}

/// A directory of our own that goes when we do.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Scratch> {
        let path = parent.join(format!("sealift-bench-{}", std::process::id()));
        std::fs::create_dir(&path).while_doing(|| format!("make {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left-overs of a benchmark are no reason to fail.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// CPU seconds that this thread has used.
fn thread_cpu() -> f64 {
    seconds(ClockId::ThreadCPUTime)
}

/// CPU seconds that this process has used.
fn process_cpu() -> f64 {
    seconds(ClockId::ProcessCPUTime)
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
