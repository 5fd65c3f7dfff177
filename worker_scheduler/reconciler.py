"""Reconcile: finds what a crash, an outage or a lost message left behind, and puts it right.

One function a rule. Each can run at any time and in several processes at once: what it moves, it
moves by a guarded UPDATE, and what it publishes, it has claimed first. docs/reliability.md has the
bound of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Any
from uuid import UUID, uuid4

import structlog

from worker_scheduler import catch_up, fan_out, tick
from worker_scheduler.context import TickContext, to_nobody
from worker_scheduler.errors import SchedulerError, StoreUnavailable
from worker_scheduler.job_ids import JobIds
from worker_scheduler.ledger import batches, locks, months, rescue, runs, schema
from worker_scheduler.ledger.rescue import DueJob
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.tables import Kind, RunState
from worker_scheduler.options import DailyOptions
from worker_scheduler.publisher import GroupMessage, JobMessage
from worker_scheduler.room import Room

log = structlog.get_logger(__name__)

_SECOND_LOOK_SECONDS = 1.0
"""Between a worker's pop and its note in `unacked` a message is nowhere; far less than this."""

_JOBS_AT_ONCE = 1000

_MONTH_IS_NEAR = timedelta(days=3)
"""Until then a month that could not be made can wait for a later pass."""


@dataclass
class Reconciliation:
    """What one pass put right, by rule; `errors`: the rules that a store's outage stopped."""

    put_right: dict[str, int] = field(default_factory=dict)
    errors: list[SchedulerError] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """The worst of the errors', 0 without any."""
        return max((error.exit_status for error in self.errors), default=0)

    def as_json(self) -> dict[str, Any]:
        """Every rule with its number, and the errors."""
        return {**self.put_right, "errors": [str(error) for error in self.errors]}


def reconcile(context: TickContext) -> Reconciliation:
    """One pass of all rules. A rule that meets an outage does not stop the ones after it."""
    result = Reconciliation()
    # A pass never waits for workers: what a full queue has no room for, the next pass sends.
    context = replace(context, patient=False)
    with context.database.autocommit() as connection:
        schema.require_current(connection)
    for rule in RULES:
        name = rule.__name__
        try:
            result.put_right[name] = rule(context)
        except SchedulerError as error:
            result.errors.append(error)
            log.error("reconcile rule stopped", rule=name, error=str(error))
    found = {name: number for name, number in result.put_right.items() if number}
    if found:
        log.info("reconciled", **found)
    return result


def expired_locks(context: TickContext) -> int:
    """Locks whose holder is dead are taken away, so that nothing seems to run that does not."""
    with context.database.autocommit() as connection:
        return locks.remove_expired(connection, context.clock())


def dead_workers(context: TickContext) -> int:
    """RUNNING jobs whose lease ran out wait again; after SYNC_MAX_ATTEMPTS they are FAILED."""
    attempts = context.settings.sync_max_attempts
    return sum(
        _repeat(context, partial(step, max_attempts=attempts)) for step in (rescue.give_up, rescue.rescue)
    )


def lost_broker_data(context: TickContext) -> int:
    """Batches sent in an earlier life of the broker's data are unsent again, as a new generation.

    Jobs that went out alone in it are due again, alone.
    """
    with context.database.autocommit() as connection:
        open_runs = runs.in_states(connection, RunState.PLANNING, RunState.DISPATCHING, RunState.ENQUEUED)
        # Before the broker is asked: what is sent in a new life meanwhile is none of these.
        seen = batches.broker_epochs(connection, [run.run_id for run in open_runs])
    epoch = context.broker.epoch() if seen else None
    lost = seen - {epoch} if epoch is not None else set()
    total = 0
    for run in open_runs:
        with context.database.transaction() as connection:
            if epoch is not None and lost:
                total += batches.put_back_lost(connection, run.run_id, lost, epoch)
            # Always: a dispatcher may have closed the run at the moment in which a batch was put back.
            runs.reopen_dispatch(connection, run.run_id)
        if lost:
            total += _repeat(context, partial(rescue.mark_lost_with_data, run_id=run.run_id, lost=lost))
    return total


def lost_messages(context: TickContext) -> int:
    """PENDING jobs of an ENQUEUED run whose queue holds nothing any more are due to be sent anew."""
    cutoff = context.clock() - timedelta(seconds=context.settings.message_grace_seconds)
    with context.database.autocommit() as connection:
        suspects = [
            run
            for run in runs.enqueued_before(connection, cutoff)
            if rescue.has_waiting(connection, run.run_id)
        ]
    return sum(_mark_messages_gone(context, run) for run in suspects if _queue_is_empty(context, run.kind))


def due_jobs(context: TickContext) -> int:
    """PENDING jobs whose time has come (rescued, put off, or their message lost) are sent anew."""
    return sum(_send_due(context, kind) for kind in Kind)


def abandoned_runs(context: TickContext) -> int:
    """Runs that nobody plans or dispatches any more are planned from their cursor, and dispatched."""
    # Else a full queue would get one baton more each pass.
    context = replace(context, pass_on=to_nobody)
    resumed: set[UUID] = set()
    while (run := fan_out.take_over(context)) is not None:
        if run.run_id in resumed:
            # It has a batch that somebody else holds. It stays leased, so that the next in line comes;
            # the next pass looks again.
            continue
        tick.resume(context, run)
        resumed.add(run.run_id)
    return len(resumed)


def missed_slots(context: TickContext) -> int:
    """Due slots without a run are started, or noted as MISSED."""
    reports = catch_up.start_due(context, DailyOptions())
    failures = [report.failure for report in reports if report.failure is not None]
    if failures:
        raise failures[0]
    return len(reports)


def finished_runs(context: TickContext) -> int:
    """ENQUEUED runs without a job that is not final get their counts and their end."""
    with context.database.autocommit() as connection:
        return sum(
            runs.finish(connection, run.run_id, context.clock())
            for run in runs.in_states(connection, RunState.ENQUEUED)
        )


def next_month(context: TickContext) -> int:
    """The partition of the month to come is made ahead, so that no tick waits for it.

    While somebody reads the table for long, as a backup does, each pass tries but for a moment. Raises
    StoreUnavailable where that has gone on until the month is about to begin.
    """
    now = context.clock()
    with context.database.autocommit() as connection:
        made = months.ensure_next(connection, now)
    month = months.next_month(now)
    if made is None and months.begin_of(month) - now <= _MONTH_IS_NEAR:
        raise StoreUnavailable(
            f"{months.partition_name(month)} cannot be made: somebody has been using sync_jobs_monthless at"
            " each try; end that transaction, else the month's jobs go there"
        )
    return int(made is True)


# The quick ones first: the last but one may publish for minutes.
RULES: tuple[Callable[[TickContext], int], ...] = (
    expired_locks,
    next_month,
    dead_workers,
    lost_broker_data,
    lost_messages,
    due_jobs,
    abandoned_runs,
    missed_slots,
    finished_runs,
)


def _repeat(context: TickContext, step: Callable[..., int]) -> int:
    """Repeats a step over a bounded number of jobs until it finds fewer; the sum."""
    total = 0
    while True:
        with context.database.autocommit() as connection:
            moved = step(connection, now=context.clock(), limit=_JOBS_AT_ONCE)
        total += moved
        if moved < _JOBS_AT_ONCE:
            return total


def _queue_is_empty(context: TickContext, queue: Kind) -> bool:
    """Looks twice, since a message on its way to a worker is for a moment nowhere."""
    if context.broker.depth(queue.value) != 0:
        return False
    context.pause(_SECOND_LOOK_SECONDS)
    return context.broker.depth(queue.value) == 0


def _mark_messages_gone(context: TickContext, run: Run) -> int:
    """Whoever sees the loss first restarts the run's grace time; for the others it is then too young.

    So nobody takes for lost what another has just sent anew. By a cursor, for the same reason.
    """
    now = context.clock()
    with context.database.autocommit() as connection:
        if not runs.restart_grace(connection, run, now):
            return 0
    total, after = 0, UUID(int=0)
    while True:
        with context.database.autocommit() as connection:
            marked = rescue.mark_messages_gone(
                connection, run.run_id, after=after, now=now, limit=_JOBS_AT_ONCE
            )
        total += len(marked)
        if len(marked) < _JOBS_AT_ONCE:
            return total
        after = max(marked)


def _send_due(context: TickContext, kind: Kind) -> int:
    """As dispatch sends batches: as many at once, with the same pause, while the queue has room."""
    settings = context.settings
    room = Room(context.broker, settings.max_queue_depth)
    total = 0
    while room.free(kind.value):
        now = context.clock()
        leased_until = settings.lease.until(now)
        with context.database.autocommit() as connection:
            jobs = rescue.take_due(
                connection, kind, now=now, leased_until=leased_until, limit=settings.enqueue_batch_size
            )
        if not jobs:
            break
        published = _publish_anew(context, kind, jobs)
        with context.database.autocommit() as connection:
            # Before they count as waiting: else whoever saw the queue empty before we filled it would take
            # them for lost.
            for run_id in {job.run_id for job in jobs}:
                runs.postpone_grace(connection, run_id, context.clock())
            rescue.mark_published(connection, published, leased_until)
        total += len(jobs)
        if len(jobs) < settings.enqueue_batch_size:
            break
        context.pause(settings.enqueue_sleep_seconds)
    return total


def _publish_anew(context: TickContext, kind: Kind, jobs: list[DueJob]) -> list[tuple[DueJob, UUID | None]]:
    """One group a partition: the messages of a group differ in nothing but their ids.

    Returns each job with the life of the broker's data in which its message went out.
    """
    groups, members = [], []
    for (partition_key, triggered_by, days), group in groupby(sorted(jobs, key=_partition), key=_partition):
        alike = list(group)
        members.append(alike)
        groups.append(
            GroupMessage(
                group_id=uuid4(),
                marker=f"due:{uuid4()}",
                message=JobMessage(kind.value, partition_key, triggered_by, days or None),
                jobs=JobIds.of((job.job_id, job.user_id) for job in alike),
            )
        )
    epochs = context.publisher.publish(groups)
    return [(job, epoch) for alike, epoch in zip(members, epochs, strict=True) for job in alike]


def _partition(job: DueJob) -> tuple[str, str, int]:
    # All three, since an older scheduler's rows may share a key with ours. None does not sort.
    return job.partition_key, job.triggered_by, job.backfill_days or 0
