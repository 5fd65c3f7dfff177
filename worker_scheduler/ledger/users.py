"""SQL over the application's relation of users: counts, finds, checks. Reads only, never writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.errors import ConfigurationError

_PART = re.compile(r'"([^"]+)"|([^."]+)')
_STRINGS = {"text", "varchar", "citext", "bpchar"}


@dataclass(frozen=True)
class UsersRelation:
    """The relation's name, as given in USERS_RELATION and as SQL."""

    name: str

    @property
    def sql(self) -> str:
        """Quoted, so that a name that is a keyword works; folded first, as Postgres folds it."""
        parts = [quoted or plain.lower() for quoted, plain in _PART.findall(self.name)]
        return ".".join(f'"{part}"' for part in parts)


def require_relation(connection: Connection, relation: UsersRelation) -> None:
    """Raises ConfigurationError where the relation or one of its two columns is missing."""
    exists = connection.execute(text("SELECT to_regclass(:name)"), {"name": relation.sql})
    if exists.scalar_one() is None:
        raise ConfigurationError(
            [f"USERS_RELATION='{relation.name}': there is no such table or view in the database"]
        )
    rows = connection.execute(
        text(
            "SELECT a.attname, t.typname FROM pg_attribute a"
            " JOIN pg_type d ON d.oid = a.atttypid"
            # A domain counts as the type below it.
            " JOIN pg_type t ON t.oid = CASE WHEN d.typtype = 'd' THEN d.typbasetype ELSE d.oid END"
            " WHERE a.attrelid = to_regclass(:name) AND a.attnum > 0 AND NOT a.attisdropped"
        ),
        {"name": relation.sql},
    )
    types: dict[str, str] = {row.attname: row.typname for row in rows}
    faults = []
    for column, accepted, wanted in (("id", {"uuid"}, "uuid"), ("github_login", _STRINGS, "text")):
        found = types.get(column)
        if found not in accepted:
            state = "is missing" if found is None else f"is {found}"
            faults.append(
                f"USERS_RELATION='{relation.name}': column {column} {state}, it must be {wanted}"
                " (a view can provide it)"
            )
    if faults:
        raise ConfigurationError(faults)


def count(connection: Connection, relation: UsersRelation) -> int:
    """How many users there are."""
    rows = connection.execute(text(f"SELECT count(*) FROM {relation.sql} u WHERE u.id IS NOT NULL"))
    return int(rows.scalar_one())


def find_by_ids(connection: Connection, relation: UsersRelation, ids: Sequence[UUID]) -> list[UUID]:
    """Those of `ids` that are users."""
    rows = connection.execute(
        text(f"SELECT u.id FROM {relation.sql} u WHERE u.id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": [str(user_id) for user_id in ids]},
    )
    return list(rows.scalars())


def find_by_logins(
    connection: Connection, relation: UsersRelation, logins: Sequence[str]
) -> list[tuple[str, UUID]]:
    """(login as asked, user id) for those of `logins` that are users', without regard to case.

    Postgres folds both sides: its idea of case and Python's differ outside ASCII.
    """
    rows = connection.execute(
        text(
            "SELECT wanted.login, u.id FROM unnest(CAST(:logins AS text[])) AS wanted(login)"
            f" JOIN {relation.sql} u ON lower(CAST(u.github_login AS text)) = lower(wanted.login)"
        ),
        {"logins": list(logins)},
    )
    return [(row.login, row.id) for row in rows]


def count_without_job(
    connection: Connection,
    relation: UsersRelation,
    partition_key: str,
    chosen: Sequence[UUID] | None,
) -> int:
    """How many of the chosen users (None: of all) have no job in the partition yet."""
    condition = "" if chosen is None else "AND u.id = ANY(CAST(:ids AS uuid[]))"
    parameters: dict[str, object] = {"partition_key": partition_key}
    if chosen is not None:
        parameters["ids"] = [str(user_id) for user_id in chosen]
    rows = connection.execute(
        text(
            f"SELECT count(*) FROM {relation.sql} u WHERE u.id IS NOT NULL {condition}"
            " AND NOT EXISTS (SELECT FROM sync_jobs j"
            " WHERE j.partition_key = :partition_key AND j.user_id = u.id)"
        ),
        parameters,
    )
    return int(rows.scalar_one())
