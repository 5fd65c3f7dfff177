"""What the commands share: --json, --dry-run, settings with logging, the ledger, and who runs a command."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from worker_scheduler import logs, wiring
from worker_scheduler.config.settings import Settings, load
from worker_scheduler.ledger.database import Database

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Actor = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Who is behind this, for the history. Default: user@host."),
]
Reason = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Why this is done, for the history of requests.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def load_and_log() -> Settings:
    """Returns the settings, and sends log lines to stderr from LOG_LEVEL on. Raises ConfigurationError."""
    settings = load()
    logs.configure(settings.log_level)
    logs.to_stderr()
    return settings


@contextmanager
def ledger(settings: Settings, size: int = 1) -> Iterator[Database]:
    """The ledger's database while the block runs; then its connections are closed. size: connections."""
    database = wiring.open_database(settings, size=size)
    try:
        yield database
    finally:
        database.dispose()


def requested_by() -> str:
    """Returns where a command came from, as a run's row records it: `cli user@host`."""
    return f"cli {user_at_host()}"


def user_at_host() -> str:
    """Returns who runs the command: the default of --actor."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user may have no name
        return socket.gethostname()
