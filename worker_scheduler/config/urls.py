"""Checks and normalises the URLs of Redis and of the broker; opens no connection."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES

from worker_scheduler.config.hosts import is_host
from worker_scheduler.redaction import show

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}")
"""What may be shown as a URL's scheme; anything else may be a part of a password."""
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
# kombu hands what follows the `+` of any other scheme on as the host's name.
_COMPOUND = re.compile(r"redis\+socket|(?:sqla|sqlalchemy)\+[a-z0-9_+]+")
_SWITCHES = {"true": "true", "1": "true", "yes": "true", "false": "false", "0": "false", "no": "false"}
_MAX_DATABASE = 2**31 - 1
# kombu takes each parameter of a URL for an argument of its connection, as text. These two work as text;
# any other ends in a TypeError when the connection is made, or when it is opened.
_BROKER_PARAMETERS = {
    "heartbeat": re.compile(r"[0-9]{1,5}"),
    "login_method": re.compile("PLAIN|AMQPLAIN|EXTERNAL"),
}
_SOCKET_PARAMETERS = {"virtual_host": re.compile(r"[0-9]{1,9}")}


def redis_url(text: str) -> str:
    """Returns `text` in the spelling that kombu and redis-py both accept.

    For a bare `rediss://`, redis-py verifies the certificate and kombu does not; so `ssl_cert_reqs` is
    always written into the URL, `required` by default. Raises ValueError with the reason.
    """
    text = text.strip()
    scheme = _scheme(text)
    if scheme not in REDIS_SCHEMES:
        raise ValueError(f"has the unsupported scheme {show(scheme)}")
    parts = _split(text)
    if not parts.hostname or parts.fragment:
        raise ValueError("is malformed")
    database = parts.path.strip("/")
    if database and not (database.isascii() and database.isdigit() and int(database) <= _MAX_DATABASE):
        raise ValueError("has a database that is not a number")
    # kombu and redis-py know different parameters, and raise TypeErrors for the others.
    query = _only(_TLS_PARAMETERS if scheme == "rediss" else (), scheme, parts.query)
    if scheme == "rediss":
        check = query.get("ssl_cert_reqs", "required").lower()
        if check not in _CERTIFICATE_CHECKS:
            raise ValueError("has an ssl_cert_reqs other than none, optional, required")
        query["ssl_cert_reqs"] = _CERTIFICATE_CHECKS[check]
    if "ssl_check_hostname" in query:
        # kombu takes everything but `false` for true, redis-py has several words for either.
        check = query["ssl_check_hostname"].lower()
        if check not in _SWITCHES:
            raise ValueError("has an ssl_check_hostname other than true, false")
        query["ssl_check_hostname"] = _SWITCHES[check]
    return urlunsplit((scheme, parts.netloc, f"/{database}" if parts.path else "", urlencode(query), ""))


def without_credentials(redis_url: str) -> tuple[str, dict[str, str]]:
    """Returns the URL without user and password, and these two as redis-py's keyword arguments."""
    parts = urlsplit(redis_url)
    given = {"username": parts.username, "password": parts.password}
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=place)), {k: unquote(v) for k, v in given.items() if v}


def broker_url(text: str) -> str:
    """Returns `text` as Celery needs it. Raises ValueError with the reason if kombu cannot use it."""
    text = text.strip()
    scheme = _scheme(text, bare=True)  # a bare `sqs://` is complete: AWS settings say the rest
    if scheme in REDIS_SCHEMES:
        return redis_url(text)
    transport = TRANSPORT_ALIASES.get(scheme.partition("+")[0])
    if transport is None or ("+" in scheme and not _COMPOUND.fullmatch(scheme)):
        raise ValueError(f"has the unsupported scheme {show(scheme)}")
    # The scheme in small letters, which is how the settings of celeryconfig.py look for it.
    checked = f"{scheme}{text[len(scheme) :]}"
    for place in checked.split(";"):  # kombu's form for several brokers
        _check_place(place, transport)
    return checked


def _check_place(place: str, transport: str) -> None:
    try:
        parses_itself = Connection(place.partition("?")[0]).transport.can_parse_url
    except (ImportError, NameError, RuntimeError) as error:  # kombu raises any of the three
        extra = transport.partition(":")[0].rpartition(".")[2].lower()
        raise ValueError(
            f"needs a library that is not installed ({error}): install kombu[{extra}]"
        ) from None
    except (KeyError, TypeError, ValueError):
        raise ValueError("is malformed") from None
    scheme, parts = _scheme(place, bare=True), _split(place)
    if parses_itself or scheme.startswith("sqla"):
        # Their parameters are for their own libraries. SQLAlchemy would load code for this one.
        if "plugin" in dict(parse_qsl(parts.query, keep_blank_values=True)):
            raise ValueError(f"has the parameter {show('plugin')}, which is not allowed with {scheme}://")
        return
    known = _SOCKET_PARAMETERS if "+socket" in scheme else _BROKER_PARAMETERS
    for name, value in _only(known, scheme, parts.query).items():
        if not known[name].fullmatch(value):
            raise ValueError(f"has a {name} that the broker's library cannot use")
    # After a `#`, kombu takes for a host or a path what urlsplit has cut off, so nothing has checked it.
    if "#" in place or "@" in parts.path:
        raise ValueError("is malformed")


def _split(text: str) -> SplitResult:
    """The parts of a URL whose host, port and %-codes can be used. Raises ValueError."""
    try:
        # Not by its default, which replaces what is not UTF-8: the password would be another one.
        decoded = unquote(text, errors="strict")
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ValueError("is malformed") from None
    if "\0" in decoded or re.search(r"[\t\r\n]", text):  # urlsplit drops the latter without a word
        raise ValueError("is malformed")
    if port == 0:
        raise ValueError("is malformed")
    if host and not is_host(host):
        raise ValueError("has a host that is neither a name nor an address")
    return parts


def _only(known: Iterable[str], scheme: str, query: str) -> dict[str, str]:
    """The parameters of a URL. Raises ValueError for one that is not known."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"has the parameter {show(unknown[0])}, which is not allowed with {scheme}://")
    return {name: value for name, value in given.items() if value}


def _scheme(text: str, bare: bool = False) -> str:
    scheme, separator, rest = text.partition("://")
    if not separator or not (rest or bare) or not SCHEME.fullmatch(scheme):
        raise ValueError("is malformed")
    return scheme.lower()
