"""How values travel between Python and Postgres, whatever the server, the role or PG* variables set.

No session setting decides it, since a pooler may give each transaction another session:

- Results come in Postgres' binary format, in which a time has one form. As text it has the session's
  DateStyle and TimeZone. Times are sent in ISO form, which every DateStyle reads alike.
- Text travels as UTF-8. A character that the database's encoding lacks is stored escaped, as `\\U0001f600`.
- Text that others wrote may be no UTF-8, in a database of the encoding SQL_ASCII for example, and Postgres
  would refuse to send it. `raw` reads its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.adapt import Buffer
from psycopg.pq import Format
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import Connection, CursorResult, TextClause
from sqlalchemy.exc import DBAPIError

_CODEC = "ledger_codec"
"""The attribute of a psycopg connection that says how its database encodes text."""

_NOT_IN_THE_ENCODING = {"22021", "22P05"}
# Python's names of the encodings that a database may have. EUC_TW and MULE_INTERNAL are none of Python's.
# SQL_ASCII takes any bytes: UTF-8 is what we write into it.
_LATIN = {1: 1, 2: 2, 3: 3, 4: 4, 5: 9, 6: 10, 7: 13, 8: 14, 9: 15, 10: 16}
_CODECS = {
    "UTF8": "utf-8",
    "SQL_ASCII": "utf-8",
    "EUC_CN": "gb2312",
    "EUC_JIS_2004": "euc_jis_2004",
    "EUC_JP": "euc_jp",
    "EUC_KR": "euc_kr",
    "JOHAB": "johab",
    "KOI8R": "koi8_r",
    "KOI8U": "koi8_u",
    **{f"ISO_8859_{part}": f"iso8859_{part}" for part in range(5, 9)},
    **{f"LATIN{number}": f"iso8859_{part}" for number, part in _LATIN.items()},
    **{f"WIN{page}": f"cp{page}" for page in (866, 874, *range(1250, 1259))},
}

_AGREED = {"utf-8", "iso8859_1"}
"""The codecs about which Python and Postgres agree in each character."""


class BinaryCursor(psycopg.Cursor[Any]):
    """A cursor whose results come in the binary format."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.format = Format.BINARY


class EscapingDumper(StrDumperUnknown):
    """Sends text with everything escaped that the database cannot store."""

    def dump(self, obj: str) -> Buffer | None:
        """The text in UTF-8, the encoding of the connection."""
        return _escaped(obj, _codec(self.connection)).encode()


CLIENT_ENCODING = "utf8"
"""An argument of psycopg.connect. It goes before PGCLIENTENCODING and what the database or the role sets,
and poolers keep it for each client.
"""


def prepare(connection: psycopg.Connection[Any]) -> None:
    """Makes a new connection send text as this module says."""
    connection.adapters.register_dumper(str, EscapingDumper)
    encoding = connection.info.parameter_status("server_encoding")
    setattr(connection, _CODEC, _CODECS.get(encoding or "UTF8", "ascii"))


def raw(expression: str) -> str:
    """SQL for the bytes of a text, in the database's encoding and not checked; `text_of` reads them."""
    return f"convert_to(CAST({expression} AS text), getdatabaseencoding())"


def text_of(connection: Connection, value: bytes | None) -> str | None:
    """The text of a `raw` value. Bytes that are not of the database's encoding become `\\xNN`."""
    if value is None:
        return None
    return value.decode(_codec(_driver(connection)), "backslashreplace")


def execute_with_text(
    connection: Connection, statement: TextClause, parameters: Mapping[str, Any], name: str, longest: int
) -> CursorResult[Any]:
    """Executes a statement that stores a text, the parameter `name`, and must not fail because of it.

    The text is cut to `longest` characters after everything is escaped that the database cannot store.
    Python and Postgres disagree about a few characters; if Postgres refuses one, all but ASCII is escaped.
    """
    given = parameters[name]
    if given is None:
        return connection.execute(statement, parameters)
    storable = _escaped(given, _codec(_driver(connection)))[:longest]
    try:
        return connection.execute(statement, {**parameters, name: storable})
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in _NOT_IN_THE_ENCODING:
            raise
    return connection.execute(statement, {**parameters, name: _escaped(given, "ascii")[:longest]})


def surely_storable(connection: Connection, text: str) -> str:
    """The text as no database refuses it, for statements that cannot be tried again in their transaction.

    About some encodings Python and Postgres disagree in places; there all but ASCII is escaped.
    """
    codec = _codec(_driver(connection))
    return _escaped(text, codec if codec in _AGREED else "ascii")


def _escaped(text: str, codec: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", r"\x00").encode(codec, "backslashreplace").decode(codec)


def _codec(connection: psycopg.Connection[Any] | Any) -> str:
    """Python's codec for the database's encoding; ASCII, which is a part of each, if Python has none."""
    return getattr(connection, _CODEC, "utf-8")


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection
