"""Which days are due: after downtime, at a late ring, at the first deployment, without any ring."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.support.command_line import Outcome
from tests.support.contexts import INSTANT, HandedClock, at_once, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler import catch_up, reconciler, tick
from worker_scheduler.context import TickContext
from worker_scheduler.errors import Refused
from worker_scheduler.options import DailyOptions

MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC)
SLOT = MIDNIGHT + timedelta(hours=2)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
INTERVAL = timedelta(seconds=60)


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock(SLOT)


@pytest.fixture
def context(deployed: None, ledger: Ledger, clock: HandedClock) -> Iterator[TickContext]:
    """At 02:00 in UTC, deployed the year before."""
    make_users(ledger.url, 3)
    with context_at(clock) as context:
        yield context


def deployed_at(ledger: Ledger, since: datetime) -> None:
    ledger.execute(f"UPDATE sync_origin SET since = '{since}'")


def given(context: TickContext, **settings: Any) -> TickContext:
    return replace(context, settings=context.settings.model_copy(update=settings))


def states(ledger: Ledger) -> dict[str, str]:
    rows = ledger.rows("SELECT partition_key, state FROM sync_runs ORDER BY partition_key")
    return {row["partition_key"].removeprefix("daily:2026-11-"): row["state"] for row in rows}


# --- downtime ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ring", "reconcile"])
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("latest", {"20": "ENQUEUED", "21": "MISSED", "22": "MISSED", "23": "ENQUEUED"}),
        ("all", dict.fromkeys(["20", "21", "22", "23"], "ENQUEUED")),
        ("none", {"20": "ENQUEUED", **dict.fromkeys(["21", "22", "23"], "MISSED")}),
    ],
)
def test_after_three_days_down(
    policy: str,
    expected: dict[str, str],
    how: str,
    context: TickContext,
    ledger: Ledger,
    broker: Broker,
    clock: HandedClock,
) -> None:
    deployed_at(ledger, SLOT - 3 * DAY - HOUR)
    clock.now = SLOT - 3 * DAY
    context = given(context, daily_catch_up=policy)
    reconciler.missed_slots(context)
    clock.now = SLOT + 5 * HOUR
    for _ in range(2):
        if how == "ring":
            assert all(report.failure is None for report in catch_up.ring(context, DailyOptions()))
        else:
            assert reconciler.reconcile(context).errors == []
        assert states(ledger) == expected
    ran = [day for day, state in expected.items() if state == "ENQUEUED"]
    assert ledger.count() == broker.count("daily") == 3 * len(ran)
    for day in expected:
        run = ledger.row("SELECT * FROM sync_runs WHERE partition_key = %s", f"daily:2026-11-{day}")
        assert run["slot"] == SLOT.replace(day=int(day))
        assert run["triggered_by"] == "scheduler.daily"


@pytest.mark.parametrize(("late", "runs"), [(timedelta(0), 7), (INSTANT, 6)])
def test_the_window_ends_for_a_day_that_was_due_longer_ago(
    late: timedelta, runs: int, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - 10 * DAY)
    # Of its nine slots, the oldest that may run was due six days before the latest.
    clock.now = SLOT - DAY + late
    context = given(context, daily_catch_up="all", daily_catch_up_window=6)
    reconciler.missed_slots(context)
    found = list(states(ledger).values())
    assert (found.count("ENQUEUED"), len(found)) == (runs, 9)
    assert found == ["MISSED"] * (9 - runs) + ["ENQUEUED"] * runs


def test_the_default_is_the_latest_of_a_week(context: TickContext) -> None:
    assert context.settings.daily_catch_up == "latest"
    assert context.settings.daily_catch_up_window == 7


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_a_window_of_no_days_still_runs_what_is_due_now(
    policy: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """A ring is never at the slot's very microsecond, and it may wait for a free worker."""
    deployed_at(ledger, SLOT - 2 * DAY)
    clock.now = SLOT + timedelta(seconds=3)
    catch_up.ring(given(context, daily_catch_up=policy, daily_catch_up_window=0), DailyOptions())
    assert states(ledger) == {"22": "MISSED", "23": "ENQUEUED"}


def test_a_year_of_downtime_is_looked_back_upon(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - 500 * DAY)
    reconciler.missed_slots(context)
    counted = ledger.rows("SELECT state, count(*) AS n FROM sync_runs GROUP BY 1")
    assert {row["state"]: row["n"] for row in counted} == {"MISSED": 365, "ENQUEUED": 1}


def test_a_missed_day_stays_missed_until_somebody_names_it(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    clock.now = SLOT + 2 * HOUR
    context = given(context, daily_catch_up="none")
    for _ in range(2):
        catch_up.ring(context, DailyOptions())
        reconciler.reconcile(context)
    assert states(ledger) == {"23": "MISSED"}
    assert ledger.count() == 0
    assert tick.daily(context, DailyOptions(date=SLOT.date())).jobs_enqueued == 3
    assert states(ledger) == {"23": "ENQUEUED"}


# --- late rings -------------------------------------------------------------------------------------


def test_rung_after_midnight_for_a_slot_before_it_fills_the_day_before(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - DAY)
    clock.now = MIDNIGHT + timedelta(minutes=10)
    (report,) = catch_up.ring(given(context, daily_tick_cron="55 23 * * *"), DailyOptions())
    assert report.partition_key == "daily:2026-11-22"
    run = ledger.row("SELECT * FROM sync_runs")
    assert run["slot"] == MIDNIGHT - timedelta(minutes=5)
    assert ledger.count("daily:2026-11-22") == ledger.count() == 3


def test_the_day_is_the_time_zones_not_utcs(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """Half past midnight in Kiritimati is the morning of the day before in UTC."""
    deployed_at(ledger, SLOT - DAY)
    clock.now = datetime(2026, 11, 23, 10, 31, tzinfo=UTC)
    zoned = given(context, daily_tick_cron="30 0 * * *", scheduler_timezone="Pacific/Kiritimati")
    (report,) = catch_up.ring(zoned, DailyOptions())
    assert report.partition_key == "daily:2026-11-24"


@pytest.mark.parametrize(("late", "state"), [(HOUR, "ENQUEUED"), (HOUR + INSTANT, "MISSED")])
def test_without_catch_up_a_ring_may_still_be_an_hour_late(
    late: timedelta, state: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    clock.now = SLOT + late
    catch_up.ring(given(context, daily_catch_up="none"), DailyOptions())
    assert states(ledger) == {"23": state}


def test_a_second_ring_adds_who_is_new_and_nothing_else(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    catch_up.ring(context, DailyOptions())
    (report,) = catch_up.ring(context, DailyOptions())
    assert report.outcome == "nothing_to_do"
    make_users(ledger.url, 5)
    (report,) = catch_up.ring(context, DailyOptions())
    assert (report.jobs_inserted, broker.count("daily")) == (2, 5)
    assert states(ledger) == {"23": "ENQUEUED"}


def test_a_cron_that_rings_twice_a_day_has_one_run_a_day(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    context = given(context, daily_tick_cron="0 2,14 * * *")
    assert reconciler.missed_slots(context) == 1
    make_users(ledger.url, 5)
    clock.now = SLOT + 12 * HOUR - INSTANT
    assert reconciler.missed_slots(context) == 0
    clock.now = SLOT + 12 * HOUR
    assert reconciler.missed_slots(context) == 1
    assert reconciler.missed_slots(context) == 0
    assert states(ledger) == {"23": "ENQUEUED"}
    assert ledger.value("SELECT slot FROM sync_runs") == SLOT + 12 * HOUR
    assert ledger.count() == broker.count("daily") == 5


# --- the first deployment -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["latest", "all", "none"])
@pytest.mark.parametrize(("before", "runs"), [(timedelta(0), 0), (INSTANT, 1)])
def test_the_first_deployment_invents_no_past(
    before: timedelta, runs: int, policy: str, context: TickContext, ledger: Ledger
) -> None:
    deployed_at(ledger, SLOT - before)
    context = given(context, daily_catch_up=policy)
    assert reconciler.missed_slots(context) == runs
    assert states(ledger) == ({"23": "ENQUEUED"} if runs else {})


def test_migrating_is_what_counts_as_the_first_deployment(
    scheduler: Callable[..., Outcome], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the real clock, with a slot two hours ago."""
    make_users(ledger.url, 1)
    hour = (datetime.now(UTC) - 2 * HOUR).hour
    monkeypatch.setenv("DAILY_TICK_CRON", f"0 {hour} * * *")
    assert scheduler("reconcile", "--json").report["missed_slots"] == 0
    assert ledger.rows("SELECT * FROM sync_runs") == []
    ledger.execute("UPDATE sync_origin SET since = since - interval '1 day'")
    assert scheduler("reconcile", "--json").report["missed_slots"] == 1


def test_migrating_again_does_not_forget_the_first_deployment(
    scheduler: Callable[..., Outcome], ledger: Ledger
) -> None:
    deployed_at(ledger, SLOT)
    assert scheduler("migrate").status == 0
    assert ledger.rows("SELECT since FROM sync_origin") == [{"since": SLOT}]


# --- another cron or zone -----------------------------------------------------------------------------

MONDAYS = {"daily_tick_cron": "0 2 * * 1"}  # SLOT is one


@pytest.mark.parametrize("policy", ["latest", "all", "none"])
@pytest.mark.parametrize(
    "calendar",
    [
        {"daily_tick_cron": "0 2 * * *"},
        {"daily_tick_cron": "0 1 * * *"},
        {"daily_tick_cron": "0 2 * * *", "scheduler_timezone": "Europe/Berlin"},
    ],
)
def test_another_calendar_invents_no_past(
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


def test_another_zone_invents_no_past(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    """In the morning of the 23rd in UTC, the 23rd was due in Kiritimati the day before."""
    deployed_at(ledger, SLOT - DAY)
    clock.now = SLOT - HOUR / 2
    assert reconciler.missed_slots(context) == 0
    zoned = given(context, scheduler_timezone="Pacific/Kiritimati")
    assert reconciler.missed_slots(zoned) == 0
    clock.now = SLOT + 10 * HOUR
    assert reconciler.missed_slots(zoned) == 1
    assert states(ledger) == {"24": "ENQUEUED"}


def test_what_was_due_by_the_calendar_before_is_caught_up(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """Down from Friday to Wednesday, and then another cron."""
    deployed_at(ledger, SLOT - 10 * DAY)
    clock.now = SLOT - 3 * DAY
    before = given(context, **MONDAYS)
    reconciler.missed_slots(before)
    clock.now = SLOT + 2 * DAY + HOUR
    assert reconciler.missed_slots(context) == 1
    assert reconciler.missed_slots(context) == 0
    assert states(ledger) == {"16": "ENQUEUED", "23": "ENQUEUED"}


def test_a_day_that_is_refused_is_not_forgotten_with_its_calendar(
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


def test_several_at_once_change_the_calendar_once(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    reconciler.missed_slots(given(context, **MONDAYS))
    clock.forward(3 * DAY)
    at_once(context, 4, reconciler.missed_slots)
    assert states(ledger) == {"23": "ENQUEUED"}
    assert ledger.rows("SELECT * FROM sync_origin") == [
        {"since": SLOT + 3 * DAY, "cron": "0 2 * * *", "timezone": "UTC"}
    ]


# --- lost rings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [INSTANT, timedelta(seconds=29), INTERVAL])
def test_a_lost_ring_is_made_good_within_two_intervals(
    phase: timedelta, context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """Whatever took the ring: reconcile looks at the ledger, and not at what Beat has noted."""
    deployed_at(ledger, SLOT - HOUR)
    broker.lose_everything()
    clock.now = SLOT - phase
    assert reconciler.missed_slots(context) == 0
    clock.now += INTERVAL
    began = clock.now
    while not ledger.rows("SELECT * FROM sync_runs"):
        reconciler.reconcile(context)
        clock.forward(INTERVAL)
    assert began - SLOT < INTERVAL
    assert clock.now - SLOT <= 2 * INTERVAL
    assert ledger.count("daily:2026-11-23") == broker.count("daily") == 3


def test_a_slot_whose_tick_met_an_outage_is_started_after_it(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """The broker is away at the slot; the day is planned all the same, and sent when it is back."""
    deployed_at(ledger, SLOT - HOUR)
    from worker_scheduler.errors import StoreUnavailable

    class Away:
        repeatable = True

        def publish(self, groups: object) -> list[UUID | None]:
            raise StoreUnavailable("the broker is away")

    (report,) = catch_up.ring(replace(context, publisher=Away()), DailyOptions())
    assert report.outcome == "failed"
    assert (ledger.count(), broker.counts()) == (3, {})
    clock.forward(INTERVAL)
    assert reconciler.reconcile(context).errors == []
    assert broker.count("daily") == 3


def test_a_day_that_was_run_by_hand_is_not_run_again(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    clock.now = SLOT - HOUR / 2
    tick.daily(context, DailyOptions(date=SLOT.date()))
    clock.now = SLOT + INTERVAL
    assert reconciler.missed_slots(context) == 0


@pytest.mark.parametrize("policy", ["latest", "all", "none"])
def test_several_at_once_start_a_day_once(
    policy: str, context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - 2 * DAY - HOUR)
    # Without the lock, all of them come through to the ledger.
    context = given(context, daily_catch_up=policy, scheduler_lock_enabled=False)
    at_once(context, 4, lambda own: catch_up.ring(own, DailyOptions()))
    days = {"latest": 1, "all": 3, "none": 1}[policy]
    assert list(states(ledger).values()) == ["MISSED"] * (3 - days) + ["ENQUEUED"] * days
    assert ledger.count() == broker.count("daily") == 3 * days
