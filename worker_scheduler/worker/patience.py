"""Waits while Postgres is away: what a job's end needs is worth waiting for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from worker_scheduler import logs
from worker_scheduler.errors import StoreUnavailable

log = logs.get_logger(__name__)

_PATIENCE_SECONDS = 600.0
"""How long a worker waits for Postgres to come back. Its message stays unacknowledged until then."""

_Result = TypeVar("_Result")


def retry_while_unavailable(step: Callable[[], _Result]) -> _Result:
    """Repeats a step while Postgres is unavailable; raises StoreUnavailable after ten minutes.

    If only the answer was lost, the step is repeated though it did happen. Each step names the state that
    it starts from, so the second time it changes nothing.
    """
    for attempt in Retrying(
        retry=retry_if_exception_type(StoreUnavailable),
        wait=wait_exponential_jitter(multiplier=0.2, max=15),
        stop=stop_after_delay(_PATIENCE_SECONDS),
        before_sleep=lambda state: log.warning(
            "waiting for Postgres", error=str(state.outcome and state.outcome.exception())
        ),
        reraise=True,
    ):
        with attempt:
            return step()
    raise AssertionError("unreachable: Retrying returns or raises")
