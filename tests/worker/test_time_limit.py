"""JOB_TIMEOUT_SECONDS: how the code of a job is interrupted, and how the job ends."""

import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from types import FrameType
from uuid import UUID

import psycopg
import pytest

from tests.support import attempts
from tests.support.contexts import NOON
from tests.support.own_worker import Deployment
from tests.support.waiting import wait_until
from worker_scheduler import wiring
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.leases import Lease
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.worker import JobTimeout, RetryLater, SkipJob, SyncJob
from worker_scheduler.worker.endings import Ending
from worker_scheduler.worker.lost_processes import LostProcesses
from worker_scheduler.worker.overdue import RunningAttempts
from worker_scheduler.worker.pool_memory import Held, PoolMemory
from worker_scheduler.worker.time_limit import Alarm, NoInterruption, call

# --- the alarm, which interrupts the main thread -----------------------------------------------------


def test_a_function_that_takes_too_long_is_interrupted() -> None:
    raised, timed_out = call(lambda: time.sleep(60), Alarm(0.05))
    assert isinstance(raised, JobTimeout)
    assert timed_out


def test_a_function_that_ends_in_time_is_not() -> None:
    assert call(lambda: None, Alarm(0.05)) == (None, False)
    assert call(lambda: None, NoInterruption()) == (None, False)
    alarm = Alarm(60)
    call(lambda: None, alarm)
    alarm._ring(signal.SIGALRM, None)  # a signal that had come, but was not handled yet
    assert not alarm.raised


def test_what_the_function_raises_is_returned() -> None:
    error = LookupError()

    def fail() -> None:
        raise error

    assert call(fail, Alarm(60)) == (error, False)


def test_who_swallows_the_interruption_has_timed_out_all_the_same() -> None:
    def swallow() -> None:
        try:
            time.sleep(60)
        except JobTimeout:
            time.sleep(0.1)  # it is raised once only

    assert call(swallow, Alarm(0.05)) == (None, True)


def test_the_process_has_its_own_handler_and_timer_again() -> None:
    rung: list[int] = []

    def ring(number: int, frame: FrameType | None) -> None:
        rung.append(number)

    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        assert call(lambda: time.sleep(60), Alarm(0.05)).timed_out
        assert rung == []
        wait_until(lambda: rung, 10, "the earlier timer")
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_nothing_escapes_at_whatever_moment_the_alarm_comes() -> None:
    """The function ends at about the moment of the alarm; the loop is as short as `call` itself."""
    seen: set[bool] = set()
    for _ in range(2000):
        seconds = random.uniform(0.00002, 0.0004)
        ended = time.perf_counter() + random.uniform(0.00002, 0.0004)
        raised, timed_out = call(lambda end=ended: _spin(end), Alarm(seconds))  # type: ignore[misc]
        assert (raised is not None) == timed_out
        seen.add(timed_out)
    assert seen == {True, False}


def _spin(end: float) -> None:
    while time.perf_counter() < end:
        pass


# --- a process of a prefork pool, played by the test's process ----------------------------------------


@pytest.fixture
def pooled(deployment: Deployment) -> Deployment:
    """Its worker believes that it is in a process of a pool, where jobs are interrupted after 1 s."""
    memory = PoolMemory()
    memory.enter(0)
    return replace(deployment, worker=replace(deployment.worker, timeout_seconds=1.0, memory=memory))


def claim(deployment: Deployment, job_id: UUID) -> ClaimedJob:
    with deployment.context.database.autocommit() as connection:
        claimed = attempts.claim(connection, job_id, deployment.clock(), deployment.clock())
    assert claimed is not None
    return claimed


def out_of_time() -> None:
    time.sleep(60)


def raising_late(error: BaseException | None) -> Callable[[SyncJob], None]:
    def handle(job: SyncJob) -> None:
        try:
            out_of_time()
        except JobTimeout:
            if error is not None:
                raise error from None

    return handle


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (JobTimeout(), "FAILED", "timed out after 1 s"),
        (None, "FAILED", "timed out after 1 s"),
        (RuntimeError("the clean-up failed"), "FAILED", "timed out after 1 s"),
        (SkipJob("no longer wanted"), "SKIPPED", "no longer wanted"),
        (RetryLater("too slow", delay=5), "PENDING", "too slow"),
    ],
    ids=["raises it again", "returns", "fails", "skips", "asks for a retry"],
)
def test_what_a_handler_makes_of_its_time_out(
    error: BaseException | None, status: str, message: str, pooled: Deployment
) -> None:
    (job_id,) = pooled.jobs(1)
    ending = pooled.worker.run(job_id, raising_late(error))
    row = pooled.ledger.job(job_id)
    assert (row["status"], row["error_message"]) == (status, message)
    assert ending == (status, message)


def test_a_job_that_timed_out_is_tried_again_if_the_setting_says_so(pooled: Deployment) -> None:
    (job_id,) = pooled.jobs(1)
    pooled.retrying("JobTimeout").worker.run(job_id, raising_late(JobTimeout()))
    row = pooled.ledger.job(job_id)
    assert (row["status"], row["error_message"]) == ("PENDING", "timed out after 1 s")


def test_the_attempt_is_noted_while_it_runs_and_its_deadline_while_the_handler_does(
    pooled: Deployment,
) -> None:
    (job_id,) = pooled.jobs(1)
    memory = pooled.worker.memory
    assert memory is not None
    pid = threading.get_native_id()  # the main thread's is the process'
    noted = []

    def handle(job: SyncJob) -> None:
        noted.append(memory.held_by(pid))

    pooled.worker.run(job_id, handle)
    (held,) = noted
    assert held is not None
    assert (held.job_id, held.attempt) == (job_id, 1)
    assert 0 < held.deadline - time.monotonic() < 1.0
    assert memory.held_by(pid) is None


def test_the_note_stays_if_the_process_ends_before_its_job_has(pooled: Deployment) -> None:
    """It is terminated while it records the end: the main process must find what it held."""
    (job_id,) = pooled.jobs(1)
    memory, pid = pooled.worker.memory, threading.get_native_id()
    assert memory is not None

    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(signal.SIGTERM - 256)

    handler = signal.signal(signal.SIGUSR2, terminate)
    try:
        with pytest.raises(SystemExit), ExitStack() as stack:

            def handle(job: SyncJob) -> None:
                stack.enter_context(pooled.ledger.locked("sync_jobs"))  # its end waits
                kill = (threading.get_ident(), signal.SIGUSR2)
                threading.Timer(0.5, signal.pthread_kill, kill).start()

            pooled.worker.run(job_id, handle)
    finally:
        signal.signal(signal.SIGUSR2, handler)
    held = memory.held_by(pid)
    assert held is not None
    assert (held.job_id, held.attempt, held.deadline) == (job_id, 1, 0.0)


def test_the_main_process_does_not_wait_for_a_locked_row(pooled: Deployment) -> None:
    """It would replace no other process while it waits."""
    (job_id,) = pooled.jobs(1)
    memory, worker = PoolMemory(), pooled.worker
    processes = LostProcesses(memory, worker.database, worker.endings, 1.0)
    held = Held(1, claim(pooled, job_id).attempt, 1.0, job_id)
    with psycopg.connect(pooled.ledger.url) as other:
        other.execute("SELECT FROM sync_jobs WHERE job_id = %s FOR UPDATE", [job_id])
        with pytest.raises(StoreUnavailable, match="has locked the job's row"):
            processes.time_out(held)
    assert processes.time_out(held) == (JobStatus.FAILED, "timed out after 1 s")


# --- code that cannot be interrupted: threads, solo, another code base's task ---------------------------


@pytest.mark.parametrize(("value", "seconds"), [("", 3600.0), ("0", None), ("1.5", 1.5)])
def test_the_setting_reaches_the_worker(
    value: str, seconds: float | None, deployed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_TIMEOUT_SECONDS", value)
    assert wiring.process_worker().timeout_seconds == seconds


@pytest.fixture
def threaded(deployment: Deployment) -> Deployment:
    """Its worker cannot interrupt jobs, and ends them in the ledger after 1 s."""
    return replace(deployment, worker=replace(deployment.worker, timeout_seconds=1.0))


def test_a_job_in_a_thread_ends_in_the_ledger_while_its_code_goes_on(
    threaded: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    (job_id,) = threaded.jobs(1)
    worker = replace(threaded.worker, lease=Lease(1.0))

    def handle(job: SyncJob) -> None:
        wait_until(lambda: threaded.ledger.job(job_id)["status"] == "FAILED", 30, "the end of the job")
        time.sleep(1)  # for heartbeats that would still come
        raise RuntimeError("too late to matter")

    assert worker.run(job_id, handle) == (JobStatus.FAILED, "timed out after 1 s")
    row = threaded.ledger.job(job_id)
    assert (row["status"], row["error_message"]) == ("FAILED", "timed out after 1 s")
    (line,) = [line for line in caplog.messages if "still holds a thread" in line]
    for named in (str(job_id), str(row["user_id"]), row["github_login"], row["partition_key"]):
        assert named in line
    assert "lease lost" not in caplog.text


def test_the_body_of_a_claim_has_a_limit_too(threaded: Deployment) -> None:
    (job_id,) = threaded.jobs(1)
    with pytest.raises(LookupError), threaded.worker.claim(job_id) as job:
        assert job is not None
        wait_until(lambda: threaded.ledger.job(job_id)["status"] == "FAILED", 30, "the end of the job")
        raise LookupError("goes on to Celery")
    assert threaded.ledger.job(job_id)["error_message"] == "timed out after 1 s"


def test_a_limit_that_cannot_end_its_job_tries_again(threaded: Deployment) -> None:
    """Postgres was away. The heartbeats would keep the job RUNNING for as long as its code goes on."""
    (job_id,) = threaded.jobs(1)
    tries: list[ClaimedJob] = []

    def end(job: ClaimedJob) -> Ending | None:
        tries.append(job)
        if len(tries) == 1:
            raise StoreUnavailable("Postgres is away")
        return Ending(JobStatus.FAILED, "timed out")

    running = RunningAttempts(end, again_seconds=0.1)
    with running.keep(claim(threaded, job_id), 0.0) as attempt:
        wait_until(lambda: len(tries) == 2, 30, "a second try")
        assert not attempt.take()
        assert attempt.ended_elsewhere() == (JobStatus.FAILED, "timed out")
        time.sleep(1)
    assert len(tries) == 2


def test_a_locked_row_holds_up_no_other_limit(
    threaded: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    locked_job, other_job = threaded.jobs(2)
    began, go = threading.Event(), threading.Event()

    def handle(job: SyncJob) -> None:
        began.set()
        assert go.wait(60)

    def status_of(job_id: UUID) -> str:
        return str(threaded.ledger.job(job_id)["status"])

    with ThreadPoolExecutor(2) as threads, psycopg.connect(threaded.ledger.url) as other:
        try:
            first = threads.submit(threaded.worker.run, locked_job, handle)
            assert began.wait(30)
            other.execute("SELECT FROM sync_jobs WHERE job_id = %s FOR UPDATE", [locked_job])
            second = threads.submit(threaded.worker.run, other_job, handle)
            wait_until(lambda: status_of(other_job) == "FAILED", 30, "the end of the other job")
            assert status_of(locked_job) == "RUNNING"
            other.rollback()
            wait_until(lambda: status_of(locked_job) == "FAILED", 30, "the end of the job")
        finally:
            other.rollback()
            go.set()
        assert first.result(60) == second.result(60) == (JobStatus.FAILED, "timed out after 1 s")
    assert caplog.text.count("timed-out job not ended") == 1


def test_no_second_attempt_begins_beside_the_first(
    threaded: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    threaded = threaded.retrying("JobTimeout")
    (job_id,) = threaded.jobs(1)
    go, calls = threading.Event(), []

    def handle(job: SyncJob) -> None:
        calls.append(job.attempt)
        assert go.wait(60)

    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(threaded.worker.run, job_id, handle)
        try:
            wait_until(lambda: threaded.ledger.job(job_id)["status"] == "PENDING", 30, "a PENDING job")
            threaded.ledger.execute("UPDATE sync_jobs SET not_before = NULL")
            assert threaded.worker.run(job_id, handle) is None
            row = threaded.ledger.job(job_id)
            assert (row["status"], row["attempt"], row["leased_until"]) == ("PENDING", 1, None)
            assert row["not_before"] == NOON + timedelta(minutes=1)
            assert "an earlier attempt still runs here" in caplog.text
        finally:
            go.set()
        assert first.result(60) == (JobStatus.PENDING, "timed out after 1 s")
    assert threaded.ledger.job(job_id) == row  # the late end changed nothing
    threaded.ledger.execute("UPDATE sync_jobs SET not_before = NULL")
    assert threaded.worker.run(job_id, lambda job: calls.append(job.attempt)) == ("COMPLETED", None)
    assert calls == [1, 2]


@pytest.mark.slow
def test_of_an_end_and_a_limit_at_the_same_moment_exactly_one_wins(threaded: Deployment) -> None:
    job_ids = threaded.jobs(60)

    def handle(job: SyncJob) -> None:
        time.sleep(random.uniform(0.9, 1.6))  # the limit ends it between 1 s and 1.5 s

    with ThreadPoolExecutor(20) as threads:
        endings = list(threads.map(lambda job_id: threaded.worker.run(job_id, handle), job_ids))
    rows = [threaded.ledger.job(job_id) for job_id in job_ids]
    assert endings == [(row["status"], row["error_message"]) for row in rows]
    assert {ending.status for ending in endings if ending} == {JobStatus.COMPLETED, JobStatus.FAILED}


def test_the_end_of_a_job_that_is_being_recorded_is_not_overtaken(threaded: Deployment) -> None:
    """The handler has ended in time, and its end waits for a lock until the limit has passed."""
    (job_id,) = threaded.jobs(1)
    locked, go = threading.Event(), threading.Event()

    def hold_the_row() -> None:
        with threaded.ledger.locked("sync_jobs"):
            locked.set()
            go.wait(2.5)

    with ThreadPoolExecutor(1) as thread:

        def handle(job: SyncJob) -> None:
            thread.submit(hold_the_row)
            assert locked.wait(30)

        assert threaded.worker.run(job_id, handle) == (JobStatus.COMPLETED, None)
        go.set()
    assert threaded.ledger.job(job_id)["status"] == "COMPLETED"
