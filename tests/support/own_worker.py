"""A worker in the test's process, and a ledger with jobs, on a clock that the test sets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import UUID

from tests.support.contexts import NOON, HandedClock
from tests.support.ledger import Ledger, Row
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.worker import SyncJob
from worker_scheduler.worker.claims import Worker
from worker_scheduler.worker.retry_on import load_retry_on


@dataclass
class Deployment:
    context: TickContext
    worker: Worker
    clock: HandedClock
    ledger: Ledger

    def jobs(self, number: int) -> list[UUID]:
        make_users(self.ledger.url, number)
        tick.daily(self.context, DailyOptions(date=NOON.date()))
        return [job["job_id"] for job in self.ledger.jobs()]

    def run(self, job_id: UUID, error: BaseException) -> Row:
        """Runs an attempt whose handler raises `error`; returns the job's row afterwards."""
        self.worker.run(job_id, raising(error))
        return self.ledger.job(job_id)

    def retrying(self, value: str) -> "Deployment":
        """The same with SYNC_RETRY_ON."""
        return replace(self, worker=replace(self.worker, retry_on=load_retry_on(value)))


def raising(error: BaseException) -> Callable[[SyncJob], None]:
    def handler(job: SyncJob) -> None:
        raise error

    return handler
