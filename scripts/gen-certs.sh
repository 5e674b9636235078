#!/usr/bin/env bash
# Certificates for testing, in certs/ of this project. Running it again keeps the keys that are there.
#
#   scripts/gen-certs.sh [NAME_OR_IP ...] [OPTION ...]
#
# NAME_OR_IP is a name or address of the server, besides localhost, 127.0.0.1 and ::1. Options are those of
# `sealift certs`: --dir DIR, --client NAME, --days N, --force, --new-ca, ...
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
}

arguments=()
directory=$root/certs
while (($# > 0)); do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --dir)
        directory=${2:?--dir needs a directory}
        shift
        ;;
    --dir=*)
        directory=${1#--dir=}
        ;;
    --host | --client | --days | --export | --to | --revoke)
        arguments+=("$1" "${2:?$1 needs a value}")
        shift
        ;;
    -*)
        # The command itself says what it does not know.
        arguments+=("$1")
        ;;
    *)
        arguments+=(--host "$1")
        ;;
    esac
    shift
done

# A build that is newer than what it is made of will do, whichever it is.
is_current() {
    [[ -x $1 ]] && [[ -z $(find "$root/src" "$root/Cargo.toml" "$root/Cargo.lock" -newer "$1" -print -quit) ]]
}

sealift=
for candidate in "$target/release/sealift" "$target/debug/sealift"; do
    if is_current "$candidate"; then
        sealift=$candidate
        break
    fi
done
if [[ -z $sealift ]]; then
    if ! command -v cargo >/dev/null; then
        echo "gen-certs.sh: no up-to-date sealift in $target, and no cargo to build it: see the README" >&2
        exit 2
    fi
    echo "building sealift (the first time takes minutes) ..." >&2
    CARGO_TARGET_DIR=$target cargo build --release --locked --quiet --bin sealift --manifest-path "$root/Cargo.toml" >&2
    sealift=$target/release/sealift
fi

exec "$sealift" certs --dir "$directory" ${arguments[@]+"${arguments[@]}"}
