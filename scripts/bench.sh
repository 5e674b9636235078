#!/usr/bin/env bash
# Measures sealift beside the tools that are installed here, all in one run, and prints ratios.
#
#   scripts/bench.sh                 the whole table; writes docs/bench-results.json and the tables of docs/PERFORMANCE.md
#   scripts/bench.sh quick           small sizes and one round, a few minutes; writes nothing into docs/
#   scripts/bench.sh --help          all options: single workloads, sizes, rounds, directories
#
# It works on loopback, or in namespaces that it makes itself, and ends only processes that it started. With
# SEALIFT_WANLINK=/path/to/wanlink (a link emulator; needs root) it also measures long links.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
command -v python3 >/dev/null || { echo "bench: python3 is needed (apt-get install python3)" >&2; exit 2; }
cargo build --release --locked --quiet --manifest-path "$here/Cargo.toml"
target=${CARGO_TARGET_DIR:-$here/target}
SEALIFT_BIN=$(cd "$target/release" && pwd)/sealift
export SEALIFT_BIN
exec python3 "$here/scripts/bench.py" "$@"
