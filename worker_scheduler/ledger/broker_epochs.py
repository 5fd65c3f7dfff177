"""SQL of sync_broker_epochs: which broker epochs were seen, where and when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class SeenEpoch:
    """A broker epoch that was seen. broker: the place, safe to show.

    returned_at: when it was last seen again after another one had been seen. reconciled_at: when a pass of
    reconcile saw it last; None if only ticks have.
    """

    epoch: UUID
    broker: str
    seen_last: datetime
    returned_at: datetime | None
    reconciled_at: datetime | None


# A look is late if another epoch was noted after the broker was asked: the data may have been lost in
# between. A late look changes nothing, and a new epoch gets the number 0, as if it had been seen first.
_NOTE = text(
    """
    INSERT INTO sync_broker_epochs AS e (epoch, broker, seen_from, seen_last, look, reconciled_at)
    SELECT :epoch, :broker, :now, :now,
        CASE WHEN bool_or(o.look > :after_look) THEN 0 ELSE coalesce(max(o.look), 0) + 1 END,
        CAST(:reconciled AS timestamptz)
    FROM sync_broker_epochs o WHERE o.epoch <> :epoch
    ON CONFLICT (epoch) DO UPDATE SET
        broker = excluded.broker,
        seen_last = greatest(e.seen_last, excluded.seen_last),
        look = greatest(e.look, excluded.look),
        reconciled_at = greatest(e.reconciled_at, excluded.reconciled_at),
        returned_at = CASE WHEN EXISTS (SELECT FROM sync_broker_epochs o
                                        WHERE o.epoch <> e.epoch AND o.look > e.look)
                           THEN excluded.seen_last ELSE e.returned_at END
    WHERE excluded.look > 0
    """
)

_LATEST_LOOK = text("SELECT coalesce(max(look), 0) FROM sync_broker_epochs")

_COLUMNS = "epoch, broker, seen_last, returned_at, reconciled_at"

_PRESENT = text(f"SELECT {_COLUMNS} FROM sync_broker_epochs ORDER BY look DESC, seen_last DESC LIMIT 1")

_SINCE = text(
    f"SELECT {_COLUMNS} FROM sync_broker_epochs WHERE seen_last >= :since ORDER BY seen_last DESC"
)


def latest_look(connection: Connection) -> int:
    """The number of the latest look; 0 if there was none."""
    return int(connection.execute(_LATEST_LOOK).scalar_one())


def note(
    connection: Connection,
    epoch: UUID,
    broker: str,
    *,
    after_look: int,
    now: datetime,
    reconciled: datetime | None = None,
) -> None:
    """Notes that the broker at this place has shown this epoch.

    after_look: `latest_look` before the broker was asked. reconciled: the time, if it was a pass of
    reconcile that asked.
    """
    parameters = {
        "epoch": epoch,
        "broker": broker,
        "after_look": after_look,
        "now": now,
        "reconciled": reconciled,
    }
    connection.execute(_NOTE, parameters)


def present(connection: Connection) -> SeenEpoch | None:
    """The epoch that was found by the latest look; None if there was none."""
    row = connection.execute(_PRESENT).one_or_none()
    return None if row is None else SeenEpoch(**row._mapping)


def seen_since(connection: Connection, since: datetime) -> list[SeenEpoch]:
    """The epochs that were seen at `since` or later, the latest first."""
    return [SeenEpoch(**row._mapping) for row in connection.execute(_SINCE, {"since": since})]
