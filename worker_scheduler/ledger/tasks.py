"""SQL of sync_tasks: which partition a Celery task works on, by the task's id.

A task that derives its partition from the date keeps that of its first execution when it is delivered again
or repeated on another day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class FirstExecution:
    """The partition that a task's first execution chose, and when that was."""

    partition_key: str
    created_at: datetime


# An id is any text of strangers. What might not fit into the column or into the database's encoding is
# stored as its digest.
_PLAIN_ID = re.compile(r"[!-~]{1,200}")
_DIGEST = "sha256:"

_REMEMBER = text(
    """
    INSERT INTO sync_tasks (task_id, partition_key, created_at)
    VALUES (:task_id, :partition_key, :now) ON CONFLICT (task_id) DO NOTHING
    """
)

_FIRST = text("SELECT partition_key, created_at FROM sync_tasks WHERE task_id = :task_id")

_FORGET = text("DELETE FROM sync_tasks WHERE task_id = :task_id AND created_at = :created_at")


def remember(connection: Connection, task_id: str, partition_key: str, now: datetime) -> FirstExecution:
    """Stores the partition of a task, unless the task has one; returns the one that it has."""
    parameters = {"task_id": _stored_id(task_id), "partition_key": partition_key, "now": now}
    while True:
        connection.execute(_REMEMBER, parameters)
        row = connection.execute(_FIRST, parameters).one_or_none()
        if row is not None:  # otherwise prune has removed an old row in between
            return FirstExecution(**row._mapping)


def forget(connection: Connection, task_id: str, created_at: datetime) -> None:
    """Removes the partition of a task if it was stored at `created_at`."""
    connection.execute(_FORGET, {"task_id": _stored_id(task_id), "created_at": created_at})


def _stored_id(task_id: str) -> str:
    if _PLAIN_ID.fullmatch(task_id) and not task_id.startswith(_DIGEST):
        return task_id
    return _DIGEST + sha256(task_id.encode("utf-8", "surrogatepass")).hexdigest()
