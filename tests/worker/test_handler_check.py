"""What a worker finds out about its handler before it starts, without importing it itself."""

import importlib
import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import Process, alive, celery, started
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler import logs
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.fanout import tick
from worker_scheduler.worker import handler_check
from worker_scheduler.worker.handler_check import check_handler

PREFORK = ("--pool", "prefork", "--concurrency", "2", "--loglevel", "INFO")
NOTED = """
import os, pathlib
(pathlib.Path(os.environ["HANDLER_FOLDER"]) / f"imported-{os.getpid()}-{os.getppid()}").touch()
"""


def handler_module(folder: Path, text: str, name: str = "their_handler") -> str:
    """Writes a module with a function `handle`; returns the value for SYNC_HANDLER."""
    (folder / f"{name}.py").write_text(text + "\ndef handle(job):\n    pass\n")
    return f"{name}:handle"


def worker(environment: dict[str, str], folder: Path, handler: str, *more: str) -> Process:
    own = {"SYNC_HANDLER": handler, "HANDLER_FOLDER": str(folder), "PYTHONPATH": str(folder)}
    arguments = ("worker", "-Q", "daily", *(more or PREFORK), "--without-gossip", "--without-mingle")
    return celery(environment | own, folder / "worker.log", *arguments)


@pytest.mark.slow
def test_only_pool_processes_import_the_handler(
    deployed: None, environment: dict[str, str], ledger: Ledger, broker: Broker, tmp_path: Path
) -> None:
    from tests.support.contexts import context_at
    from worker_scheduler.clock import utc_now

    def imported() -> set[tuple[str, ...]]:
        return {tuple(noted.name.split("-")[1:]) for noted in tmp_path.glob("imported-*")}

    make_users(ledger.url, 4)
    process = worker(environment, tmp_path, handler_module(tmp_path, NOTED))
    with started(process):
        process.wait_for_log("ready.")
        ((checked_by, main),) = imported()  # one import so far: by a process that only checked it
        assert (int(main), checked_by) == (process.pid, checked_by)
        assert not Path(f"/proc/{checked_by}").exists()
        with context_at(utc_now) as context:
            tick.daily(context, DailyOptions())
        wait_until(lambda: dict(ledger.states()) == {"COMPLETED": 4}, 30, "the end of the jobs")
    by_pool = imported() - {(checked_by, main)}
    assert 1 <= len(by_pool) <= 2
    assert all(parent == main and own != main for own, parent in by_pool)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_main_process_does_not_import_it_to_learn_what_is_tried_again(
    deployed: None, environment: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    """It ends a job whose handler goes on 30 s after its time limit, and errors of the handler's module are
    tried again.
    """
    from tests.support.contexts import context_at
    from worker_scheduler.clock import utc_now

    goes_on = """
class Busy(Exception): ...
def goes_on(job):
    while True:
        try: time.sleep(600)
        except BaseException: pass
"""
    make_users(ledger.url, 1)
    handler_module(tmp_path, NOTED + "import time" + goes_on)
    environment |= {"SYNC_RETRY_ON": "their_handler.Busy", "JOB_TIMEOUT_SECONDS": "1"}
    process = worker(environment, tmp_path, "their_handler:goes_on")
    with started(process), context_at(utc_now) as context:
        process.wait_for_log("ready.")
        tick.daily(context, DailyOptions())
        process.wait_for_log("process killed, its job went on", 90)
        assert ledger.states() == {"FAILED": 1}
        importers = {int(noted.name.split("-")[1]) for noted in tmp_path.glob("imported-*")}
    assert len(importers) == 2  # the check, and one process of the pool
    assert process.pid not in importers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (r"raise RuntimeError('no\nkey')", r"cannot be imported: RuntimeError: no\nkey"),
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0"),
        ("raise KeyboardInterrupt", "cannot be imported: KeyboardInterrupt"),
        ("import os; os._exit(0)", "its module ends the process that imports it (exit status 0)"),
        ("import os; os.kill(os.getpid(), 11)", "its module ends the process that imports it (signal 11)"),
    ],
)
def test_a_module_that_cannot_be_imported_stops_the_start_in_one_line(
    module: str, said: str, environment: dict[str, str], tmp_path: Path
) -> None:
    process = worker(environment, tmp_path, handler_module(tmp_path, module))
    with started(process):
        assert process.wait(60) == 2, process.log()
    (line,) = [line for line in process.log().splitlines() if line.startswith("worker_scheduler: ")]
    assert line.startswith("worker_scheduler: SYNC_HANDLER='their_handler:handle'")
    assert said in line
    assert "Traceback" not in process.log()


@pytest.mark.parametrize(
    "noise",
    [
        "print('x' * 200_000)",
        "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()",
        "import os, time\nif os.fork() == 0:\n    time.sleep(3); os._exit(0)",
        "import os; os.close(0); os.close(1)",
        "import atexit, time; atexit.register(time.sleep, 600)",
        "import sys; sys.stdout = None; sys.stderr = None",
    ],
    ids=[
        "prints",
        "starts a thread",
        "leaves a process",
        "closes stdout",
        "waits at exit",
        "has no stdout",
    ],
)
def test_what_a_module_does_when_it_is_imported_does_not_matter(
    noise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"noisy_{abs(hash(noise))}"
    check_handler(handler_module(tmp_path, noise, name))
    assert name not in sys.modules


def test_a_module_whose_import_does_not_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    note = f"import os, pathlib, time; pathlib.Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid()))"
    handler = handler_module(tmp_path, f"{note}\ntime.sleep(600)", "endless")
    for seconds in (1.5, 6, 24, 96):  # until the process gets as far as the module, on a busy machine
        monkeypatch.setattr(handler_check, "_LONGEST_IMPORT_SECONDS", seconds)
        with pytest.raises(ConfigurationError) as caught:
            check_handler(handler)
        text = f"SYNC_HANDLER='endless:handle': its module was not imported within {seconds:g} s"
        assert str(caught.value) == text
        if (tmp_path / "pid").exists():
            break
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_class_whose_import_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_check, "_LONGEST_IMPORT_SECONDS", 1.5)
    with pytest.raises(ConfigurationError, match=r"SYNC_RETRY_ON='tests.support.hanging_module.Busy'"):
        check_handler("tests.support.handlers:complete", "tests.support.hanging_module.Busy")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_the_process_that_checks_ends_with_a_worker_that_is_stopped(
    sent: signal.Signals, deployed: None, environment: dict[str, str], tmp_path: Path
) -> None:
    """Celery handles no signal yet. Otherwise each start of a worker could leave a process that hangs."""

    def checking() -> list[psutil.Process]:
        noted = [int(noted.name.split("-")[1]) for noted in tmp_path.glob("imported-*")]
        return [psutil.Process(pid) for pid in noted]

    process = worker(
        environment, tmp_path, handler_module(tmp_path, f"{NOTED}import time; time.sleep(600)")
    )
    with started(process):
        (child,) = wait_until(checking, 60, "the import")
        try:
            process.send(sent)
            assert process.wait(30) == -sent
            wait_until(lambda: not alive(child), 30, "the end of the check")
        finally:
            child.kill()


def test_the_check_finds_what_the_worker_would_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own path counts: the command `celery` puts folders on it that no variable names."""
    handler = handler_module(tmp_path, "", "on_the_path")
    with pytest.raises(ConfigurationError, match=r"No module named 'on_the_path'; .*PYTHONPATH=\."):
        check_handler(handler)
    monkeypatch.syspath_prepend(tmp_path)
    check_handler(handler)


def test_a_module_that_the_main_process_has_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For example by `celery worker --include my_app.sync`. It cannot be undone, so the worker warns."""
    logs.configure("INFO")
    monkeypatch.syspath_prepend(tmp_path)
    handler = handler_module(tmp_path, "", "imported_early")
    handler_check.warn_if_imported(handler)
    assert caplog.text == ""
    importlib.import_module("imported_early")
    handler_check.warn_if_imported(handler)
    assert 'event="handler imported before the fork" module=imported_early' in caplog.text


@pytest.mark.slow
def test_an_import_that_fails_in_a_pool_process_counts_as_an_attempt(
    deployed: None, environment: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    """Its database may be away, or it cannot be imported there at all: the job must not wait for ever."""
    from tests.support.contexts import context_at
    from worker_scheduler.clock import utc_now

    make_users(ledger.url, 1)
    breaks = "import os, sys\nif os.path.exists('broken'): sys.exit('no key')"
    process = worker(environment, tmp_path, handler_module(tmp_path, breaks))
    with started(process), context_at(utc_now) as context:
        process.wait_for_log("ready.")
        (tmp_path / "broken").touch()
        tick.daily(context, DailyOptions())
        wait_until(lambda: [j["error_message"] for j in ledger.jobs()] != [None], 30, "the first attempt")
        assert process.running
    (job,) = ledger.jobs()
    assert (job["status"], job["attempt"]) == ("PENDING", 1)
    said = "SYNC_HANDLER='their_handler:handle' cannot be imported: SystemExit: no key"
    assert job["error_message"] == said
    assert job["not_before"] is not None
    assert re.search(f'event="handler not imported".*{re.escape(said)}', process.log())
