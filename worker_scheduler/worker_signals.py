"""What a worker of this package does at Celery's signals about its handler and about revoked jobs."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any
from uuid import UUID

from celery import Task
from celery.signals import celeryd_after_setup, task_revoked, worker_shutdown

from worker_scheduler import wiring
from worker_scheduler.config.settings import load
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.probe_ids import is_probe
from worker_scheduler.publisher import SYNC_USER
from worker_scheduler.worker.handler_check import check_handler, warn_if_imported
from worker_scheduler.worker.revoked import Revocations, is_asked_for

_JOB_QUEUES = {"daily", "backfill"}


def connect() -> None:
    """Lets Celery call the functions below. To call it again changes nothing."""
    celeryd_after_setup.connect(_refuse_jobs_without_handler)
    task_revoked.connect(_end_revoked_job)
    worker_shutdown.connect(_record_revoked_jobs)


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
