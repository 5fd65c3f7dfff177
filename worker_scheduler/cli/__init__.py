"""The command `scheduler`: its subcommands, and how errors become one line and an exit status."""

from __future__ import annotations

import io
import signal
import sys

import typer

from worker_scheduler.cli import check, migrate, prune, reconcile, status, steering, ticks
from worker_scheduler.cli.output import print_error, print_faults, print_json
from worker_scheduler.errors import BadInput, Interrupted, SchedulerError
from worker_scheduler.fanout.report import Report
from worker_scheduler.ledger.tables import Kind

application = typer.Typer(
    name="scheduler",
    help="Gives every user of an application exactly one sync_user job per day, and more on demand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
application.command("daily")(ticks.daily)
application.command("backfill")(ticks.backfill)
application.command("pause")(steering.pause)
application.command("resume")(steering.resume)
application.command("cancel")(steering.cancel)
application.command("retry")(steering.retry)
application.command("reconcile")(reconcile.reconcile)
application.command("status")(status.status)
application.command("migrate")(migrate.migrate)
application.command("prune")(prune.prune)
application.command("check")(check.check)


def main() -> None:
    """Runs the command of sys.argv and ends the process with its exit status."""
    # SIGTERM works like Ctrl-C: a tick gives back its claims, and the next one need not wait for their
    # leases to expire.
    for sent in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(sent) is not signal.SIG_IGN:
            signal.signal(sent, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know only ASCII
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs a command and returns its exit status; an error of an operator becomes one line on stderr."""
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
        status = Interrupted.exit_status
    if status == Interrupted.exit_status:  # Typer turns most interrupts into this status
        print_error("interrupted: run the same command again to continue where this one stopped")
    return status


def _refuse(arguments: list[str], error: BadInput) -> None:
    """Prints the error, and with --json the report of a tick that was refused before it began."""
    if arguments[0] in set(Kind) and "--json" in arguments:
        report = Report(mode=Kind(arguments[0]))
        report.end(error)
        print_json(report.as_json())
    print_error(str(error))


def _with_hint(error: typer.TyperException) -> str:
    context: typer.Context | None = getattr(error, "ctx", None)
    command = "scheduler" if context is None else context.command_path
    guesses = getattr(error, "possibilities", None)  # of an unknown option
    text = f"{error.message}. Did you mean {' or '.join(guesses)}?" if guesses else error.format_message()
    return f"{text} (see `{command} --help`)"
