"""Who is behind a Celery task, for the history of requests.

All of it comes from the message, so it may be any text: it says who claims to have asked, and proves
nothing.
"""

from __future__ import annotations

from celery import Task

from worker_scheduler.redaction import escape_control_characters

ACTOR_HEADER = "worker_scheduler_actor"
"""The header of a message that names who is behind it. Beat's messages have it."""

BEAT = "beat"

_LONGEST_SHOWN = 200


def source_of(task: Task) -> str:
    """Where the request came from, as a run's row records it: `task <id>`."""
    return f"task {_shown(task.request.id)}"


def actor_of(task: Task) -> str:
    """Who asked, unless the task's arguments say so: `beat`, or process and host of the sender."""
    named = getattr(task.request, ACTOR_HEADER, None) or getattr(task.request, "origin", None)
    return _shown(named) if named else "unknown"


def _shown(text: object) -> str:
    return escape_control_characters(str(text))[:_LONGEST_SHOWN]
