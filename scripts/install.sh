#!/usr/bin/env bash
# Installs sealift: the program, completions for bash, zsh and fish, and manual pages. Running it again is an update.
#
#   scripts/install.sh [--prefix DIR] [--destdir DIR] [--binary FILE]
#   scripts/install.sh --uninstall [--prefix DIR] [--destdir DIR]
#
# --prefix   where it will be used from; /usr/local if not given
# --destdir  put before every path that is written, for packages
# --binary   the program to install; if not given it is built
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
prefix=/usr/local
destdir=
binary=
uninstall=

fail() {
    echo "install.sh: $1" >&2
    exit 2
}

while (($# > 0)); do
    case $1 in
    -h | --help)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    --prefix | --destdir | --binary)
        [[ -n ${2:-} ]] || fail "$1 needs a value"
        declare "${1#--}=$2"
        shift
        ;;
    --prefix=* | --destdir=* | --binary=*)
        name=${1%%=*}
        declare "${name#--}=${1#*=}"
        ;;
    --uninstall) uninstall=yes ;;
    *) fail "what is \`$1\`? (--help says what there is)" ;;
    esac
    shift
done
[[ $prefix == /* ]] || fail "--prefix must begin with /"

top=$destdir${prefix%/}
program=$top/bin/sealift
completions=(
    "$top/share/bash-completion/completions/sealift"
    "$top/share/zsh/site-functions/_sealift"
    "$top/share/fish/vendor_completions.d/sealift.fish"
)
pages=$top/share/man/man1

if [[ -n $uninstall ]]; then
    rm -f -- "$program" "${completions[@]}" "$pages"/sealift.1 "$pages"/sealift-*.1
    echo "removed sealift from $top"
    exit 0
fi

if [[ -z $binary ]]; then
    command -v cargo >/dev/null || fail "no cargo to build it with: install Rust, or give --binary FILE"
    CARGO_TARGET_DIR=$target cargo build --release --locked --bin sealift --manifest-path "$root/Cargo.toml"
    binary=$target/release/sealift
fi
[[ -f $binary && -x $binary ]] || fail "$binary is no program"

# All that can fail for its own reason comes first.
made=$(mktemp -d)
trap 'rm -rf -- "$made"' EXIT
mkdir "$made/man"
for shell in bash zsh fish; do
    "$binary" generate completions "$shell" >"$made/$shell"
done
"$binary" generate man "$made/man"

# Into a new file beside it, then renamed: the program may be running.
put() {
    install -d -m 0755 -- "$(dirname -- "$3")"
    install -m "$1" -- "$2" "$3.new"
    mv -f -- "$3.new" "$3"
}
put 0755 "$binary" "$program"
put 0644 "$made/bash" "${completions[0]}"
put 0644 "$made/zsh" "${completions[1]}"
put 0644 "$made/fish" "${completions[2]}"
# Pages of commands that there are no more do not stay.
rm -f -- "$pages"/sealift-*.1
for page in "$made"/man/*.1; do
    put 0644 "$page" "$pages/$(basename -- "$page")"
done
echo "installed $("$binary" --version) in $top"
