"""Runs the tests of each row of the matrix, prints how each row ended, and fails if one failed.

It expects PostgreSQL 15, Redis 7 and RabbitMQ on their standard ports of 127.0.0.1, or at the addresses in
MATRIX_DATABASE_URL, MATRIX_REDIS_URL and MATRIX_BROKER_URL.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from matrix import servers
from matrix.pgbouncer import pgbouncer
from matrix.servers import WrongServer


@dataclass(frozen=True)
class Row:
    """Servers, and the tests to run against them.

    serve: starts those servers that are not running, and returns the variables for the tests. Raises
    WrongServer. tests: arguments of pytest; none runs the whole suite.
    """

    name: str
    serve: Callable[[], AbstractContextManager[Mapping[str, str]]]
    tests: tuple[str, ...] = ()


ROWS = (
    Row("PostgreSQL 15, Redis 7", servers.standing_pair),
    Row("PgBouncer (transaction mode), PostgreSQL 15, Redis 7", pgbouncer),
    Row(
        "RabbitMQ, PostgreSQL 18",
        servers.rabbitmq,
        (
            "-p",
            "tests.conftest",
            "-n",
            "0",
            "matrix/test_rabbitmq.py",
            "matrix/test_rabbitmq_alarm.py",
            "matrix/test_rabbitmq_timeout.py",
        ),
    ),
)


def main(wanted: list[str]) -> int:
    """Runs the rows whose names contain all the given words; returns the exit status."""
    rows = [row for row in ROWS if all(word in row.name for word in wanted)]
    if not rows:
        names = "; ".join(row.name for row in ROWS)
        print(f"matrix: no row matches {' '.join(wanted)!r}; the rows are: {names}", file=sys.stderr)
        return 2
    results = [_run(row) for row in rows]
    print("\n" + "\n".join(line for _, line in results))
    return 0 if all(green for green, _ in results) else 1


def _run(row: Row) -> tuple[bool, str]:
    print(f"== {row.name}", flush=True)
    started = time.monotonic()
    try:
        with row.serve() as variables:
            tests = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", *row.tests],
                env={**os.environ, **variables},
                check=False,
            )
        ended = "green" if tests.returncode == 0 else "RED"
    except WrongServer as fault:
        ended = f"RED: {fault}"
    return ended == "green", f"{row.name}: {ended} ({time.monotonic() - started:.0f} s)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
