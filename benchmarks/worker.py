"""Measures how fast a real worker runs empty jobs, compared with empty Celery tasks in the same worker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from redis import Redis

from benchmarks.stores import Stores

EMPTY = "benchmarks.empty"
"""The name of the empty task."""

_ROOT = Path(__file__).resolve().parent.parent
_MESSAGES = 10_000
_WARM_UP = 500
"""Tasks that are not counted, because the worker starts and opens its connections."""
_DEADLINE_SECONDS = 300


def jobs_per_second(stores: Stores, say: Callable[[str], None]) -> tuple[float, float]:
    """Returns the speeds of `sync_user` with an empty handler and of an empty task, both per second.

    The queue `daily` must hold the messages of a tick. Copies of them become the empty tasks.
    """
    with Redis.from_url(stores.redis_url) as redis:
        redis.ltrim("daily", -_MESSAGES, -1)
        messages = redis.lrange("daily", 0, -1)
        # The same messages except for the task's name.
        redis.lpush(
            "empty", *[m.replace(b'"task": "sync_user"', f'"task": "{EMPTY}"'.encode()) for m in messages]
        )
        with _worker(stores, "daily"):
            jobs = _drained(redis, "daily", len(messages))
        with _worker(stores, "empty"):
            tasks = _drained(redis, "empty", len(messages))
    say(f"worker: {jobs:,.0f} jobs/s, {tasks:,.0f} empty tasks/s")
    return jobs, tasks


@contextmanager
def _worker(stores: Stores, queue: str) -> Iterator[None]:
    environment = {
        **stores.environment,
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(_ROOT),
        "SYNC_HANDLER": "benchmarks.handler:handle",
    }
    command = [sys.executable, "-m", "celery", "-A", "worker_scheduler", "worker", "--loglevel", "WARNING"]
    options = ["-Q", queue, "-I", "benchmarks.handler", "--concurrency", "4"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with TemporaryDirectory() as folder:
        process = subprocess.Popen([*command, *options, *quiet], env=environment, cwd=folder)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def _drained(redis: Redis, queue: str, messages: int) -> float:
    """Waits until the queue is empty; returns the tasks per second after the warm-up."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    _wait(lambda: _left(redis, queue) <= messages - _WARM_UP, deadline)
    started, left = time.perf_counter(), _left(redis, queue)
    _wait(lambda: _left(redis, queue) == 0, deadline)
    return left / (time.perf_counter() - started)


def _left(redis: Redis, queue: str) -> int:
    waiting: int = redis.llen(queue) + redis.hlen("unacked")
    return waiting


def _wait(reached: Callable[[], bool], deadline: float) -> None:
    while not reached():
        if time.monotonic() > deadline:
            raise AssertionError(f"the worker was not done after {_DEADLINE_SECONDS} s")
        time.sleep(0.01)
