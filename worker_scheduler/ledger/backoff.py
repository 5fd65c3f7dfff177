"""SQL of back-off: when reconcile tries again what has failed, so that it holds up nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.by_id import by_id
from worker_scheduler.ledger.rescue import DueJob, given

LONGEST = timedelta(minutes=15)
"""The longest time between two tries, unless the interval of reconcile is longer."""

# The first retry falls to the next pass, then after 2, 4, 8 intervals and so on. Half an interval less, so
# that a pass that comes a moment early does not miss its turn.
_FAILED = text(
    """
    UPDATE sync_runs SET failures = failures + 1,
        retry_after = CAST(:now AS timestamptz)
            + least((power(2, least(failures, 20)) - 0.5) * CAST(:interval AS interval),
                    CAST(:longest AS interval))
    WHERE run_id = :run_id AND state IN ('PLANNING', 'DISPATCHING')
    """
)

# The run may have reached its end since.
_SUCCEEDED = text(
    """
    UPDATE sync_runs SET failures = 0, retry_after = NULL
    WHERE run_id = :run_id AND failures > 0
        AND state IN ('PLANNING', 'DISPATCHING', 'ENQUEUED', 'FINISHED')
    """
)

# Only jobs that the caller still holds, by their lease.
_PUT_OFF = by_id(
    """
    UPDATE sync_jobs SET not_before = :until, leased_until = NULL
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND {within_runs}
        AND status || '' = 'PENDING' AND leased_until IS NOT DISTINCT FROM :leased_until
    """
)


def failed(connection: Connection, run_id: UUID, now: datetime, interval: timedelta) -> None:
    """Notes that a run could not be planned or dispatched; `ledger/runs:take_over` leaves it alone then.

    interval: of reconcile. The time doubles from it with each failure in a row, up to LONGEST.
    """
    parameters = {"run_id": run_id, "now": now, "interval": interval, "longest": max(LONGEST, interval)}
    connection.execute(_FAILED, parameters)


def succeeded(connection: Connection, run_id: UUID) -> None:
    """Forgets the failures of a run."""
    connection.execute(_SUCCEEDED, {"run_id": run_id})


def put_off(
    connection: Connection, jobs: Sequence[DueJob], leased_until: datetime, until: datetime
) -> None:
    """Makes jobs that could not be published due again at `until`, so that others come first.

    leased_until: the lease under which `ledger/rescue:take_due` took them.
    """
    parameters = {**given(jobs), "leased_until": leased_until, "until": until}
    connection.execute(_PUT_OFF.for_table(connection), parameters)
