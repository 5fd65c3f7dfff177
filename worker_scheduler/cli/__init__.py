"""The command `scheduler`: parses nothing itself, prints what happened, and ends with a status."""

from __future__ import annotations

import io
import signal
import sys

import typer

from worker_scheduler.cli import check, migrate, prune, reconcile, status, ticks
from worker_scheduler.cli.output import print_error, print_faults, print_json
from worker_scheduler.errors import BadInput, SchedulerError
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.report import Report

_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

application = typer.Typer(
    name="scheduler",
    help="Gives every user of an application exactly one sync_user job a day, and on demand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
application.command("daily")(ticks.daily)
application.command("backfill")(ticks.backfill)
application.command("reconcile")(reconcile.reconcile)
application.command("status")(status.status)
application.command("migrate")(migrate.migrate)
application.command("prune")(prune.prune)
application.command("check")(check.check)


def main() -> None:
    """Runs the command of sys.argv and ends the process with its exit status."""
    # As Ctrl-C: what is claimed is given back, instead of waiting for its lease to run out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know ASCII alone
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit status of a command; whatever an operator can cause is one line on stderr."""
    try:
        status: int = application(arguments, prog_name="scheduler", standalone_mode=False) or 0
    except typer.TyperException as error:
        if error.format_message():  # a bare `scheduler` has just been shown the help
            _refuse(arguments, BadInput(_with_hint(error)))
        return BadInput.exit_status
    except SchedulerError as error:
        print_faults(error)
        return error.exit_status
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    if status == _INTERRUPTED:  # Typer itself turns most of the interrupts into this status
        print_error("interrupted: the same command again goes on where this one stopped")
    return status


def _refuse(arguments: list[str], error: BadInput) -> None:
    """One line, and the report that a tick would have printed, had its options been parsed."""
    if arguments[0] in set(Kind) and "--json" in arguments:
        report = Report(mode=Kind(arguments[0]))
        report.end(error)
        print_json(report.as_json())
    print_error(str(error))


def _with_hint(error: typer.TyperException) -> str:
    context: typer.Context | None = getattr(error, "ctx", None)
    command = "scheduler" if context is None else context.command_path
    return f"{error.format_message()} (see `{command} --help`)"
