"""Workers that live but cannot show it: a lock or an outage holds up their heartbeats. Real clocks."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from socket import SHUT_WR, socket
from threading import Event, Thread
from uuid import UUID

import psycopg
import pytest

from tests.maintenance.situations import enqueue
from tests.support.contexts import context_at
from tests.support.ledger import Ledger
from tests.support.proxy import Proxy
from tests.support.tcp_proxy import Link, TcpProxy
from tests.support.waiting import wait_until
from worker_scheduler.clock import utc_now
from worker_scheduler.errors import SchedulerError
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.leases import Lease
from worker_scheduler.ledger.database import Database
from worker_scheduler.maintenance import reconciler
from worker_scheduler.wiring import process_worker
from worker_scheduler.worker import SyncJob
from worker_scheduler.worker.claims import Worker

pytestmark = pytest.mark.slow

LEASE = Lease(1.0)
HELD_SECONDS = 2.0
"""How long a lock or an outage lasts: longer than a lease. The tests sleep for it: it is the fault."""
JOBS = 6
RUNNING = "SELECT count(*) = %s FROM sync_jobs WHERE status = 'RUNNING'"


@pytest.fixture
def context(deployed: None) -> Iterator[TickContext]:
    with context_at(utc_now, lease_seconds=LEASE.seconds, message_grace_seconds=3600.0) as context:
        yield replace(context, pause=time.sleep)


def database_of(url: str, size: int = 2) -> Database:
    return Database(url.replace("postgresql:", "postgresql+psycopg:", 1), size=size, repetitive=True)


@dataclass
class Team:
    """Six jobs that run in the threads of a worker until they are told to end, and who began which."""

    worker: Worker
    began: Counter[UUID] = field(default_factory=Counter)
    go: Event = field(default_factory=Event)

    def handle(self, job: SyncJob) -> None:
        self.began[job.job_id] += 1
        assert self.go.wait(60)


@contextmanager
def team(context: TickContext, ledger: Ledger, url: str) -> Iterator[Team]:
    """Runs six jobs; at the end each must have been run once, by its first attempt."""
    job_ids = enqueue(context, ledger, JOBS)
    jobs_of, heartbeats = database_of(url, size=JOBS), database_of(url, size=1)
    at_work = Team(Worker(jobs_of, utc_now, LEASE, 3, heartbeat_database=heartbeats))
    with ThreadPoolExecutor(JOBS) as threads:
        ends = [threads.submit(at_work.worker.run, job_id, at_work.handle) for job_id in job_ids]
        try:
            wait_until(lambda: ledger.value(RUNNING, JOBS), 30, "six running jobs")
            yield at_work
        finally:
            at_work.go.set()
        for end in ends:
            end.result(60)
    assert at_work.began == Counter(job_ids)
    assert [(job["status"], job["attempt"]) for job in ledger.jobs()] == [("COMPLETED", 1)] * JOBS
    for database in (jobs_of, heartbeats):
        database.dispose()


@contextmanager
def reconciling(context: TickContext) -> Iterator[list[int]]:
    """Makes pass after pass while the block runs; yields how many jobs each took from dead workers."""
    taken: list[int] = []
    stop = Event()

    def passes() -> None:
        while not stop.is_set():
            try:
                taken.append(reconciler.reconcile(context).put_right.get("dead_workers", 0))
            except SchedulerError:  # an outage, before the first rule
                stop.wait(0.05)

    with ExitStack() as stack:
        threads = [Thread(target=passes) for _ in range(2)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join, 60)
        stack.callback(stop.set)
        yield taken


@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "SHARE"])
def test_a_table_that_is_locked_for_longer_than_a_lease_kills_no_worker(
    mode: str, context: TickContext, ledger: Ledger
) -> None:
    """Behind the second lock a pass can read what it cannot write."""
    with team(context, ledger, ledger.url), reconciling(context) as taken:
        with psycopg.connect(ledger.url) as other:
            other.execute(f"LOCK TABLE sync_jobs IN {mode} MODE".encode())
            time.sleep(HELD_SECONDS)  # the fault is this time
        passes = len(taken)
        wait_until(lambda: len(taken) >= passes + 6, 30, "six passes after that")
        assert not any(taken)


def test_a_locked_row_takes_no_job_away_from_its_worker_or_from_another(
    context: TickContext, ledger: Ledger
) -> None:
    with team(context, ledger, ledger.url) as at_work, reconciling(context) as taken:
        stuck = next(iter(at_work.began))
        with psycopg.connect(ledger.url) as other:
            other.execute("SELECT FROM sync_jobs WHERE job_id = %s FOR UPDATE", [stuck])
            wait_until(lambda: not _is_leased(ledger, stuck), 30, "the end of its lease")
            time.sleep(LEASE.seconds)  # in which passes could take the others
            others = [job for job in ledger.jobs() if job["job_id"] != stuck]
            assert all(job["leased_until"] > utc_now() for job in others)
        wait_until(lambda: _is_leased(ledger, stuck), LEASE.heartbeat_seconds, "its next heartbeat")
        assert not any(taken)


def _is_leased(ledger: Ledger, job_id: UUID) -> bool:
    return bool(ledger.job(job_id)["leased_until"] > utc_now())


def test_jobs_that_cannot_end_take_no_connection_from_the_heartbeat(
    context: TickContext, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them waits for a row, and holds a connection; the heartbeat also asks for the time."""
    job_ids = enqueue(context, ledger, 4)
    monkeypatch.setenv("LEASE_SECONDS", str(LEASE.seconds))
    worker = process_worker()
    go = Event()
    with ThreadPoolExecutor(4) as threads, psycopg.connect(ledger.url) as other:
        for job_id in job_ids[:2]:
            threads.submit(worker.run, job_id, lambda _: go.wait(60))
        for job_id in job_ids[2:]:
            threads.submit(worker.run, job_id, lambda _: time.sleep(1))  # until the rows are locked
        wait_until(lambda: ledger.value(RUNNING, 4), 30, "four running jobs")
        other.execute("SELECT FROM sync_jobs WHERE job_id = ANY(%s) FOR UPDATE", [job_ids[2:]])
        time.sleep(1 + 2 * LEASE.seconds)  # both jobs have ended and wait; the leases would run out
        assert all(_is_leased(ledger, job_id) for job_id in job_ids[:2])
        other.rollback()
        go.set()
    assert {job["status"] for job in ledger.jobs()} == {"COMPLETED"}


def test_a_job_whose_end_waits_for_postgres_is_not_run_again(context: TickContext, ledger: Ledger) -> None:
    """The worker repeats the end at ever longer intervals; its heart goes on beating."""
    (job_id,) = enqueue(context, ledger, 1)
    with Proxy(ledger.url) as away:
        own = database_of(ledger.url, 1)
        worker = Worker(database_of(away.url), utc_now, LEASE, 3, heartbeat_database=own)
        with ThreadPoolExecutor(1) as thread, reconciling(context) as taken:
            ending = Event()
            end = thread.submit(worker.run, job_id, lambda _: ending.wait(60))
            wait_until(lambda: ledger.value(RUNNING, 1), 30, "the running job")
            away.cut_after = 0
            away.cut()
            ending.set()
            time.sleep(1.2 * LEASE.seconds)  # the outage: without heartbeats the lease would run out
            is_leased = _is_leased(ledger, job_id)
            away.heal()
            end.result(60)
            assert is_leased
            assert not any(taken)
    job = ledger.job(job_id)
    assert (job["status"], job["attempt"]) == ("COMPLETED", 1)


class Faucet(TcpProxy):
    """A proxy that can stop to carry anything, as a network that is gone."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.flowing = Event()
        self.flowing.set()

    def link(self, client: socket, server: socket) -> Link:
        return _FaucetLink(client, server, self.flowing)


class _FaucetLink(Link):
    def __init__(self, client: socket, server: socket, flowing: Event) -> None:
        super().__init__(client, server)
        self._flowing = flowing

    def forward(self) -> None:
        while data := self.client.recv(65536):
            self._flowing.wait()
            self.server.sendall(data)

    def backward(self) -> None:
        while data := self.server.recv(65536):
            self._flowing.wait()
            self.client.sendall(data)
        self.client.shutdown(SHUT_WR)


def test_a_postgres_that_does_not_answer_for_longer_than_a_lease_kills_no_worker(
    context: TickContext, ledger: Ledger
) -> None:
    with (
        Faucet(ledger.url) as away,
        context_by(context, away.url) as behind,
        team(context, ledger, away.url),
        reconciling(behind) as taken,
    ):
        away.flowing.clear()
        time.sleep(HELD_SECONDS)
        away.flowing.set()
        passes = len(taken)
        wait_until(lambda: len(taken) >= passes + 6, 30, "six passes after that")
        assert not any(taken)


def test_a_postgres_that_refuses_connections_for_longer_than_a_lease_kills_no_worker(
    context: TickContext, ledger: Ledger
) -> None:
    with (
        Proxy(ledger.url) as away,
        context_by(context, away.url) as behind,
        team(context, ledger, away.url),
        reconciling(behind) as taken,
    ):
        away.cut_after = 0
        away.cut()
        time.sleep(HELD_SECONDS)
        away.heal()
        passes = len(taken)
        wait_until(lambda: len(taken) >= passes + 6, 30, "six passes after that")
        assert not any(taken)


@contextmanager
def context_by(context: TickContext, url: str) -> Iterator[TickContext]:
    """The context with another way to Postgres."""
    database = Database(url.replace("postgresql:", "postgresql+psycopg:", 1), size=5)
    try:
        yield replace(context, database=database)
    finally:
        database.dispose()


def test_the_job_of_a_dead_worker_waits_again_within_the_bound(
    context: TickContext, ledger: Ledger
) -> None:
    """A lease, half a lease, and the pass that finds it; and others that live keep theirs."""
    with team(context, ledger, ledger.url):
        dead = claimed_by_nobody(context, ledger)
        with reconciling(context) as taken:
            began = time.monotonic()
            wait_until(lambda: ledger.job(dead)["status"] == "PENDING", 30, "the rescue")
            assert time.monotonic() - began < 1.5 * LEASE.seconds + LEASE.seconds
            assert sum(taken) <= 1  # the pass may not have ended yet
        ledger.execute(f"DELETE FROM sync_jobs WHERE job_id = '{dead}'")


def claimed_by_nobody(context: TickContext, ledger: Ledger) -> UUID:
    """Adds a running job whose worker has just died."""
    row = ledger.row(
        "INSERT INTO sync_jobs (job_id, user_id, status, triggered_by, partition_key, attempt,"
        " leased_until, run_id) SELECT gen_random_uuid(), gen_random_uuid(), 'RUNNING', triggered_by,"
        " partition_key, 1, now() + interval '1 second', run_id FROM sync_jobs LIMIT 1 RETURNING job_id"
    )
    job_id: UUID = row["job_id"]
    return job_id


# --- how the rule looks ---------------------------------------------------------------------------------


def dead_jobs(context: TickContext, ledger: Ledger, number: int) -> None:
    enqueue(context, ledger, number)
    ledger.execute(
        "UPDATE sync_jobs SET status = 'RUNNING', attempt = 1, leased_until = now() - interval '1 hour'"
    )


def test_nothing_waits_while_no_lease_has_run_out(context: TickContext, ledger: Ledger) -> None:
    enqueue(context, ledger, 1)
    pauses: list[float] = []
    assert reconciler.dead_workers(replace(context, pause=pauses.append)) == 0
    assert pauses == []


def test_the_looks_are_half_a_lease_apart(context: TickContext, ledger: Ledger) -> None:
    dead_jobs(context, ledger, 1)
    pauses: list[float] = []
    assert reconciler.dead_workers(replace(context, pause=pauses.append)) == 1
    assert sum(pauses) == pytest.approx(LEASE.seconds / 2)


def watching(context: TickContext, *steps: Callable[[], object]) -> TickContext:
    """A context in which something happens in each pause of the rule, as long as there are steps."""
    left = list(steps)

    def pause(seconds: float) -> None:
        if left:
            left.pop(0)()
        time.sleep(seconds)

    return replace(context, pause=pause)


def test_a_heartbeat_between_the_looks_saves_its_job_alone(context: TickContext, ledger: Ledger) -> None:
    """Also one of a worker whose clock is an hour behind: the lease has changed."""
    dead_jobs(context, ledger, 3)
    alive = ledger.jobs()[0]["job_id"]

    def beat() -> None:
        ledger.execute(
            "UPDATE sync_jobs SET leased_until = leased_until + interval '1 second'"
            f" WHERE job_id = '{alive}'"
        )

    assert reconciler.dead_workers(watching(context, beat)) == 2
    assert ledger.job(alive)["status"] == "RUNNING"


def test_a_pass_that_was_held_up_between_its_looks_starts_over(
    context: TickContext, ledger: Ledger
) -> None:
    """What was held up was perhaps a heartbeat, too."""
    dead_jobs(context, ledger, 2)
    pauses: list[float] = []

    def held_up() -> None:
        time.sleep(LEASE.seconds)  # a look that takes too long to have seen heartbeats

    def note(seconds: float) -> None:
        pauses.append(seconds)
        watched.pause(seconds)

    watched = watching(context, lambda: None, held_up)
    assert reconciler.dead_workers(replace(context, pause=note)) == 2
    assert len(pauses) == 2 + 4


def test_a_postgres_that_is_always_too_slow_leaves_the_judgement_to_the_next_pass(
    context: TickContext,
    ledger: Ledger,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dead_jobs(context, ledger, 2)
    slow = watching(context, *[lambda: time.sleep(0.5)] * 100)
    assert reconciler.dead_workers(slow) == 0
    said = capsys.readouterr().out + caplog.text
    assert "dead workers not judged, Postgres was too slow to show a heartbeat" in said
    assert reconciler.dead_workers(context) == 2


def test_many_dead_jobs_are_taken_in_pages(context: TickContext, ledger: Ledger) -> None:
    dead_jobs(context, ledger, 2500)
    ledger.execute(
        "UPDATE sync_jobs SET attempt = 3 WHERE job_id IN (SELECT job_id FROM sync_jobs LIMIT 700)"
    )
    # On a busy machine a look at three pages may come too late for a lease of a second: then another pass.
    taken = wait_until(lambda: reconciler.dead_workers(context), 30, "a pass that saw the whole time")
    assert taken == 2500
    assert ledger.states() == {"PENDING": 1800, "FAILED": 700}


def test_other_rules_do_not_wait_for_the_judgement(
    context: TickContext, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead_jobs(context, ledger, 1)
    ended: list[str] = []
    judging = Event()

    def pause(seconds: float) -> None:
        judging.set()
        wait_until(lambda: "finished" in ended, 30, "the other rules")

    def last_rule(_: TickContext) -> int:
        assert judging.wait(30)
        ended.append("finished")
        return 0

    monkeypatch.setattr(reconciler, "RULES", (reconciler.dead_workers, last_rule))
    assert reconciler.reconcile(replace(context, pause=pause)).put_right["dead_workers"] == 1


def test_a_pass_that_is_interrupted_does_not_wait_for_the_judgement(
    context: TickContext, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead_jobs(context, ledger, 1)
    pauses: list[float] = []
    interrupted = Event()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        assert interrupted.wait(30)

    def interrupt(_: TickContext) -> int:
        wait_until(lambda: pauses, 30, "the first pause")
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(reconciler, "RULES", (reconciler.dead_workers, interrupt))
    with pytest.raises(KeyboardInterrupt):
        reconciler.reconcile(replace(context, pause=pause))
    assert len(pauses) <= 2
    assert ledger.states() == {"RUNNING": 1}
