"""`scheduler daily` and `scheduler backfill`. Options stay text here; `config/options.py` parses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeVar

import typer

from worker_scheduler import wiring
from worker_scheduler.cli import shared
from worker_scheduler.cli.interruption import finished_within, interruption
from worker_scheduler.cli.item_files import with_files_read
from worker_scheduler.cli.output import print_faults, print_json, print_report, progress
from worker_scheduler.cli.shared import Actor, AsJson, DryRun, Reason
from worker_scheduler.config import options, values
from worker_scheduler.config.options import BackfillOptions, TickOptions
from worker_scheduler.config.settings import Settings
from worker_scheduler.config.values import bounds
from worker_scheduler.errors import Interrupted, SchedulerError
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.report import Report
from worker_scheduler.ledger.tables import Kind

_Parsed = TypeVar("_Parsed", bound=TickOptions)

BatchSizeOption = Annotated[
    str | None,
    typer.Option(metavar="N", help=f"Jobs per batch, {bounds(values.BatchSize)}. [ENQUEUE_BATCH_SIZE]"),
]
Sleep = Annotated[
    str | None,
    typer.Option(
        metavar="SECONDS",
        help=f"Pause between two batches, {bounds(values.Seconds)}. [ENQUEUE_SLEEP_SECONDS]",
    ),
]
MaxJobs = Annotated[
    str | None,
    typer.Option(metavar="N", help="Refuse more users than this. [MAX_ENQUEUED_JOBS]"),
]


def daily(
    date: Annotated[
        str | None,
        typer.Option(
            metavar="YYYY-MM-DD",
            help="Day of the run, not in the future. Default: today in SCHEDULER_TIMEZONE.",
        ),
    ] = None,
    enqueue_batch_size: BatchSizeOption = None,
    enqueue_sleep_seconds: Sleep = None,
    max_enqueued_jobs: MaxJobs = None,
    actor: Actor = None,
    reason: Reason = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Give every user one job, in the partition daily:<date>."""
    given = {
        "date": date,
        "enqueue_batch_size": enqueue_batch_size,
        "enqueue_sleep_seconds": enqueue_sleep_seconds,
        "max_enqueued_jobs": max_enqueued_jobs,
        "actor": actor,
        "reason": reason,
        "dry_run": dry_run,
    }
    return _run_tick(Kind.DAILY, options.parse_daily, tick.daily_asked_for, given, as_json)


def backfill(
    backfill_days: Annotated[
        str | None,
        typer.Option(metavar="N", help=f"Days to sync again, {bounds(values.BackfillDays)}. Required."),
    ] = None,
    user_ids: Annotated[
        list[str] | None,
        typer.Option(metavar="ID,ID", help="Only these users. Repeatable; @FILE reads a file."),
    ] = None,
    github_logins: Annotated[
        list[str] | None,
        typer.Option(metavar="LOGIN,LOGIN", help="Only these users. Repeatable; @FILE reads a file."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Skip users who do not exist, instead of refusing.")
    ] = False,
    partition_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Key of the run. Default: backfill:<UTC date>:<N>d[:<campaign>]."),
    ] = None,
    campaign: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Added to the key, so that a day can have another such backfill.",
        ),
    ] = None,
    backfill_max_users: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="More users than this need --confirm. [BACKFILL_MAX_USERS]",
        ),
    ] = None,
    confirm: Annotated[
        bool,
        typer.Option("--confirm", help="Allow more users than --backfill-max-users. [BACKFILL_CONFIRM=1]"),
    ] = False,
    enqueue_batch_size: BatchSizeOption = None,
    enqueue_sleep_seconds: Sleep = None,
    max_enqueued_jobs: MaxJobs = None,
    actor: Actor = None,
    reason: Reason = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Give users a job that syncs past days again: every user, or those that the options name."""
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
        "actor": actor,
        "reason": reason,
        "dry_run": dry_run,
    }
    if backfill_days is not None:
        given["backfill_days"] = backfill_days
    return _run_tick(Kind.BACKFILL, _parse_backfill, tick.backfill, given, as_json)


def _run_tick(
    kind: Kind,
    parse: Callable[[Mapping[str, object]], _Parsed],
    start: Callable[[TickContext, _Parsed], Report],
    given: Mapping[str, object],
    as_json: bool,
) -> int:
    report = Report(mode=kind)
    try:
        settings = shared.load_and_log()
        report = _started(settings, start, parse(given))
    except Interrupted:
        raise
    except SchedulerError as error:
        report.end(error)
    _print_outcome(report, as_json)
    return report.exit_status


def _started(
    settings: Settings, start: Callable[[TickContext, _Parsed], Report], parsed: _Parsed
) -> Report:
    """Runs the tick to its end. Raises Interrupted, and the errors of the tick that no report has."""
    opened: list[Report] = []
    try:
        with interruption() as interrupted, progress() as show_progress:

            def on_progress(progressed: Report) -> None:
                show_progress(progressed)
                interrupted.check()

            with wiring.tick_context(shared.requested_by(), on_progress) as context:
                interrupted.check()
                pausing = replace(context, pause=interrupted.pause, on_opened=opened.append)
                return start(pausing, parsed)
    except KeyboardInterrupt:
        if not opened:
            raise Interrupted("interrupted; no run was stored: run the same command again") from None
        within = finished_within(settings, parsed, opened[0])
        raise Interrupted(f"interrupted; reconcile will finish this run within {within}") from None


def _print_outcome(report: Report, as_json: bool) -> None:
    if as_json:
        print_json(report.as_json())
    if report.ended_by is not None:
        print_faults(report.ended_by)
    elif not as_json:
        print_report(report)


def _parse_backfill(given: Mapping[str, Any]) -> BackfillOptions:
    lists = {
        name: with_files_read("--" + name.replace("_", "-"), given[name])
        for name in ("user_ids", "github_logins")
    }
    return options.parse_backfill({**given, **lists})
