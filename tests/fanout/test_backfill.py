"""`scheduler backfill`: one job for every chosen user, and the rules that refuse a backfill."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from freezegun import freeze_time

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users, user_id

Scheduler = Callable[..., Outcome]


def ids(*numbers: int) -> str:
    return ",".join(str(user_id(number)) for number in numbers)


def chosen(ledger: Ledger) -> set[str]:
    return {job["github_login"] for job in ledger.jobs()}


def refused_untouched(
    scheduler: Scheduler, ledger: Ledger, broker: Broker, *arguments: str
) -> tuple[str, Outcome]:
    """Runs a backfill that must be refused and change nothing; returns the error and the outcome."""
    rows, messages = ledger.everything(), broker.everything()
    outcome = scheduler("backfill", "--json", *arguments)
    assert outcome.status == 3, outcome
    assert outcome.report["outcome"] == "refused"
    assert outcome.report["error"] == outcome.error
    assert outcome.report["run_id"] is None
    assert ledger.everything() == rows
    assert broker.everything() == messages
    return outcome.error, outcome


def test_chosen_users_get_one_job_and_one_message_each(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 9)
    with freeze_time("2026-11-23 23:59:59", tick=False, ignore=["celery", "kombu", "redis"]):
        outcome = scheduler("backfill", "--backfill-days", "30", "--user-ids", ids(2, 5), "--json")
    assert outcome.status == 0
    report = outcome.report
    assert (report["mode"], report["outcome"]) == ("backfill", "enqueued")
    assert report["partition_key"] == "backfill:2026-11-23:30d"
    assert report["triggered_by"] == "scheduler.backfill"
    assert report["users_total_selected"] == report["jobs_inserted"] == report["jobs_enqueued"] == 2
    for job in ledger.jobs():
        assert job["triggered_by"] == "scheduler.backfill"
        assert job["partition_key"] == "backfill:2026-11-23:30d"
        assert job["backfill_days"] == 30
        assert job["created_at"] == datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC)
    assert chosen(ledger) == {"user-2", "user-5"}
    assert broker.counts() == {"backfill": 2}
    assert {message.task_id for message in broker.messages("backfill")} == {
        str(job["job_id"]) for job in ledger.jobs()
    }


def test_without_a_choice_every_user_gets_a_job(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 7)
    report = scheduler("backfill", "--backfill-days", "1", "--json").report
    assert report["jobs_enqueued"] == 7


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--backfill-days", "1"], "backfill:2026-11-23:1d"),
        (["--backfill-days", "3650"], "backfill:2026-11-23:3650d"),
        (["--backfill-days", "7", "--campaign", "Q4_re-sync.1"], "backfill:2026-11-23:7d:Q4_re-sync.1"),
        (["--backfill-days", "7", "--campaign", "c" * 64], "backfill:2026-11-23:7d:" + "c" * 64),
        (["--backfill-days", "7", "--partition-key", "import:42"], "import:42"),
        (["--backfill-days", "7", "--partition-key", "k" * 200], "k" * 200),
    ],
)
def test_the_partition_key(arguments: list[str], key: str, scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 1)
    with freeze_time("2026-11-23 12:00:00", tick=True, ignore=["celery", "kombu", "redis"]):
        assert scheduler("backfill", *arguments, "--json").report["partition_key"] == key
    assert ledger.count(key) == 1


def test_the_same_partition_again_adds_only_new_users(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 9)
    again = ["backfill", "--backfill-days", "30", "--partition-key", "p", "--json"]
    scheduler(*again, "--user-ids", ids(1, 2))
    assert scheduler(*again, "--user-ids", ids(2)).report["outcome"] == "nothing_to_do"
    report = scheduler(*again, "--user-ids", ids(2, 3)).report
    assert (report["outcome"], report["jobs_inserted"], report["jobs_enqueued"]) == ("enqueued", 1, 1)
    assert chosen(ledger) == {"user-1", "user-2", "user-3"}
    assert broker.counts() == {"backfill": 3}


def test_a_campaign_is_another_partition(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 1)
    scheduler("backfill", "--backfill-days", "30")
    scheduler("backfill", "--backfill-days", "30", "--campaign", "again")
    assert ledger.count() == 2


def test_logins_are_compared_without_regard_to_case(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    ledger.execute("UPDATE users SET github_login = 'OctoCat' WHERE github_login = 'user-2'")
    # Postgres and Python fold some letters differently, İ for example.
    ledger.execute("UPDATE users SET github_login = 'ÉLODIE' WHERE github_login = 'user-3'")
    report = scheduler(
        "backfill", "--backfill-days", "1", "--github-logins", "octocat, OCTOCAT,USER-1", "--json"
    ).report
    assert report["users_total_selected"] == 2
    assert report["missing_github_logins"] == []
    assert chosen(ledger) == {"OctoCat", "user-1"}


def test_a_user_named_by_id_and_by_login_counts_once(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 3)
    named = ["--user-ids", ids(1, 1, 2), "--user-ids", str(user_id(1)).upper(), "--github-logins", "user-1"]
    report = scheduler("backfill", "--backfill-days", "1", *named, "--json").report
    assert report["users_total_selected"] == 2
    assert broker.counts() == {"backfill": 2}


def test_more_users_than_backfill_max_users_need_confirmation(
    scheduler: Scheduler, ledger: Ledger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 51)
    everyone = ["--backfill-days", "1"]
    error, outcome = refused_untouched(scheduler, ledger, broker, *everyone)
    assert "51 users selected, more than BACKFILL_MAX_USERS=50" in error
    assert "--confirm or BACKFILL_CONFIRM=1" in error
    assert outcome.report["users_total_selected"] == 51
    monkeypatch.setenv("BACKFILL_CONFIRM", "0")
    refused_untouched(scheduler, ledger, broker, *everyone)
    assert scheduler("backfill", *everyone, "--confirm", "--json").report["jobs_enqueued"] == 51


def test_the_variable_confirms_too(
    scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 51)
    monkeypatch.setenv("BACKFILL_CONFIRM", "1")
    assert scheduler("backfill", "--backfill-days", "1").status == 0
    assert ledger.count() == 51


def test_as_many_as_backfill_max_users_need_no_confirmation(
    scheduler: Scheduler, ledger: Ledger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 50)
    assert scheduler("backfill", "--backfill-days", "1").status == 0
    monkeypatch.setenv("BACKFILL_MAX_USERS", "3")
    named = ["--backfill-days", "2", "--user-ids"]
    assert scheduler("backfill", *named, ids(1, 2, 3)).status == 0
    refused_untouched(scheduler, ledger, broker, *named, ids(1, 2, 3, 4))
    one = ["--backfill-max-users", "0", "--user-ids", ids(1)]
    refused_untouched(scheduler, ledger, broker, "--backfill-days", "3", *one)
    four = ["--backfill-max-users", "4"]
    assert scheduler("backfill", *named, ids(1, 2, 3, 4), *four).status == 0


def test_confirming_does_not_lift_max_enqueued_jobs(
    scheduler: Scheduler, ledger: Ledger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 6)
    monkeypatch.setenv("MAX_ENQUEUED_JOBS", "5")
    error, _ = refused_untouched(scheduler, ledger, broker, "--backfill-days", "1", "--confirm")
    assert "6 users selected, more than MAX_ENQUEUED_JOBS=5" in error
    error, _ = refused_untouched(
        scheduler,
        ledger,
        broker,
        "--backfill-days",
        "1",
        "--max-enqueued-jobs",
        "2",
        "--user-ids",
        ids(1, 2, 3),
    )
    assert "3 users selected, more than MAX_ENQUEUED_JOBS=2" in error


def test_unknown_users_are_refused_by_name(scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
    make_users(ledger.url, 3)
    unknown = uuid4()
    error, outcome = refused_untouched(
        *(scheduler, ledger, broker, "--backfill-days", "1"),
        *("--user-ids", f"{ids(1)},{unknown}", "--github-logins", "user-2,nobody"),
    )
    assert error.startswith(f"2 unknown users: {unknown}, nobody;")
    assert "--allow-missing" in error
    assert outcome.report["missing_user_ids"] == [str(unknown)]
    assert outcome.report["missing_github_logins"] == ["nobody"]


def test_the_first_20_unknown_users_are_named_and_all_are_counted(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 1)
    unknown = [f"nobody-{number}" for number in range(25)]
    error, outcome = refused_untouched(
        scheduler, ledger, broker, "--backfill-days", "1", "--github-logins", ",".join(unknown)
    )
    assert f"25 unknown users: {', '.join(unknown[:20])} and 5 more;" in error
    assert unknown[20] not in error
    assert outcome.report["missing_github_logins"] == unknown


def test_unknown_users_are_left_out_with_allow_missing(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 3)
    unknown = uuid4()
    named = ["--user-ids", f"{ids(1)},{unknown}", "--github-logins", "nobody", "--allow-missing"]
    report = scheduler("backfill", "--backfill-days", "1", *named, "--json").report
    assert (report["outcome"], report["users_total_selected"]) == ("enqueued", 1)
    assert report["missing_user_ids"] == [str(unknown)]
    assert report["missing_github_logins"] == ["nobody"]
    assert broker.counts() == {"backfill": 1}
    said = scheduler("backfill", "--backfill-days", "1", *named).stdout
    assert f"unknown users, skipped: 2 ({unknown}, nobody)" in said


def test_a_backfill_of_only_unknown_users_is_refused(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 1)
    error, _ = refused_untouched(
        *(scheduler, ledger, broker, "--backfill-days", "1"),
        *("--github-logins", "nobody,no-one", "--allow-missing"),
    )
    assert "none of the 2 named users exists" in error


def test_a_different_run_under_the_same_key_is_refused(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 2)
    scheduler("backfill", "--backfill-days", "30", "--partition-key", "p", "--user-ids", ids(1))
    error, _ = refused_untouched(scheduler, ledger, broker, "--backfill-days", "31", "--partition-key", "p")
    assert "partition p belongs to a backfill run with backfill_days 30" in error
    # The CLI cannot give this key to a daily run, so the test does.
    ledger.execute("UPDATE sync_runs SET kind = 'daily', backfill_days = NULL")
    error, _ = refused_untouched(scheduler, ledger, broker, "--backfill-days", "30", "--partition-key", "p")
    assert "partition p belongs to a daily run" in error


def test_a_dry_run_obeys_the_rules_and_writes_nothing(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 60)
    dry = ["--backfill-days", "1", "--dry-run"]
    refused_untouched(scheduler, ledger, broker, *dry)
    refused_untouched(scheduler, ledger, broker, *dry, "--github-logins", "nobody")
    before = ledger.everything()
    report = scheduler("backfill", *dry, "--confirm", "--json").report
    assert (report["outcome"], report["would_insert"]) == ("dry_run", 60)
    assert ledger.everything() == before
    assert broker.everything() == {}
