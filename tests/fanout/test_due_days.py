"""Which days are due: after downtime, at a late trigger, at the first deployment, without a trigger."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tests.fanout.days import DAY, HOUR, INTERVAL, MIDNIGHT, SLOT, deployed_at, given, states
from tests.support.command_line import Outcome
from tests.support.contexts import INSTANT, HandedClock, at_once
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import due_days, tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.maintenance import reconciler

# --- downtime ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["trigger", "reconcile"])
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
        if how == "trigger":
            assert all(
                report.failure is None for report in due_days.start_triggered(context, DailyOptions())
            )
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
def test_a_day_older_than_the_window_is_missed(
    late: timedelta, runs: int, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - 10 * DAY)
    # There are nine slots. The oldest that may still run was due six days before the latest.
    clock.now = SLOT - DAY + late
    context = given(context, daily_catch_up="all", daily_catch_up_window=6)
    reconciler.missed_slots(context)
    found = list(states(ledger).values())
    assert (found.count("ENQUEUED"), len(found)) == (runs, 9)
    assert found == ["MISSED"] * (9 - runs) + ["ENQUEUED"] * runs


def test_the_default_catches_up_the_latest_day_of_a_week(context: TickContext) -> None:
    assert context.settings.daily_catch_up == "latest"
    assert context.settings.daily_catch_up_window == 7


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_a_window_of_no_days_still_runs_what_is_due_now(
    policy: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """A trigger never arrives at the exact time of the slot, and it may wait for a free worker."""
    deployed_at(ledger, SLOT - 2 * DAY)
    clock.now = SLOT + timedelta(seconds=3)
    due_days.start_triggered(given(context, daily_catch_up=policy, daily_catch_up_window=0), DailyOptions())
    assert states(ledger) == {"22": "MISSED", "23": "ENQUEUED"}


def test_at_most_a_year_of_missed_days_is_recorded(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - 500 * DAY)
    reconciler.missed_slots(context)
    counted = ledger.rows("SELECT state, count(*) AS n FROM sync_runs GROUP BY 1")
    assert {row["state"]: row["n"] for row in counted} == {"MISSED": 365, "ENQUEUED": 1}


def test_a_missed_day_stays_missed_until_a_command_names_it(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    clock.now = SLOT + 2 * HOUR
    context = given(context, daily_catch_up="none")
    for _ in range(2):
        due_days.start_triggered(context, DailyOptions())
        reconciler.reconcile(context)
    assert states(ledger) == {"23": "MISSED"}
    assert ledger.count() == 0
    assert tick.daily(context, DailyOptions(date=SLOT.date())).jobs_enqueued == 3
    assert states(ledger) == {"23": "ENQUEUED"}


# --- late triggers ----------------------------------------------------------------------------------


def test_a_trigger_after_midnight_starts_the_day_of_its_slot(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - DAY)
    clock.now = MIDNIGHT + timedelta(minutes=10)
    (report,) = due_days.start_triggered(given(context, daily_tick_cron="55 23 * * *"), DailyOptions())
    assert report.partition_key == "daily:2026-11-22"
    run = ledger.row("SELECT * FROM sync_runs")
    assert run["slot"] == MIDNIGHT - timedelta(minutes=5)
    assert ledger.count("daily:2026-11-22") == ledger.count() == 3


def test_the_day_is_that_of_the_time_zone(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    """00:30 in Kiritimati is 10:30 of the day before in UTC."""
    deployed_at(ledger, SLOT - DAY)
    clock.now = datetime(2026, 11, 23, 10, 31, tzinfo=UTC)
    zoned = given(context, daily_tick_cron="30 0 * * *", scheduler_timezone="Pacific/Kiritimati")
    (report,) = due_days.start_triggered(zoned, DailyOptions())
    assert report.partition_key == "daily:2026-11-24"


@pytest.mark.parametrize(("late", "state"), [(HOUR, "ENQUEUED"), (HOUR + INSTANT, "MISSED")])
def test_without_catch_up_a_trigger_may_still_be_an_hour_late(
    late: timedelta, state: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - HOUR)
    clock.now = SLOT + late
    due_days.start_triggered(given(context, daily_catch_up="none"), DailyOptions())
    assert states(ledger) == {"23": state}


@pytest.mark.parametrize(("late", "state"), [(3 * HOUR, "ENQUEUED"), (3 * HOUR + INSTANT, "MISSED")])
def test_without_catch_up_reconcile_starts_a_slot_within_three_long_intervals(
    late: timedelta, state: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """The bound of a worker whose pool is full."""
    deployed_at(ledger, SLOT - HOUR)
    clock.now = SLOT + late
    reconciler.missed_slots(given(context, daily_catch_up="none", reconcile_interval_seconds=3600))
    assert states(ledger) == {"23": state}


def test_a_second_trigger_adds_only_new_users(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    deployed_at(ledger, SLOT - HOUR)
    due_days.start_triggered(context, DailyOptions())
    (report,) = due_days.start_triggered(context, DailyOptions())
    assert report.outcome == "nothing_to_do"
    make_users(ledger.url, 5)
    (report,) = due_days.start_triggered(context, DailyOptions())
    assert (report.jobs_inserted, broker.count("daily")) == (2, 5)
    assert states(ledger) == {"23": "ENQUEUED"}


def test_a_cron_with_two_slots_per_day_has_one_run_per_day(
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
def test_slots_before_the_first_deployment_are_not_due(
    before: timedelta, runs: int, policy: str, context: TickContext, ledger: Ledger
) -> None:
    deployed_at(ledger, SLOT - before)
    context = given(context, daily_catch_up=policy)
    assert reconciler.missed_slots(context) == runs
    assert states(ledger) == ({"23": "ENQUEUED"} if runs else {})


def test_the_first_migration_counts_as_the_first_deployment(
    scheduler: Callable[..., Outcome], empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real clock, and a slot two to three hours ago."""
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert scheduler("migrate").status == 0
    ledger = Ledger(empty_database_url)
    make_users(ledger.url, 1)
    hour = (datetime.now(UTC) - 2 * HOUR).hour
    monkeypatch.setenv("DAILY_TICK_CRON", f"0 {hour} * * *")
    assert scheduler("reconcile", "--json").report["missed_slots"] == 0
    assert ledger.rows("SELECT * FROM sync_runs") == []
    ledger.execute("UPDATE sync_origin SET since = since - interval '1 day'")
    assert scheduler("reconcile", "--json").report["missed_slots"] == 1


def test_migrating_again_keeps_the_first_deployment(
    scheduler: Callable[..., Outcome], ledger: Ledger
) -> None:
    deployed_at(ledger, SLOT)
    assert scheduler("migrate").status == 0
    assert ledger.rows("SELECT since FROM sync_origin") == [{"since": SLOT}]


# --- lost triggers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [INSTANT, timedelta(seconds=29), INTERVAL])
def test_a_lost_trigger_is_made_good_within_two_intervals(
    phase: timedelta, context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """However the trigger was lost: reconcile looks at the ledger, not at Beat's clock."""
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
    """The broker is away at the slot. The day is planned anyway, and sent once the broker is back."""
    deployed_at(ledger, SLOT - HOUR)
    from worker_scheduler.errors import StoreUnavailable

    class Away:
        repeatable = True

        def publish(self, groups: object) -> list[UUID | None]:
            raise StoreUnavailable("the broker is away")

    (report,) = due_days.start_triggered(replace(context, publisher=Away()), DailyOptions())
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
def test_concurrent_triggers_start_a_day_once(
    policy: str, context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    deployed_at(ledger, SLOT - 2 * DAY - HOUR)
    # Without the lock, all of them reach the ledger.
    context = given(context, daily_catch_up=policy, scheduler_lock_enabled=False)
    at_once(context, 4, lambda own: due_days.start_triggered(own, DailyOptions()))
    days = {"latest": 1, "all": 3, "none": 1}[policy]
    assert list(states(ledger).values()) == ["MISSED"] * (3 - days) + ["ENQUEUED"] * days
    assert ledger.count() == broker.count("daily") == 3 * days
