"""Log lines about jobs name the job. Each is one line without local variables, unless the code base has
configured structlog.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.support.command_line import Outcome
from tests.support.contexts import context_at
from tests.support.ledger import Ledger
from tests.support.processes import celery, started
from tests.support.site import KEY
from tests.support.users import make_users, user_id
from tests.support.waiting import wait_until
from worker_scheduler import logs
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.wiring import process_worker
from worker_scheduler.worker import RetryLater, SyncJob

Scheduler = Callable[..., Outcome]

ROOT = Path(__file__).resolve().parents[2]
NAMED = rf"partition_key={KEY} user_id={user_id(1)} github_login=user-1"

# What another code base does in its own process: its locals must not be in any line.
CLAIMING = """
import sys, uuid
from worker_scheduler import claim

def synchronise(job):
    local_variable = "".join(["loc", "al-se", "cret"])
    raise RuntimeError("no such account\\nsecond line")

for job_id in sys.argv[1:]:
    try:
        with claim(job_id) as job:
            if job is not None:
                synchronise(job)
    except RuntimeError:
        pass
"""


def claimed_by_others(environment: dict[str, str], beginning: str, *job_ids: UUID) -> Outcome:
    ended = subprocess.run(
        [sys.executable, "-c", f"{beginning}\n{CLAIMING}", *map(str, job_ids)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return Outcome(0, ended.stdout, ended.stderr)


@pytest.mark.parametrize(
    ("beginning", "prefix"),
    [
        ("", ""),
        ("import logging; logging.basicConfig(format='%(name)s|%(message)s')", r"worker_scheduler\.\S+\|"),
        (
            "import logging, rich; logging.basicConfig(level='DEBUG', format='THEIRS %(message)s')",
            "THEIRS ",
        ),
    ],
    ids=["nothing configured", "logging configured", "everything at debug"],
)
def test_without_structlog_of_their_own_our_lines_go_through_logging(
    beginning: str, prefix: str, environment: dict[str, str], job_id: UUID
) -> None:
    outcome = claimed_by_others(environment, beginning, job_id)
    assert outcome.stdout == ""
    (line,) = [line for line in outcome.stderr.splitlines() if "job failed" in line]
    assert re.match(rf'{prefix}event="job failed" job_id={job_id} {NAMED} error="RuntimeError: no', line)
    assert r"no such account\nsecond line" in line
    assert "local-secret" not in outcome.stderr
    assert "DEBUG" in beginning or outcome.stderr.splitlines() == [line]


def test_with_structlog_of_their_own_our_lines_are_like_theirs(
    environment: dict[str, str], job_id: UUID
) -> None:
    beginning = (
        "import structlog\n"
        "structlog.configure(processors=[structlog.processors.format_exc_info,"
        " structlog.processors.JSONRenderer()])"
    )
    outcome = claimed_by_others(environment, beginning, job_id)
    (line,) = outcome.stdout.splitlines()
    assert json.loads(line)["event"] == "job failed"
    assert outcome.stderr == ""


@pytest.mark.parametrize(
    "configured",
    ["processors=[lambda *_: 1 / 0]", "logger_factory=lambda: None"],
    ids=["processor", "factory"],
)
def test_a_structlog_that_raises_keeps_no_job_from_ending(
    configured: str, environment: dict[str, str], job_id: UUID, ledger: Ledger
) -> None:
    outcome = claimed_by_others(environment, f"import structlog; structlog.configure({configured})", job_id)
    (job,) = ledger.jobs()
    assert (job["status"], job["error_message"]) == ("FAILED", "RuntimeError: no such account\nsecond line")
    assert f'event="job failed" job_id={job_id} {NAMED}' in outcome.stderr


def test_their_configuration_of_structlog_stays_theirs() -> None:
    code = (
        "import structlog; from worker_scheduler import logs\n"
        "structlog.configure(processors=[structlog.processors.JSONRenderer()])\n"
        "logs.configure('INFO'); logs.to_stderr()\n"
        "structlog.get_logger().info('theirs'); logs.get_logger('worker_scheduler.x').info('ours')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == '{"event": "theirs"}\n'
    assert ended.stderr.endswith("INFO event=ours\n")


def fails(job: SyncJob) -> None:
    raise RuntimeError("no such account")


def is_put_off(job: SyncJob) -> None:
    raise RetryLater("not yet")


def is_stopped(job: SyncJob) -> None:
    raise SystemExit(15 - 256)


def test_every_line_about_a_job_names_it(
    deployed: None, job_id: UUID, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    logs.configure("INFO")
    caplog.set_level("INFO", "worker_scheduler")

    def is_taken_away(job: SyncJob) -> None:
        ledger.execute("UPDATE sync_jobs SET attempt = attempt + 1")

    def is_revoked(job: SyncJob) -> None:
        process_worker().skip_revoked(job_id, killed=True)

    def line(handler: Callable[[SyncJob], None], event: str) -> None:
        ledger.execute("UPDATE sync_jobs SET status = 'PENDING', not_before = NULL, leased_until = NULL")
        caplog.clear()
        with suppress(SystemExit):
            process_worker().run(job_id, handler)
        found = [record.getMessage() for record in caplog.records]
        (said,) = [message for message in found if message.startswith(f'event="{event}')]
        assert f" job_id={job_id} {NAMED}" in said

    line(fails, "job failed")
    line(is_stopped, "job handed back")
    line(is_taken_away, "job unchanged")
    line(is_revoked, "job skipped, it was revoked")
    ledger.execute("UPDATE sync_jobs SET status = 'COMPLETED'")
    caplog.clear()
    process_worker().run(job_id, fails)
    assert f"{NAMED} status=COMPLETED" in caplog.text
    process_worker().run(uuid4(), fails)
    assert "status=unknown" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "pool", [("solo",), ("threads", "--concurrency", "2"), ("prefork", "--concurrency", "2")]
)
def test_celery_says_succeeded_of_no_job_that_failed(
    pool: tuple[str, ...], deployed: None, environment: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    """The handler's module configures structlog, too, as an application may."""
    (tmp_path / "theirs.py").write_text(
        "import structlog\nstructlog.configure(processors=[structlog.processors.JSONRenderer()])\n"
        "from tests.support.handlers import by_login\n"
    )
    make_users(ledger.url, 4)
    environment |= {"SYNC_HANDLER": "theirs:by_login", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    options = ("worker", "-Q", "daily", "--loglevel", "INFO", "--pool", *pool)
    with started(celery(environment, tmp_path / "log", *options)) as worker, context_at(utc_now) as context:
        worker.wait_for_log("ready.")
        tick.daily(context, DailyOptions())
        expected = {"COMPLETED": 1, "SKIPPED": 1, "FAILED": 2}
        wait_until(lambda: dict(ledger.states()) == expected, 30, "the end of the jobs")
        ended = re.compile(r"Task sync_user\[(\S+)\] (.+)")

        def said_of_all() -> dict[str, str]:
            said = dict(pair for pair in ended.findall(worker.log()) if "received" not in pair[1])
            return said if len(said) == 4 else {}

        lines = wait_until(said_of_all, 30, "Celery's lines")
        assert worker.running
    for job in ledger.jobs():
        said = lines[str(job["job_id"])]
        if job["status"] == "FAILED":
            assert said == f"raised expected: JobFailed({job['error_message']!r})"
        else:
            assert re.fullmatch(rf"succeeded in \S+s: '{job['status']}'", said)
    ours = [line for line in worker.log().splitlines() if "job failed" in line]
    assert len(ours) == 2
    assert all(
        re.search(r'event="job failed" job_id=\S+ partition_key=daily:\S+ user_id=', o) for o in ours
    )


# What an application's module may do when a worker imports it. `dictConfig` also turns off all loggers that
# exist; and Celery has replaced sys.stderr, to which the new handler is to write.
CONFIGURING = """
import logging.config

logging.config.dictConfig({
    "version": 1,
    "formatters": {"theirs": {"format": "THEIRS %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "theirs"}},
    "root": {"handlers": ["console"], "level": "INFO"},
})

def handle(job):
    logging.getLogger("theirs").info("begins")
    print("printed")
    raise RuntimeError("no such account")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "pool", [("solo",), ("threads", "--concurrency", "2"), ("prefork", "--concurrency", "2")]
)
def test_no_line_is_lost_where_the_handlers_module_configures_logging(
    pool: tuple[str, ...], deployed: None, environment: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "configuring.py").write_text(CONFIGURING)
    make_users(ledger.url, 2)
    environment |= {
        "SYNC_HANDLER": "configuring:handle",
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "DAILY_TICK_CRON": "0 0 29 2 *",
    }
    options = ("worker", "-Q", "daily", "--loglevel", "INFO", "--pool", *pool)
    with started(celery(environment, tmp_path / "log", *options)) as worker, context_at(utc_now) as context:
        worker.wait_for_log("ready.")
        tick.daily(context, DailyOptions())
        said = "raised expected: JobFailed"
        wait_until(lambda: worker.log().count(said) == 2, 60, "Celery's lines")
        lines = worker.log().splitlines()
        assert worker.running
    for form in (
        r'THEIRS worker_scheduler\.\S+ event="job failed" job_id=\S+ partition_key=daily:\S+ user_id=\S+ ',
        r"THEIRS celery\.app\.trace Task sync_user\[\S+\] raised expected: ",
        r"THEIRS theirs begins",
        r"THEIRS celery\.redirected printed",
    ):
        assert len([line for line in lines if re.match(form, line)]) == 2, form
