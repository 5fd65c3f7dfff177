"""Checks and normalises DATABASE_URL; opens no connection."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote

from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from worker_scheduler.config import libpq
from worker_scheduler.config.urls import SCHEME
from worker_scheduler.redaction import show

_DIALECT: Any = PGDialect_psycopg()  # type: ignore[no-untyped-call]
# SQLAlchemy makes a number of whatever Python's int() reads: `+5`, ` 5`, `5_4`, and other digits than ours.
_PORT = re.compile(r":(?![0-9]*\Z)[^:@\]]*\Z")
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


def postgres_url(text: str) -> str:
    """Returns `text` as SQLAlchemy needs it for psycopg 3. Raises ValueError with the reason."""
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if not separator or not rest or not SCHEME.fullmatch(scheme):
        raise ValueError("is malformed")
    if scheme.lower() not in SCHEMES:
        raise ValueError(f"has the unsupported scheme {show(scheme.lower())}")
    if rest.count("@") > 1:
        # SQLAlchemy would take everything after the first @ for the host, and show it in errors.
        raise ValueError("has more than one @: write %40 for each that is part of a name or a password")
    url = _parsed(f"postgresql+psycopg://{rest}")
    if not url.database:
        raise ValueError("does not name a database")
    if _PORT.search(rest.partition("?")[0].partition("/")[0]):
        raise ValueError("is malformed")
    if url.port is not None and not 0 < url.port < 65536:
        raise ValueError("has a port outside 1-65535")
    libpq.check(_parameters(url), os.environ)
    return url.render_as_string(hide_password=False)


def _parsed(text: str) -> URL:
    try:
        # Not by its default, which replaces what is not UTF-8: the password would be another one.
        decoded = unquote(text, errors="strict")
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("is malformed") from None
    if "\0" in decoded or re.search(r"[/\s]", url.host or ""):
        raise ValueError("is malformed")
    return url


def _parameters(url: URL) -> dict[str, str]:
    """What SQLAlchemy makes of the URL for libpq. Raises ValueError for what libpq does not know."""
    for name, value in url.query.items():
        if name not in libpq.PARAMETERS:
            raise ValueError(f"has the parameter {show(name)}, which is not allowed with {SCHEMES[0]}://")
        if not isinstance(value, str) and name not in {"host", "port"}:
            raise ValueError(f"has the parameter {show(name)} more than once")
    try:
        _, found = _DIALECT.create_connect_args(url)
    except (ArgumentError, ValueError, TypeError):
        raise ValueError("has a list of hosts or ports that cannot be read") from None
    return {name: str(value) for name, value in found.items()}
