"""What the author of a handler needs: the job, the two exceptions that end it in another way, and the
one that it gets when it takes too long.

Plain Python: an application imports this from its own code, so it must not load SQLAlchemy or Celery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID


@dataclass(frozen=True)
class SyncJob:
    """One user's work in a partition, as the handler receives it."""

    job_id: UUID
    user_id: UUID
    github_login: str | None
    """None if the users table has no login for this user."""
    partition_key: str
    triggered_by: str
    """What asked for the job: `scheduler.daily` or `scheduler.backfill`."""
    backfill_days: int | None
    """How many days to look back; None for the daily run."""
    attempt: int
    """1 for the first attempt. Attempts whose worker died count too."""
    _is_cancelled: Callable[[], bool] = field(default=lambda: False, repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether the job's run was cancelled since the job began. A handler may then stop early, by
        SkipJob for example. It asks Postgres once a second at most, and never raises.
        """
        return self._is_cancelled()


class SkipJob(Exception):
    """Raised by a handler that has nothing to do for this user: the job becomes SKIPPED.

    reason: stored as the job's error_message. Passwords are masked, and the text is cut to 500 characters.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RetryLater(Exception):
    """Raised by a handler that cannot do the job now: the job waits as PENDING and is tried again.

    reason: stored like that of SkipJob. delay: the time until the next attempt, in seconds or as a
    timedelta; less than zero counts as zero. None means 30 s, doubled with each attempt up to an hour,
    with jitter. The delay is stored in Postgres, not in a Celery ETA. The attempt number
    SYNC_MAX_ATTEMPTS is the last: if it raises RetryLater too, the job becomes FAILED.
    """

    def __init__(self, reason: str = "", delay: float | timedelta | None = None) -> None:
        super().__init__(reason)
        self.delay = timedelta(seconds=delay) if isinstance(delay, int | float) else delay


class JobTimeout(BaseException):
    """Raised in a handler that takes longer than JOB_TIMEOUT_SECONDS. Catch it only to clean up.

    No `Exception`, so that an `except Exception` in the handler, or in a library that it calls, does not
    end the clean-up before it begins; gevent's Timeout is made in the same way.
    """
