"""Publisher: turns a batch of jobs into messages in the broker. It knows no SQL and stores nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from worker_scheduler.job_ids import JobIds

SYNC_USER = "sync_user"
"""The name of the task that runs a job."""


@dataclass(frozen=True)
class SharedFields:
    """What the messages of a run's jobs have in common."""

    queue: str
    partition_key: str
    triggered_by: str
    backfill_days: int | None


@dataclass(frozen=True)
class GroupMessage:
    """The messages of one batch: one Celery group, into one queue. A message's task id is its job's id.

    marker: names this publication. Every dispatcher that tries it uses the same one, at every attempt;
    another generation of the batch has another marker.
    """

    group_id: UUID
    marker: str
    shared: SharedFields
    job_ids: JobIds


class Publisher(Protocol):
    """Publishes batches to the broker."""

    @property
    def repeatable(self) -> bool:
        """Whether a failed publication can be repeated without sending a message twice.

        Only then may several batches go at once.
        """

    def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
        """Publishes every group; returns the broker epoch in which each one was taken, None if unknown.

        Raises StoreUnavailable if the broker did not take all of them; it may have taken some.
        """
