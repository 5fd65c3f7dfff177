"""A run that fails in a rule: the runs behind it are served, and it is left alone for a while itself."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.maintenance.situations import (
    DAY,
    KEY,
    each_once,
    enqueue,
    finish,
    half_planned,
    sent,
)
from tests.support.contexts import NOON, HandedClock
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler.config.options import BackfillOptions, DailyOptions
from worker_scheduler.errors import SchedulerError, StoreRefused, StoreUnavailable
from worker_scheduler.fanout import due_days, tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import runs
from worker_scheduler.ledger.runs import NewRun
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.maintenance import reconciler
from worker_scheduler.maintenance.reconciler import Reconciliation
from worker_scheduler.publisher import GroupMessage
from worker_scheduler.publisher.redis_broker import RedisBroker

INTERVAL = timedelta(seconds=60)
LONGEST = timedelta(minutes=15)
TOMORROW = DAY + timedelta(days=1)
HEALTHY = f"daily:{TOMORROW}"

FAILURES = {
    "an error": "RAISE division_by_zero",
    # Postgres says so of a statement that took too long, and during a shutdown.
    "a timeout": "RAISE query_canceled",
    "a lock": "RAISE lock_not_available",
    "a deadlock": "RAISE deadlock_detected",
    "a missing table": "PERFORM 1 FROM no_such_table",
    "no right": "RAISE insufficient_privilege",
}


def failing_view(ledger: Ledger, failure: str) -> None:
    """The relation of users fails from now on, as a view does that divides by a column that became zero."""
    ledger.execute(
        "CREATE FUNCTION fails() RETURNS boolean LANGUAGE plpgsql AS $$"
        f" BEGIN {failure}; RETURN true; END $$",
        "ALTER TABLE users RENAME TO people",
        "CREATE VIEW users AS SELECT id, github_login FROM people WHERE fails()",
    )


def repaired_view(ledger: Ledger) -> None:
    ledger.execute("CREATE OR REPLACE VIEW users AS SELECT id, github_login FROM people")


def a_failing_run_and_a_healthy_one(
    context: TickContext, ledger: Ledger, clock: HandedClock, failure: str = FAILURES["an error"]
) -> None:
    """The older run is planned by half, and the rest cannot be planned. The younger one is enqueued."""
    half_planned(context, ledger, leased_until=clock())
    clock.forward(timedelta(seconds=1))
    assert tick.daily(context, DailyOptions(date=TOMORROW)).outcome == "enqueued"
    failing_view(ledger, failure)


def job_ids(ledger: Ledger, partition_key: str) -> list[UUID]:
    return [job["job_id"] for job in ledger.jobs(partition_key)]


def texts(result: Reconciliation) -> list[str]:
    return [str(error) for error in result.errors]


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_runs_behind_one_that_cannot_be_planned_are_sent_again_after_a_flush(
    failure: str, context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    a_failing_run_and_a_healthy_one(context, ledger, clock, failure)
    broker.lose_everything()
    result = reconciler.reconcile(context)
    (error,) = texts(result)
    assert error.startswith(f"{KEY}: ")
    # Of the failing run itself, what is planned is sent, too.
    assert sent(broker) == each_once(job_ids(ledger, HEALTHY) + job_ids(ledger, KEY))
    assert ledger.value("SELECT state FROM sync_runs WHERE partition_key = %s", HEALTHY) == "ENQUEUED"
    # Again a flush, while the failing run is left alone.
    broker.lose_everything()
    assert texts(reconciler.reconcile(context)) == []
    assert {str(job_id) for job_id in job_ids(ledger, HEALTHY)} <= set(sent(broker))


@pytest.mark.slow
def test_a_run_that_fails_is_left_alone_for_longer_and_longer(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    a_failing_run_and_a_healthy_one(context, ledger, clock)
    tries: list[int] = []
    for number in range(64):
        assert len(texts(reconciler.reconcile(context))) <= 1
        failures = ledger.value("SELECT failures FROM sync_runs WHERE partition_key = %s", KEY)
        if failures > len(tries):
            tries.append(number)
        clock.forward(INTERVAL)
    assert tries == [0, 1, 3, 7, 15, 30, 45, 60]
    # A pass that finds it repaired forgets the failures.
    repaired_view(ledger)
    clock.forward(LONGEST)
    assert texts(reconciler.reconcile(context)) == []
    row = ledger.row("SELECT state, failures, retry_after FROM sync_runs WHERE partition_key = %s", KEY)
    assert row == {"state": "ENQUEUED", "failures": 0, "retry_after": None}
    assert ledger.count(KEY) == 25


def test_a_run_that_failed_before_the_clock_was_set_back_is_tried_again(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """Postgres' clock was a month ahead."""
    a_failing_run_and_a_healthy_one(context, ledger, clock)
    repaired_view(ledger)
    ahead = clock.now + timedelta(days=30)
    ledger.execute(
        f"UPDATE sync_runs SET failures = 3, retry_after = '{ahead}' WHERE partition_key = '{KEY}'"
    )
    assert texts(reconciler.reconcile(context)) == []
    assert ledger.value("SELECT state FROM sync_runs WHERE partition_key = %s", KEY) == "ENQUEUED"


def test_a_tick_does_not_wait_until_reconcile_tries_again(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """Who repairs the view and starts the tick again gets the run at once; if that tick dies, reconcile
    takes the run over as soon as from any other tick.
    """
    a_failing_run_and_a_healthy_one(context, ledger, clock)
    for _ in range(6):
        reconciler.reconcile(context)
        clock.forward(LONGEST)
    repaired_view(ledger)
    new = NewRun(uuid4(), KEY, Kind.DAILY, "scheduler.daily", None, None, "a tick that died", None)
    with context.database.transaction() as connection:
        assert runs.open_run(connection, new, clock(), clock())
    assert reconciler.abandoned_runs(context) == 1
    assert ledger.count(KEY) == 25


def test_an_outage_is_no_failure_of_a_run(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    half_planned(context, ledger, leased_until=clock())
    nowhere = RedisBroker("redis://127.0.0.1:1/0", "")

    class Away:
        repeatable = True

        def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
            raise StoreUnavailable("the broker is away")

    with pytest.raises(StoreUnavailable):
        reconciler.abandoned_runs(replace(context, broker=nowhere, publisher=Away()))
    assert ledger.value("SELECT failures FROM sync_runs") == 0
    assert reconciler.abandoned_runs(context) == 1


def test_several_failing_runs_are_each_named_once(
    context: TickContext, ledger: Ledger, clock: HandedClock, caplog: pytest.LogCaptureFixture
) -> None:
    make_users(ledger.url, 3)
    for number in range(3):
        new = NewRun(
            uuid4(), f"backfill:{number}", Kind.BACKFILL, "scheduler.backfill", 7, None, None, None
        )
        with context.database.transaction() as connection:
            assert runs.open_run(connection, new, clock(), clock())
    failing_view(ledger, FAILURES["an error"])
    from worker_scheduler import logs

    logs.configure("INFO")
    (error,) = texts(reconciler.reconcile(context))
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    for number in range(3):
        assert sum(f"backfill:{number}: " in line for line in logged) == 1
    assert "backfill:0: " in error
    assert "division_by_zero" in error or "division by zero" in error
    caplog.clear()
    assert texts(reconciler.reconcile(context)) == []
    assert caplog.records == []


def refusing_trigger(ledger: Ledger, table: str, condition: str) -> None:
    ledger.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN RAISE EXCEPTION 'refused by a trigger'; END $$",
        f"CREATE TRIGGER refuses BEFORE UPDATE ON {table} FOR EACH ROW WHEN ({condition})"
        " EXECUTE FUNCTION refuse()",
    )


def two_runs(context: TickContext, ledger: Ledger, clock: HandedClock) -> tuple[list[UUID], list[UUID]]:
    first = enqueue(context, ledger, 5)
    clock.forward(timedelta(seconds=1))
    tick.daily(context, DailyOptions(date=TOMORROW))
    return first, job_ids(ledger, HEALTHY)


def test_lost_data_of_the_runs_behind_one_that_fails_are_put_back(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    _, healthy = two_runs(context, ledger, clock)
    run_id = ledger.value("SELECT run_id FROM sync_runs WHERE partition_key = %s", KEY)
    refusing_trigger(ledger, "sync_batches", f"OLD.run_id = '{run_id}'")
    broker.lose_everything()
    (error,) = texts(reconciler.reconcile(context))
    assert error.startswith(f"{KEY}: Postgres refused a statement: refused by a trigger")
    assert sent(broker) == each_once(healthy)


def test_runs_behind_one_that_cannot_be_finished_are_finished(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    for job_id in [*two_runs(context, ledger, clock)[0], *job_ids(ledger, HEALTHY)]:
        finish(context, job_id)
    refusing_trigger(ledger, "sync_runs", f"NEW.state = 'FINISHED' AND OLD.partition_key = '{KEY}'")
    with pytest.raises(StoreRefused, match=f"^{KEY}: "):
        reconciler.finished_runs(context)
    assert ledger.value("SELECT state FROM sync_runs WHERE partition_key = %s", HEALTHY) == "FINISHED"


@pytest.mark.parametrize(
    "error", [StoreRefused("no"), StoreUnavailable("no")], ids=lambda e: type(e).__name__
)
def test_due_jobs_of_another_partition_and_queue_are_sent(
    error: SchedulerError, context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """Even if those that fail are the ones that are due first, and fill whole steps."""
    make_users(ledger.url, 45)
    tick.daily(context, DailyOptions(date=DAY))
    tick.daily(context, DailyOptions(date=TOMORROW))
    tick.backfill(context, BackfillOptions(backfill_days=7))
    broker.lose_queue("daily")
    broker.lose_queue("backfill")
    ledger.execute(
        f"UPDATE sync_jobs SET not_before = '{NOON}'",
        f"UPDATE sync_jobs SET not_before = '{NOON - INTERVAL}' WHERE partition_key = '{KEY}'",
    )

    class Refusing:
        repeatable = True

        def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
            if any(group.shared.partition_key == KEY for group in groups):
                raise error
            return context.publisher.publish(groups)

    refusing = replace(context, publisher=Refusing())
    for _ in range(2):
        with pytest.raises(type(error), match=f"^{KEY}: no"):
            reconciler.due_jobs(refusing)
    assert sent(broker) == each_once(job_ids(ledger, HEALTHY))
    assert broker.count("backfill") == 45
    # And the others, when they can be.
    clock.forward(3 * INTERVAL)
    assert reconciler.due_jobs(context) == 45
    assert sent(broker) == each_once(job_ids(ledger, HEALTHY) + job_ids(ledger, KEY))


def test_lost_messages_of_a_queue_are_found_beside_one_that_fails(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    make_users(ledger.url, 3)
    tick.daily(context, DailyOptions(date=DAY))
    tick.backfill(context, BackfillOptions(backfill_days=7))
    broker.lose_queue("daily")
    broker.lose_queue("backfill")
    refusing_trigger(ledger, "sync_jobs", f"OLD.partition_key = '{KEY}'")
    clock.forward(timedelta(hours=1))
    with pytest.raises(StoreRefused, match=r"^queue daily: Postgres refused"):
        reconciler.lost_messages(context)
    assert ledger.value("SELECT count(not_before) FROM sync_jobs WHERE backfill_days = 7") == 3


def all_due(context: TickContext, ledger: Ledger, clock: HandedClock) -> TickContext:
    """Three days are due; the middle one cannot be started."""
    ledger.execute(f"UPDATE sync_origin SET since = '{NOON - timedelta(days=3)}'")
    refused = f"daily:{DAY - timedelta(days=1)}"
    ledger.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN RAISE EXCEPTION 'refused by a trigger'; END $$",
        "CREATE TRIGGER refuses BEFORE INSERT ON sync_runs FOR EACH ROW"
        f" WHEN (NEW.partition_key = '{refused}') EXECUTE FUNCTION refuse()",
    )
    return context


@pytest.mark.parametrize("policy", ["all", "latest", "none"])
@pytest.mark.parametrize("how", ["reconcile", "trigger"])
def test_a_day_that_fails_does_not_stop_the_other_due_days(
    how: str, policy: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    make_users(ledger.url, 3)
    all_due(context, ledger, clock)
    settings = context.settings.model_copy(update={"daily_catch_up": policy})
    own = replace(context, settings=settings)
    if how == "reconcile":
        with pytest.raises(StoreRefused, match=f"daily:{DAY - timedelta(days=1)}: "):
            reconciler.missed_slots(own)
    else:
        reports = due_days.start_triggered(own, DailyOptions())
        assert [r.partition_key for r in reports if r.failure] == [f"daily:{DAY - timedelta(days=1)}"]
    states = {row["partition_key"]: row["state"] for row in ledger.rows("SELECT * FROM sync_runs")}
    latest = "MISSED" if policy == "none" else "ENQUEUED"
    earlier = "ENQUEUED" if policy == "all" else "MISSED"
    assert states == {f"daily:{DAY - timedelta(days=2)}": earlier, KEY: latest}


def test_the_daily_task_starts_every_due_day_and_fails_with_the_first_error(
    context: TickContext, ledger: Ledger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAILY_CATCH_UP", "all")
    make_users(ledger.url, 2)
    with psycopg.connect(ledger.url) as connection:
        (now,) = connection.execute("SELECT now()").fetchone()  # type: ignore[misc] # a row is certain
    ledger.execute(f"UPDATE sync_origin SET since = '{now - timedelta(days=3)}'")
    refused = f"daily:{(now - timedelta(days=1)).date()}"
    ledger.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN RAISE EXCEPTION 'refused by a trigger'; END $$",
        "CREATE TRIGGER refuses BEFORE INSERT ON sync_runs FOR EACH ROW"
        f" WHEN (NEW.partition_key = '{refused}') EXECUTE FUNCTION refuse()",
    )
    from worker_scheduler import tasks

    failed: Callable[..., object] = tasks.daily_tick.run
    with pytest.raises(StoreRefused, match="refused by a trigger"):
        failed()
    started = {row["partition_key"] for row in ledger.rows("SELECT partition_key FROM sync_runs")}
    assert refused not in started
    assert len(started) >= 2
