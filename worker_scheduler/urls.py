"""Checks and normalises the URLs of Postgres and of the broker; opens no connection."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

POSTGRES_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
REDIS_SCHEMES = ("redis", "rediss")
_TLS_PARAMETERS = {"ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}
_CERTIFICATE_CHECKS = {
    "none": "none",
    "optional": "optional",
    "required": "required",
    # kombu's spelling, which redis-py (and so RedBeat) rejects.
    "cert_none": "none",
    "cert_optional": "optional",
    "cert_required": "required",
}


def postgres_url(text: str) -> str:
    """`text` for SQLAlchemy with psycopg 3. Raises ValueError with the reason where it is none."""
    scheme = _scheme(text)
    if scheme not in POSTGRES_SCHEMES:
        raise ValueError(f"has the unsupported scheme {scheme!r}")
    if text.count("@") > 1:
        # SQLAlchemy would take what follows the first one for the host, and show it.
        raise ValueError("has more than one @: write %40 for each that is part of a name or a password")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("is malformed") from None
    if "\0" in unquote(text) or re.search(r"[/\s]", url.host or ""):
        raise ValueError("is malformed")
    if not url.database:
        raise ValueError("names no database")
    if url.port is not None and not 0 < url.port < 65536:
        raise ValueError("has a port outside 1-65535")
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def redis_url(text: str) -> str:
    """`text` in the one spelling that kombu and redis-py both take, certificates verified.

    kombu leaves the certificate of a bare `rediss://` unverified and redis-py verifies it; so the
    wish is written into the URL. Raises ValueError with the reason where `text` is no Redis URL.
    """
    scheme = _scheme(text)
    if scheme not in REDIS_SCHEMES:
        raise ValueError(f"has the unsupported scheme {scheme!r}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("is malformed") from None
    if not parts.hostname or port == 0 or parts.fragment:
        raise ValueError("is malformed")
    database = parts.path.strip("/")
    if database and not (database.isascii() and database.isdigit()):
        raise ValueError("names a database that is no number")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    # kombu and redis-py each know other parameters, and raise TypeErrors for the rest.
    unknown = sorted(set(query) - (_TLS_PARAMETERS if scheme == "rediss" else set()))
    if unknown:
        raise ValueError(f"has the parameter {unknown[0]!r}, which is not allowed with {scheme}://")
    if scheme == "rediss":
        wish = query.get("ssl_cert_reqs", "required").lower()
        if wish not in _CERTIFICATE_CHECKS:
            raise ValueError("has an ssl_cert_reqs other than none, optional, required")
        query["ssl_cert_reqs"] = _CERTIFICATE_CHECKS[wish]
    return urlunsplit((scheme, parts.netloc, parts.path, urlencode(query), ""))


def without_credentials(redis_url: str) -> tuple[str, dict[str, str]]:
    """The URL alone, and its user and password as redis-py takes them beside it."""
    parts = urlsplit(redis_url)
    given = {"username": parts.username, "password": parts.password}
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=place)), {k: unquote(v) for k, v in given.items() if v}


def broker_url(text: str) -> str:
    """`text` for Celery. Raises ValueError where kombu could do nothing with it."""
    scheme = _scheme(text, bare=True)  # `sqs://` finds the rest elsewhere
    if scheme in REDIS_SCHEMES:
        return redis_url(text)
    transport = TRANSPORT_ALIASES.get(scheme.partition("+")[0])
    if transport is None:
        raise ValueError(f"has the unsupported scheme {scheme!r}")
    for place in text.split(";"):  # kombu's form for several brokers
        try:
            parses_itself = Connection(place).transport.can_parse_url
            if not parses_itself and "@" in urlsplit(place).path:
                raise ValueError
        except (ImportError, NameError, RuntimeError) as error:  # kombu says it in all three ways
            extra = transport.partition(":")[0].rpartition(".")[2].lower()
            raise ValueError(
                f"needs a library that is not here ({error}): install kombu[{extra}]"
            ) from None
        except ValueError:
            raise ValueError("is malformed") from None
    return text


def _scheme(text: str, bare: bool = False) -> str:
    scheme, separator, rest = text.strip().partition("://")
    if not separator or not (rest or bare):
        raise ValueError("is malformed")
    return scheme.lower()
