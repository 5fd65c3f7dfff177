"""A stock Celery worker, `celery inspect` and Flower treat the messages of both publishers alike."""

import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.processes import Process, started
from tests.support.users import make_users
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

JOBS = 3
DAYS = {"group": "2026-11-22", "redis-bulk": "2026-11-23"}
# Fields in monitors that differ from task to task, or from moment to moment.
OF_ONE_TASK = {"uuid", "id", "args", "root", "root_id", "result", "clock", "worker_pid", "delivery_info"}
OF_A_MOMENT = {"received", "started", "succeeded", "timestamp", "runtime", "time_start"}

Task = dict[str, Any]


def stock(environment: Mapping[str, str], log: Path, *arguments: str) -> Process:
    return Process(
        [sys.executable, "-m", "celery", "-A", "tests.support.stock_app", *arguments], environment, log
    )


@pytest.fixture
def stock_environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {
        **environment,
        "PYTHONPATH": root,
        "FLOWER_UNAUTHENTICATED_API": "true",
        "GATE": str(tmp_path / "gate"),
    }


@pytest.fixture
def flower(stock_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[[], dict[str, Task]]]:
    """Returns the tasks that Flower knows, by their ids."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def tasks() -> dict[str, Task]:
        with urlopen(f"http://127.0.0.1:{port}/api/tasks", timeout=5) as answer:
            known: dict[str, Task] = json.load(answer)
        return known

    def answers() -> bool:
        try:
            return tasks() == {}
        except URLError:
            return False

    options = ["flower", "--address=127.0.0.1", f"--port={port}"]
    with started(stock(stock_environment, tmp_path / "flower.log", *options)):
        wait_until(answers, 60, "Flower")
        yield tasks


def test_monitors_show_both_publishers_tasks_alike(
    scheduler: Callable[..., Outcome],
    ledger: Ledger,
    flower: Callable[[], dict[str, Task]],
    stock_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_users(ledger.url, JOBS)
    publisher_of: dict[str, str] = {}
    for publisher, day in DAYS.items():
        monkeypatch.setenv("PUBLISHER", publisher)
        assert scheduler("daily", "--date", day).status == 0
        publisher_of |= {str(job["job_id"]): publisher for job in ledger.jobs(f"daily:{day}")}
    worker = ["worker", "-Q", "daily", "-c", str(2 * JOBS), "--loglevel", "INFO"]
    with started(stock(stock_environment, tmp_path / "stock.log", *worker)) as process:
        process.wait_for_log("ready.", 60)
        inspected = wait_until(
            lambda: all_of(publisher_of, active(stock_environment, tmp_path)), 60, "all tasks to run"
        )
        (tmp_path / "gate").touch()
        ended_in_flower = wait_until(lambda: all_of(publisher_of, ended(flower())), 60, "all tasks to end")
    for shown in (inspected, ended_in_flower):
        by_publisher = {
            name: [shown[id] for id in publisher_of if publisher_of[id] == name] for name in DAYS
        }
        assert common(by_publisher["redis-bulk"]) == common(by_publisher["group"])
    for job_id, task in inspected.items():
        job = ledger.row("SELECT user_id, partition_key FROM sync_jobs WHERE job_id = %s", job_id)
        assert task["args"] == [str(job["user_id"]), job["partition_key"], "scheduler.daily"]
    assert {task["state"] for task in ended_in_flower.values()} == {"SUCCESS"}


def active(environment: Mapping[str, str], folder: Path) -> dict[str, Task]:
    """Returns the running tasks that `celery inspect` shows, by their ids."""
    log = folder / "inspect.log"
    log.unlink(missing_ok=True)
    process = stock(environment, log, "inspect", "active", "--json")
    with started(process):
        process.wait(60)
    answers = [json.loads(line) for line in process.log().splitlines() if line.startswith("{")]
    return {task["id"]: task for answer in answers for tasks in answer.values() for task in tasks}


def ended(tasks: dict[str, Task]) -> dict[str, Task]:
    return {task_id: task for task_id, task in tasks.items() if task["succeeded"]}


def all_of(wanted: Mapping[str, object], found: dict[str, Task]) -> dict[str, Task]:
    """Returns the found tasks once all wanted ones are among them, otherwise an empty dict."""
    return found if found.keys() == wanted.keys() else {}


def common(tasks: list[Task]) -> list[Task]:
    """Returns what tasks must have in common. Of times only their presence counts."""
    return [
        {
            name: value is not None if name in OF_A_MOMENT else value
            for name, value in task.items()
            if name not in OF_ONE_TASK
        }
        for task in tasks
    ]
