"""A model of runs, batches, jobs and leases, held against the real ledger on a clock that is handed in.

Hypothesis calls the ledger's functions in any order, with any claim that was ever made, however old; the
model says what each must answer, and after each step the tables must say what the model says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import ceil
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, text

from tests.support.contexts import INSTANT, NOON, context_at
from tests.support.ledger import Ledger
from tests.support.users import make_users
from worker_scheduler.context import TickContext
from worker_scheduler.ledger import batches, jobs, plan, rescue, runs
from worker_scheduler.ledger.batches import ClaimedBatch
from worker_scheduler.ledger.jobs import ClaimedJob
from worker_scheduler.ledger.plan import Insert
from worker_scheduler.ledger.rescue import DueJob
from worker_scheduler.ledger.runs import NewRun
from worker_scheduler.ledger.tables import JobStatus, Kind

STEPS = 2000
LEASE, BATCH_LEASE = timedelta(seconds=45), timedelta(seconds=30)
MAX_ATTEMPTS = 3
ALL = 1000

FINAL = {"COMPLETED", "FAILED", "SKIPPED"}
MOVES = {("PENDING", "RUNNING"), ("RUNNING", "PENDING"), *(("RUNNING", end) for end in FINAL)}


@dataclass(frozen=True)
class ModelJob:
    run_id: UUID
    user_id: UUID
    status: str = "PENDING"
    attempt: int = 0
    leased_until: datetime | None = None
    not_before: datetime | None = None
    republished_in: UUID | None = None


@dataclass(frozen=True)
class ModelBatch:
    jobs: tuple[UUID, ...]
    generation: int = 0
    claimed_by: UUID | None = None
    claimed_until: datetime | None = None
    enqueued_at: datetime | None = None
    epoch: UUID | None = None


@dataclass(frozen=True)
class ModelRun:
    run_id: UUID
    leased_until: datetime | None
    state: str = "PLANNING"
    cursor: UUID | None = None
    enqueued_at: datetime | None = None
    counts: tuple[int | None, ...] = (None, None, None)


keys = st.sampled_from(["daily:2026-11-23", "daily:2026-11-24"])
ends = st.sampled_from([JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.SKIPPED])
seconds = st.sampled_from([0, 1, 15, 29, 30, 31, 44, 45, 46, 3600])
picks = st.integers(0, 10**6)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self, context: TickContext, connection: Connection, steps: list[int]) -> None:
        super().__init__()
        self.relation = context.relation
        self.database = context.database
        self.connection = connection
        self.steps = steps
        self.now = NOON
        self.epoch = uuid4()
        self.users: set[UUID] = set()
        self.runs: dict[str, ModelRun] = {}
        self.batches: dict[tuple[UUID, int], ModelBatch] = {}
        self.jobs: dict[UUID, ModelJob] = {}
        self.seen: dict[UUID, ModelJob] = {}
        # Everything that anybody has ever been handed, dead or alive.
        self.claims: list[ClaimedJob] = []
        self.batch_claims: list[tuple[list[ClaimedBatch], UUID]] = []
        self.due: list[tuple[list[DueJob], datetime, UUID]] = []
        for table in ("sync_batches", "sync_jobs", "sync_runs", "users"):
            connection.execute(text(f"DELETE FROM {table}"))

    # --- users, runs, plans -------------------------------------------------------------------------

    @initialize()
    def some_users(self) -> None:
        for number in range(4):
            self.a_user_is_new(number * 1000)

    @rule(number=picks)
    def a_user_is_new(self, number: int) -> None:
        user_id = UUID(int=number + 1)
        self.users.add(user_id)
        self.connection.execute(
            text("INSERT INTO users VALUES (:id, :login) ON CONFLICT DO NOTHING"),
            {"id": user_id, "login": f"user-{number}"},
        )

    @rule(step=seconds)
    def time_passes(self, step: int) -> None:
        self.now += timedelta(seconds=step)

    @rule(key=keys)
    def a_tick_opens_its_run(self, key: str) -> None:
        new = NewRun(uuid4(), key, Kind.DAILY, "scheduler.daily", None, None, None, None)
        run = runs.open_run(self.connection, new, self.now, self.now + LEASE)
        assert run is not None
        before = self.runs.get(key)
        assert run.run_id == (new.run_id if before is None else before.run_id)
        enqueued_at = None if before is None else before.enqueued_at
        self.runs[key] = ModelRun(run.run_id, self.now + LEASE, enqueued_at=enqueued_at)

    @precondition(lambda self: self.runs)
    @rule(
        pick=picks,
        limit=st.integers(1, 4),
        batch_size=st.integers(1, 3),
        insert=st.sampled_from([plan.WHOLE_PAGE, plan.WHO_HAS_NONE]),
    )
    def a_planner_writes_a_chunk(self, pick: int, limit: int, batch_size: int, insert: Insert) -> None:
        key, run = self.pick_run(pick)
        with self.database.transaction() as connection:
            chunk = plan.plan_chunk(
                connection,
                run_id=run.run_id,
                relation=self.relation,
                skip_older_rows_of=None,
                limit=limit,
                batch_size=batch_size,
                insert=insert,
                now=self.now,
            )
        if run.state != "PLANNING":
            assert (chunk.jobs, chunk.batches, chunk.done) == (0, 0, True)
            return
        having = {job.user_id for job in self.jobs.values() if job.run_id == run.run_id}
        left = self.users - having
        page = sorted(user for user in left if run.cursor is None or user > run.cursor)[:limit]
        assert chunk.jobs == len(page)
        assert chunk.batches == ceil(len(page) / batch_size)
        assert chunk.done == (len(page) < limit)
        self.learn_what_was_planned(run, set(page))
        self.runs[key] = replace(
            run, cursor=page[-1] if page else run.cursor, state="DISPATCHING" if chunk.done else "PLANNING"
        )

    def learn_what_was_planned(self, run: ModelRun, fresh: set[UUID]) -> None:
        """Ids are the ledger's choice; whom they are for is not."""
        new = {
            job_id: user_id
            for job_id, user_id in self.rows("SELECT job_id, user_id FROM sync_jobs WHERE run_id = :r", run)
            if job_id not in self.jobs
        }
        assert sorted(new.values()) == sorted(fresh)
        self.jobs |= {job_id: ModelJob(run.run_id, user_id) for job_id, user_id in new.items()}
        left = set(new)
        for number, first, last in self.rows(
            "SELECT number, first_job_id, last_job_id FROM sync_batches WHERE run_id = :r", run
        ):
            if (run.run_id, number) not in self.batches:
                members = tuple(sorted(job_id for job_id in self.jobs if first <= job_id <= last))
                assert members
                assert set(members) <= left
                left -= set(members)
                self.batches[run.run_id, number] = ModelBatch(members)
        assert not left

    @precondition(lambda self: self.runs)
    @rule(pick=picks)
    def a_heart_beats_for_a_run(self, pick: int) -> None:
        key, run = self.pick_run(pick)
        at_work = run.state in ("PLANNING", "DISPATCHING")
        assert runs.renew(self.connection, run.run_id, self.now + LEASE) == at_work
        if at_work:
            self.runs[key] = replace(run, leased_until=self.now + LEASE)

    @rule()
    def a_run_is_taken_over(self) -> None:
        free = {
            run.run_id: key
            for key, run in self.runs.items()
            if run.state in ("PLANNING", "DISPATCHING")
            and (run.leased_until is None or run.leased_until <= self.now)
        }
        taken = runs.take_over(self.connection, self.now, self.now + LEASE)
        assert (taken is not None) == bool(free)
        if taken is not None:
            key = free[taken.run_id]
            self.runs[key] = replace(self.runs[key], leased_until=self.now + LEASE)

    @precondition(lambda self: self.runs)
    @rule(pick=picks)
    def a_run_is_let_go(self, pick: int) -> None:
        key, run = self.pick_run(pick)
        runs.release(self.connection, run.run_id)
        if run.state in ("PLANNING", "DISPATCHING"):
            self.runs[key] = replace(run, leased_until=None)

    @precondition(lambda self: self.runs)
    @rule(pick=picks)
    def a_run_is_closed(self, pick: int) -> None:
        key, run = self.pick_run(pick)
        mine = [batch for (run_id, _), batch in self.batches.items() if run_id == run.run_id]
        sent = [batch.enqueued_at for batch in mine if batch.enqueued_at is not None]
        closed = run.state == "DISPATCHING" and len(sent) == len(mine)
        assert runs.mark_enqueued(self.connection, run.run_id, self.now) == closed
        if closed:
            known = sent if run.enqueued_at is None else [*sent, run.enqueued_at]
            at = max(known, default=self.now)
            self.runs[key] = replace(run, state="ENQUEUED", leased_until=None, enqueued_at=at)

    @precondition(lambda self: self.runs)
    @rule(pick=picks)
    def a_run_is_finished(self, pick: int) -> None:
        key, run = self.pick_run(pick)
        states = [job.status for job in self.jobs.values() if job.run_id == run.run_id]
        finished = run.state == "ENQUEUED" and set(states) <= FINAL
        assert runs.finish(self.connection, run.run_id, self.now) == finished
        if finished:
            counts = tuple(states.count(end) for end in ("COMPLETED", "FAILED", "SKIPPED"))
            self.runs[key] = replace(run, state="FINISHED", counts=counts)

    # --- batches ------------------------------------------------------------------------------------

    @precondition(lambda self: self.runs)
    @rule(pick=picks, limit=st.integers(1, 3))
    def a_dispatcher_claims_batches(self, pick: int, limit: int) -> None:
        _, run = self.pick_run(pick)
        identity = uuid4()
        claimed = batches.claim(
            self.connection,
            run.run_id,
            identity,
            limit=limit,
            now=self.now,
            claimed_until=self.now + BATCH_LEASE,
        )
        free = sorted(
            number
            for (run_id, number), batch in self.batches.items()
            if run_id == run.run_id
            and batch.enqueued_at is None
            and (batch.claimed_until is None or batch.claimed_until <= self.now)
        )
        assert [one.number for one in claimed] == free[:limit]
        for one in claimed:
            at = run.run_id, one.number
            batch = self.batches[at]
            assert one.generation == batch.generation
            waiting = [job for job in batch.jobs if self.waits_by_its_batch(self.jobs[job])]
            assert [as_uuid(job_id) for job_id, _ in one.jobs] == waiting
            self.batches[at] = replace(batch, claimed_by=identity, claimed_until=self.now + BATCH_LEASE)
        if claimed:
            self.batch_claims.append((claimed, identity))

    @precondition(lambda self: self.batch_claims)
    @rule(pick=picks, published=st.booleans())
    def a_dispatcher_ends_with_its_batches(self, pick: int, published: bool) -> None:
        claimed, identity = self.batch_claims[pick % len(self.batch_claims)]
        ours = [
            at for one in claimed if self.batches[at := (one.run_id, one.number)].claimed_by == identity
        ]
        changes: dict[str, Any] = {}
        if published:
            marked = batches.mark_enqueued(
                self.connection,
                claimed,
                identity,
                broker_epochs=[self.epoch] * len(claimed),
                now=self.now,
            )
            assert marked == {number for _, number in ours}
            changes = {"enqueued_at": self.now, "epoch": self.epoch}
        else:
            batches.release(self.connection, claimed, identity)
        for at in ours:
            self.batches[at] = replace(self.batches[at], claimed_by=None, claimed_until=None, **changes)

    @rule()
    def the_broker_loses_its_data(self) -> None:
        self.epoch = uuid4()

    @precondition(lambda self: self.runs)
    @rule(pick=picks)
    def lost_data_are_noticed(self, pick: int) -> None:
        key, run = self.pick_run(pick)
        lost = {as_uuid(epoch) for epoch in batches.broker_epochs(self.connection, [run.run_id])} - {
            self.epoch
        }
        put_back = 0
        for at, batch in self.batches.items():
            if at[0] != run.run_id or batch.epoch is None or batch.epoch == self.epoch:
                continue
            assert batch.epoch in lost
            if any(self.waits_by_its_batch(self.jobs[job]) for job in batch.jobs):
                put_back += 1
                self.batches[at] = replace(
                    batch, enqueued_at=None, epoch=None, generation=batch.generation + 1
                )
            else:
                self.batches[at] = replace(batch, epoch=self.epoch)
        assert batches.put_back_lost(self.connection, run.run_id, lost, self.epoch) == put_back
        alone = [
            job_id
            for job_id, job in self.jobs.items()
            if job.run_id == run.run_id and self.waits(job) and job.republished_in not in (None, self.epoch)
        ]
        assert {self.jobs[job_id].republished_in for job_id in alone} <= lost
        bounds: dict[str, Any] = {"now": self.now, "limit": ALL}
        marked = rescue.mark_lost_with_data(self.connection, run_id=run.run_id, lost=lost, **bounds)
        assert marked == len(alone)
        for job_id in alone:
            self.change(job_id, not_before=self.now)
        unsent = any(
            at[0] == run.run_id and batch.enqueued_at is None for at, batch in self.batches.items()
        )
        reopened = run.state == "ENQUEUED" and unsent
        assert runs.reopen_dispatch(self.connection, run.run_id) == reopened
        if reopened:
            self.runs[key] = replace(run, state="DISPATCHING", leased_until=None)

    # --- jobs ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.jobs)
    @rule(pick=picks)
    def a_worker_claims_a_job(self, pick: int) -> None:
        self.claim(self.pick_job(pick))

    @precondition(lambda self: any(self.holds(claimed) for claimed in self.claims))
    @rule(pick=picks)
    def a_worker_is_given_up_on(self, pick: int) -> None:
        """Its job gets a successor, and it may come back, with its claim in its hand."""
        held = [claimed for claimed in self.claims if self.holds(claimed)]
        job_id = held[pick % len(held)].job_id
        self.now += LEASE
        self.the_dead_are_found()
        self.the_tables_say_what_the_model_says()  # each move is looked at by itself
        self.claim(job_id)

    def claim(self, job_id: UUID) -> None:
        job = self.jobs[job_id]
        its_time_has_come = (
            job.not_before is None or job.not_before <= self.now or job.leased_until is not None
        )
        free = job.status == "PENDING" and its_time_has_come
        claimed = jobs.claim(self.connection, job_id, self.now, self.now + LEASE)
        assert (claimed is not None) == free
        if claimed is not None:
            assert claimed.attempt == job.attempt + 1
            assert claimed.user_id == job.user_id
            self.claims.append(claimed)
            self.jobs[job_id] = replace(
                job,
                status="RUNNING",
                attempt=claimed.attempt,
                leased_until=self.now + LEASE,
                not_before=None,
            )

    def holds(self, claimed: ClaimedJob) -> bool:
        job = self.jobs[claimed.job_id]
        return job.status == "RUNNING" and job.attempt == claimed.attempt

    @precondition(lambda self: self.claims)
    @rule(pick=picks, end=ends)
    def a_worker_finishes_a_job(self, pick: int, end: JobStatus) -> None:
        claimed = self.pick_claim(pick)
        holds = self.holds(claimed)
        assert jobs.finish(self.connection, claimed, end, None, self.now) == holds
        if holds:
            self.change(claimed.job_id, status=end.value, leased_until=None)

    @precondition(lambda self: self.claims)
    @rule(pick=picks, delay=seconds)
    def a_worker_puts_a_job_off(self, pick: int, delay: int) -> None:
        claimed = self.pick_claim(pick)
        holds = self.holds(claimed)
        at = self.now + timedelta(seconds=delay)
        assert jobs.put_off(self.connection, claimed, error_message=None, not_before=at) == holds
        if holds:
            self.change(claimed.job_id, status="PENDING", leased_until=None, not_before=at)

    @precondition(lambda self: self.claims)
    @rule(pick=picks)
    def a_heart_beats_for_a_job(self, pick: int) -> None:
        claimed = self.pick_claim(pick)
        holds = self.holds(claimed)
        until = self.now + LEASE
        assert jobs.extend_lease(self.connection, claimed, until) == holds
        if holds:
            self.change(claimed.job_id, leased_until=until)

    # --- reconcile ----------------------------------------------------------------------------------

    @rule()
    def the_dead_are_found(self) -> None:
        dead = [
            job_id
            for job_id, job in self.jobs.items()
            if job.status == "RUNNING" and job.leased_until is not None and job.leased_until <= self.now
        ]
        over = [job_id for job_id in dead if self.jobs[job_id].attempt >= MAX_ATTEMPTS]
        bounds: dict[str, Any] = {"now": self.now, "max_attempts": MAX_ATTEMPTS, "limit": ALL}
        assert rescue.give_up(self.connection, **bounds) == len(over)
        assert rescue.rescue(self.connection, **bounds) == len(dead) - len(over)
        for job_id in dead:
            if job_id in over:
                self.change(job_id, status="FAILED", leased_until=None)
            else:
                self.change(job_id, status="PENDING", leased_until=None, not_before=self.now)

    @rule()
    def due_jobs_are_taken(self) -> None:
        due = {
            job_id
            for job_id, job in self.jobs.items()
            if job.status == "PENDING"
            and job.not_before is not None
            and job.not_before <= self.now
            and (job.leased_until is None or job.leased_until <= self.now)
        }
        until = self.now + LEASE
        bounds: dict[str, Any] = {"now": self.now, "leased_until": until, "limit": ALL}
        assert rescue.take_due(self.connection, Kind.BACKFILL, **bounds) == []
        taken = rescue.take_due(self.connection, Kind.DAILY, **bounds)
        assert {as_uuid(job.job_id) for job in taken} == due
        for job_id in due:
            self.change(job_id, leased_until=until)
        if taken:
            self.due.append((taken, until, self.epoch))

    @precondition(lambda self: self.due)
    @rule(pick=picks)
    def due_jobs_are_published(self, pick: int) -> None:
        taken, until, epoch = self.due[pick % len(self.due)]
        for run_id in {due.run_id for due in taken}:
            self.the_grace_is_postponed(run_id)
        rescue.mark_published(self.connection, [(due, epoch) for due in taken], until)
        for due in taken:
            job = self.jobs[as_uuid(due.job_id)]
            if job.status == "PENDING" and job.leased_until == until:
                self.change(as_uuid(due.job_id), leased_until=None, not_before=None, republished_in=epoch)

    def the_grace_is_postponed(self, run_id: UUID) -> None:
        runs.postpone_grace(self.connection, run_id, self.now)
        ((key, run),) = [(key, run) for key, run in self.runs.items() if run.run_id == run_id]
        if run.state == "ENQUEUED":
            assert run.enqueued_at is not None
            self.runs[key] = replace(run, enqueued_at=max(run.enqueued_at + INSTANT, self.now))

    @precondition(lambda self: self.runs)
    @rule(pick=picks)
    def messages_are_found_to_be_gone(self, pick: int) -> None:
        key, run = self.pick_run(pick)
        (seen,) = [found for found in runs.latest(self.connection, 10) if found.partition_key == key]
        assert seen.enqueued_at == run.enqueued_at
        enqueued = run.state == "ENQUEUED"
        assert runs.restart_grace(self.connection, seen, self.now) == enqueued
        gone = rescue.mark_messages_gone(
            self.connection, run.run_id, after=UUID(int=0), now=self.now, limit=ALL
        )
        waiting = [
            job_id
            for job_id, job in self.jobs.items()
            if enqueued and job.run_id == run.run_id and self.waits(job)
        ]
        assert sorted(as_uuid(job_id) for job_id in gone) == sorted(waiting)
        if enqueued:
            self.runs[key] = replace(run, enqueued_at=self.now)
        for job_id in waiting:
            self.change(job_id, not_before=self.now)

    # --- what always holds --------------------------------------------------------------------------

    @invariant()
    def the_tables_say_what_the_model_says(self) -> None:
        self.steps.append(1)
        found = {
            job_id: ModelJob(*rest)
            for job_id, *rest in self.rows(
                "SELECT job_id, run_id, user_id, status, attempt, leased_until, not_before, republished_in"
                " FROM sync_jobs"
            )
        }
        assert found == self.jobs
        self.state_graph_and_attempts(found)
        assert {
            (run_id, number): (generation, claimed_by, claimed_until, enqueued_at, epoch)
            for run_id, number, generation, claimed_by, claimed_until, enqueued_at, epoch in self.rows(
                "SELECT run_id, number, generation, claimed_by, claimed_until, enqueued_at, broker_epoch"
                " FROM sync_batches"
            )
        } == {
            at: (b.generation, b.claimed_by, b.claimed_until, b.enqueued_at, b.epoch)
            for at, b in self.batches.items()
        }
        assert {
            key: (state, leased_until, planned_through, enqueued_at, tuple(counts))
            for key, state, leased_until, planned_through, enqueued_at, *counts in self.rows(
                "SELECT partition_key, state, leased_until, planned_through, enqueued_at, completed,"
                " failed, skipped FROM sync_runs"
            )
        } == {
            key: (r.state, r.leased_until, r.cursor, r.enqueued_at, r.counts)
            for key, r in self.runs.items()
        }

    def state_graph_and_attempts(self, found: dict[UUID, ModelJob]) -> None:
        """Of one step, without the model: what docs and design allow."""
        for job_id, before in self.seen.items():
            after = found[job_id]
            if before.status != after.status:
                assert (before.status, after.status) in MOVES
            claimed = (before.status, after.status) == ("PENDING", "RUNNING")
            assert after.attempt == before.attempt + claimed
        self.seen = found

    @invariant()
    def one_job_per_user(self) -> None:
        pairs = [(job.run_id, job.user_id) for job in self.jobs.values()]
        assert len(pairs) == len(set(pairs))

    @invariant()
    def one_worker_per_job(self) -> None:
        attempts = [(claimed.job_id, claimed.attempt) for claimed in self.claims]
        assert len(attempts) == len(set(attempts))
        holders = [claimed.job_id for claimed in self.claims if self.holds(claimed)]
        assert len(holders) == len(set(holders))
        running = {job_id for job_id, job in self.jobs.items() if job.status == "RUNNING"}
        assert running == set(holders)

    @invariant()
    def nothing_waits_forever(self) -> None:
        """What is not final has something in its row, or in its batch's, that a rule asks for."""
        of_job = {job: batch for batch in self.batches.values() for job in batch.jobs}
        for job_id, job in self.jobs.items():
            if job.status == "RUNNING":
                assert job.leased_until is not None
            elif job.status == "PENDING" and job.not_before is None:
                by_batch = of_job[job_id].enqueued_at is None or of_job[job_id].epoch is not None
                assert by_batch or job.republished_in is not None

    # --- helpers ------------------------------------------------------------------------------------

    def rows(self, query: str, run: ModelRun | None = None) -> list[Any]:
        parameters = {} if run is None else {"r": run.run_id}
        return list(self.connection.execute(text(query), parameters))

    def pick_run(self, pick: int) -> tuple[str, ModelRun]:
        key = sorted(self.runs)[pick % len(self.runs)]
        return key, self.runs[key]

    def pick_job(self, pick: int) -> UUID:
        """By who it is for: the ids themselves differ from one replay to the next.

        One that was claimed before in half of the cases, so that jobs have a long life.
        """
        if pick % 2 and self.claims:
            return self.claims[pick // 2 % len(self.claims)].job_id
        key_of = {run.run_id: key for key, run in self.runs.items()}
        ordered = sorted(self.jobs, key=lambda job_id: self.place(key_of, self.jobs[job_id]))
        return ordered[pick % len(ordered)]

    @staticmethod
    def place(key_of: dict[UUID, str], job: ModelJob) -> tuple[str, UUID]:
        return key_of[job.run_id], job.user_id

    def pick_claim(self, pick: int) -> ClaimedJob:
        """Any; in two of three cases, if there is one, a claim on a job that another has by now."""
        overtaken = [
            claimed
            for claimed in self.claims
            if not self.holds(claimed) and self.jobs[claimed.job_id].status == "RUNNING"
        ]
        among = overtaken if pick % 3 and overtaken else self.claims
        return among[pick // 3 % len(among)]

    def change(self, job_id: UUID, **changes: Any) -> None:
        self.jobs[job_id] = replace(self.jobs[job_id], **changes)

    @staticmethod
    def waits(job: ModelJob) -> bool:
        return job.status == "PENDING" and job.not_before is None

    def waits_by_its_batch(self, job: ModelJob) -> bool:
        """Not with a message that it was sent anew alone."""
        return self.waits(job) and job.republished_in is None


def as_uuid(value: UUID | str) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)


@pytest.fixture
def context(deployed: None) -> Iterator[TickContext]:
    with context_at(lambda: NOON) as context:
        yield context


@pytest.mark.timeout(400)  # Hypothesis looks for the shortest counterexample, if there is one
def test_the_ledger_does_what_the_model_says(context: TickContext, ledger: Ledger) -> None:
    make_users(ledger.url, 0)
    steps: list[int] = []
    with ExitStack() as stack:
        connection = stack.enter_context(context.database.autocommit())

        class Machine(LedgerMachine):
            def __init__(self) -> None:
                super().__init__(context, connection, steps)

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=40,
                stateful_step_count=100,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert len(steps) >= STEPS
