"""Publishes a batch as a Celery group, on any broker that Celery knows; at least once.

On Redis kombu's `Producer.batch()` sends the group through one pipeline; elsewhere it sends message
by message. Neither is all or nothing: a connection that is cut midway leaves a part of the batch in
the queue, and the next try sends it again. The worker's claim makes the second message a no-op.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from celery import Celery, group
from kombu import Producer
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from worker_scheduler.publisher import SYNC_USER, GroupMessage, JobMessage
from worker_scheduler.publisher.broker import BrokerState, unavailable

# Commands per round trip: large enough that the trip is free, small enough that kombu's buffer is.
_PIPELINE_SIZE = 1000


class GroupPublisher:
    """Celery's own way to publish; it honours every setting of the app."""

    repeatable = False

    def __init__(self, app: Celery, broker: BrokerState) -> None:
        self._app = app
        self._broker = broker

    def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
        """Publishes each group. Raises StoreUnavailable where the broker did not take all of it."""
        return [self._publish(group_message) for group_message in groups]

    def _publish(self, group_message: GroupMessage) -> UUID | None:
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
    signatures = [
        _signature(app, group_message.message, job_id, user_id) for job_id, user_id in group_message.jobs
    ]
    group(signatures, app=app).apply_async(
        task_id=str(group_message.group_id),
        producer=producer,
        # Inside a task the parent would otherwise keep every result in memory.
        add_to_parent=False,
        # Celery's own retry sends a message twice without saying so.
        retry=False,
    )


def _signature(app: Celery, message: JobMessage, job_id: str, user_id: str) -> object:
    days = message.backfill_days
    return app.signature(
        SYNC_USER,
        args=(user_id, message.partition_key, message.triggered_by),
        kwargs={} if days is None else {"backfill_days": days},
        options={"task_id": job_id, "queue": message.queue},
        app=app,
    )
