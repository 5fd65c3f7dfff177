"""What a worker of this package does at Celery's signals: it checks its handler, ends revoked jobs, and
watches whether reconcile goes on.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from celery import Task
from celery.signals import (
    celeryd_after_setup,
    task_revoked,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from worker_scheduler import wiring
from worker_scheduler.config.settings import load
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.maintenance.watchdog import Watchdog
from worker_scheduler.probe_ids import is_probe
from worker_scheduler.publisher import SYNC_USER
from worker_scheduler.worker.handler_check import check_handler, warn_if_imported
from worker_scheduler.worker.revoked import Revocations, is_asked_for

_JOB_QUEUES = {"daily", "backfill"}
_QUEUE_OF_RECONCILE = "scheduler"


def connect() -> None:
    """Lets Celery call the functions below. To call it again changes nothing."""
    celeryd_after_setup.connect(_refuse_jobs_without_handler)
    task_revoked.connect(_end_revoked_job)
    worker_shutdown.connect(_record_revoked_jobs)
    worker_ready.connect(_watch_reconcile)
    worker_shutting_down.connect(_start_no_more_passes)
    worker_shutdown.connect(_stop_watching)


def _refuse_jobs_without_handler(instance: Any, **_: Any) -> None:
    """Stops a worker of job queues whose handler cannot do jobs: it would fail every job that it takes."""
    if not _JOB_QUEUES & set(instance.app.amqp.queues.consume_from):
        return
    try:
        handler = load().sync_handler
        check_handler(handler)
        if instance.pool_cls.__module__ == "celery.concurrency.prefork":
            warn_if_imported(handler)
    except ConfigurationError as error:
        print(f"worker_scheduler: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_status) from None


_revocations = Revocations(lambda job_id, killed: wiring.process_worker().skip_revoked(job_id, killed))


def _end_revoked_job(sender: Task, request: Any, terminated: bool, **_: Any) -> None:
    if sender.name == SYNC_USER and is_asked_for(request):
        with suppress(ValueError):
            job_id = UUID(request.id)
            if not is_probe(job_id):
                _revocations.note(job_id, terminated)


def _record_revoked_jobs(**_: Any) -> None:
    _revocations.close()


@dataclass
class _Watch:
    """The watchdog of this process, if it has one, and what ends it."""

    watchdog: Watchdog | None = None
    ends: ExitStack = field(default_factory=ExitStack)


_watch = _Watch()


def _watch_reconcile(sender: Any, **_: Any) -> None:
    """Starts the watchdog in a worker that takes Beat's messages for reconcile, with any pool."""
    if _QUEUE_OF_RECONCILE in sender.app.amqp.queues.consume_from:
        _watch.watchdog = wiring.watchdog(str(sender.hostname))
        _watch.ends.enter_context(_watch.watchdog.watching())


def _start_no_more_passes(**_: Any) -> None:
    if _watch.watchdog is not None:
        _watch.watchdog.start_no_more()


def _stop_watching(**_: Any) -> None:
    _watch.ends.close()
    _watch.watchdog = None
