"""Python imports this at the start of a process with a wrong clock.

libfaketime breaks clock_nanosleep() with an absolute time, which is how time.sleep() sleeps: it ends at
once, with EINVAL. select() works.
"""

import select
import time


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


time.sleep = _sleep  # type: ignore[assignment] # it takes no named argument, like the original
