"""Retry: final jobs of a run get another chance, in place, each with a fresh budget of attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from worker_scheduler.clock import Clock
from worker_scheduler.control.change import Change, Effect
from worker_scheduler.control.request import Request
from worker_scheduler.errors import Refused
from worker_scheduler.ledger import months, retries
from worker_scheduler.ledger.control import ControlledRun
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.retries import Retry, Wanted
from worker_scheduler.ledger.tables import RunState

_JOBS_PER_STEP = 1000


@dataclass(frozen=True)
class Selection:
    """Which jobs: of one kind of end; perhaps only with an error, of some users, or a few to begin with.

    error_like: a part of the error's text, whatever its case. limit: jobs at most; None: all.
    """

    wanted: Wanted
    error_like: str | None = None
    user_ids: Sequence[UUID] | None = None
    limit: int | None = None


def retry(
    request: Request,
    selection: Selection,
    *,
    max_attempts: int,
    most_unconfirmed: int | None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Change:
    """Makes exactly those jobs due again that match and were final when this was asked.

    Running and waiting jobs are left alone. A FINISHED run is open again until all its jobs are final. What
    this process does not get to, reconcile does. most_unconfirmed: more jobs than this are refused;
    None: any number is confirmed.

    Raises BadInput for an unknown key, Refused for a run that is MISSED, pruned, or cancelled unless
    cancelled jobs are wanted, and as Database does.
    """
    asked: list[Retry] = []

    def change(connection: Connection, run: ControlledRun, now: datetime) -> str:
        _refuse(run, selection)
        wish = Retry(
            request_id=months.new_run_id(now),
            run_id=run.run_id,
            asked_at=now,
            wanted=selection.wanted,
            error_like=selection.error_like,
            only_users=selection.user_ids,
            jobs_left=selection.limit,
        )
        if most_unconfirmed is not None:
            _refuse_unconfirmed(connection, wish, most_unconfirmed)
        retries.open_run(connection, run.run_id, selection.wanted)
        retries.ask(connection, wish)
        asked.append(wish)
        return Effect.RETRIED.value

    with request.refusals_recorded():
        request.change_run(change)
    moved = walk(request.database, request.clock, asked[0].request_id, max_attempts, on_progress)
    return Change(
        request.asked.verb,
        request.key,
        Effect.RETRIED,
        f"{moved} {selection.wanted} jobs are due again; reconcile sends them in batches",
        jobs=moved,
    )


def walk(
    database: Database,
    clock: Clock,
    request_id: UUID,
    max_attempts: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Goes through the run of a retry, in steps; returns how many jobs it moved.

    Raises as Database does.
    """
    total, ended = 0, False
    while not ended:
        with database.transaction() as connection:
            step = retries.step(
                connection, request_id, limit=_JOBS_PER_STEP, max_attempts=max_attempts, now=clock()
            )
        total += step.jobs
        ended = step.ended
        on_progress(total)
    return total


def _refuse(run: ControlledRun, selection: Selection) -> None:
    if run.pruned_at is not None:
        raise Refused(
            f"{run.partition_key} was pruned on {run.pruned_at:%Y-%m-%d}: its jobs are gone, use a backfill"
        )
    if run.state is RunState.MISSED:
        raise Refused(f"{run.partition_key} is MISSED and has no job: `scheduler daily --date` runs it")
    if run.cancel is not None and selection.wanted is not Wanted.CANCELLED:
        raise Refused(
            f"{run.partition_key} is cancelled: `scheduler retry {run.partition_key} --only cancelled`"
            " is the way back"
        )


def _refuse_unconfirmed(connection: Connection, wish: Retry, most: int) -> None:
    expected = retries.count(connection, wish, most + 1)
    wanted = expected if wish.jobs_left is None else min(expected, wish.jobs_left)
    if wanted > most:
        raise Refused(
            f"more than {most} jobs match, the most without --confirm: add it, or try some by --limit N"
        )
