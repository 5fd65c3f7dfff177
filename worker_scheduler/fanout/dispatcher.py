"""Dispatch: claims planned batches, publishes each one, and marks them enqueued. It writes no job.

No transaction is open between claim and mark: the claim is a lease in each batch's row. After a crash in
between, the batches are unsent, and are free again when their leases run out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from uuid import UUID, uuid4

from worker_scheduler import logs
from worker_scheduler.clock import Clock
from worker_scheduler.errors import SchedulerError
from worker_scheduler.fanout.epoch_notes import EpochNotes
from worker_scheduler.leases import Lease
from worker_scheduler.ledger import batches, runs
from worker_scheduler.ledger.batches import ClaimedBatch
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.runs import Run
from worker_scheduler.publisher import GroupMessage, Publisher, SharedFields
from worker_scheduler.publisher.queue_bound import QueueBound

_JOBS_PER_BUNDLE = 10_000
"""Batches are claimed, published and marked in bundles of this many jobs, each step in one round trip. A
bundle takes about 20 ms: long enough that round trips hardly count, short enough that a crash leaves little
to wait for.
"""

_FULL_QUEUE_POLL_SECONDS = 0.5
"""Between two looks at a full queue."""

log = logs.get_logger(__name__)


class DispatchResult(Enum):
    """Why `dispatch` stopped."""

    NOTHING_FREE = auto()
    """Every batch is enqueued, or another dispatcher holds it."""
    QUEUE_FULL = auto()
    """The queue has no space for the batches that are left."""


@dataclass
class Dispatcher:
    """Dispatches batches through one publisher, `sleep_seconds` apart, while the queue has space.

    batch_size: jobs per batch, roughly. pause: waits that many seconds. waits_for_space: whether it waits
    while the queue is full, or stops. on_sent: gets the number of jobs of each batch, once it is enqueued.
    """

    database: Database
    publisher: Publisher
    clock: Clock
    lease: Lease
    pause: Callable[[float], None]
    batch_size: int
    sleep_seconds: float
    queue_bound: QueueBound
    waits_for_space: bool
    epoch_notes: EpochNotes
    on_sent: Callable[[int], None]
    identity: UUID = field(default_factory=uuid4)
    _has_sent: bool = False

    def dispatch(self, run: Run) -> DispatchResult:
        """Sends the unsent batches of `run`, while the queue has space for them.

        Raises StoreUnavailable from Postgres or the broker; the claimed batches are then free again.
        """
        while self._pause_between_batches(run):
            if not self.queue_bound.has_space(run.queue):
                log.info("queue is full", queue=run.queue, partition_key=run.partition_key)
                if not self.waits_for_space:
                    return (
                        DispatchResult.QUEUE_FULL if self.has_to_send(run) else DispatchResult.NOTHING_FREE
                    )
                if not self._wait_for_space(run):
                    break
            if not self.send_next(run):
                break
        return DispatchResult.NOTHING_FREE

    def send_next(self, run: Run) -> bool:
        """Sends the first unsent batches that are free, also into a full queue.

        Returns whether more may be free. Raises StoreUnavailable, as `dispatch` does.
        """
        claimed = self._claim_batches(run)
        if not claimed:
            return False
        sent = self._send(run, claimed)
        self._has_sent = True
        for job_count in sent:
            self.on_sent(job_count)
        return len(claimed) == self._batches_at_once

    def close(self, run: Run) -> bool:
        """Marks a planned run as enqueued, which ends its lease.

        Returns whether it did: no batch may be unsent.
        """
        with self.database.autocommit() as connection:
            return runs.mark_enqueued(connection, run.run_id, self.clock())

    def has_to_send(self, run: Run) -> bool:
        """Whether a batch of the run is to be enqueued; another dispatcher may hold it. Of a run that is
        paused or cancelled, none is.
        """
        with self.database.autocommit() as connection:
            return batches.has_to_send(connection, run.run_id)

    def _pause_between_batches(self, run: Run) -> bool:
        """Pauses if a batch was sent before; False, without a pause, if no batch is unsent.

        A batch that is planned just after that look is left to the next call, which pauses before it.
        """
        if self._has_sent and self.sleep_seconds:
            if not self.has_to_send(run):
                return False
            self.pause(self.sleep_seconds)  # before the claim, since the claim's lease is short
        return True

    def _wait_for_space(self, run: Run) -> bool:
        """Waits until the queue has space; False if no batch is unsent any more."""
        while self.has_to_send(run):
            self.pause(_FULL_QUEUE_POLL_SECONDS)
            if self.queue_bound.has_space(run.queue):
                return True
        return False

    def _claim_batches(self, run: Run) -> list[ClaimedBatch]:
        now = self.clock()
        with self.database.autocommit() as connection:
            self.epoch_notes.before_publishing(connection, now)
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
        """How many batches to claim at once: a bundle; or 1, if a pause or a look at the queue follows each
        batch, or if a failed publish may have sent a part of it.
        """
        if self.sleep_seconds or self.queue_bound.max_depth is not None or not self.publisher.repeatable:
            return 1
        return max(1, _JOBS_PER_BUNDLE // self.batch_size)

    def _send(self, run: Run, claimed: list[ClaimedBatch]) -> list[int]:
        """Publishes the batches; returns the job count of each one that this dispatcher marked enqueued."""
        shared = SharedFields(
            queue=run.queue,
            partition_key=run.partition_key,
            triggered_by=run.triggered_by,
            backfill_days=run.backfill_days,
        )
        groups = [
            GroupMessage(
                group_id=batch.group_id,
                marker=f"{run.run_id}:{batch.number}:{batch.generation}",
                shared=shared,
                job_ids=batch.job_ids,
            )
            for batch in claimed
        ]
        try:
            epochs = self.publisher.publish(groups)
        except BaseException:  # also Ctrl-C: the next tick need not wait for the lease
            self._give_back(claimed)
            raise
        marked = self._mark_enqueued(run, claimed, epochs)
        return [len(batch.job_ids) for batch in claimed if batch.number in marked]

    def _mark_enqueued(self, run: Run, claimed: list[ClaimedBatch], epochs: list[UUID | None]) -> set[int]:
        """Marks the batches that this dispatcher still holds as enqueued; returns their numbers.

        If another dispatcher has taken a batch over, that one counts it.
        """
        now = self.clock()
        with self.database.autocommit() as connection:
            # Noted first: an epoch of a batch is then always known.
            self.epoch_notes.after_publishing(connection, epochs, now)
            marked = batches.mark_enqueued(
                connection, claimed, self.identity, broker_epochs=epochs, now=now
            )
        for batch in claimed:
            if batch.number not in marked:
                log.warning(
                    "batch lease ran out while publishing: messages may be sent twice, no job runs twice",
                    partition_key=run.partition_key,
                    batch=batch.number,
                )
        return marked

    def _give_back(self, claimed: list[ClaimedBatch]) -> None:
        try:
            with self.database.autocommit() as connection:
                batches.release(connection, claimed, self.identity)
        except SchedulerError as error:
            # The error of the publisher is the one to report; the lease frees the batches without help.
            log.warning("batches not given back, their lease will run out", error=str(error))
