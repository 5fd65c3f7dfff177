"""Runs a command until its own standard input ends, then stops it; its exit status is the command's.

The demo starts each process on a leash. The leash ends when the demo lets go of it, and also when
the demo is killed and can let go of nothing, so that no worker outlives it. Standard library only.
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
    """Run the command in a session of its own; 128 + n if a signal n ended it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
        if readable:  # nobody writes to it: this is its end
            break
    with suppress(subprocess.TimeoutExpired):
        process.terminate()
        process.wait(GRACE_SECONDS)
    # What it started, too: a worker's pool processes outlive a worker that was killed.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
