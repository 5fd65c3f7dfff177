"""`--dry-run` by classes of users, its plan token, and `--expect-plan`."""

from collections.abc import Callable

import pytest

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.users import github_login, make_users, user_id
from worker_scheduler.fanout import preview
from worker_scheduler.ledger import selected_users

Scheduler = Callable[..., Outcome]
NEW = ("backfill", "--backfill-days", "7", "--partition-key", "new")


def ids(*numbers: int) -> str:
    return ",".join(str(user_id(number)) for number in numbers)


def plan(scheduler: Scheduler, *arguments: str) -> dict[str, object]:
    found: dict[str, object] = scheduler(*NEW, *arguments, "--dry-run", "--json").report["plan"]
    return found


def half_done(scheduler: Scheduler, ledger: Ledger) -> None:
    """Of 9 users, 1 to 6 have a job: 1 has failed, 2 is done, 3 was skipped, 4 is running, 5 and 6 wait."""
    make_users(ledger.url, 9)
    scheduler(*NEW, "--user-ids", ids(1, 2, 3, 4, 5, 6))
    for number, status in enumerate(("FAILED", "COMPLETED", "SKIPPED", "RUNNING"), 1):
        ledger.execute(
            f"UPDATE sync_jobs SET status = '{status}' WHERE github_login = '{github_login(number)}'"
        )


@pytest.mark.parametrize("page", [1, 3, 10_000])
@pytest.mark.parametrize(
    ("arguments", "create", "exist", "in_flight", "unknown"),
    [
        ([], 3, 3, 3, 0),
        (["--all-users"], 3, 3, 3, 0),
        (["--user-ids", ids(2, 3, 5, 7), "--github-logins", "nobody", "--allow-missing"], 1, 2, 1, 1),
        (["--exclude-logins", "user-1,user-4,user-9,no", "--allow-missing"], 2, 2, 2, 1),
    ],
)
def test_users_by_class(
    arguments: list[str],
    create: int,
    exist: int,
    in_flight: int,
    unknown: int,
    page: int,
    scheduler: Scheduler,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half_done(scheduler, ledger)
    monkeypatch.setattr(selected_users, "PAGE", page)
    found = plan(scheduler, *arguments)
    assert {
        name: found[name] for name in ("would_create", "exist", "in_flight", "unknown", "over_cap")
    } == {
        "would_create": create,
        "exist": exist,
        "in_flight": in_flight,
        "unknown": unknown,
        "over_cap": 0,
    }


def test_it_is_said_in_words(scheduler: Scheduler, ledger: Ledger) -> None:
    half_done(scheduler, ledger)
    pacing = ["--enqueue-batch-size", "1", "--enqueue-sleep-seconds", "30"]
    first, *lines = scheduler(*NEW, *pacing, "--dry-run").stdout.splitlines()
    assert first == (
        "new: dry run, nothing was written: 9 users selected, 3 of them without a job yet;"
        " 3 jobs would be enqueued"
    )
    assert lines[:2] == [
        "  would be created: 3; exist: 3; in flight: 3; unknown: 0; over a cap: 0",
        "  pauses between batches: 60 s; the workers' rate has not been measured yet",
    ]
    assert lines[2].startswith("  to do exactly this: --expect-plan 3-6-0-")
    assert len(lines) == 3


def test_the_measured_rate_says_how_long_workers_take(
    scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 9)
    monkeypatch.setattr(preview, "_jobs_per_second", lambda *_: 0.5)
    assert plan(scheduler)["rate_seconds"] == 18
    assert "workers take 18 s at the measured rate" in scheduler(*NEW, "--dry-run").stdout


@pytest.mark.parametrize(
    ("given", "over"),
    [
        (["--backfill-max-users", "7"], 2),
        (["--max-enqueued-jobs", "5", "--confirm"], 4),
        (["--backfill-max-users", "7", "--max-enqueued-jobs", "5"], 4),
        (["--backfill-max-users", "0", "--confirm"], 0),
    ],
)
def test_who_is_over_a_cap_is_counted_although_it_is_refused(
    given: list[str], over: int, scheduler: Scheduler, ledger: Ledger
) -> None:
    make_users(ledger.url, 9)
    outcome = scheduler(*NEW, *given, "--dry-run")
    assert outcome.status == (3 if over else 0)
    assert f"would be created: 9; exist: 0; in flight: 0; unknown: 0; over a cap: {over}" in outcome.stdout
    assert plan(scheduler, *given)["over_cap"] == over


def test_a_plan_that_holds_is_carried_out(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 9)
    chosen = ["--user-ids", ids(1, 2, 3)]
    token = str(plan(scheduler, *chosen)["token"])
    assert plan(scheduler, "--github-logins", "user-3,user-2,USER-1")["token"] == token
    report = scheduler(*NEW, *chosen, "--expect-plan", token, "--json").report
    assert (report["outcome"], report["jobs_enqueued"]) == ("enqueued", 3)
    assert "plan" not in report


def test_a_job_that_ends_does_not_change_the_plan(scheduler: Scheduler, ledger: Ledger) -> None:
    half_done(scheduler, ledger)
    token = str(plan(scheduler)["token"])
    ledger.execute("UPDATE sync_jobs SET status = 'COMPLETED'")
    assert scheduler(*NEW, "--expect-plan", token).status == 0


def test_a_plan_that_has_changed_is_refused_with_old_and_new_counts(
    scheduler: Scheduler, ledger: Ledger
) -> None:
    half_done(scheduler, ledger)
    token = str(plan(scheduler)["token"])
    make_users(ledger.url, 11)
    before = ledger.everything()
    outcome = scheduler(*NEW, "--expect-plan", token)
    assert (outcome.status, outcome.error) == (
        3,
        "the selection has changed since the dry run: would be created 3 then and 5 now,"
        " have a job 6 then and 6 now, unknown 0 then and 0 now:"
        " make another dry run, or accept it with --allow-drift 2",
    )
    assert scheduler(*NEW, "--expect-plan", token, "--allow-drift", "1").status == 3
    assert scheduler(*NEW, "--expect-plan", token, "--allow-drift", "2", "--dry-run").status == 0
    assert ledger.everything() == before
    assert scheduler(*NEW, "--expect-plan", token, "--allow-drift", "2").status == 0
    assert ledger.count() == 11


def test_drift_is_counted_over_all_classes(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 9)
    chosen = ["--user-ids", ids(1, 2, 3), "--allow-missing"]
    token = str(plan(scheduler, *chosen)["token"])
    scheduler(*NEW, "--user-ids", ids(1))
    ledger.execute("DELETE FROM users WHERE github_login = 'user-2'")
    # One has a job now, and one is unknown: created 3 → 1, a job 0 → 1, unknown 0 → 1.
    assert scheduler(*NEW, *chosen, "--expect-plan", token, "--allow-drift", "3").status == 3
    assert scheduler(*NEW, *chosen, "--expect-plan", token, "--allow-drift", "4").status == 0


def test_as_many_users_but_others_are_refused(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 9)
    token = str(plan(scheduler, "--user-ids", ids(1, 2, 3))["token"])
    others = [*NEW, "--user-ids", ids(1, 2, 4), "--expect-plan", token]
    for drift in ([], ["--allow-drift", "0"]):
        outcome = scheduler(*others, *drift)
        assert outcome.status == 3
        assert "unknown 0 then and 0 now, but other users: make another dry run" in outcome.error
    assert scheduler(*others, "--allow-drift", "1").status == 0


@pytest.mark.parametrize("other", [["--campaign", "c"], ["--partition-key", "other"]])
def test_a_plan_of_another_partition_is_refused(
    other: list[str], scheduler: Scheduler, ledger: Ledger
) -> None:
    make_users(ledger.url, 3)
    token = str(plan(scheduler)["token"])
    expecting = ["--expect-plan", token, "--allow-drift", "100"]
    outcome = scheduler("backfill", "--backfill-days", "7", *other, *expecting)
    assert outcome.status == 3
    assert outcome.error.startswith("--expect-plan is the token of another partition or another")
    assert ledger.count() == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--expect-plan", "3"], "--expect-plan='3' is not a plan token: allowed is the token that a dry"),
        (["--expect-plan", "3-0-0-0-0"], "is not a plan token"),
        (["--allow-drift", "3"], "--allow-drift='3' needs --expect-plan: allowed is a whole number from 0"),
    ],
)
def test_what_is_no_plan_is_refused(
    given: list[str], said: str, scheduler: Scheduler, ledger: Ledger
) -> None:
    outcome = scheduler(*NEW, *given)
    assert outcome.status == 2
    assert said in outcome.error
