"""SQL of sync_job_events: what happens to jobs that do not simply succeed.

An event is written by the statement that changes the job's state, so there is none without the other.
"""

from __future__ import annotations

from enum import StrEnum


class JobEvent(StrEnum):
    """What can happen to a job off the happy path."""

    FAILED = "failed"
    SKIPPED = "skipped"
    PUT_OFF = "put_off"
    HANDED_BACK = "handed_back"
    RESCUED = "rescued"
    RETRIED = "retried"
    CANCELLED = "cancelled"
    REVOKED = "revoked"


STORED_REASON = "reason_class, reason_fingerprint"
"""The reason of an event is the one in the job's row."""
GIVEN_REASON = "CAST(:reason_class AS text), CAST(:reason_fingerprint AS bigint)"
"""The reason of an event is a parameter: the job goes on, so that its row has none."""
_TABLE = "UPDATE sync_jobs j"
_MOVED = ("job_id", "run_id", "user_id", "attempt", "reason_class", "reason_fingerprint", "error_message")


def noted(update: str, event: JobEvent, reason: str = STORED_REASON) -> str:
    """An UPDATE of `sync_jobs j`, with an event for each job that it changes; as many rows are counted.

    update: has no RETURNING, names the time `:now`, and may begin with a WITH of its own.
    """
    before, _, change = update.rpartition(_TABLE)
    begin = f"{before.rstrip()}, " if before.strip() else "WITH "
    return (
        f"{begin} moved AS ({_TABLE}{change} RETURNING {of_moved()}) {insert_from('moved', event, reason)}"
    )


def of_moved() -> str:
    """What an event needs of a job: for RETURNING."""
    return ", ".join(f"j.{name}" for name in _MOVED)


def insert_from(moved: str, event: JobEvent, reason: str = STORED_REASON) -> str:
    """Writes an event for each row of a WITH that returned `of_moved`."""
    return f"""
        INSERT INTO sync_job_events (happened_at, event, job_id, run_id, user_id, attempt,
            reason_class, reason_fingerprint, error_message)
        SELECT CAST(:now AS timestamptz), '{event}', job_id, run_id, user_id, attempt, {reason},
            error_message
        FROM {moved}
        """
