"""`python -m benchmarks`: measures, prints two tables and writes a plot; `--small` is for CI."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import bounds, document, open_jobs, steady_state
from benchmarks.measure import Measured, Subject, side_by_side
from benchmarks.stores import StoreCopies
from worker_scheduler import embedded

_SUBJECTS = (Subject("floor", 1000), Subject("tick", 1000), Subject("tick", 200))
_IDIOMS = (Subject("group", 200), Subject("group-in-batch", 200))
_IDIOM_USERS = 100_000
"""The idioms take about 300 µs per job; more users would only take longer."""
_LOST_SHARE = 5
"""Of so many open jobs, one has lost its message."""


def main() -> int:
    """Returns 0, or 1 if `--small` measured a ratio outside CI's bounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="users, separated by commas")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="20,000 users; fails outside CI's bounds")
    parser.add_argument("--write", type=Path, help="the folder of performance.md and performance.svg")
    asked = parser.parse_args()
    sizes = [20_000] if asked.small else [int(size) for size in asked.sizes.split(",")]
    results: dict[int, dict[Subject, Measured]] = {}
    beside = None
    still_open = None
    with embedded.servers() as servers:
        for users in sizes:
            copies = StoreCopies(servers, users)
            subjects = [*_SUBJECTS, *(_IDIOMS if users <= _IDIOM_USERS else ())]
            results[users] = side_by_side(copies, users, subjects, asked.repetitions, _say)
            if users == max(sizes) and not asked.small:
                beside = steady_state.measure(copies, users, _say)
            if users == max(sizes):
                still_open = open_jobs.measure(copies, users, users // _LOST_SHARE, _say)
            copies.drop()
    tables = f"{document.table(results)}\n\n{bounds.table(results, beside, still_open)}"
    print(tables)
    if asked.write:
        (asked.write / "performance.svg").write_text(document.plot(results))
        document.put_into(asked.write / "performance.md", tables)
    return 0 if not asked.small else bounds.of_ci(results, still_open)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
