"""The command of a child process that calls one function of this package in an interpreter of its own.

For what must not happen in a worker's main process. The pool is forked from that process: its processes
would share what it has opened or imported.
"""

from __future__ import annotations

import json
import sys

# With the path of this process, since the command `celery` puts folders on it. -P: a module of the current
# folder must not stand in for one of Python's before the path is set.
_CALL = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(*sys.argv[4:])"
)


def command(module: str, function: str, *arguments: str) -> list[str]:
    """The command that imports `module` and calls `function` with these arguments."""
    path = json.dumps([str(folder) for folder in sys.path])
    return [sys.executable, "-P", "-c", _CALL, path, module, function, *arguments]
