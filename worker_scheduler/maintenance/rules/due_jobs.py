"""The rule due_jobs: jobs whose message must be published again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import groupby
from uuid import UUID, uuid4

from worker_scheduler.errors import SchedulerError
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.job_ids import JobIds
from worker_scheduler.ledger import backoff, rescue
from worker_scheduler.ledger.rescue import DueJob
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.maintenance.failures import Failures, stores_answer
from worker_scheduler.publisher import GroupMessage, SharedFields
from worker_scheduler.publisher.queue_bound import QueueBound

_REFUSED_STEPS = 3
"""After so many steps in a row that were refused whole, the queue itself is taken for the cause."""

_PUT_OFF_INTERVALS = 2.5
"""When jobs that could not be published are tried again: with the third pass from now."""

_Published = tuple[DueJob, UUID | None]
"""A job, and the broker epoch in which its message went out."""


def due_jobs(context: TickContext) -> int:
    """Publishes PENDING jobs that are due again: rescued, put off, or their message was lost.

    A queue or a partition that fails does not stop the others. Raises the first failure.
    """
    failures = Failures(stores_answer(context))
    total = 0
    for kind in Kind:
        with failures.of(f"queue {kind.queue}"):
            total += _send_due(context, kind, failures)
    failures.raise_first()
    return total


def _send_due(context: TickContext, kind: Kind, failures: Failures) -> int:
    """Sends due jobs as dispatch sends batches: in groups of the same size, with the same pause, while the
    queue has space. Returns how many.
    """
    settings = context.settings
    queue_bound = QueueBound(context.broker, settings.max_queue_depth)
    total, refused = 0, 0
    while refused < _REFUSED_STEPS and queue_bound.has_space(kind.queue):
        now = context.clock()
        leased_until = settings.lease.until(now)
        with context.database.transaction() as connection:
            due = rescue.take_due(
                connection, kind, now=now, leased_until=leased_until, limit=settings.enqueue_batch_size
            )
        if not due or context.clock() >= leased_until:
            break  # in the second case the statement has waited for a lock, and the jobs are due again
        published = _publish_again(context, kind, due, leased_until, failures)
        refused = 0 if published else refused + 1
        if published:
            _mark_published(context, published, leased_until)
        total += len(published)
        if len(due) < settings.enqueue_batch_size:
            break
        context.pause(settings.enqueue_sleep_seconds)
    return total


def _mark_published(context: TickContext, published: list[_Published], leased_until: datetime) -> None:
    with context.database.autocommit() as connection:
        rescue.mark_published(connection, published, leased_until, context.clock())


def _publish_again(
    context: TickContext, kind: Kind, due: list[DueJob], leased_until: datetime, failures: Failures
) -> list[_Published]:
    """Publishes one group per partition, since the messages of a group differ only in their ids.

    If they cannot be published together, each partition is tried on its own, and the jobs of one that fails
    are put off, so that they do not come first again. Returns the jobs that were published.
    """
    groups = [(_group(kind, key, alike), alike) for key, alike in _by_partition(due)]
    try:
        return _publish(context, groups)
    except SchedulerError as error:
        if len(groups) == 1:
            ((group, jobs),) = groups
            with failures.of(group.shared.partition_key, then=_putting_off(context, jobs, leased_until)):
                raise error
            return []
    published: list[_Published] = []
    for group, jobs in groups:
        with failures.of(group.shared.partition_key, then=_putting_off(context, jobs, leased_until)):
            published += _publish(context, [(group, jobs)])
    return published


def _publish(context: TickContext, groups: list[tuple[GroupMessage, list[DueJob]]]) -> list[_Published]:
    epochs = context.publisher.publish([group for group, _ in groups])
    return [(job, epoch) for (_, jobs), epoch in zip(groups, epochs, strict=True) for job in jobs]


def _putting_off(context: TickContext, jobs: list[DueJob], leased_until: datetime) -> Callable[[], None]:
    def put_off() -> None:
        until = context.clock() + _PUT_OFF_INTERVALS * timedelta(
            seconds=context.settings.reconcile_interval_seconds
        )
        with context.database.autocommit() as connection:
            backoff.put_off(connection, jobs, leased_until, until)

    return put_off


def _by_partition(due: list[DueJob]) -> Iterator[tuple[tuple[str, str, int], list[DueJob]]]:
    for key, group in groupby(sorted(due, key=_partition), key=_partition):
        yield key, list(group)


def _group(kind: Kind, key: tuple[str, str, int], jobs: list[DueJob]) -> GroupMessage:
    partition_key, triggered_by, days = key
    return GroupMessage(
        group_id=uuid4(),
        marker=f"due:{uuid4()}",
        shared=SharedFields(kind.queue, partition_key, triggered_by, days or None),
        job_ids=JobIds.of((job.job_id, job.user_id) for job in jobs),
    )


def _partition(job: DueJob) -> tuple[str, str, int]:
    # The fields that all messages of a group share. 0 stands for None, which cannot be sorted.
    return job.partition_key, job.triggered_by, job.backfill_days or 0
