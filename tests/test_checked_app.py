"""Celery uses the broker that was checked, whatever variables it would read by itself."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.command_line import as_process, in_this_process, outcome_of
from tests.support.messages import Broker
from tests.support.processes import celery, started, worker_of
from tests.support.waiting import wait_until

PASSWORD = "s3cr3t"
NOBODY_LISTENS = "redis://127.0.0.1:1/0"


def celery_command(environment: dict[str, str], folder: Path, *arguments: str) -> tuple[int, str]:
    ended = outcome_of(["celery", "-A", "worker_scheduler", *arguments], environment, folder)
    return ended.status, ended.stdout + ended.stderr


@pytest.fixture
def odd(environment: dict[str, str], redis_url: str) -> dict[str, str]:
    """A broker's URL that Celery itself would take for another: it begins with a blank."""
    return environment | {"CELERY_BROKER_URL": f" {redis_url}\n", "REDIS_URL": NOBODY_LISTENS}


@pytest.mark.slow
def test_celery_call_a_worker_and_celery_inspect_use_the_url_that_was_checked(
    odd: dict[str, str], redis_url: str, broker: Broker, tmp_path: Path
) -> None:
    password = urlsplit(redis_url).password
    status, said = celery_command(odd, tmp_path, "call", "scheduler.reconcile")
    assert (status, broker.counts()) == (0, {"scheduler": 1}), said
    with started(
        worker_of(odd, tmp_path / "worker.log", "scheduler", "--pool", "prefork", "-c1")
    ) as worker:
        worker.wait_for_log("scheduler.reconcile")
        wait_until(lambda: broker.counts() == {}, 30, "the worker to take the message")
        status, said = celery_command(odd, tmp_path, "inspect", "ping", "--timeout", "5")
        assert status == 0, said
        assert "pong" in said
        assert password is None or password not in worker.log() + said


def test_beat_uses_the_url_that_was_checked(
    environment: dict[str, str], redis_url: str, broker: Broker, tmp_path: Path
) -> None:
    given = environment | {"CELERY_BROKER_URL": f" {redis_url}", "RECONCILE_INTERVAL_SECONDS": "1"}
    with started(celery(given, tmp_path / "beat.log", "beat", "--loglevel", "INFO")) as beat:
        beat.wait_for_log("Sending due task")
        beat.wait_for_log("scheduler.reconcile")
        assert "localhost" not in beat.log()


def test_the_option_broker_is_checked_like_the_variable(
    environment: dict[str, str], tmp_path: Path
) -> None:
    url = f" amqp://u:{PASSWORD}@a..b//"
    status, said = celery_command(environment, tmp_path, "--broker", url, "call", "scheduler.reconcile")
    assert (status, len(said.splitlines())) == (2, 1), said
    assert "has a host that is neither a name nor an address" in said
    assert PASSWORD not in said


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("rediss://h?ssl_cert_reqs=None", "rediss://h?ssl_cert_reqs=none"),
        ("AMQP://u@h//", "amqp://u@h//"),
        ("\tredis://h:1/5 ", "redis://h:1/5"),
    ],
)
def test_the_app_has_the_url_as_it_was_normalised(
    url: str, meant: str, deployed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    import worker_scheduler

    conf = worker_scheduler.app.conf
    assert (conf.broker_url, conf.broker_read_url, conf.broker_write_url) == (meant, meant, meant)
    assert (conf.copy().broker_url, dict(conf.table(censored=False))["broker_url"]) == (meant, meant)
    for connection in (
        worker_scheduler.app.connection_for_read(),
        worker_scheduler.app.connection_for_write(),
    ):
        assert connection.hostname == "h"


@pytest.mark.parametrize("name", ["CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"])
def test_a_second_broker_is_one_line(
    name: str, deployed: None, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"{name} is set, and there is one broker for reading and writing: unset it"
    monkeypatch.setenv(name, environment["REDIS_URL"])  # also if it is the same one
    ended = in_this_process("reconcile")
    assert (ended.status, ended.stderr) == (2, f"scheduler: {line}\n")
    ended = in_this_process("check")
    assert (ended.status, ended.faults) == (2, [f"FAULT configuration: {line}"])
    given = environment | {name: f"redis://:{PASSWORD}@127.0.0.1:1/0"}
    status, said = celery_command(given, tmp_path, "worker")
    assert (status, said) == (2, f"worker_scheduler: {line}\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BROKER_URL", "CELERY_BROKER"])
@pytest.mark.parametrize(
    "arguments", [("worker",), ("beat",), ("report",), ("call", "scheduler.reconcile")]
)
def test_a_variable_that_only_the_command_celery_reads_is_refused(
    name: str, arguments: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    """Also if it says the same: `celery` writes it into CELERY_BROKER_URL, and then no one can tell."""
    line = (
        f"{name} is set, and the command celery would use it as the broker, but the scheduler would not:"
        " unset it; CELERY_BROKER_URL names the broker"
    )
    for url in (environment["REDIS_URL"], f"redis://:{PASSWORD}@127.0.0.1:1/0"):
        ended = as_process(environment | {name: url}, "reconcile")
        assert (ended.status, ended.stderr) == (2, f"scheduler: {line}\n")
        status, said = celery_command(environment | {name: url}, tmp_path, *arguments)
        assert (status, said) == (2, f"worker_scheduler: {line}\n")


def test_no_variable_gives_the_app_a_result_backend_or_another_configuration(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "theirs.py").write_text("broker_url = 'redis://127.0.0.1:1/0'\nresult_backend = 'rpc://'\n")
    given = environment | {
        "CELERY_RESULT_BACKEND": "no-such-backend://h",
        "RESULT_BACKEND": "no-such-backend://h",
        "CELERY_LOADER": "default",
        "LOADER": "default",
        "CELERY_CONFIG_MODULE": "theirs",
        "CONFIG_MODULE": "theirs",
        "C_FORCE_ROOT": "1",
        "PYTHONPATH": str(tmp_path),
    }
    status, said = celery_command(given, tmp_path, "report")
    assert status == 0, said
    assert "results:disabled" in said
