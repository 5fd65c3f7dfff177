"""SQL of sync_origin: since when days are due, and by which calendar."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class Origin:
    """Slots of this calendar after `since` are due. cron, timezone: None until they are first recorded."""

    since: datetime
    cron: str | None
    timezone: str | None


_GET = text("SELECT since, cron, timezone FROM sync_origin ORDER BY since LIMIT 1")

# The condition names the origin as seen, so that of several processes that see a change only one moves it.
_MOVE = text(
    """
    UPDATE sync_origin SET since = :since, cron = :cron, timezone = :timezone
    WHERE since = :seen_since AND cron IS NOT DISTINCT FROM :seen_cron
        AND timezone IS NOT DISTINCT FROM :seen_timezone
    """
)


def get(connection: Connection) -> Origin:
    """The origin. At first `since` is when the tables were created: earlier slots are not due."""
    return Origin(**connection.execute(_GET).one()._mapping)


def move(connection: Connection, seen: Origin, new: Origin) -> bool:
    """Replaces the origin as seen by a new one; False if another process has moved it."""
    parameters = {**vars(new), **{f"seen_{name}": value for name, value in vars(seen).items()}}
    return connection.execute(_MOVE, parameters).rowcount == 1
