"""The Celery app: its settings, and that they are ours whatever lies in the current folder."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.schedules import crontab

from tests.support.command_line import outcome_of
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users


@pytest.fixture
def app(deployed: None) -> Celery:
    import worker_scheduler

    return worker_scheduler.app


def redbeat_opens(app: Celery) -> str:
    """The URL of RedBeat, with the password that is given beside it; shown without."""
    url, password = app.conf.redbeat_redis_url, app.conf.redbeat_redis_options.get("password")
    if password is None:  # a server of the matrix
        return str(url)
    assert password not in url
    return str(url.replace("//", f"//:{password}@"))


TYPES_OF_A_HANDLER = """
import worker_scheduler
from worker_scheduler import RetryLater, SkipJob, SyncJob
from worker_scheduler.worker import RetryLater, SkipJob, SyncJob, claim
"""


def loaded_by(environment: Mapping[str, str], code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded when it has run the code."""
    root = Path(__file__).resolve().parents[1]
    report = f"{code}\nimport sys; print(*sys.modules)"
    outcome = outcome_of([sys.executable, "-c", report], environment, root)
    assert outcome.status == 0, outcome
    return set(outcome.stdout.split())


def celery(
    environment: Mapping[str, str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker_scheduler", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_messages_are_json_only_and_nothing_else_is_read(app: Celery) -> None:
    assert app.conf.task_serializer == "json"
    assert list(app.conf.accept_content) == ["json"]
    assert list(app.conf.result_accept_content) == ["json"]


def test_there_is_no_result_backend(app: Celery) -> None:
    assert app.conf.result_backend is None
    assert app.conf.task_ignore_result
    assert type(app.backend).__name__ == "DisabledBackend"
    assert app.conf.result_expires is None


def test_messages_are_acknowledged_late(app: Celery) -> None:
    assert app.conf.task_acks_late
    assert app.conf.task_acks_on_failure
    assert app.conf.task_acks_on_timeout
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.worker_disable_prefetch


def test_times_are_utc(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.conf.enable_utc
    assert app.conf.timezone == "UTC"


def test_queues_keep_ticks_and_the_daily_run_in_front(app: Celery) -> None:
    assert [queue.name for queue in app.conf.task_queues] == ["scheduler", "daily", "backfill"]
    assert app.conf.broker_transport_options["queue_order_strategy"] == "priority"
    assert app.conf.task_default_queue == "scheduler"
    routed = {
        name: app.amqp.router.route({}, name)["queue"].name
        for name in ("scheduler.daily_tick", "scheduler.backfill", "sync_user")
    }
    assert routed == {
        "scheduler.daily_tick": "scheduler",
        "scheduler.backfill": "scheduler",
        "sync_user": "daily",
    }


def test_the_documented_tasks_are_there(app: Celery) -> None:
    app.loader.import_default_modules()
    assert {"scheduler.daily_tick", "scheduler.backfill", "sync_user"} <= set(app.tasks)


def test_beat_is_redbeat_and_recovers_in_minutes(app: Celery, redis_url: str) -> None:
    assert app.conf.beat_scheduler == "worker_scheduler.beat:Scheduler"
    assert redbeat_opens(app) == redis_url
    assert app.conf.beat_max_loop_interval == 30
    assert 3 * 30 <= app.conf.redbeat_lock_timeout <= 300


def test_beat_rings_daily_by_its_variables(app: Celery) -> None:
    entry = app.conf.beat_schedule["daily-tick"]
    assert entry["task"] == "scheduler.daily_tick"
    assert entry["schedule"] == crontab(minute="0", hour="2")
    assert entry["options"] == {"queue": "scheduler"}


@pytest.mark.parametrize(
    ("cron", "zone"), [("30 4 * * 1-5", "Europe/London"), ("*/5 * * * *", "Asia/Tokyo")]
)
def test_its_variables_can_be_set(
    cron: str, zone: str, monkeypatch: pytest.MonkeyPatch, deployed: None
) -> None:
    monkeypatch.setenv("DAILY_TICK_CRON", cron)
    monkeypatch.setenv("SCHEDULER_TIMEZONE", zone)
    import worker_scheduler

    app = worker_scheduler.app
    assert app.conf.beat_schedule["daily-tick"]["schedule"] == crontab.from_string(cron)
    assert app.conf.timezone == zone
    assert app.conf.enable_utc


def test_another_broker_leaves_redbeat_on_redis_url(
    monkeypatch: pytest.MonkeyPatch, deployed: None, redis_url: str
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://guest@127.0.0.1:1//")
    import worker_scheduler

    app = worker_scheduler.app
    assert app.connection_for_write().transport_cls == "amqp"
    assert redbeat_opens(app) == redis_url
    assert not app.conf.worker_disable_prefetch
    assert app.conf.broker_transport_options == {"confirm_publish": True}


def test_importing_the_package_reads_no_environment() -> None:
    bare = {"PATH": "/usr/bin"}
    root = Path(__file__).resolve().parents[1]
    code = f"{TYPES_OF_A_HANDLER}print('fine')"
    outcome = outcome_of([sys.executable, "-c", code], bare, root)
    assert (outcome.status, outcome.stdout) == (0, "fine\n"), outcome


def test_the_types_of_a_handler_load_no_sqlalchemy_and_no_celery(environment: dict[str, str]) -> None:
    assert not {"celery", "kombu", "psycopg", "pydantic", "redis", "sqlalchemy", "structlog"} & loaded_by(
        environment, TYPES_OF_A_HANDLER
    )


def test_a_code_base_that_only_claims_jobs_keeps_its_own_app(
    environment: dict[str, str], ledger: Ledger
) -> None:
    claim = f"with worker_scheduler.claim('{uuid4()}') as job: assert job is None"
    loaded = loaded_by(environment, f"import worker_scheduler\n{claim}")
    assert "sqlalchemy" in loaded
    assert not {"worker_scheduler.celery_app", "worker_scheduler.tasks"} & loaded


def test_the_public_names_are_those_of_all(app: Celery) -> None:
    import worker_scheduler
    from worker_scheduler.worker import JobTimeout, RetryLater, SkipJob, SyncJob, claim

    assert {name: getattr(worker_scheduler, name) for name in worker_scheduler.__all__} == {
        "app": app,
        "claim": claim,
        "JobTimeout": JobTimeout,
        "RetryLater": RetryLater,
        "SkipJob": SkipJob,
        "SyncJob": SyncJob,
    }
    assert set(worker_scheduler.__all__) <= set(dir(worker_scheduler))
    with pytest.raises(AttributeError, match="'worker_scheduler' has no attribute 'clame'"):
        worker_scheduler.clame  # noqa: B018


def test_a_wrong_environment_is_said_in_lines_not_in_a_traceback(tmp_path: Path) -> None:
    ended = celery({"PATH": "/usr/bin", "LOG_LEVEL": "LOUD"}, tmp_path, "worker")
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if line.startswith("worker_scheduler: ")]
    assert len(lines) == 3
    assert all(name in ended.stderr for name in ("DATABASE_URL", "REDIS_URL", "LOG_LEVEL='LOUD'"))
    assert "Traceback" not in ended.stderr


def test_somebody_elses_celeryconfig_is_not_taken_for_ours(
    environment: dict[str, str], broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "celeryconfig.py").write_text("raise SystemExit('the wrong celeryconfig.py was read')\n")
    ended = celery(environment, tmp_path, "call", "scheduler.daily_tick")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert broker.counts() == {"scheduler": 1}


def test_celery_call_works_from_any_folder(
    environment: dict[str, str], ledger: Ledger, broker: Broker, tmp_path: Path
) -> None:
    """The task itself is then done in test_tasks.py."""
    make_users(ledger.url, 1)
    arguments: dict[str, Any] = {"backfill_days": 30, "github_logins": ["user-1"], "confirm": True}
    ended = celery(environment, tmp_path, "call", "scheduler.backfill", "--kwargs", json.dumps(arguments))
    assert ended.returncode == 0, ended.stderr
    (message,) = broker.messages("scheduler")
    assert message.task_id == ended.stdout.strip()
    assert message.headers["task"] == "scheduler.backfill"
    assert message.body[1] == arguments


def test_keys_in_redis_begin_with_the_prefix(
    deployed: None, monkeypatch: pytest.MonkeyPatch, ledger: Ledger, redis_url: str, redis_key_prefix: str
) -> None:
    make_users(ledger.url, 2)
    prefix = f"{redis_key_prefix}ours:"
    monkeypatch.setenv("REDIS_KEY_PREFIX", prefix)
    import worker_scheduler
    from tests.support.command_line import in_this_process

    assert in_this_process("daily").status == 0
    assert Broker(redis_url, prefix).counts() == {"daily": 2}
    others = [key for key in Broker(redis_url, redis_key_prefix).everything() if not key.startswith(prefix)]
    assert others == []
    assert worker_scheduler.app.conf.redbeat_key_prefix.startswith(prefix)
