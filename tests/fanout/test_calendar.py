"""Slots around daylight-saving changes: every local date has exactly one slot, however clocks jump."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab
from hypothesis import given
from hypothesis import strategies as st

from tests.support.contexts import HandedClock, context_at
from tests.support.ledger import Ledger
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import due_days
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.slots import Calendar

ZONES = ["America/New_York", "Europe/London", "Australia/Lord_Howe", "UTC"]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def changes(zone: str, year: int) -> list[datetime]:
    """Returns the hours of a year at which the offset changes; for UTC two arbitrary hours."""
    local = ZoneInfo(zone)
    at = datetime(year, 1, 1, tzinfo=UTC)
    found = []
    while at.year == year:
        if at.astimezone(local).utcoffset() != (at + HOUR).astimezone(local).utcoffset():
            found.append(at)
        at += HOUR
    return found or [datetime(year, 3, 29, 1, tzinfo=UTC), datetime(year, 10, 25, 1, tzinfo=UTC)]


@pytest.mark.parametrize("zone", ZONES)
def test_every_zone_changes_twice_a_year(zone: str) -> None:
    assert len(changes(zone, 2026)) == 2


@pytest.mark.parametrize(
    ("zone", "day", "cron", "due_at"),
    [
        # In the gap: later by the length of the gap.
        ("America/New_York", "2026-03-08", "30 2 * * *", "2026-03-08T03:30-04:00"),
        ("Europe/London", "2026-03-29", "30 1 * * *", "2026-03-29T02:30+01:00"),
        ("Australia/Lord_Howe", "2026-10-04", "15 2 * * *", "2026-10-04T02:45+11:00"),
        # At both ends of the gap.
        ("America/New_York", "2026-03-08", "59 1 * * *", "2026-03-08T01:59-05:00"),
        ("America/New_York", "2026-03-08", "0 2 * * *", "2026-03-08T03:00-04:00"),
        ("America/New_York", "2026-03-08", "0 3 * * *", "2026-03-08T03:00-04:00"),
        # A time that occurs twice: its first occurrence.
        ("America/New_York", "2026-11-01", "30 1 * * *", "2026-11-01T01:30-04:00"),
        ("Europe/London", "2026-10-25", "30 1 * * *", "2026-10-25T01:30+01:00"),
        ("Australia/Lord_Howe", "2026-04-05", "45 1 * * *", "2026-04-05T01:45+11:00"),
        # Outside the change.
        ("America/New_York", "2026-11-01", "0 2 * * *", "2026-11-01T02:00-05:00"),
        ("Europe/London", "2026-03-29", "55 23 * * *", "2026-03-29T23:55+01:00"),
        ("UTC", "2026-03-29", "30 2 * * *", "2026-03-29T02:30+00:00"),
    ],
)
def test_the_slot_of_a_day_of_change(zone: str, day: str, cron: str, due_at: str) -> None:
    around = datetime.combine(date.fromisoformat(day), time(12), tzinfo=UTC)
    slots = Calendar(cron, zone).slots(around - 2 * DAY, around + 2 * DAY)
    found = [slot.due_at for slot in slots if slot.day == date.fromisoformat(day)]
    assert found == [datetime.fromisoformat(due_at)]


years = st.integers(2015, 2040)
zones = st.sampled_from(ZONES)
daily_crons = st.builds("{} {} * * *".format, st.integers(0, 59), st.integers(0, 23))


@given(zones, years, st.sampled_from([0, 1]), daily_crons)
def test_each_local_date_has_exactly_one_slot(zone: str, year: int, which: int, cron: str) -> None:
    change = changes_of(zone, year)[which]
    first, last = (change - 4 * DAY), (change + 4 * DAY)
    slots = Calendar(cron, zone).slots(first, last)
    inner = [slot for slot in slots if first + DAY < slot.due_at < last - DAY]
    for earlier, later in pairwise(inner):
        assert later.day - earlier.day == DAY
        assert timedelta(hours=23) - HOUR < later.due_at - earlier.due_at < timedelta(hours=25) + HOUR
    for slot in inner:
        assert slot.due_at.astimezone(ZoneInfo(zone)).date() == slot.day
    assert {slot.day for slot in inner} >= {change.date() + DAY * n for n in (-1, 0, 1)}


_known: dict[tuple[str, int], list[datetime]] = {}


def changes_of(zone: str, year: int) -> list[datetime]:
    """Returns `changes` from a cache, because that function looks at every hour of the year."""
    if (zone, year) not in _known:
        _known[zone, year] = changes(zone, year)
    return _known[zone, year]


crons = st.sampled_from(
    ["* * * * *", "*/7 1-3 * * *", "30 2 * * *", "30 1 * * 0", "0 0 1 * *", "0,30 0,2 * * *", "5 4 29 2 *"]
)


@given(zones, st.sampled_from([2026, 2027, 2028]), st.data(), crons)
def test_no_slot_falls_between_two_searches(zone: str, year: int, data: st.DataObject, cron: str) -> None:
    """Two searches of adjoining periods find the same slots as one search of the whole period."""
    change = data.draw(st.sampled_from(changes_of(zone, year)))
    seconds = st.integers(-36 * 3600, 36 * 3600)
    first, middle, last = sorted(change + timedelta(seconds=data.draw(seconds)) for _ in range(3))
    calendar = Calendar(cron, zone)
    whole = calendar.slots(first, last)
    assert calendar.slots(first, middle) + calendar.slots(middle, last) == whole
    assert len(set(whole)) == len(whole)
    if whole:
        assert calendar.latest(last) == whole[-1]


odd_zones = st.sampled_from([*ZONES, "America/Havana", "Africa/Casablanca", "Pacific/Apia", "Asia/Beirut"])


@given(odd_zones, st.integers(2010, 2028), st.data(), crons)
def test_the_last_slot_of_each_day_equals_that_of_a_full_search(
    zone: str, year: int, data: st.DataObject, cron: str
) -> None:
    """Around changes, some of which are at midnight, and one of which skips a day."""
    change = data.draw(st.sampled_from(changes_of(zone, year)))
    seconds = st.integers(-60 * 3600, 60 * 3600)
    first, last = sorted(change + timedelta(seconds=data.draw(seconds)) for _ in range(2))
    calendar = Calendar(cron, zone)
    whole = {slot.day: slot for slot in calendar.slots(first, last)}
    found = calendar.last_of_days(first, last)
    assert found == sorted(whole.values(), key=lambda slot: (slot.due_at, slot.day))


@pytest.mark.parametrize("cron", ["30 2 * * *", "15 2 * * *", "30 1 * * *", "45 1 * * *", "55 23 * * *"])
@pytest.mark.parametrize("zone", ZONES)
def test_celerys_crontab_is_due_at_the_same_times(zone: str, cron: str) -> None:
    """Otherwise Beat's trigger would find no day due, and the day would wait for reconcile."""
    now = datetime.min.replace(tzinfo=UTC)
    schedule = crontab.from_string(cron)
    schedule.app = Celery("test", set_as_current=False)
    schedule.app.conf.timezone = zone
    schedule.nowfun = lambda: now
    for change in changes(zone, 2026):
        last_run = now = change - 2 * DAY
        triggered = []
        while now < change + 2 * DAY:
            if schedule.is_due(last_run)[0]:
                triggered.append(now)
                last_run = now
            now += timedelta(minutes=5)
        slots = Calendar(cron, zone).slots(change - 2 * DAY, now - timedelta(minutes=5))
        assert triggered == [slot.due_at for slot in slots]


@pytest.fixture
def deployment(deployed: None, ledger: Ledger) -> Iterator[tuple[TickContext, HandedClock]]:
    make_users(ledger.url, 1)
    clock = HandedClock()
    with context_at(clock) as context:
        yield context, clock


@pytest.mark.parametrize("which", [0, 1], ids=["first-change", "second-change"])
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.slow
def test_each_local_date_gets_exactly_one_run(
    zone: str, which: int, deployment: tuple[TickContext, HandedClock], ledger: Ledger
) -> None:
    """Checked in the ledger, with crons inside and outside the gap, and reconcile every 55 minutes."""
    context, clock = deployment
    change = changes(zone, 2026)[which]
    for cron in ("30 2 * * *", "15 2 * * *", "30 1 * * *", "59 23 * * *", "0 0 * * *"):
        ledger.execute(
            "DELETE FROM sync_batches",
            "DELETE FROM sync_jobs",
            "DELETE FROM sync_runs",
            f"UPDATE sync_origin SET since = '{change - 5 * DAY / 2}'",
        )
        calendar = {"daily_tick_cron": cron, "scheduler_timezone": zone}
        there = replace(context, settings=context.settings.model_copy(update=calendar))
        clock.now = change - 5 * DAY / 2
        while clock.now <= change + 5 * DAY / 2:
            due_days.start_due(there, DailyOptions())
            clock.forward(timedelta(minutes=55))
        days = Counter(job["partition_key"] for job in ledger.jobs())
        local = [(change + timedelta(hours=24 * n)).astimezone(ZoneInfo(zone)).date() for n in range(-1, 2)]
        assert set(days.values()) == {1}
        assert {f"daily:{day}" for day in local} <= set(days)
        runs = ledger.rows("SELECT * FROM sync_runs")
        assert {run["state"] for run in runs} == {"ENQUEUED"}
        assert {run["partition_key"] for run in runs} == set(days)
        assert len(days) in (4, 5, 6)
