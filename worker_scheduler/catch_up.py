"""The days that are due: what a ring of the daily tick, or reconcile, has to start. It plans nothing.

A ring says only that something may be due. What is due follows from the cron, from the runs that
stand in Postgres, and from DAILY_CATCH_UP; so a ring that comes twice, late or never changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from worker_scheduler import slots, tick
from worker_scheduler.context import TickContext
from worker_scheduler.ledger import months, origin, runs
from worker_scheduler.ledger.origin import Origin
from worker_scheduler.ledger.tables import RunState
from worker_scheduler.options import DailyOptions
from worker_scheduler.report import Report
from worker_scheduler.settings import Settings
from worker_scheduler.slots import Calendar, Slot

log = structlog.get_logger(__name__)

_LOOK_BACK = timedelta(days=366)
_LATE = timedelta(hours=1)
"""How late a slot is run whatever the settings say, since a ring waits for a free worker."""


@dataclass(frozen=True)
class Due:
    """What is due: days to run, oldest first, and days to note as missed.

    By the calendar of `origin`, up to `until`.
    """

    run: tuple[Slot, ...]
    missed: tuple[Slot, ...]
    origin: Origin
    until: datetime


def start_due(context: TickContext, options: DailyOptions) -> list[Report]:
    """Runs the days that are due and notes the missed ones; returns a report a run.

    Raises StoreUnavailable where Postgres cannot be asked what is due.
    """
    due = find_due(context)
    _note_missed(context, due.missed)
    reports = [tick.daily(context, options, slot) for slot in due.run]
    # Else a day that was refused would be forgotten with the calendar by which it was due.
    if not options.dry_run and all(report.failure is None for report in reports):
        _adopt_calendar(context, due)
    return reports


def ring(context: TickContext, options: DailyOptions) -> list[Report]:
    """What a ring of the daily tick does: the days that are due, and once more the latest slot's.

    The latest slot's run is rung even if it has run: users who are new since then get their job.
    """
    latest = _calendar(context.settings).latest(context.clock())
    reports = start_due(context, options)
    if latest is None:
        return [*reports, tick.daily(context, options)]
    if any(report.partition_key == slots.daily_partition(latest.day) for report in reports):
        return reports
    if _is_missed(context, latest):
        return reports
    return [*reports, tick.daily(context, options, latest)]


def find_due(context: TickContext) -> Due:
    """Looks at the slots since the first deployment, a year back at most.

    By the calendar that was in force: by a new one, days would be due that never were.
    """
    now = context.clock()
    with context.database.autocommit() as connection:
        noted = origin.get(connection)
        calendar = _calendar_since(noted) or _calendar(context.settings)
        last = calendar.last_of_days(max(noted.since, now - _LOOK_BACK), now)
        known = runs.daily_slots(connection, [slots.daily_partition(slot.day) for slot in last])
    pending = [slot for slot in last if slots.daily_partition(slot.day) not in known]
    if last:
        pending += _rung_for_an_earlier_slot(last[-1], known)
    run, missed = _divide(pending, now, context.settings)
    return Due(run, missed, noted, now)


def _adopt_calendar(context: TickContext, due: Due) -> None:
    """From the end of what was settled by the calendar before, the one of the settings is in force."""
    calendar = _calendar(context.settings)
    before = _calendar_since(due.origin)
    if before == calendar:
        return
    since = due.origin.since if before is None else due.until
    with context.database.autocommit() as connection:
        origin.move(connection, due.origin, Origin(since, calendar.cron, calendar.timezone))


def _rung_for_an_earlier_slot(latest: Slot, known: dict[str, datetime | None]) -> list[Slot]:
    """The latest slot, where its day ran for an earlier slot only: a cron may ring often a day."""
    served = known.get(slots.daily_partition(latest.day))
    return [latest] if served is not None and served < latest.due_at else []


def _divide(
    pending: list[Slot], now: datetime, settings: Settings
) -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
    """By DAILY_CATCH_UP: which of the days that have no run get one, and which are missed."""
    policy = settings.daily_catch_up
    days = 0 if policy == "none" else settings.daily_catch_up_window
    window = max(_LATE, timedelta(days=days))
    in_window = [slot for slot in pending if slot.due_at >= now - window]
    chosen = in_window if policy == "all" else in_window[-1:]
    return tuple(chosen), tuple(slot for slot in pending if slot not in chosen)


def _note_missed(context: TickContext, missed: tuple[Slot, ...]) -> None:
    for slot in missed:
        with context.database.autocommit() as connection:
            noted = runs.record_missed(
                connection,
                run_id=months.new_run_id(context.clock()),
                partition_key=slots.daily_partition(slot.day),
                triggered_by=tick.DAILY_TRIGGER,
                requested_by=context.requested_by,
                slot=slot.due_at,
                now=context.clock(),
            )
        if noted:
            log.warning("day missed", partition_key=slots.daily_partition(slot.day))


def _is_missed(context: TickContext, slot: Slot) -> bool:
    with context.database.autocommit() as connection:
        run = runs.get(connection, slots.daily_partition(slot.day))
    return run is not None and run.state == RunState.MISSED


def _calendar(settings: Settings) -> Calendar:
    return Calendar(settings.daily_tick_cron, settings.scheduler_timezone)


def _calendar_since(noted: Origin) -> Calendar | None:
    if noted.cron is None or noted.timezone is None:
        return None
    return Calendar(noted.cron, noted.timezone)
