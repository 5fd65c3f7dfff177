"""A task whose partition follows from the date keeps it through redelivery and retry, by its id."""

import logging
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from tests.support.contexts import NOON, HandedClock, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import started, worker_of
from tests.support.users import make_users, user_id
from tests.support.waiting import wait_until
from worker_scheduler import logs
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import DailyOptions, parse_backfill
from worker_scheduler.errors import Refused
from worker_scheduler.fanout import due_days, task_partitions, tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.report import Report

MIDNIGHT = NOON + timedelta(hours=12)
MINUTE = timedelta(minutes=1)
BEFORE, AFTER = "backfill:2026-11-23:7d", "backfill:2026-11-24:7d"


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock(MIDNIGHT - MINUTE)


@pytest.fixture
def context(deployed: None, clock: HandedClock) -> Iterator[TickContext]:
    with context_at(clock) as context:
        yield context


@pytest.fixture
def app(deployed: None) -> Iterator[Celery]:
    import worker_scheduler

    worker_scheduler.app.loader.import_default_modules()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure("INFO")  # as in a worker's own process
    yield worker_scheduler.app
    root.handlers[:] = handlers
    root.setLevel(level)


def backfill(context: TickContext, task_id: str | None, days: int = 7, **given: object) -> Report:
    """What the task of this id does."""
    options = parse_backfill({"backfill_days": days, **given})
    with task_partitions.kept(context, task_id, lambda at: tick.backfill_key(options, at)) as key:
        report = tick.backfill(context, options, key)
        if report.failure is not None:
            raise report.failure
    return report


def call(app: Celery, name: str, task_id: str, **kwargs: object) -> Any:
    """Executes a task in this process, as a worker does."""
    return app.tasks[name].apply(kwargs=kwargs, task_id=task_id).get()


def yesterdays(ledger: Ledger) -> str:
    """Makes what tasks have begun so far look a day older; returns the partition of the one run."""
    today = utc_now().date()
    yesterday = today - timedelta(days=1)
    older = f"replace(partition_key, '{today}', '{yesterday}')"
    ledger.execute(
        f"UPDATE sync_tasks SET partition_key = {older}, created_at = created_at - interval '1 day'",
        f"UPDATE sync_runs SET partition_key = {older}, leased_until = NULL",
        f"UPDATE sync_jobs SET partition_key = {older}",
        "UPDATE sync_batches SET claimed_until = NULL",
        "DELETE FROM sync_locks",
    )
    key: str = ledger.value("SELECT partition_key FROM sync_runs")
    assert str(yesterday) in key
    return key


def test_a_task_that_is_executed_again_after_midnight_keeps_its_partition(
    context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    make_users(ledger.url, 3)
    first, another = str(uuid4()), str(uuid4())
    assert backfill(context, first).partition_key == BEFORE
    clock.forward(2 * MINUTE)
    again = backfill(context, first)
    assert (again.partition_key, again.outcome) == (BEFORE, "nothing_to_do")
    assert ledger.count() == 3
    assert backfill(context, another).partition_key == AFTER
    assert backfill(context, None).partition_key == AFTER


def test_the_partition_is_stored_before_anything_else(
    context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    """The first execution may end before it has opened a run, by an outage or by SIGKILL."""
    make_users(ledger.url, 3)
    with pytest.raises(KeyboardInterrupt), task_partitions.kept(context, "t", lambda _: BEFORE):
        raise KeyboardInterrupt
    clock.forward(2 * MINUTE)
    assert backfill(context, "t").partition_key == BEFORE


def test_a_trigger_without_any_slot_keeps_its_day(
    context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    make_users(ledger.url, 3)
    settings = context.settings.model_copy(
        update={"daily_tick_cron": "0 0 29 2 1"}
    )  # a Monday, not since 2016

    def trigger(task_id: str) -> set[str | None]:
        with task_partitions.kept(context, task_id, lambda at: due_days.triggered_key(settings, at)) as key:
            reports = due_days.start_triggered(_with(context, settings), DailyOptions(), key)
        return {report.partition_key for report in reports}

    assert trigger("t") == {"daily:2026-11-23"}
    clock.forward(2 * MINUTE)
    assert trigger("t") == {"daily:2026-11-23"}
    assert trigger("another") == {"daily:2026-11-24"}


def test_a_trigger_keeps_the_day_of_its_slot_beside_what_is_due_by_now(
    context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    make_users(ledger.url, 3)
    ledger.execute(f"UPDATE sync_origin SET since = '{NOON - timedelta(days=1)}'")
    settings = context.settings.model_copy(update={"daily_tick_cron": "0 0 * * *"})
    own = _with(context, settings)

    def trigger() -> list[tuple[str | None, int]]:
        with task_partitions.kept(own, "t", lambda at: due_days.triggered_key(settings, at)) as key:
            reports = due_days.start_triggered(own, DailyOptions(), key)
        return [(report.partition_key, report.jobs_inserted) for report in reports]

    assert trigger() == [("daily:2026-11-23", 3)]
    clock.forward(2 * MINUTE)
    make_users(ledger.url, 4)
    assert trigger() == [("daily:2026-11-24", 4), ("daily:2026-11-23", 1)]


def _with(context: TickContext, settings: Any) -> TickContext:
    from dataclasses import replace

    return replace(context, settings=settings)


@pytest.mark.parametrize("days", [7, 8])
def test_another_request_with_the_same_id_is_refused(
    days: int, context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    make_users(ledger.url, 3)
    backfill(context, "t")
    before = ledger.everything()
    other = {"campaign": "c"} if days == 7 else {}
    clock.forward(2 * MINUTE)
    with pytest.raises(Refused) as refused:
        backfill(context, "t", days, **other)
    assert str(refused.value) == (
        "the task id 't' belongs to a task of backfill:2026-11-23:7d:"
        " give each request a task id of its own"
    )
    assert ledger.everything() == before


def test_a_refused_task_leaves_no_trace(context: TickContext, clock: HandedClock, ledger: Ledger) -> None:
    """So the request may be corrected and sent again with the same id."""
    make_users(ledger.url, 60)
    with pytest.raises(Refused, match="BACKFILL_MAX_USERS"):
        backfill(context, "t")
    assert not any(ledger.everything().values())
    assert backfill(context, "t", days=8, confirm=True).jobs_inserted == 60
    # A refusal of a later execution does not forget what the first one has begun.
    clock.forward(2 * MINUTE)
    with pytest.raises(Refused):
        backfill(context, "t", days=8, confirm=True, max_enqueued_jobs=1)
    assert backfill(context, "t", days=8, confirm=True).partition_key == "backfill:2026-11-23:8d"


STRANGE_IDS = ["x" * 1_000_000, "a\nb\x1b[31m", "nul\x00", "\ud800", "é", " ", "sha256:" + "0" * 64]


@pytest.mark.parametrize("task_id", STRANGE_IDS, ids=lambda text: ascii(text)[:12])
def test_any_text_may_be_the_id_of_a_task(
    task_id: str, app: Celery, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    make_users(ledger.url, 2)
    first = call(app, "scheduler.backfill", task_id, backfill_days=7)
    assert first["outcome"] == "enqueued"
    key = yesterdays(ledger)
    with caplog.at_level("INFO", logger="worker_scheduler"):  # a report with a lone surrogate breaks xdist
        again = call(app, "scheduler.backfill", task_id, backfill_days=7)
    assert (again["outcome"], again["partition_key"]) == ("nothing_to_do", key)
    assert len(ledger.value("SELECT task_id FROM sync_tasks")) <= 200
    requested_by = ledger.value("SELECT requested_by FROM sync_runs")
    assert len(requested_by) <= 210
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("worker_scheduler")]
    assert any("task keeps the partition" in line for line in ours)
    for line in [*ours, requested_by]:
        assert len(line) < 500
        assert line.isprintable()


def test_a_dry_run_stores_no_partition(app: Celery, ledger: Ledger) -> None:
    make_users(ledger.url, 2)
    assert call(app, "scheduler.backfill", "t", backfill_days=7, dry_run=True)["outcome"] == "dry_run"
    assert call(app, "scheduler.daily_tick", "t", dry_run=True)["outcome"] == "dry_run"
    assert not any(ledger.everything().values())


def test_a_refusal_of_a_reused_id_is_one_line(app: Celery, ledger: Ledger) -> None:
    make_users(ledger.url, 2)
    call(app, "scheduler.backfill", "t", backfill_days=7)
    with pytest.raises(Refused, match="the task id 't' belongs to a task of backfill:"):
        call(app, "scheduler.daily_tick", "t")
    # A request that names its partition derives nothing from the date.
    named = call(app, "scheduler.backfill", "t", backfill_days=9, partition_key="named")
    assert named["partition_key"] == "named"


@pytest.mark.slow
def test_the_task_of_a_killed_worker_keeps_its_partition_when_it_is_redelivered_the_next_day(
    app: Celery, environment: dict[str, str], ledger: Ledger, broker: Broker, tmp_path: Path
) -> None:
    make_users(ledger.url, 4)
    environment |= {
        "PYTHONPATH": str(Path.cwd()),
        "SYNC_HANDLER": "tests.support.handlers:complete",
        "ENQUEUE_BATCH_SIZE": "1",
        "VISIBILITY_TIMEOUT_SECONDS": "2",
    }
    chosen = [str(user_id(number)) for number in range(1, 5)]
    app.send_task("scheduler.backfill", kwargs={"backfill_days": 7, "user_ids": chosen})
    slow = environment | {"ENQUEUE_SLEEP_SECONDS": "600"}
    with started(worker_of(slow, tmp_path / "first.log", "scheduler")) as worker:
        sent = "SELECT EXISTS (SELECT FROM sync_batches WHERE enqueued_at IS NOT NULL)"
        wait_until(lambda: ledger.value(sent), 30, "the first batch")
        worker.send(signal.SIGKILL)
        worker.wait(10)
    assert broker.unacknowledged() == 1
    key = yesterdays(ledger)
    with started(worker_of(environment, tmp_path / "next.log", "scheduler")) as worker:
        worker.wait_for_log("tick enqueued")
    assert ledger.rows("SELECT partition_key, state FROM sync_runs") == [
        {"partition_key": key, "state": "ENQUEUED"}
    ]
    assert broker.counts() == {"backfill": 4}
    assert len({job["user_id"] for job in ledger.jobs()}) == ledger.count() == 4
