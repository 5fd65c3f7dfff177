"""SQL of sync_passes: of several messages that ask for a pass, only one makes it.

A message's own expiry could not do that: it compares the clocks of two hosts.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, text

# A time further ahead than :ahead_until is from a server whose clock was set back, and counts for nothing.
_BEGIN = text(
    """
    INSERT INTO sync_passes AS p (name, begun_at) VALUES (:name, :now)
    ON CONFLICT (name) DO UPDATE SET begun_at = excluded.begun_at, ended_at = NULL
    WHERE (p.begun_at <= :begun_until OR p.begun_at > :ahead_until)
        AND (p.ended_at IS NULL OR p.ended_at > :ahead_until
            OR p.ended_at + least(p.ended_at - p.begun_at, CAST(:longest_rest AS interval)) <= :now)
    """
)

_END = text("UPDATE sync_passes SET ended_at = :now WHERE name = :name AND begun_at = :begun_at")


def begin(
    connection: Connection, name: str, now: datetime, *, after_begin: timedelta, longest_rest: timedelta
) -> bool:
    """Notes that a pass begins; False if the last one began or ended too short a time ago for that.

    After its end a pass rests for as long as it took, `longest_rest` at most.
    """
    parameters = {
        "name": name,
        "now": now,
        "begun_until": now - after_begin,
        "longest_rest": longest_rest,
        "ahead_until": now + after_begin,
    }
    return connection.execute(_BEGIN, parameters).rowcount == 1


def end(connection: Connection, name: str, begun_at: datetime, now: datetime) -> bool:
    """Notes that the pass has ended; False if another one has begun since."""
    return connection.execute(_END, {"name": name, "begun_at": begun_at, "now": now}).rowcount == 1
