"""The child process of a worker in which its watchdog runs a reconcile pass."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import datetime

from worker_scheduler import logs, wiring
from worker_scheduler.config.settings import load
from worker_scheduler.errors import SchedulerError
from worker_scheduler.fanout.report import log_progress
from worker_scheduler.maintenance import reconciler

log = logs.get_logger(__name__)

_LOOK_SECONDS = 0.5


def main(worker_id: str, worker_name: str, begun_at: str) -> None:
    """Runs the pass that began at this time, and ends soon after the worker with this process id does.

    Raises SystemExit if the pass could not run at all.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group: no traceback for it
    threading.Thread(target=_end_with, args=(int(worker_id),), daemon=True).start()
    logs.configure(load().log_level)
    logs.to_stderr()
    try:
        with wiring.task_context(f"worker {worker_name}", log_progress) as context:
            reconciler.reconcile_begun(context, datetime.fromisoformat(begun_at))
    except SchedulerError as error:
        log.error("reconcile pass failed", error=str(error))
        raise SystemExit(error.exit_status) from None


def _end_with(worker_id: int) -> None:
    """Ends this process when its parent is gone: nobody would cut off a pass that hangs."""
    while os.getppid() == worker_id:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)
