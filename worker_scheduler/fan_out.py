"""Fan out: plan and dispatch one run, both at once, under its lease; for a tick and for reconcile.

A thread plans some chunks ahead of the one whose batches are being published; a chunk's rows are committed
before its first message. Who is in the run, and whether it may run at all, is decided before, by `tick.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from worker_scheduler.context import TickContext
from worker_scheduler.dispatcher import Dispatcher
from worker_scheduler.errors import SchedulerError, StoreUnavailable
from worker_scheduler.heartbeat import beating
from worker_scheduler.ledger import batches, runs
from worker_scheduler.ledger.plan import Chunk
from worker_scheduler.ledger.runs import Run
from worker_scheduler.planner import Planner
from worker_scheduler.report import Report
from worker_scheduler.room import Room

_CHUNKS_AHEAD = 3
"""Chunks that are planned, or being planned, while one is published."""

_LOOK_SECONDS = 0.1
"""Between two looks at batches that others dispatch."""


def fan_out(
    context: TickContext, run: Run, report: Report, *, batch_size: int, sleep_seconds: float
) -> None:
    """Brings the run from its cursor to its last batch, and counts in `report`.

    Raises StoreUnavailable, saying how far it came; the run is then free for whoever goes on.
    """
    lease = context.settings.lease

    def renew() -> bool:
        with context.database.autocommit() as connection:
            return runs.renew(connection, run.run_id, lease.until(context.clock()))

    dispatcher = dispatcher_of(context, batch_size, sleep_seconds)
    planner = Planner(context.database, context.relation, context.clock)
    unsent_before = _unsent_jobs(context, run)
    try:
        with beating(renew, lease.heartbeat_seconds, f"run {run.partition_key}"):
            outage = _plan_and_dispatch(context, planner, dispatcher, run, report, batch_size)
    except StoreUnavailable as error:
        outage = error
    finally:  # Ctrl-C, too
        _let_go(context, run, report)
    if context.settings.dispatch_concurrency > 1:
        # What the others have sent is this tick's too.
        report.jobs_enqueued = unsent_before + report.jobs_inserted - report.enqueue_failures
    if outage is not None:
        raise StoreUnavailable(
            f"{outage}; {report.jobs_inserted} jobs planned and {report.jobs_enqueued} enqueued now,"
            " the same command again finishes it"
        )


def dispatcher_of(context: TickContext, batch_size: int, sleep_seconds: float) -> Dispatcher:
    """A dispatcher of this process."""
    return Dispatcher(
        database=context.database,
        publisher=context.publisher,
        clock=context.clock,
        lease=context.settings.batch_lease,
        pause=context.pause,
        batch_size=batch_size,
        sleep_seconds=sleep_seconds,
        room=Room(context.broker, context.settings.max_queue_depth),
        patient=context.patient,
    )


def take_over(context: TickContext) -> Run | None:
    """A run that its tick has left half done, now under our lease; None where there is none."""
    now = context.clock()
    with context.database.autocommit() as connection:
        return runs.take_over(connection, now, context.settings.lease.until(now))


def _plan_and_dispatch(
    context: TickContext,
    planner: Planner,
    dispatcher: Dispatcher,
    run: Run,
    report: Report,
    batch_size: int,
) -> StoreUnavailable | None:
    """Plans to the end; returns the outage of the broker that stopped the dispatch, if one did."""
    outage: StoreUnavailable | None = None
    others = context.settings.dispatch_concurrency - 1
    for chunk in _ahead(planner.chunks(run, batch_size)):
        report.jobs_inserted += chunk.jobs
        if chunk.jobs and others:
            context.call_dispatchers(run.partition_key, others)
            others = 0
        # After an outage of the broker the plan is still made whole: then it stands in Postgres who
        # belongs to the partition, and only messages are missing.
        if outage is None:
            outage = _dispatch(context, dispatcher, run, report)
    if dispatcher.out_of_room:
        context.pass_on(run.partition_key, run.kind.value)
    if outage is None and context.settings.dispatch_concurrency > 1:
        outage = _await_the_others(context, dispatcher, run, report)
    if outage is None:
        dispatcher.close(run)
    return outage


def _await_the_others(
    context: TickContext, dispatcher: Dispatcher, run: Run, report: Report
) -> StoreUnavailable | None:
    """Until the batches in other dispatchers' hands are out, or free again and dispatched here."""
    while context.patient and dispatcher.has_unsent(run):
        context.pause(_LOOK_SECONDS)
        if (outage := _dispatch(context, dispatcher, run, report)) is not None:
            return outage
    return None


def _ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Plans the next chunks, on a connection of their own, while the one before is being published."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="planner") as thread:
        following = deque(thread.submit(next, chunks, None) for _ in range(_CHUNKS_AHEAD))
        try:
            while (chunk := following.popleft().result()) is not None:
                following.append(thread.submit(next, chunks, None))
                yield chunk
        finally:
            for future in following:
                future.cancel()


def _dispatch(
    context: TickContext, dispatcher: Dispatcher, run: Run, report: Report
) -> StoreUnavailable | None:
    try:
        for jobs in dispatcher.dispatch(run):
            report.jobs_enqueued += jobs
            report.batches += 1
            context.on_progress(report)
    except StoreUnavailable as outage:
        return outage
    return None


def _unsent_jobs(context: TickContext, run: Run) -> int:
    with context.database.autocommit() as connection:
        return batches.unsent_jobs(connection, run.run_id)


def _let_go(context: TickContext, run: Run, report: Report) -> None:
    """Frees a run that is not at its end, and counts what it still has to send."""
    try:
        with context.database.autocommit() as connection:
            runs.release(connection, run.run_id)
        report.enqueue_failures = _unsent_jobs(context, run)
    except SchedulerError:
        return  # the lease runs out by itself
