"""Beat, ticks and workers as real processes produce COMPLETED rows."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pytest_celery import CeleryTestNode, CeleryTestSetup, CeleryTestWorker, CeleryWorkerCluster

from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.nodes import beat_node, worker_node
from tests.support.processes import celery, worker_of
from tests.support.users import make_users
from tests.support.waiting import wait_until

# The other fixtures of pytest-celery need containers.
pytest_plugins = ["pytest_celery.fixtures.setup"]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def celery_broker_cluster() -> None:
    """No node: the broker is the test's own Redis."""


@pytest.fixture
def celery_backend_cluster() -> None:
    """No node: there is no result backend."""


@pytest.fixture
def celery_setup_app(deployed: None) -> Celery:
    """The scheduler's app, in place of one that pytest-celery would create."""
    import worker_scheduler

    return worker_scheduler.app


@pytest.fixture
def deployment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of every node."""
    (tmp_path / "handler").mkdir()
    return environment | {
        "PYTHONPATH": str(ROOT),
        "SYNC_HANDLER": "tests.support.handlers:complete",
        "HANDLER_FOLDER": str(tmp_path / "handler"),
        "ENQUEUE_SLEEP_SECONDS": "0",
    }


@pytest.fixture
def celery_worker_cluster(
    deployment: dict[str, str], celery_setup_app: Celery, tmp_path: Path
) -> Iterator[CeleryWorkerCluster]:
    """One worker of every queue."""
    log = tmp_path / "worker.log"
    process = worker_of(deployment, log, "scheduler,daily,backfill", "--hostname", "one@%h")
    node = worker_node(process, celery_setup_app)
    try:
        yield CeleryWorkerCluster(node)
    finally:
        node.teardown()


@pytest.fixture
def beat(deployment: dict[str, str], celery_setup_app: Celery, tmp_path: Path) -> Iterator[CeleryTestNode]:
    """A Beat whose daily tick is overdue: its last one was two days ago."""
    overdue(celery_setup_app)
    node = beat_node(
        celery(deployment, tmp_path / "beat.log", "beat", "--loglevel", "INFO"), celery_setup_app
    )
    try:
        yield node
    finally:
        node.teardown()


def overdue(app: Celery) -> None:
    from redbeat import RedBeatSchedulerEntry

    from worker_scheduler.celery_app import DAILY_TICK_ENTRY

    entry = RedBeatSchedulerEntry(
        name=DAILY_TICK_ENTRY, app=app, **app.conf.beat_schedule[DAILY_TICK_ENTRY]
    )
    entry.last_run_at = datetime.now(UTC) - timedelta(days=2)
    entry.save()


def worker_of_setup(setup: CeleryTestSetup) -> CeleryTestWorker:
    assert setup.worker is not None
    return setup.worker


def test_beat_triggers_a_tick_that_a_worker_turns_into_completed_rows(
    ledger: Ledger, broker: Broker, celery_setup: CeleryTestSetup, beat: CeleryTestNode
) -> None:
    make_users(ledger.url, 25)
    # The due slot is the last 02:00.
    key = f"daily:{(datetime.now(UTC) - timedelta(hours=2)).date()}"
    worker = worker_of_setup(celery_setup)
    assert worker.ready()
    assert beat.ready()
    beat.assert_log_exists("Scheduler: Sending due task daily-tick")
    wait_until(lambda: ledger.states(key) == {"COMPLETED": 25}, 60, "25 completed jobs")
    for job in ledger.jobs(key):
        assert job["created_at"] <= job["started_at"] <= job["completed_at"]
        assert (job["attempt"], job["error_message"]) == (1, None)
    assert ledger.value("SELECT state FROM sync_runs WHERE partition_key = %s", key) != "PLANNING"
    wait_until(lambda: broker.counts() == {}, 10, "empty queues")
    assert "Traceback" not in worker.logs() + beat.logs()


@pytest.mark.slow
def test_the_waiting_jobs_of_a_killed_worker_go_to_the_next_worker(
    ledger: Ledger,
    broker: Broker,
    celery_setup: CeleryTestSetup,
    deployment: dict[str, str],
    tmp_path: Path,
) -> None:
    """The job that it was running stays RUNNING; reconcile decides about it later."""
    folder = Path(deployment["HANDLER_FOLDER"])
    worker = worker_of_setup(celery_setup)
    assert worker.ready()
    worker.teardown()
    waiting = worker_of(
        deployment | {"SYNC_HANDLER": "tests.support.handlers:wait_for_permission"},
        tmp_path / "waiting.log",
        "scheduler,daily,backfill",
    )
    killed = worker_node(waiting, celery_setup.app)
    try:
        make_users(ledger.url, 10)
        celery_setup.app.send_task("scheduler.daily_tick", kwargs={"date": "2026-11-23"})
        wait_until(lambda: list(folder.glob("began-*")), 30, "the start of the first job")
        killed.kill()
        assert killed.container.status == "exited"
        assert ledger.states() == {"RUNNING": 1, "PENDING": 9}
    finally:
        killed.teardown()
    assert broker.count("daily") == 9
    worker.restart()
    wait_until(lambda: ledger.states().get("COMPLETED", 0) >= 9, 60, "9 completed jobs")
    began: list[Any] = list(folder.glob("began-*"))
    assert len(began) == 1


def test_an_idle_worker_stops_within_the_time_that_platforms_allow(
    celery_setup: CeleryTestSetup,
) -> None:
    worker = worker_of_setup(celery_setup)
    assert worker.ready()
    worker.kill("SIGTERM", reload_container=False)
    assert worker.container.status == "exited"
    assert worker.container.process.wait(0) == 0
