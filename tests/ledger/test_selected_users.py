"""The users that a run was asked for: how they are stored, planned and, when the run is pruned, deleted."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, text

from tests.support.contexts import NOON, HandedClock, context_at
from tests.support.ledger import Ledger
from tests.support.users import make_users, user_id
from worker_scheduler.config.options import parse_backfill
from worker_scheduler.fanout import opening, tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import months, plan, runs
from worker_scheduler.ledger.plan import Chunk
from worker_scheduler.ledger.requests import Asked
from worker_scheduler.ledger.runs import NewRun, Run, RunIdTaken
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.maintenance import pruner

KEY = "p"


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock()


@pytest.fixture
def context(deployed: None, clock: HandedClock) -> Iterator[TickContext]:
    with context_at(clock) as context:
        yield context


def ids(*numbers: int) -> list[UUID]:
    return [user_id(number) for number in numbers]


def open_run(context: TickContext, chosen: list[UUID] | None, run_id: UUID | None = None) -> Run:
    run_id = run_id or months.new_run_id(NOON)
    new = NewRun(run_id, KEY, Kind.BACKFILL, "scheduler.backfill", 7, chosen, None, None)
    with context.database.transaction() as connection:
        run = runs.open_run(connection, new, NOON, NOON)
    assert run is not None
    return run


def chunk(context: TickContext, run: Run, limit: int) -> Chunk:
    with context.database.transaction() as connection:
        return plan_chunk(context, connection, run, limit)


def plan_chunk(context: TickContext, connection: Connection, run: Run, limit: int) -> Chunk:
    return plan.plan_chunk(
        connection,
        run_id=run.run_id,
        relation=context.relation,
        skip_older_rows_of=None,
        limit=limit,
        batch_size=2,
        insert=plan.INSERT_ALL,
        now=NOON,
    )


def planned(ledger: Ledger) -> set[UUID]:
    return {job["user_id"] for job in ledger.jobs()}


def test_the_cursor_moves_over_chosen_users_who_do_not_exist_any_more(
    context: TickContext, ledger: Ledger
) -> None:
    make_users(ledger.url, 20)
    chosen = sorted(ids(*range(1, 11)))
    run = open_run(context, chosen)
    ledger.execute(f"DELETE FROM users WHERE id IN ('{chosen[0]}', '{chosen[1]}', '{chosen[2]}')")
    counts = [chunk(context, run, 3) for _ in range(4)]
    assert [(one.job_count, one.batch_count, one.done) for one in counts] == [
        (0, 0, False),
        (3, 2, False),
        (3, 2, False),
        (1, 1, True),
    ]
    assert planned(ledger) == set(chosen[3:])
    assert chunk(context, run, 3) == Chunk(0, 0, done=True)


def test_reopened_for_others_only_they_get_a_job(context: TickContext, ledger: Ledger) -> None:
    make_users(ledger.url, 20)
    run = open_run(context, ids(1, 2, 3))
    assert chunk(context, run, 100).job_count == 3
    open_run(context, ids(3, 4, 5), run.run_id)
    assert chunk(context, run, 100).job_count == 2
    assert planned(ledger) == set(ids(1, 2, 3, 4, 5))


@pytest.mark.parametrize("through", [True, False])
def test_chosen_after_everyone(through: bool, context: TickContext, ledger: Ledger) -> None:
    """While everyone is still being planned, everyone stays; afterwards only the chosen users are."""
    make_users(ledger.url, 5)
    run = open_run(context, None)
    assert chunk(context, run, 100 if through else 2).done == through
    make_users(ledger.url, 8)
    open_run(context, ids(7), run.run_id)
    while not chunk(context, run, 100).done:
        pass
    assert planned(ledger) == set(ids(1, 2, 3, 4, 5, 7) if through else ids(*range(1, 9)))


def test_everyone_after_chosen(context: TickContext, ledger: Ledger) -> None:
    make_users(ledger.url, 5)
    run = open_run(context, ids(1, 2))
    assert not chunk(context, run, 1).done
    open_run(context, None, run.run_id)
    assert chunk(context, run, 100).job_count == 4
    assert planned(ledger) == set(ids(1, 2, 3, 4, 5))


def test_many_ids_are_stored_in_steps_and_in_order(context: TickContext, ledger: Ledger) -> None:
    chosen = [uuid4() for _ in range(25_000)]
    run = open_run(context, chosen)
    open_run(context, chosen[::-1], run.run_id)
    rows = ledger.rows("SELECT user_id FROM sync_selected_users WHERE run_id = %s", run.run_id)
    assert sorted(row["user_id"] for row in rows) == sorted(chosen)


def test_a_run_that_another_process_makes_in_between_gets_the_users(
    context: TickContext, ledger: Ledger
) -> None:
    make_users(ledger.url, 5)
    made = open_run(context, ids(1))
    with pytest.raises(RunIdTaken):
        open_run(context, ids(2))
    selected = "SELECT run_id, user_id FROM sync_selected_users ORDER BY user_id"
    assert ledger.rows(selected) == [{"run_id": made.run_id, "user_id": user_id(1)}]
    new = NewRun(uuid4(), KEY, Kind.BACKFILL, "scheduler.backfill", 7, ids(2), None, None)
    asked = Asked("backfill", KEY, "test", "test")
    assert opening.open_run(context, new, None, asked).run.run_id == made.run_id
    assert {row["run_id"] for row in ledger.rows(selected)} == {made.run_id}
    assert {row["user_id"] for row in ledger.rows(selected)} == set(ids(1, 2))


@pytest.mark.parametrize("stale", [True, False])
@pytest.mark.parametrize("reopened", [True, False])
def test_a_chunk_of_chosen_users_reads_only_them(
    stale: bool, reopened: bool, context: TickContext, ledger: Ledger
) -> None:
    """By the plan that Postgres makes, with statistics that know the rows and with older ones.

    8,000 users are chosen, and a chunk is of 1,000.
    """
    make_users(ledger.url, 40_000)
    ledger.execute("ANALYZE users", "ANALYZE sync_selected_users", "ANALYZE sync_jobs")
    run = open_run(context, ids(*range(1, 8_001)))
    if reopened:
        while not chunk(context, run, 10_000).done:
            pass
        open_run(context, ids(1), run.run_id)
    if not stale:
        ledger.execute("ANALYZE sync_selected_users", "ANALYZE sync_jobs")
    scans = Counter[str]()
    for name, rows in scans_of(explained(context, run)):
        scans[name] += rows
    assert not {"users", "sync_selected_users", "sync_jobs_2026_11"} & set(scans)
    assert scans["users_pkey"] == 1000


class Undone(Exception):
    """Rolls a transaction back."""


def explained(context: TickContext, run: Run) -> dict[str, Any]:
    """How Postgres plans the next chunk, and how many rows it reads; nothing stays written."""
    found: dict[str, Any] = {}
    with suppress(Undone), context.database.transaction() as connection:
        row = connection.execute(plan._LOCK_RUN, {"run_id": run.run_id}).one()
        statement = plan._insert_chunk(context.relation, row, plan.INSERT_ALL, skip_older_rows=False)
        parameters = {
            "run_id": run.run_id,
            "limit": 1000,
            "batch_size": 200,
            "first_number": row.batches,
            "id_prefix": months.uuid_prefix(NOON),
            "now": NOON,
            "planned_through": row.planned_through,
        }
        explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}")
        found = connection.execute(explain, parameters).scalar_one()[0]["Plan"]
        raise Undone
    return found


def scans_of(node: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """What the plan reads, the index if it uses one, otherwise the table; and how many rows."""
    rows = round(node["Actual Rows"] * node["Actual Loops"]) + node.get("Rows Removed by Filter", 0)
    if "Index Name" in node:
        yield node["Index Name"], rows
    elif node["Node Type"] == "Seq Scan":
        yield node["Relation Name"], rows
    for child in node.get("Plans", ()):
        yield from scans_of(child)


def test_prune_deletes_the_users_of_pruned_runs_and_old_tasks(
    context: TickContext, clock: HandedClock, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner, "_ROWS_AT_ONCE", 2)
    make_users(ledger.url, 9)

    def backfill(key: str, *numbers: int) -> None:
        named = [str(user_id(number)) for number in numbers]
        options = parse_backfill({"backfill_days": 7, "partition_key": key, "user_ids": named})
        assert tick.backfill(context, options).jobs_inserted == len(numbers)

    clock.now = NOON - timedelta(days=200)
    backfill("old", 1, 2, 3, 4, 5)
    clock.now = NOON
    backfill("new", 6, 7, 8)
    ledger.execute(
        "UPDATE sync_jobs SET status = 'COMPLETED', completed_at = created_at",
        "UPDATE sync_runs SET state = 'FINISHED', finished_at = created_at",
        "INSERT INTO sync_tasks VALUES ('a', 'k', '2026-10-24 12:00Z'), ('b', 'k', '2026-10-24 12:00Z'),"
        " ('oldest', 'k', '2026-01-01 12:00Z'), ('young', 'k', '2026-10-24 12:00:00.000001Z')",
    )
    before = ledger.everything()
    pruner.prune_ledger(context.database, NOON, timedelta(days=90), dry_run=True)
    assert ledger.everything() == before
    pruner.prune_ledger(context.database, NOON, timedelta(days=90), dry_run=False)
    left = ledger.rows("SELECT user_id FROM sync_selected_users")
    assert {row["user_id"] for row in left} == set(ids(6, 7, 8))
    assert ledger.rows("SELECT task_id FROM sync_tasks") == [{"task_id": "young"}]
    assert ledger.value("SELECT count(*) FROM sync_runs WHERE pruned_at IS NOT NULL") == 1
