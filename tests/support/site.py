"""A deployment with jobs in the queue, and real workers for them."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.ledger import Ledger, Row
from tests.support.messages import Broker
from tests.support.processes import Process, celery
from tests.support.waiting import wait_until
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.maintenance import reconciler

KEY = "backfill:2026-11-23:30d"
LEASE_SECONDS = 2.0
OPTIONS = ("--loglevel", "INFO", "--without-gossip", "--without-mingle")


@dataclass
class Site:
    """A deployment with one job in the queue, and the folder in which handlers note things."""

    context: TickContext
    ledger: Ledger
    broker: Broker
    environment: dict[str, str]
    folder: Path

    def job(self) -> Row:
        (job,) = self.ledger.jobs()
        return job

    @contextmanager
    def worker(self, handler: str, *arguments: str, name: str = "worker", **more: str) -> Iterator[Process]:
        """Runs a prefork worker of one process, or of the pool in `arguments`; kills all its processes.

        handler: a function of `long_handlers.py`, or module:function.
        """
        named = handler if ":" in handler else f"tests.support.long_handlers:{handler}"
        environment = self.environment | {"SYNC_HANDLER": named} | more
        pool = () if "--pool" in arguments else ("--pool", "prefork", "--concurrency", "1")
        process = celery(
            environment, self.folder / f"{name}.log", "worker", "-Q", "daily", *pool, *OPTIONS, *arguments
        )
        process.start()
        try:
            yield process
        finally:
            # Even if its main process has ended: the pool's processes may outlive it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)

    def wait_for_attempt(self, attempt: int) -> int:
        """Waits until a handler has begun this attempt; returns the id of its process."""
        wait_until(lambda: list(self.folder.glob(f"began-{attempt}-*")), 30, f"attempt {attempt}")
        (noted,) = self.folder.glob(f"began-{attempt}-*")
        return int(noted.name.rpartition("-")[2])

    def wait_for(self, status: str) -> Row:
        wait_until(lambda: self.job()["status"] == status, 30, f"a {status} job")
        return self.job()

    def reconcile(self) -> dict[str, int]:
        result = reconciler.reconcile(self.context)
        assert result.errors == []
        return result.put_right

    def reconcile_until(self, status: str) -> Row:
        def passed() -> bool:
            self.reconcile()
            return bool(self.job()["status"] == status)

        wait_until(passed, 30, f"a {status} job")
        return self.job()

    def go(self) -> None:
        (self.folder / "go").touch()
