"""The message of a probe: to a queue, a monitor and a worker it looks like that of any job."""

from __future__ import annotations

from uuid import UUID, uuid4

from worker_scheduler.job_ids import JobIds
from worker_scheduler.publisher import GroupMessage, SharedFields

_NOBODY = str(UUID(int=0))
_DAY = "1970-01-01"
_SHARED = {
    "daily": SharedFields("daily", f"daily:{_DAY}", "scheduler.daily", None),
    "backfill": SharedFields("backfill", f"backfill:{_DAY}:1d", "scheduler.backfill", None),
}
"""Always the same, so that a publisher renders one template per queue. A worker that does not know probes
looks for a job of that id and finds none.
"""


def probe_message(probe_id: UUID, queue: str) -> GroupMessage:
    """The message of one probe for a queue of jobs, as the publishers take it."""
    return GroupMessage(
        group_id=uuid4(),
        marker=f"probe:{probe_id}",
        shared=_SHARED[queue],
        job_ids=JobIds.of([(str(probe_id), _NOBODY)]),
    )
