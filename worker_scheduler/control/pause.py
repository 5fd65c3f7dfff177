"""Pause and resume: of a run, and of the daily schedule."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection

from worker_scheduler.clock import Clock
from worker_scheduler.control.change import Change, Effect
from worker_scheduler.control.request import SCHEDULE, Request
from worker_scheduler.errors import BadInput, Refused
from worker_scheduler.ledger import control, parked
from worker_scheduler.ledger.control import ControlledRun
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.tables import RunState

_JOBS_PER_STEP = 1000

Until = datetime | timedelta | None
"""A time, a duration from now on, or None: until somebody resumes."""


def pause(request: Request, until: Until = None) -> Change:
    """Lets no job of a run start from 5 s after this returns; for the key `daily`, lets no day start.

    Jobs that run go on. Pausing what is paused changes only until when. Raises BadInput for an unknown key
    and a time that is past, Refused for a run that has ended or is cancelled, and as Database does.
    """
    with request.refusals_recorded():
        return _pause_schedule(request, until) if request.key == SCHEDULE else _pause_run(request, until)


def resume(request: Request) -> Change:
    """Ends a pause. Parked jobs become due, and reconcile sends them in batches.

    Raises BadInput for an unknown key, Refused for a cancelled run, and as Database does.
    """
    with request.refusals_recorded():
        return _resume_schedule(request) if request.key == SCHEDULE else _resume_run(request)


def release(database: Database, clock: Clock, run_id: UUID) -> int:
    """Makes the parked jobs of a run due, in steps, unless it is paused again; returns how many."""
    total = 0
    while True:
        with database.transaction() as connection:
            moved = parked.release(connection, run_id, now=clock(), limit=_JOBS_PER_STEP)
        total += moved
        if moved < _JOBS_PER_STEP:
            return total


def _pause_run(request: Request, until: Until) -> Change:
    ends: list[datetime | None] = []

    def change(connection: Connection, run: ControlledRun, now: datetime) -> str:
        _refuse_what_has_ended(run, "paused")
        if run.cancel is not None:
            raise Refused(f"{run.partition_key} is cancelled, so no job of it starts anyway")
        ends.append(_time(until, now))
        asked = request.asked
        control.pause(connection, run.run_id, by=asked.actor, reason=asked.reason, until=ends[-1], now=now)
        return Effect.PAUSED.value

    request.change_run(change)
    return Change(
        request.asked.verb,
        request.key,
        Effect.PAUSED,
        f"paused{_until(ends[-1])}: no job starts later than 5 s from now, running jobs go on;"
        f" `scheduler resume {request.key}` ends it",
        details={"until": None if ends[-1] is None else ends[-1].isoformat()},
    )


def _resume_run(request: Request) -> Change:
    def change(connection: Connection, run: ControlledRun, now: datetime) -> str:
        if run.cancel is not None:
            raise Refused(
                f"{run.partition_key} is cancelled, which `resume` does not end:"
                f" `scheduler retry {run.partition_key} --only cancelled` is the way back"
            )
        return (Effect.RESUMED if control.resume(connection, run.run_id, now) else Effect.NOT_PAUSED).value

    run, outcome = request.change_run(change)
    effect = Effect(outcome)
    if effect is Effect.NOT_PAUSED:
        return Change(request.asked.verb, request.key, effect, "is not paused; nothing was changed")
    released = release(request.database, request.clock, run.run_id)
    return Change(
        request.asked.verb,
        request.key,
        effect,
        f"resumed: {released} parked jobs are due, and reconcile sends them in batches",
        jobs=released,
    )


def _pause_schedule(request: Request, until: Until) -> Change:
    ends: list[datetime | None] = []

    def change(connection: Connection, now: datetime) -> str:
        ends.append(_time(until, now))
        asked = request.asked
        control.pause_schedule(connection, by=asked.actor, reason=asked.reason, until=ends[-1], now=now)
        return Effect.PAUSED.value

    request.change_schedule(change)
    return Change(
        request.asked.verb,
        request.key,
        Effect.PAUSED,
        f"the schedule is paused{_until(ends[-1])}: days that come meanwhile are MISSED;"
        " `scheduler resume daily` ends it",
        details={"until": None if ends[-1] is None else ends[-1].isoformat()},
    )


def _resume_schedule(request: Request) -> Change:
    def change(connection: Connection, _now: datetime) -> str:
        return (Effect.RESUMED if control.resume_schedule(connection) else Effect.NOT_PAUSED).value

    effect = Effect(request.change_schedule(change))
    sentence = (
        "the schedule goes on: DAILY_CATCH_UP decides about the days that were missed meanwhile"
        if effect is Effect.RESUMED
        else "the schedule is not paused; nothing was changed"
    )
    return Change(request.asked.verb, request.key, effect, sentence)


def _refuse_what_has_ended(run: ControlledRun, what: str) -> None:
    if run.state in {RunState.FINISHED, RunState.MISSED} or run.pruned_at is not None:
        raise Refused(f"{run.partition_key} is {run.state}, so there is nothing to be {what}")


def _time(until: Until, now: datetime) -> datetime | None:
    if until is None:
        return None
    time = now + until if isinstance(until, timedelta) else until
    if time <= now:
        raise BadInput(f"--until={time.isoformat()} is past: it is {now.isoformat(timespec='seconds')}")
    return time


def _until(end: datetime | None) -> str:
    return "" if end is None else f" until {end:%Y-%m-%d %H:%M:%S} UTC"
