"""The child process of a worker in which its watchdog runs a reconcile pass."""

from __future__ import annotations

import signal
from datetime import datetime

from worker_scheduler import logs, wiring
from worker_scheduler.config.settings import load
from worker_scheduler.errors import SchedulerError
from worker_scheduler.fanout.report import log_progress
from worker_scheduler.maintenance import reconciler

log = logs.get_logger(__name__)


def main(worker_name: str, begun_at: str) -> None:
    """Runs the pass that began at this time. Raises SystemExit if it could not run at all."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group: no traceback for it
    logs.configure(load().log_level)
    logs.to_stderr()
    try:
        with wiring.task_context(f"worker {worker_name}", log_progress) as context:
            reconciler.reconcile_begun(context, datetime.fromisoformat(begun_at))
    except SchedulerError as error:
        log.error("reconcile pass failed", error=str(error))
        raise SystemExit(error.exit_status) from None
