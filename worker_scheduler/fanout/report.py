"""What a tick did, as one object: for `--json`, for a task's result, for the exit status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from worker_scheduler import logs
from worker_scheduler.errors import SchedulerError
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.outcome import Outcome

if TYPE_CHECKING:  # they use a report themselves
    from worker_scheduler.fanout.preview import Preview
    from worker_scheduler.fanout.selection import Selection

log = logs.get_logger(__name__)


@dataclass
class Report:
    """What a tick has done so far. It is filled in step by step, so that a failure says how far it came."""

    mode: Kind
    outcome: Outcome = Outcome.FAILED
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
    # How many were named and do not exist; the two above have the first ones.
    unknown_users: int = 0
    # Set by a dry run only: what the same command would do without --dry-run.
    would_insert: int | None = None
    would_enqueue: int | None = None
    # The same by classes of users; for a backfill only.
    preview: Preview | None = None
    # Set if it joined another tick: since when that one runs, and the given options that have no effect.
    running_since: datetime | None = None
    unused_options: tuple[str, ...] = ()
    # Why the tick ended early: a refusal, a failure, or another tick that stands in a dry run's way.
    ended_by: SchedulerError | None = None

    def note_selection(self, selected: Selection) -> None:
        """Notes how many users are selected, and which of the named ones do not exist."""
        self.users_total_selected = selected.total
        self.unknown_users = selected.unknown.total + selected.unknown_excluded.total
        self.missing_user_ids = tuple(selected.unknown.user_ids)
        self.missing_github_logins = (
            *selected.unknown.github_logins,
            *selected.unknown_excluded.github_logins,
        )

    def foresee(self, preview: Preview) -> None:
        """Notes what a dry run has found out."""
        self.would_insert, self.would_enqueue = preview.would_create, preview.would_enqueue
        if self.mode is Kind.BACKFILL:
            self.preview = preview

    def end(self, error: SchedulerError) -> None:
        """Notes why the tick ended early."""
        self.outcome = error.outcome
        self.ended_by = error

    def join(self, running_since: datetime, unused_options: tuple[str, ...]) -> None:
        """Notes that the tick that is running does what this one was asked for."""
        self.outcome = Outcome.JOINED
        self.running_since = running_since
        self.unused_options = unused_options

    @property
    def exit_status(self) -> int:
        """The exit status of a command that ends with this report."""
        return 0 if self.ended_by is None else self.ended_by.exit_status

    @property
    def failure(self) -> SchedulerError | None:
        """The refusal or failure; None if the tick did what it should."""
        return self.ended_by if self.exit_status else None

    def as_json(self) -> dict[str, Any]:
        """The documented JSON object: ids as text; the fields below `missing_…` only if they apply."""
        fields: dict[str, Any] = {
            "mode": self.mode.value,
            "outcome": self.outcome.value,
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
        if self.unknown_users:
            fields["unknown_users"] = self.unknown_users
        if self.would_insert is not None:
            fields["would_insert"] = self.would_insert
            fields["would_enqueue"] = self.would_enqueue
        if self.preview is not None:
            fields["plan"] = self.preview.as_json()
        if self.running_since is not None:
            fields["running_since"] = self.running_since.isoformat()
            fields["unused_options"] = list(self.unused_options)
        if self.failure is not None:
            fields["error"] = str(self.failure)
        return fields


def log_progress(report: Report) -> None:
    """Logs one line per batch, for processes without a terminal."""
    log.info(
        "batch enqueued",
        partition_key=report.partition_key,
        batches=report.batches,
        enqueued=report.jobs_enqueued,
        selected=report.users_total_selected,
    )
