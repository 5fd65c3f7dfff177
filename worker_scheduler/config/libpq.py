"""The connection parameters of libpq: their names, and what each may be.

SQLAlchemy hands every parameter of a URL to psycopg, and each that is not libpq's is an argument of the one
or the other: `plugin` loads code, `cursor_factory` replaces a class. So only libpq's own are allowed.
`replication` is left out, since a connection for replication runs no statements of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from worker_scheduler.config.hosts import is_address, is_host, is_port


@dataclass(frozen=True)
class Parameter:
    """A parameter. pattern: what its value must be, in full; words: the same for an operator.

    variable: the variable from which libpq takes the value if the URL has none.
    """

    pattern: str
    words: str
    variable: str = ""


def _text(variable: str = "") -> Parameter:
    return Parameter(r"(?s:.+)", "any text", variable)


def _number(variable: str = "") -> Parameter:
    return Parameter(r"-?[0-9]{1,9}", "a whole number", variable)


def _one_of(words: str, variable: str = "") -> Parameter:
    return Parameter("|".join(map(re.escape, words.split())), ", ".join(words.split()), variable)


_METHOD = "password|md5|gss|sspi|scram-sha-256|oauth|none"
_TLS_VERSIONS = "TLSv1 TLSv1.1 TLSv1.2 TLSv1.3"

PARAMETERS = {
    "user": _text("PGUSER"),
    "password": _text("PGPASSWORD"),
    "dbname": _text("PGDATABASE"),
    "host": _text("PGHOST"),  # a list, as the next two: see `check`
    "hostaddr": _text("PGHOSTADDR"),
    "port": _text("PGPORT"),
    "passfile": _text("PGPASSFILE"),
    "service": _text("PGSERVICE"),
    "options": _text("PGOPTIONS"),
    "application_name": _text("PGAPPNAME"),
    "fallback_application_name": _text(),
    # What is stored and read here is UTF-8. The variable PGCLIENTENCODING does not matter: the connection
    # string says utf8.
    "client_encoding": Parameter(r"(?i:utf-?8)", "utf8"),
    "connect_timeout": _number("PGCONNECT_TIMEOUT"),
    "keepalives": _one_of("0 1"),
    "keepalives_idle": _number(),
    "keepalives_interval": _number(),
    "keepalives_count": _number(),
    "tcp_user_timeout": _number(),
    "channel_binding": _one_of("disable prefer require", "PGCHANNELBINDING"),
    "sslmode": _one_of("disable allow prefer require verify-ca verify-full", "PGSSLMODE"),
    "sslnegotiation": _one_of("postgres direct", "PGSSLNEGOTIATION"),
    "sslcompression": _one_of("0 1", "PGSSLCOMPRESSION"),
    "sslcert": _text("PGSSLCERT"),
    "sslkey": _text("PGSSLKEY"),
    "sslcertmode": _one_of("disable allow require", "PGSSLCERTMODE"),
    "sslpassword": _text(),
    "sslrootcert": _text("PGSSLROOTCERT"),
    "sslcrl": _text("PGSSLCRL"),
    "sslcrldir": _text("PGSSLCRLDIR"),
    "sslsni": _one_of("0 1", "PGSSLSNI"),
    "sslkeylogfile": _text(),
    "ssl_min_protocol_version": _one_of(_TLS_VERSIONS, "PGSSLMINPROTOCOLVERSION"),
    "ssl_max_protocol_version": _one_of(_TLS_VERSIONS, "PGSSLMAXPROTOCOLVERSION"),
    "min_protocol_version": _one_of("3.0 3.2 latest", "PGMINPROTOCOLVERSION"),
    "max_protocol_version": _one_of("3.0 3.2 latest", "PGMAXPROTOCOLVERSION"),
    "requirepeer": _text("PGREQUIREPEER"),
    "require_auth": Parameter(
        rf"!?(?:{_METHOD})(?:,!?(?:{_METHOD}))*", "methods such as scram-sha-256", "PGREQUIREAUTH"
    ),
    "gssencmode": _one_of("disable prefer require", "PGGSSENCMODE"),
    "krbsrvname": _text("PGKRBSRVNAME"),
    "gsslib": _one_of("gssapi", "PGGSSLIB"),
    "gssdelegation": _one_of("0 1", "PGGSSDELEGATION"),
    "target_session_attrs": _one_of(
        "any read-write read-only primary standby prefer-standby", "PGTARGETSESSIONATTRS"
    ),
    "load_balance_hosts": _one_of("disable random", "PGLOADBALANCEHOSTS"),
    "scram_client_key": _text(),
    "scram_server_key": _text(),
    "oauth_issuer": _text(),
    "oauth_client_id": _text(),
    "oauth_client_secret": _text(),
    "oauth_scope": _text(),
}


def check(given: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """Checks what libpq will get: `given` from the URL, and the rest from its variables.

    Raises ValueError with the reason. No value is shown: in a URL that is mistyped it may be a password.
    """
    for name, value in given.items():
        parameter = PARAMETERS[name]
        if not re.fullmatch(parameter.pattern, value):
            raise ValueError(f"has a {name} that is not allowed: it may be {parameter.words}")
    variables = {
        name: environment[parameter.variable]
        for name, parameter in PARAMETERS.items()
        if name not in given and environment.get(parameter.variable)
    }
    for name, value in variables.items():
        parameter = PARAMETERS[name]
        if not re.fullmatch(parameter.pattern, value):
            raise ValueError(
                f"does not set {name}, and the variable {parameter.variable} has a value that is not"
                f" allowed: it may be {parameter.words}"
            )
    _check_places({**variables, **given})


def _check_places(parameters: Mapping[str, str]) -> None:
    hosts, addresses, ports = (
        parameters[name].split(",") if parameters.get(name) else [] for name in ("host", "hostaddr", "port")
    )
    if not all(is_host(host) or host[:1] in {"", "/", "@"} for host in hosts):
        raise ValueError("has a host that is neither a name nor an address")
    if not all(is_address(address) or not address for address in addresses):
        raise ValueError("has a hostaddr that is not an address")
    if not all(is_port(port) or not port for port in ports):
        raise ValueError("has a port outside 1-65535")
    places = max(len(hosts), len(addresses))
    if (hosts and addresses and len(hosts) != len(addresses)) or 1 < len(ports) != places:
        raise ValueError("has lists of hosts, addresses or ports of different lengths")
