"""`scheduler migrate`: brings the tables up to date."""

from __future__ import annotations

from worker_scheduler.cli import shared
from worker_scheduler.cli.output import print_line
from worker_scheduler.ledger import schema


def migrate() -> int:
    """Create the tables, or bring them up to date. Safe to repeat, and on several machines at once."""
    with shared.ledger(shared.load_and_log(), size=2) as database:
        version = schema.upgrade(database)
    print_line(f"the tables are at version {version}")
    return 0
