#!/usr/bin/env bash
# Looks at a server's TLS with testssl.sh (Debian's package of that name). Takes about two minutes.
#
#   scripts/testssl.sh
#
# Starts a server on a free port of this machine with certificates of its own, and stops it again. Fails when testssl
# finds anything but what a private authority is bound to lack: addresses of revocation lists, a DNS record.
# (What it says of this machine's own openssl, `engine_problem`, is not about the server.)
set -euo pipefail

case ${1:-} in
-h | --help)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tool=$(command -v testssl || command -v testssl.sh || true)
if [ -z "$tool" ]; then
    echo "skipped: testssl.sh is not installed, so TLS is not looked at from outside (apt-get install testssl.sh)"
    exit 0
fi

cargo build --locked --quiet
sealift=$(cd "${CARGO_TARGET_DIR:-target}/debug" && pwd)/sealift
folder=$(mktemp -d)
server=
cleanup() {
    if [ -n "$server" ] && kill "$server" 2>/dev/null; then wait "$server" 2>/dev/null || true; fi
    rm -rf "$folder"
}
trap cleanup EXIT

"$sealift" certs --dir "$folder/pki" >/dev/null
# With certificates asked for and not required, so that testssl gets through the handshake.
"$sealift" serve --quiet --allow-anonymous --root "$folder/root" --certs "$folder/pki" --listen 127.0.0.1:0 \
    >"$folder/address" 2>"$folder/log" &
server=$!
for _ in $(seq 100); do
    grep -q '^listening on' "$folder/address" && break
    sleep 0.1
done
port=$(sed -n 's/^listening on .*://p' "$folder/address")
[ -n "$port" ] || { cat "$folder/log"; exit 1; }

timeout 600 "$tool" --quiet --color 0 --warnings batch --add-ca "$folder/pki/ca.pem" \
    --jsonfile "$folder/found.json" "localhost:$port" >"$folder/output" 2>&1 || true
if ! grep -q '"scanTime"' "$folder/found.json" 2>/dev/null; then
    cat "$folder/output"
    echo "testssl.sh did not come to its end"
    exit 1
fi
# One finding has these three on lines of their own.
found=$(awk -F'"' '
    $2 == "id" { id = $4 }
    $2 == "severity" { severity = $4 }
    $2 == "finding" && severity !~ /^(OK|INFO|DEBUG)$/ && id !~ /^(cert_revocation|DNS_CAArecord|scanTime|engine_problem)$/ {
        print severity, id ": " $4
    }' "$folder/found.json")
if [ -n "$found" ]; then
    echo "$found"
    echo "testssl.sh found the above"
    exit 1
fi
# That the file was understood at all.
grep -A4 '"TLS1_3"' "$folder/found.json" | grep -q '"OK"' || { echo "testssl.sh did not see TLS 1.3"; exit 1; }
echo "testssl.sh found nothing: TLS 1.3 only, $(grep -c '"OK"' "$folder/found.json") points in order"
