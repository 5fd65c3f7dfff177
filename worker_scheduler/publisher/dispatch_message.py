"""Sends the message of `scheduler.dispatch`, the task that dispatches a run's batches on a worker."""

from __future__ import annotations

from celery import Celery

from worker_scheduler.publisher.broker import BROKER_ERRORS, unavailable

DISPATCH = "scheduler.dispatch"
"""The name of the task."""


class DispatchSender:
    """Sends messages of `scheduler.dispatch` through a Celery app."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send(self, partition_key: str, queue: str, message_id: str) -> None:
        """Asks for one dispatcher of the run of this partition.

        queue: `scheduler`, or the queue of the run's jobs. message_id: the task's id. Raises
        StoreUnavailable.
        """
        try:
            self._app.send_task(
                DISPATCH,
                kwargs={"partition_key": partition_key},
                queue=queue,
                task_id=message_id,
                retry=False,
            )
        except BROKER_ERRORS as error:
            raise unavailable(self._app.conf.broker_url, error) from error
