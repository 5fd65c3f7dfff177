"""Which day a daily run is for: today in the calendar's time zone, as for Beat, and never a future day."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
from freezegun import freeze_time

from tests.fanout.days import given
from tests.support.command_line import Outcome, as_process
from tests.support.contexts import HandedClock
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler.config.options import BackfillOptions, DailyOptions
from worker_scheduler.errors import BadInput
from worker_scheduler.fanout import due_days, tick
from worker_scheduler.fanout.context import TickContext

Scheduler = Callable[..., Outcome]

# 16:30 UTC is 01:30 of the next day in Tokyo; 03:30 UTC is the day before in New York.
AFTERNOON = "2026-11-23T16:30:00Z"
NIGHT = "2026-11-23T03:30:00Z"


def call(scheduler: Scheduler, at: str, *arguments: str) -> Outcome:
    with freeze_time(at, tick=True):
        return scheduler(*arguments)


@pytest.mark.parametrize(
    ("zone", "at", "day"),
    [
        ("UTC", AFTERNOON, "2026-11-23"),
        ("Asia/Tokyo", AFTERNOON, "2026-11-24"),
        ("Pacific/Kiritimati", AFTERNOON, "2026-11-24"),
        ("America/New_York", AFTERNOON, "2026-11-23"),
        ("America/New_York", NIGHT, "2026-11-22"),
        ("Asia/Tokyo", NIGHT, "2026-11-23"),
    ],
)
def test_without_a_date_it_is_today_in_the_time_zone_of_the_calendar(
    zone: str, at: str, day: str, scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 2)
    monkeypatch.setenv("SCHEDULER_TIMEZONE", zone)
    report = call(scheduler, at, "daily", "--json").report
    assert (report["partition_key"], report["jobs_inserted"]) == (f"daily:{day}", 2)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "Europe/London"])
def test_the_command_after_beats_trigger_gives_nobody_a_second_job(
    zone: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    there = given(context, scheduler_timezone=zone, daily_tick_cron="0 0 * * *")
    for hour in range(24):
        clock.now = datetime(2026, 11, 23, hour, 30, tzinfo=UTC)
        (*_, triggered) = due_days.start_triggered(there, DailyOptions())
        report = tick.daily_asked_for(there, DailyOptions())
        assert (report.partition_key, report.jobs_inserted) == (triggered.partition_key, 0)
    assert {row["count"] for row in ledger.rows("SELECT count(*) FROM sync_jobs GROUP BY run_id")} == {3}


@pytest.mark.parametrize(
    ("zone", "at", "last"),
    [
        ("UTC", AFTERNOON, date(2026, 11, 23)),
        ("Asia/Tokyo", AFTERNOON, date(2026, 11, 24)),
        ("America/New_York", NIGHT, date(2026, 11, 22)),
    ],
)
def test_a_date_in_the_future_is_refused(
    zone: str,
    at: str,
    last: date,
    scheduler: Scheduler,
    ledger: Ledger,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_users(ledger.url, 1)
    monkeypatch.setenv("SCHEDULER_TIMEZONE", zone)
    for day in (date(last.year, last.month, last.day + 1), date(2027, 1, 1), date(9999, 12, 31)):
        for more in ((), ("--dry-run",)):
            outcome = call(scheduler, at, "daily", f"--date={day}", "--json", *more)
            said = f"--date='{day}' is in the future: today is {last} in {zone}"
            assert (outcome.status, outcome.error) == (2, said)
            assert (outcome.report["outcome"], outcome.report["error"]) == ("refused", said)
            assert outcome.report["partition_key"] == f"daily:{day}"
    assert not any(ledger.everything().values())
    assert broker.counts() == {}
    assert call(scheduler, at, "daily", f"--date={last}").status == 0


def test_without_postgres_nobody_knows_what_the_future_is(
    environment: dict[str, str],
) -> None:
    environment["DATABASE_URL"] = "postgresql://127.0.0.1:1/db"
    outcome = as_process(environment, "daily", "--date", "9999-12-31", "--json")
    assert outcome.status == 4
    assert "is unavailable" in outcome.error


def test_a_backfill_keeps_the_date_in_utc(
    scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 1)
    monkeypatch.setenv("SCHEDULER_TIMEZONE", "Asia/Tokyo")
    report = call(scheduler, AFTERNOON, "backfill", "--backfill-days=7", "--json").report
    assert report["partition_key"] == "backfill:2026-11-23:7d"


def test_a_trigger_without_a_slot_runs_today_where_the_calendar_is(
    context: TickContext, clock: HandedClock
) -> None:
    """29 February is a Monday once in 28 years."""
    clock.now = datetime(2026, 11, 23, 16, 30, tzinfo=UTC)
    never: dict[str, Any] = {"daily_tick_cron": "0 0 29 2 1", "scheduler_timezone": "Asia/Tokyo"}
    (report,) = due_days.start_triggered(given(context, **never), DailyOptions())
    assert report.partition_key == "daily:2026-11-24"


def test_a_trigger_that_is_repeated_after_a_change_of_the_zone_keeps_its_day(
    context: TickContext, clock: HandedClock
) -> None:
    """Its first execution was in Tokyo, where the day had begun."""
    clock.now = datetime(2026, 11, 23, 16, 30, tzinfo=UTC)
    there = given(context, scheduler_timezone="Asia/Tokyo", daily_tick_cron="0 1 * * *")
    key = due_days.triggered_key(there.settings, clock.now)
    assert key == "daily:2026-11-24"
    reports = due_days.start_triggered(given(context, daily_tick_cron="0 1 * * *"), DailyOptions(), key)
    assert [report.failure for report in reports if report.partition_key == key] == [None]


def test_a_date_is_refused_before_the_tables_are_looked_at(
    context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    ledger.execute("ALTER TABLE users RENAME TO people")
    report = tick.daily_asked_for(context, DailyOptions(date=date(2030, 1, 1)))
    assert isinstance(report.failure, BadInput)
    assert "is in the future" in str(report.failure)


def test_a_backfill_has_no_date_that_could_be_in_the_future(context: TickContext) -> None:
    report = tick.backfill(
        context, BackfillOptions(backfill_days=1, partition_key="backfill:2030-01-01:1d")
    )
    assert report.failure is None
