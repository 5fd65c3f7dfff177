"""Variables that resemble one of ours are named, with what was probably meant."""

import os
from collections.abc import Callable

import pytest

from tests.support.command_line import Outcome, in_this_process
from tests.support.ledger import Ledger
from tests.support.users import make_users
from worker_scheduler.config.settings import misspelt

Scheduler = Callable[..., Outcome]

SECRET = "s3cr3t"

MISSPELT = {
    "ENQUEUE_BATCH_SIZ": "ENQUEUE_BATCH_SIZE",
    "ENQUEUE_BATCHSIZE": "ENQUEUE_BATCH_SIZE",
    "DAILY_TICK_CORN": "DAILY_TICK_CRON",
    "SCHEDULER_LOCKS_ENABLED": "SCHEDULER_LOCK_ENABLED",
    "SYNC_MAX_ATTEMPT": "SYNC_MAX_ATTEMPTS",
    "max_queue_dept": "MAX_QUEUE_DEPTH",
    "LOGLEVEL": "LOG_LEVEL",
    "PUBLISER": "PUBLISHER",
    "CELERY_BROKER_URI": "CELERY_BROKER_URL",
}
UNRELATED = [
    *("HOME", "PATH", "PYTHONPATH", "LANG", "USER", "SHELL", "HOSTNAME", "PORT", "TZ", "DEBUG", "LC_ALL"),
    *(
        "DATABASE_URLS",
        "DATABASE_URL_RO",
        "TEST_DATABASE_URL",
        "DATABASE_POOL_SIZE",
        "PGUSER",
        "PGPASSWORD",
    ),
    *("REDIS_URLS", "REDIS_TLS_URL", "REDIS_HOST", "HEROKU_POSTGRESQL_AMBER_URL", "SECRET_KEY"),
    *("CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND", "CELERY_LOG_LEVEL"),
    *("WORKER_CONCURRENCY", "WEB_CONCURRENCY", "SCHEDULER_DAILY_ARGS", "SCHEDULER_BACKFILL_ARGS"),
    *("SYNC_INTERVAL", "USERS_TABLE", "BATCH_SIZE", "MAX_JOBS", "SLEEP_SECONDS", "REMAP_SIGTERM"),
]


@pytest.mark.usefixtures("urls")
class TestMisspeltVariables:
    """A variable that looks like one of the scheduler's: a warning of `scheduler check`, not a fault."""

    @pytest.mark.parametrize(("name", "meant"), MISSPELT.items())
    def test_it_is_recognised(self, name: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, SECRET)
        assert misspelt(os.environ) == {name: meant}

    @pytest.mark.parametrize("name", UNRELATED)
    def test_an_unrelated_variable_is_not(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, SECRET)
        assert misspelt(os.environ) == {}

    def test_a_variable_that_is_set_is_not_taken_for_the_one_meant(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOGLEVEL", "info")
        monkeypatch.setenv("LOG_LEVEL", "")
        assert misspelt(os.environ) == {"LOGLEVEL": "LOG_LEVEL"}
        monkeypatch.setenv("LOG_LEVEL", "INFO")
        assert misspelt(os.environ) == {}

    def test_it_is_a_warning_beside_faults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DATABASE_URL")
        monkeypatch.setenv("DATABASE_ULR", SECRET)
        outcome = in_this_process("check")
        assert outcome.status == 2
        fault, warning = outcome.stdout.splitlines()
        assert fault.startswith("FAULT configuration: DATABASE_URL is not set: ")
        assert warning == (
            "warn  configuration: DATABASE_ULR is not a variable of the scheduler and is ignored."
            " Did you mean DATABASE_URL?"
        )

    def test_it_changes_no_exit_status(
        self, scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_users(ledger.url, 1)
        monkeypatch.setenv("ENQUEUE_BATCH_SIZ", SECRET)
        outcome = scheduler("check")
        assert (outcome.status, outcome.faults) == (0, [])
        (warning,) = [line for line in outcome.stdout.splitlines() if line.startswith("warn ")]
        assert "Did you mean ENQUEUE_BATCH_SIZE?" in warning
        assert SECRET not in outcome.stdout + outcome.stderr
