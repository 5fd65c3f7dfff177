"""How commands print: results to stdout, errors to stderr; a progress bar only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from worker_scheduler import logs
from worker_scheduler.errors import ConfigurationError, SchedulerError
from worker_scheduler.fanout.report import Report
from worker_scheduler.outcome import Outcome
from worker_scheduler.redaction import escape_control_characters

log = logs.get_logger(__name__)


def print_error(line: str) -> None:
    """Prints one line on stderr."""
    print(f"scheduler: {escape_control_characters(line)}", file=sys.stderr)


def print_faults(error: SchedulerError) -> None:
    """Prints one line per fault on stderr."""
    for fault in error.faults if isinstance(error, ConfigurationError) else (str(error),):
        print_error(fault)


def print_line(line: str) -> None:
    """Prints one line on stdout."""
    print(escape_control_characters(line))


def print_json(value: dict[str, Any] | list[Any]) -> None:
    """Prints one JSON value on stdout, in one line."""
    print(json.dumps(value))


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: `1 job`, `2 jobs`."""
    return f"{number} {noun if number == 1 else noun + 's'}"


def print_report(report: Report) -> None:
    """Prints the report of a finished tick for a person."""
    print_line(f"{report.partition_key}: {_sentence(report)}")
    missing = [*map(str, report.missing_user_ids), *report.missing_github_logins]
    if missing:
        print_line(f"  unknown users, skipped: {len(missing)} ({', '.join(missing[:20])})")


def _sentence(report: Report) -> str:
    seconds = f"{report.duration_seconds:.1f} s"
    if report.outcome is Outcome.DRY_RUN:
        return (
            f"dry run, nothing was written: {counted(report.users_total_selected, 'user')} selected,"
            f" {report.would_insert} of them without a job yet;"
            f" {counted(report.would_enqueue or 0, 'job')} would be enqueued"
        )
    if report.outcome is Outcome.JOINED:
        return _joined(report)
    if report.outcome is Outcome.NOTHING_TO_DO:
        if report.users_total_selected == 1:
            return f"nothing to do: the one user has their job ({seconds})"
        return f"nothing to do: all {report.users_total_selected} users have their job ({seconds})"
    return (
        f"{counted(report.jobs_inserted, 'job')} written and {report.jobs_enqueued} enqueued in"
        f" {report.batches} {'batch' if report.batches == 1 else 'batches'},"
        f" for {counted(report.users_total_selected, 'user')} ({seconds})"
    )


def _joined(report: Report) -> str:
    sentence = (
        f"{counted(report.users_total_selected, 'user')} added to the tick that is running since"
        f" {report.running_since:%Y-%m-%d %H:%M:%S} UTC: it gives each a job who has none;"
        " this command has written and sent none itself"
    )
    if report.unused_options:
        names = ", ".join("--" + name.replace("_", "-") for name in report.unused_options)
        sentence += f"; that tick has options of its own, not used: {names}"
    return sentence


@contextmanager
def progress() -> Iterator[Callable[[Report], None]]:
    """Yields a function that shows progress: as a bar on a terminal, otherwise as a log line per batch."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _log_batch
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("enqueued", total=None)

        def show(report: Report) -> None:
            bar.update(task, completed=report.jobs_enqueued, total=report.users_total_selected)

        yield show


@contextmanager
def swept() -> Iterator[Callable[[int], None]]:
    """Yields a function that shows how many jobs have been gone over, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with Progress(
        TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda jobs: bar.update(task, description=counted(jobs, "job"))


def _log_batch(report: Report) -> None:
    log.info(
        "batch enqueued",
        partition_key=report.partition_key,
        batches=report.batches,
        enqueued=report.jobs_enqueued,
        selected=report.users_total_selected,
    )
