"""The rule history_months: this month and the next one of both histories have a partition."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.support.contexts import HandedClock
from tests.support.ledger import Ledger
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.maintenance import reconciler

DECEMBER = datetime(2031, 12, 31, 23, 59, tzinfo=UTC)
MADE = [
    *("sync_job_events_2031_12", "sync_job_events_2032_01"),
    *("sync_requests_2031_12", "sync_requests_2032_01"),
]


def months_of(ledger: Ledger) -> list[str]:
    rows = ledger.rows(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^sync_(requests|job_events)_203'"
        " ORDER BY 1"
    )
    return [row["relname"] for row in rows]


def add_event(ledger: Ledger, at: datetime) -> str:
    """Adds an event; returns the partition that it is in."""
    place: str = ledger.value(
        "INSERT INTO sync_job_events (happened_at, job_id, user_id, attempt, event)"
        " VALUES (%s, gen_random_uuid(), gen_random_uuid(), 1, 'failed')"
        " RETURNING tableoid::regclass::text",
        at,
    )
    return place


def test_the_months_of_the_histories_are_made(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    clock.now = DECEMBER
    assert reconciler.history_months(context) == 4
    assert months_of(ledger) == MADE
    assert reconciler.history_months(context) == 0
    clock.forward(timedelta(minutes=1))
    assert reconciler.history_months(context) == 2
    assert add_event(ledger, DECEMBER) == "sync_job_events_2031_12"
    assert add_event(ledger, clock()) == "sync_job_events_2032_01"


def test_the_month_is_that_of_utc(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    clock.now = DECEMBER.astimezone(datetime.strptime("+1400", "%z").tzinfo)
    reconciler.history_months(context)
    assert months_of(ledger) == MADE


def test_a_month_of_a_history_waits_for_a_long_reader(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    clock.now = DECEMBER
    with psycopg.connect(ledger.url) as backup:
        backup.execute("SELECT count(*) FROM sync_job_events")
        assert reconciler.history_months(context) == 2
        assert months_of(ledger) == MADE[2:]
    assert add_event(ledger, DECEMBER - timedelta(days=40)) == "sync_job_events_monthless"
    assert reconciler.history_months(context) == 2
    assert months_of(ledger) == MADE


@pytest.mark.parametrize("history", ["sync_requests", "sync_job_events"])
def test_a_month_that_the_default_partition_has_stays_there(
    history: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    clock.now = DECEMBER
    if history == "sync_job_events":
        add_event(ledger, DECEMBER)
    else:
        ledger.execute(
            "INSERT INTO sync_requests (request_id, requested_at, verb, actor, source, options, outcome)"
            f" VALUES (gen_random_uuid(), '{DECEMBER}', 'daily', 'a', 'b', '{{}}', 'opened')"
        )
    assert reconciler.history_months(context) == 3
    assert reconciler.history_months(context) == 0
    assert months_of(ledger) == [name for name in MADE if name != f"{history}_2031_12"]
