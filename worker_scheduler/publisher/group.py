"""Publishes a batch as a Celery group, on any broker that Celery knows; each message at least once.

On Redis, kombu's `Producer.batch()` sends the group through one pipeline; on other brokers it sends message
by message. Neither is all or nothing: if the connection breaks midway, a part of the batch is in the queue,
and the next attempt sends it again. The worker's claim then makes the second message a no-op.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from celery import Celery, group
from kombu import Producer

from worker_scheduler.publisher import SYNC_USER, GroupMessage, SharedFields
from worker_scheduler.publisher.broker import BROKER_ERRORS, BrokerState, unavailable

# Commands per round trip: enough that round trips hardly count, few enough that kombu's buffer stays small.
_PIPELINE_SIZE = 1000


class GroupPublisher:
    """Celery's own way to publish, which follows every setting of the app."""

    repeatable = False

    def __init__(self, app: Celery, broker: BrokerState) -> None:
        self._app = app
        self._broker = broker

    def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
        """Publishes each group. Raises StoreUnavailable if the broker did not take all of it."""
        return [self._publish(group_message) for group_message in groups]

    def _publish(self, group_message: GroupMessage) -> UUID | None:
        # Asked before publishing: if the data are lost in between, the batch has an old epoch and is sent
        # again. Asked after it, the batch would have the new epoch and count as sent, though it is lost.
        epoch = self._broker.epoch()
        try:
            with (
                self._app.producer_or_acquire() as producer,
                producer.batch(max_size=_PIPELINE_SIZE),
            ):
                apply_group(self._app, group_message, producer)
        except BROKER_ERRORS as error:
            raise unavailable(self._app.conf.broker_url, error.__cause__ or error) from error
        return epoch


def apply_group(app: Celery, group_message: GroupMessage, producer: Producer) -> None:
    """Publishes the group with Celery, through this producer."""
    signatures = [
        _signature(app, group_message.shared, job_id, user_id) for job_id, user_id in group_message.job_ids
    ]
    group(signatures, app=app).apply_async(
        task_id=str(group_message.group_id),
        producer=producer,
        # Otherwise, inside a task, the parent keeps every result in memory.
        add_to_parent=False,
        # Celery's own retry would send messages twice without a sign of it.
        retry=False,
    )


def _signature(app: Celery, shared: SharedFields, job_id: str, user_id: str) -> object:
    days = shared.backfill_days
    return app.signature(
        SYNC_USER,
        args=(user_id, shared.partition_key, shared.triggered_by),
        kwargs={} if days is None else {"backfill_days": days},
        options={"task_id": job_id, "queue": shared.queue},
        app=app,
    )
