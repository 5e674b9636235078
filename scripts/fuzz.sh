#!/usr/bin/env bash
# Fuzzes everything that decodes a peer's bytes, each target for a while.
#
#   scripts/fuzz.sh [SECONDS [TARGET ...]]
#
# SECONDS is per target (default 60). Without cargo-fuzz it is installed; where it cannot be, this says so and ends
# well. What it finds is in fuzz/artifacts/; the tests run the same targets for about two seconds each time.
set -euo pipefail

case ${1:-} in
-h | --help)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
seconds=${1:-60}
shift || true
targets=("$@")
if ((${#targets[@]} == 0)); then
    targets=(messages paths receiver frames)
fi
cd "$root"

if ! cargo fuzz --version >/dev/null 2>&1 && ! cargo install --quiet --locked cargo-fuzz; then
    echo "fuzz: skipped, cargo-fuzz is not here and cannot be installed"
    exit 0
fi

# The sanitizer's coverage needs flags that stable compilers take only when told that it is all right.
export RUSTC_BOOTSTRAP=1
if ! cargo fuzz build >/dev/null 2>&1; then
    echo "fuzz: skipped, the targets cannot be built here (cargo fuzz build says why)"
    exit 0
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in "${targets[@]}"; do
    echo "fuzz: $target for $seconds s"
    mkdir -p "fuzz/corpus/$target"
    if ! cargo fuzz run "$target" -- -max_total_time="$seconds" -max_len=70000 -timeout=5 -rss_limit_mb=512 \
        -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log"
        echo "fuzz: $target failed; what did it is in fuzz/artifacts/$target"
        exit 1
    fi
    sed -n 's/^stat::number_of_executed_units: */fuzz: runs: /p' "$log"
done
echo "fuzz: nothing found"
