"""What a tick did, as one object: for `--json`, for a task's result, for the exit status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from worker_scheduler.errors import SchedulerError
from worker_scheduler.ledger.tables import Kind


@dataclass
class Report:
    """Filled in while the tick goes on, so that a failure midway still says how far it came."""

    mode: Kind
    outcome: str = "failed"
    partition_key: str | None = None
    triggered_by: str | None = None
    run_id: UUID | None = None
    users_total_selected: int = 0
    jobs_inserted: int = 0
    jobs_enqueued: int = 0
    enqueue_failures: int = 0
    batches: int = 0
    duration_seconds: float = 0.0
    missing_user_ids: tuple[UUID, ...] = ()
    missing_github_logins: tuple[str, ...] = ()
    # Of a dry run only: what the same command would do without --dry-run.
    would_insert: int | None = None
    would_enqueue: int | None = None
    # Why the tick ended early: a refusal, a failure, or one that runs already.
    ended_by: SchedulerError | None = None

    def end(self, error: SchedulerError) -> None:
        """Notes how the tick ended early."""
        self.outcome = error.outcome
        self.ended_by = error

    @property
    def exit_status(self) -> int:
        """The exit status of a command that ends with this report."""
        return 0 if self.ended_by is None else self.ended_by.exit_status

    @property
    def failure(self) -> SchedulerError | None:
        """The refusal or failure; None where the tick did what it should."""
        return self.ended_by if self.exit_status else None

    def as_json(self) -> dict[str, Any]:
        """The documented object; ids as text, `error` and `would_…` only where they apply."""
        fields: dict[str, Any] = {
            "mode": self.mode.value,
            "outcome": self.outcome,
            "partition_key": self.partition_key,
            "triggered_by": self.triggered_by,
            "run_id": None if self.run_id is None else str(self.run_id),
            "users_total_selected": self.users_total_selected,
            "jobs_inserted": self.jobs_inserted,
            "jobs_enqueued": self.jobs_enqueued,
            "enqueue_failures": self.enqueue_failures,
            "batches": self.batches,
            "duration_seconds": round(self.duration_seconds, 3),
            "missing_user_ids": [str(user_id) for user_id in self.missing_user_ids],
            "missing_github_logins": list(self.missing_github_logins),
        }
        if self.would_insert is not None:
            fields["would_insert"] = self.would_insert
            fields["would_enqueue"] = self.would_enqueue
        if self.failure is not None:
            fields["error"] = str(self.failure)
        return fields
