"""The Celery tasks that steer runs: what `scheduler pause`, `resume`, `cancel` and `retry` do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from celery import Task

from worker_scheduler import logs, task_senders, wiring
from worker_scheduler.celery_app import app
from worker_scheduler.config import options, verb_options
from worker_scheduler.config.settings import load
from worker_scheduler.config.verb_options import VerbOptions
from worker_scheduler.control import cancel as cancelling
from worker_scheduler.control import pause as pausing
from worker_scheduler.control import retry as retrying
from worker_scheduler.control.change import Change
from worker_scheduler.control.request import Request
from worker_scheduler.control.retry import Selection
from worker_scheduler.errors import BadInput, SchedulerError
from worker_scheduler.ledger.requests import Asked, id_of_task
from worker_scheduler.ledger.retries import Wanted
from worker_scheduler.redaction import show
from worker_scheduler.repeated_task import while_unavailable

log = logs.get_logger(__name__)

_Parsed = TypeVar("_Parsed", bound=VerbOptions)

_NOT_OPTIONS = {"actor", "reason"}
_OPTIONS: dict[str, Any] = {
    **while_unavailable(),
    "bind": True,
    "shared": False,
    "throws": (SchedulerError,),
}


@app.task(name="scheduler.pause", **_OPTIONS)
def pause(self: Task, key: str, *others: Any, **given: Any) -> dict[str, Any]:
    """Does what `scheduler pause` does. Raises the errors of the command."""
    parsed = _parsed(verb_options.parse_pause, others, given)
    with _request(self, "pause", key, parsed) as request:
        return _logged(pausing.pause(request, parsed.until))


@app.task(name="scheduler.resume", **_OPTIONS)
def resume(self: Task, key: str, *others: Any, **given: Any) -> dict[str, Any]:
    """Does what `scheduler resume` does. Raises the errors of the command."""
    parsed = _parsed(verb_options.parse_verb, others, given)
    with _request(self, "resume", key, parsed) as request:
        return _logged(pausing.resume(request))


@app.task(name="scheduler.cancel", **_OPTIONS)
def cancel(self: Task, key: str, *others: Any, **given: Any) -> dict[str, Any]:
    """Does what `scheduler cancel` does. Raises the errors of the command."""
    parsed = _parsed(verb_options.parse_verb, others, given)
    with _request(self, "cancel", key, parsed) as request:
        return _logged(cancelling.cancel(request))


@app.task(name="scheduler.retry", **_OPTIONS)
def retry(self: Task, key: str, *others: Any, **given: Any) -> dict[str, Any]:
    """Does what `scheduler retry` does. Raises the errors of the command."""
    parsed = _parsed(verb_options.parse_retry, others, given)
    settings = load()
    with _request(self, "retry", key, parsed) as request:
        change = retrying.retry(
            request,
            Selection(Wanted(parsed.only), parsed.error_like, parsed.user_ids, parsed.limit),
            max_attempts=settings.sync_max_attempts,
            most_unconfirmed=None if parsed.confirm else settings.backfill_max_users,
        )
        return _logged(change)


def _parsed(
    parse: Callable[[Mapping[str, object]], _Parsed], others: Sequence[Any], given: Mapping[str, object]
) -> _Parsed:
    try:
        if others:
            raise BadInput(f"argument {show(others[0])} has no name: give options as keyword arguments")
        return parse(given)
    except BadInput as error:
        log.error("request refused", reason=str(error))  # Celery logs it only at INFO
        raise


@contextmanager
def _request(task: Task, verb: str, key: str, parsed: VerbOptions) -> Iterator[Request]:
    settings = load()
    try:
        asked = Asked(
            verb=verb,
            partition_key=options.require_partition_key(key, "key"),
            actor=parsed.actor or task_senders.actor_of(task),
            source=task_senders.source_of(task),
            reason=parsed.reason,
            options=parsed.model_dump(exclude=_NOT_OPTIONS, exclude_defaults=True),
            request_id=id_of_task(str(task.request.id)),
        )
        database = wiring.open_database(settings, size=1)
        try:
            yield Request(database, wiring.ledger_clock(database, settings.lease), asked)
        finally:
            database.dispose()
    except SchedulerError as error:
        log.error("request refused", verb=verb, reason=str(error))
        raise


def _logged(change: Change) -> dict[str, Any]:
    log.info("request done", **{name: str(value) for name, value in change.as_json().items()})
    return change.as_json()
