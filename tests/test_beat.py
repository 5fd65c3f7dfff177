"""Real Beats: two at once, killed ones, ones that lose their lock, and what a restart rings."""

import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from redis import Redis

from tests.support.messages import Broker, Message
from tests.support.processes import Process, celery, started
from tests.support.waiting import wait_until

# As in celeryconfig.py, a second for each half minute.
SHORTENED = ("beat.max_loop_interval=1", "redbeat.lock_timeout=(int)3")
RECONCILE, DAILY_TICK = "scheduler.reconcile", "scheduler.daily_tick"


@pytest.fixture
def beat_environment(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"RECONCILE_INTERVAL_SECONDS": "1"}


@pytest.fixture
def overdue_daily_tick(deployed: None) -> None:
    """RedBeat's clock as after two days without a Beat: the daily tick is due once."""
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


def rings(broker: Broker, task: str) -> list[Message]:
    return [message for message in broker.messages("scheduler") if message.headers["task"] == task]


def wait_for_rings(broker: Broker, number: int, deadline_seconds: float = 30) -> None:
    wait_until(
        lambda: len(rings(broker, RECONCILE)) >= number, deadline_seconds, f"{number} rings of reconcile"
    )


def seconds_between(broker: Broker) -> list[float]:
    """Between the rings of reconcile: each expires an interval after it was rung."""
    at = [datetime.fromisoformat(ring.headers["expires"]) for ring in rings(broker, RECONCILE)]
    return [(later - earlier).total_seconds() for earlier, later in pairwise(at)]


def lock_key(broker: Broker) -> str:
    return f"{broker.key_prefix}worker_scheduler:redbeat::lock"


def holds_lock(process: Process) -> bool:
    return "Acquired lock" in process.log()


def test_two_beats_at_once_ring_each_slot_once_and_a_killed_one_is_replaced(
    overdue_daily_tick: None, two_beats: list[Process], broker: Broker
) -> None:
    wait_for_rings(broker, 3)
    assert [holds_lock(process) for process in two_beats].count(True) == 1
    assert min(seconds_between(broker)) > 0.5
    assert len(rings(broker, DAILY_TICK)) == 1

    (acting,) = filter(holds_lock, two_beats)
    (waiting,) = (process for process in two_beats if process is not acting)
    acting.kill()
    before = len(rings(broker, RECONCILE))
    wait_for_rings(broker, before + 2)
    assert holds_lock(waiting)
    assert min(seconds_between(broker)) > 0.5
    assert len(rings(broker, DAILY_TICK)) == 1

    # What a supervisor does then: the killed one comes back, and waits its turn.
    acting.start()
    before = len(rings(broker, RECONCILE))
    wait_for_rings(broker, before + 2)
    assert acting.log().count("Acquired lock") == 1
    assert min(seconds_between(broker)) > 0.5
    assert len(rings(broker, DAILY_TICK)) == 1


def test_a_beat_that_loses_its_lock_stops_and_its_restart_rings_nothing_twice(
    overdue_daily_tick: None, beat_environment: dict[str, str], tmp_path: Path, broker: Broker
) -> None:
    with started(beat(beat_environment, tmp_path, "beat")) as process:
        wait_for_rings(broker, 2)
        with Redis.from_url(broker.url) as redis:
            # As if it had been away for longer than its lock, and another had taken its place.
            redis.set(lock_key(broker), "somebody else", px=600_000)
            assert process.wait(30) != 0
            before = len(rings(broker, RECONCILE))
            process.start()
            wait_until(lambda: process.log().count("beat: Starting") == 2, 30, "the restart")
            assert len(rings(broker, RECONCILE)) == before
            redis.delete(lock_key(broker))
        wait_for_rings(broker, before + 2)
    assert len(rings(broker, DAILY_TICK)) == 1
    assert min(seconds_between(broker)) > 0.5


def test_a_beat_that_is_stopped_gives_its_lock_back(
    beat_environment: dict[str, str], tmp_path: Path, broker: Broker
) -> None:
    with started(beat(beat_environment, tmp_path, "beat")) as process:
        wait_for_rings(broker, 1)
        process.send(signal.SIGTERM)
        assert process.wait(30) == 0
    with Redis.from_url(broker.url) as redis:
        assert not redis.exists(lock_key(broker))


def test_the_settings_replace_a_killed_beat_within_three_minutes(deployed: None) -> None:
    from redbeat.schedulers import ensure_conf

    from worker_scheduler import app

    ensure_conf(app)
    lock_timeout = app.redbeat_conf.lock_timeout
    interval = app.conf.beat_max_loop_interval
    # The lock of the dead runs out, and whoever waits for it asks once an interval; 20 s to start.
    assert lock_timeout + interval + 20 <= 180
    # A living Beat extends it once an interval, and tries so long where Redis is away for a while.
    assert lock_timeout > interval + app.conf.redbeat_redis_options["retry_period"]


def test_what_beat_rings(deployed: None) -> None:
    """Its whole schedule: nothing of Celery's own, both into the queue that no job waits in."""
    from worker_scheduler import app

    schedule = app.conf.beat_schedule
    assert {name: entry["task"] for name, entry in schedule.items()} == {
        "daily-tick": DAILY_TICK,
        "reconcile": RECONCILE,
    }
    assert {entry["options"]["queue"] for entry in schedule.values()} == {"scheduler"}
    # Rings that pile up while no worker is there expire; a daily tick never does.
    assert schedule["reconcile"]["options"]["expires"] == 60
    assert "expires" not in schedule["daily-tick"]["options"]
