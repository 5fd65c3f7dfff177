"""Ctrl-C and SIGTERM: a command stops at a safe point, and says what becomes of what it began."""

import os
import re
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command_line import Outcome, as_process, outcome_of
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import Process, started
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.cli.interruption import finished_within, interruption
from worker_scheduler.config.options import TickOptions
from worker_scheduler.config.settings import load
from worker_scheduler.fanout.report import Report
from worker_scheduler.ledger.tables import Kind

Scheduler = Callable[..., Outcome]

ROOT = Path(__file__).resolve().parents[2]
DAY = "2026-11-23"
KEY = f"daily:{DAY}"
SLOW = ["daily", "--date", DAY, "--enqueue-batch-size", "10", "--enqueue-sleep-seconds", "60"]
BOTH = pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])


@contextmanager
def ticking(environment: dict[str, str], folder: Path, *command: str) -> Iterator[Process]:
    tick = Process([sys.executable, "-m", "worker_scheduler", *command], environment, folder / "tick.log")
    with started(tick):
        yield tick


@BOTH
def test_an_interrupted_tick_says_that_reconcile_finishes_its_run(
    sent: signal.Signals,
    environment: dict[str, str],
    ledger: Ledger,
    broker: Broker,
    tmp_path: Path,
) -> None:
    """In the pause between two batches, which is where a tick spends its time."""
    make_users(ledger.url, 20)
    environment |= {"LEASE_SECONDS": "2", "RECONCILE_INTERVAL_SECONDS": "7"}
    with ticking(environment, tmp_path, *SLOW) as tick:
        enqueued = "SELECT count(*) = 1 FROM sync_batches WHERE enqueued_at IS NOT NULL"
        wait_until(lambda: ledger.value(enqueued), 30, "the first batch")
        tick.send(sent)
        assert tick.wait(20) == 130, tick.log()
    said = tick.log().splitlines()[-1]
    assert said == "scheduler: interrupted; reconcile will finish this run within 9 s"
    assert "Traceback" not in tick.log()
    assert broker.count("daily") == 10
    assert as_process(environment, "reconcile").status == 0  # one pass, as Beat triggers it
    assert ledger.count(KEY) == broker.count("daily") == 20


def test_the_same_command_goes_on_at_once(
    environment: dict[str, str], scheduler: Scheduler, ledger: Ledger, broker: Broker, tmp_path: Path
) -> None:
    make_users(ledger.url, 20)
    with ticking(environment, tmp_path, *SLOW) as tick:
        wait_until(lambda: broker.count("daily") == 10, 30, "the first batch")
        tick.send(signal.SIGINT)
        assert tick.wait(20) == 130
    report = scheduler(*SLOW[:3], "--json").report
    assert (report["outcome"], report["jobs_enqueued"]) == ("enqueued", 10)


@BOTH
def test_a_tick_that_stored_no_run_says_so(
    sent: signal.Signals, environment: dict[str, str], ledger: Ledger, broker: Broker, tmp_path: Path
) -> None:
    """It waits for a table that another session has locked; the second signal ends the wait."""
    make_users(ledger.url, 1)
    with ledger.locked("sync_runs"), ticking(environment, tmp_path, "daily", "--date", DAY) as tick:
        wait_until(lambda: ledger.value(WAITING), 30, "a tick that waits")
        tick.send(sent)
        time.sleep(0.5)  # a signal that comes together with the first is one with it
        assert tick.running
        tick.send(sent)
        assert tick.wait(30) == 130, tick.log()
    assert tick.log().splitlines()[-1] == (
        "scheduler: interrupted; no run was stored: run the same command again"
    )
    assert "Traceback" not in tick.log()
    assert (ledger.count(), broker.counts()) == (0, {})


WAITING = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"


@BOTH
def test_a_command_whose_modules_are_still_being_loaded_says_so(
    sent: signal.Signals, environment: dict[str, str], tmp_path: Path
) -> None:
    """That takes a second, in which somebody who sees a wrong date presses Ctrl-C."""
    slow = "import pathlib, time; pathlib.Path('loading').touch(); time.sleep(60)"
    (tmp_path / "typer.py").write_text(slow)
    environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with ticking(environment, tmp_path, "daily", "--date", DAY) as tick:
        wait_until((tmp_path / "loading").exists, 30, "the first slow module")
        tick.send(sent)
        assert tick.wait(30) == 130
    assert tick.log() == "scheduler: interrupted; nothing was begun\n"


def test_the_installed_command_begins_in_the_same_way() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"scheduler": "worker_scheduler.__main__:main"}


def test_a_signal_that_is_ignored_stays_ignored(environment: dict[str, str], tmp_path: Path) -> None:
    """As Ctrl-C is by `nohup`, and by a shell's background job."""
    code = (
        "import atexit, sys; from signal import *; signal(SIGINT, SIG_IGN); sys.argv[1:] = ['--help']\n"
        "atexit.register(lambda: print(getsignal(SIGINT) is SIG_IGN))\n"
        "from worker_scheduler.__main__ import main; main()"
    )
    ended = outcome_of([sys.executable, "-c", code], environment, ROOT)
    assert ended.stdout.endswith("True\n")


def test_a_signal_before_the_run_is_stored_leaves_no_run(
    environment: dict[str, str], ledger: Ledger, broker: Broker, tmp_path: Path
) -> None:
    """While Celery is loaded, which takes longer than all the rest."""
    make_users(ledger.url, 1)
    code = (
        "import os, signal, sys; from contextlib import contextmanager\n"
        "from worker_scheduler import wiring; from worker_scheduler.cli import main\n"
        "opened = wiring.tick_context\n"
        "@contextmanager\n"
        "def interrupted(*arguments):\n"
        "    with opened(*arguments) as context:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        yield context\n"
        f"wiring.tick_context = interrupted; sys.argv[1:] = ['daily', '--date', '{DAY}']; main()"
    )
    ended = outcome_of([sys.executable, "-c", code], environment, ROOT)
    assert ended.status == 130
    assert ended.error == "interrupted; no run was stored: run the same command again"
    assert (ledger.count(), broker.counts()) == (0, {})


@BOTH
def test_a_signal_waits_for_a_safe_point_and_a_second_one_does_not(sent: signal.Signals) -> None:
    before = signal.getsignal(sent)
    with interruption() as interrupted:
        os.kill(os.getpid(), sent)
        with pytest.raises(KeyboardInterrupt):
            interrupted.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), sent)
            time.sleep(5)  # for Python to call the handler
    assert signal.getsignal(sent) is before


@pytest.mark.parametrize(
    ("left", "given", "variables", "seconds"),
    [
        (10, {}, {}, 105),
        (10, {"enqueue_batch_size": 10}, {}, 105),
        # Batches that are planned keep their size; the pauses are those of reconcile.
        (10_000, {"enqueue_batch_size": 10, "enqueue_sleep_seconds": 60}, {}, 305),
        (10_000, {}, {}, 115),
        (0, {}, {"LEASE_SECONDS": "1.5", "RECONCILE_INTERVAL_SECONDS": "1"}, 3),
        (0, {}, {"LEASE_SECONDS": "60", "RECONCILE_INTERVAL_SECONDS": "3600"}, 3660),
    ],
)
def test_the_time_is_that_of_reconcile_and_its_pauses(
    left: int,
    given: dict[str, object],
    variables: dict[str, str],
    seconds: int,
    deployed: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ENQUEUE_SLEEP_SECONDS")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    report = Report(mode=Kind.DAILY, users_total_selected=left + 7, jobs_enqueued=7)
    assert finished_within(load(), TickOptions.model_validate(given), report) == f"{seconds} s"


def test_with_a_full_queue_it_needs_space_too(deployed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_QUEUE_DEPTH", "10")
    said = finished_within(load(), TickOptions(), Report(mode=Kind.DAILY))
    assert re.fullmatch(r"\d+ s, if the queue has space", said)
