"""SQL of sync_probes: messages that tell how far a queue has been taken.

Messages leave a queue in the order in which they came, so a probe that has arrived says that everything
published before it has left the queue at least once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger import advisory_locks


@dataclass(frozen=True)
class QueueProbes:
    """What the probes of a queue say; times at which probes were sent, None if there is no such probe.

    passed: the last one that has arrived. settled: the last one that had arrived by a given time.
    newest: the last one. overdue: the first one after `passed`; it has not arrived.
    """

    passed: datetime | None
    settled: datetime | None
    newest: datetime | None
    overdue: datetime | None


# Before the message exists, as with jobs. The lock, so that of several passes at once only one sends.
_ANNOUNCE = text(
    """
    INSERT INTO sync_probes (probe_id, queue, sent_at)
    SELECT :probe_id, :queue, :now
    WHERE NOT EXISTS (SELECT FROM sync_probes WHERE queue = :queue AND sent_at > :not_since)
    """
)

_TAKE_BACK = text("DELETE FROM sync_probes WHERE probe_id = :probe_id AND arrived_at IS NULL")

_ARRIVED = text(
    "UPDATE sync_probes SET arrived_at = :now WHERE probe_id = :probe_id AND arrived_at IS NULL"
)

_OF_QUEUE = text(
    """
    SELECT a.passed, a.settled, a.newest,
        (SELECT min(sent_at) FROM sync_probes
         WHERE queue = :queue AND arrived_at IS NULL
             AND (a.passed IS NULL OR sent_at > a.passed)) AS overdue
    FROM (SELECT max(sent_at) FILTER (WHERE arrived_at IS NOT NULL) AS passed,
                 max(sent_at) FILTER (WHERE arrived_at <= :by) AS settled,
                 max(sent_at) AS newest
          FROM sync_probes WHERE queue = :queue) a
    """
)

_FORGET_AHEAD = text("DELETE FROM sync_probes WHERE queue = :queue AND sent_at > :ahead_until")

_FORGET = text("DELETE FROM sync_probes WHERE queue = :queue AND sent_at < :before")


def announce(
    connection: Connection, probe_id: UUID, queue: str, *, now: datetime, not_since: datetime
) -> bool:
    """Notes, within a transaction, a probe that is sent next; False if one was sent after `not_since`."""
    advisory_locks.hold(connection, advisory_locks.PROBE)
    parameters = {"probe_id": probe_id, "queue": queue, "now": now, "not_since": not_since}
    return connection.execute(_ANNOUNCE, parameters).rowcount == 1


def take_back(connection: Connection, probe_id: UUID) -> None:
    """Forgets a probe that the broker did not take; if it took it after all, nobody waits for it."""
    connection.execute(_TAKE_BACK, {"probe_id": probe_id})


def note_arrival(connection: Connection, probe_id: UUID, now: datetime) -> None:
    """Notes that a worker has got the probe; the first time counts."""
    connection.execute(_ARRIVED, {"probe_id": probe_id, "now": now})


def of_queue(connection: Connection, queue: str, *, by: datetime) -> QueueProbes:
    """What the probes of the queue say. by: until then a probe must have arrived to count as settled."""
    row = connection.execute(_OF_QUEUE, {"queue": queue, "by": by}).one()
    return QueueProbes(**row._mapping)


def forget_ahead(connection: Connection, queue: str, ahead_until: datetime) -> None:
    """Deletes the probes of the queue that are from a server whose clock was set back since."""
    connection.execute(_FORGET_AHEAD, {"queue": queue, "ahead_until": ahead_until})


def forget(connection: Connection, queue: str, before: datetime) -> None:
    """Deletes the probes of the queue that were sent before a later one that has settled."""
    connection.execute(_FORGET, {"queue": queue, "before": before})
