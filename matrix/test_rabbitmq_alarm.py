"""RabbitMQ without memory or disk: it takes no messages, and nothing may wait for it for ever."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from matrix.test_rabbitmq import DAY, KEY, Queues, deployment, queues
from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.processes import Process, started, worker_of
from tests.support.users import make_users
from tests.support.waiting import wait_until

__all__ = ["deployment", "queues"]  # fixtures


def rabbitmqctl(*arguments: str) -> None:
    subprocess.run(["rabbitmqctl", "-q", *arguments], check=True, timeout=60, capture_output=True)


@contextmanager
def alarm(resource: str) -> Iterator[None]:
    """RabbitMQ lacks memory or disk while the block runs."""
    raised, ended = {
        "memory": (("set_vm_memory_high_watermark", "0.0000001"), ("set_vm_memory_high_watermark", "0.4")),
        "disk": (("set_disk_free_limit", "100000GB"), ("set_disk_free_limit", "50MB")),
    }[resource]
    try:
        rabbitmqctl(*raised)
        wait_until(lambda: not can_publish(), 30, "an alarm")
        yield
    finally:
        rabbitmqctl(*ended)
        wait_until(can_publish, 30, "the end of the alarm")


def can_publish() -> bool:
    ended = subprocess.run(
        ["rabbitmq-diagnostics", "-q", "check_local_alarms"], check=False, timeout=60, capture_output=True
    )
    return ended.returncode == 0


@pytest.mark.parametrize("resource", ["memory", "disk"])
def test_a_tick_ends_with_status_4(resource: str, scheduler: Any, ledger: Ledger, queues: Queues) -> None:
    make_users(ledger.url, 300)
    assert scheduler("daily", "--date", "2026-11-22").status == 0  # declares the queues
    queues.take("daily")
    with alarm(resource):
        began = time.monotonic()
        outcome: Outcome = scheduler("daily", "--date", DAY)
        took = time.monotonic() - began
    assert outcome.status == 4, outcome
    assert len(outcome.errors) == 1
    assert "RabbitMQ takes no messages: low on " + resource in outcome.error
    assert took < 25
    assert scheduler("daily", "--date", DAY).status == 0
    assert set(queues.take("daily")) == {str(job["job_id"]) for job in ledger.jobs(KEY)}


def test_one_sigterm_is_enough(
    deployment: dict[str, str], ledger: Ledger, queues: Queues, tmp_path: Path
) -> None:
    make_users(ledger.url, 300)
    command = [sys.executable, "-m", "worker_scheduler", "daily", "--date", DAY]
    tick = Process(command, deployment, tmp_path / "log")
    with alarm("memory"), started(tick):
        wait_until(lambda: ledger.jobs(KEY), 30, "planned jobs")
        time.sleep(1)  # it publishes now
        tick.send(signal.SIGTERM)
        assert tick.wait(25) in {4, 130, 143}
    assert "Traceback" not in tick.log()


def test_a_worker_goes_on_after_the_alarm(
    deployment: dict[str, str], ledger: Ledger, queues: Queues, scheduler: Any, tmp_path: Path
) -> None:
    """Also if it sends events, which RabbitMQ does not take; and it can still be stopped."""
    make_users(ledger.url, 30)
    arguments = ("-E", "--pool", "prefork", "--concurrency", "2")
    worker = worker_of(deployment, tmp_path / "log", "scheduler,daily,backfill", *arguments)
    with started(worker):
        worker.wait_for_log("ready.")
        with alarm("memory"):
            assert scheduler("daily", "--date", DAY).status == 4
        assert scheduler("daily", "--date", DAY).status == 0
        wait_until(lambda: ledger.states(KEY) == {"COMPLETED": 30}, 60, "30 jobs done")
        with alarm("memory"):
            time.sleep(4)  # events are sent every two seconds
            worker.send(signal.SIGTERM)
            assert worker.wait(60) == 0
    assert "Traceback" not in worker.log()
