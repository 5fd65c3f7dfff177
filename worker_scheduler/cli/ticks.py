"""`scheduler daily` and `scheduler backfill`. Options stay text here: `options.py` checks them."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from worker_scheduler import logs, tick
from worker_scheduler import options as tick_options
from worker_scheduler.cli.interruption import interruption
from worker_scheduler.cli.output import print_faults, print_json, print_report, progress
from worker_scheduler.context import TickContext
from worker_scheduler.errors import BadInput, SchedulerError
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.options import BackfillOptions, TickOptions
from worker_scheduler.redaction import show
from worker_scheduler.report import Report
from worker_scheduler.settings import load

_Parsed = TypeVar("_Parsed", bound=TickOptions)

BatchSize = Annotated[
    str | None, typer.Option(metavar="N", help="Jobs a batch, 1-5000. [ENQUEUE_BATCH_SIZE]")
]
Sleep = Annotated[
    str | None, typer.Option(metavar="SECONDS", help="Pause between batches. [ENQUEUE_SLEEP_SECONDS]")
]
MaxJobs = Annotated[
    str | None, typer.Option(metavar="N", help="Refuse more users than this. [MAX_ENQUEUED_JOBS]")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def daily(
    date: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="Default: today, UTC.")] = None,
    enqueue_batch_size: BatchSize = None,
    enqueue_sleep_seconds: Sleep = None,
    max_enqueued_jobs: MaxJobs = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """One job for every user, in the partition daily:<date>."""
    given = {
        "date": date,
        "enqueue_batch_size": enqueue_batch_size,
        "enqueue_sleep_seconds": enqueue_sleep_seconds,
        "max_enqueued_jobs": max_enqueued_jobs,
        "dry_run": dry_run,
    }
    return _run(Kind.DAILY, tick_options.parse_daily, tick.daily, given, as_json)


def backfill(
    backfill_days: Annotated[
        str | None, typer.Option(metavar="N", help="Days to sync again, 1-3650. Required.")
    ] = None,
    user_ids: Annotated[
        list[str] | None,
        typer.Option(metavar="ID,ID", help="Only these users; may be repeated; @FILE reads a file."),
    ] = None,
    github_logins: Annotated[
        list[str] | None,
        typer.Option(metavar="LOGIN,LOGIN", help="Only these users; may be repeated; @FILE reads a file."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out users who do not exist.")
    ] = False,
    partition_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Default: backfill:<UTC date>:<N>d[:<campaign>].")
    ] = None,
    campaign: Annotated[
        str | None, typer.Option(metavar="NAME", help="Tells two backfills of a day apart.")
    ] = None,
    backfill_max_users: Annotated[
        str | None, typer.Option(metavar="N", help="More users must be confirmed. [BACKFILL_MAX_USERS]")
    ] = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Yes, that many users. [BACKFILL_CONFIRM=1]")
    ] = False,
    enqueue_batch_size: BatchSize = None,
    enqueue_sleep_seconds: Sleep = None,
    max_enqueued_jobs: MaxJobs = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """One job for every chosen user; without --user-ids and --github-logins, for every user."""
    given: dict[str, Any] = {
        "user_ids": user_ids,
        "github_logins": github_logins,
        "allow_missing": allow_missing,
        "partition_key": partition_key,
        "campaign": campaign,
        "backfill_max_users": backfill_max_users,
        "confirm": confirm,
        "enqueue_batch_size": enqueue_batch_size,
        "enqueue_sleep_seconds": enqueue_sleep_seconds,
        "max_enqueued_jobs": max_enqueued_jobs,
        "dry_run": dry_run,
    }
    if backfill_days is not None:
        given["backfill_days"] = backfill_days
    return _run(Kind.BACKFILL, _parse_backfill, tick.backfill, given, as_json)


def _run(
    kind: Kind,
    parse: Callable[[Mapping[str, object]], _Parsed],
    ring: Callable[[TickContext, _Parsed], Report],
    given: Mapping[str, object],
    as_json: bool,
) -> int:
    report = Report(mode=kind)
    try:
        settings = load()
        logs.configure(settings.log_level)
        logs.to_stderr()
        parsed = parse(given)
        # Imported late: it makes the Celery app, which a wrong option need not wait for.
        from worker_scheduler import wiring  # noqa: PLC0415

        with interruption() as interrupted, progress() as show_progress:

            def on_progress(progressed: Report) -> None:
                show_progress(progressed)
                interrupted.check()

            with wiring.tick_context(who(), on_progress) as context:
                report = ring(replace(context, pause=interrupted.pause), parsed)
    except SchedulerError as error:
        report.end(error)
    _print(report, as_json)
    return report.exit_status


def _print(report: Report, as_json: bool) -> None:
    if as_json:
        print_json(report.as_json())
    if report.ended_by is not None:
        print_faults(report.ended_by)
    elif not as_json:
        print_report(report)


def _parse_backfill(given: Mapping[str, Any]) -> BackfillOptions:
    lists = {
        name: _from_files("--" + name.replace("_", "-"), given[name])
        for name in ("user_ids", "github_logins")
    }
    return tick_options.parse_backfill({**given, **lists})


def _from_files(option: str, parts: list[str] | None) -> list[str] | None:
    """Replaces each `@FILE` by that file's items, by lines or commas.

    Linux takes at most 128 KiB in one argument (MAX_ARG_STRLEN), that is some 3,500 ids.
    """
    if parts is None:
        return None
    items: list[str] = []
    for part in parts:
        if not part.startswith("@"):
            items.append(part)
            continue
        try:
            lines = Path(part[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError, ValueError) as error:
            raise BadInput(f"{option}={show(part)}: the file cannot be read: {error}") from None
        items.extend(line.strip().rstrip(",") for line in lines if line.strip())
    return items


def who() -> str:
    """Who asks, for the run's row."""
    try:
        return f"cli {getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user may have no name
        return f"cli {socket.gethostname()}"
