"""Who asked for a daily run or a backfill, each time, is in the history of requests."""

import getpass
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.fanout.days import SLOT, deployed_at, given
from tests.support.command_line import Outcome
from tests.support.contexts import HandedClock
from tests.support.ledger import Ledger, Row
from tests.support.users import github_login, make_users, user_id
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import due_days, tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.maintenance.rules.runs import missed_slots

Scheduler = Callable[..., Outcome]

ME = f"{getpass.getuser()}@{socket.gethostname()}"


def asked(ledger: Ledger) -> list[Row]:
    return ledger.rows("SELECT * FROM sync_requests ORDER BY requested_at")


def outcomes(ledger: Ledger) -> list[tuple[str, str]]:
    return [(row["actor"], row["outcome"]) for row in asked(ledger)]


def the_one(ledger: Ledger) -> Row:
    (row,) = asked(ledger)
    return row


def test_a_command_that_opens_a_run(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    outcome = scheduler("daily", "--date", "2026-11-23", "--enqueue-batch-size", "2", "--json")
    row = the_one(ledger)
    assert (row["verb"], row["partition_key"]) == ("daily", "daily:2026-11-23")
    assert (row["actor"], row["source"], row["reason"]) == (ME, f"cli {ME}", None)
    assert row["options"] == {"date": "2026-11-23", "enqueue_batch_size": 2}
    assert (row["outcome"], row["detail"]) == ("opened", None)
    assert str(row["run_id"]) == outcome.report["run_id"]


def test_actor_and_reason(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    scheduler("daily", "--date", "2026-11-23", "--actor", " ada\x1b ", "--reason", "ticket 7\n")
    row = the_one(ledger)
    assert (row["actor"], row["source"], row["reason"]) == ("ada\\x1b", f"cli {ME}", "ticket 7")


@pytest.mark.parametrize(("option", "longest"), [("--actor", 200), ("--reason", 500)])
def test_actor_and_reason_are_bounded(
    option: str, longest: int, scheduler: Scheduler, ledger: Ledger
) -> None:
    make_users(ledger.url, 1)
    assert scheduler("daily", option, "x" * longest).status == 0
    outcome = scheduler("daily", option, "x" * (longest + 1))
    assert outcome.status == 2
    assert outcome.error.endswith(f"is too long: allowed is text of at most {longest} characters")
    assert scheduler("daily", option, "").status == 0


def test_users_are_counted_not_listed(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    ids = f"{user_id(1)},{user_id(2)}"
    scheduler("backfill", "--backfill-days", "7", "--user-ids", ids, "--github-logins", github_login(3))
    row = the_one(ledger)
    assert row["options"] == {"backfill_days": 7, "user_ids": 2, "github_logins": 1}
    assert row["verb"] == "backfill"
    assert str(user_id(1)) not in str(row) and github_login(3) not in str(row)


def test_each_trigger_of_a_partition_has_its_row(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    for actor in ("ada", "bob"):
        scheduler("daily", "--date", "2026-11-23", "--actor", actor)
    assert outcomes(ledger) == [("ada", "opened"), ("bob", "opened")]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["daily", "--max-enqueued-jobs", "2"], 3),
        (["daily", "--date", "9000-01-01"], 2),
        (["backfill", "--backfill-days", "7", "--github-logins", "nobody"], 3),
        (["backfill", "--backfill-days", "7", "--backfill-max-users", "1", "--partition-key", "k"], 3),
    ],
)
def test_a_refusal(command: list[str], status: int, scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    outcome = scheduler(*command, "--reason", "why")
    assert outcome.status == status
    row = the_one(ledger)
    assert (row["verb"], row["outcome"], row["reason"]) == (command[0], "refused", "why")
    assert (row["run_id"], row["detail"]) == (None, outcome.error)
    assert row["partition_key"] is not None
    assert not ledger.rows("SELECT * FROM sync_runs")


def test_a_dry_run_has_no_row(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    assert scheduler("daily", "--dry-run").status == 0
    assert scheduler("daily", "--dry-run", "--max-enqueued-jobs", "2").status == 3
    assert not asked(ledger)


def test_a_tick_that_joins_another_one(context: TickContext, ledger: Ledger) -> None:
    joined: list[Any] = []

    def join(_: object) -> None:
        if not joined:
            joined.append(None)
            joined.append(tick.daily(replace(context, request_id=uuid4()), DailyOptions(actor="bob")))

    tick.daily(replace(context, on_opened=join), DailyOptions(actor="ada"))
    assert joined[1].outcome == "joined"
    assert sorted(outcomes(ledger)) == [("ada", "opened"), ("bob", "joined")]
    assert len({row["run_id"] for row in asked(ledger)}) == 1


def test_what_reconcile_catches_up(context: TickContext, ledger: Ledger) -> None:
    deployed_at(ledger, SLOT - timedelta(hours=1))
    assert missed_slots(context) == 1
    row = the_one(ledger)
    assert (row["actor"], row["source"], row["outcome"]) == ("reconcile", "test", "opened")
    assert row["partition_key"] == "daily:2026-11-23"
    assert row["options"] == {"slot": SLOT.isoformat()}


def test_a_day_that_each_pass_refuses_has_one_row(
    context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    deployed_at(ledger, SLOT - timedelta(hours=1))
    for _ in range(3):
        with pytest.raises(Exception, match="max-enqueued-jobs"):
            missed_slots(given(context, max_enqueued_jobs=2))
        clock.forward(timedelta(minutes=1))
    assert the_one(ledger)["outcome"] == "refused"


def test_a_trigger_of_a_day_that_was_missed(
    context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    deployed_at(ledger, SLOT - timedelta(hours=1))
    missed = given(context, daily_catch_up="none")
    clock.forward(timedelta(hours=20))
    due_days.start_triggered(missed, DailyOptions())
    row = the_one(ledger)
    assert (row["outcome"], row["run_id"]) == ("nothing_to_do", None)
    assert row["partition_key"] == f"daily:{SLOT:%Y-%m-%d}"
