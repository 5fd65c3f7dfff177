"""The rule lost_broker_data: messages that were lost with the broker's data, told by its epoch.

Another epoch may mean something else: two processes use the ledger with different brokers. Each of them
would take the messages of the other for lost, and send everything again in each pass. So each pass notes
the epoch that it sees and where, and each tick the epochs in which it publishes.

- An epoch that comes back after another one was seen shows that both are in use. Nothing is sent again
  until one of them was not seen for a while. At one place, where only one epoch can be at a time, that
  takes two returns: a single one is a restored dump.
- A new epoch at another place is waited on for two intervals, so that two reconcilers meet before anything
  is sent. At the same place, the earlier data are gone for certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import partial
from uuid import UUID

from sqlalchemy import Connection

from worker_scheduler import logs
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import batches, broker_epochs, rescue, runs
from worker_scheduler.ledger.broker_epochs import SeenEpoch
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.tables import RunState
from worker_scheduler.maintenance.failures import Failures, postgres_answers
from worker_scheduler.maintenance.rules.steps import repeat_in_steps

log = logs.get_logger(__name__)

_SILENCE_MINUTES = 10
"""How long a broker must not have been seen until it counts as gone; more if the interval is long."""
_SILENT_INTERVALS = 5
_NEW_PLACE_INTERVALS = 2


class _Verdict(Enum):
    """What an epoch other than the present one means."""

    GONE = auto()
    AWAITED = auto()
    """It is at another place, and may still be in use."""
    IN_USE = auto()
    """It and the present one come in turn."""


@dataclass(frozen=True)
class _Look:
    """What a pass knows of the broker's epochs. others: those seen lately, each with its verdict."""

    present: SeenEpoch
    others: dict[SeenEpoch, _Verdict]

    def lost(self, sent_in: set[UUID]) -> set[UUID]:
        """The epochs among `sent_in` whose messages are gone."""
        kept = {other.epoch for other, verdict in self.others.items() if verdict is not _Verdict.GONE}
        return sent_in - kept - {self.present.epoch}

    def first(self, verdict: _Verdict) -> SeenEpoch | None:
        """The latest other epoch of this verdict."""
        return next((other for other, found in self.others.items() if found is verdict), None)


def lost_broker_data(context: TickContext) -> int:
    """Marks batches that were sent in an earlier broker epoch as unsent, as a new generation.

    Jobs that were published on their own in such an epoch become due again. Raises the first failure of a
    run, and ConfigurationError if the ledger is used with two brokers in turn.
    """
    with context.database.autocommit() as connection:
        open_runs = runs.wanted(connection, RunState.PLANNING, RunState.DISPATCHING, RunState.ENQUEUED)
        # Read before the broker is asked for its epoch: what is sent in a newer epoch is not among these.
        sent_in = batches.broker_epochs(connection, [run.run_id for run in open_runs])
    look = _look_at_broker(context)
    lost = set() if look is None else look.lost(sent_in)
    failures = Failures(postgres_answers(context))
    total = 0
    for run in open_runs:
        with failures.of(run.partition_key):
            total += _put_back(context, run, lost, None if look is None else look.present.epoch)
    failures.raise_first()
    if look is not None:
        _report(context, look)
    return total


def in_doubt(context: TickContext) -> bool:
    """Whether the ledger may be used with two brokers: then an empty queue does not mean lost messages."""
    with context.database.autocommit() as connection:
        look = _judge(context, connection)
    return look is not None and set(look.others.values()) != {_Verdict.GONE} and bool(look.others)


def _put_back(context: TickContext, run: Run, lost: set[UUID], epoch: UUID | None) -> int:
    put_back = 0
    with context.database.transaction() as connection:
        if epoch is not None and lost:
            put_back = batches.put_back_lost(connection, run.run_id, lost, epoch)
        # In each pass: a dispatcher may have closed the run just when one of its batches was put back.
        runs.reopen_dispatch(connection, run.run_id)
    if not lost:
        return put_back
    return put_back + repeat_in_steps(
        context, partial(rescue.mark_lost_with_data, run_id=run.run_id, lost=lost)
    )


def _look_at_broker(context: TickContext) -> _Look | None:
    """Asks the broker for its epoch and notes it; None if it shows none."""
    with context.database.autocommit() as connection:
        after_look = broker_epochs.latest_look(connection)
    epoch = context.broker.epoch()
    if epoch is None:
        return None
    now = context.clock()
    with context.database.autocommit() as connection:
        broker_epochs.note(
            connection, epoch, context.broker.place, after_look=after_look, now=now, reconciled=now
        )
        return _judge(context, connection, epoch)


def _judge(context: TickContext, connection: Connection, epoch: UUID | None = None) -> _Look | None:
    """Judges the epochs that were seen lately. epoch: the present one; None means the one seen last."""
    now = context.clock()
    interval = timedelta(seconds=context.settings.reconcile_interval_seconds)
    seen = broker_epochs.seen_since(connection, now - _silence(interval))
    latest = broker_epochs.present(connection)
    present = next((one for one in seen if one.epoch == epoch), latest)
    if present is None:
        return None
    return _Look(
        present,
        {other: _verdict(present, other, now, interval) for other in seen if other.epoch != present.epoch},
    )


def _verdict(present: SeenEpoch, other: SeenEpoch, now: datetime, interval: timedelta) -> _Verdict:
    returned = [
        one.returned_at is not None and one.returned_at >= now - _silence(interval)
        for one in (present, other)
    ]
    elsewhere = other.broker != present.broker
    if any(returned) if elsewhere else all(returned):
        return _Verdict.IN_USE
    patience = _NEW_PLACE_INTERVALS * interval
    if elsewhere and other.reconciled_at is not None and now - other.reconciled_at <= patience:
        return _Verdict.AWAITED
    return _Verdict.GONE


def _silence(interval: timedelta) -> timedelta:
    return max(timedelta(minutes=_SILENCE_MINUTES), _SILENT_INTERVALS * interval)


def _report(context: TickContext, look: _Look) -> None:
    """Raises ConfigurationError if two brokers are in use; logs if that is not known yet."""
    if (other := look.first(_Verdict.IN_USE)) is not None:
        interval = timedelta(seconds=context.settings.reconcile_interval_seconds)
        minutes = round(_silence(interval).total_seconds() / 60)
        raise ConfigurationError(
            [
                f"the ledger is used with two brokers in turn, {look.present.broker} and {other.broker}:"
                f" nothing is sent again until one of them was not used for {minutes} minutes; give every"
                " process the same CELERY_BROKER_URL, REDIS_URL and REDIS_KEY_PREFIX"
            ]
        )
    if (other := look.first(_Verdict.AWAITED)) is not None:
        log.warning(
            "another broker than before, waiting whether the earlier one is still in use",
            broker=look.present.broker,
            earlier=other.broker,
        )
