"""An older scheduler's `sync_jobs`: all its rows are kept as they were, and ticks work beside them."""

from collections.abc import Callable

import pytest

from tests.support.command_line import Outcome
from tests.support.handlers import by_login
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.older_scheduler import OLDER_SCHEDULERS, TODAY, OlderScheduler
from tests.support.users import make_users, user_id
from worker_scheduler.worker import process_worker

Scheduler = Callable[..., Outcome]

USERS = 5
RUNBOOK_QUERY = """
SELECT COUNT(*) FROM sync_jobs WHERE triggered_by = 'scheduler.daily' AND partition_key = '{key}'
  AND status = 'PENDING' AND created_at < CURRENT_TIMESTAMP - INTERVAL '10 minutes';
"""


@pytest.fixture
def left_behind(
    empty_database_url: str, deployed: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[OlderScheduler], Ledger]:
    """Deploys beside an older scheduler, not migrated yet."""

    def leave(older: OlderScheduler) -> Ledger:
        older.leave_behind(empty_database_url, USERS)
        monkeypatch.setenv("DATABASE_URL", empty_database_url)
        return Ledger(empty_database_url)

    return leave


def columns_of(ledger: Ledger) -> str:
    return str(
        ledger.value(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute"
            " WHERE attrelid = 'sync_jobs'::regclass AND attnum > 0 AND NOT attisdropped"
        )
    )


def rows_of(ledger: Ledger, columns: str) -> list[str]:
    """The rows as Postgres writes them, with where on disk they are: no row was written anew."""
    rows = ledger.rows(
        f"SELECT s.ctid::text || s.xmin::text || ROW({columns})::text AS t FROM sync_jobs s ORDER BY 1"
    )
    return [row["t"] for row in rows]


@pytest.mark.parametrize("older", OLDER_SCHEDULERS, ids=lambda older: older.name)
def test_every_row_is_kept_and_ticks_work(
    older: OlderScheduler,
    left_behind: Callable[[OlderScheduler], Ledger],
    scheduler: Scheduler,
    broker: Broker,
) -> None:
    ledger = left_behind(older)
    columns = columns_of(ledger)
    before = rows_of(ledger, columns)
    assert len(before) == 3 * USERS
    # As text: an enum that has no PENDING yet refuses the word itself.
    waiting = ledger.value(RUNBOOK_QUERY.format(key=TODAY).replace("status =", "status::text ="))

    outcome = scheduler("migrate")
    assert outcome.status == 0, outcome
    assert rows_of(ledger, columns) == before
    assert ledger.value(RUNBOOK_QUERY.format(key=TODAY)) == waiting

    # Today's users have their job from the older scheduler, those who come now have none.
    assert scheduler("daily", "--date", "2026-11-23", "--json").report["outcome"] == "nothing_to_do"
    make_users(ledger.url, USERS + 2)
    report = scheduler("daily", "--date", "2026-11-23", "--json").report
    assert (report["jobs_inserted"], report["jobs_enqueued"]) == (2, 2)
    added = ledger.rows("SELECT user_id FROM sync_jobs WHERE run_id IS NOT NULL")
    assert {row["user_id"] for row in added} == {user_id(USERS + 1), user_id(USERS + 2)}

    report = scheduler("daily", "--date", "2026-11-24", "--json").report
    assert report["jobs_inserted"] == report["jobs_enqueued"] == USERS + 2
    assert broker.counts() == {"daily": USERS + 4}
    assert set(before) <= set(rows_of(ledger, columns))
    assert ledger.value(RUNBOOK_QUERY.format(key="daily:2026-11-24")) == 0
    ledger.execute(
        "UPDATE sync_jobs SET created_at = created_at - interval '11 minutes' WHERE run_id IS NOT NULL"
    )
    assert ledger.value(RUNBOOK_QUERY.format(key="daily:2026-11-24")) == USERS + 2


@pytest.mark.parametrize("older", OLDER_SCHEDULERS, ids=lambda older: older.name)
def test_workers_move_jobs_through_all_states(
    older: OlderScheduler,
    left_behind: Callable[[OlderScheduler], Ledger],
    scheduler: Scheduler,
) -> None:
    ledger = left_behind(older)
    scheduler("migrate")
    key = "backfill:" + "k" * 191
    scheduler("backfill", "--backfill-days=1", f"--partition-key={key}")
    for job in ledger.jobs(key):
        process_worker().run(job["job_id"], by_login)
    assert ledger.states(key) == {"COMPLETED": 2, "SKIPPED": 1, "FAILED": 2}


def test_a_dry_run_counts_older_rows_too(
    left_behind: Callable[[OlderScheduler], Ledger], scheduler: Scheduler
) -> None:
    left_behind(OLDER_SCHEDULERS[0])
    scheduler("migrate")
    report = scheduler("daily", "--date", "2026-11-23", "--dry-run", "--json").report
    assert (report["users_total_selected"], report["would_insert"]) == (USERS, 0)


def test_status_shows_older_partitions(
    left_behind: Callable[[OlderScheduler], Ledger], scheduler: Scheduler
) -> None:
    left_behind(OLDER_SCHEDULERS[0])
    scheduler("migrate")
    report = scheduler("status", TODAY, "--json").report
    assert report["state"] is None
    assert sum(report["jobs"].values()) == 2 * USERS
