"""`scheduler status`: how far a run is, or the latest runs. It reads, and moves nothing."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from worker_scheduler.cli.output import print_json, print_line
from worker_scheduler.errors import BadInput, Refused
from worker_scheduler.ledger import batches, jobs, runs, schema
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.redaction import show
from worker_scheduler.settings import load
from worker_scheduler.slots import PARTITION_KEY

_LATEST = 10


def status(
    partition_key: Annotated[str | None, typer.Argument(metavar="PARTITION_KEY")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Jobs by state for one run, or for the latest runs."""
    if partition_key is not None and not PARTITION_KEY.fullmatch(partition_key):
        raise BadInput(f"PARTITION_KEY={show(partition_key)}: allowed is [A-Za-z0-9._:-]{{1,200}}")
    database = Database(load().database_url.get_secret_value(), size=1)
    try:
        with database.autocommit() as connection:
            schema.require_current(connection)
            rows = _latest(connection) if partition_key is None else [_one(connection, partition_key)]
    finally:
        database.dispose()
    if as_json:
        print_json(rows if partition_key is None else rows[0])
    else:
        _print_table(rows)
    return 0


def _latest(connection: Connection) -> list[dict[str, Any]]:
    return [_row(connection, run.partition_key, run) for run in runs.latest(connection, _LATEST)]


def _one(connection: Connection, partition_key: str) -> dict[str, Any]:
    row = _row(connection, partition_key, runs.get(connection, partition_key))
    if row["state"] is None and not any(row["jobs"].values()):
        raise Refused(f"there is no run of {partition_key}: see `scheduler status` for the latest")
    return row


def _row(connection: Connection, partition_key: str, run: Run | None) -> dict[str, Any]:
    return {
        "partition_key": partition_key,
        # No run: rows of an older scheduler.
        "state": None if run is None else run.state.value,
        "created_at": None if run is None else run.created_at.isoformat(),
        "pruned_at": None if run is None or run.pruned_at is None else run.pruned_at.isoformat(),
        "jobs": _counts(connection, partition_key, run),
        "not_enqueued": 0 if run is None else batches.unsent_jobs(connection, run.run_id),
    }


def _counts(connection: Connection, partition_key: str, run: Run | None) -> dict[str, int]:
    if run is None or run.pruned_at is None:
        return jobs.count_by_status(connection, partition_key)
    ended = {"COMPLETED": run.completed, "FAILED": run.failed, "SKIPPED": run.skipped}
    return {status.value: ended.get(status.value) or 0 for status in JobStatus}


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print_line("no runs yet")
        return
    width = max(len(row["partition_key"]) for row in rows)
    for row in rows:
        counts = "  ".join(f"{state} {number}" for state, number in row["jobs"].items())
        unsent = f"  (not enqueued yet: {row['not_enqueued']})" if row["not_enqueued"] else ""
        print_line(f"{row['partition_key']:<{width}}  {row['state'] or 'OLDER':<11}  {counts}{unsent}")
