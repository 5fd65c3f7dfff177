"""SQL of a dry run: what each selected user would get, page by page, and a digest of who they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection

from worker_scheduler.ledger import plan
from worker_scheduler.ledger.selected_users import EVERYONE_PAGE, SELECTED_PAGE, pages
from worker_scheduler.ledger.users import UsersRelation

# ARRAY(SELECT …): see selected_users.py. The ids are digested in their order, page by page.
_CLASSES = """
    WITH page AS MATERIALIZED ({page}), seen AS (
        SELECT p.user_id, {status} AS status
        FROM unnest(ARRAY(SELECT user_id FROM page)) AS p(user_id)
        LEFT JOIN sync_jobs j ON j.run_id = :run_id AND j.user_id = p.user_id
        {older}
    )
    SELECT count(*) AS seen, (SELECT user_id FROM page ORDER BY user_id DESC LIMIT 1) AS through,
        count(*) FILTER (WHERE status IS NULL) AS without_job,
        count(*) FILTER (WHERE status IN ('PENDING', 'RUNNING')) AS in_flight,
        sha256(string_agg(uuid_send(user_id), CAST('' AS bytea) ORDER BY user_id)) AS digest
    FROM seen
"""
# Rows of an older scheduler have no run, and may have a user twice.
_OLDER = """
    LEFT JOIN (SELECT o.user_id, min(CAST(o.status AS text)) AS status FROM sync_jobs o
               WHERE o.partition_key = :partition_key AND o.run_id IS NULL GROUP BY o.user_id) o
        ON o.user_id = p.user_id
"""
_STATUS = "CAST(j.status AS text)"
_STATUS_OR_OLDER = f"coalesce({_STATUS}, o.status)"


@dataclass(frozen=True)
class Classes:
    """How many of the selected users have no job in the partition, one that is not final, or one that is.
    digest: of their ids.
    """

    without_job: int
    in_flight: int
    final: int
    digest: str


def classes(
    connection: Connection,
    selection: UUID | None,
    relation: UsersRelation,
    partition_key: str,
    run_id: UUID | None,
    on_page: Callable[[], None],
) -> Classes:
    """Counts the selected users by what they have in the partition.

    selection: None means every user. run_id: the partition's run, None if it has none. on_page: called
    after each page.
    """
    has_older = plan.has_older_rows(connection, partition_key)
    statement = _CLASSES.format(
        page=EVERYONE_PAGE if selection is None else SELECTED_PAGE,
        status=_STATUS_OR_OLDER if has_older else _STATUS,
        older=_OLDER if has_older else "",
    )
    parameters: dict[str, object] = {"run_id": run_id}
    if selection is not None:
        parameters["selection"] = selection
    if has_older:
        parameters["partition_key"] = partition_key
    total = without_job = in_flight = 0
    digest = hashlib.sha256()
    for page in pages(connection, statement, relation, parameters):
        total += page.seen
        without_job += page.without_job
        in_flight += page.in_flight
        digest.update(page.digest or b"")
        on_page()
    return Classes(without_job, in_flight, total - without_job - in_flight, digest.hexdigest())
