"""`scheduler prune`: drops the jobs and the histories of months that ended long ago."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from worker_scheduler import wiring
from worker_scheduler.cli import shared
from worker_scheduler.cli.output import counted, print_json, print_line
from worker_scheduler.cli.shared import AsJson, DryRun
from worker_scheduler.config import options, values
from worker_scheduler.config.values import bounds
from worker_scheduler.ledger import schema
from worker_scheduler.ledger.histories import History
from worker_scheduler.maintenance import pruner
from worker_scheduler.maintenance.pruner import Pruned


def prune(
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="DAYS", help=f"Days since a month's end, such as 90d; {bounds(values.Age)}. Required."
        ),
    ] = None,
    requests_older_than: Annotated[
        str | None,
        typer.Option(metavar="DAYS", help="The same, for the history of requests. [default: 730d]"),
    ] = None,
    events_older_than: Annotated[
        str | None,
        typer.Option(metavar="DAYS", help="The same, for the history of jobs. [default: 90d]"),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Drop the jobs and the histories of months that ended long ago. Run it as the owner of the tables."""
    settings = shared.load_and_log()
    ages = {
        "older_than": older_than,
        "requests_older_than": requests_older_than,
        "events_older_than": events_older_than,
    }
    given = {name: age for name, age in ages.items() if age is not None}
    parsed = options.parse_prune({**given, "dry_run": dry_run})
    with shared.ledger(settings) as database:
        with database.autocommit() as connection:
            schema.require_current(connection)
        now = wiring.ledger_clock(database, settings.lease)()
        result = pruner.prune_ledger(
            database, now, timedelta(days=parsed.older_than), dry_run=parsed.dry_run
        )
        for history, days in (
            (History.REQUESTS, parsed.requests_older_than),
            (History.JOB_EVENTS, parsed.events_older_than),
        ):
            age = timedelta(days=days)
            result.months += pruner.prune_history(database, history, now, age, dry_run=parsed.dry_run)
    if as_json:
        print_json(result.as_json())
    else:
        _print_pruned(result, parsed.dry_run)
    return 0


def _print_pruned(result: Pruned, dry_run: bool) -> None:
    months = ", ".join(result.months) or "no month"
    verb = "would drop" if dry_run else "dropped"
    print_line(f"{verb} {months}: {counted(result.runs, 'run')}, {counted(result.jobs, 'job')}")
    for name, reason in result.kept.items():
        print_line(f"  kept {name}: {reason}")
