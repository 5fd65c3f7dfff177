"""Plans and dispatches one run, both at once, under the run's lease; for a tick and for reconcile.

A thread plans some chunks ahead of the one whose batches are being published; the rows of a chunk are
committed before its first message. Who is in the run, and whether it may start, `tick.py` has decided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

from worker_scheduler.errors import SchedulerError, StoreUnavailable
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.dispatcher import Dispatcher, DispatchResult
from worker_scheduler.fanout.epoch_notes import EpochNotes
from worker_scheduler.fanout.planner import Planner
from worker_scheduler.fanout.report import Report
from worker_scheduler.leases import heartbeat
from worker_scheduler.ledger import batches, runs
from worker_scheduler.ledger.plan import Chunk
from worker_scheduler.ledger.runs import Run
from worker_scheduler.publisher.queue_bound import QueueBound

_CHUNKS_AHEAD = 3
"""Chunks that are planned, or being planned, while one is published."""

_UNSENT_POLL_SECONDS = 0.1
"""Between two looks at batches that other dispatchers hold."""


def fan_out(
    context: TickContext,
    run: Run,
    report: Report,
    *,
    batch_size: int,
    sleep_seconds: float,
    may_end: Callable[[], bool],
) -> None:
    """Plans the run from its cursor to its end, dispatches its batches, and counts in `report`.

    may_end: asked when that is done; False if the run has been opened again and must be planned again.
    Raises StoreUnavailable, whose text says how far it came; another tick or reconcile can then take the
    run over.
    """
    dispatcher = dispatcher_of(context, report, batch_size, sleep_seconds)
    planner = Planner(context.database, context.relation, context.clock)
    # Only a tick that shares its work with others asks.
    unsent_before = _unsent_jobs(context, run) if context.settings.dispatch_concurrency > 1 else 0
    try:
        while True:
            with _hold(context, dispatcher, run, report, unsent_before):
                _plan_and_dispatch(context, planner, dispatcher, run, report, batch_size)
            if may_end():
                break
    except StoreUnavailable as outage:
        raise StoreUnavailable(
            f"{outage}; {report.jobs_inserted} jobs planned and {report.jobs_enqueued} enqueued now,"
            " run the same command again to finish it"
        ) from outage


def dispatcher_of(
    context: TickContext, report: Report, batch_size: int, sleep_seconds: float
) -> Dispatcher:
    """A dispatcher of this process, which counts what it sends in `report`."""

    def count(job_count: int) -> None:
        report.jobs_enqueued += job_count
        report.batches += 1
        context.on_progress(report)

    return Dispatcher(
        database=context.database,
        publisher=context.publisher,
        clock=context.clock,
        lease=context.settings.batch_lease,
        pause=context.pause,
        batch_size=batch_size,
        sleep_seconds=sleep_seconds,
        queue_bound=QueueBound(context.broker, context.settings.max_queue_depth),
        waits_for_space=context.dispatcher_requests.waits,
        epoch_notes=EpochNotes(context.broker.place),
        on_sent=count,
    )


def take_over(context: TickContext) -> Run | None:
    """A run that its tick has left unfinished, now leased by this process; None if there is none."""
    now = context.clock()
    with context.database.autocommit() as connection:
        return runs.take_over(connection, now, context.settings.lease.until(now))


@contextmanager
def _hold(
    context: TickContext, dispatcher: Dispatcher, run: Run, report: Report, unsent_before: int
) -> Iterator[None]:
    """Renews the run's lease while the block runs, then closes the run. If batches are unsent, or the block
    fails, releases the run and counts its unsent jobs.
    """
    lease = context.settings.lease

    def renew() -> bool:
        with context.database.autocommit() as connection:
            return runs.renew(connection, run.run_id, lease.until(context.clock()))

    report.enqueue_failures = 0
    is_closed = False
    try:
        with heartbeat(renew, lease.heartbeat_seconds, f"run {run.partition_key}"):
            yield
            is_closed = dispatcher.close(run)
    finally:  # also on Ctrl-C
        if not is_closed:
            _let_go(context, run, report)
        if context.settings.dispatch_concurrency > 1:
            # What the extra dispatchers have sent counts for this tick, too.
            report.jobs_enqueued = unsent_before + report.jobs_inserted - report.enqueue_failures


def _plan_and_dispatch(
    context: TickContext,
    planner: Planner,
    dispatcher: Dispatcher,
    run: Run,
    report: Report,
    batch_size: int,
) -> None:
    result = DispatchResult.NOTHING_FREE
    # Closed at once on Ctrl-C: the planner must have stopped before the run is released.
    with closing(_plan(context, planner, run, report, batch_size)) as chunks:
        while _next_is_planned(chunks, dispatcher, run):
            try:
                result = dispatcher.dispatch(run)
            except StoreUnavailable:
                # The plan is still completed: Postgres then holds every job of the partition, and
                # only messages are missing. After an outage of Postgres there are no more chunks.
                deque(chunks, maxlen=0)
                raise
    if result is DispatchResult.QUEUE_FULL:
        context.dispatcher_requests.continue_later(run)
    if context.settings.dispatch_concurrency > 1:
        _await_other_dispatchers(context, dispatcher, run)


def _next_is_planned(chunks: Iterator[Chunk], dispatcher: Dispatcher, run: Run) -> bool:
    """Whether another chunk is planned now; False at the end of the plan.

    If it cannot be planned, such as by a view of users that fails, the batches that are planned are sent
    all the same: nobody knows when the rest can be planned.
    """
    try:
        return next(chunks, None) is not None
    except SchedulerError:
        with suppress(SchedulerError):  # the error of the plan is the one to report
            dispatcher.dispatch(run)
        raise


def _plan(
    context: TickContext, planner: Planner, run: Run, report: Report, batch_size: int
) -> Generator[Chunk]:
    """Plans and counts chunk by chunk; asks for the extra dispatchers once there are jobs to dispatch."""
    extra = context.settings.dispatch_concurrency - 1
    for chunk in _ahead(planner.chunks(run, batch_size)):
        report.jobs_inserted += chunk.job_count
        if chunk.job_count and extra:
            context.dispatcher_requests.request_extra(run.partition_key, extra)
            extra = 0
        yield chunk


def _await_other_dispatchers(context: TickContext, dispatcher: Dispatcher, run: Run) -> None:
    """Waits until the batches that other dispatchers hold are sent, or are free again and sent here."""
    while context.dispatcher_requests.waits and dispatcher.has_to_send(run):
        context.pause(_UNSENT_POLL_SECONDS)
        dispatcher.dispatch(run)


def _ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Plans the next chunks, in a thread with its own connection, while the caller publishes this one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="planner") as thread:
        following = deque(thread.submit(next, chunks, None) for _ in range(_CHUNKS_AHEAD))
        try:
            while (chunk := following.popleft().result()) is not None:
                following.append(thread.submit(next, chunks, None))
                yield chunk
        finally:
            for future in following:
                future.cancel()


def _unsent_jobs(context: TickContext, run: Run) -> int:
    with context.database.autocommit() as connection:
        return batches.unsent_jobs(connection, run.run_id)


def _let_go(context: TickContext, run: Run, report: Report) -> None:
    """Releases the lease of a run that is not at its end, and counts the jobs that are unsent."""
    try:
        with context.database.autocommit() as connection:
            runs.release(connection, run.run_id)
            report.enqueue_failures = batches.unsent_jobs(connection, run.run_id)
    except SchedulerError:
        return  # the lease runs out without help
