"""`scheduler status`: how far a run is, or the latest runs. It only reads."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from worker_scheduler.cli import shared
from worker_scheduler.cli.output import print_json, print_line
from worker_scheduler.cli.shared import AsJson
from worker_scheduler.config import options
from worker_scheduler.errors import Refused
from worker_scheduler.ledger import batches, jobs, runs, schema
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.tables import JobStatus

_LATEST_RUNS = 10


def status(
    partition_key: Annotated[
        str | None,
        typer.Argument(
            metavar="PARTITION_KEY",
            help=f"Key of the run, such as daily:2026-11-23. Default: the latest {_LATEST_RUNS} runs.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Show how many jobs of a run are in each state; without a key, for the latest runs."""
    if partition_key is not None:
        options.require_partition_key(partition_key, "PARTITION_KEY")
    with shared.ledger(shared.load_and_log()) as database, database.autocommit() as connection:
        schema.require_current(connection)
        rows = _latest(connection) if partition_key is None else [_one(connection, partition_key)]
    if as_json:
        print_json(rows if partition_key is None else rows[0])
    else:
        _print_table(rows)
    return 0


def _latest(connection: Connection) -> list[dict[str, Any]]:
    return [_row(connection, run.partition_key, run) for run in runs.latest(connection, _LATEST_RUNS)]


def _one(connection: Connection, partition_key: str) -> dict[str, Any]:
    row = _row(connection, partition_key, runs.get(connection, partition_key))
    if row["state"] is None and not any(row["jobs"].values()):
        raise Refused(f"there is no run of {partition_key}: `scheduler status` shows the latest runs")
    return row


def _row(connection: Connection, partition_key: str, run: Run | None) -> dict[str, Any]:
    return {
        "partition_key": partition_key,
        # Jobs that an older scheduler wrote have no run.
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
