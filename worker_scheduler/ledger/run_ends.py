"""SQL of the end of a run: every job is final, and the run gets its counts."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

_FIRST = """
    first_finished_at = coalesce(r.first_finished_at, {at}),
    first_completed =
        CASE WHEN r.first_finished_at IS NULL THEN {counts}.completed ELSE r.first_completed END,
    first_failed = CASE WHEN r.first_finished_at IS NULL THEN {counts}.failed ELSE r.first_failed END,
    first_skipped = CASE WHEN r.first_finished_at IS NULL THEN {counts}.skipped ELSE r.first_skipped END
"""
KEPT = _FIRST.format(at="r.finished_at", counts="r")
"""What opening the run `r` again sets. A pass of earlier code, which began before the migration, may have
finished a run without noting that it was the first time.
"""

# The first end stays known when the run is opened again.
_FINISH = f"""
    UPDATE sync_runs r SET state = 'FINISHED', finished_at = :now, leased_until = NULL,
        completed = c.completed, failed = c.failed, skipped = c.skipped, cancelled = c.cancelled,
        {_FIRST.format(at=":now", counts="c")}
    FROM (SELECT count(*) FILTER (WHERE status = 'COMPLETED') AS completed,
                 count(*) FILTER (WHERE status = 'FAILED') AS failed,
                 count(*) FILTER (WHERE status = 'SKIPPED') AS skipped,
                 count(*) FILTER (WHERE status = 'SKIPPED' AND cancelled_at IS NOT NULL) AS cancelled
          FROM sync_jobs WHERE run_id = :run_id) c
    WHERE r.run_id = :run_id AND {{ended}}
        AND NOT EXISTS (SELECT FROM sync_jobs j
                        WHERE j.run_id = :run_id AND j.status IN ('PENDING', 'RUNNING'))
        AND NOT EXISTS (SELECT FROM sync_retries t WHERE t.run_id = :run_id AND t.ended_at IS NULL)
"""
_FINISH_SENT = text(_FINISH.format(ended="r.state = 'ENQUEUED'"))
_FINISH_CANCELLED = text(
    _FINISH.format(
        ended="r.state IN ('PLANNING', 'DISPATCHING', 'ENQUEUED') AND r.cancelled_at IS NOT NULL"
    )
)

_HAS_OPEN_JOBS = text(
    "SELECT EXISTS (SELECT FROM sync_jobs WHERE run_id = :run_id AND status IN ('PENDING', 'RUNNING'))"
)


def finish(connection: Connection, run_id: UUID, now: datetime) -> bool:
    """Moves a run ENQUEUED → FINISHED with its counts if every job is final; says whether it moved."""
    return _finish(connection, _FINISH_SENT, run_id, now)


def finish_cancelled(connection: Connection, run_id: UUID, now: datetime) -> bool:
    """Moves a cancelled run to FINISHED from every state, with its counts, if every job is final."""
    return _finish(connection, _FINISH_CANCELLED, run_id, now)


def _finish(connection: Connection, statement: TextClause, run_id: UUID, now: datetime) -> bool:
    # This is asked first: otherwise each pass would count a million jobs only to find that one is open.
    if connection.execute(_HAS_OPEN_JOBS, {"run_id": run_id}).scalar_one():
        return False
    return connection.execute(statement, {"run_id": run_id, "now": now}).rowcount == 1
