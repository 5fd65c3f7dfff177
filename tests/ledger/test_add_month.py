"""sync_jobs_add_month, which runs with the rights of the owner, makes months and nothing else."""

from collections.abc import Iterator
from datetime import date
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue
from sqlalchemy.engine import make_url

from tests.support.ledger import Ledger
from worker_scheduler import embedded
from worker_scheduler.ledger import months

CALL = "SELECT sync_jobs_add_month(%s, %s, %s)"
CALL_OF_HISTORY = "SELECT sync_history_add_month(%s, %s, %s)"


def bounds(year: int, month: int) -> tuple[UUID, UUID]:
    return months.run_ids_of(date(year, month, 1))


@pytest.fixture
def caller(ledger: Ledger, servers: embedded.Servers) -> Iterator[psycopg.Connection]:
    """A connection as a role that may use the function and make no table."""
    role = f"caller_{uuid4().hex[:8]}"
    ledger.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'p'",
        f"GRANT EXECUTE ON FUNCTION sync_jobs_add_month(text, uuid, uuid) TO {role}",
        f"GRANT EXECUTE ON FUNCTION sync_history_add_month(text, integer, integer) TO {role}",
    )
    # Without a pooler: the tests set what the session has.
    url = make_url(servers.database_url).set(
        drivername="postgresql", database=make_url(ledger.url).database, username=role, password="p"
    )
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        yield connection
    ledger.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def partitions(ledger: Ledger) -> set[str]:
    rows = ledger.rows(
        "SELECT relname FROM pg_class WHERE relname ~ '^sync_jobs' AND relkind IN ('r', 'p')"
    )
    return {row["relname"] for row in rows}


@pytest.mark.parametrize(
    "name",
    [
        *("sync_jobs_2030_99", "sync_jobs_2030_00", "sync_jobs_2030_13", "sync_jobs_0000_01"),
        *("sync_jobs_1969_12", "sync_jobs_9999_01", "sync_jobs_2030_01x", "xsync_jobs_2030_01"),
        *("sync_jobs_2030_01\n", "Sync_jobs_2030_01", "sync_jobs_2030-01", "sync_jobs_monthless"),
        *(
            "sync_runs",
            "",
            "public.sync_jobs_2030_01",
            "sync_jobs_٢٠٣٠_01",
            '"; DROP TABLE users; --',
            None,
        ),
    ],
)
def test_another_name_than_a_months_is_refused(
    name: str | None, ledger: Ledger, caller: psycopg.Connection
) -> None:
    before = partitions(ledger)
    with pytest.raises(InvalidParameterValue, match="is not the name of a month of sync_jobs"):
        caller.execute(CALL, [name, *bounds(2030, 1)])
    assert partitions(ledger) == before


@pytest.mark.parametrize(
    "given",
    [
        (bounds(2030, 2)[0], bounds(2030, 2)[1]),
        (bounds(2030, 1)[0], bounds(2030, 2)[1]),
        (bounds(2030, 1)[1], bounds(2030, 1)[0]),
        (UUID(int=0), UUID(int=2**128 - 1)),
        (UUID(int=bounds(2030, 1)[0].int + 1), bounds(2030, 1)[1]),
        (None, bounds(2030, 1)[1]),
        (None, None),
    ],
)
def test_other_bounds_than_the_months_are_refused(
    given: tuple[UUID | None, UUID | None], ledger: Ledger, caller: psycopg.Connection
) -> None:
    before = partitions(ledger)
    with pytest.raises(InvalidParameterValue, match="sync_jobs_2030_01 has the run ids from"):
        caller.execute(CALL, ["sync_jobs_2030_01", *given])
    assert partitions(ledger) == before


@pytest.mark.parametrize(
    "settings",
    [
        "SET timezone = 'Asia/Kathmandu'; SET datestyle = 'SQL, DMY'; SET intervalstyle = 'sql_standard'",
        "SET timezone = 'America/St_Johns'; SET datestyle = German; SET extra_float_digits = -15",
        "SET search_path = pg_temp; CREATE TEMP TABLE sync_jobs (); CREATE TEMP TABLE pg_class ()",
        "SET lock_timeout = 0; SET standard_conforming_strings = off; SET bytea_output = escape",
    ],
)
def test_the_bounds_follow_from_the_name_whatever_the_session_sets(
    settings: str, ledger: Ledger, caller: psycopg.Connection
) -> None:
    caller.execute(settings.encode())
    call = CALL.replace("sync", "public.sync", 1)
    for year, month in ((1970, 1), (2030, 2), (2032, 12), (9998, 12)):
        name = f"sync_jobs_{year:04d}_{month:02d}"
        first, following = bounds(year, month)
        assert caller.execute(call, [name, first, following]).fetchone() == (True,)
        made = ledger.row(
            "SELECT pg_get_expr(relpartbound, oid) AS bound, relowner FROM pg_class"
            " WHERE oid = %s::regclass",
            f"public.{name}",
        )
        assert made["bound"] == f"FOR VALUES FROM ('{first}') TO ('{following}')"
        assert made["relowner"] == ledger.value(
            "SELECT relowner FROM pg_class WHERE oid = 'public.sync_jobs'::regclass"
        )
        assert caller.execute(call, [name, first, following]).fetchone() == (False,)


def test_the_caller_gets_no_right_on_the_month(ledger: Ledger, caller: psycopg.Connection) -> None:
    caller.execute(CALL, ["sync_jobs_2030_01", *bounds(2030, 1)])
    for statement in ("DROP TABLE sync_jobs_2030_01", "SELECT * FROM sync_jobs_2030_01"):
        with pytest.raises(InsufficientPrivilege):
            caller.execute(statement.encode())


def test_nobody_may_call_it_without_a_grant(ledger: Ledger) -> None:
    role = f"stranger_{uuid4().hex[:8]}"
    ledger.execute(f"CREATE ROLE {role}")
    with psycopg.connect(ledger.url) as connection:
        connection.execute(f"SET ROLE {role}".encode())
        with pytest.raises(InsufficientPrivilege):
            connection.execute(CALL, ["sync_jobs_2030_01", *bounds(2030, 1)])
        connection.rollback()
    ledger.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize(
    "given",
    [
        *(("sync_jobs", 2030, 1), ("sync_requests_monthless", 2030, 1), ("x; DROP TABLE users", 2030, 1)),
        *(("sync_requests", 1969, 12), ("sync_requests", 9999, 1), ("sync_requests", -2030, 1)),
        *(("sync_requests", 2030, 0), ("sync_requests", 2030, 13), ("Sync_Requests", 2030, 1)),
        *((None, 2030, 1), ("sync_requests", None, 1), ("sync_requests", 2030, None), (None, None, None)),
    ],
)
def test_what_is_no_month_of_a_history_is_refused(
    given: tuple[str | None, int | None, int | None], ledger: Ledger, caller: psycopg.Connection
) -> None:
    tables = "SELECT count(*) FROM pg_class"
    before = ledger.value(tables)
    with pytest.raises(InvalidParameterValue, match="is no month of a history"):
        caller.execute(CALL_OF_HISTORY, given)
    assert ledger.value(tables) == before


@pytest.mark.parametrize("history", ["sync_requests", "sync_job_events"])
@pytest.mark.parametrize(
    "settings",
    [
        "SET timezone = 'Asia/Kathmandu'; SET datestyle = 'SQL, DMY'; SET intervalstyle = 'sql_standard'",
        "SET search_path = pg_temp; CREATE TEMP TABLE sync_requests (); CREATE TEMP TABLE pg_class ()",
    ],
)
def test_a_month_of_a_history_is_that_of_utc(
    history: str, settings: str, ledger: Ledger, caller: psycopg.Connection
) -> None:
    caller.execute(settings.encode())
    call = CALL_OF_HISTORY.replace("sync", "public.sync", 1)
    for year, month, ends in ((1970, 1, "1970-02"), (2032, 12, "2033-01"), (9998, 12, "9999-01")):
        assert caller.execute(call, (history, year, month)).fetchone() == (True,)
        name = f"{history}_{year:04d}_{month:02d}"
        with psycopg.connect(ledger.url) as connection:
            connection.execute("SET timezone = 'UTC'")
            found = connection.execute(
                "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = %s", (name,)
            ).fetchone()
        first = f"{year:04d}-{month:02d}-01 00:00:00+00"
        assert found == (f"FOR VALUES FROM ('{first}') TO ('{ends}-01 00:00:00+00')",)
        assert caller.execute(call, (history, year, month)).fetchone() == (False,)
    for statement in (f"DROP TABLE public.{name}", f"SELECT * FROM public.{name}"):
        with pytest.raises(InsufficientPrivilege):
            caller.execute(statement.encode())
