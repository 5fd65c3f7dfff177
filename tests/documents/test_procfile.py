"""The Procfile's processes: each starts as it stands there, and stops in the time platforms give."""

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.ledger import Ledger
from tests.support.processes import Process, alive, started
from tests.support.waiting import wait_until
from worker_scheduler.ledger.schema import NEWEST_VERSION

ROOT = Path(__file__).resolve().parents[2]


def commands(file: str) -> dict[str, str]:
    """The lines of a Procfile: process type → command."""
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines if line.strip())


COMMANDS = commands("Procfile")


def process(name: str, environment: dict[str, str], folder: Path) -> Process:
    return Process(["sh", "-c", f"exec env {COMMANDS[name]}"], environment, folder / "log")


def test_the_documented_processes() -> None:
    assert set(COMMANDS) == {"release", "beat", "scheduler", "worker"}
    assert COMMANDS["release"] == "scheduler migrate"


def test_on_one_machine_the_same_runs_but_the_release_which_ends() -> None:
    """`honcho start` stops everything when one process ends."""
    assert commands("Procfile.dev") == {name: line for name, line in COMMANDS.items() if name != "release"}


def test_release_migrates(environment: dict[str, str], empty_database_url: str, tmp_path: Path) -> None:
    environment["DATABASE_URL"] = empty_database_url
    with started(process("release", environment, tmp_path)) as release:
        assert release.wait(30) == 0, release.log()
    version = Ledger(empty_database_url).value("SELECT version_num FROM worker_scheduler_version")
    assert version == NEWEST_VERSION


@pytest.mark.parametrize(
    ("name", "queues"),
    [
        # Platforms start a new process type with no process: ticks must not need one of `scheduler`.
        ("worker", ["scheduler", "daily", "backfill"]),
        ("scheduler", ["scheduler"]),
    ],
)
def test_the_queues_of_each_worker(name: str, queues: list[str]) -> None:
    words = shlex.split(COMMANDS[name])
    assert words[words.index("-Q") + 1].split(",") == queues
    # Late acknowledgement and a quick stop: what it holds goes back to the queue.
    assert words[0] == "REMAP_SIGTERM=SIGQUIT"


def test_workers_on_one_machine_have_different_names() -> None:
    assert "-n" not in shlex.split(COMMANDS["worker"])  # celery@HOST
    words = shlex.split(COMMANDS["scheduler"])
    assert words[words.index("-n") + 1] == "scheduler@%h"


@pytest.mark.parametrize(
    ("name", "ready"), [("worker", "ready."), ("scheduler", "ready."), ("beat", "Acquired lock")]
)
@pytest.mark.slow
def test_it_starts_and_stops_at_sigterm_within_30_seconds(
    name: str, ready: str, environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {
        "PYTHONPATH": str(ROOT),
        "SYNC_HANDLER": "tests.support.handlers:complete",
        "WORKER_CONCURRENCY": "1",
    }
    if name == "scheduler":
        del environment["SYNC_HANDLER"]  # it does no jobs
    with started(process(name, environment, tmp_path)) as dyno:
        dyno.wait_for_log(ready)
        # To all of its processes, as Heroku does it.
        os.killpg(dyno.pid, signal.SIGTERM)
        dyno.wait(30)
    # Celery's handlers stop pool and scheduler inside of the signal, and what they interrupt may
    # print a traceback of Celery's own (docs/reliability.md); none may come from here.
    assert f'File "{ROOT}/worker_scheduler/' not in dyno.log()


@contextmanager
def all_ended(honcho: Process) -> Iterator[None]:
    """Kills what honcho has started if the block fails: each is in a session of its own."""
    try:
        yield
    except BaseException:
        for child in psutil.Process(honcho.pid).children(recursive=True) if honcho.running else ():
            child.kill()
        raise


@pytest.mark.slow
def test_honcho_starts_everything_and_stops_it(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= {
        "PYTHONPATH": str(ROOT),
        "SYNC_HANDLER": "tests.support.handlers:complete",
        "WORKER_CONCURRENCY": "1",
    }
    command = ["honcho", "--no-colour", "-d", str(tmp_path), "-f", str(ROOT / "Procfile.dev"), "start"]
    with started(Process(command, environment, tmp_path / "log")) as honcho, all_ended(honcho):
        wait_until(lambda: honcho.log().count("ready.") == 2, 60, "both workers")
        honcho.wait_for_log("Acquired lock", 60)
        processes = psutil.Process(honcho.pid).children(recursive=True)
        honcho.send(signal.SIGTERM)
        honcho.wait(30)
        wait_until(lambda: not any(map(alive, processes)), 30, "the end of every process")
    for name in commands("Procfile.dev"):
        assert f" {name}.1 " in honcho.log()
    assert f'File "{ROOT}/worker_scheduler/' not in honcho.log()
