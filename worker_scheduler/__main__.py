"""The command `scheduler`, also as `python -m worker_scheduler`. It loads nothing before Ctrl-C works."""

import os
import signal
import sys
from typing import NoReturn


def main() -> None:
    """Runs the command of sys.argv and ends the process with its exit status."""
    for sent in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(sent) is not signal.SIG_IGN:
            signal.signal(sent, _end_at_once)
    from worker_scheduler import cli  # noqa: PLC0415 - takes a second

    cli.main()


def _end_at_once(*_: object) -> NoReturn:
    """Handles a signal without an exception: one inside of an import may be lost, or end in a traceback."""
    os.write(sys.stderr.fileno(), b"scheduler: interrupted; nothing was begun\n")
    os._exit(130)


if __name__ == "__main__":
    main()
