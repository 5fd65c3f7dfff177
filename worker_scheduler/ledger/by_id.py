"""Parts of statements over given jobs, which must be as fast with old statistics as with new ones.

Statistics are often older than a run: they know none of its rows, and perhaps no open job. Then Postgres
takes every index that begins with the run, and every partial index, for one that finds a single row, and
reads the whole run, perhaps once per job. So a statement over given jobs

- has their ids as one array, which costs the same per row whatever Postgres chooses. A join need not.
- leaves one index open, that on job_id. `status || ''`, `coalesce(…)` and IS NOT DISTINCT FROM hide a
  column from all others.
- names their runs as `>= ALL(ARRAY[…])`, which chooses month partitions as `>=` does, and no index. But it
  implies that a job has a run, which is the predicate of a partial index. In a month partition every job
  has one. By the statistics of an older scheduler's table none may have one, so there the runs are hidden.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from worker_scheduler.ledger import names


class ByIdStatement(NamedTuple):
    """A statement over given jobs: for a table that is divided by months, and for one that is not."""

    divided: TextClause
    undivided: TextClause

    def for_table(self, connection: Connection) -> TextClause:
        """The variant for the table that the connection leads to."""
        return self.divided if names.is_divided(connection) else self.undivided


def within_runs(column: str = "run_id") -> str:
    """The condition that a job is of one of the runs that `runs` gives, for a table that is divided."""
    return (
        f"{column} >= ALL(ARRAY[CAST(:first_run_id AS uuid)])"
        f" AND {column} <= ALL(ARRAY[CAST(:last_run_id AS uuid)])"
    )


_HIDDEN = "coalesce(run_id BETWEEN CAST(:first_run_id AS uuid) AND CAST(:last_run_id AS uuid), false)"


def by_id(statement: str) -> ByIdStatement:
    """A statement with `{within_runs}` where it says which runs the jobs are of."""
    return ByIdStatement(
        divided=text(statement.format(within_runs=within_runs())),
        undivided=text(statement.format(within_runs=_HIDDEN)),
    )


def runs(run_ids: Iterable[UUID]) -> dict[str, object]:
    """The parameters of `{within_runs}`: the first and the last of these runs."""
    ordered = sorted(run_ids)
    return {"first_run_id": ordered[0], "last_run_id": ordered[-1]}


_IN_INDEX_ORDER = text("SET LOCAL enable_sort = off")


def in_index_order(connection: Connection) -> None:
    """Makes Postgres read rows in the order of an index until the transaction ends, and stop at a limit.

    If it expects few rows it would sort them, which in each step of many reads all that are left.
    """
    connection.execute(_IN_INDEX_ORDER)
