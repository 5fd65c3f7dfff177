"""How log lines name a job: an operator who reads one wants to know whose job it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the process that checks a handler must not load SQLAlchemy
    from worker_scheduler.ledger.any_job import AnyJob
    from worker_scheduler.ledger.attempts import ClaimedJob
    from worker_scheduler.worker.types import SyncJob


def naming(job: AnyJob | ClaimedJob | SyncJob) -> dict[str, str]:
    """The fields of a log line about a job."""
    return {
        "job_id": str(job.job_id),
        "partition_key": job.partition_key,
        "user_id": str(job.user_id),
        "github_login": job.github_login or "",
    }


def name_of(job: AnyJob | ClaimedJob | SyncJob) -> str:
    """The job in words."""
    return f"job {job.job_id} of {job.partition_key}, user {job.user_id}, {job.github_login or 'no login'}"
