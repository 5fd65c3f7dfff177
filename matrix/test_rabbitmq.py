"""RabbitMQ as the broker: the portable publisher, real workers, and a connection that breaks."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.processes import celery, started, worker_of
from tests.support.proxy import Proxy
from tests.support.users import make_users
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
DAY = "2026-11-23"
KEY = f"daily:{DAY}"
BROKER_URL = os.environ["MATRIX_BROKER_URL"]


class Queues:
    """The three queues in RabbitMQ. Their names are fixed, so these tests must run one after the other."""

    names = ("scheduler", "daily", "backfill")

    def count(self, queue: str) -> int:
        """Returns how many messages are ready in the queue."""
        with Connection(BROKER_URL) as connection:
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)

    def take(self, queue: str) -> list[str]:
        """Removes all messages from the queue; returns their task ids."""
        ids: list[str] = []
        with Connection(BROKER_URL) as connection:
            while message := connection.default_channel.basic_get(queue, no_ack=True):
                ids.append(message.headers["id"])
        return ids

    def delete(self) -> None:
        """Deletes all three queues and their messages."""
        with Connection(BROKER_URL) as connection:
            for name in self.names:
                connection.default_channel.queue_delete(name)
                connection.default_channel.exchange_delete(name)


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queues]:
    """Empty queues, which the test's deployment uses."""
    monkeypatch.setenv("CELERY_BROKER_URL", BROKER_URL)
    queues = Queues()
    queues.delete()
    yield queues
    queues.delete()


@pytest.fixture
def deployment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a worker."""
    return environment | {
        "PYTHONPATH": str(ROOT),
        "CELERY_BROKER_URL": BROKER_URL,
        "SYNC_HANDLER": "tests.support.handlers:complete",
        "HANDLER_FOLDER": str(tmp_path),
        "ENQUEUE_SLEEP_SECONDS": "0",
    }


def job_ids(ledger: Ledger) -> set[str]:
    return {str(job["job_id"]) for job in ledger.jobs(KEY)}


def test_one_message_per_job(scheduler: Any, ledger: Ledger, queues: Queues) -> None:
    make_users(ledger.url, 450)
    outcome: Outcome = scheduler("daily", "--date", DAY, "--json")
    assert (outcome.report["outcome"], outcome.report["jobs_enqueued"]) == ("enqueued", 450)
    assert queues.count("daily") == 450
    assert scheduler("daily", "--date", DAY, "--json").report["outcome"] == "nothing_to_do"
    sent = queues.take("daily")
    assert len(sent) == 450
    assert set(sent) == job_ids(ledger)


def test_check_names_the_publisher(scheduler: Any, ledger: Ledger, queues: Queues) -> None:
    make_users(ledger.url, 1)
    outcome: Outcome = scheduler("check")
    assert "group (the broker is not Redis)" in outcome.stdout, outcome


def test_redis_bulk_is_refused(
    scheduler: Any, ledger: Ledger, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 1)
    monkeypatch.setenv("PUBLISHER", "redis-bulk")
    outcome: Outcome = scheduler("daily", "--date", DAY)
    assert outcome.status == 2
    assert "PUBLISHER=redis-bulk does not fit: the broker is not Redis" in outcome.error
    assert ledger.jobs(KEY) == []


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_connection_that_breaks_midway(
    share: float, scheduler: Any, ledger: Ledger, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every job is published at least once; only the interrupted batch may be published twice."""
    make_users(ledger.url, 100)
    command = ["daily", "--json", "--enqueue-batch-size", "20", "--date"]
    with Proxy(BROKER_URL) as proxy:
        monkeypatch.setenv("CELERY_BROKER_URL", proxy.url)
        assert scheduler(*command, "2026-11-22").status == 0
        queues.take("daily")
        proxy.forwarded, proxy.cut_after = 0, int(share * proxy.forwarded)
        outcome: Outcome = scheduler(*command, DAY)
        assert outcome.status == 4, outcome
        assert outcome.report["jobs_inserted"] == 100
        proxy.heal()
        again: Outcome = scheduler(*command, DAY)
    assert again.report["outcome"] == "enqueued", again
    assert again.report["jobs_enqueued"] == outcome.report["enqueue_failures"]
    sent = queues.take("daily")
    assert set(sent) == job_ids(ledger)
    assert len(sent) <= 120


def test_workers_do_ticks_and_jobs(
    deployment: dict[str, str], ledger: Ledger, queues: Queues, tmp_path: Path
) -> None:
    """A backfill and a reconcile pass by `celery call`, the latter for a RUNNING job of a dead worker."""
    make_users(ledger.url, 30)
    worker = worker_of(deployment, tmp_path / "worker.log", "scheduler,daily,backfill")
    with started(worker):
        worker.wait_for_log("ready.")
        _call(deployment, tmp_path, "scheduler.backfill", '{"backfill_days": 3, "partition_key": "x"}')
        wait_until(lambda: ledger.states("x") == {"COMPLETED": 30}, 30, "30 jobs done")
        # The row as a dead worker leaves it.
        ledger.execute(
            "UPDATE sync_jobs SET status = 'RUNNING', completed_at = NULL, attempt = 1,"
            " leased_until = now() - interval '1 second'"
            " WHERE job_id = (SELECT min(job_id::text)::uuid FROM sync_jobs)"
        )
        _call(deployment, tmp_path, "scheduler.reconcile", "{}")
        wait_until(lambda: ledger.states("x") == {"COMPLETED": 30}, 30, "the job done again")
    assert ledger.value("SELECT max(attempt) FROM sync_jobs") == 2


def _call(deployment: dict[str, str], folder: Path, task: str, kwargs: str) -> None:
    with started(celery(deployment, folder / "call.log", "call", task, "--kwargs", kwargs)) as call:
        assert call.wait(30) == 0, call.log()
