"""The worker's side of a job: it claims the job, calls the handler, and records how that ended."""

import re
import signal
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier, Event, Thread
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text

from tests.support.command_line import Outcome, as_process
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import celery, started, worker_of
from tests.support.site import KEY
from tests.support.users import make_users, user_id
from tests.support.waiting import wait_until
from worker_scheduler import wiring
from worker_scheduler.config import settings
from worker_scheduler.errors import ConfigurationError, StoreUnavailable
from worker_scheduler.wiring import process_worker
from worker_scheduler.worker import SkipJob, SyncJob, claim, patience
from worker_scheduler.worker.claimer import Claimer
from worker_scheduler.worker.endings import Endings
from worker_scheduler.worker.handler_check import check_handler

Scheduler = Callable[..., Outcome]
Handler = Callable[[SyncJob], object]
Run = Callable[[UUID, Handler], str]
ReadOnly = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def run(deployed: None, ledger: Ledger) -> Run:
    """Does a job as a worker would, with any function as its handler; returns its state then."""

    def call(job_id: UUID, handler: Handler) -> str:
        process_worker().run(job_id, handler)
        status: str = ledger.job(job_id)["status"]
        return status

    return call


def by_raising(job: SyncJob) -> None:
    raise RuntimeError("no such account")


def not_called(job: SyncJob) -> None:
    raise AssertionError("the handler was called")


@contextmanager
def raising(error: BaseException) -> Iterator[Handler]:
    def handle(job: SyncJob) -> None:
        raise error

    yield handle


def test_a_handler_that_returns_completes_the_job(run: Run, job_id: UUID, ledger: Ledger) -> None:
    seen: list[tuple[SyncJob, str]] = []
    before = datetime.now(UTC)

    def handle(job: SyncJob) -> object:
        seen.append((job, ledger.job(job_id)["status"]))
        return {"whatever": "it returns"}

    assert run(job_id, handle) == "COMPLETED"
    expected = SyncJob(
        job_id=job_id,
        user_id=user_id(1),
        github_login="user-1",
        partition_key=KEY,
        triggered_by="scheduler.backfill",
        backfill_days=30,
        attempt=1,
    )
    assert seen == [(expected, "RUNNING")]
    row = ledger.job(job_id)
    assert (row["status"], row["error_message"], row["attempt"]) == ("COMPLETED", None, 1)
    assert before <= row["started_at"] <= row["completed_at"]
    assert row["leased_until"] is None


def test_statements_are_prepared_but_behind_a_pooler(
    scheduler: Scheduler, run: Run, job_id: UUID, ledger: Ledger
) -> None:
    assert run(job_id, lambda job: None) == "COMPLETED"
    for _ in range(2):
        run(job_id, not_called)
    with psycopg.connect(ledger.url) as beside:
        direct = beside.execute("SELECT pg_backend_pid()").fetchone() == (beside.info.backend_pid,)
    with process_worker().database.autocommit() as connection:
        prepared = text(
            "SELECT statement FROM pg_prepared_statements WHERE statement LIKE '%UPDATE sync_jobs%'"
        )
        statements = connection.execute(prepared).scalars().all()
    assert (len(statements) > 0) == direct


def test_a_column_changes_its_type_while_a_worker_runs(
    scheduler: Scheduler, run: Run, ledger: Ledger, job_id: UUID
) -> None:
    make_users(ledger.url, 5)
    scheduler("backfill", "--backfill-days=30", f"--partition-key={KEY}")
    waiting = [job["job_id"] for job in ledger.jobs()]
    for one in waiting[:3]:
        assert run(one, lambda job: None) == "COMPLETED"
    ledger.execute("ALTER TABLE sync_jobs ALTER github_login TYPE varchar(300)")
    for one in waiting[3:]:
        assert run(one, lambda job: None) == "COMPLETED"
    assert [job["attempt"] for job in ledger.jobs()] == [1] * 5


def test_a_job_cannot_be_changed_by_its_handler(run: Run, job_id: UUID) -> None:
    def handle(job: SyncJob) -> None:
        job.attempt = 7  # type: ignore[misc]

    assert run(job_id, handle) == "FAILED"


def test_skip_job_skips_with_its_reason(run: Run, job_id: UUID, ledger: Ledger) -> None:
    with raising(SkipJob("has no repositories")) as handle:
        assert run(job_id, handle) == "SKIPPED"
    row = ledger.job(job_id)
    assert (row["status"], row["error_message"]) == ("SKIPPED", "has no repositories")
    assert row["completed_at"] is not None


class Stop(BaseException):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("no such account"), "RuntimeError: no such account"),
        (ValueError(), "ValueError: "),
        (KeyError("login"), "KeyError: 'login'"),
        (SystemExit("that was it"), "SystemExit: that was it"),
        (SystemExit(0), "SystemExit: 0"),
        (CancelledError("the loop has ended"), "CancelledError: the loop has ended"),
        (GeneratorExit(), "GeneratorExit: "),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (Stop("no exception of the usual kind"), "Stop: no exception of the usual kind"),
        (StoreUnavailable("the handler's own store"), "StoreUnavailable: the handler's own store"),
        (ConfigurationError(["no key"]), "ConfigurationError: no key"),
        (Unprintable(), "Unprintable: (its text cannot be shown)"),
        (RuntimeError("x" * 2000), "RuntimeError: " + "x" * 486),
        (RuntimeError("a\x00b"), "RuntimeError: a\\x00b"),
        (RuntimeError("a\ud800b"), "RuntimeError: a\\ud800b"),
        (RuntimeError("ünïcode 🎉\nline"), "RuntimeError: ünïcode 🎉\nline"),
        (
            RuntimeError("cannot reach https://user:s3cr3t@api.example/x?token=s3cr3t"),
            "RuntimeError: cannot reach https://***@api.example/x?token=***",
        ),
        (RuntimeError("postgres://u:p@ss/w@h/db"), "RuntimeError: postgres://***@h/db"),
        (
            RuntimeError(
                "access_token=s3cr3t&x-client-secret=s3cr3t PGPASSWORD=s3cr3t AWS_ACCESS_KEY='s3 c'"
            ),
            "RuntimeError: access_token=***&x-client-secret=*** PGPASSWORD=*** AWS_ACCESS_KEY='***'",
        ),
    ],
)
def test_anything_else_fails_with_its_type_and_text(
    error: BaseException, message: str, run: Run, job_id: UUID, ledger: Ledger
) -> None:
    with raising(error) as handle:
        assert run(job_id, handle) == "FAILED"
    row = ledger.job(job_id)
    assert (row["status"], row["error_message"]) == ("FAILED", message)
    assert len(message) <= 500
    assert row["completed_at"] is not None


@pytest.mark.parametrize("stopped_by", [signal.SIGTERM, signal.SIGQUIT])
def test_a_stopped_pool_process_hands_the_job_back_and_exits(
    stopped_by: signal.Signals, run: Run, job_id: UUID, ledger: Ledger
) -> None:
    with raising(SystemExit(stopped_by - 256)) as handle, pytest.raises(SystemExit):
        run(job_id, handle)
    row = ledger.job(job_id)
    assert (row["status"], row["attempt"], row["error_message"]) == ("PENDING", 1, None)
    assert row["not_before"] <= datetime.now(UTC)


@pytest.mark.parametrize(("part", "outage_at"), [(Claimer, "_try_to_claim"), (Endings, "_finish")])
def test_an_outage_of_our_own_store_reaches_the_caller(
    part: type, outage_at: str, run: Run, job_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailable("Postgres is away")

    monkeypatch.setattr(patience, "_PATIENCE_SECONDS", 0)
    monkeypatch.setattr(part, outage_at, away)
    with pytest.raises(StoreUnavailable, match="Postgres is away"):
        run(job_id, by_raising)


def test_claim_raises_again_what_made_the_job_fail(deployed: None, job_id: UUID, ledger: Ledger) -> None:
    with pytest.raises(LookupError), claim(str(job_id)) as job:
        assert job is not None
        raise LookupError("no such account")
    assert ledger.job(job_id)["error_message"] == "LookupError: no such account"
    with claim(job_id) as job:
        assert job is None


def test_no_password_is_left_over_where_the_text_is_cut(run: Run, job_id: UUID, ledger: Ledger) -> None:
    secret = "s3cr3t" * 10
    with raising(RuntimeError("x" * 450 + f" https://user:{secret}@host/")) as handle:
        run(job_id, handle)
    assert "s3cr3t" not in ledger.job(job_id)["error_message"]


def test_a_reason_is_cut_and_masked_too(run: Run, job_id: UUID, ledger: Ledger) -> None:
    with raising(SkipJob("https://u:s3cr3t@h/ \x00" + "y" * 600)) as handle:
        run(job_id, handle)
    message = ledger.job(job_id)["error_message"]
    assert len(message) == 500
    assert message.startswith("https://***@h/ \\x00yyy")


@pytest.mark.parametrize("status", ["RUNNING", "COMPLETED", "FAILED", "SKIPPED"])
def test_a_message_for_a_job_that_does_not_wait_does_nothing(
    status: str, run: Run, job_id: UUID, ledger: Ledger
) -> None:
    ledger.execute(f"UPDATE sync_jobs SET status = '{status}', attempt = 1")
    before = ledger.job(job_id)
    assert run(job_id, not_called) == status
    assert ledger.job(job_id) == before


def test_a_message_for_no_job_does_nothing(job_id: UUID, ledger: Ledger) -> None:
    before = ledger.everything()
    process_worker().run(uuid4(), not_called)
    assert ledger.everything() == before


def test_a_second_delivery_does_nothing(run: Run, job_id: UUID, ledger: Ledger) -> None:
    calls: list[int] = []
    assert run(job_id, lambda job: calls.append(job.attempt)) == "COMPLETED"
    before = ledger.job(job_id)
    run(job_id, lambda job: calls.append(job.attempt))
    assert calls == [1]
    assert ledger.job(job_id) == before


@pytest.mark.parametrize(
    "stolen",
    [
        "UPDATE sync_jobs SET attempt = attempt + 1",
        "UPDATE sync_jobs SET status = 'PENDING', leased_until = NULL",
        "UPDATE sync_jobs SET status = 'SKIPPED', error_message = 'cancelled'",
    ],
)
def test_a_job_that_was_taken_away_is_not_finished(
    stolen: str, run: Run, job_id: UUID, ledger: Ledger
) -> None:
    after: list[object] = []

    def handle(job: SyncJob) -> None:
        ledger.execute(stolen)
        after.append(ledger.job(job_id))

    run(job_id, handle)
    assert [ledger.job(job_id)] == after


def test_a_worker_waits_while_postgres_takes_no_writes(
    job_id: UUID, read_only: ReadOnly, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """On the connections that it has by then, too: they stay with the server that was the primary."""
    ended = Event()

    def work() -> None:
        process_worker().run(job_id, lambda _: None)
        ended.set()

    with read_only():
        worker = Thread(target=work, daemon=True)
        worker.start()
        wait_until(lambda: "waiting for Postgres" in caplog.text, 30, "a worker that waits")
        assert ledger.job(job_id)["status"] == "PENDING"
    assert ended.wait(60)
    assert ledger.job(job_id)["status"] == "COMPLETED"


class TestStarting:
    """`celery -A worker_scheduler worker`: which of them start."""

    @pytest.mark.parametrize("queues", ["daily", "backfill", "scheduler,daily", "scheduler,daily,backfill"])
    @pytest.mark.slow
    def test_a_worker_of_jobs_needs_a_handler(
        self, queues: str, environment: dict[str, str], tmp_path: Path
    ) -> None:
        with started(worker_of(environment, tmp_path / "log", queues)) as worker:
            assert worker.wait(30) == 2
        assert "SYNC_HANDLER is not set" in worker.log()
        assert "Traceback" not in worker.log()

    def test_a_worker_of_every_queue_needs_one_too(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        with started(celery(environment, tmp_path / "log", "worker", "--pool", "solo")) as worker:
            assert worker.wait(30) == 2
        assert "SYNC_HANDLER is not set" in worker.log()

    def test_a_worker_of_ticks_needs_none(
        self, environment: dict[str, str], ledger: Ledger, broker: Broker, tmp_path: Path
    ) -> None:
        with started(worker_of(environment, tmp_path / "log", "scheduler")) as worker:
            worker.wait_for_log("ready.")

    @pytest.mark.slow
    def test_scheduler_and_cli_never_import_it(
        self, environment: dict[str, str], ledger: Ledger, tmp_path: Path
    ) -> None:
        make_users(ledger.url, 1)
        (tmp_path / "bomb.py").write_text("raise SystemExit('the handler was imported')")
        environment |= {"SYNC_HANDLER": "bomb:handle", "PYTHONPATH": str(tmp_path)}
        for command in ("daily", "check", "status"):
            assert as_process(environment, command, folder=tmp_path).status == 0

    @pytest.mark.parametrize(
        ("handler", "reason"),
        [
            ("tests.support.handlers:missing", "cannot be imported.*missing"),
            ("tests.support.no_such_module:handle", "cannot be imported.*no_such_module.*PYTHONPATH=."),
            ("tests.support.broken_module:handle", "cannot be imported: RuntimeError: no\\\\nkey"),
            ("tests.support.handlers:not_a_function", "cannot be a handler: it is an object of the type"),
            ("tests.support.handlers:coroutine", "cannot be a handler: it is an async function: write"),
        ],
    )
    def test_what_is_no_handler(self, handler: str, reason: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            check_handler(handler)
        assert re.search(f"^SYNC_HANDLER='{re.escape(handler)}' {reason}", str(caught.value))


def test_two_threads_that_ask_first_at_the_same_moment_get_the_same_worker(
    deployed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would know only its own attempts, and a second one could begin beside the first."""
    both = Barrier(2)

    def load_together() -> settings.Settings:
        both.wait(30)
        return settings.load()

    monkeypatch.setattr(wiring, "load", load_together)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: process_worker(), range(2))
    assert first is second is process_worker()
    # From Python 3.12 on, these are not made under a lock either.
    assert {"endings", "running", "shared_heartbeat"} <= vars(first).keys()
