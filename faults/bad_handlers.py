"""Handlers that hang, break or lie, and how the job of each must end. A user's login names one of them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from worker_scheduler.worker import JobTimeout, SyncJob

LIMIT_SECONDS = 1
"""JOB_TIMEOUT_SECONDS of the lane."""
MAX_ATTEMPTS = 2
"""SYNC_MAX_ATTEMPTS of the lane."""
RETRY_ON = "ConnectionError"
"""SYNC_RETRY_ON of the lane."""
GIL_SECONDS = 2.5 * LIMIT_SECONDS
_FOR_EVER = 10**6
_TIMED_OUT = f"timed out after {LIMIT_SECONDS} s"
_UNNOTICED = "worker lost"
"""A process that ends just after it took its message: Celery gives the message to another one, and does not
tell of the loss. Then the lease has to run out.
"""
_GAVE_UP = f"gave up after {MAX_ATTEMPTS} attempts: "


@dataclass(frozen=True)
class BadHandler:
    """What a handler does, and the end that its job must have: state, text (a pattern) and attempts.

    stubborn: whether the job holds its process, or its next attempt waits, for half a minute.
    """

    handle: Callable[[SyncJob], object]
    text: str
    attempts: int = 1
    status: str = "FAILED"
    stubborn: bool = False

    def differs(self, status: str, text: str | None, attempts: int) -> bool:
        """Whether a job has ended in another way."""
        same_text = re.fullmatch(self.text, text or "", re.DOTALL) is not None
        return not (same_text and (status, attempts) == (self.status, self.attempts))


def _sleep(job: SyncJob) -> None:
    time.sleep(_FOR_EVER)


def _swallow(job: SyncJob) -> None:
    try:
        time.sleep(_FOR_EVER)
    except JobTimeout:
        return


def _go_on(job: SyncJob) -> None:
    _swallow(job)
    time.sleep(_FOR_EVER)


def _hold_the_gil(job: SyncJob) -> None:
    ctypes.PyDLL(None).usleep(int(GIL_SECONDS * 1_000_000))


def _hang_in_c(job: SyncJob) -> None:
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(128)
    for _ in range(2):  # a mutex that is locked twice is waited for, for ever
        libc.pthread_mutex_lock(mutex)


def _return_a_coroutine(job: SyncJob) -> object:
    return asyncio.sleep(0)


def _exit(job: SyncJob) -> None:
    sys.exit("that was it")


def _end_the_process(job: SyncJob) -> None:
    os._exit(3)


def _kill_the_process(job: SyncJob) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _say_much(job: SyncJob) -> None:
    raise RuntimeError("x" * 1_000_000)


def _raise_job_timeout(job: SyncJob) -> None:
    raise JobTimeout("says the handler")


def _fail_always(job: SyncJob) -> None:
    raise ConnectionResetError("by peer")


def _fail_once(job: SyncJob) -> None:
    if job.attempt == 1:
        _fail_always(job)


BAD_HANDLERS = {
    "sleeps": BadHandler(_sleep, _TIMED_OUT),
    "swallows": BadHandler(_swallow, _TIMED_OUT),
    "holds-gil": BadHandler(_hold_the_gil, _TIMED_OUT),
    "coroutine": BadHandler(_return_a_coroutine, "UnfinishedWork: the handler returned a coroutine.*"),
    "exits": BadHandler(_exit, "SystemExit: that was it"),
    "ends-process": BadHandler(
        _end_the_process, f"{_GAVE_UP}(its process was lost, exitcode 3|{_UNNOTICED})", MAX_ATTEMPTS
    ),
    "kills-process": BadHandler(
        _kill_the_process,
        rf"{_GAVE_UP}(its process was lost, signal 9 \(SIGKILL\)|{_UNNOTICED})",
        MAX_ATTEMPTS,
    ),
    "says-much": BadHandler(_say_much, "RuntimeError: x{400,486}"),  # at most 500 characters
    "raises-timeout": BadHandler(_raise_job_timeout, "JobTimeout: says the handler"),
    "goes-on": BadHandler(_go_on, _TIMED_OUT, stubborn=True),
    "hangs-in-c": BadHandler(_hang_in_c, _TIMED_OUT, stubborn=True),
    "fails-once": BadHandler(_fail_once, "", MAX_ATTEMPTS, "COMPLETED", stubborn=True),
    "fails-always": BadHandler(
        _fail_always, _GAVE_UP + "ConnectionResetError: by peer", MAX_ATTEMPTS, stubborn=True
    ),
}


def of_login(login: str | None) -> BadHandler | None:
    """The handler that a user's login names; None: the suite's usual one."""
    return BAD_HANDLERS.get((login or "").rpartition("-")[0])


def names(stubborn: bool) -> list[str]:
    """Those that hold up nothing for long, or the stubborn ones."""
    return [name for name, bad in BAD_HANDLERS.items() if bad.stubborn == stubborn]
