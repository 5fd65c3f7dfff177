"""The Procfile's processes: each starts as it stands there, and stops in the time platforms give."""

import os
import shlex
import signal
from pathlib import Path

import pytest

from tests.support.ledger import Ledger
from tests.support.processes import Process, started
from worker_scheduler.ledger.schema import NEWEST_VERSION

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = dict(
    line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines() if line.strip()
)


def process(name: str, environment: dict[str, str], folder: Path) -> Process:
    return Process(["sh", "-c", f"exec env {COMMANDS[name]}"], environment, folder / "log")


def test_the_documented_processes() -> None:
    assert set(COMMANDS) == {"release", "beat", "worker"}
    assert COMMANDS["release"] == "scheduler migrate"


def test_release_migrates(environment: dict[str, str], empty_database_url: str, tmp_path: Path) -> None:
    environment["DATABASE_URL"] = empty_database_url
    with started(process("release", environment, tmp_path)) as release:
        assert release.wait(30) == 0, release.log()
    version = Ledger(empty_database_url).value("SELECT version_num FROM worker_scheduler_version")
    assert version == NEWEST_VERSION


def test_the_worker_takes_every_queue() -> None:
    words = shlex.split(COMMANDS["worker"])
    assert set(words[words.index("-Q") + 1].split(",")) == {"scheduler", "daily", "backfill"}
    # Late acknowledgement and a quick stop: what it holds goes back to the queue.
    assert words[0] == "REMAP_SIGTERM=SIGQUIT"


@pytest.mark.parametrize(("name", "ready"), [("worker", "ready."), ("beat", "Acquired lock")])
@pytest.mark.slow
def test_it_starts_and_stops_at_sigterm_within_30_seconds(
    name: str, ready: str, environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {
        "PYTHONPATH": str(ROOT),
        "SYNC_HANDLER": "tests.support.handlers:complete",
        "WORKER_CONCURRENCY": "1",
    }
    with started(process(name, environment, tmp_path)) as dyno:
        dyno.wait_for_log(ready)
        # To all of its processes, as Heroku does it.
        os.killpg(dyno.pid, signal.SIGTERM)
        dyno.wait(30)
    # Celery's handlers stop pool and scheduler inside of the signal, and what they interrupt may
    # print a traceback of Celery's own (docs/reliability.md); none may come from here.
    assert f'File "{ROOT}/worker_scheduler/' not in dyno.log()
