"""SQL of the users whom a tick selects: their ids in sync_selected_users, under the id of a selection.

The id is that of a new run. All this is part of the transaction that opens the run, so a refusal, a dry run
and a crash leave nothing. Each statement handles a page of users: none grows with the selection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from worker_scheduler.ledger.users import UsersRelation

PAGE = 10_000
"""Users per statement: some ten milliseconds."""

# ARRAY(SELECT …) counts as a few rows with any statistics: Postgres looks up each user by the index, or
# reads a relation without one once per page.
_BY_ID = """
    looked_up AS MATERIALIZED (
        SELECT g.n, g.user_id, u.id IS NOT NULL AS known
        FROM unnest(ARRAY(SELECT unnest(CAST(:given AS uuid[])))) WITH ORDINALITY AS g(user_id, n)
        LEFT JOIN {relation} u ON u.id = g.user_id
    )
"""
# Postgres lowers both sides, since it and Python disagree about case outside ASCII.
_BY_LOGIN = """
    looked_up AS MATERIALIZED (
        SELECT g.n, u.id AS user_id, u.id IS NOT NULL AS known
        FROM unnest(ARRAY(SELECT unnest(CAST(:given AS text[])))) WITH ORDINALITY AS g(login, n)
        LEFT JOIN {relation} u ON lower(CAST(u.github_login AS text)) = lower(g.login)
    )
"""
_ADD = """
    INSERT INTO sync_selected_users (run_id, user_id)
    SELECT DISTINCT CAST(:selection AS uuid), user_id FROM looked_up WHERE known ORDER BY user_id
    ON CONFLICT DO NOTHING
"""
_LEAVE_OUT = """
    DELETE FROM sync_selected_users s
    USING (SELECT DISTINCT user_id FROM looked_up WHERE known) left_out
    WHERE s.run_id = :selection AND s.user_id = left_out.user_id
"""
_NAMED = """
    WITH {looked_up}, done AS ({action})
    SELECT n FROM looked_up GROUP BY n HAVING NOT bool_or(known) ORDER BY n
"""

EVERYONE_PAGE = """
    SELECT u.user_id FROM (SELECT id AS user_id FROM {relation}) u WHERE u.user_id IS NOT NULL {after}
    GROUP BY u.user_id ORDER BY u.user_id LIMIT :limit
"""
SELECTED_PAGE = """
    SELECT u.user_id FROM sync_selected_users u WHERE u.run_id = :selection {after}
    ORDER BY u.user_id LIMIT :limit
"""
# By the jobs of the run, failed or not: a page has as many rows however few have failed.
_JOBS_PAGE = """
    SELECT u.user_id, u.status = 'FAILED' AS failed FROM sync_jobs u WHERE u.run_id = :failed_in {after}
    ORDER BY u.user_id LIMIT :limit
"""
_SELECT_EVERYONE = """
    INSERT INTO sync_selected_users (run_id, user_id)
    SELECT CAST(:selection AS uuid), user_id FROM page ORDER BY user_id
"""
# Users who do not exist any more are left out.
_SELECT_FAILED = """
    INSERT INTO sync_selected_users (run_id, user_id)
    SELECT DISTINCT CAST(:selection AS uuid), failed.user_id
    FROM unnest(ARRAY(SELECT user_id FROM page WHERE failed)) AS failed(user_id)
    JOIN {relation} u ON u.id = failed.user_id
    ORDER BY failed.user_id
"""
_KEEP_FAILED = """
    DELETE FROM sync_selected_users s USING unnest(ARRAY(SELECT user_id FROM page)) AS p(user_id)
    WHERE s.run_id = :selection AND s.user_id = p.user_id
        AND NOT EXISTS (SELECT FROM sync_jobs j
                        WHERE j.run_id = :failed_in AND j.user_id = p.user_id AND j.status = 'FAILED')
"""
# In the order of the ids: two transactions that name the same users in different orders would wait for each
# other.
_COPY = """
    INSERT INTO sync_selected_users (run_id, user_id)
    SELECT CAST(:run_id AS uuid), user_id FROM page ORDER BY user_id
    ON CONFLICT DO NOTHING
"""
_REMOVE = """
    DELETE FROM sync_selected_users s USING unnest(ARRAY(SELECT user_id FROM page)) AS p(user_id)
    WHERE s.run_id = :selection AND s.user_id = p.user_id
"""
_ON_A_PAGE = """
    WITH page AS MATERIALIZED ({page}), {actions}
    SELECT count(*) AS seen, (SELECT user_id FROM page ORDER BY user_id DESC LIMIT 1) AS through FROM page
"""
_COUNT = text("SELECT count(*) FROM sync_selected_users WHERE run_id = :selection")


def add_ids(
    connection: Connection, selection: UUID, relation: UsersRelation, ids: Sequence[UUID]
) -> list[UUID]:
    """Selects the users with these ids, at most a page; returns the ids that no user has."""
    given = [str(user_id) for user_id in ids]
    return [ids[n - 1] for n in _named(connection, _BY_ID, _ADD, selection, relation, given)]


def add_logins(
    connection: Connection, selection: UUID, relation: UsersRelation, logins: Sequence[str]
) -> list[str]:
    """Selects the users with these logins, at most a page, ignoring case; returns the unknown ones."""
    return [logins[n - 1] for n in _named(connection, _BY_LOGIN, _ADD, selection, relation, logins)]


def leave_out_logins(
    connection: Connection, selection: UUID, relation: UsersRelation, logins: Sequence[str]
) -> list[str]:
    """Takes the users with these logins, at most a page, out of the selection; returns as `add_logins`."""
    return [logins[n - 1] for n in _named(connection, _BY_LOGIN, _LEAVE_OUT, selection, relation, logins)]


def add_everyone(
    connection: Connection, selection: UUID, relation: UsersRelation, on_page: Callable[[], None]
) -> None:
    """Selects every user. on_page: called after each page, as by the other functions that have it."""
    statement = _on_a_page(EVERYONE_PAGE, _SELECT_EVERYONE)
    for _ in pages(connection, statement, relation, {"selection": selection}):
        on_page()


def add_failed(
    connection: Connection,
    selection: UUID,
    relation: UsersRelation,
    run_id: UUID,
    on_page: Callable[[], None],
) -> None:
    """Selects the users whose job of the run is FAILED now."""
    parameters = {"selection": selection, "failed_in": run_id}
    for _ in pages(connection, _on_a_page(_JOBS_PAGE, _SELECT_FAILED), relation, parameters):
        on_page()


def keep_failed(connection: Connection, selection: UUID, run_id: UUID, on_page: Callable[[], None]) -> None:
    """Takes everybody out of the selection whose job of the run is not FAILED now."""
    parameters = {"selection": selection, "failed_in": run_id}
    for _ in pages(connection, _on_a_page(SELECTED_PAGE, _KEEP_FAILED), None, parameters):
        on_page()


def move(connection: Connection, selection: UUID, run_id: UUID) -> None:
    """Adds the selection to the users of a run that exists, who stay."""
    parameters = {"selection": selection, "run_id": run_id}
    for _ in pages(connection, _on_a_page(SELECTED_PAGE, _COPY, _REMOVE), None, parameters):
        pass


def count(connection: Connection, selection: UUID) -> int:
    """How many users are selected."""
    return int(connection.execute(_COUNT, {"selection": selection}).scalar_one())


def pages(
    connection: Connection,
    statement: str,
    relation: UsersRelation | None,
    parameters: Mapping[str, object],
) -> Iterator[Row[Any]]:
    """Executes a statement page by page, and yields the row that it returns for each.

    The statement has gaps for {after} and, unless relation is None, for {relation}. It takes `limit`, and
    returns `seen`, how many rows the page has, and `through`, the last user of the page.
    """
    after: dict[str, object] = {}
    while True:
        condition = "AND u.user_id > :after" if after else ""
        complete = statement.replace("{after}", condition)
        if relation is not None:
            complete = complete.replace("{relation}", relation.sql)
        row = connection.execute(text(complete), {**parameters, **after, "limit": PAGE}).one()
        yield row
        if row.seen < PAGE:
            return
        after = {"after": row.through}


def _on_a_page(page: str, *actions: str) -> str:
    steps = ", ".join(f"step_{number} AS ({action})" for number, action in enumerate(actions))
    return _ON_A_PAGE.format(page=page, actions=steps)


def _named(
    connection: Connection,
    looked_up: str,
    action: str,
    selection: UUID,
    relation: UsersRelation,
    given: Sequence[str],
) -> list[int]:
    """The places in `given`, from 1, of what no user has."""
    statement = _NAMED.format(looked_up=looked_up, action=action).replace("{relation}", relation.sql)
    rows = connection.execute(text(statement), {"selection": selection, "given": list(given)})
    return [int(n) for n in rows.scalars()]
