"""Gives a process a wrong clock: Debian's libfaketime, loaded into it by LD_PRELOAD.

Only the processes of a test get it, not the servers. Their monotonic clock stays, as on a real host.
"""

from datetime import timedelta
from pathlib import Path

LIBRARIES = Path("/usr/lib")
SHARED_MEMORY = Path("/dev/shm")
ROOT = Path(__file__).resolve().parents[1]


def library() -> Path | None:
    """The library; None if it is not installed."""
    return next(iter(sorted(LIBRARIES.glob("*/faketime/libfaketimeMT.so.1"))), None)


def clean_up(process_id: int) -> None:
    """Removes what the library leaves in the shared memory of a machine when its process was killed."""
    for name in (f"faketime_shm_{process_id}", f"sem.faketime_sem_{process_id}"):
        (SHARED_MEMORY / name).unlink(missing_ok=True)


def wrong_by(difference: timedelta) -> dict[str, str]:
    """The variables of a process on a host that is ahead by `difference`, or behind if that is negative."""
    if not difference:
        return {}
    loaded = library()
    assert loaded, "libfaketime is not installed: scripts/install-faketime.sh"
    return {
        "PYTHONPATH": f"{ROOT}:{ROOT}/clocks/host",
        "LD_PRELOAD": str(loaded),
        "FAKETIME": f"{difference.total_seconds():+.0f}",
        # The name of each version of the library.
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
