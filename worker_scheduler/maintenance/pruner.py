"""Prune: removes old jobs from the ledger while it is in use; the caller says how old.

A month whose runs have all ended is dropped in one statement. The jobs of a run without a month (made
before the table had month partitions, or in a table of an older scheduler) are deleted row by row, in
bounded steps. Rows of an older scheduler have no run, and stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random

from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.ledger import histories, months, prune
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.histories import History

_ROWS_AT_ONCE = 10_000
_ATTEMPTS = 20
"""Each attempt waits a second for a lock; in the pauses between them, other transactions get it."""

_TASKS_LIVE = timedelta(days=30)
"""Much longer than a message can be away from its queue and be delivered again."""


@dataclass
class Pruned:
    """What was removed, or would be. kept: months that are old enough, each with the reason it stays."""

    months: list[str] = field(default_factory=list)
    runs: int = 0
    jobs: int = 0
    kept: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return dict(vars(self))


def prune_ledger(database: Database, now: datetime, older_than: timedelta, *, dry_run: bool) -> Pruned:
    """Removes the jobs of every month and of every run that ended `older_than` ago or earlier.

    Several processes may do so at once: each month is removed by one of them. Raises StoreUnavailable if
    the table was locked at every attempt; what was removed until then stays removed.
    """
    result = Pruned()
    cutoff = now - older_than
    with database.autocommit() as connection:
        old = [month for month in prune.partitions(connection) if months.end_of(month) <= cutoff]
    for month in old:
        _retry_while_locked(partial(_prune_month, database, month, cutoff, now, result, dry_run))
    _prune_monthless(database, cutoff, now, result, dry_run)
    if not dry_run:
        _delete_in_steps(database, prune.delete_batches)
        _delete_selected_users(database)
        _delete_in_steps(database, partial(prune.delete_tasks, cutoff=now - _TASKS_LIVE))
    return result


def prune_history(
    database: Database, history: History, now: datetime, older_than: timedelta, *, dry_run: bool
) -> list[str]:
    """Drops the months of a history that ended `older_than` ago or earlier, and returns their names.

    Rows that are as old and in no month are deleted. Raises as `prune_ledger` does.
    """
    cutoff = now - older_than
    with database.autocommit() as connection:
        made = histories.partitions(connection, history)
    dropped: list[str] = []
    for month in made:
        if months.end_of(month) <= cutoff:
            _retry_while_locked(partial(_drop_month, database, history, month, dropped, dry_run))
    if not dry_run:
        _delete_in_steps(database, partial(histories.delete_monthless, history=history, cutoff=cutoff))
    return dropped


def _drop_month(
    database: Database, history: History, month: date, dropped: list[str], dry_run: bool
) -> None:
    if not dry_run:
        with database.transaction() as connection:
            if not histories.drop(connection, history, month):
                return
    dropped.append(histories.partition_name(history, month))


def _prune_month(
    database: Database, month: date, cutoff: datetime, now: datetime, result: Pruned, dry_run: bool
) -> None:
    name = months.partition_name(month)
    with database.transaction() as connection:
        found = prune.lock_runs(connection, month, cutoff)
        if found is None:
            return
        if found.unfinished is None and not dry_run:
            prune.drop(connection, month, now)
    if found.unfinished is not None:
        result.kept[name] = f"{found.unfinished} has not ended, or ended too recently"
        return
    result.months.append(name)
    result.runs += found.runs
    result.jobs += found.job_count


def _prune_monthless(
    database: Database, cutoff: datetime, now: datetime, result: Pruned, dry_run: bool
) -> None:
    with database.autocommit() as connection:
        runs = prune.monthless_runs(connection, cutoff)
    for run in runs:
        if not dry_run:
            with database.autocommit() as connection:
                if not prune.mark_run(connection, run.run_id, cutoff, now):
                    continue
            _delete_in_steps(database, partial(prune.delete_jobs, run_id=run.run_id))
        result.runs += 1
        result.jobs += run.job_count


def _delete_selected_users(database: Database) -> None:
    with database.autocommit() as connection:
        pruned = prune.pruned_runs_with_users(connection)
    for run_id in pruned:
        _delete_in_steps(database, partial(prune.delete_selected_users, run_id=run_id))


def _delete_in_steps(database: Database, step: Callable[..., int]) -> None:
    moved = _ROWS_AT_ONCE
    while moved == _ROWS_AT_ONCE:
        with database.autocommit() as connection:
            moved = step(connection, limit=_ROWS_AT_ONCE)


def _retry_while_locked(step: Callable[[], None]) -> None:
    for attempt in Retrying(
        retry=retry_if_exception_type(StoreUnavailable),
        wait=wait_random(0.2, 2),
        stop=stop_after_attempt(_ATTEMPTS),
        reraise=True,
    ):
        with attempt:
            step()
