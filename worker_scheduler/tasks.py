"""The Celery tasks. They are thin: the rules are in `fanout`, `worker` and `maintenance`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime
from functools import cache, partial
from typing import Any, TypeVar
from uuid import UUID

from celery import Task
from celery.exceptions import Reject
from celery.signals import (
    after_setup_logger,
    after_setup_task_logger,
    beat_init,
    celeryd_init,
)

from worker_scheduler import logs, task_senders, watchdog_signals, wiring, worker_signals
from worker_scheduler.celery_app import BACKFILL, DAILY_TICK, RECONCILE, app
from worker_scheduler.config import options
from worker_scheduler.config.options import TickOptions
from worker_scheduler.config.settings import load
from worker_scheduler.errors import BadInput, SchedulerError, StoreUnavailable
from worker_scheduler.fanout import asking, due_days, extra_dispatcher, task_partitions, tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.report import Report, log_progress
from worker_scheduler.ledger import requests
from worker_scheduler.ledger.tables import JobStatus, Kind
from worker_scheduler.maintenance import reconciler
from worker_scheduler.outcome import Outcome
from worker_scheduler.probe_ids import is_probe
from worker_scheduler.publisher import SYNC_USER
from worker_scheduler.publisher.dispatch_message import DISPATCH
from worker_scheduler.redaction import show
from worker_scheduler.repeated_task import while_unavailable
from worker_scheduler.worker.endings import Ending
from worker_scheduler.worker.handler import Handler, imported_at_first_job

log = logs.get_logger(__name__)

watchdog_signals.connect()
worker_signals.connect()
app.steps["worker"].add(worker_signals.StopNotice)


class JobFailed(Exception):
    """Raised so that Celery reports a FAILED job as failed, not succeeded.

    The job's row has the same text.
    """


_Parsed = TypeVar("_Parsed", bound=TickOptions)

_LOG_LEVELS = {Outcome.REFUSED: "error", Outcome.FAILED: "error", Outcome.ALREADY_RUNNING: "warning"}
_TICK_OPTIONS: dict[str, Any] = {
    **while_unavailable(),
    "bind": True,
    "shared": False,
    # Logged in one line, not as a traceback: an operator can fix these.
    "throws": (SchedulerError,),
}


@app.task(name=DAILY_TICK, **_TICK_OPTIONS)
def daily_tick(self: Task, date: str | None = None, *others: Any, **given: Any) -> dict[str, Any]:
    """Does what `scheduler daily` does if it has a date; otherwise starts the due days.

    Raises the errors of the command.
    """
    parsed = _parse_or_log(options.parse_daily, others, {"date": date, **given})
    with _requesting(self) as context:
        if parsed.date is not None:
            return _result(tick.daily_asked_for(context, parsed))
        derive = partial(due_days.triggered_key, context.settings)
        with _kept_partition(self, context, Kind.DAILY, parsed, derive) as key:
            reports = due_days.start_triggered(context, parsed, key)
            for report in reports:
                _log_end(report)
            for report in reports:
                _raise_failure(report)
        return reports[-1].as_json() if reports else {"outcome": Outcome.NOTHING_TO_DO.value}


@app.task(name=BACKFILL, **_TICK_OPTIONS)
def backfill(self: Task, *others: Any, **given: Any) -> dict[str, Any]:
    """Does what `scheduler backfill` does. Raises the errors of the command."""
    parsed = _parse_or_log(options.parse_backfill, others, given)
    with _requesting(self) as context:
        derive = partial(tick.backfill_key, parsed)
        with _kept_partition(self, context, Kind.BACKFILL, parsed, derive) as key:
            return _result(tick.backfill(context, parsed, key))


@app.task(name=DISPATCH, **_TICK_OPTIONS)
def dispatch(self: Task, partition_key: str) -> dict[str, Any]:
    """Dispatches a run until no batch of it is left or its queue is full. See `extra_dispatcher.py`."""
    with wiring.task_context(task_senders.source_of(self), log_progress) as context:
        key = options.require_partition_key(partition_key)
        return _result(extra_dispatcher.dispatch(context, key, self.request.id))


@app.task(name=RECONCILE, bind=True, shared=False, throws=(SchedulerError,))
def reconcile(self: Task) -> dict[str, Any]:
    """Does what `scheduler reconcile` does, unless a pass was a moment ago. What an outage stops is left to
    the next pass.
    """
    with wiring.task_context(task_senders.source_of(self), log_progress) as context:
        result = reconciler.reconcile_if_due(context)
    return {"outcome": Outcome.NOTHING_TO_DO.value} if result is None else result.as_json()


@app.task(
    name=SYNC_USER,
    bind=True,
    shared=False,
    throws=(SchedulerError, JobFailed),
    Request="worker_scheduler.worker.job_requests:Request",
)
def sync_user(
    self: Task,
    user_id: str,
    partition_key: str,
    triggered_by: str,
    backfill_days: int | None = None,
) -> str | None:
    """Runs the job whose id is the task's id. The job's row, not the message, says what to do.

    Returns the job's state, for Celery's log line; None if this message ended no job. Raises JobFailed.
    """
    try:
        job_id = UUID(self.request.id)
    except ValueError:
        log.warning("message ignored, its task id is not a job id", task_id=self.request.id)
        return None
    try:
        worker = wiring.process_worker()
        if is_probe(job_id):
            worker.answer_probe(job_id)  # also where the handler cannot be loaded
            return None
        return _state_or_raise(worker.run(job_id, _handler()))
    except StoreUnavailable as outage:
        # If it acknowledged the message, the job would wait until the queue is empty and reconcile sees it.
        raise Reject(str(outage), requeue=True) from outage
    except SchedulerError as error:  # Celery logs it only at INFO; reconcile sends the job again
        # Names from the message, since the ledger could not be asked.
        named = {"partition_key": str(partition_key), "user_id": str(user_id)}
        log.error("job not done", job_id=str(job_id), **named, reason=str(error))
        raise


def _state_or_raise(ending: Ending | None) -> str | None:
    if ending is not None and ending.status is JobStatus.FAILED:
        raise JobFailed(ending.text)
    return None if ending is None else ending.status.value


@cache
def _handler() -> Handler:
    """Returns the handler. The settings are read once per process, since reading takes as long as an empty
    job.
    """
    return imported_at_first_job(load().sync_handler)


def _requesting(task: Task) -> AbstractContextManager[TickContext]:
    """The context of a task that asks for something, so that the history of requests has it."""
    return wiring.task_context(
        task_senders.source_of(task),
        log_progress,
        actor=task_senders.actor_of(task),
        request_id=requests.id_of_task(str(task.request.id)),
    )


def _parse_or_log(
    parse: Callable[[Mapping[str, object]], _Parsed], others: Sequence[Any], given: Mapping[str, object]
) -> _Parsed:
    """The options of a tick. others: positional arguments, which are refused. Raises BadInput."""
    try:
        if others:
            raise BadInput(f"argument {show(others[0])} has no name: give options as keyword arguments")
        return parse(given)
    except BadInput as error:
        log.error("tick refused", reason=str(error))  # Celery logs it only at INFO
        raise


@contextmanager
def _kept_partition(
    task: Task,
    context: TickContext,
    kind: Kind,
    parsed: TickOptions,
    derive: Callable[[datetime], str],
) -> Iterator[str]:
    """Yields the partition of the task's first execution; see `task_partitions.py`."""
    # A dry run writes nothing, and a key that is given does not follow from the date.
    named = getattr(parsed, "partition_key", None) is not None
    task_id = None if parsed.dry_run or named else task.request.id
    with ExitStack() as stack:
        try:
            key = stack.enter_context(task_partitions.kept(context, task_id, derive))
        except SchedulerError as error:
            report = Report(mode=kind)
            report.end(error)
            _log_end(report)
            if not parsed.dry_run:
                asked = asking.asked(context, parsed, kind, partition_key=None)
                requests.record_refusal(context.database, context.clock, asked, error)
            raise
        yield key


def _result(report: Report) -> dict[str, Any]:
    _log_end(report)
    _raise_failure(report)
    return report.as_json()


def _raise_failure(report: Report) -> None:
    if report.failure is not None:
        raise report.failure


def _log_end(report: Report) -> None:
    getattr(log, _LOG_LEVELS.get(report.outcome, "info"))(
        f"tick {report.outcome}",
        partition_key=report.partition_key,
        users=report.users_total_selected,
        inserted=report.jobs_inserted,
        enqueued=report.jobs_enqueued,
        batches=report.batches,
        seconds=round(report.duration_seconds, 3),
        **({} if report.ended_by is None else {"reason": str(report.ended_by)}),
        **({"unused_options": ",".join(report.unused_options)} if report.unused_options else {}),
    )


@celeryd_init.connect
@beat_init.connect
def _configure_logging(**_: Any) -> None:
    logs.configure(load().log_level)


@after_setup_logger.connect
@after_setup_task_logger.connect
def _keep_to_one_line(logger: logging.Logger, **_: Any) -> None:
    """Celery's lines, and those of its libraries, contain what strangers put into messages."""
    logs.keep_to_one_line(logger)


@celeryd_init.connect
def _advise_against_embedded_beat(options: Mapping[str, Any], **_: Any) -> None:
    if options.get("beat"):
        log.warning(
            "this worker runs Beat (-B), which ends with it: run celery beat as a process of its own"
        )
