"""A broker for the model: the test knows each of its messages, and says which it loses."""

from collections.abc import Iterator, Sequence
from uuid import UUID

from worker_scheduler.probe_ids import is_probe
from worker_scheduler.publisher import GroupMessage
from worker_scheduler.publisher.broker import OpaqueBroker

QUEUE = "daily"


class ModelBroker(OpaqueBroker):
    """One queue, whose next message is the first. with_workers: taken by workers, not acknowledged."""

    repeatable = False

    def __init__(self) -> None:
        self.queue: list[UUID] = []
        self.with_workers: list[UUID] = []

    @property
    def messages(self) -> set[UUID]:
        return {*self.queue, *self.with_workers}

    def lose(self, chosen: int) -> None:
        """Loses the messages whose bits are set, counted from the newest one; -1: all of them."""
        for held in (self.with_workers, self.queue):
            kept = [one for bit, one in enumerate(reversed(held)) if not chosen >> bit & 1]
            held[:] = reversed(kept)

    def take(self, number: int) -> list[UUID]:
        """Gives workers the next messages; returns the probes among them, which they answer."""
        taken, self.queue = self.queue[:number], self.queue[number:]
        self.with_workers += [one for one in taken if not is_probe(one)]
        return [one for one in taken if is_probe(one)]

    def give_back(self, message: UUID, *, first: bool) -> None:
        """Puts a worker's message back into the queue."""
        self.with_workers.remove(message)
        self.queue.insert(0 if first else len(self.queue), message)

    def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
        self.queue += [UUID(str(job_id)) for group in groups for job_id, _ in group.job_ids]
        return [None] * len(groups)

    # --- what passes see ----------------------------------------------------------------------------

    @property
    def shows_messages(self) -> bool:
        return True

    def depth(self, queue: str) -> int | None:
        if queue != QUEUE:
            return 0
        return sum(not is_probe(one) for one in (*self.queue, *self.with_workers))

    def waiting(self, queue: str) -> Iterator[list[str]]:
        yield [str(one) for one in self.queue] if queue == QUEUE else []

    def taken(self) -> Iterator[list[str]]:
        yield [str(one) for one in self.with_workers]
