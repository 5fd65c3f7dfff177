"""A tick: what happens when the daily run or a backfill is asked for, whoever rings.

Checks, then lock, then run; `fan_out.py` does the rest. A tick always returns a Report, for a
refusal and a failure too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

import structlog

from worker_scheduler import fan_out, lock, slots, users
from worker_scheduler.context import TickContext
from worker_scheduler.errors import Refused, SchedulerError
from worker_scheduler.ledger import batches, months, runs, schema
from worker_scheduler.ledger import users as users_sql
from worker_scheduler.ledger.runs import NewRun, Run
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.options import BackfillOptions, DailyOptions, TickOptions
from worker_scheduler.report import Report
from worker_scheduler.slots import Slot
from worker_scheduler.users import Selection

log = structlog.get_logger(__name__)

_Value = TypeVar("_Value")

_TRIES_AT_A_MONTH = 5
_BETWEEN_TRIES_SECONDS = 1.0
"""Claims that have queued up behind a try come through meanwhile."""

DAILY_TRIGGER = "scheduler.daily"
BACKFILL_TRIGGER = "scheduler.backfill"


@dataclass(frozen=True)
class _Request:
    """A tick's wish, of either kind."""

    kind: Kind
    lock_id: int
    partition_key: str
    triggered_by: str
    backfill_days: int | None
    options: TickOptions
    slot: datetime | None = None


def daily(context: TickContext, options: DailyOptions, slot: Slot | None = None) -> Report:
    """One job for every user, in the partition of a day.

    The day of `slot` where one is given, else the one that the options name, else today, UTC.
    """
    day = slot.day if slot else options.date or context.clock().astimezone(UTC).date()
    request = _Request(
        kind=Kind.DAILY,
        lock_id=context.settings.scheduler_daily_lock_id,
        partition_key=slots.daily_partition(day),
        triggered_by=DAILY_TRIGGER,
        backfill_days=None,
        options=options,
        slot=None if slot is None else slot.due_at,
    )
    with _reporting(context, request) as report:
        _require_tables(context)
        selection = users.select_everyone(context.database, context.relation)
        _tick(context, request, selection, report)
    return report


def backfill(context: TickContext, options: BackfillOptions) -> Report:
    """One job for every chosen user, in the partition of this backfill."""
    today = context.clock().astimezone(UTC).date()
    request = _Request(
        kind=Kind.BACKFILL,
        lock_id=context.settings.scheduler_backfill_lock_id,
        partition_key=options.partition_key
        or slots.backfill_partition(today, options.backfill_days, options.campaign),
        triggered_by=BACKFILL_TRIGGER,
        backfill_days=options.backfill_days,
        options=options,
    )
    with _reporting(context, request) as report:
        _require_tables(context)
        selection = _choose(context, options)
        report.missing_user_ids = selection.missing_user_ids
        report.missing_github_logins = selection.missing_github_logins
        report.users_total_selected = selection.total
        users.refuse_unknown(selection, options.allow_missing)
        users.refuse_unconfirmed(
            selection,
            _or_default(options.backfill_max_users, context.settings.backfill_max_users),
            options.confirm or context.settings.backfill_confirm,
        )
        _tick(context, request, selection, report)
    return report


def _choose(context: TickContext, options: BackfillOptions) -> Selection:
    if not options.chosen:
        return users.select_everyone(context.database, context.relation)
    return users.select_named(
        context.database, context.relation, options.user_ids or (), options.github_logins or ()
    )


@contextmanager
def _reporting(context: TickContext, request: _Request) -> Iterator[Report]:
    """A report that says how the tick ended, for whatever an operator can cause."""
    started = context.clock()
    report = Report(
        mode=request.kind, partition_key=request.partition_key, triggered_by=request.triggered_by
    )
    try:
        yield report
    except SchedulerError as error:
        report.end(error)
    report.duration_seconds = (context.clock() - started).total_seconds()


def _require_tables(context: TickContext) -> None:
    with context.database.autocommit() as connection:
        schema.require_current(connection)
        users_sql.require_relation(connection, context.relation)


def _tick(context: TickContext, request: _Request, selection: Selection, report: Report) -> None:
    report.users_total_selected = selection.total
    users.refuse_too_many(
        selection,
        _or_default(request.options.max_enqueued_jobs, context.settings.max_enqueued_jobs),
    )
    _refuse_another_runs_key(context, request)
    if request.options.dry_run:
        _rehearse(context, request, selection, report)
        return
    with _lock(context, request):
        run = _open(context, request, selection)
        report.run_id = run.run_id
        _fan_out(context, request.options, run, report)
    report.outcome = "enqueued" if report.jobs_inserted or report.jobs_enqueued else "nothing_to_do"


def _refuse_another_runs_key(context: TickContext, request: _Request) -> None:
    with context.database.autocommit() as connection:
        run = runs.get(connection, request.partition_key)
    if run is not None and (run.kind, run.backfill_days) != (request.kind, request.backfill_days):
        days = "" if run.backfill_days is None else f" with backfill_days {run.backfill_days}"
        raise Refused(
            f"partition {request.partition_key} belongs to a {run.kind} run{days}:"
            " choose another --partition-key or --campaign"
        )
    if run is not None and run.pruned_at is not None:
        raise Refused(
            f"partition {request.partition_key} was pruned on {run.pruned_at:%Y-%m-%d}, so nobody knows any"
            " more who has had a job: use a backfill"
        )


def _rehearse(context: TickContext, request: _Request, selection: Selection, report: Report) -> None:
    if context.settings.scheduler_lock_enabled:
        lock.require_free(context.database, request.lock_id, request.partition_key, context.clock)
    with context.database.autocommit() as connection:
        report.would_insert = users_sql.count_without_job(
            connection, context.relation, request.partition_key, selection.user_ids
        )
        run = runs.get(connection, request.partition_key)
        unsent = 0 if run is None else batches.unsent_jobs(connection, run.run_id)
        report.would_enqueue = report.would_insert + unsent
    report.outcome = "dry_run"


def _lock(context: TickContext, request: _Request) -> AbstractContextManager[None]:
    if not context.settings.scheduler_lock_enabled:
        return nullcontext()
    return lock.hold(
        context.database, request.lock_id, request.partition_key, context.clock, context.settings.lease
    )


def _open(context: TickContext, request: _Request, selection: Selection) -> Run:
    now: datetime = context.clock()
    run_id = months.new_run_id(now)
    _make_month(context, run_id)
    with context.database.transaction() as connection:
        run = runs.open_run(
            connection,
            NewRun(
                run_id=run_id,
                partition_key=request.partition_key,
                kind=request.kind,
                triggered_by=request.triggered_by,
                backfill_days=request.backfill_days,
                selected_user_ids=selection.user_ids,
                requested_by=context.requested_by,
                slot=request.slot,
            ),
            now=now,
            leased_until=context.settings.lease.until(now),
        )
    if run is None:  # made, or pruned, by somebody else since we looked
        _refuse_another_runs_key(context, request)
        raise Refused(f"partition {request.partition_key} belongs to another run")
    return run


def _make_month(context: TickContext, run_id: UUID) -> None:
    """The partition of the run's month, which reconcile has made ahead, mostly.

    Where it cannot be made, the default partition takes the jobs: a day must not fail for a backup's sake.
    """
    for attempt in range(_TRIES_AT_A_MONTH):
        if attempt:
            context.pause(_BETWEEN_TRIES_SECONDS)
        with context.database.autocommit() as connection:
            if months.ensure(connection, run_id) is not None:
                return
    log.warning("no partition for this month, its jobs go to sync_jobs_monthless", run_id=str(run_id))


def resume(context: TickContext, run: Run) -> Report:
    """Goes on with a run that was taken over. Raises StoreUnavailable."""
    report = Report(
        mode=run.kind,
        partition_key=run.partition_key,
        triggered_by=run.triggered_by,
        run_id=run.run_id,
    )
    _fan_out(context, TickOptions(), run, report)
    return report


def _fan_out(context: TickContext, options: TickOptions, run: Run, report: Report) -> None:
    settings = context.settings
    fan_out.fan_out(
        context,
        run,
        report,
        batch_size=_or_default(options.enqueue_batch_size, settings.enqueue_batch_size),
        sleep_seconds=_or_default(options.enqueue_sleep_seconds, settings.enqueue_sleep_seconds),
    )


def _or_default(given: _Value | None, default: _Value) -> _Value:
    return default if given is None else given
