"""Revoked jobs: what `celery control revoke` and `terminate` do to a job's row.

Celery's workers keep the ids of revoked tasks in memory and discard their messages. Without a note in the
row the job would be PENDING for as long as they do so: reconcile would send its message again, in vain.
"""

from __future__ import annotations

from typing import Any

from celery.worker import state
from kombu.utils.functional import maybe_list


def is_asked_for(context: Any) -> bool:
    """Whether somebody has revoked the task, by its id or by a stamp. context: that of its request.

    Celery also says "revoked" of an expired message, and of a task whose process it killed by itself.
    """
    if context.id in state.revoked:
        return True
    stamps = context.stamps or {}
    return any(
        value in (maybe_list(state.revoked_stamps.get(stamp)) or ())
        for stamp in context.stamped_headers or ()
        for value in maybe_list(stamps.get(stamp)) or ()
    )
