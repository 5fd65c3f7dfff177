"""Which schema the tables are in does not depend on search_path, nor on tables of the same name."""

from collections.abc import Callable

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy.engine import make_url

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.users import make_users
from worker_scheduler import wiring

Scheduler = Callable[..., Outcome]
KEY = "daily:2026-11-24"


def set_search_path(ledger: Ledger, path: str) -> None:
    name = make_url(ledger.url).database
    assert name is not None
    with psycopg.connect(ledger.url, autocommit=True) as connection:
        connection.execute(SQL("ALTER DATABASE {} SET search_path = ").format(Identifier(name)) + SQL(path))


@pytest.fixture
def fresh(direct_database_url: str, deployed: None, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("DATABASE_URL", direct_database_url)
    return Ledger(f"{direct_database_url}?options=-csearch_path%3Dpublic")


OURS = (
    "CREATE TABLE {}.sync_jobs (x int)",
    "CREATE TABLE {}.sync_runs (run_id uuid)",
    "CREATE TABLE {}.sync_jobs_monthless (y int)",
    "CREATE FUNCTION {}.sync_jobs_add_month(text, uuid, uuid) RETURNS boolean LANGUAGE sql AS"
    " $$ SELECT 1/0 > 0 $$",
)


@pytest.mark.parametrize(
    "path", ["front, public", "front", "''", "pg_catalog", "pg_catalog, front, public"]
)
def test_tables_of_the_same_name_in_front_of_ours_are_left_alone(
    path: str, fresh: Ledger, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(fresh.url, 2)
    assert scheduler("migrate").status == 0
    fresh.execute("CREATE SCHEMA front", *(statement.format("front") for statement in OURS))
    set_search_path(fresh, path)
    monkeypatch.setenv("USERS_RELATION", "public.users")
    assert scheduler("check").faults == []
    assert scheduler("daily", "--date", "2026-11-24", "--json").report["jobs_enqueued"] == 2
    for job in fresh.jobs(KEY):
        wiring.process_worker().run(job["job_id"], lambda _: None)
    assert fresh.states(KEY) == {"COMPLETED": 2}
    assert scheduler("reconcile").status == 0
    assert scheduler("status", KEY, "--json").report["state"] == "FINISHED"
    fresh.execute("UPDATE sync_runs SET finished_at = now() - interval '3 days'")
    assert scheduler("prune", "--older-than", "1d").status == 0
    assert fresh.value("SELECT count(*) FROM front.sync_runs") == 0


@pytest.mark.parametrize("schema", ['"O\'Brien 100%: x"', "ledger", '"ü"', '"back\\slash"'])
def test_the_schema_may_have_any_name(schema: str, fresh: Ledger, scheduler: Scheduler) -> None:
    make_users(fresh.url, 2)
    fresh.execute(f"CREATE SCHEMA {schema}")
    set_search_path(fresh, f"{schema}, public")
    assert scheduler("migrate").status == 0
    set_search_path(fresh, "public")
    report = scheduler("daily", "--date", "2026-11-24", "--json").report
    assert report["jobs_enqueued"] == 2, str(report)[-400:]
    assert fresh.value(f"SELECT count(*) FROM {schema}.sync_jobs") == 2
    assert scheduler("reconcile").status == 0


def test_two_ledgers_of_one_database_are_told_apart_by_search_path(
    fresh: Ledger, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(fresh.url, 2)
    url = make_url(fresh.url).set(query={}).render_as_string(hide_password=False)
    for schema in ("a", "b"):
        fresh.execute(f"CREATE SCHEMA {schema}")
        monkeypatch.setenv("DATABASE_URL", f"{url}?options=-csearch_path%3D{schema},public")
        assert scheduler("migrate").status == 0
        assert scheduler("daily", "--date", "2026-11-24", "--json").report["jobs_enqueued"] == 2
        assert fresh.value(f"SELECT count(*) FROM {schema}.sync_jobs") == 2
    monkeypatch.setenv("DATABASE_URL", url)
    for command in (("status",), ("daily",), ("reconcile",), ("migrate",), ("prune", "--older-than", "1d")):
        outcome = scheduler(*command)
        assert outcome.status == 2
        assert "the tables are in the schemas a, b, and search_path has none of them" in outcome.error
    assert any("in the schemas a, b" in line for line in scheduler("check").faults)


def test_migrate_makes_no_second_ledger_by_accident(fresh: Ledger, scheduler: Scheduler) -> None:
    scheduler("migrate")
    fresh.execute("CREATE SCHEMA other")
    set_search_path(fresh, "other, public")
    assert scheduler("migrate").status == 0
    assert fresh.value("SELECT to_regclass('other.sync_runs')") is None
    set_search_path(fresh, "other")
    outcome = scheduler("migrate")
    assert outcome.status == 2
    assert "is in the schema public, and search_path would put new tables into other" in outcome.error
    assert scheduler("status").status == 0


def test_an_older_table_in_another_schema_is_not_adopted(fresh: Ledger, scheduler: Scheduler) -> None:
    fresh.execute("CREATE SCHEMA app", "CREATE TABLE sync_jobs (job_id uuid)")
    set_search_path(fresh, "app, public")
    outcome = scheduler("migrate")
    assert outcome.status == 2
    assert (
        "sync_jobs is in the schema public, and search_path would put new tables into app" in outcome.error
    )
    set_search_path(fresh, "app")
    assert scheduler("migrate").status == 0
    assert fresh.value("SELECT count(*) FROM app.sync_jobs") == 0
