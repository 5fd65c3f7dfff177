"""Publishing: a batch of jobs becomes messages in the broker. It knows no SQL and keeps no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True)
class JobMessage:
    """What a job's message says, ids as text; its task id is the job's id."""

    job_id: str
    user_id: str
    partition_key: str
    triggered_by: str
    backfill_days: int | None


@dataclass(frozen=True)
class GroupMessage:
    """A batch's messages: one Celery group, into one queue.

    marker: names this publication, whoever tries it and however often; another generation of the
    same batch has another.
    """

    group_id: UUID
    queue: str
    marker: str
    jobs: Sequence[JobMessage]


class Publisher(Protocol):
    """Puts a batch into the broker."""

    def publish(self, group_message: GroupMessage) -> UUID | None:
        """Returns when the broker has taken every message: in which life of its data, if known.

        Raises StoreUnavailable otherwise; some of the messages may have been taken all the same.
        """
