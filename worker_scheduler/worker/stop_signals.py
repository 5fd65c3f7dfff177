"""Notices that a worker's main process is told to stop, before Celery acts on it.

Celery's own signal `worker_shutting_down` comes too late: after a soft shutdown's 20 s, when the processes
of the pool have been ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGHUP)


def watch(note: Callable[[], None]) -> None:
    """Calls `note` at each signal that stops this process, and then Celery's own handler.

    To be called once Celery has its handlers. In a worker that runs in a thread there are none.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, _noting(note, handler))


def handle_in_greenlets() -> None:
    """Lets Celery's own handlers run in greenlets: they wait, and gevent's hub, in which the handler of a
    signal may be called, cannot. Without that, a soft shutdown ends in an error instead.

    To be called as `watch` is, in a worker whose pool is gevent.
    """
    spawn = sys.modules["gevent"].spawn
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, partial(spawn, handler))


def _noting(note: Callable[[], None], handler: Callable[..., Any]) -> Callable[..., Any]:
    process_id = os.getpid()

    def noting(*arguments: Any) -> Any:
        if os.getpid() == process_id:  # a new process of the pool has this handler for a moment, too
            note()
        return handler(*arguments)

    return noting
