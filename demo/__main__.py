"""`python -m demo`: runs the demo, and stops all its processes on Ctrl-C or SIGTERM.

Exit status: 0 if all jobs completed, 1 if something failed, 2 if the environment is wrong, 128 + n after
signal n.
"""

import sys

from demo.interruption import Interruption


def main() -> int:
    """Runs the demo; returns the exit status."""
    interruption = Interruption()
    # Imported only now, because it takes half a second in which Ctrl-C would show a traceback.
    from demo.story import tell  # noqa: PLC0415

    return tell(interruption)


if __name__ == "__main__":
    sys.exit(main())
