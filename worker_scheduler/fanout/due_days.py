"""Due days: decides which days a trigger of the daily tick, or reconcile, has to start.

A trigger only says that something may be due. What is due follows from the cron, from the runs in Postgres
and from DAILY_CATCH_UP. So it does not matter if a trigger comes twice, late or never.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from worker_scheduler import logs, partition_keys
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.config.settings import Settings
from worker_scheduler.errors import StoreRefused
from worker_scheduler.fanout import asking, tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.report import Report
from worker_scheduler.ledger import control, daily_runs, months, origin, requests, runs
from worker_scheduler.ledger.origin import Origin
from worker_scheduler.ledger.tables import Kind, RunState
from worker_scheduler.outcome import Outcome
from worker_scheduler.slots import Calendar, Slot, local_date

log = logs.get_logger(__name__)

_LOOK_BACK = timedelta(days=366)
_AROUND = timedelta(days=3)
"""Two local dates at one moment are at most a day apart, and a slot is within a day of its date in UTC."""

_CLOCKS_DIFFER = timedelta(minutes=1)
"""A day that was noted as missed later than this after now was noted by a clock that was ahead. It was not
due, so it may still run.
"""

_LATE = timedelta(hours=1)
_LATE_INTERVALS = 3
"""How late a slot may be started with any setting: an hour, or three intervals of reconcile if they are
longer. A trigger waits for a free worker, and what reconcile starts in its place comes within that time.
"""


@dataclass(frozen=True)
class Due:
    """What is due up to `until` by the calendar of `origin`: days to run, oldest first, and missed days.

    If the settings have another calendar, also the days that were due by the earlier one after `until`, and
    will not be by the new one. While the schedule is paused, each due day is missed.
    """

    run: tuple[Slot, ...]
    missed: tuple[Slot, ...]
    origin: Origin
    until: datetime
    is_paused: bool = False


def start_due(context: TickContext, options: DailyOptions) -> list[Report]:
    """Runs the due days and notes the missed days; returns one report per run, and one per day that could
    not be noted. A day that fails does not stop the others.

    Raises StoreUnavailable if Postgres cannot be asked what is due.
    """
    due = find_due(context)
    reports = _note_missed(context, due.missed, daily_runs.PAUSED if due.is_paused else None)
    reports += [tick.daily(context, options, slot) for slot in due.run]
    # Not after a failure: a new calendar would forget the day that failed, which was due by the old one.
    if not options.dry_run and all(report.failure is None for report in reports):
        _change_calendar(context, due)
    return reports


def triggered_key(settings: Settings, now: datetime) -> str:
    """The partition that a trigger at `now` always runs: that of the latest slot, or of today."""
    latest = _calendar(settings).latest(now)
    today = local_date(now, settings.scheduler_timezone)
    return partition_keys.daily_partition(today if latest is None else latest.day)


def start_triggered(
    context: TickContext, options: DailyOptions, partition_key: str | None = None
) -> list[Report]:
    """Does what a trigger of the daily tick asks for: runs the due days, and always one day.

    partition_key: that day, which was `triggered_key` when the trigger was first executed; None: now. It
    runs even if it has had its run: users who are new since then get their job. Returns one report per run;
    raises StoreUnavailable, as `start_due` does.
    """
    now = context.clock()
    partition_key = partition_key or triggered_key(context.settings, now)
    latest = _calendar(context.settings).latest(now)
    reports = start_due(context, options)
    if any(report.partition_key == partition_key for report in reports):
        return reports
    if _is_missed(context, partition_key) or _is_paused(context):
        _record_nothing_to_do(context, options, partition_key)
        return reports
    if latest is not None and partition_key == partition_keys.daily_partition(latest.day):
        return [*reports, tick.daily(context, options, latest)]
    day = options.model_copy(update={"date": partition_keys.daily_date(partition_key)})
    return [*reports, tick.daily(context, day)]


def find_due(context: TickContext) -> Due:
    """Finds what is due since the origin, but looks at most a year back.

    It uses the calendar of the origin: a new calendar would make past days due that never were.
    """
    now = context.clock()
    with context.database.autocommit() as connection:
        noted = origin.get(connection)
        calendar = _calendar_since(noted) or _calendar(context.settings)
        last = calendar.last_of_days(max(noted.since, now - _LOOK_BACK), now)
        between = _days_of_the_change(calendar, _calendar(context.settings), now)
        keys = {partition_keys.daily_partition(slot.day) for slot in (*last, *between)}
        is_paused = control.schedule(connection, now) is not None
        known = daily_runs.daily_slots(
            connection, sorted(keys), missed_by=now + _CLOCKS_DIFFER, is_paused=is_paused
        )
    pending = [slot for slot in last if partition_keys.daily_partition(slot.day) not in known]
    if last:
        pending += _served_for_an_earlier_slot(last[-1], known)
    days = {slot.day for slot in last}
    pending += [
        slot
        for slot in between
        if slot.day not in days and partition_keys.daily_partition(slot.day) not in known
    ]
    if is_paused:
        return Due((), tuple(pending), noted, now, is_paused=True)
    run, missed = _divide(pending, now, context.settings)
    return Due(run, missed, noted, now)


def _days_of_the_change(before: Calendar, after: Calendar, now: datetime) -> list[Slot]:
    """The days that have begun and that a change of the calendar now leaves without a slot, oldest first.

    By the earlier calendar they have a slot that is still to come; by the new one they have none, or it is
    past. They are due with the change. Days that only the new calendar names are not: they were never due.
    """
    if before == after:
        return []
    today = max(local_date(now, calendar.timezone) for calendar in (before, after))
    to_come = {slot.day for slot in before.slots(now, now + _AROUND) if slot.day <= today}
    still_due = {slot.day for slot in after.slots(now, now + _AROUND)}
    return [Slot(due_at=now, day=day) for day in sorted(to_come - still_due)]


def _change_calendar(context: TickContext, due: Due) -> None:
    """Makes the calendar of the settings count from `due.until` on, where the earlier one ends."""
    calendar = _calendar(context.settings)
    before = _calendar_since(due.origin)
    if before == calendar:
        return
    since = due.origin.since if before is None else due.until
    with context.database.autocommit() as connection:
        origin.move(connection, due.origin, Origin(since, calendar.cron, calendar.timezone))


def _served_for_an_earlier_slot(latest: Slot, known: dict[str, datetime | None]) -> list[Slot]:
    """The latest slot, if its day ran only for an earlier slot: a cron may have many slots per day."""
    served = known.get(partition_keys.daily_partition(latest.day))
    return [latest] if served is not None and served < latest.due_at else []


def _divide(
    pending: list[Slot], now: datetime, settings: Settings
) -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
    """Divides the days without a run by DAILY_CATCH_UP: those that get one, and those that are missed."""
    policy = settings.daily_catch_up
    days = 0 if policy == "none" else settings.daily_catch_up_window
    late = max(_LATE, _LATE_INTERVALS * timedelta(seconds=settings.reconcile_interval_seconds))
    window = max(late, timedelta(days=days))
    in_window = [slot for slot in pending if slot.due_at >= now - window]
    chosen = in_window if policy == "all" else in_window[-1:]
    return tuple(chosen), tuple(slot for slot in pending if slot not in chosen)


def _note_missed(context: TickContext, missed: tuple[Slot, ...], because: str | None) -> list[Report]:
    """Notes the missed days; returns a report for each that Postgres refused."""
    refused = []
    for slot in missed:
        partition_key = partition_keys.daily_partition(slot.day)
        try:
            with context.database.autocommit() as connection:
                noted = daily_runs.record_missed(
                    connection,
                    run_id=months.new_run_id(context.clock()),
                    partition_key=partition_key,
                    triggered_by=tick.DAILY_TRIGGER,
                    requested_by=context.requested_by,
                    slot=slot.due_at,
                    because=because,
                    now=context.clock(),
                )
        except StoreRefused as error:
            report = Report(Kind.DAILY, partition_key=partition_key, triggered_by=tick.DAILY_TRIGGER)
            report.end(error)
            refused.append(report)
            continue
        if noted:
            log.warning("day missed", partition_key=partition_key, because=because or "not triggered")
    return refused


def _record_nothing_to_do(context: TickContext, options: DailyOptions, partition_key: str) -> None:
    if options.dry_run:
        return
    asked = asking.asked(context, options, Kind.DAILY, partition_key)
    outcome, why = Outcome.NOTHING_TO_DO.value, "the day is noted as missed"
    with context.database.autocommit() as connection:
        requests.record(connection, asked, outcome, now=context.clock(), detail=why)


def _is_missed(context: TickContext, partition_key: str) -> bool:
    with context.database.autocommit() as connection:
        run = runs.get(connection, partition_key)
    if run is None or run.state != RunState.MISSED:
        return False
    return run.created_at <= context.clock() + _CLOCKS_DIFFER


def _is_paused(context: TickContext) -> bool:
    with context.database.autocommit() as connection:
        return control.schedule(connection, context.clock()) is not None


def _calendar(settings: Settings) -> Calendar:
    return Calendar(settings.daily_tick_cron, settings.scheduler_timezone)


def _calendar_since(noted: Origin) -> Calendar | None:
    if noted.cron is None or noted.timezone is None:
        return None
    return Calendar(noted.cron, noted.timezone)
