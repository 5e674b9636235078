#!/usr/bin/env bash
# Cuts the power under a server that is being written to, again and again, and looks at what is left.
#
#   scripts/power-cut.sh [--cuts N] [--fs ext4,xfs] [--seed N] [--limit SECONDS] [--binary FILE]
#
# An outer XFS image with reflink holds the image of a disk, which is mounted as ext4, then as XFS; the real server stores
# there while clients put, overwrite, move and remove small and large files, and every answer is written down with its
# time. At random instants the disk is cloned, which is what a power cut would leave; the clone is mounted (its
# journal is replayed) and compared with the answers that had come before that instant. Then a server is started on it.
# What was acknowledged must be there with its content or that of a later change, nothing partial under any name.
#
#   --cuts N           cuts for each file system (default 5; the long form is 200)
#   --limit SECONDS    for each file system; then it ends with the cuts that it has done (default 40 + 8 for each cut)
#   --binary FILE      the program (default: the debug build, built if it is missing)
#
# Needs root, loop devices, mkfs.ext4 and mkfs.xfs, python3 and 1 GiB in the temporary folder; says so where it can't run,
# and exits with 0. Exit code 1: something that was acknowledged was lost; the folder with the evidence is named and kept.
set -euo pipefail

case ${1:-} in
-h | --help)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
skip() { printf 'skipped, power cuts are not tried: %s\n' "$*"; exit 0; }
[ "$(uname -s)" = Linux ] || skip "this is not Linux"
[ "$(id -u)" = 0 ] || skip "mounting needs root"
for tool in losetup mkfs.ext4 mkfs.xfs python3 mount umount; do
    command -v "$tool" >/dev/null || skip "$tool is missing"
done
losetup --find >/dev/null 2>&1 || skip "there is no loop device"
exec python3 -B scripts/power-cut.py "$@"
