"""Finds lost messages by probes, whether or not their queue is ever empty.

A probe (ledger/probes.py) that has arrived says that every message published before it has left its queue.
Where the job still waits and no worker holds the message, the message is missed. It may still be somewhere:
`reject(requeue)` puts a message behind the probe, and on its way from the queue to `unacked` it is nowhere,
which may last seconds. So another probe is sent then. A job is no suspect any more once its message is
seen, or its row shows that the message was there. What is missed when the second probe has arrived and one
more interval has passed is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import probes, suspects, waiting_jobs
from worker_scheduler.ledger.probes import QueueProbes
from worker_scheduler.ledger.suspects import Suspect
from worker_scheduler.maintenance.rules.steps import JOBS_PER_STEP, pages_of_waiting
from worker_scheduler.probe_ids import new_probe_id
from worker_scheduler.publisher.probe_message import probe_message

_EARLY = 0.75
"""A pass may send a probe this share of an interval after the last one, since passes come unevenly."""
_UNDER_WAY = 10
"""If no probe arrives, the next one waits for this part of the time for which the first has waited."""
_ANSWERED_INTERVALS = 3
"""Workers answer probes if one has arrived that was sent within so many intervals."""


@dataclass(frozen=True)
class Signs:
    """What the probes of a queue say at the beginning of a pass. answered: workers answer them."""

    queue: str
    probes: QueueProbes
    answered: bool


@dataclass
class _Found:
    """What a pass found. missed: suspects that it missed for the first time."""

    lost: int = 0
    missed: int = 0


def read_signs(context: TickContext, queue: str) -> Signs:
    """Reads what the probes of the queue say, without what a clock that was set back has left."""
    now, interval = context.clock(), _interval(context)
    with context.database.autocommit() as connection:
        # They would stop the search until the clock has reached their time.
        probes.forget_ahead(connection, queue, now + interval)
        suspects.forget_ahead(connection, queue, now + interval)
        said = probes.of_queue(connection, queue, by=now - interval)
    answered = said.passed is not None and said.passed >= now - _ANSWERED_INTERVALS * interval
    return Signs(queue, said, answered)


def search(context: TickContext, signs: Signs, run_ids: list[UUID]) -> int:
    """Goes on with the search for lost messages of these runs, which are unfinished, and sends a probe if
    one is needed. Returns how many jobs it made due.
    """
    if signs.probes.passed is not None:
        # The published times are other processes', which is harmless: the margin is most of the grace time.
        _note_suspects(context, signs, run_ids, signs.probes.passed - _margin(context))
    with context.database.autocommit() as connection:
        suspected = suspects.runs_of(connection, signs.queue)
    found = _judge(context, signs, suspected) if suspected else _Found()
    if suspected or _may_have_lost(context, run_ids):
        _send_probe(context, signs, at_once=found.missed > 0)
    if signs.probes.settled is not None:
        with context.database.autocommit() as connection:
            probes.forget(connection, signs.queue, signs.probes.settled)
    return found.lost


def _interval(context: TickContext) -> timedelta:
    return timedelta(seconds=context.settings.reconcile_interval_seconds)


def _margin(context: TickContext) -> timedelta:
    """How long before a probe a message was published if the probe may decide about it.

    The first probe is sent when the grace time is about to end, and one interval later it is over.
    """
    grace = timedelta(seconds=context.settings.message_grace_seconds)
    return max(grace - _interval(context), timedelta(0))


def _note_suspects(context: TickContext, signs: Signs, run_ids: list[UUID], cutoff: datetime) -> None:
    for run_id in run_ids:
        for page in pages_of_waiting(context, run_id, cutoff):
            with context.database.autocommit() as connection:
                suspects.note(connection, run_id, signs.queue, page, context.clock())


def _judge(context: TickContext, signs: Signs, run_ids: list[UUID]) -> _Found:
    """Looks for the messages of the suspects, and then at their rows: in the order in which they move."""
    looked_at = context.clock()
    settled = signs.probes.settled
    for seen in _seen(context, signs):
        with context.database.autocommit() as connection:
            suspects.drop(connection, seen)
    found = _Found()
    for run_id in run_ids:
        for page in _pages_of_suspects(context, run_id):
            lost, others = _divide(page, settled)
            found.lost += _make_due(context, run_id, lost)
            found.missed += _look_at_rows(context, run_id, others, looked_at)
    return found


def _seen(context: TickContext, signs: Signs) -> Iterator[list[str]]:
    """Yields ids of messages that the broker holds: those with workers, and, if a suspect is about to count
    as lost, those in the queue, too. A message may go back into the queue again and again.
    """
    yield from context.broker.taken()
    if signs.probes.settled is None:
        return
    with context.database.autocommit() as connection:
        decides = suspects.any_missed(connection, signs.queue, signs.probes.settled)
    if decides:
        yield from context.broker.waiting(signs.queue)
        yield from context.broker.taken()


def _pages_of_suspects(context: TickContext, run_id: UUID) -> Iterator[list[Suspect]]:
    after = UUID(int=0)
    while True:
        with context.database.transaction() as connection:
            page = suspects.page(connection, run_id, after=after, limit=JOBS_PER_STEP)
        if not page:
            return
        yield page
        after = page[-1].job.job_id


def _divide(page: list[Suspect], settled: datetime | None) -> tuple[list[Suspect], list[Suspect]]:
    """Divides suspects into those that are lost, since a probe that was sent after they were missed has
    settled, and the others.
    """
    lost: list[Suspect] = []
    others: list[Suspect] = []
    for one in page:
        is_lost = settled is not None and one.missed_at is not None and one.missed_at <= settled
        (lost if is_lost else others).append(one)
    return lost, others


def _make_due(context: TickContext, run_id: UUID, lost: list[Suspect]) -> int:
    if not lost:
        return 0
    with context.database.transaction() as connection:
        moved = waiting_jobs.make_due(
            connection,
            run_id,
            [one.job for one in lost],
            [one.suspected_at for one in lost],
            context.clock(),
        )
        suspects.drop(connection, [one.job.job_id for one in lost])
    return moved


def _look_at_rows(context: TickContext, run_id: UUID, page: list[Suspect], looked_at: datetime) -> int:
    """Drops suspects whose row has changed, and marks the others as missed; returns how many are new."""
    if not page:
        return 0
    with context.database.autocommit() as connection:
        waiting = waiting_jobs.still_waiting(
            connection, run_id, [one.job for one in page], [one.suspected_at for one in page]
        )
        moved = [one.job.job_id for one in page if one.job.job_id not in waiting]
        if moved:
            suspects.drop(connection, moved)
        # Another pass may have noted some after this one's look at the broker.
        missed = [
            one.job.job_id
            for one in page
            if one.missed_at is None and one.suspected_at <= looked_at and one.job.job_id in waiting
        ]
        if missed:
            suspects.mark_missed(connection, missed, context.clock())
    return len(missed)


def _may_have_lost(context: TickContext, run_ids: list[UUID]) -> bool:
    """Whether a job waits whose message was published long enough ago to be looked for."""
    cutoff = context.clock() - _margin(context)
    with context.database.transaction() as connection:
        return any(
            waiting_jobs.page(connection, run_id, cutoff=cutoff, after=None, limit=1) for run_id in run_ids
        )


def _send_probe(context: TickContext, signs: Signs, *, at_once: bool) -> None:
    """Sends a probe, at most one per interval.

    If none arrives, ever fewer are sent, so that a queue without workers does not fill with them. at_once:
    not fewer, since suspects wait for the probe.
    """
    now, overdue = context.clock(), signs.probes.overdue
    pause = _EARLY * _interval(context)
    if overdue is not None and not at_once:
        pause = max(pause, (now - overdue) / _UNDER_WAY)
    probe_id = new_probe_id()
    with context.database.transaction() as connection:
        if not probes.announce(connection, probe_id, signs.queue, now=now, not_since=now - pause):
            return
    try:
        context.publisher.publish([probe_message(probe_id, signs.queue)])
    except StoreUnavailable:
        with context.database.autocommit() as connection:
            probes.take_back(connection, probe_id)
        raise
