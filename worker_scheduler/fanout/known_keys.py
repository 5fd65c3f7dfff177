"""Known keys: finds the run that an operator names, or says which keys are like the one that was given."""

from __future__ import annotations

from sqlalchemy import Connection

from worker_scheduler.config.suggestion import nearest
from worker_scheduler.errors import BadInput
from worker_scheduler.ledger import runs
from worker_scheduler.ledger.runs import Run
from worker_scheduler.redaction import show

_COMPARED = 1000
"""The latest runs: who misspells a key rarely means an older one."""


def require_run(connection: Connection, option: str, partition_key: str) -> Run:
    """The run with this key. Raises BadInput that names the three nearest keys, if there is none."""
    run = runs.get(connection, partition_key)
    if run is not None:
        return run
    keys = nearest(partition_key, (known.partition_key for known in runs.latest(connection, _COMPARED)))
    hint = f"the nearest are {', '.join(keys)}" if keys else "there is no run at all"
    raise BadInput(f"{option}={show(partition_key)}: there is no run with this key: {hint}")
