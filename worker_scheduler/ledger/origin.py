"""SQL of sync_origin: since when slots count, and by which calendar. It knows no cron."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class Origin:
    """Slots of this calendar after `since` are ours. cron, timezone: None until they are first noted."""

    since: datetime
    cron: str | None
    timezone: str | None


_GET = text("SELECT since, cron, timezone FROM sync_origin ORDER BY since LIMIT 1")

# What was seen is named, so that of several that see a change only one moves it.
_MOVE = text(
    """
    UPDATE sync_origin SET since = :since, cron = :cron, timezone = :timezone
    WHERE since = :seen_since AND cron IS NOT DISTINCT FROM :seen_cron
        AND timezone IS NOT DISTINCT FROM :seen_timezone
    """
)


def get(connection: Connection) -> Origin:
    """At first, when the tables were made: slots before that are nobody's."""
    return Origin(**connection.execute(_GET).one()._mapping)


def move(connection: Connection, seen: Origin, new: Origin) -> bool:
    """The origin as seen → the new one; False where another has moved it."""
    parameters = {**vars(new), **{f"seen_{name}": value for name, value in vars(seen).items()}}
    return connection.execute(_MOVE, parameters).rowcount == 1
