"""Dispatch: claims planned batches, publishes each, marks them enqueued. It writes no job.

Between claim and mark no transaction is open: the claim is a lease in each batch's row. A crash in
between leaves the batches unsent and their leases to run out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import structlog

from worker_scheduler.clock import Clock
from worker_scheduler.errors import SchedulerError
from worker_scheduler.leases import Lease
from worker_scheduler.ledger import batches, runs
from worker_scheduler.ledger.batches import ClaimedBatch
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.runs import Run
from worker_scheduler.publisher import GroupMessage, JobMessage, Publisher
from worker_scheduler.room import Room

_JOBS_AT_ONCE = 10_000
"""Batches are claimed, pushed and marked in bundles of so many jobs, each with one round trip: some
twenty milliseconds, so that the trips cost nothing and a crash leaves little to wait for.
"""

_LOOK_SECONDS = 0.5
"""Between two looks at a queue that is full."""

log = structlog.get_logger(__name__)


@dataclass
class Dispatcher:
    """Dispatches batches through one publisher, `sleep_seconds` apart, while the queue has room.

    batch_size: jobs a batch, about. pause: waits so many seconds. patient: whether it waits for room,
    or leaves the rest.
    """

    database: Database
    publisher: Publisher
    clock: Clock
    lease: Lease
    pause: Callable[[float], None]
    batch_size: int
    sleep_seconds: float
    room: Room
    patient: bool
    identity: UUID = field(default_factory=uuid4)
    out_of_room: bool = False
    """Whether the last `dispatch` has left batches because the queue was full."""
    _sent_before: bool = False

    def dispatch(self, run: Run) -> Iterator[int]:
        """Sends every unsent batch of `run` for which there is room; yields the number of jobs of each.

        Raises StoreUnavailable from Postgres or the broker; the batches in hand are given back.
        """
        self.out_of_room = False
        while self._pause_between_batches(run) and self._wait_for_room(run):
            sent = self.send_next(run)
            if sent is None:
                return
            yield from sent

    def send_next(self, run: Run) -> list[int] | None:
        """Sends the first unsent batches that are free, without a look at the queue; the jobs of each.

        None where no batch is free.
        """
        claimed = self._claim(run)
        if not claimed:
            return None
        sent = self._send(run, claimed)
        self._sent_before = True
        return sent

    def close(self, run: Run) -> None:
        """Notes that a planned run has nothing left to send; does nothing where it has."""
        with self.database.autocommit() as connection:
            runs.mark_enqueued(connection, run.run_id, self.clock())

    def _pause_between_batches(self, run: Run) -> bool:
        """False where there is no batch to wait for: one that is planned in this moment is not sent
        without its pause, but by the next call.
        """
        if self._sent_before and self.sleep_seconds:
            if not self.has_unsent(run):
                return False
            self.pause(self.sleep_seconds)  # before the claim, since its lease is short
        return True

    def _wait_for_room(self, run: Run) -> bool:
        """False where there is nothing left to wait with, or no patience to wait."""
        if self.room.free(run.kind.value):
            return True
        log.info("queue is full, dispatch waits", queue=run.kind.value, partition_key=run.partition_key)
        while unsent := self.has_unsent(run):
            if not self.patient:
                break
            self.pause(_LOOK_SECONDS)
            if self.room.free(run.kind.value):
                return True
        self.out_of_room = unsent
        return False

    def has_unsent(self, run: Run) -> bool:
        """Whether a batch of the run is not enqueued, in somebody else's hands perhaps."""
        with self.database.autocommit() as connection:
            return batches.has_unsent(connection, run.run_id)

    def _claim(self, run: Run) -> list[ClaimedBatch]:
        now = self.clock()
        with self.database.autocommit() as connection:
            return batches.claim(
                connection,
                run.run_id,
                self.identity,
                limit=self._batches_at_once,
                now=now,
                claimed_until=self.lease.until(now),
            )

    @property
    def _batches_at_once(self) -> int:
        """One where each must be followed by a pause or a look at the queue, or might be doubled."""
        if self.sleep_seconds or self.room.max_depth is not None or not self.publisher.repeatable:
            return 1
        return max(1, _JOBS_AT_ONCE // self.batch_size)

    def _send(self, run: Run, claimed: list[ClaimedBatch]) -> list[int]:
        message = JobMessage(
            queue=run.kind.value,
            partition_key=run.partition_key,
            triggered_by=run.triggered_by,
            backfill_days=run.backfill_days,
        )
        groups = [
            GroupMessage(
                group_id=batch.group_id,
                marker=f"{run.run_id}:{batch.number}:{batch.generation}",
                message=message,
                jobs=batch.jobs,
            )
            for batch in claimed
        ]
        try:
            epochs = self.publisher.publish(groups)
        except BaseException:  # Ctrl-C, too: the next tick need not wait for the lease
            self._give_back(claimed)
            raise
        ours = self._mark_enqueued(run, claimed, epochs)
        return [len(batch.jobs) for batch in claimed if batch.number in ours]

    def _mark_enqueued(self, run: Run, claimed: list[ClaimedBatch], epochs: list[UUID | None]) -> set[int]:
        """The numbers of those that were still ours; whoever took another one over counts it."""
        with self.database.autocommit() as connection:
            ours = batches.mark_enqueued(
                connection, claimed, self.identity, broker_epochs=epochs, now=self.clock()
            )
        for batch in claimed:
            if batch.number not in ours:
                log.warning(
                    "batch lease ran out while publishing; its messages may be doubled, its jobs not",
                    partition_key=run.partition_key,
                    batch=batch.number,
                )
        return ours

    def _give_back(self, claimed: list[ClaimedBatch]) -> None:
        try:
            with self.database.autocommit() as connection:
                batches.release(connection, claimed, self.identity)
        except SchedulerError as error:
            # The broker's fault is the one to report; the lease frees the batches by itself.
            log.warning("batches not given back, their lease will run out", error=str(error))
