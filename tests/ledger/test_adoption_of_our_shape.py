"""An older table that looks like ours: our columns, and the names of our keys, constraints and indexes."""

from collections.abc import Callable

import pytest

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.users import make_users, user_id
from worker_scheduler.wiring import process_worker

Scheduler = Callable[..., Outcome]
KEY = "daily:2026-11-24"

OURS = """
    job_id {job_id}, user_id uuid NOT NULL, github_login text, status text NOT NULL DEFAULT 'PENDING',
    error_message text, backfill_days integer, triggered_by text NOT NULL, partition_key text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP, started_at timestamptz,
    completed_at timestamptz
"""
INDEXES = (
    *("sync_jobs_one_job_per_user", "sync_jobs_open", "sync_jobs_running", "sync_jobs_delayed"),
    *("sync_jobs_republished", "sync_jobs_partition", "sync_batches_unsent", "sync_runs_pkey"),
    *("sync_origin_pkey", "sync_selected_users_pkey", "sync_tasks_pkey", "sync_jobs_monthless_pkey"),
)
STATES = "('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'SKIPPED')"
ROW = (
    "INSERT INTO sync_jobs (job_id, user_id, status, triggered_by, partition_key)"
    f" VALUES (gen_random_uuid(), '{user_id(1)}', 'PENDING', 'scheduler.daily', 'daily:2026-11-23')"
)


@pytest.fixture
def fresh(empty_database_url: str, deployed: None, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    make_users(empty_database_url, 2)
    return Ledger(empty_database_url)


@pytest.mark.parametrize(
    ("job_id", "more"),
    [
        ("uuid NOT NULL", ()),
        ("uuid NOT NULL CONSTRAINT sync_jobs_pkey PRIMARY KEY", ()),
        ("uuid NOT NULL CONSTRAINT sync_runs_partition_key_key UNIQUE", ()),
        ("uuid NOT NULL CONSTRAINT sync_jobs_job_id UNIQUE", ()),
        (
            "uuid PRIMARY KEY",
            (f"ALTER TABLE sync_jobs ADD CONSTRAINT sync_jobs_status_check CHECK (status IN {STATES})",),
        ),
        (
            "uuid PRIMARY KEY",
            ("ALTER TABLE sync_jobs ADD CONSTRAINT sync_jobs_status_check CHECK (backfill_days > 0)",),
        ),
        ("uuid PRIMARY KEY", tuple(f"CREATE INDEX {name} ON sync_jobs (user_id)" for name in INDEXES)),
        ("uuid PRIMARY KEY", ("ALTER TABLE sync_jobs ADD n bigint GENERATED ALWAYS AS IDENTITY",)),
        ("uuid NOT NULL", ("ALTER TABLE sync_jobs ADD n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",)),
        (
            "uuid PRIMARY KEY",
            ("CREATE UNIQUE INDEX ON sync_jobs (user_id, partition_key) NULLS NOT DISTINCT",),
        ),
        ("uuid PRIMARY KEY", ("ALTER TABLE sync_jobs ADD UNIQUE (user_id, partition_key) DEFERRABLE",)),
        ("uuid PRIMARY KEY", ("ALTER TABLE sync_jobs CLUSTER ON sync_jobs_pkey",)),
        ("uuid PRIMARY KEY", ("ALTER TABLE sync_jobs SET UNLOGGED",)),
    ],
)
def test_a_table_of_our_shape_is_adopted(
    job_id: str, more: tuple[str, ...], fresh: Ledger, scheduler: Scheduler
) -> None:
    fresh.execute(f"CREATE TABLE sync_jobs ({OURS.format(job_id=job_id)})", *more, ROW)
    outcome = scheduler("migrate")
    assert outcome.status == 0, outcome
    assert scheduler("check").faults == []
    assert scheduler("daily", "--date", "2026-11-24", "--json").report["jobs_enqueued"] == 2
    for job in fresh.jobs(KEY):
        process_worker().run(job["job_id"], lambda _: None)
    assert fresh.states(KEY) == {"COMPLETED": 2}
    assert fresh.count("daily:2026-11-23") == 1
    assert scheduler("reconcile").status == 0
    assert scheduler("status", KEY, "--json").report["state"] == "FINISHED"
