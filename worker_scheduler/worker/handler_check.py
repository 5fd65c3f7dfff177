"""Checks the handler, and the classes of SYNC_RETRY_ON, in a process of its own before a worker starts.

The main process of a prefork worker does not import the handler's module: the pool is forked from it, and
would share what the module has opened.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from tempfile import TemporaryFile

from worker_scheduler import child_process, logs
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.worker.handler import load_handler, require_name
from worker_scheduler.worker.retry_on import NONE, load_retry_on

log = logs.get_logger(__name__)

_LONGEST_IMPORT_SECONDS = 120.0


def check_handler(name: str | None, retry_on: str = NONE) -> None:
    """Tries the handler named `package.module:function` and the classes of SYNC_RETRY_ON, without importing
    them into this process.

    Raises ConfigurationError if there is no name, if the handler cannot be imported or cannot do jobs, or
    if a class cannot be imported or is none.
    """
    name = require_name(name)
    with TemporaryFile() as answer:  # a pipe could be held open by a process that the module starts
        status = _exit_status(name, retry_on, answer.fileno())
        answer.seek(0)
        first, *_ = answer.read().splitlines() or [b""]
    if status is None:
        waited = f"{_LONGEST_IMPORT_SECONDS:g} s"
        raise ConfigurationError(
            [f"SYNC_HANDLER='{name}'{_or(retry_on)}: its module was not imported within {waited}"]
        )
    if not first:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        raise ConfigurationError(
            [f"SYNC_HANDLER='{name}'{_or(retry_on)}: its module ends the process that imports it ({how})"]
        )
    faults: list[str] = json.loads(first)
    if faults:
        raise ConfigurationError(faults)


def warn_if_imported(name: str | None) -> None:
    """Warns if this process, from which a pool will be forked, has imported the handler's module."""
    module = require_name(name).partition(":")[0]
    if module in sys.modules:
        log.warning("handler imported before the fork", module=module)


def _or(retry_on: str) -> str:
    """What else the process imports, which does not say how far it came."""
    return f" or SYNC_RETRY_ON='{retry_on}'" if "." in retry_on else ""


def _exit_status(name: str, retry_on: str, answer: int) -> int | None:
    """Runs `report` in a process whose stdout is `answer`; None if it did not end in time."""
    command = child_process.command(__name__, report.__name__, name, retry_on)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=answer)
    try:
        return process.wait(_LONGEST_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also if the worker is stopped now
        process.kill()
        process.wait()


def report(name: str, retry_on: str) -> None:
    """Writes the faults to stdout, as JSON, and ends the process whatever the module has left."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what the module prints goes where the worker's lines go
    faults: list[str] = []
    for check in (partial(load_handler, name), partial(load_retry_on, retry_on)):
        try:
            check()
        except ConfigurationError as error:
            faults += error.faults
    os.write(answer, json.dumps(faults).encode() + b"\n")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(0)  # a thread or a function at exit could take for ever
