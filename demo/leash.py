"""Runs a command and stops it when this process's standard input ends; exits with the command's status.

The demo starts each of its processes through this module and keeps the other end of standard input. The
input ends when the demo closes it, and also when the demo is killed, so that no worker outlives the demo.
Uses only the standard library.
"""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0


def main(command: list[str]) -> int:
    """Runs the command in a session of its own; returns its exit status, 128 + n if signal n ended it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
        if readable:  # nothing is ever written to it, so this is its end
            break
    with suppress(subprocess.TimeoutExpired):
        process.terminate()
        process.wait(GRACE_SECONDS)
    # Also kill its children: a worker's pool processes outlive a worker that was killed.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
