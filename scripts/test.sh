#!/usr/bin/env bash
# All that this machine can test; what CI runs.
#
#   scripts/test.sh          format, lints, documentation, dependencies, all tests, the scripts themselves
#   scripts/test.sh quick    format, lints, tests: before every commit
#
# A tool that is missing is named in one line, and what it would have checked is left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mode=${1:-all}

step() { printf '\n== %s\n' "$*"; }
missing() { printf 'MISSING %s: %s\n' "$1" "$2"; }
# Installs what the tests can use, where this is a Debian machine and we may; otherwise the tests say what they skip.
want() {
  local tool=$1 package=$2
  command -v "$tool" >/dev/null && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -y --no-install-recommends "$package" >/dev/null 2>&1 ||
      { timeout 120 apt-get update >/dev/null 2>&1 &&
        DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -y --no-install-recommends "$package" >/dev/null 2>&1; } ||
      true
  fi
  command -v "$tool" >/dev/null || missing "$tool" "$3"
}

step "format"
if cargo fmt --version >/dev/null 2>&1; then cargo fmt --all --check; else missing rustfmt "the format is not checked"; fi

step "lints"
if cargo clippy --version >/dev/null 2>&1; then
  cargo clippy --locked --all-targets --quiet -- -D warnings
else
  missing clippy "lints are not checked"
fi

if [ "$mode" != quick ]; then
  want openssl openssl "certificates are not compared with what openssl says"
  want strace strace "the order of system calls of a commit is not checked"
fi

step "tests"
# Debug builds: they check arithmetic and invariants that release builds don't.
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --no-fail-fast
else
  cargo test --locked --all-targets --no-fail-fast
fi
cargo test --locked --doc --quiet

if [ "$mode" = quick ]; then exit 0; fi

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet

step "dependencies"
if cargo deny --version >/dev/null 2>&1; then
  # The advisory database needs a network; deny.toml carries the dated list of what is known.
  cargo deny --locked check licenses bans sources
else
  missing cargo-deny "licences and duplicates are not checked (cargo install --locked cargo-deny)"
fi

step "scripts"
for script in scripts/*.sh .ci/run; do bash -n "$script"; done
if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh .ci/run; else missing shellcheck "scripts are only parsed"; fi

step "power cuts"
timeout 120 scripts/power-cut.sh --cuts 5

step "quickstart"
scripts/quickstart.sh

printf '\nall passed\n'
