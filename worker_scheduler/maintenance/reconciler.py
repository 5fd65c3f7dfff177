"""Reconcile: puts right what a crash, an outage or a lost message left behind, rule by rule."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from worker_scheduler import logs
from worker_scheduler.clock import Clock
from worker_scheduler.errors import SchedulerError
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.dispatcher_requests import ReconcileRequests
from worker_scheduler.ledger import passes, schema
from worker_scheduler.ledger.database import Database
from worker_scheduler.maintenance.rules import epochs
from worker_scheduler.maintenance.rules.control import cancelled_runs, open_retries, paused_runs
from worker_scheduler.maintenance.rules.dead_workers import Judge, dead_workers
from worker_scheduler.maintenance.rules.due_jobs import due_jobs
from worker_scheduler.maintenance.rules.epochs import lost_broker_data
from worker_scheduler.maintenance.rules.handovers import handovers
from worker_scheduler.maintenance.rules.locks import expired_locks
from worker_scheduler.maintenance.rules.lost_messages import lost_messages
from worker_scheduler.maintenance.rules.months import history_months, next_month
from worker_scheduler.maintenance.rules.runs import abandoned_runs, finished_runs, missed_slots
from worker_scheduler.maintenance.rules.samples import take_samples

__all__ = [
    "RULES",
    "Reconciliation",
    "abandoned_runs",
    "begin_pass",
    "cancelled_runs",
    "dead_workers",
    "due_jobs",
    "expired_locks",
    "finished_runs",
    "handovers",
    "history_months",
    "lost_broker_data",
    "lost_messages",
    "missed_slots",
    "next_month",
    "open_retries",
    "paused_runs",
    "reconcile",
    "reconcile_begun",
    "reconcile_if_due",
    "take_samples",
]

log = logs.get_logger(__name__)

# The quick ones first: abandoned_runs and missed_slots may publish for minutes. dead_workers waits while
# the others run.
RULES: tuple[Callable[[TickContext], int], ...] = (
    expired_locks,
    next_month,
    history_months,
    take_samples,
    dead_workers,
    # Before the rules that would send something of a run that somebody has stopped.
    cancelled_runs,
    open_retries,
    paused_runs,
    lost_broker_data,
    lost_messages,
    due_jobs,
    abandoned_runs,
    # When abandoned_runs has sent what there is space for.
    handovers,
    missed_slots,
    finished_runs,
)

_AFTER_DEAD_WORKERS = (due_jobs, finished_runs)
"""What a job that was taken from a dead worker needs: a new message, or the end of its run."""

# They take a message that is not in this broker for lost, which is wrong if another one is in use, too.
_RULES_OF_ONE_BROKER = {lost_messages}

_PASS = "reconcile"
_SHARE_AFTER_BEGIN = 0.5
"""Of an interval, from one pass to the next. Beat's messages come one interval apart, but some wait in the
queue; with more, a message after one that waited would be dropped, and a fault be found later.
"""
_LONGEST_REST = 0.5
"""Of an interval: a pass is followed by a rest as long as the pass, but no longer than this. In a rest,
messages that waited are dropped, and a worker of all queues, which serves `scheduler` first, runs jobs.
"""


@dataclass
class Reconciliation:
    """What one pass put right, by rule; `errors`: why rules stopped, such as an outage of a store."""

    put_right: dict[str, int] = field(default_factory=dict)
    errors: list[SchedulerError] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """The highest exit status of the errors; 0 if there is none."""
        return max((error.exit_status for error in self.errors), default=0)

    def as_json(self) -> dict[str, Any]:
        """Every rule with its number, and the errors."""
        return {**self.put_right, "errors": [str(error) for error in self.errors]}


def reconcile_if_due(context: TickContext) -> Reconciliation | None:
    """Runs a pass that a message asks for; None if the last one that was not a command's was a moment ago.

    While no worker runs, messages pile up, and one pass does the work of them all. Raises as `reconcile`
    does.
    """
    interval = timedelta(seconds=context.settings.reconcile_interval_seconds)
    begun_at = begin_pass(context.database, context.clock, interval, _SHARE_AFTER_BEGIN)
    if begun_at is None:
        log.debug("no pass, the last one was a moment ago")
        return None
    return reconcile_begun(context, begun_at)


def begin_pass(
    database: Database, clock: Clock, interval: timedelta, share_after_begin: float
) -> datetime | None:
    """Notes that a pass begins, which the caller then must run; returns when it began.

    None if another one began less than that share of an interval ago, or has just ended. Of several
    processes that ask at once, one gets the pass. Raises as `reconcile` does.
    """
    begun_at = clock()
    with database.autocommit() as connection:
        schema.require_current(connection)
        begun = passes.begin(
            connection,
            _PASS,
            begun_at,
            after_begin=interval * share_after_begin,
            longest_rest=interval * _LONGEST_REST,
        )
    return begun_at if begun else None


def reconcile_begun(context: TickContext, begun_at: datetime) -> Reconciliation:
    """Runs the pass that `begin_pass` has noted, and notes its end. Raises as `reconcile` does."""
    try:
        return reconcile(context)
    finally:
        # If its end is not noted, only the messages that still wait may each make a pass.
        with suppress(SchedulerError), context.database.autocommit() as connection:
            passes.end(connection, _PASS, begun_at, context.clock())


def reconcile(context: TickContext) -> Reconciliation:
    """Runs one pass of all rules. A rule that meets an outage does not stop the rules after it.

    Raises ConfigurationError if the tables are not of this version, StoreUnavailable if Postgres cannot be
    asked for that.
    """
    result = Reconciliation()
    if context.dispatcher_requests.waits:
        # A pass never waits for workers: what a full queue has no space for, the next pass sends.
        context = replace(context, dispatcher_requests=ReconcileRequests(context.dispatcher_requests))
    with context.database.autocommit() as connection:
        schema.require_current(connection)
    with Judge(context) as judge:
        for rule in RULES:
            _note(
                result, rule.__name__, judge.begin if rule is dead_workers else partial(_run, rule, context)
            )
        if dead_workers.__name__ in result.put_right:
            _note(result, dead_workers.__name__, judge.end)
    if result.put_right.get(dead_workers.__name__):
        for rule in _AFTER_DEAD_WORKERS:
            if rule.__name__ in result.put_right:
                _note(result, rule.__name__, partial(rule, context))
    found = {name: number for name, number in result.put_right.items() if number}
    if found:
        log.info("reconciled", **found)
    return result


def _run(rule: Callable[[TickContext], int], context: TickContext) -> int:
    if rule in _RULES_OF_ONE_BROKER and epochs.in_doubt(context):
        return 0
    return rule(context)


def _note(result: Reconciliation, name: str, step: Callable[[], int]) -> None:
    """Runs a rule, or a part of it, and adds what it has put right."""
    try:
        result.put_right[name] = result.put_right.get(name, 0) + step()
    except SchedulerError as error:
        result.put_right.pop(name, None)
        result.errors.append(error)
        log.error("reconcile rule stopped", rule=name, error=str(error))
