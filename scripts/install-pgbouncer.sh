#!/bin/sh
# Installs Debian's pgbouncer if it is missing. Only `make test-matrix` needs it.
set -eu
if command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "pgbouncer is not installed; as root: apt-get install pgbouncer" >&2
    exit 1
fi
# The package starts a PgBouncer on port 6432; the matrix starts its own on another port.
apt-get install -y -q --no-install-recommends pgbouncer >/dev/null 2>&1 ||
    { apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends pgbouncer >/dev/null; }
