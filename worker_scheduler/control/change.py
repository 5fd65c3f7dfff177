"""What a verb changed, in a form to print; the same from the CLI and from a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Effect(StrEnum):
    """What a verb did. A verb that finds its effect there already changes nothing."""

    PAUSED = "paused"
    RESUMED = "resumed"
    NOT_PAUSED = "not_paused"
    CANCELLED = "cancelled"
    ALREADY_CANCELLED = "already_cancelled"
    RETRIED = "retried"


@dataclass(frozen=True)
class Change:
    """The effect of a verb on a partition, or on the schedule. jobs: how many it moved now."""

    verb: str
    partition_key: str
    effect: Effect
    sentence: str
    jobs: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "verb": self.verb,
            "partition_key": self.partition_key,
            "outcome": self.effect.value,
            "jobs": self.jobs,
            **self.details,
        }
