"""`scheduler daily`: one job for every user, in the partition of the day."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from freezegun import freeze_time

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import github_login, make_users, user_id

Scheduler = Callable[..., Outcome]

DAY = "2026-11-23"
KEY = f"daily:{DAY}"
FIELDS = [
    *("mode", "outcome", "partition_key", "triggered_by", "run_id", "users_total_selected"),
    *("jobs_inserted", "jobs_enqueued", "enqueue_failures", "batches", "duration_seconds"),
    *("missing_user_ids", "missing_github_logins"),
]


def test_every_user_gets_one_job_and_one_message(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 450)
    began = datetime.now(UTC)
    outcome = scheduler("daily", "--date", DAY, "--json")
    assert outcome.status == 0
    report = outcome.report
    assert list(report) == FIELDS
    seconds = report.pop("duration_seconds")
    assert 0 < seconds < 60
    run_id = report.pop("run_id")
    assert report == {
        "mode": "daily",
        "outcome": "enqueued",
        "partition_key": KEY,
        "triggered_by": "scheduler.daily",
        "users_total_selected": 450,
        "jobs_inserted": 450,
        "jobs_enqueued": 450,
        "enqueue_failures": 0,
        "batches": 3,
        "missing_user_ids": [],
        "missing_github_logins": [],
    }
    jobs = ledger.jobs()
    assert {(job["user_id"], job["github_login"]) for job in jobs} == {
        (user_id(number), github_login(number)) for number in range(1, 451)
    }
    for job in jobs:
        assert job["status"] == "PENDING"
        assert job["triggered_by"] == "scheduler.daily"
        assert job["partition_key"] == KEY
        assert job["backfill_days"] is None
        assert str(job["run_id"]) == run_id
        assert job["attempt"] == 0
        assert began - timedelta(seconds=5) < job["created_at"] < began + timedelta(seconds=60)
        assert job["started_at"] is job["completed_at"] is job["error_message"] is None
    messages = broker.messages("daily")
    assert sorted(message.task_id for message in messages) == [str(job["job_id"]) for job in jobs]
    assert broker.counts() == {"daily": 450}


def test_the_run_records_who_asked_and_how_far_it_got(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    scheduler("daily", "--date", DAY)
    run = ledger.row("SELECT * FROM sync_runs")
    assert run["partition_key"] == KEY
    assert run["kind"] == "daily"
    assert run["state"] == "ENQUEUED"
    assert (run["jobs"], run["batches"]) == (3, 1)
    assert run["requested_by"].startswith("cli ")
    assert run["created_at"] <= run["planned_at"] <= run["enqueued_at"]
    batch = ledger.row("SELECT * FROM sync_batches")
    assert batch["enqueued_at"] is not None
    assert batch["claimed_by"] is batch["claimed_until"] is None


def test_the_default_is_today_in_the_time_zone_of_beat(
    scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 1)
    # 23:30 in Berlin, then midnight: in UTC the date stays the same.
    monkeypatch.setenv("SCHEDULER_TIMEZONE", "Europe/Berlin")
    with freeze_time("2026-11-23 22:30:00", tick=True, ignore=["celery", "kombu", "redis"]):
        assert scheduler("daily", "--json").report["partition_key"] == KEY
    with freeze_time("2026-11-23 23:00:00", tick=True, ignore=["celery", "kombu", "redis"]):
        assert scheduler("daily", "--json").report["partition_key"] == "daily:2026-11-24"
    assert ledger.count(KEY) == ledger.count("daily:2026-11-24") == 1


def test_the_same_partition_again_does_nothing(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 10)
    first = scheduler("daily", "--date", DAY, "--json").report
    jobs, messages = ledger.jobs(), broker.everything()
    outcome = scheduler("daily", "--date", DAY, "--json")
    assert outcome.status == 0
    assert outcome.report["outcome"] == "nothing_to_do"
    assert outcome.report["run_id"] == first["run_id"]
    assert outcome.report["users_total_selected"] == 10
    assert outcome.report["jobs_inserted"] == outcome.report["jobs_enqueued"] == 0
    assert outcome.report["batches"] == 0
    assert ledger.jobs() == jobs
    assert broker.everything() == messages


def test_a_sent_batch_is_not_sent_again_even_if_redis_lost_it(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 10)
    scheduler("daily", "--date", DAY)
    broker.lose_everything()
    assert scheduler("daily", "--date", DAY, "--json").report["outcome"] == "nothing_to_do"
    assert broker.counts() == {}


def test_the_same_partition_again_adds_new_users(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 10)
    scheduler("daily", "--date", DAY)
    before = {job["job_id"] for job in ledger.jobs()}
    make_users(ledger.url, 15)
    report = scheduler("daily", "--date", DAY, "--json").report
    assert (report["outcome"], report["users_total_selected"]) == ("enqueued", 15)
    assert report["jobs_inserted"] == report["jobs_enqueued"] == 5
    added = [job for job in ledger.jobs() if job["job_id"] not in before]
    assert {job["user_id"] for job in added} == {user_id(number) for number in range(11, 16)}
    sent = [message.task_id for message in broker.messages("daily")]
    assert len(sent) == len(set(sent)) == 15
    assert {str(job["job_id"]) for job in added} <= set(sent)


def test_unsent_batches_are_sent(scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
    make_users(ledger.url, 30)
    scheduler("daily", "--date", DAY, "--enqueue-batch-size", "10")
    broker.lose_everything()
    # As if the tick had died after it committed the second batch and before it published it.
    ledger.execute("UPDATE sync_batches SET enqueued_at = NULL WHERE number = 1")
    report = scheduler("daily", "--date", DAY, "--json").report
    assert (report["outcome"], report["jobs_inserted"], report["batches"]) == ("enqueued", 0, 1)
    batch = ledger.row("SELECT first_job_id, last_job_id FROM sync_batches WHERE number = 1")
    sent = [message.task_id for message in broker.messages("daily")]
    assert len(sent) == 10
    assert (sent[0], sent[-1]) == (str(batch["first_job_id"]), str(batch["last_job_id"]))


def test_another_day_is_another_partition(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 2)
    scheduler("daily", "--date", DAY)
    scheduler("daily", "--date", "2026-11-24")
    assert ledger.count(KEY) == ledger.count("daily:2026-11-24") == 2


def test_no_users_is_nothing_to_do(scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
    make_users(ledger.url, 0)
    outcome = scheduler("daily", "--date", DAY, "--json")
    assert (outcome.status, outcome.report["outcome"]) == (0, "nothing_to_do")
    assert broker.everything() == {}


@pytest.mark.parametrize("by", ["option", "variable"])
def test_more_users_than_max_enqueued_jobs_is_refused_untouched(
    by: str, scheduler: Scheduler, ledger: Ledger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 11)
    before = ledger.everything()
    if by == "variable":
        monkeypatch.setenv("MAX_ENQUEUED_JOBS", "10")
    limit = ["--max-enqueued-jobs", "10"] if by == "option" else []
    outcome = scheduler("daily", "--date", DAY, "--json", *limit)
    assert outcome.status == 3
    assert outcome.report["outcome"] == "refused"
    assert outcome.report["users_total_selected"] == 11
    assert outcome.report["error"] == outcome.error
    assert "11 users selected, more than MAX_ENQUEUED_JOBS=10" in outcome.error
    assert ledger.everything() == before
    assert broker.everything() == {}


def test_as_many_users_as_max_enqueued_jobs_are_accepted(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 10)
    assert scheduler("daily", "--date", DAY, "--max-enqueued-jobs", "10").status == 0
    assert ledger.count() == 10


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 10)
    scheduler("daily", "--date", DAY)
    make_users(ledger.url, 14)
    before, messages = ledger.everything(), broker.everything()
    outcome = scheduler("daily", "--date", DAY, "--dry-run", "--json")
    assert outcome.status == 0
    assert outcome.report["outcome"] == "dry_run"
    assert outcome.report["users_total_selected"] == 14
    assert (outcome.report["would_insert"], outcome.report["would_enqueue"]) == (4, 4)
    assert outcome.report["jobs_inserted"] == outcome.report["jobs_enqueued"] == 0
    assert (
        "14 users selected, 4 of them without a job yet; 4 jobs would be enqueued"
        in scheduler("daily", "--date", DAY, "--dry-run").stdout
    )
    assert ledger.everything() == before
    assert broker.everything() == messages


@pytest.mark.parametrize("relation", ["people", "crm.people", '"Odd Name"', "select"])
def test_users_relation_may_name_a_view_or_another_schema(
    relation: str, scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 3)
    sql = '"select"' if relation == "select" else relation
    ledger.execute(
        "CREATE SCHEMA crm",
        f"CREATE VIEW {sql} AS SELECT id, github_login::varchar(99) FROM users"
        " WHERE github_login <> 'user-2' UNION ALL SELECT NULL, 'nobody'",
    )
    monkeypatch.setenv("USERS_RELATION", relation)
    report = scheduler("daily", "--date", DAY, "--json").report
    assert (report["users_total_selected"], report["jobs_inserted"]) == (2, 2)
    assert {job["github_login"] for job in ledger.jobs()} == {"user-1", "user-3"}


def test_a_relation_that_repeats_a_user_gives_one_job(
    scheduler: Scheduler, ledger: Ledger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a careless join does. Batches are made from the inserted jobs, not from the page of users."""
    make_users(ledger.url, 7)
    ledger.execute("CREATE VIEW joined AS SELECT users.* FROM users, generate_series(1, 3)")
    monkeypatch.setenv("USERS_RELATION", "joined")
    report = scheduler("daily", "--date", DAY, "--json", "--enqueue-batch-size", "2").report
    assert (report["jobs_inserted"], report["jobs_enqueued"]) == (7, 7)
    assert broker.count("daily") == 7
    assert len({job["user_id"] for job in ledger.jobs()}) == len(ledger.jobs()) == 7


def test_users_are_only_read(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    untouched = "SELECT xmin::text, xmax::text, ctid::text, users.* FROM users ORDER BY id"
    before = ledger.rows(untouched)
    scheduler("daily", "--date", DAY)
    scheduler("backfill", "--backfill-days", "1", "--github-logins", "user-1")
    assert ledger.rows(untouched) == before
