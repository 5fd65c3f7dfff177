"""`scheduler migrate`: brings the tables up to date."""

from __future__ import annotations

from worker_scheduler import logs
from worker_scheduler.cli.output import print_line
from worker_scheduler.ledger import schema
from worker_scheduler.settings import load


def migrate() -> int:
    """Bring the tables up to date; safe to run again, and from several machines at once."""
    settings = load()
    logs.configure(settings.log_level)
    logs.to_stderr()
    version = schema.upgrade(settings.database_url.get_secret_value())
    print_line(f"the tables are at version {version}")
    return 0
