"""Goes over many jobs in steps, so that neither a transaction nor memory grows with the number of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from uuid import UUID

from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import waiting_jobs
from worker_scheduler.ledger.waiting_jobs import WaitingJob

JOBS_PER_STEP = 1000


def repeat_in_steps(context: TickContext, step: Callable[..., int]) -> int:
    """Repeats a step over at most JOBS_PER_STEP jobs until it finds fewer; returns the sum."""
    total = 0
    while True:
        with context.database.transaction() as connection:
            moved = step(connection, now=context.clock(), limit=JOBS_PER_STEP)
        total += moved
        if moved < JOBS_PER_STEP:
            return total


def pages_of_waiting(context: TickContext, run_id: UUID, cutoff: datetime) -> Iterator[list[WaitingJob]]:
    """Yields the run's waiting jobs whose message was published until `cutoff`, JOBS_PER_STEP at a time."""
    after: WaitingJob | None = None
    while True:
        with context.database.transaction() as connection:
            page = waiting_jobs.page(connection, run_id, cutoff=cutoff, after=after, limit=JOBS_PER_STEP)
        if not page:
            return
        yield page
        after = page[-1]
