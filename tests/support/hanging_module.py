"""A module whose import hangs, as one does that asks a server that is away."""

import time

time.sleep(20)


class Busy(Exception):
    """Never seen by whoever does not wait."""
