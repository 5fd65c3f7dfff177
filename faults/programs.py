"""What the suite's children run: the product's own commands, forked from a process that has imported it.

Importing Celery takes a second; a child forked from a process that has done so starts in 30 ms. The module
`celery_app` reads the environment when it is imported, so each child imports that one itself.

Only a new program loads the library of LD_PRELOAD, so a child with that variable executes this module.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import connection, parent_process
from pathlib import Path

import worker_scheduler.cli
from faults.handler import PROCESS

# None of these modules opens a connection or reads the scheduler's variables.
for _module in (
    *("celery.bin.celery", "celery.apps.worker", "celery.apps.beat", "celery.concurrency.solo"),
    *(
        "celery.concurrency.prefork",
        "celery.fixups.django",
        "celery.worker.consumer",
        "kombu.transport.redis",
    ),
    *("redbeat", "redis", "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "alembic.command"),
    *(
        "worker_scheduler.maintenance.reconciler",
        "worker_scheduler.worker.pool_heartbeat",
        "worker_scheduler.worker.claims",
    ),
    *("worker_scheduler.publisher.choice", "worker_scheduler.publisher.redis_bulk"),
    "worker_scheduler.ledger.schema",
):
    importlib.import_module(_module)

PAUSE = "FAULTS_PAUSE"
"""The variable with the seconds between two passes of a reconciler, if they are not its interval."""
_PEAKS = "peaks"
"""The file in which each child writes its peak memory."""

_MAXRSS_IN_KIB = 1024 if sys.platform == "darwin" else 1


def run(arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
    """Runs in the child: becomes the command, with this environment, in the log's folder."""
    os.setsid()
    parent = parent_process()
    assert parent is not None
    os.chdir(log.parent)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if "LD_PRELOAD" in environment:
        os.set_inheritable(parent.sentinel, True)
        command = [sys.executable, "-m", "faults.programs", str(parent.sentinel), *arguments]
        os.execve(sys.executable, command, dict(environment))
    os.environ.clear()
    os.environ.update(environment)
    _become(arguments, parent.sentinel)


def _become(arguments: list[str], sentinel: int) -> None:
    threading.Thread(target=_end_with_the_suite, args=(sentinel,), daemon=True).start()
    sys.argv = arguments
    folder = Path.cwd()
    try:
        _PROGRAMS[arguments[0]]()
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // _MAXRSS_IN_KIB
        with (folder / _PEAKS).open("a") as peaks:
            peaks.write(f"{os.environ[PROCESS]} {peak}\n")


def highest_peak(folder: Path) -> int:
    """Returns the highest peak memory of the children that ended by themselves, in KiB; 0 if none did."""
    peaks = folder / _PEAKS
    if not peaks.exists():
        return 0
    return max(int(line.split()[1]) for line in peaks.read_text().splitlines())


def _end_with_the_suite(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _celery() -> None:
    celery = importlib.import_module("celery.__main__")
    celery.main()


def _reconcile_forever() -> None:
    """Runs `scheduler reconcile` at its interval, as a timer would, or after PAUSE."""
    pause_seconds = float(os.environ.get(PAUSE) or os.environ["RECONCILE_INTERVAL_SECONDS"])
    while True:
        worker_scheduler.cli.run(["reconcile"])
        time.sleep(pause_seconds)


_PROGRAMS: dict[str, Callable[[], None]] = {
    "scheduler": worker_scheduler.cli.main,
    "celery": _celery,
    "reconciler": _reconcile_forever,
}


if __name__ == "__main__":
    _become(sys.argv[2:], int(sys.argv[1]))
