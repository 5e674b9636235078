#!/usr/bin/env bash
# The long forms of the reliability tests, in release mode, with a report at the end.
#
#   scripts/torture.sh [TEST ...]      names or parts of names, as `cargo test` takes them (default: all of them)
#
# Takes about an hour and 20 GiB of room in the temporary folder. What a machine lacks (strace, openssl, the right
# to mount) is skipped and named in the report. A failure prints its seed: SEED=N scripts/torture.sh NAME does it again.
# Without names it also cuts the power (scripts/power-cut.sh) CUTS times for each file system (default 200) and breaks
# links (scripts/link-torture.sh) under LINK_MIB MiB (default 10240) up and down, and when nothing failed it writes the table in docs/RELIABILITY.md anew.
set -euo pipefail

case ${1:-} in
-h | --help)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
tests=("$@")
whole=no
if ((${#tests[@]} == 0)); then
    whole=yes
    tests=(order:: crash:: answers:: refusals:: changing:: faults:: every_call:: scrub:: verify:: many:: real:: transfer:: resume:: streams::
        atomic:: metadata:: invites:: sync_model:: spellings:: flips:: evil:: hostile::)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT

echo "== building"
cargo build --locked --release --quiet
cargo test --locked --release --test it --no-run --quiet
echo "== running; each test tells when it ends"
begun=$SECONDS
status=0
# What counts is how the tests ended, not what was found to show.
set +e
LONG_TESTS=1 cargo test --locked --release --test it --quiet -- \
    --format=pretty --show-output "${tests[@]}" 2>&1 | tee "$log" | grep --line-buffered -E '^test '
status=${PIPESTATUS[0]}
set -e
if [ "$whole" = yes ]; then
    echo "== cutting the power"
    scripts/power-cut.sh --cuts "${CUTS:-200}" --binary "$target/release/sealift" 2>&1 | tee -a "$log" || status=1
    echo "== breaking links"
    scripts/link-torture.sh --mib "${LINK_MIB:-10240}" --binary "$target/release/sealift" 2>&1 | tee -a "$log" || status=1
fi

echo
echo "== report ($((SECONDS - begun)) s, $(nproc) processors, $(uname -sr), $(git rev-parse --short HEAD 2>/dev/null || echo 'no commit'))"
grep -E '^test result' "$log" || true
echo "-- what was counted"
grep -E '^[^ ].*(: [0-9]+ times$|servers died|outlived|hidden|needed another|memory rose|syncfs|never rested|served again|names, [0-9]+ files|rotten files|calls of the reference|power cuts|links, )' "$log" | sort -u || true
echo "-- what was left out here"
grep -E '^skipped' "$log" | sort | uniq -c || echo "nothing"
if ((status != 0)); then
    echo "-- what failed"
    sed -n '/^failures:/,/^test result/p' "$log"
elif [ "$whole" = yes ]; then
    python3 -B scripts/torture-report.py "$log" "$((SECONDS - begun))"
fi
exit "$status"
