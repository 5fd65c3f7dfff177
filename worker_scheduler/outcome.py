"""How a tick ended, by name."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The field `outcome` of a report."""

    ENQUEUED = "enqueued"
    NOTHING_TO_DO = "nothing_to_do"
    JOINED = "joined"
    DRY_RUN = "dry_run"
    ALREADY_RUNNING = "already_running"
    REFUSED = "refused"
    FAILED = "failed"
