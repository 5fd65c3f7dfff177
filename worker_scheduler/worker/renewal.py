"""Renews the leases of all jobs of a process together, for both kinds of heartbeat."""

from __future__ import annotations

from collections.abc import Iterable

from worker_scheduler.clock import Clock
from worker_scheduler.leases import Lease, Renewal
from worker_scheduler.ledger import jobs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.database import Database


def renew_together(
    database: Database, clock: Clock, lease: Lease, held: Iterable[ClaimedJob]
) -> Renewal[ClaimedJob]:
    """Extends the leases of jobs, and says which of them are lost, and which are held up by a lock.

    Raises as Database does; then it may have extended some of them.
    """
    lost: list[ClaimedJob] = []
    held_up: list[ClaimedJob] = []
    with database.autocommit() as connection:
        for group in jobs.in_groups(held):
            renewal = jobs.extend_leases(connection, group, lease.until(clock()))
            lost += renewal.lost
            held_up += renewal.held_up
    return Renewal(lost, held_up)
