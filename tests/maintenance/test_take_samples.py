"""The rule take_samples: once a minute, the counts of open runs and the depths of queues."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.maintenance.situations import claim, enqueue, finish
from tests.support.contexts import INSTANT, NOON, HandedClock, at_once
from tests.support.ledger import Ledger, Row
from tests.support.messages import Broker
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.maintenance import reconciler
from worker_scheduler.maintenance.rules import steps
from worker_scheduler.publisher.broker import OpaqueBroker
from worker_scheduler.publisher.redis_broker import RedisBroker

COUNTS = ("jobs", "pending", "running", "failed", "skipped", "cancelled")


def samples(ledger: Ledger) -> list[Row]:
    return ledger.rows("SELECT * FROM sync_run_samples ORDER BY sampled_at")


def counts(row: Row) -> tuple[int, ...]:
    return tuple(row[name] for name in COUNTS)


def depths(ledger: Ledger) -> dict[str, int]:
    return {row["queue"]: row["messages"] for row in ledger.rows("SELECT * FROM sync_queue_samples")}


def give_reason(ledger: Ledger, login: str, reason: str) -> None:
    ledger.execute(f"UPDATE sync_jobs SET reason_class = '{reason}' WHERE github_login = '{login}'")


def test_samples_count_what_the_jobs_are(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    enqueue(context, ledger, 12)
    job_ids = {row["github_login"]: row["job_id"] for row in ledger.jobs()}
    claim(context, job_ids["user-1"])
    finish(context, job_ids["user-2"])
    for number, (end, reason) in enumerate(
        [
            (JobStatus.FAILED, "builtins.ValueError"),
            (JobStatus.FAILED, "timed_out"),
            (JobStatus.FAILED, "process_lost"),
            (JobStatus.SKIPPED, "skipped"),
            (JobStatus.SKIPPED, "revoked"),
            (JobStatus.SKIPPED, "cancelled"),
        ],
        start=3,
    ):
        finish(context, job_ids[f"user-{number}"], end)
        give_reason(ledger, f"user-{number}", reason)
    assert reconciler.take_samples(context) == 0
    (row,) = samples(ledger)
    assert counts(row) == (12, 4, 1, 3, 3, 1)
    assert (row["sampled_at"], row["run_id"]) == (NOON, ledger.value("SELECT run_id FROM sync_runs"))
    assert depths(ledger) == {"daily": 12, "backfill": 0, "scheduler": 0}
    assert {row["sampled_at"] for row in ledger.rows("SELECT sampled_at FROM sync_queue_samples")} == {NOON}


@pytest.mark.parametrize(
    ("state", "sampled"),
    [("PLANNING", 1), ("DISPATCHING", 1), ("ENQUEUED", 1), ("FINISHED", 0), ("MISSED", 0)],
)
def test_runs_that_are_over_have_no_samples(
    state: str, sampled: int, context: TickContext, ledger: Ledger
) -> None:
    enqueue(context, ledger, 1)
    ledger.execute(f"UPDATE sync_runs SET state = '{state}'")
    reconciler.take_samples(context)
    assert len(samples(ledger)) == sampled


def test_a_minute_has_one_sample(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    """By the minute of the clock: passes that come a little early are not left out."""
    enqueue(context, ledger, 1)
    for at in (12.5, 12.9, 12.9999, 13, 13.1, 13.9, 15.2):
        clock.now = NOON + timedelta(minutes=at)
        reconciler.take_samples(context)
    taken = [row["sampled_at"] for row in samples(ledger)]
    assert taken == [NOON + timedelta(minutes=at) for at in (12.5, 13, 15.2)]


def test_of_many_passes_at_once_one_takes_the_sample(context: TickContext, ledger: Ledger) -> None:
    enqueue(context, ledger, 1)
    at_once(context, 5, reconciler.take_samples)
    assert len(samples(ledger)) == 1
    assert len(depths(ledger)) == 3


def test_samples_go_on_after_a_clock_that_was_ahead(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    enqueue(context, ledger, 1)
    clock.now = NOON + timedelta(days=365)
    reconciler.take_samples(context)
    clock.now = NOON
    reconciler.take_samples(context)
    assert len(samples(ledger)) == 2


def test_samples_go_after_14_days(
    context: TickContext, ledger: Ledger, clock: HandedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "JOBS_PER_STEP", 2)
    days = timedelta(days=14)
    enqueue(context, ledger, 1)
    old = [NOON - days - timedelta(minutes=minutes) for minutes in range(5)]
    for at in (*old, NOON - days + INSTANT):
        ledger.execute(
            f"INSERT INTO sync_run_samples SELECT run_id, '{at}', 1, 1, 0, 0, 0, 0 FROM sync_runs",
            f"INSERT INTO sync_queue_samples VALUES ('daily', '{at}', 1)",
        )
    reconciler.take_samples(context)
    left = [NOON - days + INSTANT, NOON]
    assert [row["sampled_at"] for row in samples(ledger)] == left
    query = "SELECT DISTINCT sampled_at FROM sync_queue_samples ORDER BY 1"
    assert [row["sampled_at"] for row in ledger.rows(query)] == left


def test_without_the_broker_the_runs_have_their_samples(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    enqueue(context, ledger, 1)
    away = replace(context, broker=RedisBroker("redis://localhost:1/0", ""))
    with pytest.raises(StoreUnavailable):
        reconciler.take_samples(away)
    assert (len(samples(ledger)), depths(ledger)) == (1, {})
    clock.forward(timedelta(minutes=1))
    reconciler.take_samples(replace(context, broker=OpaqueBroker()))
    assert (len(samples(ledger)), depths(ledger)) == (2, {})


def test_the_minute_is_that_of_any_time_zone(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    enqueue(context, ledger, 1)
    clock.now = datetime(2026, 11, 23, 12, 0, 59, 999_999, UTC)
    reconciler.take_samples(context)
    clock.now += INSTANT
    reconciler.take_samples(context)
    assert len(samples(ledger)) == 2
