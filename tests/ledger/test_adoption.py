"""An older scheduler's `sync_jobs`: all its rows are kept as they were, and ticks work beside them."""

from collections.abc import Callable

import pytest

from tests.support.command_line import Outcome
from tests.support.handlers import by_login
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.older_scheduler import OLDER_SCHEDULERS, STATES, TODAY, OlderScheduler
from tests.support.users import make_users, user_id
from worker_scheduler.wiring import process_worker

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
    """The rows as Postgres writes them, each with its place on disk, which a rewritten row changes."""
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


def everything_about(ledger: Ledger) -> list[str]:
    """Tables, columns, constraints, indexes, enum labels and rows, as text."""
    rows = ledger.rows(
        """
        SELECT relname || relkind::text AS t FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT attrelid::regclass || attname || atttypid::regtype || atttypmod || attnotnull
            FROM pg_attribute WHERE attrelid = to_regclass('sync_jobs')
        UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid <> 0
        UNION ALL SELECT enumlabel FROM pg_enum
        UNION ALL SELECT s::text FROM sync_jobs s ORDER BY 1
        """
    )
    return [row["t"] for row in rows]


SHORT_STATES = ("PENDING", "RUNNING", "FAILED")
ADOPTABLE = (
    OlderScheduler("a quoted column", more_columns={'"a ""b"": c%d"': ("integer NOT NULL", "7")}),
    OlderScheduler("short states", status="varchar(8)", states=SHORT_STATES),
    OlderScheduler(
        "an enum with a check",
        status='"job_status"',
        before=(f"CREATE TYPE job_status AS ENUM {STATES}",),
        after=(f"ALTER TABLE sync_jobs ADD CHECK (status IN {STATES})",),
    ),
    OlderScheduler(
        "a check with a colon",
        after=("ALTER TABLE sync_jobs ADD CONSTRAINT \"a:b\" CHECK (status <> 'SKIPPED')",),
    ),
    OlderScheduler(
        "a reference to the users",
        after=("ALTER TABLE sync_jobs ADD FOREIGN KEY (user_id) REFERENCES users",),
    ),
    OlderScheduler(
        "an empty table that refers to the users",
        after=("ALTER TABLE sync_jobs ADD FOREIGN KEY (user_id) REFERENCES users", "TRUNCATE sync_jobs"),
    ),
    OlderScheduler(
        "one row a day",
        after=(
            "DELETE FROM sync_jobs a USING sync_jobs b WHERE a.job_id > b.job_id"
            " AND (a.user_id, a.partition_key) = (b.user_id, b.partition_key)",
            "CREATE UNIQUE INDEX ON sync_jobs (user_id, partition_key)",
        ),
    ),
)


@pytest.mark.parametrize("older", ADOPTABLE, ids=lambda older: older.name)
def test_odd_tables_that_can_be_adopted(
    older: OlderScheduler, left_behind: Callable[[OlderScheduler], Ledger], scheduler: Scheduler
) -> None:
    ledger = left_behind(older)
    before = ledger.count()
    outcome = scheduler("migrate")
    assert outcome.status == 0, outcome
    assert ledger.count() == before
    scheduler("daily", "--date", "2026-11-24")
    for job in ledger.jobs("daily:2026-11-24"):
        process_worker().run(job["job_id"], by_login)
    assert ledger.states("daily:2026-11-24") == {"COMPLETED": 2, "SKIPPED": 1, "FAILED": 2}


_RAISE = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'not by you'; END $$"
)
_SWALLOW = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
REFUSED = (
    # what is left behind, what the line says
    (
        OlderScheduler(
            "a key of its own",
            key="job_id uuid NOT NULL",
            more_columns={"id": ("uuid PRIMARY KEY", "gen_random_uuid()")},
        ),
        "the column id in its primary key",
    ),
    (
        OlderScheduler(
            "a composite key",
            key="job_id uuid NOT NULL",
            more_columns={"tenant": ("integer", "1")},
            after=("ALTER TABLE sync_jobs ADD PRIMARY KEY (job_id, tenant)",),
        ),
        "the column tenant in its primary key",
    ),
    (
        OlderScheduler("a view of it", after=("CREATE VIEW recent AS SELECT triggered_by FROM sync_jobs",)),
        "cannot alter type of a column used by a view or rule",
    ),
    (
        OlderScheduler(
            "a generated column",
            after=("ALTER TABLE sync_jobs ADD who text GENERATED ALWAYS AS (lower(github_login)) STORED",),
        ),
        "cannot alter type of a column used by a generated column",
    ),
    (
        OlderScheduler(
            "a replica identity",
            text="text",
            more_columns={"number": ("integer NOT NULL UNIQUE", "row_number() OVER ()")},
            after=("ALTER TABLE sync_jobs REPLICA IDENTITY USING INDEX sync_jobs_number_key",),
        ),
        'column "number" is in index used as replica identity',
    ),
    (
        OlderScheduler(
            "a view by our name",
            after=("ALTER TABLE sync_jobs RENAME TO jobs", "CREATE VIEW sync_jobs AS SELECT * FROM jobs"),
        ),
        "sync_jobs",
    ),
    (
        OlderScheduler("runs", after=("CREATE TABLE sync_runs (id int)",)),
        'relation "sync_runs" already exists',
    ),
    (
        OlderScheduler(
            "a check over two columns",
            after=(
                "UPDATE sync_jobs SET status = 'PENDING'",
                "ALTER TABLE sync_jobs ADD CHECK (status <> 'RUNNING' OR error_message IS NOT NULL)",
            ),
        ),
        "PENDING → RUNNING: new row for relation",
    ),
    (
        OlderScheduler(
            "a domain",
            status="job_status",
            before=(f"CREATE DOMAIN job_status AS text CHECK (VALUE IN {STATES})",),
        ),
        "RUNNING → SKIPPED: value for domain job_status violates check constraint",
    ),
    (
        OlderScheduler(
            "one open job a user",
            after=(
                "UPDATE sync_jobs SET status = 'COMPLETED'",
                "CREATE UNIQUE INDEX ON sync_jobs (user_id) WHERE status IN ('PENDING', 'RUNNING')",
            ),
        ),
        "a PENDING job of scheduler.backfill: duplicate key value violates unique constraint",
    ),
    (
        OlderScheduler(
            "one job a user",
            after=("TRUNCATE sync_jobs", "CREATE UNIQUE INDEX ON sync_jobs (user_id, triggered_by)"),
        ),
        "a PENDING job of scheduler.backfill: duplicate key value violates unique constraint",
    ),
    (
        OlderScheduler(
            "a check on who", after=("ALTER TABLE sync_jobs ADD CHECK (triggered_by = 'scheduler.daily')",)
        ),
        "a PENDING job of scheduler.backfill: new row for relation",
    ),
    (
        OlderScheduler(
            "a check on a column of its own",
            more_columns={"source": ("text NOT NULL CHECK (source IS NOT NULL)", "'cron'")},
        ),
        "a PENDING job of scheduler.daily: new row for relation",
    ),
    (
        OlderScheduler(
            "a trigger that raises",
            after=(
                _RAISE,
                "CREATE TRIGGER t BEFORE UPDATE ON sync_jobs FOR EACH ROW WHEN (NEW.status = 'FAILED')"
                " EXECUTE FUNCTION refuse()",
            ),
        ),
        "RUNNING → FAILED: not by you",
    ),
    (
        OlderScheduler(
            "a trigger that raises at the end",
            after=(
                _RAISE,
                "CREATE CONSTRAINT TRIGGER t AFTER UPDATE ON sync_jobs DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION refuse()",
            ),
        ),
        "the end of the transaction: not by you",
    ),
    (
        OlderScheduler(
            "a trigger that swallows",
            after=(
                _SWALLOW,
                "CREATE TRIGGER t BEFORE UPDATE ON sync_jobs FOR EACH ROW EXECUTE FUNCTION swallow()",
            ),
        ),
        "PENDING → RUNNING: no row was changed",
    ),
)


@pytest.mark.parametrize(("older", "words"), REFUSED, ids=[older.name for older, _ in REFUSED])
def test_what_cannot_be_adopted_is_refused_in_one_line_and_left_as_it_is(
    older: OlderScheduler,
    words: str,
    left_behind: Callable[[OlderScheduler], Ledger],
    scheduler: Scheduler,
) -> None:
    ledger = left_behind(older)
    before = everything_about(ledger)
    outcome = scheduler("migrate")
    assert outcome.status == 2, outcome
    assert words in outcome.error
    assert everything_about(ledger) == before


def test_an_enum_gets_no_state_where_the_columns_cannot_fit(
    left_behind: Callable[[OlderScheduler], Ledger], scheduler: Scheduler
) -> None:
    ledger = left_behind(
        OlderScheduler(
            "an enum",
            status='"job_status"',
            before=(f"CREATE TYPE job_status AS ENUM {STATES}",),
            after=("ALTER TABLE sync_jobs ALTER created_at TYPE date",),
        )
    )
    before = everything_about(ledger)
    outcome = scheduler("migrate")
    assert outcome.status == 2
    assert "sync_jobs has created_at as date" in outcome.error
    assert everything_about(ledger) == before


@pytest.mark.parametrize("key", ["", "PRIMARY KEY"])
def test_a_table_of_our_columns_is_adopted(
    key: str, empty_database_url: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(empty_database_url)
    make_users(ledger.url, 1)
    ledger.execute(
        f"CREATE TABLE sync_jobs (job_id uuid {key}, user_id uuid, github_login text, status text,"
        " error_message text, backfill_days integer, triggered_by text, partition_key text,"
        " created_at timestamptz, started_at timestamptz, completed_at timestamptz)"
    )
    monkeypatch.setenv("DATABASE_URL", ledger.url)
    outcome = scheduler("migrate")
    assert outcome.status == 0, outcome
    assert scheduler("daily", "--json").report["jobs_enqueued"] == 1


def test_new_runs_in_an_adopted_table_are_pruned_run_by_run(
    left_behind: Callable[[OlderScheduler], Ledger], scheduler: Scheduler
) -> None:
    ledger = left_behind(OLDER_SCHEDULERS[0])
    outcome = scheduler("migrate")
    assert "sync_jobs is not divided by months" in outcome.stderr
    older = ledger.count()
    scheduler("daily", "--date", "2026-11-24")
    for job in ledger.jobs("daily:2026-11-24"):
        process_worker().run(job["job_id"], by_login)
    assert scheduler("reconcile").status == 0
    ledger.execute("UPDATE sync_runs SET finished_at = finished_at - interval '2 days'")
    report = scheduler("prune", "--older-than", "1d", "--json").report
    assert (report["runs"], report["jobs"], ledger.count()) == (1, USERS, older)
