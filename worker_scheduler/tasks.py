"""The Celery tasks, thin: they hand over to `tick` and `worker`, and hold no rule of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from typing import Any, TypeVar
from uuid import UUID

import structlog
from celery import Task
from celery.exceptions import Reject
from celery.signals import beat_init, celeryd_after_setup, celeryd_init, worker_ready, worker_shutdown
from celery.worker import state as worker_state

from worker_scheduler import assist, catch_up, logs, options, reconciler, tick, wiring
from worker_scheduler.celery_app import BACKFILL, DAILY_TICK, DISPATCH, RECONCILE, app
from worker_scheduler.errors import BadInput, ConfigurationError, SchedulerError, StoreUnavailable
from worker_scheduler.handler import Handler, load_handler
from worker_scheduler.heartbeat import beating
from worker_scheduler.options import TickOptions
from worker_scheduler.publisher import SYNC_USER
from worker_scheduler.redaction import show
from worker_scheduler.report import Report
from worker_scheduler.settings import load
from worker_scheduler.worker import process_worker

log = structlog.get_logger(__name__)

_Parsed = TypeVar("_Parsed", bound=TickOptions)

_JOB_QUEUES = {"daily", "backfill"}
_TICK_OPTIONS: dict[str, Any] = {
    "bind": True,
    "shared": False,
    # Logged in one line, not as a traceback: an operator can mend these.
    "throws": (SchedulerError,),
    # A store that is away for a while: the same tick again, which goes on where it stopped.
    "autoretry_for": (StoreUnavailable,),
    "retry_backoff": 10,
    "retry_backoff_max": 300,
    "max_retries": 12,
}


@app.task(name=DAILY_TICK, **_TICK_OPTIONS)
def daily_tick(self: Task, date: str | None = None, *others: Any, **given: Any) -> dict[str, Any]:
    """With a date `scheduler daily`; without one, what is due. Raises what the command would end with."""
    parsed = _parse(options.parse_daily, others, {"date": date, **given})
    with wiring.task_context(_requested_by(self), _log_progress) as context:
        if parsed.date is not None:
            return _result(tick.daily(context, parsed))
        reports = catch_up.ring(context, parsed)
        return [_result(report) for report in reports][-1] if reports else {"outcome": "nothing_to_do"}


@app.task(name=BACKFILL, **_TICK_OPTIONS)
def backfill(self: Task, *others: Any, **given: Any) -> dict[str, Any]:
    """`scheduler backfill`, as a task. Raises what the command would end with."""
    parsed = _parse(options.parse_backfill, others, given)
    with wiring.task_context(_requested_by(self), _log_progress) as context:
        return _result(tick.backfill(context, parsed))


@app.task(name=DISPATCH, **_TICK_OPTIONS)
def dispatch(self: Task, partition_key: str) -> dict[str, Any]:
    """Dispatches a run, until no batch of it is left or its queue is full. See `assist.py`."""
    with wiring.task_context(_requested_by(self), _log_progress) as context:
        key = options.require_partition_key(partition_key)
        return _result(assist.dispatch(context, key, self.request.id))


@app.task(name=RECONCILE, bind=True, shared=False, throws=(SchedulerError,))
def reconcile(self: Task) -> dict[str, Any]:
    """`scheduler reconcile`, as a task. What an outage stopped, the next ring does."""
    with wiring.task_context(_requested_by(self), _log_progress) as context:
        return reconciler.reconcile(context).as_json()


@app.task(name=SYNC_USER, bind=True, shared=False, throws=(SchedulerError,))
def sync_user(
    self: Task,
    user_id: str,
    partition_key: str,
    triggered_by: str,
    backfill_days: int | None = None,
) -> None:
    """Does one job: the one whose id is the task's id. Its row, not the message, says what it is."""
    try:
        job_id = UUID(self.request.id)
    except ValueError:
        log.warning("message ignored, its task id is no job id", task_id=self.request.id)
        return
    try:
        process_worker().run(job_id, _handler())
    except StoreUnavailable as outage:
        # Acknowledged, it would be gone, and its job would wait until the queue has run dry.
        raise Reject(str(outage), requeue=True) from outage
    except SchedulerError as error:  # Celery says it at INFO; reconcile sends the job again
        log.error("job not done", job_id=str(job_id), reason=str(error))
        raise


@cache
def _handler() -> Handler:
    """Once a process: reading the settings takes as long as a job that has nothing to do."""
    return load_handler(load().sync_handler)


def _parse(
    parse: Callable[[Mapping[str, object]], _Parsed], others: Sequence[Any], given: Mapping[str, object]
) -> _Parsed:
    """The options of a tick. others: what was given by its place, and has no name. Raises BadInput."""
    try:
        if others:
            raise BadInput(f"argument {show(others[0])} has no name: give options as keyword arguments")
        return parse(given)
    except BadInput as error:
        log.error("tick refused", reason=str(error))  # Celery says it at INFO
        raise


def _result(report: Report) -> dict[str, Any]:
    _log_end(report)
    if report.failure is not None:
        raise report.failure
    return report.as_json()


def _log_end(report: Report) -> None:
    level = {"refused": "error", "failed": "error", "already_running": "warning"}
    getattr(log, level.get(report.outcome, "info"))(
        f"tick {report.outcome}",
        partition_key=report.partition_key,
        users=report.users_total_selected,
        inserted=report.jobs_inserted,
        enqueued=report.jobs_enqueued,
        batches=report.batches,
        seconds=round(report.duration_seconds, 3),
        **({} if report.ended_by is None else {"reason": str(report.ended_by)}),
    )


def _requested_by(task: Task) -> str:
    return f"task {task.request.id}"


def _log_progress(report: Report) -> None:
    log.info(
        "batch enqueued",
        partition_key=report.partition_key,
        batches=report.batches,
        enqueued=report.jobs_enqueued,
        selected=report.users_total_selected,
    )


@celeryd_init.connect
@beat_init.connect
def _configure_logging(**_: Any) -> None:
    logs.configure(load().log_level)


@celeryd_after_setup.connect
def _refuse_jobs_without_handler(instance: Any, **_: Any) -> None:
    """A worker of jobs that could do none must not start: it would fail every job it takes."""
    if not _JOB_QUEUES & set(instance.app.amqp.queues.consume_from):
        return
    try:
        load_handler(load().sync_handler)
    except ConfigurationError as error:
        print(f"worker_scheduler: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_status) from None


_keeping_leases = ExitStack()


@worker_ready.connect
def _keep_leases(**_: Any) -> None:
    keeper = wiring.lease_keeper(_active_jobs)
    _keeping_leases.callback(keeper.database.dispose)
    _keeping_leases.enter_context(beating(keeper.beat, keeper.lease.heartbeat_seconds, "active jobs"))


@worker_shutdown.connect
def _stop_keeping_leases(**_: Any) -> None:
    _keeping_leases.close()


def _active_jobs() -> Iterator[UUID]:
    for request in tuple(worker_state.active_requests):
        if request.name == SYNC_USER:
            with suppress(ValueError):
                yield UUID(request.id)
