"""Publishing: a batch of jobs becomes messages in the broker. It knows no SQL and keeps no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from worker_scheduler.job_ids import JobIds

SYNC_USER = "sync_user"
"""The name of the task that does a job."""


@dataclass(frozen=True)
class JobMessage:
    """What the messages of a run's jobs have in common."""

    queue: str
    partition_key: str
    triggered_by: str
    backfill_days: int | None


@dataclass(frozen=True)
class GroupMessage:
    """A batch's messages: one Celery group, into one queue. A message's task id is its job's id.

    marker: names this publication, whoever tries it and however often; another generation of the
    same batch has another.
    """

    group_id: UUID
    marker: str
    message: JobMessage
    jobs: JobIds


class Publisher(Protocol):
    """Puts batches into the broker."""

    @property
    def repeatable(self) -> bool:
        """Whether what failed can be tried again and doubles nothing: then several batches may go at
        once.
        """

    def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
        """Returns when the broker has taken every message; for each group, in which life of the
        broker's data that was, if known.

        Raises StoreUnavailable otherwise; some of the messages may have been taken all the same.
        """
