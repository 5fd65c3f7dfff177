"""Ticks and reconcile never wait behind jobs: real workers whose pools are full of jobs that do not end."""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.support.command_line import as_process
from tests.support.contexts import context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import Process, alive, celery, started
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import BackfillOptions, DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.maintenance import reconciler

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
INTERVAL = 6
SHORT = 4
POOLS = {
    "prefork": (("--pool", "prefork", "--concurrency", "4"), 4),
    "threads": (("--pool", "threads", "--concurrency", "2"), 2),
    "solo": (("--pool", "solo"), 1),
}
JUST_BEGUN = "INSERT INTO sync_passes AS p (name, begun_at) VALUES ('reconcile', now())" + (
    " ON CONFLICT (name) DO UPDATE SET begun_at = now(), ended_at = NULL"
)
BEGAN = "SELECT begun_at FROM sync_passes WHERE name = 'reconcile'"
BEGUN = """
    CREATE TABLE begun (at timestamptz);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO begun VALUES (new.begun_at); RETURN NULL; END $$;
    CREATE TRIGGER t AFTER INSERT OR UPDATE OF begun_at ON sync_passes FOR EACH ROW
        WHEN (new.name = 'reconcile') EXECUTE FUNCTION note();
"""


@dataclass
class Site:
    """A deployment without a Beat."""

    context: TickContext
    ledger: Ledger
    broker: Broker
    environment: dict[str, str]
    folder: Path

    def three_intervals(self) -> float:
        """In seconds; and on a busy machine as long as a few processes take to start there now."""
        began = time.monotonic()
        assert as_process(self.environment, "status").status == 0
        return 3 * INTERVAL + 3 * (time.monotonic() - began)

    def worker(
        self, *pool: str, queues: str = "scheduler,daily,backfill", name: str = "w", **variables: str
    ) -> Process:
        own = {"SYNC_HANDLER": "tests.support.handlers:hang", **variables}
        arguments = ("worker", "-Q", queues, *(pool or POOLS["solo"][0]), "-n", f"{name}@%h", "-l", "INFO")
        environment = self.environment | own
        log = self.folder / f"{name}.log"
        return celery(environment, log, *arguments, "--without-gossip", "--without-mingle")

    def fill(self, jobs: int) -> None:
        """Waits until workers run so many jobs, which do not end."""
        tick.backfill(self.context, BackfillOptions(backfill_days=1, confirm=True))
        wait_until(lambda: self.ledger.states().get("RUNNING") == jobs, 60, "a full pool")

    def send(self, task: str) -> None:
        from worker_scheduler import app

        app.send_task(task, queue="scheduler")


@pytest.fixture
def site(
    deployed: None,
    ledger: Ledger,
    broker: Broker,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    own = {
        "DAILY_TICK_CRON": "0 0 29 2 *",  # no day becomes due during the test
        "RECONCILE_INTERVAL_SECONDS": str(INTERVAL),
        "MESSAGE_GRACE_SECONDS": "0",
        "BACKFILL_MAX_USERS": "50",
        "HANDLER_FOLDER": str(tmp_path),
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with context_at(utc_now) as context:
        yield Site(context, ledger, broker, environment | own | {"PYTHONPATH": str(ROOT)}, tmp_path)


def passes_of(process: Process) -> list[psutil.Process]:
    """The child processes of a worker in which its watchdog runs a pass."""
    children = psutil.Process(process.pid).children()
    return [
        child for child in children if alive(child) and "worker_scheduler.pass_process" in child.cmdline()
    ]


@pytest.mark.parametrize(
    ("pool", "lose"),
    [*((pool, "the queue") for pool in POOLS), ("prefork", "all data"), ("prefork", "its own queue")],
)
def test_lost_messages_are_sent_again_within_three_intervals_while_every_job_hangs(
    pool: str, lose: str, site: Site
) -> None:
    arguments, size = POOLS[pool]
    own = lose == "its own queue"
    waiting = 3 if own else size
    with started(site.worker(*arguments)) as worker:
        worker.wait_for_log("ready.")
        make_users(site.ledger.url, size + waiting if own else size)
        if not own:
            site.fill(size)
        tick.daily(site.context, DailyOptions())
        wait_until(lambda: site.ledger.states().get("RUNNING") == size, 60, "a full pool")
        wait_until(lambda: site.broker.count("daily") == waiting, 10, "the others")
        bound = site.three_intervals()
        site.ledger.execute(JUST_BEGUN)  # the worst moment
        began = site.ledger.value(BEGAN)
        site.send("scheduler.reconcile")
        if lose == "all data":
            site.broker.lose_everything()
        else:
            site.broker.lose_queue("daily")
        lost_at = time.monotonic()
        wait_until(lambda: site.ledger.value(BEGAN) > began, 2 * INTERVAL, "the beginning of a pass")
        left = bound - (time.monotonic() - lost_at)
        wait_until(lambda: site.broker.count("daily") == waiting, left, "the messages")
        assert site.ledger.states() == {"RUNNING": size, "PENDING": waiting}
        assert site.broker.count("scheduler") == (0 if lose == "all data" else 1)
        assert "overdue" in worker.log()


def test_a_due_day_is_started_while_every_job_hangs_and_its_trigger_changes_nothing_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the strictest catch-up. The trigger that waited finds the day done."""
    make_users(site.ledger.url, 1)
    slot = utc_now().replace(second=0, microsecond=0)
    due = {"DAILY_TICK_CRON": f"{slot.minute} {slot.hour} * * *", "DAILY_CATCH_UP": "none"}
    handler = {"SYNC_HANDLER": "tests.support.handlers:wait_for_permission"}
    with started(site.worker(**due, **handler)) as worker:
        worker.wait_for_log("ready.")
        site.fill(1)
        site.ledger.execute(f"UPDATE sync_origin SET since = '{slot - timedelta(minutes=1)}'")
        site.send("scheduler.daily_tick")
        key = f"daily:{slot.date()}"
        wait_until(lambda: site.ledger.count(key) == 1, site.three_intervals(), "the day's run")
        run = site.ledger.row("SELECT * FROM sync_runs WHERE partition_key = %s", key)
        assert run["requested_by"].startswith("worker w@")
        assert run["slot"] == slot
        assert site.broker.count("scheduler") == 1
        (site.folder / "go").touch()
        wait_until(lambda: site.broker.counts() == {}, 60, "the trigger that waited")
        wait_until(lambda: site.broker.unacknowledged() == 0, 60, "its end")
        assert site.ledger.states() == {"COMPLETED": 2}
        assert site.ledger.count(key) == 1


def test_several_workers_make_one_pass_between_them(site: Site) -> None:
    site.ledger.execute(BEGUN)
    make_users(site.ledger.url, 3)
    short = {"RECONCILE_INTERVAL_SECONDS": str(SHORT)}
    workers = [site.worker(name=f"w{number}", **short) for number in range(3)]
    with started(workers[0]), started(workers[1]), started(workers[2]):
        site.fill(3)
        enough = "SELECT count(*) >= 3 FROM begun"
        wait_until(lambda: site.ledger.value(enough), 12 * SHORT, "three passes")
        logged = sum(worker.log().count("overdue") for worker in workers)
        times = [row["at"] for row in site.ledger.rows("SELECT at FROM begun ORDER BY at")]
    assert logged == len(times)
    apart = [later - earlier for earlier, later in pairwise(times)]
    assert min(apart) >= timedelta(seconds=1.5 * SHORT)
    assert max(apart) <= timedelta(seconds=2.5 * SHORT)


def test_while_messages_are_taken_and_in_a_worker_of_jobs_alone_the_watchdog_starts_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(site.environment, "RECONCILE_INTERVAL_SECONDS", "2")
    jobs_only, both = site.worker(queues="daily,backfill", name="jobs"), site.worker(name="both")
    until = "SELECT count(*) FROM sync_passes WHERE name = 'reconcile'"
    with started(jobs_only):
        jobs_only.wait_for_log("ready.")
        deadline = time.monotonic() + 3 * 2
        while time.monotonic() < deadline:
            assert passes_of(jobs_only) == []
            time.sleep(0.1)
        assert site.ledger.value(until) == 0
        with started(both):
            both.wait_for_log("ready.")
            for _ in range(6):  # as Beat does it
                site.send("scheduler.reconcile")
                wait_until(lambda: site.broker.counts() == {}, 30, "an empty queue")
                time.sleep(1)
    assert site.ledger.value(until) == 1
    assert "overdue" not in both.log() + jobs_only.log()


def wait_for_held_up_pass(site: Site, worker: Process) -> list[psutil.Process]:
    """On a slow machine a second pass may have begun by then."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    wait_until(lambda: site.ledger.value(waiting), 60, "a pass that waits for a lock")
    return passes_of(worker)


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_that_is_stopped_does_not_wait_for_its_pass(pool: str, site: Site) -> None:
    with started(site.worker(*POOLS[pool][0], RECONCILE_INTERVAL_SECONDS=str(SHORT))) as worker:
        worker.wait_for_log("ready.")
        with site.ledger.locked("sync_locks"):  # its first rule waits
            running = wait_for_held_up_pass(site, worker)
            worker.send(signal.SIGTERM)
            stopped_at = time.monotonic()
            assert worker.wait(30) == 0
            assert time.monotonic() - stopped_at < 15
            assert running and not any(map(alive, running))
        assert 'File "' not in worker.log()
    later = replace(site.context, clock=lambda: datetime.now(UTC) + timedelta(seconds=INTERVAL))
    result = reconciler.reconcile_if_due(later)
    assert result is not None and result.errors == []


def test_a_pass_ends_with_a_worker_that_is_killed(site: Site) -> None:
    with started(site.worker(RECONCILE_INTERVAL_SECONDS=str(SHORT))) as worker:
        worker.wait_for_log("ready.")
        with site.ledger.locked("sync_locks"):
            running = wait_for_held_up_pass(site, worker)
            worker.send(signal.SIGKILL)  # only the main process
            worker.wait(10)
            assert running
            wait_until(lambda: not any(map(alive, running)), 20, "the end of its pass")
