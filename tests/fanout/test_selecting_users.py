"""How the users of a backfill are chosen: what unites, what narrows, and what stays stored."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import github_login, make_users, user_id
from worker_scheduler.ledger import selected_users

Scheduler = Callable[..., Outcome]
NEW = ("backfill", "--backfill-days", "7", "--partition-key", "new", "--confirm")


@pytest.fixture(params=[2, 10_000])
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Users per statement."""
    monkeypatch.setattr(selected_users, "PAGE", request.param)
    yield request.param


def logins(*numbers: int) -> str:
    return ",".join(map(github_login, numbers))


def ids(*numbers: int) -> str:
    return ",".join(str(user_id(number)) for number in numbers)


def served(ledger: Ledger, key: str = "new") -> set[int]:
    return {int(job["github_login"].removeprefix("user-")) for job in ledger.jobs(key)}


def ended_day(scheduler: Scheduler, ledger: Ledger, *failed: int) -> None:
    """The run `day` of every user, in which these have failed and the others have not."""
    scheduler("backfill", "--backfill-days", "7", "--partition-key", "day", "--confirm")
    names = ", ".join(f"'{github_login(number)}'" for number in failed)
    ledger.execute(
        "UPDATE sync_jobs SET status = 'COMPLETED', completed_at = created_at",
        f"UPDATE sync_jobs SET status = 'FAILED' WHERE github_login IN ({names})",
        "UPDATE sync_runs SET state = 'FINISHED', finished_at = created_at",
    )


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--all-users"], {1, 2, 3, 4, 5, 6, 7, 8, 9}),
        (["--exclude-logins", logins(2, 9)], {1, 3, 4, 5, 6, 7, 8}),
        (
            ["--all-users", "--exclude-logins", "USER-2", "--exclude-logins", logins(9)],
            {1, 3, 4, 5, 6, 7, 8},
        ),
        (["--only-failed-in", "day"], {2, 3, 5, 7}),
        (["--all-users", "--only-failed-in", "day"], {2, 3, 5, 7}),
        (["--only-failed-in", "day", "--exclude-logins", logins(1, 2, 3)], {5, 7}),
        (["--user-ids", ids(1, 2, 3), "--only-failed-in", "day"], {2, 3}),
        (
            ["--user-ids", ids(1, 2), "--github-logins", logins(2, 3), "--users-file", "FILE"],
            {1, 2, 3, 7, 8},
        ),
        (["--users-file", "FILE", "--only-failed-in", "day"], {7}),
        (["--users-file", "FILE", "--github-logins", logins(1), "--exclude-logins", logins(8)], {1, 7}),
    ],
)
def test_named_users_unite_and_the_others_narrow(
    options: list[str], expected: set[int], scheduler: Scheduler, ledger: Ledger, tmp_path: Path
) -> None:
    make_users(ledger.url, 9)
    ended_day(scheduler, ledger, 2, 3, 5, 7)
    (tmp_path / "users").write_text(f"{github_login(7)}\n{user_id(8)}\n{user_id(7)}\n")
    given = [str(tmp_path / "users") if option == "FILE" else option for option in options]
    dry = scheduler(*NEW, *given, "--dry-run", "--json").report
    assert dry["users_total_selected"] == dry["would_insert"] == len(expected)
    report = scheduler(*NEW, *given, "--json").report
    assert report["users_total_selected"] == report["jobs_enqueued"] == len(expected)
    assert served(ledger) == expected
    # Nothing is stored under another id than that of the run.
    stored = ledger.rows("SELECT DISTINCT run_id FROM sync_selected_users")
    assert [str(row["run_id"]) for row in stored] in ([report["run_id"]], [])


def test_a_partition_that_has_a_run_gets_the_new_users(
    page: int, scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 9)
    first = scheduler(*NEW, "--user-ids", ids(1, 2, 3, 4, 5), "--json").report
    second = scheduler(*NEW, "--user-ids", ids(4, 5, 6, 7, 8), "--json").report
    assert (second["users_total_selected"], second["jobs_inserted"]) == (5, 3)
    assert served(ledger) == {1, 2, 3, 4, 5, 6, 7, 8}
    assert broker.count("backfill") == 8
    stored = ledger.rows("SELECT run_id, count(*) AS users FROM sync_selected_users GROUP BY 1")
    assert stored == [{"run_id": UUID(first["run_id"]), "users": 8}]


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(
    "given",
    [
        ["--user-ids", f"{ids(1, 2, 3)},{uuid4()}"],
        ["--github-logins", "user-1,nobody"],
        ["--exclude-logins", "nobody"],
        ["--user-ids", ids(1, 2, 3), "--max-enqueued-jobs", "2"],
        ["--user-ids", ids(1, 2, 3), "--expect-plan", "1-0-0-00000000-0000000000000000"],
        ["--user-ids", ids(1, 2, 3), "--dry-run"],
        ["--all-users", "--dry-run"],
        ["--exclude-logins", "user-1", "--dry-run"],
    ],
)
@pytest.mark.parametrize("key", ["new", "day"])
def test_a_refusal_and_a_dry_run_leave_nothing(
    key: str, given: list[str], scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 9)
    ended_day(scheduler, ledger, 2, 3)
    before = ledger.everything(), broker.everything()
    outcome = scheduler("backfill", "--backfill-days", "7", "--partition-key", key, "--confirm", *given)
    assert outcome.status == (0 if "--dry-run" in given else 3), outcome
    assert (ledger.everything(), broker.everything()) == before


def test_all_users_excludes_names(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    for named in ("--user-ids", ids(1)), ("--github-logins", "user-1"):
        outcome = scheduler(*NEW, "--all-users", *named)
        assert outcome.status == 2
        assert "cannot be combined with --user-ids, --github-logins or --users-file" in outcome.error


@pytest.mark.parametrize("given", [[], ["--user-ids", ids(1)]])
def test_where_nobody_failed_there_is_nothing_to_do(
    given: list[str], scheduler: Scheduler, ledger: Ledger
) -> None:
    make_users(ledger.url, 3)
    ended_day(scheduler, ledger, 9)
    outcome = scheduler(*NEW, "--only-failed-in", "day", *given)
    assert (outcome.status, outcome.stdout[:42]) == (0, "new: nothing to do: no user is selected (0")
    assert ledger.value("SELECT count(*) FROM sync_runs") == 1


def test_the_failures_of_users_who_are_gone_are_left_out(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 5)
    ended_day(scheduler, ledger, 1, 2, 3)
    ledger.execute("DELETE FROM users WHERE github_login = 'user-2'")
    report = scheduler(*NEW, "--only-failed-in", "day", "--json").report
    assert (report["users_total_selected"], report["jobs_enqueued"]) == (2, 2)
    assert served(ledger) == {1, 3}


def test_an_unknown_key_is_answered_with_the_nearest_three(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 1)
    outcome = scheduler(*NEW, "--only-failed-in", "day")
    assert (outcome.status, outcome.error) == (
        2,
        "--only-failed-in='day': there is no run with this key: there is no run at all",
    )
    for key in ("import:1", "import:2", "x", "backfill:imports"):
        scheduler("backfill", "--backfill-days", "1", "--partition-key", key)
    outcome = scheduler(*NEW, "--only-failed-in", "import:3")
    assert outcome.status == 2
    assert outcome.error.endswith("the nearest are import:2, import:1, backfill:imports")
    outcome = scheduler(*NEW, "--only-failed-in", "a b")
    assert (outcome.status, "is not a valid partition key" in outcome.error) == (2, True)


def test_a_pruned_run_is_refused(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 2)
    ended_day(scheduler, ledger, 1)
    ledger.execute("UPDATE sync_runs SET pruned_at = '2026-11-20 12:00Z'")
    outcome = scheduler(*NEW, "--only-failed-in", "day")
    assert outcome.status == 3
    assert "partition day was pruned on 2026-11-20, so it is no longer known who failed" in outcome.error


def test_who_is_excluded_must_exist(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    outcome = scheduler(*NEW, "--exclude-logins", "user-1,usr-2")
    assert outcome.status == 3
    assert outcome.error.startswith("1 unknown user in --exclude-logins: usr-2; correct them, or")
    assert scheduler(*NEW, "--exclude-logins", "user-1,usr-2", "--allow-missing").status == 0
    assert served(ledger) == {2, 3}


@pytest.mark.usefixtures("page")
def test_unknown_users_of_a_file_are_counted_once(
    scheduler: Scheduler, ledger: Ledger, tmp_path: Path
) -> None:
    make_users(ledger.url, 3)
    gone = uuid4()
    items = [str(gone), "nobody", *ids(1, 2).split(",")] * 3
    random.shuffle(items)
    (tmp_path / "users").write_text("\n".join(items))
    named = ["--users-file", str(tmp_path / "users")]
    outcome = scheduler(*NEW, *named)
    assert outcome.error.startswith(f"2 unknown users: {gone}, nobody; ")
    report = scheduler(*NEW, *named, "--allow-missing", "--json").report
    assert (report["unknown_users"], report["users_total_selected"]) == (2, 2)
    assert (report["missing_user_ids"], report["missing_github_logins"]) == ([str(gone)], ["nobody"])


def test_of_many_unknown_users_the_first_thousand_are_listed(
    scheduler: Scheduler, ledger: Ledger, tmp_path: Path
) -> None:
    make_users(ledger.url, 1)
    (tmp_path / "users").write_text("\n".join(f"nobody-{number}" for number in range(12_345)))
    report = scheduler(*NEW, "--users-file", str(tmp_path / "users"), "--json").report
    assert report["error"].startswith("12345 unknown users: nobody-0, nobody-1, ")
    assert " and 12325 more; " in report["error"]
    assert (report["unknown_users"], len(report["missing_github_logins"])) == (12_345, 1000)
