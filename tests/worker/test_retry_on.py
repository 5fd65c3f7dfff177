"""SYNC_RETRY_ON: which errors of a handler are tried again."""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.support.command_line import Outcome
from tests.support.contexts import NOON
from tests.support.own_worker import Deployment, raising
from tests.support.site import Site
from tests.support.waiting import wait_until
from worker_scheduler.config.settings import load
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.maintenance import reconciler
from worker_scheduler.worker import JobTimeout, RetryLater, SkipJob
from worker_scheduler.worker.handler_check import check_handler
from worker_scheduler.worker.pool_memory import PoolMemory
from worker_scheduler.worker.retry_on import load_retry_on, loaded_at_first_error

HANDLER = "tests.support.handlers:complete"


class Busy(Exception):
    """An error of an application."""


class VeryBusy(Busy):
    """A kind of it."""


BUSY = f"{__name__}.Busy"


@pytest.mark.parametrize(
    ("value", "error", "again"),
    [
        ("none", ValueError("boom"), False),
        ("none", JobTimeout(), False),
        ("all", ValueError("boom"), True),
        ("all", JobTimeout(), True),
        ("all", SystemExit(1), True),
        ("ValueError", ValueError("boom"), True),
        ("ValueError", UnicodeError("a kind of ValueError"), True),
        ("ValueError", TypeError("boom"), False),
        ("TypeError,ValueError", ValueError("boom"), True),
        (BUSY, VeryBusy("boom"), True),
        (BUSY, ValueError("boom"), False),
        ("JobTimeout", JobTimeout(), True),
        ("worker_scheduler.JobTimeout", JobTimeout(), True),
        ("urllib.error.URLError", OSError("its base class"), False),
    ],
)
def test_an_error_is_tried_again_if_its_class_is_named(
    value: str, error: BaseException, again: bool, deployment: Deployment
) -> None:
    (job_id,) = deployment.jobs(1)
    job = deployment.retrying(value).run(job_id, error)
    assert job["status"] == ("PENDING" if again else "FAILED")
    assert job["error_message"].startswith(type(error).__name__)
    if again:
        assert timedelta(seconds=15) <= job["not_before"] - NOON <= timedelta(seconds=30)


@pytest.mark.parametrize(
    ("value", "again"),
    [
        ("JobTimeout", True),
        ("worker_scheduler.worker.types.JobTimeout", True),
        ("BaseException", True),
        ("builtins.BaseException", True),
        ("TimeoutError", False),
        ("tests.support.broken_module.Busy", False),
        ("tests.support.broken_module.Busy,JobTimeout", True),
    ],
)
def test_whether_a_timeout_is_tried_again_is_known_without_an_import(
    value: str, again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The main process of a prefork worker asks; its pool would share what the module opens."""
    assert loaded_at_first_error(value)(JobTimeout()) is again
    assert "tests.support.broken_module" not in sys.modules
    assert caplog.text == ""


def test_a_misspelt_name_does_not_keep_a_timeout_from_ending_its_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In another code base's task, which nothing checks before it starts."""
    assert loaded_at_first_error("jobtimeout")(JobTimeout()) is False
    assert "SYNC_RETRY_ON: jobtimeout is not a class of exceptions" in caplog.text


def test_another_name_for_what_a_timeout_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Busy", JobTimeout)
    with pytest.raises(ConfigurationError, match="is JobTimeout: write JobTimeout"):
        load_retry_on(BUSY)


HANGING = "tests.support.hanging_module"


def test_a_class_whose_import_hangs_is_no_reason_to_wait_in_a_pool(deployment: Deployment) -> None:
    memory = PoolMemory()
    memory.enter(0)
    (job_id,) = deployment.jobs(1)
    worker = replace(
        deployment.worker,
        retry_on=loaded_at_first_error(f"{HANGING}.Busy"),
        timeout_seconds=1.0,
        memory=memory,
    )
    worker.run(job_id, raising(ValueError("boom")))
    job = deployment.ledger.job(job_id)
    assert (job["status"], job["error_message"]) == ("FAILED", "timed out after 1 s")
    assert HANGING not in sys.modules


def test_a_class_whose_import_hangs_is_no_reason_to_wait_in_a_claim(deployment: Deployment) -> None:
    (job_id,) = deployment.jobs(1)
    retry_on = loaded_at_first_error(f"{HANGING}.Busy")
    worker = replace(deployment.worker, retry_on=retry_on, timeout_seconds=1.0)

    def body() -> None:
        with worker.claim(job_id):
            raise ValueError("boom")

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(body)
        wait_until(lambda: deployment.ledger.job(job_id)["status"] == "FAILED", 30, "a FAILED job")
        with pytest.raises(ValueError, match="boom"):
            done.result(60)
    assert deployment.ledger.job(job_id)["error_message"] == "timed out after 1 s"


def test_the_last_attempt_fails_with_its_error(deployment: Deployment) -> None:
    deployment = deployment.retrying("all")
    (job_id,) = deployment.jobs(1)
    for attempt in (1, 2):
        job = deployment.run(job_id, ValueError("boom"))
        assert (job["status"], job["attempt"]) == ("PENDING", attempt)
        deployment.clock.forward(timedelta(minutes=1))
        assert reconciler.due_jobs(deployment.context) == 1
    job = deployment.run(job_id, ValueError("boom"))
    assert job["error_message"] == "gave up after 3 attempts: ValueError: boom"


def test_skip_and_retry_later_stay_what_they_are(deployment: Deployment) -> None:
    first, second = deployment.jobs(2)
    deployment = deployment.retrying("all")
    assert deployment.run(first, SkipJob("nothing to do"))["status"] == "SKIPPED"
    job = deployment.run(second, RetryLater("later", delay=0))
    assert (job["status"], job["not_before"]) == ("PENDING", NOON)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (" None ", "none"),
        ("ALL", "all"),
        ("ValueError , my_app.errors.Busy", "ValueError,my_app.errors.Busy"),
    ],
)
def test_the_setting_is_read_in_any_spelling(
    given: str, read: str, deployed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNC_RETRY_ON", given)
    assert load().sync_retry_on == read


@pytest.mark.parametrize("given", ["all,ValueError", "a b", "my_app:Busy", ",", "ValueError,", "1x", "*"])
def test_a_setting_that_is_no_list_of_classes_is_refused(
    given: str, scheduler: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNC_RETRY_ON", given)
    outcome = scheduler("status")
    assert outcome.status == 2
    (line,) = outcome.error.splitlines()
    assert f"SYNC_RETRY_ON='{given}' is not a list of classes" in line


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("my_app.Busy", "SYNC_RETRY_ON: my_app.Busy cannot be imported: No module named 'my_app'"),
        ("json.nothing", "SYNC_RETRY_ON: json.nothing cannot be imported:"),
        ("json.dumps", "SYNC_RETRY_ON: json.dumps is not a class of exceptions"),
        ("ValueErorr", "SYNC_RETRY_ON: ValueErorr is not a class of exceptions"),
        ("print", "SYNC_RETRY_ON: print is not a class of exceptions"),
    ],
)
def test_a_worker_with_an_unknown_class_does_not_start(value: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{fault}"):
        check_handler(HANDLER, value)


def test_a_class_that_cannot_be_imported_at_the_first_error_does_not_hide_the_error(
    deployment: Deployment,
) -> None:
    lost = replace(deployment.worker, retry_on=loaded_at_first_error("my_app.Busy"))
    (job_id,) = deployment.jobs(1)
    job = replace(deployment, worker=lost).run(job_id, ValueError("boom"))
    assert (job["status"], job["error_message"]) == ("FAILED", "ValueError: boom")


@pytest.mark.parametrize(
    ("value", "again"),
    [
        ("none", False),
        ("all", True),
        ("my_app.Busy", False),
        ("my_app.Busy,JobTimeout", True),
        ("worker_scheduler.JobTimeout,my_app.Busy", True),
        ("my_app.Busy,BaseException", True),
        ("Exception", False),  # JobTimeout is none
    ],
)
def test_for_a_time_limit_nothing_of_the_application_is_imported(
    value: str, again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The main process of a prefork worker asks, too. There is no `my_app` here."""
    assert loaded_at_first_error(value)(JobTimeout()) == again
    assert caplog.text == ""


def test_names_are_found_through_any_path() -> None:
    assert load_retry_on("json.JSONDecodeError")(json.JSONDecodeError("", "", 0))


@pytest.mark.slow
def test_a_real_worker_tries_a_failed_job_again(site: Site) -> None:
    def failed_once() -> bool:
        job = site.job()
        return bool(job["status"] == "PENDING" and job["attempt"] == 1)

    with site.worker("fail", SYNC_RETRY_ON="RuntimeError,JobTimeout", SYNC_MAX_ATTEMPTS="2") as worker:
        wait_until(failed_once, 30, "a failed attempt")
        site.ledger.execute("UPDATE sync_jobs SET not_before = now()")
        job = site.reconcile_until("FAILED")
        assert "job failed" in worker.log()
    assert job["attempt"] == 2
    assert job["error_message"] == "gave up after 2 attempts: RuntimeError: no such account"
