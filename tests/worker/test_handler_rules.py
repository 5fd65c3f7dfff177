"""A handler must have done its job when it returns; otherwise it is refused at start, or its job fails."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tests.support import odd_handlers
from tests.support.command_line import Outcome
from tests.support.contexts import context_at
from tests.support.ledger import Ledger
from tests.support.processes import started, worker_of
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.fanout import tick
from worker_scheduler.wiring import process_worker
from worker_scheduler.worker.handler import load_handler

Scheduler = Callable[..., Outcome]

REFUSED = {
    "a_text": "an object of the type str",
    "Plain": "a class",
    "coroutine": "an async function",
    "async_generator": "an async generator function",
    "generator": "a generator function",
    "async_object": "an object with an async function as its __call__",
    "decorated_object": "an object with an async function as its __call__",
    "async_method": "an async function",
    "async_strict": "an object with an async function as its __call__",
    "decorated": "a decorator around an async function",
    "decorated_generator": "a decorator around a generator function",
    "cached": "a decorator around an async function",
    "async_partial": "a partial of an async function",
    "partial_of_decorated": "a partial of an async function",
    "no_argument": "a function that cannot be called with one argument",
    "two_arguments": "a function that cannot be called with one argument",
}
ACCEPTED = [
    *("plain_partial", "plain_object", "plain_method", "decorated_plain", "run_by_decorator"),
    *("strict_object", "lazy_object"),
]
FAILED = {
    "returns_a_coroutine": "a coroutine, which nobody awaits",
    "returns_a_started_coroutine": "a coroutine, which nobody awaits",
    "returns_an_awaitable": "an object to await (Awaitable), which nobody awaits",
    "returns_a_generator": "a generator, which nobody iterates",
    "returns_an_async_generator": "an async generator, which nobody iterates",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_seen_is_refused_with_what_to_write_instead(name: str) -> None:
    handler = f"tests.support.odd_handlers:{name}"
    with pytest.raises(ConfigurationError) as caught:
        load_handler(handler)
    said = str(caught.value)
    assert said.startswith(f"SYNC_HANDLER='{handler}' cannot be a handler: it is {REFUSED[name]}: ")
    assert "\n" not in said
    if "async" in said:
        assert f"asyncio.run({'main' if 'generator' in said else name}(job))" in said


@pytest.mark.parametrize("name", ACCEPTED)
def test_whatever_does_the_job_when_it_is_called_is_accepted(name: str) -> None:
    handler = load_handler(f"tests.support.odd_handlers:{name}")
    odd_handlers.ran.clear()
    handler(None)  # type: ignore[arg-type] # they look at no job
    assert len(odd_handlers.ran) == 1


def test_an_object_that_answers_to_every_name_is_looked_at_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Endless:
        def __getattr__(self, name: str) -> object:
            return Endless()

        def __call__(self, job: object) -> None: ...

    monkeypatch.setattr(odd_handlers, "endless", Endless(), raising=False)
    load_handler("tests.support.odd_handlers:endless")


@pytest.mark.parametrize("name", FAILED)
def test_a_handler_that_returns_work_fails_its_job(
    name: str, deployed: None, job_id: UUID, ledger: Ledger, recwarn: pytest.WarningsRecorder
) -> None:
    process_worker().run(job_id, getattr(odd_handlers, name))
    row = ledger.job(job_id)
    assert row["status"] == "FAILED"
    assert row["error_message"].startswith(f"UnfinishedWork: the handler returned {FAILED[name]}: ")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("name", ["strict_object", "lazy_object"])
def test_an_object_that_cannot_be_looked_at_may_be_returned(
    name: str, deployed: None, job_id: UUID, ledger: Ledger
) -> None:
    process_worker().run(job_id, lambda _: getattr(odd_handlers, name))
    row = ledger.job(job_id)
    assert (row["status"], row["error_message"]) == ("COMPLETED", None)


def test_no_warning_of_python_comes_beside_the_line(deployed: None, environment: dict[str, str]) -> None:
    """In a process of its own: pytest collects such warnings before they are printed."""
    code = (
        "from tests.support import odd_handlers\n"
        "from worker_scheduler.worker.returned import UnfinishedWork, require_finished\n"
        "for name in vars(odd_handlers).copy():\n"
        "    if name.startswith('returns_'):\n"
        "        try: require_finished(vars(odd_handlers)[name](None))\n"
        "        except UnfinishedWork: print(name)\n"
    )
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == list(FAILED)
    assert ended.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["async_object", "decorated", "Plain"])
def test_a_worker_refuses_to_start_with_one_line(
    name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {"SYNC_HANDLER": f"tests.support.odd_handlers:{name}"}
    with started(worker_of(environment, tmp_path / "log", "daily")) as worker:
        assert worker.wait(60) == 2
    (line,) = [line for line in worker.log().splitlines() if line.startswith("worker_scheduler: ")]
    assert REFUSED[name] in line
    assert "Traceback" not in worker.log()


@pytest.mark.slow
@pytest.mark.parametrize(
    "pool", [("solo",), ("threads", "--concurrency", "2"), ("prefork", "--concurrency", "2")]
)
def test_in_every_pool_such_a_job_is_failed_and_the_worker_goes_on(
    pool: tuple[str, ...], deployed: None, environment: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    make_users(ledger.url, 4)
    environment |= {"SYNC_HANDLER": "tests.support.odd_handlers:returns_a_coroutine"}
    with started(worker_of(environment, tmp_path / "log", "daily", "--pool", *pool)) as worker:
        worker.wait_for_log("ready.")
        with context_at(utc_now) as context:
            tick.daily(context, DailyOptions())
        wait_until(lambda: dict(ledger.states()) == {"FAILED": 4}, 30, "the end of the jobs")
        assert worker.running
    texts = {job["error_message"] for job in ledger.jobs()}
    assert len(texts) == 1
    assert re.match("UnfinishedWork: the handler returned a coroutine", texts.pop())
    assert "never awaited" not in worker.log()
