"""A child process that calls one function of this package in an interpreter of its own.

For what must not happen in a worker's main process. The pool is forked from that process: its processes
would share what it has opened or imported.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time

# With the path of this process, since the command `celery` puts folders on it. -P: a module of the current
# folder must not stand in for one of Python's before the path is set.
_CALL = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from worker_scheduler.child_process import call; call(*sys.argv[2:])"
)
_LOOK_SECONDS = 0.5


def command(module: str, function: str, *arguments: str) -> list[str]:
    """The command that imports `module` and calls `function` with these arguments.

    It is for a child of this process, and ends soon after this process does.
    """
    path = json.dumps([str(folder) for folder in sys.path])
    return [sys.executable, "-P", "-c", _CALL, path, str(os.getpid()), module, function, *arguments]


def call(parent_id: str, module: str, function: str, *arguments: str) -> None:
    """Does in the child process what `command` says."""
    threading.Thread(target=_end_with, args=(int(parent_id),), daemon=True).start()
    called = getattr(importlib.import_module(module), function)
    called(*arguments)


def _end_with(parent_id: int) -> None:
    """Ends this process when its parent is gone: nobody else would end it if it hangs."""
    while os.getppid() == parent_id:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)
