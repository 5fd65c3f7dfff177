"""SQL over the application's relation of users: checks it and counts; `selected_users.py` finds users."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import Connection, text

from worker_scheduler.errors import ConfigurationError
from worker_scheduler.ledger.formats import raw, text_of
from worker_scheduler.redaction import escape_control_characters

_PART = re.compile(r'"([^"]+)"|([^."]+)')
_TEXT_TYPES = {"text", "varchar", "citext", "bpchar"}

# One row at least: whether the relation exists, and each needed column that it has.
# A domain counts as its base type.
_COLUMNS = text(
    f"""
    SELECT r.oid IS NOT NULL AS exists, a.attname, {raw("t.typname")} AS type
    FROM (SELECT to_regclass(:name) AS oid) r
    LEFT JOIN pg_attribute a ON a.attrelid = r.oid AND a.attname IN ('id', 'github_login')
    LEFT JOIN pg_type d ON d.oid = a.atttypid
    LEFT JOIN pg_type t ON t.oid = CASE WHEN d.typtype = 'd' THEN d.typbasetype ELSE d.oid END
    """
)


@dataclass(frozen=True)
class UsersRelation:
    """The relation of users: its name as in USERS_RELATION, and as SQL."""

    name: str

    @property
    def quoted(self) -> str:
        """The name in quotes, so that a keyword works. Unquoted parts become lower case, as in Postgres."""
        parts = [quoted or plain.lower() for quoted, plain in _PART.findall(self.name)]
        return ".".join(f'"{part}"' for part in parts)

    @property
    def sql(self) -> str:
        """The quoted name as a part of a statement, where a colon would otherwise begin a parameter."""
        return self.quoted.replace(":", r"\:")

    @property
    def shown(self) -> str:
        """The name as given, for a message of one line."""
        return escape_control_characters(self.name)


def require_relation(connection: Connection, relation: UsersRelation) -> None:
    """Raises ConfigurationError if the relation or a column is missing, or a column has a wrong type."""
    rows = connection.execute(_COLUMNS, {"name": relation.quoted}).all()
    if not rows[0].exists:
        raise ConfigurationError(
            [f"USERS_RELATION='{relation.shown}': there is no such table or view in the database"]
        )
    types = {row.attname: text_of(connection, row.type) for row in rows}
    faults = []
    for column, accepted, wanted in (("id", {"uuid"}, "uuid"), ("github_login", _TEXT_TYPES, "text")):
        found = types.get(column)
        if found not in accepted:
            state = "is missing" if found is None else f"is {found}"
            faults.append(
                f"USERS_RELATION='{relation.shown}': column {column} {state}, it must be {wanted}"
                " (a view can provide it)"
            )
    if faults:
        raise ConfigurationError(faults)


def count(connection: Connection, relation: UsersRelation) -> int:
    """Counts the users."""
    rows = connection.execute(text(f"SELECT count(*) FROM {relation.sql} u WHERE u.id IS NOT NULL"))
    return int(rows.scalar_one())
