"""A model of runs, batches, jobs and leases, held against the real ledger on a clock that is handed in.

Hypothesis calls the ledger's functions in any order, with any claim that was ever made, however old; the
model says what each must answer, and after each step the tables must say what the model says.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
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

from tests.support import attempts
from tests.support.contexts import NOON, context_at
from tests.support.ledger import Ledger
from tests.support.model_broker import ModelBroker
from tests.support.users import make_users
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import (
    batches,
    dead_workers,
    jobs,
    plan,
    probes,
    rescue,
    run_ends,
    runs,
    waiting_jobs,
)
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.batches import ClaimedBatch
from worker_scheduler.ledger.dead_workers import Page
from worker_scheduler.ledger.plan import InsertMode
from worker_scheduler.ledger.rescue import DueJob
from worker_scheduler.ledger.runs import NewRun
from worker_scheduler.ledger.tables import JobStatus, Kind
from worker_scheduler.maintenance.reconciler import lost_messages

STEPS = 100  # of each example
LEASE, BATCH_LEASE = timedelta(seconds=45), timedelta(seconds=30)
MAX_ATTEMPTS = 3
ALL = 1000
INTERVAL, GRACE = timedelta(seconds=60), timedelta(seconds=120)
FOUND_WITHIN_PASSES = 7
"""A grace time of two intervals, two probes whose workers take an interval each, and three intervals."""

AT_WORK = {"PLANNING", "DISPATCHING"}
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
    republished_at: datetime | None = None


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


@dataclass
class Look:
    """A judge's look at leases that have run out. beaten: the jobs whose hearts have beaten since."""

    pages: list[Page]
    seen: dict[UUID, ModelJob]
    beaten: set[UUID]


keys = st.sampled_from(["daily:2026-11-23", "daily:2026-11-24"])
ends = st.sampled_from([JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.SKIPPED])
seconds = st.sampled_from([0, 1, 15, 29, 30, 31, 44, 45, 46, 3600])
picks = st.integers(0, 10**6)
numbers = st.integers(1, 6)
fates = st.sampled_from(["claim the job", "die", "reject", "hold"])


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self, context: TickContext, connection: Connection, steps: list[int]) -> None:
        super().__init__()
        self.relation = context.relation
        self.database = context.database
        self.connection = connection
        self.steps = steps
        self.now = NOON
        self.broker = ModelBroker()
        self.context = replace(context, broker=self.broker, publisher=self.broker, clock=lambda: self.now)
        self.epoch = uuid4()
        self.users: set[UUID] = set()
        self.runs: dict[str, ModelRun] = {}
        self.batches: dict[tuple[UUID, int], ModelBatch] = {}
        self.jobs: dict[UUID, ModelJob] = {}
        self.seen: dict[UUID, ModelJob] = {}
        # Every claim that was ever made, no matter whether its holder still lives.
        self.claims: list[ClaimedJob] = []
        self.batch_claims: list[tuple[list[ClaimedBatch], UUID]] = []
        self.due: list[tuple[list[DueJob], datetime, UUID]] = []
        self.looks: list[Look] = []
        for table in (
            *("sync_probes", "sync_suspects", "sync_batches", "sync_jobs", "sync_runs", "users"),
        ):
            connection.execute(text(f"DELETE FROM {table}"))

    # --- users, runs, plans -------------------------------------------------------------------------

    @initialize(batches_sent=st.integers(0, 3))
    def a_day_has_begun(self, batches_sent: int) -> None:
        """Most rules need jobs, and messages; they would seldom meet any without this."""
        for number in range(6):
            self.a_user_is_new(number * 1000)
        self.a_tick_opens_its_run("daily:2026-11-23")
        self.a_planner_writes_a_chunk(0, limit=6, batch_size=2, insert=plan.INSERT_ALL)
        if batches_sent:
            self.a_dispatcher_claims_batches(0, limit=batches_sent)
            self.a_dispatcher_ends_with_its_batches(0, published=True)

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
        insert=st.sampled_from([plan.INSERT_ALL, plan.SKIP_EXISTING]),
    )
    def a_planner_writes_a_chunk(self, pick: int, limit: int, batch_size: int, insert: InsertMode) -> None:
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
            assert (chunk.job_count, chunk.batch_count, chunk.done) == (0, 0, True)
            return
        having = {job.user_id for job in self.jobs.values() if job.run_id == run.run_id}
        left = self.users - having
        page = sorted(user for user in left if run.cursor is None or user > run.cursor)[:limit]
        assert chunk.job_count == len(page)
        assert chunk.batch_count == ceil(len(page) / batch_size)
        assert chunk.done == (len(page) < limit)
        self.learn_what_was_planned(run, set(page))
        self.runs[key] = replace(
            run, cursor=page[-1] if page else run.cursor, state="DISPATCHING" if chunk.done else "PLANNING"
        )

    def learn_what_was_planned(self, run: ModelRun, fresh: set[UUID]) -> None:
        """The ledger chooses the ids of new jobs; the model says for which users they must be."""
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

    @precondition(lambda self: any(run.state in AT_WORK for run in self.runs.values()))
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
        assert run_ends.finish(self.connection, run.run_id, self.now) == finished
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
            assert [as_uuid(job_id) for job_id, _ in one.job_ids] == waiting
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
            self.broker.queue += [as_uuid(job_id) for one in claimed for job_id, _ in one.job_ids]
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

    @precondition(lambda self: self.broker.messages)
    @rule()
    def the_broker_loses_its_data(self) -> None:
        self.epoch = uuid4()
        self.broker.lose(-1)

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
        """Another worker gets its job; later rules may still use the first worker's claim."""
        held = [claimed for claimed in self.claims if self.holds(claimed)]
        job_id = held[pick % len(held)].job_id
        self.now += LEASE
        self.the_dead_are_found()
        self.the_tables_say_what_the_model_says()  # after each of the two moves
        self.claim(job_id)

    def claim(self, job_id: UUID) -> None:
        job = self.jobs[job_id]
        its_time_has_come = (
            job.not_before is None or job.not_before <= self.now or job.leased_until is not None
        )
        free = job.status == "PENDING" and its_time_has_come
        claimed = attempts.claim(self.connection, job_id, self.now, self.now + LEASE)
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
        assert attempts.finish(self.connection, claimed, end, None, self.now) == holds
        if holds:
            self.change(claimed.job_id, status=end.value, leased_until=None)

    @precondition(lambda self: self.claims)
    @rule(pick=picks, delay=seconds)
    def a_worker_puts_a_job_off(self, pick: int, delay: int) -> None:
        claimed = self.pick_claim(pick)
        holds = self.holds(claimed)
        at = self.now + timedelta(seconds=delay)
        assert attempts.put_off(self.connection, claimed, error_message=None, not_before=at) == holds
        if holds:
            self.change(claimed.job_id, status="PENDING", leased_until=None, not_before=at)

    @precondition(lambda self: self.claims)
    @rule(pick=picks)
    def a_heart_beats_for_a_job(self, pick: int) -> None:
        claimed = self.pick_claim(pick)
        holds = self.holds(claimed)
        until = self.now + LEASE
        renewal = jobs.extend_leases(self.connection, [claimed], until)
        assert (renewal.lost, renewal.held_up) == ([] if holds else [claimed], [])
        if holds:
            self.change(claimed.job_id, leased_until=until)
            self.note_heartbeat(claimed.job_id)

    # --- reconcile ----------------------------------------------------------------------------------

    @precondition(lambda self: self.expired())
    @rule()
    def the_dead_are_found(self) -> None:
        look = self.first_look()
        for page in look.pages:
            again = dead_workers.still_expired(self.connection, page)
            assert again is not None
            assert sorted(json.loads(again)) == sorted(json.loads(page))  # in no order
        self.judge(look)

    @precondition(lambda self: self.expired())
    @rule()
    def a_judge_looks(self) -> None:
        """Any other rule may come before it judges, such as a heartbeat that was held up."""
        self.looks.append(self.first_look())

    @precondition(lambda self: self.looks)
    @rule(pick=picks)
    def a_judge_looks_again(self, pick: int) -> None:
        self.look_again(self.looks[pick % len(self.looks)])

    @precondition(lambda self: self.looks)
    @rule(pick=picks)
    def a_judge_takes_jobs_away(self, pick: int) -> None:
        """However long ago it has looked."""
        self.judge(self.looks.pop(pick % len(self.looks)))

    @precondition(lambda self: any(self.holds(claimed) for claimed in self.claims))
    @rule(pick=picks, begins_before=st.integers(0, 2), steps_held_up=st.integers(0, 3))
    def a_heartbeat_comes_after_the_lease(self, pick: int, begins_before: int, steps_held_up: int) -> None:
        """It comes while a judge takes its three steps, and waits for some of them before it commits."""
        held = [claimed for claimed in self.claims if self.holds(claimed)]
        claimed = held[pick % len(held)]
        self.now += LEASE
        until = self.now + LEASE
        look = Look([], {}, set())
        locked: set[UUID] = set()
        with ExitStack() as heartbeat:
            for step in range(4):
                if step == begins_before:
                    connection = heartbeat.enter_context(self.database.transaction())
                    renewal = jobs.extend_leases(connection, [claimed], until)
                    assert (renewal.lost, renewal.held_up) == ([], [])
                    locked.add(claimed.job_id)
                if step == min(begins_before + steps_held_up, 3):
                    heartbeat.close()
                    locked.clear()
                    self.change(claimed.job_id, leased_until=until)
                    self.note_heartbeat(claimed.job_id)
                if step == 0:
                    look = self.first_look()
                elif step == 1:
                    self.look_again(look, locked)
                elif step == 2:
                    self.judge(look, locked)
        assert self.holds(claimed)

    def first_look(self) -> Look:
        seen = self.expired()
        pages = dead_workers.expired(self.connection, self.now)
        assert len(pages) == min(1, len(seen))
        return Look(pages, seen, set())

    def look_again(self, look: Look, locked: Collection[UUID] = ()) -> None:
        pages = [dead_workers.still_expired(self.connection, page) for page in look.pages]
        look.pages = [page for page in pages if page is not None]
        look.seen = self.unchanged(look, locked)
        assert bool(look.pages) == bool(look.seen)

    def judge(self, look: Look, locked: Collection[UUID] = ()) -> None:
        """Takes away what has not changed since the look, and nothing else."""
        dead = self.unchanged(look, locked)
        assert dead.keys().isdisjoint(look.beaten)
        over = {job_id for job_id, job in dead.items() if job.attempt >= MAX_ATTEMPTS}
        bounds: dict[str, Any] = {"now": self.now, "max_attempts": MAX_ATTEMPTS}
        given_up = [dead_workers.give_up(self.connection, page, **bounds) for page in look.pages]
        assert sum(given_up) == len(over)
        rescued = [dead_workers.rescue(self.connection, page, **bounds) for page in look.pages]
        assert sum(rescued) == len(dead) - len(over)
        for job_id in dead:
            if job_id in over:
                self.change(job_id, status="FAILED", leased_until=None)
            else:
                self.change(job_id, status="PENDING", leased_until=None, not_before=self.now)

    def expired(self) -> dict[UUID, ModelJob]:
        return {
            job_id: job
            for job_id, job in self.jobs.items()
            if job.status == "RUNNING" and job.leased_until is not None and job.leased_until <= self.now
        }

    def unchanged(self, look: Look, locked: Collection[UUID]) -> dict[UUID, ModelJob]:
        return {
            job_id: job
            for job_id, job in look.seen.items()
            if self.jobs[job_id] == job and job_id not in locked
        }

    def note_heartbeat(self, job_id: UUID) -> None:
        """From now on no judge that has looked may take the job away."""
        for look in self.looks:
            look.beaten.add(job_id)

    @precondition(lambda self: any(job.not_before for job in self.jobs.values()))
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
        self.broker.queue += [as_uuid(due.job_id) for due in taken]
        rescue.mark_published(self.connection, [(due, epoch) for due in taken], until, self.now)
        for due in taken:
            job = self.jobs[as_uuid(due.job_id)]
            if job.status == "PENDING" and job.leased_until == until:
                self.change(
                    as_uuid(due.job_id),
                    leased_until=None,
                    not_before=None,
                    republished_in=epoch,
                    republished_at=self.now,
                )

    @precondition(lambda self: self.runs)
    @rule(pick=picks, age=seconds, limit=st.integers(1, 3))
    def messages_are_found_to_be_gone(self, pick: int, age: int, limit: int) -> None:
        """Those that were published at least so long ago, in pages."""
        _, run = self.pick_run(pick)
        cutoff = self.now - timedelta(seconds=age)
        batch_of = {job: batch for batch in self.batches.values() for job in batch.jobs}
        gone = set()
        for job_id, job in self.jobs.items():
            by_its_batch = self.waits_by_its_batch(job)
            published = batch_of[job_id].enqueued_at if by_its_batch else job.republished_at
            if job.run_id == run.run_id and self.waits(job) and published and published <= cutoff:
                gone.add(job_id)
        marked: set[UUID] = set()
        after = None
        while page := waiting_jobs.page(
            self.connection, run.run_id, cutoff=cutoff, after=after, limit=limit
        ):
            assert len(page) <= limit
            ids = {job.job_id for job in page}
            assert not ids & marked
            marked |= ids
            cutoffs = [cutoff] * len(page)
            assert waiting_jobs.still_waiting(self.connection, run.run_id, page, cutoffs) == ids
            assert waiting_jobs.make_due(self.connection, run.run_id, page, cutoffs, self.now) == len(page)
            assert waiting_jobs.still_waiting(self.connection, run.run_id, page, cutoffs) == set()
            after = page[-1]
        assert marked == gone
        for job_id in gone:
            self.change(job_id, not_before=self.now)

    # --- messages -----------------------------------------------------------------------------------

    @precondition(lambda self: self.broker.messages)
    @rule(number=numbers, then=fates, pick=picks)
    def workers_take_messages(self, number: int, then: str, pick: int) -> None:
        """What a dead worker held comes next, and what a worker rejects comes last."""
        for probe in self.broker.take(number):
            probes.note_arrival(self.connection, probe, self.now)
        taken = self.broker.with_workers
        if then == "hold" or not taken:
            return
        message = taken[pick % len(taken)]
        if then == "claim the job":
            taken.remove(message)
            self.claim(message)
        else:
            self.broker.give_back(message, first=then == "die")

    @precondition(lambda self: self.broker.messages)
    @rule(intervals=st.lists(st.tuples(numbers, fates, picks), min_size=3, max_size=7))
    def passes_go_on_while_workers_take_messages(self, intervals: list[tuple[int, str, int]]) -> None:
        for number, then, pick in intervals:
            self.now += INTERVAL
            self.workers_take_messages(number, then, pick)
            self.a_pass_looks_for_lost_messages()

    @precondition(lambda self: self.broker.messages)
    @rule(chosen=picks, goes_on=st.booleans())
    def some_messages_are_lost(self, chosen: int, goes_on: bool) -> None:
        """As by a restart from older data: the broker epoch stays."""
        self.broker.lose(chosen)
        if goes_on:
            self.what_is_lost_becomes_due_within_the_bound()

    @precondition(lambda self: self.jobs)
    @rule()
    def a_pass_looks_for_lost_messages(self) -> None:
        """It takes no message for lost that is there, or that was published lately."""
        found = lost_messages(self.context)
        due = {
            job_id
            for job_id, not_before in self.rows("SELECT job_id, not_before FROM sync_jobs")
            if not_before != self.jobs[job_id].not_before
        }
        assert found == len(due)
        assert due <= self.lost().keys()
        for job_id in due:
            assert self.lost()[job_id] <= self.now - GRACE
        for job_id in due:
            self.change(job_id, not_before=self.now)

    def what_is_lost_becomes_due_within_the_bound(self) -> None:
        """While workers take messages and passes go on. No message that they hold comes to a claim."""
        lost = self.lost().keys()
        for _ in range(FOUND_WITHIN_PASSES):
            self.now += INTERVAL
            self.workers_take_messages(ALL, "hold", 0)
            self.a_pass_looks_for_lost_messages()
            if lost.isdisjoint(self.lost()):
                return
        raise AssertionError(f"still waiting: {lost & self.lost().keys()}")

    def lost(self) -> dict[UUID, datetime]:
        """The waiting jobs whose message is nowhere, and when it was published."""
        batch_of = {job: batch for batch in self.batches.values() for job in batch.jobs}
        waiting = {
            job_id: batch_of[job_id].enqueued_at if self.waits_by_its_batch(job) else job.republished_at
            for job_id, job in self.jobs.items()
            if self.waits(job) and job_id not in self.broker.messages
        }
        return {job_id: published for job_id, published in waiting.items() if published is not None}

    # --- what always holds --------------------------------------------------------------------------

    @invariant()
    def the_tables_say_what_the_model_says(self) -> None:
        self.steps.append(1)
        found = {
            job_id: ModelJob(*rest)
            for job_id, *rest in self.rows(
                "SELECT job_id, run_id, user_id, status, attempt, leased_until, not_before, republished_in,"
                " republished_at"
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
        """Checks the step without the model: only moves that docs/states.md allows."""
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
        """Each job that is not final has something in its row or its batch by which a rule finds it."""
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
        """Picks by run and user, since the ids themselves differ from one replay to the next.

        In half of the cases it picks a job that was claimed before, so that jobs go through many states.
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
        """Picks any claim; in two of three cases one whose job another worker has now, if there is one."""
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
        """Whether it waits for its batch's message, and not for one that was sent for it alone."""
        return self.waits(job) and job.republished_in is None


def as_uuid(value: UUID | str) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)


@pytest.fixture
def context(deployed: None) -> Iterator[TickContext]:
    with context_at(
        lambda: NOON,
        reconcile_interval_seconds=int(INTERVAL.total_seconds()),
        message_grace_seconds=int(GRACE.total_seconds()),
    ) as context:
        yield context


@pytest.mark.timeout(400)  # Hypothesis looks for the shortest counterexample, if there is one
@pytest.mark.parametrize("examples", [9, pytest.param(36, marks=pytest.mark.slow)])
def test_the_ledger_does_what_the_model_says(examples: int, context: TickContext, ledger: Ledger) -> None:
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
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert len(steps) >= examples * STEPS / 2  # Hypothesis makes some examples shorter
