"""Publishes a batch as a Celery group, on any broker that Celery knows; at least once.

On Redis kombu's `Producer.batch()` sends the group through one pipeline; elsewhere it sends message
by message. Neither is all or nothing: a connection that is cut midway leaves a part of the batch in
the queue, and the next try sends it again. The worker's claim makes the second message a no-op.
"""

from __future__ import annotations

from uuid import UUID

from celery import Celery, group
from kombu import Producer
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from worker_scheduler.publisher import GroupMessage, JobMessage
from worker_scheduler.publisher.broker import BrokerState, unavailable

SYNC_USER = "sync_user"
# Commands per round trip: large enough that the trip is free, small enough that kombu's buffer is.
_PIPELINE_SIZE = 1000


class GroupPublisher:
    """Celery's own way to publish; it honours every setting of the app."""

    def __init__(self, app: Celery, broker: BrokerState) -> None:
        self._app = app
        self._broker = broker

    def publish(self, group_message: GroupMessage) -> UUID | None:
        """Publishes the group. Raises StoreUnavailable where the broker did not take all of it."""
        # Asked before: data that are lost in between make the epoch look old, and the batch is sent
        # again; asked after, they would make a lost batch look sent.
        epoch = self._broker.epoch()
        try:
            with (
                self._app.producer_or_acquire() as producer,
                producer.batch(max_size=_PIPELINE_SIZE),
            ):
                apply_group(self._app, group_message, producer)
        except (OperationalError, KombuError, RedisError, OSError) as error:
            raise unavailable(self._app.conf.broker_url, error.__cause__ or error) from error
        return epoch


def apply_group(app: Celery, group_message: GroupMessage, producer: Producer) -> None:
    """Has Celery publish the group through this producer."""
    signatures = [_signature(app, job, group_message.queue) for job in group_message.jobs]
    group(signatures, app=app).apply_async(
        task_id=str(group_message.group_id),
        producer=producer,
        # Inside a task the parent would otherwise keep every result in memory.
        add_to_parent=False,
        # Celery's own retry sends a message twice without saying so.
        retry=False,
    )


def _signature(app: Celery, job: JobMessage, queue: str) -> object:
    return app.signature(
        SYNC_USER,
        args=(job.user_id, job.partition_key, job.triggered_by),
        kwargs={"backfill_days": job.backfill_days},
        options={"task_id": job.job_id, "queue": queue},
        app=app,
    )
