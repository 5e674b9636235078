#!/usr/bin/env bash
# From nothing to files moved and compared: builds sealift, makes certificates, starts a server on a free port,
# uploads, lists, downloads, compares, and stops what it started.
#
#   scripts/quickstart.sh [--keep] [FILE_OR_DIR ...]
#
# Without arguments it moves this project's own sources and 256 MiB of random bytes. --keep leaves the server
# running and says how to use and stop it. It asks nothing, and can run several times at once.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
keep=no
sources=()
for argument in "$@"; do
  case "$argument" in
    --keep) keep=yes ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) sources+=("$argument") ;;
  esac
done
for source in ${sources[@]+"${sources[@]}"}; do
  [ -e "$source" ] || { echo "quickstart: $source is not there" >&2; exit 2; }
done

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

say "building (the first time takes about 2 minutes on 2 cores; later runs a second)"
cargo build --release --locked --quiet --manifest-path "$here/Cargo.toml"
target=${CARGO_TARGET_DIR:-$here/target}
PATH="$(cd "$target/release" && pwd):$PATH"

scratch=$(mktemp -d "${TMPDIR:-/tmp}/sealift-quickstart.XXXXXX")
server=
cleanup() {
  if [ -n "$server" ]; then
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ ${#sources[@]} -eq 0 ]; then
  mkdir "$scratch/demo"
  cp -R "$here/src" "$scratch/demo/sources"
  head -c 268435456 /dev/urandom >"$scratch/demo/random-256M.bin"
  sources=("$scratch/demo")
fi

say "certificates: an authority, a server, a client"
run sealift certs --dir "$scratch/certs"
run sealift certs --dir "$scratch/certs" --export client --to "$scratch/client"

say "a server on a free port"
# Its own process group, so that a ctrl-C here ends it by the trap and not in the middle.
set -m
sealift serve --root "$scratch/root" --certs "$scratch/certs" --listen 127.0.0.1:0 \
  >"$scratch/server.out" 2>"$scratch/server.log" &
server=$!
set +m
for _ in $(seq 100); do
  grep -q '^listening on ' "$scratch/server.out" && break
  kill -0 "$server" 2>/dev/null || { cat "$scratch/server.log" >&2; server=; exit 1; }
  sleep 0.1
done
address=$(sed -n 's/^listening on //p' "$scratch/server.out")
[ -n "$address" ] || { echo "quickstart: the server did not start; its log:" >&2; cat "$scratch/server.log" >&2; exit 1; }
echo "listening on $address"
remote="sealift://$address"
export SEALIFT_CERTS="$scratch/client"

say "upload: success means hashed on both sides, synced, and under its final name"
bytes=$(du -scb -- "${sources[@]}" 2>/dev/null | awk 'END { print $1 }')
began=$(date +%s.%N)
run sealift put "${sources[@]}" "$remote/quickstart/"
ended=$(date +%s.%N)
[ -z "$bytes" ] || awk -v b="$bytes" -v s="$began" -v e="$ended" \
  'BEGIN { printf "%.1f MiB in %.2f s: %.0f MiB/s, verified and durable\n", b / 1048576, e - s, b / 1048576 / (e - s) }'

say "list"
run sealift ls -l "$remote/quickstart/"

say "download, and compare"
run sealift get "$remote/quickstart" "$scratch/back"
different=no
for source in "${sources[@]}"; do
  name=$(basename "$(realpath -s "$source")")
  if diff -r --no-dereference "$source" "$scratch/back/$name" >/dev/null; then
    echo "equal: $name"
  else
    echo "DIFFERENT: $name" >&2
    different=yes
  fi
done
first=$(find "$scratch/back" -type f -print -quit)
if [ -n "$first" ]; then
  run sealift hash "$remote/quickstart/${first#"$scratch/back/"}"
  if command -v b3sum >/dev/null; then run b3sum "$first"; fi
fi
[ "$different" = no ] || exit 5

if [ "$keep" = yes ]; then
  trap - EXIT
  say "the server is still running"
  cat <<TEXT
  export SEALIFT_CERTS='$scratch/client'
  $(command -v sealift) put FILE '$remote/'
  $(command -v sealift) ls '$remote/'
Its log is $scratch/server.log; what it stores is in $scratch/root.
To stop it and remove everything:
  kill $server; rm -rf '$scratch'
TEXT
else
  say "done; the server is stopped and $scratch removed"
fi
