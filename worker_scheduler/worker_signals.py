"""What a worker of this package does at Celery's signals about its handler, its pool and its jobs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any
from uuid import UUID

from billiard.process import current_process
from celery import Task, bootsteps
from celery.signals import (
    celeryd_after_setup,
    task_revoked,
    worker_process_init,
    worker_ready,
    worker_shutdown,
)
from celery.worker import state as worker_state

from worker_scheduler import wiring
from worker_scheduler.config.settings import load
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.leases import heartbeat
from worker_scheduler.probe_ids import is_probe
from worker_scheduler.publisher import SYNC_USER
from worker_scheduler.worker import job_requests, pool_memory, stop_signals
from worker_scheduler.worker.deadline_stop import DeadlineStop
from worker_scheduler.worker.handler_check import check_handler, warn_if_imported
from worker_scheduler.worker.pool_memory import Held, PoolMemory
from worker_scheduler.worker.pool_watch import LOOK_SECONDS, PoolWatch
from worker_scheduler.worker.recorder import Recorder
from worker_scheduler.worker.revoked import is_asked_for

_JOB_QUEUES = {"daily", "backfill"}

_QUICKLY_SECONDS = 2.0
"""How long a worker's main loop waits for Postgres before a process is replaced or killed. What is not
written by then is written later.
"""


def connect() -> None:
    """Lets Celery call the functions below. To call it again changes nothing."""
    celeryd_after_setup.connect(_refuse_jobs_without_handler)
    celeryd_after_setup.connect(_share_memory)
    worker_process_init.connect(_enter_memory)
    worker_ready.connect(_watch_pool)
    worker_ready.connect(_stop_by_deadline)
    worker_shutdown.connect(_stop_watching)
    task_revoked.connect(_end_revoked_job)
    job_requests.listen(_Listener())


def _refuse_jobs_without_handler(instance: Any, **_: Any) -> None:
    """Stops a worker of job queues whose handler cannot do jobs: it would fail every job that it takes."""
    if not _JOB_QUEUES & set(instance.app.amqp.queues.consume_from):
        return
    try:
        settings = load()
        check_handler(settings.sync_handler, settings.sync_retry_on)
        if _is_prefork(instance):
            warn_if_imported(settings.sync_handler)
    except ConfigurationError as error:
        print(f"worker_scheduler: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_status) from None


def _share_memory(instance: Any, **_: Any) -> None:
    if _is_prefork(instance):
        pool_memory.create()


def _is_prefork(instance: Any) -> bool:
    return bool(instance.pool_cls.__module__ == "celery.concurrency.prefork")


def _enter_memory(**_: Any) -> None:
    """In a process of the pool. The pool `solo` sends this signal, too, from the main process."""
    memory, index = pool_memory.shared(), getattr(current_process(), "index", None)
    if memory is not None and index is not None:
        memory.enter(index)


_watching = ExitStack()


class StopNotice(bootsteps.StartStopStep):  # type: ignore[misc] # Celery has no types
    """Notes that the worker is being stopped, whatever stops it: the remote control sends no signal."""

    def close(self, worker: Any) -> None:
        """Called before any part of the worker is stopped."""
        memory = pool_memory.shared()
        if memory is not None:
            memory.note_stop()

    def terminate(self, worker: Any) -> None:
        """Waits for what is being recorded: a cold shutdown ends without the signal `worker_shutdown`."""
        _recorder.close()


def _watch_pool(sender: Any, **_: Any) -> None:
    if sender.pool.__module__ == "celery.concurrency.gevent":
        stop_signals.handle_in_greenlets()
    memory = pool_memory.shared()
    if memory is None:
        return
    stop_signals.watch(memory.note_stop)
    held = partial(_held, memory)
    keeper = wiring.pool_heartbeat(held)
    _watching.callback(keeper.database.dispose)
    _watching.enter_context(heartbeat(keeper.renew, keeper.lease.heartbeat_seconds, "active jobs"))
    watch = PoolWatch(memory, held, lambda late: wiring.lost_processes(memory).time_out(late))
    _watching.enter_context(heartbeat(watch.look, LOOK_SECONDS, "overdue processes"))


def _stop_by_deadline(sender: Any, **_: Any) -> None:
    """Where no process of a pool can be ended: see `deadline_stop.py`."""
    controller = sender.controller
    if not _is_prefork(controller):
        seconds = controller.app.conf.worker_soft_shutdown_timeout
        DeadlineStop(str(sender.hostname), seconds, _hand_back_all).watch()


def _hand_back_all() -> None:
    wiring.process_worker().hand_back_all()


def _held(memory: PoolMemory) -> Iterator[Held]:
    """The attempts that the processes of the pool hold now."""
    for request in tuple(worker_state.active_requests):
        if request.name == SYNC_USER and request.worker_pid is not None:
            held = memory.held_by(request.worker_pid)
            if held is not None:
                yield held


_recorder = Recorder()


def _stop_watching(**_: Any) -> None:
    _watching.close()
    _recorder.close()


class _Listener:
    """Records what becomes of jobs whose processes are lost."""

    def lost(self, pid: int, job_id: UUID, reason: str) -> None:
        """The attempt that the process held, if it held one of this job."""
        memory = pool_memory.shared()
        held = None if memory is None else memory.held_by(pid)
        if memory is not None and held is not None and held.job_id == job_id:
            lose = partial(wiring.lost_processes(memory).lose, held, reason)
            _recorder.note(lose, _QUICKLY_SECONDS, job_id=str(job_id))

    def terminated(self, job_id: UUID) -> None:
        """The job is revoked, whoever runs it."""
        _skip_revoked(job_id, killed=True, wait_seconds=_QUICKLY_SECONDS)

    def cancelled(self, pid: int | None, job_id: UUID | None) -> bool:
        """What is cancelled now is handed back: by its process in a prefork pool, in others from here."""
        memory = pool_memory.shared()
        if memory is not None:
            memory.note_stop()
            held = None if pid is None else memory.held_by(pid)
            if held is not None and held.job_id == job_id:
                processes = wiring.lost_processes(memory)
                later = partial(processes.hand_back_if_stuck, held, time.monotonic())
                _recorder.note(later, job_id=str(job_id))
            return False
        hand_back = None if job_id is None else wiring.process_worker().take_from_runner(job_id)
        if hand_back is None:
            return False
        _recorder.note(hand_back, _QUICKLY_SECONDS, job_id=str(job_id))
        return True


def _end_revoked_job(sender: Task, request: Any, terminated: bool, **_: Any) -> None:
    if sender.name == SYNC_USER and is_asked_for(request):
        with suppress(ValueError):
            job_id = UUID(request.id)
            if not is_probe(job_id):
                _skip_revoked(job_id, terminated)


def _skip_revoked(job_id: UUID, killed: bool, wait_seconds: float = 0.0) -> None:
    skip = partial(wiring.process_worker().skip_revoked, job_id, killed)
    _recorder.note(skip, wait_seconds, job_id=str(job_id))
