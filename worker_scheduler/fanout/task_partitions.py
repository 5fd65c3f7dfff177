"""Task partitions: a task whose partition follows from the date keeps it when it is executed again.

Celery delivers a task again if its worker dies, and repeats it after an outage. That may be on another day
in UTC, and another partition would mean a second job for every user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from worker_scheduler import logs, partition_keys
from worker_scheduler.errors import Refused, SchedulerError
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import tasks
from worker_scheduler.ledger.tasks import FirstExecution
from worker_scheduler.redaction import show

log = logs.get_logger(__name__)


@contextmanager
def kept(context: TickContext, task_id: str | None, derive: Callable[[datetime], str]) -> Iterator[str]:
    """Yields the partition of the task's first execution, which is stored before anything else.

    derive: the partition of a request that is first executed at a time. task_id: None if no task asks.
    Raises Refused if the id belongs to a task with another request. If the block is refused at the first
    execution, the id is forgotten, since a refusal leaves nothing.
    """
    now = context.clock()
    if task_id is None:
        yield derive(now)
        return
    with context.database.autocommit() as connection:
        first = tasks.remember(connection, task_id, derive(now), now)
    _refuse_another_request(task_id, first, derive)
    if first.partition_key != derive(now):
        log.info(
            "task keeps the partition of its first execution",
            task_id=show(task_id),
            partition_key=first.partition_key,
            first_executed=first.created_at.isoformat(),
        )
    try:
        yield first.partition_key
    except Refused:
        # An outage must not hide the refusal; the row then stays until prune removes it.
        with suppress(SchedulerError), context.database.autocommit() as connection:
            tasks.forget(connection, task_id, created_at=now)
        raise


def _refuse_another_request(task_id: str, first: FirstExecution, derive: Callable[[datetime], str]) -> None:
    asked = derive(first.created_at)
    # A trigger of the daily tick has no options that choose a partition, but its calendar may have changed.
    both_daily = partition_keys.is_daily(asked) and partition_keys.is_daily(first.partition_key)
    if asked != first.partition_key and not both_daily:
        raise Refused(
            f"the task id {show(task_id)} belongs to a task of {first.partition_key}:"
            " give each request a task id of its own"
        )
