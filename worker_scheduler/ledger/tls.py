"""TLS defaults for connections to Postgres whose URL sets none.

libpq's own default, `sslmode=prefer`, sends clear text to a server without TLS, and accepts any
certificate.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

from psycopg import pq
from sqlalchemy.engine import URL

SAY_OTHERWISE = (
    "TLS with a verified certificate is the default; DATABASE_URL may say otherwise:"
    " sslrootcert=FILE (another CA), sslmode=require (encrypted, not verified), sslmode=disable (no TLS)"
)


_FIRST_WITH_SSLCERTMODE = 160000
"""The first libpq that knows it."""


def defaults(url: URL) -> dict[str, str]:
    """The libpq parameters to add to `url`: verify the certificate and the host name.

    Empty if every host is this machine, or if the URL has an sslmode that verifies nothing.
    """
    query = url.query
    if "sslmode" not in query and all(map(_is_local, _hosts(url))):
        return {}
    found = {} if "sslmode" in query else {"sslmode": "verify-full"}
    if query.get("sslmode", "verify-full") == "verify-full" and "sslrootcert" not in query:
        found |= _trusted()
    return found | _no_client_certificate(query)


def _hosts(url: URL) -> Iterator[str]:
    """Every host that libpq may connect to: those of the URL, otherwise those of libpq's variables."""
    named = url.host or url.query.get("host")
    if not named and ("service" in url.query or os.environ.get("PGSERVICE")):
        yield "wherever the service file says"
    address = url.query.get("hostaddr") or os.environ.get("PGHOSTADDR") or ""
    for given in (named or os.environ.get("PGHOST") or "", address):
        for part in (given,) if isinstance(given, str) else given:
            yield from part.split(",")


def _is_local(host: str) -> bool:
    """Whether `host` is this machine: loopback, or a path of a socket (abstract ones begin with "@")."""
    if not host or host == "localhost" or host[0] in "/@":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # Perhaps with a port, as in SQLAlchemy's `?host=a:1&host=b:2`.
        name, _, port = host.rpartition(":")
        return port.isdigit() and _is_local(name)


def _trusted() -> dict[str, str]:
    """The CAs to trust: libpq's own file or variable if there is one, otherwise this system's CAs.

    They are given as a file: `sslrootcert=system` means OpenSSL's built-in folder, which does not exist for
    the OpenSSL in psycopg's wheels, and libpq before 16 does not know the word.
    """
    if os.environ.get("PGSSLROOTCERT") or _has_own_ca():
        return {}
    bundle = ssl.get_default_verify_paths().cafile or next(filter(os.path.isfile, _BUNDLES), None)
    return {"sslrootcert": bundle or "system"}


def _no_client_certificate(given: Mapping[str, object]) -> dict[str, str]:
    """libpq looks for a client certificate in the home folder, and fails if it may not look there."""
    if "sslcert" in given or "sslcertmode" in given or os.environ.get("PGSSLCERT"):
        return {}
    try:
        Path("~/.postgresql/postgresql.crt").expanduser().stat()
    except PermissionError:
        return {"sslcertmode": "disable"} if pq.version() >= _FIRST_WITH_SSLCERTMODE else {}
    except (OSError, RuntimeError):  # there is none, or no home folder
        pass
    return {}


def _has_own_ca() -> bool:
    """Whether libpq has a CA file of this user's; no, if there is no home folder or it cannot be read."""
    try:
        return Path("~/.postgresql/root.crt").expanduser().is_file()
    except (OSError, RuntimeError):
        return False


_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/cert.pem",  # macOS, Alpine
)
