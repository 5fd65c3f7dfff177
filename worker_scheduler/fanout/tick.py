"""A tick: what happens when the daily run or a backfill is asked for, by a command or by a task.

First the checks, then the run and the lock together (`opening.py`); `pipeline.py` does the rest. A tick
returns a Report also after a refusal or a failure, unless it cannot even be known which partition it is
about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from typing import TypeVar

from worker_scheduler import partition_keys
from worker_scheduler.config.options import BackfillOptions, DailyOptions, TickOptions
from worker_scheduler.errors import BadInput, SchedulerError
from worker_scheduler.fanout import asking, opening, pipeline, selection
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.report import Report
from worker_scheduler.fanout.selection import Selection
from worker_scheduler.fanout.tick_lock import TickLock
from worker_scheduler.ledger import batches, months, requests, runs, schema, users
from worker_scheduler.ledger.requests import Asked
from worker_scheduler.ledger.runs import NewRun, Run
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.outcome import Outcome
from worker_scheduler.slots import Slot, local_date

_Value = TypeVar("_Value")

DAILY_TRIGGER = "scheduler.daily"
BACKFILL_TRIGGER = "scheduler.backfill"


@dataclass(frozen=True)
class _Request:
    """What a tick is asked to do, for both kinds of run."""

    kind: Kind
    lock_id: int
    partition_key: str
    triggered_by: str
    backfill_days: int | None
    options: TickOptions
    slot: datetime | None = None

    def asked(self, context: TickContext) -> Asked:
        """The request as the history has it."""
        return asking.asked(context, self.options, self.kind, self.partition_key, self.slot)


def daily_asked_for(context: TickContext, options: DailyOptions) -> Report:
    """Does what `daily` does for a date that somebody asked for, and refuses a date in the future.

    Raises as `daily` does.
    """
    request = _daily_request(context, options, options.date or _today(context))
    with _reporting(context, request) as report:
        _refuse_future(context, options.date)
        _everyone(context, request, report)
    return report


def daily(context: TickContext, options: DailyOptions, slot: Slot | None = None) -> Report:
    """Enqueues one job for every user, in the partition of a day.

    It is the day of `slot` if there is one, otherwise the date of the options, otherwise today in the time
    zone of the calendar. Raises StoreUnavailable if Postgres cannot be asked what day it is.
    """
    day = slot.day if slot else options.date or _today(context)
    request = _daily_request(context, options, day, None if slot is None else slot.due_at)
    with _reporting(context, request) as report:
        _everyone(context, request, report)
    return report


def _daily_request(
    context: TickContext, options: DailyOptions, day: date, slot: datetime | None = None
) -> _Request:
    return _Request(
        kind=Kind.DAILY,
        lock_id=context.settings.scheduler_daily_lock_id,
        partition_key=partition_keys.daily_partition(day),
        triggered_by=DAILY_TRIGGER,
        backfill_days=None,
        options=options,
        slot=slot,
    )


def _refuse_future(context: TickContext, day: date | None) -> None:
    """Raises BadInput for a future day: users who are added until then would have no job, or need a second
    tick.
    """
    today = _today(context)
    if day is not None and day > today:
        zone = context.settings.scheduler_timezone
        raise BadInput(f"--date='{day}' is in the future: today is {today} in {zone}")


def _everyone(context: TickContext, request: _Request, report: Report) -> None:
    _require_tables(context)
    selected = selection.select_everyone(context.database, context.relation)
    _tick(context, request, selected, report)


def backfill_key(options: BackfillOptions, now: datetime) -> str:
    """The partition of a backfill that is asked for at `now`: by the date in UTC, whatever the calendar."""
    return options.partition_key or partition_keys.backfill_partition(
        now.astimezone(UTC).date(), options.backfill_days, options.campaign
    )


def backfill(context: TickContext, options: BackfillOptions, partition_key: str | None = None) -> Report:
    """Enqueues one job for every chosen user, in the partition of this backfill.

    partition_key: None means that of a backfill that is asked for now. Raises StoreUnavailable if Postgres
    cannot be asked what day it is.
    """
    request = _Request(
        kind=Kind.BACKFILL,
        lock_id=context.settings.scheduler_backfill_lock_id,
        partition_key=partition_key or options.partition_key or backfill_key(options, context.clock()),
        triggered_by=BACKFILL_TRIGGER,
        backfill_days=options.backfill_days,
        options=options,
    )
    with _reporting(context, request) as report:
        _require_tables(context)
        selected = _choose(context, options)
        report.missing_user_ids = selected.missing_user_ids
        report.missing_github_logins = selected.missing_github_logins
        report.users_total_selected = selected.total
        selection.refuse_unknown(selected, options.allow_missing)
        selection.refuse_unconfirmed(
            selected,
            _or_default(options.backfill_max_users, context.settings.backfill_max_users),
            options.confirm or context.settings.backfill_confirm,
        )
        _tick(context, request, selected, report)
    return report


def _today(context: TickContext) -> date:
    return local_date(context.clock(), context.settings.scheduler_timezone)


def _choose(context: TickContext, options: BackfillOptions) -> Selection:
    if not options.chosen:
        return selection.select_everyone(context.database, context.relation)
    return selection.select_named(
        context.database, context.relation, options.user_ids or (), options.github_logins or ()
    )


@contextmanager
def _reporting(context: TickContext, request: _Request) -> Iterator[Report]:
    """Yields the report, and notes in it every SchedulerError that ends the block."""
    started: datetime | None = None
    with suppress(SchedulerError):  # the clock asks Postgres; the block meets the same fault and reports it
        started = context.clock()
    report = Report(
        mode=request.kind, partition_key=request.partition_key, triggered_by=request.triggered_by
    )
    try:
        yield report
    except SchedulerError as error:
        report.end(error)
        if report.run_id is None and not request.options.dry_run:
            requests.record_refusal(context.database, context.clock, request.asked(context), error)
    if started is not None:
        report.duration_seconds = (context.clock() - started).total_seconds()


def _require_tables(context: TickContext) -> None:
    with context.database.autocommit() as connection:
        schema.require_current(connection)
        users.require_relation(connection, context.relation)


def _tick(context: TickContext, request: _Request, selected: Selection, report: Report) -> None:
    report.users_total_selected = selected.total
    selection.refuse_too_many(
        selected,
        _or_default(request.options.max_enqueued_jobs, context.settings.max_enqueued_jobs),
    )
    opening.refuse_another_runs_key(context, request.partition_key, request.kind, request.backfill_days)
    lock = _lock(context, request)
    if request.options.dry_run:
        _dry_run(context, request, lock, selected, report)
        return
    opened = opening.open_run(context, _new_run(context, request, selected), lock, request.asked(context))
    report.run_id = opened.run.run_id
    if opened.joined is not None:
        report.join(opened.joined.acquired_at, _unused(request.options))
        return
    context.on_opened(report)
    if lock is None:
        _fan_out(context, request.options, opened.run, report)
    else:
        with lock.hold():
            may_end = partial(lock.let_go, opened.run.run_id)
            _fan_out(context, request.options, opened.run, report, may_end)
    report.outcome = (
        Outcome.ENQUEUED if report.jobs_inserted or report.jobs_enqueued else Outcome.NOTHING_TO_DO
    )


def _dry_run(
    context: TickContext, request: _Request, lock: TickLock | None, selected: Selection, report: Report
) -> None:
    if lock is not None:
        lock.require_free()
    with context.database.autocommit() as connection:
        report.would_insert = users.count_without_job(
            connection, context.relation, request.partition_key, selected.user_ids
        )
        run = runs.get(connection, request.partition_key)
        unsent = 0 if run is None else batches.unsent_jobs(connection, run.run_id)
        report.would_enqueue = report.would_insert + unsent
    report.outcome = Outcome.DRY_RUN


def _lock(context: TickContext, request: _Request) -> TickLock | None:
    if not context.settings.scheduler_lock_enabled:
        return None
    return TickLock(
        context.database, request.lock_id, request.partition_key, context.clock, context.settings.lease
    )


def _new_run(context: TickContext, request: _Request, selected: Selection) -> NewRun:
    return NewRun(
        run_id=months.new_run_id(context.clock()),
        partition_key=request.partition_key,
        kind=request.kind,
        triggered_by=request.triggered_by,
        backfill_days=request.backfill_days,
        selected_user_ids=selected.user_ids,
        requested_by=context.requested_by,
        slot=request.slot,
    )


def _unused(options: TickOptions) -> tuple[str, ...]:
    """The given options by which only the tick that dispatches the run could go."""
    of_dispatch = ("enqueue_batch_size", "enqueue_sleep_seconds")
    return tuple(name for name in of_dispatch if getattr(options, name) is not None)


def resume(context: TickContext, run: Run) -> Report:
    """Plans and dispatches the rest of a run that was taken over. Raises StoreUnavailable."""
    report = Report(
        mode=run.kind,
        partition_key=run.partition_key,
        triggered_by=run.triggered_by,
        run_id=run.run_id,
    )
    _fan_out(context, TickOptions(), run, report)
    return report


def _fan_out(
    context: TickContext,
    options: TickOptions,
    run: Run,
    report: Report,
    may_end: Callable[[], bool] = lambda: True,
) -> None:
    settings = context.settings
    pipeline.fan_out(
        context,
        run,
        report,
        batch_size=_or_default(options.enqueue_batch_size, settings.enqueue_batch_size),
        sleep_seconds=_or_default(options.enqueue_sleep_seconds, settings.enqueue_sleep_seconds),
        may_end=may_end,
    )


def _or_default(given: _Value | None, default: _Value) -> _Value:
    return default if given is None else given
