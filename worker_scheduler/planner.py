"""Plan: writes a run's jobs and batches to Postgres, chunk by chunk. It publishes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from worker_scheduler.clock import Clock
from worker_scheduler.ledger import plan
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.plan import Chunk, Insert
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.users import UsersRelation

_CHUNK_ROWS = 10_000
"""Users a chunk: some 50 ms of Postgres, so that a crash loses little, a lock is short, and little is left
to publish when the last one is planned.
"""


@dataclass(frozen=True)
class Planner:
    """Plans runs over one relation of users."""

    database: Database
    relation: UsersRelation
    clock: Clock

    def chunks(self, run: Run, batch_size: int) -> Iterator[Chunk]:
        """Plans the rest of `run`; yields after each chunk's commit. Memory stays flat.

        The first chunk is one batch, so that the first message need not wait for many rows.
        Raises StoreUnavailable; what was committed stays, and the next call goes on behind it.
        """
        skip = run.partition_key if self._has_older_rows(run) else None
        whole_batches = max(1, _CHUNK_ROWS // batch_size) * batch_size
        limit, insert = batch_size, plan.WHOLE_PAGE
        while True:
            try:
                chunk = self._chunk(run, skip, limit, batch_size, insert)
            except plan.SomeHaveJobs:
                # The relation of users repeats an id, and may do so again in each chunk; under the run's
                # lock, nothing else can conflict.
                insert = plan.WHO_HAS_NONE
                continue
            yield chunk
            if chunk.done:
                return
            limit = whole_batches

    def _chunk(self, run: Run, skip: str | None, limit: int, batch_size: int, insert: Insert) -> Chunk:
        with self.database.transaction() as connection:
            return plan.plan_chunk(
                connection,
                run_id=run.run_id,
                relation=self.relation,
                skip_older_rows_of=skip,
                limit=limit,
                batch_size=batch_size,
                insert=insert,
                now=self.clock(),
            )

    def _has_older_rows(self, run: Run) -> bool:
        with self.database.autocommit() as connection:
            return plan.has_older_rows(connection, run.partition_key)
