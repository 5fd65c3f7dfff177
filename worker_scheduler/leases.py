"""How long a claim is believed after its holder's last sign of life. It claims nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class Lease:
    """A length of time, and how often a living holder renews it."""

    seconds: float

    def until(self, now: datetime) -> datetime:
        """When a lease that is taken now runs out."""
        return now + timedelta(seconds=self.seconds)

    @property
    def heartbeat_seconds(self) -> float:
        """Three heartbeats may be lost before the holder counts as dead."""
        return self.seconds / 4
