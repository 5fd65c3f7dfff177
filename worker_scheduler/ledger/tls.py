"""How a connection to Postgres is protected where its URL does not say; it opens no connection.

libpq's own default, `sslmode=prefer`, talks in the clear to whoever answers without TLS, and to
anybody's certificate with it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from sqlalchemy.engine import URL

SAY_OTHERWISE = (
    "TLS with a verified certificate is the default; DATABASE_URL may say otherwise:"
    " sslrootcert=FILE (another CA), sslmode=require (encrypted, not verified), sslmode=disable (no TLS)"
)


def defaults(url: URL) -> dict[str, str]:
    """The parameters of libpq that `url` leaves to us.

    Empty on the way to this machine itself, and where the URL names an sslmode that verifies nothing.
    """
    query = url.query
    if "sslmode" not in query and all(map(_is_local, _hosts(url))):
        return {}
    found = {} if "sslmode" in query else {"sslmode": "verify-full"}
    if query.get("sslmode", "verify-full") == "verify-full" and "sslrootcert" not in query:
        found |= _trusted()
    return found


def _hosts(url: URL) -> Iterator[str]:
    """Every host that libpq may connect to: of the URL, else of its own variables."""
    named = url.host or url.query.get("host")
    if not named and ("service" in url.query or os.environ.get("PGSERVICE")):
        yield "wherever the service file says"
    address = url.query.get("hostaddr") or os.environ.get("PGHOSTADDR") or ""
    for given in (named or os.environ.get("PGHOST") or "", address):
        for part in (given,) if isinstance(given, str) else given:
            yield from part.split(",")


def _is_local(host: str) -> bool:
    """This machine: loopback, or a socket in the file system (or, by "@", in the abstract one)."""
    if not host or host == "localhost" or host[0] in "/@":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # With a port, as SQLAlchemy's `?host=a:1&host=b:2` has it.
        name, _, port = host.rpartition(":")
        return port.isdigit() and _is_local(name)


def _trusted() -> dict[str, str]:
    """Whom to trust: libpq's own file or variable where there is one, else this system's CAs.

    As a file: `sslrootcert=system` means OpenSSL's built-in folder, which in the OpenSSL that comes
    with psycopg's wheels exists nowhere, and libpq before 16 does not know the word.
    """
    if os.environ.get("PGSSLROOTCERT") or Path("~/.postgresql/root.crt").expanduser().is_file():
        return {}
    bundle = ssl.get_default_verify_paths().cafile or next(filter(os.path.isfile, _BUNDLES), None)
    return {"sslrootcert": bundle or "system"}


_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/cert.pem",  # macOS, Alpine
)
