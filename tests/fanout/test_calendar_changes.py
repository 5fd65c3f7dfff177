"""Which days are due when DAILY_TICK_CRON or SCHEDULER_TIMEZONE changes, or a clock is wrong."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import hypothesis
import pytest
from freezegun import freeze_time
from hypothesis import example
from hypothesis import strategies as st

from tests.fanout.days import DAY, HOUR, MIDNIGHT, SLOT, deployed_at, given, states
from tests.support.contexts import INSTANT, HandedClock, at_once
from tests.support.hypotheses import inputs
from tests.support.ledger import Ledger
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.errors import Refused
from worker_scheduler.fanout import due_days
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.maintenance import reconciler
from worker_scheduler.slots import Calendar

# --- another cron or zone -----------------------------------------------------------------------------

MONDAYS = {"daily_tick_cron": "0 2 * * 1"}  # SLOT is on a Monday


@pytest.mark.parametrize("policy", ["latest", "all", "none"])
@pytest.mark.parametrize(
    "calendar",
    [
        {"daily_tick_cron": "0 2 * * *"},
        {"daily_tick_cron": "0 1 * * *"},
        {"daily_tick_cron": "0 2 * * *", "scheduler_timezone": "Europe/Berlin"},
    ],
)
def test_slots_before_a_change_of_the_calendar_are_not_due(
    calendar: dict[str, str], policy: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - 22 * DAY)
    before = given(context, **MONDAYS, daily_catch_up="all", daily_catch_up_window=30)
    assert reconciler.missed_slots(before) == 4
    clock.forward(3 * DAY)
    after = given(before, **calendar, daily_catch_up=policy)
    for _ in range(2):
        assert reconciler.missed_slots(after) == 0
    assert list(states(ledger).values()) == ["ENQUEUED"] * 4
    clock.forward(DAY)
    assert reconciler.missed_slots(after) == 1
    assert len(states(ledger)) == 5


def test_only_a_day_that_was_still_to_run_is_due_with_a_change_of_the_zone(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """At 01:30 UTC on the 23rd, Kiritimati's slot of the 23rd is hours in the past, unlike that of UTC."""
    deployed_at(ledger, SLOT - DAY)
    clock.now = SLOT - HOUR / 2
    assert reconciler.missed_slots(context) == 0
    zoned = given(context, scheduler_timezone="Pacific/Kiritimati")
    assert [reconciler.missed_slots(zoned) for _ in range(2)] == [1, 0]
    assert states(ledger) == {"23": "ENQUEUED"}
    clock.now = SLOT + 10 * HOUR
    assert reconciler.missed_slots(zoned) == 1
    assert states(ledger) == {"23": "ENQUEUED", "24": "ENQUEUED"}


@pytest.mark.parametrize("policy", ["latest", "all", "none"])
@pytest.mark.parametrize("how", ["trigger", "reconcile"])
def test_a_cron_that_moves_to_before_now_does_not_skip_the_day(
    how: str, policy: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """At 03:00 it moves from 05:00 to 02:00: one is still to come, the other is past."""
    deployed_at(ledger, SLOT - DAY)
    clock.now = SLOT - INSTANT
    before = given(context, daily_catch_up=policy, daily_tick_cron="0 5 * * *")
    reconciler.missed_slots(before)
    assert states(ledger) == {"22": {"none": "MISSED"}.get(policy, "ENQUEUED")}
    clock.now = SLOT + HOUR
    after = given(before, daily_tick_cron="0 2 * * *")
    for _ in range(2):
        if how == "trigger":
            due_days.start_triggered(after, DailyOptions())
        else:
            reconciler.missed_slots(after)
        assert states(ledger)["23"] == "ENQUEUED"
    assert ledger.value("SELECT slot FROM sync_runs ORDER BY slot DESC LIMIT 1") == clock.now
    clock.now = SLOT + DAY
    assert reconciler.missed_slots(after) == 1
    assert list(states(ledger)) == ["22", "23", "24"]


def test_a_day_that_had_its_run_is_not_due_with_a_change_of_the_calendar(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    assert reconciler.missed_slots(context) == 1
    clock.forward(HOUR)
    assert reconciler.missed_slots(given(context, daily_tick_cron="0 5 * * *")) == 0
    clock.forward(HOUR)
    assert reconciler.missed_slots(context) == 0
    assert states(ledger) == {"23": "ENQUEUED"}


def test_days_that_a_clock_ahead_noted_as_missed_run_when_they_are_due(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """A host without the ledger's clock was 30 days ahead, once."""
    deployed_at(ledger, SLOT - HOUR)
    clock.now = SLOT + 30 * DAY
    reconciler.missed_slots(given(context, daily_catch_up="none"))
    assert len(states(ledger)) == 31
    for days in range(3):
        clock.now = SLOT + days * DAY
        if days % 2:
            assert reconciler.missed_slots(context) == 1
        else:
            due_days.start_triggered(context, DailyOptions())
        assert states(ledger)[f"{23 + days}"] == "ENQUEUED"
        assert reconciler.missed_slots(context) == 0


@pytest.mark.parametrize("ahead", [HOUR, -HOUR, 30 * DAY, -30 * DAY])
def test_no_day_is_missed_before_it_is_due_by_the_clock_of_the_ledger(
    ahead: timedelta, deployed: None, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's clock is `ahead`; the parts are those of an entry point."""
    from worker_scheduler import wiring

    make_users(ledger.url, 1)
    now = datetime.now(UTC)
    monkeypatch.setenv("DAILY_CATCH_UP", "all")
    monkeypatch.setenv("DAILY_TICK_CRON", f"{now.minute} {(now - HOUR).hour} * * *")
    ledger.execute("UPDATE sync_origin SET since = now() - interval '2 hours'")
    with (
        freeze_time(now + ahead, tick=True, ignore=["celery", "kombu", "redis"]),
        wiring.tick_context("test", lambda _: None) as context,
    ):
        assert reconciler.reconcile(context).errors == []
    (run,) = ledger.rows("SELECT * FROM sync_runs")
    assert (run["partition_key"], run["state"]) == (f"daily:{(now - HOUR).date()}", "ENQUEUED")
    assert abs(run["created_at"] - now) < timedelta(minutes=1)
    assert ledger.count() == 1


# --- many changes -------------------------------------------------------------------------------------

ZONES = ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago", "America/New_York", "Asia/Kolkata"]
calendars = st.tuples(st.integers(0, 23), st.sampled_from([0, 30, 59]), st.sampled_from(ZONES))
minutes_until_the_next = st.one_of(st.integers(1, 300), st.integers(1, 4000))


@example(policy="latest", window=7, first=(5, 0, "UTC"), changes=[(180, (2, 0, "UTC"))])
@example(
    policy="none",
    window=0,
    first=(23, 59, "Pacific/Pago_Pago"),
    changes=[(11 * 60, (0, 0, "Pacific/Kiritimati"))],
)
@example(
    policy="all",
    window=7,
    first=(2, 0, "UTC"),
    changes=[(200, (5, 0, "UTC")), (100, (2, 0, "UTC")), (50, (6, 0, "UTC"))],
)
@hypothesis.given(
    policy=st.sampled_from(["latest", "all", "none"]),
    window=st.sampled_from([0, 1, 7]),
    first=calendars,
    changes=st.lists(st.tuples(minutes_until_the_next, calendars), min_size=1, max_size=5),
)
@inputs(0.02)
def test_every_date_has_a_run_or_is_missed_however_the_calendar_changes(
    policy: str,
    window: int,
    first: tuple[int, int, str],
    changes: list[tuple[int, tuple[int, int, str]]],
    nobody: TickContext,
    ledger: Ledger,
    clock: HandedClock,
) -> None:
    """A pass of the earlier calendar before each change, and one of the new calendar after it."""
    clock.now = MIDNIGHT
    ledger.execute(
        "TRUNCATE sync_runs CASCADE",
        f"UPDATE sync_origin SET since = '{MIDNIGHT}', cron = NULL, timezone = NULL",
    )
    nobody = given(nobody, daily_catch_up=policy, daily_catch_up_window=window)

    def looked_at_by(calendar: tuple[int, int, str]) -> None:
        hour, minute, zone = calendar
        by = given(nobody, daily_tick_cron=f"{minute} {hour} * * *", scheduler_timezone=zone)
        reconciler.missed_slots(by)

    now = first
    looked_at_by(first)
    due_first = (
        Calendar(f"{first[1]} {first[0]} * * *", first[2]).slots(MIDNIGHT, MIDNIGHT + 2 * DAY)[0].day
    )
    for wait, following in changes:
        clock.forward(timedelta(minutes=wait))
        looked_at_by(now)
        now = following
        looked_at_by(now)
    clock.forward(3 * DAY)
    looked_at_by(now)
    rows = ledger.rows("SELECT partition_key FROM sync_runs")
    found = {date.fromisoformat(row["partition_key"].removeprefix("daily:")) for row in rows}
    last = clock.now.astimezone(ZoneInfo(now[2])).date() - DAY
    expected = {due_first + DAY * n for n in range((last - due_first).days + 1)}
    assert expected - found == set()
    # And none before it has begun anywhere.
    assert max(found) <= clock.now.astimezone(ZoneInfo("Pacific/Kiritimati")).date()


def test_a_day_due_by_the_earlier_calendar_is_caught_up(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """The scheduler is down from Friday to Wednesday, and comes back with another cron."""
    deployed_at(ledger, SLOT - 10 * DAY)
    clock.now = SLOT - 3 * DAY
    before = given(context, **MONDAYS)
    reconciler.missed_slots(before)
    clock.now = SLOT + 2 * DAY + HOUR
    assert reconciler.missed_slots(context) == 1
    assert reconciler.missed_slots(context) == 0
    assert states(ledger) == {"16": "ENQUEUED", "23": "ENQUEUED"}


def test_a_refused_day_stays_due_after_a_change_of_the_calendar(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    clock.now = SLOT - HOUR / 2
    reconciler.missed_slots(given(context, **MONDAYS))
    clock.now = SLOT + DAY
    for _ in range(2):
        with pytest.raises(Refused, match="MAX_ENQUEUED_JOBS"):
            reconciler.missed_slots(given(context, max_enqueued_jobs=1))
    assert reconciler.missed_slots(context) == 1
    assert states(ledger) == {"23": "ENQUEUED"}


def test_concurrent_passes_change_the_calendar_once(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    reconciler.missed_slots(given(context, **MONDAYS))
    clock.forward(3 * DAY)
    at_once(context, 4, reconciler.missed_slots)
    assert states(ledger) == {"23": "ENQUEUED"}
    assert ledger.rows("SELECT since, cron, timezone FROM sync_origin") == [
        {"since": SLOT + 3 * DAY, "cron": "0 2 * * *", "timezone": "UTC"}
    ]
