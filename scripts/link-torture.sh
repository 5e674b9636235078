#!/usr/bin/env bash
# Large transfers, up and down, over links that break: all must complete, right, and what is sent again is counted.
#
#   scripts/link-torture.sh [--mib N] [--binary FILE] [--only NAME,...]
#
#   cuts        N MiB (default 10240) at 1 Gbit/s, every connection reset every 5 s
#   slow        20 MiB over 8 connections at 8 Mbit/s, every connection reset every 5 s
#   outage      1 GiB over 40 ms and 200 Mbit/s, no packet for 2 minutes in the middle
#   lossy       64 MiB over 200 ms, 5 % loss, packets reordered, MTU 576
#   damaged     256 MiB over a link that changes a bit in 1 of 1,000 packets
#
# The last three need root, and SEALIFT_WANLINK=/path/to/wanlink (a link emulator between network namespaces);
# without them they are skipped, and say so. Takes three times N MiB of room in the temporary folder.
set -euo pipefail
case ${1:-} in
-h | --help)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
command -v python3 >/dev/null || { echo "skipped: broken links: python3 is needed (apt-get install python3)"; exit 0; }
exec python3 -B "$here/scripts/link-torture.py" "$@"
