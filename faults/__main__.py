"""`python -m faults`: plays a seeded run of faults, then the mutants.

The variables SEED and FAULTS (how many) repeat an earlier run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from faults import clock_faults, mutants
from faults.faults import DEFAULT_FAULTS, Kind
from faults.lane import Broken
from faults.report import say
from faults.run import Run


def main() -> int:
    """Returns 0 if every invariant held after every fault and every mutant turned red, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--only", choices=[kind.name for kind in Kind], help="only faults of this kind, and no mutants"
    )
    only.add_argument("--no-mutants", action="store_true", help="only the faults")
    only.add_argument("--mutants", action="store_true", help="only the mutants")
    parser.add_argument(
        "--publisher",
        choices=("redis-bulk", "group"),
        default="redis-bulk",
        help="publisher of all ticks and reconcilers, except those of the mutants [redis-bulk]",
    )
    asked = parser.parse_args()
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    count = int(os.environ.get("FAULTS") or DEFAULT_FAULTS)
    say(f"seed {seed}, publisher {asked.publisher}; to repeat: {_command(seed, count)}")
    kinds = frozenset({Kind[asked.only]}) if asked.only else None
    green = asked.mutants or _play(seed, count, asked.publisher, kinds)
    if green and not asked.only and not asked.no_mutants:
        started = time.monotonic()
        green = mutants.all_red(seed, clock_faults.unplayable())
        say(f"mutants: {time.monotonic() - started:.0f} s")
    return 0 if green else 1


def _play(seed: int, count: int, publisher: str, only: frozenset[Kind] | None) -> bool:
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        Run(folder, seed, count, publisher, only).play()
    except Broken as broken:
        say(f"{mutants.RED}{broken}")
        say(f"seed {seed}; to repeat: {_command(seed, count)}; logs: {folder}")
        return False
    say(f"seed {seed}: green")
    shutil.rmtree(folder)
    return True


def _command(seed: int, count: int) -> str:
    return f"SEED={seed} FAULTS={count} make test-faults"


if __name__ == "__main__":
    sys.exit(main())
