"""The worker's side of a job: claim it, renew its lease while it runs, record how it ended."""

from __future__ import annotations

from contextlib import AbstractContextManager
from uuid import UUID

from worker_scheduler.worker.types import JobTimeout, RetryLater, SkipJob, SyncJob

__all__ = ["JobTimeout", "RetryLater", "SkipJob", "SyncJob", "claim"]


def claim(job_id: UUID | str) -> AbstractContextManager[SyncJob | None]:
    """Claims a job for the body of a `with`, and finishes the job according to how the body ends.

    For a code base that keeps its own `sync_user` task. job_id: the task's id, as a UUID or its text.
    Gives the body None if the job does not exist or is not waiting, and for a probe, which is a message of
    reconcile and no job's; the body must then do nothing.
    SkipJob and RetryLater do not leave the `with`; any other exception makes the job FAILED, or PENDING
    again as SYNC_RETRY_ON says, and is raised again.
    Raises ValueError if job_id is not a UUID, ConfigurationError, and StoreUnavailable if Postgres
    stays unavailable for ten minutes.
    """
    # Late: a handler imports this package for its types, and must not load SQLAlchemy and Celery.
    from worker_scheduler import wiring  # noqa: PLC0415

    return wiring.process_worker().claim(UUID(str(job_id)))
