"""`scheduler prune`: takes jobs of long ago out of the ledger."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from worker_scheduler import logs, options, pruner
from worker_scheduler.cli.output import counted, print_json, print_line
from worker_scheduler.cli.ticks import AsJson, DryRun
from worker_scheduler.clock import utc_now
from worker_scheduler.ledger import schema
from worker_scheduler.ledger.database import Database
from worker_scheduler.pruner import Pruned
from worker_scheduler.settings import load


def prune(
    older_than: Annotated[
        str | None, typer.Option(metavar="DAYS", help="Such as 90d, 1-3650. Required.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Drop the jobs of months that ended so long ago; as the owner of the tables, at any time."""
    settings = load()
    logs.configure(settings.log_level)
    logs.to_stderr()
    given = {} if older_than is None else {"older_than": older_than}
    parsed = options.parse_prune({**given, "dry_run": dry_run})
    database = Database(settings.database_url.get_secret_value(), size=1)
    try:
        with database.autocommit() as connection:
            schema.require_current(connection)
        result = pruner.prune(
            database, utc_now(), timedelta(days=parsed.older_than), dry_run=parsed.dry_run
        )
    finally:
        database.dispose()
    if as_json:
        print_json(result.as_json())
    else:
        _print(result, parsed.dry_run)
    return 0


def _print(result: Pruned, dry_run: bool) -> None:
    months = ", ".join(result.months) or "no month"
    verb = "would drop" if dry_run else "dropped"
    print_line(f"{verb} {months}: {counted(result.runs, 'run')}, {counted(result.jobs, 'job')}")
    for name, reason in result.kept.items():
        print_line(f"  kept {name}: {reason}")
