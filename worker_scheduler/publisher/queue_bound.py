"""Queue bound, MAX_QUEUE_DEPTH: whether a queue has space for one more batch."""

from __future__ import annotations

from dataclasses import dataclass

from worker_scheduler.publisher.broker import BrokerState


@dataclass(frozen=True)
class QueueBound:
    """The bound of every queue, in messages. max_depth: None means no bound.

    Dispatchers that look at the same moment all see the same space, so each of them may exceed the bound by
    one batch.
    """

    broker: BrokerState
    max_depth: int | None

    def has_space(self, queue: str) -> bool:
        """Whether the queue holds less than the bound, unacknowledged messages included.

        Raises StoreUnavailable.
        """
        if self.max_depth is None:
            return True
        depth = self.broker.depth(queue)
        return depth is None or depth < self.max_depth
