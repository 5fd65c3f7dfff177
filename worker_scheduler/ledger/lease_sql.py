"""SQL about leases, for every table that has one: when it is over, and what a statement that waits adds.

A lease is written as the time that the caller gives, plus WAITED. For a statement that waits for the lock
of a row, that is right only if it takes the lock first: `WITH held AS MATERIALIZED (SELECT … FOR UPDATE)
UPDATE … FROM held`. In a plain UPDATE Postgres computes the new values, and waits after that. SKIP LOCKED
never waits for a row, and the lock of a table is taken before anything is computed.
"""

from __future__ import annotations

from worker_scheduler.leases import LONGEST_LEASE_SECONDS

_MARGIN_SECONDS = 60
"""How far the clock of a living holder may be ahead."""

_LATEST = f"CAST(:now AS timestamptz) + interval '{LONGEST_LEASE_SECONDS + _MARGIN_SECONDS} seconds'"

# In steps of half a second: at most that much is lacking, half of the shortest lease, and a statement that
# does not wait writes exactly the time that it was given. now() is when the transaction began.
# statement_timestamp() is too late: with a bound parameter, Postgres waits for a table before it.
WAITED = "floor(2 * extract(epoch FROM clock_timestamp() - now())) * interval '0.5 seconds'"
"""How long the statement has waited since it began, as an interval; 0 if less than half a second."""


def is_over(column: str) -> str:
    """The condition that a lease has run out at `:now`, or lasts longer than any lease may.

    A process whose clock is days ahead writes such a lease; nothing would ever wait for its end.
    """
    return f"({has_run_out(column)} OR {lasts_too_long(column)})"


def has_run_out(column: str) -> str:
    """One half of `is_over`, for a statement that uses an index for each half."""
    return f"{column} <= :now"


def lasts_too_long(column: str) -> str:
    """The other half of `is_over`."""
    return f"{column} > {_LATEST}"


def is_valid(column: str) -> str:
    """The condition that a lease is held at `:now`; not true for NULL."""
    return f"({column} > :now AND {column} <= {_LATEST})"
