"""Prune: takes jobs of long ago out of the ledger, while it is in use. It decides nothing by itself.

A month whose runs are all over goes in one statement. The jobs of a run that has no month (from before
there were months, or in a table that an older scheduler made) go row by row, in bounded steps. Rows of an
older scheduler have no run, and stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random

from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.ledger import months
from worker_scheduler.ledger import prune as prune_sql
from worker_scheduler.ledger.database import Database

_ROWS_AT_ONCE = 10_000
_ATTEMPTS = 20
"""At a lock for which each waits a second, with a pause in which others come through."""


@dataclass
class Pruned:
    """What was taken out, or would be; `kept`: months that are old enough, and why they stay."""

    months: list[str] = field(default_factory=list)
    runs: int = 0
    jobs: int = 0
    kept: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The documented object."""
        return dict(vars(self))


def prune(database: Database, now: datetime, older_than: timedelta, *, dry_run: bool) -> Pruned:
    """Takes out every run that ended, and every month that ended, `older_than` ago or earlier.

    Several may do so at once: each month is one's work. Raises StoreUnavailable where the table was never
    free for a moment; what is done stays done.
    """
    result = Pruned()
    cutoff = now - older_than
    with database.autocommit() as connection:
        old = [month for month in prune_sql.partitions(connection) if months.end_of(month) <= cutoff]
    for month in old:
        _patiently(partial(_prune_month, database, month, cutoff, now, result, dry_run))
    _prune_monthless(database, cutoff, now, result, dry_run)
    if not dry_run:
        _repeat(database, prune_sql.delete_batches)
    return result


def _prune_month(
    database: Database, month: date, cutoff: datetime, now: datetime, result: Pruned, dry_run: bool
) -> None:
    name = months.partition_name(month)
    with database.transaction() as connection:
        found = prune_sql.lock_runs(connection, month, cutoff)
        if found is None:
            return
        if found.unfinished is None and not dry_run:
            prune_sql.drop(connection, month, now)
    if found.unfinished is not None:
        result.kept[name] = f"{found.unfinished} is not over, or not for long enough"
        return
    result.months.append(name)
    result.runs += found.runs
    result.jobs += found.jobs


def _prune_monthless(
    database: Database, cutoff: datetime, now: datetime, result: Pruned, dry_run: bool
) -> None:
    with database.autocommit() as connection:
        runs = prune_sql.monthless_runs(connection, cutoff)
    for run in runs:
        if not dry_run:
            with database.autocommit() as connection:
                if not prune_sql.mark_run(connection, run.run_id, cutoff, now):
                    continue
            _repeat(database, partial(prune_sql.delete_jobs, run_id=run.run_id))
        result.runs += 1
        result.jobs += run.jobs


def _repeat(database: Database, step: Callable[..., int]) -> None:
    moved = _ROWS_AT_ONCE
    while moved == _ROWS_AT_ONCE:
        with database.autocommit() as connection:
            moved = step(connection, limit=_ROWS_AT_ONCE)


def _patiently(step: Callable[[], None]) -> None:
    for attempt in Retrying(
        retry=retry_if_exception_type(StoreUnavailable),
        wait=wait_random(0.2, 2),
        stop=stop_after_attempt(_ATTEMPTS),
        reraise=True,
    ):
        with attempt:
            step()
