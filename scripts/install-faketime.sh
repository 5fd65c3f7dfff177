#!/bin/sh
# Installs Debian's faketime if it is missing. `make test-clocks` and `make test-faults` use it.
set -eu
if ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "faketime is not installed; as root: apt-get install faketime" >&2
    exit 1
fi
apt-get install -y -q --no-install-recommends faketime >/dev/null 2>&1 ||
    { apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends faketime >/dev/null; }
