"""Tells whether a SystemExit comes from the pool, which stops its process, or from a handler's
sys.exit().
"""

from __future__ import annotations

import signal
import sys

_TERMINATED = {-(256 - signal.SIGTERM), -(256 - signal.SIGQUIT)}
"""The SystemExit codes with which billiard stops a process of its pool: by SIGTERM, or by SIGQUIT if
REMAP_SIGTERM=SIGQUIT makes SIGQUIT the signal to stop.
"""


def termination() -> SystemExit:
    """What a pool raises in code that it stops."""
    return SystemExit(-(256 - signal.SIGTERM))


def is_killed_greenlet(error: BaseException) -> bool:
    """Whether gevent or eventlet has killed the greenlet that ran the code: Celery does so in a shutdown
    that does not wait, and at `control terminate`.
    """
    greenlet = sys.modules.get("greenlet")
    return greenlet is not None and isinstance(error, greenlet.GreenletExit)


def is_termination(error: BaseException) -> bool:
    """Whether the pool is stopping this process, as opposed to a handler that called sys.exit()."""
    return isinstance(error, SystemExit) and error.code in _TERMINATED
