"""What the suite's children run: the product's own commands, in a process forked from a warm one.

Importing Celery takes a second; forked from a process that has done it, a child starts in 30 ms. The
module `celery_app` reads the environment as it is imported, so each child imports that by itself.
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

# Nothing of these opens a connection or reads our variables.
for _module in (
    *("celery.bin.celery", "celery.apps.worker", "celery.apps.beat", "celery.concurrency.solo"),
    *(
        "celery.concurrency.prefork",
        "celery.fixups.django",
        "celery.worker.consumer",
        "kombu.transport.redis",
    ),
    *("redbeat", "redis", "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "alembic.command"),
    *("worker_scheduler.reconciler", "worker_scheduler.lease_keeper", "worker_scheduler.worker"),
    *("worker_scheduler.publisher.choice", "worker_scheduler.publisher.redis_bulk"),
    "worker_scheduler.ledger.schema",
):
    importlib.import_module(_module)

_PEAKS = "peaks"
"""The file in which a child notes the most memory that it had."""

_MAXRSS_IN_KIB = 1024 if sys.platform == "darwin" else 1


def run(arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
    """The child: becomes the command, with this environment, in the log's folder."""
    os.setsid()
    threading.Thread(target=_end_with_the_suite, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(log.parent)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = arguments
    try:
        _PROGRAMS[arguments[0]]()
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // _MAXRSS_IN_KIB
        with (log.parent / _PEAKS).open("a") as peaks:
            peaks.write(f"{os.environ[PROCESS]} {peak}\n")


def highest_peak(folder: Path) -> int:
    """The most memory that a child had which ended by itself, in KiB; 0 where none has."""
    peaks = folder / _PEAKS
    if not peaks.exists():
        return 0
    return max(int(line.split()[1]) for line in peaks.read_text().splitlines())


def _end_with_the_suite() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _celery() -> None:
    celery = importlib.import_module("celery.__main__")
    celery.main()


def _reconcile_forever() -> None:
    """`scheduler reconcile` at its interval, as a timer would call it."""
    while True:
        worker_scheduler.cli.run(["reconcile"])
        time.sleep(float(os.environ["RECONCILE_INTERVAL_SECONDS"]))


_PROGRAMS: dict[str, Callable[[], None]] = {
    "scheduler": worker_scheduler.cli.main,
    "celery": _celery,
    "reconciler": _reconcile_forever,
}
