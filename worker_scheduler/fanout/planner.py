"""Planner: writes a run's jobs and batches to Postgres, chunk by chunk. It publishes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from worker_scheduler.clock import Clock
from worker_scheduler.ledger import plan
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.plan import Chunk, InsertMode
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.users import UsersRelation

_CHUNK_ROWS = 10_000
"""Users per chunk: about 50 ms in Postgres, so that a crash loses little, locks are short, and little is
left to publish when the last chunk is planned.
"""


@dataclass(frozen=True)
class Planner:
    """Plans runs for the users of one relation."""

    database: Database
    relation: UsersRelation
    clock: Clock

    def chunks(self, run: Run, batch_size: int) -> Iterator[Chunk]:
        """Plans the rest of `run`; yields each chunk after its commit. Memory does not grow with the users.

        The first chunk is one batch, so that the first message need not wait for many rows.
        Raises StoreUnavailable; what was committed stays, and the next call continues after it.
        """
        skip = run.partition_key if self._has_older_rows(run) else None
        whole_batches = max(1, _CHUNK_ROWS // batch_size) * batch_size
        limit, insert = batch_size, plan.INSERT_ALL
        while True:
            try:
                chunk = self._chunk(run, skip, limit, batch_size, insert)
            except plan.JobExists:
                # The relation of users has an id twice, and later chunks may have more such ids. Nothing
                # else can conflict, since the run's row is locked.
                insert = plan.SKIP_EXISTING
                continue
            yield chunk
            if chunk.done:
                return
            limit = whole_batches

    def _chunk(self, run: Run, skip: str | None, limit: int, batch_size: int, insert: InsertMode) -> Chunk:
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
