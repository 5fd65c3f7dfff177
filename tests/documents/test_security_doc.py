"""docs/security.md: its roles and its Redis users suffice for the work, and for no more."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from redis import Redis
from redis.exceptions import NoPermissionError
from sqlalchemy.engine import make_url

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import celery, started, worker_of
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.clock import utc_now
from worker_scheduler.ledger import probes
from worker_scheduler.ledger.database import Database
from worker_scheduler.probe_ids import new_probe_id

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs/security.md").read_text()
KEY = "daily:2026-11-23"
PASSWORD = "correct-horse"

Scheduler = Callable[..., Outcome]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL)
    return str(found).replace("'PASSWORD'", f"'{PASSWORD}'")


@pytest.fixture
def suffix() -> str:
    """Roles and users belong to the whole server: each test has its own."""
    return uuid4().hex[:8]


@pytest.fixture
def as_role(ledger: Ledger, suffix: str) -> Iterator[Callable[[str], str]]:
    """The URL of the test's database for a role of the page."""
    make_users(ledger.url, 3)
    sql = re.sub(r"\bws_(\w+)", rf"ws_\1_{suffix}", block("sql"))
    ledger.execute(*(statement for statement in sql.split(";") if statement.strip()))

    def url(role: str) -> str:
        named = make_url(ledger.url).set(username=f"{role}_{suffix}", password=PASSWORD)
        return named.render_as_string(hide_password=False)

    yield url
    for role in ("ws_scheduler", "ws_worker", "ws_reader"):
        ledger.execute(f"DROP OWNED BY {role}_{suffix}", f"DROP ROLE {role}_{suffix}")


@pytest.fixture
def as_user(redis_url: str, redis_key_prefix: str, suffix: str) -> Iterator[Callable[[str], str]]:
    """The URL of the test's Redis for a user of the page."""
    lines = [line.split() for line in block("acl").replace(">PASSWORD", f">{PASSWORD}").splitlines()]
    with Redis.from_url(redis_url) as redis:
        for _, name, *rules in lines:
            keyed = [f"~{redis_key_prefix}{rule[1:]}" if rule.startswith("~") else rule for rule in rules]
            redis.execute_command("ACL", "SETUSER", f"{name}_{suffix}", *keyed)

    def url(user: str) -> str:
        parts = make_url(redis_url).set(username=f"{user}_{suffix}", password=PASSWORD)
        return parts.render_as_string(hide_password=False)

    yield url
    with Redis.from_url(redis_url) as redis:
        for _, name, *_ in lines:
            redis.execute_command("ACL", "DELUSER", f"{name}_{suffix}")


def test_the_least_privileges_suffice(
    as_role: Callable[[str], str],
    as_user: Callable[[str], str],
    scheduler: Scheduler,
    environment: dict[str, str],
    ledger: Ledger,
    broker: Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A day, from Beat's trigger to the reader's report; each process has its own role and user."""
    monkeypatch.setenv("DATABASE_URL", as_role("ws_scheduler"))
    monkeypatch.setenv("REDIS_URL", as_user("ws_scheduler"))
    assert scheduler("check").status == 0, scheduler("check")
    assert scheduler("daily", "--date", "2026-11-23").status == 0
    assert broker.counts() == {"daily": 3}

    shared = environment | {
        "PYTHONPATH": str(ROOT),
        "SYNC_HANDLER": "tests.support.handlers:complete",
        "RECONCILE_INTERVAL_SECONDS": "1",
        "WORKER_REMOTE_CONTROL": "0",
    }
    of_ticks = shared | {"DATABASE_URL": as_role("ws_scheduler"), "REDIS_URL": as_user("ws_scheduler")}
    of_jobs = shared | {"DATABASE_URL": as_role("ws_worker"), "REDIS_URL": as_user("ws_worker")}
    of_beat = shared | {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "REDIS_URL": as_user("ws_beat"),
    }
    with (
        started(worker_of(of_jobs, tmp_path / "jobs.log", "daily,backfill")) as jobs,
        started(worker_of(of_ticks, tmp_path / "ticks.log", "scheduler")) as ticks,
        started(celery(of_beat, tmp_path / "beat.log", "beat", "--loglevel", "INFO")) as beat,
    ):
        wait_until(lambda: ledger.states(KEY) == {"COMPLETED": 3}, 30, "the jobs' end")
        # By reconcile, which Beat triggered and the worker of ticks ran.
        wait_until(lambda: _finished(ledger), 30, "the run's end")
        for process in (jobs, ticks, beat):
            assert process.running
            assert not re.search("(?i)noperm|permission", process.log()), process.log()
            assert PASSWORD not in process.log()

    monkeypatch.setenv("DATABASE_URL", as_role("ws_reader"))
    status = scheduler("status", KEY, "--json")
    assert (status.status, status.report["jobs"]["COMPLETED"]) == (0, 3)


@pytest.mark.slow
def test_beats_user_suffices_when_redis_has_lost_its_data_and_when_an_entry_is_removed(
    as_user: Callable[[str], str], environment: dict[str, str], broker: Broker, tmp_path: Path
) -> None:
    of_beat = environment | {"REDIS_URL": as_user("ws_beat"), "RECONCILE_INTERVAL_SECONDS": "1"}
    statics = f"{broker.key_prefix}worker_scheduler:redbeat::statics"
    with Redis.from_url(broker.url) as redis:
        redis.sadd(statics, "an-entry-of-earlier-code")
        with started(celery(of_beat, tmp_path / "beat.log", "beat", "--loglevel", "INFO")) as beat:
            wait_until(lambda: broker.counts().get("scheduler", 0) >= 2, 30, "triggers")
            for key in redis.scan_iter(match=f"{broker.key_prefix}*"):
                redis.delete(key)
            wait_until(lambda: beat.log().count("Acquired lock") == 2, 60, "the new lock")
            wait_until(lambda: broker.counts().get("scheduler", 0) >= 2, 30, "triggers")
            assert beat.running
            assert not re.search("(?i)noperm|permission|Traceback", beat.log()), beat.log()


def _finished(ledger: Ledger) -> bool:
    state = ledger.value("SELECT state FROM sync_runs WHERE partition_key = %s", KEY)
    return bool(state == "FINISHED")


def test_a_worker_of_jobs_may_answer_a_probe(as_role: Callable[[str], str], ledger: Ledger) -> None:
    probe_id = new_probe_id()
    ledger.execute(f"INSERT INTO sync_probes VALUES ('{probe_id}', 'daily', now())")
    database = Database(as_role("ws_worker").replace("postgresql:", "postgresql+psycopg:", 1))
    with database.autocommit() as connection:
        probes.note_arrival(connection, probe_id, utc_now())
    database.dispose()
    assert ledger.value("SELECT arrived_at IS NOT NULL FROM sync_probes") is True


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("ws_scheduler", "UPDATE users SET github_login = 'x'"),
        ("ws_scheduler", "DELETE FROM users"),
        ("ws_scheduler", "DELETE FROM sync_jobs"),
        ("ws_scheduler", "DELETE FROM sync_runs"),
        ("ws_scheduler", "DELETE FROM sync_origin"),
        ("ws_scheduler", "INSERT INTO sync_origin (since) VALUES (now())"),
        ("ws_worker", "SELECT * FROM users"),
        ("ws_worker", "INSERT INTO sync_jobs (job_id) VALUES (gen_random_uuid())"),
        ("ws_worker", "DELETE FROM sync_jobs"),
        ("ws_worker", "UPDATE sync_jobs SET user_id = gen_random_uuid()"),
        ("ws_worker", "SELECT * FROM sync_runs"),
        ("ws_worker", "DELETE FROM sync_probes"),
        ("ws_worker", "UPDATE sync_probes SET sent_at = now()"),
        ("ws_worker", "SELECT * FROM sync_suspects"),
        ("ws_worker", "SELECT * FROM sync_requests"),
        ("ws_worker", "INSERT INTO sync_requests (request_id) VALUES (gen_random_uuid())"),
        ("ws_worker", "INSERT INTO sync_requests_monthless (request_id) VALUES (gen_random_uuid())"),
        ("ws_worker", "DELETE FROM sync_requests"),
        ("ws_worker", "SELECT * FROM sync_job_events"),
        ("ws_worker", "UPDATE sync_job_events SET event = 'x'"),
        ("ws_worker", "DELETE FROM sync_job_events"),
        ("ws_worker", "SELECT * FROM sync_schedule"),
        ("ws_worker", "UPDATE sync_runs SET paused_at = NULL"),
        ("ws_worker", "SELECT sync_history_add_month('sync_requests', 2026, 11)"),
        ("ws_scheduler", "UPDATE sync_requests SET actor = 'x'"),
        ("ws_scheduler", "DELETE FROM sync_requests"),
        ("ws_scheduler", "UPDATE sync_job_events SET event = 'x'"),
        ("ws_scheduler", "DELETE FROM sync_job_events"),
        ("ws_reader", "INSERT INTO sync_requests (request_id) VALUES (gen_random_uuid())"),
        ("ws_reader", "SELECT * FROM users"),
        ("ws_reader", "UPDATE sync_jobs SET status = 'PENDING'"),
        ("ws_reader", "INSERT INTO sync_locks VALUES (1)"),
    ],
)
def test_what_a_role_may_not(as_role: Callable[[str], str], role: str, statement: str) -> None:
    with psycopg.connect(as_role(role)) as connection, pytest.raises(InsufficientPrivilege):
        connection.execute(statement.encode())


@pytest.mark.parametrize(
    ("user", "command"),
    [
        *((user, ("FLUSHALL",)) for user in ("ws_scheduler", "ws_worker", "ws_beat")),
        *((user, ("CONFIG", "SET", "maxmemory", "1")) for user in ("ws_scheduler", "ws_worker", "ws_beat")),
        *((user, ("KEYS", "*")) for user in ("ws_scheduler", "ws_worker", "ws_beat")),
        *((user, ("ACL", "LIST")) for user in ("ws_scheduler", "ws_worker", "ws_beat")),
        *((user, ("GET", "{}of_the_application")) for user in ("ws_scheduler", "ws_worker", "ws_beat")),
        ("ws_worker", ("LPUSH", "{}scheduler", "x")),
        ("ws_worker", ("DEL", "{}worker_scheduler:epoch")),
        ("ws_worker", ("PUBLISH", "{}/0.celery.pidbox", "x")),
        ("ws_worker", ("SUBSCRIBE", "{}/0.celery.pidbox")),
        ("ws_worker", ("INFO",)),
        ("ws_beat", ("LPUSH", "{}daily", "x")),
        ("ws_beat", ("HVALS", "{}unacked")),
        ("ws_beat", ("DEL", "{}unacked")),
        ("ws_beat", ("RPOP", "{}scheduler")),
        ("ws_beat", ("LRANGE", "{}scheduler", "0", "-1")),
        ("ws_beat", ("SADD", "{}_kombu.binding.daily", "x")),
        ("ws_beat", ("PUBLISH", "{}/0.celery.pidbox", "x")),
        ("ws_beat", ("INFO",)),
        ("ws_beat", ("DEL", "{}worker_scheduler:epoch")),
    ],
)
def test_what_a_user_of_redis_may_not(
    as_user: Callable[[str], str], redis_key_prefix: str, user: str, command: tuple[str, ...]
) -> None:
    with Redis.from_url(as_user(user)) as redis, pytest.raises(NoPermissionError):
        redis.execute_command(*(part.format(redis_key_prefix) for part in command))


def test_no_secret_is_shown(
    environment: dict[str, str], scheduler: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers refuse or do not answer: no output and no process title shows a password."""
    refused = {
        "DATABASE_URL": f"postgresql://app:{PASSWORD}@127.0.0.1:1/app",
        "REDIS_URL": f"redis://app:{PASSWORD}@127.0.0.1:1/0",
    }
    for name, value in refused.items():
        monkeypatch.setenv(name, value)
    for command in (["check"], ["daily", "--json"], ["status"], ["reconcile", "--json"], ["migrate"]):
        outcome = scheduler(*command)
        assert outcome.status == 4, outcome
        assert PASSWORD not in outcome.stdout + outcome.stderr
    of_jobs = (
        environment | refused | {"PYTHONPATH": str(ROOT), "SYNC_HANDLER": "tests.support.handlers:complete"}
    )
    with (
        started(worker_of(of_jobs, tmp_path / "worker.log", "daily")) as worker,
        started(celery(of_jobs, tmp_path / "beat.log", "beat", "--loglevel", "DEBUG")) as beat,
    ):
        worker.wait_for_log("127.0.0.1:1")
        beat.wait_for_log("beat: Starting")
        for process in (worker, beat):
            title = " ".join(psutil.Process(process.pid).cmdline())
            assert PASSWORD not in process.log() + title
