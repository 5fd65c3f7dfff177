"""Beat's scheduler: RedBeat's, which here outlives a Redis that is away.

RedBeat ends when Redis is away while it extends its lock or reads its schedule, and when it has lost the
lock, each with a traceback. Here an outage is a state: Beat asks again every few seconds, says so in one
line when it begins and in one when it ends, and then goes on. It ends, so that its supervisor starts it
again, only if another Beat has its lock, or after `_GIVE_UP_SECONDS`: a new process reads its variables
again, which may have another address or password by then.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from amqp.exceptions import AMQPError
from celery.apps.beat import Beat
from celery.beat import SchedulingError
from celery.signals import beat_init
from kombu.exceptions import OperationalError
from redbeat.schedulers import (
    LUA_EXTEND_TO_SCRIPT,
    RedBeatScheduler,
    RedBeatSchedulerEntry,
    acquire_distributed_beat_lock,
    get_redis,
    logger,
)
from redis.exceptions import LockError, RedisError
from redis.lock import Lock

from worker_scheduler import logs
from worker_scheduler.redaction import one_line

log = logs.get_logger(__name__)

_GIVE_UP_SECONDS = 600.0
_RETRY_SECONDS = 2.0

# RedBeat's way waits for the lock before the first tick, without a word, and an error there is fatal.
beat_init.disconnect(acquire_distributed_beat_lock)


class BeatEnds(BaseException):
    """Ends Beat with status 1. Its cause has been logged; as an Exception, Celery would add a traceback."""


class Outage:
    """Something that Beat needs and cannot reach: it is logged once when it begins, and when it ends."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has lasted; 0 if there is none."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def goes_on(self, error: BaseException) -> None:
        """Notes that `error` has just shown it."""
        if self._since is None:
            self._since = time.monotonic()
            log.warning("Beat waits, it cannot reach a server", server=self.what, error=one_line(error))

    def is_over(self) -> None:
        """Notes that the server has just answered."""
        if self._since is not None:
            log.info("Beat goes on", server=self.what, after_seconds=round(self.seconds, 1))
            self._since = None


class Scheduler(RedBeatScheduler):  # type: ignore[misc]
    """RedBeat's scheduler, which takes its lock in a tick, and whose ticks outlive an outage."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._redis = Outage("Redis")
        self._broker = Outage("the broker")
        self._token = uuid4().hex
        self._waits = False
        self.lock: Lock | None = None
        super().__init__(*arguments, **options)

    def setup_schedule(self) -> None:
        """Does nothing: the Beat that gets the lock writes the schedule, see `_takes_lock`."""

    def tick(self, *arguments: Any, **options: Any) -> float:
        """Triggers what is due if this Beat holds the lock. Returns the seconds until the next tick."""
        try:
            held_lock = self.lock is not None
            if not self._holds_lock():
                if held_lock:
                    log.error("Beat ends, another Beat has its lock")
                    raise BeatEnds
                seconds = float(self.max_interval)
            else:
                seconds = float(super().tick(*arguments, **options))
        except (OperationalError, AMQPError) as error:  # the second one if RabbitMQ refuses this user
            return self._after(self._broker, error)
        except (RedisError, OSError) as error:
            return self._after(self._redis, error)
        self._redis.is_over()
        return seconds

    def maybe_due(self, entry: RedBeatSchedulerEntry, **options: Any) -> Any:
        """Triggers an entry if it is due. A trigger that cannot be sent is left to reconcile.

        Raises BeatEnds if none could be sent for too long.
        """
        is_due, seconds = entry.is_due()
        if is_due:
            logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
            try:
                self.apply_async(entry, **options)
            except SchedulingError as error:
                self._after(self._broker, error)
            else:
                self._broker.is_over()
        return seconds

    def close(self) -> None:
        """Gives the lock back, if Redis can be reached."""
        try:
            super().close()
        except (RedisError, OSError) as error:
            log.warning("Beat could not give its lock back, it will expire", error=one_line(error))
            self.lock = None
            super().close()

    def _holds_lock(self) -> bool:
        """Extends the lock, or takes it if nobody has it. It is lost when it expires while this process is
        held up, and together with Redis' data; the schedule is lost with the data, too.
        """
        if self.lock is not None:
            try:
                self.lock.extend(int(self.lock_timeout))
            except LockError:
                self.lock = None
        if self.lock is None:
            self.lock = self._new_lock()
        return self.lock is not None

    def _new_lock(self) -> Lock | None:
        redis = get_redis(self.app)
        lock: Lock = redis.lock(self.lock_key, timeout=self.lock_timeout)
        lock.lua_extend = redis.register_script(LUA_EXTEND_TO_SCRIPT)
        # One token for this process: it has the lock also if the answer to an earlier try was lost.
        lock.local.token = self._token.encode()
        if not lock.owned() and not lock.acquire(blocking=False, token=self._token):
            if not self._waits:
                log.info("Beat waits, another Beat has the lock")
            self._waits = True
            return None
        super().setup_schedule()
        self._waits = False
        log.info("Acquired lock, this Beat triggers")
        return lock

    def _ensure_connected(self) -> Any:
        # Celery would try a hundred times, each with a line, and its lock would expire.
        return self.connection.ensure_connection(max_retries=1, timeout=5)

    def _after(self, outage: Outage, error: BaseException) -> float:
        outage.goes_on(error)
        if outage.seconds > _GIVE_UP_SECONDS:
            log.error("Beat ends, it could not reach a server", server=outage.what, error=one_line(error))
            raise BeatEnds
        return min(_RETRY_SECONDS, float(self.max_interval))


class Program(Beat):  # type: ignore[misc]
    """The program `celery beat`, which ends with status 1 when its scheduler has to end."""

    def start_scheduler(self) -> None:
        """Runs until it is told to stop. Raises SystemExit with status 1 if it must be started again."""
        try:
            super().start_scheduler()
        except BeatEnds:
            raise SystemExit(1) from None
