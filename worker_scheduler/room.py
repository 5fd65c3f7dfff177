"""Room in a queue: whether a batch more may go in, by MAX_QUEUE_DEPTH. It neither waits nor publishes."""

from __future__ import annotations

from dataclasses import dataclass

from worker_scheduler.publisher.broker import BrokerState


@dataclass(frozen=True)
class Room:
    """The bound of every queue; max_depth None: none.

    Dispatchers that look in the same moment all find the same room, so each may overfill it by one
    batch.
    """

    broker: BrokerState
    max_depth: int | None

    def free(self, queue: str) -> bool:
        """Whether the queue holds less than the bound, unacknowledged messages included.

        Raises StoreUnavailable.
        """
        if self.max_depth is None:
            return True
        depth = self.broker.depth(queue)
        return depth is None or depth < self.max_depth
