"""`python -m demo`: runs the demo, and stops all of it on Ctrl-C or SIGTERM.

Exit status: 0 all jobs completed; 1 something failed; 2 wrong environment; 128 + n signal n.
"""

import sys

from demo.interruption import Interruption


def main() -> int:
    """Run the demo; returns the exit status."""
    interruption = Interruption()
    # Only now: these imports take half a second, in which Ctrl-C would show a traceback.
    from demo.story import tell  # noqa: PLC0415

    return tell(interruption)


if __name__ == "__main__":
    sys.exit(main())
