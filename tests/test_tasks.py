"""The Celery tasks, in a worker in this process, have the same rules and errors as the command line."""

import logging
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from queue import Empty, Queue
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker

from tests.support.contexts import context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.proxy import Proxy
from tests.support.users import make_users, user_id
from tests.support.waiting import wait_until
from worker_scheduler import logs
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.errors import Refused
from worker_scheduler.fanout import due_days, tick
from worker_scheduler.fanout.report import Report
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.outcome import Outcome

CallTask = Callable[..., Any]


@pytest.fixture
def app(deployed: None, monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.setenv("SYNC_HANDLER", "tests.support.handlers:by_login")
    monkeypatch.setenv("SYNC_MAX_ATTEMPTS", "1")
    import worker_scheduler

    worker_scheduler.app.loader.import_default_modules()
    return worker_scheduler.app


@pytest.fixture
def worker(app: Celery) -> Iterator[Queue[Any]]:
    """A worker for all queues; yields a queue of what its tasks return or raise."""
    ended: Queue[Any] = Queue()

    def succeeded(sender: Any, result: object, **_: object) -> None:
        ended.put((sender.name, result))

    def failed(sender: Any, exception: Exception, **_: object) -> None:
        ended.put((sender.name, exception))

    def retried(sender: Any, reason: Exception, **_: object) -> None:
        ended.put((sender.name, reason))

    signals.task_success.connect(succeeded, weak=False)
    signals.task_failure.connect(failed, weak=False)
    signals.task_retry.connect(retried, weak=False)
    interrupt, logger = signal.getsignal(signal.SIGINT), logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    try:
        with start_worker(app, perform_ping_check=False, shutdown_timeout=30):
            yield ended
    finally:
        signals.task_success.disconnect(succeeded)
        signals.task_failure.disconnect(failed)
        signals.task_retry.disconnect(retried)
        signal.signal(signal.SIGINT, interrupt)
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture
def call_task(app: Celery, worker: Queue[Any]) -> CallTask:
    """Sends a task, as Beat or `celery call` would; returns what the task returned or raised."""

    def call(name: str, **kwargs: object) -> Any:
        app.send_task(name, kwargs=kwargs)
        while True:
            try:
                ended, result = worker.get(timeout=30)
            except Empty:
                raise AssertionError(f"{name} did not end") from None
            if ended == name:
                return result

    return call


def all_final(ledger: Ledger) -> dict[str, int]:
    wait_until(lambda: not {"PENDING", "RUNNING"} & set(ledger.states()), 30, "the end of every job")
    return dict(ledger.states())


def test_daily_tick_and_the_jobs_that_follow(call_task: CallTask, ledger: Ledger) -> None:
    make_users(ledger.url, 10)
    report = call_task("scheduler.daily_tick")
    assert report["outcome"] == "enqueued"
    assert report["partition_key"] == f"daily:{(datetime.now(UTC) - timedelta(hours=2)).date()}"
    assert report["jobs_inserted"] == report["jobs_enqueued"] == 10
    assert all_final(ledger) == {"COMPLETED": 7, "SKIPPED": 1, "FAILED": 2}
    skipped = ledger.row("SELECT * FROM sync_jobs WHERE status = 'SKIPPED'")
    assert (skipped["github_login"], skipped["error_message"]) == ("user-1", "has no repositories")
    assert ledger.value("SELECT requested_by FROM sync_runs").startswith("task ")


def test_daily_tick_of_a_date_is_idempotent(call_task: CallTask, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    assert call_task("scheduler.daily_tick", date="2026-11-23")["partition_key"] == "daily:2026-11-23"
    assert call_task("scheduler.daily_tick", date="2026-11-23")["outcome"] == "nothing_to_do"
    assert ledger.count("daily:2026-11-23") == 3


@pytest.mark.parametrize("form", ["list", "text"])
def test_backfill_takes_lists_and_comma_separated_texts(
    form: str, call_task: CallTask, ledger: Ledger
) -> None:
    make_users(ledger.url, 9)
    ids, logins = [str(user_id(4)), str(user_id(5))], ["USER-6", "user-4"]
    chosen: dict[str, object] = {"user_ids": ids, "github_logins": logins}
    if form == "text":
        chosen = {"user_ids": ",".join(ids), "github_logins": ", ".join(logins)}
    report = call_task("scheduler.backfill", backfill_days=30, confirm=True, campaign="c", **chosen)
    assert report["users_total_selected"] == report["jobs_enqueued"] == 3
    assert report["partition_key"] == f"backfill:{datetime.now(UTC).date()}:30d:c"
    assert all_final(ledger) == {"COMPLETED": 3}
    assert {job["backfill_days"] for job in ledger.jobs()} == {30}


REFUSED: list[tuple[str, dict[str, object], str, str]] = [
    ("scheduler.daily_tick", {"date": "tomorrow"}, "BadInput", "--date='tomorrow' is not a valid date"),
    ("scheduler.daily_tick", {"date": "9999-12-31"}, "BadInput", "--date='9999-12-31' is in the future: "),
    ("scheduler.daily_tick", {"dat": "2026-11-23"}, "BadInput", "unknown option 'dat'"),
    ("scheduler.daily_tick", {"max_enqueued_jobs": 5}, "Refused", "MAX_ENQUEUED_JOBS=5"),
    ("scheduler.daily_tick", {"enqueue_sleep_seconds": -1}, "BadInput", "--enqueue-sleep-seconds='-1'"),
    ("scheduler.backfill", {}, "BadInput", "--backfill-days is not set"),
    ("scheduler.backfill", {"backfill_days": 0}, "BadInput", "--backfill-days='0'"),
    ("scheduler.backfill", {"backfill_days": True}, "BadInput", "is a boolean, not a number"),
    (
        "scheduler.backfill",
        {"backfill_days": 1},
        "Refused",
        "60 users selected, more than BACKFILL_MAX_USERS=50",
    ),
    ("scheduler.backfill", {"backfill_days": 1, "user_ids": []}, "BadInput", "--user-ids='[]' is empty"),
    ("scheduler.backfill", {"backfill_days": 1, "user_ids": "x"}, "BadInput", "not a UUID"),
    (
        "scheduler.backfill",
        {"backfill_days": 1, "github_logins": ["nobody"]},
        "Refused",
        "1 unknown user: nobody",
    ),
    ("scheduler.backfill", {"backfill_days": 1, "confirm": "yes"}, "BadInput", "--confirm='yes'"),
    ("scheduler.backfill", {"backfill_days": 1, "partition_key": "daily:x"}, "BadInput", "--partition-key"),
    (
        "scheduler.daily_tick",
        {"enqueue_batch_size": 0, "date": "x"},
        "BadInput",
        "--enqueue-batch-size='0': allowed is a whole number from 1 to 5000; --date='x'",
    ),
]


def test_the_same_rules_and_errors(call_task: CallTask, ledger: Ledger) -> None:
    make_users(ledger.url, 60)
    for name, kwargs, error, words in REFUSED:
        raised = call_task(name, **kwargs)
        assert type(raised).__name__ == error
        assert words in str(raised)
        assert not any(ledger.everything().values())


def test_every_report_of_a_trigger_is_logged_then_a_failure_is_raised(
    call_task: CallTask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused, enqueued = (Report(mode=Kind.DAILY, partition_key=f"daily:2026-11-{day}") for day in (22, 23))
    refused.end(Refused("not this day"))
    enqueued.outcome = Outcome.ENQUEUED
    monkeypatch.setattr(due_days, "start_triggered", lambda *_: [refused, enqueued])
    logs.configure("INFO")
    with caplog.at_level(logging.INFO):
        assert str(call_task("scheduler.daily_tick")) == "not this day"
    said = [line for line in map(logging.LogRecord.getMessage, caplog.records) if 'event="tick' in line]
    assert [line.split(" users=")[0] for line in said] == [
        'event="tick refused" partition_key=daily:2026-11-22',
        'event="tick enqueued" partition_key=daily:2026-11-23',
    ]


def test_bad_input_is_one_line_at_error(
    app: Celery, worker: Queue[Any], ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery itself logs errors that an operator can fix only at INFO."""
    logs.configure("INFO")  # as in a worker's own process
    for name, args, kwargs, words in (
        ("scheduler.backfill", [3], {}, "argument '3' has no name: give options as keyword arguments"),
        ("scheduler.daily_tick", ["2026-11-23", 3], {}, "argument '3' has no name"),
        ("scheduler.daily_tick", ["tomorrow"], {}, "--date='tomorrow' is not a valid date"),
        ("scheduler.backfill", [], {"backfill_days": 0}, "--backfill-days='0'"),
    ):
        caplog.clear()
        app.send_task(name, args=args, kwargs=kwargs)
        ended, raised = worker.get(timeout=30)
        assert (ended, type(raised).__name__) == (name, "BadInput")
        (line,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert "tick refused" in line.getMessage()
        assert words in line.getMessage()
        assert line.exc_info is None
    assert not any(ledger.everything().values())


def test_a_job_that_postgres_refuses_is_one_line_at_error(
    app: Celery, worker: Queue[Any], ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'not by you'; END $$",
        "INSERT INTO sync_jobs (job_id, user_id, triggered_by, partition_key)"
        " VALUES (gen_random_uuid(), gen_random_uuid(), 'somebody', 'p')",
        "CREATE TRIGGER t BEFORE UPDATE ON sync_jobs FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    logs.configure("INFO")
    (job,) = ledger.jobs()
    arguments = [str(job["user_id"]), "p", "somebody"]
    app.send_task("sync_user", args=arguments, task_id=str(job["job_id"]), queue="daily")
    _, raised = worker.get(timeout=30)
    assert str(raised) == "Postgres refused a statement: not by you"
    (line,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert line.getMessage().startswith('event="job not done"')
    assert "not by you" in line.getMessage()


def test_a_task_joins_a_tick_that_is_running(call_task: CallTask, ledger: Ledger) -> None:
    make_users(ledger.url, 1)
    ledger.execute(
        "INSERT INTO sync_locks (lock_id, holder, partition_key, acquired_at, leased_until) VALUES"
        f" ({0x7761766501}, gen_random_uuid(), 'daily:2026-11-23', now(), now() + interval '30 seconds')"
    )
    assert call_task("scheduler.daily_tick", date="2026-11-23")["outcome"] == "joined"
    refused = call_task("scheduler.daily_tick", date="2026-11-24")
    assert "a tick of daily:2026-11-23 is running" in str(refused)


def test_the_history_says_which_task_asked_and_who_sent_it(
    app: Celery, worker: Queue[Any], ledger: Ledger
) -> None:
    make_users(ledger.url, 1)
    sent: list[dict[str, Any]] = [
        {"task_id": "one", "headers": app.conf.beat_schedule["daily-tick"]["options"]["headers"]},
        {"task_id": "two"},
        {"task_id": "three", "kwargs": {"actor": "ada", "reason": "late users"}},
        {"task_id": "three", "kwargs": {"actor": "ada", "reason": "late users"}},  # delivered again
    ]
    for options in sent:
        app.send_task("scheduler.daily_tick", **options)
        worker.get(timeout=30)
    rows = ledger.rows("SELECT source, actor, reason, outcome FROM sync_requests ORDER BY requested_at")
    origin = rows[1].pop("actor")
    assert re.fullmatch(r"gen\d+@.+", origin)
    assert rows == [
        {"source": "task one", "actor": "beat", "reason": None, "outcome": "opened"},
        {"source": "task two", "reason": None, "outcome": "opened"},
        {"source": "task three", "actor": "ada", "reason": "late users", "outcome": "opened"},
    ]


def test_a_task_with_the_id_of_another_is_a_refusal_in_the_history(
    app: Celery, worker: Queue[Any], ledger: Ledger
) -> None:
    make_users(ledger.url, 1)
    for days in (1, 2):
        app.send_task("scheduler.backfill", kwargs={"backfill_days": days}, task_id="one")
        worker.get(timeout=30)
    row = ledger.row("SELECT * FROM sync_requests WHERE outcome = 'refused'")
    assert row["detail"].startswith("the task id 'one' belongs to a task of backfill:")
    assert (row["verb"], row["options"]) == ("backfill", {"backfill_days": 2})


def test_a_tick_is_retried_if_a_store_is_away(
    call_task: CallTask, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/db")
    assert "Postgres at 127.0.0.1:1/db is unavailable" in str(call_task("scheduler.daily_tick"))


def test_a_message_without_a_job_is_ignored(
    app: Celery, worker: Queue[Any], ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 1)
    before = ledger.everything()
    for task_id in ("not-an-id", str(uuid4())):
        app.send_task("sync_user", args=[str(user_id(1)), "p", "somebody"], task_id=task_id, queue="daily")
        assert worker.get(timeout=30) == ("sync_user", None)
    assert ledger.everything() == before
    assert broker.counts() == {}


def test_a_message_whose_job_cannot_be_claimed_goes_back_into_the_queue(
    app: Celery,
    worker: Queue[Any],
    ledger: Ledger,
    broker: Broker,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If Postgres stays away for longer than a worker waits for it, which is set to 0 s here."""
    monkeypatch.setattr("worker_scheduler.worker.patience._PATIENCE_SECONDS", 0)
    make_users(ledger.url, 1)
    begun: list[str] = []

    def begin(task_id: str, **_: object) -> None:
        begun.append(task_id)

    signals.task_prerun.connect(begin)
    with Proxy(database_url, cut_after=0) as proxy, context_at(utc_now) as context:
        monkeypatch.setenv("DATABASE_URL", proxy.url)  # the worker's
        assert tick.daily(context, DailyOptions()).jobs_enqueued == 1
        wait_until(lambda: len(begun) >= 3, 30, "the same message for the third time")
        assert set(begun) == {str(ledger.value("SELECT job_id FROM sync_jobs"))}
        assert ledger.states() == {"PENDING": 1}
        proxy.heal()
        all_final(ledger)
    wait_until(lambda: broker.unacknowledged() == 0 and not broker.counts(), 30, "no message left")
    signals.task_prerun.disconnect(begin)


def test_the_verbs_that_steer_are_tasks_too(call_task: CallTask, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    key = "daily:2026-11-23"
    call_task("scheduler.daily_tick", date="2026-11-23")
    all_final(ledger)
    paused = call_task("scheduler.pause", key=key, until="2h", reason="a test", actor="ann")
    assert (paused["outcome"], paused["until"] is None) == ("paused", False)
    assert call_task("scheduler.resume", key=key)["outcome"] == "resumed"
    assert call_task("scheduler.cancel", key=key)["outcome"] == "cancelled"
    assert ledger.value("SELECT state FROM sync_runs") == "FINISHED"
    refused = call_task("scheduler.retry", key=key, only="failed")
    assert f"scheduler retry {key} --only cancelled" in str(refused)
    assert call_task("scheduler.retry", key=key, only="cancelled")["jobs"] == 0
    unknown = call_task("scheduler.pause", key="daily:2026-11-24")
    assert "there is no run of 'daily:2026-11-24': the nearest are daily:2026-11-23" in str(unknown)
    recorded = ledger.rows("SELECT verb, actor, source, outcome FROM sync_requests ORDER BY requested_at")
    assert [(row["verb"], row["outcome"]) for row in recorded[1:]] == [
        ("pause", "paused"),
        ("resume", "resumed"),
        ("cancel", "cancelled"),
        ("retry", "refused"),
        ("retry", "retried"),
        ("pause", "refused"),
    ]
    assert recorded[1]["actor"] == "ann"
    assert all(row["source"].startswith("task ") for row in recorded)
