"""A job that takes longer than RabbitMQ's consumer_timeout: its channel is closed under it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matrix.test_rabbitmq import DAY, KEY, Queues, deployment, queues
from tests.support.ledger import Ledger
from tests.support.processes import started, worker_of
from tests.support.users import make_users
from tests.support.waiting import wait_until

__all__ = ["deployment", "queues"]  # fixtures


def set_for_new_channels(consumer_timeout: int, channel_tick_interval: int) -> None:
    """Both in milliseconds."""
    for name, value in (
        ("consumer_timeout", consumer_timeout),
        ("channel_tick_interval", channel_tick_interval),
    ):
        subprocess.run(
            ["rabbitmqctl", "-q", "eval", f"application:set_env(rabbit, {name}, {value})."],
            check=True,
            timeout=60,
            capture_output=True,
        )


@pytest.fixture
def short_timeout() -> Iterator[None]:
    try:
        set_for_new_channels(1500, 500)
        yield
    finally:
        set_for_new_channels(1_800_000, 60_000)


@pytest.mark.usefixtures("short_timeout")
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_survives_the_timeout_and_the_job_runs_once(
    pool: str, deployment: dict[str, str], scheduler: Any, ledger: Ledger, queues: Queues, tmp_path: Path
) -> None:
    make_users(ledger.url, 2)
    handler = {"SYNC_HANDLER": "tests.support.long_handlers:until_told"}
    worker = worker_of(
        deployment | handler, tmp_path / "log", "daily", "--pool", pool, "--concurrency", "3"
    )
    assert scheduler("daily", "--date", DAY).status == 0
    with started(worker):
        worker.wait_for_log("PRECONDITION_FAILED")
        (tmp_path / "go").touch()
        wait_until(lambda: ledger.states(KEY) == {"COMPLETED": 2}, 30, "both jobs done")
        wait_until(lambda: queues.count("daily") == 0, 30, "an empty queue")
        assert worker.running
    assert [job["attempt"] for job in ledger.jobs(KEY)] == [1, 1]
